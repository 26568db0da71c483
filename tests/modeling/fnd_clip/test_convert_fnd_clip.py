"""The official ↔ FND-CLIP mapping: an official file and the encoders beside it, and what is refused."""

import pytest
import torch
from converter_contract import ConverterContract
from fnd_clip_runs import BACKBONE, bert_tokenizer, fixture_parts, fnd_clip_batch, fnd_clip_model
from official_files import from_a_training
from parity_fixtures import load_fixture
from safetensors.torch import save_file
from tiny import tiny_tokenizer
from transformers import AutoModelForSequenceClassification, AutoProcessor, CLIPImageProcessor, CLIPProcessor

from hf_clip_variants import (
    FNDCLIPConfig,
    FNDCLIPForSequenceClassification,
    FNDCLIPProcessor,
    convert_checkpoint,
)
from hf_clip_variants.modeling.fnd_clip.convert_fnd_clip import (
    convert_fnd_clip_state_dict,
    fnd_clip_from_official,
    infer_fnd_clip_config,
    resnet_from_torchvision,
    to_official,
)


def tiny():
    return fnd_clip_model(batch_layer_attention=True, max_text_length=20)


def encoders() -> dict:
    model = tiny()
    return {"text_model": model.text_model, "dual_encoder": model.dual_encoder}


def frozen(model) -> dict[str, torch.Tensor]:
    """The part of a model that no official file has."""
    return {n: t for n, t in model.state_dict().items() if n.startswith(("text_model.", "dual_encoder."))}


def converted(weights, **options):
    return fnd_clip_from_official(weights, **encoders() | options)


class TestConverter(ConverterContract):
    title = "FND-CLIP"
    config_class = FNDCLIPConfig
    from_official = staticmethod(converted)
    convert = staticmethod(lambda weights, config: frozen(tiny()) | convert_fnd_clip_state_dict(weights, config))
    infer = staticmethod(lambda weights, **options: infer_fnd_clip_config(weights, **encoders() | options))
    to_official = staticmethod(to_official)
    options: dict = {}
    output, one_name = "logits", "fusion.similarity_summand"
    indirect = (
        *("weights", "uni_repre.text_uni.0.weight", "uni_repre.text_uni.4.weight", "classifier_corre.0.weight"),
        *("classifier_corre.6.weight", "resnet101.conv1.weight", "resnet101.fc.weight"),
        *(f"resnet101.layer{stage}.0.conv1.weight" for stage in range(1, 5)),
    )
    hole = ("resnet101.layer2.0.", "resnet101.layer2.7.")
    wrong_shapes = (
        ("uni_repre.image_uni.0.weight", (18, 30), r"image_uni.0.weight \(18, 30\), expected \(18, 35\)"),
        ("senet.0.bias", (4,), r"senet.0.bias \(4,\), expected \(3,\)"),
        ("weights", (5, 1), "text_model: 3 layers, the file weighs 4 and the embeddings"),
        ("cross_module.c_specific.5.running_var", (9,), r"expected \(10,\)"),
    )
    wrong_heads: tuple = ()
    other_models = (("uni_repre.text_uni.7.weight", "1 unexpected: uni_repre.text_uni.7.weight"),)
    nothing_found = "missing"

    def make(self):
        return tiny()

    def inputs(self):
        return {name: value for name, value in fnd_clip_batch().items() if name != "labels"}

    def test_half_precision_training_file_becomes_float32(self, tiny, official, tmp_path):
        from converter_contract import in_half, read_state_dict

        weights = read_state_dict(from_a_training(in_half(official), tmp_path / "best.pt"))
        found, kept = self.load(weights).state_dict(), frozen(tiny)
        for name, tensor in tiny.state_dict().items():
            rounded = tensor.half().float() if tensor.is_floating_point() and name not in kept else tensor
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], rounded), name


def test_torchvision_resnets_become_the_image_model():
    import torchvision

    for name, pixels in (("resnet18", 64), ("resnet50", 64)):
        torch.manual_seed(0)
        theirs = getattr(torchvision.models, name)(num_classes=9).eval()
        ours = resnet_from_torchvision(theirs.state_dict())
        image = torch.randn(2, 3, pixels, pixels)
        with torch.no_grad():
            torch.testing.assert_close(ours(image).logits, theirs(image), rtol=1e-5, atol=1e-5)


def test_the_published_resnet_has_the_sizes_of_the_default_configuration():
    import torchvision

    with torch.device("meta"):
        theirs = torchvision.models.resnet101().state_dict()
        ours = FNDCLIPForSequenceClassification(FNDCLIPConfig()).image_model.state_dict()
    assert len(theirs) == len(ours)
    assert sum(t.numel() for t in theirs.values()) == sum(t.numel() for t in ours.values())


def test_a_file_without_a_resnet_needs_an_image_model():
    fixture = load_fixture("fndclip")
    text_model, dual_encoder, image_model = fixture_parts(fixture.meta["hyper"])
    parts = {"text_model": text_model, "dual_encoder": dual_encoder}
    with pytest.raises(ValueError, match="no resnet101.… in it, and no image_model"):
        fnd_clip_from_official(fixture.state_dict, **parts)
    model = fnd_clip_from_official(fixture.state_dict, **parts, image_model=image_model)
    assert model.config.backbone_config.num_labels == fixture.meta["hyper"]["res"]


def test_a_file_becomes_a_folder_that_meets_expected_outputs(tmp_path):
    model = tiny()
    torch.save({"state_dict": to_official(model.state_dict(), model.config)}, tmp_path / "best.pt")
    model.text_model.save_pretrained(tmp_path / "bert")
    bert_tokenizer().save_pretrained(tmp_path / "bert")
    model.dual_encoder.save_pretrained(tmp_path / "clip")
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    CLIPProcessor(CLIPImageProcessor(**size), tiny_tokenizer()).save_pretrained(tmp_path / "clip")
    inputs = {name: value for name, value in fnd_clip_batch().items() if name != "labels"}
    with torch.no_grad():
        expected = {name: model(**inputs)[name] for name in ("logits", "modality_weights")}
    save_file(inputs | expected, tmp_path / "expected.safetensors")
    options = {"bert": str(tmp_path / "bert"), "dual_encoder": str(tmp_path / "clip"), "classes": "false, true"}
    options |= {"tokenizer": tmp_path / "bert", "expected": tmp_path / "expected.safetensors"}
    result = convert_checkpoint(tmp_path / "best.pt", tmp_path / "out", compare=True, **options)
    assert result.method == "fnd_clip" and result.kind == "FNDCLIPForSequenceClassification"
    assert result.difference < 1e-5 and result.expected_differences["logits"] < 1e-5
    assert any("batch_layer_attention" in note for note in result.notes)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert loaded.config.id2label == {0: "false", 1: "true"} and loaded.config.batch_layer_attention
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor) is FNDCLIPProcessor and processor.image_processor.resample_backend == "pil"
    result = convert_checkpoint(tmp_path / "best.pt", tmp_path / "again", compare=True, **options | {"expected": None})
    assert result.difference < 1e-5
    assert loaded.config.backbone_config.depths == BACKBONE["depths"]
