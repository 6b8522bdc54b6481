"""misplace evaluate RUN --protocol knn [--data SOURCE]"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from ..encoder_file import read_encoder
from ..evaluation import KS, NUM_TEST, NUM_TRAIN, KnnTask, patch_mean
from ..resolve import choose_device
from .parsing import parse


@dataclass(frozen=True)
class Evaluate:
    """Measure the frozen encoder of a run. The last line of the output is JSON."""

    run: Positional[Path]
    """A run folder."""
    protocol: Literal["knn"] = "knn"
    """knn: weighted k nearest neighbours on the mean of the patch tokens."""
    data: str | None = None
    """Labelled images; none: those that the run was trained on."""
    num_train: int = NUM_TRAIN
    """Labelled images that vote."""
    num_test: int = NUM_TEST
    """Images that are classified."""
    device: str | None = None
    """cpu or cuda; none: cuda where there is one."""


def main(argv: list[str]) -> int:
    """Evaluate; prints a line per k and a last line of JSON."""
    options = parse(Evaluate, argv, prog="misplace evaluate")
    saved = read_encoder(options.run)
    source = options.data or saved.config["data"]["source"]
    task = KnnTask(source, saved.model["image_size"], options.num_train, options.num_test)
    accuracy = task.accuracy(patch_mean(saved.build(choose_device(options.device))), KS)
    for k, top1 in accuracy.items():
        print(f"k-NN k = {k:3d}: top-1 {top1:.2%}")
    result = {
        "protocol": "knn",
        "k": list(accuracy),
        "top1": list(accuracy.values()),
        "data": source,
        "num_train": len(task.indices[0]),
        "num_test": len(task.indices[1]),
        "step": saved.step,
    }
    print(json.dumps(result))
    return 0
