"""The official ↔ transformers mapping: names, shapes of the published models, and what is refused."""

import json

import pytest
import torch
from paths import FIXTURES
from tiny import tiny_clip
from transformers import CLIPConfig, CLIPModel

from hf_clip_variants.modeling.clip.convert_clip import (
    clip_from_official,
    convert_clip_state_dict,
    infer_clip_config,
    to_official,
)


MANIFESTS = sorted((FIXTURES / "official_manifests").glob("clip_ViT-*.json"))


@pytest.fixture
def tiny():
    return tiny_clip()


@pytest.fixture
def official(tiny):
    return to_official(tiny.state_dict(), tiny.config)


HEADS = {"vision_heads": 4, "text_heads": 4}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_published_models_from_shapes_alone(path):
    """Hyper-parameters, parameter count, and official -> ours -> official, on the meta device."""
    manifest = json.loads(path.read_text(encoding="utf-8"))
    entries = manifest["state_dict"] | manifest["stray_keys"]
    weights = {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for name, (shape, dtype) in entries.items()
    }
    config = CLIPConfig(**infer_clip_config(weights))
    expected = manifest["hparams"]
    assert config.vision_config.num_attention_heads == manifest["vision_heads"]
    assert config.text_config.num_attention_heads == expected["transformer_heads"]
    assert config.vision_config.image_size == expected["image_resolution"]
    assert config.vision_config.num_hidden_layers == expected["vision_layers"]
    assert config.vision_config.patch_size == expected["vision_patch_size"]
    assert config.text_config.num_hidden_layers == expected["transformer_layers"]
    assert (config.text_config.bos_token_id, config.text_config.eos_token_id) == (49406, 49407)
    converted = convert_clip_state_dict(weights, config)
    assert {tensor.dtype for tensor in converted.values()} == {torch.float32}
    with torch.device("meta"):
        model = CLIPModel(config)
    model.load_state_dict(converted, assign=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest["n_params"]
    back = to_official(converted, config)
    assert {name: list(tensor.shape) for name, tensor in back.items()} == {
        name: shape for name, (shape, _) in manifest["state_dict"].items()
    }


def test_there_are_manifests():
    assert len(MANIFESTS) == 4


def test_round_trip_is_exact(tiny, official):
    assert "visual.transformer.resblocks.2.attn.in_proj_weight" in official
    converted = convert_clip_state_dict(official, tiny.config)
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(converted[name], tensor), name
    again = to_official(converted, tiny.config)
    assert (
        all(torch.equal(again[name], tensor) for name, tensor in official.items()) and again.keys() == official.keys()
    )


def test_converted_model_is_ready_to_use_and_save(tiny, official, tmp_path):
    model = clip_from_official(official, **HEADS)
    assert not model.training
    model.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 24, 24)
    reloaded = CLIPModel.from_pretrained(tmp_path).get_image_features(pixels).pooler_output
    torch.testing.assert_close(reloaded, tiny.get_image_features(pixels).pooler_output, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        model.logit_scale.fill_(0)
        model.text_model.embeddings.token_embedding.weight.fill_(0)
    assert official["logit_scale"] != 0 and official["token_embedding.weight"].any(), "the model must own its weights"


def test_activation_is_the_callers_choice(official):
    assert infer_clip_config(official, **HEADS)["vision_config"]["hidden_act"] == "quick_gelu"
    gelu = infer_clip_config(official, **HEADS, hidden_act="gelu")
    assert gelu["vision_config"]["hidden_act"] == gelu["text_config"]["hidden_act"] == "gelu"


def test_open_clip_forms(tiny, official):
    """`text.` before the text tower's names, a temperature of one element, the causal mask, half precision."""
    text = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    variant = {("text." + name if name.startswith(text) else name): tensor for name, tensor in official.items()}
    variant["logit_scale"] = variant["logit_scale"].reshape(1)
    variant["text.attn_mask"] = torch.zeros(32, 32)
    converted = convert_clip_state_dict(variant, tiny.config)
    assert converted["logit_scale"].shape == ()
    assert all(torch.equal(converted[name], tensor) for name, tensor in tiny.state_dict().items())
    half = convert_clip_state_dict({name: tensor.half() for name, tensor in official.items()}, tiny.config)
    assert all(tensor.dtype == torch.float32 for tensor in half.values())
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


def test_wide_heads_of_open_clip():
    def weights(width):
        shapes = {
            "visual.conv1.weight": (width, 3, 14, 14), "visual.positional_embedding": (257, width), "positional_embedding": (77, 1024),
            "token_embedding.weight": (49408, 1024), "text_projection": (1024, 1024),
            "transformer.resblocks.0.mlp.c_fc.weight": (4096, 1024), "visual.transformer.resblocks.0.mlp.c_fc.weight": (5120, width),
        }  # fmt: skip
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    heads = {
        width: infer_clip_config(weights(width))["vision_config"]["num_attention_heads"] for width in (768, 1280, 1664)
    }
    assert heads == {768: 12, 1280: 16, 1664: 16}


class TestRefused:
    def test_missing_and_unexpected_names_are_counted(self, official, tiny):
        some = {name: tensor for name, tensor in official.items() if ".1.mlp" not in name}
        with pytest.raises(ValueError, match=r"8 missing: (\S+, ){4}\S+, …") as error:
            convert_clip_state_dict(some, tiny.config)
        assert "transformer.resblocks.1.mlp.c_fc.weight" in str(error.value)
        extra = official | {"visual.transformer.resblocks.0.ls_1.gamma": torch.ones(40)}
        with pytest.raises(ValueError, match=r"1 unexpected: visual.transformer.resblocks.0.ls_1.gamma$"):
            clip_from_official(extra, **HEADS)

    def test_a_hole_in_the_layers(self, official):
        some = {name.replace("resblocks.1.", "resblocks.7."): tensor for name, tensor in official.items()}
        with pytest.raises(ValueError, match="missing: transformer.resblocks.1"):
            clip_from_official(some, **HEADS)

    @pytest.mark.parametrize(
        ("name", "shape", "message"),
        [
            ("ln_final.bias", (31,), r"ln_final.bias \(31,\), expected \(32,\)"),
            ("transformer.resblocks.0.attn.in_proj_bias", (), "expected"),
            ("logit_scale", (2,), r"logit_scale \(2,\), expected \(\)"),
            ("visual.proj", (24, 40, 1), "visual.proj"),
            ("visual.positional_embedding", (9, 40), "8 patch positions, expected a square"),
            ("visual.positional_embedding", (0, 40), "visual.positional_embedding"),
            ("text_projection", (32,), r"text_projection \(32,\)"),
            ("visual.conv1.weight", (40, 3, 8, 4), "visual.conv1.weight"),
        ],
    )
    def test_wrong_shapes(self, official, name, shape, message):
        with pytest.raises(ValueError, match=message):
            clip_from_official(official | {name: torch.zeros(shape)}, **HEADS)

    def test_weights_that_are_not_finite(self, official):
        broken = official["visual.proj"].clone()
        broken[0, 0] = torch.nan
        with pytest.raises(ValueError, match="1 not finite: visual.proj"):
            clip_from_official(official | {"visual.proj": broken}, **HEADS)

    def test_heads(self, official):
        with pytest.raises(ValueError, match="text_heads: the width 32 is not a multiple of 64"):
            clip_from_official(official)
        with pytest.raises(ValueError, match="vision_heads=3: expected a divisor of the width 40"):
            clip_from_official(official, vision_heads=3, text_heads=4)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("visual.layer1.0.conv1.weight", "clip_resnet"),
            ("visual.trunk.blocks.0.norm1.weight", "timm image encoder"),
            ("text.transformer.embeddings.word_embeddings.weight", "Hugging Face text encoder"),
            ("logit_bias", "SigLIP"),
        ],
    )
    def test_other_architectures(self, official, name, message):
        with pytest.raises(ValueError, match=message):
            clip_from_official(official | {name: torch.zeros(1)}, **HEADS)

    def test_nothing_of_clip(self):
        with pytest.raises(ValueError, match="7 missing: visual.conv1.weight"):
            infer_clip_config({"fc.0.weight": torch.zeros(2, 2)})

    def test_inverse_is_strict_too(self, tiny):
        weights = tiny.state_dict()
        with pytest.raises(ValueError, match="1 unexpected: head.weight"):
            to_official(weights | {"head.weight": torch.zeros(1)}, tiny.config)
        with pytest.raises(ValueError, match="1 missing: logit_scale"):
            to_official({k: v for k, v in weights.items() if k != "logit_scale"}, tiny.config)
