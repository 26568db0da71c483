"""Fits Tip-Adapter and Tip-Adapter-F to a few labelled images: the recipes and the fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...few_shot.method import FewShotMethod
from ...few_shot.recipes import SMALL_MODEL_VIEWS, Protocol, Recipe
from .config import TipAdapterConfig


if TYPE_CHECKING:
    from peft import PeftModel

    from ...data.images.labelled_images import LabelledImages
    from ...few_shot.fitting import Fit, Shots


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
    def views_needed(self) -> int:
        return max(super().views_needed, self.cache_views)

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
    """Fill the cache, train its keys (Tip-Adapter-F only), choose alpha and beta."""
    from ...few_shot.fitting import Validation

    values = fit.recipe
    trained = values.epochs > 0
    config = TipAdapterConfig(alpha=values.init_alpha, beta=values.init_beta, trainable_keys=trained, **fit.config)

    def fill(model: PeftModel, shots: Shots, label: str) -> list[float]:
        keys = shots.training.all_features()[: values.cache_views]
        model.base_model.build_cache(keys, shots.labels, allow_missing_classes=label != "final")
        return fit.train(model, shots.training, label) if trained else []

    given = {name: value for name in ("alpha", "beta") if (value := getattr(values, name)) is not None}
    searching = bool(fit.folds) and not given
    on_split = fit.validates_on_split and searching

    # alpha and beta come, in this order of preference: from the recipe, from a search on validation images, from
    # cross-validation on the labelled images, or from the values used in training.
    def search(model: PeftModel, queries: LabelledImages):
        return model.base_model.search_hyperparameters(
            queries.all_features()[0], queries.labels, scale=values.search_scale, steps=values.search_step
        )

    # Cross-validation: each fold gives the accuracy at every grid point. The point with the most correct predictions,
    # summed over all folds, wins.
    if searching and not on_split:
        with fit.timed("search"):
            correct = 0
            for number, fold in enumerate(fit.folds):
                with fit.attached(replace(config)) as model:
                    fill(model, fold.shots, f"fold-{number}")
                    grid = search(model, fold.queries)
                correct = correct + (grid.accuracies.double() * len(fold.queries) / 100).round().long()
            counts = correct.flatten().tolist()
            best = counts.index(max(counts))  # of several best points the first one, as in the official search
            row, column = divmod(best, len(grid.alphas))
        num_queries = sum(len(fold.queries) for fold in fit.folds)
        fit.validation = Validation("cross-validation", max(counts) / num_queries)
    with fit.timed("train"):
        model = fit.attach(config)
        fit.curve = fill(model, fit.shots, "final")
    chosen = model.peft_config["default"]
    if on_split:
        with fit.timed("search"):
            fit.validation = Validation("split", search(model, fit.folds[0].queries).accuracy / 100)
    elif searching:
        chosen.alpha, chosen.beta = grid.alphas[column], grid.betas[row]
    else:
        chosen.alpha, chosen.beta = given.get("alpha", chosen.alpha), given.get("beta", chosen.beta)
    return model, {"alpha": chosen.alpha, "beta": chosen.beta}


_SMALL_MODEL = SMALL_MODEL_VIEWS | {"cache_views": 1, "alpha": 80.0, "beta": 5.5}

TIP_ADAPTER = FewShotMethod(
    name="tip_adapter",
    config_class=TipAdapterConfig,
    published=published_recipe,
    fit=fit_tip_adapter,
    small_model=_SMALL_MODEL,
)
TIP_ADAPTER_F = FewShotMethod(
    name="tip_adapter_f",
    config_class=TipAdapterConfig,
    published=published_recipe_f,
    fit=fit_tip_adapter,
    small_model=_SMALL_MODEL | {"init_alpha": 20.0, "init_beta": 5.5, "epochs": 20},
)
