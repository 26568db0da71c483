"""`predict` with a model of videos: free classes and stored ones, batches, pictures, what cannot be read."""

import csv
import io
import json

import numpy as np
import pytest
from actionclip_runs import actionclip_model
from PIL import Image
from tiny import tiny_tokenizer
from transformers import pipeline
from videos import grey_frames, write_video

from hf_clip_variants import (
    ActionCLIPForVideoClassification,
    CLIPClassifierImageProcessor,
    CLIPClassifierProcessor,
    VideoTextProcessor,
)


LABELS = ["running", "rowing boat", "clapping"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model without classes, one with, and two videos and a broken one."""
    root = tmp_path_factory.mktemp("videos")
    sizes = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    clip = CLIPClassifierProcessor(CLIPClassifierImageProcessor(**sizes), tiny_tokenizer())
    processor = VideoTextProcessor.from_clip(clip, num_frames=5, sampling_rule="segments")
    actionclip_model().save_pretrained(root / "bare")
    model = ActionCLIPForVideoClassification.from_pretrained(root / "bare")
    model.set_classes(LABELS, processor).save_pretrained(root / "set")
    for name in ("bare", "set"):
        processor.save_pretrained(root / name)
    (root / "clips").mkdir()
    write_video(root / "clips" / "a.mp4", grey_frames(30), fps=20)
    write_video(root / "clips" / "b.mp4", grey_frames(3), fps=20)
    (root / "clips" / "c.mp4").write_bytes(b"")
    return root


def test_free_and_stored_classes_give_the_pipelines_answer_and_pictures(folders, run, tmp_path):
    out = tmp_path / "answers"
    names = ["--classes", ", ".join(LABELS), "--top", 3]
    code, answer, error = run("predict", folders / "clips", "--model", folders / "bare", *names, "--out", out)
    assert code == 1 and "c.mp4: the file is empty" in error and "1 of 3 videos could not be read" in error
    rows = list(csv.DictReader(io.StringIO(answer)))
    assert [bool(row["error"]) for row in rows] == [False, False, True]
    classify = pipeline("zero-shot-video-classification", model=str(folders / "bare"))
    for row in rows[:2]:
        expected = classify(row["path"], candidate_labels=LABELS)
        assert [row["label"], row["label_2"], row["label_3"]] == [one["label"] for one in expected]
        assert float(row["score"]) == pytest.approx(expected[0]["score"], abs=1e-4)
        picture = np.asarray(Image.open(row["picture"]))
        assert picture.shape[1] > 5 * picture.shape[0] and picture.std() > 1
    arguments = ["predict", folders / "clips" / "a.mp4", folders / "clips" / "b.mp4"]
    code, stored, _ = run(*arguments, "--model", folders / "set", "--top", 3, "--batch-size", 1, "--json")
    assert code == 0
    for line, row in zip(map(json.loads, stored.splitlines()), rows, strict=False):
        assert line["label"] == row["label"] and line["score"] == pytest.approx(float(row["score"]), abs=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "bare"], "none given, and"),
        (["--model", "set", "--templates", "a {}"], "the model's own classes are encoded already"),
        (["--model", "bare", "--classes", "a, b", "--threshold", "0.5"], "--threshold: got it for videos"),
    ],
)
def test_wrong_options_are_said(folders, run, options, message):
    options = [folders / one if one in ("bare", "set") else one for one in options]
    code, _, error = run("predict", folders / "clips" / "a.mp4", *options)
    assert code == 1 and message in " ".join(error.split())


def test_labelled_videos_are_evaluated(folders, clip, run, tmp_path):
    """By a model of videos, with classes of its own and with those of the data, and by a classifier of images."""
    data = tmp_path / "data"
    for place, name in enumerate((*LABELS, LABELS[0])):
        (data / name).mkdir(parents=True, exist_ok=True)
        frames = grey_frames(6 + 9 * place)[9 * place :]
        write_video(data / name / f"{place}.mp4", frames, fps=20)
    expected = {}
    for name in LABELS:
        _, lines, _ = run("predict", data / name, "--model", folders / "set", "--json")
        expected[name] = [json.loads(line)["label"] == name for line in lines.splitlines()]
    every = [one for some in expected.values() for one in some]
    assert len(every) == 4
    arguments = ["evaluate", "--data", data, "--model"]
    code, own, _ = run(*arguments, folders / "set", "--json")
    found = json.loads(own)
    assert code == 0 and found["images"] == 4 and found["accuracy"] == sum(every) / 4
    assert found["per_class"] == {name: sum(some) / len(some) for name, some in expected.items()}
    assert found["top5_accuracy"] == 1.0 and found["unreadable"] == []
    (data / LABELS[1] / "broken.mp4").write_bytes(b"")
    code, free, error = run(*arguments, folders / "bare", "--json")
    assert code == 1 and json.loads(free)["accuracy"] == found["accuracy"]
    assert json.loads(free)["unreadable"] == [f"{LABELS[1]}/broken.mp4"] and "1 video could not be read" in error
    code, text, _ = run(*arguments, folders / "set")
    assert "of 4 videos in 3 classes" in text and "among the best five: 100.0 %" in text
    code, frames, _ = run(*arguments, clip, "--json")
    assert code == 1 and json.loads(frames)["images"] == 4 and json.loads(frames)["unreadable"]
