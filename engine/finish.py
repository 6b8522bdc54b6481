"""What a finished run ends with: k-NN before and after, the summary, the report."""

import json

from .durable import replace_file
from .evaluation import KnnTask, patch_mean, pixels
from .method import build_method
from .pictures import token_pictures, write_pictures
from .report import write_report


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
    task = KnnTask(config.data.source, config.model.image_size)
    initial = build_method(config, trainer.source, trainer.impls).encoder
    encoders = {
        "pixels": pixels,
        "random": patch_mean(initial),
        "trained": patch_mean(trainer.method.encoder),
    }
    accuracy = {name: task.top1(encode) for name, encode in encoders.items()}
    said = ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items())
    chance = 1 / len(trainer.source.class_names)
    print(f"k-NN (k = {task.k}): {said}, chance {chance:.1%}", flush=True)
    return {"knn": accuracy, "knn_k": task.k, "chance": chance}
