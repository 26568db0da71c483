"""The official ↔ CLIPResNetModel mapping: names, shapes of the published models, and what is refused."""

import json

import pytest
import torch
from converter_contract import ConverterContract
from model_contract import CASES
from paths import MANIFESTS

from hf_clip_variants import CLIPResNetConfig
from hf_clip_variants.modeling.clip.convert_clip import clip_from_official
from hf_clip_variants.modeling.clip_resnet.convert_clip_resnet import (
    clip_resnet_from_official,
    convert_clip_resnet_state_dict,
    infer_clip_resnet_config,
    to_official,
)


HEADS = {"vision_heads": 8, "text_heads": 4}


@pytest.fixture
def tiny():
    return CASES["clip_resnet"].make()


@pytest.fixture
def official(tiny):
    return to_official(tiny.state_dict(), tiny.config)


class TestConverter(ConverterContract):
    title = "CLIP-ResNet"
    make = staticmethod(CASES["clip_resnet"].make)
    config_class = CLIPResNetConfig
    from_official, convert = staticmethod(clip_resnet_from_official), staticmethod(convert_clip_resnet_state_dict)
    infer, to_official = staticmethod(infer_clip_resnet_config), staticmethod(to_official)
    options = HEADS
    manifests = sorted(MANIFESTS.glob("clip_RN*.json"))
    parts = {"n_params_visual": "vision_model"}
    optional = ("num_batches_tracked",)
    hole = ("visual.layer2.1.", "visual.layer2.7.")
    wrong_shapes = (
        ("visual.bn1.bias", (3,), r"visual.bn1.bias \(3,\), expected \(4,\)"),
        ("visual.attnpool.c_proj.weight", (24, 256), r"c_proj.weight \(24, 256\), expected \(20, 256\)"),
        ("visual.attnpool.positional_embedding", (6, 256), "5 pixel positions, expected a square"),
        ("visual.attnpool.positional_embedding", (5, 250), "width 250, expected 32 times that of"),
        ("visual.attnpool.positional_embedding", (5,), "of the wrong shape: visual.attnpool.positional_embedding"),
        ("visual.layer1.0.conv1.weight", (8, 8), "of the wrong shape: visual.layer1.0.conv1.weight"),
        ("visual.conv1.weight", (4, 3, 5, 5), "visual.conv1.weight"),
        ("logit_scale", (2,), r"logit_scale \(2,\), expected \(\)"),
        ("text_projection", (32,), r"text_projection \(32,\)"),
    )
    wrong_heads = (
        ({}, "text_heads: the width 32 is not a multiple of 64"),
        ({"vision_heads": 3, "text_heads": 4}, "vision_heads=3: expected a divisor of the width 256"),
    )
    other_models = (
        ("visual.proj", "Vision Transformer .* clip_from_official"),
        ("visual.transformer.resblocks.0.ln_1.weight", "Vision Transformer"),
        ("visual.trunk.blocks.0.norm1.weight", "timm image encoder"),
        ("text.transformer.embeddings.word_embeddings.weight", "Hugging Face text encoder"),
        ("logit_bias", "SigLIP"),
    )
    nothing_found = "7 missing: visual.conv1.weight"

    def inputs(self):
        return CASES["clip_resnet"].inputs(2)

    def check_published(self, config, manifest, name):
        expected, vision, text = manifest["hparams"], config.vision_config, config.text_config
        assert len(self.manifests) == 5
        assert vision.num_attention_heads == manifest["vision_heads"]
        assert vision.image_size == expected["image_resolution"]
        assert vision.depths == expected["vision_layers"]
        assert vision.width == expected["vision_width"]
        assert config.projection_dim == vision.projection_dim == expected["embed_dim"]
        assert text.num_attention_heads == expected["transformer_heads"]
        assert text.num_hidden_layers == expected["transformer_layers"]
        assert (text.bos_token_id, text.eos_token_id) == (49406, 49407)


def test_the_defaults_are_rn50():
    entries = json.loads((MANIFESTS / "clip_RN50.json").read_text(encoding="utf-8"))["state_dict"]
    weights = {name: torch.empty(shape, device="meta") for name, (shape, _) in entries.items()}
    inferred, default = infer_clip_resnet_config(weights), CLIPResNetConfig()
    del inferred["text_config"]["pad_token_id"]  # CLIPTextConfig's is that of the tokenizer of 2021
    for part in ("text_config", "vision_config"):
        assert getattr(default, part).to_dict() | inferred[part] == getattr(default, part).to_dict()
    assert default.projection_dim == inferred["projection_dim"]


def test_missing_counters_of_batches_are_added(tiny, official):
    """As in checkpoints made before PyTorch counted batches."""
    official["visual.bn1.num_batches_tracked"].fill_(7)
    assert convert_clip_resnet_state_dict(official, tiny.config)["vision_model.bn1.num_batches_tracked"] == 7
    without = {name: tensor for name, tensor in official.items() if "num_batches_tracked" not in name}
    converted = convert_clip_resnet_state_dict(without, tiny.config)
    counters = [tensor for name, tensor in converted.items() if "num_batches_tracked" in name]
    assert counters and all(counter.dtype == torch.int64 and counter == 0 for counter in counters)


def test_open_clips_variants_of_names_are_accepted(tiny, official):
    """`text.` before the text encoder's names, a temperature of one element, the causal mask."""
    text = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    variant = {("text." + name if name.startswith(text) else name): tensor for name, tensor in official.items()}
    variant["logit_scale"] = variant["logit_scale"].reshape(1)
    variant["text.attn_mask"] = torch.zeros(32, 32)
    converted = convert_clip_resnet_state_dict(variant, tiny.config)
    assert converted["logit_scale"].shape == ()
    assert all(torch.equal(converted[name], tensor) for name, tensor in tiny.state_dict().items())


def test_open_clips_own_model_converts():
    """open_clip's class for its native checkpoints, run side by side."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    text = open_clip.model.CLIPTextCfg(context_length=12, vocab_size=99, width=64, heads=1, layers=2)
    vision = open_clip.model.CLIPVisionCfg(layers=[2, 1, 2, 1], width=8, image_size=96, head_width=64)
    theirs = open_clip.model.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()
    for name, tensor in theirs.state_dict().items():
        if name.endswith(("running_var", "bn3.weight")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            tensor.normal_()
    ours = clip_resnet_from_official(theirs.state_dict())
    assert ours.config.vision_config.depths == [2, 1, 2, 1]
    pixels, ids = torch.randn(2, 3, 96, 96), torch.randint(1, 97, (3, 12))
    ids[:, 7] = 98
    with torch.no_grad():
        image, words = theirs.encode_image(pixels), theirs.encode_text(ids)
        torch.testing.assert_close(ours.get_image_features(pixels).pooler_output, image, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.get_text_features(ids).pooler_output, words, rtol=1e-4, atol=1e-5)


def test_the_activation_is_an_argument(official):
    assert infer_clip_resnet_config(official, **HEADS)["text_config"]["hidden_act"] == "quick_gelu"
    assert infer_clip_resnet_config(official, **HEADS, hidden_act="gelu")["text_config"]["hidden_act"] == "gelu"


def test_each_converter_names_the_other(official):
    with pytest.raises(ValueError, match="CLIP-ResNet .* clip_resnet, not CLIPModel"):
        clip_from_official(official, vision_heads=4, text_heads=4)
