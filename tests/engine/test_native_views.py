"""The native views against Pillow's: every instruction set, odd sizes, and arguments that cannot be."""

import numpy as np
import pytest
import torch
from PIL import Image

from misplace.engine.data import AugmentConfig, native_views, render_view
from misplace.engine.data.augmentation import draw_views

pytestmark = pytest.mark.skipif(not native_views.available(), reason="the extension is not built")

ISAS = ("plain", "avx2", "avx512", "avx512_bf16")
# height, width, side of the view: larger and smaller, one pixel, tall (Pillow takes the height first) and wide
SHAPES = [
    (375, 500, 224), (500, 375, 96), (20, 30, 64), (1, 1, 8), (7, 1, 16), (1, 9, 5), (300, 100, 48), (101, 100, 101),
    (64, 64, 64), (64, 63, 63), (200, 50, 33), (99, 301, 31),
]  # fmt: skip


def supported(isa: str) -> bool:
    picture, parameters, view = torch.zeros(1, 1, 3, dtype=torch.uint8), torch.zeros(0, 1, 18, dtype=torch.float64), []
    try:
        native_views.render_rows([picture], parameters, range(0), tuple(view), isa)
    except ValueError:
        return False
    return True


def rendered(pictures, drawn, sizes, channels, isa=""):
    views = tuple(torch.full((len(pictures), size, size, channels), 77, dtype=torch.uint8) for size in sizes)
    parameters = native_views.pack(drawn, channels)
    native_views.render_rows([torch.from_numpy(p) for p in pictures], parameters, range(len(pictures)), views, isa)
    return [view.numpy() for view in views]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("isa", ISAS)
def test_to_the_bit(isa, channels):
    if not supported(isa):
        pytest.skip(f"this CPU has no {isa}")
    rng = np.random.default_rng(0)
    augment = AugmentConfig(local_views=1, local_size=21, blur_p=(1.0, 0.5), solarize_p=(0.2, 0.5))
    for height, width, side in SHAPES:
        kinds = augment.view_kinds(2, side)
        pictures = [rng.integers(0, 256, (height, width, channels), dtype=np.uint8) for _ in range(6)]
        sizes = torch.tensor([[height, width]]).expand(len(pictures), 2)
        drawn = draw_views(torch.arange(len(pictures)), sizes, augment, kinds, 1, 0)
        ours = rendered(pictures, drawn, [kind.size for kind in kinds], channels, isa)
        for view, (kind, parameters) in enumerate(zip(kinds, drawn)):
            for picture, row, found in zip(pictures, parameters.rows(), ours[view]):
                image = Image.fromarray(picture if channels == 3 else picture[:, :, 0])
                assert np.array_equal(found, render_view(image, row, kind.size)), (height, width, kind, row)


def test_only_the_rows_asked_for_are_written():
    pictures = [np.zeros((9, 9, 3), dtype=np.uint8)] * 4
    augment = AugmentConfig()
    kinds = augment.view_kinds(1, 8)
    drawn = draw_views(torch.arange(4), torch.full((4, 2), 9), augment, kinds, 1, 0)
    view = torch.full((4, 8, 8, 3), 77, dtype=torch.uint8)
    tensors = [torch.from_numpy(p) for p in pictures]
    native_views.render_rows(tensors, native_views.pack(drawn, 3), range(1, 3), (view,))
    assert (view[[0, 3]] == 77).all() and (view[1:3] != 77).any()


@pytest.mark.parametrize("change", ["picture's dtype", "picture's layout", "view", "parameters", "rows", "isa"])
def test_what_does_not_fit_is_said(change):
    pictures, view = [torch.zeros(9, 9, 3, dtype=torch.uint8)] * 2, torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    parameters, rows, isa = torch.zeros(1, 2, 18, dtype=torch.float64), range(2), ""
    parameters[..., 2:4], parameters[..., 16] = 9, 256
    if change == "picture's dtype":
        pictures = [p.float() for p in pictures]
    elif change == "picture's layout":
        pictures = [p.transpose(0, 1)[:, ::2] for p in pictures]
    elif change == "view":
        view = view[:, :, :, :1].contiguous()
    elif change == "parameters":
        parameters = parameters[:, :1].contiguous()
    elif change == "rows":
        rows = range(3)
    elif change == "isa":
        isa = "sse9"
    with pytest.raises(ValueError, match=r"uint8|float64|rows|unknown"):
        native_views.render_rows(pictures, parameters, rows, (view,), isa)


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 10, 5), (3, 0, 3, 5), (0, 4, 5, 2), (0, float("nan"), 5, 5)])
def test_a_box_outside_the_picture_is_refused(box):
    """Pillow refuses it too; here it would read beyond the picture."""
    parameters = torch.zeros(1, 1, 18, dtype=torch.float64)
    parameters[0, 0, :4], parameters[..., 16] = torch.tensor(box), 256
    picture, view = torch.zeros(9, 9, 3, dtype=torch.uint8), torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="box"):
        native_views.render_rows([picture], parameters, range(1), (view,))
