"""`fit_adapter`: one adapter from a few labelled pictures. A method is one function and one row of `FEW_SHOT_METHODS`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftConfig, PeftModel, get_peft_model

from ..adapters import (
    CLIPAdapterConfig,
    CoCoOpConfig,
    CoOpConfig,
    IVLPConfig,
    MaPLeConfig,
    TipAdapterConfig,
    VPTConfig,
)
from ..adapters.tuner import TunerConfig
from ..data.few_shot_sampling import MAX_VALIDATION_SHOTS
from ..data.images.labelled_images import CachedImages, LabelledImages
from ..evaluation.image_prediction import predict
from ..metrics.classification import accuracy
from ..modeling.dual_encoders.backbones import CLIPFamily
from ..registry import method as registry_row
from .recipes import Recipe, recipe
from .training_loop import TrainingState, train_adapter


# V views, N pictures, D joint width, C classes, K shots


@dataclass(frozen=True)
class Shots:
    """The labelled pictures of one fit: as they are trained on, and as they look to a test."""

    training: LabelledImages  # V augmented views each
    plain: LabelledImages  # the image processor's own view: what validation asks about

    def __post_init__(self):
        if not torch.equal(self.training.labels, self.plain.labels):
            raise ValueError(
                f"plain: labels of {len(self.plain)} pictures are not those of the {len(self.training)} in training"
            )

    def select(self, rows: torch.Tensor) -> Shots:
        return Shots(self.training.select(rows), self.plain.select(rows))

    @property
    def labels(self) -> torch.Tensor:
        return self.training.labels


@dataclass(frozen=True)
class Fold:
    """One division for validation: learn from `shots`, ask about `queries`. Never the pictures of a test."""

    shots: Shots
    queries: LabelledImages


@dataclass(frozen=True)
class Validation:
    """How hyper-parameters were chosen, and the accuracy of the chosen ones (0..1; None where nothing was measured)."""

    kind: Literal["split", "cross-validation", "none"]
    accuracy: float | None = None


def validation_folds(shots: Shots, validation: LabelledImages | None) -> list[Fold]:
    """Where to validate: on a validation split; without one, by cross-validation over the shots; with one shot a class, nowhere.

    Cross-validation leaves one shot of each class out, min(K, 4) times; with more than 4 shots, every fourth.
    """
    if validation is not None and len(validation):
        return [Fold(shots, validation)]
    place = _place_within_class(shots.labels)
    count = min(int(place.max()) + 1, MAX_VALIDATION_SHOTS)
    if count < 2:
        return []
    fold_of = place % count
    return [
        Fold(shots.select((fold_of != fold).nonzero()[:, 0]), shots.plain.select((fold_of == fold).nonzero()[:, 0]))
        for fold in range(count)
    ]


def _place_within_class(labels: torch.Tensor) -> torch.Tensor:
    """[2, 0, 2, 2, 0] -> [0, 0, 1, 2, 1]: the how-manieth of its class each picture is."""
    seen: dict[int, int] = {}
    places = []
    for label in labels.tolist():
        places.append(seen.get(label, 0))
        seen[label] = places[-1] + 1
    return torch.tensor(places, dtype=torch.int64)


@dataclass
class FittedAdapter:
    """What `fit_adapter` gives back.

    Attributes:
        model (`PeftModel`): the classifier with the adapter on it, in eval mode; `unload()` gives the classifier back as it was.
        validation ([`Validation`]): how hyper-parameters were chosen.
        hyperparameters (`dict`): every value that was used, chosen ones included.
        curve (`list[float]`): mean training loss of each epoch; empty without training.
        seconds (`dict[str, float]`): "train" and "search".
        trained_parameters (`int`): how many numbers were trained.
    """

    model: PeftModel
    validation: Validation
    hyperparameters: dict[str, Any]
    curve: list[float]
    seconds: dict[str, float]
    trained_parameters: int

    def unload(self) -> torch.nn.Module:
        return self.model.unload()


@dataclass
class Fit:
    """What a method's function works with: pictures, folds, the recipe's values, and the two things that all methods do."""

    classifier: torch.nn.Module
    shots: Shots
    folds: list[Fold]
    recipe: Recipe
    config: dict[str, Any]  # fields of the adapter's configuration that are no part of the recipe
    asked: frozenset[str] = frozenset()  # what the user set, in the recipe or the configuration
    seed: int = 0
    validates_on_split: bool = False
    state_folder: Path | None = None
    on_epoch: Callable[[str, int, int], None] | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "search": 0.0})
    validation: Validation = Validation("none")
    curve: list[float] = field(default_factory=list)

    def attach(self, config: TunerConfig) -> PeftModel:
        """A new adapter on the classifier; its random numbers depend on the seed alone."""
        device = self.classifier.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            return get_peft_model(self.classifier, config).eval()

    @contextmanager
    def attached(self, config: TunerConfig) -> Iterator[PeftModel]:
        """`attach`, and the classifier as it was afterwards."""
        model = self.attach(config)
        try:
            yield model
        finally:
            model.unload()

    def train(self, model: PeftModel, pictures: LabelledImages, label: str = "final") -> list[float]:
        """Train the adapter by the recipe; `label` tells the trainings of one fit apart."""
        state = None if self.state_folder is None else TrainingState(self.state_folder / f"{label}.safetensors")
        report = self.on_epoch
        return train_adapter(
            model, pictures, self.recipe.make_optimizer, self.recipe.learning_rate_at,
            epochs=self.recipe.epochs, batch_size=self.recipe.batch_size, drop_last=self.recipe.drop_last, seed=self.seed,
            state=state, on_epoch=None if report is None else lambda done, loss: report(label, done, self.recipe.epochs),
        )  # fmt: skip

    @property
    def context_init(self) -> str | None:
        """The recipe's words to start from; the published "a photo of a" in the language of the model's family."""
        words, family = self.recipe.context_init, self.classifier.family
        return (
            family.default_context
            if words == CLIPFamily.default_context and "context_init" not in self.asked
            else words
        )

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start

    @property
    def validation_kind(self) -> Literal["split", "cross-validation", "none"]:
        return "none" if not self.folds else "split" if self.validates_on_split else "cross-validation"

    def train_best(self, candidates: Sequence[TunerConfig]) -> tuple[PeftModel, int]:
        """Train the candidate with the highest validation accuracy (the first of equals) on all shots; the model and which it was.

        Each candidate is trained in every fold. A single one is not put to the test, unless there is a validation split: that is for free.
        """
        best = 0
        choosing = len(candidates) > 1 and bool(self.folds)
        if choosing:
            with self.timed("search"):
                correct = [self._validate(config, str(number)) for number, config in enumerate(candidates)]
            best = correct.index(max(correct))
            self.validation = Validation(
                self.validation_kind, max(correct) / sum(len(fold.queries) for fold in self.folds)
            )
        with self.timed("train"):
            model = self.attach(replace(candidates[best]))
            self.curve = self.train(model, self.shots.training)
        if self.validates_on_split and not choosing:
            with self.timed("search"):
                self.validation = Validation(
                    "split", accuracy(predict(model, self.folds[0].queries)[0], self.folds[0].queries.labels)
                )
        return model, best

    def _validate(self, config: TunerConfig, name: str) -> int:
        correct = 0
        for number, fold in enumerate(self.folds):
            with self.attached(replace(config)) as model:
                self.train(model, fold.shots.training, f"candidate-{name}-fold-{number}")
                correct += int((predict(model, fold.queries)[0] == fold.queries.labels.cpu()).sum())
        return correct


# ------------------------------------------------------------------------------------------------------------- methods
# Each: Fit -> the classifier with the finished adapter on it, and the chosen hyper-parameters.


def fit_tip_adapter(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """Tip-Adapter, or with `trainable_keys` Tip-Adapter-F: fill the cache, train its keys, choose alpha and beta."""
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

    def search(model: PeftModel, queries: LabelledImages):
        return model.base_model.search_hyperparameters(
            queries.all_features()[0], queries.labels, scale=values.search_scale, steps=values.search_step
        )

    if searching and not on_split:
        with fit.timed("search"):
            correct = 0
            for number, fold in enumerate(fit.folds):
                with fit.attached(replace(config)) as model:
                    fill(model, fold.shots, f"fold-{number}")
                    grid = search(model, fold.queries)
                correct = correct + (grid.accuracies.double() * len(fold.queries) / 100).round().long()
            counts = correct.flatten().tolist()
            best = counts.index(max(counts))  # the first: ties keep it, as in the official search
            row, column = divmod(best, len(grid.alphas))
        asked = sum(len(fold.queries) for fold in fit.folds)
        fit.validation = Validation("cross-validation", max(counts) / asked)
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


def fit_clip_adapter(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """CLIP-Adapter: train the bottleneck at every candidate ratio, keep the best."""
    ratios = (fit.recipe.ratio,)
    if fit.folds and "ratio" not in fit.asked and not fit.config.get("learnable_ratio"):
        ratios = fit.recipe.ratio_candidates or ratios
    candidates = [CLIPAdapterConfig(ratio=ratio, **fit.config) for ratio in ratios]
    model, best = fit.train_best(candidates)
    return model, {"ratio": candidates[best].ratio}


def fit_coop(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """CoOp: train the context through the frozen text tower."""
    words, tokens = fit.context_init, fit.recipe.num_context_tokens
    if words is not None and "num_context_tokens" not in fit.asked:
        tokens = None  # as many as the words have
    config = CoOpConfig(
        num_context_tokens=tokens, context_init=words, class_specific=fit.recipe.class_specific, **fit.config
    )
    model, _ = fit.train_best([config])
    return model, {"num_context_tokens": model.peft_config["default"].num_context_tokens}


def fit_cocoop(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """CoCoOp: train the context and the network that shifts it, through the frozen text tower."""
    words, tokens = fit.context_init, fit.recipe.num_context_tokens
    if words is not None and "num_context_tokens" not in fit.asked:
        tokens = None
    model, _ = fit.train_best([CoCoOpConfig(num_context_tokens=tokens, context_init=words, **fit.config)])
    return model, {"num_context_tokens": model.peft_config["default"].num_context_tokens}


def fit_maple(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """MaPLe: train prompts of both towers through both."""
    values = fit.recipe
    config = MaPLeConfig(
        num_prompt_tokens=values.num_prompt_tokens, prompt_depth=values.prompt_depth, context_init=fit.context_init, **fit.config
    )  # fmt: skip
    model, _ = fit.train_best([config])
    return model, {"prompt_depth": model.peft_config["default"].prompt_depth}


def fit_vpt(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """VPT: train prompts of the image tower against the fixed class embeddings."""
    config = VPTConfig(
        num_prompt_tokens=fit.recipe.num_prompt_tokens, prompt_depth=fit.recipe.prompt_depth, **fit.config
    )
    model, _ = fit.train_best([config])
    return model, {"prompt_depth": model.peft_config["default"].prompt_depth}


def fit_ivlp(fit: Fit) -> tuple[PeftModel, dict[str, Any]]:
    """IVLP: train prompts of both towers, each its own."""
    values = fit.recipe
    config = IVLPConfig(
        num_text_tokens=values.num_text_tokens, num_vision_tokens=values.num_vision_tokens, text_depth=values.text_depth,
        vision_depth=values.vision_depth, context_init=fit.context_init, **fit.config,
    )  # fmt: skip
    model, _ = fit.train_best([config])
    used = model.peft_config["default"]
    return model, {"text_depth": used.text_depth, "vision_depth": used.vision_depth}


@dataclass(frozen=True)
class FewShotMethod:
    """A row of the table: the method's name in commands, the adapter that it trains, and the function that does it."""

    name: str
    adapter: str  # a name in registry.py
    fit: Callable[[Fit], tuple[PeftModel, dict[str, Any]]]
    title: str
    trains_image_tower: bool = False  # then nothing of its pictures can be cached

    @property
    def config_class(self) -> type[TunerConfig]:
        return registry_row(self.adapter).load("config")


FEW_SHOT_METHODS: dict[str, FewShotMethod] = {
    row.name: row
    for row in (
        FewShotMethod("tip_adapter", "tip_adapter", fit_tip_adapter, registry_row("tip_adapter").title),
        FewShotMethod("tip_adapter_f", "tip_adapter", fit_tip_adapter, registry_row("tip_adapter").title + "-F"),
        FewShotMethod("clip_adapter", "clip_adapter", fit_clip_adapter, registry_row("clip_adapter").title),
        FewShotMethod("coop", "coop", fit_coop, registry_row("coop").title),
        FewShotMethod("cocoop", "cocoop", fit_cocoop, registry_row("cocoop").title),
        FewShotMethod("maple", "maple", fit_maple, registry_row("maple").title, trains_image_tower=True),
        FewShotMethod("vpt", "vpt", fit_vpt, registry_row("vpt").title, trains_image_tower=True),
        FewShotMethod("ivlp", "ivlp", fit_ivlp, registry_row("ivlp").title, trains_image_tower=True),
    )
}
# What `adapt` does unless told otherwise: minutes without a GPU. The others run a tower at every step.
FAST_METHODS = ("tip_adapter", "tip_adapter_f", "clip_adapter", "coop")


def few_shot_method(name: str) -> FewShotMethod:
    """The row called `name`. Raises ValueError with the known names."""
    if name not in FEW_SHOT_METHODS:
        raise ValueError(f"method: got {name!r}; want one of {', '.join(FEW_SHOT_METHODS)}")
    return FEW_SHOT_METHODS[name]


def _own_config_fields(config_class: type[TunerConfig]) -> set[str]:
    """The fields that a user may set: those of the method, not PEFT's nor what is filled in when the adapter is made."""
    inherited = {f.name for base in (PeftConfig, TunerConfig) for f in dataclasses.fields(base)}
    filled = {"cache_size", "num_classes", "context_init_ids", "trainable_keys"}
    return {f.name for f in dataclasses.fields(config_class)} - inherited - filled


_TRAINING_FIELDS = {f.name for f in dataclasses.fields(Recipe)} - {"augmentation"}


def apply_overrides(
    method: FewShotMethod, values: Recipe, overrides: Mapping[str, Any]
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with values replaced, and the values that are fields of the adapter's configuration.

    Raises ValueError for a name that is neither; the message lists those that are.
    """
    in_recipe = {f.name for f in dataclasses.fields(values)} - {"method", "few_shot_protocol", "seeds"}
    if not values.epochs:  # and stays without training: epochs=20 for all methods is not meant for this one
        in_recipe -= _TRAINING_FIELDS
    in_config = _own_config_fields(method.config_class) - in_recipe
    unknown = sorted(set(overrides) - in_recipe - in_config)
    if unknown:
        raise ValueError(
            f"overrides: {method.name} has no {unknown[0]!r}; it has {', '.join(sorted(in_recipe | in_config))}"
        )
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items() if k in in_recipe}
    values = replace(values, **changes)
    if values.augmentation == "none":  # all views would be equal
        if max(overrides.get("views", 1), overrides.get("cache_views", 1)) > 1:
            raise ValueError(
                "overrides: several views without augmentation are equal; set augmentation, too ('tip', 'coop')"
            )
        values = replace(values, views=1, **({"cache_views": 1} if hasattr(values, "cache_views") else {}))
    return values, {k: v for k, v in overrides.items() if k in in_config}


def views_needed(values: Recipe) -> int:
    """How many augmented views of a picture a recipe uses."""
    return max(values.views if values.epochs else 1, getattr(values, "cache_views", 1))


def fit_adapter(
    classifier: torch.nn.Module,
    method: str,
    shots: Shots,
    validation: LabelledImages | None = None,
    *,
    recipe_values: Recipe | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    state_folder: str | Path | None = None,
    on_epoch: Callable[[str, int, int], None] | None = None,
) -> FittedAdapter:
    """Fit one adapter to a few labelled pictures, by the method's published recipe unless told otherwise.

    Hyper-parameters that the recipe leaves open (Tip-Adapter's alpha and beta, CLIP-Adapter's ratio) are chosen on `validation`; without it
    by cross-validation over the shots; with one shot a class they are the recipe's. Test pictures have no part in it.

    Args:
        classifier (`CLIPClassifier`): with classes; frozen. The adapter is put on it in place (`FittedAdapter.unload` takes it off).
        method (`str`): a name in `FEW_SHOT_METHODS`.
        shots ([`Shots`]): the pictures; cached features (the image tower is not run any more) or pixels.
        validation (`LabelledImages`, *optional*): labelled pictures, plain view, that are neither trained on nor tested.
        recipe_values ([`Recipe`], *optional*): default: `recipe(method, K)`.
        overrides (`dict`, *optional*): values of the recipe or of the adapter's configuration to use instead; a given `alpha`, `beta` or `ratio`
            is not searched for.
        seed (`int`): of initial values and batch order. The global generators are left alone.
        state_folder: keep long trainings here, to go on from after a kill.
        on_epoch: called with (which training, epochs done, epochs).

    Raises:
        ValueError: unknown method or override, pictures that do not fit the classifier.
        FloatingPointError: a loss that is not finite.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import CLIPClassifier, CLIPClassifierProcessor, embedded_model
    >>> from hf_clip_variants.few_shot.fitting import Shots, fit_adapter
    >>> from hf_clip_variants.data import compute_features, load_emoji
    >>> from hf_clip_variants.data.images.labelled_images import CachedImages

    >>> train = load_emoji(["fluentflat", "emojione"], concepts=["cat", "dog", "pizza"])  # two pictures each
    >>> classifier = CLIPClassifier.from_pretrained(
    ...     embedded_model(), class_names=train.class_names, templates="icons", dtype=torch.float32
    ... )
    >>> processor = CLIPClassifierProcessor.from_clip(embedded_model())
    >>> encode = lambda pixels: classifier.get_image_features(pixels).pooler_output
    >>> pictures = CachedImages(compute_features(encode, train, processor, progress=False))
    >>> fitted = fit_adapter(classifier, "tip_adapter", Shots(pictures, pictures), overrides={"augmentation": "none"})
    >>> fitted.validation.kind, fitted.model.peft_config["default"].cache_size
    ('cross-validation', 6)

    ```
    """
    row = few_shot_method(method)
    most = int(torch.bincount(shots.labels).max())
    values, config = apply_overrides(row, recipe_values or recipe(method, most), overrides or {})
    if row.trains_image_tower and isinstance(shots.training, CachedImages):
        raise ValueError(f"shots: {method} trains the image tower; its pictures cannot be cached features")
    classifier.requires_grad_(False)
    on_split = validation is not None and len(validation) > 0
    fit = Fit(
        classifier, shots, validation_folds(shots, validation), values, config, frozenset(overrides or ()), seed, on_split,
        None if state_folder is None else Path(state_folder), on_epoch,
    )  # fmt: skip
    try:
        model, chosen = row.fit(fit)
    except BaseException:
        _take_off(classifier)
        raise
    model.eval()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return FittedAdapter(model, fit.validation, _used_values(fit) | config | chosen, fit.curve, fit.seconds, trained)


def _used_values(fit: Fit) -> dict[str, Any]:
    """The recipe's values that had a part in this fit."""
    used = {name: value for name, value in fit.recipe.to_dict().items() if value is not None}
    for name in ("method", "few_shot_protocol", "seeds"):
        del used[name]
    if not fit.recipe.epochs:
        without = _TRAINING_FIELDS | {"init_alpha", "init_beta"}
        used = {name: value for name, value in used.items() if name not in without}
    if fit.validation.kind == "none":
        used = {k: v for k, v in used.items() if not k.startswith("search_") and k != "ratio_candidates"}
    return used


def _take_off(classifier: torch.nn.Module) -> None:
    """Remove what a failed fit left on the classifier: hooks are wrapped in place."""
    for name, module in list(classifier.named_modules()):
        base = getattr(module, "base_layer", None)
        if base is not None and hasattr(module, "configs"):
            parent, _, child = name.rpartition(".")
            setattr(classifier.get_submodule(parent), child, base)
    if hasattr(classifier, "peft_config"):
        del classifier.peft_config
    if hasattr(classifier, "_hf_peft_config_loaded"):
        classifier._hf_peft_config_loaded = False


__all__ = [
    "FAST_METHODS", "FEW_SHOT_METHODS", "FewShotMethod", "Fit", "FittedAdapter", "Fold", "Shots", "Validation", "apply_overrides",
    "few_shot_method", "fit_adapter", "validation_folds", "views_needed",
]  # fmt: skip
