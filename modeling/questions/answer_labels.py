"""Answers of a fixed list as labels: whole numbers, or how right each answer is."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch


IGNORED = -100  # the label of a question without a known answer, where that is allowed
_FULL_SCORE = 3  # of ten people, so many make an answer right (VQA v2)


def check_answer_labels(labels: object, batch: int, count: int, may_ignore: bool = False) -> torch.Tensor:
    """`labels` of `batch` questions with `count` answers: int64 (B,), or floats (B, N) from 0 to 1.

    `may_ignore`: whole numbers may be -100, for a question that does not count.

    Raises:
        ValueError: another type or shape, an answer that is none.
    """
    is_tensor = isinstance(labels, torch.Tensor)
    if is_tensor and labels.dtype == torch.int64 and labels.shape == (batch,):
        known = labels[labels != IGNORED] if may_ignore else labels
        if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < count:
            raise ValueError(f"labels: {int(known.min())}..{int(known.max())}, expected answers, 0..{count - 1}")
        return labels
    if is_tensor and labels.is_floating_point() and labels.shape == (batch, count):
        if not bool(((labels >= 0) & (labels <= 1)).all()):
            raise ValueError("labels: numbers outside of 0..1, expected how right each answer is")
        return labels.float()
    got = f"{labels.dtype} {list(labels.shape)}" if is_tensor else type(labels).__name__
    raise ValueError(f"labels: got {got}, expected whole numbers [{batch}], or floats [{batch}, {count}]")


def soft_answers(
    answers: Sequence[str | Sequence[str] | Mapping[str, float]], label2id: Mapping[str, int], unknown: str = "error"
) -> torch.Tensor:
    """What people answered -> (B, N) floats, how right each answer of a list is, for `labels` of a model.

    Args:
        answers: of each question one answer; or those of several people, of which an answer that k of them gave gets
            min(k / 3, 1), as VQA v2 scores; or a dictionary of answers with their scores.
        label2id: the list, `config.label2id`.
        unknown: `"error"`, or `"ignore"`: answers that are not in the list are left out, as the official code does. A
            question whose answers are all left out has zeros.

    Raises:
        ValueError: an answer that is not in the list (the question, the answer), no answers, an answer that is no
            text, a score outside of 0..1, another `unknown`.

    Example:

    ```python
    >>> from hf_clip_variants.modeling.questions.answer_labels import soft_answers

    >>> soft_answers([["red", "red", "pink"], "pink"], {"red": 0, "pink": 1})
    tensor([[0.6667, 0.3333],
            [0.0000, 1.0000]])
    ```
    """
    if unknown not in ("error", "ignore"):
        raise ValueError(f"unknown: {unknown!r}, expected 'error' or 'ignore'")
    if isinstance(answers, str | bytes | Mapping) or not hasattr(answers, "__len__") or not len(answers):
        raise ValueError(
            f"answers: got {type(answers).__name__} {str(answers)[:60]!r}, expected those of each question"
        )
    scores = torch.zeros(len(answers), max(label2id.values()) + 1)
    for place, given in enumerate(answers):
        if isinstance(given, str):
            given = {given: 1.0}
        elif not isinstance(given, Mapping | Sequence) or isinstance(given, bytes) or not len(given):
            raise ValueError(f"answers[{place}]: got {given!r}, expected an answer, several, or a dictionary of them")
        elif not isinstance(given, Mapping):
            if wrong := [answer for answer in given if not isinstance(answer, str)]:
                raise ValueError(f"answers[{place}]: got {wrong[0]!r}, expected a text")
            given = {answer: min(number / _FULL_SCORE, 1.0) for answer, number in Counter(given).items()}
        for answer, score in given.items():
            if not isinstance(answer, str):
                raise ValueError(f"answers[{place}]: got {answer!r}, expected a text")
            is_number = isinstance(score, int | float) and not isinstance(score, bool)
            if not is_number or not 0 <= score <= 1:
                raise ValueError(f"answers[{place}]: {answer!r} is {score!r} right, expected a number in 0..1")
            if answer in label2id:
                scores[place, label2id[answer]] = score
            elif unknown == "error":
                some = ", ".join(list(label2id)[:5])
                raise ValueError(
                    f"answers[{place}]: {answer!r} is not one of the {len(label2id)} answers ({some}, …); want "
                    "unknown='ignore' to leave it out"
                )
    return scores


__all__ = ["IGNORED", "check_answer_labels", "soft_answers"]
