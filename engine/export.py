"""Export of an encoder to timm: one safetensors file that says in its metadata how to build the model."""

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from misplace.engine.durable import replace_file
from misplace.engine.errors import UserError

TIMM_CLASS = "timm.models.vision_transformer.VisionTransformer"
TIMM_NAMES = {  # (width, depth, num_heads) of timm's models at 224 / 16
    (192, 12, 3): "vit_tiny_patch16_224",
    (384, 12, 6): "vit_small_patch16_224",
    (768, 12, 12): "vit_base_patch16_224",
    (1024, 24, 16): "vit_large_patch16_224",
}
TIMM_ARGUMENTS = {  # ours: timm's
    "image_size": "img_size",
    "patch_size": "patch_size",
    "channels": "in_chans",
    "width": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
}
NOT_IN_TIMM = {"no_position"}
BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
LOAD = (
    "m = safetensors.safe_open(file, 'pt').metadata(); "
    "model = timm.models.vision_transformer.VisionTransformer(**json.loads(m['timm_kwargs'])); "
    "model.load_state_dict(safetensors.torch.load_file(file)); "
    "input: pixels / 255, then (x - mean) / std per channel"
)


def to_timm(tensors: dict[str, Tensor], model: dict) -> tuple[dict[str, Tensor], dict]:
    """An encoder's tensors as timm's VisionTransformer loads them strictly, and the arguments that build it.

    tensors: the state of `engine.models.VisionTransformer`, without a prefix. model: image_size, patch_size,
    channels, width, depth, num_heads. Returns (fp32 state dict, constructor arguments); `no_position` has no
    counterpart and is left out. Raises UserError where a tensor is missing, unknown or of another shape.
    """
    shapes = state_shapes(model)
    given = {name: tensor for name, tensor in tensors.items() if name not in NOT_IN_TIMM}
    if missing := sorted(shapes.keys() - given.keys()):
        raise UserError(f"export: the encoder has no {missing[0]} ({len(missing)} missing): not a ViT's state")
    if unknown := sorted(given.keys() - shapes.keys()):
        raise UserError(f"export: timm's VisionTransformer has no place for {unknown[0]} ({len(unknown)} such)")
    for name, shape in shapes.items():
        if tuple(given[name].shape) != shape:
            raise UserError(f"export: {name} is {tuple(given[name].shape)}, the config says {shape}")
    state = {name: given[name].detach().to("cpu", torch.float32).contiguous().clone() for name in shapes}
    return state, _timm_kwargs(model)


def write_timm(path: Path | str, tensors: dict[str, Tensor], model: dict, *, overwrite: bool = False) -> Path:
    """Write `to_timm` of the encoder to one safetensors file; it appears whole or not at all.

    model: as in `to_timm`, and mean, std (per channel, for pixels in [0, 1]; None: not normalised). Metadata,
    all strings: timm_class, timm_name (standard models only, else ""), timm_kwargs, mean, std (JSON),
    how_to_load. Raises UserError where the file exists (unless `overwrite`) or cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise UserError(f"export: {path} exists; choose another file or ask to overwrite it")
    state, kwargs = to_timm(tensors, model)
    metadata = _metadata(model, kwargs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, save(state, metadata=metadata))
    except OSError as error:
        raise UserError(f"export: cannot write {path}: {error.strerror or error}") from error
    return path


def timm_name(model: dict) -> str | None:
    """The name under which timm.create_model builds this architecture; None where it has none."""
    if (model["image_size"], model["patch_size"], model["channels"]) != (224, 16, 3):
        return None
    return TIMM_NAMES.get((model["width"], model["depth"], model["num_heads"]))


def _timm_kwargs(model: dict) -> dict:
    return {timms: model[ours] for ours, timms in TIMM_ARGUMENTS.items()} | {
        "num_classes": 0,
        "global_pool": "token",
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "class_token": True,
    }


def state_shapes(model: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of timm's VisionTransformer(num_classes=0) of this architecture."""
    width, patch = model["width"], model["patch_size"]
    num_patches = (model["image_size"] // patch) ** 2
    wide = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + num_patches, width),
        "patch_embed.proj.weight": (width, model["channels"], patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    layers = [(f"blocks.{i}.{part}", wide.get(part, (width,))) for i in range(model["depth"]) for part in BLOCK]
    for layer, shape in [*layers, ("norm", (width,))]:
        shapes[f"{layer}.weight"] = shape
        shapes[f"{layer}.bias"] = shape[:1]
    return shapes


def _metadata(model: dict, kwargs: dict) -> dict[str, str]:
    channels = model["channels"]
    return {
        "format": "pt",
        "timm_class": TIMM_CLASS,
        "timm_name": timm_name(model) or "",
        "timm_kwargs": json.dumps(kwargs),
        "mean": json.dumps(list(model.get("mean") or [0.0] * channels)),
        "std": json.dumps(list(model.get("std") or [1.0] * channels)),
        "how_to_load": LOAD,
    }
