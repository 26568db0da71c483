"""Fits CoCoOp to a few labelled images: the recipes and the fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...few_shot.method import FewShotMethod
from ...few_shot.recipes import COOP_TRAINER, SMALL_MODEL_TRAINER, Protocol, Recipe
from .config import CoCoOpConfig


if TYPE_CHECKING:
    from peft import PeftModel

    from ...few_shot.fitting import Fit


@dataclass(frozen=True)
class CoCoOpRecipe(Recipe):
    """CoCoOp's recipe. The fields added here are those of `CoCoOpConfig`."""

    num_context_tokens: int | None = None
    context_init: str | None = "a photo of a"


def published_recipe(shots: int, dataset: str | None, protocol: Protocol) -> CoCoOpRecipe:
    """KaiyangZhou/CoOp, configs and scripts of CoCoOp: batches of one image."""
    return CoCoOpRecipe(method="cocoop", learning_rate=2e-3, epochs=10, views=10, batch_size=1, **COOP_TRAINER)


def fit_cocoop(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """Train the context and the network that shifts it for each image, through the frozen text encoder."""
    config = CoCoOpConfig(num_context_tokens=fit.num_context_tokens, context_init=fit.context_init, **fit.config)
    model, _ = fit.train_best([config])
    return model, {"num_context_tokens": model.peft_config["default"].num_context_tokens}


COCOOP = FewShotMethod(
    name="cocoop",
    config_class=CoCoOpConfig,
    published=published_recipe,
    fit=fit_cocoop,
    small_model=SMALL_MODEL_TRAINER
    | {"learning_rate": 0.01, "epochs": 4, "batch_size": 32, "context_init": "an emoji of"},
    demo={"epochs": 1},
    text_encoder_runs="image",
)
