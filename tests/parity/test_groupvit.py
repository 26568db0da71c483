"""GroupViT from converted official weights: the image encoder at several sizes, the whole model, a training step."""

import pytest
import torch
from groupvit_runs import converted, without_drop_path
from parity_fixtures import assert_close, load_fixture
from torch.nn import functional as F

from hf_clip_variants import GroupViTForSemanticSegmentation
from hf_clip_variants.modeling.groupvit.convert_groupvit import to_official, vision_from_official


pytestmark = pytest.mark.parity


# ---- the image encoder


@pytest.fixture(scope="module")
def encoder_fixture():
    return load_fixture("groupvit_encoder")


def make_encoder(fixture):
    heads = fixture.meta["img_encoder"]["num_heads"][0]
    return without_drop_path(vision_from_official(fixture.state_dict, vision_heads=heads))


def encoder_results(fixture, encoder, index: int) -> dict[str, torch.Tensor]:
    """Outputs of the encoder for image batch `index`, under the fixture's names."""
    pixels = fixture.inputs[f"pixel_values_{index}"]
    outputs = encoder(pixels, interpolate_pos_encoding=True)
    grid = encoder.embeddings.patch_grid(pixels)
    found = {"pooled": outputs.pooler_output, "feat": outputs.last_hidden_state}
    found["pos_embed"] = encoder.embeddings.positions(grid)
    found = {f"{name}_{index}": tensor for name, tensor in found.items()}
    stages = encoder.config.grouping_stages
    for names, tensors in (
        ("soft_attn", outputs.stage_maps),
        ("hard_attn", outputs.stage_assignments),
        ("group_tokens", outputs.stage_group_tokens),
    ):
        for stage, tensor in zip(stages, tensors, strict=True):
            found[f"{names}_{index}_stage{stage}"] = tensor[:, None] if names.endswith("attn") else tensor
    for stage, tensor in enumerate(outputs.stage_tokens):
        found[f"tokens_{index}_stage{stage}"] = tensor
    return found


def test_image_encoder_equals_official_at_all_sizes(encoder_fixture):
    encoder = make_encoder(encoder_fixture)
    config, said = encoder.config, encoder_fixture.meta["img_encoder"]
    assert list(config.depths) == said["depths"] and list(config.num_group_tokens) == said["num_group_tokens"]
    assert [config.num_output_groups[stage] for stage in config.grouping_stages] == said["num_output_groups"]
    compared = set()
    for index in range(len(encoder_fixture.meta["sizes"])):
        with torch.no_grad():
            found = encoder_results(encoder_fixture, encoder, index)
        for name in sorted(found.keys() & encoder_fixture.outputs.keys()):
            assert_close(found[name], encoder_fixture.outputs[name], name)
            compared.add(name)
    assert compared == {name for name in encoder_fixture.outputs if not name.startswith("grad_")}


def test_straight_through_gradients_equal_official(encoder_fixture):
    encoder, inputs = make_encoder(encoder_fixture), encoder_fixture.inputs
    pixels = inputs["pixel_values_0"].clone().requires_grad_()
    pooled = encoder(pixels, interpolate_pos_encoding=True).pooler_output
    (pooled * inputs["pooled_cotangent"]).sum().backward()
    names = {f"vision_model.{name}": p.grad for name, p in encoder.named_parameters()}
    official = {"pixel_values_0": pixels.grad}
    for name, expected in encoder_fixture.outputs.items():
        if name.startswith("grad_"):
            wanted = name.removeprefix("grad_")
            ours = official.get(wanted)
            if ours is None:
                ours = names["vision_model." + _our_name(wanted)]
            assert_close(ours, expected, name)


def _our_name(official: str) -> str:
    """Of those parameters of the image encoder whose gradients the fixture has."""
    name = official.replace("layers.", "encoder.stages.", 1) if official.startswith("layers.") else official
    return {"pos_embed": "embeddings.position_embeddings"}.get(name, name)


# ---- the whole model


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("groupvit")


@pytest.fixture(scope="module")
def results(fixture):
    model = converted(fixture)
    ids, pixels = fixture.inputs["input_ids"], fixture.inputs["pixel_values"]
    batch = {"input_ids": ids[:, 0], "prompt_input_ids": ids[:, 1:], "pixel_values": pixels, "return_loss": True}
    with torch.no_grad():
        outputs = model(**batch)
        captions, prompts = (model.text_projection(part) for part in _text_features(model, ids))
        classes = model.get_text_features(fixture.inputs["class_input_ids"].flatten(0, 1)).pooler_output
        classes = classes.unflatten(0, fixture.inputs["class_input_ids"].shape[:2]).mean(1)
        groups = model.visual_projection(outputs.vision_model_output.last_hidden_state)
        image = model.get_image_features(pixels).pooler_output
    classes = F.normalize(classes, dim=-1)
    # In the official order, each caption is followed by its prompts.
    rows = outputs.text_model_output.pooler_output
    rows = torch.cat([rows[: len(ids), None], rows[len(ids) :].unflatten(0, ids[:, 1:].shape[:2])], dim=1)
    found = {
        "image_x": image,
        "image_feat": groups,
        "text_x": captions,
        "text_multi_label_x": prompts,
        "text_encoder_out": rows.flatten(0, 1),
        "class_text_embedding": classes,
        "zero_shot_logits": outputs.image_embeds @ classes.T,
        "eval_loss": outputs.contrastive_loss,
        "eval_multi_label_loss": outputs.multi_label_loss,
    }
    model = converted(fixture).train()
    noise = sorted(name for name in fixture.inputs if name.startswith("gumbel_noise_stage"))
    outputs = model(**batch, gumbel_noise=[fixture.inputs[name][:, 0] for name in noise])
    outputs.loss.backward()
    gradients = to_official({n: p.grad for n, p in model.named_parameters()}, model.config, buffers=False)
    found |= {"train_loss": outputs.contrastive_loss, "train_multi_label_loss": outputs.multi_label_loss}
    found |= {"train_total": outputs.loss} | {f"grad_{name}": tensor for name, tensor in gradients.items()}
    after = to_official(model.state_dict(), model.config)
    return found | {f"after_train_{name}": tensor for name, tensor in after.items()}


def _text_features(model, ids):
    with torch.no_grad():
        rows = model.text_model(ids.flatten(0, 1)).pooler_output.unflatten(0, ids.shape[:2])
    return rows[:, 0], rows[:, 1:]


@pytest.mark.parametrize("kind", ["eval", "train", "grad", "after_train", ""])
def test_equals_official(fixture, results, kind):
    kinds = ("eval_", "train_", "grad_", "after_train_")
    wanted = [
        name for name in fixture.outputs if (name.startswith(kind + "_") if kind else not name.startswith(kinds))
    ]
    assert wanted, f"the fixture has no {kind}"
    for name in wanted:
        assert_close(results[name], fixture.outputs[name], name)


def test_class_embeddings_of_templates_equal_official(fixture):
    model = converted(fixture, GroupViTForSemanticSegmentation)
    with torch.no_grad():
        found = model.get_class_embeddings(fixture.inputs["class_input_ids"])
    assert_close(found, fixture.outputs["class_text_embedding"], "class_text_embedding")


def test_configuration_from_shapes(fixture):
    config, meta = converted(fixture).config, fixture.meta
    vision, said = config.vision_config, meta["img_encoder"]
    assert (vision.image_size, vision.patch_size) == (said["img_size"], said["patch_size"])
    assert (vision.hidden_size, list(vision.depths)) == (said["embed_dim"], said["depths"])
    assert vision.num_attention_heads == said["num_heads"][0]
    assert list(vision.num_group_tokens) == said["num_group_tokens"]
    assert config.text_config.num_hidden_layers == meta["text_encoder"]["layers"]
    assert config.text_config.max_position_embeddings == meta["text_encoder"]["context_length"]
    assert (config.projection_dim, config.projection_intermediate_dim) == (meta["output_dim"], meta["proj_inner_dim"])
    assert (config.num_noun_prompts > 0) == (meta["multi_label"] > 0)
    assert config.logit_scale_init_value == pytest.approx(2.6592)


def test_round_trip_is_bit_identical(fixture):
    model = converted(fixture)
    back = to_official(model.state_dict(), model.config)
    assert back.keys() == fixture.state_dict.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in fixture.state_dict.items())
