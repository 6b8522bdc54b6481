"""The bias's gradient by every path that this CPU has."""

import functools

import pytest
import torch

from misplace.kernels.impl import Impl, why_unavailable
from misplace.kernels.linear.native import bias_gradient
from misplace.kernels.testing.compare import check, require_same_bits
from misplace.kernels.testing.inputs import normal
from misplace.kernels.testing.shapes import LAYOUTS

pytestmark = pytest.mark.skipif(
    why_unavailable(Impl.NATIVE, torch.device("cpu")) is not None, reason="misplace.kernels._C is not built"
)
SHAPES = [(0, 5), (1, 1), (3, 33), (63, 7), (64, 16), (65, 31), (257, 129), (4099, 48), (2, 0)]


def eager(rows):
    return rows.sum(0, dtype=torch.float32)


def oracle(rows):
    return rows.double().sum(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512", "avx512_bf16"])
def test_every_path_against_fp64(isa, dtype):
    try:
        bias_gradient(torch.ones(1, 1), isa=isa)
    except ValueError as error:
        assert "this CPU has no" in str(error)
        pytest.skip(str(error))
    for seed, shape in enumerate(SHAPES):
        check(
            functools.partial(bias_gradient, isa=isa),
            eager,
            oracle,
            {"rows": normal(*shape, seed=seed, dtype=dtype)},
            [],
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    rows = LAYOUTS[layout](normal(70, 31, seed=0, dtype=torch.bfloat16))
    check(bias_gradient, eager, oracle, {"rows": rows}, [])


def test_ten_thousand_ones():
    assert bias_gradient(torch.ones(10_001, 3, dtype=torch.bfloat16)).tolist() == [10_001.0] * 3


def test_same_bits_again_and_for_any_number_of_threads():
    rows = normal(5000, 65, seed=0, dtype=torch.bfloat16)
    require_same_bits(bias_gradient, {"rows": rows}, [])
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(bias_gradient(rows))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


def test_opcheck():
    torch.library.opcheck(torch.ops.misplace.linear_bias_gradient, (normal(9, 5, seed=0), ""))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"rows of a bias gradient must be \[M, O\]"):
        bias_gradient(torch.ones(3))
    with pytest.raises(TypeError, match="native sums float32 or bfloat16"):
        bias_gradient(torch.ones(3, 2, dtype=torch.float64))
