"""CLIP-ViL from converted official weights: grid, positions, joint encoder, heads, losses, gradients."""

import pytest
import torch
from parity_fixtures import assert_close, load_fixture
from torch.nn import functional as F

from hf_clip_variants.modeling.clip_vil.answering_clip_vil import (
    ClipViLForPreTraining,
    ClipViLForVisualQuestionAnswering,
)
from hf_clip_variants.modeling.clip_vil.convert_clip_vil import clip_vil_from_official, to_official, unused_names


pytestmark = pytest.mark.parity

SHARED = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")


def weights_of(fixture, head: str) -> dict[str, torch.Tensor]:
    """The file has the heads of two official models."""
    other = {"vqa": ("cls.", "answer_head."), "pretraining": ("logit_fc.",)}[head]
    return {name: tensor for name, tensor in fixture.state_dict.items() if not name.startswith(other)}


def convert(fixture, head: str):
    """Dropout is off in the fixture."""
    said = fixture.meta["hyper"]
    model = clip_vil_from_official(weights_of(fixture, head), text_heads=said["heads"])
    assert model.config.grid_position_size == said["pos_num"] and model.config.num_labels == said["num_answers"]
    assert model.config.visual_width == said["visual_feat_dim"]
    assert model.config.vision_config.depths == said["resnet"]["layers"]
    return model


def shared_inputs(fixture) -> dict[str, torch.Tensor]:
    return {name: fixture.inputs[name] for name in SHARED}


def without_index(labels: torch.Tensor) -> torch.Tensor:
    """The official -1, of labels that do not count, is -100 here."""
    return labels.masked_fill(labels == -1, -100)


@pytest.mark.parametrize(
    "head, kind", [("vqa", ClipViLForVisualQuestionAnswering), ("pretraining", ClipViLForPreTraining)]
)
def test_conversion_uses_every_weight_and_is_bit_identical(head, kind):
    fixture = load_fixture("clip_vil")
    model, weights = convert(fixture, head), weights_of(fixture, head)
    assert type(model) is kind
    back, unused = to_official(model.state_dict(), model.config), unused_names(weights)
    # The official file lacks what older versions of PyTorch did not write.
    made = {name for name in back if name.endswith("num_batches_tracked")}
    assert back.keys() - made | set(unused) == weights.keys() - made and not back.keys() & set(unused)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in back.items() if name in weights)


def test_grid_positions_words_and_pooled_output_equal_official():
    fixture = load_fixture("clip_vil")
    model, given, expected = convert(fixture, "vqa").clip_vil, shared_inputs(fixture), fixture.outputs
    grid = model.get_grid_features(given["pixel_values"])
    assert_close(grid.permute(0, 3, 1, 2), expected["grid_features_nchw"], "grid_features", 1e-5)
    tokens = model.grid_position(grid)
    assert_close(tokens, expected["grid_tokens_with_pos"], "grid_tokens_with_pos", 1e-5)
    assert_close(model.grid_projection(tokens), expected["visual_embeds"], "visual_embeds", 1e-5)
    there = given["attention_mask"].bool()
    for inputs in (given, {n: v for n, v in given.items() if n != "pixel_values"} | {"grid_features": grid}):
        found = model(**inputs)
        assert_close(found.language_output[there], expected["language_output"][there], "language_output", 1e-5)
        assert_close(found.vision_output, expected["vision_output"], "vision_output", 1e-5)
        assert_close(found.pooler_output, expected["pooled"], "pooled", 1e-5)


def test_answers_and_both_losses_of_soft_labels_equal_official():
    fixture = load_fixture("clip_vil")
    model, target = convert(fixture, "vqa"), fixture.inputs["vqa_target"]
    found = model(**shared_inputs(fixture), labels=target)
    assert_close(found.logits, fixture.outputs["vqa_logits"], "vqa_logits", 1e-5)
    assert_close(found.loss, fixture.outputs["vqa_bce_times_answers"], "vqa_bce_times_answers", 1e-5)
    mean = F.binary_cross_entropy_with_logits(found.logits, target)
    assert_close(mean, fixture.outputs["vqa_bce_mean"], "vqa_bce_mean", 1e-5)


def pretrained(fixture):
    given = fixture.inputs
    model = convert(fixture, "pretraining")
    labels = {
        "labels": given["mlm_labels"],
        "matching_labels": given["matched_label"],
        "answer_labels": given["answer"],
    }
    return model, model(**shared_inputs(fixture), **{name: without_index(value) for name, value in labels.items()})


def test_pretraining_losses_and_logits_equal_official():
    fixture = load_fixture("clip_vil")
    _, found = pretrained(fixture)
    expected = fixture.outputs
    there = fixture.inputs["attention_mask"].bool()
    assert_close(found.prediction_logits[there], expected["mlm_logits"][there], "mlm_logits", 1e-5)
    assert_close(found.matching_logits, expected["match_logits"], "match_logits", 1e-5)
    assert_close(found.answer_logits, expected["pretrain.answer_logits"], "answer_logits", 1e-5)
    assert_close(found.loss, expected["pretrain.total"], "total", 1e-5)
    losses = torch.stack([found.loss_dict[name] for name in ("mlm", "matching", "answers")])
    assert_close(losses, expected["pretrain.losses_mlm_match_qa"].flatten(), "losses", 1e-5)


def test_gradients_of_the_pretraining_loss_equal_official():
    fixture = load_fixture("clip_vil")
    expected = {name.removeprefix("grad."): t for name, t in fixture.outputs.items() if name.startswith("grad.")}
    model, found = pretrained(fixture)
    found.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    official = to_official(
        {name: torch.zeros_like(t) for name, t in model.state_dict().items()} | gradients, model.config
    )
    for name, tensor in expected.items():
        assert_close(official[name], tensor, f"grad.{name}", 1e-4)
    assert expected
