"""Which parts of videos and sounds get a vector, and of which moment."""

import numpy as np
import pytest
import torch
from media_folders import save_sound
from model_contract import CASES
from videos import grey_frames, number_of, write_video

from hf_clip_variants.search import reading
from hf_clip_variants.search.encoder import Encoder
from hf_clip_variants.search.reading import Reader, VideoSettings, windows
from hf_clip_variants.search.sources import FolderSource


class Levels:
    """Instead of an encoder: a frame is the number that it shows."""

    has_clips, feature_extractor, video_processor = False, None, None

    @staticmethod
    def images(frames, return_tensors):
        return {"pixel_values": torch.tensor([[float(number_of(frame))] for frame in frames])}


def read(folder, settings, encoder=Levels, workers=2):
    source = FolderSource(folder)
    entries, _ = source.entries(("image", "video", "audio"), folder / "none")
    reads = [read for _, group in Reader(source, encoder, settings, workers=workers).read([entries]) for read in group]
    assert not [one.error for one in reads if one.error]
    return [sample for one in reads for sample in one.samples], reads


def test_frames_are_those_in_the_middle_of_each_interval(tmp_path):
    write_video(tmp_path / "a.mp4", grey_frames(60), fps=20)
    samples, _ = read(tmp_path, VideoSettings())
    assert [(s.start, s.end) for s in samples] == [(0.5, 0.5), (1.5, 1.5), (2.5, 2.5)]
    assert [int(s.inputs["pixel_values"]) for s in samples] == [10, 30 % 25, 50 % 25]
    assert [s.start for s in read(tmp_path, VideoSettings(fps=0.1))[0]] == [1.5]
    assert len(read(tmp_path, VideoSettings(fps=4))[0]) == 12


@pytest.mark.parametrize("at_once", [1, 5, 100])
def test_long_videos_are_read_in_parts_that_are_the_same_as_a_whole(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(reading, "FRAMES_AT_ONCE", at_once)
    write_video(tmp_path / "a.mp4", grey_frames(120), fps=10, gop=25)
    samples, reads = read(tmp_path, VideoSettings(fps=2), workers=3)
    assert [s.start for s in samples] == [(k + 0.5) / 2 for k in range(24)]
    assert [int(s.inputs["pixel_values"]) for s in samples] == [int((k + 0.5) * 5) % 25 for k in range(24)]
    assert len(reads) == -(-24 // at_once) and sum(one.content is not None for one in reads) == 1


def test_clips_of_a_model_of_images_are_groups_of_frames(tmp_path):
    write_video(tmp_path / "a.mp4", grey_frames(50), fps=10)
    samples, _ = read(tmp_path, VideoSettings("clips", fps=1, clip_seconds=2))
    assert [(s.start, s.end) for s in samples] == [(0, 2), (0, 2), (2, 4), (2, 4), (4, 5)]
    settings = VideoSettings("clips", clip_seconds=10)
    assert settings.clips(5) == [(0, 5)] and settings.clips(20.5) == [(0, 10), (10, 20.5)]
    assert settings.clips(25) == [(0, 10), (10, 20), (20, 25)]


def test_a_video_that_ends_too_early_gives_what_there_is(tmp_path, caplog):
    path = write_video(tmp_path / "a.mkv", grey_frames(100), fps=10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    samples, _ = read(tmp_path, VideoSettings())
    assert 2 <= len(samples) < 10 and "cannot be decoded to its end" in caplog.text


def test_windows_of_sounds():
    assert windows(0.2, 5) == [(0.0, 0.2)] and windows(5, 5) == [(0.0, 5.0)] and windows(6, 5) == [(0.0, 5.0)]
    assert windows(8, 5) == [(0.0, 5.0), (3, 8)]


def test_sounds_are_windows_of_the_models_length(tmp_path):
    case = CASES["audioclip"]
    encoder = Encoder("audioclip", case.make(), case.processor())
    extractor = encoder.feature_extractor
    assert extractor.sampling_rate == 8000 and extractor.max_length == 1300
    save_sound(tmp_path / "a.wav", 0.55, rate=16000)
    samples, _ = read(tmp_path, VideoSettings(), encoder)
    length = 1300 / 8000
    expected = [(k * length, (k + 1) * length) for k in range(3)]
    assert np.allclose([(s.start, s.end) for s in samples], expected)
    assert {tuple(s.inputs["input_features"].shape) for s in samples} == {(1, 1, 1300)}


def test_wrong_settings_are_named():
    for wrong, message in (
        ({"mode": "all"}, "videos: got 'all'; want 'frames' or 'clips'"),
        ({"fps": 0}, "fps: got 0; want a number in 0.0001..1000"),
        ({"fps": 10**30}, "fps: got 1000000000.*; want a number in 0.0001..1000"),
        ({"clip_seconds": 1e-9}, "clip_seconds: got 1e-09; want a number in 0.001..1e\\+06"),
        ({"fps": True}, "fps: got True"),
        ({"clip_seconds": float("inf")}, "clip_seconds: got inf"),
        ({"clip_seconds": None}, "clip_seconds: got None"),
    ):
        with pytest.raises(ValueError, match=message):
            VideoSettings(**wrong)
