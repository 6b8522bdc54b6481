"""The section of pictures: each sample's views, its tokens, and what the head thought of them."""

from html import escape

import numpy as np
from PIL import Image

from .contents import Pictures
from .figure import image_uri
from .markup import image
from .token_pictures import as_rgb, colour_map_css, draw_probabilities, draw_tokens

MOST = 8
COLOURS = 128
MOST_CHARACTERS = 2_400_000


def samples_html(pictures: Pictures) -> str:
    """The legend and a card for each of the first samples: eight, or as many as keep the page light."""
    html = _legend(pictures)
    for i in range(min(MOST, len(pictures.views))):
        card = _card(pictures, i)
        if i and len(html) + len(card) > MOST_CHARACTERS:
            break
        html += card
    return html


def sparse(pictures: Pictures) -> bool:
    """Whether the student saw anything else than every patch at its place."""
    grid = pictures.views.shape[2] // pictures.patch_size
    return pictures.src.shape[2] < grid * grid or bool(pictures.wrong.any())


def _legend(pictures: Pictures) -> str:
    if not sparse(pictures):
        return ""
    items = [
        ("kept", "kept: the student sees it"),
        ("dropped", "dropped: it does not (dimmed here)"),
        ("misplaced", "misplaced: kept, but given a wrong position"),
        ("told", "where it was told to be; the arrow leads there"),
    ]
    listed = "".join(f'<li><span class="swatch {kind}"></span>{escape(text)}</li>' for kind, text in items)
    if pictures.probability is not None:
        listed += (
            f'<li>0 % <span class="swatch scale" style="background: {colour_map_css()}"></span> 100 %: '
            "the head's probability that the token is misplaced</li>"
        )
    return f'<ul class="legend">{listed}</ul>'


def _card(pictures: Pictures, i: int) -> str:
    views = "".join(_view(pictures, i, v) for v in range(pictures.views.shape[1]))
    return f'<article class="card sample"><h3>Sample {i + 1}</h3>{views}</article>'


def _view(pictures: Pictures, i: int, v: int) -> str:
    """One row: the view, its tokens, the head's probabilities."""
    view, patch_size = pictures.views[i, v], pictures.patch_size
    src, pos, wrong = pictures.src[i, v], pictures.pos[i, v], pictures.wrong[i, v]
    name = f"Sample {i + 1}, view {v + 1}"
    seen = Image.fromarray(as_rgb(view))
    smooth = len(view) > 96
    figures = [image(image_uri(seen, COLOURS), f"{name} as drawn for the network", "the view", smooth=smooth)]
    label = f"<strong>View {v + 1}</strong>"
    if sparse(pictures):
        patches = (len(view) // patch_size) ** 2
        said = f"{len(src)} of {patches} tokens kept, {int(wrong.sum())} of them misplaced"
        drawn = draw_tokens(view, src, pos, wrong, patch_size)
        figures.append(image(image_uri(drawn, COLOURS), f"{name}: {said}", "the tokens", smooth=True))
        label += f" · {escape(said)}"
    if pictures.probability is not None:
        probability = pictures.probability[i, v]
        said = _judgement(probability, wrong)
        drawn = draw_probabilities(view, src, wrong, probability, patch_size)
        figures.append(image(image_uri(drawn, COLOURS), f"{name}: {said}", "the head's probability, %", smooth=True))
        label += f" · {escape(said)}"
    if pictures.reconstruction is not None:
        made = Image.fromarray(as_rgb(pictures.reconstruction[i, v]))
        said = f"{name}: the dropped patches as the decoder has them"
        figures.append(image(image_uri(made, COLOURS), said, "the decoder's patches", smooth=smooth))
    return f'<div class="view"><p class="label">{label}</p>{"".join(figures)}</div>'


def _judgement(probability: np.ndarray, wrong: np.ndarray) -> str:
    """What a threshold of one half makes of the probabilities."""
    called = probability > 0.5
    found, alarms = int((called & wrong).sum()), int((called & ~wrong).sum())
    misplaced, in_place = int(wrong.sum()), int((~wrong).sum())
    alarmed = f"{alarms} false alarm{'' if alarms == 1 else 's'}"
    return f"at 50 % the head finds {found} of the {misplaced}, with {alarmed} among the other {in_place}"
