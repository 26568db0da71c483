"""Which pixels are none of the labels: by a threshold, by a text, or by a rule that the model has learned."""

from collections.abc import Mapping, Sequence

import torch


LEARNED = "learned"
_LARGEST = torch.finfo(torch.float32).max


def check_background(background) -> None:
    """ValueError unless `background` is None, a number, numbers for each label, or a text.

    >>> check_background(0.95)
    >>> check_background(float("nan"))
    Traceback (most recent call last):
    ValueError: background: nan, expected a finite number
    """
    if background is None or isinstance(background, str):
        if isinstance(background, str) and not background.strip():
            raise ValueError(f"background: {background!r} is blank, expected a text")
        return
    values = [background]
    if isinstance(background, Mapping):
        values = list(background.values())
    elif isinstance(background, torch.Tensor | Sequence):
        values = list(background.tolist() if isinstance(background, torch.Tensor) else background)
    if not values:
        raise ValueError("background: no thresholds, expected one for each label")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(
                f"background: {value!r} ({type(value).__name__}), expected a threshold, thresholds of the labels, or "
                "a text"
            )
        if not abs(value) <= _LARGEST:  # nor is NaN
            shown = value if isinstance(value, float) else "a number beyond float32"
            raise ValueError(f"background: {shown}, expected a finite number")


def background_thresholds(background, labels: Sequence[str]) -> torch.Tensor:
    """The thresholds of N `labels`, float32: () where one number holds for all, else (N,).

    `background` is a number, `{label: number}` or N numbers. Raises ValueError for a label without a number, a number
    without a label, or another count.

    >>> background_thresholds({"cat": 0.5, "dog": 0.25}, ["dog", "cat"])
    tensor([0.2500, 0.5000])
    """
    check_background(background)
    if isinstance(background, Mapping):
        without = [label for label in labels if label not in background]
        unknown = [label for label in background if label not in labels]
        if without or unknown:
            fault = f"without a threshold: {without[:5]}" if without else f"no labels: {unknown[:5]}"
            raise ValueError(f"background: thresholds by label need the {len(labels)} labels as keys; {fault}")
        background = [background[label] for label in labels]
    thresholds = torch.as_tensor(background, dtype=torch.float32).detach().cpu()
    if thresholds.dim() and len(thresholds) != len(labels):
        raise ValueError(f"background: {len(thresholds)} thresholds for {len(labels)} labels, expected one for each")
    return thresholds


def check_background_index(index: int, labels: int) -> None:
    """ValueError unless the background has a place before, among or after so many labels."""
    if not 0 <= index <= labels:
        raise ValueError(f"background_index: {index}, expected 0..{labels} for {labels} labels")


def add_background(
    logits: torch.Tensor, thresholds: torch.Tensor, index: int = 0, of: str = "logits"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, N, H, W) of N labels -> (B, N + 1, H, W) with the background's channel at `index`, and that channel.

    Its largest value is the background's exactly where the best label c has a score below its threshold t_c (a score
    of t_c is the label's). With `of="probabilities"` the score is the softmax over the N labels.

    >>> logits = torch.tensor([0.9, 0.2]).view(1, 2, 1, 1)
    >>> [add_background(logits, torch.tensor(t))[0].argmax(1).item() for t in (0.5, 0.9, 0.95)]
    [1, 1, 0]
    """
    check_background_index(index, logits.shape[1])
    best, label = logits.detach().float().max(dim=1)  # in float32, as the result
    threshold = thresholds.to(best.device)
    if threshold.dim():
        if len(threshold) != logits.shape[1]:
            raise ValueError(f"background: {len(threshold)} thresholds for {logits.shape[1]} labels, want one each")
        threshold = threshold[label]
    else:
        threshold = threshold.expand_as(best)
    if of == "probabilities":
        threshold = threshold.clamp_min(0).log() + logits.detach().float().logsumexp(dim=1)
    # At a tie the label wins, wherever the background stands: its score is lowered by a step of float32.
    lowered = threshold - threshold.abs() * 2**-23 - 2**-126
    channel = torch.where(best < threshold, threshold, lowered)
    parts = [logits[:, :index].float(), channel[:, None], logits[:, index:].float()]
    return torch.cat(parts, dim=1), channel


__all__ = ["LEARNED", "add_background", "background_thresholds", "check_background", "check_background_index"]
