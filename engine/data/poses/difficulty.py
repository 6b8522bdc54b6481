"""How hard `poses` is: every knob of the renderer in one place.

Raw pixels must say next to nothing about the class, the arrangement of the parts all of it. Everything has hues of its
own; only its luma sets the figure apart. Larger, darker and stouter figures and paler hues make the pose easier to see.
"""

from dataclasses import dataclass

MAX_CLUTTER = 11


@dataclass(frozen=True)
class Difficulty:
    """Ranges are (low, high), drawn uniformly and independently of the class. Lengths are shares of the image
    side, angles degrees, luma in [0, 1]. All values [O]."""

    joint_noise: float = 8.0  # each limb's direction, plus or minus
    tilt: float = 5.0  # in-plane rotation of the whole figure, plus or minus
    torso: tuple[float, float] = (0.13, 0.18)  # length; a figure too large for the frame shrinks to fit
    length_noise: float = 0.12  # limb lengths, plus or minus, relative
    girth: tuple[float, float] = (0.9, 1.2)  # limb thickness, relative
    margin: float = 0.0625  # the middle 7/8, where an evaluation looks, shows the whole figure

    background_luma: tuple[float, float] = (0.6, 0.6)  # of clutter too
    background_chroma: tuple[float, float] = (0.8, 1.0)  # of what the luma leaves room for; of clutter too
    figure_luma: tuple[float, float] = (0.2, 0.3)  # of each part
    figure_chroma: tuple[float, float] = (0.0, 1.0)
    texture_period: tuple[float, float] = (0.04, 0.12)

    clutter_count: tuple[int, int] = (8, 11)
    clutter_size: tuple[float, float] = (0.15, 0.4)  # half extent of a shape
    shading: tuple[float, float] = (0.1, 0.4)  # how much darker a part is at its rim than at its axis
    # Gradient over the image, plus or minus, relative. Every view shows it: at 0.1 an encoder follows it, not the pose.
    lighting: tuple[float, float] = (0.0, 0.02)

    def __post_init__(self) -> None:
        """Raises ValueError for more clutter than a picture has random numbers for."""
        if not 0 <= self.clutter_count[0] <= self.clutter_count[1] <= MAX_CLUTTER:
            raise ValueError(f"clutter_count {self.clutter_count} is not a range inside 0 to {MAX_CLUTTER}")


DEFAULT = Difficulty()
