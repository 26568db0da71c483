"""The tables beside the report, for spreadsheets and pandas: `results.csv` and `predictions.csv`.

Text that begins as a formula is escaped, see `data/csv_cells.py`; scores are never negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..data.csv_cells import csv_line


RESULT_COLUMNS = (
    *("test_set", "test_images", "method", "shots", "seeds", "accuracy", "spread", "top5"),
    *("gain", "gain_low", "gain_high", "trained_parameters", "adapter_bytes", "seconds", "validation"),
)
PREDICTION_COLUMNS = (*("test_set", "image", "class", "zero_shot", "zero_shot_score", "adapted", "adapted_score"),)


def results_csv(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each test set, method and number of shots; accuracies in 0..1. `rows`: those of `summary`."""
    lines = []
    for name, about in results["data"]["test_sets"].items():
        for row in rows:
            test = row["tests"][name]
            low, high = test.get("interval", (None, None))
            measured = {**row, **test, "test_set": name, "test_images": about["images"]}
            lines.append({**measured, "gain_low": low, "gain_high": high})
    return _csv(RESULT_COLUMNS, lines)


def predictions_csv(class_names: Sequence[str], sections: Iterable[Mapping[str, Any]]) -> str:
    """A line for each test image: its class, and what zero-shot CLIP and the shown adapter say.

    Args:
        class_names: C names.
        sections: of each test set its `name`, `labels` (N,), `zero_shot` and `adapted`: predicted classes (N,) and
            their scores (N,), and `ids` of its images. Without an adapter or ids, their cells are empty.
    """
    lines = []
    for section in sections:
        for place, label in enumerate(section["labels"]):
            line = {"test_set": section["name"], "class": class_names[label]}
            line["image"] = "" if section["ids"] is None else section["ids"][place]
            for column in ("zero_shot", "adapted"):
                if section[column] is not None:
                    predicted, scores = section[column]
                    line[column], line[f"{column}_score"] = class_names[predicted[place]], f"{scores[place]:.6f}"
            lines.append(line)
    return _csv(PREDICTION_COLUMNS, lines)


def _csv(columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    rows = [[line.get(column, "") for column in columns] for line in lines]
    return "".join(map(csv_line, [columns, *rows]))


__all__ = ["predictions_csv", "results_csv"]
