"""Scores of frames to segments of a video: from when to when something is abnormal, and what."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


# T frames, N classes


def anomaly_segments(
    scores: Sequence[float] | np.ndarray | torch.Tensor,
    class_probs: np.ndarray | torch.Tensor,
    id2label: Mapping[int, str],
    normal_id: int,
    threshold: float = 0.5,
    times: Sequence[float] | np.ndarray | None = None,
    end: float | None = None,
) -> list[dict[str, Any]]:
    """Consecutive frames whose score reaches the threshold, as segments in the order of time.

    Args:
        scores: (T,), in 0..1.
        class_probs: (T, N).
        id2label, normal_id: the model's classes.
        threshold: in 0..1.
        times: (T,), when frames begin, rising; None: their numbers.
        end: when the last frame ends; None: as long after it begins as the one before, or 1.

    Returns:
        Dictionaries with **start** and **end**, in the unit of `times`; **label**, the anomaly with the highest mean
        probability; **score**, the highest of its frames.

    Raises:
        ValueError: shapes that differ, a threshold or times that are none.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_clip_variants.modeling.video.anomaly_segments import anomaly_segments

    >>> chances = np.array([[0.9, 0.1], [0.2, 0.8], [0.25, 0.75], [0.9, 0.1]])
    >>> anomaly_segments(1 - chances[:, 0], chances, {0: "normal", 1: "fire"}, normal_id=0)
    [{'start': 1.0, 'end': 3.0, 'label': 'fire', 'score': 0.8}]

    ```
    """
    given = {"scores": scores, "class_probs": class_probs} | ({} if times is None else {"times": times})
    scores, class_probs, *times = (_numbers(name, values) for name, values in given.items())
    if scores.ndim != 1 or class_probs.shape != (len(scores), len(id2label)):
        raise ValueError(
            f"scores, class_probs: shapes {list(scores.shape)}, {list(class_probs.shape)}, expected [frames] and "
            f"[frames, {len(id2label)}]"
        )
    check_threshold(threshold)
    if type(normal_id) is not int or normal_id not in id2label:
        raise ValueError(f"normal_id: {normal_id!r}, expected one of the classes {list(id2label)}")
    begins = times[0] if times else np.arange(len(scores), dtype=np.float64)
    if begins.shape != scores.shape or (np.diff(begins) < 0).any():
        raise ValueError(f"times: shape {list(begins.shape)}, expected {len(scores)} rising times")
    if end is not None and (isinstance(end, bool) or not isinstance(end, int | float) or not np.isfinite(float(end))):
        raise ValueError(f"end: {end!r}, expected a number or None")
    if end is None:
        end = begins[-1] + (begins[-1] - begins[-2] if len(begins) > 1 else 1.0) if len(begins) else 0.0
    borders = np.append(begins, max(end, begins[-1] if len(begins) else 0.0))
    edges = np.diff(np.concatenate([[0], (scores >= threshold).astype(int), [0]]))
    segments = []
    for first, last in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
        mean = class_probs[first:last].mean(0, dtype=np.float64)
        mean[normal_id] = -1.0
        segments.append(
            {
                "start": float(borders[first]),
                "end": float(borders[last]),
                "label": id2label[int(mean.argmax())],
                "score": float(scores[first:last].max()),
            }
        )
    return segments


def _numbers(name: str, values: object) -> np.ndarray:
    """float64; ValueError for what holds no numbers, or NaN."""
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: got {type(values).__name__}, expected an array of numbers") from error
    if not np.isfinite(found).all():
        raise ValueError(f"{name}: NaN or infinite numbers")
    return found


def check_threshold(threshold: object) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold: {threshold!r}, expected a number in 0..1")


def post_process_video_anomaly(
    output, config, video_mask: torch.Tensor | None = None, threshold: float | None = None, fps: float | None = None
) -> list[list[dict[str, Any]]]:
    """Segments of each video of a model's output; see `anomaly_segments`.

    Args:
        output: with `scores` (V, T) and `class_probs` (V, T, N).
        config: the model's.
        video_mask: (V, T), as the model got it.
        threshold: default: `config.decision_threshold`.
        fps: frames a second; then times are in seconds, else frame numbers.
    """
    threshold = config.decision_threshold if threshold is None else threshold
    found = []
    for row, (scores, class_probs) in enumerate(zip(output.scores.cpu(), output.class_probs.cpu(), strict=True)):
        length = len(scores) if video_mask is None else int(video_mask[row].sum())
        times = None if fps is None else np.arange(length) / fps
        end = None if fps is None else length / fps
        found.append(
            anomaly_segments(
                scores[:length], class_probs[:length], config.id2label, config.normal_id, threshold, times, end
            )
        )
    return found


__all__ = ["anomaly_segments", "check_threshold", "post_process_video_anomaly"]
