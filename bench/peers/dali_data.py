"""DALI as its tutorials use it: its own reader and random numbers, a decode for every random crop of the two views.

Its batches are counted where DALI holds them: a copy to tensors of another library is not charged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from misplace.engine.data.augmentation import ViewKind
from misplace.engine.data.dali import why_unavailable
from misplace.engine.errors import UserError

from ..data.forms import kinds
from ..data.images import files_of

PER_VIEW = 2  # views of a picture that are decoded one by one; of more, one decode is the faster


def check() -> None:
    """UserError where DALI is missing."""
    if missing := why_unavailable():
        raise UserError(f"bench: the peer dali-plain: {missing}")


@contextmanager
def loader(folder: Path, form: str, batch_size: int, workers: int, *, cubic: bool = True) -> Iterator[Iterator[int]]:
    """Yields how many images each batch has. cubic: the resize, as ours; else linear, DALI's own choice."""
    check()
    from nvidia.dali import pipeline_def

    options = {"num_threads": workers, "device_id": None, "prefetch_queue_depth": 2, "enable_conditionals": True}
    batches = _run(pipeline_def(_views, batch_size=batch_size, **options)(files_of(folder), kinds(form), cubic))
    try:
        yield batches
    finally:
        batches.close()  # the pipeline goes with it, and its threads with the pipeline


def _run(pipeline) -> Iterator[int]:
    pipeline.build()
    while True:
        yield len(pipeline.run()[0])


def _views(files: list[str], kinds: tuple[ViewKind, ...], cubic: bool):
    """The graph. Where the decoder crops, it decodes no further down than the crop."""
    from nvidia.dali import fn, types

    file, _ = fn.readers.file(files=files, random_shuffle=True)
    filter_ = {"interp_type": types.INTERP_CUBIC if cubic else types.INTERP_LINEAR}
    if len(kinds) > PER_VIEW:
        image = fn.decoders.image(file)
    views = []
    for kind in kinds:
        size, area = (kind.size, kind.size), list(kind.crop_scale)
        if len(kinds) > PER_VIEW:
            view = fn.random_resized_crop(image, size=size, random_area=area, **filter_)
        else:
            crop = fn.decoders.image_random_crop(file, random_area=area, random_aspect_ratio=[3 / 4, 4 / 3])
            view = fn.resize(crop, size=size, **filter_)
        views.append(_augment(view, kind.blur_p, kind.solarize_p))
    return tuple(views)


def _augment(view, blur_p: float, solarize_p: float):
    """Jitter, grayscale, blur, solarisation, flip and normalisation by DALI's own operators."""
    from nvidia.dali import fn, types

    def within(share):
        return fn.random.uniform(range=[1 - share, 1 + share])

    if fn.random.coin_flip(probability=0.8, dtype=types.BOOL):
        hue = fn.random.uniform(range=[-36.0, 36.0])
        view = fn.color_twist(view, brightness=within(0.4), contrast=within(0.4), saturation=within(0.2), hue=hue)
    if fn.random.coin_flip(probability=0.2, dtype=types.BOOL):
        view = fn.hsv(view, saturation=0.0)
    if fn.random.coin_flip(probability=blur_p, dtype=types.BOOL):
        view = fn.gaussian_blur(view, sigma=fn.random.uniform(range=[0.1, 2.0]))
    if solarize_p > 0 and fn.random.coin_flip(probability=solarize_p, dtype=types.BOOL):
        view = view ^ (fn.cast(view >= 128, dtype=types.UINT8) * types.Constant(255, dtype=types.UINT8))
    mirror = fn.random.coin_flip(probability=0.5)
    mean, std = [x * 255 for x in (0.485, 0.456, 0.406)], [x * 255 for x in (0.229, 0.224, 0.225)]
    return fn.crop_mirror_normalize(view, mirror=mirror, mean=mean, std=std, dtype=types.FLOAT)
