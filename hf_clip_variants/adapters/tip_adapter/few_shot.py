"""Fits Tip-Adapter and Tip-Adapter-F to a few labelled images: the recipes and the fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ...evaluation.image_prediction import class_logits
from ...few_shot.fitting import measure
from ...few_shot.method import FewShotMethod
from ...few_shot.recipes import SMALL_MODEL_VIEWS, Protocol, Recipe
from .config import TipAdapterConfig


if TYPE_CHECKING:
    from peft import PeftModel

    from ...few_shot.evidence import Evidence
    from ...few_shot.fitting import Fit, Fold, Shots


@dataclass(frozen=True)
class TipAdapterRecipe(Recipe):
    """The recipe of Tip-Adapter (`epochs` 0) and of Tip-Adapter-F.

    Attributes:
        cache_views (`int`): number of augmented views whose mean is a key.
        init_alpha, init_beta (`float`): values during training, and the final ones if nothing can be searched.
        alpha, beta (`float`, *optional*): final values without a search. Default: search on validation images.
        search_scale (`tuple[float, float]`), search_step (`tuple[int, int]`): upper ends and numbers of grid points of
            (beta, alpha).
    """

    cache_views: int = 10
    init_alpha: float = 1.17
    init_beta: float = 1.0
    alpha: float | None = None
    beta: float | None = None
    search_scale: tuple[float, float] = (7.0, 3.0)
    search_step: tuple[int, int] = (200, 20)

    training_fields: ClassVar[frozenset[str]] = frozenset({"init_alpha", "init_beta"})
    search_fields: ClassVar[frozenset[str]] = frozenset({"search_scale", "search_step"})

    @property
    def first_views(self) -> int:
        return self.cache_views

    @property
    def encoder_passes_per_image(self) -> int:
        return self.epochs + self.cache_views

    def with_one_view(self) -> TipAdapterRecipe:
        return replace(self, views=1, cache_views=1)


# From the configurations of gaopengcuhk/Tip-Adapter. Data set -> search_scale (beta, alpha), init_alpha, epochs of
# Tip-Adapter-F.
_PUBLISHED = {
    "imagenet": ((7.0, 3.0), 1.17, 20),
    "caltech101": ((12.0, 5.0), 3.0, 20),
    "dtd": ((13.0, 13.0), 2.0, 20),
    "eurosat": ((12.0, 10.0), 2.0, 100),
    "fgvc_aircraft": ((30.0, 30.0), 5.0, 20),
    "food101": ((10.0, 10.0), 1.17, 20),
    "oxford_flowers": ((50.0, 50.0), 10.0, 20),
    "oxford_pets": ((7.0, 3.0), 1.17, 20),
    "stanford_cars": ((20.0, 10.0), 3.0, 20),
    "sun397": ((12.0, 10.0), 1.17, 20),
    "ucf101": ((7.0, 3.0), 3.0, 20),
}
# Not published: other data sets get the widest of the ranges above, with 200 steps for alpha, too.
_OTHER_DATA = ((50.0, 50.0), 1.17, 20)
_OTHER_SEARCH_STEP = (200, 200)


def published_recipe_f(shots: int, dataset: str | None, protocol: Protocol) -> TipAdapterRecipe:
    """Tip-Adapter-F: the keys are trained."""
    scale, alpha, epochs = _PUBLISHED.get(dataset, _OTHER_DATA)
    return TipAdapterRecipe(
        method="tip_adapter_f",
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=1e-2,
        adam_epsilon=1e-4,
        epochs=epochs,
        views=epochs,
        batch_size=256,
        schedule="cosine",
        augmentation="tip",
        few_shot_protocol="tip",
        seeds=(1,),
        init_alpha=alpha,
        search_scale=scale,
        search_step=(200, 20) if dataset else _OTHER_SEARCH_STEP,
    )


def published_recipe(shots: int, dataset: str | None, protocol: Protocol) -> TipAdapterRecipe:
    """Tip-Adapter: nothing is trained."""
    published = published_recipe_f(shots, dataset, protocol)
    return replace(published, method="tip_adapter", epochs=0, views=published.cache_views)


def fit_tip_adapter(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """Fill the cache, train its keys (Tip-Adapter-F only), choose alpha and beta.

    alpha and beta are the recipe's where it names them. Otherwise they are searched for on the validation split, as
    published. Deviation: without a split they follow from the shots, see `votes_of`.
    """
    values = fit.recipe
    trained, on_split = values.epochs > 0, fit.validates_on_split
    given = {name: value for name in ("alpha", "beta") if (value := getattr(values, name)) is not None}

    def made_for(evidence: Evidence) -> TipAdapterConfig:
        start = {"alpha": values.init_alpha, "beta": values.init_beta}
        if not on_split:
            start = votes_of(fit, evidence, given.get("beta"), leave_one_out=not trained)
        return TipAdapterConfig(**(start | given), trainable_keys=trained, **fit.config)

    def fill(model: PeftModel, shots: Shots, label: str) -> list[float]:
        keys = shots.training.all_features(values.cache_views)
        model.base_model.build_cache(keys, shots.labels, allow_missing_classes=label != "final")
        return fit.train(model, shots.training, label) if trained else []

    def fitted_logits(fold: Fold, number: int) -> torch.Tensor:
        with fit.attached(made_for(fold.evidence)) as model:
            fill(model, fold.shots, f"fold-{number}")
            return class_logits(model, fold.queries).logits

    if not on_split:
        fit.cross_validate(fitted_logits) if trained else _leave_one_out(fit, made_for(fit.evidence))
    with fit.timed("train"):
        model = fit.attach(made_for(fit.evidence))
        fit.curve = fill(model, fit.shots, "final")
    chosen = model.peft_config["default"]
    if on_split and not given:
        fit.searched = True
        with fit.timed("search"):
            queries = fit.folds[0].queries
            model.base_model.search_hyperparameters(
                queries.all_features()[0], queries.labels, scale=values.search_scale, steps=values.search_step
            )
    if on_split:
        fit.measure_on_split(model)
    return model, {"alpha": chosen.alpha, "beta": chosen.beta}


def votes_of(fit: Fit, evidence: Evidence, beta: float | None, leave_one_out: bool) -> dict[str, float]:
    """alpha and beta (unless it is given) from the shots alone.

    beta makes the mean vote between classes the same for any backbone. alpha is the weight of a vote (`Evidence.vote`)
    relative to zero-shot CLIP at its temperature on the shots: where the class names say little about the images, the
    images count for more. With two shots or more it is moved to what leaving out each image in turn shows.
    """
    vote, beta = evidence.vote, evidence.beta if beta is None else beta
    if leave_one_out:
        vote = evidence.fitted_strength(evidence.leave_one_out_votes(beta), vote)
    return {"alpha": vote * evidence.temperature * _scale_ratio(fit), "beta": beta}


def _scale_ratio(fit: Fit) -> float:
    """The factor of zero-shot logits in Tip-Adapter over that in the model."""
    scale = fit.config.get("logit_scale", TipAdapterConfig.logit_scale)
    own = float(fit.classifier.family.logit_scale(fit.classifier.clip).detach())
    return 1.0 if scale is None else scale / own


def _leave_one_out(fit: Fit, config: TipAdapterConfig) -> None:
    """Measures the untrained cache on the images whose class has another one: closed form, exact."""
    evidence, rows = fit.evidence, fit.evidence.answerable
    if len(rows):
        with fit.timed("search"):
            votes = evidence.leave_one_out_votes(config.beta)
            logits = _scale_ratio(fit) * evidence.logits + config.alpha * votes
            fit.validation = measure("leave-one-out", logits[rows], evidence.labels[rows], evidence.logits[rows])


_SMALL_MODEL = SMALL_MODEL_VIEWS | {"cache_views": 1}

TIP_ADAPTER = FewShotMethod(
    name="tip_adapter",
    config_class=TipAdapterConfig,
    published=published_recipe,
    fit=fit_tip_adapter,
    small_model=_SMALL_MODEL,
    expected_gain=(0.015, 0.23),
)
TIP_ADAPTER_F = FewShotMethod(
    name="tip_adapter_f",
    config_class=TipAdapterConfig,
    published=published_recipe_f,
    fit=fit_tip_adapter,
    small_model=_SMALL_MODEL | {"epochs": 20},
    expected_gain=(0.01, 0.23),
)
