"""`PretrainTrainer` on a tiny CLIP: steps, resumed runs, evaluation."""

import copy
import dataclasses
import logging
import shutil
from functools import partial

import pytest
import torch
from contrastive_runs import run_ranks
from paths import PROGRAMS, ROOT
from pretraining_runs import clip, losses, still_clip, trainer, zero_shot_set

from hf_clip_variants.data.pairs.batches import PairDataset
from hf_clip_variants.training.lr_schedules import warmup_cosine


FSDP_PROGRAM = PROGRAMS / "fsdp_pretraining.py"


def assert_same_weights(one, other, **tolerance):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(
            a, b, msg=lambda text, n=name: f"{n}: {text}", **(tolerance or {"rtol": 0, "atol": 0})
        )


@pytest.mark.parametrize("stream", [False, True])
def test_resumed_run_is_bit_identical_to_an_uninterrupted_run(stream, tmp_path):
    whole = trainer(tmp_path / "whole", stream=stream)
    whole.train()
    trainer(tmp_path / "parts", stream=stream, steps=6).train()
    shutil.rmtree(tmp_path / "parts" / "checkpoint-6")
    resumed = trainer(tmp_path / "parts", stream=stream)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)
    assert resumed.mean_loss() == whole.mean_loss() == pytest.approx(sum(losses(whole)) / len(losses(whole)), rel=1e-5)
    assert_same_weights(whole.model, resumed.model)


def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path):
    """Resumed in the middle of what one entry says, and with no step left."""
    runs = []
    for name, last in (("whole", None), ("between", "checkpoint-6"), ("end", None)):
        options = {"steps": 6, "save_steps": 3, "logging_steps": 2}
        run = trainer(tmp_path / name, **options)
        run.train()
        if last is not None:
            shutil.rmtree(tmp_path / name / last)
        if name != "whole":
            run = trainer(tmp_path / name, **options)
            run.train(resume_from_checkpoint=True)
        log = [
            {k: v for k, v in entry.items() if not k.startswith("train_") or k == "train_loss"}
            for entry in run.state.log_history
        ]
        runs.append((log, run.mean_loss()))
    assert runs[1] == runs[0] and runs[2][1] == runs[0][1]


@pytest.mark.parametrize(
    "changed", [{"on_device": True}, {"dataloader_num_workers": 1}], ids=["on the device", "a worker"]
)
def test_augmentation_on_device_or_in_a_worker_gives_the_same_losses(changed, tmp_path, monkeypatch):
    # A worker imports the package again; on pytest's path, tests/hf_clip_variants would come first.
    monkeypatch.syspath_prepend(ROOT)
    found = []
    for name, options in (("plain", {}), ("changed", changed)):
        run = trainer(tmp_path / name, steps=2, **options)
        run.train()
        found.append(losses(run))
    assert found[0] == found[1]


def test_micro_batches_equal_the_whole_batch(tmp_path):
    models = [still_clip() for _ in range(2)]
    options = {"steps": 3, "optim": "sgd", "learning_rate": 0.1}  # Adam would enlarge rounding errors
    whole = trainer(tmp_path / "whole", model=models[0], **options)
    chunks = trainer(tmp_path / "chunks", model=models[1], micro_batch_size=3, exact=False, **options)
    for run in (whole, chunks):
        run.train()
    assert losses(whole) == pytest.approx(losses(chunks), rel=1e-4)
    assert_same_weights(whole.model, chunks.model, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="micro_batch_size: got 3 with gradient_accumulation_steps=2"):
        trainer(tmp_path / "both", micro_batch_size=3, gradient_accumulation_steps=2)


def test_accumulation_reads_several_batches_per_step_and_resumes(tmp_path):
    run = trainer(tmp_path, steps=6, gradient_accumulation_steps=2, batch_size=4)
    run.train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = trainer(tmp_path, steps=6, gradient_accumulation_steps=2, batch_size=4)
    seen = []
    read = PairDataset.__getitem__
    resumed.train_dataset.__class__ = type(
        "Counted", (PairDataset,), {"__getitem__": lambda s, i: seen.append(i) or read(s, i)}
    )
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(run)
    assert set(seen) >= set(range(24, 48)) and min(seen) == 24, "steps 4 to 6 read two batches of four each"


def test_vectors_do_not_decay_and_logit_scale_is_limited(tmp_path):
    model = clip()
    with torch.no_grad():
        model.logit_scale.fill_(4.7)
    run = trainer(tmp_path, steps=1, model=model)
    names = run.get_decay_parameter_names(model)
    assert "logit_scale" not in names and "visual_projection.weight" in names
    assert not any("bias" in name or "norm" in name for name in names)
    run.train()
    assert model.logit_scale.item() == pytest.approx(4.6052, abs=1e-4)


@pytest.mark.parametrize("options", [{"bf16": True}, {"activation_checkpointing": True}, {"optim": "sgd"}], ids=str)
def test_other_training_arguments_work(options, tmp_path):
    run = trainer(tmp_path, steps=2, **options)
    run.train()
    assert all(0 < loss < 6 for loss in losses(run))


def test_custom_schedule_sets_the_learning_rate_and_resumes(tmp_path):
    schedule = partial(warmup_cosine, peak=1e-3, num_steps=6, warmup_steps=2)
    run = trainer(tmp_path, schedule=schedule)
    run.train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = trainer(tmp_path, schedule=schedule)
    resumed.train(resume_from_checkpoint=True)
    for each in (run, resumed):
        rates = [entry["learning_rate"] for entry in each.state.log_history if "learning_rate" in entry]
        assert rates == pytest.approx([1e-3 * schedule(step) for step in range(6)])
    assert losses(run) == losses(resumed)


def test_evaluation_is_logged_and_does_not_change_training(tmp_path):
    sets = [zero_shot_set()]
    plain = trainer(tmp_path / "a", steps=4)
    plain.train()
    watched = trainer(tmp_path / "b", steps=4, sets=sets, eval_strategy="steps", eval_steps=2)
    watched.train()
    assert losses(plain) == losses(watched)
    found = [entry for entry in watched.state.log_history if "eval_3d_top1" in entry]
    assert len(found) == 2 and all(0 <= entry["eval_3d_top5"] <= 1 for entry in found)


def test_bad_templates_are_refused_before_training(tmp_path):
    wrong = dataclasses.replace(zero_shot_set(), templates="an icon")
    with pytest.raises(ValueError, match="template 'an icon' has no {}"):
        trainer(tmp_path, sets=[wrong])


def test_other_data_sets_are_refused(tmp_path):
    run = trainer(tmp_path)
    run.train_dataset = [1, 2]
    with pytest.raises(ValueError, match="train_dataset: got list"):
        run.get_train_dataloader()


def test_training_lowers_the_loss(tmp_path, caplog):
    """Loss after sixty steps is well below that of the untrained model on the same batches."""
    with caplog.at_level(logging.ERROR):
        model = clip()
        before = copy.deepcopy(model)
        run = trainer(tmp_path, steps=60, batch_size=32, model=model, save_strategy="no", logging_steps=5)
        run.train()
    batch = run._prepare_inputs(run.data_collator([run.train_dataset[i] for i in range(32)]))
    with torch.no_grad():
        after, untrained = (m.eval()(**batch).loss.item() for m in (model, before))
    assert after < untrained - 0.5


def test_fsdp2_trains_resumes_evaluates_and_saves_as_one_process(tmp_path):
    """On gloo; `logit_scale`, which cannot be sharded, stays whole and equal."""
    options = {"steps": 3, "optim": "sgd", "learning_rate": 0.1}
    one = trainer(tmp_path / "one", model=still_clip(), batch_size=8, sets=[zero_shot_set()], **options)
    one.train()
    ranks = run_ranks(tmp_path / "two", 2, program=FSDP_PROGRAM, options=options | {"batch_size": 4, "world_size": 2})
    for weights, found in ranks:
        assert found["losses"] == pytest.approx(losses(one), rel=1e-4)
        assert found["metrics"] == pytest.approx(one.evaluate())
        assert found["whole"] == ["logit_scale"]
        for name, weight in one.model.state_dict().items():
            torch.testing.assert_close(
                weights[name], weight, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )
