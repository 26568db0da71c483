"""Fits VPT on CLIP to a few labelled images: the recipes and the fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...few_shot.method import FewShotMethod
from ...few_shot.recipes import Protocol, Recipe
from ..prompts.few_shot import SMALL_MODEL_PROMPTS, TWO_ENCODER_TRAINER
from .config import VPTConfig


if TYPE_CHECKING:
    from peft import PeftModel

    from ...few_shot.fitting import Fit


@dataclass(frozen=True)
class VPTRecipe(Recipe):
    """The recipe of VPT on CLIP. The fields added here are those of `VPTConfig`."""

    num_prompt_tokens: int = 8
    prompt_depth: int | str = "all"


def published_recipe(shots: int, dataset: str | None, protocol: Protocol) -> VPTRecipe:
    """muzairkhattak/multimodal-prompt-learning, configs of VPT."""
    return VPTRecipe(method="vpt", learning_rate=2.5e-3, epochs=5, views=5, **TWO_ENCODER_TRAINER)


def fit_vpt(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """Train the prompts of the image encoder. Class embeddings stay fixed."""
    config = VPTConfig(
        num_prompt_tokens=fit.recipe.num_prompt_tokens, prompt_depth=fit.recipe.prompt_depth, **fit.config
    )
    model, _ = fit.train_best([config])
    return model, {"prompt_depth": model.peft_config["default"].prompt_depth}


VPT = FewShotMethod(
    name="vpt",
    config_class=VPTConfig,
    published=published_recipe,
    fit=fit_vpt,
    small_model=SMALL_MODEL_PROMPTS | {"num_prompt_tokens": 4},
    demo={"epochs": 3, "learning_rate": 1e-2},
    trains_image_encoder=True,
)
