"""Which run of a run folder to use, zero-shot CLIP among the candidates. Decided on validation, never on a test set.

A few images validate badly: with 10 images, one that changes is 10 points. So what was measured is weighed against
what the method gained on many other tasks (`FewShotMethod.expected_gain`), each by its precision. With one image of
each class and no validation split, nothing is measured, and what is expected decides. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from .method import few_shot_method


ZERO_SHOT = "zero_shot"
# Both as accuracies. Standard deviation of a method's gain around what is expected of it, on the tasks of development.
EXPECTED_SPREAD = 0.04
# Left out, an adapter learns from fewer images than in the end, and images left out are like those that it learnt
# from.
VALIDATION_BIAS = 0.03
MARGIN = 0.005  # an adapter must promise more than this: below, zero-shot CLIP is simpler


def expected_gain(method: str, zero_shot_error: float) -> float:
    """The gain over zero-shot CLIP that is expected of a method, 0..1, given zero-shot CLIP's error on the shots."""
    constant, slope = few_shot_method(method).expected_gain
    return constant + slope * zero_shot_error


def estimated_gain(run: Mapping[str, Any]) -> tuple[float, float]:
    """The gain of a run over zero-shot CLIP and its standard error, from its validation and what is expected.

    Args:
        run: of results.json: `method`, `zero_shot_error` and `validation`.
    """
    prior, precision = expected_gain(run["method"], run["zero_shot_error"]), EXPECTED_SPREAD**-2
    validation = run["validation"]
    if validation["accuracy"] is None:
        return prior, EXPECTED_SPREAD
    measured = validation["accuracy"] - validation["zero_shot"]
    bias = 0.0 if validation["kind"] == "split" else VALIDATION_BIAS
    weight = 1 / (validation["standard_error"] ** 2 + bias**2)
    return (precision * prior + weight * measured) / (precision + weight), (precision + weight) ** -0.5


def recommend(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The candidate with the best estimated gain, of those with the most shots; zero-shot CLIP where none is worth it.

    The estimates of a method are averaged over seeds, and the run with the best one stands for it.

    Args:
        runs: those of results.json that did not fail.

    Returns:
        `method`, `shots` and `seed` (0 for zero-shot CLIP), `title`, `folder` of the adapter, `estimated_gain` and its
        `standard_error` (accuracies), and `candidates`: the same of all methods, best first.
    """
    most = max((run["shots"] for run in runs), default=0)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if run["shots"] == most:
            groups.setdefault(run["method"], []).append(run)
    zero_shot = {"method": ZERO_SHOT, "title": "zero-shot CLIP", "shots": 0, "seed": 0, "folder": None}
    candidates: list[dict[str, Any]] = [zero_shot | {"estimated_gain": 0.0, "standard_error": 0.0}]
    for method, group in groups.items():
        estimates = [estimated_gain(run) for run in group]
        run = max(group, key=lambda run: estimated_gain(run)[0])
        about = {"method": method, "title": run["title"] or method}
        about |= {name: run[name] for name in ("shots", "seed", "folder")}
        about |= {"estimated_gain": fmean(gain for gain, _ in estimates)}
        candidates.append(about | {"standard_error": fmean(error for _, error in estimates)})
    candidates.sort(key=lambda c: -c["estimated_gain"])
    best = candidates[0]
    if best["estimated_gain"] < MARGIN:
        best = next(c for c in candidates if c["method"] == ZERO_SHOT)
    return {**best, "candidates": candidates}


__all__ = ["ZERO_SHOT", "estimated_gain", "expected_gain", "recommend"]
