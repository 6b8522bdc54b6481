"""info_nce's CPU kernel: every instruction set, threads, rounds of queries, memory, and the registered op itself."""

import functools
import subprocess
import sys

import pytest
import torch

from misplace.kernels import Impl, cpu_paths
from misplace.kernels.impl import why_unavailable
from misplace.kernels.info_nce import native
from misplace.kernels.testing.compare import check, values_and_gradients
from misplace.kernels.testing.contrastive import FORMS, WANTED, make, others, with_itself
from misplace.kernels.testing.tolerance import GRADIENT_FACTOR, VALUE_FACTOR, require_close, size

REASON = why_unavailable(Impl.NATIVE, torch.device("cpu"))
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no native kernels: {REASON}")
BOTH = pytest.mark.parametrize("form", FORMS)
SETS = ("plain", "avx2", "avx512", "avx512_bf16", "amx")
GROWTH = """
import resource, torch
from misplace.kernels import info_nce
torch.set_num_threads(2)
def highest(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
query, key = torch.randn(8192, 16, requires_grad=True), torch.randn(8192, 16)
info_nce(query[:256], key[:256], temperature=0.2, impl="native").backward()
before = highest()
info_nce(query, key, temperature=0.2, impl="native").backward()
print(highest() - before)
"""


def op_of(form, isa="", temperature=0.2, first_row=0):
    return functools.partial(getattr(native, form), temperature=temperature, first_row=first_row, isa=isa)


def require_isa(isa):
    try:
        torch.ops.misplace.info_nce(torch.ones(1, 1), None, 1.0, 0, False, False, False, isa)
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@BOTH
@pytest.mark.parametrize("isa", SETS)
def test_every_instruction_set(isa, form, dtype):
    require_isa(isa)
    given = dict(temperature=0.2, first_row=40)
    check(op_of(form, isa, **given), *others(form, **given), make(34, 131, 77, dtype), WANTED)


@pytest.mark.parametrize("temperature", [0.2, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@BOTH
def test_threads_do_not_matter(form, dtype, temperature):
    tensors = make(134, 250, 33, dtype)
    op = op_of(form, temperature=temperature, first_row=7)
    rows = {"query": tensors["query"]}
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            both = values_and_gradients(op, tensors, WANTED)
            itself = values_and_gradients(with_itself(op_of(form)), rows, ["query"])
            results.append([*both.values(), *itself.values()])
    finally:
        torch.set_num_threads(threads)
    for one, two, three in zip(*results, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)


@pytest.mark.parametrize("rows, temperature", [(130, 0.1), (130, 0.01), (1026, 0.1)])
@pytest.mark.parametrize("isa", SETS[:-1])
def test_rows_that_are_their_own_keys_over_several_panels(isa, rows, temperature):
    """In blocks of 32 rows and of 64; below a temperature of 0.04 as if the keys were others."""
    require_isa(isa)
    tensors = {"query": make(rows, 1, 17)["query"]}
    plain, exact = map(with_itself, others("nt_xent", temperature))
    check(with_itself(op_of("nt_xent", isa, temperature)), plain, exact, tensors, ["query"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_rounds_of_queries(dtype):
    """8,200 keys allow rounds of 256 queries in fp32, of 512 in bf16."""
    tensors, given = make(520, 8200, 8, dtype), dict(temperature=0.2, first_row=3000)
    plain, exact = others("nt_xent", **given)
    oracle = values_and_gradients(exact, {name: tensor.double() for name, tensor in tensors.items()}, WANTED)
    theirs = values_and_gradients(plain, tensors, WANTED)
    for name, result in values_and_gradients(op_of("nt_xent", **given), tensors, WANTED).items():
        factor = GRADIENT_FACTOR if name.startswith("d ") else VALUE_FACTOR
        error = size(theirs[name].double() - oracle[name])
        require_close(name, result, oracle[name], [error], factor=factor)


def test_similarities_are_not_kept():
    """8,192 x 8,192 of them would be 256 MB in fp32."""
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32


def test_the_path_is_told():
    assert cpu_paths()["info_nce"].partition(", ")[0] in SETS
    assert cpu_paths()["info_nce"].endswith((", brgemm bf16", ", fp32 products"))


@pytest.mark.parametrize("query_gradient, key_gradient", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("own_keys", [False, True])
def test_opcheck(own_keys, query_gradient, key_gradient):
    query, key = make(6, 9, 33, torch.bfloat16).values()
    arguments = (query, None if own_keys else key, 0.2, 0, True, query_gradient, key_gradient, "")
    torch.library.opcheck(torch.ops.misplace.info_nce.default, arguments)
    _, d_query, d_key = torch.ops.misplace.info_nce(*arguments)
    assert (d_query.numel() > 0) == query_gradient and (d_key.numel() > 0) == (key_gradient and not own_keys)


@BOTH
def test_a_gradient_alone_is_that_of_both(form):
    arguments = (*make(6, 9, 33).values(), 0.2, 1, form == "nt_xent")
    _, d_query, d_key = torch.ops.misplace.info_nce(*arguments, True, True, "")
    assert torch.equal(torch.ops.misplace.info_nce(*arguments, True, False, "")[1], d_query)
    assert torch.equal(torch.ops.misplace.info_nce(*arguments, False, True, "")[2], d_key)


def test_the_registered_op_checks_for_itself():
    arguments = [*make(4, 8, 5).values(), 0.2, 0, True, True, True, ""]
    for place, wrong, error, words in (
        (0, torch.zeros(4, 5).half(), TypeError, "not Half"),
        (0, torch.zeros(4, 5).bfloat16(), TypeError, "one dtype"),
        (0, torch.zeros(20), ValueError, "must be"),
        (0, torch.zeros(3, 5), ValueError, "pairs of 3 rows"),
        (1, torch.zeros(8, 4), ValueError, "must be"),
        (2, 0.0, ValueError, "temperature must be above 0"),
        (3, 5, ValueError, "first_row 5"),
        (3, -1, ValueError, "first_row -1"),
        (7, "sse9", ValueError, "unknown instruction set"),
    ):
        changed = [*arguments[:place], wrong, *arguments[place + 1 :]]
        with pytest.raises(error, match=words):
            torch.ops.misplace.info_nce(*changed)
