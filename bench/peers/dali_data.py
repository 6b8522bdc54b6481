"""DALI as its tutorials use it: its own reader and random numbers, a decode for every random crop of the two views."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from misplace.engine.data.dali import why_unavailable
from misplace.engine.errors import UserError


@contextmanager
def loader(folder: Path, form: str, batch_size: int, workers: int) -> Iterator[Iterator[int]]:
    """Yields how many images each batch has."""
    if missing := why_unavailable():
        raise UserError(f"bench: the peer dali-plain: {missing}")
    from nvidia.dali import pipeline_def

    graph = pipeline_def(
        _two_views if form == "two-views" else _multi_crop,
        batch_size=batch_size,
        num_threads=workers,
        device_id=None,
        prefetch_queue_depth=2,
        enable_conditionals=True,
    )
    pipeline = graph([str(file) for file in sorted(folder.rglob("*.jpg"))])
    pipeline.build()

    def batches() -> Iterator[int]:
        while True:
            yield len(pipeline.run()[0])

    yield batches()


def _two_views(files):
    """The decoder crops: a picture is decoded once for each view, and only where the crop is."""
    from nvidia.dali import fn, types

    file, _ = fn.readers.file(files=files, random_shuffle=True)
    views = []
    for blur_p, solarize_p in ((1.0, 0.0), (0.1, 0.2)):
        crop = fn.decoders.image_random_crop(file, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
        view = fn.resize(crop, size=(224, 224), interp_type=types.INTERP_CUBIC)
        views.append(_augment(view, blur_p, solarize_p))
    return tuple(views)


def _multi_crop(files):
    """One decode; ten of them would cost more than the pixels they spare."""
    from nvidia.dali import fn, types

    file, _ = fn.readers.file(files=files, random_shuffle=True)
    image = fn.decoders.image(file)
    views = []
    for size, area, blur_p, solarize_p in [
        (224, [0.25, 1.0], 1.0, 0.0), (224, [0.25, 1.0], 0.1, 0.2), *[(96, [0.05, 0.25], 0.5, 0.0)] * 8,
    ]:  # fmt: skip
        view = fn.random_resized_crop(image, size=(size, size), random_area=area, interp_type=types.INTERP_CUBIC)
        views.append(_augment(view, blur_p, solarize_p))
    return tuple(views)


def _augment(view, blur_p, solarize_p):
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
    if fn.random.coin_flip(probability=solarize_p, dtype=types.BOOL):
        view = view ^ (fn.cast(view >= 128, dtype=types.UINT8) * types.Constant(255, dtype=types.UINT8))
    mirror = fn.random.coin_flip(probability=0.5)
    mean, std = [x * 255 for x in (0.485, 0.456, 0.406)], [x * 255 for x in (0.229, 0.224, 0.225)]
    return fn.crop_mirror_normalize(view, mirror=mirror, mean=mean, std=std, dtype=types.FLOAT)
