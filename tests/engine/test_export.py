"""The exported file builds timm's model, loads strictly, and gives the features of a plain re-computation."""

import json
import math
import os

import pytest
import safetensors
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from misplace import kernels
from misplace.engine.errors import UserError
from misplace.engine.export import TIMM_NAMES, state_shapes, timm_name, to_timm, write_timm
from misplace.engine.models import VisionTransformer

NANO = {
    "image_size": 28,
    "patch_size": 4,
    "channels": 1,
    "width": 48,
    "depth": 3,
    "num_heads": 3,
    "mean": [0.2860],
    "std": [0.3530],
}
COLOUR = NANO | {
    "image_size": 32,
    "patch_size": 8,
    "channels": 3,
    "num_heads": 6,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def random_state(model, seed=0):
    """A full state dict of random numbers, written out here independently of the exporter."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=0.1):
        return scale * torch.randn(*shape, generator=generator)

    width, patches = model["width"], (model["image_size"] // model["patch_size"]) ** 2
    state = {
        "cls_token": normal(1, 1, width),
        "pos_embed": normal(1, 1 + patches, width),
        "patch_embed.proj.weight": normal(width, model["channels"], *[model["patch_size"]] * 2),
        "patch_embed.proj.bias": normal(width),
        "norm.weight": 1 + normal(width),
        "norm.bias": normal(width),
    }
    for i in range(model["depth"]):
        for name in ("norm1", "norm2"):
            state[f"blocks.{i}.{name}.weight"] = 1 + normal(width)
            state[f"blocks.{i}.{name}.bias"] = normal(width)
        for name, out, inside in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            state[f"blocks.{i}.{name}.weight"] = normal(out, inside)
            state[f"blocks.{i}.{name}.bias"] = normal(out)
    return state


def plain_features(state, model, images):
    """The encoder in a page of torch, float64: normalised tokens [B, 1 + L, D] of images in [0, 1]."""
    p = {name: tensor.double() for name, tensor in state.items()}
    mean, std = (torch.tensor(model[k], dtype=torch.float64)[:, None, None] for k in ("mean", "std"))
    width, heads = model["width"], model["num_heads"]

    def norm(x, name):
        return F.layer_norm(x, (width,), p[f"{name}.weight"], p[f"{name}.bias"], eps=1e-6)

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    side = model["patch_size"]
    patches = F.unfold((images.double() - mean) / std, side, stride=side).transpose(1, 2)
    patches = patches @ p["patch_embed.proj.weight"].flatten(1).T + p["patch_embed.proj.bias"]
    x = torch.cat([p["cls_token"].expand(len(images), -1, -1), patches], dim=1) + p["pos_embed"]
    for i in range(model["depth"]):
        q, k, v = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (heads, width // heads)).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
        hidden = linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        x = x + linear(0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))), f"blocks.{i}.mlp.fc2")
    return norm(x, "norm")


def load_as_the_file_says(timm, path):
    """Only what the metadata tells: the class, its arguments, mean and std."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["timm_class"] == "timm.models.vision_transformer.VisionTransformer"
    model = timm.models.vision_transformer.VisionTransformer(**json.loads(metadata["timm_kwargs"]))
    model.load_state_dict(load_file(path), strict=True)
    return model.eval(), metadata


@pytest.mark.parametrize("model", [NANO, COLOUR], ids=["gray", "colour"])
def test_timm_loads_strictly_and_computes_the_same(timm, tmp_path, model):
    state = random_state(model)
    path = write_timm(tmp_path / "new" / "encoder.safetensors", state, model)
    loaded, metadata = load_as_the_file_says(timm, path)
    mean, std = (torch.tensor(json.loads(metadata[k]))[:, None, None] for k in ("mean", "std"))
    size = model["image_size"]
    images = torch.rand(4, model["channels"], size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        in_fp32 = loaded.forward_features((images - mean) / std)
        class_token = loaded((images - mean) / std)
        in_fp64 = loaded.double().forward_features((images.double() - mean.double()) / std.double())
    assert torch.equal(class_token, in_fp32[:, 0])
    expected = plain_features(state, model, images)
    wrong_heads = plain_features(state, model | {"num_heads": 1}, images)
    # mean and std are read as fp32 once and as fp64 once: a relative 2^-24, grown by depth.
    assert (in_fp64 - expected).abs().max() < 1e-5
    assert (in_fp32 - expected).abs().max() < 1e-4
    assert (wrong_heads - expected).abs().max() > 1e-2  # the comparison can fail


def test_timm_computes_what_our_encoder_computes(timm, tmp_path):
    torch.manual_seed(0)
    ours = VisionTransformer(**COLOUR)
    state = {name: value + 0.02 * torch.randn_like(value) for name, value in ours.state_dict().items()}
    ours.load_state_dict(state)
    loaded, metadata = load_as_the_file_says(timm, write_timm(tmp_path / "e.safetensors", state, COLOUR))
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(json.loads(metadata[k])) for k in ("mean", "std"))
    with torch.no_grad():
        theirs = loaded.forward_features(((images / 255 - mean) / std).movedim(-1, 1))
    class_token, patch_tokens = ours.embed(images)
    torch.testing.assert_close(theirs[:, 0], class_token, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs[:, 1:], patch_tokens, atol=1e-4, rtol=1e-4)
    sparse = kernels.dense_plan(3, ours.num_patches, images.device)
    sparse = sparse._replace(pos=sparse.pos.flip(1))
    assert (ours.norm(ours(images, sparse))[:, 0] - class_token).abs().max() > 1e-3


@pytest.mark.parametrize(("size", "name"), TIMM_NAMES.items())
def test_standard_models_have_timms_names_and_shapes(timm, size, name):
    """Shapes on the meta device: nothing of ViT-L is allocated."""
    width, depth, num_heads = size
    model = {"image_size": 224, "patch_size": 16, "channels": 3}
    model |= {"width": width, "depth": depth, "num_heads": num_heads}
    assert timm_name(model) == name
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0)
    assert state_shapes(model) == {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    assert theirs.blocks[0].attn.num_heads == num_heads
    assert theirs.norm.eps == theirs.blocks[0].norm1.eps == 1e-6


def test_small_with_12_heads_is_not_timms_small():
    model = {"image_size": 224, "patch_size": 16, "channels": 3, "width": 384, "depth": 12, "num_heads": 12}
    assert timm_name(model) is None
    assert timm_name(model | {"num_heads": 6, "image_size": 96}) is None
    assert timm_name(model | {"num_heads": 6}) == "vit_small_patch16_224"


def test_create_model_loads_the_file(timm, tmp_path):
    model = {"image_size": 224, "patch_size": 16, "channels": 3, "width": 192, "depth": 12, "num_heads": 3}
    path = write_timm(tmp_path / "tiny.safetensors", random_state(model), model)
    with safetensors.safe_open(path, "pt") as file:
        name = file.metadata()["timm_name"]
    created = timm.create_model(name, num_classes=0)
    created.load_state_dict(load_file(path), strict=True)


def test_states_in_other_forms_become_plain_fp32():
    state = random_state(NANO)
    given = {name: tensor.bfloat16() for name, tensor in state.items()} | {"no_position": torch.zeros(48)}
    given["norm.weight"] = torch.stack([state["norm.weight"]] * 2, dim=1)[:, 0].requires_grad_()
    exported, kwargs = to_timm(given, NANO)
    assert exported.keys() == state.keys()
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in exported.values())
    assert not any(t.requires_grad for t in exported.values())
    assert torch.equal(exported["norm.weight"], state["norm.weight"])
    exported["norm.weight"].zero_()
    assert given["norm.weight"].abs().max() > 0
    assert kwargs["num_classes"] == 0 and kwargs["qkv_bias"] is True


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("blocks.1.attn.qkv.bias"), "no blocks.1.attn.qkv.bias"),
        (lambda state: state.update({"head.weight": torch.zeros(1)}), "no place for head.weight"),
        (lambda state: state.update({"blocks.3.norm1.weight": torch.zeros(48)}), "no place for blocks.3"),
        (lambda state: state.update({"pos_embed": torch.zeros(1, 50, 49)}), "pos_embed is .1, 50, 49."),
    ],
)
def test_states_that_do_not_fit(tmp_path, change, said):
    state = random_state(NANO)
    change(state)
    with pytest.raises(UserError, match=said):
        write_timm(tmp_path / "e.safetensors", state, NANO)
    assert list(tmp_path.iterdir()) == []


def test_overwrites_only_when_asked(tmp_path):
    path = write_timm(tmp_path / "e.safetensors", random_state(NANO), NANO)
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists"):
        write_timm(path, random_state(NANO, seed=1), NANO)
    assert path.read_bytes() == before
    write_timm(path, random_state(NANO, seed=1), NANO, overwrite=True)
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["e.safetensors"]


def test_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_timm(tmp_path / "e.safetensors", random_state(NANO), NANO)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_timm(path, random_state(NANO, seed=1), NANO, overwrite=True)
    monkeypatch.undo()
    assert path.read_bytes() == before


def test_same_state_same_bytes(tmp_path):
    first = write_timm(tmp_path / "a.safetensors", random_state(NANO), NANO)
    second = write_timm(tmp_path / "b.safetensors", random_state(NANO), NANO)
    assert load_file(first).keys() == load_file(second).keys()
    with safetensors.safe_open(first, "pt") as a, safetensors.safe_open(second, "pt") as b:
        assert a.metadata() == b.metadata()
        assert all(isinstance(value, str) for value in a.metadata().values())
        assert all(torch.equal(a.get_tensor(name), b.get_tensor(name)) for name in a.keys())  # noqa: SIM118


def test_images_that_are_not_normalised(tmp_path):
    path = write_timm(tmp_path / "e.safetensors", random_state(COLOUR), COLOUR | {"mean": None, "std": None})
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["mean"]) == [0, 0, 0]
        assert json.loads(file.metadata()["std"]) == [1, 1, 1]
