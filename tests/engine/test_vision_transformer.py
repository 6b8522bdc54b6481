"""The encoder against timm's, strictly loaded, for the plans where both compute the same."""

import pytest
import torch

from misplace.engine.export import to_timm
from misplace.engine.models import VisionTransformer, copied_parameters, use_low_precision
from misplace.kernels import TokenPlan, dense_plan, token_plan

MODEL = {
    "image_size": 24,
    "patch_size": 6,
    "channels": 3,
    "width": 48,
    "depth": 2,
    "num_heads": 3,
    "mean": (0.4, 0.5, 0.6),
    "std": (0.2, 0.3, 0.25),
}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return VisionTransformer(**MODEL)


@pytest.fixture
def photos():
    return torch.randint(0, 256, (3, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalised(photos):
    x = photos.double() / 255
    return ((x - torch.tensor(MODEL["mean"])) / torch.tensor(MODEL["std"])).movedim(-1, 1)


def test_features_equal_timm(timm, encoder, photos):
    state, arguments = to_timm(encoder.state_dict(), MODEL)
    model = timm.models.vision_transformer.VisionTransformer(**arguments).eval()
    model.load_state_dict(state, strict=True)
    expected = model.double().forward_features(normalised(photos))
    class_token, patches = encoder.embed(photos)
    torch.testing.assert_close(class_token.double(), expected[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(patches.double(), expected[:, 1:], rtol=1e-4, atol=1e-5)


def test_sparse_tokens_are_a_dense_transformer_over_those_tokens(encoder, photos):
    """A kept token depends on the kept ones alone, and on the position it is given, not on where it is listed."""
    plan = token_plan(torch.arange(3), num_patches=16, drop_rate=0.5, wrong_rate=0.5, seed=0, epoch=0, view=0)
    shuffle = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    listed_otherwise = TokenPlan(*(part[:, shuffle] for part in plan))
    tokens, others = encoder(photos, plan), encoder(photos, listed_otherwise)
    torch.testing.assert_close(tokens[:, 1:][:, shuffle], others[:, 1:], rtol=1e-4, atol=1e-5)
    changed = photos.clone()
    for b in range(3):
        for patch in set(range(16)) - set(plan.src[b].tolist()):
            y, x = divmod(patch, 4)
            changed[b, 6 * y : 6 * y + 6, 6 * x : 6 * x + 6] = 0
    assert torch.equal(encoder(changed, plan), tokens)


def test_low_precision_copies_stay_close_and_are_not_saved(encoder, photos):
    exact = encoder(photos, dense_plan(3, 16, "cpu"))
    names = set(encoder.state_dict())
    use_low_precision(encoder, torch.bfloat16)
    encoder.compute_dtype = torch.bfloat16
    low = encoder(photos, dense_plan(3, 16, "cpu"))
    assert low.dtype == torch.bfloat16 and set(encoder.state_dict()) == names
    assert len(list(copied_parameters(encoder))) == 2 * 4 * 2
    error = (low.double() - exact).norm() / exact.norm()
    assert 0 < error < 2**-8 * 4 * MODEL["depth"]
    low.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in encoder.parameters() if p.grad is not None)


def test_the_teachers_class_token_is_the_forward_pass_s(encoder, photos, monkeypatch):
    from misplace.engine.models import vision_transformer

    expected = encoder.embed(photos)[0]
    torch.testing.assert_close(encoder.class_token(photos), expected, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(vision_transformer, "CACHE_BYTES", 1)  # one image at a time
    assert encoder.images_at_once == 1
    torch.testing.assert_close(encoder.class_token(photos), expected, rtol=1e-5, atol=1e-6)
