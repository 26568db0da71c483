"""What `evaluate` does where images have several labels: mAP and F1, and calibration on other images."""

from collections.abc import Mapping
from typing import Any

from .output import machine_output, progress_bar, say, screen, title_and_rows


SHOWN_CLASSES = 10
FIGURES = {"mAP": "mAP", "f1_micro": "micro F1", "f1_macro": "macro F1"}  # in the result, and as they are printed


def evaluate_labels(
    data: str,
    split: str | None,
    reading: Mapping[str, Any],
    loading: Mapping[str, Any],
    common_classes: bool,
    calibrate: str | None,
    save: str | None,
    batch_size: int,
    precision: str,
    json: bool,
) -> list[tuple[str, str]]:
    """Print the result; returns the images that could not be read, and why.

    `reading` are arguments of `load_multi_label_images`, `loading` those of `load_for_prediction`.
    """
    from ..data.images.multi_label import load_multi_label_images
    from ..evaluation.multi_label import (
        calibrate_labels,
        label_thresholds,
        measure_labels,
        recalibrated,
        score_labels,
    )
    from ..evaluation.precision import use_precision
    from ..evaluation.prediction import load_for_prediction

    images = load_multi_label_images(data, split, **reading)
    if split is None and images.split == "train" and "test" in images.available_splits:
        images = images.load_split(split="test")
    loaded = load_for_prediction(**loading, several_labels=True, default_class_names=images.class_names)
    use_precision(loaded.model, precision, say)
    names = loaded.class_names
    images = _of_the_model(images, names, data, common_classes)
    result: dict[str, Any] = {"data": data, "split": images.split, "images": len(images), "classes": len(names)}
    result["precision"] = precision
    result["labels_per_image"] = float(images.labels.sum(1).mean())
    with progress_bar("Classifying", len(images)) as advance:
        said = score_labels(loaded.model, images, loaded.processor, batch_size, advance)
    if calibrate is not None:
        known = _of_the_model(_calibration_images(calibrate, images, reading), names, calibrate, common_classes)
        before = measure_labels(said, label_thresholds(loaded.model))
        with progress_bar("Calibrating", len(known)) as advance:
            calibrate_labels(loaded.model, known, loaded.processor, batch_size, advance)
        said = recalibrated(loaded.model, said)
        result["calibrated_on"] = {"data": calibrate, "images": len(known)}
        result["before_calibration"] = {name: before[name] for name in FIGURES}
    thresholds = label_thresholds(loaded.model)
    result |= measure_labels(said, thresholds)
    by_class = result.pop("by_class") | {"threshold": [round(t, 6) for t in thresholds.tolist()]}
    result["per_class"] = {n: {key: values[i] for key, values in by_class.items()} for i, n in enumerate(names)}
    result["unreadable"] = [name for name, _ in images.skipped]
    if save is not None:
        loaded.model.save_pretrained(save)
        loaded.processor.save_pretrained(save)
    if json:
        with machine_output() as emit:
            emit(result)
    else:
        _print_result(result)
        if save is not None:
            say(f"Saved: {save}")
    return list(images.skipped)


def _calibration_images(source: str, images: Any, reading: Mapping[str, Any]) -> Any:
    """`source` is another split of the data, or data of its own."""
    from ..data.images.multi_label import load_multi_label_images
    from ..data.images.sources import SPLIT_ALIASES

    split = SPLIT_ALIASES.get(source.lower(), source)
    if split not in images.available_splits:
        return load_multi_label_images(source, **reading)
    if split == images.split:
        raise ValueError(f"--calibrate: {source} is the split that is measured; want another one")
    return images.load_split(split=source)


def _of_the_model(images: Any, class_names: list[str], data: str, common_classes: bool) -> Any:
    if common_classes:
        images = images.select_classes([i for i, name in enumerate(images.class_names) if name in set(class_names)])
    return images.align_classes(class_names, data)


def _print_result(result: Mapping[str, Any]) -> None:
    from rich.text import Text

    out = screen()
    split = f", split {result['split']}" if result["split"] else ""
    about = f" on {result['images']} images with {result['labels_per_image']:.1f} of {result['classes']} labels each"
    out.print(Text.assemble((_figures(result), "bold"), f"{about} ({result['data']}{split})"), soft_wrap=True)
    measured = [(n, c) for n, c in result["per_class"].items() if c["average_precision"] is not None]
    hardest = sorted(measured, key=lambda pair: pair[1]["average_precision"])[:SHOWN_CLASSES]
    rows = [
        (
            name,
            str(c["images"]),
            f"{100 * c['average_precision']:.1f}",
            f"{100 * c['f1']:.1f}",
            f"{100 * c['threshold']:.0f} %",
        )
        for name, c in hardest
    ]
    columns = ("class", "images", "average precision", "F1", "threshold")
    out.print(title_and_rows(f"The {len(rows)} hardest classes", columns, rows))
    if "calibrated_on" in result:
        about = result["calibrated_on"]
        before = _figures(result["before_calibration"])
        out.print(f"Calibrated on {about['images']} images ({about['data']}); before: {before}.", soft_wrap=True)
    else:
        out.print(
            "Not calibrated in this run: --calibrate SPLIT fits probabilities and thresholds to labelled images."
        )


def _figures(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{shown} {100 * result[name]:.1f}" for name, shown in FIGURES.items())


__all__ = ["evaluate_labels"]
