"""GroupViT in training: Trainer's accumulation, interruption and number types, and several processes."""

import pytest
import torch
from contrastive_runs import run_ranks
from groupvit_runs import PROGRAM, calm_model, groupvit_batch, train_by_trainer, train_steps

from hf_clip_variants.modeling.groupvit.multi_label_loss import multi_label_loss, multi_label_loss_reference


EVEN, UNEVEN = [4, 4], [5, 3]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_ranks(tmp_path_factory.mktemp("ranks"), 2, program=PROGRAM, counts=[EVEN, UNEVEN], micro_batch=2)


def close(actual, expected, what="", tolerance=1e-9):
    scale = expected.abs().max().clamp_min(1e-2).item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale, msg=lambda text: f"{what}: {text}")


@pytest.fixture(scope="module")
def one_process():
    model, batch = calm_model(), groupvit_batch(8)
    batch["pixel_values"] = batch["pixel_values"].double()
    return train_steps(model, model, batch)


@pytest.mark.parametrize("way", ["whole", "chunks"])
@pytest.mark.parametrize("counts", [EVEN, UNEVEN], ids=str)
def test_steps_of_two_processes_equal_those_of_one(ranks, one_process, counts, way):
    """Losses, gradients of every parameter (also of both temperatures), weights and statistics after two steps; the
    same with GradCache on top."""
    for rank, (tensors, _) in enumerate(ranks):
        prefix = f"{'-'.join(map(str, counts))}.{way}."
        found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        wanted = {name for name in one_process if way == "whole" or not name.startswith("multi_label_loss")}
        assert found.keys() == wanted and "grad.multi_label_logit_scale" in found
        for name in wanted:
            close(found[name], one_process[name], f"{name} of rank {rank}")


def test_trainer_on_two_processes_equals_one(ranks, tmp_path):
    options = {"arguments": {"save_strategy": "no"}, "dtype": torch.float64, "vision": {"gumbel_noise": False}}
    model, logged = train_by_trainer(tmp_path, 8, **options)
    for tensors, _ in ranks:
        for name, tensor in model.state_dict().items():
            close(tensors[f"trainer.{name}"], tensor, name)
    assert ranks[0][1]["trainer"] == pytest.approx(logged, rel=1e-4)


def test_an_error_on_one_rank_is_raised_on_all(ranks):
    first, last = (found for _, found in ranks)
    assert "ranks [1] of 2 refused their input" in first["shape"]
    assert last["shape"].startswith("ValueError: image_embeds, prompt_embeds: expected (images, width)")
    for found in (first, last):
        assert "width differs over the ranks: [3, 5]" in found["more prompts"]
        assert found["afterwards"] == "no error"
    assert first["evaluation on one rank"] == "no error"


@pytest.mark.parametrize("form", ["mean_of_logs", "log_of_sum"])
def test_multi_label_loss_is_the_papers_equation(form):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    prompts = torch.randn(5, 3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    inputs = (images, prompts, scale)
    ours, plain = multi_label_loss(*inputs, form=form), multi_label_loss_reference(*inputs, form)
    torch.testing.assert_close(ours, plain)
    for found, wanted in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(plain, inputs), strict=True):
        torch.testing.assert_close(found, wanted)


def test_wrong_arguments_of_the_multi_label_loss_are_named():
    x, scale = torch.eye(3), torch.zeros(())
    for arguments, options, said in (
        ((x, x, scale), {}, r"got \(3, 3\) and \(3, 3\)"),
        ((x, x[:2, None], scale), {}, r"got \(3, 3\) and \(2, 1, 3\)"),
        ((x, torch.zeros(3, 2, 4), scale), {}, "expected the same width"),
        ((x[:0], torch.zeros(0, 2, 3), scale), {}, "the batch is empty"),
        ((x, x[:, None], scale), {"form": "sum"}, "form: 'sum', expected"),
        ((x, x[:, None], scale), {"gather": "some"}, "gather: 'some', expected"),
    ):
        with pytest.raises(ValueError, match=said):
            multi_label_loss(*arguments, **options)


def test_a_resumed_training_draws_the_noise_that_it_would_have_drawn(tmp_path):
    once, losses = train_by_trainer(tmp_path / "run", 8)
    resumed, again = train_by_trainer(tmp_path / "run", 8, resume=str(tmp_path / "run" / "checkpoint-2"))
    assert again == losses
    for name, tensor in once.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    other, _ = train_by_trainer(tmp_path / "other", 8, arguments={"seed": 1, "save_strategy": "no"})
    assert not torch.equal(other.logit_scale, once.logit_scale), "there is noise, by the seed"


def test_trainer_in_bfloat16_is_near_float32(tmp_path):
    options = {"vision": {"gumbel_noise": False, "assignment": "soft"}}
    quiet = {"save_strategy": "no"}
    _, exact = train_by_trainer(tmp_path / "a", 8, arguments=dict(quiet), steps=2, **options)
    _, rough = train_by_trainer(tmp_path / "b", 8, arguments=quiet | {"bf16": True}, steps=2, **options)
    assert rough[0] == pytest.approx(exact[0], rel=0.02) and rough != exact
    assert len(rough) == 2 and rough[1] < rough[0]


def test_accumulation_scales_no_loss(tmp_path):
    """The negatives are those of a micro-batch; a larger batch needs more ranks or GradCache."""
    options = {"vision": {"gumbel_noise": False}, "arguments": {"save_strategy": "no"}, "steps": 1}
    _, whole = train_by_trainer(tmp_path / "a", 8, **{**options, "arguments": dict(options["arguments"])})
    _, halves = train_by_trainer(tmp_path / "b", 4, 2, **{**options, "arguments": dict(options["arguments"])})
    assert halves[0] < whole[0] < 2 * halves[0]
