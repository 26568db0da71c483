"""What a finished run folder recommends, read from its results.json: for `predict` and `push`. Imports no library."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


_RESULTS = "results.json"


@dataclass(frozen=True)
class RecommendedRun:
    """The recommended method of a run folder.

    Attributes:
        title: of the method, for people.
        shots, seed: 0 for zero-shot CLIP.
        base: the classifier with its classes: zero-shot CLIP.
        adapter: folder of the adapter; None if zero-shot CLIP is recommended.
        other_adapter: the best adapter in that case; None if there is none.
        accuracy, zero_shot: of the method and of zero-shot CLIP, 0..1, by test set.
    """

    title: str
    shots: int
    seed: int
    base: Path
    adapter: Path | None
    other_adapter: Path | None
    accuracy: dict[str, float]
    zero_shot: dict[str, float]

    def __str__(self) -> str:
        if self.adapter is None:
            return f"{self.title}: {_percent(self.zero_shot)}"
        return (
            f"{self.title}, {self.shots} shots, seed {self.seed}: {_percent(self.accuracy)}; "
            f"zero-shot CLIP: {_percent(self.zero_shot)}"
        )


def _percent(accuracy: dict[str, float]) -> str:
    return ", ".join(f"{100 * value:.1f} % on {name}" for name, value in accuracy.items())


def is_run_folder(path: str | os.PathLike | None) -> bool:
    """Whether `adapt` wrote this folder."""
    return path is not None and (Path(path) / _RESULTS).is_file()


def recommended_run(folder: str | os.PathLike) -> RecommendedRun:
    """The recommended method of a run folder.

    Raises:
        ValueError: the run is not finished, or it was made by a version or a command that recommends nothing.
        OSError: no such file.
    """
    folder = Path(folder)
    results: dict[str, Any] = json.loads((folder / _RESULTS).read_text(encoding="utf-8"))
    chosen = results.get("recommended")
    if not chosen or "zero_shot" not in results:
        finished = results.get("status", "finished") == "finished"
        why = "nothing is recommended there" if finished else "it is not finished; repeat its command to go on"
        raise ValueError(f"run folder {folder}: {why}. Its adapters can be used one by one: {folder}/adapters/…")
    runs = [run for run in results["runs"] if not run.get("error") and run.get("folder")]
    used = next((run for run in runs if run["folder"] == chosen["folder"]), None)
    adapters = [c["method"] for c in chosen.get("candidates", ()) if any(c["method"] == run["method"] for run in runs)]
    by_shots = sorted((run for run in runs if run["method"] in adapters[:1]), key=lambda run: -run["shots"])
    return RecommendedRun(
        title=chosen["title"],
        shots=chosen["shots"],
        seed=chosen["seed"],
        base=folder / "base",
        adapter=None if used is None else folder / used["folder"],
        other_adapter=folder / by_shots[0]["folder"] if by_shots else None,
        accuracy=dict((results["zero_shot"] if used is None else used)["accuracy"]),
        zero_shot=dict(results["zero_shot"]["accuracy"]),
    )


def recommended_adapter(folder: str | os.PathLike) -> Path:
    """Folder of the adapter that a run folder recommends. ValueError if zero-shot CLIP is recommended."""
    found = recommended_run(folder)
    if found.adapter is None:
        other = "" if found.other_adapter is None else f"; to push an adapter anyway, name it: {found.other_adapter}"
        raise ValueError(
            f"run folder {folder}: zero-shot CLIP is recommended, no adapter promises a gain over it{other}. "
            f"Zero-shot CLIP with its classes is in {found.base}"
        )
    return found.adapter


__all__ = ["RecommendedRun", "is_run_folder", "recommended_adapter", "recommended_run"]
