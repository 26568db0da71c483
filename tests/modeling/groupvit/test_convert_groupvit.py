"""The official ↔ GroupViT mapping: both kinds of published files, what is refused, what the command writes."""

import sys
import types

import pytest
import torch
from converter_contract import ConverterContract
from groupvit_runs import TEXT, groupvit_batch, groupvit_config, groupvit_model
from official_files import letters_tokenizer
from parity_fixtures import load_fixture
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForSemanticSegmentation, AutoProcessor

from hf_clip_variants import (
    DenseProcessor,
    GroupViTConfig,
    GroupViTForSemanticSegmentation,
    GroupViTModel,
    convert_checkpoint,
)
from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
from hf_clip_variants.modeling.groupvit.convert_groupvit import (
    convert_groupvit_state_dict,
    groupvit_from_official,
    infer_groupvit_config,
    to_official,
    vision_from_official,
)


HEADS = {"vision_heads": 3, "text_heads": 4}


def tiny_model():
    return groupvit_model().eval()


class TestConverter(ConverterContract):
    title = "GroupViT"
    config_class = GroupViTConfig
    from_official, convert = staticmethod(groupvit_from_official), staticmethod(convert_groupvit_state_dict)
    infer, to_official = staticmethod(infer_groupvit_config), staticmethod(to_official)
    options = HEADS
    optional = ("num_batches_tracked", "multi_label_logit_scale")
    indirect = ("text_encoder.token_embedding.weight", "img_encoder.layers.0.group_token")
    prefix = "text_encoder."
    hole = ("img_encoder.layers.0.blocks.1.", "img_encoder.layers.0.blocks.7.")
    wrong_shapes = (
        ("img_encoder.pos_embed", (1, 10, 24), "10 patch positions, expected a square"),
        ("img_encoder.pos_embed", (16, 24), "of the wrong shape: img_encoder.pos_embed"),
        ("img_encoder.patch_embed.proj.weight", (24, 108), "of the wrong shape: img_encoder.patch_embed.proj.weight"),
        ("img_encoder.norm.bias", (3,), r"img_encoder.norm.bias \(3,\), expected \(24,\)"),
        ("img_encoder.layers.1.group_token", (5, 24), "of the wrong shape: img_encoder.layers.1.group_token"),
        ("img_encoder.layers.1.blocks.0.attn.qkv.weight", (48, 24), r"qkv.weight \(48, 24\), expected \(72, 24\)"),
        ("img_projector.linear_out.weight", (20, 28), "of the wrong shape: img_projector.linear_out.weight"),
        ("text_projector.linear_out.weight", (20, 28, 3), r"linear_out.weight \(20, 28, 3\), expected \(20, 28\)"),
        ("logit_scale", (2,), r"logit_scale \(2,\), expected \(\)"),
    )
    wrong_heads = (
        ({}, "vision_heads: the width 24 is not a multiple of 64|text_heads: the width 32 is not a multiple of 64"),
        ({"vision_heads": 3, "text_heads": 5}, "text_heads=5: expected a divisor of the width 32"),
        ({"vision_heads": 5, "text_heads": 4}, "vision_heads=5: expected a divisor of the width 24"),
    )
    other_models = (
        ("visual.transformer.resblocks.0.ln_1.weight", "clip_from_official"),
        ("vision_model.layernorm.weight", "GroupViTModel.from_pretrained"),
        ("module.logit_scale", "read_state_dict removes it"),
    )
    nothing_found = "missing: img_encoder.patch_embed.proj.weight"

    def make(self):
        return tiny_model()

    def inputs(self):
        return groupvit_batch(2, prompts=0)


def test_without_noun_prompts_there_is_no_temperature_for_them():
    """The second published file, trained on RedCaps."""
    model = tiny_model()
    official = to_official(model.state_dict(), model.config)
    del official["multi_label_logit_scale"]
    found = groupvit_from_official(official, **HEADS)
    assert found.config.num_noun_prompts == 0 and not hasattr(found, "multi_label_logit_scale")
    assert found.state_dict().keys() == model.state_dict().keys() - {"multi_label_logit_scale"}
    assert to_official(found.state_dict(), found.config).keys() == official.keys()


def test_any_stages_are_read_from_the_shapes():
    stages = {"depths": [1, 2], "num_group_tokens": [3, 2], "num_output_groups": [12, 9]}
    torch.manual_seed(0)
    model = GroupViTModel(groupvit_config(vision=stages)).eval()
    found = groupvit_from_official(to_official(model.state_dict(), model.config), **HEADS)
    vision = found.config.vision_config
    assert (vision.depths, vision.num_group_tokens, vision.num_output_groups) == ([1, 2], [3, 2], [12, 9])
    assert vision.assign_mlp_ratio == [0.75, 3.0] and found.config.text_config.vocab_size == TEXT["vocab_size"]
    batch = groupvit_batch(2, prompts=0)
    with torch.no_grad():
        assert torch.equal(found(**batch).logits_per_image, model(**batch).logits_per_image)


def test_the_image_encoder_alone_can_be_converted():
    model = tiny_model()
    official = to_official(model.state_dict(), model.config)
    only = {name: tensor for name, tensor in official.items() if name.startswith("img_encoder.")}
    bare = {name.removeprefix("img_encoder."): tensor for name, tensor in only.items()}
    for weights in (official, only, bare):
        encoder = vision_from_official(weights, vision_heads=3)
        assert all(torch.equal(t, model.vision_model.state_dict()[n]) for n, t in encoder.state_dict().items())


class TestFiles:
    @pytest.fixture
    def fixture(self):
        return load_fixture("groupvit")

    @pytest.fixture
    def file(self, fixture, tmp_path):
        """As the official training writes it: weights under `model`, beside them an OmegaConf configuration."""
        module = types.ModuleType("omegaconf.dictconfig")
        module.DictConfig = type("DictConfig", (), {"__module__": module.__name__})
        config = module.DictConfig()
        config._content = {"img_encoder": {"depths": [6, 3, 3]}}
        rest = {"epoch": 29, "config": config, "lr_scheduler": {"last_epoch": 7}, "metrics": {"miou": 0.5}, "amp": {}}
        sys.modules["omegaconf"], sys.modules[module.__name__] = types.ModuleType("omegaconf"), module
        path = tmp_path / "group_vit_gcc_yfcc_30e.pth"
        try:
            torch.save({"model": dict(fixture.state_dict), "optimizer": {"state": {0: torch.ones(3)}}, **rest}, path)
        finally:
            del sys.modules["omegaconf"], sys.modules[module.__name__]
        return path

    @pytest.fixture
    def options(self, fixture, tmp_path):
        heads = fixture.meta["img_encoder"]["num_heads"][0], fixture.meta["text_heads"]
        tokenizer = letters_tokenizer(fixture.meta["text_encoder"]["vocab_size"], tmp_path / "letters")
        return dict(zip(HEADS, heads, strict=True)) | {"tokenizer": tokenizer}

    def test_the_configuration_object_is_never_built(self, fixture, file):
        assert read_state_dict(file).keys() == fixture.state_dict.keys()
        assert "omegaconf" not in sys.modules

    def test_the_command_writes_a_folder_that_meets_the_official_outputs(self, fixture, file, options, tmp_path):
        ids = fixture.inputs["input_ids"][:, 0]
        expected = {"image": fixture.inputs["pixel_values"], "text": ids}
        expected |= {"image_features": fixture.outputs["image_x"], "text_features": fixture.outputs["text_x"]}
        save_file({name: tensor.contiguous() for name, tensor in expected.items()}, tmp_path / "expected.safetensors")
        result = convert_checkpoint(
            file, tmp_path / "out", compare=True, expected=tmp_path / "expected.safetensors", **options
        )
        assert result.method == "groupvit" and result.kind == "GroupViTModel"
        assert result.difference < 1e-5 and max(result.expected_differences.values()) < 1e-4
        assert "omegaconf.dictconfig.DictConfig" in result.dropped
        assert type(AutoModel.from_pretrained(tmp_path / "out")) is GroupViTModel
        model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
        assert type(model) is GroupViTForSemanticSegmentation
        processor = AutoProcessor.from_pretrained(tmp_path / "out")
        assert type(processor) is DenseProcessor and processor.templates == ["a photo of a {}."]
        assert list(processor.image_processor.image_mean) == [0.485, 0.456, 0.406]
        pixels = processor(images=torch.zeros(3, 50, 100, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, 448, 896)
        card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        assert "image-segmentation" in card
