"""The report page: self-contained, escaped, right in what it draws, whole whatever the run folder lacks."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from misplace.engine.errors import UserError
from misplace.engine.report import samples, write_report
from misplace.engine.report.contents import Pictures, read_run
from misplace.engine.report.curves import draw_curves, loss_terms
from misplace.engine.report.page import bce_chance
from misplace.engine.report.plot import duration
from misplace.engine.report.samples import sparse
from misplace.engine.report.token_pictures import DIM, MARK, draw_probabilities, draw_tokens, magnified

CONFIG = {
    "recipe": "moco_v3_dilemma",
    "model": {"name": "nano", "image_size": 28, "patch_size": 4},
    "data": {"source": "fashion-mnist", "batch_size": 256},
    "pretext": {"kind": "dilemma", "drop_rate": 0.5, "wrong_rate": 0.2},
    "run": {"seed": 3},
}
ENVIRONMENT = {"device": "cpu", "versions": {"torch": "2.13"}, "implementations": {"token_plan": "native"}}
SUMMARY = {
    "knn": {"pixels": 0.713, "random": 0.545, "trained": 0.743},
    "knn_k": 20,
    "chance": 0.1,
    "images": 76800,
    "seconds": 300.0,
}


def metrics(lines):
    for i in range(lines):
        yield {
            "step": 1 + i,
            "seconds": 1.0 * i,
            "images": 256 * (1 + i),
            "loss": 5 - 0.01 * i,
            "contrastive": 4.5 - 0.01 * i,
            "bce": 0.5,
            "auroc": 0.5 if i else None,
            "lr": 1e-4,
            "grad_norm": 1.0,
            "images_per_s": 900.0,
            "data_wait": 0.05,
        }


def pictures(count=3, side=28, patch_size=4, channels=1, kept=0.5):
    rng = np.random.default_rng(0)
    num_patches = (side // patch_size) ** 2
    order = np.argsort(rng.random((count, 2, num_patches)), axis=-1).astype(np.int32)
    num_kept = int(num_patches * kept)
    src, dropped = order[..., :num_kept], order[..., num_kept:]
    wrong = np.zeros(src.shape, dtype=bool)
    wrong[..., : min(4, dropped.shape[-1])] = True
    pos = src.copy()
    pos[wrong] = dropped[..., : wrong[0, 0].sum()].ravel()
    return {
        "views": rng.integers(0, 256, (count, 2, side, side, channels), dtype=np.uint8),
        "src": src,
        "pos": pos,
        "wrong": wrong,
        "probability": rng.random(src.shape).astype(np.float32),
        "patch_size": np.array(patch_size),
    }


def write_run(folder, lines=60, config=CONFIG, environment=ENVIRONMENT, summary=SUMMARY, arrays=None):
    folder.mkdir(exist_ok=True)
    for name, content in (("config", config), ("environment", environment), ("summary", summary)):
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics(lines)))
    if arrays is not None:
        np.savez_compressed(folder / "pictures.npz", **arrays)
    return folder


class Page(HTMLParser):
    """What a page consists of, and whether its tags close in order."""

    VOID = {"meta", "img", "source", "br", "link", "hr", "input"}

    def __init__(self, text):
        super().__init__()
        self.raw, self.tags, self.images, self.words, self.open = text, [], [], [], []
        self.feed(text)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def render(folder):
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("full") / "run", arrays=pictures())
    (folder / "quarantine.jsonl").write_text('{"index": 3}\n{"index": 9}\n')
    return render(folder)


def test_says_what_was_run(full):
    for part in (
        "moco_v3_dilemma",
        "on fashion-mnist",
        "nano, 28 / 4",
        "76,800",
        "5.0 min",
        "256",  # images/s
        "74.3 %: +19.8 points over the random encoder, +3.0 points over raw pixels",
        "20 nearest neighbours",
        "chance, 10 %",
        "pretext.wrong_rate 0.2",
        "token_plan native",
        "versions.torch 2.13",
        "2 images that could not be read were replaced",
        "24 of 49 tokens kept, 4 of them misplaced",
    ):
        assert part in full.text, part


def test_has_every_curve(full):
    titles = [image["alt"].split(" against")[0] for image in full.images if " against the step" in image["alt"]]
    assert titles == [
        "Loss and its terms",
        "BCE of the detection head",
        "Detection AUROC",
        "Images/s and data wait",
        "Learning rate",
        "Gradient norm",
    ]
    alts = " ".join(image["alt"] for image in full.images)
    assert "loss from 5 to 4.41, contrastive from 4.5 to 3.91" in alts
    assert "chance 0.5004" in alts and "data_wait from 5 to 5" in alts


def test_is_self_contained(full):
    resources = [a[k] for _, a in full.tags for k in ("src", "srcset", "href", "data", "action") if k in a]
    assert resources and all(r.startswith("data:image/png;base64,") for r in resources)
    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in full.tags}
    assert not any(key.startswith("on") for _, attributes in full.tags for key in attributes)
    assert not re.search(r"@import|url\(|https?:", re.sub(r"data:image/png;base64,[\w+/=]+", "", full.raw))
    assert any("default-src 'none'" in a.get("content", "") for _, a in full.tags)


def test_images_decode_and_are_described(full):
    assert len(full.images) == 6 + 1 + 3 * 2 * 3
    assert len({image["alt"] for image in full.images}) == len(full.images)
    for image in full.images:
        data = base64.b64decode(image["src"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as decoded:
            decoded.load()
            assert decoded.format == "PNG" and min(decoded.size) >= 28


def test_every_text_is_escaped(tmp_path):
    nasty = "<script>alert('x')</script>&\"$css${title}"
    folder = write_run(
        tmp_path / "<b>run",
        config={"recipe": nasty, "data": {"source": nasty}, nasty: nasty},
        environment={"device": nasty, "implementations": {nasty: nasty}, nasty: [nasty]},
        summary={"knn": {"trained": nasty}, "knn_k": nasty, "chance": nasty, "seconds": nasty},
    )
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 100, nasty: 1.0, "loss": nasty}) + "\n")
    page = render(folder)
    assert "script" not in {tag for tag, _ in page.tags} and "b" not in {tag for tag, _ in page.tags}
    assert page.text.count(nasty) >= 6


def test_view_is_shown_to_the_pixel(full):
    seen = next(image for image in full.images if image["alt"].startswith("Sample 2, view 1 as drawn"))
    with Image.open(io.BytesIO(base64.b64decode(seen["src"].partition(",")[2]))) as decoded:
        shown = np.asarray(decoded.convert("RGB"))
    assert np.array_equal(shown, np.repeat(pictures()["views"][1, 0], 3, axis=2))


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_short_runs(tmp_path, lines):
    page = render(write_run(tmp_path / "run", lines=lines, summary=None))
    assert ("No metrics were written" in page.text) == (lines == 0)
    assert "k-NN before and after" not in page.text


def test_empty_folder(tmp_path):
    (tmp_path / "run").mkdir()
    page = render(tmp_path / "run")
    assert "No metrics were written" in page.text and page.images == []


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path / "none")


def test_a_run_without_a_head(tmp_path):
    """MoCo v3 alone: every patch in place, nothing to detect."""
    arrays = pictures(kept=1.0)
    del arrays["probability"]
    config = CONFIG | {"recipe": "moco_v3", "pretext": {"kind": "none"}}
    page = render(write_run(tmp_path / "run", lines=2, config=config, arrays=arrays))
    assert "every token, each at its place" in page.text
    assert "misplaced" not in page.text
    assert sum("as drawn for the network" in image["alt"] for image in page.images) == 6


def test_a_decoders_patches_are_shown(tmp_path):
    held = pictures()
    said = "the dropped patches as the decoder has them"
    without = render(write_run(tmp_path / "run", arrays=held))
    assert not any(said in shown["alt"] for shown in without.images)
    made = render(write_run(tmp_path / "run", arrays=held | {"reconstruction": 255 - held["views"]}))
    assert sum(said in shown["alt"] for shown in made.images) == 6  # three samples, two views
    misfit = render(write_run(tmp_path / "run", arrays=held | {"reconstruction": held["views"][:1]}))
    assert "reconstruction is uint8 (1, 2, 28, 28, 1)" in misfit.text


def test_a_run_whose_knn_is_partial(tmp_path):
    page = render(write_run(tmp_path / "run", lines=0, summary={"knn": {"trained": 0.5, "random": None}}))
    assert "50.0 %" in page.text and "points over" not in page.text and "chance," not in page.text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b"{", "config.json: "),
        ("summary.json", b"[1]", "summary.json: not a JSON object"),
        (
            "metrics.jsonl",
            b'{"step": 1}\n{"step": 2, "lo',
            "metrics.jsonl: 1 unreadable line left out",
        ),
        ("pictures.npz", b"PK not a zip", "pictures.npz: "),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, said):
    folder = write_run(tmp_path / "run", lines=0, arrays=pictures(1))
    (folder / name).write_bytes(content)
    page = render(folder)
    assert "Not everything could be read" in page.text and said in page.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"views": np.zeros((1, 2, 28, 28), np.uint8)}, "not uint8"),
        ({"views": np.zeros((1, 2, 28, 28, 1), np.float32)}, "not uint8"),
        ({"patch_size": np.array(5)}, "do not divide"),
        ({"patch_size": np.array(0)}, "do not divide"),
        ({"src": np.full((1, 2, 24), 49, np.int32)}, "src is outside 0..48"),
        ({"pos": np.full((1, 2, 24), -2, np.int32)}, "pos is outside"),
        ({"wrong": np.zeros((1, 2, 23), bool)}, "one shape"),
        ({"src": np.array([{"a": 1}], dtype=object)}, "pickle"),
    ],
)
def test_pictures_that_do_not_fit_are_named(tmp_path, change, said):
    folder = write_run(tmp_path / "run", lines=0, arrays=pictures(1) | change)
    run = read_run(folder)
    assert run.pictures is None
    assert len(run.unread) == 1 and said in run.unread[0]


def test_page_stops_where_the_next_sample_would_be_too_much(monkeypatch):
    held = Pictures(**{**pictures(3), "patch_size": 4})
    whole = len(samples.samples_html(held))
    for limit, shown in ((1, 1), (int(0.8 * whole), 2), (whole, 3)):
        monkeypatch.setattr(samples, "MOST_CHARACTERS", limit)
        html = samples.samples_html(held)
        assert html.count("<article") == shown
        assert shown == 1 or len(html) <= limit


def test_rewriting_gives_the_same_page(tmp_path):
    folder = write_run(tmp_path / "run", lines=1, arrays=pictures(1))
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert not list(folder.glob(".tmp*"))


def plan(src, pos):
    src, pos = np.array(src), np.array(pos)
    return src, pos, src != pos


def cell(image, patch, grid):
    """The pixels of one patch of a panel, uint8 [side, side, 3]."""
    side = image.width // grid
    row, column = divmod(patch, grid)
    return np.asarray(image)[row * side : (row + 1) * side, column * side : (column + 1) * side]


def test_tokens_kept_dimmed_and_outlined():
    view = np.zeros((28, 28, 3), np.uint8)
    view[:] = (10, 200, 30)
    src, pos, wrong = plan([0, 8, 35], [0, 8, 39])
    image = draw_tokens(view, src, pos, wrong, 4)
    assert image.width == 28 * magnified(view) >= 384
    assert (cell(image, 0, 7) == (10, 200, 30)).all()  # kept, in place: as it is
    assert (cell(image, 8, 7) == (10, 200, 30)).all()
    dropped = cell(image, 20, 7)
    assert (dropped == dropped[0, 0]).all() and np.abs(dropped[0, 0].astype(int) - DIM).max() < 25
    outlined = cell(image, 35, 7)
    middle = outlined.shape[0] // 2
    assert np.abs(outlined[3, middle].astype(int) - MARK).max() < 30  # its outline
    assert (outlined[10, 10] == (10, 200, 30)).all()  # its content
    between = cell(image, 37, 7)[middle, middle]  # the arrow, halfway
    assert np.abs(between.astype(int) - MARK).max() < 30
    told = cell(image, 39, 7)
    assert (np.abs(told.astype(int) - MARK).max(axis=2) < 30).sum() > 100


def test_arrow_leads_from_the_patch_to_its_told_place():
    """Just before its tip the arrow is wider than along its line."""
    image = draw_tokens(np.zeros((28, 28, 1), np.uint8), *plan([21], [27]), 4)
    orange = np.abs(np.asarray(image).astype(int) - MARK).max(axis=2) < 30
    middle = slice(3 * 56 + 12, 4 * 56 - 12)  # of row 3, inside its outlines
    tip = 6 * 56 + 28
    assert orange[middle, 3 * 56].sum() + 3 < orange[middle, tip - 14].sum() < 30
    assert not orange[middle, tip + 4 : tip + 12].any()


def test_probabilities_follow_the_colour_map():
    view = np.zeros((28, 28, 1), np.uint8)
    src = np.array([0, 10, 20])
    wrong = np.array([False, False, True])
    image = draw_probabilities(view, src, wrong, np.array([0.0, 1.0, np.nan]), 4)
    low, high = cell(image, 0, 7)[5, 5], cell(image, 10, 7)[5, 5]
    assert tuple(low) == (68, 1, 84) and tuple(high) == (253, 231, 37)  # viridis
    assert len(np.unique(cell(image, 0, 7).reshape(-1, 3), axis=0)) > 1  # the number
    assert np.abs(cell(image, 20, 7)[3, 25].astype(int) - MARK).max() < 30


def test_only_sparse_or_misplaced_pictures_have_tokens_to_show():
    arrays = pictures(1, kept=1.0)
    dense = Pictures(**{**arrays, "patch_size": 4})
    assert not sparse(dense)
    assert sparse(dense._replace(wrong=np.ones_like(dense.wrong)))
    assert sparse(dense._replace(src=dense.src[..., :-1]))


def test_loss_terms_are_what_is_no_other_measure():
    assert loss_terms(list(metrics(2))) == ("contrastive",)
    assert loss_terms([{"step": 1, "loss": 1.0, "a": 0.5, "name": "text", "flag": True, "b": None}]) == ("a",)


def test_values_that_are_not_finite_are_left_out():
    lines = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 3.0}, {"step": 3, "loss": float("inf")}]
    drawings = list(draw_curves(lines, None, ()))
    assert [d.alt for d in drawings] == ["Loss and its terms against the step: loss from 3 to 3."]


def test_chance_of_the_bce():
    assert bce_chance(CONFIG) == pytest.approx(0.5004, abs=5e-5)
    assert bce_chance({}) is None
    assert bce_chance({"pretext": {"wrong_rate": 0.0}}) is None


def test_durations():
    assert [duration(s) for s in (0, 119, 300, 7200)] == ["0 s", "119 s", "5.0 min", "2.0 h"]
