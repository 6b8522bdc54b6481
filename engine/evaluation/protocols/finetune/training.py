"""The training loop: views of labelled images, one soft cross-entropy, AdamW with a rate per layer."""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from misplace.engine.data import Batch, Loader
from misplace.engine.errors import UserError
from misplace.engine.optim import cosine_with_warmup

from .classifier import Classifier, drop_path, refresh_copies
from .layer_decay import parameter_groups
from .mixing import mix, soft_targets
from .options import Settings

BETAS = (0.9, 0.999)

log = logging.getLogger("misplace.data")


class Training:
    """A classifier on its way. labels: int64 [n], of the loader's images; generator: of mixing and drop path."""

    def __init__(
        self, classifier: Classifier, labels: Tensor, settings: Settings, *, steps: int, generator: torch.Generator
    ):
        self.classifier, self.labels, self.settings = classifier, labels, settings
        self.steps, self.generator = steps, generator
        self.device, self.num_classes = classifier.head.weight.device, len(classifier.head.weight)
        groups = parameter_groups(classifier, settings.layer_decay, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=BETAS)
        self._unreadable: set[str] = set()

    def run(self, loader: Loader, count: Iterator[int]) -> Iterator[Tensor]:
        """The loss of each of `steps` steps, detached. count: their numbers, from 0."""
        for step, batch in zip(count, loader):
            loss = self.loss(batch)
            self.optimizer.zero_grad()
            loss.backward()
            self.set_rate(step / self.steps)
            self.optimizer.step()
            refresh_copies(self.classifier)
            yield loss.detach()

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of a batch, mixed, under stochastic depth."""
        images, index = self._readable(batch)
        settings, blocks = self.settings, len(self.classifier.encoder.blocks)
        targets = soft_targets(self.labels[index].to(self.device), self.num_classes, settings.smoothing)
        images, targets = mix(
            images.to(self.device),
            targets,
            mixup_alpha=settings.mixup,
            cutmix_alpha=settings.cutmix,
            generator=self.generator,
        )
        branches = drop_path(blocks, len(images), settings.drop_path, self.generator)
        logits = self.classifier(images, branches if branches is None else branches.to(self.device))
        return -(targets * logits.log_softmax(1)).sum(1).mean()

    def set_rate(self, progress: float) -> None:
        """Warm-up and cosine, times each group's scale."""
        peak = self.settings.base_lr * self.settings.batch_size / 256
        rate = cosine_with_warmup(progress, peak=peak, warmup=self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]

    def _readable(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The images that are what their numbers say: a loader puts others in place of those it cannot read."""
        images, index = batch.views[0], batch.index.cpu()
        if not batch.failures:
            return images, index
        for failure in batch.failures:
            if failure.path not in self._unreadable:
                log.warning("left out of the fine-tuning: %s (%s)", failure.path, failure.reason)
                self._unreadable.add(failure.path)
        failed = torch.tensor([failure.index for failure in batch.failures])
        kept = ~torch.isin(index, failed)
        if not bool(kept.any()):
            raise UserError("finetune: a whole batch of training images cannot be read: run `misplace data verify`")
        return images[kept.to(images.device)], index[kept]
