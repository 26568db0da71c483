"""Base classes of our PEFT tuners: configuration, wrapped layer, tuner, and the supported base models.

Over PEFT's `BaseTuner` they add three things: all checks run before the base model is changed, files are loaded
strictly (no missing or unexpected tensor), and an adapter is tied to the backbone weights that it was made for.
"""

import copy
import json
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from hf_clip_variants.modeling.dual_encoders.backbones import find_family
from hf_clip_variants.modeling.dual_encoders.fingerprint import compare_backbone, fingerprint
from hf_clip_variants.modeling.dual_encoders.offloading import device_of
from hf_clip_variants.modeling.dual_encoders.prompts import resolve_class_names, resolve_templates

from .config_checks import check_fields, described_tensors, shown_fields
from .hidden_modules import AdapterConfigs, refuse_left_out
from .mixed_batches import check_adapter_names, chosen_adapters, each_image_its_adapter
from .peft_type import add_peft_type
from .weighted_sums import add_weighted_sum


FORMAT_VERSION = 1  # raised when adapter files change in a way that an older reader would get wrong
_CLASSIFIER = "clipv-clip_classifier"
_PEFT_PREFIX = "base_model.model."
_MAKE_CLASS_FEATURES = {"prompt_embedder", "text_feature_adapter"}  # modules of a classifier
_TRAINABLE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LABEL_CALIBRATION = "label_calibration"  # the part of a classifier that several labels an image need


@dataclass
class TunerConfig(PeftConfig):
    """Fields that all our adapters share.

    All but the last one are filled when the adapter is created; users do not set them.
    """

    peft_type_name: ClassVar[str]
    # Further fields of a method that are filled when the adapter is created, not by users.
    filled_fields: ClassVar[frozenset[str]] = frozenset()
    # Those that have no part in what a trained adapter computes.
    only_for_training: ClassVar[frozenset[str]] = frozenset({"allow_other_backbone"})

    target_modules: list[str] | None = field(
        default=None, metadata={"help": "The modules that are wrapped. Follows from the base model and the method."}
    )
    class_names: list[str] | None = field(
        default=None,
        metadata={"help": "The classes that the adapter was made for, in label order. Taken from a CLIPClassifier."},
    )
    templates: list[str] | dict[str, list[str]] | None = field(
        default=None,
        metadata={"help": "The classifier's prompt templates, or prompts of each class, when the adapter was made."},
    )
    backbone_fingerprint: str | None = field(
        default=None,
        metadata={"help": "Fingerprint of the backbone weights that the adapter was made for; others are refused."},
    )
    backbone_widths: dict[str, int] | None = field(
        default=None, metadata={"help": "Widths and depths of the backbone that the adapter was made for."}
    )
    temperature: float | None = field(
        default=None,
        metadata={
            "help": "By which logits are divided to give probabilities of `class_names`; none: not calibrated.",
            "range": (1e-6, 1e6),
        },
    )
    rejection_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Probability below which an image gets no class; 95 % of the right answers are above.",
            "range": (0, 1),
        },
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules of the base model that are trained whole and saved with the adapter."},
    )
    format_version: int = field(
        default=FORMAT_VERSION, metadata={"help": "Layout of the adapter's files.", "range": (0, 1000)}
    )
    # Each subclass repeats the next field, because `from_pretrained(..., allow_other_backbone=True)` of PEFT accepts
    # only names in the class's own annotations.
    allow_other_backbone: bool = field(
        default=False,
        metadata={
            "help": "Load on a backbone with other weights than those that the adapter was made for. Not saved."
        },
    )

    def __post_init__(self):
        check_fields(self)
        if self.task_type is not None:
            raise ValueError(
                f"task_type: {self.task_type!r}, expected None (PEFT's task classes pass input_ids first)"
            )
        super().__post_init__()
        # A file gives the type as text. It is no field: it is not saved.
        self.is_from_file = type(self.peft_type) is str
        self.peft_type = self.peft_type_member()
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"format_version: the adapter has {self.format_version}, this version of hf-clip-variants reads up to "
                f"{FORMAT_VERSION}; upgrade with pip install -U hf-clip-variants"
            )
        if self.class_names is not None:
            self.class_names = resolve_class_names(self.class_names)
        if self.templates:
            self.templates = resolve_templates(self.templates, self.class_names)

    @classmethod
    def peft_type_member(cls):
        """This adapter's member of PEFT's `PeftType`, created if it does not exist yet."""
        return add_peft_type(cls.peft_type_name)

    def to_dict(self) -> dict:
        values = super().to_dict()
        del values["allow_other_backbone"]  # an option of one load, not a property of the adapter
        return values

    def adapter_tensors(self) -> dict[str, tuple[int, ...]]:
        """Name in the base model -> shape, for every tensor in the adapter's file."""
        raise NotImplementedError

    @property
    def changes_class_features_alone(self) -> bool:
        """Whether a classifier without the adapter, but with its class features, has the same logits."""
        return set(self.target_modules or ["?"]) <= _MAKE_CLASS_FEATURES

    def why_no_weighted_sum(self) -> str | None:
        """Why a sum of such adapters' tensors means nothing; None if it does. The text goes on after "because"."""
        return "its tensors are not vectors that can be added: what it computes is not linear in them"

    def why_classes_are_fixed(self) -> str | None:
        """Why the adapter works only with the classes that it was made for; None if it works with any classes.

        The text is the end of a sentence that begins with "the adapter".
        """
        return None


def check_adapter_tensors(config: TunerConfig, tensors: dict[str, torch.Tensor], origin: str = "adapter") -> None:
    """Raises ValueError unless `tensors` have exactly the names and shapes that `config` describes."""
    found = {name.removeprefix(_PEFT_PREFIX): tuple(tensor.shape) for name, tensor in tensors.items()}
    # PEFT's `modules_to_save` are whole modules of the base model. Here only their presence is checked: their shapes
    # follow from the base model.
    of_module = {
        module: [name for name in found if f".{module}." in f".{name}"]
        for module in getattr(config, "modules_to_save", None) or ()
    }
    found = {name: shape for name, shape in found.items() if not any(name in names for names in of_module.values())}
    expected = described_tensors(config, origin)
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    missing += [module for module, names in of_module.items() if not names]
    if missing or unexpected:
        faults = [
            f"{len(names)} {kind} tensors: {', '.join(names[:5])}"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise ValueError(f"{origin}: {'; '.join(faults)} ({shown_fields(config)})")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(
                f"{origin}: {name} has shape {list(found[name])}, its configuration says {list(shape)} "
                f"({shown_fields(config)})"
            )


def check_class_names(made_for: list[str], given: list[str], why: str) -> None:
    """Raises ValueError, with the difference, unless both lists are equal."""
    if made_for == given:
        return
    added = [name for name in given if name not in made_for]
    removed = [name for name in made_for if name not in given]
    if added or removed:
        changes = f"added {added[:5]} ({len(added)}), removed {removed[:5]} ({len(removed)})"
    else:
        index = next(i for i, (a, b) in enumerate(zip(made_for, given, strict=True)) if a != b)
        changes = f"the same names in another order: {made_for[index]!r} is now {given[index]!r} at {index}"
    raise ValueError(f"class_names: {why}, but the classes differ: {changes}")


class Base:
    """The frozen base model of an adapter, with what tuners need to know about it.

    It is a `CLIPClassifier`, or a plain dual encoder of a family in `modeling/dual_encoders/backbones.py`.

    Attributes:
        model: the base model.
        is_classifier: whether it is a `CLIPClassifier`.
        clip: the dual encoder: `model` itself, or `model.clip` of a classifier.
        family: names and sizes of this kind of dual encoder.
        widths: widths and depths of its encoders, such as "text width" and "image layers".

    Raises:
        ValueError: any other model.
    """

    def __init__(self, model: nn.Module, peft_type: str):
        config = getattr(model, "config", None)
        model_type = getattr(config, "model_type", None)
        self.model = model
        self.is_classifier = model_type == _CLASSIFIER and hasattr(model, "prompt_embedder")
        family = find_family(config.backbone_model_type if self.is_classifier else model_type)
        if not self.is_classifier and not (family and isinstance(model, family.model_class())):
            raise ValueError(
                f"model: {peft_type} works on {self.works_on()}, got {type(model).__name__}"
                + (f" (model_type {model_type!r})" if model_type else "")
            )
        self.clip = model.clip if self.is_classifier else model
        self.family = family
        text, vision = config.text_config, config.vision_config
        self.widths: dict[str, int] = {  # and depths: what an adapter must agree with
            "text width": text.hidden_size,
            "image width": vision.hidden_size,
            "joint width": family.joint_width(config),
            "text layers": text.num_hidden_layers,
            "image layers": vision.num_hidden_layers,
        }

    @classmethod
    def works_on(cls) -> str:
        """The supported models, for the error about any other one."""
        return "CLIPClassifier and on CLIPModel and its like"

    def path(self, name: str) -> str:
        """Name of a module in the dual encoder -> its name in the base model."""
        return f"clip.{name}" if self.is_classifier else name

    @property
    def has_label_calibration(self) -> bool:
        """Whether it is a classifier for several labels an image."""
        return self.is_classifier and self.model.label_calibration is not None

    @property
    def class_names(self) -> list[str] | None:
        """The classifier's class names; None if it has no classes yet, or if the model is no classifier."""
        return list(self.model.config.class_names) if self.is_classifier and self.model.config.templates else None

    @property
    def templates(self) -> list[str] | dict[str, list[str]] | None:
        return copy.deepcopy(self.model.config.templates) if self.class_names is not None else None


class TunerLayer(nn.Module, BaseTunerLayer):
    """Wraps `base_layer`. With no active adapter, or with adapters disabled, it behaves like `base_layer`.

    Args:
        base_layer: the wrapped module; many of them have no parameters.
        anchor: a module of the backbone, whose device new tensors are created on. For text prompts it is the token
            embedding, which also gives initial vectors. It is not registered as a submodule.
    """

    _set_adapter: str | list[str] = "default"
    merge_refusal = "it is not a change of the base model's weights"  # why merging is impossible, for the error

    def __init__(self, base_layer: nn.Module, anchor: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.configs: dict[str, TunerConfig] = {}
        self._anchor = (anchor,)  # in a tuple, so that nn.Module does not register it
        # The model, and those of its adapters from which this layer is known to hide no module.
        self.on_model: tuple[nn.Module, dict[str, PeftConfig]] | None = None
        self._disable_adapters = False
        self.merged_adapters = []

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # not set yet while unpickling; without this the lookup below never ends
                raise
            return getattr(self.base_layer, name)

    @property
    def _active_adapter(self) -> str | list[str]:
        """PEFT's attribute; in a mixed batch, the adapter of the images that are being run."""
        chosen = chosen_adapters()
        return self._set_adapter if chosen is None else chosen

    @_active_adapter.setter
    def _active_adapter(self, names: str | list[str]) -> None:
        self._set_adapter = names

    @property
    def adapter_device(self) -> torch.device:
        return device_of(self._anchor[0])

    def named_parameters(self, *args: Any, **kwargs: Any):
        # PEFT asks each module for its parameters before it adds an adapter of any kind: the one place to step in.
        if self.on_model is not None:
            refuse_left_out(*self.on_model)
        return super().named_parameters(*args, **kwargs)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"on_model": None}  # a copy of this layer is not on the model

    def active_name(self) -> str | None:
        """Name of this layer's active adapter; None if there is none or adapters are disabled.

        Raises:
            ValueError: several are active. Unlike LoRA's updates, prompts or caches cannot be summed.
        """
        if self.disable_adapters:
            return None
        names = [name for name in self.active_adapters if name in self.configs]
        if len(names) > 1:
            kind = self.configs[names[0]].peft_type.value
            raise ValueError(f"adapters {names} are active at once; {kind} takes one: set_adapter({names[0]!r})")
        return names[0] if names else None

    def check_class_names(self, class_names: list[str]) -> None:
        """Called by `CLIPClassifier.set_classes` before it changes the classes.

        Raises:
            ValueError: an adapter of this layer works only with the old classes.
        """
        for name, config in self.configs.items():
            if reason := _why_classes_are_fixed(config):
                check_class_names(config.class_names, class_names, f"adapter {name!r} {reason}")

    def _all_available_adapter_names(self) -> list[str]:
        return sorted(self.configs)  # PEFT's method looks for tensors, but some layers have none

    def delete_adapter(self, adapter_name: str) -> None:
        self.configs.pop(adapter_name, None)
        super().delete_adapter(adapter_name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(_merge_error(self.configs, self.merge_refusal))

    def unmerge(self) -> None:
        raise ValueError(_merge_error(self.configs, self.merge_refusal))

    def _get_base_layer_device_and_dtype(self, base_layer):
        # No dtype: adapters stay in float32 even if the base is in half precision, where small updates would be lost.
        return self.adapter_device, None

    def cast_adapter_to_base(self, adapter_name: str) -> None:
        """Gives an adapter's floating-point tensors the dtype of the base's weights (`autocast_adapter_dtype=False`).

        Weights of another kind, such as 8-bit integers, have no dtype to compute in: the adapter stays as it is.
        """
        dtypes = [p.dtype for p in self._anchor[0].parameters() if p.dtype in _TRAINABLE_DTYPES]
        for name in (*self.adapter_layer_names, *self.other_param_names) if dtypes else ():
            kept = getattr(self, name, None)
            value = kept[adapter_name] if kept is not None and adapter_name in kept else None
            if isinstance(value, nn.Module):
                value.to(dtypes[0])
            elif value is not None and value.is_floating_point():
                cast = value.detach().to(dtypes[0])
                is_trained = isinstance(value, nn.Parameter)
                kept[adapter_name] = nn.Parameter(cast, requires_grad=value.requires_grad) if is_trained else cast


def _merge_error(configs: dict[str, TunerConfig], refusal: str) -> str:
    kinds = ", ".join(sorted({config.peft_type.value for config in configs.values()})) or "this adapter"
    ways = "keep the adapter, or remove it with unload()"
    if all(config.changes_class_features_alone for config in configs.values()):
        ways = "keep the adapter, or make a classifier without it: merge_and_unload()"
    return f"merge: {kinds} cannot be merged, {refusal}; {ways}"


def is_multi_label(config: TunerConfig) -> bool:
    """Whether the adapter was made for several labels an image."""
    return LABEL_CALIBRATION in (config.modules_to_save or ())


def _why_classes_are_fixed(config: TunerConfig) -> str | None:
    """`config.why_classes_are_fixed()`, or None if the adapter was made without classes."""
    if config.class_names is None:
        return None
    return config.why_classes_are_fixed() or ("has a bias for each class" if is_multi_label(config) else None)


class Tuner(BaseTuner):
    """Checks the base model, fills the configuration and wraps the target modules.

    Subclasses define which modules are wrapped (`targets`) and by which layer (`_wrap`).

    PEFT's `inject_adapter` calls the hooks in this order: `_check_new_adapter_config`, where all checks are and after
    which the configuration is complete; then `_create_and_replace` for each module in `config.target_modules`; then it
    freezes everything but the adapter. An error in the first hook leaves the model unchanged.
    """

    tuner_layer_cls = TunerLayer
    target_module_mapping: dict[str, list[str]] = {}
    # Backbone widths that occur in the shapes of the adapter's tensors: a mismatch is an error in any case.
    tensor_widths: ClassVar[tuple[str, ...]]
    base_class: ClassVar[type[Base]] = Base

    def __init__(self, model: nn.Module, peft_config, adapter_name: str, *args, **kwargs):
        config = peft_config[adapter_name] if isinstance(peft_config, dict) else peft_config
        is_first = not getattr(model, "peft_config", None)
        try:
            super().__init__(model, peft_config, adapter_name, *args, **kwargs)
        except Exception:
            # transformers' `add_adapter` passes the model's own dictionary of configurations, and has already set the
            # flag that an adapter is loaded. Undo both.
            others = getattr(model, "peft_config", None)
            if others and others.get(adapter_name) is config:
                del others[adapter_name]
            if not others and getattr(model, "_hf_peft_config_loaded", False):
                model._hf_peft_config_loaded = False
            raise
        if is_first:  # else the dictionary is also that of an earlier adapter's `PeftModel`
            model.peft_config = self.peft_config = AdapterConfigs(model, self.peft_config)

    # ---- for subclasses

    @classmethod
    def targets(cls, config: TunerConfig, base: Base) -> dict[str, nn.Module]:
        """Name of each module to wrap -> its anchor (see `TunerLayer`)."""
        raise NotImplementedError

    @classmethod
    def fill_config(cls, config: TunerConfig, base: Base) -> None:
        """Checks that are specific to the method; then fills its fields of `config`."""

    def _wrap(self, target: nn.Module, name: str, anchor: nn.Module) -> TunerLayer:
        """The layer that replaces `target`, whose name in the base model is `name`."""
        raise NotImplementedError

    # ---- PEFT's hooks

    def _check_new_adapter_config(self, config: TunerConfig) -> None:
        """First call of `inject_adapter`, for the first adapter and for each later one."""
        super()._check_new_adapter_config(config)
        base = self.base_class(self.model, config.peft_type_name)
        self._check_base(config, base)
        self.fill_config(config, base)
        # A loaded configuration has these values already; a new adapter gets those of the base model.
        config.target_modules = sorted(self.targets(config, base))
        config.class_names = config.class_names if config.class_names is not None else base.class_names
        config.templates = config.templates if config.templates is not None else base.templates
        config.backbone_widths = config.backbone_widths or base.widths
        if config.backbone_fingerprint is None:
            config.backbone_fingerprint = fingerprint(base.clip)
            if base.has_label_calibration:  # each adapter has its own: its scores are others
                config.modules_to_save = sorted({*(config.modules_to_save or ()), LABEL_CALIBRATION})

    def _check_base(self, config: TunerConfig, base: Base) -> None:
        targets = sorted(self.targets(config, base))
        self._check_for_other_adapters(config, targets)
        if config.target_modules is not None and sorted(config.target_modules) != targets:
            raise ValueError(
                f"target_modules: the adapter wraps {sorted(config.target_modules)}, on a {type(base.model).__name__} "
                f"it would wrap {targets}; load it on the class that it was made for (auto_mapping in "
                f"adapter_config.json), or correct its fields ({shown_fields(config)})"
            )
        for name, ours in (config.backbone_widths or {}).items():
            theirs = base.widths.get(name)
            if ours != theirs and (name in self.tensor_widths or not config.allow_other_backbone):
                what = "width" if name.endswith("width") else "depth"
                raise ValueError(f"adapter expects {what} {ours}, backbone has {theirs} ({name})")
        if not config.allow_other_backbone:
            self._check_weights(config, base)
        if base.is_classifier and base.model.config.fixed_class_features and "prompt_embedder" in targets:
            raise ValueError(
                f"model: {config.peft_type.value} learns prompts, but an adapter was merged into this classifier, and "
                "its class features do not follow from prompts; use the base model"
            )
        if is_multi_label(config) and not base.has_label_calibration:
            raise ValueError(
                "problem_type: the adapter was trained for several labels an image; load the classifier with "
                "from_pretrained(..., problem_type='multi_label_classification')"
            )
        reason = _why_classes_are_fixed(config)
        if reason and base.is_classifier:
            if base.class_names is None:
                raise ValueError(
                    f"class_names: the adapter {reason}, but the classifier has no classes; call "
                    f"set_classes({config.class_names[:3]}...)"
                )
            check_class_names(config.class_names, base.class_names, f"the adapter {reason}")

    def _check_weights(self, config: TunerConfig, base: Base) -> None:
        if config.backbone_fingerprint is None:
            if getattr(config, "is_from_file", False):  # not one that was pickled by an earlier version
                _warn_of_unchecked(config, "its configuration has no fingerprint, so no weight could be compared")
            return
        found = compare_backbone(base.clip, config.backbone_fingerprint)
        if not found.same:
            raise ValueError(
                f"backbone_fingerprint: the adapter was made for {_describe(config)} with fingerprint "
                f"{config.backbone_fingerprint!r}, this backbone has {fingerprint(base.clip)!r}. Load the right one, "
                "or pass allow_other_backbone=True (for a new adapter: a new configuration)"
            )
        if found.unchecked:
            _warn_of_unchecked(config, found.unchecked)

    def _check_for_other_adapters(self, config: TunerConfig, targets: list[str]) -> None:
        """Raises ValueError if an adapter of another of our methods is at a target, around it or inside it.

        Each of the two would overwrite the other's tokens.
        """
        ours = {name: module for name, module in self.model.named_modules() if isinstance(module, TunerLayer)}
        # `place`: the wrapped module's name as it was before wrapping, to compare it with the targets.
        for name, module in ours.items():
            place, kinds = name.replace(".base_layer", ""), {c.peft_type.value for c in module.configs.values()}
            if not kinds - {config.peft_type.value} or not any(
                f"{target}.".startswith(f"{place}.") or f"{place}.".startswith(f"{target}.") for target in targets
            ):
                continue
            raise ValueError(
                f"model: {config.peft_type.value} cannot be added, {', '.join(sorted(kinds))} already changes "
                f"{place}; remove it with delete_adapter or unload(), or use another copy of the model"
            )

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name=None
    ):
        if isinstance(target, self.tuner_layer_cls):
            layer = target
        else:
            anchors = self.targets(peft_config, self.base_class(self.model, peft_config.peft_type_name))
            layer = self._wrap(target, current_key, anchors[current_key])
            self._replace_module(parent, target_name, layer, target)
            layer.on_model = (self.model, dict(self.peft_config))
        layer.update_layer(adapter_name, peft_config)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:  # PEFT means: as the layer created it, which for LoRA is the base's dtype
            for module in self.model.modules():
                if isinstance(module, self.tuner_layer_cls):
                    module.cast_adapter_to_base(adapter_name)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's method reads `.weight` of the wrapped module, which hooks and embeddings do not have.
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, adapter_names: list[str] | None = None, **kwargs):
        # PEFT enters this around each forward pass, with its arguments.
        if adapter_names is None:
            yield
            return
        ours = {name: config for name, config in self.peft_config.items() if isinstance(config, TunerConfig)}
        check_adapter_names(adapter_names, list(ours), self.training)
        foreign = {config.peft_type.value for name, config in self.peft_config.items() if name not in ours}
        whole = {name for name in adapter_names if name in ours and ours[name].modules_to_save}
        if foreign or whole:
            what = f"{', '.join(sorted(foreign))} on the model" if foreign else f"modules_to_save, which {whole} have"
            raise ValueError(f"adapter_names: adapters cannot be mixed with {what}; use set_adapter")
        places = [module for name in {*adapter_names} & ours.keys() for module in ours[name].target_modules]
        in_image_encoder = any(module.startswith("clip.") for module in places)
        with each_image_its_adapter(self.model, adapter_names, in_image_encoder):
            yield

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "linear",
        **options: Any,
    ) -> None:
        """Adds a frozen adapter whose vectors are the weighted sum of those of others; `set_adapter` activates it.

        Possible where vectors are learned and adapters have the same shapes: CoOp, VPT, IVLP, linear heads.

        Args:
            adapters, weights: their names, and a number for each; negative ones are allowed.
            adapter_name: name of the new one.
            combination_type: "linear", of PEFT's kinds.

        Raises:
            ValueError: another kind of sum or of adapter, or names, weights or shapes that do not fit.
        """
        add_weighted_sum(self, adapters, weights, adapter_name, combination_type, options)

    def unload(self) -> nn.Module:
        """The base model as it was before. PEFT's method would keep the trained copies of `modules_to_save` in it."""
        for module in self.model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                module._active_adapter = []
        return super().unload()

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """The classifier without the adapter, and with its class features: the same logits, and fixed classes.

        Possible on a `CLIPClassifier` whose class features are all that the adapter changes: CoOp, IVLP with
        `vision_depth=0`, CLIP-Adapter with `modality="text"`.

        Args:
            safe_merge: check that the features are finite.
            adapter_names: the one adapter to merge; default: the active one.

        Raises:
            ValueError: another adapter, several of them, features that are not finite. The model stays as it was.
        """
        names = adapter_names or self.active_adapters
        if len(names) != 1:
            raise ValueError(f"adapter_names: {names}, expected one: adapters of this kind cannot be summed")
        config = self.peft_config[names[0]]
        if not config.changes_class_features_alone:
            raise ValueError(_merge_error({names[0]: config}, self.tuner_layer_cls.merge_refusal))
        before = self.active_adapters
        self.enable_adapter_layers()
        self.set_adapter(names, inference_mode=True)
        with torch.no_grad():
            features = self.model.get_class_features()
            if "text_feature_adapter" in config.target_modules:
                features = self.model.text_feature_adapter(features)
        if safe_merge and not features.isfinite().all():
            self.set_adapter(before)
            raise ValueError(f"adapter_names: the class features of {names[0]!r} are not finite")
        merged = super().unload()  # with the trained copies of `modules_to_save`
        merged.fix_class_features(features)
        return merged

    def _check_merge_allowed(self) -> None:
        raise ValueError(_merge_error(self.peft_config, self.tuner_layer_cls.merge_refusal))

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name, state_dict):
        # The last hook before tensors are copied. PEFT itself only warns about missing keys, and ignores unexpected
        # ones.
        check_adapter_tensors(config, state_dict)
        # PEFT would accept names without the prefix, and load nothing into a PeftModel.
        state_dict = {_PEFT_PREFIX + name.removeprefix(_PEFT_PREFIX): tensor for name, tensor in state_dict.items()}
        return super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )


def _warn_of_unchecked(config: TunerConfig, what: str) -> None:
    warnings.warn(
        f"backbone_fingerprint: whether this is the backbone that the adapter was made for ({_describe(config)}) is "
        f"not certain: {what}",
        stacklevel=2,
    )


def _describe(config: TunerConfig) -> str:
    return (
        json.dumps(config.base_model_name_or_path) if config.base_model_name_or_path else "a backbone without a name"
    )


__all__ = [
    "FORMAT_VERSION",
    "AdapterConfigs",
    "Base",
    "Tuner",
    "TunerConfig",
    "TunerLayer",
    "check_adapter_tensors",
    "check_class_names",
    "is_multi_label",
]
