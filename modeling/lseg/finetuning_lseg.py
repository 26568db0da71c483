"""How LSeg is trained: two learning rates, and recipes for `Trainer`.

The published training and evaluation are those of `train.sh` and `train_lseg.py` in isl-org/lang-seg; the authors' own
advice for the few-shot experiments (issues 19 and 34 there) is to stop after the first epochs and to try learning
rates, and is in `RECIPES["few_shot"]`. What made the published few-shot figures is not known.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn


# What the official code calls `pretrained`; all that is trained besides has the larger rate.
_ENCODER_PARTS = ("lseg.vision_model.", "lseg.neck.reassemble_stage.", "lseg.text_model.", "lseg.text_projection.")


@dataclass(frozen=True, kw_only=True)
class LSegRecipe:
    """
    Settings of a training.

    Args:
        optimizer: `"sgd"` or `"adamw"`.
        learning_rate: of the image encoder, for batches of `batch_size`.
        head_factor: the decoder's learning rate is this many times as large.
        batch_size: images in a step, of all processes. The official rate is for batches of one process.
        epochs: passes over the data.
        learning_rates: rates to try, where one is not known.
        patience: stop after so many epochs without a better validation; 0 trains all epochs.
        momentum, weight_decay: the optimiser's.
        power: the learning rate at share t of the steps is (1 - t) ^ power of the first one.
        crop_size: side of the square crops of the training, in pixels.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.001
    head_factor: float = 10.0
    batch_size: int = 4
    epochs: int = 240
    learning_rates: tuple[float, ...] = ()
    patience: int = 0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    power: float = 0.9
    crop_size: int = 480

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """Keyword arguments of `TrainingArguments`. The schedule counts steps, the official one whole epochs.

        With `patience`, `load_best_model_at_end` is set: give `Trainer` an `EarlyStoppingCallback(recipe.patience)`, a
        data set for evaluation with classes that are not trained on, and `metric_for_best_model`.
        """
        found: dict[str, Any] = {
            "per_device_train_batch_size": self.batch_size,
            "num_train_epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "polynomial",
            "lr_scheduler_kwargs": {"power": self.power, "lr_end": 0.0},
            "warmup_steps": 0,
            "max_grad_norm": 0.0,  # not clipped
            "remove_unused_columns": False,
        }
        if self.patience:
            found |= {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
            found |= {"metric_for_best_model": "mean_iou", "greater_is_better": True}
        return found | changes


RECIPES: Mapping[str, LSegRecipe] = MappingProxyType(
    {
        # base_lr 0.004 / 16 for each image: 0.001 for batches of 4. `train.sh` has one image a GPU and accumulates 2.
        "published": LSegRecipe(),
        # Classes of a fold held out. One user of the official code came closest with a base rate of 0.09.
        "few_shot": LSegRecipe(epochs=4, patience=1, learning_rates=(0.001, 0.003, 0.01, 0.0225), learning_rate=0.003),
        # A CLIP's own image encoder and a few hundred images, on a CPU.
        "small": LSegRecipe(
            optimizer="adamw",
            learning_rate=3e-5,
            head_factor=100.0,
            batch_size=16,
            epochs=20,
            learning_rates=(1e-5, 3e-5, 1e-4),
            patience=3,
            weight_decay=0.01,
            crop_size=96,
        ),
    }
)


def parameter_groups(
    model: nn.Module, learning_rate: float, head_factor: float = 10.0, weight_decay: float = 1e-4
) -> list[dict[str, Any]]:
    """Two groups for an optimiser, as in the official training: the image encoder with the convolutions that make maps
    of its tokens has `learning_rate`; the decoder, the last projection and the block of spatial regularisation have
    `head_factor` times as much. What is frozen is in neither.

    Args:
        model: an [`LSegForSemanticSegmentation`].

    Raises:
        ValueError: a rate, factor or decay below 0.

    Example:

    ```python
    >>> from hf_clip_variants import LSegConfig, LSegForSemanticSegmentation
    >>> from hf_clip_variants.modeling.lseg.finetuning_lseg import parameter_groups

    >>> vision = {"model_type": "resnet", "depths": [1, 1, 1, 1]}
    >>> model = LSegForSemanticSegmentation(LSegConfig(vision_config=vision, fusion_hidden_size=8))
    >>> [(group["lr"], len(group["params"])) for group in parameter_groups(model, 0.001)]
    [(0.001, 51), (0.01, 56)]
    ```
    """
    for name, value in (
        ("learning_rate", learning_rate),
        ("head_factor", head_factor),
        ("weight_decay", weight_decay),
    ):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: got {value}, expected a number >= 0")
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    encoder = [parameter for name, parameter in trained if name.startswith(_ENCODER_PARTS)]
    head = [parameter for name, parameter in trained if not name.startswith(_ENCODER_PARTS)]
    rates = (learning_rate, learning_rate * head_factor)
    groups = zip((encoder, head), rates, strict=True)
    return [{"params": found, "lr": rate, "weight_decay": weight_decay} for found, rate in groups if found]


def make_optimizer(model: nn.Module, recipe: LSegRecipe, learning_rate: float | None = None) -> torch.optim.Optimizer:
    """The optimiser of a recipe over `parameter_groups`, for `Trainer(optimizers=(make_optimizer(model, recipe),
    None))`: `Trainer` makes the schedule that `recipe.arguments` names. `learning_rate` replaces the recipe's.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants.modeling.lseg.finetuning_lseg import RECIPES, make_optimizer

    >>> make_optimizer(torch.nn.Linear(2, 2), RECIPES["published"]).param_groups[0]["lr"]
    0.01
    ```
    """
    rate = recipe.learning_rate if learning_rate is None else learning_rate
    groups = parameter_groups(model, rate, recipe.head_factor, recipe.weight_decay)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=rate)


__all__ = ["RECIPES", "LSegRecipe", "make_optimizer", "parameter_groups"]
