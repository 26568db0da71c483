"""What `evaluate --task segmentation` does: mean IoU on label maps, and with `--oracle` what limits it."""

from collections.abc import Mapping
from typing import Any

from .output import machine_output, progress_bar, say, screen, title_and_rows


ERRORS = {
    "grouping_error": "lost by the groups (1 - oracle)",
    "classification_error": "lost by their names (oracle - model)",
    "absent_class_confusion": "of that, by names of classes that are not there",
    "background_error": "of that, by the background",
}
FIGURES = {
    "zero_shot": "the model's names of its groups",
    "oracle": "oracle: the best name of each group",
    "majority": "the most frequent class of each group",
    "present_classes": "the model, told which classes are there",
    "true_background": "the model, told the background",
    "true_masks": "the model's names of the true masks",
}


def evaluate_segmentation(
    data: str,
    split: str | None,
    reading: Mapping[str, Any],
    loading: Mapping[str, Any],
    windows: Mapping[str, Any],
    oracle: bool,
    calibrate: str | None,
    save: str | None,
    json: bool,
) -> None:
    """Print the result.

    `reading` are arguments of `load_label_maps`, `loading` those of `load_segmentation_model`, `windows` those of
    `Windows`.

    Under torchrun every process measures its share, and the first one prints the sums.
    """
    from ..data.images.label_maps import load_label_maps
    from ..evaluation.ranks import joined_ranks
    from ..evaluation.segmentation_quality import (
        Windows,
        calibrate_background,
        load_segmentation_model,
        measure_segmentation,
    )

    maps = load_label_maps(data, split, **reading)
    segmenter = load_segmentation_model(**loading, default_labels=maps.class_names)
    result: dict[str, Any] = {"data": data, "split": maps.split}
    with joined_ranks(segmenter.model.device) as first:
        if calibrate is not None:
            known = load_label_maps(*_calibration_source(calibrate, data, maps), **reading)
            window = {name: windows[name] for name in ("window", "stride") if windows.get(name)}
            with progress_bar("Calibrating", None):
                thresholds = calibrate_background(segmenter, known, **window)
            result["calibrated_on"] = {"data": calibrate, "images": len(known), "thresholds": thresholds}
        with progress_bar("Segmenting", len(maps)) as advance:
            result |= measure_segmentation(segmenter, maps, Windows(**windows), oracle, advance=advance)
        if not first:
            return
        if save is not None:
            segmenter.model.save_pretrained(save)
            segmenter.processor.save_pretrained(save)
    if json:
        with machine_output() as emit:
            emit(result)
        return
    _print_result(result)
    if save is not None:
        say(f"Saved: {save}")


def _calibration_source(source: str, data: str, maps: Any) -> tuple[str, str | None]:
    """`source` is another split of the data, or data of its own."""
    from ..data.images.names import SPLIT_ALIASES

    split = SPLIT_ALIASES.get(source.lower(), source)
    if split in maps.available_splits:
        if split == maps.split:
            raise ValueError(f"--calibrate: {source} is the split that is measured; want another one")
        return data, split
    return source, None


def _print_result(result: Mapping[str, Any]) -> None:
    from rich.text import Text

    out = screen()
    split = f", split {result['split']}" if result["split"] else ""
    about = (
        f" mean IoU of {len(result['per_class_iou'])} classes, {_percent(result['overall_accuracy'])} % of pixels "
        f"right ({result['images']} images, {result['data']}{split})"
    )
    out.print(Text.assemble((f"{_percent(result['mean_iou'])} %", "bold"), about), soft_wrap=True)
    if result["missing_classes"]:
        say(f"The model does not have the classes {', '.join(result['missing_classes'])}: their IoU is 0")
    if result["unknown_labels"]:
        say(f"The data does not have the labels {', '.join(result['unknown_labels'])}: wrong wherever they are said")
    columns = ["class", "IoU, %", "accuracy, %"]
    analyses = [result[name] for name in ("oracle", "oracle_without_boundaries") if name in result]
    if analyses:
        columns += ["oracle IoU, %"]
    rows = []
    for place, (name, iou) in enumerate(result["per_class_iou"].items()):
        row = [name, _percent(iou), _percent(result["per_class_accuracy"][name])]
        rows.append(row + [_percent(one["per_class_iou"]["oracle"][place]) for one in analyses[:1]])
    out.print(title_and_rows("Classes", columns, rows))
    if not analyses:
        return
    rows = [[text, *(_percent(one["miou"][name]) for one in analyses)] for name, text in FIGURES.items()]
    rows += [[text, *(_percent(one[name]) for one in analyses)] for name, text in ERRORS.items()]
    rows.append(["true masks with the right name", *(_percent(one["mask_accuracy"]) for one in analyses)])
    rows.append(["groups used in an image", *(f"{one['groups_used']:.1f}" for one in analyses)])
    title = "What limits it: an analysis with the true maps (mean IoU, %)"
    out.print(title_and_rows(title, ("", "all pixels", "without boundaries"), rows))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
