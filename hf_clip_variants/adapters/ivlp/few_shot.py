"""Fits IVLP to a few labelled images: the recipes and the fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...few_shot.method import FewShotMethod
from ...few_shot.recipes import Protocol, Recipe
from ..prompts.few_shot import SMALL_MODEL_PROMPTS, TWO_ENCODER_TRAINER
from .config import IVLPConfig


if TYPE_CHECKING:
    from peft import PeftModel

    from ...few_shot.fitting import Fit


@dataclass(frozen=True)
class IVLPRecipe(Recipe):
    """IVLP's recipe. The fields added here are those of `IVLPConfig`."""

    num_text_tokens: int = 2
    num_vision_tokens: int = 2
    text_depth: int | str = "all"
    vision_depth: int | str = "all"
    context_init: str | None = "a photo of a"


def published_recipe(shots: int, dataset: str | None, protocol: Protocol) -> IVLPRecipe:
    """muzairkhattak/multimodal-prompt-learning, configs of IVLP."""
    return IVLPRecipe(method="ivlp", learning_rate=3.5e-3, epochs=5, views=5, **TWO_ENCODER_TRAINER)


def fit_ivlp(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """Train the prompts of both encoders, independent of each other."""
    names = ("num_text_tokens", "num_vision_tokens", "text_depth", "vision_depth")
    settings = {name: getattr(fit.recipe, name) for name in names}
    model, _ = fit.train_best([IVLPConfig(context_init=fit.context_init, **settings, **fit.config)])
    used = model.peft_config["default"]
    return model, {"text_depth": used.text_depth, "vision_depth": used.vision_depth}


IVLP = FewShotMethod(
    name="ivlp",
    config_class=IVLPConfig,
    published=published_recipe,
    fit=fit_ivlp,
    small_model=SMALL_MODEL_PROMPTS | {"context_init": "an emoji of"},
    demo={"epochs": 5, "learning_rate": 5e-3},
    trains_image_encoder=True,
    text_encoder_runs="step",
)
