import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from misplace.kernels import Impl, token_bce
from misplace.kernels.impl import why_unavailable
from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits, values_and_gradients
from misplace.kernels.testing.impls import runnable
from misplace.kernels.testing.inputs import integers, normal
from misplace.kernels.testing.shapes import LAYOUTS
from misplace.kernels.token_bce import SUPPORTED

IMPLS = runnable(SUPPORTED)
WANTED = ["tokens", "norm_weight", "norm_bias", "weight", "bias"]
# images, patch tokens, width, offset
SHAPES = [(1, 1, 7, 1), (2, 49, 192, 1), (3, 13, 33, 0), (5, 37, 127, 2), (2, 196, 64, 1)]
oracle = functools.partial(token_bce, impl="reference")
FUSED = [(device, impl) for device, impl in IMPLS if impl is not Impl.REFERENCE]
needs_native = pytest.mark.skipif(
    why_unavailable(Impl.NATIVE, torch.device("cpu")) is not None, reason="misplace.kernels._C is not built"
)


def eager(tokens, norm_weight, norm_bias, weight, bias, target, token_weight=None, offset=1):
    """Plain PyTorch in fp32, as under autocast with fp32 norms and losses."""
    x = F.layer_norm(tokens[:, offset:].float(), norm_weight.shape, norm_weight, norm_bias, 1e-6)
    logits = F.linear(x, weight, bias)[..., 0]
    each = F.softplus(logits) - logits * target.float()
    if token_weight is None:
        return each.mean(), logits.detach()
    return (each * token_weight).sum() / token_weight.sum(), logits.detach()


def make(batch, kept, width, offset=1, dtype=torch.float32, device="cpu", weighted=False):
    tensors = {
        "tokens": 2 * normal(batch, offset + kept, width, seed=1, dtype=dtype, device=device),
        "norm_weight": 1 + normal(width, seed=2, device=device) / 4,
        "norm_bias": normal(width, seed=3, device=device) / 4,
        "weight": normal(1, width, seed=4, device=device) / width**0.5,
        "bias": normal(1, seed=5, device=device),
        "target": integers(batch, kept, high=5, seed=6, device=device) == 0,
    }
    if weighted:
        tensors["token_weight"] = normal(batch, kept, seed=7, device=device).square() + 0.1
    return tensors


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device, impl", IMPLS)
def test_every_impl_against_fp64(device, impl, dtype, weighted):
    for batch, kept, width, offset in SHAPES:
        op, plain, exact = (functools.partial(f, offset=offset) for f in (token_bce, eager, oracle))
        tensors = make(batch, kept, width, offset, dtype, device, weighted)
        check(functools.partial(op, impl=impl), plain, exact, tensors, WANTED)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device, impl", IMPLS)
def test_layouts(device, impl, layout):
    tensors = make(3, 13, 33, device=device)
    tensors["tokens"] = LAYOUTS[layout](tensors["tokens"])
    tensors["target"] = LAYOUTS[layout](tensors["target"])
    check(functools.partial(token_bce, impl=impl), eager, oracle, tensors, WANTED)


def test_oracle_against_torch_layers():
    tensors = {name: t.double() for name, t in make(3, 11, 16, weighted=True).items()}
    token_weight = tensors.pop("token_weight")
    x = tensors["tokens"]
    scaled = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-6)
    normalised = scaled * tensors["norm_weight"] + tensors["norm_bias"]
    expected = F.linear(normalised, tensors["weight"], tensors["bias"])[:, 1:, 0]
    probability = expected.sigmoid()
    loss, logits = oracle(**tensors)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, F.binary_cross_entropy(probability, tensors["target"]), rtol=1e-12, atol=0)
    weighted, _ = oracle(**tensors, token_weight=token_weight)
    share = token_weight / token_weight.sum()
    each = F.binary_cross_entropy(probability, tensors["target"], reduction="none")
    torch.testing.assert_close(weighted, (share * each).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_knowing_nothing_costs_the_entropy_of_the_share(device, impl):
    tensors = make(1, 10, 8, device=device)
    tensors["weight"] = torch.zeros(1, 8, device=device)
    tensors["bias"] = torch.tensor([math.log(0.2 / 0.8)], device=device)
    tensors["target"] = torch.arange(10, device=device)[None] < 2
    assert token_bce(**tensors, impl=impl)[0].item() == pytest.approx(0.5004, abs=5e-5)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_class_token_is_neither_read_nor_moved(device, impl):
    tensors = make(2, 5, 8, device=device)
    plain, _ = token_bce(**tensors, impl=impl)
    tensors["tokens"][:, 0] = float("nan")
    tensors["tokens"].requires_grad_()
    loss, logits = token_bce(**tensors, impl=impl)
    loss.backward()
    assert torch.equal(loss, plain) and logits.shape == (2, 5) and not logits.requires_grad
    gradient = tensors["tokens"].grad
    assert torch.equal(gradient[:, 0], torch.zeros(2, 8, device=device)) and gradient[:, 1:].abs().min() > 0


@pytest.mark.parametrize("device, impl", IMPLS)
def test_large_logits_stay_finite(device, impl):
    tensors = make(2, 5, 8, device=device)
    tensors["bias"] = torch.tensor([200.0], device=device)
    loss, logits = token_bce(**tensors, impl=impl)
    expected = (logits.double() * ~tensors["target"]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_dtypes_of_bf16_tokens(device, impl):
    tensors = make(2, 5, 8, dtype=torch.bfloat16, device=device)
    loss, logits = token_bce(**tensors, impl=impl)
    assert loss.dtype == logits.dtype == torch.float32 and loss.shape == ()


@pytest.mark.parametrize("device, impl", IMPLS)
def test_gradcheck(device, impl):
    tensors = {name: t.double() for name, t in make(2, 3, 4, device=device, weighted=True).items()}
    inputs = [tensors[name].requires_grad_() for name in WANTED]

    def loss(*inputs):
        return token_bce(*inputs, tensors["target"], token_weight=tensors["token_weight"], impl=impl)[0]

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_compiles_in_one_graph_and_repeats_to_the_bit(device, impl):
    op = functools.partial(token_bce, impl=impl)
    tensors = make(3, 49, 64, dtype=torch.bfloat16, device=device)
    require_same_bits(op, tensors, WANTED)
    require_one_graph(op, tensors, WANTED)


@needs_native
@pytest.mark.parametrize("rows", [(1, 3), (5, 37), (70, 199)])  # one chunk, three, most of them larger than usual
def test_threads_do_not_matter(rows):
    tensors = make(*rows, 33, dtype=torch.bfloat16, weighted=True)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(values_and_gradients(functools.partial(token_bce, impl="native"), tensors, WANTED))
    finally:
        torch.set_num_threads(threads)
    for name, result in results[0].items():
        assert torch.equal(result, results[1][name]) and torch.equal(result, results[2][name]), name


@needs_native
@pytest.mark.parametrize("capability, path", [("default", "plain"), ("avx2", "avx2")])
def test_the_paths_that_this_cpu_would_not_take(capability, path):
    if capability == "avx2" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this CPU has no AVX2")
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    script = Path(__file__).with_name("other_path_token_bce.py")
    done = subprocess.run([sys.executable, script, path], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"{path}: 6 cases within the tolerance"


@pytest.mark.parametrize("device, impl", FUSED)
def test_without_gradients_only_values_are_computed(device, impl):
    tensors = make(3, 13, 33, dtype=torch.bfloat16, device=device)
    loss, logits = token_bce(**tensors, impl=impl)
    assert not loss.requires_grad
    tensors["weight"].requires_grad_()
    with torch.no_grad():
        quiet = token_bce(**tensors, impl=impl)
    with_gradient = token_bce(**tensors, impl=impl)
    assert with_gradient[0].requires_grad and not quiet[0].requires_grad
    for other in (quiet, with_gradient):
        assert torch.equal(loss, other[0]) and torch.equal(logits, other[1])


@pytest.mark.parametrize("device, impl", IMPLS)
def test_only_what_requires_a_gradient_gets_one(device, impl):
    tensors = make(3, 13, 33, device=device)
    every = values_and_gradients(functools.partial(token_bce, impl=impl), tensors, WANTED)
    for name in WANTED:
        alone = values_and_gradients(functools.partial(token_bce, impl=impl), tensors, [name])
        assert torch.equal(alone[f"d {name}"], every[f"d {name}"])
        tensors[name].requires_grad_(False)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_backward_twice_and_with_another_scale(device, impl):
    tensors = make(3, 13, 33, device=device)
    inputs = [tensors[name].requires_grad_() for name in WANTED]
    loss, _ = token_bce(**tensors, impl=impl)
    once = torch.autograd.grad(loss, inputs, retain_graph=True)
    doubled = torch.autograd.grad(2 * loss, inputs, retain_graph=True)
    again = torch.autograd.grad(loss, inputs)
    for first, second, third in zip(once, doubled, again, strict=True):
        torch.testing.assert_close(second, 2 * first, rtol=1e-6, atol=0)
        assert torch.equal(first, third)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_parameters_and_targets_in_other_dtypes(device, impl):
    tensors = make(3, 13, 33, dtype=torch.bfloat16, device=device, weighted=True)
    for name in ("norm_weight", "norm_bias", "weight", "bias", "token_weight"):
        tensors[name] = tensors[name].bfloat16()
    tensors["target"] = tensors["target"].double() / 2
    rounded = tensors | {name: tensors[name].float() for name in tensors if name not in ("tokens", "target")}

    def plain(**given):
        wide = {name: given[name].float() for name in given if name != "tokens"}
        return eager(tokens=given["tokens"], **wide)

    check(functools.partial(token_bce, impl=impl), plain, oracle, tensors, WANTED)
    loss, logits = token_bce(**rounded, impl=impl)
    assert torch.equal(loss, token_bce(**tensors, impl=impl)[0]) and logits.dtype == torch.float32


@pytest.mark.parametrize("device, impl", IMPLS)
def test_rows_far_from_zero_keep_their_digits(device, impl):
    tensors = make(2, 13, 64, device=device)
    tensors["tokens"] += 300
    check(functools.partial(token_bce, impl=impl), eager, oracle, tensors, WANTED)


@pytest.mark.parametrize("device, impl", IMPLS)
def test_weights_that_sum_to_zero_give_nan(device, impl):
    tensors = make(1, 3, 8, device=device)
    loss, _ = token_bce(**tensors, token_weight=torch.zeros(1, 3, device=device), impl=impl)
    assert loss.isnan()


@needs_native
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck(gradients):
    token_bce(**make(1, 1, 8), impl="native")
    arguments = (*make(2, 5, 33, dtype=torch.bfloat16, weighted=True).values(), 1, 1e-6, gradients)
    torch.library.opcheck(torch.ops.misplace.token_bce.default, arguments)


@needs_native
def test_the_registered_op_checks_for_itself():
    token_bce(**make(1, 1, 8), impl="native")
    arguments = [*make(2, 5, 8).values(), None, 1, 1e-6, True]
    for place, wrong, error, words in (
        (0, torch.zeros(2, 6, 8).half(), TypeError, "not Half"),
        (0, torch.zeros(12, 8), ValueError, "tokens must be"),
        (1, torch.zeros(7), ValueError, "D = 8"),
        (3, torch.zeros(8), ValueError, "D = 8"),
        (5, torch.zeros(2, 4), ValueError, "target and token_weight"),
        (5, torch.zeros(2, 5, dtype=torch.int64), TypeError, "target must be bool"),
        (6, torch.zeros(2, 4), ValueError, "target and token_weight"),
        (7, 6, ValueError, "no patch tokens"),
    ):
        changed = [*arguments[:place], wrong, *arguments[place + 1 :]]
        with pytest.raises(error, match=words):
            torch.ops.misplace.token_bce(*changed)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"target": torch.zeros(2, 6)}, ValueError, r"target must be \[B, K\] = \[2, 5\], not \[2, 6\]"),
        (
            {"target": torch.zeros(2, 5, dtype=torch.int64)},
            TypeError,
            "target must be bool or floating point",
        ),
        ({"weight": torch.zeros(8)}, ValueError, r"weight must be \[1, D\] = \[1, 8\], not \[8\]"),
        ({"bias": torch.zeros(2)}, ValueError, r"bias must be \[1\]"),
        ({"norm_weight": torch.zeros(7)}, ValueError, r"norm_weight must be \[D\] = \[8\]"),
        ({"tokens": torch.zeros(2, 1, 8)}, ValueError, "no patch tokens"),
        ({"tokens": torch.zeros(0, 6, 8)}, ValueError, "no patch tokens"),
        ({"tokens": torch.zeros(2, 6, 8, dtype=torch.int32)}, TypeError, "tokens must be floating point"),
        ({"token_weight": torch.ones(2, 4)}, ValueError, r"token_weight must be \[B, K\]"),
        ({"norm_bias": torch.zeros(8, device="meta")}, ValueError, "norm_bias is on meta"),
    ],
)
def test_bad_input_is_named(change, error, message):
    with pytest.raises(error, match=f"token_bce: {message}"):
        token_bce(**(make(2, 5, 8) | change))
