"""Official weights ↔ `AudioCLIPModel`: names, shapes of the published model, the audio encoder alone, errors."""

import json

import pytest
import torch
from converter_contract import ConverterContract
from model_contract import CASES
from paths import MANIFESTS
from safetensors.torch import save_file
from transformers import AutoFeatureExtractor, AutoModel

from hf_clip_variants import AudioCLIPAudioConfig, AudioCLIPAudioModel, AudioCLIPConfig
from hf_clip_variants.conversion.convert import convert_checkpoint
from hf_clip_variants.conversion.detect import detect_method
from hf_clip_variants.modeling.audioclip.convert_audioclip import (
    audio_encoder_from_official,
    audioclip_from_official,
    convert_audioclip_state_dict,
    infer_audioclip_config,
    to_official,
)
from hf_clip_variants.modeling.clip_resnet.convert_clip_resnet import clip_resnet_from_official


HEADS = {"vision_heads": 8, "text_heads": 4}
HOP = {"hop_length": 20}
STRAYS = {"audio.fbsp.bias": torch.empty(0)}


@pytest.fixture
def tiny():
    return CASES["audioclip"].make()


@pytest.fixture
def official(tiny):
    return to_official(tiny.state_dict(), tiny.config) | STRAYS


@pytest.fixture(scope="module")
def published():
    entries = json.loads((MANIFESTS / "audioclip.json").read_text(encoding="utf-8"))["state_dict"]
    return {name: torch.empty(shape, device="meta") for name, (shape, _) in entries.items()}


class TestConverter(ConverterContract):
    title = "AudioCLIP"
    make = staticmethod(CASES["audioclip"].make)
    config_class = AudioCLIPConfig
    from_official, convert = staticmethod(audioclip_from_official), staticmethod(convert_audioclip_state_dict)
    infer, to_official = staticmethod(infer_audioclip_config), staticmethod(to_official)
    options = HEADS | HOP
    manifests = [MANIFESTS / "audioclip.json"]
    parts = {"n_params_audio": "audio_model"}
    strays = STRAYS
    optional = ("num_batches_tracked", "audio.window")
    indirect = ("audio.att1.bn.weight",)
    prefix = "audio."
    hole = ("audio.layer2.1.", "audio.layer2.7.")
    wrong_shapes = (
        ("audio.fbsp.bias", (2,), "audio.fbsp.bias: 2 elements, expected none"),
        ("audio.fc.weight", (20, 100), r"audio.fc.weight \(20, 100\), expected \(20, 128\)"),
        ("audio.layer1.0.conv2.weight", (4, 3, 3, 3), r"\(4, 3, 3, 3\), expected a grouped convolution"),
        ("audio.layer3.0.conv2.weight", (40, 20, 3, 3), "channels are not those of a ResNeXt"),
        ("audio.fc.weight", (24, 128), "audio_config.projection_dim: 24, expected projection_dim"),
    )
    wrong_heads = (
        ({}, "text_heads: the width 32 is not a multiple of 64"),
        (HEADS | HOP | {"groups": 32}, "groups: 32, but the weights have 2"),
        (HEADS | HOP | {"n_fft": 128}, "audio.fbsp.m"),
    )
    other_models = (("visual.proj", "Vision Transformer"),)
    nothing_found = "missing: "

    def inputs(self):
        return CASES["audioclip"].inputs(2)

    def check_published(self, config, manifest, name):
        """861 names; the sizes are our defaults."""
        assert len(manifest["state_dict"]) == 861
        default = AudioCLIPConfig()
        assert config.audio_config.to_dict() == default.audio_config.to_dict() == AudioCLIPAudioConfig().to_dict()
        assert config.vision_config.to_dict() == default.vision_config.to_dict()


def test_the_audio_encoder_alone_may_have_another_head(published):
    """ESRNXFBSP.pt: no prefix, 527 classes of AudioSet."""
    weights = {name.removeprefix("audio."): t for name, t in published.items() if name.startswith("audio.")}
    weights |= {"fc.weight": torch.empty(527, 2048, device="meta"), "fc.bias": torch.empty(527, device="meta")}
    with pytest.raises(ValueError, match="method: ESRNXFBSP.pt .* audio_encoder_from_official"):
        detect_method(weights, "ESRNXFBSP.pt")
    with torch.device("meta"):
        assert audio_encoder_from_official(weights).config.projection_dim == 527


def test_the_audio_encoder_from_the_whole_model_equals_the_one_alone(tiny, official):
    whole = audio_encoder_from_official(official, **HOP)
    alone = {name.removeprefix("audio."): t for name, t in official.items() if name.startswith("audio.")}
    del alone["window"], alone["fbsp.bias"]
    alone = audio_encoder_from_official(alone, **HOP, win_length=50)
    audio = CASES["audioclip"].inputs(2)["input_features"]
    with torch.no_grad():
        expected = tiny.audio_model(audio).pooler_output
        for encoder in (whole, alone):
            assert isinstance(encoder, AudioCLIPAudioModel) and not encoder.training
            torch.testing.assert_close(encoder(audio).pooler_output, expected)


def test_missing_window_and_counters_are_added(tiny, official):
    some = {n: t for n, t in official.items() if n != "audio.window" and "num_batches_tracked" not in n}
    converted = convert_audioclip_state_dict(some, tiny.config)
    for name, tensor in tiny.state_dict().items():
        assert "tracked" in name or torch.equal(converted[name], tensor), name
    with pytest.raises(ValueError, match="win_length: 1654 is longer than n_fft"):
        audioclip_from_official(some, **HEADS)
    assert audioclip_from_official(some, **HEADS, win_length=50).config.audio_config.win_length == 50


def test_files_of_clip_and_of_audioclip_are_told_apart(official):
    assert detect_method(official, "file") == "audioclip"
    clip = {name: t for name, t in official.items() if not name.startswith(("audio.", "logit_scale_a"))}
    assert detect_method(clip, "file") == "clip_resnet"
    assert clip_resnet_from_official(clip, **HEADS)
    with pytest.raises(ValueError, match="missing: conv1.weight"):
        audioclip_from_official(clip, **HEADS)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_command_writes_a_folder_that_classifies_audio(official, tmp_path, dtype):
    save_file({n: t.contiguous() for n, t in official.items()}, tmp_path / "official.safetensors")
    with torch.no_grad():
        audio = 5000 * torch.randn(2, 1, 4000)
        model = audioclip_from_official(official, **HEADS)
        features = model.get_audio_features(audio).pooler_output
    save_file({"audio": audio, "audio_features": features}, tmp_path / "expected.safetensors")
    done = convert_checkpoint(
        tmp_path / "official.safetensors",
        tmp_path / "out",
        tokenizer="none",
        dtype=dtype,
        **HEADS,
        expected=tmp_path / "expected.safetensors" if dtype == "float32" else None,
        compare=True,
    )
    assert done.method == "audioclip" and done.kind == "AudioCLIPModel" and done.dropped == ["audio.fbsp.bias"]
    assert done.sizes["audio.groups"] == 2 and "scaling of the spectrogram" in done.notes[0]
    assert "load what was written with AutoFeatureExtractor" in done.notes[1]
    assert dtype != "float32" or done.expected_differences["audio_features"] < 1e-4
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert loaded.dtype == getattr(torch, dtype) and loaded.audio_model.fbsp.fc.dtype == torch.float32
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path / "out")).__name__ == "AudioCLIPFeatureExtractor"
    assert "zero-shot-audio-classification" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
