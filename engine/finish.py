"""k-NN on the way, and what a finished run ends with: k-NN before and after, the summary, the report."""

import json
from collections.abc import Callable

from torch import Tensor

from .data import open_evaluation
from .durable import replace_file
from .evaluation import choose_images, extract, knn, pixels, usable_ks
from .method import build_method
from .models import VisionTransformer
from .pictures import token_pictures, write_pictures
from .report import write_report

ONLINE_TRAIN, ONLINE_TEST = 2000, 1000
K = 20


def patch_mean(encoder: VisionTransformer) -> Callable[[Tensor], Tensor]:
    """The feature of an image for k-NN: the mean of its patch tokens, fp32 [B, D]."""
    device = encoder.cls_token.device
    return lambda images: encoder.embed(images.to(device))[1].mean(dim=1)


class KnnTask:
    """Fixed training and test images of a source, on which encoders are compared."""

    def __init__(self, source_spec: str, image_size: int, num_train: int, num_test: int):
        self.train, self.test = open_evaluation(source_spec)
        self.image_size = image_size
        self.indices = choose_images(self.train, self.test, num_train=num_train, num_test=num_test)

    def accuracy(self, encode: Callable[[Tensor], Tensor], ks: tuple[int, ...] = (K,)) -> dict[int, float]:
        """Top-1 for each k that the training part allows."""
        train, train_labels = extract(encode, self.train, self.indices[0], self.image_size)
        test, test_labels = extract(encode, self.test, self.indices[1], self.image_size)
        return knn(train, train_labels, test, test_labels, ks=usable_ks(ks, len(train)))


def online_knn(trainer) -> float:
    """k-NN top-1 of the encoder as it is, on a small fixed part of the data."""
    config = trainer.config
    task = KnnTask(config.data.source, config.model.image_size, ONLINE_TRAIN, ONLINE_TEST)
    return next(iter(task.accuracy(patch_mean(trainer.method.encoder)).values()))


def evaluate_and_report(trainer) -> None:
    """summary.json, pictures.npz and report.html of a finished run."""
    config, folder = trainer.config, trainer.folder
    summary = {
        "recipe": config.recipe,
        "steps": trainer.step,
        "images": trainer.step * config.data.batch_size,
        "seconds": trainer.clock.elapsed,
    }
    summary["images_per_s"] = summary["images"] / max(summary["seconds"], 1e-9)
    if config.run.report and trainer.source.class_names:
        summary |= _before_and_after(trainer)
    replace_file(folder.summary, (json.dumps(summary, indent=2) + "\n").encode())
    if config.run.report:
        write_pictures(folder.pictures, token_pictures(trainer.method, trainer.source, config))
        print(f"report: {write_report(folder.path)}", flush=True)


def _before_and_after(trainer) -> dict:
    """k-NN of raw pixels, of the encoder at its initial weights, and of the trained one."""
    config = trainer.config
    task = KnnTask(config.data.source, config.model.image_size, 5000, 2000)
    initial = build_method(config, trainer.source, trainer.impls).encoder
    encoders = {
        "pixels": pixels,
        "random": patch_mean(initial),
        "trained": patch_mean(trainer.method.encoder),
    }
    accuracy = {name: next(iter(task.accuracy(encode).values())) for name, encode in encoders.items()}
    said = ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items())
    chance = 1 / len(trainer.source.class_names)
    print(f"k-NN (k = {K}): {said}, chance {chance:.1%}", flush=True)
    return {"knn": accuracy, "knn_k": K, "chance": chance}
