"""The official ↔ LSeg mapping: a Vision Transformer, a ResNet, official files, options, and what is refused."""

import pytest
import torch
from converter_contract import ConverterContract, all_refused
from lseg_runs import TEXT, lseg_ids, lseg_model, official_lseg_options
from official_files import letters_tokenizer
from parity_fixtures import load_fixture
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, AutoProcessor

from hf_clip_variants import LSegConfig, LSegForSemanticSegmentation, convert_checkpoint
from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
from hf_clip_variants.modeling.lseg.convert_lseg import (
    convert_lseg_state_dict,
    infer_lseg_config,
    lseg_from_official,
    to_official,
    unused_names,
)


HEADS = {"vision_heads": 3, "text_heads": 4}
# As in the official files: a whole CLIP and a classifier, of which LSeg uses the text encoder alone.
UNUSED = {
    "clip_pretrained.visual.conv1.weight": torch.ones(2, 3, 4, 4),
    "clip_pretrained.logit_scale": torch.tensor(4.6),
    "pretrained.model.head.weight": torch.ones(5, 24),
    "pretrained.model.head.bias": torch.ones(5),
}
BLOCK = {"head_block": "depthwise", "block_depth": 3, "block_activation": "tanh"}


class TestVisionTransformer(ConverterContract):
    title = "LSeg"
    config_class = LSegConfig
    from_official, convert = staticmethod(lseg_from_official), staticmethod(convert_lseg_state_dict)
    infer, to_official = staticmethod(infer_lseg_config), staticmethod(to_official)
    prefix = "clip_pretrained."
    output = "logits"
    optional = ("num_batches_tracked",)
    one_name = "lseg.pixel_projection.bias"
    strays = UNUSED
    hole = ("transformer.resblocks.1.", "transformer.resblocks.7.")
    other_models = (
        ("visual.proj", "clip_from_official"),
        ("module.scratch.head1.bias", "read_state_dict removes it"),
    )
    nothing_found = "missing: scratch.head1.weight"

    def inputs(self):
        images = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
        return {"pixel_values": images, "input_ids": lseg_ids()}

    options = HEADS | BLOCK | {"hooks": [0, 1, 3, 4]}
    indirect = ("scratch.head_block.depthwise.depthwise.weight", "pretrained.act_postprocess1.0.project.0.weight")
    wrong_shapes = (
        ("pretrained.model.pos_embed", (1, 11, 24), "10 patch positions, expected a square"),
        ("pretrained.model.pos_embed", (10, 24), "of the wrong shape: pretrained.model.pos_embed"),
        ("pretrained.model.blocks.0.attn.qkv.weight", (48, 24), r"qkv.weight \(48, 24\), expected \(72, 24\)"),
        ("pretrained.act_postprocess1.4.weight", (6, 6, 2, 2), r"4.weight \(6, 6, 2, 2\), expected \(6, 6, 4, 4\)"),
        ("scratch.refinenet1.out_conv.bias", (3,), r"out_conv.bias \(3,\), expected \(12,\)"),
        ("scratch.head1.weight", (21, 12, 1, 1), "21 channels, but the text encoder projects to 20"),
        ("clip_pretrained.text_projection", (32,), r"text_projection \(32,\)"),
    )
    wrong_heads = (
        ({**BLOCK}, "text_heads: the width 32 is not a multiple of 64"),
        ({**BLOCK, "text_heads": 4, "vision_heads": 5}, "vision_heads=5: expected a divisor of the width 24"),
    )

    def make(self):
        return lseg_model(temperature=0.07, **BLOCK, text_config=_text())


def test_a_resnet_is_converted_and_back():
    vision = {"model_type": "resnet", "embedding_size": 6, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 2, 1, 1]}
    vision["image_size"] = 480
    tiny = lseg_model("resnet", temperature=0.07, text_config=_text(), vision_config=vision)
    official = to_official(tiny.state_dict(), tiny.config)
    model = lseg_from_official(official, text_heads=4)
    assert model.config.to_dict() == tiny.config.to_dict()
    assert all(torch.equal(tensor, tiny.state_dict()[name]) for name, tensor in model.state_dict().items())
    counted = {name: tensor for name, tensor in official.items() if not name.endswith("num_batches_tracked")}
    assert lseg_from_official(counted, text_heads=4).state_dict().keys() == model.state_dict().keys()
    without = {name: tensor for name, tensor in official.items() if name != "pretrained.layer2.0.downsample.0.weight"}
    with pytest.raises(ValueError, match="1 missing: pretrained.layer2.0.downsample.0.weight"):
        lseg_from_official(without, text_heads=4)
    with pytest.raises(ValueError, match=r"layer2.1.bn1.running_var \(4,\), expected \(3,\)"):
        lseg_from_official(official | {"pretrained.layer2.1.bn1.running_var": torch.ones(4)}, text_heads=4)
    with pytest.raises(ValueError, match="of the wrong shape: pretrained.layer1.0.weight"):
        lseg_from_official(official | {"pretrained.layer1.0.weight": torch.ones(6, 147)}, text_heads=4)


def _text() -> dict:
    """OpenAI's text encoder: what the converter takes for granted."""
    return TEXT | {"hidden_act": "quick_gelu"}


def lightning(weights, path):
    """As the official training writes it: Lightning's names, and what is beside the weights."""
    named = {f"net.{name}": tensor for name, tensor in weights.items()}
    rest = {"epoch": 239, "pytorch-lightning_version": "1.4.9", "hyper_parameters": {"arch_option": 1}}
    torch.save({**rest, "optimizer_states": [{"state": {0: torch.ones(2)}}], "state_dict": named}, path)
    return path


class TestFiles:
    @pytest.fixture
    def fixture(self):
        return load_fixture("lseg")

    @pytest.fixture
    def file(self, fixture, tmp_path):
        """CLIP was saved from a GPU: its matrices are float16, its norms and embeddings float32."""
        weights = {
            name: tensor.half()
            if name.startswith("clip_pretrained.") and tensor.dim() > 1 and "emb" not in name
            else tensor
            for name, tensor in fixture.state_dict.items()
        }
        return lightning(weights | {"clip_pretrained.visual.proj": torch.ones(2, 2)}, tmp_path / "demo_e200.ckpt")

    @pytest.fixture
    def options(self, fixture, tmp_path):
        options = official_lseg_options(fixture.meta)
        options["hooks"] = ",".join(map(str, options["hooks"]))
        return options

    def test_the_command_writes_a_folder_that_meets_the_official_scores(self, fixture, file, options, tmp_path):
        expected = {name: fixture.inputs[name] for name in ("pixel_values", "input_ids")}
        save_file(expected | {"logits": fixture.outputs["logits"]}, tmp_path / "expected.safetensors")
        # float32, because the expected scores are of the weights before they were rounded.
        whole = lightning(fixture.state_dict, tmp_path / "whole.ckpt")
        result = convert_checkpoint(
            whole, tmp_path / "out", expected=tmp_path / "expected.safetensors", tokenizer="none", **options
        )
        assert result.method == "lseg" and result.kind == "LSegForSemanticSegmentation"
        assert result.expected_differences["logits"] < 1e-4 and result.difference < 1e-5
        assert {"epoch", "optimizer_states", "net.pretrained.model.head.bias"} <= set(result.dropped)
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
        assert type(loaded) is LSegForSemanticSegmentation and not loaded.config.id2label
        assert "image-segmentation" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")

    def test_a_file_of_mixed_precision_becomes_float32_with_tokenizer_and_processor(self, file, options, tmp_path):
        fixture = load_fixture("lseg")
        vocabulary = fixture.meta["clip_text"]["vocab_size"]
        if vocabulary < 56:
            options["tokenizer"] = "none"  # fewer tokens than letters
        else:
            options["tokenizer"] = letters_tokenizer(vocabulary, tmp_path / "letters")
        result = convert_checkpoint(file, tmp_path / "out", compare=True, **options)
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
        assert {p.dtype for p in loaded.parameters()} == {torch.float32} and result.difference < 1e-5
        images = AutoImageProcessor.from_pretrained(tmp_path / "out")
        if options["tokenizer"] != "none":
            assert AutoProcessor.from_pretrained(tmp_path / "out").image_processor.to_dict() == images.to_dict()
        assert list(images.image_mean) == [0.5] * 3 and list(images.image_std) == [0.5] * 3
        batch = images(torch.zeros(3, 100, 200, dtype=torch.uint8), return_tensors="pt")
        assert batch["pixel_values"].shape == (1, 3, 480, 960)

    def test_names_of_lightning_are_those_without_its_prefix(self, fixture, file, options):
        weights = read_state_dict(file)
        assert all(name.startswith("net.") for name in weights)
        options["hooks"] = [int(hook) for hook in options["hooks"].split(",")]
        model = lseg_from_official(weights, **options)
        plain = lseg_from_official({n.removeprefix("net."): t for n, t in weights.items()}, **options)
        assert all(torch.equal(t, plain.state_dict()[n]) for n, t in model.state_dict().items())
        assert "net.clip_pretrained.visual.proj" in unused_names(weights)
        with pytest.raises(ValueError, match="twice, with and without a prefix: scratch.head1.bias"):
            lseg_from_official(weights | {"scratch.head1.bias": torch.ones(1)}, **options)


class TestOptions:
    @pytest.fixture
    def official(self):
        return to_official(lseg_model(**BLOCK).state_dict(), lseg_model(**BLOCK).config)

    def test_the_kind_of_a_block_must_be_said(self, official):
        def convert(weights):
            return lseg_from_official(weights, **HEADS)

        all_refused(convert, [(official, "head_block: None, expected bottleneck .* or depthwise")])
        with pytest.raises(ValueError, match="head_block: 'bottleneck', but the file has no block"):
            weights = {name: tensor for name, tensor in official.items() if "head_block" not in name}
            lseg_from_official(weights, **HEADS, head_block="bottleneck")

    def test_the_readout_belongs_to_files_that_do_not_project(self, official):
        with pytest.raises(ValueError, match="readout: 'add', but the file projects the class token"):
            lseg_from_official(official, **HEADS, **BLOCK, readout="add")
        weights = {name: tensor for name, tensor in official.items() if ".0.project." not in name}
        for readout in (None, "add"):
            model = lseg_from_official(weights, **HEADS, **BLOCK, readout=readout)
            assert model.config.readout_type == (readout or "ignore")

    def test_hooks_are_numbers_of_layers(self, official, tmp_path):
        with pytest.raises(ValueError, match="backbone_out_indices.*expected four layers in 0..4"):
            lseg_from_official(official, **HEADS, **BLOCK, hooks=[0, 1, 2, 9])
        file = lightning(official, tmp_path / "model.ckpt")
        with pytest.raises(ValueError, match="hooks: 'five', expected four numbers such as 5,11,17,23"):
            convert_checkpoint(file, tmp_path / "out", tokenizer="none", hooks="five", **HEADS, **BLOCK)
        assert not (tmp_path / "out").exists()

    def test_an_encoder_of_clip_has_no_official_names(self):
        model = lseg_model("clip_vision_model")
        with pytest.raises(ValueError, match="'clip_vision_model', expected 'dpt' or a 'resnet'"):
            to_official(model.state_dict(), model.config)
