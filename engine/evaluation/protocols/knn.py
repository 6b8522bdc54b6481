"""Weighted k nearest neighbours on frozen features."""

from dataclasses import dataclass

from ..knn import KS, TEMPERATURE, knn_predictions, usable_ks
from ..scores import Score, score
from ..study import Study, check_feature


@dataclass(frozen=True)
class Options:
    """knn: votes weighted by exp(cosine / temperature)."""

    k: tuple[int, ...] = KS
    """Neighbours that vote."""
    temperature: float = TEMPERATURE
    """Of the votes."""
    feature: str = "mean"
    """mean of the patch tokens, class token, or both."""


def run(study: Study, options: Options) -> list[Score]:
    """A score "knn K" of every encoder and k that the training images can serve."""
    check_feature(options.feature, "--knn.feature")
    scores = []
    for subject in study.subjects:
        train = study.features(subject, study.train, options.feature)
        test = study.features(subject, study.test, options.feature)
        ks = usable_ks(options.k, len(train.labels), say=study.say) or (len(train.labels),)
        predicted = knn_predictions(
            train.features, train.labels, test.features, test.labels, ks=ks, temperature=options.temperature
        )
        chance = 1 / len(study.train.source.class_names)
        for k, guess in predicted.items():
            scores.append(score(subject.name, f"knn {k}", guess == test.labels, chance=chance, seed=study.seed))
    return scores
