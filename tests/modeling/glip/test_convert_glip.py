"""The official ↔ GLIP mapping: there and back, what is inferred, an official file, the order of colours, and
what is refused."""

import copy

import numpy as np
import pytest
import torch
from converter_contract import ConverterContract
from glip_runs import glip_inputs, glip_model, glip_processor, glip_tokenizer, noise
from PIL import Image
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from hf_clip_variants import GLIPConfig, GLIPForZeroShotObjectDetection, convert_checkpoint
from hf_clip_variants.modeling.glip.convert_glip import (
    convert_glip_state_dict,
    glip_from_official,
    infer_glip_config,
    to_official,
)


SIZES = {"text_heads": 2, "fusion_heads": 3, "num_groups": 3}
HEAD = "rpn.head"
STRAYS = {f"rpn.anchor_generator.cell_anchors.{i}": torch.tensor([[-2.0, 0, 2.0**i * 16 - 3, 3]]) for i in range(5)}
STRAYS |= {
    "backbone.body.layers.0.blocks.0.attn.relative_position_index": torch.zeros(9, 9, dtype=torch.long),
    "language_backbone.body.model.embeddings.position_ids": torch.zeros(1, 40, dtype=torch.long),
    f"{HEAD}.cls_logits.weight": torch.zeros(80, 12, 1, 1),
    f"{HEAD}.cls_logits.bias": torch.zeros(80),
}


class TestConverter(ConverterContract):
    title = "GLIP"
    config_class = GLIPConfig
    from_official, convert = staticmethod(glip_from_official), staticmethod(convert_glip_state_dict)
    infer, to_official = staticmethod(infer_glip_config), staticmethod(to_official)
    make = staticmethod(glip_model)
    inputs = staticmethod(lambda: glip_inputs(2))
    options, strays = SIZES, STRAYS
    hole = ("backbone.body.layers.1.blocks.1.", "backbone.body.layers.1.blocks.7.")
    wrong_shapes = (
        (f"{HEAD}.bias_lang", (21,), r"of the wrong shape: rpn.head.bias_lang \(21,\)"),
        (f"{HEAD}.scales.3.scale", (2,), r"of the wrong shape: rpn.head.scales.3.scale \(2,\)"),
        ("backbone.body.layers.1.blocks.1.attn.qkv.weight", (16, 16), r"attn.qkv.weight \(16, 16\)"),
        ("backbone.fpn.top_blocks.p6.weight", (12, 64, 3, 3), "top_blocks.p6.weight"),
    )
    wrong_heads = (
        ({}, "text_heads: the width 20 is not a multiple of 64"),
        ({"text_heads": 3}, "text_heads=3: expected a divisor of the width 20"),
        (SIZES | {"fusion_heads": 5}, "fusion_heads=5: expected a divisor of the width 24"),
    )
    other_models = (("rpn.tunable_linear.weight", "1 unexpected: rpn.tunable_linear.weight"),)
    nothing_found = "^GLIP state dict: 11 missing: backbone.body.patch_embed.proj.weight"
    output = "logits"
    one_name = "predictions.bias"


@pytest.mark.parametrize("use_fusion", [True, False])
def test_sizes_are_inferred(use_fusion):
    model = glip_model(use_fusion=use_fusion)
    found = infer_glip_config(to_official(model.state_dict(), model.config) | STRAYS, **SIZES)
    for name, value in found.items():
        wanted = getattr(model.config, name)
        if isinstance(value, dict):
            value.pop("drop_path_rate", None)
            assert {part: getattr(wanted, part) for part in value} == value
        else:
            assert wanted == (24 if name == "max_text_length" else value), name
    assert found["max_text_length"] == 40  # of the positions that there are


@pytest.mark.parametrize("variant", ["glip_tiny_a", "glip_tiny", "glip_large"])
def test_sizes_of_the_released_models_are_inferred(variant):
    config = GLIPConfig.of_variant(variant)
    with torch.device("meta"):
        model = GLIPForZeroShotObjectDetection(config)
    found = GLIPConfig(**infer_glip_config(to_official(model.state_dict(), config)))
    assert found.to_json_string(use_diff=False) == config.to_json_string(use_diff=False)


def test_an_official_file_becomes_a_folder(tmp_path):
    # Group norms of 16 groups are written into the official code.
    wide = glip_model(hidden_size=16, num_groups=16)
    official = to_official(wide.state_dict(), wide.config) | STRAYS
    path = tmp_path / "glip_tiny_model_o365.pth"
    torch.save({"model": {f"module.{n}": t for n, t in official.items()}, "iteration": 7}, path)
    glip_tokenizer().save_pretrained(tmp_path / "bert")
    out = tmp_path / "out"
    result = convert_checkpoint(path, out, compare=True, text_heads=2, fusion_heads=3, tokenizer=tmp_path / "bert")
    assert result.method == "glip" and result.difference < 1e-5
    model = AutoModelForZeroShotObjectDetection.from_pretrained(out)
    processor = AutoProcessor.from_pretrained(out)
    assert processor(text=["cat", "dog"]).input_ids.shape == (1, 5)
    inputs = glip_inputs(2)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, wide(**inputs).logits, rtol=1e-5, atol=1e-5)


# ---- the order of colours


def official_pixels(image: Image.Image) -> torch.Tensor:
    """As `build_transform` of the official demo prepares an RGB image: blue first, 0 to 255, less ImageNet's mean."""
    blue_first = torch.from_numpy(np.asarray(image)[:, :, ::-1].copy()).permute(2, 0, 1).float()
    mean, std = torch.tensor([103.530, 116.280, 123.675]), torch.tensor([57.375, 57.120, 58.395])
    return ((blue_first - mean[:, None, None]) / std[:, None, None])[None]


def with_official_weights(official: dict, model: GLIPForZeroShotObjectDetection) -> GLIPForZeroShotObjectDetection:
    """The model with the official first convolution as it is in the file."""
    twin = copy.deepcopy(model)
    first = twin.backbone.swin.embeddings.patch_embeddings.projection
    first.weight.data.copy_(official["backbone.body.patch_embed.proj.weight"])
    return twin


def test_rgb_images_are_read_as_the_official_model_reads_bgr():
    official = to_official(glip_model().state_dict(), glip_model().config)
    model = glip_from_official(official | STRAYS, **SIZES)
    theirs, processor = with_official_weights(official, model), glip_processor()
    image = noise(96, 64)
    image.paste((240, 20, 30), (8, 8, 60, 50))  # red
    swapped = Image.fromarray(np.asarray(image)[:, :, ::-1].copy())  # blue
    prompt = processor(text=["cat", "dog"])

    def run(one: GLIPForZeroShotObjectDetection, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return one(pixels, **prompt).logits

    ours, expected = {}, {}
    for name, one in (("image", image), ("swapped", swapped)):
        pixels = processor(one, do_resize=False).pixel_values
        assert pixels.shape == (1, 3, 64, 96)
        ours[name], expected[name] = run(model, pixels), run(theirs, official_pixels(one))
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-5)
    # The order matters, and weights that are not turned answer for the swapped image.
    assert (ours["image"] - ours["swapped"]).abs().max() > 1e-2
    wrong = run(theirs, processor(image, do_resize=False).pixel_values)
    assert (wrong - expected["image"]).abs().max() > 1e-2
