"""Runs a plan: every run a slice at a time, then its accuracies; goes on where a killed one stood."""

import json
from collections.abc import Collection
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch

from ..cpu_training import cpu_training
from ..data import Source
from ..encoder_file import read_encoder
from ..errors import UserError
from ..evaluation import (
    PIXELS,
    RANDOM,
    KnnTask,
    Study,
    encoder_subject,
    initial_encoder,
    open_study_splits,
    pixel_subject,
)
from ..run_folder import RunFolder
from ..signals import StopSignals
from ..trainer import Trainer
from .display import ComparisonDisplay
from .folder import ComparisonFolder
from .page import write_page
from .plan import Plan, Slice, run_config
from .scoring import measure
from .summary import summarise


def compare(plan: Plan, source: Source, out: Path, *, overwrite: bool = False) -> bool:
    """Trains and measures what of the plan is not done yet; whether all of it is now."""
    with ComparisonFolder(out, plan.to_plain(), overwrite=overwrite) as folder:
        config = plan.variants[0].config
        on_cpu = torch.device(config.run.device).type == "cpu"
        workers = max(v.config.data.workers for v in plan.variants)
        with cpu_training(workers) if on_cpu else nullcontext() as cores, StopSignals() as signals:
            comparison = Comparison(plan, source, folder, signals, cores and cores.workers)
            for seed in range(plan.seeds):
                if not comparison.train(seed):
                    print(f"stopped, saved; the same command goes on with {out}", flush=True)
                    return False
        finish(plan, folder)
    return True


def finish(plan: Plan, folder: ComparisonFolder) -> None:
    """comparison.json and the page of all rows so far; replaced as more come."""
    result = {"plan": plan.to_plain(), **summarise(folder.rows.entries, [v.name for v in plan.variants])}
    folder.write(folder.result, (json.dumps(result, indent=1) + "\n").encode())
    write_page(folder, plan, result)


class Comparison:
    """One seed after another, all runs of a seed by turns."""

    def __init__(
        self,
        plan: Plan,
        source: Source,
        folder: ComparisonFolder,
        signals: StopSignals,
        worker_cores: Collection[int] | None,
    ):
        self.plan, self.source, self.folder = plan, source, folder
        self.signals, self.worker_cores = signals, worker_cores
        config = plan.variants[0].config
        self.splits = open_study_splits(config.data.source)
        self.online_task = KnnTask(config.data.source, config.model.image_size, num_train=2000, num_test=1000)
        self.display = ComparisonDisplay(plan)
        self.announced: list[dict[str, str]] = []

    def train(self, seed: int) -> bool:
        """Every run of this seed to its end and measured; False where a signal came first."""
        todo = [turn for turn in self.plan.slices() if not self._is_done(turn, seed)]
        if todo and not self._train_slices(todo, seed):
            return False
        self._measure(seed)
        return True

    def _train_slices(self, todo: list[Slice], seed: int) -> bool:
        with ExitStack() as stack:
            trainers = [self._trainer(number, seed, stack) for number in range(len(self.plan.variants))]
            stack.enter_context(self.display)
            for number, trainer in enumerate(trainers):
                stack.enter_context(trainer.opened(self.display.of(number)))
                trainer.loader.pause()
            return all(self._train_slice(trainers[turn.variant], turn, seed) for turn in todo)

    def _key(self, turn: Slice, seed: int) -> dict:
        return {"seed": seed, "round": turn.round, "recipe": self.plan.variants[turn.variant].name}

    def _is_done(self, turn: Slice, seed: int) -> bool:
        key = self._key(turn, seed)
        return any(entry.items() >= key.items() for entry in self.folder.slices.entries)

    def _trainer(self, number: int, seed: int, stack: ExitStack) -> Trainer:
        variant = self.plan.variants[number]
        config = run_config(self.plan, variant, seed, self.folder.run(variant.folder, seed))
        folder = stack.enter_context(RunFolder.create(config.run.out, resume=config.run.resume))
        trainer = Trainer(config, self.source, folder, worker_cores=self.worker_cores)
        trainer.online_task = self.online_task
        self._announce(trainer, variant.name)
        return trainer

    def _announce(self, trainer: Trainer, name: str) -> None:
        """What it computes with, where that differs from what has been said."""
        if (names := trainer.implementation_names()) not in self.announced:
            self.announced.append(names)
            print(f"{name}:", flush=True)
            trainer.announce()

    def _train_slice(self, trainer: Trainer, turn: Slice, seed: int) -> bool:
        """Trains and saves it; False where a signal came first."""
        self.display.turn(turn, seed)
        trainer.train_until(turn.until, lambda: self.signals.stop_requested)
        self._refuse_one_step(trainer, self.plan.variants[turn.variant].name)
        if turn.until == self.plan.budget and not self.signals.stop_requested:
            trainer.log_knn()
        trainer.save()
        if self.signals.stop_requested:
            return False
        images = trainer.step * trainer.config.data.batch_size
        done = {"step": trainer.step, "images": images, "seconds": trainer.clock.elapsed}
        self.folder.slices.add({**self._key(turn, seed), **done})
        return True

    def _refuse_one_step(self, trainer: Trainer, name: str) -> None:
        if trainer.step == 1 and trainer.clock.elapsed > self.plan.budget:
            raise UserError(
                f"--budget {self.plan.budget:g}: the first step of {name} took {trainer.clock.elapsed:.2g} s; "
                "give it time for many"
            )

    def _measure(self, seed: int) -> None:
        """The rows of this seed that are missing, then the page with all rows so far."""
        done = {row["recipe"] for row in self.folder.rows.entries if row["seed"] == seed}
        for name in [*(variant.name for variant in self.plan.variants), RANDOM, PIXELS]:
            if name not in done:
                print(f"seed {seed}: k-NN and linear of {name}", flush=True)
                self.folder.rows.add({"recipe": name, "seed": seed, **self._row(name, seed)})
        finish(self.plan, self.folder)

    def _row(self, name: str, seed: int) -> dict:
        variant = next((v for v in self.plan.variants if v.name == name), None)
        saved = read_encoder(self.folder.run((variant or self.plan.variants[0]).folder, seed))
        device = torch.device(self.plan.variants[0].config.run.device)
        if name == PIXELS:
            subject = pixel_subject(saved.model["image_size"], saved.model["patch_size"])
        elif name == RANDOM:
            subject = encoder_subject(name, initial_encoder(saved.model, saved.seed).to(device))
        else:
            subject = encoder_subject(name, saved.build(device))
        train, test = self.splits
        right = measure(Study((subject,), train, test, device), subject)
        trained = self._trained(name, seed) if variant else {}
        return {**trained, **right.accuracies(), "num_test": len(right.of["knn"]), "right": right.to_plain()}

    def _trained(self, name: str, seed: int) -> dict:
        """What the last slice of a run says of its length."""
        last = [entry for entry in self.folder.slices.entries if (entry["recipe"], entry["seed"]) == (name, seed)][-1]
        return {key: last[key] for key in ("seconds", "images")} | {"images_per_s": last["images"] / last["seconds"]}
