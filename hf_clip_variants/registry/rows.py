"""What a row of the table of methods holds, and which parts each kind of method has. Imports nothing."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal


@dataclass(frozen=True)
class Paper:
    title: str
    arxiv: str
    year: int  # of the first version on arXiv
    authors: str = ""  # as BibTeX wants them

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True)
class OfficialCode:
    repository: str  # owner/name on GitHub
    licence: str | None  # SPDX identifier; None: no licence is stated, so no code may be copied

    @property
    def url(self) -> str:
        return f"https://github.com/{self.repository}"


KindName = Literal["model", "adapter", "synthesis"]


@dataclass(frozen=True)
class Kind:
    """
    A kind of method, and what its methods have in common.

    Args:
        package: the package with a folder for each method, relative to `hf_clip_variants`.
        required: fields that every row of the kind has.
        optional: fields that a row of the kind may have.
        registered_with: the library that the classes are registered with when `hf_clip_variants` is imported. None:
            they are not registered, and users import them by name.
    """

    package: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    registered_with: Literal["transformers", "peft"] | None = None


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        # Own forward pass, own checkpoints: a PretrainedConfig and PreTrainedModels behind Auto classes.
        "model": Kind(
            package="modeling",
            required=("config", "model", "auto_classes"),
            optional=(
                "processor",
                "image_processors",
                "video_processor",
                "feature_extractor",
                "point_processor",
                "submodels",
                "checkpoints",
                "pretraining",
            ),
            registered_with="transformers",
        ),
        # A few trained tensors on a frozen backbone: a PEFT configuration and tuner.
        "adapter": Kind(
            package="adapters",
            required=("config", "layer", "tuner"),
            optional=("few_shot", "checkpoints", "card_snippet"),
            registered_with="peft",
        ),
        # Pixels or strokes that are optimised with frozen models. No weights are trained. The configuration is a
        # dataclass; the generator is a callable that takes loaded models and a text or an image, and returns an image.
        "synthesis": Kind(package="synthesis", required=("config", "generator")),
    }
)


@dataclass(frozen=True)
class Submodel:
    """
    A part of a model that can be used alone, such as the image encoder, with its own configuration.

    Args:
        name: suffix of the configuration's `model_type`, after the method's name.
        config: the configuration class.
        auto_classes: Auto class -> class, as in `Method`.
    """

    name: str
    config: str
    auto_classes: dict[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class FewShotEntry:
    """
    A way to fit an adapter to a few labelled images, as `adapt --methods` and `fit_adapter` name it.

    Args:
        name: its name in commands and results. An adapter may have several entries, for instance with and without
            training.
        title: its name in tables and reports.
        descriptor: `few_shot.method.FewShotMethod`, with recipes and the function that fits.
        by_default: whether `adapt` runs it by default; it must take only minutes without a GPU.
        in_demo: whether `demo` runs it by default.
    """

    name: str
    title: str
    descriptor: str
    by_default: bool = False
    in_demo: bool = False


@dataclass(frozen=True)
class Option:
    """
    An option of `convert`, on the command line and as a keyword of `convert_checkpoint`.

    Args:
        name: the keyword.
        type: `str`, `int`, `float`, `bool`, or the values that it may have.
        help: one line; the methods that it belongs to are put in front of it.
        default: as help shows it; None where it is plain or there is none.
        flag: on the command line, where it is not the keyword with hyphens.
    """

    name: str
    type: type | tuple[str, ...]
    help: str
    default: str | None = None
    flag: str | None = None


@dataclass(frozen=True)
class CheckpointEntry:
    """
    A format of official checkpoints, as `convert --method` names it.

    Args:
        name: the format's name; mostly the method's. A row may have several, such as backbones of a classifier.
        title: in help and messages.
        descriptor: a `ModelFormat` (`modeling.loading_and_saving.checkpoint_format`) or an `AdapterFormat`
            (`adapters.checkpoint_format`).
        options: what `convert` can be told about files of this format, besides the options of every model or adapter.
        files: what the files are called, where that is not up to the user.
    """

    name: str
    title: str
    descriptor: str
    options: tuple[Option, ...] = ()
    files: str | None = None


@dataclass(frozen=True)
class Method:
    """
    One method: its paper and code, and the classes that implement it.

    Args:
        name: name of its folder, of the argument of commands, and suffix of `model_type` or `peft_type`.
        kind: `"model"` (own forward pass and checkpoints, in `modeling/<name>`), `"adapter"` (a PEFT tuner, in
            `adapters/<name>`) or `"synthesis"` (an image optimised with frozen models, in `synthesis/<name>`).
        title: the method's name as in the paper.
        task: the Hub's pipeline tag.
        summary: when to use it, in one line.
        config: the configuration class.
        model: models only, the class that `hf_clip_variants` exports; `auto_classes` says what each Auto class gives.
        processor, image_processors, video_processor, feature_extractor: models only. The keys of `image_processors`
            are transformers' names of back-ends; `feature_extractor` is for audio.
        point_processor: models only, of clouds of points; transformers knows it as a feature extractor.
        submodels: models only, parts that are also registered with the Auto classes.
        layer, tuner: adapters only, a wrapping layer and the subclass of PEFT's `BaseTuner`.
        generator: synthesis only, the callable that returns the image.
        few_shot: adapters only, the ways to fit it to a few labelled images.
        checkpoints: formats of official files that `convert` can read.
        pretraining: how `scripts/pretrain.py` trains it (`modeling.dual_encoders.pretraining.Pretraining`).
        card_snippet: code in the model card of an adapter on a plain `CLIPModel`, if the usual code does not work; a
            format string of the configuration's fields, `repo_id`, `base_model` and `names`.
    """

    name: str
    kind: KindName
    title: str
    paper: Paper
    code: OfficialCode
    task: str
    summary: str
    config: str
    model: str | None = None
    auto_classes: dict[str, str] = field(default_factory=dict, hash=False)
    processor: str | None = None
    image_processors: dict[str, str] = field(default_factory=dict, hash=False)
    video_processor: str | None = None
    feature_extractor: str | None = None
    point_processor: str | None = None
    submodels: tuple[Submodel, ...] = ()
    layer: str | None = None
    tuner: str | None = None
    generator: str | None = None
    few_shot: tuple[FewShotEntry, ...] = ()
    checkpoints: tuple[CheckpointEntry, ...] = ()
    pretraining: str | None = None
    card_snippet: str | None = None

    @property
    def folder(self) -> str:
        """Full name of the method's package."""
        return f"hf_clip_variants.{KINDS[self.kind].package}.{self.name}"

    @property
    def model_type(self) -> str | None:
        """`config.model_type` of a model. The prefix avoids a clash if transformers adds the method one day."""
        return f"clipv-{self.name}" if self.kind == "model" else None

    @property
    def peft_type(self) -> str | None:
        """`config.peft_type` of an adapter."""
        return f"CLIPV_{self.name.upper()}" if self.kind == "adapter" else None

    @property
    def exports(self) -> dict[str, str]:
        """Public class name -> module, for all classes of this method that `hf_clip_variants` exports."""
        references = [self.config, self.model, self.processor, *self.image_processors.values(), self.feature_extractor]
        references += [*self.auto_classes.values(), self.video_processor, self.point_processor, self.generator]
        for submodel in self.submodels:
            references += [submodel.config, *submodel.auto_classes.values()]
        return {name: module for module, name in (split_reference(reference) for reference in references if reference)}

    def load(self, part: str) -> Any:
        """Import and return one class, function or descriptor: one of `_PARTS`, or the name of an Auto class."""
        reference = self.auto_classes.get(part) or (getattr(self, part) if part in _PARTS else None)
        if reference is None:
            known = [name for name in _PARTS if getattr(self, name)] + list(self.auto_classes)
            raise ValueError(f"part: {self.name} has no {part!r}; it has {', '.join(known)}")
        return load_reference(reference)

    def as_dict(self) -> dict[str, Any]:
        """The row as a dictionary, for `hf-clip-variants methods --json`."""
        return {
            "name": self.name,
            "kind": self.kind,
            "title": self.title,
            "task": self.task,
            "summary": self.summary,
            "paper": {"title": self.paper.title, "url": self.paper.url, "year": self.paper.year},
            "code": {"url": self.code.url, "licence": self.code.licence},
            "model_type": self.model_type,
            "peft_type": self.peft_type,
            "config": ":".join(split_reference(self.config)),
            "auto_classes": list(self.auto_classes),
            "few_shot": [entry.name for entry in self.few_shot],
            "checkpoints": [entry.name for entry in self.checkpoints],
        }


_PARTS = (
    "config",
    "model",
    "processor",
    "video_processor",
    "feature_extractor",
    "point_processor",
    "layer",
    "tuner",
    "generator",
    "pretraining",
    "card_snippet",
)


def split_reference(reference: str) -> tuple[str, str]:
    """`"adapters.coop.config:CoOpConfig"` -> full name of the module, and name in the module."""
    module, _, name = reference.partition(":")
    return f"hf_clip_variants.{module}", name


def load_reference(reference: str) -> Any:
    """Import and return the object that a reference `"module:name"` names."""
    module, name = split_reference(reference)
    return getattr(importlib.import_module(module), name)
