"""Run by test_attention_triton.py in its own process with TRITON_INTERPRET=1; prints a line per case."""

import functools

import test_attention as shared
import test_attention_mixed as mixed
import torch
from torch.library import opcheck

from misplace.kernels import attention
from misplace.kernels.testing.compare import check, require_one_graph, require_same_bits
from misplace.kernels.testing.inputs import normal
from misplace.kernels.testing.shapes import LAYOUTS

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# tokens, heads, head dim, dtype
DENSE = [
    (1, 2, 64, BF16),
    (2, 1, 32, FP32),
    (13, 3, 16, BF16),
    (17, 2, 32, BF16),
    (37, 2, 64, FP32),
    (50, 3, 64, BF16),
    (50, 2, 32, FP16),
    (99, 2, 64, BF16),
    (99, 1, 32, FP32),
    (197, 1, 64, BF16),
    (197, 1, 32, FP32),
    (255, 1, 32, BF16),
    (256, 1, 64, BF16),
]
MIXED = [((197, 37, 37), FP32), ((50, 99, 1, 0, 13), BF16), ((0, 5, 0), FP32), ((256, 64, 128, 65), BF16)]
SEPARATE = [(1, 50, 64, BF16), (31, 7, 32, FP32), (5, 197, 32, BF16)]
REFUSED = [
    (257, 64, BF16, ValueError, "at most 256 keys of 64 torch.bfloat16, not 257"),
    (129, 64, FP32, ValueError, "at most 128 keys of 64 torch.float32, not 129"),
    (257, 32, FP32, ValueError, "at most 256 keys of 32"),
    (5, 48, FP32, ValueError, "not 48"),
    (5, 32, torch.float64, TypeError, "not torch.float64"),
]


def check_dense() -> None:
    for tokens, heads, head_dim, dtype in DENSE:
        tensors = shared.packed(2, tokens, heads, head_dim, dtype=dtype)
        plain, exact = (functools.partial(op, num_heads=heads) for op in (shared.eager_packed, shared.oracle))
        # one key: no gradient of q and k to compare with, and shared.test_one_key... is about it
        check(functools.partial(attention, num_heads=heads, impl="triton"), plain, exact, tensors,
              ["qkv"] if tokens > 1 else [])  # fmt: skip
        print("close", tokens, heads, head_dim, dtype, flush=True)
    for layout, change in LAYOUTS.items():
        tensors = {"qkv": change(shared.packed(2, 13, 2, 32)["qkv"])}
        plain, exact = (functools.partial(op, num_heads=2) for op in (shared.eager_packed, shared.oracle))
        check(functools.partial(attention, num_heads=2, impl="triton"), plain, exact, tensors, ["qkv"])
        print("close", layout, flush=True)


def check_separate() -> None:
    for queries, keys, head_dim, dtype in SEPARATE:
        tensors = {
            name: normal(2, tokens, 2, head_dim, seed=seed, dtype=dtype)
            for seed, (name, tokens) in enumerate((("q", queries), ("k", keys), ("v", keys)))
        }
        ours, exact = (
            lambda q, k, v, impl=impl: attention(q, k, v, scale=-0.3, impl=impl) for impl in ("triton", "reference")
        )
        check(ours, functools.partial(shared.eager, scale=-0.3), exact, tensors, ["q", "k", "v"])
        print("close", queries, keys, head_dim, dtype, flush=True)


def check_mixed() -> None:
    for lengths, dtype in MIXED:
        tensors, options = mixed.case(lengths, 2, 32, dtype, "cpu")
        ours, exact = (functools.partial(attention, impl=impl, **options) for impl in ("triton", "reference"))
        check(ours, functools.partial(mixed.eager, **options), exact, tensors, ["qkv"])
        print("close", lengths, dtype, flush=True)
    mixed.test_nan_stays_in_its_sequence("cpu", "triton")
    mixed.test_no_sequences_and_no_tokens("cpu", "triton")
    mixed.test_separate_in_any_layout("cpu", "triton", "transposed")


def check_refusals() -> None:
    for tokens, head_dim, dtype, error, words in REFUSED:
        try:
            attention(torch.zeros(1, tokens, 3 * head_dim, dtype=dtype), num_heads=1, impl="triton")
        except error as found:
            assert words in str(found), found
        else:
            raise AssertionError(f"took {tokens} tokens of {head_dim} in {dtype}")


def check_operators() -> None:
    ops, qkv, cu = torch.ops.misplace, normal(2, 5, 3 * 2 * 16, seed=1), mixed.bounds((4, 0, 6))
    for tensor, bounds in ((qkv, None), (qkv.flatten(0, 1), cu)):
        q, k, v = tensor.unflatten(-1, (3, 2, 16)).unbind(-3)
        opcheck(ops.attention_triton_packed.default, (tensor.clone().requires_grad_(), 2, 0.3, True, 6, bounds))
        separate = [t.clone().requires_grad_() for t in (q, k, v)]
        opcheck(ops.attention_triton.default, (*separate, 0.3, True, 6, bounds))
        _, kept = ops.attention_triton_packed(tensor, 2, 0.3, True, 6, bounds)
        dout = torch.ones_like(q).flatten(-2)
        opcheck(ops.attention_triton_packed_backward.default, (dout, tensor, kept, 2, 0.3, 6, bounds))
        opcheck(ops.attention_triton_backward.default, (torch.ones_like(q), q, k, v, kept, 0.3, 6, bounds))
    assert ops.attention_triton_packed(qkv, 2, 0.3, False, 5)[1].numel() == 0
    print("opcheck passed")


def main() -> None:
    torch.set_num_threads(1)
    check_dense()
    check_separate()
    check_mixed()
    check_refusals()
    shared.test_one_key_gives_its_value("cpu", "triton", FP32)
    op, tensors = functools.partial(attention, num_heads=2, impl="triton"), shared.packed(2, 17, 2, 32, dtype=BF16)
    require_same_bits(op, tensors, ["qkv"])
    require_one_graph(op, tensors, ["qkv"])
    assert attention(torch.zeros(0, 5, 96), num_heads=1, impl="triton").shape == (0, 5, 32)
    check_operators()


if __name__ == "__main__":
    main()
