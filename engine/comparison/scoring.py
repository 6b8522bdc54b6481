"""The accuracies of one encoder: k-NN and a linear probe on the same images for all."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..evaluation import Study, Subject, bootstrap_means, interval, knn_predictions
from ..evaluation.linear_probe import linear_predictions
from ..evaluation.task import K

MEASURES = ("knn", "linear")


@dataclass(frozen=True)
class Right:
    """Per test image, whether an encoder was right: bool [n], by measure."""

    of: dict[str, Tensor]

    def to_plain(self) -> dict[str, str]:
        """Bits as hexadecimal digits, eight images a byte."""
        return {name: np.packbits(right.numpy()).tobytes().hex() for name, right in self.of.items()}

    @classmethod
    def from_plain(cls, plain: dict[str, str], count: int) -> "Right":
        def bits(digits: str) -> Tensor:
            return torch.from_numpy(np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=count)).bool()

        return cls({name: bits(digits) for name, digits in plain.items()})

    def accuracies(self) -> dict:
        """Each measure, and its 95 % interval over test images under NAME_interval."""
        found = {}
        for name, right in self.of.items():
            found[name] = right.double().mean().item()
            found[f"{name}_interval"] = list(interval(bootstrap_means(right)))
        return found


def measure(study: Study, subject: Subject) -> Right:
    """k-NN at k = 20 and linear, on the mean of the patch tokens."""
    train, test = (study.features(subject, split) for split in (study.train, study.test))
    k = min(K, len(train.labels))
    features = train.features, train.labels, test.features
    by_neighbours = knn_predictions(*features, test.labels, ks=(k,))[k]
    by_line = linear_predictions(*features, seed=study.seed)
    return Right({"knn": (by_neighbours == test.labels).cpu(), "linear": (by_line == test.labels).cpu()})
