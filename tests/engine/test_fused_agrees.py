"""Over 64 steps the engine on fused kernels stays as near the exact losses as eager PyTorch does.

Training is chaotic: one rounding grows until two runs differ as much as any two. So the band is what rounding
alone has done by then to two eager runs, the reference's and PyTorch's own operators': in every eight steps the
root mean square of the losses' errors is at most GRADIENT_FACTOR times the larger of theirs so far, and one
rounding of the loss. A wrong kernel leaves it in the first eight, where they have 1e-6 (fp32) to lose.
"""

import pytest
import torch

from misplace.engine.data import make_loader, open_source
from misplace.engine.implementations import resolve_implementations
from misplace.engine.method import build_method, build_optimizer
from misplace.engine.models import VisionTransformer
from misplace.engine.step import training_step
from misplace.kernels import OPS
from misplace.kernels.testing.tolerance import GRADIENT_FACTOR

CPU = torch.device("cpu")
STEPS, BLOCK = 64, 8
PLAIN = ",".join(f"{op}=torch" for op in OPS if op not in ("token_plan", "info_nce"))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def train(config, impl, *, double=False):
    """The loss of each step, fp64 [STEPS]."""
    source = open_source(config.data.source)
    impls = resolve_implementations(CPU, impl)
    method = build_method(config, source, impls)
    if double:
        method.double()
        for module in method.modules():
            if isinstance(module, VisionTransformer):
                module.compute_dtype = torch.float64
    optimizer = build_optimizer(method, config, impls)
    data = config.data
    loader = make_loader(
        source,
        batch_size=data.batch_size,
        num_views=2,
        image_size=config.model.image_size,
        augment=data.augment,
        seed=0,
    )
    losses = [
        training_step(
            method, optimizer, batch, config, progress=step / STEPS, next_progress=lambda step=step: (step + 1) / STEPS
        ).loss
        for step, batch in zip(range(STEPS), loader)
    ]
    return torch.tensor(losses, dtype=torch.float64)


def exact(config):
    """The reference in fp64 throughout: what casts to fp32 casts to fp64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        return train(config, "reference", double=True)


def by_block(errors):
    """Root mean square of every BLOCK steps."""
    return errors.view(-1, BLOCK).square().mean(1).sqrt()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_of_64_steps(runs, images, tmp_path, precision):
    config = runs.tiny_config("moco_v3_dilemma", images, tmp_path, precision=precision)
    fp32 = runs.tiny_config("moco_v3_dilemma", images, tmp_path)
    oracle = exact(config) if precision == "fp32" else train(fp32, "reference")
    eager = [by_block(train(config, impl) - oracle) for impl in ("reference", PLAIN)]
    fused = by_block(train(config, "") - oracle)
    band = torch.stack(eager).amax(0).cummax(0).values
    allowed = GRADIENT_FACTOR * band + torch.finfo(DTYPES[precision]).eps / 2 * by_block(oracle)
    assert (fused <= allowed).all(), f"{fused.tolist()} against {allowed.tolist()}"
    assert (fused > 0).any(), "the same losses to the bit: nothing fused was run"
