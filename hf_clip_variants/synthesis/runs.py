"""A run: a loop whose state is in a folder, so that it goes on after a stop or a kill to the same pictures."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..modeling.synthesis.synthesis_loop import SynthesisLoop
from .saved_state import load_state, save_state


STATE = "state.safetensors"
FRAMES = 24  # pictures of the progress that are kept of each sample, whatever the number of steps
_UNFINISHED = re.compile(r"\.tmp-.+-[0-9a-f]{12}")
SAVE_EVERY_SECONDS = 5.0  # the state is written so often; 0: after each step


class SynthesisRun:
    """
    Runs a loop in a folder.

    The state (parameters, optimisers, generators, records) is written every few seconds in one step, and read at the
    start if it is there: a run that was killed ends with the same pictures as one that was not.

    Args:
        folder: where the state is.
        loop: at its first step.
        settings: JSON values; what the run was asked for. A state with other ones is refused.
        frame_of: what is kept of a sample for pictures of the progress: tensors.
        seconds: between two writings; 0 writes after each step. Default: `SAVE_EVERY_SECONDS`.

    Raises:
        ValueError: the folder holds a run with other settings.
        OSError: its state cannot be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        loop: SynthesisLoop,
        settings: dict[str, Any],
        frame_of: Callable[[Any], dict[str, torch.Tensor]] | None = None,
        seconds: float | None = None,
    ):
        self.folder, self.loop, self.settings = Path(folder), loop, settings
        self.seconds = SAVE_EVERY_SECONDS if seconds is None else seconds
        self.frame_of = frame_of or (lambda sample: sample.tensors)
        self.frames: list[list[dict[str, Any]]] = [[] for _ in loop.samples]
        self.spent = 0.0  # seconds of all parts of the run
        self.resumed_at = 0
        if self.folder.is_dir():
            for path in self.folder.iterdir():  # what a killed run had not finished writing
                if _UNFINISHED.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        if self.state_file.is_file():
            self._resume()

    @property
    def state_file(self) -> Path:
        return self.folder / STATE

    def _resume(self) -> None:
        state = load_state(self.state_file, self.settings)
        self.loop.load_state_dict(state["loop"])
        self.frames, self.spent = state["frames"], state["spent"]
        self.resumed_at = self.loop.step

    def save(self) -> None:
        """Writes the state. OSError if the disk is full."""
        state = {"loop": self.loop.state_dict(), "frames": self.frames, "spent": self.spent}
        save_state(self.state_file, state, self.settings)

    def run(self, callback: Callable[["SynthesisRun"], object] | None = None) -> SynthesisLoop:
        """Makes the steps that are left. `callback(run)` comes after each."""
        if not any(self.frames):
            self._add_frames()
        started, saved = time.monotonic(), time.monotonic()
        before = self.spent

        def after_step(loop):
            nonlocal saved
            self.spent = before + time.monotonic() - started
            if loop.step % self._frame_every() == 0 or loop.is_done:
                self._add_frames()
            if time.monotonic() - saved >= self.seconds:
                self.save()
                saved = time.monotonic()
            return None if callback is None else callback(self)

        # A stop may come within a step: only whole steps are saved.
        self.loop.run(after_step)
        self.save()
        return self.loop

    def _frame_every(self) -> int:
        return max(1, -(-self.loop.num_steps // FRAMES))

    def _add_frames(self) -> None:
        for sample, frames in zip(self.loop.samples, self.frames, strict=True):
            if not frames or frames[-1]["step"] < len(sample.losses):  # not again what has stopped
                tensors = {name: tensor.detach().cpu().clone() for name, tensor in self.frame_of(sample).items()}
                frames.append({"step": self.loop.step, "tensors": tensors})


__all__ = ["FRAMES", "STATE", "SynthesisRun"]
