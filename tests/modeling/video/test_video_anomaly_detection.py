"""The pipeline "video-anomaly-detection": any source and length, times and segments, features, what is refused."""

import io
import resource

import numpy as np
import PIL.Image
import pytest
import torch
from tiny import tiny_tokenizer
from transformers import pipeline
from video_anomaly_clip_runs import video_anomaly_model
from videos import grey_frames, write_long_video, write_video

from hf_clip_variants import CLIP4ClipModel, CLIPClassifierImageProcessor, CLIPClassifierProcessor, VideoTextProcessor
from hf_clip_variants.modeling.video.anomaly_segments import (
    anomaly_segments,
    post_process_video_anomaly,
)
from hf_clip_variants.modeling.video.video_anomaly_detection import TASK


def processor():
    sizes = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    clip = CLIPClassifierProcessor(CLIPClassifierImageProcessor(**sizes), tiny_tokenizer())
    return VideoTextProcessor.from_clip(clip, num_frames=None, fps=None)


@pytest.fixture(scope="module")
def pipe():
    return pipeline(TASK, model=video_anomaly_model(), processor=processor())


def moving(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 30, 30, 3), np.uint8)


def test_scores_are_the_models_frame_by_frame(pipe):
    video = moving(17)
    inputs = pipe.processor(videos=video, return_tensors="pt")
    with torch.no_grad():
        expected = pipe.model(**inputs)
    for size in (1, 5, 100):
        found = pipe(video, fps=10, batch_size=size, class_scores=True, threshold=0.4)
        assert found["unit"] == "seconds" and found["times"] == pytest.approx([k / 10 for k in range(17)])
        assert found["scores"] == pytest.approx(expected.scores[0].tolist(), abs=1e-5)
        assert found["class_scores"]["fire"] == pytest.approx(expected.class_probs[0, :, 2].tolist(), abs=1e-5)
    [segments] = post_process_video_anomaly(expected, pipe.model.config, threshold=0.4, fps=10)
    assert len(found["segments"]) == len(segments)
    for one, other in zip(found["segments"], segments, strict=True):
        assert one["label"] == other["label"]
        assert [one[k] for k in ("start", "end", "score")] == pytest.approx(
            [other[k] for k in ("start", "end", "score")], abs=1e-5
        )
    assert pipe(video)["unit"] == "frames" and pipe(video)["times"] == list(range(17))


def test_every_form_of_video_is_read(pipe, tmp_path):
    frames = grey_frames(25)
    path = write_video(tmp_path / "a.mp4", frames, fps=5)
    expected = pipe(str(path))
    assert expected["times"] == pytest.approx([k / 5 for k in range(25)]) and len(expected["scores"]) == 25
    assert pipe(path.read_bytes())["scores"] == pytest.approx(expected["scores"], abs=1e-6)
    (tmp_path / "folder").mkdir()
    for number, frame in enumerate(frames):
        PIL.Image.fromarray(frame).save(tmp_path / "folder" / f"{number}.png")
    in_memory = [pipe(source, fps=5) for source in (str(tmp_path / "folder"), np.stack(frames), list(frames))]
    for one in in_memory:
        assert one["times"] == expected["times"] and one["scores"] == pytest.approx(in_memory[0]["scores"], abs=1e-5)
    several = pipe([str(path), str(path)])
    assert len(several) == 2 and several[1]["scores"] == pytest.approx(expected["scores"], abs=1e-6)
    assert len(pipe([str(path)])) == 1


def test_frames_may_be_left_out(pipe, tmp_path):
    path = str(write_video(tmp_path / "a.mp4", grey_frames(25), fps=5))
    every_third = pipe(path, frame_stride=3)
    assert every_third["times"] == pytest.approx([0.6 * k for k in range(9)])
    assert pipe(path, sample_fps=2)["times"] == pytest.approx([0.5 * k for k in range(10)])
    assert pipe(np.stack(grey_frames(25)), fps=5, sample_fps=1)["times"] == [0, 1, 2, 3, 4]
    everything = pipe(path, threshold=0.0, frame_stride=3)["segments"]
    assert [everything[0][name] for name in ("start", "end")] == pytest.approx([0.0, 5.0])
    assert len(everything) == 1 and everything[0]["score"] == max(every_third["scores"])


def test_frames_of_a_varying_rate_keep_their_times(pipe, tmp_path):
    times = np.cumsum([0.0, *([0.02, 0.1] * 6)])
    path = write_video(tmp_path / "a.mp4", grey_frames(13), times=times)
    found = pipe(str(path), threshold=0.0)
    assert found["times"] == pytest.approx(times.tolist(), abs=2e-3)
    assert found["segments"][0]["end"] > times[-1]


def test_one_frame_is_a_video(pipe, tmp_path):
    path = write_video(tmp_path / "a.mp4", grey_frames(1), fps=25)
    found = pipe(str(path), threshold=0.0)
    assert len(found["scores"]) == 1 and found["times"] == [0.0]
    assert 0 < found["segments"][0]["end"] <= 0.1
    buffer = io.BytesIO()
    PIL.Image.fromarray(grey_frames(1)[0]).save(buffer, "GIF")
    assert len(pipe(buffer.getvalue())["scores"]) == 1


def test_features_of_somebodys_own_extractor_are_taken(pipe, tmp_path):
    video = moving(40)
    with torch.no_grad():
        output = pipe.model(**pipe.processor(videos=video, return_tensors="pt"))
    features = output.video_features[0].half().numpy()
    np.save(tmp_path / "video.npy", features)
    for source in (features, torch.from_numpy(features), tmp_path / "video.npy", str(tmp_path / "video.npy")):
        found = pipe(source, fps=8)
        assert found["scores"] == pytest.approx(output.scores[0].tolist(), abs=5e-3) and found["unit"] == "seconds"
    assert pipe(features)["unit"] == "frames" and len(pipe([features, features])) == 2
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    np.save(tmp_path / "crops.npy", np.zeros((4, 10, 24), np.float16))
    for name, message in (
        ("broken.npy", "broken.npy: no features that can be read"),
        ("objects.npy", "objects.npy: no features that can be read"),
        ("crops.npy", r"video_features: got \[4, 10, 24\], expected \[frames, 24\]"),
        ("none.npy", "none.npy: no features that can be read"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(str(tmp_path / name))
    for wrong, message in (
        (np.zeros((5, 23), np.float32), r"got \[5, 23\], expected \[frames, 24\]"),
        (np.zeros((0, 24), np.float32), r"got \[0, 24\]"),
        (np.ones((5, 24), np.int64), "expected floats, got (torch.)?int64"),
        (np.full((5, 24), np.nan, np.float32), "has NaN or infinite numbers in frame 0"),
        (np.zeros((5, 24), np.float32), "has only zeros in frame 0"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(wrong)


def test_ten_hours_are_read_in_bounded_memory(tmp_path):
    """A file, and features of five frames a second: the process grows by little."""
    grid = {"num_segments": 32, "segment_length": 16, "windows_per_pass": 16, "temporal_num_layers": 1}
    pipe = pipeline(TASK, model=video_anomaly_model(**grid), processor=processor())
    path = write_long_video(tmp_path / "long.mp4", hours=10, fps=1)
    pipe(str(path), sample_fps=0.01)  # what is needed once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = pipe(str(path), sample_fps=0.05, batch_size=64)
    assert len(found["scores"]) == 1800 and found["times"][-1] == pytest.approx(35980)
    with open(tmp_path / "features.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": (180_000, 24)})
        block = np.random.default_rng(0).standard_normal((18_000, 24)).astype(np.float16)
        for _ in range(10):
            file.write(block.tobytes())
    found = pipe(str(tmp_path / "features.npy"), fps=5)
    assert len(found["scores"]) == 180_000 and found["times"][-1] == pytest.approx(35999.8)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 300, f"{grown:.0f} MB"  # as pixels, 180,000 frames of this model's 24 x 24 are 1.2 GB


def test_a_saved_folder_is_enough_and_other_models_are_refused(pipe, tmp_path):
    video_anomaly_model().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    video = moving(9)
    loaded = pipeline(TASK, model=str(tmp_path))
    assert loaded(video)["scores"] == pytest.approx(pipe(video)["scores"], abs=1e-5)
    with pytest.raises(ValueError, match="video_processor: none"):
        pipeline(TASK, model=video_anomaly_model())
    from clip4clip_runs import clip4clip_model

    other = clip4clip_model(similarity_head="meanP")
    assert isinstance(other, CLIP4ClipModel)
    with pytest.raises(ValueError, match="CLIP4ClipModel does not score frames"):
        pipeline(TASK, model=other, processor=processor())


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"frames": 3}, TypeError, "frames: unknown, expected threshold"),
        ({"threshold": 1.5}, ValueError, "threshold: 1.5"),
        ({"frame_stride": 0}, ValueError, "frame_stride: 0, expected a whole number > 0"),
        ({"frame_stride": 1.5}, ValueError, "frame_stride: 1.5"),
        ({"fps": -1}, ValueError, "fps: -1, expected a number > 0"),
        ({"sample_fps": float("nan")}, ValueError, "sample_fps: nan"),
        ({"sample_fps": 2}, ValueError, "sample_fps: frames without times, expected fps"),
        ({"sample_fps": 2, "frame_stride": 2}, ValueError, "got both"),
        ({"batch_size": 0}, ValueError, "batch_size: 0"),
    ],
)
def test_wrong_options_are_said(pipe, options, error, message):
    with pytest.raises(error, match=message):
        pipe(np.stack(grey_frames(3)), **options)


def test_videos_that_cannot_be_read_are_said(pipe, tmp_path):
    good = str(write_video(tmp_path / "a.mp4", grey_frames(30), fps=5))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video " * 100)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:400])
    (tmp_path / "nothing").mkdir()
    for name, message in (
        ("empty.mp4", "empty file in .*empty.mp4"),
        ("text.mp4", "not a video that can be read"),
        ("cut.mp4", "not a video that can be read, or cut off"),
        ("none.mp4", "no such file: .*none.mp4"),
        ("nothing", "no frames in folder"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(str(tmp_path / name))
        with pytest.raises(ValueError, match=rf"videos\[1\]: .*{message}"):
            pipe([good, str(tmp_path / name)])
    with pytest.raises(ValueError, match="videos: got None"):
        pipe(None)
    with pytest.raises(ValueError, match="normal_centroid: missing"):
        model = video_anomaly_model()
        model.num_normal_frames.zero_()
        pipeline(TASK, model=model, processor=processor())(good)


def test_a_damaged_end_leaves_what_can_be_decoded(pipe, tmp_path):
    path = write_video(tmp_path / "a.mkv", grey_frames(60), fps=10, gop=5)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.7)])
    found = pipe(str(path))
    assert 5 < len(found["scores"]) < 60 and len(found["times"]) == len(found["scores"])


def test_segments_have_borders_labels_and_scores():
    names = {0: "fire", 1: "normal", 2: "riot"}
    probs = np.array([[0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.0, 0.9, 0.1], [0.6, 0.4, 0.0]])
    scores = 1 - probs[:, 1]
    found = anomaly_segments(scores, probs, names, 1, 0.5, times=[0.0, 1.0, 1.5, 4.0, 5.0], end=5.5)
    assert found == [
        {"start": 1.0, "end": 4.0, "label": "riot", "score": 0.8},
        {"start": 5.0, "end": 5.5, "label": "fire", "score": 0.6},
    ]
    assert anomaly_segments(scores, probs, names, 1, 0.99) == []
    assert anomaly_segments([0.9], probs[:1], names, 1)[0]["end"] == 1.0
    for arguments, message in (
        ((scores[:3], probs, names, 1), "scores, class_probs: shapes"),
        ((scores, probs, names, 1, 2.0), "threshold: 2.0"),
        ((scores, probs, names, 1, 0.5, [3.0, 2.0, 1.0, 0.0, 5.0]), "times: .*rising"),
        ((scores * np.nan, probs, names, 1), "scores: NaN"),
        (("abcde", probs, names, 1), "scores: got str, expected an array of numbers"),
        ((scores, probs, names, 7), "normal_id: 7, expected one of the classes"),
        ((scores, probs, names, 1, 0.5, None, np.inf), "end: inf, expected a number"),
    ):
        with pytest.raises(ValueError, match=message):
            anomaly_segments(*arguments)
