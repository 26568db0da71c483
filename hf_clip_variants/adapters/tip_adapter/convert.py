"""Official Tip-Adapter caches (`caches/<data set>/*.pt` of gaopengcuhk/Tip-Adapter) -> an adapter."""

import torch

from .config import TipAdapterConfig
from .layer import check_labels


def labels_from_one_hot(values: torch.Tensor, num_classes: int | None = None) -> torch.Tensor:
    """(N, C) one-hot cache values -> (N,) int64 labels. ValueError for rows that are not one-hot or more columns than classes."""
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
        keys: `keys_16shots.pt`, (D, N); `official.read_checkpoint(path)` reads these files, which hold a bare tensor.
        values: `values_16shots.pt`, (N, C) one-hot.
        best_keys: `best_F_16shots.pt`, (N, D): trained keys, which take the place of `keys` (Tip-Adapter-F).
        num_classes: C. Needed when the last classes have no picture: the official `values` are then narrower.
        alpha, beta: found by the official search, which only prints them.
        allow_missing_classes: leave classes without a picture to zero-shot CLIP instead of raising.

    Raises:
        ValueError: shapes that do not go together, rows that are not one-hot, classes without a picture, values that are not finite.

    Example:

    ```python
    keys, values = (official.read_checkpoint(f"caches/dtd/{name}_16shots.pt") for name in ("keys", "values"))
    model = put_adapter(classifier, *convert_tip_adapter(keys, values, alpha=2.1, beta=4.6))
    ```
    """
    labels = labels_from_one_hot(values, num_classes)
    if keys.dim() != 2 or keys.shape[1] != len(labels):
        raise ValueError(f"keys: shape {list(keys.shape)}, expected (D, {len(labels)})")
    if best_keys is not None and tuple(best_keys.shape) != tuple(keys.shape[::-1]):
        raise ValueError(f"best_keys: shape {list(best_keys.shape)}, expected {list(keys.shape[::-1])}")
    num_classes = num_classes or values.shape[1]
    check_labels(labels, num_classes, allow_missing=allow_missing_classes)
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


__all__ = ["convert_tip_adapter", "labels_from_one_hot"]
