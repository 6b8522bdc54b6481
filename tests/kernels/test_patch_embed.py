import functools
import subprocess
import sys

import pytest
import torch
from torch import nn

from misplace.kernels import patch_embed
from misplace.kernels.patch_embed import SUPPORTED
from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits, values_and_gradients
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.inputs import integers, normal
from misplace.kernels.testing.shapes import LAYOUTS

IMPLS = runnable(SUPPORTED)
WANTED = ["weight", "bias", "pos_table", "class_token", "no_position"]
MEAN, STD = (0.485, 0.456, 0.406, 0.5), (0.229, 0.224, 0.225, 0.25)
# images, grid rows, grid columns, patch, channels, width, kept
SHAPES = [(1, 1, 1, 1, 1, 1, 1), (2, 14, 14, 16, 3, 33, 50), (3, 7, 5, 4, 1, 192, 13), (2, 3, 2, 7, 3, 31, 6)]
oracle = functools.partial(patch_embed, impl="reference")


def options(channels, patch_size, layout="hwc", normalised=True):
    mean, std = (MEAN[:channels], STD[:channels]) if normalised else (None, None)
    return {"patch_size": patch_size, "mean": mean, "std": std, "layout": layout}


def eager(images, weight, bias, pos_table, class_token, no_position, src, pos, *, patch_size, mean, std, layout):
    """Embed all with a convolution in the weight's dtype, then gather: what timm and MAE do."""
    pixels = images / 255 if images.dtype == torch.uint8 else images
    pixels = pixels.permute(0, 3, 1, 2) if layout == "hwc" else pixels
    pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
    if mean is not None:
        pixels = (pixels - pixels.new_tensor(mean).view(-1, 1, 1)) / pixels.new_tensor(std).view(-1, 1, 1)
    embedded = nn.functional.conv2d(pixels.to(weight.dtype), weight, bias, stride=patch_size)
    embedded = embedded.flatten(2).transpose(1, 2)
    image = torch.arange(len(images), device=src.device)[:, None]
    table = torch.cat([pos_table, no_position[None]])
    rows = table[torch.where(pos < 0, len(pos_table), 1 + pos.long())]
    first = (class_token + pos_table[0]).expand(len(images), 1, -1)
    return torch.cat([first, embedded[image, src.long()] + rows], dim=1)


def make(
    batch, rows, columns, patch_size, channels, width, kept, *,
    dtype=torch.float32, layout="hwc", pixel=torch.uint8, device="cpu", unknown=True,
):  # fmt: skip
    patches = rows * columns
    grid = (rows * patch_size, columns * patch_size)
    size = (*grid, channels) if layout == "hwc" else (channels, *grid)
    images = integers(batch, *size, high=256, seed=1, device=device)
    order = normal(batch, patches, seed=2, device=device).argsort(dim=1)
    moved = order.roll(1, dims=0)[:, :kept]
    if unknown:
        moved = torch.where(normal(batch, kept, seed=3, device=device) > 0.8, -1, moved)
    return {
        "images": images.to(pixel) if pixel == torch.uint8 else (images / 255).to(pixel),
        "weight": normal(width, channels, patch_size, patch_size, seed=4, dtype=dtype, device=device) / patch_size,
        "bias": normal(width, seed=5, dtype=dtype, device=device),
        "pos_table": normal(1 + patches, width, seed=6, dtype=dtype, device=device),
        "class_token": normal(width, seed=7, dtype=dtype, device=device),
        "no_position": normal(width, seed=8, dtype=dtype, device=device),
        "src": order[:, :kept].int(),
        "pos": moved.int(),
    }


@pytest.mark.parametrize("layout", ["hwc", "chw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_every_impl_against_fp64(device, impl, shape, dtype, layout):
    op, plain, exact = (
        functools.partial(f, **options(shape[4], shape[3], layout)) for f in (patch_embed, eager, oracle)
    )
    tensors = make(*shape, dtype=dtype, layout=layout, device=device)
    check(functools.partial(op, impl=impl), plain, exact, tensors, WANTED)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("pixel", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["hwc", "chw"])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_floating_images_and_their_gradient(device, impl, layout, pixel, normalised):
    op, plain, exact = (functools.partial(f, **options(3, 4, layout, normalised)) for f in (patch_embed, eager, oracle))
    tensors = make(2, 5, 3, 4, 3, 17, 7, layout=layout, pixel=pixel, device=device)
    check(functools.partial(op, impl=impl), plain, exact, tensors, [*WANTED, "images"])


@pytest.mark.parametrize("memory", LAYOUTS)
@pytest.mark.parametrize("layout", ["hwc", "chw"])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_images_plan_and_weight_in_any_memory_layout(device, impl, layout, memory):
    op, plain, exact = (functools.partial(f, **options(3, 4, layout)) for f in (patch_embed, eager, oracle))
    tensors = make(3, 5, 3, 4, 3, 17, 7, layout=layout, device=device)
    tensors = {name: LAYOUTS[memory](tensor) for name, tensor in tensors.items()}
    check(functools.partial(op, impl=impl), plain, exact, tensors, WANTED)


def test_oracle_against_conv2d_and_embedding_layers():
    """A dense plan is the usual ViT: nn.Conv2d, a table added, the class token in front."""
    tensors = make(2, 3, 4, 8, 3, 10, 12, unknown=False)
    tensors["src"] = tensors["pos"] = torch.arange(12, dtype=torch.int32).expand(2, 12)
    tensors = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
    projection, table = nn.Conv2d(3, 10, 8, stride=8).double(), nn.Embedding(13, 10).double()
    projection.load_state_dict({"weight": tensors["weight"], "bias": tensors["bias"]})
    table.load_state_dict({"weight": tensors["pos_table"]})
    mean, std = (torch.tensor(numbers[:3], dtype=torch.float64) for numbers in (MEAN, STD))
    pixels = (tensors["images"].double() / 255 - mean) / std
    tokens = projection(pixels.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
    sequence = torch.cat([tensors["class_token"].expand(2, 1, 10), tokens], dim=1) + table(torch.arange(13))
    out = oracle(**tensors, **options(3, 8))
    torch.testing.assert_close(out, sequence, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_each_token_has_its_own_pixels_and_the_position_of_the_plan(device, impl):
    """Pixels of patch i are i, the weight adds them up, the table's row for i is 100 * i, no_position -7."""
    grid = torch.arange(6.0, device=device).view(2, 3)
    images = grid.repeat_interleave(2, 0).repeat_interleave(2, 1)[None, :, :, None]
    table = 100 * torch.arange(-1.0, 6.0, device=device)[:, None]
    src, pos = torch.tensor([[4, 1, 5]], device=device), torch.tensor([[2, -1, 5]], device=device)
    one = torch.ones(1, device=device)
    out = patch_embed(
        images, torch.ones(1, 1, 2, 2, device=device), 1000 * one, table, 3 * one, -7 * one, src, pos,
        patch_size=2, mean=None, std=None, impl=impl,
    )  # fmt: skip
    assert out.flatten().tolist() == [-97, 1216, 997, 1520]


@pytest.mark.parametrize("device, impl", [pair for pair in IMPLS if pair[1] != "reference"])
def test_dropped_patches_are_never_read(device, impl):
    tensors = make(1, 2, 2, 4, 3, 5, 2, pixel=torch.float32, device=device)
    tensors["src"] = torch.tensor([[0, 3]], device=device)
    tensors["images"][:, :4, 4:] = tensors["images"][:, 4:, :4] = float("nan")
    assert patch_embed(**tensors, **options(3, 4), impl=impl).isfinite().all()


@pytest.mark.parametrize("device, impl", IMPLS)
def test_without_no_position(device, impl):
    tensors = make(2, 3, 3, 4, 3, 5, 4, unknown=False, device=device)
    with_vector = patch_embed(**tensors, **options(3, 4), impl=impl)
    without = patch_embed(**(tensors | {"no_position": None}), **options(3, 4), impl=impl)
    assert torch.equal(with_vector, without)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_position_gradient_of_a_bf16_table_is_summed_in_fp32(device, impl):
    """Every one of 1,031 images adds 1 to one row: a bf16 sum would stop at 256."""
    batch = 1031
    tensors = make(batch, 1, 2, 1, 1, 1, 1, dtype=torch.bfloat16, unknown=False, device=device)
    tensors["pos"] = torch.zeros(batch, 1, dtype=torch.int32, device=device)
    tensors["pos_table"].requires_grad_()
    patch_embed(**tensors, **options(1, 1), impl=impl)[:, 1].sum().backward()
    expected = torch.tensor(float(batch)).bfloat16()
    assert tensors["pos_table"].grad[:, 0].tolist() == [0, expected, 0]


@pytest.mark.parametrize("device, impl", IMPLS)
def test_frozen_tensors_get_no_gradient(device, impl):
    tensors = make(2, 3, 3, 4, 3, 5, 4, device=device)
    tensors["class_token"].requires_grad_()
    patch_embed(**tensors, **options(3, 4), impl=impl).sum().backward()
    assert tensors["class_token"].grad.tolist() == [2] * 5
    assert all(tensors[name].grad is None for name in ("weight", "bias", "pos_table", "no_position"))


@pytest.mark.parametrize("device, impl", IMPLS)
@pytest.mark.parametrize(
    "wanted", [["class_token"], ["bias"], ["no_position", "images"], ["weight", "pos_table"]], ids=str
)
def test_any_set_of_gradients_and_a_patch_kept_twice(device, impl, wanted):
    op, plain, exact = (functools.partial(f, **options(3, 4)) for f in (patch_embed, eager, oracle))
    tensors = make(2, 2, 2, 4, 3, 17, 3, pixel=torch.float32, device=device)
    tensors["src"] = torch.tensor([[3, 3, 1], [0, 2, 0]], device=device)
    check(functools.partial(op, impl=impl), plain, exact, tensors, wanted)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_images_in_channels_last_memory_and_cut_from_larger_ones(device, impl):
    op, plain, exact = (functools.partial(f, **options(3, 4, "chw")) for f in (patch_embed, eager, oracle))
    tensors = make(3, 5, 3, 4, 3, 17, 7, layout="chw", device=device)
    for images in (
        tensors["images"].to(memory_format=torch.channels_last),
        nn.functional.pad(tensors["images"], (3, 2, 1, 4))[:, :, 1:-4, 3:-2],
    ):
        check(functools.partial(op, impl=impl), plain, exact, tensors | {"images": images}, WANTED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40, 3, 3, 8, 3, 96, 7), (9, 4, 4, 4, 1, 70, 16)], ids=str)
def test_threads_do_not_matter(shape, dtype):
    """280 and 144 tokens: several tiles, chunks and splits."""
    op = functools.partial(patch_embed, **options(shape[4], shape[3]), impl="native")
    tensors = make(*shape, dtype=dtype)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            runs.append(values_and_gradients(op, tensors, WANTED))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(run[name], result) for name, result in runs[0].items())


PLAIN = """
import functools, importlib.util, sys, torch
torch.backends.mkldnn.set_flags(False)
from misplace.kernels import patch_embed
from misplace.kernels.patch_embed.native import cpu_path
from misplace.kernels.testing.compare import check
spec = importlib.util.spec_from_file_location("shared", sys.argv[1])
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
ops = [functools.partial(f, **shared.options(3, 8)) for f in (patch_embed, shared.eager, shared.oracle)]
ops[0] = functools.partial(ops[0], impl="native")
for dtype in (torch.bfloat16, torch.float32):
    check(*ops, shared.make(9, 3, 3, 8, 3, 70, 8, dtype=dtype), shared.WANTED)
print(cpu_path())
"""


def test_a_cpu_without_bf16_products_multiplies_in_fp32():
    """Where oneDNN is off as well, through PyTorch's BLAS."""
    done = subprocess.run([sys.executable, "-c", PLAIN, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "fp32"


def opcheck(operator, tensors):
    """The operator with gradients for all that is floating, and its backward."""
    scale, shift, patch_size = [0.5, 1.0, 2.0], [0.0, 1.0, -1.0], tensors["weight"].shape[-1]
    inputs = [t.requires_grad_() if t.is_floating_point() else t for t in tensors.values()]
    torch.library.opcheck(operator.default, (*inputs, scale, shift, True))
    height, width = tensors["images"].shape[1:3]
    batch, kept = tensors["src"].shape
    gradient = normal(batch, 1 + kept, len(tensors["bias"]), seed=9)
    saved = [tensors[name].detach() for name in ("images", "weight", "src", "pos")]
    backward = getattr(torch.ops.misplace, f"{operator.__name__}_backward").default
    for wanted in ([True] * 6, [False, True, False] * 2):
        torch.library.opcheck(backward, (gradient, *saved, scale, shift, True, patch_size, height, width, wanted))


def test_opcheck():
    tensors = make(2, 2, 2, 4, 3, 7, 3, pixel=torch.float32)
    patch_embed(**tensors, **options(3, 4), impl="native")
    opcheck(torch.ops.misplace.patch_embed, tensors)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_no_images(device, impl):
    tensors = make(0, 3, 3, 4, 3, 5, 4, device=device)
    assert patch_embed(**tensors, **options(3, 4), impl=impl).shape == (0, 5, 5)


@pytest.mark.parametrize("layout", ["hwc", "chw"])
@pytest.mark.parametrize("device, impl", [pair for pair in IMPLS if pair[1] != "triton"])
def test_gradcheck(device, impl, layout):
    tensors = make(2, 2, 2, 2, 2, 3, 3, layout=layout, pixel=torch.float64, dtype=torch.float64, device=device)
    names = [*WANTED, "images"]

    def function(*inputs):
        return patch_embed(**(tensors | dict(zip(names, inputs))), **options(2, 2, layout), impl=impl)

    assert torch.autograd.gradcheck(function, [tensors[name].requires_grad_() for name in names])


@pytest.mark.parametrize("layout", ["hwc", "chw"])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_compiles_in_one_graph_and_repeats_to_the_bit(device, impl, layout):
    op = functools.partial(patch_embed, **options(3, 4, layout), impl=impl)
    tensors = make(5, 7, 7, 4, 3, 33, 13, layout=layout, dtype=torch.bfloat16, device=device)
    require_same_bits(op, tensors, WANTED)
    require_one_graph(op, tensors, WANTED)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("src", 9, r"src must be in \[0, 9\), found 9"),
        ("src", -1, r"src must be in \[0, 9\), found -1"),
        ("pos", 9, r"pos must be in \[-1, 9\), found 9"),
        ("pos", -2, r"pos must be in \[-1, 9\), found -2"),
    ],
)
@pytest.mark.parametrize("impl", ["reference", "native"])
def test_range_of_the_plan_is_checked(impl, name, value, message):
    tensors = make(2, 3, 3, 4, 3, 5, 4)
    tensors[name] = torch.full_like(tensors[name], value)
    with pytest.raises(IndexError, match=f"patch_embed: {message}"):
        patch_embed(**tensors, **options(3, 4), impl=impl)


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_an_unknown_position_without_a_vector_is_refused(impl):
    tensors = make(2, 3, 3, 4, 3, 5, 4) | {"no_position": None}
    tensors["pos"] = torch.full_like(tensors["pos"], -1)
    with pytest.raises(IndexError, match=r"pos must be in \[0, 9\), found -1"):
        patch_embed(**tensors, **options(3, 4), impl=impl)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"images": torch.zeros(2, 13, 12, 3)}, ValueError, "a 13 x 12 image is no grid of 4 x 4 patches"),
        ({"images": torch.zeros(2, 12, 12)}, ValueError, r"images must be \[B, H, W, C\]"),
        (
            {"images": torch.zeros(2, 12, 12, 1)},
            ValueError,
            r"weight must be \[D, C, p, p\] = \[5, 1, 4, 4\]",
        ),
        ({"images": torch.zeros(2, 12, 12, 3).int()}, TypeError, "images must be uint8 or floating point"),
        ({"patch_size": 6}, ValueError, r"weight must be \[D, C, p, p\] = \[5, 3, 6, 6\]"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must be \[D\] = \[5\]"),
        ({"pos_table": torch.zeros(9, 5)}, ValueError, r"pos_table must be \[1 \+ L, D\] = \[10, 5\]"),
        ({"no_position": torch.zeros(6)}, ValueError, r"no_position must be \[D\] = \[5\]"),
        ({"class_token": torch.zeros(5).int()}, TypeError, "class_token must be floating point"),
        ({"src": torch.zeros(2, 0, dtype=torch.int32)}, ValueError, r"the plan keeps no patch \(K = 0\)"),
        ({"src": torch.zeros(3, 4, dtype=torch.int32)}, ValueError, r"src must be \[B, K\] = \[2, 4\]"),
        ({"pos": torch.zeros(2, 3, dtype=torch.int32)}, ValueError, r"pos must be \[B, K\] = \[2, 4\]"),
        ({"pos": torch.zeros(2, 4)}, TypeError, r"pos must be torch.int32 or torch.int64"),
        ({"layout": "bhwc"}, ValueError, "layout must be"),
        ({"mean": None}, ValueError, "give mean and std together"),
        ({"mean": (0.5,)}, ValueError, r"mean and std need 3 numbers \(channels\), not 1 and 3"),
        ({"src": torch.zeros(2, 4, dtype=torch.int32, device="meta")}, ValueError, "src is on meta"),
    ],
)
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=f"patch_embed: {message}"):
        patch_embed(**(make(2, 3, 3, 4, 3, 5, 4) | options(3, 4) | change))
