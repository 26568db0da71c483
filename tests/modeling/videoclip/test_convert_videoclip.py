"""The official ↔ VideoCLIP mapping: the two files, and what is refused."""

import pytest
import torch
from converter_contract import ConverterContract
from official_files import from_a_training
from parity_fixtures import load_fixture
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor, AutoVideoProcessor
from videoclip_runs import CLS, SEP, videoclip_features, videoclip_frames, videoclip_model, videoclip_tokenizer

from hf_clip_variants import VideoCLIPConfig, VideoCLIPModel, VideoTextProcessor, convert_checkpoint
from hf_clip_variants.modeling.videoclip.convert_videoclip import (
    convert_s3d_state_dict,
    convert_videoclip_state_dict,
    infer_s3d_config,
    infer_videoclip_config,
    s3d_to_official,
    to_official,
    unused_names,
    videoclip_from_official,
)


OPTIONS = {"text_heads": 3, "max_video_length": 8, "max_text_length": 12, "window_stride": 4}
OPTIONS |= {"cls_token_id": CLS, "sep_token_id": SEP}
POOLERS = {
    f"{bert}.{name}": torch.ones(shape)
    for bert in ("video_encoder.bert", "text_encoder")
    for name, shape in (("pooler.dense.weight", (24, 24)), ("pooler.dense.bias", (24,)))
}


def converted(weights, **options):
    return videoclip_from_official(weights, **OPTIONS | options)


class TestEncoders(ConverterContract):
    title = "VideoCLIP"
    config_class = VideoCLIPConfig
    from_official, convert = staticmethod(converted), staticmethod(convert_videoclip_state_dict)
    infer, to_official = staticmethod(infer_videoclip_config), staticmethod(to_official)
    options: dict = {}
    strays = POOLERS | {"text_encoder.embeddings.position_ids": torch.arange(20)[None]}
    output, one_name = "logits_per_video", "feature_projection.input_layer.bias"
    indirect = (
        *(
            f"{bert}.embeddings.{part}"
            for bert in ("text_encoder", "video_encoder.bert")
            for part in ("word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight")
        ),
        "video_encoder.videomlp.linear1.weight",
    )
    hole = ("text_encoder.encoder.layer.0.", "text_encoder.encoder.layer.7.")
    wrong_shapes = (
        ("video_encoder.videomlp.linear2.weight", (24, 20), r"linear2.weight \(24, 20\), expected \(24, 24\)"),
        ("video_encoder.videomlp.LayerNorm.bias", (20,), r"LayerNorm.bias \(20,\), expected \(24,\)"),
        ("video_encoder.bert.embeddings.LayerNorm.weight", (20,), r"expected \(24,\)"),
        ("text_encoder.encoder.layer.1.output.dense.weight", (24, 39), r"\(24, 39\), expected \(24, 40\)"),
    )
    wrong_heads = (
        ({"text_heads": None}, "text_heads: the width 24 is not a multiple of 64"),
        ({"text_heads": 5}, "text_heads=5: expected a divisor of the width 24"),
    )
    other_models = (("video_encoder.bert.visual.proj", "1 unexpected: video_encoder.bert.visual.proj"),)
    nothing_found = "missing"

    def make(self):
        return videoclip_model(use_s3d=False)

    def inputs(self):
        return videoclip_features()


# ---- S3D


def whole():
    """A model with S3D-G, and both official files of it."""
    model = videoclip_model()
    text_side = {"text_module.fc1.bias": torch.ones(5), "text_module.word_embd.weight": torch.ones(7, 3)}
    return model, to_official(model.state_dict(), model.config), s3d_to_official(model.state_dict()) | text_side


def vision(**changes):
    model = videoclip_model()
    return {"vision_config": model.config.vision_config.to_dict() | changes}


def test_s3d_comes_from_its_own_file_without_its_text_part():
    model, weights, s3d = whole()
    found = converted(weights, s3d=s3d, **vision())
    assert found.config.use_s3d and not any(p.requires_grad for p in found.s3d.parameters())
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in model.state_dict().items())
    inferred = infer_s3d_config(s3d)
    for name, value in inferred.items():
        assert getattr(model.config.vision_config, name) == value, name
    batch = videoclip_frames()
    with torch.no_grad():
        assert torch.equal(found(**batch).logits_per_video, model(**batch).logits_per_video)


def test_published_sizes_of_s3d():
    with torch.device("meta"):
        model = VideoCLIPModel(VideoCLIPConfig())
    official = s3d_to_official(model.state_dict())
    # With the three layers of the text part that is dropped, the five tensors more that the published file has.
    assert len(official) == 537 - 5 and official["conv1.conv1.weight"].shape == (64, 24, 2, 4, 4)
    assert official["fc.weight"].shape == (512, 1024)
    assert infer_s3d_config(official)["block_widths"] == VideoCLIPConfig().vision_config.block_widths
    parameters = sum(parameter.numel() for parameter in model.s3d.parameters())
    assert 9.6e6 < parameters < 9.8e6


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("gating.fc.bias"), "S3D state dict: 1 missing: gating.fc.bias"),
        (lambda s: s.pop("mixed_4d.conv_b1_b.bn2.running_var"), "1 missing: mixed_4d.conv_b1_b.bn2.running_var"),
        (lambda s: s.pop("fc.weight"), "1 missing: fc.weight"),
        (lambda s: s.update({"surprise": torch.ones(1)}), "S3D state dict: 1 unexpected: surprise"),
        (lambda s: s["conv_2b.bn1.weight"].fill_(torch.nan), "not finite: conv_2b.bn1.weight"),
        (lambda s: s.update({"fc.bias": torch.ones(9)}), r"fc.bias \(9,\), expected \(10,\)"),
        (lambda s: s.update({"conv1.conv1.weight": torch.ones(6, 24)}), r"conv1.conv1.weight \(6, 24\)"),
    ],
)
def test_a_broken_s3d_is_said(change, message):
    _, weights, s3d = whole()
    s3d = {name: tensor.clone() for name, tensor in s3d.items()}
    change(s3d)
    with pytest.raises(ValueError, match=message):
        converted(weights, s3d=s3d, **vision())
    with pytest.raises(ValueError, match="feature_size"):
        converted(weights, s3d=whole()[2], **vision(projection_dim=11))


def test_s3d_is_strict_about_its_configuration():
    model, _, s3d = whole()
    assert convert_s3d_state_dict(s3d, model.config).keys() == {n for n in model.state_dict() if n.startswith("s3d.")}


# ---- files


def official_files(folder):
    """Wide enough for the numbers of the released tokens."""
    text = {"vocab_size": 110, "hidden_size": 64, "num_attention_heads": 1, "max_position_embeddings": 64}
    fields = {"text_config": text, "video_config": None, "cls_token_id": 101, "sep_token_id": 102}
    fields |= {"max_video_length": 8, "max_text_length": 63, "feature_size": 10}
    base = videoclip_model().config
    text = base.text_config.to_dict() | text
    model = videoclip_model(**fields | {"text_config": text})
    weights = {f"mmmodel.{name}": t for name, t in to_official(model.state_dict(), model.config).items()}
    extra = {f"mmmodel.{n}": torch.ones(64) for n in ("text_encoder.pooler.dense.bias",)}
    torch.save({"model": weights | extra, "optimizer_history": [1]}, folder / "checkpoint_best.pt")
    torch.save(s3d_to_official(model.state_dict()) | {"text_module.fc1.bias": torch.ones(3)}, folder / "s3d.pth")
    return model, folder / "checkpoint_best.pt", folder / "s3d.pth"


def test_files_become_a_folder_that_meets_expected_outputs(tmp_path):
    model, file, s3d = official_files(tmp_path)
    inputs = videoclip_features()
    inputs["input_ids"] = inputs["input_ids"] + 50
    with torch.no_grad():
        outputs = model(**inputs)
    expected = {"video_embeds": outputs.video_embeds, "logits_per_text": outputs.logits_per_text.contiguous()}
    save_file(inputs | expected, tmp_path / "expected.safetensors")
    options = {"expected": tmp_path / "expected.safetensors", "max_video_length": 8}
    videoclip_tokenizer().save_pretrained(tmp_path / "tokenizer")
    result = convert_checkpoint(file, tmp_path / "out", tokenizer=tmp_path / "tokenizer", compare=True, **options)
    assert result.method == "videoclip" and result.kind == "VideoCLIPModel" and result.difference < 1e-5
    assert result.expected_differences["logits_per_text"] < 1e-4
    assert "optimizer_history" in result.dropped and "mmmodel.text_encoder.pooler.dense.bias" in result.dropped
    assert any("--s3d" in note for note in result.notes)
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert type(loaded) is VideoCLIPModel and not loaded.config.use_s3d and loaded.config.normalize_features
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor) is VideoTextProcessor and processor.tokenizer.model_max_length == 63
    assert set(processor(text=["the cat"], return_tensors="pt")) == {"input_ids", "attention_mask"}


def test_both_files_become_one_model(tmp_path):
    model, file, s3d = official_files(tmp_path)
    options = {"s3d": str(s3d), "tokenizer": "none", "max_video_length": 8, "compare": True}
    result = convert_checkpoint(file, tmp_path / "out", **options)
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert loaded.config.use_s3d and "text_module.fc1.bias" in result.dropped and len(result.sources) == 2
    for name, tensor in model.s3d.state_dict().items():
        assert torch.equal(loaded.s3d.state_dict()[name], tensor), name
    videos = AutoVideoProcessor.from_pretrained(tmp_path / "out")
    assert (videos.sampling_rule, videos.fps, videos.num_frames, videos.do_normalize) == (
        "whole_seconds",
        30,
        240,
        False,
    )
    with pytest.raises(ValueError, match="It is S3D, a part of VideoCLIP"):
        convert_checkpoint(s3d, tmp_path / "alone")


def test_the_fixture_as_a_training_file(tmp_path):
    fixture = load_fixture("videoclip")
    weights = dict(fixture.state_dict)
    file = from_a_training(weights, tmp_path / "checkpoint_last.pt")
    heads = fixture.meta["hyper_parameters"]["bert"]["num_attention_heads"]
    if fixture.meta["hyper_parameters"]["bert"]["vocab_size"] <= 102:
        with pytest.raises(ValueError, match="cls_token_id: 101|sep_token_id: 102"):
            convert_checkpoint(file, tmp_path / "out", text_heads=heads, tokenizer="none")
    assert set(unused_names(weights)) == {n for n in weights if "pooler" in n or n.endswith("position_ids")}
