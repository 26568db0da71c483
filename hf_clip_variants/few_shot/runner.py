"""`ProtocolRunner`: cells of the few-shot protocols on one frozen CLIP. What cells share is computed once."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from ..data.images.feature_cache import Features, compute_features
from ..data.images.image_set import ImageSet
from ..metrics.classification import accuracy
from ..modeling.clip_classifier.modeling_clip_classifier import CLIPClassifier
from ..modeling.clip_classifier.processing_clip_classifier import CLIPClassifierProcessor
from ..modeling.dual_encoders.fingerprint import fingerprint
from .adapt import TINY_PARAMETERS, VIEW_SEED, describe_environment, overrides_by_method
from .fitting import FewShotMethod, Shots, apply_overrides, few_shot_method, fit_adapter, views_needed
from .labelled_images import CachedPictures, LivePictures, Pictures
from .protocols import RECIPE_PROTOCOLS, Exam, Plan, Task
from .recipes import Recipe, recipe
from .run_folder import digest


ZERO_SHOT = "zero_shot"  # the method of the cell without an adapter
TEST_BATCH = 100  # pictures, as in the official tests


@torch.no_grad()
def predict_among(
    model: torch.nn.Module, pictures: Pictures, columns: Sequence[int] | None = None, batch_size: int = TEST_BATCH
) -> torch.Tensor:
    """(N,) int64: the likeliest of the classes `columns` (default: all), as its place in `columns`."""
    model.eval()
    predicted = []
    for rows in torch.arange(len(pictures)).split(batch_size):
        logits = model(**pictures.batch(rows, 0)).logits
        predicted.append((logits if columns is None else logits[:, list(columns)]).argmax(dim=1).cpu())
    return torch.cat(predicted)


class ProtocolRunner:
    """Runs cells (task, method, shots, seed) of one CLIP.

    Methods that leave the image tower alone see features: of the training pictures in as many views as any method wants, and of each test set,
    computed once and kept in `folder`, also for other processes. Methods that train it see pixels, in training and in tests.

    Args:
        model: a CLIP or a saved `CLIPClassifier`, folder or Hub id.
        folder: for features and for trainings that were interrupted.
        tasks, methods, shots: of all cells that may be asked for.
        profile: "published" or "tiny" recipes; default: by the size of the model.
        overrides: as `adapt` takes them.
        device: default: a GPU if there is one.
        on_epoch: called with (epochs done, epochs) of the training that is running.

    Raises:
        ValueError: an unknown method, profile or override.
    """

    def __init__(
        self,
        model: str | Path,
        folder: str | Path,
        tasks: Sequence[Task],
        methods: Sequence[str],
        shots: Sequence[int],
        *,
        profile: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        on_epoch: Callable[[int, int], None] | None = None,
    ):
        self.folder, self.on_epoch = Path(folder), on_epoch
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._overrides = overrides_by_method([few_shot_method(m).name for m in methods], overrides or {})
        self.classifier = CLIPClassifier.from_pretrained(model, dtype=torch.float32).to(self.device).eval()
        self.classifier.requires_grad_(False)
        self.processor = CLIPClassifierProcessor.from_clip(str(model))
        self.profile = profile or ("tiny" if self.classifier.clip.num_parameters() < TINY_PARAMETERS else "published")
        self._key = fingerprint(self.classifier.clip)
        self._views = {"none": 1}
        cached = [m for m in methods if not few_shot_method(m).trains_image_tower]
        for values in (self.recipe(t.plan, m, k) for t in tasks for m in cached for k in shots):
            if values.augmentation != "none":
                self._views[values.augmentation] = max(self._views.get(values.augmentation, 0), views_needed(values))
        self._tasks = tuple(tasks)  # kept alive: sets are known by their id()
        self._rows: dict[int, list[int]] = {}  # what tasks on the same pictures draw from them, together
        for task in tasks:
            for images, rows in (
                (task.pictures, task.every_training_row),
                (task.validation, task.every_validation_row),
            ):
                self._rows[id(images)] = sorted({*self._rows.get(id(images), ()), *rows})
        self._features: dict[Any, Features] = {}
        self._named: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    def recipe(self, plan: Plan, method: str, shots: int) -> Recipe:
        """The recipe of a cell, overrides applied."""
        published = recipe(method, shots, plan.recipe_dataset, self.profile, RECIPE_PROTOCOLS[plan.protocol])
        return apply_overrides(few_shot_method(method), published, self._overrides[method])[0]

    # ---- cells

    def zero_shot(self, task: Task) -> dict[str, Any]:
        """The record of CLIP without an adapter."""
        start = time.perf_counter()
        tests = {exam.name: self._examine(task, exam, self.classifier, live=False) for exam in task.exams}
        return self._record(ZERO_SHOT, "zero-shot CLIP", tests, {"test": time.perf_counter() - start})

    def run(self, task: Task, method: str, shots: int, seed: int) -> dict[str, Any]:
        """Fit one adapter and ask it everything: the cell's record.

        Raises what `fit_adapter` raises; the classifier is then as it was.
        """
        row, values = few_shot_method(method), self.recipe(task.plan, method, shots)
        self._name_classes(task.class_names, task.templates)
        if not row.trains_image_tower:
            for exam in task.exams:  # now: with an adapter on it, the tower would not be CLIP's
                self._computed(exam.images, range(len(exam.images)))
        state = (
            self.folder / "unfinished" / digest([task.plan.protocol, task.plan.name, self._key, method, shots, seed])
        )
        report = self.on_epoch
        fitted = fit_adapter(
            self.classifier, method, self._shots(task, row, values, shots, seed), self._validation(task, row, shots, seed), recipe_values=values,
            overrides=self._overrides[method], seed=seed, state_folder=state,
            on_epoch=None if report is None else lambda label, done, epochs: report(done, epochs),
        )  # fmt: skip
        try:
            start = time.perf_counter()
            fixed = _why_classes_are_fixed(fitted.model)
            tests = {
                exam.name: self._examine(task, exam, fitted.model, row.trains_image_tower, fixed)
                for exam in sorted(task.exams, key=lambda exam: exam.columns is None)  # trained classes first
            }
            tests = {exam.name: tests[exam.name] for exam in task.exams}
            seconds = {**fitted.seconds, "test": time.perf_counter() - start}
            more = {
                "validation": {"kind": fitted.validation.kind, "accuracy": fitted.validation.accuracy},
                "hyperparameters": fitted.hyperparameters, "trained_parameters": fitted.trained_parameters,
            }  # fmt: skip
            return self._record(method, row.title, tests, seconds, shots, seed) | more
        finally:
            fitted.unload()
            shutil.rmtree(state, ignore_errors=True)

    def _record(self, method, title, tests, seconds, shots=0, seed=0) -> dict[str, Any]:
        return {
            "method": method, "title": title, "shots": shots, "seed": seed, "tests": tests, "profile": self.profile,
            "seconds": {part: round(value, 3) for part, value in seconds.items()}, "environment": describe_environment(self.device),
        }  # fmt: skip

    def _name_classes(self, class_names: Sequence[str], templates: Sequence[str]) -> None:
        if self._named != (tuple(class_names), tuple(templates)):
            self._named = None
            family = self.classifier.family
            self.classifier.set_classes(list(class_names), list(templates) or family.default_template)
            self._named = tuple(class_names), tuple(templates)

    def _examine(
        self, task: Task, exam: Exam, model: torch.nn.Module, live: bool, fixed: str | None = None
    ) -> dict[str, Any]:
        """The exam's entry in a record; with `why` instead of a number where the adapter cannot be asked."""
        about = {"part": exam.part, "of": exam.of, "pictures": len(exam.rows), "classes": len(exam.class_names)}
        if exam.columns is None and fixed is not None:
            return {"accuracy": None, "why": f"the adapter {fixed}", **about}
        if exam.columns is None:
            self._name_classes(exam.class_names, exam.templates)
        else:
            self._name_classes(task.class_names, task.templates)
        every_class = exam.columns is None or exam.columns == tuple(range(len(task.class_names)))
        predicted = predict_among(model, self._exam_pictures(exam, live), None if every_class else exam.columns)
        return {"accuracy": accuracy(predicted, torch.from_numpy(exam.labels.copy())), **about}

    # ---- pictures

    def _exam_pictures(self, exam: Exam, live: bool) -> Pictures:
        if live:
            return LivePictures(self.classifier, exam.images.select(exam.rows), self.processor)
        features = self._computed(exam.images, range(len(exam.images)))
        return CachedPictures(features.select(exam.rows), device=self.device)

    def _shots(self, task: Task, method: FewShotMethod, values: Recipe, shots: int, seed: int) -> Shots:
        rows = task.training_rows(shots, seed)
        if method.trains_image_tower:
            images = task.pictures.select(rows)
            live = LivePictures(
                self.classifier, images, self.processor, values.augmentation, views_needed(values), values.views, VIEW_SEED, seed
            )  # fmt: skip
            return Shots(live, LivePictures(self.classifier, images, self.processor))
        views = self._drawn(task.pictures, rows, values.augmentation)
        plain = self._drawn(task.pictures, rows)
        return Shots(CachedPictures(views, values.views, seed, self.device), CachedPictures(plain, device=self.device))

    def _validation(self, task: Task, method: FewShotMethod, shots: int, seed: int) -> Pictures | None:
        rows = task.validation_rows(shots, seed)
        if not rows:
            return None
        if method.trains_image_tower:
            return LivePictures(self.classifier, task.validation.select(rows), self.processor)
        return CachedPictures(self._drawn(task.validation, rows), device=self.device)

    def _drawn(self, images: ImageSet, rows: Sequence[int], augmentation: str = "none") -> Features:
        every = self._rows[id(images)]
        features = self._computed(images, every, augmentation)
        return features.select(np.searchsorted(every, rows))

    def _computed(self, images: ImageSet, rows: Sequence[int], augmentation: str = "none") -> Features:
        """Features of `rows`, from memory, from the folder, or from the tower; while one process computes, others wait for it."""
        key = (id(images), len(rows), augmentation)
        if key not in self._features:
            chosen = images if len(rows) == len(images) else images.select(rows)
            views, folder = self._views[augmentation], self.folder / "features"
            folder.mkdir(parents=True, exist_ok=True)
            workers = min(8, os.cpu_count() or 1) if self.device.type == "cuda" and len(chosen) > 256 else 0
            with FileLock(folder / f".{digest([self._key, chosen.fingerprint, augmentation, views])}.lock"):
                self._features[key] = compute_features(
                    lambda pixels: self.classifier.get_image_features(pixels).pooler_output, chosen, self.processor, views=views,
                    augmentation=augmentation, seed=VIEW_SEED, cache_dir=folder, key=self._key, device=self.device, progress=False,
                    num_workers=workers,
                )  # fmt: skip
        return self._features[key]


def _why_classes_are_fixed(model: torch.nn.Module) -> str | None:
    """What in the adapter belongs to the k-th class; None when it serves other classes, too."""
    config = model.peft_config[model.active_adapter]
    ask = getattr(config, "why_classes_are_fixed", None)  # PEFT's own methods have no classes
    return None if ask is None else ask()


__all__ = ["ZERO_SHOT", "ProtocolRunner", "predict_among"]
