"""Callbacks for `Trainer`: after a step of contrastive pre-training, and at the beginning of an epoch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import TrainerCallback


if TYPE_CHECKING:
    from ..data.images.feature_cache import FeatureDataset


LARGEST_SCALE = math.log(100)  # of the logits, Radford et al. 2021, section 2.5; a logarithm, as `logit_scale` is


@torch.no_grad()
def limit_logit_scale(model: nn.Module, largest: float = LARGEST_SCALE) -> None:
    """`model.logit_scale` back into [0, `largest`], for after a step of the optimiser; a frozen one stays as it is."""
    if model.logit_scale.requires_grad:
        model.logit_scale.clamp_(0, largest)


class PretrainingCallback(TrainerCallback):
    """After each step of the optimiser: `logit_scale` back into [0, ln 100], and the momentum encoder a step after the
    weights, in models that have one ([`SLIPForPreTraining`] with MoCo v3 or BYOL).

    Once a step, whatever the gradient accumulation; what it changes is in the checkpoint, so that a resumed training
    goes on as it would have. Any model with a `logit_scale`.

    Args:
        max_logit_scale (`float`): logarithm of the largest scale of the logits.

    Example:

    ```python
    >>> from hf_clip_variants import PretrainingCallback

    >>> callbacks = [PretrainingCallback()]  # Trainer(model, arguments, collator, data, callbacks=callbacks)
    ```
    """

    def __init__(self, max_logit_scale: float = LARGEST_SCALE):
        if not 0 < max_logit_scale < math.inf:
            raise ValueError(f"max_logit_scale: got {max_logit_scale}, expected a number > 0")
        self.max_logit_scale = max_logit_scale

    @torch.no_grad()
    def after_step(self, model: nn.Module, progress: float):
        """For loops without `Trainer`. `progress`: share of all steps that are done, 0 to 1."""
        model = extract_model_from_parallel(model)
        if not hasattr(model, "logit_scale"):
            raise ValueError(
                f"model: {type(model).__name__} has no logit_scale, PretrainingCallback is for contrastive models"
            )
        limit_logit_scale(model, self.max_logit_scale)
        if hasattr(model, "update_momentum_encoder"):
            model.update_momentum_encoder(progress)

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.after_step(model, min(1.0, (state.global_step + 1) / max(1, state.max_steps)))  # it is counted later


class EpochCallback(TrainerCallback):
    """Sets the epoch of a [`FeatureDataset`] at each epoch's beginning.

    Needed with several processes only: accelerate tells the epoch to a data set that one process reads, but with
    sharded batches to their sampler alone.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants.data import FeatureDataset, Features
    >>> from hf_clip_variants.training.callbacks import EpochCallback

    >>> data = FeatureDataset(Features(torch.randn(8, 100, 4), torch.zeros(100, dtype=torch.long)))
    >>> callback = EpochCallback(data)  # Trainer(model, arguments, FeatureCollator(), data, callbacks=[callback])
    ```
    """

    def __init__(self, dataset: FeatureDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.set_epoch(int(state.epoch + 1e-6))  # a resumed run stands within an epoch


__all__ = ["LARGEST_SCALE", "EpochCallback", "PretrainingCallback", "limit_logit_scale"]
