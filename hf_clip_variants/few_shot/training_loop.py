"""The training loop of few-shot adapters: short, seeded without global state, and able to go on after a kill."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..data.images.labelled_images import LabelledImages
from ..files.atomic_writes import replacing


logger = logging.getLogger(__name__)

SAVE_EVERY_SECONDS = 60.0  # a kill loses at most this much of a training


class TrainingState:
    """The state of a training, in one file that is replaced as a whole, at most every `SAVE_EVERY_SECONDS`.

    Holds the trained tensors, the optimiser's tensors, the epochs done and their losses, bit for bit: an interrupted
    training ends with the same weights as one that was not. The learning rate and the order of batches are functions
    of the epoch and need no state.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._saved = time.monotonic()

    def save(self, curve: list[float], parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        if time.monotonic() - self._saved < SAVE_EVERY_SECONDS:
            return
        tensors = {f"parameter.{index}": p.detach().clone() for index, p in enumerate(parameters)}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": v.clone() for key, v in values.items() if v is not None}
        with replacing(self.path, sum(tensor.nbytes for tensor in tensors.values())) as path:
            save_file(tensors, path, metadata={"curve": json.dumps(curve)})
        self._saved = time.monotonic()

    def load(self, parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> list[float]:
        """Fills parameters and optimiser in place; returns the losses of the epochs done, `[]` without a saved
        state."""
        if not self.path.is_file():
            return []
        try:
            with safe_open(self.path, "pt") as file:
                curve = json.loads(file.metadata()["curve"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError, ValueError) as error:
            logger.warning("%s: ignored, the training starts anew (%s)", self.path, error)
            return []
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kind, index, *key = name.split(".")
            if kind == "optimizer":
                state.setdefault(int(index), {})[key[0]] = tensor
        with torch.no_grad():
            for index, parameter in enumerate(parameters):
                parameter.copy_(tensors[f"parameter.{index}"])
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return curve


def batches(
    count: int, batch_size: int, seed: int, epoch: int, drop_last: bool, device: torch.device | str = "cpu"
) -> Iterator[torch.Tensor]:
    """Row numbers of each batch of one epoch, on `device`, in an order that depends on seed and epoch alone.

    With `drop_last` a smaller last batch is left out, unless it is the only one (as Dassl does, which the published
    recipes use).
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order = torch.randperm(count, generator=generator).to(device)
    for rows in order.split(batch_size):
        if drop_last and len(rows) < batch_size <= count:
            return
        yield rows


def train_adapter(
    model: torch.nn.Module,
    inputs: LabelledImages,
    make_optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    learning_rate_at: Callable[[int, int, int], float],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    drop_last: bool = False,
    state: TrainingState | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Minimise the cross-entropy of `model(**inputs.batch(...)).logits` over the parameters that require a gradient.

    Args:
        model: a classifier with an adapter; only parameters with `requires_grad` change. Left in eval mode.
        inputs: N images; epoch e trains on view number e.
        make_optimizer: parameters -> optimiser.
        learning_rate_at: (epoch, step within it, steps per epoch) -> learning rate of that step.
        epochs, batch_size: of the training; drop_last: see `batches`.
        seed: of the order of batches; torch's global generator is neither used nor changed.
        state: saves the state to disk, and goes on from there.
        on_epoch: called with (epochs done, mean loss of the last epoch).

    Returns:
        The mean loss over the images of each epoch.

    Raises:
        ValueError: nothing requires a gradient.
        FloatingPointError: the loss is not finite; raised at the end of the epoch, names epoch, step and learning
            rate.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("model: no parameter requires a gradient; nothing to train")
    optimizer = make_optimizer(parameters)
    curve = state.load(parameters, optimizer) if state is not None else []
    count, device = len(inputs.labels), inputs.labels.device
    model.eval()  # no dropout in the frozen encoders; adapters behave the same in both modes
    classifier = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Where nothing on the text side is trained, class features are constants of the whole training.
    with getattr(classifier, "class_features_held", nullcontext)():
        for epoch in range(len(curve), epochs):
            plan = list(batches(count, batch_size, seed, epoch, drop_last, device))
            losses = []
            for step, rows in enumerate(plan):
                learning_rate = learning_rate_at(epoch, step, len(plan))
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                logits = _logits(model, classifier, inputs.batch(rows, epoch))
                loss = F.cross_entropy(logits.float(), inputs.labels[rows].to(logits.device))
                for parameter in parameters:  # as `zero_grad`, which takes as long as a small step's loss
                    parameter.grad = None
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            curve.append(_mean_loss(losses, plan, epoch, learning_rate_at))
            if state is not None:
                state.save(curve, parameters, optimizer)
            if on_epoch is not None:
                on_epoch(epoch + 1, curve[-1])
    return curve


def _logits(model: torch.nn.Module, classifier: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    if batch.keys() == {"image_features"} and hasattr(classifier, "logits_of"):
        return classifier.logits_of(**batch)
    return model(**batch).logits


def _mean_loss(
    losses: list[torch.Tensor],
    plan: list[torch.Tensor],
    epoch: int,
    learning_rate_at: Callable[[int, int, int], float],
) -> float:
    """The mean over the images of an epoch, from the loss of each of its steps.

    Read once an epoch: on a GPU each reading waits until all that was asked for is done.
    """
    values = torch.stack(losses).tolist()
    for step, value in enumerate(values):
        if not math.isfinite(value):
            learning_rate = learning_rate_at(epoch, step, len(plan))
            raise FloatingPointError(
                f"the loss is {value} in epoch {epoch}, step {step}, with learning rate {learning_rate:g}; a smaller "
                "one may help"
            )
    return sum(value * len(rows) for value, rows in zip(values, plan, strict=True)) / sum(map(len, plan))


__all__ = ["TrainingState", "batches", "train_adapter"]
