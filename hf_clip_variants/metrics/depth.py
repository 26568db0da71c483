"""Errors of depth maps, as NYU Depth v2 and KITTI are scored, and of depth that has no scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


SMALLEST_DEPTH = 1e-3
NYU_CANVAS, NYU_PASTE = (480, 640), (slice(56, 472), slice(60, 604))  # where the cut-out image lies in the whole one
_EIGEN = (slice(45, 471), slice(46, 601))
_GARG_ROWS, _GARG_COLUMNS = (0.40810811, 0.99189189), (0.03594771, 0.96405229)
NYU_METRICS = ("abs_diff", "a1", "a2", "a3", "abs_rel", "log10", "rmse")
KITTI_METRICS = ("abs_diff", "abs_rel", "sq_rel", "a1", "a2", "a3", "rmse", "rmse_log")


def depth_errors(predicted: Any, target: Any) -> dict[str, float]:
    """Errors over N pixels, all of them above 0; NaN where there are none.

    abs_diff, sq_rel and rmse in the unit of depth, abs_rel relative, rmse_log of natural and log10 of decimal
    logarithms; a1, a2, a3 the shares of pixels whose larger ratio of both depths is below 1.25, its square and cube.

    >>> {name: round(value, 3) for name, value in depth_errors([1.0, 2.0], [1.0, 4.0]).items() if name[0] == "a"}
    {'abs_diff': 1.0, 'a1': 0.5, 'a2': 0.5, 'a3': 0.5, 'abs_rel': 0.25}
    """
    p, g = _as_tensor("predicted", predicted).flatten(), _as_tensor("target", target).flatten()
    if p.shape != g.shape:
        raise ValueError(f"predicted, target: got {len(p)} and {len(g)} pixels, expected as many")
    if len(p) and not (p.min() > 0 and g.min() > 0):
        raise ValueError("predicted, target: expected depths above 0")
    difference, ratio = p - g, torch.maximum(p / g, g / p)
    logs = p.log() - g.log()
    found = {
        "abs_diff": difference.abs().mean(),
        **{f"a{power}": (ratio < 1.25**power).double().mean() for power in (1, 2, 3)},
        "abs_rel": (difference.abs() / g).mean(),
        "sq_rel": (difference.square() / g).mean(),
        "log10": (p.log10() - g.log10()).abs().mean(),
        "rmse": difference.square().mean().sqrt(),
        "rmse_log": logs.square().mean().sqrt(),
    }
    return {name: float(value) for name, value in found.items()}


def nyu_depth_metrics(predicted: Any, target: Any, crop: bool = True, largest_depth: float = 10.0) -> dict[str, float]:
    """The seven errors of NYU Depth v2 (`NYU_METRICS`), each image's mean over pixels, then the mean over images.

    Pixels count where the target is in (0.001, `largest_depth`) and something is predicted; with `crop`, only in
    Eigen's rows 45..470 and columns 46..600. Predictions are clamped to that range first.

    Args:
        predicted: (B, h, w) or (B, 1, h, w), in metres. Of 416 x 544 pixels it lies at rows 56.. and columns 60.. of
            the target, as DepthCLIP's and BTS's cut-out of the image does; else it has the target's size.
        target: (B, H, W) or (B, 1, H, W), 480 x 640 for `crop`.

    Raises:
        ValueError: shapes that do not fit, no image with a pixel that counts.
    """
    p, g = _maps(predicted, "predicted"), _maps(target, "target")
    height, width = g.shape[-2:]
    if crop and (height, width) != NYU_CANVAS:
        raise ValueError(f"target: {height} x {width} pixels, expected 480 x 640 for the crop (crop=False takes any)")
    cut = tuple(one.stop - one.start for one in NYU_PASTE)
    if tuple(p.shape[-2:]) == cut and (height, width) == NYU_CANVAS:
        canvas = p.new_zeros(len(p), height, width)
        canvas[:, *NYU_PASTE] = p
        p = canvas
    _check_same(p, g)
    valid = (g > SMALLEST_DEPTH) & (g < largest_depth) & (p > SMALLEST_DEPTH)
    if crop:
        inside = torch.zeros_like(valid)
        inside[:, *_EIGEN] = True
        valid &= inside
    return _mean_over_images(p.clamp(SMALLEST_DEPTH, largest_depth), g, valid, NYU_METRICS)


def kitti_depth_metrics(
    predicted: Any, target: Any, crop: bool = True, largest_depth: float = 80.0
) -> dict[str, float]:
    """The eight errors of KITTI (`KITTI_METRICS`), each image's mean over pixels, then the mean over images.

    Pixels count where the target is in (0.001, `largest_depth`); with `crop`, only in Garg's part of the image, the
    lower 58 % without 4 % at each side. Predictions are clamped to 0.001..`largest_depth`.

    Args:
        predicted, target: (B, H, W) or (B, 1, H, W), in metres.

    Raises:
        ValueError: shapes that do not fit, no image with a pixel that counts.
    """
    p, g = _maps(predicted, "predicted"), _maps(target, "target")
    _check_same(p, g)
    valid = (g > SMALLEST_DEPTH) & (g < largest_depth)
    if crop:
        rows, columns = (
            slice(int(low * side), int(high * side))
            for (low, high), side in zip((_GARG_ROWS, _GARG_COLUMNS), g.shape[-2:], strict=True)
        )
        inside = torch.zeros_like(valid)
        inside[:, rows, columns] = True
        valid &= inside
    return _mean_over_images(p.clamp(SMALLEST_DEPTH, largest_depth), g, valid, KITTI_METRICS)


def _mean_over_images(p: torch.Tensor, g: torch.Tensor, valid: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """Images without a pixel that counts are left out (the official code answers NaN for all then)."""
    rows = [
        depth_errors(one[where], other[where]) for one, other, where in zip(p, g, valid, strict=True) if where.any()
    ]
    if not rows:
        raise ValueError("target: no pixel has a depth in the range that counts")
    return {name: float(np.mean([row[name] for row in rows])) for name in names}


# ---- depth without a scale


def fit_scale_and_shift(predicted: Any, target: Any, valid: Any = None) -> tuple[float, float]:
    """(scale, shift) for which scale x predicted + shift is nearest to the target, by least squares over the pixels
    where `valid`, which are all finite ones by default; scale 0 where all predictions are the same.

    >>> fit_scale_and_shift([1.0, 2.0, 3.0], [3.0, 5.0, 7.0])
    (2.0, 1.0)
    """
    p, g = _as_tensor("predicted", predicted), _as_tensor("target", target)
    _check_same(p, g)
    chosen = (p.isfinite() & g.isfinite()) if valid is None else _as_bool(valid, g)
    p, g = p[chosen], g[chosen]
    if not len(p):
        name = "predicted, target" if valid is None else "valid"
        raise ValueError(f"{name}: no pixel that counts, expected at least one (finite in both)")
    centred = p - p.mean()
    spread = float(centred.square().sum())
    scale = float((centred * (g - g.mean())).sum()) / spread if spread > 1e-12 * len(p) else 0.0
    return scale, float(g.mean()) - scale * float(p.mean())


def order_accuracy(
    predicted: Any, target: Any, valid: Any = None, pairs: int = 20_000, margin: float = 0.05, seed: int = 0
) -> float:
    """The share of random pairs of pixels that the prediction puts in the target's order; chance is 0.5.

    For depth whose scale is not known. A pair counts whose target values differ by more than `margin` of the larger
    one. Pairs with equal predictions count one half.

    Args:
        predicted, target: of one shape; both larger farther away (or both larger nearer, as disparity is).
        valid: pixels to draw from; default: where the target is finite and above 0.

    >>> order_accuracy([[3.0, 2.0, 1.0]], [[1.0, 2.0, 3.0]]), order_accuracy([[1.0, 1.0]], [[1.0, 2.0]])
    (0.0, 0.5)
    """
    p, g = _as_tensor("predicted", predicted), _as_tensor("target", target)
    _check_same(p, g)
    chosen = (g.isfinite() & (g > 0)) if valid is None else _as_bool(valid, g)
    p, g = p[chosen], g[chosen]
    if len(p) < 2:
        name = "target" if valid is None else "valid"
        raise ValueError(f"{name}: {len(p)} pixels that count, expected at least two")
    if not p.isfinite().all():
        raise ValueError("predicted: NaN or infinite depths, expected finite ones")
    one, other = torch.randint(len(p), (2, pairs), generator=torch.Generator().manual_seed(seed))
    counted = (g[one] - g[other]).abs() > margin * torch.maximum(g[one].abs(), g[other].abs())
    if not counted.any():
        raise ValueError(f"target: no pair of pixels differs by more than {margin:g}")
    same = (p[one] - p[other]).sign() * (g[one] - g[other]).sign()
    return float((same[counted].double() + 1).mean() / 2)


# ---- for Trainer


def depth_metrics_for_trainer(largest_depth: float = 10.0):
    """`compute_metrics` for transformers' `Trainer` with a depth model: `KITTI_METRICS` without a crop.

    Predictions and labels are (B, H, W); labels of 0 or less, NaN and infinite do not count, nor does what Trainer
    pads maps of other sizes with (-100).
    """

    def compute(evaluated: Any) -> dict[str, float]:
        predictions = evaluated.predictions
        predictions = predictions[0] if isinstance(predictions, tuple | list) else predictions
        return kitti_depth_metrics(predictions, evaluated.label_ids, crop=False, largest_depth=largest_depth)

    return compute


# ---- what comes in


def _as_tensor(name: str, values: Any) -> torch.Tensor:
    if isinstance(values, Mapping | str | bytes):
        raise ValueError(f"{name}: got a {type(values).__name__}, expected numbers")
    try:
        if isinstance(values, torch.Tensor):
            return values.detach().cpu().double()
        return torch.from_numpy(np.array(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}, expected numbers") from error


def _as_bool(valid: Any, like: torch.Tensor) -> torch.Tensor:
    valid = torch.as_tensor(valid).cpu().bool()
    if valid.shape != like.shape:
        raise ValueError(f"valid: got {list(valid.shape)}, expected {list(like.shape)} as the target")
    return valid


def _maps(values: Any, name: str) -> torch.Tensor:
    """(B, H, W) float64; unknown depths, which are not finite, become 0."""
    maps = _as_tensor(name, values)
    if maps.dim() == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]
    if maps.dim() != 3 or not maps.numel():
        raise ValueError(f"{name}: got {list(maps.shape)}, expected [images, height, width]")
    if name == "predicted" and not maps.isfinite().all():
        raise ValueError("predicted: NaN or infinite depths, expected finite ones")
    return torch.where(maps.isfinite(), maps, 0.0)


def _check_same(predicted: torch.Tensor, target: torch.Tensor) -> None:
    if predicted.shape != target.shape:
        raise ValueError(f"predicted: got {list(predicted.shape)}, expected {list(target.shape)} as the target")


__all__ = [
    "KITTI_METRICS",
    "NYU_METRICS",
    "depth_errors",
    "depth_metrics_for_trainer",
    "fit_scale_and_shift",
    "kitti_depth_metrics",
    "nyu_depth_metrics",
    "order_accuracy",
]
