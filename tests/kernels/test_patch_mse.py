import functools
import math

import pytest
import torch

from misplace.kernels import Impl, ImplUnavailableError, patch_mse
from misplace.kernels.patch_mse import SUPPORTED
from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits, values_and_gradients
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.inputs import integers, normal
from misplace.kernels.testing.shapes import LAYOUTS

IMPLS = runnable(SUPPORTED)
OF_ANY_DTYPE = [(device, impl) for device, impl in IMPLS if impl in (Impl.TORCH, Impl.REFERENCE)]
FUSED = [(device, impl) for device, impl in IMPLS if impl in (Impl.NATIVE, Impl.TRITON)]
MEAN, STD = (0.485, 0.456, 0.406, 0.5), (0.229, 0.224, 0.225, 0.25)
# images, grid rows, grid columns, patch, channels, predicted patches
SHAPES = [
    (1, 1, 1, 1, 3, 1),
    (2, 7, 3, 1, 4, 11),
    (3, 5, 4, 3, 1, 13),
    (2, 2, 2, 3, 4, 4),
    (2, 3, 2, 4, 3, 4),
    (1, 1, 2, 33, 2, 2),
    (2, 2, 3, 16, 3, 5),
    (1, 3, 1, 16, 4, 2),
    (2, 1, 2, 16, 1, 1),
]


def options(channels, patch_size, normalise=True):
    return dict(patch_size=patch_size, mean=MEAN[:channels], std=STD[:channels], normalise=normalise)


def oracle(prediction, images, index, *, patch_size, mean, std, normalise, eps=1e-6):
    """The formula, patch by patch and channel by channel, in fp64."""
    columns, total = images.shape[2] // patch_size, 0.0
    for b, m in ((b, m) for b in range(index.shape[0]) for m in range(index.shape[1])):
        row, column = divmod(int(index[b, m]), columns)
        square = images[b, row * patch_size :, column * patch_size :][:patch_size, :patch_size].double() / 255
        x = torch.stack([(square[..., c] - mean[c]) / std[c] for c in range(len(mean))], dim=-1).flatten()
        if normalise:
            average = x.sum() / x.numel()
            x = (x - average) / math.sqrt(((x - average) ** 2).sum() / (x.numel() - 1) + eps)
        total = total + ((prediction[b, m] - x) ** 2).sum()
    return total / prediction.numel()


def eager(prediction, images, index, *, patch_size, mean, std, normalise, eps=1e-6):
    """MAE's: patchify the normalised image, normalise each patch, mean of the squares of the dropped ones."""
    pixels = (images / 255 - torch.tensor(mean, device=images.device)) / torch.tensor(std, device=images.device)
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    target = pixels.reshape(batch, rows, patch_size, columns, patch_size, channels)
    target = torch.einsum("nhpwqc->nhwpqc", target).reshape(batch, rows * columns, -1)
    if normalise:
        average, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        target = (target - average) / (variance + eps) ** 0.5
    target = target[torch.arange(batch, device=images.device)[:, None], index.long()]
    return ((prediction - target) ** 2).mean(dim=-1).mean()


def make(batch, rows, columns, patch_size, channels, predicted, *, dtype=torch.float32, device="cpu"):
    size = batch, rows * patch_size, columns * patch_size, channels
    order = normal(batch, rows * columns, seed=2, device=device).argsort(dim=1)
    return {
        "prediction": normal(batch, predicted, patch_size**2 * channels, seed=1, dtype=dtype, device=device),
        "images": integers(*size, high=256, seed=3, device=device).to(torch.uint8),
        "index": order[:, :predicted].int(),
    }


def check_shape(impl, shape, dtype, normalise, device="cpu"):
    ops = (functools.partial(f, **options(shape[4], shape[3], normalise)) for f in (patch_mse, eager, oracle))
    op, plain, exact = ops
    check(functools.partial(op, impl=impl), plain, exact, make(*shape, dtype=dtype, device=device), ["prediction"])


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_every_impl_against_fp64(device, impl, shape, dtype, normalise):
    check_shape(impl, shape, dtype, normalise, device)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_reference_is_the_formula(channels, normalise):
    tensors = make(2, 3, 2, 5, channels, 4, dtype=torch.float64)
    settings = options(channels, 5, normalise)
    expected, loss = oracle(**tensors, **settings), patch_mse(**tensors, **settings, impl="reference")
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_pixels_come_row_by_row_with_the_channel_last(device, impl):
    """Every byte of the images is another; only the right order of the right patch gives no loss."""
    images = torch.arange(2 * 4 * 6 * 2, dtype=torch.uint8, device=device).view(2, 4, 6, 2)
    index = torch.tensor([[5, 0], [2, 2]], dtype=torch.int32, device=device)
    patches = [images[b, r : r + 2, c : c + 2].flatten() for b, r, c in ((0, 2, 4), (0, 0, 0), (1, 0, 4), (1, 0, 4))]
    prediction = (torch.stack(patches).view(2, 2, 8).float() / 255).requires_grad_()
    settings = dict(patch_size=2, mean=(0.0, 0.0), std=(1.0, 1.0), normalise=False, impl=impl)
    loss = patch_mse(prediction, images, index, **settings)
    assert loss.item() < 1e-13
    moved = patch_mse(prediction + 2, images, index, **settings)
    (gradient,) = torch.autograd.grad(moved, prediction)
    assert moved.item() == pytest.approx(4) and gradient.flatten().tolist() == pytest.approx([4 / 32] * 32)


@pytest.mark.parametrize("channels, patch_size", [(1, 3), (1, 16), (3, 4), (4, 5)])
@pytest.mark.parametrize("device, impl", FUSED)
def test_one_grey_has_a_target_of_zero_to_the_bit(device, impl, channels, patch_size):
    """Variance 0: what is left of x - average would be magnified a thousand times."""
    tensors = make(2, 2, 2, patch_size, channels, 3, device=device)
    tensors["images"].fill_(201)
    prediction = tensors["prediction"].requires_grad_()
    same = dict(mean=MEAN[:1] * channels, std=STD[:1] * channels)
    loss = patch_mse(**tensors, **(options(channels, patch_size) | same), impl=impl)
    (gradient,) = torch.autograd.grad(loss, prediction)
    if channels == 1:
        assert torch.equal(gradient, prediction * torch.tensor(2 / prediction.numel()))
    assert loss.item() == pytest.approx(prediction.square().mean().item(), rel=1e-3)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_one_grey_is_finite(device, impl):
    tensors = make(2, 2, 2, 4, 3, 3, device=device)
    tensors["images"][:, :4] = 0
    tensors["images"][:, 4:] = 255
    assert patch_mse(**tensors, **options(3, 4), impl=impl).isfinite()


@pytest.mark.parametrize("memory", LAYOUTS)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_any_memory_layout(device, impl, memory):
    settings = options(3, 4)
    tensors = {name: LAYOUTS[memory](tensor) for name, tensor in make(3, 3, 2, 4, 3, 4, device=device).items()}
    op, plain, exact = (functools.partial(f, **settings) for f in (patch_mse, eager, oracle))
    check(functools.partial(op, impl=impl), plain, exact, tensors, ["prediction"])


@pytest.mark.parametrize("device, impl", IMPLS)
def test_predictions_cut_from_a_sequence_and_images_from_larger_ones(device, impl):
    """[:, 1:] of a decoder's output, the inside of a padded batch, and channels-first memory."""
    tensors = make(3, 3, 2, 4, 3, 4, device=device)
    expected = values_and_gradients(functools.partial(patch_mse, **options(3, 4), impl=impl), tensors, ["prediction"])
    sequence = torch.nn.functional.pad(tensors["prediction"], (0, 0, 1, 0))
    padded = torch.nn.functional.pad(tensors["images"], (0, 0, 1, 2, 3, 4))
    for prediction, images in (
        (sequence[:, 1:], padded[:, 3:-4, 1:-2]),
        (tensors["prediction"], tensors["images"].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)),
    ):
        changed = tensors | {"prediction": prediction, "images": images}
        op = functools.partial(patch_mse, **options(3, 4), impl=impl)
        for name, result in values_and_gradients(op, changed, ["prediction"]).items():
            assert torch.equal(result, expected[name]), name


@pytest.mark.parametrize("device, impl", IMPLS)
def test_only_predicted_patches_matter_and_one_may_be_named_twice(device, impl):
    tensors = make(1, 2, 2, 4, 3, 3, device=device)
    tensors["index"] = torch.tensor([[3, 0, 3]], dtype=torch.int32, device=device)
    op, plain, exact = (functools.partial(f, **options(3, 4)) for f in (patch_mse, eager, oracle))
    check(functools.partial(op, impl=impl), plain, exact, tensors, ["prediction"])
    before = patch_mse(**tensors, **options(3, 4), impl=impl)
    tensors["images"][:, :4, 4:] += 7
    assert torch.equal(patch_mse(**tensors, **options(3, 4), impl=impl), before)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_eps_and_dtypes(device, impl):
    tensors = make(2, 2, 2, 4, 3, 3, dtype=torch.bfloat16, device=device)
    prediction = tensors["prediction"].requires_grad_()
    for eps in (0.0, 0.5):
        loss = patch_mse(**tensors, **options(3, 4), eps=eps, impl=impl)
        assert loss.dtype == torch.float32 and loss.shape == ()
        exact = oracle(**(tensors | {"prediction": prediction.double()}), **options(3, 4), eps=eps)
        assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
        assert torch.autograd.grad(loss, prediction)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("device, impl", OF_ANY_DTYPE)
def test_gradcheck(device, impl):
    tensors = make(2, 2, 1, 2, 3, 2, dtype=torch.float64, device=device)
    loss = functools.partial(patch_mse, images=tensors["images"], index=tensors["index"], **options(3, 2), impl=impl)
    assert torch.autograd.gradcheck(loss, tensors["prediction"].requires_grad_())


@pytest.mark.parametrize("device, impl", IMPLS)
def test_backward_twice_and_with_another_scale(device, impl):
    tensors = make(2, 2, 2, 4, 3, 3, device=device)
    prediction = tensors["prediction"].requires_grad_()
    loss = patch_mse(**tensors, **options(3, 4), impl=impl)
    (once,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    (scaled,) = torch.autograd.grad(4 * loss, prediction, retain_graph=True)
    (again,) = torch.autograd.grad(loss, prediction)
    assert torch.equal(once, again) and torch.equal(scaled, 4 * once)


@pytest.mark.parametrize("device, impl", FUSED)
def test_without_a_gradient_the_value_is_the_same(device, impl):
    tensors = make(2, 2, 2, 4, 3, 3, device=device)
    quiet = patch_mse(**tensors, **options(3, 4), impl=impl)
    tensors["prediction"].requires_grad_()
    assert not quiet.requires_grad and torch.equal(quiet, patch_mse(**tensors, **options(3, 4), impl=impl))


@pytest.mark.parametrize("device, impl", IMPLS)
def test_compiles_in_one_graph_and_repeats_to_the_bit(device, impl):
    op = functools.partial(patch_mse, **options(3, 4), impl=impl)
    tensors = make(5, 3, 3, 4, 3, 7, dtype=torch.bfloat16, device=device)
    require_same_bits(op, tensors, ["prediction"])
    require_one_graph(op, tensors, ["prediction"])


@pytest.mark.parametrize("impl", ["reference", "native"])
@pytest.mark.parametrize("value", [-1, 4, 2**31 - 1])
def test_range_of_the_index_is_checked(impl, value):
    if ("cpu", Impl(impl)) not in IMPLS:
        pytest.skip("misplace.kernels._C is not built")
    tensors = make(2, 2, 2, 4, 3, 3)
    tensors["index"][1, 2] = value
    with pytest.raises(IndexError, match=r"patch_mse: index must be in \[0, 4\), found"):
        patch_mse(**tensors, **options(3, 4), impl=impl)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"index": torch.zeros(2, 0, dtype=torch.int32)}, ValueError, r"the mean of no patches: index is \[2, 0\]"),
        ({"index": torch.zeros(3, 3, dtype=torch.int32)}, ValueError, r"index must be \[B, M\] = \[2, 3\]"),
        ({"index": torch.zeros(2, 3)}, TypeError, "index must be torch.int32, not torch.float32"),
        ({"index": torch.zeros(2, dtype=torch.int32)}, ValueError, r"index must be \[B, M\]"),
        ({"prediction": torch.zeros(2, 3, 47)}, ValueError, r"prediction must be \[B, M, p \* p \* C\]"),
        ({"prediction": torch.zeros(2, 3, 48, dtype=torch.int32)}, TypeError, "prediction must be floating point"),
        ({"images": torch.zeros(2, 8, 8, 3)}, TypeError, "images must be torch.uint8"),
        ({"images": torch.zeros(2, 9, 8, 3, dtype=torch.uint8)}, ValueError, "a 9 x 8 image is no grid"),
        ({"images": torch.zeros(2, 8, 8, 5, dtype=torch.uint8)}, ValueError, "images must have 1 to 4 channels, not 5"),
        ({"images": torch.zeros(2, 8, 8, 3, dtype=torch.uint8, device="meta")}, ValueError, "images is on meta"),
        ({"patch_size": 0}, ValueError, r"patch_size must be in \[1, 128\], not 0"),
        ({"mean": (0.5,)}, ValueError, r"mean and std need 3 numbers \(channels\), not 1 and 3"),
        ({"std": (0.5, 0.0, 0.5)}, ValueError, "std must be above 0 and eps not below"),
        ({"eps": -1.0}, ValueError, "std must be above 0 and eps not below"),
        ({"eps": float("nan")}, ValueError, "std must be above 0 and eps not below"),
        ({"impl": "fastest"}, ImplUnavailableError, "unknown impl 'fastest'"),
    ],
)
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=f"patch_mse: {message}"):
        patch_mse(**(make(2, 2, 2, 4, 3, 3) | options(3, 4) | change))


def test_one_number_has_no_variance():
    tensors = make(1, 2, 2, 1, 1, 3)
    with pytest.raises(ValueError, match="patch_mse: a patch of one number has no variance"):
        patch_mse(**tensors, **options(1, 1))
    loss = patch_mse(**tensors, **options(1, 1, normalise=False))
    exact = oracle(**(tensors | {"prediction": tensors["prediction"].double()}), **options(1, 1, normalise=False))
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_fp64_where_nobody_fuses_it():
    tensors = make(1, 2, 2, 2, 3, 3, dtype=torch.float64)
    assert patch_mse(**tensors, **options(3, 2)).dtype == torch.float64
    with pytest.raises(TypeError, match=r"patch_mse: impl=native takes .* not torch.float64"):
        patch_mse(**tensors, **options(3, 2), impl="native")
