"""Fits CLIP-Adapter to a few labelled images: the recipes and the fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...few_shot.method import FewShotMethod
from ...few_shot.recipes import COOP_TRAINER, SMALL_MODEL_TRAINER, Protocol, Recipe
from .config import CLIPAdapterConfig


if TYPE_CHECKING:
    from peft import PeftModel

    from ...few_shot.evidence import Evidence
    from ...few_shot.fitting import Fit


@dataclass(frozen=True)
class CLIPAdapterRecipe(Recipe):
    """CLIP-Adapter's recipe. `ratio_candidates` are compared on validation images: no table of ratios is published.
    `ratio` None: without validation images it follows from the shots (`ratio_of`)."""

    ratio: float | None = None
    ratio_candidates: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

    search_fields: ClassVar[frozenset[str]] = frozenset({"ratio_candidates"})


def published_recipe(shots: int, dataset: str | None, protocol: Protocol) -> CLIPAdapterRecipe:
    """CoOp's ImageNet settings, to which the repository refers.

    The paper says learning rate 1e-5, but does not give the other settings.
    """
    return CLIPAdapterRecipe(
        method="clip_adapter",
        learning_rate=2e-3,
        epochs=50,
        views=50,
        batch_size=32,
        drop_last=True,
        ratio=None if dataset is None else 0.6 if dataset == "dtd" else 0.2,
        **COOP_TRAINER,
    )


def fit_clip_adapter(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """Train the bottleneck, with every candidate ratio where there is a validation split, and keep the best."""
    recipe, learnable = fit.recipe, fit.config.get("learnable_ratio")
    given = CLIPAdapterConfig.ratio if learnable else ratio_of(fit.evidence)
    ratios = (given if recipe.ratio is None else recipe.ratio,)
    # Candidates cost a training each, and in every fold: they are compared on a split, or where the user asks for it.
    compared = fit.validates_on_split or (fit.folds and "ratio_candidates" in fit.asked)
    if compared and recipe.ratio_candidates and "ratio" not in fit.asked and not learnable:
        ratios = recipe.ratio_candidates
    candidates = [CLIPAdapterConfig(ratio=ratio, **fit.config) for ratio in ratios]
    model, best = fit.train_best(candidates)
    return model, {"ratio": candidates[best].ratio}


def ratio_of(evidence: Evidence) -> float:
    """How much of the new features to blend in, from the shots: 0.1 plus zero-shot CLIP's error on them.

    The paper's best ratios follow the same line: 0.2 on ImageNet, whose names CLIP knows, and 0.6 on textures.
    """
    return min(0.8, 0.1 + evidence.error)


CLIP_ADAPTER = FewShotMethod(
    name="clip_adapter",
    config_class=CLIPAdapterConfig,
    published=published_recipe,
    fit=fit_clip_adapter,
    expected_gain=(-0.05, 0.28),
    small_model=SMALL_MODEL_TRAINER | {"weight_decay": 1e-2, "epochs": 100, "batch_size": 512},
)
