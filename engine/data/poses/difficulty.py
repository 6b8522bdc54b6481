"""How hard `poses` is: every knob of the renderer in one place.

Raw pixels must say next to nothing about the class, the arrangement of the parts all of it. More
separation, agreement and size make the pose easier to learn; more clutter and texture make it harder.
"""

from dataclasses import dataclass

MAX_CLUTTER = 11


@dataclass(frozen=True)
class Difficulty:
    """Ranges are (low, high), drawn uniformly and independently of the class. Lengths are shares of the image
    side, angles degrees, lightness and colour in [0, 1]. All values [O]."""

    joint_noise: float = 8.0  # each limb's direction, plus or minus
    tilt: float = 5.0  # in-plane rotation of the whole figure, plus or minus
    torso: tuple[float, float] = (0.18, 0.24)  # length; a figure too large for the frame shrinks to fit
    length_noise: float = 0.12  # limb lengths, plus or minus, relative
    girth: tuple[float, float] = (0.9, 1.25)  # limb thickness, relative
    margin: float = 0.0625  # the middle 7/8, where an evaluation looks, shows the whole figure

    background_lightness: tuple[float, float] = (0.3, 0.7)
    background_fade: float = 0.25  # spread of the background's two colours, plus or minus
    separation: tuple[float, float] = (0.25, 0.4)  # in lightness, of parts and clutter from the background
    agreement: float = 0.75  # share of a figure's parts on the same side of the background's lightness
    saturation: tuple[float, float] = (0.0, 0.7)
    texture_contrast: tuple[float, float] = (0.0, 0.12)  # lightness of a texture's two colours, plus or minus
    texture_period: tuple[float, float] = (0.04, 0.12)

    clutter_count: tuple[int, int] = (1, 4)
    clutter_size: tuple[float, float] = (0.06, 0.2)  # half extent of a shape
    shading: tuple[float, float] = (0.1, 0.4)  # how much darker a part is at its rim than at its axis
    lighting: tuple[float, float] = (0.1, 0.4)  # gradient over the image, plus or minus, relative

    def __post_init__(self) -> None:
        """Raises ValueError for more clutter than a picture has random numbers for."""
        if not 0 <= self.clutter_count[0] <= self.clutter_count[1] <= MAX_CLUTTER:
            raise ValueError(f"clutter_count {self.clutter_count} is not a range inside 0 to {MAX_CLUTTER}")


DEFAULT = Difficulty()
