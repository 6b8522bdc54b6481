"""The attentive head against nn.MultiheadAttention, on signals whose place is known."""

import math

import pytest
import torch
from torch import nn

from misplace.engine.evaluation.attentive_probe import (
    AttentiveHead,
    attentive_predictions,
    channel_statistics,
    fit_attentive,
    heads_for,
)
from misplace.engine.evaluation.linear_probe import linear_predictions

WIDTH, LENGTH, CLASSES = 24, 17, 4


def hidden_signal(count, seed):
    """Noise tokens, of which one patch at a random place is marked and carries the class with a random sign.

    The class code and its opposite are equally likely, so neither the mean of the tokens nor any other linear
    function of them tells the class; nor does the class token, which is noise.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, LENGTH, WIDTH, generator=generator)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    place = torch.randint(1, LENGTH, (count,), generator=generator)
    code = torch.zeros(count, WIDTH)
    code[:, 0] = 8.0  # the mark
    code[torch.arange(count), 1 + labels] = 6.0
    tokens[torch.arange(count), place] = code + 0.3 * torch.randn(count, WIDTH, generator=generator)
    return tokens, labels


def test_equals_multihead_attention_of_one_query():
    """Same parameters in PyTorch's own attention, in fp64."""
    generator = torch.Generator().manual_seed(0)
    head = AttentiveHead(WIDTH, CLASSES, 12, generator).double().eval()
    with torch.no_grad():
        head.weight.copy_(torch.randn(CLASSES, WIDTH, generator=generator))
        head.bias.copy_(torch.randn(CLASSES, generator=generator))
        head.norm.running_mean.copy_(torch.randn(WIDTH, generator=generator))
    tokens = torch.randn(5, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
    attention = nn.MultiheadAttention(WIDTH, 12, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([torch.eye(WIDTH).double(), head.key, head.value]))
        attention.out_proj.weight.copy_(head.out)
        query = head.query.reshape(1, 1, WIDTH).expand(5, 1, WIDTH)
        seen, _ = attention(query, tokens, tokens)
        normed = (seen[:, 0] - head.norm.running_mean) / (head.norm.running_var + head.norm.eps).sqrt()
        expected = normed @ head.weight.T + head.bias
        torch.testing.assert_close(head(tokens), expected, rtol=1e-10, atol=1e-10)


def test_finds_a_signal_in_one_patch_that_mean_and_class_token_hide():
    tokens, labels = hidden_signal(1500, 0)
    test, truth = hidden_signal(500, 1)
    head = fit_attentive(tokens.half(), labels, CLASSES, steps=300)
    assert not head.training
    attentive = (attentive_predictions(head, test.half()) == truth).double().mean()
    mean = (linear_predictions(tokens.mean(1), labels, test.mean(1)) == truth).double().mean()
    class_token = (linear_predictions(tokens[:, 0], labels, test[:, 0]) == truth).double().mean()
    assert attentive > 0.97
    assert mean < 0.9
    assert abs(class_token - 1 / CLASSES) < 4 * math.sqrt(0.25 * 0.75 / 500)


def test_finds_a_signal_in_the_class_token():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(800) % CLASSES
    tokens = torch.randn(800, LENGTH, WIDTH, generator=generator)
    tokens[:, 0, :CLASSES] += 20 * torch.eye(CLASSES)[labels]
    head = fit_attentive(tokens[:600], labels[:600], CLASSES, steps=200)
    assert (attentive_predictions(head, tokens[600:]) == labels[600:]).double().mean() > 0.97


def test_shuffled_labels_are_at_chance():
    tokens, labels = hidden_signal(1000, 0)
    test, truth = hidden_signal(1000, 1)
    generator = torch.Generator().manual_seed(5)
    labels, truth = labels[torch.randperm(1000, generator=generator)], truth[torch.randperm(1000, generator=generator)]
    predicted = attentive_predictions(fit_attentive(tokens, labels, CLASSES, steps=100), test)
    assert abs((predicted == truth).double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1000)


def test_a_seed_gives_one_head_and_leaves_the_global_generator_alone():
    tokens, labels = hidden_signal(200, 0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = fit_attentive(tokens, labels, CLASSES, steps=5, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    two = fit_attentive(tokens, labels, CLASSES, steps=5, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    other = fit_attentive(tokens, labels, CLASSES, steps=5, seed=4)
    assert not torch.equal(one.query, other.query)


def test_prediction_does_not_depend_on_the_other_images():
    """BatchNorm in eval mode: one image at a time gives the same classes."""
    tokens, labels = hidden_signal(100, 0)
    head = fit_attentive(tokens, labels, CLASSES, steps=20)
    alone = torch.cat([attentive_predictions(head, tokens[i : i + 1]) for i in range(20)])
    assert torch.equal(attentive_predictions(head, tokens[:20]), alone)


@pytest.mark.parametrize(("width", "heads"), [(192, 12), (384, 12), (768, 12), (1024, 8), (432, 12), (7, 7), (13, 1)])
def test_heads_divide_the_width(width, heads):
    assert heads_for(width) == heads


def test_channel_statistics_are_those_of_all_tokens():
    tokens = 3 + 2 * torch.randn(50, 9, 6, generator=torch.Generator().manual_seed(0))
    tokens[..., 2] = 5.0
    mean, deviation = channel_statistics(tokens)
    flat = tokens.flatten(0, 1)
    torch.testing.assert_close(mean, flat.mean(0))
    expected = flat.std(0, correction=0)
    expected[2] = 1.0
    torch.testing.assert_close(deviation, expected)
