"""Official Tip-Adapter caches (`caches/<data set>/*.pt` of gaopengcuhk/Tip-Adapter) -> an adapter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoint_format import AdapterFormat, OfficialAdapterFile, Signature
from ..image_cache import check_labels
from .config import TipAdapterConfig
from .layer import ALLOW_MISSING


def labels_from_one_hot(values: torch.Tensor, num_classes: int | None = None) -> torch.Tensor:
    """(N, C) one-hot cache values -> (N,) int64 labels. ValueError for other rows, or more columns than classes."""
    if values.dim() != 2 or (num_classes is not None and values.shape[1] > num_classes):
        raise ValueError(
            f"values: shape {list(values.shape)}, expected (N, {'C' if num_classes is None else num_classes})"
        )
    values = values.float()
    if not (((values == 0) | (values == 1)).all() and (values.sum(dim=1) == 1).all()):
        raise ValueError("values: rows are not one-hot")
    return values.argmax(dim=1)


def convert_tip_adapter(
    keys: torch.Tensor,
    values: torch.Tensor,
    best_keys: torch.Tensor | None = None,
    *,
    num_classes: int | None = None,
    alpha: float = 1.0,
    beta: float = 5.5,
    allow_missing_classes: bool = False,
) -> tuple[TipAdapterConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors for `put_adapter`, float32 keys and integer labels.

    Args:
        keys: `keys_16shots.pt`, (D, N); `checkpoint_reader.read_checkpoint(path)` reads these files, which hold a bare
            tensor.
        values: `values_16shots.pt`, (N, C) one-hot.
        best_keys: `best_F_16shots.pt`, (N, D): trained keys, used instead of `keys` (Tip-Adapter-F).
        num_classes: C. Needed when the last classes have no image: the official `values` are then narrower.
        alpha, beta: from the official search, which prints them and saves them nowhere.
        allow_missing_classes: leave classes without an image to zero-shot CLIP instead of raising.

    Raises:
        ValueError: shapes that do not fit each other, rows that are not one-hot, classes without an image, values that
            are not finite.

    Example:

    ```python
    keys, values = (checkpoint_reader.read_checkpoint(f"caches/dtd/{name}_16shots.pt") for name in ("keys", "values"))
    model = put_adapter(classifier, *convert_tip_adapter(keys, values, alpha=2.1, beta=4.6))
    ```
    """
    labels = labels_from_one_hot(values, num_classes)
    if keys.dim() != 2 or keys.shape[1] != len(labels):
        raise ValueError(f"keys: shape {list(keys.shape)}, expected (D, {len(labels)})")
    if best_keys is not None and tuple(best_keys.shape) != tuple(keys.shape[::-1]):
        raise ValueError(f"best_keys: shape {list(best_keys.shape)}, expected {list(keys.shape[::-1])}")
    num_classes = num_classes or values.shape[1]
    check_labels(labels, num_classes, allow_missing=allow_missing_classes, hint=ALLOW_MISSING)
    keys = (keys.t() if best_keys is None else best_keys).detach().float().contiguous()
    if not torch.isfinite(keys).all():
        raise ValueError("keys: not finite")
    config = TipAdapterConfig(
        alpha=alpha, beta=beta, cache_size=len(labels), num_classes=num_classes, trainable_keys=best_keys is not None
    )
    return config, {
        "logit_head.clipv_tip_adapter_keys": keys,
        "logit_head.clipv_tip_adapter_labels": labels,
    }


def _values_file(path: Path, options: Mapping[str, Any]) -> list[Path]:
    """The user's file of values, or `values_16shots.pt` in the folder of `keys_16shots.pt` or `best_F_16shots.pt`."""
    if "values" in options:
        return [Path(options["values"])]
    for prefix in ("keys_", "best_F_"):
        beside = path.with_name("values_" + path.name.removeprefix(prefix))
        if path.name.startswith(prefix) and beside.is_file():
            return [beside]
    raise ValueError(
        f"values: no values_… file with the labels of {path.name} lies beside it; name it "
        "(--values caches/…/values_16shots.pt)"
    )


def _convert(official: OfficialAdapterFile) -> tuple[TipAdapterConfig, dict[str, torch.Tensor]]:
    if official.class_names is None:
        raise ValueError(
            "class_names: Tip-Adapter caches images of its classes; name them in label order (--classes), or give a "
            "classifier as base"
        )
    keys, path, (values_path,) = official.weights[""], official.path, official.other_files
    values = official.read_weights(values_path).get("")
    if values is None:
        raise ValueError(
            f"values: {values_path} holds named tensors, expected the single tensor that Tip-Adapter saves (N, C)"
        )
    num_classes, width = len(official.class_names), official.classifier.config.projection_dim
    rows = len(labels_from_one_hot(values, num_classes))
    # (D, N) in keys_*.pt, (N, D) in best_F_*.pt. If both fit, the file name decides.
    trained = tuple(keys.shape) == (rows, width) and (rows != width or path.name.startswith("best_F"))
    if not trained and tuple(keys.shape) != (width, rows):
        raise ValueError(
            f"{path}: shape {list(keys.shape)}, expected {[width, rows]} (keys_*.pt) or {[rows, width]} "
            f"(best_F_*.pt): features of {values_path.name}'s {rows} images by the base's joint width"
        )
    found = {name: float(official.options[name]) for name in ("alpha", "beta") if name in official.options}
    if len(found) < 2:
        official.notes.append(
            "alpha and beta are in no file: the official search prints them. Where not given, 1.0 and 5.5 are taken"
        )
    best_keys, keys = (keys, keys.t()) if trained else (None, keys)
    return convert_tip_adapter(keys, values, best_keys, num_classes=num_classes, **found)


CHECKPOINTS = AdapterFormat(
    signature=Signature(every=(r"$",)),  # a single tensor, which has no name
    tensors=("",),
    other_files=_values_file,
    convert=_convert,
)


__all__ = ["CHECKPOINTS", "convert_tip_adapter", "labels_from_one_hot"]
