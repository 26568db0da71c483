"""The official ↔ ActionCLIP mapping: heads, visual prompts, files of two dictionaries, and what is refused."""

import pytest
import torch
from actionclip_runs import actionclip_batch, actionclip_model
from converter_contract import ConverterContract
from official_files import letters_tokenizer
from parity_fixtures import load_fixture
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor

from hf_clip_variants import ActionCLIPConfig, ActionCLIPModel, VideoTextProcessor, convert_checkpoint
from hf_clip_variants.modeling.actionclip.convert_actionclip import (
    actionclip_from_official,
    convert_actionclip_state_dict,
    infer_actionclip_config,
    to_official,
    unused_names,
)


HEADS = {"vision_heads": 4, "text_heads": 4, "head_heads": 3}
FUSION = "fusion_model_state_dict."


def tiny(**options) -> ActionCLIPModel:
    """With the default of the logit scale, which no file holds."""
    return actionclip_model(**{"logit_scale_init_value": 2.6592, "num_frames": 8} | options)


class TestTransf(ConverterContract):
    title = "ActionCLIP"
    config_class = ActionCLIPConfig
    from_official, convert = staticmethod(actionclip_from_official), staticmethod(convert_actionclip_state_dict)
    infer, to_official = staticmethod(infer_actionclip_config), staticmethod(to_official)
    options = HEADS
    output, one_name = "logits_per_video", "clip.logit_scale"
    hole = (FUSION + "transformer.resblocks.0.", FUSION + "transformer.resblocks.7.")
    wrong_shapes = (
        ("visual.proj", (20, 24), r"visual.proj \(20, 24\), expected \(40, 24\)"),
        (FUSION + "frame_position_embeddings.weight", (32, 20), r"\(32, 20\), expected \(32, 24\)"),
        (FUSION + "transformer.resblocks.0.attn.in_proj_weight", (48, 24), r"\(48, 24\), expected \(72, 24\)"),
        ("logit_scale", (2,), r"logit_scale \(2,\), expected \(\)"),
    )
    wrong_heads = (
        ({}, "text_heads: the width 32 is not a multiple of 64"),
        ({**HEADS, "head_heads": 5}, "num_fusion_heads: 5 does not divide 24"),
    )
    other_models = (("visual.layer1.0.conv1.weight", "it needs the model clip_resnet"),)
    nothing_found = "ActionCLIP state dict: .* missing: "
    settings: dict = {}

    def make(self):
        return tiny(**self.settings)

    def inputs(self):
        return {name: value for name, value in actionclip_batch().items() if name != "labels"}


class TestTransfCls(TestTransf):
    settings = {"fusion_head": "Transf_cls", "num_frames": 4, "fusion_intermediate_size": 28}
    strays = {FUSION + "frame_position_embeddings.weight": torch.ones(32, 24)}
    hole = (FUSION + "transformer.transformer_enc.layers.0.", FUSION + "transformer.transformer_enc.layers.7.")
    indirect = (FUSION + "transformer.cls_token",)
    wrong_shapes = (
        (FUSION + "transformer.cls_token", (1, 2, 24), r"cls_token \(1, 2, 24\), expected \(1, 1, 24\)"),
        (FUSION + "transformer.transformer_enc.norm.bias", (20,), r"norm.bias \(20,\), expected \(24,\)"),
    )


OTHERS = {
    "meanP": {"fusion_head": "meanP", "visual_prompt": "shift"},
    "joint": {"fusion_head": "meanP", "visual_prompt": "joint", "num_frames": 4},
    "LSTM": {"fusion_head": "LSTM"},
    "Conv_1D": {"fusion_head": "Conv_1D", "conv1d_layout": "official"},
    "shift": {"visual_prompt": "shift"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_heads_and_visual_prompts_are_told_by_their_names(name):
    model = tiny(**OTHERS[name])
    official = to_official(model.state_dict(), model.config)
    found = actionclip_from_official(official, **HEADS)
    assert not unused_names(official)
    for field in ("fusion_head", "visual_prompt", "num_frames", "conv1d_layout"):
        assert getattr(found.config, field) == getattr(model.config, field)
    assert all(torch.equal(tensor, found.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_a_file_of_two_dictionaries_becomes_a_folder_that_meets_the_official_outputs(tmp_path):
    fixture = load_fixture("actionclip")
    said, given, outputs = fixture.meta["hyper_parameters"], fixture.inputs, fixture.outputs
    file: dict = {"epoch": 49, "model_state_dict": {}, "fusion_model_state_dict": {}}
    file |= {"optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    for name, tensor in fixture.state_dict.items():
        dictionary, _, rest = name.partition(".")
        file[dictionary][rest] = tensor
    torch.save(file, tmp_path / "vit-b-32-8f.pt")
    inputs = {
        "input_ids": given["text_ids"],
        "pixel_values_videos": given["images"].unflatten(1, (said["T"], 3)).contiguous(),
    }
    expected = {"text_features": outputs["text_features"], "logits_per_video": outputs["logits_per_image"]}
    save_file(inputs | expected, tmp_path / "expected.safetensors")
    tokenizer = letters_tokenizer(said["vocab_size"], tmp_path / "letters") if said["vocab_size"] > 60 else "none"
    heads = {"vision_heads": said["vision_width"] // 16, "text_heads": said["text_width"] // 16}
    options = heads | {"tokenizer": tokenizer, "expected": tmp_path / "expected.safetensors"}
    result = convert_checkpoint(tmp_path / "vit-b-32-8f.pt", tmp_path / "out", **options)
    assert result.method == "actionclip" and result.kind == "ActionCLIPModel"
    assert result.expected_differences["logits_per_video"] < 1e-4 and result.difference < 1e-5
    assert result.dropped == ["epoch", "optimizer_state_dict"]
    assert type(AutoModel.from_pretrained(tmp_path / "out")) is ActionCLIPModel
    if tokenizer != "none":
        processor = AutoProcessor.from_pretrained(tmp_path / "out")
        assert type(processor) is VideoTextProcessor
        videos = processor.video_processor
        assert (videos.sampling_rule, videos.num_frames) == ("segments", 8)


def test_outputs_of_every_kind_are_compared(tmp_path):
    for name in ("joint", "Conv_1D"):
        model = tiny(**OTHERS[name])
        official = to_official(model.state_dict(), model.config)
        clip = {key: tensor for key, tensor in official.items() if not key.startswith(FUSION)}
        fusion = {key.removeprefix(FUSION): tensor for key, tensor in official.items() if key.startswith(FUSION)}
        file = tmp_path / f"{name}.pt"
        torch.save({"model_state_dict": clip, "fusion_model_state_dict": fusion}, file)
        heads = {"vision_heads": 4, "text_heads": 4, "tokenizer": "none", "compare": True}
        assert convert_checkpoint(file, tmp_path / name, **heads).difference < 1e-5
