"""The official ↔ VideoAnomalyClip mapping: names, files with a centroid beside them, class names, what is refused."""

import functools

import pytest
import torch
from converter_contract import ConverterContract
from official_files import letters_tokenizer
from parity_fixtures import fixtures_like, load_fixture
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor
from video_anomaly_clip_runs import feature_batch, video_anomaly_config, video_anomaly_model, whole_checkpoint

from hf_clip_variants import VideoAnomalyClipConfig, VideoAnomalyClipModel, convert_checkpoint
from hf_clip_variants.modeling.clip.text_clip import official_tokenizer
from hf_clip_variants.modeling.video_anomaly_clip.convert_video_anomaly_clip import (
    convert_video_anomaly_clip_state_dict,
    infer_video_anomaly_clip_config,
    prompt_ids_of,
    to_official,
    video_anomaly_clip_from_official,
)


HEADS = {"vision_heads": 4, "text_heads": 4, "temporal_heads": 3}
NAMES = ["abuse", "normal", "fire", "riot"]


def tiny() -> VideoAnomalyClipModel:
    """With what no file holds at its default, and a centroid that half precision keeps."""
    model = video_anomaly_model(freeze_clip=True, logit_scale_init_value=2.6592)
    return model.set_normal_centroid(model.normal_centroid.half().float())


def from_official(weights, **options):
    said = {"normal_centroid": tiny().normal_centroid, "class_names": NAMES}
    # Training alone needs these, and the size of passes.
    said |= {"num_topk": 2, "num_bottomk": 1, "selection_dropout_topk": 0.0, "selection_dropout_bottomk": 0.0}
    return video_anomaly_clip_from_official(weights, **said, **options)


def convert(weights, config):
    """The centroid is in a file of its own."""
    buffers = {name: tensor for name, tensor in tiny().named_buffers() if "normal" in name}
    return convert_video_anomaly_clip_state_dict(weights, config) | buffers


class TestOfficial(ConverterContract):
    title = "AnomalyCLIP"
    config_class = VideoAnomalyClipConfig
    from_official, convert = staticmethod(from_official), staticmethod(convert)
    infer, to_official = staticmethod(infer_video_anomaly_clip_config), staticmethod(to_official)
    options = HEADS
    output, one_name, prefix = "class_probs", "clip.logit_scale", "net."
    hole = ("temporal_model.axial_attn.layers.blocks.0.", "temporal_model.axial_attn.layers.blocks.9.")
    wrong_shapes = (
        ("net.image_encoder.proj", (20, 24), r"image_encoder.proj"),
        ("net.prompt_learner.ctx", (4, 2, 30), r"prompt_learner.ctx \(4, 2, 30\), expected \(4, 2, 32\)"),
        ("net.selector_model.bn_layer.running_var", (4,), r"running_var \(4,\), expected \(3,\)"),
        ("net.temporal_model.projection.weight", (12, 25), "takes 25 numbers, expected 24 or 27"),
        ("net.temporal_model.axial_attn.pos_emb.param_1", (1, 12, 2, 1), r"expected \(1, 12, 1, 1\)"),
    )
    wrong_heads = (
        ({}, "text_heads: the width 32 is not a multiple of 64"),
        (HEADS | {"temporal_heads": 5}, "temporal_heads: 5 does not divide 12"),
    )
    other_models = (
        ("net.image_encoder.layer1.0.conv1.weight", "it needs the model clip_resnet"),
        ("logit_scale", "1 unexpected: logit_scale"),
    )
    nothing_found = "missing: prompt_learner.ctx"
    make = staticmethod(tiny)

    def inputs(self):
        return feature_batch()


def test_class_names_and_the_normal_class_are_checked():
    official = to_official(tiny().state_dict(), tiny().config)
    load = functools.partial(video_anomaly_clip_from_official, normal_centroid=torch.zeros(24), **HEADS)
    assert load(official, class_names=NAMES).config.normal_id == 1
    assert load(official, class_names=NAMES, normal="fire").config.normal_id == 2
    assert load(official, class_names=["a", "b", "c", "d"], normal="3").config.normal_id == 3
    for options, message in (
        ({"class_names": NAMES[:3]}, "class_names: 3 names, the checkpoint has 4 classes"),
        ({"class_names": ["a", "b", "c", "d"]}, "normal: None, 0 of the classes a, b, c, d are it"),
        ({"class_names": NAMES, "normal": "smoke"}, "normal: 'smoke', 0 of the classes"),
        ({"class_names": NAMES, "normal": 7}, "normal: 7, expected a class 0..3"),
    ):
        with pytest.raises(ValueError, match=message):
            load(official, **options)


def test_token_ids_are_found_by_their_embeddings():
    model = tiny()
    official = to_official(model.state_dict(), model.config)
    assert torch.equal(prompt_ids_of(official), model.prompt_ids)
    foreign = official | {"net.prompt_learner.token_suffix": torch.randn(4, 4, 32)}
    with pytest.raises(ValueError, match="embeddings are none of token_embedding.weight"):
        prompt_ids_of(foreign)


class TestFiles:
    @pytest.fixture(params=fixtures_like("anomalyclip*"))
    def fixture(self, request):
        return load_fixture(request.param)

    def test_a_file_becomes_a_folder_that_meets_the_official_outputs(self, fixture, tmp_path):
        said, given, outputs = fixture.meta["hyper"], fixture.inputs, fixture.outputs
        file, weights = tmp_path / "last.ckpt", whole_checkpoint(fixture)
        torch.save({"epoch": 3, "state_dict": {f"net.{name}": tensor for name, tensor in weights.items()}}, file)
        inputs = {"video_features": given["test_features"][:, 0].contiguous()}
        expected = {"text_features": outputs["text_features"], "scores": outputs["test.scores"][None]}
        expected |= {"class_probs": outputs["test.class_probs_with_normal"][None]}
        save_file(inputs | expected, tmp_path / "expected.safetensors")
        options = {"vision_heads": 1, "text_heads": said["text"]["heads"], "temporal_heads": said["heads"]}
        options |= {"classes": ",".join(said["labels_file"]), "normal_class": said["labels_file"][said["normal_id"]]}
        run = functools.partial(convert_checkpoint, file, expected=tmp_path / "expected.safetensors", **options)
        with pytest.raises(ValueError, match="centroid: no ncentroid.pt lies beside last.ckpt"):
            run(tmp_path / "out", tokenizer="none")
        torch.save(given["ncentroid"], tmp_path / "ncentroid.pt")
        result = run(tmp_path / "out", tokenizer="none")
        assert result.method == "video_anomaly_clip" and result.kind == "VideoAnomalyClipModel"
        assert max(result.expected_differences.values()) < 1e-4 and result.dropped == ["epoch"]
        assert len(result.sources) == 2
        loaded = AutoModel.from_pretrained(tmp_path / "out")
        assert type(loaded) is VideoAnomalyClipModel and list(loaded.config.id2label.values()) == said["labels_file"]
        torch.testing.assert_close(loaded.normal_centroid, given["ncentroid"])
        with pytest.raises(ValueError, match="classes: the file does not tell the class names"):
            convert_checkpoint(file, tmp_path / "none", tokenizer="none", **options | {"classes": None})

    def test_class_names_are_read_from_the_prompts(self, tmp_path):
        vocabulary = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
        text = video_anomaly_config().text_config.to_dict() | vocabulary
        model = VideoAnomalyClipModel(video_anomaly_config(text_config=text, prompt_length=0))
        model.set_anomalies(["car_accident", "fighting"], official_tokenizer(), normal="Normal", normal_id=2)
        save_file(to_official(model.state_dict(), model.config), tmp_path / "last.safetensors")
        torch.save(torch.ones(24), tmp_path / "ncentroid.pt")
        result = convert_checkpoint(tmp_path / "last.safetensors", tmp_path / "out", tokenizer="none", **HEADS)
        config = VideoAnomalyClipConfig.from_pretrained(tmp_path / "out")
        assert config.id2label == {0: "car accident", 1: "fighting", 2: "normal"} and config.normal_id == 2
        assert any("car accident, fighting, normal" in note for note in result.notes)

    def test_outputs_are_compared_and_the_processor_looks_at_every_frame(self, tmp_path):
        model = tiny()
        save_file(to_official(model.state_dict(), model.config), tmp_path / "last.safetensors")
        torch.save(model.normal_centroid, tmp_path / "mean.pt")
        letters = letters_tokenizer(model.config.text_config.vocab_size, tmp_path / "letters")
        options = HEADS | {"classes": ",".join(NAMES), "centroid": str(tmp_path / "mean.pt"), "tokenizer": letters}
        result = convert_checkpoint(tmp_path / "last.safetensors", tmp_path / "out", compare=True, **options)
        assert result.difference < 1e-5
        processor = AutoProcessor.from_pretrained(tmp_path / "out")
        videos = processor(videos=torch.zeros(40, 30, 20, 3, dtype=torch.uint8).numpy(), return_tensors="pt")
        assert videos["pixel_values_videos"].shape == (1, 40, 3, 24, 24)
