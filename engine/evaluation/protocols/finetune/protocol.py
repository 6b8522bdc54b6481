"""Full fine-tuning, and low-shot fine-tuning, of the trained encoder and of the one at its initial weights."""

import math
import os
from typing import NamedTuple

import torch
from torch import Tensor

from misplace.engine.data import choose_pipeline, load_eval, make_loader
from misplace.engine.data.subset import Subset
from misplace.engine.errors import UserError
from misplace.engine.method import DTYPES

from ...scores import Score, score
from ...shots import draw_shots
from ...study import IMAGES_AT_ONCE, Study
from ...subjects import Subject
from .classifier import Classifier, build_classifier
from .options import Options, Settings, describe, resolve_options, settings_for
from .pace import Pace
from .training import Training


class Job(NamedTuple):
    """A row of the table: what is called, and the training images, by number of the source and label."""

    measure: str
    indices: Tensor  # int64 [n]
    labels: Tensor  # int64 [n]
    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


def resolve(study: Study, options: Options) -> Options:
    """The options with the values that `run` will use where they leave one open."""
    return resolve_options(options, study.subjects[0].encoder.width, len(study.train.indices))


def run(study: Study, options: Options) -> list[Score]:
    """A score "finetune", or "finetune N-shot" of each number of shots, of every subject that has an encoder.

    The random column is training from scratch by the same recipe, layer decay included. Raw pixels have no encoder and
    so no column: their nearest thing is the linear protocol's. The final weights count: nothing is chosen on the test
    images. Shots are drawn once and are the same for every encoder.
    """
    subjects = [subject for subject in study.subjects if subject.encoder is not None]
    for subject in study.subjects:
        if subject.encoder is None:
            study.say(f"finetune: {subject.name} has no encoder to train, so no column; the linear protocol has one")
    settings = settings_for(options, subjects[0].encoder.width, len(study.train.indices))
    study.say(f"finetune: {describe(settings)}")
    jobs = make_jobs(study, options.shots, settings, subjects[0].image_size)
    pace = Pace(len(subjects) * sum(job.steps for job in jobs), settings.batch_size, study.say)
    chance = 1 / len(study.train.source.class_names)
    scores = []
    for job in jobs:
        for subject in subjects:
            classifier = fine_tune(study, subject, job, settings, options, pace)
            scores.append(score(subject.name, job.measure, correct(study, classifier), chance=chance, seed=study.seed))
    return scores


def make_jobs(study: Study, shots: tuple[int, ...], settings: Settings, image_size: int) -> list[Job]:
    """UserError where there are no labels, only one class, or too few images of one."""
    indices = study.train.indices
    labels = study.labels(study.train, indices).cpu()
    if len(torch.unique(labels)) < 2:
        raise UserError(f"{study.train.source.name}: finetune needs two classes or more among the training images")
    if not shots:
        return [_job("finetune", indices, labels, settings)]
    drawn = [draw_readable(study, labels, n, image_size) for n in shots]
    return [_job(f"finetune {n}-shot", indices[d], labels[d], settings) for n, d in zip(shots, drawn)]


def _job(measure: str, indices: Tensor, labels: Tensor, settings: Settings) -> Job:
    times = math.ceil(settings.batch_size / len(indices))
    indices, labels = indices.repeat(times), labels.repeat(times)
    steps_per_epoch = len(indices) // settings.batch_size
    epochs = max(settings.epochs, math.ceil(settings.least_steps / steps_per_epoch))
    return Job(measure, indices, labels, epochs, steps_per_epoch)


def draw_readable(study: Study, labels: Tensor, shots: int, image_size: int) -> Tensor:
    """draw_shots among the training images that can be decoded: positions in study.train.indices."""
    pool = torch.arange(len(labels))
    while True:
        drawn = pool[draw_shots(labels[pool], shots, study.seed)]
        wanted = study.train.indices[drawn]
        kept = torch.cat([load_eval(study.train.source, part, image_size)[1] for part in wanted.split(IMAGES_AT_ONCE)])
        unreadable = drawn[~torch.isin(wanted, kept)]
        if not len(unreadable):
            return drawn
        pool = pool[~torch.isin(pool, unreadable)]


def fine_tune(study: Study, subject: Subject, job: Job, settings: Settings, options: Options, pace: Pace) -> Classifier:
    """A classifier on a copy of the subject's encoder, after its last step."""
    generator = torch.Generator().manual_seed(study.seed)
    source, name = Subset(study.train.source, job.indices), f"{job.measure}, {subject.name}"
    classifier = build_classifier(subject.encoder, len(source.class_names), DTYPES[options.precision], generator)
    training = Training(classifier, job.labels, settings, steps=job.steps, generator=generator)
    loader = make_loader(
        source,
        batch_size=settings.batch_size,
        num_views=1,
        image_size=subject.image_size,
        augment=settings.augment,
        seed=study.seed,
        workers=max(1, min(16, (os.cpu_count() or 2) - 1)) if options.workers is None else options.workers,
        pipeline=choose_pipeline("auto"),
        device=study.device,
    )
    with loader:
        pace.begin()
        count = study.track(range(job.steps), name, total=job.steps)
        for done, loss in enumerate(training.run(loader, count), start=1):
            pace.step(loss)
            if done % job.steps_per_epoch == 0:
                pace.epoch(name, done // job.steps_per_epoch, job.epochs)
    return classifier


@torch.no_grad()
def correct(study: Study, classifier: Classifier) -> Tensor:
    """Whether each test image that can be decoded gets its label, bool [n]."""
    encoder, right = classifier.encoder, []
    for images, kept in study.batches(study.test, encoder.side * encoder.patch_size):
        guess = classifier(images.to(study.device)).argmax(1)
        right.append(guess == study.labels(study.test, kept))
    if not right:
        raise UserError(f"{study.test.source.name}: none of the test images chosen can be decoded")
    return torch.cat(right)
