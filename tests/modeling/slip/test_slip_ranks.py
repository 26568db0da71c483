"""SLIP on several processes: a training step equals that of one process with the whole batch, including the statistics
of batch normalisation."""

import pytest
import torch
from contrastive_runs import run_ranks
from slip_runs import OBJECTIVES, PROGRAM, slip_batch, slip_model, train_by_trainer, train_steps

from hf_clip_variants.modeling.slip.self_supervised_losses import byol_loss, moco_v3_loss, simclr_loss, simsiam_loss


EVEN, UNEVEN = [4, 4], [5, 3]
TEMPERATURE = 0.3
AFTER_STEPS = 1e-9  # in float64: the gradient of some biases is 0, and in float32 only rounding would be compared


@pytest.fixture(scope="module")
def views():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(8, 6, generator=generator)
    return {"aug1": first, "aug2": first + torch.randn(8, 6, generator=generator)}


@pytest.fixture(scope="module")
def ranks(views, tmp_path_factory):
    steps = [(objective, "exact") for objective in OBJECTIVES] + [("simclr", "slip")]
    options = {
        "counts": [EVEN, UNEVEN],
        "temperature": TEMPERATURE,
        "failures": True,
        "trainer": ["simclr", "moco_v3"],
    }
    return run_ranks(tmp_path_factory.mktemp("ranks"), 2, views, PROGRAM, steps=steps, **options)


def close(actual, expected, what="", tolerance=2e-5):
    scale = expected.abs().max().clamp_min(1e-2).item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("counts", [EVEN, UNEVEN], ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_and_averaged_gradients_equal_one_process(ranks, views, counts, objective):
    prefix = f"{'-'.join(map(str, counts))}.{objective}."
    online = [views[name].clone().requires_grad_() for name in ("aug1", "aug2")]
    targets = [-views[name].flip(1) for name in ("aug1", "aug2")]
    loss = {
        "simclr": lambda: simclr_loss(*online, TEMPERATURE)[0],
        "moco_v3": lambda: moco_v3_loss(*online, *targets, TEMPERATURE)[0],
        "byol": lambda: byol_loss(*online, *targets),
        "simsiam": lambda: simsiam_loss(*online, *targets),
    }[objective]()
    loss.backward()
    for tensors, _ in ranks:
        close(tensors[prefix + "loss"], loss.detach(), "loss")
    for name, view in zip(("aug1", "aug2"), online, strict=True):
        average = torch.cat([tensors[f"{prefix}d_{name}"] for tensors, _ in ranks]) / len(ranks)
        close(average, view.grad, name)


@pytest.mark.parametrize(
    ("objective", "counts"), [(name, counts) for name in OBJECTIVES for counts in (EVEN, UNEVEN)], ids=str
)
def test_ddp_steps_equal_those_of_one_process(ranks, objective, counts):
    model = slip_model(ssl_objective=objective).double()
    expected = train_steps(model, model, slip_batch(8))
    assert any(name.startswith("after.ssl_projector.bn1.running_var") for name in expected)
    for rank, (tensors, _) in enumerate(ranks):
        prefix = f"{'-'.join(map(str, counts))}.{objective}.exact."
        found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            close(found[name], tensor, f"{name} of rank {rank}", AFTER_STEPS)


def test_official_gather_changes_gradients_of_the_clip_loss_only(ranks):
    model = slip_model().double()
    expected = train_steps(model, model, slip_batch(8))
    losses = []
    for tensors, _ in ranks:
        prefix = "4-4.simclr.slip."
        losses.append(tensors[prefix + "clip_loss0"])
        close(tensors[prefix + "ssl_loss0"], expected["ssl_loss0"], "ssl_loss")
        close(tensors[prefix + "grad.ssl_projector.layer3.weight"], expected["grad.ssl_projector.layer3.weight"])
        differs = tensors[prefix + "grad.text_projection.weight"] - expected["grad.text_projection.weight"]
        assert differs.abs().max() > 0.01 * expected["grad.text_projection.weight"].abs().max()
    assert losses[0] != losses[1], "each rank returns the loss of its own rows"
    close(torch.stack(losses).mean(), expected["clip_loss0"], "mean over ranks")


@pytest.mark.parametrize("objective", ["simclr", "moco_v3"])
def test_trainer_on_two_processes_equals_one(ranks, objective, tmp_path):
    model, logged = train_by_trainer(
        tmp_path, 8, arguments={"save_strategy": "no"}, dtype=torch.float64, ssl_objective=objective
    )
    for tensors, _ in ranks:
        for name, tensor in model.state_dict().items():
            close(tensors[f"trainer.{objective}.{name}"], tensor, name, AFTER_STEPS)
    assert ranks[0][1][f"trainer.{objective}"] == pytest.approx(logged, rel=1e-4)


def test_error_on_one_rank_is_raised_on_all(ranks):
    first, last = (found for _, found in ranks)
    assert "ranks [1] of 2 refused their input" in first["shape"]
    assert last["shape"].startswith(
        "ValueError: view1, view2: expected the same shape (images, width), got (4, 4), (3, 4)"
    )
    assert first["afterwards"] == last["afterwards"] == "no error"
    assert first["one image per rank"] == last["one image per rank"] == "no error", "together they are a batch of two"
    assert first["evaluation on one rank"] == "no error"
