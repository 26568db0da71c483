"""The grammar of prompts, and the losses of views."""

import math

import pytest
import torch

from hf_clip_variants.modeling.synthesis.guiding_prompts import (
    Goal,
    Prompt,
    cosine_distance,
    parse_prompts,
    prompt_losses,
    spherical_distance,
)


def test_weights_and_stops_stand_behind_colons():
    assert parse_prompts("a:1:-inf | b:-0.5") == [Prompt("a"), Prompt("b", -0.5)]
    assert parse_prompts("a clock: noon:2") == [Prompt("a clock: noon", 2.0)]
    assert parse_prompts("x:1:0.3") == [Prompt("x", 1.0, 0.3)]
    for text in ("", "  ", "a||b", ":3", "a:0", "a:nan", "a:1e9", "|".join("a" * 100), None):
        with pytest.raises(ValueError, match="prompt"):
            parse_prompts(text)


def test_a_stop_takes_the_gradient_and_leaves_the_value():
    views = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    text = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    values, slopes = [], []
    for stop in (-math.inf, 5.0):
        loss = prompt_losses(views, [Goal.of(text, [Prompt("a", 1.0, stop)])])
        values.append(loss.item())
        slopes.append(torch.autograd.grad(loss.sum(), views)[0].abs().sum().item())
    assert values[0] == values[1] and slopes[0] > 0 and slopes[1] == 0


def test_a_negative_weight_turns_the_sign():
    views, text = torch.randn(2, 3, 8), torch.randn(1, 8)
    for distance in (cosine_distance, spherical_distance):
        both = [prompt_losses(views, 2 * [Goal.of(text, [Prompt("a", w)])], distance, "mean") for w in (0.3, -0.3)]
        torch.testing.assert_close(both[0], -both[1])


def test_spherical_distance_of_equal_and_opposite_vectors_has_finite_gradients():
    a = torch.randn(3, 8, requires_grad=True)
    other = torch.stack([a[0].detach(), -a[1].detach(), torch.randn(8)])
    found = spherical_distance(a, other)
    assert found[0, 0].item() == pytest.approx(0, abs=1e-6)
    assert found[1, 1].item() == pytest.approx(math.pi**2 / 2, rel=1e-3)
    found.sum().backward()
    assert a.grad.isfinite().all()
