"""`FewShotMethod`: how a method is fitted to a few labelled images. Its folder has one; the table's row points to
it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ..registry import few_shot_entries, load_reference, unknown_name
from .recipes import Protocol, Recipe


if TYPE_CHECKING:
    from peft import PeftModel

    from ..adapters.tuner import TunerConfig
    from .fitting import Fit


@dataclass(frozen=True)
class FewShotMethod:
    """
    How one method is fitted to a few labelled images; `adapters/<method>/few_shot.py` holds one for each entry of its
    row.

    Args:
        name: in commands and results.
        config_class: the adapter's configuration.
        published: (shots per class, benchmark data set or None, protocol) -> the recipe of the paper's code.
        fit: makes the adapter from a [`Fit`]; gives the model and the hyper-parameters that it chose.
        small_model: fields that replace published ones for models as small as the embedded one, for which the
            published values are not meant.
        small_model_new_classes: further changes for tests on classes that were not trained on.
        demo: settings for `demo`, which should take a minute or two: fewer passes through the encoders.
        trains_image_encoder: if true, features of its training images cannot be computed in advance.
        text_encoder_runs: in training, for all classes: once, at every step, or for every image.
    """

    name: str
    config_class: type[TunerConfig]
    published: Callable[[int, str | None, Protocol], Recipe]
    fit: Callable[[Fit], tuple[PeftModel, dict[str, Any]]]
    small_model: Mapping[str, Any] = field(default_factory=dict, hash=False)
    small_model_new_classes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    demo: Mapping[str, Any] = field(default_factory=dict, hash=False)
    trains_image_encoder: bool = False
    text_encoder_runs: Literal["once", "step", "image"] = "once"

    @property
    def title(self) -> str:
        """In tables and reports."""
        return few_shot_entries()[self.name].title

    def recipe(self, shots: int, dataset: str | None, profile: str, protocol: Protocol) -> Recipe:
        """The published recipe, or with profile "tiny" the one for small models. [`recipe`] checks the arguments."""
        published = self.published(shots, dataset, protocol)
        if profile == "published":
            return published
        changes = dict(self.small_model) | (self.small_model_new_classes if protocol != "few_shot" else {})
        return replace(published, **changes)

    def config_fields(self) -> set[str]:
        """Fields of the adapter's configuration that a user may set.

        These are the method's own fields, without those that are filled in when the adapter is made.
        """
        from peft import PeftConfig

        from ..adapters.tuner import TunerConfig

        inherited = {f.name for base in (PeftConfig, TunerConfig) for f in dataclasses.fields(base)}
        return {f.name for f in dataclasses.fields(self.config_class)} - inherited - self.config_class.filled_fields


class _FewShotMethods(Mapping):
    """Name -> descriptor, which is imported when it is looked up."""

    def __getitem__(self, name: str) -> FewShotMethod:
        return load_reference(few_shot_entries()[name].descriptor)

    def __iter__(self) -> Iterator[str]:
        return iter(few_shot_entries())

    def __len__(self) -> int:
        return len(few_shot_entries())


FEW_SHOT_METHODS: Mapping[str, FewShotMethod] = _FewShotMethods()


def default_methods() -> tuple[str, ...]:
    """What `adapt` fits by default: methods that take minutes without a GPU. The others run an encoder at every
    step."""
    return tuple(entry.name for entry in few_shot_entries().values() if entry.by_default)


def few_shot_method(name: str) -> FewShotMethod:
    """The descriptor of `name`. Raises ValueError with the known names."""
    if name not in FEW_SHOT_METHODS:
        raise ValueError(f"method: {unknown_name(name, FEW_SHOT_METHODS)}")
    return FEW_SHOT_METHODS[name]


__all__ = ["FEW_SHOT_METHODS", "FewShotMethod", "default_methods", "few_shot_method"]
