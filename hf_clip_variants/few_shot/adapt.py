"""`adapt`: methods x shots x seeds on one data set, against zero-shot CLIP. Killed at any moment, the same call goes on where it was."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save as to_safetensors

from ..data.images.feature_cache import Features, compute_features
from ..data.images.image_set import ImageSet
from ..files.atomic_writes import staged_folder, write_atomically
from ..metrics.classification import accuracy, accuracy_by_class
from ..modeling.clip_classifier.modeling_clip_classifier import CLIPClassifier
from ..modeling.dual_encoders.fingerprint import fingerprint
from .fitting import (
    FAST_METHODS,
    FEW_SHOT_METHODS,
    Shots,
    apply_overrides,
    few_shot_method,
    fit_adapter,
    views_needed,
)
from .labelled_images import CachedPictures, LivePictures, Pictures, predict
from .recipes import Recipe, recipe
from .run_folder import RunFolder, digest
from .splits import Draws, TestSet, absolute_source, draw_shots, load_test_sets, load_training


if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)

TINY_PARAMETERS = (
    20_000_000  # below, the "tiny" recipes are the default: the published ones are for models ten times as large
)
VIEW_SEED = 0  # of augmented views: the same for all cells, so that features serve all of them


@dataclass(frozen=True)
class Cell:
    """One training: a method, a number of shots, a seed."""

    method: str
    shots: int
    seed: int

    def __str__(self) -> str:
        return f"{FEW_SHOT_METHODS[self.method].title}, {self.shots} shot{'s' * (self.shots > 1)}, seed {self.seed}"


def adapt(
    model: str | os.PathLike,
    data: str,
    out: str | os.PathLike,
    *,
    methods: Sequence[str] = FAST_METHODS,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: Sequence[int] = (1, 2, 3),
    test_data: Mapping[str, str] | None = None,
    templates: str | Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    profile: str | None = None,
    benchmark: str | None = None,
    cache_features: bool = True,
    reading: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    report: bool = True,
) -> dict[str, Any]:
    """Adapt a frozen CLIP to the classes of a data set, with several methods, numbers of shots and seeds.

    Writes a run folder: `results.json` (after every cell), `report.html`, `base/` (the classifier), `adapters/<method>/<K>-shot/seed-<S>/`
    (what `PeftModel.from_pretrained` and the Hub take) and `predictions/`. Called again with the same arguments it does what is missing; cells are
    independent of each other and of the order, so the results are those of a run that was never interrupted.

    Args:
        model: a CLIP or a saved `CLIPClassifier`, folder or Hub id.
        data: what `load_images` reads. Shots are drawn from its train split; validation is done on its validation split, or else by
            cross-validation over the shots.
        out: the run folder.
        methods: names in `FEW_SHOT_METHODS`. CoCoOp, MaPLe, VPT and IVLP are not among the default ones: they take hours where those take minutes.
        shots, seeds: every method is fitted for every pair.
        test_data: name -> source. Default: the data's test split, or else the pictures that no draw took.
        templates: prompt templates: one, a list, a file or a named set. Default: the model family's, `"a photo of a {}."`.
        overrides: values instead of the recipes': `{"epochs": 10}` for every method that has it, `{"coop.epochs": 10}` for one.
        profile: "published" or "tiny" recipes; default: by the size of the model.
        benchmark: use the values published for this data set (`recipes.DATASETS`).
        cache_features: False: run the frozen image tower at every step, as the official trainings do. Slower, same result.
        reading: more arguments of `load_images` (`image_column`, `label_column`, `class_names`, `name`, `revision`).
        device: default: a GPU if there is one.
        progress: bars on standard error.
        report: write report.html at the end.

    Returns:
        What is in results.json. A method that failed has its message in `error`; the others went on.

    Raises:
        ValueError: unknown methods or overrides, data that does not do, a run folder with other settings (named).
        OSError: files that cannot be read or written.

    Example:

    ```python
    results = adapt("openai/clip-vit-base-patch32", "pets/", "run", methods=["tip_adapter"], shots=[4])
    results["zero_shot"]["accuracy"], results["runs"][0]["accuracy"]
    ```
    """
    started = time.perf_counter()
    cells = [
        Cell(m, k, s)
        for m in _distinct("methods", methods)
        for k in _counts("shots", shots)
        for s in _distinct("seeds", seeds)
    ]
    by_method = overrides_by_method([few_shot_method(m).name for m in methods], overrides or {})
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    train, validation = load_training(str(data), reading)
    draws = draw_shots(train, validation, sorted(set(shots)), seeds)
    test_sets = load_test_sets(train, str(data), dict(test_data or {}), draws.rows, reading)
    for remark in (
        *draws.remarks,
        *(f"{name!r} cannot be read and was not drawn: {why}" for name, why in draws.skipped),
    ):
        logger.warning("%s: %s", data, remark)

    classifier = CLIPClassifier.from_pretrained(
        model, class_names=list(train.class_names), templates=templates, dtype=torch.float32
    )
    profile = profile or ("tiny" if classifier.clip.num_parameters() < TINY_PARAMETERS else "published")
    recipes = {  # unknown names are an error now, not after an hour
        (m, k): apply_overrides(few_shot_method(m), recipe(m, k, benchmark, profile), by_method[m])
        for m in methods
        for k in shots
    }
    settings = {
        "model": absolute_source(str(model)), "data": absolute_source(str(data)),
        "test_data": {name: absolute_source(s) for name, s in (test_data or {t.name: t.source for t in test_sets}).items()},
        "methods": list(methods), "shots": list(shots), "seeds": list(seeds), "templates": list(classifier.config.templates),
        "overrides": dict(overrides or {}), "profile": profile, "benchmark": benchmark, "cache_features": cache_features,
        "reading": dict(reading or {}),
    }  # fmt: skip
    contents = {
        "model": digest(fingerprint(classifier.clip)),
        "data": digest([train.ids, train.labels.tolist(), train.class_names, train.select(draws.rows).fingerprint]),
        **{f"test_data.{t.name}": t.images.fingerprint[:16] for t in test_sets},
    }
    if validation is not None:
        contents["validation"] = validation.select(draws.validation_rows).fingerprint[:16]
    run = RunFolder(out, settings, contents)
    with run.locked(), _progress(progress) as bars:
        session = _Session(
            run,
            model,
            classifier,
            device,
            train,
            validation,
            draws,
            test_sets,
            recipes,
            by_method,
            cache_features,
            bars,
        )
        run.results["status"] = "running"
        before = run.results["seconds"]
        session.prepare()
        missing = [cell for cell in cells if run.finished_cell(cell.method, cell.shots, cell.seed) is None]
        bar = bars.add_task("Adapters", total=len(cells), completed=len(cells) - len(missing))
        for cell in missing:
            bars.update(bar, description=str(cell))
            record = session.run_cell(cell)
            run.results["seconds"] = before + time.perf_counter() - started
            run.record(record, order=[(c.method, c.shots, c.seed) for c in cells])
            shutil.rmtree(session.unfinished(cell), ignore_errors=True)
            bars.advance(bar)
        shutil.rmtree(run.path / "unfinished", ignore_errors=True)
        run.results["status"] = "finished"
        run.write()
        if report:
            from .report import write_report

            write_report(run.path)
    return run.results


def _distinct(argument: str, values: Sequence[Any]) -> list[Any]:
    values = list(values)
    if not values or len(set(values)) != len(values):
        raise ValueError(f"{argument}: got {values}; want at least one, none of them twice")
    return values


def _counts(argument: str, values: Sequence[int]) -> list[int]:
    for value in _distinct(argument, values):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{argument}: got {value!r}; want whole numbers of at least 1")
    return list(values)


def overrides_by_method(methods: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"epochs": 5, "coop.epochs": 9}` -> what applies to each method. ValueError for a name that none of them has."""
    chosen: dict[str, dict[str, Any]] = {m: {} for m in methods}
    for name, value in sorted(overrides.items(), key=lambda item: "." in item[0]):  # the specific ones last
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


@contextmanager
def _progress(show: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not show) as bars:
        yield bars


class _Session:
    """What all cells of one `adapt` share: the classifier, features that are computed once, test sets."""

    def __init__(
        self,
        run: RunFolder,
        model: str | os.PathLike,
        classifier: CLIPClassifier,
        device: torch.device,
        train: ImageSet,
        validation: ImageSet | None,
        draws: Draws,
        test_sets: list[TestSet],
        recipes: dict[tuple[str, int], tuple[Recipe, dict[str, Any]]],
        overrides: dict[str, dict[str, Any]],
        cache_features: bool,
        bars: Progress,
    ):
        self.run, self.model, self.device = run, str(model), device
        self.train, self.validation, self.draws, self.test_sets = train, validation, draws, test_sets
        self.recipes, self.overrides, self.cache_features, self.bars = recipes, overrides, cache_features, bars
        self._save_base(classifier)
        # Read back, also the first time: a run that was interrupted reads the same.
        self.classifier = CLIPClassifier.from_pretrained(run.base, dtype=torch.float32).to(device).eval()
        self.classifier.requires_grad_(False)
        from transformers import AutoProcessor

        self.processor = AutoProcessor.from_pretrained(run.base)
        self._key = fingerprint(self.classifier.clip)
        self._views = {"none": 1}  # augmentation -> as many views as any method with it wants
        for (method, _), (values, _) in recipes.items():
            if values.augmentation != "none" and not few_shot_method(method).trains_image_tower:
                self._views[values.augmentation] = max(self._views.get(values.augmentation, 0), views_needed(values))
        self._tests: dict[str, CachedPictures] = {}
        self._shots: dict[str, Features] = {}

    # ---- once a run

    def _save_base(self, classifier: CLIPClassifier) -> None:
        if (self.run.base / "config.json").is_file():
            return
        from ..modeling.clip_classifier.processing_clip_classifier import CLIPClassifierProcessor

        processor = CLIPClassifierProcessor.from_clip(self.model)
        weights = sum(tensor.nbytes for tensor in classifier.state_dict().values())
        with staged_folder(self.run.base, bytes_needed=weights) as stage:
            classifier.save_pretrained(stage)
            processor.save_pretrained(stage)

    def prepare(self) -> None:
        """Environment, facts about model and data, test features and zero-shot results."""
        results = self.run.results
        results["environment"] = describe_environment(self.device)
        results["model"] = {
            "name": Path(self.model).name if Path(self.model).exists() else self.model,
            "parameters": self.classifier.clip.num_parameters(),
            "image_size": self.classifier.family.image_size(self.classifier.config),
        }
        results["data"] = {
            "class_names": list(self.train.class_names),
            "train_images": len(self.train),
            "skipped": [name for name, _ in self.draws.skipped],
            "seconds_per_view": results["data"].get("seconds_per_view", 0.0),
            # Of training pictures, for all cells together.
            "encoded_views": len(self.draws.rows) * sum(self._views.values()) if self.cache_features else 0,
            "test_sets": {
                t.name: {
                    "images": len(t.images), "unreadable": [name for name, _ in t.images.skipped], "source": absolute_source(t.source),
                    "split": t.split, "rows_are_saved": t.rows is not None,
                }
                for t in self.test_sets
            },
        }  # fmt: skip
        for t in self.test_sets:
            features = self._features(t.images, f"Test features: {t.name}")
            self._tests[t.name] = CachedPictures(features, device=self.device)
        if results["zero_shot"] is None:
            start = time.perf_counter()
            extra = {f"{t.name}.labels": torch.from_numpy(t.images.labels.copy()) for t in self.test_sets}
            extra |= {f"{t.name}.rows": torch.tensor(t.rows) for t in self.test_sets if t.rows is not None}
            found = self._test(self.classifier, self.run.predictions_file(), extra)
            results["zero_shot"] = {**found, "seconds": time.perf_counter() - start}
        self.run.write()

    def _features(self, images: ImageSet, title: str, views: int = 1, augmentation: Any = "none") -> Features:
        bar = self.bars.add_task(title, total=len(images))
        start, computed = time.perf_counter(), 0

        def progress(done: int, total: int) -> None:
            nonlocal computed
            computed = done  # not called for features that are read back
            self.bars.update(bar, completed=done)

        workers = min(8, os.cpu_count() or 1) if self.device.type == "cuda" and len(images) > 256 else 0
        features = compute_features(
            lambda pixels: self.classifier.get_image_features(pixels).pooler_output, images, self.processor, views=views,
            augmentation=augmentation, seed=VIEW_SEED, cache_dir=self.run.path / "features", key=self._key, device=self.device,
            progress=progress, num_workers=workers,
        )  # fmt: skip
        self.bars.remove_task(bar)
        if computed:
            self.run.results["data"]["seconds_per_view"] = (time.perf_counter() - start) / (views * computed)
        return features

    def _test(
        self,
        model: torch.nn.Module,
        file: str,
        extra: Mapping[str, torch.Tensor] | None = None,
        own_tower: bool = False,
    ) -> dict[str, Any]:
        """Accuracies on every test set; predictions go to `file`. `own_tower`: the adapter changes image features, so cached ones are not its."""
        tensors, scores, per_class = dict(extra or {}), {}, {}
        images = {t.name: t.images for t in self.test_sets}
        for name, pictures in self._tests.items():
            if own_tower:
                pictures = LivePictures(self.classifier, images[name], self.processor)
            predicted, confidence = predict(model, pictures, batch_size=64 if own_tower else 1024)
            tensors |= {f"{name}.predicted": predicted, f"{name}.confidence": confidence}
            scores[name] = accuracy(predicted, pictures.labels)
            per_class[name] = accuracy_by_class(predicted, pictures.labels, len(self.train.class_names))
        write_atomically(self.run.path / file, to_safetensors(tensors))
        return {"accuracy": scores, "per_class": per_class}

    # ---- once a cell

    def unfinished(self, cell: Cell) -> Path:
        return self.run.path / "unfinished" / f"{cell.method}_{cell.shots}-shot_seed-{cell.seed}"

    def run_cell(self, cell: Cell) -> dict[str, Any]:
        """Fit, test and save one adapter: its entry in results.json. A method that fails is an entry with `error`."""
        method = few_shot_method(cell.method)
        split = self.draws.splits[cell.shots, cell.seed]
        record: dict[str, Any] = {
            "method": cell.method, "title": method.title, "shots": cell.shots, "seed": cell.seed, "accuracy": {}, "per_class": {},
            "validation": {"kind": "none", "accuracy": None}, "hyperparameters": {}, "trained_parameters": 0, "adapter_bytes": 0,
            "seconds": {"features": 0.0, "train": 0.0, "search": 0.0, "test": 0.0}, "folder": None, "predictions": None,
            "train_indices": list(split.train), "curve": [], "passes_at_every_step": 0, "error": None,
        }  # fmt: skip
        bar = self.bars.add_task("training", total=None)

        def on_epoch(label: str, done: int, epochs: int) -> None:
            self.bars.update(
                bar, description="training" if label == "final" else "searching", completed=done, total=epochs
            )

        fitted = None
        try:
            values, _ = self.recipes[cell.method, cell.shots]
            shots = self._shots_of(cell, values)
            validation = None
            if split.validation:
                rows = torch.tensor([self.draws.validation_rows.index(row) for row in split.validation])
                validation = self._validation_pictures(method.trains_image_tower).select(rows)
            fitted = fit_adapter(
                self.classifier, cell.method, shots, validation, recipe_values=values, overrides=self.overrides[cell.method],
                seed=cell.seed, state_folder=self.unfinished(cell), on_epoch=on_epoch,
            )  # fmt: skip
            start = time.perf_counter()
            file = self.run.predictions_file(cell.method, cell.shots, cell.seed)
            record |= self._test(fitted.model, file, own_tower=method.trains_image_tower) | {"predictions": file}
            views = 0 if method.trains_image_tower else views_needed(values) * len(split.train)
            record["seconds"] = {
                "features": self.run.results["data"]["seconds_per_view"] * views, **fitted.seconds, "test": time.perf_counter() - start,
            }  # fmt: skip
            record |= {
                "validation": {"kind": fitted.validation.kind, "accuracy": fitted.validation.accuracy},
                "hyperparameters": fitted.hyperparameters, "trained_parameters": fitted.trained_parameters, "curve": fitted.curve,
                # Of the frozen image tower, had it run whenever a training asked for a picture. One that is trained does run.
                "passes_at_every_step": 0
                if method.trains_image_tower
                else len(split.train) * (values.epochs + getattr(values, "cache_views", 0)),
            }  # fmt: skip
            record["folder"] = self.run.adapter_folder(cell.method, cell.shots, cell.seed)
            record["adapter_bytes"] = self._save_adapter(fitted.model, record)
        except OSError:
            raise  # a full disk is no fault of the method, and the next cell would meet it too
        except Exception as error:
            logger.warning("%s failed: %s", cell, error)
            logger.debug("%s", cell, exc_info=True)
            record["error"] = f"{type(error).__name__}: {error}"
        finally:
            self.bars.remove_task(bar)
            if fitted is not None:
                fitted.unload()
        return record

    def _shots_of(self, cell: Cell, values: Recipe) -> Shots:
        rows = torch.tensor([self.draws.rows.index(row) for row in self.draws.splits[cell.shots, cell.seed].train])
        if self.cache_features and not few_shot_method(cell.method).trains_image_tower:
            views = CachedPictures(self._drawn_features(values.augmentation), values.views, cell.seed, self.device)
            plain = CachedPictures(self._drawn_features("none"), device=self.device)
            return Shots(views.select(rows), plain.select(rows))
        images = self.train.select(self.draws.rows).select(rows.tolist())
        live = LivePictures(
            self.classifier,
            images,
            self.processor,
            values.augmentation,
            views_needed(values),
            values.views,
            VIEW_SEED,
            cell.seed,
        )
        return Shots(live, LivePictures(self.classifier, images, self.processor))

    def _drawn_features(self, augmentation: str) -> Features:
        """Features of every drawn picture, in as many views as any method with this augmentation wants."""
        if augmentation not in self._shots:
            views = self._views[augmentation]
            images = self.train.select(self.draws.rows)
            title = f"Features of {len(images)} pictures" + (f" in {views} views" if views > 1 else "")
            self._shots[augmentation] = self._features(images, title, views, augmentation)
        return self._shots[augmentation]

    def _validation_pictures(self, own_tower: bool = False) -> Pictures:
        if own_tower:
            images = self.validation.select(self.draws.validation_rows)
            return LivePictures(self.classifier, images, self.processor)
        if "validation" not in self._shots:
            images = self.validation.select(self.draws.validation_rows)
            self._shots["validation"] = self._features(images, "Validation features")
        return CachedPictures(self._shots["validation"], device=self.device)

    def _save_adapter(self, model: torch.nn.Module, record: Mapping[str, Any]) -> int:
        """What `PeftModel.save_pretrained` writes, with a card; the size of the weights file."""
        from ..hub.model_cards import accuracy_result, model_card

        results = [
            accuracy_result(value, name, shots=record["shots"], seed=record["seed"])
            for name, value in record["accuracy"].items()
        ]
        base_model = None if Path(self.model).exists() else self.model
        with staged_folder(self.run.path / record["folder"], keep_others=False) as stage:
            model.save_pretrained(str(stage))
            recipe_rows = {"method": record["title"], "shots": record["shots"], "seed": record["seed"]}
            recipe_rows |= record["hyperparameters"]
            card = model_card(model, base_model=base_model, results=results, recipe=recipe_rows, weights=stage)
            card.save(stage / "README.md")
            return (stage / "adapter_model.safetensors").stat().st_size


def describe_environment(device: torch.device) -> dict[str, Any]:
    names = ("torch", "transformers", "peft")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "numpy": np.__version__,
        "hf_clip_variants": version("hf-clip-variants"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


__all__ = ["Cell", "adapt"]
