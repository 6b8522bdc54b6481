"""A method: encoder x framework x pretext, as one module whose state is the whole training state but the moments."""

from collections.abc import Mapping

import torch
from torch import nn

from misplace.kernels import Impl

from .config import Config
from .data import Source
from .frameworks import FRAMEWORKS, Mae
from .implementations import AttentionSize, use_implementations
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
        "freeze_patch_projection": config.model.freeze_patch_projection,
        "learned_position": config.model.learned_position,
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


def attention_sizes(method: Method, config: Config) -> dict[str, AttentionSize]:
    """What attention is asked for in a step, by who asks."""
    encoder, framework, images = method.encoder, method.framework, config.data.batch_size
    heads, whole = encoder.blocks[0].attn.num_heads, 1 + encoder.num_patches
    head_dim = encoder.width // heads
    index = torch.zeros(1, dtype=torch.int64, device=encoder.cls_token.device)
    kept = method.pretext.plan(index, encoder.num_patches, seed=0, epoch=0, view=0).src.shape[1]
    views, local, tokens = framework.num_views * images, config.data.augment.local_views, 1 + kept
    if local:
        tokens = max(tokens, 1 + (config.data.augment.local_size // encoder.patch_size) ** 2)
    sizes = {"student": AttentionSize(tokens, (views + local * images) * heads, head_dim, True, mixed=local > 0)}
    if any(True for _ in framework.teacher_pairs(encoder)):
        sizes["teacher"] = AttentionSize(whole, min(views, encoder.images_at_once) * heads, head_dim, False)
    if isinstance(framework, Mae):
        heads, width = framework.config.decoder_heads, framework.config.decoder_width
        sizes["decoder"] = AttentionSize(whole, views * heads, width // heads, True)
    return sizes


def build_optimizer(method: Method, config: Config, impls: Mapping[str, Impl]) -> AdamWEMA:
    """AdamW + EMA over the method's trained parameters."""
    return AdamWEMA(
        method.named_parameters(),
        config.optim,
        dict(method.framework.teacher_pairs(method.encoder)),
        dict(copied_parameters(method)),
        method.framework.late_parameters(),
        impl=impls["adamw_ema"],
    )
