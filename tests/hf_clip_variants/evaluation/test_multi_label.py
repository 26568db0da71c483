"""Several labels an image: calibration tells present from absent, travels with adapters, and training finds more."""

import logging

import pytest
import torch
from adapter_models import tiny_classifier
from peft import LoraConfig, PeftModel, get_peft_model
from scenes import SCENE_CLASSES, make_scenes, scene_dataset
from tiny import EMOJI_CLIP, tiny_pixels
from transformers import Trainer, TrainingArguments

from hf_clip_variants import (
    CLIPAdapterConfig,
    CLIPClassifier,
    CLIPClassifierProcessor,
    calibrate_labels,
    load_adapter,
    load_multi_label_images,
)
from hf_clip_variants.evaluation.multi_label import (
    fit_calibration,
    label_thresholds,
    measure_labels,
    recalibrated,
    score_labels,
)
from hf_clip_variants.metrics.multi_label import mean_average_precision, multi_label_metrics
from hf_clip_variants.modeling.clip_classifier.label_calibration import (
    MULTI_LABEL,
    initial_calibration,
    label_logits,
)


INITIAL = initial_calibration(5, has_logit_bias=False)


@pytest.fixture(scope="module")
def processor():
    return CLIPClassifierProcessor.from_clip(EMOJI_CLIP)


@pytest.fixture(scope="module")
def known():
    """Scenes to calibrate on."""
    return load_multi_label_images(scene_dataset(40, seed=3))


@pytest.fixture(scope="module")
def test_set():
    return load_multi_label_images(scene_dataset(40, seed=2))


def scene_classifier(**options):
    names = sorted(SCENE_CLASSES)
    model = CLIPClassifier.from_pretrained(
        EMOJI_CLIP, class_names=names, templates="icons", dtype=torch.float32, **options
    )
    model.clip.requires_grad_(False)
    return model.eval()


def some_scores(count=200):
    """Scores of a CLIP with classes of different levels, and labels with different frequencies."""
    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(count, 5, generator=generator) < torch.tensor([0.5, 0.3, 0.2, 0.1, 0.3])).float()
    levels = torch.tensor([18.0, 22.0, 20.0, 15.0, 25.0])
    return levels + 5 * labels + 2 * torch.randn(count, 5, generator=generator), labels


# ---- the fit


def test_calibrated_probabilities_are_right_on_average_and_for_each_class():
    scores, labels = some_scores()
    probabilities = label_logits(scores, **fit_calibration(scores, labels, INITIAL)).sigmoid()
    assert probabilities.mean() == pytest.approx(labels.mean().item(), abs=1e-4)
    assert probabilities.mean(0).tolist() == pytest.approx(labels.mean(0).tolist(), abs=0.01)
    sure = probabilities > 0.8
    assert labels[sure].mean() == pytest.approx(probabilities[sure].mean().item(), abs=0.08)
    assert (label_logits(scores, *INITIAL).sigmoid().mean(0) - labels.mean(0)).abs().max() > 0.2, "before"


def test_the_fit_is_a_minimum_and_the_same_for_shifted_scores():
    scores, labels = some_scores()
    fitted = fit_calibration(scores, labels, INITIAL, strength=1e-6)

    def loss(values):
        return torch.nn.functional.binary_cross_entropy_with_logits(label_logits(scores, **values), labels).item()

    for name in fitted:
        for step in (-0.1, 0.1):
            assert loss(fitted | {name: fitted[name] + step}) > loss(fitted), name
    shifted = fit_calibration(scores + 100, labels, INITIAL, strength=1e-6)
    torch.testing.assert_close(
        label_logits(scores + 100, **shifted), label_logits(scores, **fitted), atol=1e-2, rtol=1e-3
    )


def test_a_class_without_images_has_the_bias_of_the_others():
    scores, labels = some_scores()
    labels[:, 3] = 0
    fitted = fit_calibration(scores, labels, INITIAL)
    assert torch.isfinite(fitted["bias"]).all()
    few = fit_calibration(scores[:2], torch.zeros(2, 5), INITIAL)
    assert all(torch.isfinite(value).all() for value in few.values())
    one = fit_calibration(scores[:, :1], labels[:, :1], initial_calibration(1, has_logit_bias=False))
    probabilities = label_logits(scores[:, :1], **one).sigmoid()
    assert probabilities[labels[:, :1] == 1].mean() > 0.8 > 0.2 > probabilities[labels[:, :1] == 0].mean()


# ---- on a model


def test_calibration_separates_present_from_absent_on_other_images(processor, known, test_set):
    model = scene_classifier()  # for one label: becomes one for several
    before = calibrate_labels(model, known, processor)
    assert model.config.problem_type == MULTI_LABEL
    said = score_labels(model, test_set, processor)
    present, absent = said.probabilities[said.labels == 1], said.probabilities[said.labels == 0]
    assert present.mean() > absent.mean() + 0.08
    assert said.probabilities.mean() == pytest.approx(said.labels.mean().item(), abs=0.06)
    frequent = torch.full_like(said.labels, said.labels.mean().item())
    loss = torch.nn.functional.binary_cross_entropy
    assert (
        loss(said.probabilities, said.labels)
        < loss(frequent, said.labels)
        < loss(
            score_labels(scene_classifier(problem_type=MULTI_LABEL), test_set, processor).probabilities, said.labels
        )
    )
    thresholds = label_thresholds(model)
    assert (
        measure_labels(said, thresholds)["f1_micro"]
        > measure_labels(said, torch.full_like(thresholds, 0.5))["f1_micro"]
    )
    again = recalibrated(model, before)
    torch.testing.assert_close(again.probabilities, score_labels(model, known, processor).probabilities)


def test_what_does_not_fit_is_named(processor, known, caplog):
    with pytest.raises(ValueError, match="model: its problem_type is None"):
        score_labels(scene_classifier(), known, processor)
    with pytest.raises(ValueError, match="images: their classes, .*, are not the model's"):
        score_labels(scene_classifier(problem_type=MULTI_LABEL), known.select_classes([1, 0]), processor)
    empty = known.align_classes(known.class_names)
    empty = empty.select([row for row in range(len(empty)) if not empty.labels[row, 0]])
    with caplog.at_level(logging.WARNING):
        calibrate_labels(scene_classifier(), empty, processor)
    assert "1 of 6 classes are in no image" in caplog.text and "'cat'" in caplog.text


def test_training_on_scenes_finds_more_in_other_scenes_than_zero_shot(processor, known, test_set, tmp_path):
    """CLIP-Adapter by `Trainer` on cached features; mAP of zero-shot CLIP is measured in the same test."""
    images, labels = make_scenes(100, seed=1, names=sorted(SCENE_CLASSES))
    model = scene_classifier(problem_type=MULTI_LABEL)
    zero_shot = mean_average_precision(*_probabilities_and_labels(score_labels(model, test_set, processor)))
    with torch.no_grad():
        features = model.get_image_features(processor(images=images, return_tensors="pt").pixel_values).pooler_output
    rows = [{"image_features": f, "labels": torch.from_numpy(row)} for f, row in zip(features, labels, strict=True)]
    torch.manual_seed(0)
    adapted = get_peft_model(model, CLIPAdapterConfig())
    arguments = TrainingArguments(
        str(tmp_path / "trainer"),
        num_train_epochs=8,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        remove_unused_columns=False,
        label_names=["labels"],
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(adapted, arguments, train_dataset=rows, eval_dataset=rows, compute_metrics=multi_label_metrics)
    start = trainer.evaluate()
    trainer.train()
    end = trainer.evaluate()
    assert start["eval_loss"] < 1.5, "a sane start"
    assert end["eval_loss"] < start["eval_loss"] and end["eval_mAP"] > start["eval_mAP"] and "eval_f1_macro" in end
    said = score_labels(adapted, test_set, processor)
    assert mean_average_precision(*_probabilities_and_labels(said)) > zero_shot + 0.15
    assert said.probabilities[said.labels == 1].mean() > said.probabilities[said.labels == 0].mean() + 0.3

    calibrate_labels(adapted, known, processor)
    adapted.save_pretrained(tmp_path / "adapter")
    some = test_set.select(range(8))
    expected = score_labels(adapted, some, processor)
    loaded = load_adapter(tmp_path / "adapter", scene_classifier(problem_type=MULTI_LABEL))
    torch.testing.assert_close(score_labels(loaded, some, processor).probabilities, expected.probabilities)
    assert torch.equal(label_thresholds(loaded), label_thresholds(adapted)), "thresholds travel, too"
    assert label_thresholds(loaded).unique().numel() > 1


def _probabilities_and_labels(said):
    return said.probabilities, said.labels


def test_calibration_goes_into_adapters_that_were_made_without_one(processor, known, tmp_path):
    lora = LoraConfig(target_modules=["q_proj"], r=2)
    model = get_peft_model(scene_classifier(), lora)
    calibrate_labels(model, known, processor)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(scene_classifier(problem_type=MULTI_LABEL), tmp_path)
    torch.testing.assert_close(
        score_labels(loaded, known, processor).probabilities, score_labels(model, known, processor).probabilities
    )
    assert label_thresholds(loaded).tolist() == pytest.approx(label_thresholds(model).tolist())
    with model.disable_adapter():
        assert label_thresholds(model).tolist() == [0.5] * 6, "the model below is as it was"


def test_a_model_that_was_never_calibrated_names_classes_from_one_half():
    model = tiny_classifier()
    assert label_thresholds(model).tolist() == [0.5] * 5
    model.config.problem_type = MULTI_LABEL
    assert model(tiny_pixels()).logits.shape == (4, 5)
