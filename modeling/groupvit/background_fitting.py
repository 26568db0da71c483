"""The background of a GroupViT from a few labelled images: thresholds that are calibrated, and ones that are trained.

The model is frozen; images are seen once. A labelled image is `(pixel_values, truth)`: (3, H, W) normalised, and a
label map (h, w) in the numbers of `config.id2label`, or for training also (N,) bool, which labels are in the image.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch.nn import functional as F

from ..dense.background import LEARNED, background_thresholds
from ..dense.group_counts import group_ids
from ..dense.sliding_window import window_places
from .background_calibration import SHRINKAGE, GroupObservations, calibrate_thresholds, observe_groups
from .background_threshold import BackgroundThreshold, fit_background_threshold
from .modeling_groupvit_segmentation import GroupViTForSemanticSegmentation


LabelledImage = tuple[torch.Tensor, torch.Tensor]


def calibrate_background_thresholds(
    model: GroupViTForSemanticSegmentation,
    images: Iterable[LabelledImage],
    threshold: float | None = None,
    shrinkage: float = SHRINKAGE,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
) -> dict[str, float]:
    """Give each label a threshold of its own, from a few images with label maps; returns label -> threshold, which is
    now `model.config.background` and saved with the model.

    For the rule, see `background_calibration.calibrate_thresholds`. If the background is a small part of the scores'
    errors (`GroupOracle`'s `background_error`), this cannot help much.

    Args:
        model: with labels and a background by thresholds, `set_labels([...], processor, background=0.95)`.
        images: with label maps, see the top of this file; with windows, maps of the images' size.
        threshold: that thresholds are drawn to; default: the model's, if it is one number, else their mean.
        shrinkage: how strongly, in groups.
        window, stride: as in `sliding_window_logits`; the groups of each window count, as if it were an image.

    Raises:
        ValueError: no labels or no background by thresholds, no images, label maps with other numbers.

    Example: see the README.
    """
    labels = _labels_of(model)
    if model.config.background == LEARNED:
        raise ValueError("background: 'learned'; want a threshold, set_labels([...], processor, background=0.95)")
    if threshold is None:
        threshold = float(background_thresholds(model.config.background, labels).mean())
    seen = [
        observe_groups(scores, group_ids(maps[None], tuple(label_map.shape))[0], label_map)
        for scores, maps, label_map in _seen(model, images, window, stride)
    ]
    found = calibrate_thresholds(GroupObservations.joined(seen), threshold, shrinkage).tolist()
    model.config.background = dict(zip(labels, found, strict=True))
    return dict(model.config.background)


def learn_background(
    model: GroupViTForSemanticSegmentation,
    images: Iterable[LabelledImage],
    kind: Literal["per_label", "open_vocabulary"] = "per_label",
    steps: int = 200,
    lr: float = 0.05,
    pull: float = 0.01,
) -> list[float]:
    """Train the background's thresholds, and nothing else, on images with label maps or with tags; returns the losses.

    "per_label": a number for each label; the model's background is label -> threshold afterwards. "open_vocabulary": a
    function of the label's text embedding; it is "learned" afterwards, for any labels. At the start both are the
    model's threshold exactly; afterwards the hard rule applies them.

    Args:
        model: as for `calibrate_background_thresholds`.
        images: see the top of this file.
        steps, lr, pull: see `fit_background_threshold`.

    Raises:
        ValueError: no labels or no background, no images, thresholds of "per_label" that differ already.
    """
    if kind not in ("per_label", "open_vocabulary"):
        raise ValueError(f"kind: {kind!r}, expected 'per_label' or 'open_vocabulary'")
    labels, config = _labels_of(model), model.config
    start = config.background_start
    if config.background != LEARNED:
        start = background_thresholds(config.background, labels)
        if start.dim() and start.unique().numel() > 1:
            raise ValueError(f"background: {config.background}, expected one threshold to start from")
        start = float(start.flatten()[0])
    embeddings = None
    if kind == "per_label":
        module = BackgroundThreshold(num_labels=len(labels), threshold=start)
    else:
        texts = model.resolve_class_embeddings()
        counts = [1] * len(labels) if texts.counts is None else texts.counts
        embeddings = torch.stack([part.float().mean(0) for part in texts.embeddings.cpu().split(list(counts))])
        embeddings = F.normalize(embeddings, dim=-1)
        module = BackgroundThreshold(embedding_dim=embeddings.shape[1], threshold=start)
    seen = []
    for scores, maps, truth in _seen(model, images):
        if truth.dtype != torch.bool:
            maps = F.interpolate(maps[None], size=tuple(truth.shape), mode="bilinear", align_corners=False)[0]
        seen.append((scores, maps, truth))
    losses = fit_background_threshold(module, seen, embeddings, steps=steps, lr=lr, pull=pull)
    if kind == "per_label":
        found = module.thresholds().detach().tolist()
        config.background = dict(zip(labels, found, strict=True))
    else:
        config.background, config.background_rule, config.background_start = LEARNED, "threshold", start
        model.background_threshold = module.to(model.device)
    return losses


def _labels_of(model) -> list[str]:
    if model.class_embeddings is None or not model.config.background_has_own_channel:
        raise ValueError(
            "model: has no labels, or no background by thresholds; call set_labels([...], processor, background=0.95)"
        )
    return model.labels_with_texts()


@torch.no_grad()
def _seen(model, images, window=None, stride=None) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Scores (G, N), soft maps (G, h, w) and truth of each image or window; label maps as 0 background, 1 + label."""
    training, count = model.training, len(model.config.id2label)
    order = [model.config.background_index]
    order += [label for label in range(count) if label != model.config.background_index]
    model.eval()
    try:
        for number, (pixels, truth) in enumerate(images):
            pixels = pixels[None] if pixels.dim() == 3 else pixels
            truth = torch.as_tensor(truth)
            if truth.dtype != torch.bool:
                truth = _in_order(truth, order, model.config.semantic_loss_ignore_index, number)
            elif truth.shape != (count - 1,):
                raise ValueError(f"images[{number}]: tags of shape {tuple(truth.shape)}, expected ({count - 1},)")
            if window is None:
                places = [(slice(None), slice(None))]
            elif tuple(truth.shape) != tuple(pixels.shape[-2:]):
                raise ValueError(
                    f"images[{number}]: a map of {tuple(truth.shape)} for {tuple(pixels.shape[-2:])} pixels, expected "
                    "the same, since there are windows"
                )
            else:
                places = window_places(tuple(truth.shape), window, stride)
            for rows, columns in places:
                outputs = model(pixel_values=pixels[..., rows, columns].to(model.device))
                part = truth if window is None else truth[rows, columns]
                yield outputs.group_scores[0].float().cpu(), outputs.group_maps[0].float().cpu(), part
    finally:
        model.train(training)


def _in_order(label_map: torch.Tensor, order: list[int], ignore_index: int, number: int) -> torch.Tensor:
    """Labels of the model -> 0 for the background, 1 + n for its n-th label; 255 where nothing counts."""
    found = torch.full_like(label_map, 255, dtype=torch.int64)
    known = label_map == ignore_index
    for place, label in enumerate(order):
        found[label_map == label] = place
        known |= label_map == label
    if not known.all():
        raise ValueError(f"images[{number}]: the label map has {int(label_map[~known][0])}, which is no label")
    return found


__all__ = ["LabelledImage", "calibrate_background_thresholds", "learn_background"]
