"""`track`: results of few-shot runs in the trackers that accelerate knows (TensorBoard, Weights & Biases, …)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..registry import unknown_name


PROJECT = "hf-clip-variants"


@contextmanager
def track(
    names: Sequence[str], folder: str | os.PathLike, settings: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, Any]], None] | None]:
    """Gives the function that logs the result of a run, which `adapt` calls as `on_result`; None without names.

    A run logs the mean training loss of each epoch, and its accuracies: on each test set and on validation data, in
    0..1, as METHOD/K-shot/seed-S/…. Steps count what was logged, since trackers want them to grow.

    Args:
        names: of installed trackers; "all" is every one of them, "none" none.
        folder: the run folder; trackers that write files use logs/ in it.
        settings: of the command, for the tracker's table of runs.

    Raises:
        ValueError: an unknown tracker, or one that is not installed.
    """
    names = [name for name in names if name != "none"]
    if not names:
        yield None
        return
    from accelerate import Accelerator
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = {str(getattr(each, "value", each)) for each in get_available_trackers()}
    for name in names:
        if name not in (*LOGGER_TYPE_TO_CLASS, "all"):
            raise ValueError(f"report_to: {unknown_name(name, LOGGER_TYPE_TO_CLASS)}")
        if name not in installed | {"all"}:
            raise ValueError(f"report_to: {name} is not installed (pip install {name})")
    accelerator: Any = None
    step = 0

    def log(record: Mapping[str, Any]) -> None:
        nonlocal accelerator, step
        if accelerator is None:  # not before the run folder is accepted
            accelerator = Accelerator(log_with=names, project_dir=str(Path(folder) / "logs"))
            accelerator.init_trackers(PROJECT, config={name: _plain(value) for name, value in settings.items()})
        shots = f"/{record['shots']}-shot/seed-{record['seed']}" if record["shots"] else ""
        front = record["method"] + shots
        for loss in record["curve"]:
            accelerator.log({f"{front}/loss": loss}, step=step)
            step += 1
        values = {f"{front}/accuracy/{name}": accuracy for name, accuracy in record["accuracy"].items()}
        validated = (record["validation"] or {}).get("accuracy")
        values |= {} if validated is None else {f"{front}/accuracy/validation": validated}
        if values:
            accelerator.log(values, step=step)
            step += 1

    try:
        yield log
    finally:
        if accelerator is not None:
            accelerator.end_training()


def _plain(value: Any) -> str | int | float | bool:
    """TensorBoard takes no lists."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


__all__ = ["track"]
