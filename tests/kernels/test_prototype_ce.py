import functools
import math

import pytest
import torch

from misplace.kernels import Impl, prototype_ce
from misplace.kernels.prototype_ce import SUPPORTED
from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits, values_and_gradients
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.prototypes import DTYPES, WANTED, eager, make, oracle
from misplace.kernels.testing.shapes import LAYOUTS

IMPLS = runnable(SUPPORTED)
# crops, global crops, images, prototypes, width
SHAPES = [
    (2, 2, 1, 13, 7),
    (10, 2, 3, 257, 33),
    (3, 1, 8, 31, 64),
    (1, 2, 5, 1, 31),
    (2, 2, 2, 4099, 16),
    (4, 3, 2, 64, 1),
]


def with_impl(impl, **options):
    return functools.partial(prototype_ce, impl=impl, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_every_impl_against_fp64(device, impl, shape, dtype):
    check(with_impl(impl), eager, oracle, make(*shape, dtype, device), WANTED)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_layouts(device, impl, layout):
    tensors = {name: LAYOUTS[layout](tensor) for name, tensor in make(3, 2, 5, 131, 33, device=device).items()}
    check(with_impl(impl), eager, oracle, tensors, WANTED)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_prototypes_in_bf16(device, impl):
    tensors = {name: tensor.bfloat16() for name, tensor in make(3, 2, 5, 131, 33, device=device).items()}
    check(with_impl(impl), eager, oracle, tensors, WANTED)


@pytest.mark.parametrize("impl", [Impl.TORCH, Impl.REFERENCE])
def test_gradcheck(impl):
    tensors = {name: tensor.double() for name, tensor in make(3, 2, 2, 7, 4).items()}
    wanted = [tensors.pop(name).requires_grad_() for name in WANTED]
    options = dict(student_temperature=0.5, teacher_temperature=0.3, impl=impl)

    def op(student, prototypes):
        return prototype_ce(student=student, prototypes=prototypes, **tensors, **options)[0]

    assert torch.autograd.gradcheck(op, wanted)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_no_gradient_for_the_teacher_or_the_centre(device, impl):
    tensors = {name: tensor.requires_grad_() for name, tensor in make(3, 2, 2, 31, 8, device=device).items()}
    loss, batch_centre = prototype_ce(**tensors, impl=impl)
    loss.backward()
    assert not batch_centre.requires_grad
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == WANTED


@pytest.mark.parametrize("wanted", [[], ["student"], ["prototypes"]])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_some_of_the_gradients(device, impl, wanted):
    tensors = make(3, 2, 5, 131, 33, device=device)
    every = values_and_gradients(with_impl(impl), tensors, WANTED)
    some = values_and_gradients(with_impl(impl), tensors, wanted)
    assert all(torch.equal(result, every[name]) for name, result in some.items()) and len(some) == 2 + len(wanted)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_a_scaled_loss_and_two_backwards(device, impl):
    tensors = make(3, 2, 2, 31, 8, device=device)
    expected = values_and_gradients(with_impl(impl), tensors, WANTED)
    for name in WANTED:
        tensors[name].requires_grad_()
    loss, _ = prototype_ce(**tensors, impl=impl)
    wanted = [tensors[name] for name in WANTED]
    once = torch.autograd.grad(loss, wanted, retain_graph=True)
    twice = torch.autograd.grad(2 * loss, wanted)
    for name, single, double in zip(WANTED, once, twice, strict=True):
        torch.testing.assert_close(double, 2 * single, rtol=1e-5, atol=0)
        assert single.shape == expected[f"d {name}"].shape


@pytest.mark.parametrize("device, impl", IMPLS)
def test_a_temperature_in_a_tensor_is_that_temperature(device, impl):
    tensors = make(3, 2, 5, 131, 33, device=device)
    number = values_and_gradients(with_impl(impl, teacher_temperature=0.07), tensors, WANTED)
    temperature = torch.tensor(0.07, device=device)
    tensor = values_and_gradients(with_impl(impl, teacher_temperature=temperature), tensors, WANTED)
    assert all(torch.equal(result, tensor[name]) for name, result in number.items())


def collapsed(device):
    """Every row of student and teacher the same."""
    tensors = make(4, 2, 3, 131, 16, device=device)
    row = tensors["student"][0, 0].clone()
    tensors["student"][:], tensors["teacher"][:] = row, row
    return tensors, row


@pytest.mark.parametrize("temperature", [0.04, 0.004])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_cold_temperatures_with_collapsed_rows(device, impl, temperature):
    options = dict(student_temperature=temperature, teacher_temperature=temperature)
    plain, exact = (functools.partial(function, **options) for function in (eager, oracle))
    check(with_impl(impl, **options), plain, exact, collapsed(device)[0], WANTED)


@pytest.mark.parametrize("temperature", [0.01, 0.001])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_cold_temperatures_with_a_prototype_right_on_the_rows(device, impl, temperature):
    """The exact loss is below 1e-12: what is left is a logit's rounding over the temperature."""
    tensors, row = collapsed(device)
    tensors["prototypes"][7], tensors["teacher_prototypes"][7] = row, row
    options = dict(student_temperature=temperature, teacher_temperature=temperature)
    assert 0 <= oracle(**{name: tensor.double() for name, tensor in tensors.items()}, **options)[0] < 1e-12
    results = values_and_gradients(with_impl(impl, **options), tensors, WANTED)
    assert results["value 0"].abs() <= 4 * torch.finfo(torch.float32).eps / temperature
    assert all(result.isfinite().all() for result in results.values())


@pytest.mark.parametrize("device, impl", IMPLS)
def test_collapse_costs_ln_of_the_number_of_prototypes(device, impl):
    tensors = make(3, 2, 4, 1000, 8, device=device)
    tensors["prototypes"] = torch.ones_like(tensors["prototypes"])
    assert prototype_ce(**tensors, impl=impl)[0].item() == pytest.approx(math.log(1000))


@pytest.mark.parametrize("device, impl", IMPLS)
def test_zero_rows_and_prototypes_give_finite_numbers(device, impl):
    tensors = make(3, 2, 2, 31, 8, device=device)
    tensors["student"][1] = 0
    tensors["teacher"][0] = 0
    tensors["prototypes"][3] = 0
    for name, result in values_and_gradients(with_impl(impl), tensors, WANTED).items():
        assert result.isfinite().all(), name


@pytest.mark.parametrize("device, impl", IMPLS)
def test_lengths_do_not_matter(device, impl):
    tensors = make(3, 2, 2, 31, 8, device=device)
    loss, centre = prototype_ce(**tensors, impl=impl)
    scaled = tensors | {name: 4 * tensors[name] for name in ("student", "teacher", "prototypes", "teacher_prototypes")}
    assert all(torch.equal(a, b) for a, b in zip(prototype_ce(**scaled, impl=impl), (loss, centre), strict=True))


@pytest.mark.parametrize("device, impl", IMPLS)
def test_compiles_in_one_graph_and_repeats_to_the_bit(device, impl):
    tensors = make(3, 2, 5, 257, 33, torch.bfloat16, device)
    require_same_bits(with_impl(impl), tensors, WANTED)
    require_one_graph(with_impl(impl), tensors, WANTED)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"student": torch.zeros(3, 8)}, ValueError, r"student must be \[V, B, D\]"),
        ({"teacher": torch.zeros(2, 3, 8)}, ValueError, r"teacher must be \[G, B, D\] = \[2, 2, 8\]"),
        ({"prototypes": torch.zeros(31, 7)}, ValueError, r"prototypes must be \[P, D\] = \[31, 8\]"),
        ({"teacher_prototypes": torch.zeros(30, 8)}, ValueError, "teacher_prototypes must be"),
        ({"centre": torch.zeros(1, 31)}, ValueError, r"centre must be \[P\] = \[31\]"),
        ({"student": torch.zeros(1, 2, 8), "teacher": torch.zeros(1, 2, 8)}, ValueError, "no pair of crops"),
        ({"student": torch.zeros(3, 0, 8), "teacher": torch.zeros(2, 0, 8)}, ValueError, "no pair of crops"),
        ({"prototypes": torch.zeros(0, 8)}, ValueError, "no pair of crops, or no prototypes"),
        ({"student": torch.zeros(3, 2, 8).bfloat16()}, TypeError, "teacher must be torch.bfloat16"),
        ({"prototypes": torch.zeros(31, 8).int()}, TypeError, "prototypes must be floating point"),
        ({"centre": torch.zeros(31, device="meta")}, ValueError, "centre is on meta"),
        ({"student_temperature": 0.0}, ValueError, "student_temperature must be above 0, not 0"),
        ({"teacher_temperature": -1.0}, ValueError, "teacher_temperature must be above 0, not -1"),
        ({"teacher_temperature": torch.ones(1)}, ValueError, "teacher_temperature must be a float or"),
    ],
)
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=f"prototype_ce: {message}"):
        prototype_ce(**(make(3, 2, 2, 31, 8) | change))
