"""Pictures of `poses` with the texture of one and the shape of another, drawn by the renderer itself."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from misplace.engine.data.poses import Difficulty, Drawn, PosesSource, render_mixed
from misplace.engine.data.poses.annotation import read_manifest
from misplace.engine.data.poses.dataset import encode

from .variants import Variant


def mixed(
    source: PosesSource, donors: PosesSource, donor_of: Callable[[int], int], *, clothes: bool, background: bool
) -> Variant:
    """[O] Each picture's pose with the clothes, the background and light, or both of a picture of `donors`.

    As stored: the same size, seed, difficulty and JPEG quality, so that with itself as donor a picture is what it was.
    """
    manifest = read_manifest(source.root)
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in manifest["difficulty"].items()}
    settings = {"seed": manifest["seed"], "size": manifest["size"], "difficulty": Difficulty(**fields)}

    def change(index: int, image: Image.Image) -> np.ndarray:
        own, donor = Drawn(source.split, index), Drawn(donors.split, donor_of(index))
        rendered = render_mixed(own, donor if clothes else own, donor if background else own, **settings)
        return np.asarray(Image.open(io.BytesIO(encode(rendered.image, "jpeg"))))

    taken = " and ".join(["texture"] * clothes + ["background"] * background)
    return Variant(source, f"{taken} swapped", change)
