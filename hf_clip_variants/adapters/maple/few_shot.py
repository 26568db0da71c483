"""Fits MaPLe to a few labelled images: the recipes and the fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...few_shot.method import FewShotMethod
from ...few_shot.recipes import Protocol, Recipe
from ..prompts.few_shot import SMALL_MODEL_PROMPTS, TWO_ENCODER_TRAINER
from .config import MaPLeConfig


if TYPE_CHECKING:
    from peft import PeftModel

    from ...few_shot.fitting import Fit


@dataclass(frozen=True)
class MaPLeRecipe(Recipe):
    """MaPLe's recipe. The fields added here are those of `MaPLeConfig`."""

    num_prompt_tokens: int = 2
    prompt_depth: int | str = 9
    context_init: str | None = "a photo of a"


def published_recipe(shots: int, dataset: str | None, protocol: Protocol) -> MaPLeRecipe:
    """muzairkhattak/multimodal-prompt-learning, configs: fewer epochs and layers for transfer to other data sets."""
    if protocol == "cross_dataset":
        return MaPLeRecipe(
            method="maple", learning_rate=2.6e-3, epochs=2, views=2, prompt_depth=3, **TWO_ENCODER_TRAINER
        )
    return MaPLeRecipe(method="maple", learning_rate=3.5e-3, epochs=5, views=5, **TWO_ENCODER_TRAINER)


def fit_maple(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """Train the text prompts and the coupling functions, through both encoders."""
    config = MaPLeConfig(
        num_prompt_tokens=fit.recipe.num_prompt_tokens,
        prompt_depth=fit.recipe.prompt_depth,
        context_init=fit.context_init,
        **fit.config,
    )
    model, _ = fit.train_best([config])
    return model, {"prompt_depth": model.peft_config["default"].prompt_depth}


MAPLE = FewShotMethod(
    name="maple",
    config_class=MaPLeConfig,
    published=published_recipe,
    fit=fit_maple,
    small_model=SMALL_MODEL_PROMPTS | {"context_init": "an emoji of", "prompt_depth": 3},
    demo={"epochs": 5, "learning_rate": 5e-3},
    trains_image_encoder=True,
    text_encoder_runs="step",
)
