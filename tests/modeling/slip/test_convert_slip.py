"""The official ↔ SLIP mapping: published models, the repository's three kinds, official files, and what is refused."""

import pytest
import torch
from converter_contract import ConverterContract, without
from official_files import from_a_training, letters_tokenizer
from parity_fixtures import load_fixture
from paths import MANIFESTS
from safetensors.torch import save_file
from slip_runs import slip_batch, slip_config, slip_model
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor

from hf_clip_variants import SLIPConfig, SLIPForPreTraining, SLIPModel, convert_checkpoint
from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
from hf_clip_variants.modeling.clip.convert_clip import clip_from_official
from hf_clip_variants.modeling.slip.convert_slip import (
    convert_slip_state_dict,
    infer_slip_config,
    slip_from_official,
    to_official,
    vit_from_official,
)


HEADS = {"vision_heads": 3, "text_heads": 4}


@pytest.fixture
def tiny():
    return slip_model().eval()


@pytest.fixture
def official(tiny):
    return to_official(tiny.state_dict(), tiny.config)


class TestConverter(ConverterContract):
    title = "SLIP"
    config_class = SLIPConfig
    from_official, convert = staticmethod(slip_from_official), staticmethod(convert_slip_state_dict)
    infer, to_official = staticmethod(infer_slip_config), staticmethod(to_official)
    options = HEADS
    manifests = sorted(MANIFESTS.glob("slip_VIT*.json"))
    optional = ("num_batches_tracked",)
    indirect = ("token_embedding.weight",)
    hole = ("visual.blocks.1.", "visual.blocks.7.")
    wrong_shapes = (
        ("visual.pos_embed", (1, 11, 24), "10 patch positions, expected a square"),
        ("visual.pos_embed", (10, 24), "of the wrong shape: visual.pos_embed"),
        ("visual.patch_embed.proj.weight", (24, 192), "of the wrong shape: visual.patch_embed.proj.weight"),
        ("visual.norm.bias", (3,), r"visual.norm.bias \(3,\), expected \(24,\)"),
        ("visual.blocks.0.attn.qkv.weight", (48, 24), r"qkv.weight \(48, 24\), expected \(72, 24\)"),
        ("image_projection", (20, 24), r"image_projection \(20, 24\), expected \(24, 20\)"),
        ("image_mlp.layer3.weight", (12, 5), r"image_mlp.layer3.weight \(12, 5\)"),
        ("logit_scale", (2,), r"logit_scale \(2,\), expected \(\)"),
        ("text_projection", (32,), r"text_projection \(32,\)"),
    )
    wrong_heads = (
        ({}, "vision_heads: the width 24 is not a multiple of 64"),
        ({"vision_heads": 3, "text_heads": 5}, "text_heads=5: expected a divisor of the width 32"),
    )
    other_models = (
        ("visual.transformer.resblocks.0.ln_1.weight", "clip_from_official"),
        ("visual.layer1.0.conv1.weight", "clip_resnet_from_official"),
        ("module.logit_scale", "read_state_dict removes it"),
    )
    nothing_found = "3 missing: visual.pos_embed"

    def make(self):
        return slip_model().eval()

    def inputs(self):
        return slip_batch(2)

    def check_published(self, config, manifest, name):
        vision, text, expected = config.vision_config, config.text_config, manifest["hparams"]
        assert len(self.manifests) == 3
        assert (vision.hidden_size, vision.num_hidden_layers) == (expected["vision_width"], expected["depth"])
        assert vision.num_attention_heads == expected["vision_heads"]
        assert (vision.image_size, vision.patch_size) == (expected["image_size"], expected["patch_size"])
        assert config.projection_dim == expected["embed_dim"]
        assert text.hidden_size == expected["transformer_width"]
        assert text.num_hidden_layers == expected["transformer_layers"]
        assert text.num_attention_heads == expected["transformer_heads"]
        assert (text.vocab_size, text.max_position_embeddings) == (expected["vocab_size"], expected["context_length"])
        assert (config.ssl_mlp_dim, config.ssl_emb_dim) == (expected["ssl_mlp_dim"], expected["ssl_emb_dim"])
        preset = SLIPConfig.of_size({"S": "small", "B": "base", "L": "large"}[name[-3]]).to_dict()
        found = config.to_dict()
        found["text_config"]["pad_token_id"] = preset["text_config"]["pad_token_id"]  # CLIPTextConfig's is of 2021
        assert found == preset


def test_a_clip_vit_becomes_the_dual_encoder(tiny, official):
    model = slip_from_official(without(official, "image_mlp."), **HEADS)
    assert type(model) is SLIPModel and not model.training
    assert all(torch.equal(tensor, tiny.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert model.config.ssl_mlp_dim == SLIPConfig().ssl_mlp_dim
    assert type(slip_from_official(official, **HEADS)) is SLIPForPreTraining
    assert type(slip_from_official(official, with_head=False, **HEADS)) is SLIPModel


def test_a_simclr_vit_gives_its_image_encoder_and_says_so(tiny, official):
    simclr = {name: tensor for name, tensor in official.items() if name.startswith(("visual.", "image_mlp."))}
    with pytest.raises(
        ValueError, match="no text encoder, this is a SIMCLR_VIT.*vit_from_official in hf_clip_variants"
    ):
        slip_from_official(simclr, **HEADS)
    pixels = slip_batch(2)["pixel_values"]
    for weights in (simclr, official, without(official, "image_mlp.")):
        encoder = vit_from_official(weights, vision_heads=3)
        with torch.no_grad():
            assert torch.equal(encoder(pixels).last_hidden_state, tiny.vision_model(pixels).last_hidden_state)


class TestFiles:
    @pytest.fixture
    def fixture(self):
        return load_fixture("slip")

    @pytest.fixture
    def file(self, fixture, tmp_path):
        """As the repository's training writes it: names of DistributedDataParallel, an optimiser, arguments in a
        Namespace."""
        return from_a_training(fixture.state_dict, tmp_path / "slip_base_25ep.pt")

    @pytest.fixture
    def options(self, fixture, tmp_path):
        heads = fixture.meta["vision_hparams"]["num_heads"], fixture.hparam("transformer_heads")
        tokenizer = letters_tokenizer(fixture.hparam("vocab_size"), tmp_path / "letters")
        return dict(zip(("vision_heads", "text_heads"), heads, strict=True)) | {"tokenizer": tokenizer}

    def test_official_file_ours_official(self, fixture, file, options):
        weights = read_state_dict(file)
        assert weights.keys() == fixture.state_dict.keys()
        model = slip_from_official(weights, **{name: options[name] for name in HEADS})
        back = to_official(model.state_dict(), model.config)
        assert all(torch.equal(back[name], tensor) for name, tensor in fixture.state_dict.items())

    @pytest.mark.parametrize("keep_head", [None, True])
    def test_the_command_writes_a_folder_that_meets_the_official_outputs(
        self, fixture, file, options, keep_head, tmp_path
    ):
        expected = {"image": fixture.inputs["image"], "text": fixture.inputs["text"]}
        expected |= {f"{name}_features": fixture.outputs[f"eval.{name}_embed"] for name in ("image", "text")}
        save_file(expected, tmp_path / "expected.safetensors")
        result = convert_checkpoint(
            file,
            tmp_path / "out",
            compare=True,
            expected=tmp_path / "expected.safetensors",
            keep_head=keep_head,
            **options,
        )
        assert (
            result.method == "slip" and result.difference < 1e-5 and max(result.expected_differences.values()) < 1e-4
        )
        left = [name for name in result.dropped if name.startswith("image_mlp.")]
        if keep_head:
            assert result.kind == "SLIPForPreTraining" and not left
            loaded = AutoModelForPreTraining.from_pretrained(tmp_path / "out")
            assert (
                type(loaded) is SLIPForPreTraining and type(AutoModel.from_pretrained(tmp_path / "out")) is SLIPModel
            )
        else:
            assert result.kind == "SLIPModel" and "image_mlp.layer3.bias" in left
            assert type(AutoModel.from_pretrained(tmp_path / "out")) is SLIPModel
        processor = AutoProcessor.from_pretrained(tmp_path / "out")
        assert processor.image_processor.resample == 2
        assert list(processor.image_processor.image_mean) == [0.485, 0.456, 0.406]
        size = fixture.meta["vision_hparams"]["img_size"]
        pixels = processor(images=torch.zeros(3, 50, 90, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, size, size)
        assert "zero-shot-image-classification" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")

    def test_a_simclr_file_is_known_and_nothing_is_written(self, fixture, options, tmp_path):
        simclr = {n: t for n, t in fixture.state_dict.items() if n.startswith(("visual.", "image_mlp."))}
        file = from_a_training(simclr, tmp_path / "simclr_small_25ep.pt")
        with pytest.raises(ValueError, match="SIMCLR_VIT"):
            convert_checkpoint(file, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    def test_the_head_belongs_to_slip(self, tmp_path):
        with pytest.raises(ValueError, match="keep_head: given, but it belongs to slip, and this is clip"):
            convert_checkpoint(tmp_path / "model.pt", tmp_path / "out", "clip", keep_head=True)


class TestRefused:
    def test_clips_converter_does_not_take_it(self, official):
        with pytest.raises(ValueError, match="visual"):
            clip_from_official(official, **HEADS)

    def test_other_image_encoders_have_no_official_names(self):
        config = slip_config(vision_config={"model_type": "clipv-clip_resnet_vision"})
        with pytest.raises(ValueError, match="vision_config.model_type: 'clipv-clip_resnet_vision', expected 'vit'"):
            to_official({}, config)
