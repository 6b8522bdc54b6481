"""Both forms of info_nce, one-sided and NT-Xent, against an fp64 oracle written from the formula."""

import math

import pytest
import torch

from misplace.kernels import ImplUnavailableError, info_nce, nt_xent
from misplace.kernels.impl import Impl
from misplace.kernels.info_nce import SUPPORTED
from misplace.kernels.info_nce.api import DTYPES, MAX_TRITON_WIDTH
from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits, values_and_gradients
from misplace.kernels.testing.contrastive import FORMS, WANTED, make, oracle, others, ours, with_itself
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.shapes import LAYOUTS

IMPLS = runnable(SUPPORTED)
TAKING_FP64 = [(device, impl) for device, impl in IMPLS if torch.float64 in DTYPES.get(impl, (torch.float64,))]
# queries, keys, width, first row: one key, one query, primes, more keys than one panel, far more keys than queries
SHAPES = {
    "info_nce": [(1, 1, 1, 0), (1, 2, 3, 1), (1, 7, 31, 6), (31, 31, 64, 0), (33, 129, 17, 40), (7, 1031, 127, 500)],
    "nt_xent": [(2, 2, 1, 0), (2, 3, 7, 1), (14, 17, 31, 3), (62, 62, 64, 0), (34, 131, 17, 40), (6, 1031, 127, 500)],
}
CASES = [(form, *shape) for form, shapes in SHAPES.items() for shape in shapes]
BOTH = pytest.mark.parametrize("form", FORMS)
EVERY = pytest.mark.parametrize("device, impl", IMPLS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form, queries, keys, width, first_row", CASES)
@EVERY
def test_every_impl_against_fp64(device, impl, form, queries, keys, width, first_row, dtype):
    given = dict(temperature=0.2, first_row=first_row)
    check(ours(form, impl, **given), *others(form, **given), make(queries, keys, width, dtype, device), WANTED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@BOTH
@EVERY
def test_rows_that_are_their_own_keys(device, impl, form, dtype):
    """In bf16 NT-Xent alone: a query that finds itself has a gradient of rounding errors only."""
    if form == "info_nce" and dtype == torch.bfloat16:
        dtype = torch.float32
    tensors = {"query": make(34, 34, 33, dtype, device)["query"]}
    check(with_itself(ours(form, impl)), *map(with_itself, others(form)), tensors, ["query"])


@BOTH
@EVERY
def test_a_low_temperature(device, impl, form):
    """Where e^(-2 / temperature) is no number of fp32."""
    given = dict(temperature=0.005, first_row=3)
    check(ours(form, impl, **given), *others(form, **given), make(12, 70, 40, device=device), WANTED)


@pytest.mark.parametrize("layout", LAYOUTS)
@BOTH
@EVERY
def test_layouts(device, impl, form, layout):
    tensors = make(14, 14, 33, device=device)
    changed = {name: LAYOUTS[layout](tensor) for name, tensor in tensors.items()}
    expected = values_and_gradients(ours(form, impl), tensors, WANTED)
    for name, result in values_and_gradients(ours(form, impl), changed, WANTED).items():
        torch.testing.assert_close(result, expected[name])


@BOTH
def test_oracle_and_reference_against_a_sum_over_single_numbers(form):
    query, key = (tensor.double() for tensor in make(4, 9, 5).values())
    losses = []
    for i in range(4):
        cosines = [
            sum(a * b for a, b in zip(query[i].tolist(), row.tolist())) / math.hypot(*query[i]) / math.hypot(*row)
            for row in key
        ]
        weights = [math.exp(cosine / 0.2) for cosine in cosines]
        partner, itself = (3 + i, 0) if form == "info_nce" else (3 + (i + 2) % 4, weights[3 + i])
        losses.append(-math.log(weights[partner] / (sum(weights) - itself)))
    expected = pytest.approx(sum(losses) / 4, rel=1e-12)
    assert oracle(form, query, key, 0.2, 3).item() == expected
    assert ours(form, "reference", first_row=3)(query, key).item() == expected


@EVERY
def test_collapse_costs_ln_of_the_number_of_keys(device, impl):
    query, key = torch.ones(6, 8, device=device), torch.ones(40, 8, device=device)
    assert ours("info_nce", impl, first_row=10)(query, key).item() == pytest.approx(math.log(40))
    assert ours("nt_xent", impl, first_row=10)(query, key).item() == pytest.approx(math.log(39))


@EVERY
def test_length_of_a_row_does_not_matter_and_a_perfect_match_is_cheap(device, impl):
    query, key = make(16, 16, 64, device=device).values()
    for form in FORMS:
        once = ours(form, impl)(query, key)
        torch.testing.assert_close(ours(form, impl)(4 * query, key / 2), once, rtol=0, atol=0)
    assert ours("info_nce", impl, 0.05)(query, query) < 1e-3 < ours("info_nce", impl, 0.05)(query, key)
    views = torch.cat([query[:8], query[:8]])
    assert ours("nt_xent", impl, 0.05)(views, views) < 1e-3 < ours("nt_xent", impl, 0.05)(query, query)


@EVERY
def test_a_zero_row_gives_finite_numbers(device, impl):
    query = torch.zeros(3, 4, device=device, requires_grad=True)
    loss = ours("info_nce", impl)(query, torch.eye(3, 4, device=device))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3)) and query.grad.isfinite().all()


@EVERY
def test_a_nan_is_not_hidden(device, impl):
    query, key = make(4, 9, 33, device=device).values()
    key[8, 2] = float("nan")
    assert ours("info_nce", impl)(query, key).isnan() and ours("nt_xent", impl)(query, key).isnan()


@BOTH
@pytest.mark.parametrize("device, impl", TAKING_FP64)
def test_gradcheck(device, impl, form):
    inputs = [tensor.double().requires_grad_() for tensor in make(4, 6, 4, device=device).values()]
    assert ours(form, impl)(*inputs).dtype == torch.float64
    assert torch.autograd.gradcheck(ours(form, impl, 0.5, 1), inputs)


@BOTH
@EVERY
def test_only_what_requires_a_gradient_gets_one(device, impl, form):
    tensors = make(12, 30, 33, torch.bfloat16, device)
    every = values_and_gradients(ours(form, impl), tensors, WANTED)
    for name in WANTED:
        alone = values_and_gradients(ours(form, impl), tensors, [name])
        assert torch.equal(alone[f"d {name}"], every[f"d {name}"]) and torch.equal(alone["value 0"], every["value 0"])
    with torch.no_grad():
        quiet = ours(form, impl)(tensors["query"].requires_grad_(), tensors["key"])
    assert not quiet.requires_grad and torch.equal(quiet, every["value 0"])


@BOTH
@EVERY
def test_backward_twice_and_with_another_scale(device, impl, form):
    inputs = [tensor.requires_grad_() for tensor in make(12, 30, 33, device=device).values()]
    loss = ours(form, impl)(*inputs)
    once = torch.autograd.grad(loss, inputs, retain_graph=True)
    doubled = torch.autograd.grad(2 * loss, inputs, retain_graph=True)
    again = torch.autograd.grad(loss, inputs)
    for first, second, third in zip(once, doubled, again, strict=True):
        torch.testing.assert_close(second, 2 * first, rtol=1e-6, atol=0)
        assert torch.equal(first, third)


@EVERY
def test_two_dtypes_are_promoted(device, impl):
    query, key = make(8, 20, 33, device=device).values()
    narrow = key.bfloat16().requires_grad_()
    loss = ours("info_nce", impl)(query, narrow)
    assert torch.equal(loss, ours("info_nce", impl)(query, narrow.detach().float()))
    loss.backward()
    assert narrow.grad.dtype == torch.bfloat16


@BOTH
@EVERY
def test_compiles_in_one_graph_and_repeats_to_the_bit(device, impl, form):
    tensors = make(34, 64, 31, torch.bfloat16, device)
    require_same_bits(ours(form, impl, first_row=7), tensors, WANTED)
    require_one_graph(ours(form, impl, first_row=7), tensors, WANTED)
    require_one_graph(with_itself(ours(form, impl)), {"query": tensors["query"]}, ["query"])


def test_auto_passes_over_what_does_not_take_the_input():
    query, key = make(4, 8, MAX_TRITON_WIDTH + 1).values()
    assert info_nce(query.double(), key.double(), temperature=0.2).dtype == torch.float64
    assert info_nce(query.half(), key.half(), temperature=0.2).dtype == torch.float32
    with pytest.raises(TypeError, match=r"impl=native takes torch\.float32, torch\.bfloat16, not torch\.float64"):
        info_nce(query.double(), key.double(), temperature=0.2, impl=Impl.NATIVE)
    with pytest.raises(ImplUnavailableError, match="unknown impl"):
        info_nce(query, key, temperature=0.2, impl="nonsense")


@BOTH
def test_bad_input_is_named(form):
    op, (query, key) = FORMS[form], make(4, 8, 5).values()
    with pytest.raises(ValueError, match=f"{form}: first_row 5 \\+ 4 queries leaves the 8 keys"):
        op(query, key, temperature=0.2, first_row=5)
    with pytest.raises(ValueError, match=f"{form}: first_row -1"):
        op(query, key, temperature=0.2, first_row=-1)
    with pytest.raises(ValueError, match=f"{form}: temperature must be above 0, not 0"):
        op(query, key, temperature=0)
    for wrong in ((query, key[:, :4]), (query[:0], key)):
        with pytest.raises(ValueError, match=r"\] and \[M, D\]"):
            op(*wrong, temperature=0.2)
    with pytest.raises(ValueError, match=f"{form}: key must be \\[M, D\\], not"):
        op(query, key[0], temperature=0.2)
    with pytest.raises(TypeError, match=f"{form}: key must be floating point"):
        op(query, key.int(), temperature=0.2)
    with pytest.raises(ValueError, match=f"{form}: key is on meta"):
        op(query, key.to("meta"), temperature=0.2)


def test_an_odd_number_of_rows_are_no_pairs():
    query, key = make(3, 8, 5).values()
    with pytest.raises(ValueError, match="nt_xent: query must be two views of each image, not 3 rows"):
        nt_xent(query, key, temperature=0.2)
