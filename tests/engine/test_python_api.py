"""The commands as functions."""

import pytest

from misplace.engine import compare, evaluate, trainer
from misplace.engine.errors import UserError


def test_evaluate_returns_what_the_command_says(runs, images, tmp_path):
    run = trainer.pretrain(runs.tiny_config("moco_v3", images, tmp_path / "run"))
    found = evaluate(run, "knn", **{"num-train": 30, "num-test": 12, "knn.k": 5, "device": "cpu"})
    assert found["k"] == [5] and found["num_test"] == 12 and 0 <= found["top1"][0] <= 1


def test_compare_takes_the_commands_options(images, capsys):
    sizes = {"model.image-size": 24, "model.patch-size": 6, "data.batch-size": 8}
    plan = {"model": "nano", "data": images, "budget": "1m", "dry-run": True}
    assert compare("moco_v3", "simclr", **plan, **sizes) is None
    assert capsys.readouterr().out.splitlines()[:2] == ["recipes: moco_v3", "         simclr"]
    with pytest.raises(UserError, match="comparison's to decide"):
        compare("moco_v3", "simclr", steps=3)
