"""Named architectures have the published sizes; combinations that do not fit are refused."""

import json

import pytest
import torch
from paths import MANIFESTS
from tiny import EMOJI_CLIP

from hf_clip_variants.training.architectures import ARCHITECTURES, new_model


OFFICIAL = {
    ("clip", "ViT-B/32"): "clip_ViT-B-32",
    ("clip", "ViT-B/16"): "clip_ViT-B-16",
    ("clip", "ViT-L/14"): "clip_ViT-L-14",
    ("clip", "RN50"): "clip_RN50",
    ("clip", "RN101"): "clip_RN101",
    ("clip", "RN50x4"): "clip_RN50x4",
    ("clip", "RN50x16"): "clip_RN50x16",
    ("clip", "RN50x64"): "clip_RN50x64",
    ("slip", "ViT-S/16"): "slip_VITS16",
    ("slip", "ViT-B/16"): "slip_VITB16",
    ("slip", "ViT-L/16"): "slip_VITL16",
    ("audioclip", "RN50"): "audioclip",
}


@pytest.mark.parametrize(("method", "architecture"), OFFICIAL, ids=lambda value: value)
def test_published_architectures_have_the_published_number_of_parameters(method, architecture):
    """With the vocabulary and length of the embedded tokenizer, which needs no network."""
    with torch.device("meta"):
        model, _ = new_model(method, architecture, tokenizer=str(EMOJI_CLIP))
    fewer_rows = (49408 - 4038) + (77 - 32)
    official = json.loads((MANIFESTS / f"{OFFICIAL[method, architecture]}.json").read_text())["n_params"]
    trained = sum(p.numel() for p in model.parameters())
    assert trained + fewer_rows * model.config.text_config.hidden_size == official


def test_tiny_is_the_embedded_model():
    from transformers import CLIPConfig

    with torch.device("meta"):
        model, processor = new_model("clip", "ViT-tiny")
    embedded = CLIPConfig.from_pretrained(EMOJI_CLIP)
    for part in ("text_config", "vision_config"):
        theirs, ours = (getattr(config, part).to_dict() for config in (embedded, model.config))
        assert {k: v for k, v in theirs.items() if k != "dtype"} == {k: v for k, v in ours.items() if k != "dtype"}
    assert processor.image_processor.crop_size["height"] == 64


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_accept_fitting_methods_only(name):
    for method in ("clip", "slip", "audioclip"):
        with torch.device("meta"):
            if method == "audioclip" and not name.startswith("RN"):
                with pytest.raises(ValueError, match=f"got {name!r} for audioclip; want one of RN-mini, RN-tiny"):
                    new_model(method, name, tokenizer=str(EMOJI_CLIP))
                continue
            model, processor = new_model(
                method, name, tokenizer=str(EMOJI_CLIP), config={"logit_scale_init_value": 2.0}
            )
        assert model.config.logit_scale_init_value == 2.0
        assert processor.image_processor.resample == (2 if method == "slip" else 3)


@pytest.mark.parametrize(
    ("name", "head_width", "audio_width"), [("RN-mini", 512, 512), ("RN-tiny", 1024, 512), ("RN50", 4096, 2048)]
)
def test_added_layers_fit_the_scale_of_the_architecture(name, head_width, audio_width):
    with torch.device("meta"):
        slip, _ = new_model("slip", name, tokenizer=str(EMOJI_CLIP))
        audioclip, _ = new_model("audioclip", name, tokenizer=str(EMOJI_CLIP))
        other, _ = new_model("slip", name, tokenizer=str(EMOJI_CLIP), config={"ssl_mlp_dim": 32})
    assert slip.config.ssl_mlp_dim == head_width and other.config.ssl_mlp_dim == 32
    assert audioclip.config.audio_config.hidden_size == audio_width


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="method: got 'flip'; want one of clip, slip, audioclip"):
        new_model("flip", "RN50")
    with pytest.raises(ValueError, match="architecture: got 'ViT-G'; want one of ViT-mini"):
        new_model("clip", "ViT-G")
