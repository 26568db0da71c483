"""`fit_adapter`: fits one adapter to a few labelled images. How, is in the method's folder (`FewShotMethod`)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_model

from ..adapters.tuner import TunerConfig
from ..data.few_shot_sampling import MAX_VALIDATION_SHOTS
from ..data.images.labelled_images import CachedImages, LabelledImages
from ..evaluation.image_prediction import predict
from ..metrics.classification import accuracy
from ..modeling.dual_encoders.backbones import CLIPFamily
from .method import FewShotMethod, few_shot_method
from .recipes import Recipe, recipe
from .training_loop import TrainingState, train_adapter


# V views, N images, D joint width, C classes, K shots


@dataclass(frozen=True)
class Shots:
    """The labelled images of one fit, as training and as validation see them."""

    training: LabelledImages  # V augmented views each
    plain: LabelledImages  # the image processor's own view, as in a test

    def __post_init__(self):
        if not torch.equal(self.training.labels, self.plain.labels):
            raise ValueError(
                f"plain: labels of {len(self.plain)} images are not those of the {len(self.training)} in training"
            )

    def select(self, rows: torch.Tensor) -> Shots:
        return Shots(self.training.select(rows), self.plain.select(rows))

    @property
    def labels(self) -> torch.Tensor:
        return self.training.labels


@dataclass(frozen=True)
class Fold:
    """One division for validation: fit on `shots`, measure on `queries`. Test images are never among them."""

    shots: Shots
    queries: LabelledImages


@dataclass(frozen=True)
class Validation:
    """How hyper-parameters were chosen, and the accuracy of the chosen ones (0..1; None if nothing was measured)."""

    kind: Literal["split", "cross-validation", "none"]
    accuracy: float | None = None


def validation_folds(shots: Shots, validation: LabelledImages | None) -> list[Fold]:
    """The divisions to validate on: the validation split; without one, cross-validation over the shots.

    There are none with one shot per class and no split. Cross-validation makes min(K, 4) folds: each leaves one shot
    of every class out, or with more than 4 shots every fourth one.
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
    """The number of each image within its class: labels [2, 0, 2, 2, 0] -> [0, 0, 1, 2, 1]."""
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
        model (`PeftModel`): the classifier with the adapter on it, in eval mode; `unload()` gives the classifier back
            as it was.
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
    """What a method's function works with: images, folds, the recipe's values; attaching and training an adapter."""

    classifier: torch.nn.Module
    shots: Shots
    folds: list[Fold]
    recipe: Recipe
    config: dict[str, Any]  # fields of the adapter's configuration that are not in the recipe
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
        """`attach` for the length of a `with` block."""
        model = self.attach(config)
        try:
            yield model
        finally:
            model.unload()

    def train(self, model: PeftModel, images: LabelledImages, label: str = "final") -> list[float]:
        """Train the adapter by the recipe; `label` tells the trainings of one fit apart."""
        values, report = self.recipe, self.on_epoch
        return train_adapter(
            model,
            images,
            values.make_optimizer,
            values.learning_rate_at,
            epochs=values.epochs,
            batch_size=values.batch_size,
            drop_last=values.drop_last,
            seed=self.seed,
            state=None if self.state_folder is None else TrainingState(self.state_folder / f"{label}.safetensors"),
            on_epoch=None if report is None else lambda done, loss: report(label, done, values.epochs),
        )

    @property
    def num_context_tokens(self) -> int | None:
        """The recipe's number of learned vectors.

        None where words are given and the user set no number: then there are as many as the words have tokens.
        """
        words_decide = self.context_init is not None and "num_context_tokens" not in self.asked
        return None if words_decide else self.recipe.num_context_tokens

    @property
    def context_init(self) -> str | None:
        """The recipe's words to start from.

        The published "a photo of a" becomes the family's own words, in its language, unless the user set it.
        """
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
        """Train the best candidate on all shots; the model, and the candidate's number.

        The best has the highest validation accuracy; among equals it is the first. Each candidate is trained in every
        fold. A single candidate is not validated, unless there is a validation split, which needs no further training.
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


_TRAINING_FIELDS = {f.name for f in dataclasses.fields(Recipe)} - {"augmentation"}


def apply_overrides(
    method: FewShotMethod, values: Recipe, overrides: Mapping[str, Any]
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with values replaced, and the values that are fields of the adapter's configuration.

    Raises ValueError for a name that is neither; the message lists those that are.
    """
    in_recipe = {f.name for f in dataclasses.fields(values)} - {"method", "few_shot_protocol", "seeds"}
    if not values.epochs:  # a method without training stays one: epochs=20 for all methods is not meant for it
        in_recipe -= _TRAINING_FIELDS
    in_config = method.config_fields() - in_recipe
    unknown = sorted(set(overrides) - in_recipe - in_config)
    if unknown:
        raise ValueError(
            f"overrides: {method.name} has no {unknown[0]!r}; it has {', '.join(sorted(in_recipe | in_config))}"
        )
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items() if k in in_recipe}
    values = replace(values, **changes)
    if values.augmentation == "none":  # all views would be equal
        plain = values.with_one_view()
        if any(getattr(plain, name) != getattr(values, name) for name in changes):
            raise ValueError(
                "overrides: several views without augmentation are equal; set augmentation, too ('tip', 'coop')"
            )
        values = plain
    return values, {k: v for k, v in overrides.items() if k in in_config}


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
    """Fit one adapter to a few labelled images, by the method's published recipe unless told otherwise.

    Hyper-parameters that the recipe leaves open (Tip-Adapter's alpha and beta, CLIP-Adapter's ratio) are chosen on
    `validation`, without it by cross-validation over the shots. With one shot per class and no `validation` they are
    the recipe's. Test images are not used.

    Args:
        classifier (`CLIPClassifier`): with classes; frozen. The adapter is put on it in place (`FittedAdapter.unload`
            takes it off).
        method (`str`): a name in `FEW_SHOT_METHODS`.
        shots ([`Shots`]): the images; cached features (the image encoder is not run any more) or pixels.
        validation (`LabelledImages`, *optional*): labelled images, plain view, that are neither trained on nor
            tested.
        recipe_values ([`Recipe`], *optional*): default: `recipe(method, K)`.
        overrides (`dict`, *optional*): values of the recipe or of the adapter's configuration to use instead; a given
            `alpha`, `beta` or `ratio` is not searched for.
        seed (`int`): of initial values and batch order. The global generators are left alone.
        state_folder: save long trainings here, so that they can go on after a kill.
        on_epoch: called with (which training, epochs done, epochs).

    Raises:
        ValueError: unknown method or override, images that do not fit the classifier.
        FloatingPointError: a loss that is not finite.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import CLIPClassifier, CLIPClassifierProcessor, embedded_model
    >>> from hf_clip_variants.few_shot.fitting import Shots, fit_adapter
    >>> from hf_clip_variants.data import compute_features, load_emoji
    >>> from hf_clip_variants.data.images.labelled_images import CachedImages

    >>> train = load_emoji(["fluentflat", "emojione"], concepts=["cat", "dog", "pizza"])  # two images each
    >>> classifier = CLIPClassifier.from_pretrained(
    ...     embedded_model(), class_names=train.class_names, templates="icons", dtype=torch.float32
    ... )
    >>> processor = CLIPClassifierProcessor.from_clip(embedded_model())
    >>> encode = lambda pixels: classifier.get_image_features(pixels).pooler_output
    >>> images = CachedImages(compute_features(encode, train, processor, progress=False))
    >>> fitted = fit_adapter(classifier, "tip_adapter", Shots(images, images), overrides={"augmentation": "none"})
    >>> fitted.validation.kind, fitted.model.peft_config["default"].cache_size
    ('cross-validation', 6)

    ```
    """
    row = few_shot_method(method)
    most = int(torch.bincount(shots.labels).max())
    values, config = apply_overrides(row, recipe_values or recipe(method, most), overrides or {})
    if row.trains_image_encoder and isinstance(shots.training, CachedImages):
        raise ValueError(f"shots: {method} trains the image encoder; its images cannot be cached features")
    classifier.requires_grad_(False)
    fit = Fit(
        classifier,
        shots,
        folds=validation_folds(shots, validation),
        recipe=values,
        config=config,
        asked=frozenset(overrides or ()),
        seed=seed,
        validates_on_split=validation is not None and len(validation) > 0,
        state_folder=None if state_folder is None else Path(state_folder),
        on_epoch=on_epoch,
    )
    try:
        model, chosen = row.fit(fit)
    except BaseException:
        _take_off(classifier)
        raise
    model.eval()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return FittedAdapter(model, fit.validation, _used_values(fit) | config | chosen, fit.curve, fit.seconds, trained)


def _used_values(fit: Fit) -> dict[str, Any]:
    """The recipe's values that this fit used."""
    used = {name: value for name, value in fit.recipe.to_dict().items() if value is not None}
    for name in ("method", "few_shot_protocol", "seeds"):
        del used[name]
    if not fit.recipe.epochs:
        without = _TRAINING_FIELDS | fit.recipe.training_fields
        used = {name: value for name, value in used.items() if name not in without}
    if fit.validation.kind == "none":
        used = {k: v for k, v in used.items() if k not in fit.recipe.search_fields}
    return used


def _take_off(classifier: torch.nn.Module) -> None:
    """Remove the adapter that a failed fit left on the classifier: tuners replace its modules in place."""
    for name, module in list(classifier.named_modules()):
        base = getattr(module, "base_layer", None)
        if base is not None and hasattr(module, "configs"):
            parent, _, child = name.rpartition(".")
            setattr(classifier.get_submodule(parent), child, base)
    if hasattr(classifier, "peft_config"):
        del classifier.peft_config
    if hasattr(classifier, "_hf_peft_config_loaded"):
        classifier._hf_peft_config_loaded = False


__all__ = ["Fit", "FittedAdapter", "Fold", "Shots", "Validation", "apply_overrides", "fit_adapter", "validation_folds"]
