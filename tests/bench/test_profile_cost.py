"""Traffic and matrix work of recorded calls, counted by hand."""

import torch

from misplace import kernels
from misplace.bench.profile.cost import backward_bytes, count_operations, forward_bytes, kept_share
from misplace.bench.profile.record import Example, Recorder
from misplace.bench.profile.replay import Call

CPU = torch.device("cpu")


def recorded(run) -> tuple:
    """Site and example of the one op that `run` calls."""
    recorder = Recorder(CPU)
    with recorder.step():
        run()
    ((site, example),) = recorder.examples.items()
    return site, example


def normal(*shape: int, gradient: bool = False, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype).requires_grad_(gradient)


def operations(site, example: Example) -> tuple[int, int]:
    call = Call(site, example, "reference")
    return count_operations(call.forward), count_operations(call.backward())


def test_linear_reads_copies_and_writes_master_gradients():
    rows, inside, outside = 6, 8, 4
    weight, bias = normal(outside, inside, gradient=True), normal(outside, gradient=True)
    copies = dict(weight_copy=weight.detach().bfloat16(), bias_copy=bias.detach().bfloat16())
    x = normal(rows, inside, gradient=True, dtype=torch.bfloat16)
    site, example = recorded(lambda: kernels.linear(x, weight, bias, **copies).sum().backward())
    read, written = 2 * (rows * inside + outside * inside + outside), 2 * rows * outside
    assert forward_bytes("linear", example) == read + written
    gradients = 2 * rows * inside + 4 * (outside * inside + outside)
    assert backward_bytes("linear", example) == read + written + gradients
    assert operations(site, example) == (2 * rows * inside * outside, 4 * rows * inside * outside)


def test_attention_multiplies_twice_forward_and_four_times_backward():
    batch, tokens, width = 2, 5, 12
    qkv = normal(batch, tokens, 3 * width, gradient=True)
    site, example = recorded(lambda: kernels.attention(qkv, num_heads=3).sum().backward())
    one = 2 * batch * tokens * tokens * width
    assert operations(site, example) == (2 * one, 4 * one)
    assert forward_bytes("attention", example) == 4 * 4 * batch * tokens * width
    assert backward_bytes("attention", example) == 4 * 7 * batch * tokens * width


def embed(weight: torch.Tensor, class_token: torch.Tensor):
    """Nine of 36 patches of two images."""
    images = torch.randint(0, 256, (2, 24, 24, 3), dtype=torch.uint8)
    width, src = weight.shape[0], torch.arange(9, dtype=torch.int32).repeat(2, 1)
    table = normal(37, width)
    return kernels.patch_embed(
        images, weight, normal(width), table, class_token, None, src, src, patch_size=4, mean=None, std=None
    )


def test_patch_embed_pays_for_kept_patches_alone():
    weight, token = normal(8, 3, 4, 4, gradient=True), normal(8, gradient=True)
    site, example = recorded(lambda: embed(weight, token).sum().backward())
    assert kept_share(site.op, example.arguments) == 0.25
    out, kept_pixels = 4 * 2 * 10 * 8, 2 * 9 * 48
    tables = 4 * (37 * 8 + 8 + 8) + 4 * weight.numel() + 2 * 4 * 2 * 9
    assert forward_bytes("patch_embed", example) == kept_pixels + tables + out
    assert backward_bytes("patch_embed", example) == kept_pixels + tables + out + 4 * weight.numel() + 4 * 8
    forward, _ = operations(site, example)
    assert forward * 0.25 == 2 * 2 * 9 * 48 * 8


def test_a_frozen_patch_embed_needs_only_the_class_tokens_gradient():
    _, example = recorded(lambda: embed(normal(8, 3, 4, 4), normal(8, gradient=True)).sum().backward())
    assert backward_bytes("patch_embed", example) == 4 * 2 * 8 + 4 * 8


def test_optimiser_reads_and_writes_in_place():
    parameters, copies = [normal(5), normal(3, 2)], [None, torch.empty(3, 2, dtype=torch.bfloat16)]
    lists = [[torch.randn_like(p) for p in parameters] for _ in range(4)]

    def update():
        gradients, first, second, teacher = lists
        settings = dict(step=1, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=[0.0, 0.0], momentum=0.9)
        kernels.adamw_ema(
            parameters, gradients, first, [s.abs() for s in second], **settings, teacher=teacher, student_copies=copies
        )

    site, example = recorded(update)
    assert forward_bytes("adamw_ema", example) == 4 * 11 * (1 + 4 * 2) + 2 * 6
    before = [p.clone() for p in parameters]
    Call(site, example, "reference").forward()
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True)), "a replay trained the model"


def test_token_bce_may_have_its_gradient_with_its_value():
    tokens = normal(2, 4, 8, gradient=True)
    head = [normal(8), normal(8), normal(1, 8), normal(1)]
    target = torch.zeros(2, 3, dtype=torch.bool)
    _, example = recorded(lambda: kernels.token_bce(tokens, *head, target)[0].backward())
    assert backward_bytes("token_bce", example) == tokens.nbytes + 4
