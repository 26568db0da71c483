"""FND-CLIP from converted official weights: logits, loss, every step between, gradients, training mode."""

import pytest
import torch
from fnd_clip_runs import official_inputs, official_model
from parity_fixtures import assert_close, load_fixture

from hf_clip_variants.modeling.fnd_clip.convert_fnd_clip import to_official


pytestmark = pytest.mark.parity

STEPS = {  # official name -> ours
    "logits": "logits",
    "text_raw_plus_clip": "text_features",
    "text_prime": "text_embeds",
    "image_prime": "image_embeds",
    "fused": "fused_embeds",
    "similarity": "similarity",
}


def test_conversion_uses_every_weight_and_is_bit_identical():
    fixture = load_fixture("fndclip")
    model, said = official_model(fixture), fixture.meta["hyper"]
    config = model.config
    assert (config.shared_dim, config.feature_dim, config.hidden_dim) == (said["shared"], said["f"], said["h"])
    assert (config.num_text_states, config.hidden_size, config.projection_dim) == (
        said["L"],
        said["bert"],
        said["clip"],
    )
    back = to_official(model.state_dict(), config)
    ours = {name: tensor for name, tensor in back.items() if not name.startswith("resnet101.")}
    assert ours.keys() == fixture.state_dict.keys()
    assert all(torch.equal(tensor, fixture.state_dict[name]) for name, tensor in ours.items())


def test_logits_loss_and_every_step_equal_official():
    fixture = load_fixture("fndclip")
    model, given, expected = official_model(fixture), official_inputs(fixture), fixture.outputs
    assert model.config.batch_layer_attention
    with torch.no_grad():
        found = model(**given, labels=fixture.inputs["labels"])
        steps = model.fusion(**given)
    assert_close(found.loss, expected["loss"], "loss", 1e-5)
    for official, ours in STEPS.items():
        assert_close(steps[ours], expected[official], official, 1e-5)
        if ours in found:
            assert torch.equal(found[ours], steps[ours]), ours
    both = torch.cat([given["clip_text_features"], given["clip_image_features"]], -1)
    assert_close(model.fusion.cross_branch(both), expected["correlation"], "correlation", 1e-5)
    factor = model.fusion.similarity_factor * expected["similarity"] + model.fusion.similarity_summand
    assert_close(steps["cross_embeds"], (expected["correlation"] * factor[:, None]).detach(), "weighted", 1e-5)
    assert_close(found.layer_attention, expected["layer_attention"].expand_as(found.layer_attention), "layers", 1e-5)
    rows = torch.stack([steps["text_embeds"], steps["image_embeds"], steps["cross_embeds"]], 1)
    attention = model.fusion.modality_attention
    mean, largest = attention.scores(rows.mean(-1)), attention.scores(rows.amax(-1))
    assert_close(mean, expected["senet_avg"], "senet_avg", 1e-5)
    assert_close(largest, expected["senet_max"], "senet_max", 1e-5)
    assert_close(found.modality_weights, (expected["senet_avg"] + expected["senet_max"]).sigmoid(), "weights", 1e-5)


def test_a_post_alone_differs_in_the_published_way_and_not_in_ours():
    fixture = load_fixture("fndclip")
    given, expected = official_inputs(fixture), fixture.outputs
    alone = {name: value[:1] for name, value in given.items()}
    with torch.no_grad():
        published = official_model(fixture)(**alone).logits
        assert_close(published, expected["logits_first_sample_alone"], "alone", 1e-5)
        assert (published - expected["logits"][:1]).abs().max() > 1e-4
        # A batch of one is the same in both ways: its sums over the batch are its own.
        ours = official_model(fixture, batch_layer_attention=False)
        assert_close(ours(**alone).logits, expected["logits_first_sample_alone"], "ours alone", 1e-5)
        assert_close(ours(**given).logits[:1], expected["logits_first_sample_alone"], "ours in the batch", 1e-5)


def test_gradients_equal_official():
    fixture = load_fixture("fndclip")
    model = official_model(fixture)
    model(**official_inputs(fixture), labels=fixture.inputs["labels"]).loss.backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    gradients |= dict(model.named_buffers())
    official = to_official(gradients, model.config)
    compared = [name for name in fixture.outputs if name.startswith("grad.")]
    for name in compared:
        assert_close(official[name.removeprefix("grad.")], fixture.outputs[name], name, 1e-4)
    assert compared


def test_training_mode_equals_official():
    fixture = load_fixture("fndclip")
    model = official_model(fixture, dropout=0.0).train()
    logits = model(**official_inputs(fixture)).logits
    assert_close(logits, fixture.outputs["train_mode_logits_dropout0"], "train_mode_logits_dropout0", 1e-5)
