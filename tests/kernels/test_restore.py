import functools

import pytest
import torch

from misplace.kernels import Impl, ImplUnavailableError, restore, token_plan
from misplace.kernels.restore import SUPPORTED
from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits, values_and_gradients
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.inputs import normal
from misplace.kernels.testing.shapes import LAYOUTS

IMPLS = runnable(SUPPORTED)
OF_ANY_DTYPE = [(device, impl) for device, impl in IMPLS if impl in (Impl.TORCH, Impl.REFERENCE)]
WANTED = ["tokens", "mask_token", "position"]
# images, patches, kept, width: none kept, all kept, no patches, no images
SHAPES = [(1, 1, 1, 1), (2, 49, 12, 33), (3, 12, 0, 7), (2, 6, 6, 64), (4, 13, 5, 192), (2, 0, 0, 5), (0, 4, 2, 8)]


def oracle(tokens, src, mask_token, position):
    """Place by place, in fp64."""
    batch, length = len(tokens), len(position)
    images = [tokens.new_zeros(0, length, tokens.shape[2])]
    for b in range(batch):
        token_at = {0: 0} | {1 + int(place): 1 + k for k, place in enumerate(src[b])}
        rows = [tokens[b, token_at[i]] if i in token_at else mask_token for i in range(length)]
        images.append(torch.stack([row + position[i] for i, row in enumerate(rows)])[None])
    return torch.cat(images) + 0 * (tokens.sum() + mask_token + position)  # each has a gradient, also where it is 0


def eager(tokens, src, mask_token, position):
    """MAE's: append the mask token, gather everything into place, add positions; in the dtype of the tokens."""
    batch, kept, width = len(tokens), src.shape[1], tokens.shape[2]
    mask_token, position = mask_token.to(tokens.dtype), position.to(tokens.dtype)
    place = torch.arange(len(position) - 1, device=src.device)
    is_there = (src[:, None] == place[:, None]).long()
    found = torch.where(is_there.any(2), (is_there * torch.arange(kept, device=src.device)).sum(2), kept)
    pool = torch.cat([tokens[:, 1:], mask_token.expand(batch, 1, width)], dim=1)
    patches = pool.gather(1, found[..., None].expand(-1, -1, width))
    return torch.cat([tokens[:, :1], patches], dim=1) + position


def make(batch, patches, kept, width, *, dtype=torch.float32, device="cpu"):
    return {
        "tokens": normal(batch, 1 + kept, width, seed=1, dtype=dtype, device=device),
        "src": normal(batch, patches, seed=2, device=device).argsort(dim=1)[:, :kept].int(),
        "mask_token": normal(width, seed=3, device=device),
        "position": normal(1 + patches, width, seed=4, device=device),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_every_impl_against_fp64(device, impl, shape, dtype):
    tensors = make(*shape, dtype=dtype, device=device)
    check(functools.partial(restore, impl=impl), eager, oracle, tensors, WANTED)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_is_the_formula(shape):
    tensors = {name: t.double() if t.is_floating_point() else t for name, t in make(*shape).items()}
    expected, actual = oracle(**tensors), restore(**tensors, impl="reference")
    torch.testing.assert_close(actual, expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_by_hand(device, impl):
    tokens = torch.tensor([[[1.0], [2.0], [3.0]]], device=device)
    src = torch.tensor([[3, 0]], dtype=torch.int32, device=device)
    position = 100 * torch.arange(5.0, device=device)[:, None]
    out = restore(tokens, src, torch.tensor([7.0], device=device), position, impl=impl)
    assert out.flatten().tolist() == [1, 103, 207, 307, 402]


@pytest.mark.parametrize("memory", LAYOUTS)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_any_memory_layout(device, impl, memory):
    tensors = {name: LAYOUTS[memory](tensor) for name, tensor in make(3, 9, 4, 17, device=device).items()}
    check(functools.partial(restore, impl=impl), eager, oracle, tensors, WANTED)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_what_token_plan_keeps_comes_back(device, impl):
    """Whatever a decoder does not move is at its patch's place; with all kept it is an addition."""
    index = torch.arange(5, device=device)
    settings = dict(num_patches=16, wrong_rate=0.0, seed=1, epoch=0, view=0, impl="reference")
    for drop_rate in (0.75, 0.0):
        src = token_plan(index, drop_rate=drop_rate, **settings).src
        tokens = normal(5, 1 + src.shape[1], 8, seed=1, device=device)
        out = restore(tokens, src, torch.zeros(8, device=device), torch.zeros(17, 8, device=device), impl=impl)
        assert torch.equal(out.gather(1, 1 + src.long()[..., None].expand(-1, -1, 8)), tokens[:, 1:])
        assert torch.equal(out[:, 0], tokens[:, 0]) and int((out != 0).any(2).sum()) == 5 * (1 + src.shape[1])


@pytest.mark.parametrize("device, impl", IMPLS)
def test_gradient_of_the_mask_token_is_summed_in_fp32(device, impl):
    """Every one of 4,001 masked places adds 1 to it: a bf16 sum would stop at 256."""
    tensors = make(4001, 2, 1, 3, dtype=torch.bfloat16, device=device)
    for name in WANTED:
        tensors[name].requires_grad_()
    restore(**tensors, impl=impl).sum().backward()
    assert tensors["mask_token"].grad.tolist() == [4001] * 3
    assert tensors["position"].grad.flatten().tolist() == [4001] * 9
    assert torch.equal(tensors["tokens"].grad, torch.ones_like(tensors["tokens"]))


@pytest.mark.parametrize("device, impl", IMPLS)
def test_rounded_once(device, impl):
    """1 + 2^-9 + 2^-9 in bf16: 1 where the table is rounded before, or the sum twice."""
    tokens = torch.ones(1, 1, 1, dtype=torch.bfloat16, device=device)
    src = torch.zeros(1, 0, dtype=torch.int32, device=device)
    position = torch.tensor([[2**-8 + 2**-16], [2**-9 + 2**-16]], device=device)
    out = restore(tokens, src, torch.tensor([1 + 2**-9], device=device), position, impl=impl)
    assert out.flatten().tolist() == [1 + 2**-7] * 2


@pytest.mark.parametrize("names", [["tokens"], ["mask_token"], ["position"], ["tokens", "mask_token"]], ids=str)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_only_what_requires_a_gradient_gets_one(device, impl, names):
    op = functools.partial(restore, impl=impl)
    tensors = make(2, 9, 4, 17, device=device)
    every, some = values_and_gradients(op, tensors, WANTED), values_and_gradients(op, tensors, names)
    assert all(torch.equal(result, every[name]) for name, result in some.items())
    assert not restore(**tensors, impl=impl).requires_grad


@pytest.mark.parametrize("device, impl", IMPLS)
def test_mask_token_and_position_in_other_dtypes(device, impl):
    tensors = make(2, 9, 4, 17, dtype=torch.bfloat16, device=device)
    wide = tensors | {name: tensors[name].bfloat16().double() for name in ("mask_token", "position")}
    narrow = tensors | {name: tensors[name].bfloat16() for name in ("mask_token", "position")}
    results = [values_and_gradients(functools.partial(restore, impl=impl), given, WANTED) for given in (wide, narrow)]
    assert torch.equal(results[0]["value 0"], results[1]["value 0"])
    for given, result in zip((wide, narrow), results):
        assert all(result[f"d {name}"].dtype == given[name].dtype for name in WANTED)


@pytest.mark.parametrize("device, impl", OF_ANY_DTYPE)
def test_gradcheck(device, impl):
    tensors = {name: t.double() if t.is_floating_point() else t for name, t in make(2, 5, 2, 3, device=device).items()}

    def function(*learned):
        return restore(**(tensors | dict(zip(WANTED, learned))), impl=impl)

    assert torch.autograd.gradcheck(function, [tensors[name].requires_grad_() for name in WANTED])


@pytest.mark.parametrize("device, impl", IMPLS)
def test_compiles_in_one_graph_and_repeats_to_the_bit(device, impl):
    op = functools.partial(restore, impl=impl)
    tensors = make(5, 49, 12, 33, dtype=torch.bfloat16, device=device)
    require_same_bits(op, tensors, WANTED)
    require_one_graph(op, tensors, WANTED)


@pytest.mark.parametrize("impl", ["reference", "native"])
@pytest.mark.parametrize("value", [-1, 9, 2**31 - 1])
def test_range_of_src_is_checked(impl, value):
    if ("cpu", Impl(impl)) not in IMPLS:
        pytest.skip("misplace.kernels._C is not built")
    tensors = make(2, 9, 4, 8)
    tensors["src"][1, 3] = value
    with pytest.raises(IndexError, match=r"restore: src must be in \[0, 9\), found"):
        restore(**tensors, impl=impl)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"tokens": torch.zeros(2, 4, 8)}, ValueError, r"tokens must be \[B, 1 \+ K, D\] = \[2, 5, 8\]"),
        ({"tokens": torch.zeros(5, 8)}, ValueError, r"tokens must be \[B, 1 \+ K, D\]"),
        ({"tokens": torch.zeros(2, 5, 8, dtype=torch.int32)}, TypeError, "tokens must be floating point"),
        ({"src": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, "src must be torch.int32, not torch.int64"),
        ({"src": torch.zeros(2, dtype=torch.int32)}, ValueError, r"src must be \[B, K\]"),
        ({"src": torch.zeros(2, 4, dtype=torch.int32, device="meta")}, ValueError, "src is on meta"),
        ({"mask_token": torch.zeros(7)}, ValueError, r"mask_token must be \[D\] = \[8\]"),
        ({"position": torch.zeros(10, 7)}, ValueError, r"position must be \[1 \+ L, D\]"),
        ({"position": torch.zeros(4, 8)}, ValueError, "4 tokens of width 8 have no place in position"),
        ({"position": torch.zeros(0, 8)}, ValueError, "have no place in position"),
        ({"impl": "fastest"}, ImplUnavailableError, "unknown impl 'fastest'"),
    ],
)
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=f"restore: .*{message}"):
        restore(**(make(2, 9, 4, 8) | change))


def test_fp64_where_nobody_fuses_it():
    tensors = make(1, 4, 2, 3, dtype=torch.float64)
    assert restore(**tensors).dtype == torch.float64
    with pytest.raises(TypeError, match=r"restore: impl=native takes .* not torch.float64"):
        restore(**tensors, impl="native")
