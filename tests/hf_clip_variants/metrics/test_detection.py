"""Average precision of detections: known answers, base and novel classes, one process or two."""

import json
import math

import numpy as np
import pytest
from paths import TESTS
from processes import run_on_ranks

from hf_clip_variants.metrics.detection import DetectionMetrics, average_recall, phrase_recall


GROUPS = {"base": [0, 1], "novel": [2]}


def detections_of(number: int) -> tuple[dict, dict]:
    """Detections and objects of one image: the detected boxes are the objects', moved a little."""
    draw = np.random.default_rng(number)
    count = int(draw.integers(0, 4))
    corners = draw.uniform(0, 50, (count, 2))
    boxes = np.concatenate([corners, corners + draw.uniform(5, 40, (count, 2))], axis=1)
    labels = draw.integers(0, 3, count).tolist()
    noise = boxes + draw.normal(0, 3, boxes.shape)
    noise[:, 2:] = np.maximum(noise[:, :2], noise[:, 2:])
    found = {"scores": draw.random(count).tolist(), "labels": labels, "boxes": noise.tolist()}
    return found, {"labels": labels, "boxes": boxes.tolist()}


def test_perfect_detections_have_precision_one_and_missing_classes_none():
    metrics = DetectionMetrics(num_labels=4, groups=GROUPS | {"rare": [3]})
    box = {"labels": [0, 2], "boxes": [[0, 0, 9, 9], [5, 5, 30, 20]]}
    metrics.add(1, box | {"scores": [0.3, 0.9]}, box)
    metrics.add(
        2, {"labels": [1], "boxes": [[0, 0, 5, 5]], "scores": [0.2]}, {"labels": [1], "boxes": [[40, 40, 50, 50]]}
    )
    found = metrics.compute()
    assert found["base/AP"] == 0.5 and found["novel/AP"] == 1.0 and math.isnan(found["rare/AP"])
    assert found["AP"] == pytest.approx(2 / 3) and found["AR"] == pytest.approx(2 / 3)


def test_a_box_of_half_the_overlap_counts_at_one_threshold_only():
    metrics = DetectionMetrics(num_labels=1)
    metrics.add(
        0, {"labels": [0], "scores": [1], "boxes": [[0, 0, 10, 10]]}, {"labels": [0], "boxes": [[0, 0, 10, 19]]}
    )
    found = metrics.compute()
    assert found["AP50"] == 1 and found["AP75"] == 0 and found["AP"] == pytest.approx(0.1)


def test_masks_are_compared_where_asked():
    mask = np.zeros((1, 20, 20), bool)
    mask[0, :10, :10] = True
    box = {"labels": [0], "boxes": [[0, 0, 10, 10]]}
    metrics = DetectionMetrics(num_labels=1, masks=True)
    metrics.add(0, box | {"scores": [1], "masks": mask}, box | {"masks": mask})
    metrics.add(1, box | {"scores": [1], "masks": ~mask}, box | {"masks": mask})
    assert 0.4 < metrics.compute()["AP"] < 0.6


def test_crowds_are_neither_found_nor_missed():
    metrics = DetectionMetrics(num_labels=1)
    target = {"labels": [0, 0], "boxes": [[0, 0, 10, 10], [20, 20, 60, 60]], "iscrowd": [0, 1]}
    metrics.add(0, {"labels": [0, 0], "scores": [0.9, 0.8], "boxes": [[0, 0, 10, 10], [21, 21, 40, 40]]}, target)
    assert metrics.compute()["AP"] == 1


def test_average_recall_is_class_agnostic_and_counts_proposals():
    objects = [[[0, 0, 10, 10]], []]
    assert average_recall([[[50, 50, 60, 60], [0, 0, 10, 10]], []], objects) == 1
    assert average_recall([[[50, 50, 60, 60], [0, 0, 10, 10]], []], objects, count=1) == 0
    assert average_recall([[[50, 50, 60, 60], [0, 0, 10, 10]], []], objects, count=1, scores=[[0.1, 0.9], []]) == 1


def test_bad_detections_are_named():
    metrics, fine = DetectionMetrics(num_labels=2), {"labels": [], "boxes": []}
    one = {"labels": [0], "scores": [1], "boxes": [[0, 0, 1, 1]]}
    for change, message in (
        ({"boxes": [[5, 0, 1, 1]]}, "inverted"),
        ({"boxes": [[0, 0, np.nan, 1]]}, "not finite"),
        ({"labels": [2]}, "label 2, expected 0..1"),
        ({"scores": [1, 2]}, "1 labels, 1 boxes, 2 scores"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.add(7, one | change, fine)
    with pytest.raises(ValueError, match="groups"):
        DetectionMetrics(num_labels=2, groups={"novel": [5]})


def test_two_processes_give_the_numbers_of_one(tmp_path):
    images = [detections_of(number) for number in range(12)]
    (tmp_path / "detections.json").write_text(json.dumps({"groups": GROUPS, "images": images}))
    run_on_ranks(TESTS / "programs" / "detection_ranks.py", tmp_path, world_size=2, folder=tmp_path)
    metrics = DetectionMetrics(num_labels=3, groups=GROUPS)
    for number, (predictions, targets) in enumerate(images):
        metrics.add(number, predictions, targets)
    expected = metrics.compute()
    assert [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)] == [expected, expected]
    assert 0 < expected["AP"] < 1 and all(map(math.isfinite, expected.values()))


def test_a_phrase_is_found_if_one_of_its_best_boxes_overlaps_one_of_its_objects():
    objects = [[[0, 0, 10, 10], [20, 20, 40, 40]], [[0, 0, 10, 10]], [[5, 5, 9, 9]], [[0, 0, 4, 4]]]
    found = [
        [[20, 20, 40, 30.01]],  # overlaps the second object by a little more than half
        [[0, 0, 10, 4.9], [0, 0, 10, 5]],  # the second box by exactly half
        [],  # nothing found
        [[0, 0, 0, 0], [50, 50, 60, 60]],  # boxes without area, or elsewhere
    ]
    assert phrase_recall(found, objects) == 0.25 and phrase_recall(found, objects, 2) == 0.5
    assert phrase_recall(found, objects, 2, threshold=0.51) == 0.0
    assert math.isnan(phrase_recall([], []))
    for arguments, message in (((found, objects[:1]), "found: of 4 phrases"), ((found, objects, 0), "count: 0")):
        with pytest.raises(ValueError, match=message):
            phrase_recall(*arguments)
