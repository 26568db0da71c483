"""Metrics of seconds, steps and moments."""

import math

import pytest
import torch

from hf_clip_variants.metrics.moments import MomentMetrics, SecondMetrics, StepMetrics, temporal_iou


def test_seconds_of_all_videos_count_alike():
    metric = SecondMetrics()
    metric.update(torch.tensor([1, 1, 0]), torch.tensor([1, 2, 0]))
    metric.update(torch.tensor([0] * 7), torch.tensor([0] * 6 + [3]))
    assert metric.compute() == {"frame_accuracy": 0.8, "foreground_accuracy": pytest.approx(1 / 3)}
    with pytest.raises(ValueError, match=r"predicted: got \[2\], expected \[3\]"):
        metric.update(torch.zeros(2), torch.zeros(3))


def test_a_step_is_found_where_the_middle_of_its_second_is_in_one_of_its_spans():
    metric = StepMetrics()
    metric.update([2, 4, 9], [[(2.4, 3)], [(0, 1), (4.6, 6)], []])  # the third has no span: it does not count
    assert metric.compute() == {"step_recall": 0.5}
    with pytest.raises(ValueError, match="seconds: got 1, expected one for each of 2 steps"):
        metric.update([1], [[], []])


def test_moments_are_right_where_they_are_the_very_span():
    metric = MomentMetrics(ks=(1, 3))
    metric.update([(0, 5), (5, 10)], (0, 5))
    metric.update([(0, 10), (10, 15), (5, 10)], (5, 10))
    metric.update([(0, 5)], (20, 25))
    assert metric.compute() == {
        "rank_at_1": pytest.approx(1 / 3),
        "rank_at_3": pytest.approx(2 / 3),
        "mean_iou": pytest.approx(0.5),
    }
    assert temporal_iou((0, 5), (5, 9)) == 0 and temporal_iou((1, 3), (0, 4)) == 0.5
    with pytest.raises(ValueError, match="moments: got none"):
        metric.update([], (0, 5))


def test_without_anything_there_is_no_number():
    for metric in (SecondMetrics(), StepMetrics(), MomentMetrics()):
        assert all(math.isnan(value) for value in metric.compute().values())
