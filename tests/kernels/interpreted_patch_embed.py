"""Run by test_patch_embed_triton.py in its own process with TRITON_INTERPRET=1; prints a line per case."""

import functools
import importlib.util
from pathlib import Path

import torch

from misplace.kernels import patch_embed
from misplace.kernels.testing.compare import check, require_same_bits

spec = importlib.util.spec_from_file_location("shared", Path(__file__).with_name("test_patch_embed.py"))
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)

# shape (as in test_patch_embed.SHAPES), dtype, layout, pixels
CASES = [
    ((1, 1, 1, 1, 1, 1, 1), torch.bfloat16, "hwc", torch.uint8),
    ((2, 3, 2, 7, 3, 31, 6), torch.float32, "hwc", torch.uint8),
    ((2, 3, 2, 7, 3, 31, 6), torch.float32, "chw", torch.uint8),
    ((2, 3, 3, 8, 3, 129, 5), torch.bfloat16, "chw", torch.uint8),
    ((3, 3, 3, 4, 1, 192, 9), torch.bfloat16, "hwc", torch.uint8),
    ((2, 3, 2, 4, 4, 17, 5), torch.float32, "hwc", torch.float32),
    ((2, 3, 2, 4, 2, 17, 5), torch.float32, "chw", torch.bfloat16),
]


def ops(shape, layout, impl):
    options = shared.options(shape[4], shape[3], layout)
    ours = functools.partial(patch_embed, **options, impl=impl)
    return ours, functools.partial(shared.eager, **options), functools.partial(shared.oracle, **options)


def main() -> None:
    torch.set_num_threads(1)
    for shape, dtype, layout, pixel in CASES:
        tensors = shared.make(*shape, dtype=dtype, layout=layout, pixel=pixel)
        wanted = [*shared.WANTED, *(["images"] if pixel.is_floating_point else [])]
        check(*ops(shape, layout, "triton"), tensors, wanted)
        print("close", shape, dtype, layout, pixel, flush=True)
    ours, eager, oracle = ops((2, 2, 2, 4, 3, 17, 3), "hwc", "triton")
    tensors = shared.make(2, 2, 2, 4, 3, 17, 3, pixel=torch.float32)
    tensors["src"] = torch.tensor([[3, 3, 1], [0, 2, 0]])  # a patch kept twice: its gradients add up
    for wanted in (["images"], ["class_token"], ["bias"], ["no_position", "weight"]):
        check(ours, eager, oracle, tensors, wanted)
        print("close", *wanted, flush=True)
    require_same_bits(ours, tensors, [*shared.WANTED, "images"])
    none = {name: tensor[:0] if name in ("images", "src", "pos") else tensor for name, tensor in tensors.items()}
    assert ours(**none).shape == (0, 4, 17)
    shared.opcheck(torch.ops.misplace.patch_embed_triton, shared.make(1, 1, 1, 2, 3, 3, 1, pixel=torch.float32))
    print("opcheck passed")


if __name__ == "__main__":
    main()
