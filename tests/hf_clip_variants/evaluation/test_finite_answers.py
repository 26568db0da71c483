"""Wherever answers leave, NaN and infinity are an error that names what they came from."""

import copy
import json
import math

import pytest
import torch
from adapter_models import tiny_classifier
from attack_configurations import tiny_image
from tiny import CLASS_NAMES, tiny_tokenizer
from transformers import pipeline

from hf_clip_variants import CLIPClassifier, CLIPClassifierImageProcessor, CLIPClassifierProcessor, load_images
from hf_clip_variants.evaluation.image_encoder import load_image_encoder
from hf_clip_variants.evaluation.image_prediction import class_logits, predict
from hf_clip_variants.evaluation.prediction import classify, load_for_prediction, load_processor
from hf_clip_variants.evaluation.saved_folders import check_model_folder, load_saved_processor
from hf_clip_variants.evaluation.zero_shot import zero_shot_accuracy


BROKEN = "clip.vision_model.encoder.layers.1.mlp.fc1.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of a whole model, one of a model with a NaN, and an image."""
    folder = tmp_path_factory.mktemp("finite")
    sizes = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    processor = CLIPClassifierProcessor(CLIPClassifierImageProcessor(**sizes), tiny_tokenizer())
    for name in ("good", "broken"):
        model = copy.deepcopy(tiny_classifier())
        if name == "broken":
            model.get_parameter(BROKEN).data[0, 0] = math.nan
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    tiny_image(30, 40).save(folder / "image.png")
    return folder


def named(folder) -> str:
    return rf"because the weight {BROKEN} has some \({folder / 'broken' / 'model.safetensors'}\)"


def test_commands_say_it_in_one_line_with_and_without_json(saved, run, tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(2):
            tiny_image(30 + index, 40).save(tmp_path / "data" / label / f"{index}.png")
    data, broken = tmp_path / "data", saved / "broken"
    for command in (
        ["predict", "--model", broken, saved / "image.png"],
        ["evaluate", "--model", broken, "--data", data, "--classes", "cat, dog"],
        ["knn", broken, "--train", data, "--test", data, "--k", "1"],
        [
            "adapt",
            "--data",
            data,
            "--model",
            broken,
            "--out",
            tmp_path / "run",
            "--methods",
            "tip_adapter",
            "--shots",
            1,
        ],
    ):
        for more in ([], ["--json"]):
            code, out, error = run(*command, *more)
            said = " ".join(error.split()).replace("│ ", "").replace(" │", "")
            assert code == 1 and "nan" not in out.lower() and "Traceback" not in error, (command, out, error)
            assert "because the weight" in said and "mlp.fc1.weight has some" in said, (command, error)


def test_predictions_and_pipelines_name_the_weight(saved):
    for name in ("good", "broken"):
        loaded = load_for_prediction(saved / name)
        classifier = pipeline("image-classification", model=str(saved / name), device="cpu")
        if name == "good":
            (found,) = classify(loaded, [str(saved / "image.png")])
            assert [score for _, score in found.top] and len(classifier(tiny_image(30, 40))) == len(CLASS_NAMES)
            continue
        with pytest.raises(ValueError, match=named(saved)):
            list(classify(loaded, [str(saved / "image.png")]))
        with pytest.raises(ValueError, match=f"the weight {BROKEN} has some"):
            classifier(tiny_image(30, 40))


class OneBatch:
    """Labelled images as `predict` reads them."""

    def __len__(self):
        return 2

    def batch(self, rows, epoch):
        return {"pixel_values": torch.zeros(len(rows), 3, 24, 24)}


def test_evaluation_and_features_name_the_weight(saved, monkeypatch):
    model = CLIPClassifier.from_pretrained(saved / "broken")
    # as on an accelerator, where `forward` does not look
    monkeypatch.setattr("hf_clip_variants.modeling.dual_encoders.forward_checks.can_be_read", lambda tensor: False)
    assert not model(**OneBatch().batch([0], 0)).logits.isfinite().any()
    for measure in (predict, class_logits):
        with pytest.raises(ValueError, match=named(saved)):
            measure(model, OneBatch())
    images = load_images("emoji:notov1").select([0, 1])
    with pytest.raises(ValueError, match=r"^features: NaN or infinite numbers, because the weight vision_model"):
        load_image_encoder(saved / "broken", device="cpu").features_of(images, progress=False)
    with pytest.raises(ValueError, match=r"^similarity of images and classes: .* because the weight vision_model"):
        zero_shot_accuracy(model.clip, load_processor(saved / "good"), images)


PROCESSORS = {
    "image_mean": ({"image_processor": {"image_mean": [0.5, math.nan, 0.5]}}, "image_mean: nan"),
    "image_std": ({"image_processor": {"image_std": [0.5, 0, 0.5]}}, "image_std: "),
    "rescale_factor": ({"image_processor": {"rescale_factor": 1e30}}, "rescale_factor: 1e"),
    "unknown class": ({"image_processor": {"image_processor_type": "EvilProcessor"}}, "EvilProcessor"),
    "class that is none": ({"processor_class": 5}, "processor_class: 5, expected the name of a class"),
    "settings that are none": ({"image_processor": [1]}, r"image_processor: \[1\], expected an object"),
}


@pytest.mark.parametrize(("changes", "said"), PROCESSORS.values(), ids=PROCESSORS)
def test_processors_that_cannot_be_are_named(saved, tmp_path, changes, said):
    load_processor(saved / "good").save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    values = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            {
                k: values[k] | changes[k] if isinstance(changes.get(k), dict) else changes.get(k, values[k])
                for k in values
            }
        )
    )
    with pytest.raises((ValueError, OSError), match=said):
        load_processor(tmp_path)


def test_damaged_json_is_named(tmp_path):
    for text, said in (
        ("{", "not a valid JSON file"),
        ("[]", "holds a JSON list"),
        ("[" * 100_000, "not a valid JSON"),
    ):
        for name, load in (("config.json", check_model_folder), ("processor_config.json", load_saved_processor)):
            (tmp_path / name).write_text(text)
            with pytest.raises(OSError, match=f"{tmp_path / name}: {said}"):
                load(tmp_path)
            (tmp_path / name).unlink()
    (tmp_path / "config.json").write_text('{"num_labels": 1000000000}')
    with pytest.raises(ValueError, match="num_labels: 1000000000"):
        check_model_folder(tmp_path)
