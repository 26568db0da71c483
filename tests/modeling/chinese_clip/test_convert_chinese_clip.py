"""Chinese-CLIP's official names: published sizes, the names of flash attention, and what is refused."""

from functools import partial

import numpy as np
import pytest
import torch
from converter_contract import ConverterContract
from PIL import Image
from tiny_families import tiny_dual_encoder, tiny_family_inputs, tiny_family_pixels
from torchvision import transforms
from transformers import ChineseCLIPConfig, ChineseCLIPImageProcessor, ChineseCLIPImageProcessorPil, ChineseCLIPModel

from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
from hf_clip_variants.modeling.chinese_clip.convert_chinese_clip import (
    chinese_clip_from_official,
    convert_chinese_clip_state_dict,
    infer_chinese_clip_config,
    to_official,
)


HEADS = {"text_heads": 4, "vision_heads": 4}
# cn_clip/clip/model_configs: (layers, width, patch, pixels) and heads of the image encoder; (layers, width, inner
# width) and heads of the text encoder; the joint width; and the parameters in millions, as the official README rounds
# them.
PUBLISHED = {
    "ViT-B-16": ((12, 768, 16, 224), 12, (12, 768, 3072), 12, 512, 188),
    "ViT-L-14": ((24, 1024, 14, 224), 16, (12, 768, 3072), 12, 768, 406),
    "ViT-L-14-336": ((24, 1024, 14, 336), 16, (12, 768, 3072), 12, 768, 407),
    "ViT-H-14": ((32, 1280, 14, 224), 16, (24, 1024, 4096), 16, 1024, 958),
}


@pytest.fixture
def tiny():
    return tiny_dual_encoder("chinese_clip")


@pytest.fixture
def official(tiny):
    return to_official(tiny.state_dict(), tiny.config)


class TestConverter(ConverterContract):
    title = "Chinese-CLIP"
    make = staticmethod(partial(tiny_dual_encoder, "chinese_clip"))
    config_class = ChineseCLIPConfig
    from_official, convert = staticmethod(chinese_clip_from_official), staticmethod(convert_chinese_clip_state_dict)
    infer, to_official = staticmethod(infer_chinese_clip_config), staticmethod(to_official)
    options = HEADS
    hole = ("bert.encoder.layer.1.", "bert.encoder.layer.7.")
    wrong_shapes = (
        ("text_projection", (24,), r"1 of the wrong shape: text_projection \(24,\)"),
        ("bert.embeddings.LayerNorm.bias", (31,), r"LayerNorm.bias \(31,\), expected \(32,\)"),
        ("bert.embeddings.word_embeddings.weight", (0, 32), "word_embeddings"),
        ("visual.positional_embedding", (9, 40), "8 patch positions, expected a square"),
        ("visual.transformer.resblocks.0.attn.in_proj_bias", (), "expected"),
        ("logit_scale", (2,), r"logit_scale \(2,\), expected \(\)"),
    )
    wrong_heads = (
        ({}, "text_heads: the width 32 is not a multiple of 64"),
        ({"vision_heads": 3, "text_heads": 4}, "vision_heads=3: expected a divisor of the width 40"),
    )
    other_models = (("visual.layer1.0.conv1.weight", r"CLIP-ResNet \(visual.layer1…, as in clip_cn_rn50.pt\)"),)
    nothing_found = "8 missing: visual.conv1.weight"

    def inputs(self):
        return tiny_family_inputs("chinese_clip") | tiny_family_pixels("chinese_clip")


def flash_names(official):
    """As cn_clip's own `convert_state_dict` renames them for flash attention."""
    renamed, parts = {}, {}
    for name, tensor in official.items():
        if ".attention.self." in name:
            layer, part = name.split(".attention.self.")
            part, kind = part.split(".")
            parts.setdefault(f"{layer}.attention.self.Wqkv.{kind}", {})[part] = tensor
        else:
            name = name.replace(".attn.in_proj_", ".attn.Wqkv.")
            renamed[name.replace(".attention.output.dense.", ".attention.self.out_proj.")] = tensor
    order = ("query", "key", "value")
    return renamed | {name: torch.cat([found[part] for part in order]) for name, found in parts.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_from_shapes_alone(name):
    """Sizes, number of parameters, and official -> ours -> official, on the meta device in the files' precision."""
    (layers, width, patch, pixels), heads, (text_layers, text_width, inner), text_heads, joint, millions = PUBLISHED[
        name
    ]
    few = {"num_attention_heads": 4}  # the right number must come from the converter: no shape shows it
    with torch.device("meta"):
        config = ChineseCLIPConfig(
            text_config=few
            | {"num_hidden_layers": text_layers, "hidden_size": text_width, "intermediate_size": inner}
            | {"vocab_size": 21128},
            vision_config=few
            | {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width}
            | {"patch_size": patch, "image_size": pixels},
            projection_dim=joint,
        )
        weights = to_official(ChineseCLIPModel(config).half().state_dict(), config)
        found = ChineseCLIPConfig(**infer_chinese_clip_config(weights))
        assert (found.text_config.num_attention_heads, found.vision_config.num_attention_heads) == (text_heads, heads)
        assert found.text_config.max_position_embeddings == 512 and found.text_config.type_vocab_size == 2
        assert found.vision_config.image_size == pixels and found.projection_dim == joint
        converted = convert_chinese_clip_state_dict(weights, found)
        model = ChineseCLIPModel(found)
    model.load_state_dict(converted, assign=True)
    assert {tensor.dtype for tensor in converted.values()} == {torch.float32}
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions
    assert to_official(converted, found).keys() == weights.keys()


def test_sizes_that_all_published_models_share_are_read_from_the_weights(official):
    types, positions = torch.ones(3, 32), torch.ones(7, 32)
    other = {
        f"bert.embeddings.{name}.weight": value
        for name, value in (("token_type_embeddings", types), ("position_embeddings", positions))
    }
    text = chinese_clip_from_official(official | other, **HEADS).config.text_config
    assert (text.type_vocab_size, text.max_position_embeddings) == (3, 7)


def test_a_checkpoint_of_the_official_training_script_is_converted(tiny, official, tmp_path):
    """`module.` before every name, nesting, half precision, and the pooler of the BERT that training started from."""
    weights = {f"module.{name}": tensor.half() for name, tensor in official.items()}
    weights |= {"module.bert.pooler.dense.weight": torch.ones(32, 32), "module.bert.pooler.dense.bias": torch.ones(32)}
    path = tmp_path / "clip_cn_vit-b-16.pt"
    torch.save({"epoch": 3, "step": 1000, "name": "run", "state_dict": weights, "optimizer": {"state": {}}}, path)
    model = chinese_clip_from_official(read_state_dict(path), **HEADS)
    assert not model.training and {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.half().float()), name


def test_names_of_flash_attention_are_converted(tiny, official):
    flash = flash_names(official)
    assert "bert.encoder.layer.0.attention.self.Wqkv.weight" in flash and len(flash) < len(official)
    model = chinese_clip_from_official(flash, **HEADS)
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    # One encoder may have been trained with it, the other not.
    image_only = {name: tensor for name, tensor in flash.items() if name.startswith("visual.")}
    image_only |= {name: tensor for name, tensor in official.items() if not name.startswith("visual.")}
    converted = convert_chinese_clip_state_dict(image_only, tiny.config)
    assert all(torch.equal(converted[name], tensor) for name, tensor in tiny.state_dict().items())


def test_the_readmes_image_processor_equals_the_official_transform():
    """cn_clip resizes without keeping the aspect ratio; the default processor crops.

    Resizing tensors and resizing Pillow images differ by one grey level of 255.
    """
    colours = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize((500, 300), Image.Resampling.BICUBIC)
    mean, std = ChineseCLIPImageProcessor.image_mean, ChineseCLIPImageProcessor.image_std
    official = transforms.Compose(
        [
            transforms.Resize((224, 224), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )(image)
    settings = {"size": {"height": 224, "width": 224}, "do_center_crop": False}

    def difference(processor):
        return (processor(image, return_tensors="pt").pixel_values[0] - official).abs()

    assert difference(ChineseCLIPImageProcessorPil(**settings)).max() < 1e-6
    assert difference(ChineseCLIPImageProcessor(**settings)).max() < 1.01 / 255 / min(std)
    assert difference(ChineseCLIPImageProcessor()).mean() > 0.1


class TestRefused:
    def test_a_layer_with_both_kinds_of_attention(self, official):
        name = "visual.transformer.resblocks.0.attn.Wqkv.bias"
        for weights in (official | {name: torch.zeros(120)}, {name: torch.zeros(120)} | official):
            with pytest.raises(ValueError, match=f"1 also there as attn.in_proj_: {name}"):
                chinese_clip_from_official(weights, **HEADS)
        flash = flash_names(official)["bert.encoder.layer.0.attention.self.Wqkv.bias"]
        with pytest.raises(ValueError, match="missing: bert.encoder.layer.0.attention.self.Wqkv.weight"):
            chinese_clip_from_official(official | {"bert.encoder.layer.0.attention.self.Wqkv.bias": flash}, **HEADS)

    def test_flash_weights_of_the_wrong_shape(self, official):
        flash = flash_names(official) | {"bert.encoder.layer.0.attention.self.Wqkv.bias": torch.zeros(95)}
        with pytest.raises(ValueError, match=r"Wqkv.bias \(95,\), expected \(96,\)"):
            chinese_clip_from_official(flash, **HEADS)
