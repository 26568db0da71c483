"""Videos and texts: functions and `predict --task video-…`, from a saved folder, with good and broken files."""

import csv
import io
import json
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from videoclip_runs import RATE, TOY_CLASSES, tiny_processor, toy_videos, videoclip_model
from videos import grey_frames, write_video

from hf_clip_variants.cli import main
from hf_clip_variants.evaluation import video_moments as tasks
from hf_clip_variants.modeling.video import seconds as seconds_module
from hf_clip_variants.modeling.video.seconds import features_of_seconds, seconds_of
from hf_clip_variants.modeling.video.video_decoding import Video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with S3D-G and its processor."""
    folder = tmp_path_factory.mktemp("videoclip")
    videoclip_model().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    write_video(folder / "a.mp4", grey_frames(75), fps=25)
    write_video(folder / "b.mkv", grey_frames(50), fps=12)
    np.save(folder / "c.npy", toy_videos(1, seconds=40)[0]["features"].numpy())
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return tasks.load_seconds_model(folder / "model", "cpu")


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit:
        main(["predict", *map(str, arguments)])
    printed = capsys.readouterr()
    return exit.value.code or 0, printed.out, printed.err


# ---- seconds


def test_seconds_are_those_of_the_processor_and_of_a_whole_batch(loaded, folder):
    processor = loaded.processor.video_processor
    for path in ("a.mp4", "b.mkv"):
        whole = processor([str(folder / path)], return_tensors="pt", num_frames=None)
        streamed = list(seconds_of(folder / path, processor))
        assert torch.equal(torch.cat(streamed), whole["pixel_values_videos"][0]), path
        assert {len(second) for second in streamed} == {RATE}
        expected = loaded.model.get_second_features(whole["pixel_values_videos"])[0]
        for at_once in (1, 4):
            found = features_of_seconds(loaded.model, folder / path, processor, at_once=at_once)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_one_frame_variable_rates_and_frames_in_a_list(loaded, folder, tmp_path):
    write_video(tmp_path / "one.mp4", grey_frames(1), fps=25)
    assert tasks.read_features(loaded, str(tmp_path / "one.mp4")).shape == (1, 10)
    # 3 s whose frames come faster and faster, and the same frames at a constant rate: what is shown at a time counts.
    times = [3 * (k / 30) ** 0.5 for k in range(30)]
    write_video(tmp_path / "variable.mkv", grey_frames(30), times=times)
    seconds = list(seconds_of(tmp_path / "variable.mkv", loaded.processor.video_processor))
    assert len(seconds) == 3
    shown = [max(k for k in range(30) if times[k] <= (0.5 + n) / RATE) for n in range(3 * RATE)]
    levels = torch.stack([frame.mean() for second in seconds for frame in second]) * 255
    assert torch.allclose(levels, torch.tensor([20.0 + 9 * (k % 25) for k in shown]), atol=6)
    arrays = np.stack(grey_frames(10))
    assert tasks.read_features(loaded, arrays, fps=5).shape == (2, 10)
    with pytest.raises(ValueError, match="fps: got none for frames without times, expected frames a second"):
        tasks.read_features(loaded, arrays)


class TenHours(Video):
    """An hour of one colour after the other, a frame a second; nothing is decoded."""

    backend, fps, duration, total, width, height = "fake", 1.0, 36_000.0, 36_000, 32, 24

    def frames(self, times):
        shown = [Image.new("RGB", (32, 24), (25 * hour, 100, 0)) for hour in range(10)]
        for time in times:
            yield shown[int(time // 3600)]


def test_ten_hours_are_read_in_the_memory_of_some_seconds(monkeypatch, loaded):
    import contextlib

    monkeypatch.setattr(seconds_module, "open_video", lambda source, fps: contextlib.nullcontext(TenHours()))
    sizes, alive, most = [], weakref.WeakSet(), 0

    class Cheap:
        device, config = torch.device("cpu"), loaded.model.config

        def get_second_features(self, pixels):
            nonlocal most
            sizes.append(pixels.shape[1])
            alive.add(pixels)
            most = max(most, len(alive))
            return pixels.unflatten(1, (-1, RATE)).mean((2, 4, 5)).repeat(1, 1, 4)[..., :10]

    features = features_of_seconds(Cheap(), "film.mp4", loaded.processor.video_processor, at_once=32)
    assert features.shape == (36_000, 10) and max(sizes) == 32 * RATE and most <= 2
    for hour in range(10):
        assert features[3600 * hour + 1800, 0] == pytest.approx(25 * hour / 255, abs=1e-3)
    texts = tasks.encode(loaded, ["the cat moves", "a dog"])
    found = tasks.find_moments(loaded, features, texts, top=2)
    assert all(0 <= one.start < one.end <= 36_000 for some in found for one in some)


# ---- tasks


def test_tasks_find_what_the_scores_say(loaded):
    features = toy_videos(1, seconds=40)[0]["features"]
    names = [f"a {name} moves" for name in TOY_CLASSES[:3]]
    texts = tasks.encode(loaded, names)
    logits = loaded.model.get_second_logits(features, texts)
    steps = tasks.locate_steps(loaded, features, texts)
    assert [one.label for one in steps] == [0, 1, 2] and steps[0].start < steps[1].start < steps[2].start
    for one in steps:
        assert one.score == pytest.approx(float(logits[one.start, one.label]), abs=1e-4)
    free = tasks.locate_steps(loaded, features, texts, ordered=False)
    assert [one.start for one in free] == logits.double().log_softmax(1).argmax(0).tolist()
    everywhere = tasks.segment_video(loaded, features, texts, threshold=-1e9)
    assert sum(one.end - one.start for one in everywhere) == 40
    assert tasks.segment_video(loaded, features, texts, threshold=1e9) == []
    for label, some in enumerate(tasks.find_moments(loaded, features, texts, top=3)):
        assert [one.label for one in some] == [label] * 3 and some[0].score >= some[1].score >= some[2].score
        assert some[0].score == pytest.approx(float(logits[some[0].start : some[0].end, label].mean()), abs=1e-4)
    videos = [video["features"] for video in toy_videos(5, seconds=7)]
    scores = tasks.score_videos(loaded, [*videos, features], texts)
    alone = torch.cat([tasks.score_videos(loaded, [one], texts) for one in (*videos, features[:8])])
    torch.testing.assert_close(scores, alone, rtol=0, atol=1e-4)
    assert [video for video, _ in tasks.retrieve(scores)[1]] == scores[:, 1].argsort(descending=True).tolist()
    assert tasks.answer(scores[2])[0].label == int(scores[2].argmax())
    both = tasks.encode(loaded, ["cat;dog"])[0]
    torch.testing.assert_close(both, tasks.encode(loaded, ["cat", "dog"]).mean(0))


@pytest.mark.parametrize(
    "source, message",
    [
        (np.zeros((0, 10), np.float32), r"features of shape \[0, 10\], expected \[seconds, 10\]"),
        (np.zeros((3, 9), np.float32), r"features of shape \[3, 9\], expected \[seconds, 10\]"),
        (np.zeros((3, 10), np.int64), "features of type int64, expected floats"),
        (np.full((3, 10), np.nan, np.float32), "NaN or infinite"),
        (np.zeros((0, 8, 8, 3), np.uint8), "video has no frames"),
    ],
)
def test_wrong_features_are_said(loaded, source, message):
    with pytest.raises(ValueError, match=message):
        tasks.read_features(loaded, source, fps=4)


# ---- the command

TASKS = ("video-retrieval", "video-question-answering", "video-steps", "video-segmentation", "video-moments")


@pytest.mark.parametrize("task", TASKS)
def test_a_video_in_an_answer_and_a_picture_out(task, folder, tmp_path, capsys):
    videos = [folder / "a.mp4", folder / "b.mkv", folder / "c.npy"]
    options = ["--task", task, "--model", folder / "model", "--labels", "the cat, a dog", "--out", tmp_path / "out"]
    options += ["--background", "-1000"] if task == "video-segmentation" else []
    code, printed, said = run(capsys, *videos, *options, "--json", "--device", "cpu")
    assert code == 0, said
    rows = [json.loads(line) for line in printed.splitlines()]
    pictures = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert pictures == ["a.png", "b.png", "c.png"]
    assert all(Image.open(tmp_path / "out" / name).width >= 960 for name in pictures)
    if task == "video-retrieval":
        assert [row["label"] for row in rows] == ["the cat", "a dog"]
        assert all(len(row["videos"]) == 3 for row in rows)
    else:
        assert [row["path"] for row in rows] == list(map(str, videos)) and all(row["found"] for row in rows)
    code, printed, _ = run(capsys, *videos, *options, "--batch-size", "1")
    lines = list(csv.DictReader(io.StringIO(printed)))
    assert code == 0 and {line["label"] for line in lines} <= {"the cat", "a dog"} and lines
    if task in ("video-retrieval", "video-question-answering"):
        found = rows if task != "video-retrieval" else [one for row in rows for one in row["videos"]]
        scores = sorted(one["score"] for one in found) if task == "video-retrieval" else None
        assert scores is None or scores == pytest.approx(sorted(float(line["score"]) for line in lines), abs=1e-4)


def test_broken_videos_are_told_and_the_others_answered(folder, tmp_path, capsys):
    good = folder / "a.mp4"
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "broken.mp4").write_bytes(good.read_bytes()[:300])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "wrong.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "narrow.npy", np.zeros((4, 3), np.float32))
    paths = [tmp_path / name for name in ("empty.mp4", "broken.mp4", "text.mp4", "wrong.npy", "narrow.npy")]
    for task in ("video-moments", "video-retrieval"):
        options = [
            "--task",
            task,
            "--model",
            folder / "model",
            "--labels",
            "the cat, a dog",
            "--out",
            tmp_path / "out",
        ]
        code, printed, said = run(capsys, *paths, good, tmp_path / "missing.mp4", *options, "--json")
        rows = [json.loads(line) for line in printed.splitlines()]
        errors = {row["path"]: row["error"] for row in rows if "error" in row}
        assert code == 1 and set(errors) == {*map(str, paths), str(tmp_path / "missing.mp4")}
        assert "empty file" in errors[str(paths[0])] and "expected [seconds, 10]" in errors[str(paths[4])]
        assert any(row.get("found") or row.get("videos") for row in rows) and "6 of 7" in said


@pytest.mark.parametrize(
    "options, message",
    [
        (["--labels", "cat"], "--model: missing; want a model that compares seconds"),
        (["--model", "MODEL"], "--labels: missing; want the texts for video-moments"),
        (["--model", "MODEL", "--labels", "cat", "--classes", "a"], "--classes: got it for video-moments"),
        (["--model", "MODEL", "--labels", "cat", "--background", "3"], "--background: got 3 for video-moments"),
        (["--model", "MODEL", "--labels", "cat,cat"], "cat"),
        (["--model", "EMOJI", "--labels", "cat"], "does not compare seconds of videos with texts; want VideoCLIP"),
    ],
)
def test_wrong_options_are_said(options, message, folder, tmp_path, capsys):
    from tiny import EMOJI_CLIP

    options = [{"MODEL": folder / "model", "EMOJI": EMOJI_CLIP}.get(one, one) for one in options]
    out = ["--out", tmp_path / "out"]
    video = [] if "--model" not in options else [folder / "b.mkv"]
    code, printed, said = run(capsys, *video, "--task", "video-moments", *options, *out)
    assert code == 1 and message in " ".join(said.split()) and not printed and not (tmp_path / "out").exists()
