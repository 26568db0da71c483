"""What to do after `adapt`: the commands that the report and the terminal show. Imports nothing heavy."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .recommendation import ZERO_SHOT


def next_commands(
    results: Mapping[str, Any], recommended: Mapping[str, Any], run_folder: str | os.PathLike
) -> list[tuple[str, str]]:
    """(what it does, command) to use the recommended model, to share it, and to go on with more shots.

    Args:
        results: the contents of results.json.
        recommended: the recommendation among them.
        run_folder: where they are.
    """
    folder = _short(run_folder)
    what = "zero-shot CLIP" if recommended["method"] == ZERO_SHOT else recommended["title"]
    things, new = ("videos", "clips/") if results["data"].get("videos") else ("images", "photos/")
    commands = [
        (f"Classify {things} with {what}", ["predict", folder, new]),
        (f"Share {what} on the Hub", ["push", folder, "YOUR_NAME/MODEL_NAME"]),
    ]
    data, shots = results["data"], max((run["shots"] for run in results["runs"]), default=0)
    held_out = sum(about["images"] for about in data["test_sets"].values() if about.get("rows_are_saved"))
    if 0 < 2 * shots * len(data["class_names"]) <= data["train_images"] - held_out:
        config = Path(run_folder) / "run.yaml"
        if config.is_file():
            out = f"{folder}-{2 * shots}-shots"
            more = ["adapt", "--config", _short(config), "--shots", str(2 * shots), "--out", out]
            commands.append((f"Learn from {2 * shots} {things} a class", more))
    return [(title, shlex.join(["hf-clip-variants", *words])) for title, words in commands]


def _short(path: str | os.PathLike) -> str:
    """Relative to the working directory where that is above it."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith(os.pardir) else relative


__all__ = ["next_commands"]
