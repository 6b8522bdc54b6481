"""A method: encoder x framework x pretext, as one module whose state is the whole training state but the moments."""

from collections.abc import Mapping

import torch
from torch import nn

from misplace.kernels import Impl

from .config import Config
from .data import Source
from .frameworks import FRAMEWORKS
from .implementations import use_implementations
from .models import MODEL_SIZES, VisionTransformer, copied_parameters, use_low_precision
from .optim import AdamWEMA
from .pretexts import PRETEXTS

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Method(nn.Module):
    """encoder, framework (with its teacher) and pretext."""

    def __init__(self, config: Config, encoder: VisionTransformer):
        super().__init__()
        self.encoder = encoder
        self.framework = FRAMEWORKS[type(config.framework)](config.framework, encoder)
        self.pretext = PRETEXTS[type(config.pretext)](config.pretext, encoder)


def encoder_arguments(config: Config, source: Source) -> dict:
    """The arguments of VisionTransformer as plain values: what a checkpoint says of its encoder."""
    size = MODEL_SIZES[config.model.name]
    return {
        "image_size": config.model.image_size,
        "patch_size": config.model.patch_size,
        "channels": source.channels,
        "width": size.width,
        "depth": size.depth,
        "num_heads": config.model.num_heads or size.num_heads,
        "mean": list(source.mean),
        "std": list(source.std),
        "init": config.model.init,
    }


def build_method(config: Config, source: Source, impls: Mapping[str, Impl]) -> Method:
    """The method at its initial weights, a pure function of config.run.seed, on config.run.device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        method = Method(config, VisionTransformer(**encoder_arguments(config, source)))
    method.to(config.run.device)
    use_implementations(method, impls)
    dtype = DTYPES[config.run.precision]
    use_low_precision(method.encoder, dtype)
    use_low_precision(method.framework, dtype)
    for module in method.modules():
        if isinstance(module, VisionTransformer):
            module.compute_dtype = dtype
    return method


def build_optimizer(method: Method, config: Config, impls: Mapping[str, Impl]) -> AdamWEMA:
    """AdamW + EMA over the method's trained parameters."""
    return AdamWEMA(
        method.named_parameters(),
        config.optim,
        dict(method.framework.teacher_pairs(method.encoder)),
        dict(copied_parameters(method)),
        impl=impls["adamw_ema"],
    )
