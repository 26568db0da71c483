"""mAP, F1 and thresholds: equal to scikit-learn, and what is wrong is named."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from transformers import EvalPrediction

from hf_clip_variants.metrics.multi_label import (
    average_precision,
    best_f1_thresholds,
    f1_scores,
    mean_average_precision,
    multi_label_metrics,
)


@pytest.fixture(params=["continuous", "with ties"])
def scored(request):
    """(scores, labels) of 60 images and 5 classes, the last class rare."""
    generator = torch.Generator().manual_seed(3)
    labels = (torch.rand(60, 5, generator=generator) < torch.tensor([0.5, 0.3, 0.2, 0.1, 0.0])).long()
    labels[7, 4] = 1
    scores = torch.rand(60, 5, generator=generator) + 0.3 * labels
    return (scores * 5).round() if request.param == "with ties" else scores, labels


def test_average_precision_is_that_of_scikit_learn(scored):
    scores, labels = scored
    expected = [average_precision_score(labels[:, c], scores[:, c]) for c in range(5)]
    assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)
    assert mean_average_precision(scores, labels) == pytest.approx(np.mean(expected), abs=1e-12)


def test_classes_without_images_do_not_count_in_the_mean(scored):
    scores, labels = scored
    labels[:, 4] = 0
    by_class = average_precision(scores, labels)
    assert by_class[4] is None
    assert mean_average_precision(scores, labels) == pytest.approx(np.mean(by_class[:4]))
    with pytest.raises(ValueError, match="labels: no image has a label"):
        mean_average_precision(scores, torch.zeros_like(labels))


def test_f1_is_that_of_scikit_learn(scored):
    scores, labels = scored
    found = scores >= scores.median()
    found[:, 4] = False  # neither right nor wrong: 0
    labels[:, 4] = 0
    result = f1_scores(found, labels)
    options = {"zero_division": 0}
    assert result["f1_micro"] == pytest.approx(f1_score(labels, found, average="micro", **options), abs=1e-12)
    assert result["f1_macro"] == pytest.approx(f1_score(labels, found, average="macro", **options), abs=1e-12)
    assert result["f1_by_class"] == pytest.approx(f1_score(labels, found, average=None, **options), abs=1e-12)


def test_thresholds_have_the_best_f1_of_all(scored):
    scores, labels = scored
    probabilities = scores / scores.max()
    thresholds = best_f1_thresholds(probabilities, labels, least=3)
    shown, present, least = probabilities.numpy(), labels.numpy(), thresholds.numpy()
    for c in range(4):
        reached = f1_score(present[:, c], shown[:, c] >= least[c])
        assert reached == pytest.approx(best_f1(shown[:, c], present[:, c])), c
    reached = f1_score(present.flatten(), shown.flatten() >= least[4])
    assert reached == pytest.approx(best_f1(shown.flatten(), present.flatten())), "one image: the threshold of all"


def best_f1(probabilities, present):
    """(N,) each: the best F1 of all thresholds, tried one by one."""
    found = [probabilities >= threshold for threshold in np.unique(probabilities)]
    return max(2 * (said & (present == 1)).sum() / (said.sum() + present.sum()) for said in found)


def test_trainer_metrics_take_logits_and_the_tuple_that_trainer_may_give():
    logits, labels = np.array([[1.0, -1.0], [-1.0, -2.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    expected = {"mAP": 0.75, "f1_micro": pytest.approx(2 / 3), "f1_macro": 0.5}
    assert multi_label_metrics(EvalPrediction(logits, labels)) == expected
    assert multi_label_metrics(EvalPrediction((logits, logits), labels)) == expected
    assert multi_label_metrics(EvalPrediction(logits, labels), threshold=0.1)["f1_macro"] == pytest.approx(2 / 3)


def test_wrong_arguments_are_named():
    scores = torch.rand(4, 2)
    with pytest.raises(ValueError, match=r"scores: shape \(4, 2\) for labels \(4,\)"):
        average_precision(scores, torch.zeros(4))
    with pytest.raises(ValueError, match="labels: got 0.5; want 0"):
        average_precision(scores, torch.full((4, 2), 0.5))
    with pytest.raises(ValueError, match="predicted: got 2; want 0"):
        f1_scores(torch.full((4, 2), 2), torch.ones(4, 2))
    with pytest.raises(ValueError, match="probabilities: got NaN"):
        best_f1_thresholds(scores * torch.nan, torch.ones(4, 2))
