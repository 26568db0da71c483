"""Gradients from chunks are those of the whole batch. On several ranks: test_contrastive_ranks.py."""

import copy

import pytest
import torch
from contrastive_runs import step_batch
from tiny import tiny_clip

from hf_clip_variants.modeling.losses.contrastive_loss import contrastive_loss
from hf_clip_variants.modeling.losses.contrastive_loss_reference import contrastive_loss_reference
from hf_clip_variants.modeling.losses.gradient_cache import backward_in_chunks


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def whole_batch(model, batch, rounds=1):
    model = copy.deepcopy(model)
    outputs = model(**batch)
    loss = contrastive_loss(outputs.image_embeds, outputs.text_embeds, model.logit_scale, normalize=False)
    loss.backward()
    return loss.detach(), gradients(model)


def assert_same(found, expected, tolerance=1e-5):
    assert set(found) == set(expected)
    for name, grad in expected.items():
        assert (found[name] - grad).norm() <= tolerance * max(grad.norm(), 1e-2), name


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 10, 99])
def test_loss_and_gradients_are_those_of_the_whole_batch(micro_batch_size):
    model, batch = tiny_clip().train(), step_batch(10)
    expected_loss, expected = whole_batch(model, batch)
    loss = backward_in_chunks(model, {**batch, "return_loss": True}, micro_batch_size)
    assert not loss.requires_grad and loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert_same(gradients(model), expected)
    assert "logit_scale" in expected


def test_gradients_add_to_what_is_there():
    model, batch = tiny_clip().train(), step_batch(6)
    _, expected = whole_batch(model, batch)
    for _ in range(2):
        backward_in_chunks(model, batch, 2)
    assert_same(gradients(model), {name: 2 * grad for name, grad in expected.items()})


def test_dropout_drops_the_same_in_both_passes():
    """Finite differences of the loss at fixed random numbers see it if the second pass drops others."""
    model, batch = (
        tiny_clip(text_config={"attention_dropout": 0.5}, vision_config={"attention_dropout": 0.5}),
        step_batch(6),
    )
    model.train().double()
    batch["pixel_values"] = batch["pixel_values"].double()
    weight = model.text_projection.weight
    direction = torch.randn_like(weight)

    def loss_at(step):
        weight.data.add_(step * direction)
        torch.manual_seed(3)
        loss = backward_in_chunks(model, batch, 2)
        weight.data.sub_(step * direction)
        return loss

    torch.manual_seed(3)
    backward_in_chunks(model, batch, 2)
    after = torch.rand(1)
    slope = (weight.grad * direction).sum().item()
    assert slope == pytest.approx(((loss_at(1e-5) - loss_at(-1e-5)) / 2e-5).item(), rel=1e-5)

    torch.manual_seed(3)
    with torch.no_grad():
        for i in range(3):
            model(**{k: v[2 * i : 2 * i + 2] for k, v in batch.items()})
    assert torch.equal(after, torch.rand(1)), "the random numbers after a step go on where one pass leaves them"


def test_the_sigmoid_form_trains_scale_and_bias():
    from transformers import SiglipConfig, SiglipModel

    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = SiglipModel(
        SiglipConfig(text_config={**layers, "vocab_size": 20}, vision_config={**layers, "image_size": 32})
    )
    batch = {"input_ids": torch.randint(20, (6, 5)), "pixel_values": torch.randn(6, 3, 32, 32)}
    reference = copy.deepcopy(model)
    outputs = reference(**batch)
    plain = contrastive_loss_reference(
        outputs.image_embeds, outputs.text_embeds, reference.logit_scale, reference.logit_bias, False
    )
    plain.backward()
    loss = backward_in_chunks(model, batch, 4, form="sigmoid")
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    assert_same(gradients(model), gradients(reference))
    assert {"logit_scale", "logit_bias"} <= set(gradients(model))


def test_a_frozen_encoder_and_scale_stay_without_gradient():
    model, batch = tiny_clip().train(), step_batch(6)
    _, expected = whole_batch(model, batch)
    frozen = {name for name, _ in model.named_parameters() if name.startswith("vision") or name == "logit_scale"}
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    backward_in_chunks(model, batch, 4)
    assert_same(gradients(model), {name: grad for name, grad in expected.items() if name not in frozen})


def test_backward_may_scale_the_gradient():
    model, batch = tiny_clip().train(), step_batch(4)
    _, expected = whole_batch(model, batch)
    backward_in_chunks(model, batch, 2, backward=lambda loss: (1024 * loss).backward())
    assert_same({name: grad / 1024 for name, grad in gradients(model).items()}, expected)


def test_activations_are_those_of_one_chunk():
    model, batch = tiny_clip().train(), step_batch(32)

    def kept(run):
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        live = {"now": 0, "most": 0}

        class Kept:
            def __init__(self, tensor):
                self.tensor, self.bytes = tensor, 0
                if tensor.untyped_storage().data_ptr() not in weights:
                    self.bytes = tensor.numel() * tensor.element_size()
                live["now"] += self.bytes
                live["most"] = max(live.values())

            def __del__(self):
                live["now"] -= self.bytes

        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            run()
        return live["most"]

    whole = kept(lambda: whole_batch(model, batch))
    assert kept(lambda: backward_in_chunks(model, batch, 4)) < whole / 6


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"input_ids": step_batch(3)["input_ids"]},
            r"inputs: expected tensors of one length, got \{'input_ids': 3, 'pixel_values': 4\}",
        ),
        ({"micro_batch_size": 0}, "micro_batch_size: expected a number of pairs >= 1, got 0"),
        ({"input_ids": None, "pixel_values": None}, r"inputs: expected tensors of one length, got \{\}"),
        (step_batch(0), r"inputs: every rank needs a pair for each of 1 chunks, the ranks have \[0\]"),
    ],
)
def test_bad_arguments_are_named(change, message):
    inputs = {**step_batch(4), "micro_batch_size": 2} | change
    with pytest.raises(ValueError, match=message):
        backward_in_chunks(tiny_clip(), inputs, inputs.pop("micro_batch_size"))


def test_batch_normalisation_in_training_is_refused():
    model = tiny_clip()
    model.extra = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="model: extra.0 normalises over the batch, which chunks change"):
        backward_in_chunks(model.train(), step_batch(4), 2)
    model.extra.eval()
    backward_in_chunks(model, step_batch(4), 2)
