"""Videos made by PyAV, whose frames tell their number: frame k is grey of level `level_of(k)`."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np


STEP = 9  # levels between frames: more than what coding changes
CODECS = {".mp4": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4"}


def level_of(number: int) -> int:
    return 20 + STEP * (number % 25)


def number_of(frame) -> int:
    """The frame's number modulo 25."""
    return round((float(np.asarray(frame)[8:-8, 8:-8].mean()) - 20) / STEP)


def grey_frames(count: int, size: tuple[int, int] = (48, 32)) -> list[np.ndarray]:
    return [np.full((size[1], size[0], 3), level_of(k), np.uint8) for k in range(count)]


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    fps: float | Fraction = 25,
    times: Sequence[float] | None = None,
    gop: int = 12,
    silence: bool = False,
) -> Path:
    """Writes frames (H, W, 3) as a file; `times` in seconds instead of a constant rate."""
    import av

    fps = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", gop
        stream.codec_context.thread_count = 1
        if CODECS[path.suffix] == "libvpx-vp9":
            stream.options = {"deadline": "realtime", "cpu-used": "8"}
        if CODECS[path.suffix] == "mpeg4":
            stream.codec_context.qmax = 2
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("aac", rate=16000) if silence else None
        if sound is not None:
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            samples.sample_rate, samples.pts = 16000, 0
            container.mux(sound.encode(samples))
            container.mux(sound.encode(None))
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = number if times is None else round(times[number] * 1000)
            frame.time_base = 1 / fps if times is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_long_video(path: Path, hours: float, fps: int = 2, gop: int = 25) -> Path:
    """Hours of video in seconds: one group of `gop` frames is encoded, and its packets are written again and again."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, 0
        packets = [p for array in grey_frames(gop) for p in stream.encode(av.VideoFrame.from_ndarray(array, "rgb24"))]
        packets += stream.encode(None)
        facts = [(bytes(p), p.is_keyframe) for p in packets]
        for number in range(int(hours * 3600 * fps)):
            content, is_key = facts[number % gop]
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, fps)
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, is_key
            container.mux(packet)
    return path


def turn_clockwise(path: Path) -> Path:
    """Says in the header of an MP4 file that its frames are to be turned by 90 degrees clockwise to be shown."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    matrix = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    content[place : place + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(content)
    return path
