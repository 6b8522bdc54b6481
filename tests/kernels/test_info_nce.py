import functools
import math

import pytest
import torch

from misplace.kernels import info_nce
from misplace.kernels.info_nce import SUPPORTED
from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.inputs import normal
from misplace.kernels.testing.shapes import LAYOUTS

IMPLS = runnable(SUPPORTED)
WANTED = ["query", "key"]
# queries, keys, width, first row
SHAPES = [(1, 1, 1, 0), (1, 7, 31, 6), (31, 31, 64, 0), (33, 129, 17, 40), (64, 128, 256, 64)]


def eager(query, key, temperature, first_row):
    """Plain PyTorch as under autocast: the product in the dtype of the rows, the rest in fp32."""
    dtype, query, key = query.dtype, query.float(), key.float()
    query, key = ((rows / rows.square().sum(-1, keepdim=True).sqrt()).to(dtype) for rows in (query, key))
    scores = (query @ key.T).float() / temperature
    positive = scores[torch.arange(len(query)), first_row + torch.arange(len(query))]
    return (scores.exp().sum(-1).log() - positive).mean()


def make(queries, keys, width, dtype=torch.float32, device="cpu"):
    return {
        "query": 3 * normal(queries, width, seed=1, dtype=dtype, device=device),
        "key": normal(keys, width, seed=2, dtype=dtype, device=device),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries, keys, width, first_row", SHAPES)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_every_impl_against_fp64(device, impl, queries, keys, width, first_row, dtype):
    op, plain, exact = (functools.partial(f, temperature=0.2, first_row=first_row) for f in (info_nce, eager, info_nce))
    exact = functools.partial(exact, impl="reference")
    check(functools.partial(op, impl=impl), plain, exact, make(queries, keys, width, dtype, device), WANTED)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_layouts(device, impl, layout):
    tensors = {name: LAYOUTS[layout](tensor) for name, tensor in make(13, 13, 33, device=device).items()}
    op, plain = (functools.partial(f, temperature=0.2, first_row=0) for f in (info_nce, eager))
    check(functools.partial(op, impl=impl), plain, functools.partial(op, impl="reference"), tensors, WANTED)


def test_oracle_against_brute_force():
    query, key = (tensor.double() for tensor in make(4, 9, 5).values())
    losses = []
    for i in range(4):
        cosines = [
            sum(a * b for a, b in zip(query[i].tolist(), row.tolist())) / math.hypot(*query[i]) / math.hypot(*row)
            for row in key
        ]
        weights = [math.exp(cosine / 0.2) for cosine in cosines]
        losses.append(-math.log(weights[3 + i] / sum(weights)))
    loss = info_nce(query, key, temperature=0.2, first_row=3, impl="reference")
    assert loss.item() == pytest.approx(sum(losses) / 4, rel=1e-12)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_collapse_costs_ln_of_the_number_of_keys(device, impl):
    query, key = torch.ones(5, 8, device=device), torch.ones(40, 8, device=device)
    assert info_nce(query, key, temperature=0.2, first_row=10, impl=impl).item() == pytest.approx(math.log(40))


@pytest.mark.parametrize("device, impl", IMPLS)
def test_length_of_a_row_does_not_matter_and_a_perfect_match_is_cheap(device, impl):
    query, key = make(16, 16, 64, device=device).values()
    once = info_nce(query, key, temperature=0.2, impl=impl)
    torch.testing.assert_close(info_nce(4 * query, key / 2, temperature=0.2, impl=impl), once, rtol=0, atol=0)
    assert info_nce(query, query, temperature=0.05, impl=impl) < 1e-3 < once


@pytest.mark.parametrize("device, impl", IMPLS)
def test_a_zero_row_gives_finite_numbers(device, impl):
    query = torch.zeros(3, 4, device=device, requires_grad=True)
    loss = info_nce(query, torch.eye(3, 4, device=device), temperature=0.2, impl=impl)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3)) and query.grad.isfinite().all()


@pytest.mark.parametrize("device, impl", IMPLS)
def test_gradcheck(device, impl):
    inputs = [tensor.double().requires_grad_() for tensor in make(3, 5, 4, device=device).values()]
    assert torch.autograd.gradcheck(functools.partial(info_nce, temperature=0.5, first_row=1, impl=impl), inputs)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_compiles_in_one_graph_and_repeats_to_the_bit(device, impl):
    op = functools.partial(info_nce, temperature=0.2, first_row=7, impl=impl)
    tensors = make(33, 64, 31, torch.bfloat16, device)
    require_same_bits(op, tensors, WANTED)
    require_one_graph(op, tensors, WANTED)


def test_bad_input_is_named():
    query, key = make(4, 8, 5).values()
    with pytest.raises(ValueError, match="first_row 5 \\+ 4 queries leaves the 8 keys"):
        info_nce(query, key, temperature=0.2, first_row=5)
    with pytest.raises(ValueError, match="first_row -1"):
        info_nce(query, key, temperature=0.2, first_row=-1)
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        info_nce(query, key, temperature=0)
    with pytest.raises(ValueError, match=r"must be \[N, D\] and \[M, D\]"):
        info_nce(query, key[:, :4], temperature=0.2)
    with pytest.raises(ValueError, match=r"must be \[N, D\] and \[M, D\]"):
        info_nce(query[:0], key, temperature=0.2)
    with pytest.raises(TypeError, match="key must be floating point"):
        info_nce(query, key.int(), temperature=0.2)
    with pytest.raises(ValueError, match="key is on meta"):
        info_nce(query, key.to("meta"), temperature=0.2)
