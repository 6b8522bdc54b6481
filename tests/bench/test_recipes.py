"""Images per second of recipes, side by side."""

import csv

import torch

from misplace.bench import recipes

TINY = ["--model", "nano", "--image-size", "48", "--batch-size", "4", "--rounds", "1", "--device", "cpu"]


def test_every_recipe_gets_a_row_and_files_grow(tmp_path, capsys):
    for names in ("mae_dilemma,simclr", "dino_dilemma"):
        assert recipes.main([*TINY, "--recipes", names, "--csv", str(tmp_path / "rates.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "rates.csv").open()))
    assert [row["recipe"] for row in rows] == ["mae_dilemma", "simclr", "dino_dilemma"]
    assert all(float(row["images_per_s"]) > 0 and row["batch_size"] == "4" for row in rows)
    assert "images/s" in capsys.readouterr().out


def test_a_slower_step_has_fewer_images_per_second(monkeypatch):
    class Fast:
        def interleave(self, steps, device, rounds):
            return {name: [100.0 * (i + 1)] * rounds for i, name in enumerate(steps)}

    options = recipes.Options(model="nano", image_size=48, batch_size=4, rounds=2, recipes="mae,simclr")
    monkeypatch.setattr(recipes.timing, "interleave", Fast().interleave)
    found = list(recipes.rates(options, torch.device("cpu")))
    assert [rate.images_per_s for rate in found] == [40.0, 20.0]
