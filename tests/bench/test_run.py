"""`misplace bench`: rows, gates, files and mistakes."""

import csv
import dataclasses
import json

import pytest
import torch

from misplace.bench import measure, results, run
from misplace.bench.registry import Check, cases_of
from misplace.engine.errors import UserError
from misplace.kernels import Impl, ImplUnavailableError

REQUIRED = [
    "op",
    "impl",
    "against",
    "mode",
    "shape",
    "dtype",
    "ms",
    "against_ms",
    "ratio",
    "error",
    "floor_share",
]
QUICK = ["token_plan", "--tiny", "--rounds", "2", "--device", "cpu", "--impl", "reference"]


@pytest.fixture(autouse=True)
def known_floor(monkeypatch):
    """The machine's rates have their own tests."""
    monkeypatch.setattr(measure, "floor_ms", lambda *_: 1e-3)


@pytest.fixture
def case(monkeypatch, clock):
    """One case whose numbers are known: native takes 2 ms, its peer 6."""

    def resolve(op, impl, device):
        if impl == "native":
            return Impl.NATIVE
        raise ImplUnavailableError(f"{op}: impl={impl} is not available: a test said so")

    made = dataclasses.replace(
        cases_of("token_plan", tiny=True)[0],
        ours=lambda inputs, impl: clock.takes(2e-3),
        peers={"eager": lambda inputs: clock.takes(6e-3)},
        check=lambda inputs, impl: Check(0.25, 0.5),
        bytes_moved=4_000_000,
        operations=0,
    )
    monkeypatch.setattr(run, "cases_of", lambda op, tiny: [made])
    monkeypatch.setattr(measure, "resolve_impl", resolve)
    return made


def measured(tmp_path, *arguments: str) -> list[dict]:
    file = tmp_path / "rows.json"
    assert run.main([*arguments, "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_rows_say_what_was_measured(case, tmp_path, capsys):
    (row,) = measured(tmp_path, "token_plan", "--device", "cpu", "--rounds", "5")
    assert set(REQUIRED) <= set(row)
    assert (row["op"], row["impl"], row["against"]) == ("token_plan", "native", "eager")
    assert row["ms"] == pytest.approx(2)
    assert row["against_ms"] == pytest.approx(6)
    assert row["ratio"] == pytest.approx(3)
    assert row["counts"]
    assert row["error"] == 0.25
    assert row["floor_share"] == pytest.approx(5e-4)
    assert row["gb_s"] == pytest.approx(2)
    assert "token_plan native" in capsys.readouterr().out


def test_reference_against_eager_and_itself(tmp_path):
    rows = measured(tmp_path, *QUICK, "--against", "eager,reference")
    assert [row["against"] for row in rows] == ["eager", "reference"]
    assert all(row["ms"] > 0 and row["error"] == 0 for row in rows)


def test_red_gate_prints_no_number_and_exits_1(case, monkeypatch, tmp_path, capsys):
    red = dataclasses.replace(case, check=lambda inputs, impl: Check(float("nan"), 0.5))
    monkeypatch.setattr(run, "cases_of", lambda op, tiny: [red])
    file = tmp_path / "rows.json"
    assert run.main(["token_plan", "--device", "cpu", "--json", str(file)]) == 1
    captured = capsys.readouterr()
    assert json.loads(file.read_text()) == []
    assert " ms" not in captured.out
    assert "RED, not measured: token_plan native" in captured.err


def test_one_red_case_does_not_hide_a_green_one(case, monkeypatch, tmp_path):
    red = dataclasses.replace(case, check=lambda inputs, impl: Check(1.0, 0.5))
    monkeypatch.setattr(run, "cases_of", lambda op, tiny: [red, case])
    file = tmp_path / "rows.json"
    assert run.main(["token_plan", "--device", "cpu", "--rounds", "2", "--json", str(file)]) == 1
    assert len(json.loads(file.read_text())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "unknown op 'nonsense'"),
        ([*QUICK, "--against", "nobody"], "has no peer 'nobody'; one of eager, compile"),
        (["token_plan", "--impl", "magic"], "unknown impl 'magic'; one of auto, reference"),
        (["token_plan", "--tiny", "--device", "cpu", "--impl", "xformers"], "impl=xformers"),
        ([*QUICK, "--against", "xformers"], "token_plan: impl=xformers is not available"),
        ([*QUICK, "--device", "toaster"], "--device toaster: cpu or cuda"),
        ([*QUICK, "--rounds", "0"], "--rounds 0"),
        ([*QUICK, "--threads", "0"], "--threads 0"),
        ([*QUICK, "--mode", "sideways"], "--mode sideways: one of forward"),
        ([*QUICK, "--shape", "B=7,"], "--shape B=7,: no shape contains it"),
        ([*QUICK, "--json", "/no/such/folder/rows.json"], "/no/such/folder is no folder"),
        ([*QUICK, "--nonsense"], "--nonsense"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    with pytest.raises(UserError) as raised:
        run.main(arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_a_user_error():
    with pytest.raises(UserError, match="no CUDA device here"):
        run.main([*QUICK, "--device", "cuda"])


def test_rows_are_in_the_file_before_the_next_case_begins(case, monkeypatch, tmp_path):
    file, seen = tmp_path / "rows.csv", []

    def inputs(device):
        seen.append(len(file.read_text().splitlines()) if file.exists() else 0)
        return case.make_inputs(device)

    monkeypatch.setattr(run, "cases_of", lambda op, tiny: [dataclasses.replace(case, make_inputs=inputs)] * 2)
    assert run.main(["token_plan", "--device", "cpu", "--rounds", "2", "--csv", str(file)]) == 0
    assert seen == [0, 2] and len(file.read_text().splitlines()) == 3


def test_shape_picks_the_cases_that_contain_it(tmp_path):
    file = tmp_path / "rows.json"
    full = ["step", "--tiny", "--rounds", "1", "--device", "cpu", "--shape", "24x24", "--json", str(file)]
    assert run.main(full) == 0
    assert [row["impl"] for row in json.loads(file.read_text())] == ["auto"]


def test_csv_grows_below_one_header(tmp_path):
    file = tmp_path / "results.csv"
    for _ in range(2):
        assert run.main([*QUICK, "--csv", str(file)]) == 0
    rows = list(csv.DictReader(file.open()))
    assert len(rows) == 2
    assert list(rows[0]) == results.COLUMNS
    assert set(REQUIRED) <= set(rows[0])
    assert float(rows[0]["ms"]) > 0
    assert rows[0]["versions"].startswith("misplace=")
    assert rows[0]["date"] and rows[0]["device"]


def test_csv_of_another_version_is_left_alone(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text("op,ms\n")
    with pytest.raises(UserError, match="has other columns"):
        run.main([*QUICK, "--csv", str(file)])
    assert file.read_text() == "op,ms\n"


def test_command_line_reaches_it(capsys):
    from misplace.engine.cli import main

    assert main(["bench", "nonsense"]) == 2
    assert capsys.readouterr().err.startswith("misplace: bench: unknown op 'nonsense'; one of ")


def test_a_peer_that_only_some_cases_have_is_left_out_there_in_words(case, monkeypatch, tmp_path, capsys):
    rich = dataclasses.replace(case, op="other", peers={**case.peers, "timm": case.peers["eager"]})
    monkeypatch.setattr(run, "cases_of", lambda op, tiny: [case, rich])
    rows = measured(tmp_path, "token_plan", "--device", "cpu", "--rounds", "2", "--against", "eager,timm")
    assert [(row["op"], row["against"]) for row in rows] == [
        ("token_plan", "eager"),
        ("other", "eager"),
        ("other", "timm"),
    ]
    assert "without timm: token_plan has no such peer" in capsys.readouterr().out


def test_modes_are_chosen(case, monkeypatch, tmp_path):
    both = dataclasses.replace(case, mode="forward+backward")
    monkeypatch.setattr(run, "cases_of", lambda op, tiny: [case, both])
    arguments = ["token_plan", "--device", "cpu", "--rounds", "2"]
    assert [row["mode"] for row in measured(tmp_path, *arguments)] == ["forward", "forward+backward"]
    assert [row["mode"] for row in measured(tmp_path, *arguments, "--mode", "forward+backward")] == ["forward+backward"]
    with pytest.raises(UserError, match=r"--mode step: one of forward, forward\+backward"):
        run.main([*arguments, "--mode", "step"])


def test_what_does_not_fit_leaves_the_rest_measured(case, monkeypatch, tmp_path, capsys):
    def too_large(inputs, impl):
        raise torch.OutOfMemoryError("tried to allocate 80 GB\nand more")

    large = dataclasses.replace(case, check=too_large)
    monkeypatch.setattr(run, "cases_of", lambda op, tiny: [large, case])
    file = tmp_path / "rows.json"
    assert run.main(["token_plan", "--device", "cpu", "--rounds", "2", "--json", str(file)]) == 1
    assert len(json.loads(file.read_text())) == 1
    assert "not measured: token_plan native forward" in capsys.readouterr().err


def test_rows_are_on_disk_after_every_case(case, monkeypatch, tmp_path):
    def interrupted(inputs, impl):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "cases_of", lambda op, tiny: [case, dataclasses.replace(case, check=interrupted)])
    file = tmp_path / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        run.main(["token_plan", "--device", "cpu", "--rounds", "2", "--json", str(file)])
    assert len(json.loads(file.read_text())) == 1


def test_threads_are_those_asked_for(tmp_path):
    before = torch.get_num_threads()
    rows = measured(tmp_path, *QUICK, "--threads", "1")
    assert [row["threads"] for row in rows] == [1]
    assert torch.get_num_threads() == before
