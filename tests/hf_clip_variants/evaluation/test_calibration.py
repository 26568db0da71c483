"""Temperatures and rejection thresholds, on real images of styles that nothing was fitted to."""

import json

import pytest
import torch
import torch.nn.functional as F

from hf_clip_variants import CLIPClassifier, CLIPClassifierProcessor, embedded_model
from hf_clip_variants.adapters import load_adapter
from hf_clip_variants.data import compute_features, load_emoji
from hf_clip_variants.data.images.feature_cache import Features
from hf_clip_variants.data.images.labelled_images import CachedImages
from hf_clip_variants.evaluation.calibration import PRIOR_TEMPERATURE, calibrate, fit_rejection_threshold
from hf_clip_variants.evaluation.image_prediction import class_logits
from hf_clip_variants.evaluation.prediction import load_for_prediction
from hf_clip_variants.few_shot.evidence import evidence_of
from hf_clip_variants.few_shot.fitting import Shots, fit_adapter


NAMES = load_emoji("fluentflat").class_names[::3]  # 64 of them


@pytest.fixture(scope="module")
def classifier():
    return CLIPClassifier.from_pretrained(
        embedded_model(), class_names=NAMES, templates="icons", dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def features(classifier):
    """Shots of two styles, test images of two others."""
    processor = CLIPClassifierProcessor.from_clip(embedded_model())

    def compute(*styles):
        images = load_emoji(list(styles), concepts=list(NAMES))
        assert images.class_names == NAMES
        encode = lambda pixels: classifier.get_image_features(pixels).pooler_output  # noqa: E731
        return compute_features(encode, images, processor, progress=False)

    return compute("fluentflat", "emojione"), compute("fluent3d", "notov1")


def calibration_error(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Expected calibration error in ten bins of equally many images."""
    best = logits.softmax(1).max(1)
    right = (best.indices == labels).float()
    bins = best.values.argsort().chunk(10)
    return sum(len(b) * abs(float(best.values[b].mean() - right[b].mean())) for b in bins) / len(labels)


@pytest.mark.parametrize("method", ["zero_shot", "gda", "tip_adapter"])
def test_calibrated_probabilities_hold_on_new_styles(classifier, features, method):
    shots, test = (CachedImages(each) for each in features)
    if method == "zero_shot":
        evidence = evidence_of(classifier, shots)
        temperature = calibrate(evidence.logits, evidence.labels).temperature
        logits = class_logits(classifier, test).logits
    else:
        fitted = fit_adapter(classifier, method, Shots(shots, shots), overrides={"augmentation": "none"})
        temperature = fitted.model.peft_config["default"].temperature
        logits = class_logits(fitted.model, test).logits
        fitted.unload()
    calibrated = logits / temperature
    loss, loss_before = (F.cross_entropy(each, test.labels) for each in (calibrated, logits))
    error, error_before = (calibration_error(each, test.labels) for each in (calibrated, logits))
    assert loss < 0.8 * loss_before and error < 0.75 * error_before, (loss, loss_before, error, error_before)


def test_a_rejection_threshold_keeps_nineteen_of_twenty_right_answers(classifier, features):
    shots, test = (CachedImages(each) for each in features)
    evidence = evidence_of(classifier, shots)
    found = calibrate(evidence.logits, evidence.labels)
    best = (class_logits(classifier, test).logits / found.temperature).softmax(1).max(1)
    right = best.indices == test.labels
    kept = best.values >= found.rejection_threshold
    assert kept[right].float().mean() > 0.85, "of another style than those that it was measured on"
    assert kept[~right].float().mean() < 0.85, "wrong answers are less certain"


def test_too_few_right_answers_give_no_threshold():
    assert fit_rejection_threshold(torch.rand(18)) is None and fit_rejection_threshold(torch.empty(0)) is None
    values = torch.rand(199, generator=torch.Generator().manual_seed(0))
    assert float((values < fit_rejection_threshold(values) - 1e-5).float().mean()) == pytest.approx(9 / 199)


def test_where_nothing_is_validated_the_temperature_is_that_of_zero_shot_clip_on_the_shots(classifier, features):
    first = [int((features[0].labels == label).nonzero()[0]) for label in range(len(NAMES))]
    images = CachedImages(Features(features[0].features[:, first], features[0].labels[first]))
    expected = evidence_of(classifier, images).temperature
    fitted = fit_adapter(classifier, "gda", Shots(images, images), overrides={"augmentation": "none"})
    fitted.unload()
    config = fitted.model.peft_config["default"]
    assert fitted.validation.kind == "none"
    assert (config.temperature, config.rejection_threshold) == (expected, None)


def test_an_adapter_keeps_its_temperature_and_older_files_have_none(classifier, features, tmp_path):
    shots = CachedImages(features[0])
    fitted = fit_adapter(classifier, "clip_adapter", Shots(shots, shots), overrides={"epochs": 1})
    fitted.model.save_pretrained(tmp_path / "adapter")
    saved = fitted.model.peft_config["default"]
    fitted.unload()
    classifier.save_pretrained(tmp_path / "base")
    CLIPClassifierProcessor.from_clip(embedded_model()).save_pretrained(tmp_path / "base")
    load = lambda **options: load_for_prediction(tmp_path / "base", tmp_path / "adapter", device="cpu", **options)  # noqa: E731

    found = load().calibration
    assert saved.temperature > 1 and found.temperature == saved.temperature
    assert found.rejection_threshold == saved.rejection_threshold
    assert load(class_names=["cat", "dog"]).calibration is None, "measured for other classes"
    assert load(class_names=NAMES, templates="a photo of a {}.").calibration is None, "and for other templates"

    file = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(file.read_text())
    del values["temperature"], values["rejection_threshold"]
    file.write_text(json.dumps(values))
    assert load_adapter(tmp_path / "adapter", classifier).peft_config["default"].temperature is None
    assert PRIOR_TEMPERATURE == 2.0
