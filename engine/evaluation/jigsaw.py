"""Jigsaw puzzles of pictures: tiles in a drawn order, what an encoder says of each, and the picture put together."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .subjects import Subject


def draw_orders(count: int, tiles: int, generator: torch.Generator) -> Tensor:
    """int64 [count, tiles]: the tile shown at each place, every order equally likely, the true one among them."""
    return torch.rand(count, tiles, generator=generator, dtype=torch.float64).argsort(1)


def cut(images: Tensor, grid: int) -> Tensor:
    """[B, S, S, C] -> tiles [B, grid^2, S / grid, S / grid, C], row by row; S a multiple of grid."""
    batch, side, _, channels = images.shape
    rows = images.view(batch, grid, side // grid, grid, side // grid, channels)
    return rows.transpose(2, 3).flatten(1, 2)


def join(tiles: Tensor, grid: int) -> Tensor:
    """The inverse of cut."""
    batch, _, side, _, channels = tiles.shape
    return (
        tiles.view(batch, grid, grid, side, side, channels)
        .transpose(2, 3)
        .reshape(batch, grid * side, grid * side, channels)
    )


def shuffle(images: Tensor, order: Tensor, grid: int) -> Tensor:
    """The puzzle: place q of picture b shows its tile order[b, q]."""
    return join(_pick(cut(images, grid), order), grid)


def reassemble(puzzle: Tensor, predicted: Tensor, grid: int) -> Tensor:
    """The picture with the tile at place q put where predicted[b, q] (a permutation of each row) says."""
    return join(_pick(cut(puzzle, grid), predicted.argsort(1)), grid)


def _pick(tiles: Tensor, order: Tensor) -> Tensor:
    return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], order.to(tiles.device)]


def cut_size(image_size: int, grid: int) -> int:
    """The largest side, at most image_size, that the grid divides."""
    return image_size - image_size % grid


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 [B, S, S, C] at `size` pixels: bilinear, rounded; the same tensor where it has that size."""
    if images.shape[1] == size:
        return images
    x = interpolate(images.movedim(-1, 1).float(), (size, size), mode="bilinear", align_corners=False)
    return x.round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()


def tile_features(subject: Subject, puzzle: Tensor, grid: int) -> Tensor:
    """What is known of each tile of a puzzle: fp32 [B, grid^2, D]. puzzle: uint8 [B, S, S, C] at the subject's size.

    [O] The encoder sees the whole puzzle once; a tile's feature is the mean of its patch tokens, a patch on a tile's
    border counting by its share. Of raw pixels: the tile, shrunk to a patch.
    """
    if subject.encoder is None:
        side = cut_size(subject.image_size, grid)
        tiles = cut(resize(puzzle, side), grid).flatten(0, 1).movedim(-1, 1).float()
        small = (min(subject.patch_size, tiles.shape[-1]),) * 2
        shrunk = interpolate(tiles, small, mode="bilinear", antialias=True, align_corners=False)
        return shrunk.flatten(1).view(len(puzzle), grid * grid, -1) / 255
    return shares(subject.side, grid, puzzle.device) @ subject.tokens(puzzle).patches


def shares(side: int, grid: int, device: torch.device | str = "cpu") -> Tensor:
    """How much each patch of a side x side grid weighs in the mean over each tile, fp32 [grid^2, side^2], rows 1."""
    edges = torch.arange(side + 1, dtype=torch.float64) * grid / side  # in tiles
    tile = torch.arange(grid, dtype=torch.float64)[:, None]
    low, high = torch.maximum(edges[:-1], tile), torch.minimum(edges[1:], tile + 1)
    along = (high - low).clamp_min(0)
    along = along / along.sum(1, keepdim=True)
    return torch.einsum("ai,bj->abij", along, along).reshape(grid * grid, side * side).float().to(device)
