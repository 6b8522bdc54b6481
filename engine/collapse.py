"""Collapse, said in words: a loss at the value it has when the encoder tells no two images apart."""

import math
from collections import deque
from statistics import median


def chance_bce(wrong_rate: float) -> float:
    """The BCE of a head that only knows how often a token is wrong: that entropy, in nats. 0.5004 at 0.2. [S]

    0 at rates 0 and 1, where there is nothing to tell apart.
    """
    if not 0.0 < wrong_rate < 1.0:
        return 0.0
    right = 1.0 - wrong_rate
    return -(wrong_rate * math.log(wrong_rate) + right * math.log(right))


_LEAVING = 3  # bands from the level before a stay is over, so that a wobble at its border is not told again [O]


class _Watch:
    """The last values of a loss term; each stay at the value of having learned nothing is told of once."""

    def __init__(self, *, window: int = 50, band: float = 0.005, grace: int = 500) -> None:
        """window: values in the median. band: relative width around the level. grace: steps at the start in
        which nothing is said, since a fresh model does sit there. [O]
        """
        self.window, self.band, self.grace = window, band, grace
        self._values: deque[float] = deque(maxlen=window)
        self._told = False

    def update(self, step: int, value: float) -> str | None:
        """One sentence when the values have settled at the level, None otherwise and once it was told."""
        self._values.append(value)
        if len(self._values) < self.window or step < self.grace:
            return None
        middle = median(self._values)
        told, band = self._told, self.band * (_LEAVING if self._told else 1)
        self._told = self._stuck(middle, band)
        return self._sentence(middle) if self._told and not told else None


class CollapseDetector(_Watch):
    """Watches a framework's loss.

    signature: what that loss is, in nats, when every image gets the same embedding: MoCo v3 4*tau*ln(N),
    SimCLR ln(2N - 1), DINO ln(classes). [S]
    """

    def __init__(self, term: str, signature: float, **watch: float) -> None:
        super().__init__(**watch)
        self.term, self.signature = term, signature

    def _stuck(self, middle: float, band: float) -> bool:
        return abs(middle - self.signature) <= band * self.signature

    def _sentence(self, middle: float) -> str:
        return (
            f"collapse: the median of the last {self.window} values of {self.term} is {middle:.4f}, it is "
            f"{self.signature:.4f} when all images get one embedding; try a lower base lr, a longer warm-up "
            "or a larger batch"
        )


class ChanceDetector(_Watch):
    """Watches the BCE of DILEMMA's head. At a wrong rate of 0 there is no chance level: nothing is told."""

    def __init__(self, wrong_rate: float, **watch: float) -> None:
        super().__init__(**watch)
        self.wrong_rate, self.chance = wrong_rate, chance_bce(wrong_rate)

    def _stuck(self, middle: float, band: float) -> bool:
        return 0 < (1 - band) * self.chance <= middle

    def _sentence(self, middle: float) -> str:
        return (
            f"the median of the last {self.window} values of bce is {middle:.4f}, and {self.chance:.4f} is "
            f"chance at wrong rate {self.wrong_rate:g}: the head cannot tell which tokens are misplaced; "
            "try a longer run, a lower drop rate or a higher base lr"
        )
