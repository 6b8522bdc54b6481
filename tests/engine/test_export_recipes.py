"""Every recipe's encoder loads in timm strictly and gives its features: after a run, and at the published sizes."""

import json
from types import SimpleNamespace

import pytest
import safetensors
import torch
from safetensors.torch import load_file

from misplace.engine import cli
from misplace.engine.config import ModelConfig
from misplace.engine.encoder_file import read_encoder
from misplace.engine.export import write_timm
from misplace.engine.method import encoder_arguments
from misplace.engine.models import VisionTransformer
from misplace.engine.recipes import RECIPES, recipe
from misplace.engine.trainer import pretrain

COLOUR = SimpleNamespace(channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def loaded(timm, path):
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    model = timm.models.vision_transformer.VisionTransformer(**json.loads(metadata["timm_kwargs"])).eval()
    model.load_state_dict(load_file(path), strict=True)
    return model, *(torch.tensor(json.loads(metadata[name])) for name in ("mean", "std"))


def same_features(timm, path, ours, images):
    theirs, mean, std = loaded(timm, path)
    with torch.no_grad():
        expected = theirs.forward_features(((images / 255 - mean) / std).movedim(-1, 1))
    torch.testing.assert_close(
        torch.cat([ours.embed(images)[0][:, None], ours.embed(images)[1]], 1), expected, atol=2e-4, rtol=2e-4
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_encoder_of_a_run(timm, runs, images, tmp_path, name):
    folder = pretrain(runs.tiny_config(name, images, tmp_path / "run", steps=2))
    file = tmp_path / "encoder.safetensors"
    assert cli.main(["export", str(folder), str(file), "--format", "timm"]) == 0
    saved = read_encoder(folder)
    pixels = torch.randint(256, (3, 24, 24, 3), dtype=torch.uint8)
    same_features(timm, file, saved.build(torch.device("cpu")), pixels)


@pytest.mark.parametrize("framework", ["moco_v3", "dino", "simclr", "mae"])
@pytest.mark.parametrize(("size", "num_heads"), [("small", 6), ("small", 12), ("base", 12), ("base", 6)])
def test_published_sizes(timm, tmp_path, framework, size, num_heads):
    """At the recipe's own initial weights, moved a little so that no bias is zero."""
    config = recipe(framework)(size)
    fields = vars(config.model) | {"image_size": 224, "patch_size": 16, "num_heads": num_heads}
    model = encoder_arguments(SimpleNamespace(model=ModelConfig(**fields)), COLOUR)
    torch.manual_seed(0)
    ours = VisionTransformer(**model)
    with torch.no_grad():
        for tensor in ours.parameters():
            tensor += 0.01 * torch.randn_like(tensor)
    path = write_timm(tmp_path / "e.safetensors", ours.state_dict(), model)
    same_features(timm, path, ours, torch.randint(256, (1, 224, 224, 3), dtype=torch.uint8))
