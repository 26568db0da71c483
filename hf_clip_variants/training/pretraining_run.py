"""The folder of a pre-training run: run.json, which says what was asked for and measured, and the models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..modeling.dual_encoders.pretraining import Pretraining


if TYPE_CHECKING:
    from .pretrain_trainer import PretrainTrainer


def open_run(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json of an earlier part of the run says, or the beginning of a new one. Writes nothing.

    Args:
        settings: what was asked for, JSON-able.

    Raises:
        ValueError: the folder holds a run with other settings, or something that is no run.
    """
    file = folder / "run.json"
    if file.is_file():
        run = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name in settings if run["settings"].get(name) != settings[name]]
        if changed:
            name = changed[0]
            raise ValueError(
                f"out: {folder} holds a run with {name}={run['settings'].get(name)!r}, this one has "
                f"{settings[name]!r}; want a new folder"
            )
        return run
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"out: {folder} is not empty and holds no run.json; want a new folder or that of a run")
    return {"settings": settings}


def save_models(trainer: PretrainTrainer, pretraining: Pretraining, folder: Path) -> None:
    """FOLDER/model, as users load it; where that is less than what was trained, FOLDER/pretraining has all of it."""
    if pretraining.load_for_use is None:
        return trainer.save_trained(folder / "model")

    from ..files.atomic_writes import staged_folder

    trainer.save_trained(folder / "pretraining")
    if trainer.is_world_process_zero():
        with staged_folder(folder / "model") as stage:
            pretraining.load_for_use(str(folder / "pretraining")).save_pretrained(stage)
            trainer.processing_class.save_pretrained(stage)


def report(run: Mapping[str, Any]) -> str:
    """The metrics of a finished run, a line each, and its speed."""
    lines = [
        f"{name.removeprefix('eval_'):48} {value if 'rank' in name else 100 * value:8.1f}"
        for name, value in run["metrics"].items()
    ]
    speed = f"{run['seconds']:.0f} s, {run['pairs_a_second']:.0f} pairs a second, mean loss {run['loss']:.3f}"
    return "\n".join([*lines, speed])


__all__ = ["open_run", "report", "save_models"]
