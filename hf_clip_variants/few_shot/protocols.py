"""What the published few-shot protocols train and test on: class lists, rows, labels. Imports no model and no torch.

few_shot (CoOp, Tip-Adapter): all classes, other images. base_to_new (CoCoOp): train on the first half of the classes,
test each half among its own names. cross_dataset: train on one set, test on others with their names.
domain_generalisation: the trained classes, or some of them, in other domains.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from ..data.few_shot_sampling import split_base_new
from ..data.images.coop_layout import coop_layout
from ..data.images.image_set import ImageSet, name_some
from ..data.images.labelled_sets import load_labelled
from ..data.images.sources import load_images
from ..files.json_files import digest
from ..modeling.dual_encoders.prompts import resolve_templates
from .splits import Draws, draw_shots, load_training


ProtocolName = Literal["few_shot", "base_to_new", "cross_dataset", "domain_generalisation"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)
Part = Literal["test", "base", "new", "source", "target"]

# The `protocol` of the recipes. Papers train one adapter for both kinds of transfer.
RECIPE_PROTOCOLS = {name: name for name in PROTOCOLS} | {"domain_generalisation": "cross_dataset"}


def harmonic_mean(base: float, new: float) -> float:
    """2 b n / (b + n); 0 if both are 0.

    >>> round(harmonic_mean(82.69, 63.22), 2)  # CoOp, averages over eleven data sets
    71.66
    """
    return 2 * base * new / (base + new) if base + new else 0.0


def divide(images: ImageSet, seed: int = 0) -> tuple[ImageSet, ImageSet | None, ImageSet]:
    """Half of each class for training, a fifth for validation, the rest for testing, as CoOp divides sets without
    splits.

    ValueError for a class of one image. Without a validation part if all classes are too small for one.
    """
    generator = random.Random(seed)
    rows: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for label, name in enumerate(images.class_names):
        own = np.flatnonzero(images.labels == label).tolist()
        if len(own) < 2:
            raise ValueError(
                f"data: class {name!r} has {len(own)} images, which do not divide into training and test; want 2"
            )
        generator.shuffle(own)
        train = round(0.5 * len(own))
        validation = min(round(0.2 * len(own)), len(own) - train - 1)
        rows["train"] += own[:train]
        rows["validation"] += own[train : train + validation]
        rows["test"] += own[train + validation :]
    parts = {part: images.select(sorted(found)) for part, found in rows.items()}
    return parts["train"], parts["validation"] if rows["validation"] else None, parts["test"]


def columns_among(class_names: Sequence[str], trained: Sequence[str], what: str) -> tuple[int, ...]:
    """The index of each name among the trained ones. ValueError lists names that are not among them.

    >>> columns_among(["owl", "cat"], ["cat", "dog", "owl"], "x")
    (2, 0)
    """
    place = {name: index for index, name in enumerate(trained)}
    unknown = [name for name in class_names if name not in place]
    if unknown:
        raise ValueError(
            f"{what}: {len(unknown)} of {len(class_names)} classes are not among the {len(trained)} trained ones: "
            f"{name_some(unknown)}; a domain holds trained classes (other classes are cross_dataset's)"
        )
    return tuple(place[name] for name in class_names)


SetTemplates = Sequence[str] | Mapping[str, Sequence[str]]


def templates_for(source: str, given: str | Sequence[str] | None = None) -> list[str] | None:
    """The templates for a source: those given, CoOp's for its sets, "icons" for emoji; None means the family's own.

    >>> templates_for("coop:DATA/dtd")
    ['{} texture.']
    """
    if given is None and re.match(r"emoji($|[:@])", source):
        given = "icons"
    if given is None and (layout := coop_layout(source)) is not None:
        given = layout.template
    return None if given is None else resolve_templates(given)


@dataclass(frozen=True)
class Plan:
    """One protocol on one data set, as sources of `load_images`.

    Attributes:
        protocol (`str`): one of `PROTOCOLS`.
        name (`str`): of the data set, in tables.
        data (`str`): shots are drawn from its train split.
        tests (`dict[str, str]`): test sets of its classes. Without any: its test split; or else its validation split,
            which is then used for testing only; or else, without splits, the test part of `divide`.
        targets (`dict[str, str]`): other data sets (cross_dataset), or other domains of its classes
            (domain_generalisation).
        tests_source (`bool`): False: there are no test images of the source itself. Otherwise transfer tables have
            them in the first column.
        note (`str`): printed below the table.

    Raises:
        ValueError: an unknown protocol, targets where the protocol has none or none where it wants some.
    """

    protocol: ProtocolName
    name: str
    data: str
    tests: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    tests_source: bool = True
    note: str = ""

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol: got {self.protocol!r}; want one of {', '.join(PROTOCOLS)}")
        if bool(self.targets) != self.transfers:
            want = (
                "want at least one" if self.transfers else "want none, this protocol tests on the data's own classes"
            )
            raise ValueError(f"targets of {self.protocol}: got {dict(self.targets)}; {want}")
        if self.transfers and (both := sorted(set(self.tests) & set(self.targets))):
            raise ValueError(
                f"targets of {self.protocol}: {both[0]!r} is also the name of a test set; want names that differ"
            )

    @property
    def transfers(self) -> bool:
        return self.protocol in ("cross_dataset", "domain_generalisation")

    @property
    def recipe_dataset(self) -> str | None:
        """The data set's name in `recipes.DATASETS`, for sources that are one of them."""
        layout = coop_layout(self.data)
        return layout.recipe if layout else None

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("protocol", "name", "note")}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """N images to classify among C class names, and the right labels.

    Attributes:
        name (`str`): unique in its task.
        part (`str`): "test", "base", "new", "source" or "target".
        of (`str`): name of the test set.
        images ([`ImageSet`]), rows (`np.ndarray`): the images, as rows of a set whose features several evaluations
            use.
        labels (`np.ndarray`): (N,) int64, indices into `class_names`.
        class_names (`tuple[str, ...]`): the classes to choose among.
        templates: templates, or prompts of each class; () for those of the model's family.
        columns (`tuple[int, ...]`, *optional*): index of each class among the trained ones. None: other classes.
    """

    name: str
    part: Part
    of: str
    images: ImageSet
    rows: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    templates: SetTemplates
    columns: tuple[int, ...] | None

    def __post_init__(self):
        if not len(self.rows):
            raise ValueError(f"{self.of}: no test images of the {self.part} classes {name_some(self.class_names)}")


@dataclass(frozen=True, eq=False)
class Task:
    """A plan with its images: those to draw from, the trained classes, and the evaluations.

    Attributes:
        plan ([`Plan`])
        train ([`ImageSet`]), validation ([`ImageSet`], *optional*): of all classes of the data.
        draws ([`Draws`]): of all classes: the official code, too, draws first and leaves classes out afterwards.
        class_names (`tuple[str, ...]`): the trained classes, which are the first ones of the data: labels stay the
            same.
        templates: of the trained classes.
        evaluations (`tuple[Evaluation, ...]`)
        recipe_dataset (`str`, *optional*): whose published recipes are used, see `recipes.DATASETS`.
    """

    plan: Plan
    train: ImageSet
    validation: ImageSet | None
    draws: Draws
    class_names: tuple[str, ...]
    templates: SetTemplates
    evaluations: tuple[Evaluation, ...]
    recipe_dataset: str | None = None

    @property
    def has_videos(self) -> bool:
        sets = [self.train, self.validation, *(evaluation.images for evaluation in self.evaluations)]
        return any(images.videos for images in sets if images is not None)

    def training_rows(self, shots: int, seed: int) -> list[int]:
        """Rows of `train` that a run learns from."""
        return self._trained(self.train, self.draws.splits[shots, seed].train)

    def validation_rows(self, shots: int, seed: int) -> list[int]:
        """Rows of `validation`, none without one."""
        return self._trained(self.validation, self.draws.splits[shots, seed].validation) if self.validation else []

    @property
    def every_training_row(self) -> list[int]:
        return self._trained(self.train, self.draws.rows)

    @property
    def every_validation_row(self) -> list[int]:
        return self._trained(self.validation, self.draws.validation_rows) if self.validation else []

    def _trained(self, images: ImageSet, rows: Sequence[int]) -> list[int]:
        return [row for row in rows if images.labels[row] < len(self.class_names)]

    def contents(self) -> dict[str, str]:
        """Hashes of the contents of the plan's sources."""
        train = self.train
        found = {"data": digest([train.ids, train.labels.tolist(), list(train.class_names)])}
        return found | {f"test {e.of}": e.images.fingerprint[:16] for e in self.evaluations}


def whole_set(
    name: str, part: Part, images: ImageSet, templates: SetTemplates, columns: tuple[int, ...] | None
) -> Evaluation:
    """All images of a test set, classified among all of its classes."""
    names, rows = tuple(images.class_names), np.arange(len(images))
    return Evaluation(name, part, name, images, rows, images.labels, names, templates, columns)


def base_and_new(name: str, images: ImageSet, templates: Sequence[str], only: bool = True) -> list[Evaluation]:
    """Images of base classes, classified among base classes; and of new classes, among new ones with labels from 0.

    `only`: there is no other test set; the evaluations are then called "base" and "new".
    """
    evaluations = []
    for part, classes in zip(("base", "new"), split_base_new(len(images.class_names)), strict=True):
        new_label = np.full(len(images.class_names), -1, dtype=np.int64)
        new_label[list(classes)] = np.arange(len(classes))
        rows = np.flatnonzero(new_label[images.labels] >= 0)
        names = tuple(images.class_names[c] for c in classes)
        title, columns = part if only else f"{name} ({part})", classes if part == "base" else None
        labels = new_label[images.labels[rows]]
        evaluations.append(Evaluation(title, part, name, images, rows, labels, names, tuple(templates), columns))
    return evaluations


def load_task(
    plan: Plan,
    shots: Sequence[int],
    seeds: Sequence[int],
    *,
    templates: str | Sequence[str] | None = None,
    reading: Mapping[str, Any] | None = None,
    read: MutableMapping[Any, Any] | None = None,
) -> Task:
    """Find a plan's images and draw the shots.

    Args:
        plan ([`Plan`])
        shots, seeds: every pair is drawn.
        templates: of all sources. Default: each has its own, see `templates_for`.
        reading: more arguments of `load_images`.
        read: a cache of what was read, by source. Plans with the same source share its sets and, with them, their
            features.

    Raises:
        ValueError, OSError: what `load_images` raises; targets whose classes do not fit the protocol (named); nothing
            to test on.
    """
    read = {} if read is None else read

    def once(key, load):
        if key not in read:
            read[key] = load()
        return read[key]

    tests_itself = plan.tests_source and not plan.tests
    train, validation, own_tests = once(
        ("data", plan.data, tests_itself), lambda: _load_data(plan.data, reading, tests_itself)
    )
    draws = once(
        ("draws", plan.data, tests_itself, tuple(shots), tuple(seeds)),
        lambda: draw_shots(train, validation, sorted(set(shots)), list(seeds)),
    )
    names, own_templates = tuple(train.class_names), tuple(templates_for(plan.data, templates) or ())
    if plan.tests:
        tests = {
            name: once(
                ("test", source, plan.data),
                lambda source=source: load_labelled(source, names, _test_split(source, reading), reading),
            )
            for name, source in plan.tests.items()
        }
    elif own_tests is not None:
        tests = {plan.name: once(("own test", plan.data), own_tests)}
    elif tests_itself:
        raise ValueError(f"tests: {plan.data} has no images to test on; want NAME=SOURCE with images of its classes")
    else:
        tests = {}

    trained = names
    if plan.protocol == "base_to_new":
        trained = names[: len(split_base_new(len(names))[0])]
        evaluations = [
            e for n, images in tests.items() for e in base_and_new(n, images, own_templates, len(tests) == 1)
        ]
    else:
        part, everything = "source" if plan.transfers else "test", tuple(range(len(names)))
        evaluations = [whole_set(name, part, images, own_templates, everything) for name, images in tests.items()]
    for name, source in plan.targets.items():
        images = once(("target", source), lambda source=source: _load_target(source, reading))
        columns = (
            columns_among(images.class_names, names, source) if plan.protocol == "domain_generalisation" else None
        )
        target_templates = own_templates if columns is not None else tuple(templates_for(source, templates) or ())
        evaluations.append(whole_set(name, "target", images, target_templates, columns))
    found = [e.name for e in evaluations]
    if len(set(found)) < len(found):
        raise ValueError(f"targets of {plan.protocol}: got the names {found}; want names that differ")
    return Task(plan, train, validation, draws, trained, own_templates, tuple(evaluations), plan.recipe_dataset)


def _load_data(source: str, reading: Mapping[str, Any] | None, tests_itself: bool):
    """(training images, validation images or None, function that reads the test images or None)"""
    train, validation = load_training(source, reading)
    names, splits = tuple(train.class_names), train.available_splits
    if not tests_itself:
        return train, validation, None
    if not splits:
        *parts, test = divide(train)
        return *parts, lambda: test
    if "test" in splits and train.split != "test":
        return train, validation, lambda: load_labelled(source, names, "test", reading)
    if validation is not None:  # there are no other test images, as for ImageNet
        return train, None, lambda: load_labelled(source, names, "validation", reading)
    return train, None, None


def _test_split(source: str, reading: Mapping[str, Any] | None) -> str | None:
    """The split of a source that is tested on: "test", else "validation", else its only one."""
    splits = load_images(
        source, **{"verify": False, "progress": False, "empty_classes": "warn"} | dict(reading or {})
    ).available_splits
    return next((split for split in ("test", "validation") if split in splits), None)


def _load_target(source: str, reading: Mapping[str, Any] | None) -> ImageSet:
    options = {"on_error": "skip", "empty_classes": "warn", "progress": False} | dict(reading or {})
    return load_images(source, _test_split(source, reading), **options)


def emoji_plans(protocols: Sequence[ProtocolName] = PROTOCOLS) -> list[Plan]:
    """The protocols on the embedded emoji: a style is a domain and a concept a class.

    One image per concept and style: shots come from two styles, and every test is on the two others.
    """
    trained, tested = "emoji:fluentflat,emojione", ("fluent3d", "notov1")
    unseen = {style: f"emoji:{style}" for style in tested}
    groups = {"animals and plants": "animals-nature", "food and drink": "food-drink"}
    note = (
        "Emoji have one image per concept and style: shots are drawn from the styles fluentflat and emojione (two are "
        "all there are, so every seed draws the same two), and test images are of other styles: fluent3d by "
        "fluentflat's designer, notov1 by another."
    )
    base_note = f"{note} Base: the first half of the 190 concepts in code-point order."
    domain_note = f"{note} There are no other images of the trained styles, hence no column for the source."
    across = []
    for name, group in groups.items():
        tests = {n: f"emoji:{','.join(tested)}@{g}" for n, g in groups.items()}
        source = {name: tests.pop(name)}
        across.append(Plan("cross_dataset", name, f"{trained}@{group}", source, tests, note=note))
    domains = Plan("domain_generalisation", "fluentflat, emojione", trained, {}, unseen, False, domain_note)
    plans = {
        "few_shot": [Plan("few_shot", "emoji", trained, unseen, note=note)],
        "base_to_new": [Plan("base_to_new", "emoji", trained, unseen, note=base_note)],
        "cross_dataset": across,
        "domain_generalisation": [domains],
    }
    return [plan for protocol in protocols for plan in plans[protocol]]


__all__ = [
    "PROTOCOLS",
    "RECIPE_PROTOCOLS",
    "Evaluation",
    "Plan",
    "Task",
    "base_and_new",
    "columns_among",
    "divide",
    "emoji_plans",
    "harmonic_mean",
    "load_task",
    "templates_for",
    "whole_set",
]
