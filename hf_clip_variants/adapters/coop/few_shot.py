"""Fits CoOp to a few labelled images: the recipes and the fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...few_shot.method import FewShotMethod
from ...few_shot.recipes import COOP_TRAINER, SMALL_MODEL_TRAINER, Protocol, Recipe
from .config import CoOpConfig


if TYPE_CHECKING:
    from peft import PeftModel

    from ...few_shot.fitting import Fit


@dataclass(frozen=True)
class CoOpRecipe(Recipe):
    """CoOp's recipe. The fields added here are those of `CoOpConfig`."""

    num_context_tokens: int | None = 16
    context_init: str | None = None
    class_specific: bool = False


def published_recipe(shots: int, dataset: str | None, protocol: Protocol) -> CoOpRecipe:
    """KaiyangZhou/CoOp, configs and scripts: the number of epochs depends on the shots."""
    epochs = 50 if dataset == "imagenet" or shots == 1 else 100 if shots <= 4 else 200
    # For new classes: the CoOp that the CoCoOp paper compares with, four tokens that start from words.
    context = {} if protocol == "few_shot" else {"num_context_tokens": None, "context_init": "a photo of a"}
    return CoOpRecipe(
        method="coop",
        learning_rate=2e-3,
        epochs=epochs,
        views=epochs,
        batch_size=32,
        drop_last=True,
        **COOP_TRAINER,
        **context,
    )


def fit_coop(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """Train the context through the frozen text encoder."""
    config = CoOpConfig(
        num_context_tokens=fit.num_context_tokens,
        context_init=fit.context_init,
        class_specific=fit.recipe.class_specific,
        **fit.config,
    )
    model, _ = fit.train_best([config])
    return model, {"num_context_tokens": model.peft_config["default"].num_context_tokens}


COOP = FewShotMethod(
    name="coop",
    config_class=CoOpConfig,
    published=published_recipe,
    fit=fit_coop,
    expected_gain=(-0.05, 0.18),
    small_model=SMALL_MODEL_TRAINER
    | {
        "epochs": 15,
        "batch_size": 512,
        "num_context_tokens": None,
        "context_init": "an emoji of",
        "class_specific": True,
    },
    small_model_new_classes={"class_specific": False, "learning_rate": 0.03, "epochs": 40},
    text_encoder_runs="step",
)
