"""The poses: what a class is. Parts, their lengths, the direction of each in each pose, the hierarchy."""

from typing import NamedTuple


class PartShape(NamedTuple):
    """In torso lengths, before noise: a capsule whose radius runs from `near` (its parent's end) to `far`."""

    length: float
    near: float
    far: float


# Mask value = position here + 1. Left and right are the figure's own; as half of the figures are mirrored, no
# picture tells them apart: PART_KINDS is what a picture can show.
PART_NAMES = (
    "head",
    "torso",
    "left-upper-arm",
    "left-lower-arm",
    "right-upper-arm",
    "right-lower-arm",
    "left-upper-leg",
    "left-lower-leg",
    "right-upper-leg",
    "right-lower-leg",
)
PART_KINDS = tuple(name.removeprefix("left-").removeprefix("right-") for name in PART_NAMES)

SHAPES = {
    "head": PartShape(0.14, 0.22, 0.23),
    "torso": PartShape(1.0, 0.2, 0.25),
    "upper-arm": PartShape(0.58, 0.14, 0.12),
    "lower-arm": PartShape(0.55, 0.12, 0.1),
    "upper-leg": PartShape(0.78, 0.18, 0.15),
    "lower-leg": PartShape(0.76, 0.15, 0.11),
}
NECK = 0.3  # gap between the shoulders and the centre of the head's near circle

# Half widths of the (shoulders, hips), in torso lengths, as the viewer sees them.
FRONT = (0.24, 0.15)
SIDE = (0.12, 0.08)

# From the farthest to the nearest part.
PAINT_ORDER = (
    "left-upper-arm",
    "left-lower-arm",
    "left-lower-leg",
    "left-upper-leg",
    "head",
    "torso",
    "right-lower-leg",
    "right-upper-leg",
    "right-lower-arm",
    "right-upper-arm",
)


class Pose(NamedTuple):
    """Directions in degrees, as seen: 0 up, 90 right, 180 down, 270 left. Limbs: (upper, lower)."""

    name: str
    family: str
    group: str
    widths: tuple[float, float]
    head: float
    torso: float  # from the hips to the shoulders
    left_arm: tuple[float, float]
    right_arm: tuple[float, float]
    left_leg: tuple[float, float]
    right_leg: tuple[float, float]

    def directions(self) -> tuple[float, ...]:
        """One direction per part, in the order of PART_NAMES."""
        limbs = (self.left_arm, self.right_arm, self.left_leg, self.right_leg)
        return (self.head, self.torso, *(angle for limb in limbs for angle in limb))


POSES = (
    Pose("arms-up", "straight", "upright", FRONT, 0, 0, (345, 352), (15, 8), (184, 182), (176, 178)),
    Pose("t-shape", "straight", "upright", FRONT, 0, 0, (270, 270), (90, 90), (184, 182), (176, 178)),
    Pose("star", "wide", "upright", FRONT, 0, 0, (310, 310), (50, 50), (214, 212), (146, 148)),
    Pose("lunge", "wide", "upright", SIDE, 25, 25, (32, 36), (40, 44), (238, 238), (105, 185)),
    Pose("warrior", "leaning", "bent", SIDE, 80, 82, (85, 82), (92, 88), (275, 275), (182, 180)),
    Pose("side-bend", "leaning", "bent", FRONT, 65, 60, (62, 66), (180, 180), (212, 210), (148, 150)),
    Pose("squat", "low", "bent", SIDE, 15, 25, (84, 80), (92, 95), (82, 205), (74, 198)),
    Pose("seated", "low", "bent", SIDE, 345, 340, (205, 195), (212, 200), (86, 90), (94, 92)),
    Pose("plank", "level", "on-hands", SIDE, 80, 76, (184, 180), (176, 180), (253, 253), (259, 257)),
    Pose("bridge", "level", "on-hands", SIDE, 205, 120, (168, 176), (160, 170), (246, 184), (238, 178)),
    Pose("headstand", "inverted", "on-hands", FRONT, 180, 180, (238, 176), (122, 184), (356, 358), (4, 2)),
    Pose("split", "inverted", "on-hands", FRONT, 180, 180, (187, 183), (173, 177), (302, 302), (58, 58)),
)
CLASS_NAMES = tuple(pose.name for pose in POSES)


class Level(NamedTuple):
    """One level of the pose hierarchy: its class names, and for each leaf pose the class it belongs to."""

    name: str
    class_names: tuple[str, ...]
    of_pose: tuple[int, ...]


def _level(name: str, attribute: str) -> Level:
    values = [getattr(pose, attribute) for pose in POSES]
    names = tuple(dict.fromkeys(values))
    return Level(name, names, tuple(names.index(value) for value in values))


# Coarse to fine, as the 6/20/82 levels of YOGA-82 (arXiv 2004.10362).
HIERARCHY = (_level("group", "group"), _level("family", "family"), _level("pose", "name"))
