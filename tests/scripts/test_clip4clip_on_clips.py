"""Retrieval of clips by name: fine-tuning helps over CLIP's mean of frames, nothing is run twice, options."""

import io
import sys

import datasets
import pytest
import torch
from paths import SCRIPTS

from hf_clip_variants.data.clips import ClipMaker
from hf_clip_variants.data.images.emoji import load_emoji


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    import clip4clip_on_clips

    yield clip4clip_on_clips
    sys.path.remove(str(SCRIPTS))
    sys.modules.pop("clip4clip_on_clips", None)


def write_clips(path, concepts: int, styles=("fluentflat", "notov1"), unseen="emojione"):
    """Animations of as many things, once in each style to train, and once in another to test."""
    names, rows = list(load_emoji(unseen).class_names)[:concepts], []
    for split, style in [*(("train", style) for style in styles), ("test", unseen)]:
        scene = {"styles": style, "class_names": names, "size": 64, "backgrounds": "plain"}
        for number, name in enumerate(names):
            maker = ClipMaker(scene=scene | {"shown": [name]}, num_frames=4, seed=number)
            first, *others = maker.clip(0).frames
            buffer = io.BytesIO()
            first.save(buffer, "WEBP", save_all=True, append_images=others, duration=250, lossless=True)
            rows.append({"clip": buffer.getvalue(), "name": name, "split": split})
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.mark.slow
def test_fine_tuned_clips_are_found_more_often_than_by_clip_alone(script, tmp_path):
    clips = write_clips(tmp_path / "clips.parquet", concepts=40)
    sizes = ["--heads", "meanP", "--frames", "2", "--epochs", "8"]
    options = ["--clips", str(clips), "--out", str(tmp_path), "--seeds", "0", *sizes]
    script.main(options)
    alone, tuned = script.lines_of(tmp_path)
    assert alone["model"] == script.BASELINE and alone["clips"] == 40
    found, before = (
        (line["text_to_video_recall_at_1"] + line["video_to_text_recall_at_1"]) / 2 for line in (tuned, alone)
    )
    assert before > 0.1 and found > before + 0.1  # chance 0.025
    script.main(options)
    assert len(script.lines_of(tmp_path)) == 2  # nothing is run twice
    assert "| meanP |" in (tmp_path / "table.md").read_text()


def test_development_never_sees_the_test_split_and_batches_hold_each_name_once(script):
    names = [f"{number % 7}" for number in range(40)]
    rows = datasets.Dataset.from_dict({"name": names, "split": ["train"] * 30 + ["test"] * 10})
    train, test = script.divided(rows, True, 0)
    assert set(train["split"]) == set(test["split"]) == {"train"} and len(train) + len(test) == 30
    assert len(set(test["name"])) == len(test) == 2
    seen = list(script.batches_of(names, 5, torch.Generator().manual_seed(0)))
    assert all(len({names[number] for number in batch}) == len(batch) <= 5 for batch in seen)
    taken = [number for batch in seen for number in batch]
    assert len(taken) == len(set(taken)) >= 36
    with pytest.raises(ValueError, match="30 rows of split train and 0 of test"):
        script.divided(rows.select(range(30)), False, 1)


def test_wrong_options_are_said(script, tmp_path, capsys):
    for options, message in (
        (["--heads", "meanQ"], "--heads: 'meanQ'; want some of meanP, seqLSTM, seqTransf, tightTransf"),
        ([], "no such file"),
    ):
        with pytest.raises(SystemExit):
            script.parse(["--clips", str(tmp_path / "none.parquet"), "--out", "x", *options])
        assert message in capsys.readouterr().err
    datasets.Dataset.from_dict({"clip": ["a"], "name": ["b"]}).to_parquet(tmp_path / "clips.parquet")
    with pytest.raises(ValueError, match="has no column split; want clip, name, split"):
        script.main(["--clips", str(tmp_path / "clips.parquet"), "--out", str(tmp_path)])
