"""One batch, several adapters: each image goes through an adapter of its own (PEFT's `adapter_names`).

    model(pixel_values=pixel_values, adapter_names=["cats", "dogs", "__base__"])

The images of one adapter are run together, as that adapter alone would run them, and the outputs are put back in the
batch's order. Where none of the adapters is in the image encoder, that encoder runs once, on the whole batch. Nothing
in the model is switched, so threads may share it.
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.utils import ModelOutput

from hf_clip_variants.modeling.clip_classifier.classification_loss import classification_loss


BASE = "__base__"  # PEFT's name for no adapter
# Arguments that have a row for each image; the image encoder's; parts of an output that have a row for each image, and
# a column. All other parts belong to no image, and differ from adapter to adapter: they are left out.
_OF_IMAGES = {"pixel_values", "image_features", "pixel_attention_mask", "spatial_shapes", "bool_masked_pos"}
_OF_THE_ENCODER = {"pixel_values", "interpolate_pos_encoding", "pixel_attention_mask", "spatial_shapes"}
_ROWS = {"logits", "logits_per_image", "image_embeds", "vision_model_output", "last_hidden_state", "pooler_output"}
_ROWS |= {"hidden_states", "attentions", "reshaped_hidden_states"}
_COLUMNS = {"logits_per_text"}


class _Batch(NamedTuple):
    names: Sequence[str]  # the adapter of each image
    in_image_encoder: bool  # whether one of them changes the image encoder


_next_batch: ContextVar[_Batch | None] = ContextVar("next_batch", default=None)
_chosen: ContextVar[str | None] = ContextVar("chosen", default=None)  # the adapter of the images that are being run
_lock = threading.Lock()
_running: WeakKeyDictionary[nn.Module, list] = WeakKeyDictionary()  # model -> [calls going on, its own forward before]


def chosen_adapters() -> list[str] | None:
    """The adapters of the images that are being run: one, or none. None outside of mixed batches."""
    name = _chosen.get()
    return None if name is None else [] if name == BASE else [name]


def check_adapter_names(names: Any, known: Sequence[str], training: bool) -> None:
    """Raises ValueError unless `names` is a list of names in `known`, or "__base__", and the model is evaluated."""
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"adapter_names: got {names!r}; want a list with the name of an adapter for each image")
    if unknown := sorted({*names} - {*known, BASE}):
        raise ValueError(f"adapter_names: got {unknown}; the model has {sorted(known)}, and {BASE!r} means none")
    if training:
        raise ValueError("adapter_names: the model is in training mode, adapters are mixed in evaluation; call eval()")


@contextmanager
def each_image_its_adapter(model: nn.Module, names: Sequence[str], in_image_encoder: bool) -> Iterator[None]:
    """Within the context, `model(...)` in this thread runs a mixed batch.

    Args:
        model: a base model with our layers.
        names: the adapter of each image, checked by `check_adapter_names`.
        in_image_encoder: whether one of them changes the image encoder.
    """
    with _lock:
        calls = _running.setdefault(model, [0, vars(model).get("forward")])
        calls[0] += 1
        if calls[0] == 1:
            model.forward = partial(_forward, model, model.forward)
    token = _next_batch.set(_Batch(names, in_image_encoder))
    try:
        yield
    finally:
        _next_batch.reset(token)
        with _lock:
            calls[0] -= 1
            if not calls[0]:
                del _running[model], model.forward
                if calls[1] is not None:  # somebody else's, such as accelerate's
                    model.forward = calls[1]


def _forward(model: nn.Module, forward: Callable, *args: Any, **kwargs: Any):
    """What `model.forward` is while a mixed batch is run in any thread."""
    batch = _next_batch.get()
    if batch is None:
        return forward(*args, **kwargs)
    token = _next_batch.set(None)
    try:
        return _run(model, forward, batch, args, kwargs)
    finally:
        _next_batch.reset(token)


@contextmanager
def _choose(name: str) -> Iterator[None]:
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def _run(model: nn.Module, forward: Callable, batch: _Batch, args: tuple, kwargs: dict):
    signature = inspect.signature(forward)
    values = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            values |= values.pop(parameter.name, {})
    values = {name: value for name, value in values.items() if value is not None}
    images = next((values[name] for name in ("pixel_values", "image_features") if name in values), None)
    if images is None or len(images) != len(batch.names):
        got = "no images" if images is None else f"{len(images)} images"
        raise ValueError(f"adapter_names: {len(batch.names)} names for {got}; want one for each image")
    if values.pop("return_loss", False):
        raise ValueError("return_loss: the loss of images with texts needs one adapter for all, not adapter_names")
    labels, as_output = values.pop("labels", None), values.pop("return_dict", model.config.return_dict)
    if "image_features" in signature.parameters and "pixel_values" in values and _runs_once(model, batch, values):
        with _choose(batch.names[0]):
            of_encoder = {name: values.pop(name) for name in _OF_THE_ENCODER & values.keys()}
            values["image_features"] = model.get_image_features(**of_encoder).pooler_output

    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(batch.names):
        rows_of.setdefault(name, []).append(row)
    outputs = []
    for name, rows in rows_of.items():
        index = torch.tensor(rows, device=images.device)
        own = {key: value[index.to(value.device)] for key, value in values.items() if key in _OF_IMAGES}
        with _choose(name):
            outputs.append(forward(**values | own, return_dict=True))
    order = torch.tensor([row for rows in rows_of.values() for row in rows]).argsort()
    output = _join(outputs, order)
    if labels is not None:
        if "image_features" in signature.parameters:
            loss = classification_loss(output["logits"], labels, model.config.problem_type)
        else:
            loss = model.loss_function(labels, output["logits"], model.config)
        output = type(output)(loss=loss, **output)
    return output if as_output else output.to_tuple()


def _runs_once(model: nn.Module, batch: _Batch, values: Mapping[str, Any]) -> bool:
    """Whether the image encoder may run once for all: no adapter is in it, and only its features are asked for."""
    more = ("output_hidden_states", "output_attentions")
    asked = any(values.get(name) or getattr(model.config.vision_config, name, False) for name in more)
    return not (batch.in_image_encoder or asked)


def _join(outputs: Sequence[ModelOutput], order: torch.Tensor) -> ModelOutput:
    """One output from those of each adapter's images. `order` (B,): where each image's row is in all of them."""
    found = {}
    for key in outputs[0]:
        parts = [output[key] for output in outputs]
        if key in _COLUMNS:
            found[key] = torch.cat(parts, dim=1)[:, order.to(parts[0].device)]
        elif key in _ROWS:
            found[key] = _join_rows(parts, order)
    return type(outputs[0])(**found)


def _join_rows(parts: Sequence[Any], order: torch.Tensor) -> Any:
    if isinstance(parts[0], ModelOutput):
        return _join(parts, order)
    if isinstance(parts[0], tuple):
        return tuple(_join_rows(layer, order) for layer in zip(*parts, strict=True))
    return torch.cat(list(parts))[order.to(parts[0].device)]


__all__ = ["BASE", "check_adapter_names", "chosen_adapters", "each_image_its_adapter"]
