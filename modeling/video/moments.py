"""What happens when in a video: scores of each second from overlapping windows, and what follows from them.

Everything here works on scores (T, K) of T seconds and K texts. They take K numbers a second, whatever the model; a
video of ten hours and 20 texts has 3 MB of them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch


_LARGEST = torch.finfo(torch.float32).max
# T seconds, K texts, N windows of W seconds, D width of texts


def window_starts(length: int, size: int, stride: int) -> range:
    """First seconds of the windows over a video of `length` seconds: every `stride`, until one reaches the end.

    >>> [list(window_starts(length, 32, 16)) for length in (5, 32, 33, 50)]
    [[0], [0], [0, 16], [0, 16, 32]]
    """
    return range(0, max(length - size, 0) + stride, stride) if length > size else range(1)


def merged_windows(windows: torch.Tensor, length: int, stride: int) -> torch.Tensor:
    """(N, W, K) scores within windows -> (T, K): a second's mean over the windows that it is in.

    Raises:
        ValueError: not as many windows as `length` seconds have.
    """
    starts = window_starts(length, windows.shape[1], stride)
    if len(starts) != len(windows):
        raise ValueError(f"windows: got {len(windows)}, expected {len(starts)} for {length} seconds")
    return mean_over_windows(zip(starts, windows, strict=True), length)


def mean_over_windows(numbered: Iterable[tuple[int, torch.Tensor]], length: int) -> torch.Tensor:
    """(first second, scores (W, K)) of each window, one after the other -> (T, K), as `merged_windows`."""
    total, count = None, torch.zeros(length, 1)
    for start, scores in numbered:
        if total is None:
            total, count = scores.new_zeros(length, scores.shape[-1]), count.to(scores.device)
        seen = min(len(scores), length - start)
        total[start : start + seen] += scores[:seen]
        count[start : start + seen] += 1
    return total / count.to(total.dtype)


def check_count(name: str, value: object) -> None:
    """ValueError unless a whole number > 0."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}: {value!r}, expected a whole number > 0")


# ---- zero-shot segmentation


def background_threshold(text_embeds: torch.Tensor) -> float:
    """The largest dot product between two different labels' texts (K, D): what a second's best label must exceed,
    or else the second is background. It depends on the set of labels.

    Raises:
        ValueError: a single label, which has no other one; give the threshold then.
    """
    if text_embeds.dim() != 2 or len(text_embeds) < 2:
        raise ValueError(
            f"text_embeds: got {list(text_embeds.shape)}, expected at least two labels; a threshold is to be given "
            "for one"
        )
    between = text_embeds.float() @ text_embeds.float().T
    return float(
        between.masked_fill(torch.eye(len(between), dtype=torch.bool, device=between.device), -torch.inf).max()
    )


def labelled_seconds(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """(T, K) -> (T,): 0 for background, where no label's score exceeds the threshold, else 1 + the best label.

    Raises:
        ValueError: a threshold that is no number.
    """
    if type(threshold) not in (int, float) or math.isnan(threshold):
        raise ValueError(f"threshold: {threshold!r}, expected a number")
    threshold = float(min(max(threshold, -_LARGEST), _LARGEST))
    scores, best = logits.max(1)
    return torch.where(scores > threshold, best + 1, torch.zeros_like(best))


@dataclass(frozen=True)
class Segment:
    """Seconds `start`..`end` (without `end`) of a label, and its mean score there."""

    start: int
    end: int
    label: int
    score: float


def segments_of(labels: torch.Tensor, logits: torch.Tensor) -> list[Segment]:
    """Runs of one label in (T,) labels of `labelled_seconds`, without the background; labels count from 0."""
    found, start, labels = [], 0, labels.tolist()
    for second in range(1, len(labels) + 1):
        if second == len(labels) or labels[second] != labels[start]:
            if label := labels[start]:
                score = float(logits[start:second, label - 1].mean())
                found.append(Segment(start, second, label - 1, score))
            start = second
    return found


# ---- step localisation


def ordered_steps(logits: torch.Tensor) -> torch.Tensor:
    """(T, K) scores of a task's K steps, which happen in their order, once each -> (K,), rising seconds.

    They maximise the sum of log-softmax scores over steps (of a single step, of its scores), by dynamic programming.
    O(T K) time and memory.

    Raises:
        ValueError: fewer seconds than steps.
    """
    length, steps = logits.shape
    if not 0 < steps <= length:
        raise ValueError(f"logits: {length} seconds and {steps} steps, expected at least a second for each step")
    scores = _step_scores(logits).T
    best = torch.full((length,), 0.0, dtype=torch.double, device=scores.device)
    came_from = []
    for step, row in enumerate(scores):
        # `best[t]`: the sum of the steps before this one, all of them before second t.
        total = best + row
        total[:step] = -torch.inf
        running, place = total.cummax(0)
        came_from.append(place)
        best = torch.cat([running.new_full((1,), -torch.inf), running[:-1]])
    seconds, last = [], length - 1
    for place in reversed(came_from):
        last = int(place[last])
        seconds.append(last)
        last -= 1
    return torch.tensor(seconds[::-1], device=logits.device)


def best_seconds(logits: torch.Tensor) -> torch.Tensor:
    """(T, K) -> (K,): of each step, without an order, the second with the largest log-softmax score over steps."""
    return _step_scores(logits).argmax(0)


def _step_scores(logits: torch.Tensor) -> torch.Tensor:
    # Over a single step, each log-softmax would be 0.
    return logits.double().log_softmax(1) if logits.shape[1] > 1 else logits.double()


# ---- moment retrieval


def candidate_moments(length: int, chunk: int = 5, longest: int = 6) -> list[tuple[int, int]]:
    """(start, end) in seconds, without `end`, of all runs of 1 to `longest` chunks of `chunk` seconds; the last chunk
    may be shorter. Of 30 seconds: 21, as in DiDeMo.

    >>> len(candidate_moments(30)), candidate_moments(12)
    (21, [(0, 5), (0, 10), (0, 12), (5, 10), (5, 12), (10, 12)])
    """
    for name, value in (("length", length), ("chunk", chunk), ("longest", longest)):
        check_count(name, value)
    chunks = -(-length // chunk)
    return [
        (first * chunk, min(last * chunk, length))
        for first in range(chunks)
        for last in range(first + 1, min(first + longest, chunks) + 1)
    ]


def moment_scores(logits: torch.Tensor, moments: Sequence[tuple[int, int]]) -> torch.Tensor:
    """(T, K) -> (M, K): of each of M moments, the mean score of its seconds; as a text's dot product with the mean of
    their hidden states."""
    sums = torch.cat([logits.new_zeros(1, logits.shape[1]).double(), logits.double().cumsum(0)])
    starts, ends = torch.tensor(list(moments), device=logits.device).T
    return ((sums[ends] - sums[starts]) / (ends - starts)[:, None]).to(logits.dtype)


__all__ = [
    "Segment",
    "background_threshold",
    "best_seconds",
    "candidate_moments",
    "check_count",
    "labelled_seconds",
    "mean_over_windows",
    "merged_windows",
    "moment_scores",
    "ordered_steps",
    "segments_of",
    "window_starts",
]
