"""What pipelines share that score free labels for videos, clouds of points or other media, for which transformers has
no zero-shot pipeline."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import Pipeline

from ..dual_encoders.pipeline_checks import check_top_k
from ..dual_encoders.prompts import resolve_class_names, resolve_templates
from .class_texts import class_features


class ZeroShotMediaClassificationPipeline(Pipeline):
    """
    Scores labels that are named when it is called: they are encoded once a call, all in one batch, whatever the number
    of inputs. With `batch_size`, inputs of one shape go through the model together.

    A subclass sets the attributes below, overrides `default_templates` where it has others, and reads: `__call__`
    lists the inputs and calls `classify`, `preprocess` gives `{"item": {name: tensor (1, ...)}}` for both `tensors`.

    Attributes:
        reader: the part of the processor that reads the medium.
        compares: the model's method: (input, text features (C, D), mask) -> logits (B, C).
        media: in messages.
        tensors: names of the input and of its mask.
    """

    reader: str
    compares: str
    media: str
    tensors: tuple[str, str]

    def __init__(self, **kwargs):
        for part in (self.reader, "tokenizer"):  # before transformers looks at the options of a call
            if kwargs.get(part) is None:
                kwargs[part] = getattr(kwargs.get("processor"), part, None)
            if kwargs[part] is None:
                raise ValueError(f"{part}: none; pass one, or a processor, to pipeline(...)")
        super().__init__(**kwargs)
        if not hasattr(self.model, self.compares):
            raise ValueError(
                f"model: {type(self.model).__name__} does not compare {self.media} with texts; want a model of "
                "hf_clip_variants for this task"
            )
        self._encoded: dict[tuple, torch.Tensor] = {}

    def classify(self, inputs: Sequence[Mapping], is_one: bool, candidate_labels, **kwargs: Any):
        """The end of `__call__`. `is_one`: the result of the only input, not a list."""
        batch_size = kwargs.get("batch_size")
        if batch_size is not None and (type(batch_size) is not int or not 0 < batch_size < 2**31):
            raise ValueError(f"batch_size: {batch_size!r}, expected a whole number > 0")
        self._encoded = {}  # weights may have changed since
        kwargs["candidate_labels"] = candidate_labels
        return super().__call__(inputs[0] if is_one else list(inputs), **kwargs)

    def known_options(self) -> Iterable[str]:
        """Names of options of a call that go to `preprocess` as `reading`."""
        raise NotImplementedError

    def default_templates(self):
        """What labels are put into if a call says nothing."""
        return list(getattr(self.model, "default_templates", ("{}",)))

    def _sanitize_parameters(self, candidate_labels=None, hypothesis_template=None, top_k=None, **reading):
        if unknown := sorted(set(reading) - set(self.known_options())):
            raise TypeError(f"{', '.join(unknown)}: unknown, expected an option of {self.reader} or batch_size")
        check_top_k(top_k)
        text = {"candidate_labels": candidate_labels, "hypothesis_template": hypothesis_template}
        text = {name: value for name, value in text.items() if value is not None}
        return {"reading": reading} if reading else {}, text, text | {"top_k": top_k}

    def _forward(self, model_inputs, candidate_labels=None, hypothesis_template=None):
        items = model_inputs["item"]
        single = isinstance(items, dict)
        items = [items] if single else items
        texts = self._texts(label_names(candidate_labels), hypothesis_template or self.default_templates())
        compare = getattr(self.model, self.compares)
        together: dict[tuple, list[int]] = {}
        for place, item in enumerate(items):
            together.setdefault(tuple(item[self.tensors[0]].shape), []).append(place)
        found: list = [None] * len(items)
        for places in together.values():
            values, mask = (torch.cat([items[place][name] for place in places]) for name in self.tensors)
            logits = compare(values.to(self.device), texts, mask.to(self.device))
            for place, row in zip(places, logits.float().softmax(-1).cpu(), strict=True):
                found[place] = row
        return {"scores": found[0] if single else found}

    def postprocess(self, model_outputs, candidate_labels=None, hypothesis_template=None, top_k=None):
        names, scores = label_names(candidate_labels), model_outputs["scores"].flatten()  # (1, C) of a batch
        order = scores.argsort(descending=True, stable=True).tolist()[:top_k]
        return [{"label": names[index], "score": float(scores[index])} for index in order]

    def _texts(self, names: list[str], templates) -> torch.Tensor:
        """`class_features` of the labels."""
        templates = resolve_templates(templates, names)
        key = tuple(names), repr(templates)
        if key not in self._encoded:
            self._encoded[key] = class_features(self.model, self.tokenizer, names, templates, "candidate_labels")
        return self._encoded[key]


def check_labels_given(candidate_labels) -> None:
    if candidate_labels is None:
        raise ValueError("candidate_labels: missing, expected a list of labels, or a string with commas")


def label_names(labels) -> list[str]:
    """A list of labels, or a string that is divided at commas, as names; ValueError as `resolve_class_names`."""
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    return resolve_class_names(labels, "candidate_labels")


__all__ = ["ZeroShotMediaClassificationPipeline", "check_labels_given", "label_names"]
