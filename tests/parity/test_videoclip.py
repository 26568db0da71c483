"""VideoCLIP from converted official weights: encoders, scores, losses, gradients; S3D's blocks; segmentation."""

import pytest
import torch
from parity_fixtures import assert_close, load_fixture
from torch import nn

from hf_clip_variants.modeling.clip.convert_clip import rename_from_official
from hf_clip_variants.modeling.video.moments import (
    background_threshold,
    labelled_seconds,
    merged_windows,
)
from hf_clip_variants.modeling.videoclip import s3d_videoclip as s3d
from hf_clip_variants.modeling.videoclip.convert_videoclip import (
    convolution_names,
    gate_names,
    inception_names,
    separable_names,
    to_official,
    unused_names,
    videoclip_from_official,
)
from hf_clip_variants.modeling.videoclip.modeling_videoclip import VideoCLIPModel


pytestmark = pytest.mark.parity

CLS, SEP = 1, 2  # of the fixture's tokenizer, said by its patches


def convert(fixture, weights=None, **fields) -> VideoCLIPModel:
    said = fixture.meta["hyper_parameters"]
    fields |= {"normalize_features": False, "cls_token_id": CLS, "sep_token_id": SEP}
    fields |= {
        "max_video_length": said["max_video_len"],
        "max_text_length": said["max_len"] - said["max_video_len"] - 1,
    }
    fields |= {"window_stride": 1}
    return videoclip_from_official(
        weights or fixture.state_dict, text_heads=said["bert"]["num_attention_heads"], **fields
    )


def inputs(fixture) -> dict[str, torch.Tensor]:
    """The text encoder is given the official captions without their second token, which is the video's [SEP]."""
    ids, mask = (
        torch.cat([fixture.inputs[name][:, :1], fixture.inputs[name][:, 2:]], 1) for name in ("caps", "cmasks")
    )
    videos = {"video_features": fixture.inputs["vfeats"], "video_mask": fixture.inputs["vmasks"]}
    return {"input_ids": ids, "attention_mask": mask.long()} | videos


def test_conversion_uses_every_weight_and_is_bit_identical():
    fixture = load_fixture("videoclip")
    model, said = convert(fixture), fixture.meta["hyper_parameters"]
    assert model.config.video_config.num_hidden_layers == said["num_hidden_video_layers"]
    assert model.config.text_config.num_hidden_layers == said["bert"]["num_hidden_layers"]
    back, unused = to_official(model.state_dict(), model.config), unused_names(fixture.state_dict)
    assert back.keys() | set(unused) == fixture.state_dict.keys() and not back.keys() & set(unused)
    assert all(torch.equal(tensor, fixture.state_dict[key]) for key, tensor in back.items())
    wrapped = {f"mmmodel.{key}": t.half() if t.is_floating_point() else t for key, t in fixture.state_dict.items()}
    assert convert(fixture, wrapped).dtype == torch.float32


def test_hidden_states_means_scores_and_losses_equal_official():
    fixture = load_fixture("videoclip")
    model, given, expected = convert(fixture), inputs(fixture), fixture.outputs
    found = model(**given, return_loss=True)
    tokens = model.feature_projection(given["video_features"])
    assert_close(tokens, expected["video_tokens"], "video_tokens", 1e-5)
    there = given["video_mask"].bool()
    ends = torch.ones(len(there), 1, dtype=torch.bool)
    sequence, words = torch.cat([ends, there, ends], 1), given["attention_mask"].bool()
    hidden = found.video_model_output.last_hidden_state
    assert_close(hidden[sequence], expected["video_hidden"][sequence], "video_hidden", 1e-5)
    assert_close(found.video_hidden_states[there], expected["video_hidden"][:, 1:-1][there], "seconds", 1e-5)
    hidden = found.text_model_output.last_hidden_state
    assert_close(hidden[words], expected["text_hidden"][words], "text_hidden", 1e-5)
    assert_close(found.video_embeds, expected["pooled_video"], "pooled_video", 1e-5)
    assert_close(found.text_embeds, expected["pooled_text"], "pooled_text", 1e-5)
    assert_close(found.logits_per_text, expected["similarity_text_video"], "similarity", 1e-4)
    assert_close(found.loss, expected["loss_mm_contra"], "loss", 1e-4)
    assert_close(found.loss, expected["loss_t2v"] + expected["loss_v2t"], "the sum of both", 1e-4)
    for direction, name in (("text_to_video", "loss_t2v"), ("video_to_text", "loss_v2t")):
        loss = convert(fixture, loss_direction=direction)(**given, return_loss=True).loss
        assert_close(loss, expected[name], name, 1e-4)


def test_gradients_equal_official():
    fixture = load_fixture("videoclip")
    model = convert(fixture)
    found = model(**inputs(fixture), return_loss=True)
    for embeds in (found.video_embeds, found.text_embeds):
        embeds.retain_grad()
    found.loss.backward()
    assert_close(found.video_embeds.grad, fixture.outputs["grad.pooled_video"], "grad.pooled_video", 1e-4)
    assert_close(found.text_embeds.grad, fixture.outputs["grad.pooled_text"], "grad.pooled_text", 1e-4)
    official = to_official({name: p.grad for name, p in model.named_parameters()}, model.config)
    compared = [key for key in fixture.outputs if key.startswith("grad.") and "pooled" not in key]
    for key in compared:
        assert_close(official[key.removeprefix("grad.")], fixture.outputs[key], key, 1e-4)
    without = set(fixture.meta["parameters_without_gradient"])
    assert compared and without <= set(unused_names(fixture.state_dict))


# ---- S3D-G


def load(module: nn.Module, table: dict, weights: dict) -> nn.Module:
    of_module = {name: tensor for name, tensor in weights.items() if name in table}
    found = rename_from_official(
        of_module, table, {f"x.{name}": t for name, t in module.state_dict().items()}, of="S3D"
    )
    module.load_state_dict({name.removeprefix("x."): tensor for name, tensor in found.items()})
    return module.eval()


@torch.no_grad()
def test_blocks_of_s3d_equal_official():
    fixture = load_fixture("videoclip_s3d_blocks")
    weights, given, expected = fixture.state_dict, fixture.inputs, fixture.outputs
    video, features, eps = given["video"], given["features7"], 1e-5
    assert_close(s3d.space_to_depth(video), expected["space_to_depth"], "space_to_depth", 0)
    width, (narrow, *widths) = features.shape[1], fixture.meta["hyper_parameters"]["inception_args"]
    stem = load(s3d.VideoCLIPStem(len(weights["stem.bn1.weight"]), eps), convolution_names("stem", "x"), weights)
    assert_close(stem(video), expected["stem"], "stem", 1e-5)
    separable = s3d.VideoCLIPSeparableConvolution(width, len(weights["sep.bn1.weight"]), eps)
    load(separable, separable_names("sep", "x"), weights)
    assert_close(separable(features), expected["separable"], "separable", 1e-5)
    gate = load(s3d.VideoCLIPGate(width), gate_names("gate", "x"), weights)
    assert_close(gate(features), expected["gated"], "gated", 1e-5)
    inception = load(s3d.VideoCLIPInception(narrow, widths, eps), inception_names("inception", "x"), weights)
    assert_close(inception(given["inception_in"]), expected["inception"], "inception", 1e-5)
    assert len(weights) == sum(len(one.state_dict()) for one in (stem, separable, gate, inception))


def test_pools_of_s3d_equal_official():
    fixture = load_fixture("videoclip_s3d_blocks")
    names = [name for name in fixture.outputs if name.startswith("maxpool_")]
    for name in names:
        kernel, stride = (tuple(map(int, part)) for part in name.split("_")[1:])
        found = s3d.same_max_pool(fixture.inputs["features7"], kernel, stride)
        assert_close(found, fixture.outputs[name], name, 0)
    assert names


# ---- zero-shot segmentation


def test_labels_of_seconds_equal_official():
    fixture = load_fixture("videoclip_zeroshot_segmentation")
    said, cases = fixture.meta["hyper_parameters"], {key.split(".")[0] for key in fixture.inputs}
    for case in cases:
        given = {key.split(".")[1]: value for key, value in fixture.inputs.items() if key.startswith(f"{case}.")}
        expected = {key.split(".")[1]: value for key, value in fixture.outputs.items() if key.startswith(f"{case}.")}
        assert given["window_hidden"].shape[1] == said["sliding_window_size"] + 2
        windows = given["window_hidden"][:, 1:-1] @ given["label_embeds"].T
        logits = merged_windows(windows, int(given["video_len"]), said["sliding_window"])
        assert_close(logits, expected["merged_logits"], f"{case}.merged_logits", 1e-4)
        threshold = background_threshold(given["label_embeds"])
        assert threshold == pytest.approx(float(expected["threshold"]), rel=1e-4)
        assert torch.equal(labelled_seconds(logits, threshold), expected["pred"])
    assert cases
