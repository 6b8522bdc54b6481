"""Who is evaluated: the trained encoder, the same one at its initial weights, and raw pixels."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.engine.encoder_file import SavedEncoder
from misplace.engine.models import VisionTransformer
from misplace.kernels import dense_plan

from .features import pixels

TRAINED, RANDOM, PIXELS = "trained", "random", "pixels"


class Tokens(NamedTuple):
    """What an encoder makes of whole images, fp32, after its final norm."""

    cls: Tensor  # [B, D]
    patches: Tensor  # [B, L, D], row by row


@dataclass(frozen=True)
class Subject:
    """One frozen encoder. digest: of everything its features depend on but the images; depth: its blocks."""

    name: str
    digest: str
    image_size: int  # pixels
    patch_size: int  # pixels
    depth: int
    tokens: Callable[[Tensor], Tokens]  # images uint8 [B, S, S, C]
    layers: Callable[[Tensor, tuple[int, ...]], list[Tensor]]  # patch tokens [B, L, D] after each of these blocks
    encoder: VisionTransformer | None = None  # None: raw pixels

    @property
    def side(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    def mean(self, images: Tensor) -> Tensor:
        """The mean of the patch tokens, [B, D]; of raw pixels the whole picture, shrunk."""
        return pixels(images) if self.encoder is None else self.tokens(images).patches.mean(1)


def subjects_of(saved: SavedEncoder, device: torch.device) -> tuple[Subject, ...]:
    """The trained encoder first, then the baselines that every table shows."""
    model = saved.model
    return (
        encoder_subject(TRAINED, saved.build(device)),
        encoder_subject(RANDOM, initial_encoder(model, saved.seed).to(device)),
        pixel_subject(model["image_size"], model["patch_size"]),
    )


def initial_encoder(model: dict, seed: int) -> VisionTransformer:
    """The encoder with which a run of this seed begins."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(**model).requires_grad_(False)


def encoder_subject(name: str, encoder: VisionTransformer) -> Subject:
    encoder = encoder.eval()
    device = encoder.cls_token.device

    def tokens(images: Tensor) -> Tokens:
        return Tokens(*encoder.embed(images.to(device)))

    def layers(images: Tensor, which: tuple[int, ...]) -> list[Tensor]:
        return layer_tokens(encoder, images.to(device), which)

    return Subject(
        name=name,
        digest=digest_of(encoder),
        image_size=encoder.side * encoder.patch_size,
        patch_size=encoder.patch_size,
        depth=len(encoder.blocks),
        tokens=tokens,
        layers=layers,
        encoder=encoder,
    )


def pixel_subject(image_size: int, patch_size: int) -> Subject:
    """Raw pixels: a patch token is its patch, the class token the whole picture, each image at mean 0, deviation 1."""

    def tokens(images: Tensor) -> Tokens:
        flat = images.flatten(1).float()
        flat = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-6)
        side = image_size // patch_size
        cut = flat.view(len(images), side, patch_size, side, patch_size, -1).transpose(2, 3)
        return Tokens(pixels(images), cut.flatten(3).flatten(1, 2))

    return Subject(
        name=PIXELS,
        digest=f"pixels-{image_size}-{patch_size}",
        image_size=image_size,
        patch_size=patch_size,
        depth=0,
        tokens=tokens,
        layers=lambda images, which: [tokens(images).patches],
    )


@torch.no_grad()
def layer_tokens(encoder: VisionTransformer, images: Tensor, which: tuple[int, ...]) -> list[Tensor]:
    """Patch tokens fp32 [B, L, D] that leave each block of `which` (from 0), after the encoder's final norm."""
    x = encoder.tokens(images, dense_plan(len(images), encoder.num_patches, images.device))
    left = []
    for number, block in enumerate(encoder.blocks):
        x, _ = block(x, block.norm1(x), None)
        if number in which:
            left.append(encoder.norm(x)[:, 1:].float())
    return left


def digest_of(encoder: VisionTransformer) -> str:
    """SHA-256 over every tensor by name, and what else the features depend on."""
    heads = [block.attn.num_heads for block in encoder.blocks]  # no weight tells them
    built = encoder.patch_size, encoder.side, encoder.mean, encoder.std, heads, encoder.compute_dtype
    sha = hashlib.sha256(repr(built).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
