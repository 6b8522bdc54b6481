"""The AUROC against scikit-learn's."""

import torch
from sklearn.metrics import roc_auc_score

from misplace.engine.auroc import auroc


def test_equals_scikit_learn_with_ties():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 9, (40, 7), generator=generator).float()
    positive = torch.rand(40, 7, generator=generator) < 0.2 + 0.05 * scores
    expected = roc_auc_score(positive.flatten().numpy(), scores.flatten().numpy())
    assert abs(auroc(scores, positive) - expected) < 1e-12


def test_perfect_reversed_and_one_class():
    scores = torch.tensor([0.1, 0.2, 0.8, 0.9])
    wrong = torch.tensor([False, False, True, True])
    assert auroc(scores, wrong) == 1.0
    assert auroc(-scores, wrong) == 0.0
    assert auroc(scores, torch.zeros(4, dtype=torch.bool)) is None
