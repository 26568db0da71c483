"""The official ↔ CLIPResNetModel mapping: names, shapes of the published models, and what is refused."""

import json

import pytest
import torch
from model_contract import CASES
from paths import FIXTURES

from hf_clip_variants import CLIPResNetConfig, CLIPResNetModel
from hf_clip_variants.modeling.clip.convert_clip import clip_from_official
from hf_clip_variants.modeling.clip_resnet.convert_clip_resnet import (
    clip_resnet_from_official,
    convert_clip_resnet_state_dict,
    infer_clip_resnet_config,
    to_official,
)


MANIFESTS = sorted((FIXTURES / "official_manifests").glob("clip_RN*.json"))
HEADS = {"vision_heads": 8, "text_heads": 4}


@pytest.fixture
def tiny():
    return CASES["clip_resnet"].make()


@pytest.fixture
def official(tiny):
    return to_official(tiny.state_dict(), tiny.config)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_published_models_from_shapes_alone(path):
    """Hyper-parameters, parameter counts, and official -> ours -> official, on the meta device."""
    manifest = json.loads(path.read_text(encoding="utf-8"))
    entries = manifest["state_dict"] | manifest["stray_keys"]
    weights = {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for name, (shape, dtype) in entries.items()
    }
    config = CLIPResNetConfig(**infer_clip_resnet_config(weights))
    expected, vision, text = manifest["hparams"], config.vision_config, config.text_config
    assert vision.num_attention_heads == manifest["vision_heads"]
    assert vision.image_size == expected["image_resolution"]
    assert vision.depths == expected["vision_layers"]
    assert vision.width == expected["vision_width"]
    assert config.projection_dim == vision.projection_dim == expected["embed_dim"]
    assert text.num_attention_heads == expected["transformer_heads"]
    assert text.num_hidden_layers == expected["transformer_layers"]
    assert (text.bos_token_id, text.eos_token_id) == (49406, 49407)
    converted = convert_clip_resnet_state_dict(weights, config)
    assert {t.dtype for n, t in converted.items() if "num_batches" not in n} == {torch.float32}
    with torch.device("meta"):
        model = CLIPResNetModel(config)
    model.load_state_dict(converted, assign=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest["n_params"]
    assert sum(parameter.numel() for parameter in model.vision_model.parameters()) == manifest["n_params_visual"]
    back = to_official(converted, config)
    assert {name: list(tensor.shape) for name, tensor in back.items()} == {
        name: shape for name, (shape, _) in manifest["state_dict"].items()
    }


def test_there_are_manifests():
    assert len(MANIFESTS) == 5


def test_the_defaults_are_rn50():
    path = next(path for path in MANIFESTS if path.stem == "clip_RN50")
    entries = json.loads(path.read_text(encoding="utf-8"))["state_dict"]
    weights = {name: torch.empty(shape, device="meta") for name, (shape, _) in entries.items()}
    inferred, default = infer_clip_resnet_config(weights), CLIPResNetConfig()
    del inferred["text_config"]["pad_token_id"]  # CLIPTextConfig's is that of the tokenizer of 2021
    for part in ("text_config", "vision_config"):
        assert getattr(default, part).to_dict() | inferred[part] == getattr(default, part).to_dict()
    assert default.projection_dim == inferred["projection_dim"]


def test_round_trip_is_exact(tiny, official):
    assert {
        "visual.layer2.0.downsample.0.weight",
        "visual.attnpool.c_proj.bias",
        "visual.bn1.num_batches_tracked",
    } <= set(official)
    converted = convert_clip_resnet_state_dict(official, tiny.config)
    for name, tensor in tiny.state_dict().items():
        assert converted[name].dtype == tensor.dtype and torch.equal(converted[name], tensor), name
    again = to_official(converted, tiny.config)
    assert again.keys() == official.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in official.items())


def test_counters_of_batches_may_be_missing(tiny, official):
    """As in checkpoints made before PyTorch counted batches."""
    official["visual.bn1.num_batches_tracked"].fill_(7)
    assert convert_clip_resnet_state_dict(official, tiny.config)["vision_model.bn1.num_batches_tracked"] == 7
    without = {name: tensor for name, tensor in official.items() if "num_batches_tracked" not in name}
    converted = convert_clip_resnet_state_dict(without, tiny.config)
    counters = [tensor for name, tensor in converted.items() if "num_batches_tracked" in name]
    assert counters and all(counter.dtype == torch.int64 and counter == 0 for counter in counters)


def test_converted_model_is_ready_to_use_and_save(tiny, official, tmp_path):
    model = clip_resnet_from_official(official, **HEADS)
    assert not model.training
    model.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        reloaded = CLIPResNetModel.from_pretrained(tmp_path).get_image_features(pixels).pooler_output
        torch.testing.assert_close(reloaded, tiny.get_image_features(pixels).pooler_output, rtol=1e-5, atol=1e-6)
        model.logit_scale.fill_(0)
        model.vision_model.conv1.weight.fill_(0)
    assert official["logit_scale"] != 0 and official["visual.conv1.weight"].any(), "the model must own its weights"


def test_open_clip_forms(tiny, official):
    """`text.` before the text tower's names, a temperature of one element, the causal mask, half precision."""
    text = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    variant = {("text." + name if name.startswith(text) else name): tensor for name, tensor in official.items()}
    variant["logit_scale"] = variant["logit_scale"].reshape(1)
    variant["text.attn_mask"] = torch.zeros(32, 32)
    converted = convert_clip_resnet_state_dict(variant, tiny.config)
    assert converted["logit_scale"].shape == ()
    assert all(torch.equal(converted[name], tensor) for name, tensor in tiny.state_dict().items())
    half = {name: t.half() if t.is_floating_point() else t for name, t in official.items()}
    floats = [t for t in convert_clip_resnet_state_dict(half, tiny.config).values() if t.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.float32}


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


def test_activation_is_the_callers_choice(official):
    assert infer_clip_resnet_config(official, **HEADS)["text_config"]["hidden_act"] == "quick_gelu"
    assert infer_clip_resnet_config(official, **HEADS, hidden_act="gelu")["text_config"]["hidden_act"] == "gelu"


class TestRefused:
    def test_missing_and_unexpected_names_are_counted(self, official, tiny):
        some = {name: tensor for name, tensor in official.items() if ".bn2." not in name or "tracked" in name}
        with pytest.raises(ValueError, match=r"CLIP-ResNet state dict: 24 missing: (\S+, ){4}\S+, …"):
            convert_clip_resnet_state_dict(some, tiny.config)
        extra = official | {"visual.layer1.0.se.weight": torch.ones(4)}
        with pytest.raises(ValueError, match=r"1 unexpected: visual.layer1.0.se.weight$"):
            clip_resnet_from_official(extra, **HEADS)

    def test_a_hole_in_the_blocks(self, official):
        some = {name.replace("layer2.1.", "layer2.7."): tensor for name, tensor in official.items()}
        with pytest.raises(ValueError, match="missing: visual.layer2.1"):
            clip_resnet_from_official(some, **HEADS)

    @pytest.mark.parametrize(
        ("name", "shape", "message"),
        [
            ("visual.bn1.bias", (3,), r"visual.bn1.bias \(3,\), expected \(4,\)"),
            ("visual.attnpool.c_proj.weight", (24, 256), r"c_proj.weight \(24, 256\), expected \(20, 256\)"),
            ("visual.attnpool.positional_embedding", (6, 256), "5 pixel positions, expected a square"),
            ("visual.attnpool.positional_embedding", (5, 250), "width 250, expected 32 times that of"),
            ("visual.attnpool.positional_embedding", (5,), "of the wrong shape: visual.attnpool.positional_embedding"),
            ("visual.layer1.0.conv1.weight", (8, 8), "of the wrong shape: visual.layer1.0.conv1.weight"),
            ("visual.conv1.weight", (4, 3, 5, 5), "visual.conv1.weight"),
            ("logit_scale", (2,), r"logit_scale \(2,\), expected \(\)"),
            ("text_projection", (32,), r"text_projection \(32,\)"),
        ],
    )
    def test_wrong_shapes(self, official, name, shape, message):
        with pytest.raises(ValueError, match=message):
            clip_resnet_from_official(official | {name: torch.zeros(shape)}, **HEADS)

    def test_weights_that_are_not_finite(self, official):
        broken = official["visual.bn1.running_var"].clone()
        broken[0] = torch.inf
        with pytest.raises(ValueError, match="1 not finite: visual.bn1.running_var"):
            clip_resnet_from_official(official | {"visual.bn1.running_var": broken}, **HEADS)

    def test_heads(self, official):
        with pytest.raises(ValueError, match="text_heads: the width 32 is not a multiple of 64"):
            clip_resnet_from_official(official)
        with pytest.raises(ValueError, match="vision_heads=3: expected a divisor of the width 256"):
            clip_resnet_from_official(official, vision_heads=3, text_heads=4)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("visual.proj", "Vision Transformer .* clip_from_official"),
            ("visual.transformer.resblocks.0.ln_1.weight", "Vision Transformer"),
            ("visual.trunk.blocks.0.norm1.weight", "timm image encoder"),
            ("text.transformer.embeddings.word_embeddings.weight", "Hugging Face text encoder"),
            ("logit_bias", "SigLIP"),
        ],
    )
    def test_other_architectures(self, official, name, message):
        with pytest.raises(ValueError, match=message):
            clip_resnet_from_official(official | {name: torch.zeros(1)}, **HEADS)

    def test_each_converter_names_the_other(self, official):
        with pytest.raises(ValueError, match="CLIP-ResNet .* clip_resnet, not CLIPModel"):
            clip_from_official(official, vision_heads=4, text_heads=4)

    def test_nothing_of_clip(self):
        with pytest.raises(ValueError, match="7 missing: visual.conv1.weight"):
            infer_clip_resnet_config({"fc.0.weight": torch.zeros(2, 2)})

    def test_inverse_is_strict_too(self, tiny):
        weights = tiny.state_dict()
        with pytest.raises(ValueError, match="1 unexpected: head.weight"):
            to_official(weights | {"head.weight": torch.zeros(1)}, tiny.config)
        with pytest.raises(ValueError, match="1 missing: logit_scale"):
            to_official({k: v for k, v in weights.items() if k != "logit_scale"}, tiny.config)
