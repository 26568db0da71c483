"""`plan`: what `adapt` would do with its arguments, how long that takes and how much memory. Nothing is written."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from ..data.augmentation.views import AugmentedViews
from ..data.images.image_set import ImageSet
from ..evaluation.devices import choose_device
from ..evaluation.precision import reduce_precision
from ..evaluation.prediction import load_processor
from ..evaluation.video_features import with_mean_of_frames
from ..modeling.clip_classifier.modeling_clip_classifier import CLIPClassifier
from .drawn_views import DrawnViews, views_of_fit
from .fitting import apply_overrides
from .method import default_methods, few_shot_method
from .recipes import Recipe, recipe
from .runner import default_profile, duration, overrides_by_method
from .splits import divide, load_training


TIMED = 8  # images, and prompts, that the encoders are timed on
BACKWARD = 2  # a backward pass takes about twice as long as a forward pass


def plan(
    model: str | os.PathLike,
    data: str | Sequence[str],
    *,
    methods: Sequence[str] | None = None,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: Sequence[int] = (1, 2, 3),
    test_data: Mapping[str, str] | None = None,
    templates: str | Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    profile: str | None = None,
    benchmark: str | None = None,
    cache_features: bool = True,
    precision: str = "float32",
    reading: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Images, runs, and an estimate of time and memory, for the same arguments as [`adapt`].

    Images are drawn and checked as `adapt` does. Both encoders are timed on a few images and prompts, and the recipes
    say how often they run. The search of hyper-parameters is not counted, so the time is that of one fit a run; the
    memory is that of the largest batch, as PyTorch keeps it for the backward pass.

    Raises:
        ValueError, OSError: as `adapt`, for unsuitable arguments, data or models.
    """
    methods = list(default_methods() if methods is None else methods)
    by_method = overrides_by_method([few_shot_method(m).name for m in methods], overrides or {})
    train, validation = load_training(data, reading)
    division = divide(train, validation, data, dict(test_data or {}), shots, seeds, reading)
    shots, tests, draws = division.shots, division.test_sets, division.draws
    classifier = CLIPClassifier.from_pretrained(
        model, class_names=list(train.class_names), templates=templates, dtype=torch.float32
    )
    classifier = classifier.to(choose_device(device)).eval()
    profile = profile or default_profile(classifier)
    recipes = {
        (m, k): apply_overrides(few_shot_method(m), recipe(m, k, benchmark, profile), by_method[m])[0]
        for m in methods
        for k in shots
    }
    if train.videos:
        with_mean_of_frames(classifier)
    reduced = reduce_precision(classifier, precision)
    with nullcontext() if reduced is None else reduced.used():
        cost = _measure(classifier, load_processor(model), train.select(draws.rows[:TIMED]))
    classes = len(train.class_names)
    drawn, cached = DrawnViews(), [m for m in methods if cache_features and not _trains_images(m)]
    for m, (k, seed) in product(cached, draws.splits):
        if (values := recipes[m, k]).augmentation != "none":
            rows, on_split = draws.splits[k, seed].train, bool(validation and draws.splits[k, seed].validation)
            labels = torch.from_numpy(train.labels[list(rows)])
            drawn.add(values.augmentation, rows, views_of_fit(values, labels, seed, on_split, by_method[m]))
    tested = sum(len(each.images) for each in tests)
    encoded = len(draws.rows) + len(drawn) if cached else 0
    shared = (encoded + tested) * cost.seconds_per_image
    seconds = dict.fromkeys(methods, 0.0)
    memory = 0.0
    for (m, k), values in recipes.items():
        images = sum(len(draws.splits[k, seed].train) for seed in seeds)
        live = _trains_images(m) or not cache_features
        seconds[m] += _fit_seconds(m, values, images, classes, live, cost)
        seconds[m] += len(seeds) * tested * cost.seconds_per_image * _trains_images(m)
        memory = max(memory, _step_bytes(m, values, classes, cost))
    weights = sum(p.numel() * p.element_size() for p in classifier.parameters())
    features = 4 * classifier.config.projection_dim * (encoded + tested)
    return {
        "data": {
            "images": len(train),
            "videos": train.videos,
            "classes": classes,
            "class_names": list(train.class_names),
            "unreadable": [name for name, _ in draws.skipped],
            "validation_images": len(draws.validation_rows),
            "test_images": {each.name: len(each.images) for each in tests},
        },
        "methods": methods,
        "shots": list(shots),
        "seeds": list(seeds),
        "training_images": {str(k): len(draws.splits[k, seeds[0]].train) for k in shots},
        "runs": len(methods) * len(shots) * len(seeds),
        "device": str(cost.device),
        "image_encoder_passes": encoded + tested,
        "seconds": shared + sum(seconds.values()),
        "seconds_by_method": seconds,
        "memory_bytes": int(weights + features + memory),
        "remarks": list(division.remarks),
    }


def _trains_images(method: str) -> bool:
    return few_shot_method(method).trains_image_encoder


@dataclass(frozen=True)
class _Cost:
    """What the encoders cost: seconds, and bytes that are kept for the backward pass, of one image and one prompt."""

    device: torch.device
    seconds_per_image: float
    bytes_per_image: float
    seconds_per_prompt: float
    bytes_per_prompt: float


def _measure(classifier: CLIPClassifier, processor: Any, images: ImageSet) -> _Cost:
    device = next(classifier.parameters()).device
    views = AugmentedViews(images, processor)
    pixels = torch.cat([views[row] for row in range(len(views))]).to(device)
    prompts = classifier.prompt_ids[:TIMED, 0]
    kept = {p.data_ptr() for p in classifier.parameters()}
    image = _cost_of(lambda: classifier.get_image_features(pixels).pooler_output, len(pixels), kept)
    return _Cost(device, *image, *_cost_of(lambda: classifier.get_class_features(prompts), len(prompts), kept))


def _cost_of(encode: Callable[[], torch.Tensor], count: int, parameters: set[int]) -> tuple[float, float]:
    """Seconds and bytes of one of `count` samples. With gradient: without it, features of classes are kept."""
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in parameters:
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.enable_grad():
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = encode()  # kernels are chosen and memory is allocated
        output.sum().item()
        start = time.perf_counter()
        encode().sum().item()
    return (time.perf_counter() - start) / count, sum(saved.values()) / count


def _fit_seconds(method: str, values: Recipe, images: int, classes: int, live: bool, cost: _Cost) -> float:
    """Of all fits on `images` images together."""
    steps = values.epochs * math.ceil(images / values.batch_size)
    prompts = {"once": 0, "step": steps * classes, "image": values.epochs * images * classes}
    backward = 1 + BACKWARD if few_shot_method(method).trains_image_encoder else 1
    of_images = values.epochs * images * cost.seconds_per_image * backward if live else 0.0
    return of_images + prompts[few_shot_method(method).text_encoder_runs] * cost.seconds_per_prompt * (1 + BACKWARD)


def _step_bytes(method: str, values: Recipe, classes: int, cost: _Cost) -> float:
    """What one training step keeps for the backward pass."""
    row = few_shot_method(method)
    prompts = {"once": 0, "step": classes, "image": classes * values.batch_size}[row.text_encoder_runs]
    if not values.epochs:
        return 0.0
    return prompts * cost.bytes_per_prompt + row.trains_image_encoder * values.batch_size * cost.bytes_per_image


def describe(plan: Mapping[str, Any]) -> dict[str, str]:
    """The plan in words, for people: title -> text."""
    data, shots = plan["data"], plan["shots"]
    tested = ", ".join(f"{name} {count}" for name, count in data["test_images"].items())
    images = ", ".join(f"{count} with {k} of each class" for k, count in plan["training_images"].items())
    unreadable = f", {len(data['unreadable'])} more cannot be read" if data["unreadable"] else ""
    minutes = ", ".join(f"{name} {duration(value)}" for name, value in plan["seconds_by_method"].items())
    words = {
        "Videos"
        if data.get("videos")
        else "Images": f"{data['images']} in {data['classes']} classes: {', '.join(data['class_names'][:5])}"
        f"{', …' if data['classes'] > 5 else ''}{unreadable}",
        "Training": images,
        f"Test {'videos' if data.get('videos') else 'images'}": tested,
        "Runs": f"{plan['runs']}: {_count(plan['methods'], 'method')} x {_count(shots, 'number', ' of shots')} x "
        f"{_count(plan['seeds'], 'seed')}",
        "Features": f"{plan['image_encoder_passes']:,} passes of the image encoder, once for all runs",
        "Time": f"about {duration(plan['seconds'])} on {plan['device']}, without searches ({minutes})",
        "Memory": f"about {plan['memory_bytes'] / 2**30:.1f} GiB, besides the libraries",
    }
    return words | ({"Note": "; ".join(plan["remarks"])} if plan["remarks"] else {})


def _count(values: Sequence[Any], singular: str, rest: str = "") -> str:
    return f"{len(values)} {singular}{'s' * (len(values) != 1)}{rest}"


__all__ = ["describe", "plan"]
