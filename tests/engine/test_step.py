"""One step: what goes in, what is updated, and that DILEMMA switched off is MoCo v3 to the bit."""

import json

import pytest
import torch

from misplace.engine.data import make_loader, open_source
from misplace.engine.errors import UserError
from misplace.engine.frameworks import FRAMEWORKS
from misplace.engine.implementations import AttentionSize, implementation_names, resolve_implementations
from misplace.engine.method import build_method, build_optimizer
from misplace.engine.non_finite import replay
from misplace.engine.step import compute_losses, training_step
from misplace.engine.trainer import pretrain
from misplace.kernels import attention_choice, resolve_impl

CPU = torch.device("cpu")


def build(config):
    source = open_source(config.data.source)
    impls = resolve_implementations(CPU, config.run.impl)
    method = build_method(config, source, impls)
    return method, build_optimizer(method, config, impls), source


def batches(config, source, start_step=0):
    return make_loader(
        source,
        batch_size=config.data.batch_size,
        num_views=FRAMEWORKS[type(config.framework)].num_views,
        image_size=config.model.image_size,
        augment=config.data.augment,
        seed=config.run.seed,
        start_step=start_step,
    )


def train(config, steps):
    """Losses of `steps` steps and the state afterwards."""
    method, optimizer, source = build(config)
    losses = []
    for step, batch in zip(range(steps), batches(config, source)):
        result = training_step(
            method,
            optimizer,
            batch,
            config,
            progress=(step + 1) / (steps + 1),
            next_progress=lambda step=step: (step + 2) / (steps + 1),
        )
        losses.append(result.loss)
    return losses, method


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("framework", ["moco_v3", "dino", "simclr", "mae"])
def test_without_drops_and_wrongs_it_is_the_plain_framework_to_the_bit(runs, images, tmp_path, framework, precision):
    """MAE drops patches by itself, and as many beside DILEMMA."""
    options = {"model": "nano", "precision": precision}
    plain = runs.tiny_config(framework, images, tmp_path, **options)
    rates = {"drop_rate": plain.pretext.drop_rate, "wrong_rate": 0.0}
    off = runs.tiny_config(f"{framework}_dilemma", images, tmp_path, pretext=rates, **options)
    (losses, method), (plain_losses, plain_method) = train(off, 20), train(plain, 20)
    assert losses == plain_losses
    state = plain_method.state_dict()
    assert len(state) > 50
    assert all(torch.equal(method.state_dict()[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("framework", ["moco_v3", "dino", "simclr", "mae"])
def test_it_is_not_the_plain_framework_when_switched_on(runs, images, tmp_path, framework):
    on = train(runs.tiny_config(f"{framework}_dilemma", images, tmp_path), 2)
    plain = train(runs.tiny_config(framework, images, tmp_path), 2)
    assert on[0] != plain[0]


def test_the_student_sees_kept_tokens_and_the_teacher_all_at_their_places(runs, images, tmp_path, monkeypatch):
    config = runs.tiny_config("moco_v3_dilemma", images, tmp_path)
    method, _, source = build(config)
    seen = {"student": [], "teacher": []}
    for who, encoder in (("student", method.encoder), ("teacher", method.framework.teacher["encoder"])):

        def noted(images, plan, real=encoder.tokens, who=who):
            tokens = real(images, plan)
            seen[who].append((plan, tokens))
            return tokens

        monkeypatch.setattr(encoder, "tokens", noted)
    compute_losses(method, next(iter(batches(config, source))), seed=0)
    (plan, tokens), (dense, dense_tokens) = seen["student"][0], seen["teacher"][0]
    views = 2 * runs.BATCH
    assert tokens.shape == (views, 1 + 4, 192) and plan.src.shape == (views, 4)
    assert plan.wrong.any() and torch.equal(plan.wrong, plan.pos != plan.src)
    assert dense_tokens.shape == (views, 1 + 16, 192)
    assert torch.equal(dense.pos, dense.src) and not dense.wrong.any()
    assert torch.equal(dense.src, torch.arange(16, dtype=torch.int32).expand(views, 16))
    assert len(seen["student"]) == len(seen["teacher"]) == 1


def test_gradients_reach_what_is_trained_and_nothing_else(runs, images, tmp_path):
    config = runs.tiny_config("moco_v3_dilemma", images, tmp_path)
    method, optimizer, source = build(config)
    compute_losses(method, next(iter(batches(config, source))), seed=0).total.backward()
    assert all(p.grad is not None for p in optimizer.parameters)
    frozen = {name for name, p in method.named_parameters() if not p.requires_grad}
    assert {"encoder.patch_embed.proj.weight", "encoder.patch_embed.proj.bias", "encoder.pos_embed"} <= frozen
    assert all("teacher" in name or name.startswith("encoder.p") for name in frozen)
    assert all(p.grad is None for p in method.framework.teacher.parameters())


def test_the_teacher_is_averaged_just_before_the_keys(runs, images, tmp_path):
    """Against the plain order: average with this step's momentum, then loss, then AdamW."""
    config = runs.tiny_config("moco_v3", images, tmp_path, model="nano")
    method, optimizer, source = build(config)
    other, _, _ = build(config)
    pairs = list(other.framework.teacher_pairs(other.encoder))
    trained = [p for p in other.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=0.0, weight_decay=config.optim.weight_decay, foreach=False)
    for step, batch in zip(range(3), batches(config, source)):
        result = training_step(
            method,
            optimizer,
            batch,
            config,
            progress=(step + 1) / 4,
            next_progress=lambda s=step: (s + 2) / 4,
        )
        momentum = other.framework.momentum(step / 4, (step + 1) / 4)
        with torch.no_grad():
            for student, teacher in pairs:
                teacher.add_((1 - momentum) * (student - teacher))
        loss = compute_losses(other, batch, seed=0).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.optim.clip_norm)
        adamw.param_groups[0]["lr"] = result.lr
        adamw.step()
        adamw.zero_grad()
        assert abs(result.loss - loss.item()) < 1e-4 * abs(result.loss)


def test_a_non_finite_loss_stops_before_the_update_and_can_be_replayed(runs, images, tmp_path, monkeypatch):
    config = runs.tiny_config("moco_v3_dilemma", images, tmp_path / "run", steps=6, checkpoint_steps=1)
    from misplace.engine import trainer

    real, calls = trainer.training_step, []

    def poisoned(method, *args, **options):
        calls.append(1)
        if len(calls) == 3:
            method.pretext.head.weight.data[0, 0] = float("nan")
        return real(method, *args, **options)

    monkeypatch.setattr(trainer, "training_step", poisoned)
    with pytest.raises(UserError, match=r"step 2: .*nan.*nothing was updated; replay it with `misplace doctor"):
        pretrain(config)
    captures = list((tmp_path / "run" / "capture").glob("capture-*"))
    assert len(captures) == 1
    values = replay(captures[0])
    assert values["bce"] != values["bce"] and values["contrastive"] == values["contrastive"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss"] is not None for row in rows)


def test_a_reader_is_told_what_attention_runs_for_each_size():
    sizes = {"student": AttentionSize(13, 96, 32, True), "teacher": AttentionSize(300, 24, 32, False)}
    names = implementation_names(resolve_implementations(CPU), CPU, torch.bfloat16, sizes)
    student, teacher = (
        attention_choice(CPU, torch.bfloat16, size.tokens, 32, size.rows, with_gradient=size.with_gradient)
        for size in sizes.values()
    )
    assert names["attention"] == f"{student} (student, 13 tokens), {teacher} (teacher, 300 tokens)"
    assert names["gelu"] == resolve_impl("gelu", "auto", CPU)
    asked = implementation_names(resolve_implementations(CPU, "attention=torch"), CPU, torch.bfloat16, sizes)
    assert asked["attention"] == "torch"


def test_implementations_are_asked_for_by_name_and_refused_by_reason():
    assert set(resolve_implementations(CPU, "reference").values()) == {"reference"}
    mixed = resolve_implementations(CPU, "attention=reference")
    assert mixed["attention"] == "reference" and mixed["gelu"] == resolve_impl("gelu", "auto", CPU)
    with pytest.raises(UserError, match=r"triton needs a CUDA device|triton is not installed"):
        resolve_implementations(CPU, "token_plan=triton")
    with pytest.raises(UserError, match="unknown op 'atention'"):
        resolve_implementations(CPU, "atention=torch")
