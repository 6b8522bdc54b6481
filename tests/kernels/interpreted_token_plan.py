"""Run by test_token_plan_triton.py in its own process with TRITON_INTERPRET=1; prints a line per case."""

import sys

import torch

from misplace.kernels.testing.plans import DROP_RATES, plan_by_hand, require_rules
from misplace.kernels.token_plan import num_kept, token_plan

CASES = [(36, drop_rate, wrong_rate) for drop_rate in DROP_RATES for wrong_rate in (0.2, 1.0)] + [
    (1, 0.0, 1.0),
    (2, 0.0, 1.0),
    (36, 0.0, 0.0),
    (49, 0.1, 1.0),
    (64, 0.0, 1.0),
    (196, 0.75, 0.2),
    (197, 0.25, 1.0),
    (256, 0.0, 1.0),
]
NAMES = [
    (5, dict(seed=3, epoch=1, view=0)),
    (2**40 + 2**31, dict(seed=2**64 - 3, epoch=2**32 - 1, view=255)),
]


def main() -> None:
    torch.set_num_threads(1)
    for number, (num_patches, drop_rate, wrong_rate) in enumerate(CASES):
        index, name = NAMES[number % len(NAMES)]
        sizes = dict(num_patches=num_patches, drop_rate=drop_rate, wrong_rate=wrong_rate)
        plan = token_plan(torch.tensor([index]), **sizes, **name, impl="triton")
        require_rules(plan, num_patches)
        row = list(zip(*(part[0].tolist() for part in plan), strict=True))
        expected = plan_by_hand(index, num_patches, num_kept(num_patches, drop_rate), wrong_rate, **name)
        if row != expected:
            sys.exit(f"differs from the plan by hand: {sizes} {name} index {index}\n{row}\n{expected}")
        print("equal", num_patches, drop_rate, wrong_rate, flush=True)
    token_plan(torch.empty(0, dtype=torch.int64), **sizes, **name, impl="triton")
    torch.library.opcheck(torch.ops.misplace.token_plan_triton.default, (torch.arange(1), 2, 2, -1, 0, 1, 2**32))
    print("opcheck passed")


if __name__ == "__main__":
    main()
