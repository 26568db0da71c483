"""The official SIMCLRLoss on one process and on several."""

import pytest
import torch
from contrastive_runs import run_ranks
from parity_fixtures import assert_close, load_fixture
from slip_runs import PROGRAM

from hf_clip_variants.modeling.slip.self_supervised_losses import simclr_loss


pytestmark = pytest.mark.parity

GRADIENTS = ("d_aug1", "d_aug2")


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("slip_simclr_loss")


@pytest.fixture(scope="module")
def ranks(fixture, tmp_path_factory):
    counts = [fixture.meta["per_rank_batch"]] * fixture.meta["world_size"]
    inputs = {name: fixture.inputs[name] for name in ("aug1", "aug2")}
    options = {"program": PROGRAM, "counts": [counts], "temperature": fixture.meta["temperature"]}
    found = run_ranks(tmp_path_factory.mktemp("ranks"), len(counts), inputs, **options)
    prefix = "-".join(map(str, counts)) + ".simclr."
    return [{k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)} for tensors, _ in found]


@pytest.mark.parametrize("swapped", [False, True])
def test_loss_and_gradients_of_one_process_equal_official(fixture, swapped):
    views = [fixture.inputs[name].clone().requires_grad_() for name in ("aug1", "aug2")]
    loss, accuracy = simclr_loss(*(views[::-1] if swapped else views), fixture.meta["temperature"])
    loss.backward()
    assert_close(loss, fixture.outputs["single.loss"], "loss")
    for name, view in zip(GRADIENTS, views, strict=True):
        assert_close(view.grad, fixture.outputs[f"single.{name}"], name)
    if not swapped:
        assert_close(100 * accuracy, fixture.outputs["single.acc"], "acc")


def test_gradients_and_accuracy_of_each_rank_equal_official(fixture, ranks):
    for rank, tensors in enumerate(ranks):
        assert_close(100 * tensors["acc"], fixture.outputs[f"simclr.rank{rank}.acc"], f"acc of rank {rank}")
        for name in GRADIENTS:
            assert_close(tensors[name], fixture.outputs[f"simclr.rank{rank}.{name}"], f"{name} of rank {rank}")


def test_loss_of_each_rank_is_the_mean_of_the_official_losses(fixture, ranks):
    official = torch.stack([fixture.outputs[f"simclr.rank{rank}.loss"] for rank in range(len(ranks))])
    for tensors in ranks:
        assert_close(tensors["loss"], official.mean(), "loss")
        assert_close(tensors["loss"], fixture.outputs["single.loss"], "loss of one process")


def test_gradients_averaged_over_ranks_equal_one_process(fixture, ranks):
    for name in GRADIENTS:
        average = torch.cat([tensors[name] for tensors in ranks]) / len(ranks)
        assert_close(average, fixture.outputs[f"single.{name}"], name)


def test_every_output_is_compared(fixture):
    compared = {"loss", "acc", *GRADIENTS}
    places = ["single", *(f"simclr.rank{rank}" for rank in range(fixture.meta["world_size"]))]
    assert set(fixture.outputs) == {f"{place}.{name}" for place in places for name in compared}
