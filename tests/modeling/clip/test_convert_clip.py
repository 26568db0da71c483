"""The official ↔ transformers mapping: names, shapes of the published models, and what is refused."""

import pytest
import torch
from converter_contract import ConverterContract
from paths import MANIFESTS
from tiny import tiny_clip, tiny_pixels
from transformers import CLIPConfig

from hf_clip_variants.modeling.clip.convert_clip import (
    clip_from_official,
    convert_clip_state_dict,
    infer_clip_config,
    to_official,
)


HEADS = {"vision_heads": 4, "text_heads": 4}


@pytest.fixture
def tiny():
    return tiny_clip()


@pytest.fixture
def official(tiny):
    return to_official(tiny.state_dict(), tiny.config)


class TestConverter(ConverterContract):
    title = "CLIP"
    make = staticmethod(tiny_clip)
    config_class = CLIPConfig
    from_official, convert = staticmethod(clip_from_official), staticmethod(convert_clip_state_dict)
    infer, to_official = staticmethod(infer_clip_config), staticmethod(to_official)
    options = HEADS
    manifests = sorted(MANIFESTS.glob("clip_ViT-*.json"))
    hole = ("transformer.resblocks.1.", "transformer.resblocks.7.")
    wrong_shapes = (
        ("ln_final.bias", (31,), r"ln_final.bias \(31,\), expected \(32,\)"),
        ("transformer.resblocks.0.attn.in_proj_bias", (), "expected"),
        ("logit_scale", (2,), r"logit_scale \(2,\), expected \(\)"),
        ("visual.proj", (24, 40, 1), "visual.proj"),
        ("visual.positional_embedding", (9, 40), "8 patch positions, expected a square"),
        ("visual.positional_embedding", (0, 40), "visual.positional_embedding"),
        ("text_projection", (32,), r"text_projection \(32,\)"),
        ("visual.conv1.weight", (40, 3, 8, 4), "visual.conv1.weight"),
    )
    wrong_heads = (
        ({}, "text_heads: the width 32 is not a multiple of 64"),
        ({"vision_heads": 3, "text_heads": 4}, "vision_heads=3: expected a divisor of the width 40"),
    )
    other_models = (
        ("visual.layer1.0.conv1.weight", "clip_resnet"),
        ("visual.trunk.blocks.0.norm1.weight", "timm image encoder"),
        ("text.transformer.embeddings.word_embeddings.weight", "Hugging Face text encoder"),
        ("logit_bias", "SigLIP"),
    )
    nothing_found = "7 missing: visual.conv1.weight"

    def inputs(self):
        return {"pixel_values": tiny_pixels(2), "input_ids": torch.tensor([[4036, 5, 4037], [4036, 7, 4037]])}

    def check_published(self, config, manifest, name):
        vision, text, expected = config.vision_config, config.text_config, manifest["hparams"]
        assert len(self.manifests) == 4
        assert vision.num_attention_heads == manifest["vision_heads"]
        assert text.num_attention_heads == expected["transformer_heads"]
        assert vision.image_size == expected["image_resolution"]
        assert vision.num_hidden_layers == expected["vision_layers"]
        assert vision.patch_size == expected["vision_patch_size"]
        assert text.num_hidden_layers == expected["transformer_layers"]
        assert (text.bos_token_id, text.eos_token_id) == (49406, 49407)


def test_the_activation_is_an_argument(official):
    assert infer_clip_config(official, **HEADS)["vision_config"]["hidden_act"] == "quick_gelu"
    gelu = infer_clip_config(official, **HEADS, hidden_act="gelu")
    assert gelu["vision_config"]["hidden_act"] == gelu["text_config"]["hidden_act"] == "gelu"


def test_open_clips_variants_of_names_are_accepted(tiny, official):
    """`text.` before the text encoder's names, a temperature of one element, the causal mask."""
    text = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    variant = {("text." + name if name.startswith(text) else name): tensor for name, tensor in official.items()}
    variant["logit_scale"] = variant["logit_scale"].reshape(1)
    variant["text.attn_mask"] = torch.zeros(32, 32)
    converted = convert_clip_state_dict(variant, tiny.config)
    assert converted["logit_scale"].shape == ()
    assert all(torch.equal(converted[name], tensor) for name, tensor in tiny.state_dict().items())
    with pytest.raises(ValueError, match="with and without the prefix"):
        convert_clip_state_dict(official | {"text.ln_final.bias": official["ln_final.bias"]}, tiny.config)


def test_open_clips_own_model_converts():
    """open_clip's class for its native checkpoints, run side by side."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    text = open_clip.model.CLIPTextCfg(context_length=12, vocab_size=99, width=64, heads=1, layers=2)
    vision = open_clip.model.CLIPVisionCfg(layers=2, width=128, patch_size=8, image_size=24)
    theirs = open_clip.model.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).eval()
    ours = clip_from_official(theirs.state_dict(), hidden_act="gelu")
    pixels, ids = torch.randn(2, 3, 24, 24), torch.randint(1, 97, (3, 12))
    ids[:, 7] = 98
    with torch.no_grad():
        image, text_features = theirs.encode_image(pixels), theirs.encode_text(ids)
        torch.testing.assert_close(ours.get_image_features(pixels).pooler_output, image, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.get_text_features(ids).pooler_output, text_features, rtol=1e-4, atol=1e-5)


def test_open_clips_wide_heads_are_recognised():
    def weights(width):
        shapes = {
            "visual.conv1.weight": (width, 3, 14, 14),
            "visual.positional_embedding": (257, width),
            "positional_embedding": (77, 1024),
            "token_embedding.weight": (49408, 1024),
            "text_projection": (1024, 1024),
            "transformer.resblocks.0.mlp.c_fc.weight": (4096, 1024),
            "visual.transformer.resblocks.0.mlp.c_fc.weight": (5120, width),
        }
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    heads = {
        width: infer_clip_config(weights(width))["vision_config"]["num_attention_heads"] for width in (768, 1280, 1664)
    }
    assert heads == {768: 12, 1280: 16, 1664: 16}
