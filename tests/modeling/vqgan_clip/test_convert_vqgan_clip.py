"""The official ↔ VQGAN mapping: both quantisers, nested files, `.yaml` files, and what is refused."""

import pytest
import torch
import yaml
from converter_contract import ConverterContract
from official_files import from_a_training
from painting_runs import reconstruction_batch, tiny_vqgan
from parity_fixtures import assert_close, fixtures_like, load_fixture
from safetensors.torch import save_file
from transformers import AutoModel

from hf_clip_variants import VQGANConfig, VQGANModel, convert_checkpoint
from hf_clip_variants.modeling.vqgan_clip.convert_vqgan_clip import (
    convert_vqgan_state_dict,
    infer_vqgan_config,
    to_official,
    unused_names,
    vqgan_from_official,
)


def tiny(**options) -> VQGANModel:
    """With what no file holds at its default."""
    return tiny_vqgan(norm_groups=32, legacy_loss=True, **options)


class TestConverter(ConverterContract):
    title = "VQGAN"
    config_class = VQGANConfig
    from_official, convert = staticmethod(vqgan_from_official), staticmethod(convert_vqgan_state_dict)
    infer, to_official = staticmethod(infer_vqgan_config), staticmethod(to_official)
    output, one_name = "reconstruction", "quant_conv.bias"
    strays = {"loss.perceptual_loss.net.0.weight": torch.ones(3), "loss.discriminator.main.0.bias": torch.ones(2)}
    indirect = ("encoder.down.0.block.0.conv1.weight",)
    hole = ("encoder.mid.block_1.", "encoder.mid.block_7.")
    wrong_shapes = (
        ("quant_conv.weight", (5, 12, 3, 3), r"quant_conv.weight \(5, 12, 3, 3\), expected \(5, 12, 1, 1\)"),
        ("encoder.conv_out.weight", (24, 64, 3, 3), r"double_z"),
        ("decoder.up.0.block.0.nin_shortcut.bias", (7,), r"\(7,\), expected \(32,\)"),
        ("quantize.embedding.weight", (32, 6), r"expected"),
    )
    wrong_heads, options = (), {}
    other_models = (("visual.proj", "1 unexpected: visual.proj"),)
    nothing_found = "VQGAN state dict: 5 missing"

    @staticmethod
    def make():
        return tiny()

    @staticmethod
    def inputs():
        return reconstruction_batch(2)


def test_levels_of_the_decoder_run_the_other_way():
    model = tiny()
    official = to_official(model.state_dict(), model.config)
    assert torch.equal(official["decoder.up.1.attn.0.q.weight"], model.decoder.up[0].attn[0].q.weight)
    assert official["decoder.up.0.block.0.conv1.weight"].shape == (32, 64, 3, 3)


def test_a_transformers_file_gives_its_first_stage():
    model = tiny(quantizer="gumbel")
    official = {
        f"first_stage_model.{name}": tensor for name, tensor in to_official(model.state_dict(), model.config).items()
    }
    official |= {"transformer.pos_emb": torch.ones(1, 4, 4), "first_stage_model.loss.logvar": torch.ones(1)}
    found = vqgan_from_official(official)
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert unused_names(official) == ["transformer.pos_emb", "first_stage_model.loss.logvar"]


@pytest.mark.parametrize("name", fixtures_like("vqgan_decoder*", "vqgan_gumbel*"))
def test_files_become_folders_through_the_one_door(name, tmp_path):
    fixture = load_fixture(name)
    hyper = fixture.meta["hyper"]
    file = from_a_training(fixture.state_dict | {"loss.x": torch.ones(1)}, tmp_path / "vqgan.ckpt")
    params = {"embed_dim": hyper["embed_dim"], "n_embed": hyper["n_embed"], "ddconfig": hyper["ddconfig"]}
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"target": "x.VQModel", "params": params}}))
    latents = {"latents": fixture.outputs["encode.prequant"]}
    save_file({"pixel_values": fixture.inputs["pixel_values"], **latents}, tmp_path / "expected.safetensors")
    result = convert_checkpoint(file, tmp_path / "out", compare=True, expected=tmp_path / "expected.safetensors")
    assert result.method == "vqgan" and result.kind == "VQGANModel" and "loss.x" in result.dropped
    assert len(result.sources) == 2 and result.expected_differences["latents"] < 1e-3
    model = AutoModel.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert_close(model.encode(fixture.inputs["pixel_values"]), fixture.outputs["encode.prequant"])
    with pytest.raises(ValueError, match="tokenizer: given, but this model reads no texts"):
        convert_checkpoint(file, tmp_path / "other", tokenizer="somewhere")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "model: {params: {n_embed: 7, embed_dim: 5, ddconfig: {ch: 32}}}",
            "num_embeddings is 7, but 32 in the weights",
        ),
        ("model: {params: {ddconfig: {ch_mult: [1, 1]}}}", "channel_multiplier is \\[1, 1\\], but \\[1, 2\\]"),
        ("just a text", "no model.params.ddconfig"),
        ("[1, 2", "not a valid YAML file"),
        ("!!python/object/apply:os.system ['echo']", "not a valid YAML file"),
        ("x" * (2 << 20), "expected a configuration of at most"),
    ],
)
def test_a_yaml_that_says_something_else_is_refused(text, said, tmp_path):
    model = tiny()
    save_file(to_official(model.state_dict(), model.config), tmp_path / "m.safetensors")
    (tmp_path / "m.yml").write_text(text)
    with pytest.raises(ValueError, match=said):
        convert_checkpoint(tmp_path / "m.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
