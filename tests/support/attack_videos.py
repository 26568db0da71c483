"""Attacks on videos: files, lists and folders of frames, rules that choose frames, processors, pipelines.

What is right: frames that show the number which they should, pixels that each frame has alone, probabilities, scores
and segments within the video; or ValueError names the argument, the file or the video.
"""

import functools
import io
import itertools
import math
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from actionclip_runs import actionclip_model
from attack_cases import WRONG, Case
from attack_prompts import ODD
from attack_texts import _text
from clip4clip_runs import clip4clip_model
from tiny import tiny_tokenizer
from transformers import pipeline
from video_anomaly_clip_runs import video_anomaly_model
from videos import grey_frames, number_of, turn_clockwise, write_video

from hf_clip_variants import CLIPClassifierImageProcessor, CLIPClassifierProcessor, VideoTextProcessor
from hf_clip_variants.modeling.video.frame_sampling import FrameSampling
from hf_clip_variants.modeling.video.video_decoding import frame_files, open_video, read_video
from hf_clip_variants.modeling.video.video_processing import CLIPVideoProcessor


KIND = "videos"
NUMBERS = (math.nan, math.inf, -math.inf, -1, 0, 1, 2, 2.5, 1e-9, 1e9, 10**30, -(10**30), True, "3", None, [], "x")
STRANGE = (*NUMBERS, {}, object(), b"x", torch.tensor(2), np.float32(3), Fraction(1, 3))
RATES = (5, 10, 24, Fraction(30000, 1001), 30)
ALL = FrameSampling(rate=None, num_frames=None)
SIZES = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}

Attack = tuple[str, Callable[[], object], tuple[str, ...]]


def _quiet(run: Callable[[], object]) -> Callable[[], object]:
    def quiet():
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return run()

    return quiet


def _shown(value: object) -> str:
    if hasattr(value, "dtype"):
        return f"{type(value).__name__} {tuple(value.shape)} {value.dtype}"
    return ascii(" ".join(f"{value}".split())[:60])


# ---- files


@functools.cache
def _files() -> list[tuple[str, bytes]]:
    """Whole videos of 20 frames in several containers, as bytes."""
    import tempfile

    found = []
    with tempfile.TemporaryDirectory() as place:
        for number, (suffix, rate) in enumerate(zip((".mp4", ".mkv", ".webm", ".avi"), RATES, strict=False)):
            found.append((suffix, write_video(Path(place, f"{number}{suffix}"), grey_frames(20), rate).read_bytes()))
        times = np.cumsum([0, *np.tile([0.02, 0.1, 0.04, 0.08], 5)])[:20]
        made = write_video(Path(place, "variable.mp4"), grey_frames(20), times=times)
        found.append((".mp4", made.read_bytes()))
        silent = write_video(Path(place, "silent.mp4"), grey_frames(20), 10, silence=True)
        found += [(".mp4", silent.read_bytes()), (".mp4", turn_clockwise(silent).read_bytes())]
        for kind in ("GIF", "WEBP", "PNG"):
            images, file = [PIL.Image.fromarray(one) for one in grey_frames(20)], io.BytesIO()
            lossless = {"lossless": True} if kind == "WEBP" else {}
            images[0].save(file, kind, save_all=True, append_images=images[1:], duration=100, **lossless)
            found.append((f".{kind.lower()}", file.getvalue()))
    return found


def _damaged(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    data, size = bytearray(content), len(content)
    how = rng.choice(["cut", "flip", "flip", "zeros", "noise", "twice", "other head", "header", "none"])
    if how == "cut":
        del data[rng.randrange(size) :]
    elif how == "flip":
        for _ in range(rng.choice([1, 3, 30])):
            data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif how in ("zeros", "noise"):
        start = rng.randrange(size)
        length = min(rng.choice([4, 64, 2000]), size - start)
        data[start : start + length] = bytes(length) if how == "zeros" else rng.randbytes(length)
    elif how == "twice":
        data += content[rng.randrange(size) :]
    elif how == "other head":
        data[: rng.choice([4, 16, 100])] = rng.choice(_files())[1][: rng.choice([4, 16, 100])]
    elif how == "header":  # of all numbers of four bytes, those behind the names of boxes say sizes and times
        names = [b"mvhd", b"mdhd", b"tkhd", b"stts", b"stsz", b"stco", b"avc1", b"elst", b"ctts", b"\x44\x89", b"avih"]
        places = [data.find(name) for name in names if name in data] or [rng.randrange(size)]
        place = rng.choice(places) + rng.randrange(4, 32)
        data[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\0\0\0\1"])
    return how, bytes(data)


def files(rng: random.Random, folder: Path) -> Attack:
    suffix, content = rng.choice(_files())
    how, data = _damaged(rng, content)
    path = folder / f"video{rng.choice([suffix, suffix, '.mp4', '.bin'])}"
    source = rng.choice(["path", "bytes", "file", "cell"])
    rule = rng.choice([ALL, FrameSampling(), FrameSampling("segments", 4), FrameSampling("whole_seconds", None, 10)])

    def run():
        path.write_bytes(data)
        given = {"path": str(path), "bytes": data, "cell": {"bytes": None, "path": str(path)}}
        frames, metadata = read_video(given[source] if source != "file" else open(path, "rb"), rule)
        # Within a stream, the size may change.
        if (how == "none" and len({frame.size for frame in frames}) != 1) or not all(
            frame.mode == "RGB" for frame in frames
        ):
            return f"{WRONG}frames of { ({(frame.size, frame.mode) for frame in frames}) }"
        found = [number_of(frame) for frame in frames]  # from its grey, which a codec may change a little
        if how == "none" and rule is ALL and [n for n, one in enumerate(found) if abs(n - one) < 2] != [*range(20)]:
            return f"{WRONG}frames {found}"
        if len(metadata.frames_indices) != len(frames):
            return f"{WRONG}{len(metadata.frames_indices)} numbers of {len(frames)} frames"
        return True

    return f"{suffix}, {how}, as {source}, {rule.rule}", _quiet(run), (str(path), "video", "file", "animation")


# ---- rules


def _of_rules(rng: random.Random) -> dict[str, object]:
    right = {
        "rule": rng.choice(["per_second", "segments", "whole_seconds"]), "num_frames": rng.choice([1, 4, 12, None]),
        "rate": rng.choice([1, 2.5, 30, None]), "keep": rng.choice(["uniform", "first", "last"]),
        "start": rng.choice([None, None, 0, 0.7]), "end": rng.choice([None, None, 1.5, 100]),
        "frame_numbers": rng.random() < 0.2, "seed": rng.choice([None, None, 3]), "position": rng.choice([0.5, 0.2]),
    }  # fmt: skip
    if rng.random() < 0.6:
        name = rng.choice(sorted(right))
        right[name] = rng.choice([*STRANGE, 2**32, -(2**40), 10**7])
    return right


def rules(rng: random.Random, folder: Path) -> Attack:
    options = _of_rules(rng)
    total, fps = rng.choice([1, 2, 7, 100, 300_000]), rng.choice([5.0, 24.0, 30000 / 1001, 1000.0, 0.01])

    def run():
        rule = FrameSampling(**options)
        with_rate, times = rule.frames(total, fps), rule.times(total / fps, fps, total)
        if not len(times) or not np.isfinite(times).all() or (np.diff(times) < 0).any() or times[0] < 0:
            return f"{WRONG}times {times[:5]}"
        if with_rate.dtype.kind != "i" or not len(with_rate) or with_rate.min() < 0 or with_rate.max() >= total:
            return f"{WRONG}frames {with_rate[:5]}"
        if rule.num_frames is not None and max(len(times), len(with_rate)) > rule.num_frames:
            return f"{WRONG}{len(times)} times, {len(with_rate)} frames, at most {rule.num_frames}"
        if rule.rule == "segments" and not len(times) == len(with_rate) == rule.num_frames:
            return f"{WRONG}{len(times)} times for {rule.num_frames} segments"
        if times[-1] > total / fps + 1e-6:
            return f"{WRONG}time {times[-1]} behind the end {total / fps}"
        return True

    shown = ", ".join(f"{name}={_shown(value)}" for name, value in options.items() if value is not None)
    return f"{shown}, {total} frames, {fps:.4g} a second", _quiet(run), (*options, "start, end")


def times(rng: random.Random, folder: Path) -> Attack:
    """The frames that a rule chooses of a file are those that are shown then."""
    rate = rng.choice(RATES)
    count, suffix = rng.randint(1, 24), rng.choice([".mp4", ".mkv", ".avi"])
    path = folder / f"timed{suffix}"
    wanted = sorted(rng.uniform(0, count / float(rate)) for _ in range(6))

    def run():
        write_video(path, grey_frames(count), rate, gop=rng.choice([1, 5, 50]))
        with open_video(path) as video:
            found = [number_of(frame) for frame in video.frames(wanted)]
        near = [{min(int((t + e) * rate), count - 1) for e in (2e-3, -2e-3)} for t in wanted]
        if not all(one in some for one, some in zip(found, near, strict=True)):
            return f"{WRONG}frames {found} at {wanted}"
        with open_video(path) as video:
            every = [number_of(frame) for _, frame in video.all_frames()]
        return True if every == list(range(count)) else f"{WRONG}all frames {every}"

    return f"{count} frames, {float(rate):.4g} a second, {suffix}", _quiet(run), (str(path), "video")


# ---- lists and folders of frames, processors


def _frame(rng: random.Random, size: tuple[int, int]):
    noise = np.random.default_rng(rng.randrange(10**6)).integers(0, 256, (*size[::-1], 3), np.uint8)
    if rng.random() < 0.8:
        return rng.choice([noise, PIL.Image.fromarray(noise), torch.from_numpy(noise).movedim(-1, 0)])
    return rng.choice(
        [PIL.Image.fromarray(noise).convert(mode) for mode in ("L", "RGBA", "P", "1", "CMYK", "I")]
        + [
            noise[..., :1],
            noise[..., 0],
            noise[..., :2],
            noise[:0],
            noise / 255.0,
            noise.astype(np.int64),
            noise * 1.0,
        ]
        + [noise * math.nan, noise.astype(object), None, "x.png", b"x", 3, [noise], {}, np.zeros((8, 8, 5), np.uint8)]
    )


@functools.cache
def _processor() -> CLIPVideoProcessor:
    return CLIPVideoProcessor(**SIZES, num_frames=4)


def frames(rng: random.Random, folder: Path) -> Attack:
    """Each frame has the pixels that it has alone."""
    size = rng.choice([(30, 24), (24, 60), (1, 1), (25, 400)])
    form = rng.choice(["list", "list", "tuple", "array", "several", "nested", "folder", "generator", "set"])
    one = [_frame(rng, size) for _ in range(rng.choice([0, 1, 2, 4, 9]))]
    if form in ("array", "folder"):
        one = list(np.random.default_rng(rng.randrange(99)).integers(0, 256, (len(one), *size, 3), np.uint8))
    metadata = rng.choice([None, None, [{"fps": 10}], [{"fps": rng.choice(STRANGE)}], rng.choice(STRANGE), [{}], [3]])

    def run():
        given: object = one
        if form == "array":
            given = np.stack(one) if one else np.zeros((0, *size, 3), np.uint8)
        elif form == "tuple":
            given = tuple(one)
        elif form in ("several", "nested"):
            given = [one, one] if form == "several" else [[one], one]
        elif form in ("generator", "set"):
            given = (frame for frame in one) if form == "generator" else {1, 2}
        elif form == "folder":
            place = folder / "frames"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            for number, frame in enumerate(one):
                PIL.Image.fromarray(frame).save(place / f"frame {number}.png")
            given = str(place)
        count = 2 if form in ("several", "nested") else 1
        rates = metadata * count if isinstance(metadata, list) and metadata else metadata
        found = _processor()(given, video_metadata=rates, return_tensors="pt")
        pixels, mask = found["pixel_values_videos"], found["video_mask"]
        if len(pixels) != count or not pixels.isfinite().all() or tuple(pixels.shape[2:]) != (3, 24, 24):
            return f"{WRONG}{list(pixels.shape)}, or not finite"
        if metadata is None:
            chosen = FrameSampling(num_frames=4).frames(len(one))
            images, expected = _processor().frame_processor(), []
            for number in chosen:
                # Of 1 x 1 pixels and two channels only the first axis can be that of channels.
                last = isinstance(one[number], np.ndarray) and one[number].shape[-1] in (1, 3, 4)
                arrays = {"input_data_format": "channels_last"} if last else {}
                expected.append(images.preprocess([one[number]], return_tensors="pt", **arrays)["pixel_values"])
            if not torch.allclose(pixels[0][mask[0].bool()], torch.cat(expected), atol=1e-5):
                return f"{WRONG}other pixels than alone"
        elif isinstance(metadata, list) and metadata and isinstance(metadata[0], dict) and "fps" in metadata[0]:
            fps = metadata[0]["fps"]
            if fps is not None and not (isinstance(fps, int | float | np.floating | Fraction) and 0 < fps < math.inf):
                return f"{WRONG}accepted fps {fps!r}"
        return True

    kinds = ", ".join(sorted({type(frame).__name__ for frame in one}))
    named = ("videos", "video_metadata", "fps", "frame")
    return f"{form} of {len(one)} {kinds}, {size}, {_shown(metadata)}", _quiet(run), named


def folders(rng: random.Random, folder: Path) -> Attack:
    """Frames in the order of the numbers in their names; what is no frame is left out."""
    place, count = folder / "numbered", rng.randint(1, 23)
    pattern = rng.choice(["{}", "frame_{}", "{:03d}", "a{}b", "0{}", "é {} ü", "x-{}.5"])
    others = rng.sample(["notes.txt", ".hidden.png.part", "clip.mp4", "Thumbs.db", "a.json"], rng.randint(0, 3))
    bad = rng.random() < 0.25
    chosen = rng.randrange(count)

    def run():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        order = list(range(count))
        rng.shuffle(order)
        made = grey_frames(count)
        for number in order:
            PIL.Image.fromarray(made[number]).save(place / f"{pattern.format(number)}.png")
        for name in others:
            (place / name).write_bytes(b"no frame")
        (place / "sub.png").mkdir()
        if bad:
            (place / f"{pattern.format(chosen)}.png").write_bytes(b"\x89PNG no more")
        if len(frame_files(place)) != count:
            return f"{WRONG}{len(frame_files(place))} files of {count}"
        found = [number_of(frame) for frame in read_video(str(place), ALL)[0]]
        if bad:
            return f"{WRONG}a broken frame was read"
        return True if found == list(range(count)) else f"{WRONG}frames {found}"

    return f"{count} of {pattern}, {len(others)} others, {bad}", _quiet(run), ("frame", str(place))


def processors(rng: random.Random, folder: Path) -> Attack:
    """Options of a processor, or of its call."""
    names = [
        "sampling_rule",
        "num_frames",
        "fps",
        "keep_frames",
        "frame_numbers",
        "sampling_seed",
        "num_clips",
        "start",
    ]
    names += ["num_crops", "end", "do_sample_frames", "do_resize", "size", "resample", "do_center_crop", "crop_size"]
    names += ["do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_pad", "workers"]
    names += ["max_pixels", "background", "resample_backend", "return_metadata", "video_metadata", "colour"]
    right = {
        "sampling_rule": ["segments", "whole_seconds"], "keep_frames": ["first", "last"], "num_crops": [1, 3],
        "num_clips": [1, 2], "image_mean": [[0.5] * 3, [0.5], 0.5, [math.nan] * 3], "image_std": [[0] * 3, [1.0] * 3],
        "size": [{"shortest_edge": 30}, {"height": 3, "width": 99}, 5, {"shortest_edge": 0}, {"shortest_edge": 10**9}],
        "crop_size": [{"height": 3, "width": 99}, 7, {"height": 0, "width": 4}, {"height": 10**9, "width": 10**9}],
        "background": [(0, 0, 0), [1, 2], "red", (300, 0, 0)], "resample_backend": ["pil", "cv"], "resample": [0, 77],
        "rescale_factor": [1 / 255, math.nan, 0], "max_pixels": [1, 10**9],
    }  # fmt: skip
    options = {}
    at_once = rng.random() < 0.5
    strange = NUMBERS if at_once else STRANGE  # a file holds JSON
    for name in rng.sample(names, rng.choice([1, 1, 2])):
        options[name] = rng.choice(right[name] if name in right and rng.random() < 0.5 else strange)
    video = np.random.default_rng(rng.randrange(99)).integers(0, 256, (9, 30, 40, 3), np.uint8)

    def run():
        if at_once:
            processor = CLIPVideoProcessor(**SIZES | options)
            processor.save_pretrained(folder / "processor")
            again = CLIPVideoProcessor.from_pretrained(folder / "processor")
            found = processor(video, return_tensors="pt")
            other = again(video, return_tensors="pt")
            if not torch.equal(found["pixel_values_videos"], other["pixel_values_videos"]):
                return f"{WRONG}other pixels after saving and loading"
        else:
            found = _processor()(video, return_tensors="pt", **options)
        pixels, mask = found["pixel_values_videos"], found["video_mask"]
        if not pixels.isfinite().all() or not pixels.numel():
            return f"{WRONG}{list(pixels.shape)}, or not finite"
        if mask.shape != pixels.shape[: mask.dim()] or not (mask.sum(-1) > 0).all():
            return f"{WRONG}mask {list(mask.shape)} of {list(pixels.shape)}"
        return True

    shown = ", ".join(f"{name}={_shown(value)}" for name, value in options.items())
    named = (*options, "fps", "num_frames", "sampling_rule", "size", "option")
    return f"{'made' if at_once else 'called'} with {shown}", _quiet(run), named


# ---- pipelines


@functools.cache
def _clip_processor() -> VideoTextProcessor:
    clip = CLIPClassifierProcessor(CLIPClassifierImageProcessor(**SIZES), tiny_tokenizer())
    return VideoTextProcessor.from_clip(clip, num_frames=4)


@functools.cache
def _pipe(which: str):
    if which == "anomalies":
        clip = CLIPClassifierProcessor(CLIPClassifierImageProcessor(**SIZES), tiny_tokenizer())
        processor = VideoTextProcessor.from_clip(clip, num_frames=None, fps=None)
        return pipeline("video-anomaly-detection", model=video_anomaly_model(), processor=processor)
    model = {"CLIP4Clip": clip4clip_model, "ActionCLIP": actionclip_model}[which]()
    return pipeline("zero-shot-video-classification", model=model, processor=_clip_processor())


def _video(rng: random.Random, folder: Path) -> tuple[str, Callable[[], object]]:
    kind = rng.choice(["array", "array", "file", "damaged", "odd", "list", "several"])
    noise = np.random.default_rng(rng.randrange(99)).integers(0, 256, (rng.randint(1, 9), 30, 40, 3), np.uint8)
    if kind in ("file", "damaged"):
        suffix, content = rng.choice(_files())
        _, data = _damaged(rng, content) if kind == "damaged" else ("", content)
        path = folder / f"piped{suffix}"

        def made():
            path.write_bytes(data)
            return str(path)

        return f"{kind} {suffix}", made
    value = {"array": noise, "list": list(noise), "several": [noise, noise[:1]]}.get(kind)
    if kind == "odd":
        value = rng.choice(
            [*ODD, None, noise[0], noise[:0], noise.astype(object), noise[..., :2], [[]], [None, noise]]
        )
    return f"{kind} {_shown(value) if kind == 'odd' else ''}", lambda: value


def labelled(rng: random.Random, folder: Path) -> Attack:
    """Free labels: probabilities, best first, the same in another order of labels."""
    which = rng.choice(["CLIP4Clip", "ActionCLIP"])
    shown, video = _video(rng, folder)
    labels: object = list(dict.fromkeys(_text(rng) for _ in range(rng.randint(1, 4))))
    options: dict[str, object] = {}
    roll = rng.random()
    if roll < 0.15:
        labels = rng.choice([*ODD, None, "a, b", ",", ["a", "a"], ["a", None], [3], "a", ("a", "b"), {"a": 1}])
    elif roll < 0.4:
        name = rng.choice(["hypothesis_template", "top_k", "batch_size", "num_frames", "fps", "start"])
        values = {"hypothesis_template": ["a {}.", ["{}", "a {}"], "none", "{} {}", "{0}", 3, [], [None]]}
        options[name] = rng.choice(values.get(name, STRANGE))
    several = "several" in shown

    def run():
        found = _pipe(which)(video(), candidate_labels=labels, **options)
        results = found if several or isinstance(found[0], list) else [found]
        for one in results:
            scores = [row["score"] for row in one]
            if scores != sorted(scores, reverse=True) or not all(0 <= s <= 1 + 1e-6 for s in scores):
                return f"{WRONG}scores {scores}"
            if "top_k" not in options and abs(sum(scores) - 1) > 1e-3:
                return f"{WRONG}scores add up to {sum(scores)}"
            if "top_k" in options and len(one) != min(options["top_k"] or len(one), len(labels)):
                return f"{WRONG}{len(one)} labels of top_k {options['top_k']}"
        if isinstance(labels, list) and not options and len(results[0]) == len(labels):
            again = _pipe(which)(video(), candidate_labels=labels[::-1])
            again = again[0] if isinstance(again[0], list) else again
            other = {row["label"]: row["score"] for row in again}
            if any(abs(other[row["label"]] - row["score"]) > 1e-4 for row in results[0]):
                return f"{WRONG}the order of labels matters"
        return True

    extra = ", ".join(f"{name}={_shown(value)}" for name, value in options.items())
    named = (
        "videos",
        "video",
        "candidate_labels",
        "templates",
        "template",
        "num_frames",
        "fps",
        *options,
        str(folder),
    )
    return f"{which}, {shown}, {_shown(labels)}, {extra}", _quiet(run), named


def abnormal(rng: random.Random, folder: Path) -> Attack:
    """A score for each frame, in 0..1, and segments within the video."""
    shown, video = _video(rng, folder)
    if rng.random() < 0.4:
        width, kind = rng.choice(
            [(24, "right"), (24, "values"), (23, "width"), (24, "scale"), (24, "file"), (24, "cut")]
        )
        features = np.random.default_rng(rng.randrange(99)).standard_normal((rng.randint(1, 40), width)) * 0.2
        features = features.astype(rng.choice([np.float16, np.float32, np.float64, np.int64, bool, complex, object]))
        if kind == "values":
            features = np.where(np.arange(len(features))[:, None] == 0, rng.choice([math.nan, math.inf, 0.0]), 0.2)
        elif kind == "scale":
            features = features * 10_000
        path, file = folder / "features.npy", kind in ("file", "cut")

        def video():
            if not file:
                return features
            np.save(path, features)
            content = path.read_bytes()
            path.write_bytes(content if kind == "file" else content[: rng.randrange(len(content))])
            return str(path)

        shown = f"features, {kind}, {_shown(features)}"
    options: dict[str, object] = {}
    if rng.random() < 0.5:
        name = rng.choice(["threshold", "frame_stride", "sample_fps", "fps", "class_scores", "batch_size"])
        options[name] = rng.choice(STRANGE)

    def run():
        given = video()
        found = _pipe("anomalies")(given, **options)
        for one in found if isinstance(found, list) else [found]:
            scores = np.array(one["scores"])
            if not len(scores) or not ((scores >= 0) & (scores <= 1)).all() or len(one["times"]) != len(scores):
                return f"{WRONG}scores {scores[:5]}"
            if any(not 0 <= s["start"] <= s["end"] or not 0 <= s["score"] <= 1 for s in one["segments"]):
                return f"{WRONG}segments {one['segments'][:3]}"
        return True

    extra = ", ".join(f"{name}={_shown(value)}" for name, value in options.items())
    named = ("videos", "video", "features", "frame ", "file", *options, str(folder))
    return f"{shown}, {extra}", _quiet(run), named


ATTACKS = (
    files, rules, frames, labelled, processors, files, abnormal, rules, folders, frames, times, processors,
)  # fmt: skip


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """For ever, every attack in turn."""
    rng = random.Random(f"{KIND} {seed}")
    for count in itertools.count():
        attack = ATTACKS[count % len(ATTACKS)]
        name, run, named = attack(random.Random(rng.random()), folder)
        yield Case(KIND, f"{count} {attack.__name__}, {name}", run, named)


__all__ = ["KIND", "cases"]
