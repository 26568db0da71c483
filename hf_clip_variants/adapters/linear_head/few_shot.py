"""Fits the linear head to a few labelled images: GDA, without training, and CLAP with votes, trained in a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ...few_shot.fitting import measure
from ...few_shot.method import FewShotMethod
from ...few_shot.recipes import Protocol, Recipe
from ..image_cache import cache_logits
from .config import LinearHeadConfig
from .gaussian import gaussian_classifier, leave_one_out_logits


if TYPE_CHECKING:
    from peft import PeftModel

    from ...few_shot.evidence import Evidence
    from ...few_shot.fitting import Fit, Fold


# N images, C classes, D joint width

# In units of log-probability. Found like the constants in `few_shot/evidence.py`, on the same images.
GAUSSIAN_SPREAD = 1.2  # standard deviation over wrong classes that the Gaussians' logits are scaled to
PULL = 0.16  # of CLAP's penalty, for images whose classes are 1 apart and a zero-shot accuracy of 50 %
CACHE_SHARE = 0.6  # of Tip-Adapter's weight of a vote, beside the linear classifier


@dataclass(frozen=True)
class WithoutEpochs(Recipe):
    """One plain view of each image; nothing that `Recipe` describes is trained."""

    @property
    def encoder_passes_per_image(self) -> int:
        return 1


@dataclass(frozen=True)
class GDARecipe(WithoutEpochs):
    """The recipe of GDA.

    Attributes:
        alpha (`float`, *optional*): weight of the classes' Gaussians. Default: searched for on the validation split,
            or from the shots.
    """

    alpha: float | None = None


@dataclass(frozen=True)
class CLAPRecipe(WithoutEpochs):
    """The recipe of CLAP.

    Attributes:
        pull (`float`, *optional*): the penalty. Default: from the shots.
        cache_share (`float`): weight of the cached images, relative to Tip-Adapter's; 0 for none.
    """

    pull: float | None = None
    cache_share: float = CACHE_SHARE


_WITHOUT_EPOCHS: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.0,
    "weight_decay": 0.0,
    "epochs": 0,
    "batch_size": 1,
    "schedule": "constant",
    "augmentation": "none",
    "views": 1,
    "few_shot_protocol": "coop",
    "seeds": (1, 2, 3),
}


def published_recipe_gda(shots: int, dataset: str | None, protocol: Protocol) -> GDARecipe:
    """The formula needs none."""
    return GDARecipe(method="gda", **_WITHOUT_EPOCHS)


def published_recipe_clap(shots: int, dataset: str | None, protocol: Protocol) -> CLAPRecipe:
    """The problem is convex: L-BFGS takes the place of the paper's 300 epochs of SGD."""
    return CLAPRecipe(method="clap", **_WITHOUT_EPOCHS)


def fit_gda(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """Fit the classes' Gaussians in closed form, and choose their weight."""
    evidence, alpha = fit.evidence, fit.recipe.alpha
    with fit.timed("train"):
        model = fit.attach(LinearHeadConfig(**fit.config))
        head, config = model.base_model.head, model.peft_config["default"]
        head.set_head("default", *gaussian_classifier(evidence.image_embeds, evidence.labels, evidence.num_classes))
    with fit.timed("search"):
        if alpha is None and fit.validates_on_split:
            alpha = _searched_alpha(fit.folds[0].query_evidence, head)
        elif alpha is None:
            alpha = _gaussian_strength(evidence) * evidence.temperature
        config.alpha = alpha
        if fit.validates_on_split:
            fit.measure_on_split(model)
        elif len(rows := evidence.answerable):
            left_out = leave_one_out_logits(evidence.image_embeds, evidence.labels, evidence.num_classes)
            logits = evidence.logits + alpha * left_out
            fit.validation = measure("leave-one-out", logits[rows], evidence.labels[rows], evidence.logits[rows])
    return model, {"alpha": alpha}


def _gaussian_strength(evidence: Evidence) -> float:
    """The weight of the Gaussians' logits beside the calibrated zero-shot logits.

    The formula's logits grow with the number of images and the width; scaled to `GAUSSIAN_SPREAD` they weigh the same
    for any. With two shots or more, the weight is moved to what leaving out each image in turn shows.
    """
    embeds, labels, classes = evidence.image_embeds, evidence.labels, evidence.num_classes
    if len(evidence.answerable):
        logits = leave_one_out_logits(embeds, labels, classes)
    else:
        weight, bias = gaussian_classifier(embeds, labels, classes)
        logits = embeds @ weight.t() + bias
    if classes > 2:
        wrong = ~F.one_hot(labels, classes).bool()
        spread = logits[wrong].view(len(logits), classes - 1).std(1).mean()
    else:  # one wrong class has no spread
        difference = (logits[:, 0] - logits[:, 1]).abs()
        spread = difference[difference.isfinite()].mean() / 2
    strength = GAUSSIAN_SPREAD / max(float(spread), 1e-9)
    return evidence.fitted_strength(logits, strength)


def _searched_alpha(queries: Evidence, head: torch.nn.Module) -> float:
    """The weight with the best accuracy on a validation split; of several the smallest."""
    weight, bias = head.clipv_linear_head_weight["default"], head.clipv_linear_head_bias["default"]
    logits = F.linear(queries.image_embeds, weight, bias)
    unit = float(queries.logits.std() / logits.std().clamp(min=1e-9))
    alphas = [unit * 2 ** (step / 2) for step in range(-12, 13)]
    right = [int(((queries.logits + alpha * logits).argmax(1) == queries.labels).sum()) for alpha in alphas]
    return alphas[right.index(max(right))]


def fit_clap(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """Train the linear classifier, and let the shots vote beside it."""
    recipe, evidence = fit.recipe, fit.evidence

    def values_for(evidence: Evidence) -> dict[str, float]:
        # Logits of the model are those of the fit times the temperature: alpha and gamma hold it.
        temperature = evidence.temperature
        values = {"alpha": temperature, "gamma": recipe.cache_share * evidence.vote * temperature}
        values |= {"beta": evidence.beta, "pull": pull_of(evidence) if recipe.pull is None else recipe.pull}
        return values | {name: value for name, value in fit.config.items() if name in values}

    def fitted_logits(fold: Fold, number: int) -> torch.Tensor:
        shots, queries = fold.evidence, fold.query_evidence
        values = values_for(shots)
        linear = queries.image_embeds @ pulled_weights(shots, values["pull"]).t()
        votes = cache_logits(queries.image_embeds, shots.image_embeds, shots.labels, shots.num_classes, values["beta"])
        return queries.logits + values["alpha"] * linear + values["gamma"] * votes

    if not fit.validates_on_split:
        fit.cross_validate(fitted_logits)
    with fit.timed("train"):
        values = values_for(evidence)
        weight = pulled_weights(evidence, values["pull"])
        config = {name: value for name, value in values.items() if name != "pull"} | fit.config
        model = fit.attach(LinearHeadConfig(**config, trainable=True))
        model.base_model.head.set_head("default", weight, weight.new_zeros(len(weight)))
        if values["gamma"]:
            model.base_model.head.set_cache("default", evidence.image_embeds, evidence.labels)
    if fit.validates_on_split:
        fit.measure_on_split(model)
    return model, values


def pull_of(evidence: Evidence) -> float:
    """CLAP's penalty from the shots: strong where zero-shot CLIP is right about them, weak where it is wrong.

    Deviation: CLAP has a penalty for each class, from zero-shot CLIP's probabilities of its shots. With one to four
    shots these vary so much that one penalty for all classes is better (on the images of the task suite).
    """
    return PULL * evidence.spread * ((1 - evidence.error) / evidence.error) ** 2


def pulled_weights(evidence: Evidence, pull: float, iterations: int = 30) -> torch.Tensor:
    """(C, D) U that minimises the sum of cross-entropies of z + f U plus pull * |U|², where z are the calibrated
    zero-shot logits: logistic regression that starts at the text embeddings and is pulled to them."""
    with torch.enable_grad():
        start = evidence.image_embeds.new_zeros(evidence.num_classes, evidence.image_embeds.shape[1])
        weight = start.requires_grad_()
        optimizer = torch.optim.LBFGS([weight], max_iter=iterations, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            logits = evidence.calibrated + evidence.image_embeds @ weight.t()
            value = F.cross_entropy(logits, evidence.labels, reduction="sum") + pull * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
    return weight.detach()


GDA = FewShotMethod(
    name="gda",
    config_class=LinearHeadConfig,
    published=published_recipe_gda,
    fit=fit_gda,
    expected_gain=(0.012, 0.22),
)
CLAP = FewShotMethod(
    name="clap",
    config_class=LinearHeadConfig,
    published=published_recipe_clap,
    fit=fit_clap,
    expected_gain=(0.015, 0.28),
)
