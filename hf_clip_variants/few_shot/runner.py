"""`FewShotRunner`: runs (task, method, shots, seed) on one frozen CLIP. `adapt` and the protocols both use it."""

from __future__ import annotations

import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from ..data.augmentation.views import AugmentedViews
from ..data.images.feature_cache import Features, compute_features
from ..data.images.image_set import ImageSet
from ..data.images.labelled_images import CachedImages, LabelledImages, LiveImages
from ..evaluation.calibration import Calibration, calibrate
from ..evaluation.devices import choose_device
from ..evaluation.finite_answers import check_answers
from ..evaluation.image_prediction import class_logits, predict
from ..evaluation.precision import reduce_precision
from ..evaluation.prediction import load_processor
from ..evaluation.video_features import with_mean_of_frames
from ..files.json_files import digest
from ..metrics.classification import accuracy
from ..modeling.clip_classifier.modeling_clip_classifier import CLIPClassifier
from ..modeling.dual_encoders.fingerprint import features_key
from .drawn_views import DrawnViews, views_of_fit
from .fitting import Shots, apply_overrides, fit_adapter
from .method import few_shot_method
from .protocols import RECIPE_PROTOCOLS, Evaluation, Plan, SetTemplates, Task
from .recipes import Recipe, recipe
from .recommendation import ZERO_SHOT
from .run_folder import RUN_KEY


logger = logging.getLogger(__name__)

# Models below this size get the "tiny" recipes by default: the published ones are for models ten times as large.
TINY_PARAMETERS = 20_000_000
VIEW_SEED = 0  # of augmented views; the same for all runs, so that they share features
CACHED_BATCH, LIVE_BATCH = 1024, 64  # test images in one forward
MANY_PASSES, TIMED_IMAGES = 200, 4  # from so many passes on, their time is said; images that are timed for that
TOP = 5  # classes of each test image that are kept
MANY_IMAGES = 256  # for more images than this, decoding in processes is worth their start on a GPU

# `finish` is called while the adapter is still on the model, with the record, the model, and for each evaluation the
# most likely classes (N, up to TOP), best first, and their probabilities.
Finish = Callable[[dict[str, Any], torch.nn.Module, dict[str, tuple[torch.Tensor, torch.Tensor]]], None]


@dataclass(frozen=True)
class Run:
    """One fit: a method with a number of shots and a seed, on one plan and one CLIP; or zero-shot CLIP."""

    plan: Plan
    model: str
    method: str = ZERO_SHOT
    shots: int = 0
    seed: int = 0

    @property
    def names(self) -> dict[str, Any]:
        """The first fields of this run's record, which name it."""
        model = Path(self.model).name if Path(self.model).exists() else self.model
        values = self.plan.protocol, self.plan.name, model, self.method, self.shots, self.seed
        return dict(zip(RUN_KEY, values, strict=True))

    @property
    def key(self) -> tuple:
        return tuple(self.names.values())

    def __str__(self) -> str:
        return self.method + (f", {self.shots} shot{'s' * (self.shots > 1)}, seed {self.seed}" if self.shots else "")


class FewShotRunner:
    """Runs few-shot methods on one CLIP. Work that runs share is done once.

    Methods that do not train the image encoder get features: of the training images, in exactly those views that some
    run draws (`drawn_views.py`), and of each test set. They are computed once and kept in `folder`, for other
    processes, too. Methods that train the image encoder get pixels, in training and in tests.

    Args:
        model: a CLIP or a saved `CLIPClassifier`, folder or Hub id.
        folder: for features and the states of interrupted trainings.
        tasks, methods, shots: of all runs to come.
        profile: "published" or "tiny" recipes; default: by the size of the model.
        overrides: as `adapt` takes them.
        cache_features: False: run the image encoder at every training step for every method.
        device: default: a GPU if there is one.
        on_epoch: called with (which training, epochs done, epochs) of the training that is running.
        on_features: called with (title, passes done, passes) while features are computed.
        precision: of the image encoder where it computes features; see `reduce_precision`.
        say: gets sentences about that.

    Raises:
        ValueError: an unknown method, profile or override.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        folder: str | os.PathLike,
        tasks: Sequence[Task],
        methods: Sequence[str],
        shots: Sequence[int],
        *,
        profile: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        cache_features: bool = True,
        device: str | torch.device | None = None,
        on_epoch: Callable[[str, int, int], None] | None = None,
        on_features: Callable[[str, int, int], None] | None = None,
        precision: str = "float32",
        say: Callable[[str], None] = lambda text: None,
    ):
        self.folder, self.cache_features = Path(folder), cache_features
        self.on_epoch, self.on_features = on_epoch, on_features or (lambda title, done, total: None)
        self.device = choose_device(device)
        self._overrides = overrides_by_method([few_shot_method(m).name for m in methods], overrides or {})
        self.classifier = CLIPClassifier.from_pretrained(model, dtype=torch.float32).to(self.device).eval()
        self.classifier.requires_grad_(False)
        self.classifier.faster_images = True
        if any(task.has_videos for task in tasks):
            with_mean_of_frames(self.classifier)
        self.processor = load_processor(model)
        self.profile = profile or default_profile(self.classifier)
        self.key = features_key(self.classifier.clip)  # of the weights, as they are for all runs
        reduced = reduce_precision(self.classifier, precision, say)
        self._say, self._pooled = say, self.classifier.pooled_image_features if reduced is None else reduced.encode
        if reduced is not None:  # other features
            self.key += f" {precision}"
        if getattr(self.classifier.family, "takes_frames", False):
            self.key += " mean of frames"
        self._tasks = tuple(tasks)  # kept alive, since sets are identified by their id()
        self._rows: dict[int, list[int]] = {}  # id() of a set -> all rows that tasks draw from it
        for task in tasks:
            drawn = (task.train, task.every_training_row), (task.validation, task.every_validation_row)
            for images, rows in drawn:
                self._rows[id(images)] = sorted({*self._rows.get(id(images), ()), *rows})
        self._drawn_views: dict[int, DrawnViews] = {id(task.train): DrawnViews() for task in tasks}
        cached = [m for m in methods if cache_features and not few_shot_method(m).trains_image_encoder]
        for task in tasks:
            for (k, seed), method in product(sorted(task.draws.splits), cached):
                if k in shots and (values := self.recipe(task, method, k)).augmentation != "none":
                    rows, drawn = task.training_rows(k, seed), self._views_of_run(task, method, values, k, seed)
                    self._drawn_views[id(task.train)].add(values.augmentation, rows, drawn)
        self._features: dict[Any, Features] = {}
        self.seconds_per_view = 0.0  # of the image encoder, where features were last computed

    def recipe(self, task: Task, method: str, shots: int) -> Recipe:
        """The recipe of a run, overrides applied."""
        protocol = RECIPE_PROTOCOLS[task.plan.protocol]
        published = recipe(method, shots, task.recipe_dataset, self.profile, protocol)
        return apply_overrides(few_shot_method(method), published, self._overrides[method])[0]

    def _views_of_run(self, task: Task, method: str, values: Recipe, shots: int, seed: int) -> np.ndarray:
        """(N, V) bool: the augmented views that a run draws from its N training images."""
        labels = torch.from_numpy(task.train.labels[task.training_rows(shots, seed)])
        on_split = bool(task.validation_rows(shots, seed))
        return views_of_fit(values, labels, seed, on_split, self._overrides[method])

    def passes(self, task: Task) -> int:
        """Passes of the image encoder on the training images of all runs together, where their features are kept."""
        return len(task.every_training_row) + len(self._drawn_views[id(task.train)]) if self.cache_features else 0

    @torch.no_grad()
    def say_passes(self, task: Task) -> None:
        """Says how often the image encoder is going to run for features, and about how long that takes, if it is worth
        the images that are timed for it."""
        passes = self.passes(task) + sum(len(evaluation.images) for evaluation in task.evaluations)
        if passes < MANY_PASSES:
            return
        images = task.train.select(task.every_training_row[:TIMED_IMAGES])
        views = AugmentedViews(images, self.processor)
        pixels = torch.cat([views[row] for row in range(len(views))]).to(self.device)
        self._name_classes(task.class_names, task.templates)
        self._encode(pixels[:1])  # kernels are chosen and memory is allocated
        start = time.perf_counter()
        self._encode(pixels).sum().item()
        seconds = (time.perf_counter() - start) / len(pixels)
        self._say(f"{passes:,} passes of the image encoder, about {duration(passes * seconds)} on {self.device}.")

    # ---- runs

    def attempt(self, task: Task, run: Run, finish: Finish | None = None) -> dict[str, Any]:
        """The record of `run`; if the method fails, one with `error`. Raises OSError, which is not the method's
        fault."""
        try:
            if run.method == ZERO_SHOT:
                return self.zero_shot(task, finish)
            return self.run(task, run.method, run.shots, run.seed, finish)
        except OSError:
            raise
        except Exception as error:
            logger.debug("%s", run, exc_info=True)
            title = "zero-shot CLIP" if run.method == ZERO_SHOT else few_shot_method(run.method).title
            return {"title": title, "tests": {}, "error": f"{type(error).__name__}: {error}"}

    def zero_shot(self, task: Task, finish: Finish | None = None) -> dict[str, Any]:
        """The record of CLIP without an adapter."""
        start = time.perf_counter()
        tests, predictions = self._test(task, self.classifier, live=False)
        seconds = {"test": time.perf_counter() - start}
        record = self._record(ZERO_SHOT, "zero-shot CLIP", tests, seconds)
        if finish is not None:
            finish(record, self.classifier, predictions)
        return record

    def calibrate(self, task: Task) -> Calibration:
        """Of CLIP without an adapter, on all images that some run learns from or validates on."""
        self._name_classes(task.class_names, task.templates)
        drawn = (task.train, task.every_training_row), (task.validation, task.every_validation_row)
        sets = [CachedImages(self._plain(*one), device=self.device) for one in drawn if one[1]]
        logits = torch.cat([class_logits(self.classifier, images).logits for images in sets])
        return calibrate(logits, torch.cat([images.labels for images in sets]).to(logits.device))

    def run(self, task: Task, method: str, shots: int, seed: int, finish: Finish | None = None) -> dict[str, Any]:
        """Fit one adapter and test it on everything: the record of the run.

        Raises what `fit_adapter` raises; the classifier is then as it was.
        """
        row, values = few_shot_method(method), self.recipe(task, method, shots)
        self._name_classes(task.class_names, task.templates)
        if not row.trains_image_encoder:
            # Before the adapter is attached: with it, the encoder would not be CLIP's.
            for evaluation in task.evaluations:
                self._computed(
                    evaluation.images, range(len(evaluation.images)), title=f"Test features: {evaluation.of}"
                )
        about = [task.plan.protocol, task.plan.name, self.key, method, shots, seed]
        state = self.folder / "unfinished" / digest([*about, values.to_dict(), self._overrides[method]])
        fitted = fit_adapter(
            self.classifier,
            method,
            self._shots(task, method, values, shots, seed),
            self._validation(task, method, shots, seed),
            recipe_values=values,
            overrides=self._overrides[method],
            seed=seed,
            state_folder=state,
            on_epoch=self.on_epoch,
        )
        try:
            start = time.perf_counter()
            fixed = _why_classes_are_fixed(fitted.model)
            tests, predictions = self._test(task, fitted.model, row.trains_image_encoder, fixed)
            count = encoded = 0 if row.trains_image_encoder else len(task.training_rows(shots, seed))
            if count and values.augmentation != "none":
                encoded = int(self._views_of_run(task, method, values, shots, seed).sum())
            seconds = {"features": self.seconds_per_view * encoded, **fitted.seconds}
            seconds["test"] = time.perf_counter() - start
            record = self._record(method, row.title, tests, seconds, shots, seed) | {
                "validation": asdict(fitted.validation),
                "zero_shot_error": fitted.zero_shot_error,
                "hyperparameters": fitted.hyperparameters,
                "trained_parameters": fitted.trained_parameters,
                "curve": fitted.curve,
                # Passes of the frozen image encoder if it had run for each image of each training step.
                "passes_at_every_step": count * values.encoder_passes_per_image,
            }
            if finish is not None:
                finish(record, fitted.model, predictions)
        finally:
            fitted.unload()
        shutil.rmtree(state, ignore_errors=True)
        return record

    def _record(self, method, title, tests, seconds, shots=0, seed=0) -> dict[str, Any]:
        record = {"method": method, "title": title, "shots": shots, "seed": seed, "tests": tests}
        record |= {"profile": self.profile, "seconds": seconds, "environment": describe_environment(self.device)}
        return record

    # ---- tests

    def _name_classes(self, class_names: Sequence[str], templates: SetTemplates) -> None:
        templates = dict(templates) if isinstance(templates, Mapping) else list(templates)
        wanted = list(class_names), templates or [self.classifier.family.default_template]
        if (self.classifier.class_names, self.classifier.config.templates) != wanted:
            self.classifier.set_classes(*wanted)

    def _test(self, task: Task, model: torch.nn.Module, live: bool, fixed: str | None = None):
        """Tests of a record, and predictions. `fixed`: why the adapter cannot classify other classes."""
        tests: dict[str, Any] = {e.name: None for e in task.evaluations}
        predictions: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for e in sorted(task.evaluations, key=lambda e: e.columns is None):  # trained classes first
            about = {"part": e.part, "of": e.of, "images": len(e.rows), "classes": len(e.class_names)}
            if e.columns is None and fixed is not None:
                tests[e.name] = {"accuracy": None, "why": f"the adapter {fixed}", **about}
                continue
            named = e if e.columns is None else task
            self._name_classes(named.class_names, named.templates)
            every_class = e.columns is None or e.columns == tuple(range(len(task.class_names)))
            batch_size, columns = LIVE_BATCH if live else CACHED_BATCH, None if every_class else e.columns
            predictions[e.name] = predict(model, self._test_images(e, live), batch_size, columns=columns, top=TOP)
            labels = torch.from_numpy(e.labels.copy())
            tests[e.name] = {"accuracy": accuracy(predictions[e.name][0][:, 0], labels), **about}
        return tests, predictions

    # ---- images

    def _test_images(self, evaluation: Evaluation, live: bool) -> LabelledImages:
        if live:
            return LiveImages(self.classifier, evaluation.images.select(evaluation.rows), self.processor)
        every = range(len(evaluation.images))
        features = self._computed(evaluation.images, every, title=f"Test features: {evaluation.of}")
        return CachedImages(features.select(evaluation.rows), device=self.device)

    def _shots(self, task: Task, method: str, values: Recipe, shots: int, seed: int) -> Shots:
        rows = task.training_rows(shots, seed)
        if few_shot_method(method).trains_image_encoder or not self.cache_features:
            images = task.train.select(rows)
            plain = LiveImages(self.classifier, images, self.processor)
            total = max(values.views, values.first_views)
            views = values.augmentation, total, values.views, VIEW_SEED, seed
            return Shots(LiveImages(self.classifier, images, self.processor, *views), plain)
        plain = CachedImages(self._plain(task.train, rows), device=self.device)
        if values.augmentation == "none":
            return Shots(plain, plain)
        return Shots(self._augmented(task.train, rows, values, seed), plain)

    def _validation(self, task: Task, method: str, shots: int, seed: int) -> LabelledImages | None:
        rows = task.validation_rows(shots, seed)
        if not rows:
            return None
        if few_shot_method(method).trains_image_encoder:
            return LiveImages(self.classifier, task.validation.select(rows), self.processor)
        return CachedImages(self._plain(task.validation, rows), device=self.device)

    def _plain(self, images: ImageSet, rows: Sequence[int]) -> Features:
        """Features of the plain view."""
        every = self._rows[id(images)]
        return self._computed(images, every, title=f"Features of {len(every):,} images").select(
            np.searchsorted(every, rows)
        )

    def _augmented(self, images: ImageSet, rows: Sequence[int], values: Recipe, seed: int) -> CachedImages:
        """Features of the augmented views that some run draws."""
        every, augmentation = self._rows[id(images)], values.augmentation
        drawn = self._drawn_views[id(images)].lists(augmentation, every)
        count = sum(map(len, drawn))
        features = self._computed(images, every, augmentation, f"Features of {count:,} views", drawn)
        place, end = {}, 0
        for row, views in zip(every, drawn, strict=True):
            place[row] = dict(zip(views, range(end, end := end + len(views)), strict=True))
        total = max(values.views, values.first_views)
        table = torch.tensor([[place[row].get(view, -1) for row in rows] for view in range(total)])
        labels = torch.from_numpy(images.labels[list(rows)])
        return CachedImages.of_views(features, table, labels, values.views, seed, self.device)

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        found = self._pooled(pixels)
        check_answers(found, self.classifier, "features", pixel_values=pixels)
        return found

    def _computed(
        self,
        images: ImageSet,
        rows: Sequence[int],
        augmentation: str = "none",
        title: str = "Features",
        drawn: list[list[int]] | None = None,
    ) -> Features:
        """Features of `rows`, from memory, from the folder or computed, by one process at a time."""
        key = (id(images), len(rows), augmentation)
        if key not in self._features:
            chosen = images if len(rows) == len(images) else images.select(rows)
            views, folder = 1 if drawn is None else 1 + max(map(max, filter(None, drawn))), self.folder / "features"
            folder.mkdir(parents=True, exist_ok=True)
            many = self.device.type == "cuda" and len(chosen) > MANY_IMAGES
            workers = min(8, os.cpu_count() or 1) if many else 0
            start, computed = time.perf_counter(), 0

            def progress(done: int, total: int) -> None:
                nonlocal computed
                computed = done  # stays 0 for features that are read from the folder
                self.on_features(title, done, total)

            # One process computes, the others wait and read.
            with FileLock(folder / f".{digest([self.key, chosen.fingerprint, augmentation, drawn])}.lock"):
                self._features[key] = compute_features(
                    self._encode,
                    chosen,
                    self.processor,
                    views=views,
                    augmentation=augmentation,
                    seed=VIEW_SEED,
                    drawn=drawn,
                    cache_dir=folder,
                    key=self.key,
                    device=self.device,
                    progress=progress,
                    num_workers=workers,
                )
            if computed:
                self.seconds_per_view = (time.perf_counter() - start) / computed
        return self._features[key]


def _why_classes_are_fixed(model: torch.nn.Module) -> str | None:
    """Why the adapter is of use for its own classes only; None when it works for other classes, too."""
    config = model.peft_config[model.active_adapter]
    ask = getattr(config, "why_classes_are_fixed", None)  # PEFT's own methods have no classes
    return None if ask is None else ask()


def duration(seconds: float) -> str:
    """
    >>> duration(3), duration(200), duration(9000)
    ('3 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def default_profile(classifier: CLIPClassifier) -> str:
    """The recipes that a model gets by default: "tiny" below `TINY_PARAMETERS`."""
    return "tiny" if classifier.clip.num_parameters() < TINY_PARAMETERS else "published"


def overrides_by_method(methods: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"epochs": 5, "coop.epochs": 9}` -> what applies to each method. ValueError for a name that none has."""
    chosen: dict[str, dict[str, Any]] = {m: {} for m in methods}
    # those for one method last, so that they win
    for name, value in sorted(overrides.items(), key=lambda item: "." in item[0]):
        method, dot, key = name.rpartition(".")
        if dot and method not in chosen:
            raise ValueError(
                f"overrides: {name!r} is for {method!r}, which is not among the methods {', '.join(methods)}"
            )
        errors = []
        for m in [method] if dot else methods:
            try:
                apply_overrides(few_shot_method(m), recipe(m, 1), {key: value})
            except ValueError as error:
                errors.append(error)
                continue
            chosen[m][key] = value
        if len(errors) == (1 if dot else len(methods)):
            raise errors[0]
    return chosen


def describe_environment(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that a run was made with."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "numpy")},
        "hf_clip_variants": version("hf-clip-variants"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


__all__ = ["ZERO_SHOT", "FewShotRunner", "Run", "default_profile", "describe_environment", "overrides_by_method"]
