"""GroupViT's losses and its assignment of tokens to groups, with gradients."""

import math
import re

import pytest
import torch
from parity_fixtures import assert_close, load_fixture

from hf_clip_variants.modeling.groupvit.grouping_groupvit import assign_to_groups
from hf_clip_variants.modeling.groupvit.multi_label_loss import (
    LARGEST_SCALE,
    multi_label_loss,
    multi_label_loss_reference,
)
from hf_clip_variants.modeling.losses.contrastive_loss import contrastive_loss


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("groupvit_losses")


def clamped(scale):
    return scale.clamp(max=math.log(LARGEST_SCALE))


def leaves(fixture, *names):
    return [fixture.inputs[name].clone().requires_grad_() for name in names]


@pytest.mark.parametrize("suffix", ["", "_clamped"])
def test_contrastive_loss_equals_official(fixture, suffix):
    image, text, scale = leaves(fixture, "image_x", "text_x", f"logit_scale{suffix}")
    loss = contrastive_loss(image, text, clamped(scale))
    loss.backward()
    name = f"contrastive{suffix}"
    assert_close(loss.detach(), fixture.outputs[name], name)
    assert_close(image.grad, fixture.outputs[f"grad_image_{name}"], "image")
    assert_close(text.grad, fixture.outputs[f"grad_text_{name}"], "text")
    assert_close(scale.grad, fixture.outputs[f"grad_logit_scale_{name}"], "scale")
    if suffix:
        assert scale.grad == 0, "above the limit the scale has no gradient"


@pytest.mark.parametrize(
    ("name", "image_name", "scale_name"),
    [
        ("multi_label", "image_x", "multi_label_logit_scale"),
        ("multi_label_shared_temperature", "image_x", "logit_scale"),
        ("multi_label_L1_2", "image_multi_x", "multi_label_logit_scale"),
    ],
)
def test_multi_label_loss_equals_official(fixture, name, image_name, scale_name):
    image, text, scale = leaves(fixture, image_name, "text_multi_label_x", scale_name)
    loss = multi_label_loss(image, text, scale)
    loss.backward()
    assert_close(loss.detach(), fixture.outputs[name], name)
    assert_close(scale.grad, fixture.outputs[f"grad_{scale_name}_{name}"], "scale")
    if name != "multi_label_shared_temperature":
        assert_close(image.grad, fixture.outputs[f"grad_image_{name}"], "image")
        assert_close(text.grad, fixture.outputs[f"grad_text_{name}"], "text")
    if image.dim() == 2:
        assert_close(multi_label_loss_reference(image, text, scale), fixture.outputs[name], "reference")


def test_losses_of_two_ranks_are_those_of_one_process_with_all_pairs(fixture):
    """The mean of the ranks' official losses, and its gradients; on real ranks: tests/modeling/groupvit."""
    names = ("image_x", "text_x", "text_multi_label_x")
    halves = [leaves(fixture, *(f"{name}_rank{rank}" for name in names)) for rank in (0, 1)]
    image, text, prompts = (torch.cat(parts) for parts in zip(*halves, strict=True))
    first = contrastive_loss(image, text, fixture.inputs["logit_scale"])
    second = multi_label_loss(image, prompts, fixture.inputs["multi_label_logit_scale"])
    (first + second).backward()
    for loss, kind in ((first, "contrastive"), (second, "multi_label")):
        official = torch.stack([fixture.outputs[f"{kind}_world2_rank{rank}"] for rank in (0, 1)]).mean()
        assert_close(loss.detach(), official, kind)
    for rank, leaf in enumerate(halves):
        for tensor, name in zip(leaf, ("image", "text", "text_multi_label"), strict=True):
            assert_close(tensor.grad, fixture.outputs[f"grad_{name}_world2_rank{rank}"], f"{name} of rank {rank}")


# ---- assignment


@pytest.fixture(scope="module")
def assignment():
    return load_fixture("groupvit_assign_softmax")


def test_assignments_and_their_gradients_equal_official(assignment):
    names = [name for name in assignment.outputs if not name.startswith("grad_")]
    assert names
    for name in names:
        options = {}
        if found := re.fullmatch(r"gumbel_tau([\d.]+)_hard([01])", name):
            options = {"noise": assignment.inputs["gumbel_noise"], "temperature": float(found[1])}
            options["hard"] = found[2] == "1"
        logits = assignment.inputs["logits"].clone().requires_grad_()
        shares = assign_to_groups(logits, **options)
        (shares * assignment.inputs["cotangent"]).sum().backward()
        assert_close(shares.detach(), assignment.outputs[name], name)
        assert_close(logits.grad, assignment.outputs[f"grad_{name}"], f"gradient of {name}")
