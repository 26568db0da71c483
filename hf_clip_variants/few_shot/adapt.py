"""`adapt`: the few-shot protocol on one data set, with adapters, predictions and a report kept in a folder.

After a kill, the same call goes on where it was.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save as to_safetensors

from ..data.images.labelled_sets import absolute_source
from ..files.atomic_writes import staged_folder, write_atomically
from ..files.json_files import digest, write_json
from ..files.shared_weights import save_sharing_weights
from ..metrics.classification import accuracy_by_class
from ..modeling.clip_classifier.modeling_clip_classifier import CLIPClassifier
from ..modeling.clip_classifier.processing_clip_classifier import CLIPClassifierProcessor
from ..modeling.dual_encoders.fingerprint import features_key
from .fitting import Validation, apply_overrides
from .method import default_methods, few_shot_method
from .protocols import Plan, Task, whole_set
from .recipes import recipe
from .recommendation import ZERO_SHOT, recommend
from .run_folder import RunFolder
from .runner import FewShotRunner, Run, default_profile, describe_environment, overrides_by_method
from .splits import TestSet, divide, load_training
from .summary import finished_runs, gains, summary


if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)

# The fields of a run in results.json, with the values of a run that failed.
RUN_FIELDS: dict[str, Any] = {
    "method": None,
    "title": None,
    "shots": 0,
    "seed": 0,
    "accuracy": {},
    "per_class": {},
    "validation": asdict(Validation("none")),
    "zero_shot_error": None,
    "hyperparameters": {},
    "trained_parameters": 0,
    "adapter_bytes": 0,
    "seconds": {"features": 0.0, "train": 0.0, "search": 0.0, "test": 0.0},
    "folder": None,
    "predictions": None,
    "train_indices": [],
    "curve": [],
    "passes_at_every_step": 0,
    "error": None,
}


def adapt(
    model: str | os.PathLike,
    data: str | Sequence[str],
    out: str | os.PathLike,
    *,
    methods: Sequence[str] | None = None,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: Sequence[int] = (1, 2, 3),
    test_data: Mapping[str, str] | None = None,
    templates: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    overrides: Mapping[str, Any] | None = None,
    profile: str | None = None,
    benchmark: str | None = None,
    cache_features: bool = True,
    precision: str = "float32",
    reading: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    report: bool = True,
    on_result: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Adapt a frozen CLIP to the classes of a data set, with several methods, numbers of shots and seeds.

    Writes a run folder: `results.json` (after every run), `report.html`, `base/` (the classifier),
    `adapters/<method>/<K>-shot/seed-<S>/` (what `PeftModel.from_pretrained` and the Hub take) and `predictions/`.
    `runs-0.jsonl` and `work/` are for going on after an interruption: called again with the same arguments, `adapt`
    does the missing runs. Runs do not depend on each other or on their order, so the results are the same. Weights
    that come unchanged from the Hub's cache are linked into `base/`, not copied; they stay when the cache is emptied.

    Args:
        model: a CLIP or a saved `CLIPClassifier`, folder or Hub id.
        data: what `load_images` reads, such as a folder, or several of them in a list. Shots are drawn from its train
            split; validation is done on its validation split, or else by cross-validation over the shots.
        out: the run folder.
        methods: names in `FEW_SHOT_METHODS`. Default: those that take minutes without a GPU. The others take hours.
        shots, seeds: every method is fitted for every pair. More shots than most classes have images are cut, with a
            warning.
        test_data: name -> source. Default: the data's test split, or else a fifth of the images of each class, which
            are then never learnt from. They are chosen by their names: all runs on the same data have the same ones.
        templates: prompt templates: one, a list, a file or a named set; or prompts of each class,
            `{class: [sentences]}` or a JSON file of that. Default: the model family's, such as `"a photo of a {}."`.
        overrides: values instead of the recipes': `{"epochs": 10}` for every method that has it,
            `{"coop.epochs": 10}` for one.
        profile: "published" or "tiny" recipes; default: by the size of the model.
        benchmark: use the values published for this data set (`recipes.DATASETS`).
        cache_features: False: run the frozen image encoder at every step, as the official trainings do. Slower, with
            the same result.
        precision: of the image encoder where it computes features: "float32", "bf16" or "int8" (`precision.py`).
            Methods that train it, and saved files, have float32.
        reading: more arguments of `load_images` (`image_column`, `label_column`, `class_names`, `name`, `revision`).
        device: default: a GPU if there is one.
        progress: bars on standard error.
        report: write report.html, results.csv and predictions.csv at the end.
        on_result: called with each new result, as it stands in `runs`; the first is zero-shot CLIP's.

    Returns:
        What is in results.json. `recommended` names the method to use, "zero_shot" if no adapter is worth it; it is
        decided on validation, not on the test sets (`recommendation.py`). `table` has the means over seeds with their
        spread, and the gains over zero-shot CLIP with 95 % confidence intervals (paired bootstrap over test images).
        A method that failed has its message in `error`; the others went on.

    Raises:
        ValueError: unknown methods or overrides, unsuitable data, a run folder with other settings (named).
        OSError: files that cannot be read or written.

    Example:

    ```python
    results = adapt("openai/clip-vit-base-patch32", "pets/", "run", methods=["tip_adapter"], shots=[4])
    results["zero_shot"]["accuracy"], results["runs"][0]["accuracy"]
    ```
    """
    started = time.perf_counter()
    methods = default_methods() if methods is None else methods
    methods, shots, seeds = _distinct("methods", methods), _counts("shots", shots), _distinct("seeds", seeds)
    by_method = overrides_by_method([few_shot_method(m).name for m in methods], overrides or {})

    data = data if isinstance(data, list | tuple) else str(data)
    train, validation = load_training(data, reading)
    asked_shots, division = shots, divide(train, validation, data, dict(test_data or {}), shots, seeds, reading)
    shots, test_sets, draws = division.shots, division.test_sets, division.draws
    for remark in division.remarks:
        logger.warning("%s: %s", data if isinstance(data, str) else ", ".join(data), remark)

    classifier = CLIPClassifier.from_pretrained(
        model, class_names=list(train.class_names), templates=templates, dtype=torch.float32
    )
    profile, templates = profile or default_profile(classifier), copy.deepcopy(classifier.config.templates)
    for m in methods:  # unknown names are an error now, before the first run
        for k in shots:
            apply_overrides(few_shot_method(m), recipe(m, k, benchmark, profile), by_method[m])
    named = test_data or {t.name: t.source for t in test_sets}
    settings = {
        "model": absolute_source(str(model)),
        "data": absolute_source(data),
        "test_data": {name: absolute_source(source) for name, source in named.items()},
        "methods": methods,
        "shots": asked_shots,
        "seeds": seeds,
        "templates": templates,
        "overrides": dict(overrides or {}),
        "profile": profile,
        "benchmark": benchmark,
        "cache_features": cache_features,
        "reading": dict(reading or {}),
        **({} if precision == "float32" else {"precision": precision}),  # older run folders have no such setting
    }
    contents = {
        "model": digest(features_key(classifier.clip)),
        "data": digest([train.ids, train.labels.tolist(), train.class_names, train.select(draws.rows).fingerprint]),
        **{f"test_data.{t.name}": t.images.fingerprint[:16] for t in test_sets},
    }
    if validation is not None:
        contents["validation"] = validation.select(draws.validation_rows).fingerprint[:16]

    names, plan = tuple(train.class_names), Plan("few_shot", "data", str(data))
    evaluations = tuple(whole_set(t.name, "test", t.images, templates, tuple(range(len(names)))) for t in test_sets)
    task = Task(plan, train, validation, draws, names, templates, evaluations, benchmark)
    zero_shot = Run(plan, str(model))
    runs = [Run(plan, str(model), m, k, s) for m in methods for k in shots for s in seeds]

    folder = RunFolder(out)
    results = folder.open_results(settings, contents)
    with folder.locked(), _progress(progress) as bars:
        bar = bars.add_task("Adapters", total=len(runs))
        detail_bar = bars.add_task("", visible=False)  # of the long step that is running

        def detail(title: str, done: int, total: int) -> None:
            if done < bars.tasks[detail_bar].completed:  # another step: its time left is its own
                bars.reset(detail_bar)
            bars.update(detail_bar, description=title, completed=done, total=total, visible=done < total)

        _save_base(folder, classifier, model)
        runner = FewShotRunner(
            folder.base,  # read back in a first run, too: a run that goes on later reads the same weights
            folder.work,
            [task],
            methods,
            shots,
            profile=profile,
            overrides=overrides,
            cache_features=cache_features,
            device=device,
            on_epoch=lambda label, done, total: detail("training" if label == "final" else "searching", done, total),
            on_features=detail,
            precision=precision,
            say=lambda text: bars.console.print(text, markup=False, highlight=False, soft_wrap=True),
        )
        runner.seconds_per_view = results["data"].get("seconds_per_view", 0.0)
        records, seconds, wanted = folder.records(), results["seconds"], [run.key for run in (zero_shot, *runs)]
        results |= _about_run(runner, task, test_sets, settings)

        base_files = folder.files_of(folder.base)

        def write(status: str) -> None:
            folder.check_is_there(base_files)
            if status == "finished":
                lost = [record["folder"] or ZERO_SHOT for record in map(records.get, wanted) if not folder.has(record)]
                if lost:
                    raise OSError(
                        f"out: files of {', '.join(lost[:3])} in {folder.path} were removed while the command was "
                        "running; repeat it to make them again"
                    )
            results["status"], results["seconds"] = status, seconds + time.perf_counter() - started
            results["data"]["seconds_per_view"] = runner.seconds_per_view
            if zero_shot.key in records:
                results["zero_shot"] = _zero_shot_result(records[zero_shot.key])
            results["runs"] = [_run_result(records[run.key]) for run in runs if run.key in records]
            if status == "finished":
                results["recommended"] = recommend(finished_runs(results))
                results["table"] = summary(folder.path, results)
            write_json(folder.results_file, results)

        def finish(record: dict[str, Any], model: torch.nn.Module, predictions: Mapping[str, Any]) -> None:
            folder.check_is_there(base_files)
            record |= _save_predictions(folder, record, predictions, test_sets)
            if record["method"] != ZERO_SHOT:
                record["folder"] = folder.adapter_folder(record["method"], record["shots"], record["seed"])
                record["adapter_bytes"] = _save_adapter(folder, model, record, settings["model"])

        def tell(record: Mapping[str, Any]) -> None:
            if on_result is not None:
                on_result(_run_result(record))

        write("running")
        if not folder.has(records.get(zero_shot.key)):
            runner.say_passes(task)
            measured = runner.zero_shot(task, finish) | asdict(runner.calibrate(task))
            records[zero_shot.key] = zero_shot.names | measured
            folder.append(records[zero_shot.key])
            write("running")
            tell(records[zero_shot.key])
        _save_calibration(folder, records[zero_shot.key])
        missing = [r for r in runs if not folder.has(records.get(r.key)) or records[r.key].get("error")]
        bars.update(bar, completed=len(runs) - len(missing))
        for run in missing:
            bars.update(bar, description=f"{few_shot_method(run.method).title}, {str(run).partition(', ')[2]}")
            record = run.names | runner.attempt(task, run, finish)
            record["train_indices"] = task.training_rows(run.shots, run.seed)
            if record.get("error"):
                logger.warning("%s failed: %s", run, record["error"])
            folder.append(record)
            records[run.key] = record
            write("running")
            tell(record)
            bars.advance(bar)
        shutil.rmtree(folder.work / "unfinished", ignore_errors=True)
        write("finished")
        if report:
            from .report import write_report

            write_report(folder.path)
    return results


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


@contextmanager
def _progress(show: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
    columns += TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not show) as bars:
        yield bars


def _about_run(
    runner: FewShotRunner, task: Task, test_sets: Sequence[TestSet], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The parts of results.json about the machine, the model and the data."""
    model, draws = settings["model"], task.draws
    return {
        "environment": describe_environment(runner.device),
        "model": {
            "name": Path(model).name if Path(model).exists() else model,
            "parameters": runner.classifier.clip.num_parameters(),
            "image_size": runner.classifier.family.image_size(runner.classifier.config),
        },
        "data": {
            "class_names": list(task.class_names),
            "train_images": len(task.train),
            "videos": task.has_videos,  # images are videos, of which some frames are seen
            "skipped": [name for name, _ in draws.skipped],
            "seconds_per_view": runner.seconds_per_view,
            # Of training images, for all runs together.
            "encoded_views": runner.passes(task),
            "test_sets": {
                t.name: {
                    "images": len(t.images),
                    "unreadable": [name for name, _ in t.images.skipped],
                    "source": absolute_source(t.source),
                    "split": t.split,
                    "rows_are_saved": t.rows is not None,
                }
                for t in test_sets
            },
        },
    }


def _zero_shot_result(record: Mapping[str, Any]) -> dict[str, Any]:
    about = {name: record.get(name) for name in ("temperature", "rejection_threshold")}
    return {
        "accuracy": _accuracies(record),
        "per_class": record["per_class"],
        "seconds": record["seconds"]["test"],
        **about,
    }


def _run_result(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record.get(name, value) for name, value in RUN_FIELDS.items()} | {"accuracy": _accuracies(record)}


def _accuracies(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: test["accuracy"] for name, test in record["tests"].items()}


# ---- files


def _save_base(folder: RunFolder, classifier: CLIPClassifier, model: str | os.PathLike) -> None:
    if (folder.base / "config.json").is_file():
        return
    weights = sum(tensor.nbytes for tensor in classifier.state_dict().values())
    with staged_folder(folder.base, bytes_needed=weights) as stage:
        with torch.no_grad():
            classifier.get_class_features()  # saved, too
        save_sharing_weights(classifier, model, stage)
        CLIPClassifierProcessor.from_clip(str(model)).save_pretrained(stage)


def _save_calibration(folder: RunFolder, record: Mapping[str, Any]) -> None:
    """Put what makes zero-shot CLIP's scores probabilities into the classifier's configuration."""
    file = folder.base / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    found = {name: record.get(name) for name in ("temperature", "rejection_threshold")}
    if found != {name: values.get(name) for name in found}:
        write_json(file, dict(sorted({**values, **found}.items())))


def _save_predictions(
    folder: RunFolder, record: Mapping[str, Any], predictions: Mapping[str, Any], test_sets: Sequence[TestSet]
) -> dict[str, Any]:
    """Write the predictions for all test images. Returns the record's fields for the file and the accuracy of each
    class."""
    tensors, per_class = {}, {}
    for t in test_sets:
        top, confidence = predictions[t.name]
        predicted = top[:, 0].contiguous()
        labels = torch.from_numpy(t.images.labels.copy())
        tensors |= {f"{t.name}.predicted": predicted, f"{t.name}.confidence": confidence[:, 0].contiguous()}
        if top.shape[1] < len(t.images.class_names):  # else it would be all classes
            tensors[f"{t.name}.top"] = top.to(torch.int32)
        if record["method"] == ZERO_SHOT:  # once, for all runs
            tensors |= {f"{t.name}.labels": labels}
            tensors |= {f"{t.name}.rows": torch.tensor(t.rows)} if t.rows is not None else {}
        per_class[t.name] = accuracy_by_class(predicted, labels, len(t.images.class_names))
    file = folder.predictions_file(record["method"], record["shots"], record["seed"])
    write_atomically(folder.path / file, to_safetensors(tensors))
    return {"predictions": file, "per_class": per_class}


def _save_adapter(folder: RunFolder, model: torch.nn.Module, record: Mapping[str, Any], base_model: str) -> int:
    """Write the adapter as `PeftModel.save_pretrained` does, with a card. Returns the size of the weights file."""
    from ..hub.model_cards import accuracy_result, model_card

    measured, results = gains(folder.path, [record["predictions"]]), []
    for name, value in _accuracies(record).items():
        beside = {part: measured[name][part] for part in ("zero_shot", "interval")}
        results.append(accuracy_result(value, name, **beside, shots=record["shots"], seed=record["seed"]))
    with staged_folder(folder.path / record["folder"], keep_others=False) as stage:
        model.save_pretrained(str(stage))
        rows = {"method": record["title"], "shots": record["shots"], "seed": record["seed"]}
        rows |= record["hyperparameters"]
        on_the_hub = None if Path(base_model).exists() else base_model
        card = model_card(model, base_model=on_the_hub, results=results, recipe=rows, weights=stage)
        card.save(stage / "README.md")
        return (stage / "adapter_model.safetensors").stat().st_size


__all__ = ["adapt"]
