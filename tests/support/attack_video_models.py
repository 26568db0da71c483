"""Attacks on models of videos: their forwards, what is asked about seconds, segments of scores, names of anomalies.

What is right: answers of the right shapes, finite, the same alone and beside others; or ValueError names the argument
or the weight.
"""

import copy
import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from actionclip_runs import actionclip_batch, actionclip_classifier, actionclip_model
from attack_cases import WRONG, Case
from attack_prompts import ODD, _ways, _weight
from attack_texts import _text
from attack_videos import STRANGE, Attack, _quiet, _shown
from clip4clip_runs import clip4clip_batch, clip4clip_model
from tiny import tiny_tokenizer
from video_anomaly_clip_runs import feature_batch, video_anomaly_batch, video_anomaly_model
from videoclip_runs import tiny_processor, videoclip_features, videoclip_frames, videoclip_model

from hf_clip_variants.evaluation import video_moments
from hf_clip_variants.modeling.video.anomaly_segments import anomaly_segments


KIND = "video_models"

# ---- forwards

_VIDEOS = ("pixel_values_videos", "video_mask")


def _makers() -> dict[str, tuple[Callable, Callable]]:
    heads = ("meanP", "LSTM", "Conv_1D", "Transf", "Transf_cls")
    made: dict[str, tuple[Callable, Callable]] = {
        f"ActionCLIP {head}": (functools.partial(actionclip_model, fusion_head=head), actionclip_batch)
        for head in heads
    }
    made["ActionCLIP shift"] = functools.partial(actionclip_model, visual_prompt="shift"), actionclip_batch
    joint = functools.partial(actionclip_model, visual_prompt="joint", fusion_head="meanP")
    made["ActionCLIP joint"] = joint, actionclip_batch
    made["ActionCLIP classes"] = actionclip_classifier, _class_batch
    made["CLIP4Clip"] = clip4clip_model, clip4clip_batch
    made["VideoCLIP features"] = videoclip_model, videoclip_features
    made["VideoCLIP frames"] = videoclip_model, videoclip_frames
    made["anomalies"] = video_anomaly_model, video_anomaly_batch
    made["anomalies, features"] = video_anomaly_model, feature_batch
    return made


def _class_batch(count: int) -> dict[str, torch.Tensor]:
    return {name: one for name, one in actionclip_batch(count).items() if name != "input_ids"}


MODELS = _makers()
_SCORES = ("loss", "logits", "logits_per_video", "logits_per_text", "scores", "class_probs", "video_embeds")


def forwards(rng: random.Random, folder: Path) -> Attack:
    """One argument, or one weight."""
    which = rng.choice(sorted(MODELS))
    make, batch = MODELS[which]
    model, given = make(), batch(2)
    right = {name: one for name, one in given.items() if isinstance(one, torch.Tensor)}
    wrong = {name: (*ODD, None, *_ways(one, rng)) for name, one in right.items()}
    if "video_mask" in right:
        mask = right["video_mask"]
        wrong["video_mask"] = (*wrong["video_mask"], mask[:, :1], mask * 3, mask.flip(1), mask * 0, mask - 2)
    if "pixel_values_videos" in right:
        pixels = right["pixel_values_videos"]
        wrong["pixel_values_videos"] = (
            *wrong["pixel_values_videos"], pixels[:, :, :1], pixels[..., :3], pixels[:, :0], pixels[:, 0],
            pixels.flatten(0, 1), pixels.half(), pixels.byte(), pixels + 300,
        )  # fmt: skip
    named: tuple[str, ...]
    if rng.random() < 0.2:
        model, weight, name, value = _weight(model, rng)
        named = (weight, "overflow", "not finite", "numbers", "NaN")
    else:
        name = rng.choice(sorted(wrong))
        given[name] = value = rng.choice(wrong[name])
        named = (name, "return_loss", *(["video_mask", "labels"] if name in ("pixel_values_videos", "labels") else []))
        named += ("video_mask", "labels") if name == "video_features" else ()
        named += ("pixel_values_videos", "video_features") if value is None else ()
        named += ("input_ids",) if name == "attention_mask" else ()

    def run():
        with torch.inference_mode():
            found = model(**given)
        tensors = {key: found.get(key) for key in _SCORES if found.get(key) is not None}
        if bad := [key for key, one in tensors.items() if not one.isfinite().all()]:
            return f"{WRONG}{bad} are not finite"
        if not tensors:
            return f"{WRONG}no answer"
        return True

    return f"{which}, {name} = {_shown(value)}", _quiet(run), named


def alone(rng: random.Random, folder: Path) -> Attack:
    """A video beside longer ones has the scores that it has alone, whatever stands in frames that are not there."""
    which = rng.choice([name for name in sorted(MODELS) if "classes" not in name])
    make, batch = MODELS[which]
    model, given = make(), batch(3)
    name = "pixel_values_videos" if "pixel_values_videos" in given else "video_features"
    given.pop("labels", None)
    videos, most = given[name].clone(), given[name].shape[1]
    seconds = 4 if which == "VideoCLIP frames" else 1
    lengths = torch.tensor([rng.randint(1, most // seconds) * seconds for _ in range(3)])
    given["video_mask"] = (torch.arange(most) < lengths[:, None]).long()
    missing = given["video_mask"] == 0
    videos[missing] = fill = rng.choice([math.nan, math.inf, 1e30, 0.0])

    def run():
        with torch.inference_mode():
            together = model(**given | {name: videos})
            own = model(**given | {name: given[name][:1, : lengths[0]], "video_mask": None})
        for key in ("logits_per_video", "logits", "scores", "class_probs"):
            if together.get(key) is None:
                continue
            first, expected = together[key][:1], own[key]
            first = first[:, : expected.shape[1]]
            if not torch.allclose(first, expected, atol=1e-3, rtol=1e-3):
                return f"{WRONG}other {key} beside others: {(first - expected).abs().max()}"
        return True

    named = ("pixel_values_videos", "video_features", "video_mask")
    return f"{which}, lengths {lengths.tolist()}, {fill} behind", _quiet(run), named


def segments(rng: random.Random, folder: Path) -> Attack:
    """Scores that are given, as segments."""
    count = rng.choice([0, 1, 5])
    scores, probs = np.random.default_rng(rng.randrange(99)).random((2, count)).astype(np.float32)
    given = {
        "scores": scores, "class_probs": np.stack([1 - probs, probs], 1), "id2label": {0: "normal", 1: "fire"},
        "normal_id": 0, "threshold": rng.random(), "times": None, "end": None,
    }  # fmt: skip
    name = rng.choice(["scores", "class_probs", "threshold", "times", "end", "normal_id", "none"])
    values = [
        *STRANGE,
        scores[:-1],
        scores * math.nan,
        np.arange(count),
        -np.arange(count),
        scores[:, None],
        list(scores),
    ]
    if name != "none":
        given[name] = rng.choice(values)

    def run():
        found = anomaly_segments(**given)
        if name in ("scores", "class_probs") and not np.isfinite(np.asarray(given[name], np.float64)).all():
            return f"{WRONG}accepted NaN"
        bad = [one for one in found if not 0 <= one["start"] <= one["end"] or not math.isfinite(one["score"])]
        return f"{WRONG}{bad[:2]}" if bad else True

    return f"{name} = {_shown(given.get(name))}, {count} frames", _quiet(run), (name, "scores", "class_probs", "times")


# ---- seconds and texts


@functools.cache
def _loaded() -> video_moments.SecondsModel:
    return video_moments.SecondsModel(videoclip_model(), tiny_processor())


def moments(rng: random.Random, folder: Path) -> Attack:
    """Tasks on features of seconds."""
    generator = torch.Generator().manual_seed(rng.randrange(99))
    count, labels = rng.choice([1, 3, 8, 9, 40]), rng.choice([1, 2, 5])
    features, texts = torch.randn(count, 10, generator=generator), torch.randn(labels, 24, generator=generator)
    task = rng.choice(["score", "retrieve", "answer", "steps", "segments", "moments", "read", "encode"])
    option: dict[str, object] = {}
    if task == "retrieve" and rng.random() < 0.5:
        option = {"top": rng.choice(STRANGE)}
    elif task == "segments" and rng.random() < 0.6:
        option = {"threshold": rng.choice(STRANGE)}
    elif task == "moments" and rng.random() < 0.7:
        option = {rng.choice(["top", "chunk", "longest"]): rng.choice(STRANGE)}
    elif rng.random() < 0.4:
        features = rng.choice(_ways(features, rng))
    elif rng.random() < 0.2:
        texts = rng.choice(_ways(texts, rng))
    path = folder / "seconds.npy"

    def run():
        loaded, name = _loaded(), task
        if name == "read":
            np.save(path, np.asarray(features))
            found = video_moments.read_features(loaded, str(path))
            return True if found.isfinite().all() and found.shape[1] == 10 else f"{WRONG}{list(found.shape)}"
        if name == "encode":
            words = [rng.choice(["cat", "dog; owl", ";", "", " ", "cat " * 99, "\0", "猫"]) for _ in range(labels)]
            found = video_moments.encode(loaded, words)
            return True if found.isfinite().all() and len(found) == labels else f"{WRONG}{list(found.shape)}"
        if name in ("score", "retrieve", "answer"):
            scores = video_moments.score_videos(loaded, [features, features], texts)
            if not scores.isfinite().all() or list(scores.shape) != [2, len(texts)]:
                return f"{WRONG}{list(scores.shape)}, or not finite"
            if name == "answer":
                found = [one.score for one in video_moments.answer(scores[0])]
                return True if found == sorted(found, reverse=True) else f"{WRONG}order {found}"
            found = video_moments.retrieve(scores, **option) if name == "retrieve" else []
            return True if all(len(one) in (1, 2) for one in found) else f"{WRONG}{found}"
        if name == "steps":
            rows = [video_moments.locate_steps(loaded, features, texts, rng.random() < 0.5)]
        elif name == "segments":
            rows = [video_moments.segment_video(loaded, features, texts, **option)]
        else:
            rows = video_moments.find_moments(loaded, features, texts, **option)
        for one in itertools.chain(*rows):
            if not 0 <= one.start < one.end <= len(features) or not math.isfinite(one.score):
                return f"{WRONG}{one}"
        threshold = option.get("threshold", 0)
        if isinstance(threshold, float) and math.isnan(threshold):
            return f"{WRONG}accepted NaN"
        return True

    shown = f"{task}, features {_shown(features)}, texts {_shown(texts)}"
    named = (*option, "features", "text_embeds", "texts", "labels", "logits", "windows", "threshold", str(path))
    return f"{shown}, {', '.join(f'{k}={_shown(v)}' for k, v in option.items())}", _quiet(run), named


def names(rng: random.Random, folder: Path) -> Attack:
    """Anomalies as texts."""
    given: object = list(dict.fromkeys(_text(rng) for _ in range(rng.randint(1, 4))))
    if rng.random() < 0.2:
        given = rng.choice([*ODD, None, ["a", "a"], ["normal"], [None], "fire", ("a", "b"), {"a": 1}])
    options = {name: rng.choice(STRANGE) for name in ("normal_id", "normal") if rng.random() < 0.2}

    def run():
        model = copy.deepcopy(video_anomaly_model())
        model.set_anomalies(given, tiny_tokenizer(), **options)
        found = model(video_features=feature_batch(1)["video_features"])
        fine = found.class_probs.isfinite().all() and torch.allclose(found.class_probs.sum(-1), torch.ones(1, 6))
        counts = len(model.config.id2label), found.class_probs.shape[-1]
        return True if fine and counts[0] == counts[1] else f"{WRONG}{counts}"

    return f"{_shown(given)}, {options}", _quiet(run), ("names", *options)


ATTACKS = (forwards, moments, alone, forwards, segments, forwards, moments, names)


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """For ever, every attack in turn."""
    rng = random.Random(f"{KIND} {seed}")
    for count in itertools.count():
        attack = ATTACKS[count % len(ATTACKS)]
        name, run, named = attack(random.Random(rng.random()), folder)
        yield Case(KIND, f"{count} {attack.__name__}, {name}", run, named)


__all__ = ["KIND", "cases"]
