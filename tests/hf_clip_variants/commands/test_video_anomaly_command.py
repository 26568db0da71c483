"""`predict --task video-anomaly`: segments that are printed, curves and scores that are written, errors."""

import csv
import io
import json

import numpy as np
import PIL.Image
import pytest
from tiny import tiny_tokenizer
from transformers import pipeline
from video_anomaly_clip_runs import video_anomaly_model
from videos import grey_frames, write_video

from hf_clip_variants import CLIPClassifierImageProcessor, CLIPClassifierProcessor, VideoTextProcessor
from hf_clip_variants.annotations.score_curves import draw_score_curve
from hf_clip_variants.evaluation.video_anomaly import find_videos


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "anomalies"
    video_anomaly_model().save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    clip = CLIPClassifierProcessor(CLIPClassifierImageProcessor(**sizes), tiny_tokenizer())
    VideoTextProcessor.from_clip(clip, num_frames=None, fps=None).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "one.mp4", grey_frames(20), fps=5)
    write_video(folder / "two.mp4", grey_frames(8), fps=4)
    return folder


def test_one_command_prints_segments_and_draws_curves(run, model, videos, tmp_path):
    out = tmp_path / "out"
    found = pipeline("video-anomaly-detection", model=str(model))(str(videos / "one.mp4"))
    threshold = float(np.median(found["scores"]))
    options = ["--task", "video-anomaly", "--threshold", f"{threshold:.4f}", "--out", out]
    code, printed, err = run("predict", model, videos, *options)
    assert code == 0 and f"{out} holds curves/" in err, err
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert list(rows[0]) == ["path", "start", "end", "label", "score", "unit", "error"]
    assert {row["path"] for row in rows} == {str(path) for path in videos.iterdir()}
    mine = [row for row in rows if row["path"].endswith("one.mp4")]
    assert mine and all(row["label"] in ("abuse", "fire", "riot") and row["unit"] == "seconds" for row in mine)
    assert max(float(row["score"]) for row in mine) == pytest.approx(max(found["scores"]), abs=1e-4)
    for name, frames in (("one", 20), ("two", 8)):
        picture = PIL.Image.open(out / "curves" / f"{name}.png")
        assert picture.width > 500 and len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20
        scores = list(csv.DictReader((out / "scores" / f"{name}.csv").open()))
        assert len(scores) == frames and list(scores[0]) == ["seconds", "score"]
    scores = list(csv.DictReader((out / "scores" / "one.csv").open()))
    assert [float(row["score"]) for row in scores] == pytest.approx(found["scores"], abs=1e-4)


def test_the_task_is_the_models_and_json_has_everything(run, model, videos, tmp_path):
    options = ["--out", tmp_path / "out", "--json", "--fps", "2", "--batch-size", "3"]
    code, printed, err = run("predict", model, videos / "one.mp4", *options)
    assert code == 0, err
    [row] = [json.loads(line) for line in printed.splitlines()]
    assert row["frames"] == 8 and row["unit"] == "seconds" and 0 < row["score"] < 1
    assert row["picture"].endswith("out/curves/one.png") and isinstance(row["segments"], list)


def test_features_and_folders_of_frames_are_videos(run, model, tmp_path):
    features = np.random.default_rng(0).standard_normal((14, 24)).astype(np.float16)
    np.save(tmp_path / "clip.npy", features)
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(grey_frames(5)):
        PIL.Image.fromarray(frame).save(tmp_path / "frames" / f"{number}.png")
    files = [tmp_path / "clip.npy", tmp_path / "frames"]
    code, printed, err = run("predict", model, *files, "--out", tmp_path / "out", "--json", "--fps", "7")
    assert code == 0, err
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [(row["frames"], row["unit"]) for row in rows] == [(14, "seconds"), (5, "seconds")]
    assert list(find_videos([str(tmp_path / "frames"), str(tmp_path)])) == [
        str(tmp_path / "frames"),
        str(tmp_path / "clip.npy"),
    ]


def test_a_broken_video_is_said_and_the_others_are_scored(run, model, videos, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    files = [tmp_path / "broken.mp4", videos / "two.mp4"]
    code, printed, err = run("predict", model, *files, "--out", tmp_path / "out", "--json")
    rows = [json.loads(line) for line in printed.splitlines()]
    assert code == 1 and "1 of 2 videos could not be read" in err
    assert "not a video that can be read" in rows[0]["error"] and rows[1]["frames"] == 8


@pytest.mark.parametrize(
    "options, message",
    [
        (["--labels", "cat"], "--labels: got it for video-anomaly; it is for other tasks"),
        (["--top", "3"], "--top: got it for video-anomaly"),
        (["--templates", "a {}"], "--templates: got it for video-anomaly"),
        (["--threshold", "2"], "threshold"),
    ],
)
def test_wrong_options_are_said(run, model, videos, options, message):
    code, _, err = run("predict", model, videos, "--task", "video-anomaly", *options)
    assert code != 0 and message in err, err


def test_other_models_and_tasks_are_said(run, model, videos, tmp_path):
    from clip4clip_runs import clip4clip_model

    clip4clip_model(similarity_head="meanP").save_pretrained(tmp_path)
    code, _, err = run("predict", tmp_path, videos, "--task", "video-anomaly")
    assert code == 1 and "is a clipv-clip4clip, which does not score frames; want AnomalyCLIP (video)" in err
    code, _, err = run("predict", "--task", "video-anomaly", "--fps", "2", videos, "--model", "none-there")
    assert code == 1, err
    code, _, err = run("predict", videos, "--model", model, "--task", "segmentation", "--labels", "a", "--fps", "2")
    assert code == 1 and "--fps: got it for segmentation; it is for video-anomaly" in err


def test_curves_of_one_and_of_very_many_frames_are_drawn():
    odd = [{"start": 0.0, "end": 1.0, "label": "$${x}", "score": 0.9}]
    assert draw_score_curve([0.0], [0.5], odd, title="one $frame_{$")[1:4] == b"PNG"
    times = np.arange(500_000) / 30
    segments = [{"start": 10.0, "end": 200.0, "label": "fire", "score": 0.9}]
    picture = draw_score_curve(times, np.random.default_rng(0).random(500_000), segments, truth=[(20.0, 90.0)])
    assert picture[1:4] == b"PNG"
    with pytest.raises(ValueError, match="times, scores: shapes"):
        draw_score_curve([], [])
