"""Folders of pictures, videos and sounds to be indexed, and what tests ask about an index."""

import wave
from pathlib import Path

import numpy as np
from few_shot_runs import CONCEPTS, save_images
from PIL import Image
from videos import grey_frames, write_video


NAMES = tuple(f"pictures/{concept}/notov1.png" for concept in sorted(CONCEPTS))


def save_pictures(folder: Path) -> Path:
    """folder/pictures/<concept>/notov1.png"""
    save_images(folder, {"pictures": ["notov1"]})
    return folder


def save_sound(path: Path, seconds: float, rate: int = 8000, pitch: float = 440) -> Path:
    """A tone in a WAV file, mono, 16 bit."""
    samples = (8000 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype("<i2")
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def save_media(folder: Path) -> Path:
    """Pictures, a video of 3 s, one of a single frame, an animation of 2 s and two sounds."""
    save_pictures(folder)
    write_video(folder / "long.mp4", grey_frames(60), fps=20)
    write_video(folder / "single.mp4", grey_frames(1), fps=20)
    frames = [Image.fromarray(frame) for frame in grey_frames(20)]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    save_sound(folder / "sounds" / "short.wav", 0.1)
    save_sound(folder / "sounds" / "long.wav", 0.6, pitch=880)
    return folder


def folder_content(folder: Path) -> dict[str, bytes]:
    """Every file of an index, byte by byte."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
