"""LSeg in training: `Trainer` with its two learning rates, half precision, two processes, and what it learns."""

import pytest
import torch
from lseg_runs import lseg_ids, lseg_inputs, lseg_model
from paths import PROGRAMS
from processes import run_on_ranks
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from hf_clip_variants.modeling.lseg.finetuning_lseg import RECIPES, make_optimizer, parameter_groups


def rows(count: int, size=(32, 64)) -> list[dict]:
    inputs = lseg_inputs(count, size)
    return [{name: value[row] for name, value in inputs.items()} for row in range(count)]


def train(model, folder, recipe="published", **changes):
    recipe = RECIPES[recipe]
    options = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    arguments = TrainingArguments(str(folder), **recipe.arguments(**options | {"max_steps": 3} | changes))
    trainer = Trainer(model, arguments, train_dataset=rows(8), optimizers=(make_optimizer(model, recipe), None))
    trainer.train()
    return trainer


def test_the_decoder_has_ten_times_the_learning_rate_of_the_encoder():
    model = lseg_model(head_block="bottleneck", use_auxiliary_head=True)
    encoder, head = parameter_groups(model, 0.001)
    assert (encoder["lr"], head["lr"]) == (0.001, 0.01)
    of_head = {id(parameter) for parameter in head["params"]}
    marks = {name: id(p) in of_head for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, mark in marks.items() if mark} == {
        name
        for name in marks
        if name.startswith(
            ("lseg.neck.convs", "lseg.neck.fusion", "lseg.pixel_projection", "auxiliary_projection", "head_block")
        )
    }
    assert len(encoder["params"]) + len(head["params"]) == len(marks)
    assert not any("text" in name for name in marks)
    model.lseg.vision_model.requires_grad_(False)
    assert parameter_groups(model, 0.001)[0]["lr"] == 0.001  # the convolutions that make maps of tokens
    with pytest.raises(ValueError, match="head_factor: got -1, expected a number >= 0"):
        parameter_groups(model, 0.001, head_factor=-1)


def test_trainer_follows_the_published_schedule_and_leaves_the_text_encoder_alone(tmp_path):
    model = lseg_model()
    texts = {name: tensor.clone() for name, tensor in model.lseg.text_model.state_dict().items()}
    vision = {name: tensor.clone() for name, tensor in model.lseg.vision_model.state_dict().items()}
    trainer = train(model, tmp_path, max_steps=4)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([0.001 * (1 - done / 4) ** 0.9 for done in range(4)], abs=1e-9)
    assert type(trainer.optimizer.optimizer) is torch.optim.SGD
    assert [group["initial_lr"] for group in trainer.optimizer.param_groups] == [0.001, 0.01]
    assert all(torch.equal(tensor, texts[name]) for name, tensor in model.lseg.text_model.state_dict().items())
    assert any(not torch.equal(tensor, vision[name]) for name, tensor in model.lseg.vision_model.state_dict().items())
    assert not any(module.training for module in model.lseg.text_model.modules())


def test_recipes_name_what_trainer_takes(tmp_path):
    for name, recipe in RECIPES.items():
        arguments = TrainingArguments(str(tmp_path), **recipe.arguments(use_cpu=True))
        assert arguments.num_train_epochs == recipe.epochs, name
        assert arguments.load_best_model_at_end == bool(recipe.patience) == bool(recipe.learning_rates), name
        groups = make_optimizer(lseg_model(), recipe, learning_rate=0.5).param_groups
        assert [group["lr"] for group in groups] == [0.5, 0.5 * recipe.head_factor], name


def test_the_loss_is_a_mean_over_labelled_pixels_under_accumulation(tmp_path):
    """Half of the pixels are ignored, and `Trainer` would divide by a count in which they take part."""
    losses = []
    for batch, accumulation in ((4, 1), (2, 2)):
        model, data = lseg_model(freeze_batch_norm=True), rows(4)
        for row in data:
            row["labels"][:16] = 255
        arguments = RECIPES["published"].arguments(
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
            train_sampling_strategy="sequential",
        )
        optimizer = make_optimizer(model, RECIPES["published"])
        trainer = Trainer(
            model, TrainingArguments(str(tmp_path), **arguments), train_dataset=data, optimizers=(optimizer, None)
        )
        trainer.train()
        losses.append((trainer.state.log_history[0]["loss"], model.lseg.pixel_projection.weight.detach().clone()))
    model = lseg_model(freeze_batch_norm=True).train()
    inputs = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    expected = torch.nn.functional.cross_entropy(model(**inputs).logits, inputs["labels"], ignore_index=255)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4) == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(losses[0][1], losses[1][1], rtol=1e-4, atol=1e-6)


def test_scores_are_float32_under_autocast_and_training_in_bfloat16_is_finite(tmp_path):
    model, inputs = lseg_model(), lseg_inputs(2)
    with torch.no_grad():
        exact = model(**inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(**inputs).logits
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0, atol=0.05 * exact.abs().max().item())
    trainer = train(lseg_model(head_block="depthwise", use_auxiliary_head=True), tmp_path, bf16=True)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and all(torch.isfinite(torch.tensor(losses)))


def test_training_goes_on_from_a_checkpoint(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "bf16": True}
    whole = train(lseg_model(head_block="bottleneck"), tmp_path, **options)
    model = lseg_model(head_block="bottleneck", seed=1)  # other weights
    optimizer = make_optimizer(model, RECIPES["published"])
    resumed = Trainer(model, whole.args, train_dataset=rows(8), optimizers=(optimizer, None))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_two_processes_train_as_one(tmp_path):
    run_on_ranks(PROGRAMS / "lseg_ranks.py", tmp_path, world_size=2, folder=tmp_path)
    found = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)]
    model = lseg_model(head_block="bottleneck", use_auxiliary_head=True, freeze_batch_norm=True).train()
    optimizer = make_optimizer(model, RECIPES["published"])
    for _ in range(2):
        model.zero_grad()
        model(**lseg_inputs(4)).loss.backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[0][name], found[1][name]), name
        torch.testing.assert_close(found[0][name], tensor, rtol=1e-4, atol=1e-6, msg=name)


# ---- what it learns


def blobs(count: int, colours: list[int], seed: int) -> dict[str, torch.Tensor]:
    """Two discs on grey in each image; a label is 0, or 1 + its colour."""
    generator = torch.Generator().manual_seed(seed)
    palette = torch.tensor([[1.0, -1, -1], [-1, 1.0, -1], [-1, -1, 1.0], [1.0, 1.0, -1]])
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    images, labels = 0.1 * torch.randn(count, 3, 32, 32, generator=generator), torch.zeros(count, 32, 32).long()
    for image, label in zip(images, labels, strict=True):
        for x in (8, 24):
            colour = colours[int(torch.randint(len(colours), (), generator=generator))]
            y = int(torch.randint(8, 24, (), generator=generator))
            disc = (rows - y) ** 2 + (columns - x) ** 2 < 49
            label[disc] = 1 + colour
            image += palette[colour][:, None, None] * disc
    return {"pixel_values": images, "labels": labels}


def test_it_learns_named_colours_whatever_the_order_of_the_names():
    torch.manual_seed(0)
    model = lseg_model().train()
    texts = {name: tensor.clone() for name, tensor in model.lseg.text_model.state_dict().items()}
    ids, order = lseg_ids(labels=4), [2, 0, 3, 1]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    for step in range(60):
        batch = blobs(16, [0, 1, 2], seed=step)
        loss = model(**batch, input_ids=ids).loss
        model.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    batch = blobs(24, [0, 1, 2], seed=999)
    with torch.no_grad():
        found = model(batch["pixel_values"], input_ids=ids).logits.argmax(1)
        permuted = model(batch["pixel_values"], input_ids=ids[order]).logits.argmax(1)
    assert (found == batch["labels"]).float().mean() > 0.9
    assert (found == batch["labels"])[batch["labels"] > 0].float().mean() > 0.8
    assert torch.equal(torch.tensor(order)[permuted], found)
    assert all(torch.equal(tensor, texts[name]) for name, tensor in model.lseg.text_model.state_dict().items())
