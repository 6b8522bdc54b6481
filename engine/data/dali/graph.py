"""The operators of DALI, in the order of pillow.render_view. Nothing here draws a random number.

Every sample comes as a file to decode or as pixels, with the arrays of inputs.view_arrays for each view. A flip is
part of the resize: what follows it is the same from left to right and from right to left.
"""

import numpy as np

from ..augmentation import AugmentConfig, ViewKind

QUEUE = 2  # steps in the hands of a graph of views at once


def build_views(
    kinds: tuple[ViewKind, ...],
    augment: AugmentConfig,
    *,
    batch_size: int,
    threads: int,
    device_id: int | None,
    hardware: bool = True,
):
    """A built nvidia.dali Pipeline with one output uint8 [S, S, C] per view, and the names of its inputs.

    device_id: of the GPU to decode and augment on; None: on the CPU. hardware: the GPU's own JPEG engine takes part.
    """
    from nvidia.dali import pipeline_def

    graph = pipeline_def(
        _views,
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=QUEUE,
        exec_dynamic=True,
        enable_conditionals=True,
        seed=0,
    )
    inputs: list[str] = []
    pipeline = graph(kinds, augment, device_id is not None, hardware, inputs)
    pipeline.build()
    return pipeline, inputs


def build_decoder(channels: int, *, batch_size: int, threads: int):
    """A built nvidia.dali Pipeline on the CPU from up to batch_size "file"s to pictures, uint8 [H, W, C] each."""
    from nvidia.dali import fn, pipeline_def, types

    def decode():
        file = fn.external_source(name="file", dtype=types.UINT8, ndim=1)
        kind = types.RGB if channels == 3 else types.GRAY
        return fn.decoders.image(file, device="cpu", output_type=kind, adjust_orientation=False)

    options = {"prefetch_queue_depth": 1, "exec_dynamic": True, "seed": 0}
    pipeline = pipeline_def(decode, batch_size=batch_size, num_threads=threads, device_id=None, **options)()
    pipeline.build()
    return pipeline


def _views(kinds, augment, on_gpu, hardware, inputs):
    """The graph. DALI reads the `if`s below as choices that each sample makes for itself."""
    from nvidia.dali import fn, types

    def given(name, dtype, ndim, **layout):
        inputs.append(name)
        return fn.external_source(name=name, dtype=dtype, ndim=ndim, **layout)

    is_file = given("is_file", types.BOOL, 0)
    file = given("file", types.UINT8, 1)
    picture = given("picture", types.UINT8, 3, layout="HWC")
    if on_gpu:
        picture = picture.gpu()
    if is_file:
        engine = {} if hardware or not on_gpu else {"hw_decoder_load": 0.0}
        image = fn.decoders.image(file, device="mixed" if on_gpu else "cpu", adjust_orientation=False, **engine)
    else:
        image = picture
    views = []
    for number, kind in enumerate(kinds):
        of_view = lambda name, dtype, ndim, number=number: given(f"{name}_{number}", dtype, ndim)
        view = _crop_resize(image, kind.size, of_view)
        if augment.jitter_p > 0 or augment.grayscale_p > 0:
            view = _recolour(view, on_gpu, of_view)
        if kind.blur_p > 0:
            view = _blur(view, of_view)
        if kind.solarize_p > 0:
            view = _solarize(view, of_view)
        views.append(view)
    return tuple(views)


def _crop_resize(image, size, given):
    from nvidia.dali import fn, types

    return fn.resize(
        image,
        size=(size, size),
        roi_start=given("start", types.FLOAT, 1),
        roi_end=given("end", types.FLOAT, 1),
        interp_type=types.INTERP_CUBIC,
        antialias=True,
    )


def _recolour(view, on_gpu, given):
    from nvidia.dali import fn, types

    if given("recolour", types.BOOL, 0):
        mean = fn.reductions.mean(view, axis_names="HW", keep_dims=True)
        offset = fn.coord_transform(mean, M=given("shade", types.FLOAT, 2))
        matrix = given("matrix", types.FLOAT, 2)
        if on_gpu:  # where T would have to come from the host
            view = fn.cast(fn.coord_transform(view, M=matrix) + offset, dtype=types.UINT8)
        else:
            view = fn.coord_transform(view, M=matrix, T=fn.reshape(offset, shape=[-1]), dtype=types.UINT8)
    return view


def _blur(view, given):
    from nvidia.dali import fn, types

    if given("blur", types.BOOL, 0):
        view = fn.gaussian_blur(view, sigma=given("sigma", types.FLOAT, 0))
    return view


def _solarize(view, given):
    from nvidia.dali import fn, types

    if given("solarize", types.BOOL, 0):
        inverted = fn.cast(view >= given("threshold", types.INT32, 0), dtype=types.UINT8)
        view = view ^ (inverted * types.Constant(np.uint8(255)))
    return view
