"""The CPU kernels of add_layer_norm: each instruction set, threads, and what the registered ops check."""

import functools

import pytest
import torch
from torch.library import opcheck

from misplace.kernels import Impl, add_layer_norm
from misplace.kernels.add_layer_norm import native
from misplace.kernels.impl import choose
from misplace.kernels.testing.compare import check, values_and_gradients
from misplace.kernels.testing.inputs import normal

OPS = torch.ops.misplace
ISAS = ("plain", "avx2", "avx512", "avx512_bf16")
DTYPES = (torch.float32, torch.bfloat16)
WANTED = ["x", "branch", "weight", "bias"]


def eager(x, branch, weight, bias, branch_scale=None):
    if branch_scale is not None:
        branch = branch * branch_scale.to(x.dtype)[:, None, None]
    total = x + branch
    if x.dtype == torch.float32:
        return total, torch.nn.functional.layer_norm(total, x.shape[-1:], weight, bias, 1e-6)
    centred = total - total.mean(dim=-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + 1e-6)
    return total, centred * scale * weight.to(x.dtype) + bias.to(x.dtype)


def make(shape, width, *, dtype=torch.float32, scaled=False):
    tensors = {
        "x": 2 * normal(*shape, width, seed=width, dtype=dtype) + 1,
        "branch": normal(*shape, width, seed=1, dtype=dtype),
        "weight": 1 + normal(width, seed=2) / 4,
        "bias": normal(width, seed=3),
    }
    return tensors | ({"branch_scale": torch.arange(shape[0]) % 2 * 1.25} if scaled else {})


def of_isa(isa: str):
    def op(x, branch, weight, bias, branch_scale=None):
        return native.add_layer_norm(x, branch, weight, bias, 1e-6, branch_scale, False, isa=isa)

    return op


def require_isa(isa: str) -> None:
    choose("add_layer_norm", Impl.NATIVE, torch.device("cpu"), {"cpu": (Impl.NATIVE,)})
    try:
        of_isa(isa)(**make((1,), 1))
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_against_fp64(isa, dtype):
    require_isa(isa)
    for shape, width, scaled in (((129,), 192, False), ((5, 13), 33, True), ((64,), 15, False), ((7, 1), 3, True)):
        check(
            of_isa(isa),
            eager,
            functools.partial(add_layer_norm, impl="reference"),
            make(shape, width, dtype=dtype, scaled=scaled),
            WANTED,
        )


@pytest.mark.parametrize("rows", [1, 70, 5003])  # one chunk, two, chunks larger than the least
def test_bits_do_not_depend_on_threads(rows):
    require_isa("plain")
    before, results = torch.get_num_threads(), []
    op, tensors = functools.partial(add_layer_norm, impl="native"), make((rows,), 40, dtype=torch.bfloat16)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(values_and_gradients(op, tensors, WANTED))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(result, other[name]) for name, result in results[0].items())


def test_without_a_scale_both_gradients_are_one_tensor():
    require_isa("plain")
    tensors = make((5,), 40)
    x, branch = tensors["x"].requires_grad_(), tensors["branch"].requires_grad_()
    dx, dbranch = torch.autograd.grad(add_layer_norm(**tensors, impl="native")[1].sum(), [x, branch])
    assert dx.data_ptr() == dbranch.data_ptr()


@pytest.mark.parametrize("scaled", [False, True])
def test_opcheck(scaled):
    require_isa("plain")
    tensors = make((2, 5), 7, dtype=torch.bfloat16, scaled=scaled)
    scale = tensors.pop("branch_scale", None)
    for save in (False, True):
        opcheck(OPS.add_layer_norm.default, (*tensors.values(), scale, 1e-6, save, ""))
    opcheck(OPS.add_layer_norm_.default, (*tensors.values(), scale, 1e-6, ""))
    total, normed, mean, rstd = OPS.add_layer_norm(*tensors.values(), scale, 1e-6, True, "")
    for dsum in (None, total):
        opcheck(OPS.add_layer_norm_backward.default, (dsum, normed, total, tensors["weight"], mean, rstd, scale, ""))


def test_what_the_registered_ops_check():
    require_isa("plain")
    x, branch, weight, bias = make((2, 3), 8).values()
    for arguments, error, words in (
        ((x.half(), branch.half(), weight, bias, None), TypeError, "native takes float32 or bfloat16"),
        ((x, branch[:1], weight, bias, None), ValueError, "branch must be as x"),
        ((x, branch.bfloat16(), weight, bias, None), ValueError, "branch must be as x"),
        ((x, branch, weight[:3], bias, None), ValueError, r"need x \[..., D\] and weight \[D\]"),
        ((x, branch, weight, bias[:3], None), ValueError, "bias must be as weight"),
        ((x, branch, weight, bias, torch.ones(3)), ValueError, r"branch_scale fp32 \[B\]"),
        ((x[0], branch[0], weight, bias, torch.ones(3)), ValueError, r"branch_scale fp32 \[B\]"),
    ):
        with pytest.raises(error, match=words):
            OPS.add_layer_norm(*arguments, 1e-6, True, "")
        with pytest.raises(error, match=words):
            OPS.add_layer_norm_(*arguments, 1e-6, "")
    with pytest.raises(ValueError, match="contiguous x"):
        OPS.add_layer_norm_(x.mT, branch.mT, weight[:3], bias[:3], None, 1e-6, "")
    statistics = torch.ones(6)
    for arguments, words in (
        ((x[:1], x, x, weight, statistics, statistics), "must be as x"),
        ((x, x[:1], x, weight, statistics, statistics), "must be as x"),
        ((x, x, x, weight, statistics[:2], statistics), "statistics of every row"),
    ):
        with pytest.raises(ValueError, match=words):
            OPS.add_layer_norm_backward(*arguments, None, "")
