"""Weighted k-nearest-neighbour classification of frozen features [S: Wu et al. 2018, as DINO reports it].

    vote(class) = sum over the k most similar training images of that class of exp(similarity / temperature)

Similarity is the cosine, in fp32. Equal similarities go to the lower training index and equal votes to the
lower class, and votes are summed as integers, so one set of features has one answer [O].
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from misplace.engine.errors import UserError

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
SIMILARITIES_AT_ONCE = 2**24
VOTE_UNIT = 2.0**48


def knn(
    train_features: Tensor,  # [N, D]
    train_labels: Tensor,  # int64 [N]
    test_features: Tensor,  # [M, D]
    test_labels: Tensor,  # int64 [M]
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    chunk: int | None = None,
) -> dict[int, float]:
    """Top-1 accuracy in [0, 1] for each k of `ks`; arguments and errors as knn_predictions."""
    predicted = knn_predictions(
        train_features, train_labels, test_features, test_labels, ks=ks, temperature=temperature, chunk=chunk
    )
    labels = test_labels.to(train_features.device)
    return {k: int((guess == labels).sum()) / len(labels) for k, guess in predicted.items()}


def knn_predictions(
    train_features: Tensor,  # [N, D]
    train_labels: Tensor,  # int64 [N]
    test_features: Tensor,  # [M, D]
    test_labels: Tensor,  # int64 [M]
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    chunk: int | None = None,
) -> dict[int, Tensor]:
    """The predicted label of each test image, int64 [M], for each k of `ks`.

    chunk: test images compared at once; None bounds the similarities held at once to 2^24. Raises UserError
    where labels are missing, only one class is there, a feature is not finite, or a k is above N (see
    `usable_ks`).
    """
    _check(train_features, train_labels, test_features, test_labels, ks, temperature)
    chunk = chunk or max(1, SIMILARITIES_AT_ONCE // len(train_features))
    classes, train_class = torch.unique(train_labels.to(train_features.device), return_inverse=True)
    train = torch.nn.functional.normalize(train_features.float(), dim=1)
    predicted: dict[int, list[Tensor]] = {k: [] for k in ks}
    for features in test_features.split(chunk):
        test = torch.nn.functional.normalize(features.to(train.device).float(), dim=1)
        similarity, neighbour = _nearest(test @ train.T, max(ks))
        votes = _votes(similarity, temperature)
        for k in ks:
            predicted[k].append(classes[_winner(votes[:, :k], train_class[neighbour[:, :k]], len(classes))])
    return {k: torch.cat(parts) for k, parts in predicted.items()}


def usable_ks(ks: Sequence[int], num_train: int, say: Callable[[str], None] = print) -> tuple[int, ...]:
    """The `ks` that `num_train` training images can serve; `say` gets a line that names those dropped."""
    kept = tuple(k for k in ks if k <= num_train)
    if dropped := [str(k) for k in ks if k > num_train]:
        say(f"k-NN: k = {', '.join(dropped)} left out, there are only {num_train} training images")
    return kept


def _nearest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of `similarity` [M, N], best first: values and indices [M, k]."""
    bits = similarity.contiguous().view(torch.int32).long()
    ascending = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # the order of the floats, as integers
    lower_index_first = torch.arange(similarity.shape[1] - 1, -1, -1, device=similarity.device)
    index = ((ascending << 32) + lower_index_first).topk(k, dim=1).indices
    return similarity.gather(1, index), index


def _votes(similarity: Tensor, temperature: float) -> Tensor:
    """exp(similarity / temperature) up to a factor per row, as integers: their sum has no order."""
    relative = (similarity - similarity[:, :1]).double()
    return (torch.exp(relative / temperature) * VOTE_UNIT).round().long()


def _winner(votes: Tensor, voter_class: Tensor, num_classes: int) -> Tensor:
    """Index of the class with most votes, [M]; the first one where they are equal."""
    totals = votes.new_zeros(len(votes), num_classes).scatter_add_(1, voter_class, votes)
    return totals.argmax(1)


def _check(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    ks: Sequence[int],
    temperature: float,
) -> None:
    for name, features, labels in (
        ("training", train_features, train_labels),
        ("test", test_features, test_labels),
    ):
        if len(features) == 0 or len(features) != len(labels):
            raise UserError(f"k-NN: {len(features)} {name} features with {len(labels)} labels")
        if bool((labels < 0).any()):
            raise UserError(f"k-NN needs labels: some {name} images have none; evaluate on a labelled source")
        if not bool(torch.isfinite(features).all()):
            raise UserError(f"k-NN: some {name} features are not finite; the encoder has diverged")
    if bool((train_labels == train_labels[0]).all()):
        raise UserError("k-NN needs two classes or more; all training images have the same label")
    if not ks or min(ks) < 1 or max(ks) > len(train_features):
        raise UserError(f"k-NN: k must lie in 1..{len(train_features)}, the number of training images, not {list(ks)}")
    if not temperature > 0:
        raise UserError(f"k-NN: temperature must be above 0, not {temperature}")
