"""Metrics of abnormal frames: against scikit-learn, in any parts and order, without some classes, wrong inputs."""

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from hf_clip_variants.metrics.video_anomaly import FrameAnomalyMetrics, roc_auc


def random_frames(seed: int, count: int = 400, classes: int = 5, levels: int = 30):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes - 1, (count,), generator=generator)  # the last class has no frames
    scores = (torch.rand(count, generator=generator) + 0.2 * (labels != 2)).mul(levels).round() / levels  # with ties
    probs = torch.rand(count, classes, generator=generator).mul(levels).round() / levels
    return scores, labels, probs


@pytest.mark.parametrize("seed", [0, 1])
def test_values_are_those_of_scikit_learn(seed):
    scores, labels, probs = random_frames(seed)
    metrics = FrameAnomalyMetrics(5, normal_id=2)
    metrics.update(scores, labels, probs)
    found, abnormal = metrics.compute(), (labels != 2).numpy()
    assert found["auc"] == pytest.approx(roc_auc_score(abnormal, scores.numpy()), abs=1e-12)
    assert found["ap"] == pytest.approx(average_precision_score(abnormal, scores.numpy()), abs=1e-9)
    false, true, thresholds = roc_curve(abnormal, scores.numpy(), drop_intermediate=False)
    assert found["threshold"] == pytest.approx(float(thresholds[(true - false).argmax()]))
    for label in (0, 1, 3):
        expected = roc_auc_score((labels == label).numpy(), probs[:, label].numpy())
        assert found["auc_by_class"][label] == pytest.approx(expected, abs=1e-12)
        expected = average_precision_score((labels == label).numpy(), probs[:, label].numpy())
        assert found["ap_by_class"][label] == pytest.approx(expected, abs=1e-9)
    assert found["auc_by_class"][4] is None and found["ap_by_class"][4] is None  # no frames: left out of the means
    assert found["mauc"] == pytest.approx(sum(found["auc_by_class"][label] for label in (0, 1, 3)) / 3)
    assert found["frames"] == 400 and found["abnormal_frames"] == int(abnormal.sum())


def test_parts_and_order_make_no_difference():
    scores, labels, probs = random_frames(3)
    whole, parts = FrameAnomalyMetrics(5, 2), FrameAnomalyMetrics(5, 2)
    whole.update(scores, labels, probs)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    for part in order.split([1, 7, 200, 192]):
        parts.update(scores[part].numpy(), labels[part].numpy(), probs[part].numpy())
    assert whole.compute() == parts.compute() == whole.all_gather().compute()


def test_what_cannot_be_measured_is_none():
    metrics = FrameAnomalyMetrics(2)
    metrics.update(torch.tensor([0.5, 0.7]), torch.tensor([0, 0]))
    found = metrics.compute()
    assert found["auc"] is None and found["ap"] is None and found["threshold"] is None and "mauc" not in found
    metrics.update(torch.tensor([0.6]), torch.tensor([1]))
    assert metrics.compute()["auc"] == 0.5
    assert roc_auc(torch.tensor([1.0]), torch.tensor([True])) == (None, None)
    metrics.reset()
    with pytest.raises(ValueError, match="scores: no frames"):
        metrics.compute()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([0.1, 0.2], [0]), "scores, labels: shapes \\[2\\], \\[1\\]"),
        (([0.1], [3]), "labels: got 3, expected 0..2"),
        (([0.1], [0.5]), "labels: numbers of type torch.float"),
        (([float("nan")], [0]), "scores: NaN"),
        (([0.1], [0], [[0.5, 0.5]]), "class_probs: shape \\[1, 2\\], expected \\[1, 3\\]"),
    ],
)
def test_wrong_inputs_are_said_and_nothing_is_added(arguments, message):
    metrics = FrameAnomalyMetrics(3)
    metrics.update([0.5], [1], [[0.2, 0.3, 0.5]])
    before = metrics.compute()
    with pytest.raises(ValueError, match=message):
        metrics.update(*arguments)
    with pytest.raises(ValueError, match="class_probs: got them in some calls only"):
        metrics.update([0.1], [0])
    assert metrics.compute() == before
    for wrong in ((1, 0), (3, 3)):
        with pytest.raises(ValueError, match="num_labels: 1|normal_id: 3"):
            FrameAnomalyMetrics(*wrong)
