"""The judges themselves: a tolerance that cannot fail or a poison that does not show would judge nothing."""

import subprocess
import sys

import pytest
import torch

from misplace.kernels.testing.compare import check, require_same_bits
from misplace.kernels.testing.inputs import integers, normal
from misplace.kernels.testing.poison import poisoned_memory
from misplace.kernels.testing.shapes import LAYOUTS
from misplace.kernels.testing.tolerance import ToleranceError, require_close, size


def square(x):
    return x * x


X = {"x": normal(37, 33, seed=1, dtype=torch.bfloat16)}


def one_row_shifted(x):
    y = square(x)
    return torch.cat([y[:1].roll(1, dims=1), y[1:]])


def small_bias(x):
    return square(x) * 1.01


def wrong_gradient(x):
    return square(x.detach()) + (x - x.detach()) * x.detach()


def forgets_its_last_row(x):
    y = torch.empty_like(x)
    y[:-1] = square(x[:-1])
    return y


def test_a_right_op_passes():
    check(square, square, square, X, ["x"])
    require_same_bits(square, X, ["x"])


@pytest.mark.parametrize("wrong", [one_row_shifted, small_bias, forgets_its_last_row])
def test_wrong_values_fail(wrong):
    with pytest.raises(ToleranceError, match="value 0"):
        check(wrong, square, square, X)


def test_a_wrong_gradient_or_dtype_fails():
    with pytest.raises(ToleranceError, match="d x"):
        check(wrong_gradient, square, square, X, ["x"])
    with pytest.raises(ToleranceError, match=r"value 0: torch.float32, expected torch.bfloat16"):
        check(lambda x: square(x.float()), square, square, X)


def test_few_elements_are_not_left_to_luck():
    """One number that eager hits exactly says nothing about eager; its errors on others like it do."""
    exact = torch.tensor([2.0], dtype=torch.float64)
    lucky = [size(torch.zeros(1))]
    with pytest.raises(ToleranceError):
        require_close("y", (exact + 0.04).bfloat16(), exact, lucky, factor=2)
    require_close("y", (exact + 0.04).bfloat16(), exact, [*lucky, size(torch.tensor([0.02]))], factor=2)


def test_different_bits_of_two_runs_fail():
    runs = iter((0.0, 1e-30))
    with pytest.raises(AssertionError, match="value 0 differs between two runs"):
        require_same_bits(lambda x: x.float() * 0 + next(runs), X)


def test_memory_is_poisoned_inside_and_only_inside():
    with poisoned_memory():
        assert torch.empty(1000).isnan().all()
        assert torch.empty_like(torch.zeros(7, dtype=torch.bfloat16)).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_inputs_are_normal_and_named_by_their_seed():
    x = normal(100, 1000, seed=3, dtype=torch.float64)
    assert torch.equal(x, normal(100, 1000, seed=3, dtype=torch.float64))
    assert not torch.equal(x, normal(100, 1000, seed=4, dtype=torch.float64))
    # 4 standard errors of a mean and of a variance of 100,000 numbers
    assert x.mean().abs() < 4 / 100_000**0.5 and (x.var() - 1).abs() < 4 * (2 / 100_000) ** 0.5
    assert integers(10_000, high=5, seed=1).unique().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_the_values(layout):
    x = normal(3, 5, 7, seed=1)
    assert torch.equal(LAYOUTS[layout](x), x)
    assert LAYOUTS[layout](x).is_contiguous() == (layout in ("contiguous", "offset"))


def test_kernels_import_without_triton_xformers_and_the_engine():
    code = (
        "import sys; sys.modules['triton'] = sys.modules['xformers'] = None; import misplace.kernels;"
        "assert not [m for m in sys.modules if m.startswith(('misplace.engine', 'misplace.bench'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
