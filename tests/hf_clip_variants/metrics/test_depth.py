"""Depth metrics beside plain loops; what they refuse."""

import math

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_clip_variants.metrics.depth import (
    KITTI_METRICS,
    NYU_METRICS,
    depth_errors,
    depth_metrics_for_trainer,
    fit_scale_and_shift,
    kitti_depth_metrics,
    nyu_depth_metrics,
    order_accuracy,
)


def maps(*shape: int, seed: int = 0, low: float = 0.5, high: float = 9.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape)


def test_errors_are_those_of_a_loop_over_pixels():
    predicted, target = maps(40, seed=1), maps(40, seed=2)
    found, pixels = depth_errors(predicted, target), list(zip(predicted, target, strict=True))
    assert found["abs_rel"] == pytest.approx(sum(abs(p - g) / g for p, g in pixels) / 40)
    assert found["rmse"] == pytest.approx(math.sqrt(sum((p - g) ** 2 for p, g in pixels) / 40))
    assert found["rmse_log"] == pytest.approx(math.sqrt(sum(math.log(p / g) ** 2 for p, g in pixels) / 40))
    assert found["log10"] == pytest.approx(sum(abs(math.log10(p / g)) for p, g in pixels) / 40)
    assert found["a2"] == pytest.approx(sum(max(p / g, g / p) < 1.5625 for p, g in pixels) / 40)


def test_images_count_alike_however_many_pixels_they_have():
    predicted, target = maps(3, 20, 30, seed=1), maps(3, 20, 30, seed=2)
    target[0, 3:] = 0
    target[1] = np.nan
    each = [depth_errors(predicted[i][target[i] > 0], target[i][target[i] > 0])["rmse"] for i in (0, 2)]
    assert kitti_depth_metrics(predicted, target, crop=False)["rmse"] == pytest.approx(np.mean(each))


def test_crops_are_eigens_and_gargs():
    target, predicted = maps(1, 480, 640, seed=1), maps(1, 480, 640, seed=2)
    outside = np.ones((480, 640), dtype=bool)
    outside[45:471, 46:601] = False
    other = np.where(outside, 5.0, predicted)
    assert tuple(nyu_depth_metrics(predicted, target)) == NYU_METRICS
    assert nyu_depth_metrics(predicted, target) == nyu_depth_metrics(other, target)
    assert nyu_depth_metrics(predicted, target, crop=False) != nyu_depth_metrics(other, target, crop=False)
    target, predicted = maps(1, 375, 1242, seed=1), maps(1, 375, 1242, seed=2)
    outside = np.ones((375, 1242), dtype=bool)
    outside[153:371, 44:1197] = False
    other = np.where(outside, 5.0, predicted)
    assert tuple(kitti_depth_metrics(predicted, target)) == KITTI_METRICS
    assert kitti_depth_metrics(predicted, target) == kitti_depth_metrics(other, target)


def test_depth_without_scale():
    depth = maps(20, 30)
    scale, shift = fit_scale_and_shift(depth, 3 * depth - 1)
    assert (scale, shift) == (pytest.approx(3), pytest.approx(-1))
    assert fit_scale_and_shift(np.ones((2, 2)), np.arange(4.0).reshape(2, 2)) == (0.0, 1.5)
    assert order_accuracy(2 * depth + 7, depth) == 1 and order_accuracy(-depth, depth) == 0
    assert order_accuracy(maps(20, 30, seed=5), depth) == pytest.approx(0.5, abs=0.05)
    assert order_accuracy(np.ones((20, 30)), depth) == 0.5
    valid = np.zeros((20, 30), dtype=bool)
    valid[:10] = True
    half = np.where(valid, depth, -depth)
    assert order_accuracy(half, depth, valid) == 1 > order_accuracy(half, depth)


def test_trainer_pads_what_does_not_count():
    predicted, target = maps(2, 8, 9, seed=1), maps(2, 8, 9, seed=2)
    target[1, :, 5:] = -100
    found = depth_metrics_for_trainer()(EvalPrediction((predicted, np.zeros(2)), target))
    expected = kitti_depth_metrics(predicted, target, crop=False, largest_depth=10)
    assert found == expected and set(found) == set(KITTI_METRICS)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: depth_errors([1.0], [1.0, 2.0]), "got 1 and 2 pixels"),
        (lambda: depth_errors([0.0], [1.0]), "expected depths above 0"),
        (lambda: kitti_depth_metrics(np.ones((2, 3, 4)), np.ones((2, 4, 4))), "predicted: got \\[2, 3, 4\\]"),
        (lambda: kitti_depth_metrics(np.ones((3, 4)), np.ones((3, 4))), "expected \\[images, height, width\\]"),
        (lambda: kitti_depth_metrics(np.full((1, 9, 9), np.nan), np.ones((1, 9, 9))), "predicted: NaN or infinite"),
        (lambda: kitti_depth_metrics(np.ones((1, 9, 9)), np.zeros((1, 9, 9))), "target: no pixel has a depth"),
        (lambda: nyu_depth_metrics(np.ones((1, 9, 9)), np.ones((1, 9, 9))), "expected 480 x 640 for the crop"),
        (lambda: order_accuracy(np.ones(4), np.ones(4)), "no pair of pixels differs"),
        (lambda: order_accuracy(np.ones(4), np.zeros(4)), "target: 0 pixels that count"),
        (lambda: order_accuracy(np.full(4, np.nan), np.arange(4.0)), "predicted: NaN or infinite"),
        (lambda: fit_scale_and_shift(np.full(4, np.nan), np.ones(4)), "predicted, target: no pixel"),
        (lambda: order_accuracy("near", np.zeros(4)), "predicted: got a str"),
        (lambda: fit_scale_and_shift(torch.ones(4), torch.ones(4), torch.zeros(4)), "valid: no pixel"),
        (lambda: fit_scale_and_shift(torch.ones(4), torch.ones(4), torch.zeros(5)), "valid: got \\[5\\]"),
    ],
)
def test_what_is_no_depth_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
