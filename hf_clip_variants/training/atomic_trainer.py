"""`transformers.Trainer` whose checkpoints are complete or not there."""

import logging
import os
import shutil
from pathlib import Path

from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from ..files.atomic_writes import last_complete_checkpoint, mark_complete, no_space_error, staged_folder, swap_in


logger = logging.getLogger(__name__)


class AtomicTrainer(Trainer):
    r"""
    A `Trainer` that can be killed at any moment.

    A checkpoint is written to `tmp-checkpoint-N`, flushed to the disk, given a marker that lists its files, and only
    then renamed to `checkpoint-N`. `train(resume_from_checkpoint=True)` takes the newest checkpoint that has its
    marker and all files of it, and names in a warning those that it skips (`transformers.Trainer` takes the highest
    number and fails). The resumed run's losses are those of an uninterrupted one, as `Trainer`'s are.

    Args:
        save_on_error (`str`, defaults to `"raise"`):
            What to do when a checkpoint cannot be written, because the disk is full or gone: `"raise"` stops the
            training with an OSError naming the folder and the bytes needed, `"warn"` goes on without that checkpoint
            (one process only: the others would wait for it). Earlier checkpoints are untouched either way.
        **kwargs:
            `Trainer`'s.

    Prefer plain `Trainer` for FSDP or DeepSpeed runs over several machines without a shared file system: the rename
    happens on the main process.
    """

    def __init__(self, *args, save_on_error: str = "raise", **kwargs):
        if save_on_error not in ("raise", "warn"):
            raise ValueError(f"save_on_error: expected 'raise' or 'warn', got {save_on_error!r}")
        super().__init__(*args, **kwargs)
        if save_on_error == "warn" and self.args.world_size > 1:
            raise ValueError(f"save_on_error: 'warn' needs one process, there are {self.args.world_size}; use 'raise'")
        self.save_on_error = save_on_error
        self._stage: Path | None = None  # run folder of the checkpoint that is being written
        self._pushes: list[str] = []

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """`Trainer.train`; `resume_from_checkpoint=True`: from the newest complete checkpoint, else ValueError."""
        if resume_from_checkpoint is True:
            newest = last_complete_checkpoint(self.args.output_dir)
            if newest is None:
                raise ValueError(f"resume_from_checkpoint: no complete checkpoint in {self.args.output_dir}")
            resume_from_checkpoint = str(newest)
        if self.args.should_save:
            for abandoned in Path(self.args.output_dir).glob("tmp-checkpoint-*"):
                shutil.rmtree(abandoned, ignore_errors=True)
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        # Killed between the last checkpoint and the removal of the one before, a run has nothing left to save.
        if self.args.save_strategy != "no":
            self._remove_old_checkpoints(Path(self.args.output_dir))
        return output

    def _run_epoch(self, *args, **kwargs):
        """Resumed from its last checkpoint within an epoch, `Trainer` would take one step beyond `max_steps`."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial):
        return str(self._stage) if self._stage else super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder):
        if self._stage is None:
            return super()._push_from_checkpoint(checkpoint_folder)
        self._pushes.append(os.path.basename(checkpoint_folder))  # it is about to be renamed

    def _save(self, output_dir=None, state_dict=None):
        """The model alone: into the checkpoint that is staged, or all at once into a folder of its own."""
        output_dir = output_dir if output_dir is not None else self.args.output_dir
        if self._stage is not None or not self.args.should_save:
            return super()._save(output_dir, state_dict)
        with staged_folder(output_dir) as folder:
            super()._save(str(folder), state_dict)

    def _save_checkpoint(self, model, trial):
        run_folder = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        stage = run_folder / f"tmp-{name}"
        if self.args.should_save:
            shutil.rmtree(stage, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        best_before = self.state.best_model_checkpoint
        self._stage = stage
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            self._finish(stage / name, run_folder / name)
        except (OSError, RuntimeError) as error:
            self.state.best_model_checkpoint = best_before
            self._pushes.clear()
            failure = no_space_error(error, run_folder / name, self._checkpoint_bytes())
            if failure is None and not isinstance(error, OSError):
                raise
            if self.save_on_error == "raise":
                raise failure or error from error
            logger.warning("%s was not saved, training goes on: %s", name, failure or error)
        finally:
            self._stage = None
            if self.args.should_save:
                shutil.rmtree(stage, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._remove_old_checkpoints(run_folder)
        while self._pushes:
            super()._push_from_checkpoint(str(run_folder / self._pushes.pop()))

    def _remove_old_checkpoints(self, run_folder: Path) -> None:
        """Those beyond `save_total_limit`."""
        if self.args.should_save and run_folder.is_dir():
            rotate_checkpoints(
                output_dir=str(run_folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _checkpoint_bytes(self) -> int:
        """About what a checkpoint takes: the weights that are saved, and Adam's two moments of what is trained."""
        trained = sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        is_adapter = hasattr(self.model, "peft_config")
        saved = trained if is_adapter else sum(t.nbytes for t in self.model.state_dict().values())
        return saved + (0 if self.args.save_only_model else 2 * trained)

    def _finish(self, staged: Path, checkpoint: Path):
        """Corrects what the state says about its own place, marks the checkpoint complete and renames it."""
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(checkpoint)
        if self.args.should_save:
            self.state.save_to_json(str(staged / "trainer_state.json"))
            mark_complete(staged)
            swap_in(staged, checkpoint)
        self.accelerator.wait_for_everyone()


__all__ = ["AtomicTrainer"]
