"""Features of a frozen encoder over a deterministic choice of images, and the raw-pixel baseline."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from misplace.engine.data import SampleOrder, Source, load_eval
from misplace.engine.errors import UserError

NUM_TRAIN = 5000
NUM_TEST = 2000
PIXELS_SIDE = 32

IMAGES_AT_ONCE = 256

Encode = Callable[[Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]


def load_batches(
    source: Source,
    indices: Tensor,  # int64 [n]
    image_size: int,
    batch_size: int = IMAGES_AT_ONCE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images uint8 [b, S, S, C] and their numbers int64 [b], in order, those that cannot be decoded left out.

    Raises UserError at the end where nothing could be decoded.
    """
    nothing = True
    for batch in torch.as_tensor(indices, dtype=torch.int64).split(batch_size):
        images, kept = load_eval(source, batch, image_size)
        if len(images):
            nothing = False
            yield images, kept
    if nothing:
        raise UserError(f"{source.name}: none of the {len(indices)} images chosen for evaluation can be decoded")


@torch.no_grad()
def encode_batches(
    encode: Encode,  # images uint8 [B, S, S, C] -> features [B, D]
    batches: Batches,
) -> tuple[Tensor, Tensor]:
    """Features fp32 [n, D] of all batches, on the encoder's device, and the images' numbers int64 [n]."""
    features, numbers = zip(*((encode(images).float(), kept) for images, kept in batches))
    return torch.cat(features), torch.cat(numbers)


def labels_of(source: Source, indices: Tensor) -> Tensor:
    """int64 [n]. UserError where an image has none."""
    labels = torch.tensor([source.label(int(i)) for i in indices], dtype=torch.int64)
    if bool((labels < 0).any()):
        raise UserError(f"{source.name} has no labels: evaluate on a labelled source (--data)")
    return labels


def extract(
    encode: Encode,  # images uint8 [B, S, S, C] -> features [B, D]
    source: Source,
    indices: Tensor,  # int64 [n]
    image_size: int,
    batch_size: int = IMAGES_AT_ONCE,
) -> tuple[Tensor, Tensor]:
    """Features fp32 [n, D] and labels int64 [n] of the given images, in their order, on the encoder's device.

    Images that cannot be decoded are left out of both. Raises UserError where the source is unlabelled or
    nothing can be decoded.
    """
    labels_of(source, indices[:1])  # told before the work
    features, numbers = encode_batches(encode, load_batches(source, indices, image_size, batch_size))
    return features, labels_of(source, numbers).to(features.device)


def choose_images(
    train: Source,
    test: Source | None = None,
    *,
    num_train: int = NUM_TRAIN,
    num_test: int = NUM_TEST,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Indices of an evaluation's training and test images: int64 [<= num_train], int64 [<= num_test].

    Each is the start of a fixed permutation of its source. With no test source both are cut from one
    permutation of `train`, so they never share an image; a source too small for both is shared in their
    proportion [O].
    """
    if test is not None:
        return _first(train, num_train, seed), _first(test, num_test, seed)
    wanted = num_train + num_test
    both = _first(train, wanted, seed)
    if len(both) < 2:
        raise UserError(f"{train.name} has {len(train)} images: too few for a training and a test part")
    cut = num_train if len(both) == wanted else len(both) * num_train // wanted
    cut = min(max(cut, 1), len(both) - 1)
    return both[:cut], both[cut:]


def _first(source: Source, count: int, seed: int) -> Tensor:
    """The first `count` indices of the source's fixed permutation."""
    count = min(count, len(source))
    return SampleOrder(len(source), seed).index(0, torch.arange(count))


def pixels(images: Tensor) -> Tensor:
    """The encoder that learns nothing: pixels shrunk to at most 32 x 32, each image at mean 0, deviation 1.

    images: uint8 [B, S, S, C]. Returns fp32 [B, side * side * C].
    """
    x = images.float().movedim(-1, 1)
    if max(x.shape[-2:]) > PIXELS_SIDE:
        side = (PIXELS_SIDE, PIXELS_SIDE)
        x = torch.nn.functional.interpolate(x, side, mode="bilinear", antialias=True, align_corners=False)
    flat = x.flatten(1)
    return (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-6)
