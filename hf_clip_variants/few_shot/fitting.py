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
from ..evaluation.calibration import calibrate
from ..evaluation.image_prediction import class_logits
from ..modeling.dual_encoders.backbones import CLIPFamily
from .evidence import Evidence, evidence_of
from .method import FewShotMethod, few_shot_method
from .recipes import Recipe, recipe
from .training_loop import TrainingState, train_adapter


# V views, N images, D joint width, C classes, K shots

MEASURED_FOLDS = 2  # of a single candidate: each costs a training


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
    evidence: Evidence  # of zero-shot CLIP on `shots`
    query_evidence: Evidence  # and on `queries`


@dataclass(frozen=True)
class Validation:
    """What was measured on images that the measured adapter was not fitted to, beside zero-shot CLIP on the same ones.

    Attributes:
        kind: where these images came from: the validation split, or the shots themselves, left out one by one or in
            folds; "none" if nothing was measured.
        accuracy, zero_shot (`float`, *optional*): 0..1, of the adapter with its chosen settings and of zero-shot CLIP.
        images (`int`): how many there were.
        standard_error (`float`, *optional*): of `accuracy - zero_shot`, which is a paired difference.
        temperature (`float`, *optional*): by which logits are to be divided to give probabilities.
        rejection_threshold (`float`, *optional*): probability below which an image gets no class, so that 95 % of the
            right answers are kept; None with fewer than 19 right answers.
    """

    kind: Literal["split", "leave-one-out", "cross-validation", "none"]
    accuracy: float | None = None
    zero_shot: float | None = None
    images: int = 0
    standard_error: float | None = None
    temperature: float | None = None
    rejection_threshold: float | None = None


def measure(kind: str, logits: torch.Tensor, labels: torch.Tensor, zero_shot_logits: torch.Tensor) -> Validation:
    """The validation of (N, C) logits of images that were left out, with the zero-shot logits of the same images."""
    right, before = (values.argmax(1) == labels for values in (logits, zero_shot_logits))
    won, lost, count = int((right & ~before).sum()), int((before & ~right).sum()), len(labels)
    # Laplace's rule: a difference that few images do not show is not known to be zero.
    mean = (won - lost) / (count + 2)
    variance = (won + lost + 1) / (count + 2) - mean**2
    calibration = calibrate(logits, labels)
    return Validation(
        kind,
        int(right.sum()) / count,
        int(before.sum()) / count,
        count,
        (variance / (count + 2)) ** 0.5,
        calibration.temperature,
        calibration.rejection_threshold,
    )


def validation_folds(
    shots: Shots, validation: LabelledImages | None, evidence: Evidence, validation_evidence: Evidence | None = None
) -> list[Fold]:
    """The divisions to validate on: the validation split; without one, cross-validation over the shots.

    There are none with one shot per class and no split. Cross-validation makes min(K, 4) folds: each leaves one shot
    of every class out, or with more than 4 shots every fourth one. The only image of a class is never left out, since
    the others know nothing of its class. `evidence` is that of all shots.
    """
    if validation is not None and len(validation):
        return [Fold(shots, validation, evidence, validation_evidence)]
    return [
        Fold(shots.select(kept), shots.plain.select(left), evidence.select(kept), evidence.select(left))
        for kept, left in fold_rows(shots.labels)
    ]


def fold_rows(labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of the shots that each fold of a cross-validation keeps, and that it leaves out: see `validation_folds`."""
    labels = labels.cpu()
    place = _place_within_class(labels)
    count = min(int(place.max()) + 1, MAX_VALIDATION_SHOTS)
    if count < 2:
        return []
    fold_of = place % count
    fold_of[torch.bincount(labels)[labels] == 1] = -1  # learnt from in every fold
    return [((fold_of != fold).nonzero()[:, 0], (fold_of == fold).nonzero()[:, 0]) for fold in range(count)]


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
        zero_shot_error (`float`): zero-shot CLIP's error on the shots, see `Evidence.error`.
    """

    model: PeftModel
    validation: Validation
    hyperparameters: dict[str, Any]
    curve: list[float]
    seconds: dict[str, float]
    trained_parameters: int
    zero_shot_error: float = 0.5

    def unload(self) -> torch.nn.Module:
        return self.model.unload()


@dataclass
class Fit:
    """What a method's function works with: images, folds, the recipe's values; attaching and training an adapter."""

    classifier: torch.nn.Module
    shots: Shots
    folds: list[Fold]
    evidence: Evidence
    recipe: Recipe
    config: dict[str, Any]  # fields of the adapter's configuration that are not in the recipe
    asked: frozenset[str] = frozenset()  # what the user set, in the recipe or the configuration
    seed: int = 0
    validates_on_split: bool = False
    trains_image_encoder: bool = False
    searched: bool = False  # whether values were chosen among several; set by who chooses
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

    def cross_validate(self, fitted_logits: Callable[[Fold, int], torch.Tensor]) -> None:
        """Measures on the folds: `fitted_logits(fold, number)` fits to its shots and gives its queries' logits.

        Two folds are enough to measure one adapter; each is fitted to nearly all shots, and costs a fit.
        """
        if self.folds:
            with self.timed("search"):
                folds = self.folds[:MEASURED_FOLDS]
                logits = torch.cat([fitted_logits(fold, number) for number, fold in enumerate(folds)])
            queries = [fold.query_evidence for fold in folds]
            labels, before = (torch.cat([getattr(q, name) for q in queries]) for name in ("labels", "logits"))
            self.validation = measure("cross-validation", logits, labels, before)

    def train_best(self, candidates: Sequence[TunerConfig]) -> tuple[PeftModel, int]:
        """Train the best candidate on all shots; the model, and the candidate's number.

        The best has the highest validation accuracy; among equals it is the first. Each candidate is trained in every
        fold. A single candidate is measured on the validation split, or on two folds. Where the image encoder is
        trained, that would be two more runs of it, and nothing is measured without a split.
        """
        best, on_split = 0, self.validates_on_split
        choosing = len(candidates) > 1 and bool(self.folds)
        if choosing:
            self.searched = True
            with self.timed("search"):
                found = [
                    torch.cat([self._trained_logits(c, fold, f"{i}-fold-{n}") for n, fold in enumerate(self.folds)])
                    for i, c in enumerate(candidates)
                ]
            labels, before = (
                torch.cat([getattr(fold.query_evidence, name) for fold in self.folds]) for name in ("labels", "logits")
            )
            measured = [measure(self.validation_kind, logits, labels, before) for logits in found]
            best = max(range(len(measured)), key=lambda i: measured[i].accuracy)
            self.validation = measured[best]
        elif not on_split and not self.trains_image_encoder:
            self.cross_validate(lambda fold, n: self._trained_logits(candidates[0], fold, f"0-fold-{n}"))
        with self.timed("train"):
            model = self.attach(replace(candidates[best]))
            self.curve = self.train(model, self.shots.training)
        if on_split and not choosing:
            self.measure_on_split(model)
        return model, best

    def measure_on_split(self, model: PeftModel) -> None:
        """Measures a fitted model on the validation split."""
        with self.timed("search"):
            (fold,) = self.folds
            logits = class_logits(model, fold.queries).logits
            self.validation = measure("split", logits, fold.query_evidence.labels, fold.query_evidence.logits)

    def _trained_logits(self, config: TunerConfig, fold: Fold, name: str) -> torch.Tensor:
        with self.attached(replace(config)) as model:
            self.train(model, fold.shots.training, f"candidate-{name}")
            return class_logits(model, fold.queries).logits


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
    `validation`; without it, by leaving shots out, or by what the shots say of zero-shot CLIP (`evidence.py`), which
    one shot per class is enough for. Test images are not used.

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
    >>> encode = classifier.pooled_image_features
    >>> images = CachedImages(compute_features(encode, train, processor, progress=False))
    >>> fitted = fit_adapter(classifier, "tip_adapter", Shots(images, images), overrides={"augmentation": "none"})
    >>> fitted.validation.kind, fitted.model.peft_config["default"].cache_size
    ('leave-one-out', 6)

    ```
    """
    row = few_shot_method(method)
    most = int(torch.bincount(shots.labels).max())
    values, config = apply_overrides(row, recipe_values or recipe(method, most), overrides or {})
    if row.trains_image_encoder and isinstance(shots.training, CachedImages):
        raise ValueError(f"shots: {method} trains the image encoder; its images cannot be cached features")
    classifier.requires_grad_(False)
    on_split = validation is not None and len(validation) > 0
    evidence = evidence_of(classifier, shots.plain)
    on_validation = evidence_of(classifier, validation) if on_split else None
    fit = Fit(
        classifier,
        shots,
        folds=validation_folds(shots, validation, evidence, on_validation),
        evidence=evidence,
        recipe=values,
        config=config,
        asked=frozenset(overrides or ()),
        seed=seed,
        validates_on_split=on_split,
        trains_image_encoder=row.trains_image_encoder,
        state_folder=None if state_folder is None else Path(state_folder),
        on_epoch=on_epoch,
    )
    try:
        model, chosen = row.fit(fit)
    except BaseException:
        _take_off(classifier)
        raise
    model.eval()
    saved = model.peft_config["default"]
    # Not measured: the methods choose their strengths beside zero-shot logits at the temperature of the shots.
    saved.temperature = fit.validation.temperature or evidence.temperature
    saved.rejection_threshold = fit.validation.rejection_threshold
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return FittedAdapter(
        model, fit.validation, _used_values(fit) | config | chosen, fit.curve, fit.seconds, trained, evidence.error
    )


def _used_values(fit: Fit) -> dict[str, Any]:
    """The recipe's values that this fit used."""
    used = {name: value for name, value in fit.recipe.to_dict().items() if value is not None}
    for name in ("method", "few_shot_protocol", "seeds"):
        del used[name]
    if not fit.recipe.epochs:
        without = _TRAINING_FIELDS | fit.recipe.training_fields
        used = {name: value for name, value in used.items() if name not in without}
    if not fit.searched:
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
