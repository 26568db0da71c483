"""MoCo v3, BYOL and SimSiam as in their papers: losses, and gradients of the predictions only."""

import pytest
import torch
from parity_fixtures import assert_close, load_fixture

from hf_clip_variants.modeling.slip.self_supervised_losses import byol_loss, moco_v3_loss, simsiam_loss


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("slip_ssl_variants")


LOSSES = {
    "moco_v3": lambda views, inputs: moco_v3_loss(*views, inputs["tau"].item())[0],
    "byol": lambda views, inputs: byol_loss(*views),
    "simsiam": lambda views, inputs: simsiam_loss(*views),
}


@pytest.mark.parametrize("objective", LOSSES)
def test_loss_and_gradients(fixture, objective):
    views = [fixture.inputs[name].clone().requires_grad_() for name in ("p1", "p2", "z1", "z2")]
    loss = LOSSES[objective](views, fixture.inputs)
    loss.backward()
    assert_close(loss, fixture.outputs[f"{objective}.loss"], "loss")
    for name, view in zip(("p1", "p2"), views, strict=False):
        assert_close(view.grad, fixture.outputs[f"{objective}.d_{name}"], f"d_{name}")
    assert all(target.grad is None for target in views[2:]), "no gradient reaches the targets"


def test_every_output_is_compared(fixture):
    assert set(fixture.outputs) == {f"{name}.{what}" for name in LOSSES for what in ("loss", "d_p1", "d_p2")}


def test_swapping_the_views_keeps_the_loss(fixture):
    p1, p2, z1, z2 = (fixture.inputs[name] for name in ("p1", "p2", "z1", "z2"))
    for loss in LOSSES.values():
        torch.testing.assert_close(loss((p1, p2, z1, z2), fixture.inputs), loss((p2, p1, z2, z1), fixture.inputs))
