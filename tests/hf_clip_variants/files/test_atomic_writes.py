"""Checkpoints that survive a kill, a full disk and a resume; files written all at once."""

import json
import logging
import os
import shutil
import threading

import pytest
import torch
from killing import file_size_limit, run_and_kill
from safetensors.torch import load_file, save_file
from torch import nn

from hf_clip_variants.files.atomic_writes import (
    last_complete_checkpoint,
    mark_complete,
    replacing,
    why_incomplete,
    write_atomically,
)


STEPS, SAVE_EVERY = 4, 2


@pytest.fixture(scope="module")
def make_trainer():
    """A trainer of a network of 42 weights with dropout (the random state matters), which saves every second step."""
    from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments

    from hf_clip_variants.training.atomic_trainer import AtomicTrainer

    class LineConfig(PreTrainedConfig):
        model_type = "line"

    class Line(PreTrainedModel):
        config_class = LineConfig

        def __init__(self, config):
            super().__init__(config)
            self.layer, self.drop = nn.Linear(6, 7), nn.Dropout(0.3)
            self.post_init()

        def forward(self, pixel_values, labels=None):
            logits = self.layer(self.drop(pixel_values))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    generator = torch.Generator().manual_seed(0)
    data = [{"pixel_values": torch.randn(6, generator=generator), "labels": i % 7} for i in range(24)]

    def make(folder, **kwargs):
        torch.manual_seed(0)
        save_on_error = kwargs.pop("save_on_error", "raise")
        arguments = TrainingArguments(
            str(folder),
            max_steps=kwargs.pop("max_steps", STEPS),
            per_device_train_batch_size=4,
            logging_steps=1,
            save_steps=SAVE_EVERY,
            disable_tqdm=True,
            report_to="none",
            use_cpu=True,
            learning_rate=0.1,
            **kwargs,
        )
        return AtomicTrainer(
            Line(LineConfig()), arguments, train_dataset=data, eval_dataset=data, save_on_error=save_on_error
        )

    return make


def losses(trainer):
    return [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def checkpoints(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def test_killed_at_any_write_training_resumes_to_the_same_losses(tmp_path, make_trainer):
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    expected = losses(whole)
    assert len(expected) == STEPS
    run = tmp_path / "run"
    writes = run_and_kill(lambda: make_trainer(run).train(), run)
    assert writes >= 20
    resumed = []
    # A checkpoint's writes are those of the next one; each single one of a staged folder is in test_staged_saving.py.
    for nth in [1, writes // 4, *range(writes // 2, writes, 3), writes]:
        shutil.rmtree(run)
        assert run_and_kill(lambda: make_trainer(run).train(), run, nth) == -9
        newest = last_complete_checkpoint(run) if run.exists() else None
        trainer = make_trainer(run)
        trainer.train(resume_from_checkpoint=True if newest else None)
        assert losses(trainer) == expected, f"killed at write {nth}, resumed from {newest}"
        assert checkpoints(run) == ["checkpoint-2", "checkpoint-4"]
        resumed.append(newest.name if newest else None)
    assert {None, "checkpoint-2", "checkpoint-4"} == set(resumed)


def test_the_newest_complete_checkpoint_is_taken_and_the_others_are_named(tmp_path, make_trainer, caplog):
    run = tmp_path / "run"
    first = make_trainer(run, max_steps=STEPS)
    first.train()
    shutil.copytree(run / "checkpoint-4", run / "checkpoint-8")
    (run / "checkpoint-8" / "complete.json").unlink()  # as a Trainer that writes in place leaves it
    shutil.copytree(run / "checkpoint-4", run / "checkpoint-10")
    with open(run / "checkpoint-10" / "model.safetensors", "r+b") as file:
        file.truncate(50)
    (run / "tmp-checkpoint-12" / "checkpoint-12").mkdir(parents=True)
    with caplog.at_level(logging.WARNING, "hf_clip_variants.files.atomic_writes"):
        assert last_complete_checkpoint(run) == run / "checkpoint-4"
    assert "skipping incomplete checkpoint-8 (no complete.json)" in caplog.text
    assert "skipping incomplete checkpoint-10 (model.safetensors has 50 of " in caplog.text
    with pytest.raises(ValueError, match="resume_from_checkpoint: no complete checkpoint in .*empty"):
        make_trainer(tmp_path / "empty").train(resume_from_checkpoint=True)


def test_best_model_rotation_and_final_save_work_as_in_trainer(tmp_path, make_trainer):
    run = tmp_path / "run"
    trainer = make_trainer(run, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, save_total_limit=1)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best.startswith(str(run / "checkpoint-")) and "tmp-" not in best
    kept = checkpoints(run)
    assert set(kept) == {best.rsplit("/")[-1], "checkpoint-4"}
    state = json.loads((run / "checkpoint-4" / "trainer_state.json").read_text())
    assert "tmp-" not in json.dumps(state) and why_incomplete(best) is None
    trainer.save_model()
    assert {"config.json", "model.safetensors", *kept} <= set(checkpoints(run))


@pytest.mark.parametrize("save_on_error", ["raise", "warn"])
def test_a_full_disk_names_folder_and_bytes_and_keeps_older_checkpoints(tmp_path, make_trainer, caplog, save_on_error):
    run = tmp_path / "run"
    make_trainer(run, max_steps=2).train()
    kept = {p.name: p.read_bytes() for p in (run / "checkpoint-2").iterdir()}
    trainer = make_trainer(run, save_on_error=save_on_error)
    save_optimizer = trainer._save_optimizer_and_scheduler

    def save_to_a_full_disk(folder):
        with file_size_limit(300):
            save_optimizer(folder)

    trainer._save_optimizer_and_scheduler = save_to_a_full_disk
    if save_on_error == "raise":
        with pytest.raises(OSError, match=r"checkpoint-4: not saved, [0-9,]+ bytes are needed"):
            trainer.train(resume_from_checkpoint=True)
    else:
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == STEPS
        assert "checkpoint-4 was not saved, training goes on" in caplog.text
    assert checkpoints(run) == ["checkpoint-2"]
    assert {p.name: p.read_bytes() for p in (run / "checkpoint-2").iterdir()} == kept
    assert last_complete_checkpoint(run) == run / "checkpoint-2"


def test_save_on_error_is_checked(tmp_path, make_trainer):
    with pytest.raises(ValueError, match="save_on_error: expected 'raise' or 'warn', got 'skip'"):
        make_trainer(tmp_path, save_on_error="skip")


def test_a_damaged_marker_counts_as_incomplete(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    mark_complete(tmp_path)
    assert why_incomplete(tmp_path) is None
    for text in ("", "[]", '{"files": 3}', '{"fil'):
        (tmp_path / "complete.json").write_text(text)
        assert why_incomplete(tmp_path) == "complete.json cannot be read"


def test_write_atomically_writes_the_whole_file_or_nothing(tmp_path):
    path = tmp_path / "a" / "results.json"
    write_atomically(path, "one")
    before = path.read_text()
    for nth in range(1, run_and_kill(lambda: write_atomically(path, "two"), tmp_path) + 1):
        write_atomically(path, before)
        assert run_and_kill(lambda: write_atomically(path, "two"), tmp_path, nth) == -9
        assert path.read_text() in ("one", "two")
    with file_size_limit(10), pytest.raises(OSError, match=r"results.json: not saved, 5,000 bytes are needed"):
        write_atomically(path, b"x" * 5000)
    assert path.read_text() in ("one", "two")


def test_replacing_writes_to_a_temporary_name_and_failures_leave_the_old_file(tmp_path):
    path = tmp_path / "a" / "features.safetensors"
    with replacing(path) as aside:
        save_file({"x": torch.ones(1)}, aside)
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode, "safetensors lets nobody else read"
    with pytest.raises(KeyboardInterrupt), replacing(path) as aside:
        save_file({"x": torch.zeros(1)}, aside)
        raise KeyboardInterrupt
    assert load_file(path)["x"] == 1 and [p.name for p in path.parent.iterdir()] == [path.name]


def test_two_writers_of_one_file_both_succeed_and_readers_see_whole_files(tmp_path):
    path = tmp_path / "cache.bin"
    write_atomically(path, b"0" * 100_000)
    stop, torn = threading.Event(), []

    def read():
        while not stop.is_set():
            content = path.read_bytes()
            if len(content) != 100_000 or len(set(content)) != 1:
                torn.append(len(content))

    def write(letter):
        for _ in range(20):
            write_atomically(path, letter * 100_000)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(letter,)) for letter in (b"x", b"y")]
    for thread in [reader, *writers]:
        thread.start()
    for thread in writers:
        thread.join(30)
    stop.set()
    reader.join(30)
    assert torn == [] and path.read_bytes()[:1] in (b"x", b"y")
    assert [p.name for p in tmp_path.iterdir()] == ["cache.bin"]


def test_a_finished_run_that_goes_on_keeps_no_more_checkpoints_than_asked(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path / "run", save_total_limit=1)
    trainer.train()
    (last,) = [name for name in checkpoints(tmp_path / "run") if name.startswith("checkpoint-")]
    older = tmp_path / "run" / f"checkpoint-{int(last.rpartition('-')[2]) - 2}"  # as if killed before its removal
    shutil.copytree(tmp_path / "run" / last, older)
    os.utime(older, (0, 0))
    make_trainer(tmp_path / "run", save_total_limit=1).train(resume_from_checkpoint=True)
    assert [name for name in checkpoints(tmp_path / "run") if name.startswith("checkpoint-")] == [last]
