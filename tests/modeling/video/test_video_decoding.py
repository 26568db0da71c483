"""Videos in every form: the right frames at the right times, and clear errors."""

import io
import resource
import sys
import threading
import time
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from videos import grey_frames, level_of, number_of, turn_clockwise, write_long_video, write_video

from hf_clip_variants.modeling.video import container_files
from hf_clip_variants.modeling.video.frame_sampling import FrameSampling
from hf_clip_variants.modeling.video.read_ahead import read_ahead
from hf_clip_variants.modeling.video.video_decoding import open_video, read_video


ALL = FrameSampling(rate=None, num_frames=None)
ONE_READER = pytest.mark.usefixtures("reader")


def numbers(source, sampling=ALL, **options) -> list[int]:
    return [number_of(frame) for frame in read_video(source, sampling, **options)[0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def mp4(folder):
    return write_video(folder / "plain.mp4", grey_frames(60), fps=20)


@pytest.fixture(params=container_files.READERS, ids=lambda reader: reader.backend)
def reader(request, monkeypatch):
    """What reads container files: each of the two alone."""
    module = container_files.READERS[request.param]
    if module() is None:
        pytest.skip(f"{request.param.backend} is not installed, or finds no FFmpeg")
    monkeypatch.setattr(container_files, "READERS", {request.param: module})
    return request.param


# ---- every form


def forms(folder, frames):
    images = [PIL.Image.fromarray(frame) for frame in frames]
    for suffix in (".mp4", ".mkv", ".webm", ".avi"):
        yield suffix, write_video(folder / f"form{suffix}", frames, fps=10)
    for kind in ("GIF", "WEBP", "PNG"):
        path = folder / f"form.{kind.lower()}"
        lossless = {"lossless": True} if kind == "WEBP" else {}
        images[0].save(path, kind, save_all=True, append_images=images[1:], duration=100, loop=0, **lossless)
        yield kind, path
    (folder / "frames").mkdir(exist_ok=True)
    for number, image in enumerate(images, 1):
        image.save(folder / "frames" / f"frame_{number}.png")
    yield "folder", folder / "frames"
    yield "images", images
    yield "arrays", frames
    yield "array", np.stack(frames)
    yield "channels first", np.stack(frames).transpose(0, 3, 1, 2)


def test_every_form_gives_the_same_frames(folder, reader):
    frames = grey_frames(23)
    for form, source in forms(folder, frames):
        if form == ".avi" and reader is container_files.TorchcodecVideo:
            with pytest.raises(ImportError, match=r"Reading AVI files in '.*form.avi' needs av: pip install"):
                read_video(source)
            continue
        assert numbers(source, fps=10) == list(range(23)), form
        assert numbers(source, FrameSampling(rate=2), fps=10) == [0, 5, 10, 15, 20], form
        assert numbers(source, FrameSampling("segments", 4), fps=10) == [2, 8, 13, 19], form
        with open_video(source, fps=10) as video:
            found, metadata = video.read(FrameSampling(rate=2, num_frames=3))
            one_by_one = [(seconds, number_of(frame)) for seconds, frame in video.all_frames()]
        assert [seconds for seconds, _ in one_by_one] == pytest.approx([0.1 * k for k in range(23)], abs=1e-3), form
        assert [number for _, number in one_by_one] == list(range(23)), form
        assert metadata.frames_indices == [0, 10, 20] and metadata.total_num_frames == 23, form
        assert (metadata.width, metadata.height) == (48, 32) == found[0].size, form
        assert metadata.duration == pytest.approx(2.3, abs=0.01) and metadata.fps == pytest.approx(10, abs=0.1), form


@ONE_READER
def test_columns_of_datasets_and_files_in_memory(mp4):
    import datasets

    table = datasets.Dataset.from_dict({"video": [str(mp4)]}).cast_column("video", datasets.Video(decode=False))
    content = mp4.read_bytes()
    for source in (table[0]["video"], {"bytes": content, "path": None}, content, io.BytesIO(content)):
        assert numbers(source, FrameSampling()) == [0, 20, 15]


def test_what_torchcodec_decoded_is_read_through_its_own_interface():
    class Decoder:  # as torchcodec.decoders.VideoDecoder
        class metadata:
            begin_stream_seconds, end_stream_seconds, duration_seconds = 0.5, 3.5, 3.0
            average_fps, num_frames, width, height = 10.0, 30, 48, 32

        def get_frame_played_at(self, seconds):
            number = int((seconds - 0.5) * 10)
            assert 0 <= number < 30

            class frame:
                data, pts_seconds = torch.full((3, 32, 48), level_of(number), dtype=torch.uint8), 0.5 + number / 10

            return frame

    Decoder.get_frames_played_at = None
    assert numbers(Decoder(), FrameSampling()) == [0, 10, 20]


class FakeDecoders:
    """As `torchcodec.decoders`: a decoder of ten grey frames of a second each."""

    class VideoDecoder:
        class metadata:
            begin_stream_seconds, end_stream_seconds, duration_seconds = 0.0, 10.0, 10.0
            duration_seconds_from_header, num_frames_from_header, average_fps_from_header = 10.0, 10, 1.0
            average_fps, num_frames, width, height = 1.0, 10, 48, 32

        def __init__(self, source, **options):
            assert source.read(8)[4:] == b"ftyp", "a file that torchcodec is not to see"

        def get_frame_played_at(self, seconds):  # with gaps: the next frame, as from files with short durations
            return self.get_frame_at(min(round(seconds + 0.49), 9))

        def get_frame_at(self, number):
            data = torch.full((3, 32, 48), level_of(number), dtype=torch.uint8)
            return SimpleNamespace(data=data, pts_seconds=float(number))


def test_without_pyav_torchcodec_reads_files_but_no_playlists_and_no_avi(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "av", None)  # importing it raises
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", FakeDecoders)
    mp4 = b"\0\0\0\x18ftypmp42" + bytes(200)
    assert numbers(mp4, FrameSampling(rate=0.5)) == [0, 2, 4, 6, 8]
    assert numbers(mp4, FrameSampling(rate=0.4)) == [0, 2, 5, 7]  # where the fake gives 0, 3, 6, 8
    for playlist in (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n"):
        with pytest.raises(ValueError, match="not a video that can be read"):
            read_video(playlist)
    with pytest.raises(ImportError, match="Reading AVI files needs av"):
        read_video(b"RIFF\0\0\0\0AVI LIST" + bytes(200))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ImportError, match=r'Reading videos needs av: pip install "hf-clip-variants\[video\]"'):
        read_video(mp4)


# ---- times


@ONE_READER
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("fps", [24, Fraction(30000, 1001), 30])
def test_frames_are_those_that_a_player_shows(folder, suffix, fps):
    path = write_video(folder / f"rate{float(fps):.0f}{suffix}", grey_frames(75), fps=fps)
    wanted = [0.0, 0.31, 0.53, 1.0, 1.72, 2.0, 2.2]
    with open_video(path) as video:
        shown = [number_of(frame) for frame in video.frames(wanted)]
    assert shown == [int((t + 6e-4) * fps) % 25 for t in wanted]


@ONE_READER
def test_variable_rates_are_followed_by_time(folder):
    times = np.cumsum([0, *np.tile([0.02, 0.1, 0.04, 0.08], 12)])  # 12 frames in 0.72 s
    path = write_video(folder / "variable.mp4", grey_frames(len(times)), times=times)
    wanted = np.arange(3).astype(float)
    expected = [int(np.searchsorted(times, t + 6e-4, side="right") - 1) % 25 for t in wanted]
    assert numbers(path, FrameSampling()) == expected
    assert expected != [0, 25 % 25, 50 % 25]


@ONE_READER
def test_whole_seconds_equal_ffmpegs_own_filter(folder):
    import av

    for fps in (24, 25, Fraction(30000, 1001), 60):
        path = write_video(folder / f"filter{float(fps):.0f}.mp4", grey_frames(40), fps=fps)
        graph = av.filter.Graph()
        with av.open(str(path)) as container:
            source = graph.add_buffer(template=container.streams.video[0])
            chain = (source, graph.add("fps", "30"), graph.add("buffersink"))
            graph.link_nodes(*chain).configure()
            for frame in container.decode(video=0):
                graph.push(frame)
            graph.push(None)
        expected = []
        while True:
            try:
                expected.append(number_of(graph.pull().to_ndarray(format="rgb24")))
            except (av.error.EOFError, av.error.BlockingIOError):
                break
        sampling = FrameSampling("whole_seconds", None, rate=30)
        with open_video(path) as video:
            times = sampling.times(video.duration, video.fps, video.total)
            found = [number_of(frame) for frame in video.frames(times)]
        assert found == expected, fps
        assert (len(found) + sampling.missing_frames(times)) % 30 == 0


@ONE_READER
def test_a_part_of_a_video(mp4):
    assert numbers(mp4, FrameSampling(start=1, end=2)) == [20, 40 % 25]
    assert numbers(mp4, FrameSampling("segments", 2, start=1, end=2)) == [24, 34 % 25]
    with pytest.raises(ValueError, match=r"start: 9 s, but the video ends at 3.000 s"):
        read_video(mp4, FrameSampling(start=9))


def test_transformers_loader_takes_the_rule(mp4):
    from transformers.video_utils import load_video

    frames, metadata = load_video(str(mp4), backend="pyav", sample_indices_fn=FrameSampling())
    assert [number_of(frame) for frame in frames] == numbers(mp4, FrameSampling())
    assert list(metadata.frames_indices) == [0, 20, 40]


# ---- little work


def test_ten_hours_are_jumped_through(folder):
    path = write_long_video(folder / "long.mp4", hours=10)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with open_video(path) as video:
        assert video.duration == pytest.approx(36_000) and video.total == 72_000
        frames, metadata = video.read(FrameSampling())
        assert video.decoded <= 12 * 2 * 25  # twice each group of key frames, not 72,000 frames
    assert [number_of(frame) for frame in frames] == [number % 25 for number in metadata.frames_indices]
    assert metadata.frames_indices[-1] == 2 * 35_999 and time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_near_frames_are_decoded_once(mp4):
    with open_video(mp4) as video:
        assert len(list(video.frames(np.arange(60) / 20))) == 60
        assert video.decoded <= 60 + 12


@ONE_READER
def test_times_need_not_rise(mp4):
    with open_video(mp4) as video:
        assert [number_of(frame) for frame in video.frames([2.0, 0.0, 2.5, 1.0])] == [15, 0, 0, 20]


def test_workers_read_ahead_in_order_and_not_too_far(mp4):
    read, threads = [], set()

    def one(number):
        read.append(number)
        threads.add(threading.current_thread().name)
        return number, numbers(mp4, FrameSampling())

    results = read_ahead(iter(range(9)), one, workers=2)
    assert next(results) == (0, [0, 20, 15]) and len(read) <= 4
    assert [number for number, _ in results] == list(range(1, 9)) and len(threads) == 2
    with pytest.raises(ValueError, match="no such file: 'missing.mp4'"):
        list(read_ahead(["missing.mp4"], read_video, workers=1))


# ---- odd videos


@ONE_READER
def test_rotation_is_applied(folder):
    left_dark = [np.concatenate([np.zeros((32, 24, 3), np.uint8), np.full((32, 24, 3), 255, np.uint8)], 1)] * 3
    path = turn_clockwise(write_video(folder / "turned.mp4", left_dark))
    frames, metadata = read_video(path, ALL)
    pixels = np.asarray(frames[0])
    assert frames[0].size == (32, 48) == (metadata.width, metadata.height)
    assert pixels[:16].mean() < 10 and pixels[-16:].mean() > 245  # what was left is above


@ONE_READER
def test_silent_sound_changes_nothing(folder):
    path = write_video(folder / "silent.mp4", grey_frames(30), silence=True)
    assert numbers(path) == [k % 25 for k in range(30)]


@ONE_READER
def test_one_frame(folder):
    path = write_video(folder / "one.mp4", grey_frames(1))
    for sampling in (FrameSampling(), ALL, FrameSampling("whole_seconds", None, rate=30)):
        assert set(numbers(path, sampling)) == {0}
    assert numbers(path, FrameSampling("segments", 4)) == [0, 0, 0, 0]
    assert numbers([grey_frames(1)[0]], FrameSampling()) == [0]


def test_a_file_that_is_cut_off_gives_its_beginning_and_a_warning(folder, reader):
    path = write_video(folder / "whole.mkv", grey_frames(100), fps=25)
    content = path.read_bytes()
    if reader is container_files.TorchcodecVideo:  # it does not tell how long the header says that the video is
        assert numbers(content[: len(content) // 2], FrameSampling()) == [0, 0]
        return
    with pytest.warns(UserWarning, match=r"says that it lasts 4.00 s, .* 2 of 4 frames are used"):
        assert numbers(content[: len(content) // 2], FrameSampling()) == [0, 0]


def test_transparent_animations_are_put_on_white(folder):
    frames = [PIL.Image.new("RGBA", (8, 8), (255, 0, 0, alpha)) for alpha in (255, 0)]
    frames[0].save(folder / "clear.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    found, _ = read_video(folder / "clear.webp", ALL)
    assert [frame.getpixel((0, 0)) for frame in found] == [(255, 0, 0), (255, 255, 255)]


def test_a_frame_of_a_damaged_gif_that_reaches_over_the_others_is_cut():
    file, frames = io.BytesIO(), [PIL.Image.fromarray(frame) for frame in grey_frames(3)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    content = bytearray(file.getvalue())
    content[content.rindex(b"\x2c\0\0\0\0\x30\0\x20\0") + 1] = 128  # where the last frame begins
    with PIL.Image.open(io.BytesIO(content)) as image:
        image.seek(2)
        assert image.size == (176, 32)
    found, _ = read_video(bytes(content), ALL)
    assert [frame.size for frame in found] == [(48, 32)] * 3


@ONE_READER
@pytest.mark.parametrize(
    "source, message",
    [
        (b"", "empty file"),
        (b"not a video" * 100, "not a video that can be read, or cut off"),
        (b"GIF89a", "truncated or corrupt animation"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video"),
        ("missing.mp4", "no such file: 'missing.mp4'"),
        ([], "video has no frames"),
        (np.zeros((0, 8, 8, 3), np.uint8), "video has no frames"),
        (np.zeros((8, 8, 3), np.uint8), "shape \\(8, 8, 3\\), expected \\(T, H, W, 3\\)"),
        ([np.zeros((8, 8, 3), np.uint8), b"broken"], "frame 1: not an image"),
        (7, "got int, expected a path"),
    ],
)
def test_what_is_no_video_is_said(source, message):
    with pytest.raises(ValueError, match=message):
        read_video(source, ALL)


def test_files_without_pictures_are_said(folder, mp4):
    import av

    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        samples.sample_rate = 16000
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"no video stream in .*sound.mp4', only audio"):
        read_video(folder / "sound.mp4")
    with pytest.raises(ValueError, match="not a video that can be read, or cut off"):  # its index is at its end
        read_video(mp4.read_bytes()[:400])
    content = mp4.read_bytes()
    name = next(one for one in (b"avc1", b"mp4v", b"hev1") if one in content)
    with pytest.raises(ValueError, match="no decoder for its pictures"):
        read_video(content.replace(name, b"zzzz"))
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="no frames in folder"):
        read_video(folder / "empty")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rule": "random"}, "rule: 'random', expected one of per_second"),
        ({"rule": "segments", "num_frames": None}, "num_frames: None, expected the number of segments"),
        ({"num_frames": 0}, "num_frames: 0"),
        ({"rate": -1.0}, "rate: -1.0"),
        ({"keep": "middle"}, "keep: 'middle'"),
        ({"start": 3, "end": 2}, "start, end: 3, 2"),
        ({"start": float("inf")}, "start, end: inf, None"),
        ({"start": "3"}, "start: '3', expected a number or None"),
        ({"position": "x"}, "position: 'x', expected a number"),
        ({"rate": 1e9}, "rate: 1000000000.0, expected a number > 0, at most 1000"),
        ({"seed": 2**32}, "seed: 4294967296, expected a whole number in 0..4294967295"),
        ({"frame_numbers": "no"}, "frame_numbers: 'no', expected True or False"),
        ({"rule": "segments", "num_frames": 10**9}, "num_frames: 1000000000, expected at most 10000 segments"),
    ],
)
def test_wrong_rules_are_said(options, message):
    with pytest.raises(ValueError, match=message):
        FrameSampling(**options)


def test_too_many_frames_are_said_before_memory_is_asked_for():
    for sampling, seconds in ((FrameSampling(num_frames=None, rate=1000), 1e6), (FrameSampling(rate=None), 3e9)):
        sampling = FrameSampling(**vars(sampling) | {"num_frames": None})
        with pytest.raises(ValueError, match="choose .* frames of one video, expected at most 30000000; want a lower"):
            sampling.times(seconds, 25.0)
    official = FrameSampling(frame_numbers=True)
    assert official.frames(7, fps=1e9).tolist() == [0]
    assert FrameSampling(frame_numbers=True, end=10**15).frames(70, fps=25).tolist() == [0, 25, 50]
    with pytest.raises(ValueError, match="start: 9 s, but the video ends at 2.800 s"):
        FrameSampling(frame_numbers=True, start=9).frames(70, fps=25)
    for fps in (0, -1, True, "x", float("nan"), 10**30):
        with pytest.raises(ValueError, match="fps: .*, expected a number > 0"):
            official.frames(7, fps=fps)


def test_an_error_does_not_depend_on_what_else_is_open(folder):
    (folder / "cut.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    said = []
    with (folder / "cut.mp4").open("rb"):
        for _ in range(2):
            with pytest.raises(ValueError, match="not a video that can be read") as error, open(folder / "cut.mp4"):
                read_video(folder / "cut.mp4")
            said.append(str(error.value))
        with pytest.raises(ValueError) as error:
            read_video(folder / "cut.mp4")
    assert {*said, str(error.value)} == {said[0]}


def test_frames_without_times_need_a_rate_where_seconds_count():
    with pytest.raises(ValueError, match="fps: got none for frames without times"):
        read_video(grey_frames(3), FrameSampling("whole_seconds", None, rate=30))
    assert numbers(grey_frames(9), FrameSampling(num_frames=3)) == [0, 4, 8]
