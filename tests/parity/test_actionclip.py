"""ActionCLIP from converted official weights: visual prompts, fusion heads, loss, gradients, scores of classes."""

import pytest
import torch
from parity_fixtures import assert_close, fixtures_like, load_fixture

from hf_clip_variants import ActionCLIPConfig, ActionCLIPModel
from hf_clip_variants.conversion.checkpoint_reader import unwrap_state_dict
from hf_clip_variants.modeling.actionclip.convert_actionclip import (
    actionclip_from_official,
    fusion_names,
    infer_actionclip_config,
    name_table,
    to_official,
    unused_names,
)
from hf_clip_variants.modeling.actionclip.loss_actionclip import label_contrastive_loss
from hf_clip_variants.modeling.actionclip.prompts_actionclip import ActionCLIPFusion, shift_weights, temporal_shift
from hf_clip_variants.modeling.clip.convert_clip import (
    infer_vision_config,
    rename_from_official,
    rename_to_official,
    shapes_of,
)


pytestmark = pytest.mark.parity

HEAD_WIDTH = 16  # of the fixtures' attention heads, said by their patches
FUSION = "fusion_model_state_dict."
VISION_SHAPES = [
    "visual.conv1.weight",
    "visual.positional_embedding",
    "visual.transformer.resblocks.0.mlp.c_fc.weight",
]


# ---- the whole model


def official_weights(fixture) -> dict[str, torch.Tensor]:
    """As the reader gives them for the official file with its two dictionaries."""
    file: dict = {"epoch": 3, "model_state_dict": {}, "fusion_model_state_dict": {}, "optimizer_state_dict": {}}
    for name, tensor in fixture.state_dict.items():
        dictionary, _, rest = name.partition(".")
        file[dictionary][rest] = tensor
    return unwrap_state_dict(file)


def heads(fixture) -> dict[str, int]:
    said = fixture.meta["hyper_parameters"]
    of_text = said["text_width"] // HEAD_WIDTH
    return {"vision_heads": said["vision_width"] // HEAD_WIDTH, "text_heads": of_text}


def convert(fixture) -> ActionCLIPModel:
    return actionclip_from_official(official_weights(fixture), **heads(fixture))


def batch(fixture) -> dict[str, torch.Tensor]:
    given, said = fixture.inputs, fixture.meta["hyper_parameters"]
    return {
        "pixel_values_videos": given["images"].unflatten(1, (said["T"], 3)),
        "input_ids": given["text_ids"],
        "labels": given["labels"],
    }


def test_conversion_uses_every_weight_and_is_bit_identical():
    fixture = load_fixture("actionclip")
    weights, model = official_weights(fixture), convert(fixture)
    assert len(weights) == len(fixture.state_dict)
    assert model.config.fusion_head == fixture.meta["hyper_parameters"]["sim_header"]
    back, unused = to_official(model.state_dict(), model.config), unused_names(weights)
    assert back.keys() | set(unused) == weights.keys() and not back.keys() & set(unused)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in back.items())
    half = {name: tensor.half() for name, tensor in weights.items()}
    assert actionclip_from_official(half, **heads(fixture)).dtype == torch.float32


def test_features_logits_and_loss_equal_official():
    fixture = load_fixture("actionclip")
    model, expected = convert(fixture), fixture.outputs
    given = batch(fixture)
    with torch.no_grad():
        found = model(**given)
        videos = model.get_video_features(given["pixel_values_videos"]).pooler_output
        texts = model.get_text_features(given["input_ids"]).pooler_output
    for ours, name in (
        (found.frame_features, "frame_features"),
        (videos, "video_features"),
        (texts, "text_features"),
        (found.logits_per_video, "logits_per_image"),
        (found.logits_per_text, "logits_per_text"),
        (found.loss, "loss"),
    ):
        assert_close(ours, expected[name], name, 1e-5)


def test_gradients_equal_official():
    fixture = load_fixture("actionclip")
    model = convert(fixture)
    model(**batch(fixture)).loss.backward()
    gradients = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()}
    official = to_official(gradients, model.config)
    compared = [name for name in fixture.outputs if name.startswith("grad.")]
    for name in compared:
        part, _, rest = name.removeprefix("grad.").partition(".")
        ours = official[rest if part == "model" else FUSION + rest]
        assert_close(ours, fixture.outputs[name], name, 1e-4)
    assert compared


def test_scores_of_classes_equal_official():
    fixture = load_fixture("actionclip")
    model, said, expected = convert(fixture), fixture.meta["hyper_parameters"], fixture.outputs
    with torch.no_grad():
        texts = model.get_text_features(fixture.inputs["class_text_ids"]).pooler_output
        assert_close(texts / texts.norm(dim=-1, keepdim=True), expected["eval_text_features"], "texts", 1e-5)
        texts = texts.unflatten(0, (said["num_text_aug"], said["num_classes"]))  # prompts first
        scores = model.video_text_logits(batch(fixture)["pixel_values_videos"], texts).softmax(-1)
    assert_close(scores, expected["eval_class_probs"], "eval_class_probs", 1e-4)
    assert torch.equal(scores.topk(expected["eval_top1"].shape[1]).indices, expected["eval_top1"])


# ---- fusion heads


def fusion_of(fixture) -> tuple[ActionCLIPConfig, ActionCLIPFusion, dict[str, torch.Tensor]]:
    said = fixture.meta["hyper_parameters"]
    weights = {FUSION + name: tensor for name, tensor in fixture.state_dict.items() if name != "_empty"}
    layers = {int(name.split(".")[4]) for name in weights if "layers." in name and "linear1" in name}
    layers |= {int(name.split(".")[3]) for name in weights if "resblocks." in name}
    first = weights.get(FUSION + "transformer.transformer_enc.layers.0.linear1.weight")
    config = ActionCLIPConfig(
        projection_dim=said["embed_dim"],
        fusion_head=said["sim_header"],
        conv1d_layout="official",
        num_frames=said["T"],
        num_fusion_layers=max(layers, default=0) + 1,
        num_fusion_heads=said["heads"],
        fusion_intermediate_size=None if first is None else len(first),
        fusion_positions=said["context_length"],
    )
    fusion, table = ActionCLIPFusion(config, config.head_layers()).eval(), fusion_names(config)
    expected = {"fusion." + name: tensor for name, tensor in fusion.state_dict().items()}
    used = {name: tensor for name, tensor in weights.items() if name not in unused_names(weights)}
    converted = rename_from_official(used, table, expected, of="ActionCLIP")
    fusion.load_state_dict({name.removeprefix("fusion."): tensor for name, tensor in converted.items()})
    return config, fusion, table


@pytest.mark.parametrize("name", fixtures_like("actionclip_fusion_*"))
def test_a_fusion_head_and_its_gradients_equal_official(name):
    fixture = load_fixture(name)
    _, fusion, table = fusion_of(fixture)
    frames = fixture.inputs["frame_features"].requires_grad_()
    videos = fusion(frames, torch.ones(frames.shape[:2], dtype=torch.long))[1]
    assert_close(videos, fixture.outputs["video_features"], "video_features", 1e-5)
    (videos * fixture.inputs["grad_weight"]).sum().backward()
    gradients = {
        "fusion." + n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in fusion.named_parameters()
    }
    official = rename_to_official(gradients, table, of="ActionCLIP")
    for key, expected in fixture.outputs.items():
        if key.startswith("grad."):
            part = key.removeprefix("grad.")
            ours = frames.grad if part == "frame_features" else official[FUSION + part]
            assert_close(ours, expected, key, 1e-4)
        elif key == "init.shift.weight":
            assert torch.equal(shift_weights(len(expected)), expected)


# ---- visual prompts of the image encoder


def with_image_encoder(fixture, **options) -> tuple[ActionCLIPModel, dict]:
    """A model with the fixture's image encoder, and the part of the official names that it has."""
    said = fixture.meta["hyper_parameters"]
    weights = {name.replace(".net.", "."): tensor for name, tensor in fixture.state_dict.items()}
    vision = infer_vision_config(weights, shapes_of(weights, VISION_SHAPES), said["vision_width"] // HEAD_WIDTH)
    config = ActionCLIPConfig(
        vision_config=vision | {"hidden_act": "quick_gelu"},
        text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16},
        projection_dim=said["embed_dim"],
        fusion_head="meanP",
        num_frames=said["T"],
        **options,
    )
    model = ActionCLIPModel(config).eval()
    table = {name: ours for name, ours in name_table(config).items() if name.startswith("visual.")}
    ours = {part for value in table.values() for part in (value if isinstance(value, tuple) else (value,))}
    expected = {name: tensor for name, tensor in model.state_dict().items() if name in ours}
    converted = rename_from_official(fixture.state_dict, table, expected, of="ActionCLIP")
    model.load_state_dict(converted, strict=False)
    return model, table


def test_temporal_shift_equals_official():
    fixture = load_fixture("actionclip_tsm")
    said, expected = fixture.meta["hyper_parameters"], fixture.outputs
    tokens = fixture.inputs["tokens"].transpose(0, 1)  # (V * T, 1 + N, W)
    shifted = temporal_shift(tokens, torch.ones(len(tokens) // said["T"], said["T"]), said["n_div"])
    assert torch.equal(shifted.transpose(0, 1), expected["shifted_tokens"])
    model, table = with_image_encoder(fixture, visual_prompt="shift", shift_divisor=said["n_div"])
    frames = model.get_frame_features(fixture.inputs["images"].unflatten(0, (-1, said["T"]))).flatten(0, 1)
    assert_close(frames, expected["frame_features"], "frame_features", 1e-5)
    (frames**2).mean().backward()
    name = "grad.visual.conv1.weight"
    ours = dict(model.named_parameters())[table[name.removeprefix("grad.")]].grad
    assert_close(ours, expected[name], name, 1e-4)


def test_joint_tokens_equal_official():
    fixture = load_fixture("actionclip_joint")
    model, _ = with_image_encoder(fixture, visual_prompt="joint")
    images = fixture.inputs["images"].unflatten(0, (-1, fixture.meta["hyper_parameters"]["T"]))
    with torch.no_grad():
        videos = model.get_video_features(images).pooler_output
    assert_close(videos, fixture.outputs["video_features"], "video_features", 1e-5)


def test_configurations_are_inferred_from_the_names():
    whole = official_weights(load_fixture("actionclip"))
    options = heads(load_fixture("actionclip"))
    for name, head in (("actionclip_fusion_LSTM", "LSTM"), ("actionclip_fusion_Conv_1D", "Conv_1D")):
        clip = {key: tensor for key, tensor in whole.items() if not key.startswith(FUSION)}
        fusion = {FUSION + key: tensor for key, tensor in load_fixture(name).state_dict.items()}
        assert infer_actionclip_config(clip | fusion, **options)["fusion_head"] == head


# ---- loss


def test_the_loss_and_its_gradients_equal_official():
    fixture = load_fixture("actionclip_kl_loss")
    cases = sorted({name.partition(".")[0] for name in fixture.inputs})
    for case in cases:
        video, text, scale = (
            fixture.inputs[f"{case}.{part}"].requires_grad_() for part in ("video", "text", "logit_scale")
        )
        loss = label_contrastive_loss(video, text, scale, fixture.inputs[f"{case}.labels"])
        loss.backward()
        assert_close(loss, fixture.outputs[f"{case}.loss"], f"{case}.loss", 1e-5)
        for name, tensor in (("video", video), ("text", text), ("logit_scale", scale)):
            assert_close(tensor.grad, fixture.outputs[f"{case}.grad.{name}"], f"{case}.grad.{name}", 1e-4)
    assert cases
