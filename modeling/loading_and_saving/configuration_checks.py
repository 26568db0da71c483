"""Configurations from files and callers: checked before anything is built, so that a bad value is a sentence with its
name, and a huge one asks for no memory.

`checked`, above `@strict`, does it for our configurations and for the encoders' inside of them; `check_values` for the
values of any other `config.json`. The ranges are wide: they hold for every dual encoder that was published, and for
much larger ones.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from enum import Enum

import torch
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.image_utils import SizeDict


LARGEST = 1_000_000  # of a width or a number of pixels: more is a mistake, noticed before memory is asked for
LARGEST_NUMBER = 10**12  # of whole numbers that mean something else
LARGEST_FLOAT = 1e30  # a hundred million times more overflows in float32
LARGEST_LAYERS = 256
LARGEST_EDGE = 4096  # pixels of a processed image: 200 MB as floats
# Which numbers make a size together; of a crop and of padding only the first.
_SIZES = ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"longest_edge"})
_SIZES += ({"max_height", "max_width"}, {"min_pixels", "max_pixels"})
_SIZE_NAMES = set().union(*_SIZES)

# Field of some encoder -> smallest and largest number.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("hidden_size", "projection_dim", "projection_size", "project_dim"), (1, 65_536)),
    **dict.fromkeys(("intermediate_size", "max_position_embeddings", "num_patches"), (1, LARGEST)),
    **dict.fromkeys(("image_size", "patch_size", "n_fft", "hop_length", "win_length"), (1, LARGEST)),
    **dict.fromkeys(("num_channels", "num_attention_heads", "groups", "width_per_group"), (1, 65_536)),
    "vocab_size": (1, 10 * LARGEST),
    "num_hidden_layers": (1, LARGEST_LAYERS),
    "type_vocab_size": (0, LARGEST),
    "mlp_ratio": (1e-3, 1000),
    **dict.fromkeys(("embed_dim", "num_heads", "window_size", "embedding_size", "hidden_sizes"), (1, 65_536)),
    "depths": (0, LARGEST_LAYERS),
    **dict.fromkeys(("layer_norm_eps", "batch_norm_eps", "rms_norm_eps"), (1e-30, 1.0)),
    **dict.fromkeys(("attention_dropout", "dropout", "hidden_dropout_prob", "classifier_dropout"), (0, 1)),
    **dict.fromkeys(("attention_probs_dropout_prob", "hidden_dropout", "drop_path_rate"), (0, 1)),
    **dict.fromkeys(("initializer_range", "initializer_factor"), (0, 1e6)),
    **dict.fromkeys(("logit_scale_init_value", "audio_logit_scale_init_value"), (-50, 50)),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), (-1, 10 * LARGEST)),
    "temperature": (1e-6, 1e6),
    "rejection_threshold": (0, 1),
}
# Of any other field whose name ends so; more is noticed when sizes are compared.
_COUNTS = re.compile(r"(?:^|_)(?:sizes?|dims?|depths|heads|layers|channels|convs|groups)$")
# Of a field that says how many modules are made one after the other, which takes time before it takes memory.
_LAYERS = re.compile(r"(?:^|_)num_(?:\w+_)?(?:layers|convs|blocks)$|_depth$")
# transformers' configurations allow it, and no layer of theirs takes it.
_NEVER_NONE = ("layer_norm_eps", "attention_dropout", "image_size", "patch_size", "logit_scale_init_value")
_NEVER_NONE += ("initializer_factor", "initializer_range", "projection_dim", "num_hidden_layers")
_READ_AT_END = ("clip_text_model", "metaclip_2_text_model")  # a text's feature is that of its end token
_PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
# What a bad value may end in where no check foresaw it.
_BROKEN = (AttributeError, AssertionError, IndexError, KeyError, OverflowError, RecursionError, TypeError)
_BROKEN += (ZeroDivisionError,)


def without_kernels(values: Mapping) -> dict:
    """A configuration's values, at any depth, without the fields in which transformers takes the name of a repository
    and loads compiled code from it."""
    return {
        name: without_kernels(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if str(name).lstrip("_").removesuffix("_internal") not in ("attn_implementation", "experts_implementation")
    }


def check_range(config: object, part: str, names: Sequence[str]):
    """ValueError if an attribute of `config` is not in 1..`LARGEST`; `part` comes before its name in the text."""
    for name in names:
        value = getattr(config, name)
        if value is None or not 0 < value <= LARGEST:
            raise ValueError(f"{part}{name}: {value} is outside 1..{LARGEST}")


def check_encoder_types(values: Mapping, known: Mapping[str, Sequence[str]]):
    """ValueError if a nested configuration of `values` has a `model_type` that is not one of `known[part]`; it may
    have none."""
    for part, types in known.items():
        nested = values.get(part)
        kind = nested.get("model_type") if isinstance(nested, Mapping) else None
        if kind is not None and kind not in types:
            raise ValueError(f"{part}.model_type: {_short(kind)}, expected {types[0]!r}")


def check_stages(part: str, values: Mapping, names: Sequence[str], count: int = 4) -> None:
    """ValueError if a field `names` of a backbone's configuration `part` is not a list with a number a stage."""
    for name in names:
        given = values.get(name, [1] * count)
        if not isinstance(given, list | tuple) or len(given) != count:
            raise ValueError(f"{part}.{name}: {_short(given)}, expected a number for each of {count} stages")


def check_values(values: Mapping, config_class: type | None = None, where: str = "") -> None:
    """ValueError, with the name of the field, for values of a configuration that no real model has.

    Types (of the fields that `config_class` declares), ranges, numbers that are not finite, unknown activations and
    number types, class names, and numbers that do not fit each other; in nested configurations, too.

    Args:
        values: as in a `config.json`, or the arguments of a configuration; nested ones as mappings or objects.
        config_class: whose fields they are, if it is known.
        where: what comes before the field's name in messages, such as `"text_config."`.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'config.json'}: got {_short(values)}, expected an object with fields")
    parts = _part_classes(config_class, values)
    fewest = _fewest_labels(config_class)
    validators = getattr(config_class, "__validators__", {})
    declared = {f.name: f for f in fields(config_class)} if validators else {}
    for name, value in values.items():
        if isinstance(value, PreTrainedConfig):
            check_values(_fields_of(value), type(value), f"{where}{name}.")
            continue
        if str(name).removesuffix("_dict").endswith("_config") and isinstance(value, Mapping):  # CLIP's of 2022
            check_values(value, parts.get(name.removesuffix("_dict")), f"{where}{name}.")
            continue
        _check_finite(f"{where}{name}", value)
        _check_named(where, name, value, fewest)
        for validator in validators.get(name, ()):
            try:
                validator(value)
            except (TypeError, ValueError) as error:
                wanted = _words(declared[name].type)
                raise ValueError(
                    f"{where}{name}: got {_short(value)} ({type(value).__name__}), expected {wanted}"
                ) from error
        if name == "eos_token_id" and getattr(config_class, "model_type", None) in _READ_AT_END:
            if not isinstance(value, int):  # transformers' type allows a list, which these compare with each token
                raise ValueError(
                    f"{where}{name}: {_short(value)}, expected the number of the token at whose place a text is read"
                )
        if config_class is not None and name not in declared and _is_taken(config_class, name):
            kind = getattr(config_class, "model_type", "")
            also = f" with {where}model_type {kind!r}" if kind else ""
            advice = f"remove it{f', or correct {where}model_type' if kind else ''}"
            raise ValueError(f"{where}{name}: no field of a configuration{also} (got {_short(value)}); {advice}")
    _check_classes(where, values, fewest)
    if not hasattr(config_class, "validate_sizes"):  # ours say it themselves
        _check_together(where, values, declared)


def _fields_of(config: PreTrainedConfig) -> dict:
    return {name: value for name, value in vars(config).items() if not name.startswith("_")}


def _part_classes(config_class: type | None, values: Mapping) -> dict[str, type]:
    if config_class is None:
        return {}
    if hasattr(config_class, "part_classes"):
        return config_class.part_classes(values)
    return {name: c for name, c in (config_class.sub_configs or {}).items() if hasattr(c, "__validators__")}


def _fewest_labels(config_class: type | None) -> int:
    return 0 if getattr(config_class, "may_have_no_labels", False) else 1


def _is_taken(config_class: type, name: str) -> bool:
    """Whether a value of this name would hide a method, or cannot be set."""
    found = getattr(config_class, str(name), None)
    return callable(found) or (isinstance(found, property) and found.fset is None)


def _check_finite(name: str, value: object, depth: int = 0) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: {value}, expected a finite number")
    if isinstance(value, float) and abs(value) > LARGEST_FLOAT:
        raise ValueError(f"{name}: {value} is outside -{LARGEST_FLOAT:g}..{LARGEST_FLOAT:g}")
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise ValueError(f"{name}: {_short(value)} is outside -{LARGEST_NUMBER}..{LARGEST_NUMBER}")
    if depth > 20:
        raise ValueError(f"{name}: nested more than 20 deep")
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for one in inner:
        _check_finite(name, one, depth + 1)


def _check_named(where: str, name: str, value: object, fewest_labels: int = 1) -> None:
    """What is known of a field by its name, whatever the model."""
    full = f"{where}{name}"
    if name == "model_type" and not isinstance(value, str):
        raise ValueError(f"{full}: {_short(value)}, expected a name such as 'clip'")
    if name in RANGES and value is not None:
        low, high = RANGES[name]
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, bool) or (isinstance(one, int | float) and not low <= one <= high):
                raise ValueError(f"{full}: {_short(value)} is outside {low}..{high}")
    elif _LAYERS.search(str(name)) and _is_number(value) and value > LARGEST_LAYERS:
        raise ValueError(f"{full}: {_short(value)} is more than {LARGEST_LAYERS}")
    elif where and _COUNTS.search(str(name)):  # of encoders of others; our own fields have checks of their own
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, int | float) and one < 0:
                raise ValueError(f"{full}: {_short(value)}, expected a number of at least 0")
    if name in ("output_hidden_states", "output_attentions") and isinstance(value, str | float | Mapping):
        raise ValueError(f"{full}: {_short(value)}, expected true or false")
    if name in ("image_size", "patch_size") and isinstance(value, list | tuple) and len(value) != 2:
        raise ValueError(f"{full}: {_short(value)}, expected a number of pixels, or two: height and width")
    if value is None and name in _NEVER_NONE:
        raise ValueError(f"{full}: None, expected a number in {RANGES[name][0]}..{RANGES[name][1]}")
    if where and name == "add_cross_attention" and value:
        raise ValueError(f"{full}: {_short(value)}, expected false: encoders read one sequence")
    if where and name == "return_dict" and value is not True:
        raise ValueError(f"{full}: {_short(value)}, expected true: models read the outputs of their parts by name")
    if name == "num_labels":
        check_num_labels(value, where, fewest_labels)
    elif str(name).endswith("hidden_act") and isinstance(value, str) and value not in ACT2FN:
        raise ValueError(f"{full}: {_short(value)} is unknown, expected one of {', '.join(sorted(ACT2FN))}")
    elif name in ("dtype", "torch_dtype") and value is not None:
        found = getattr(torch, value, None) if isinstance(value, str) else value
        if not isinstance(found, torch.dtype):
            raise ValueError(f"{full}: {_short(value)}, expected a number type such as 'float32' or 'bfloat16'")
    elif name == "problem_type" and value is not None and value not in _PROBLEM_TYPES:
        raise ValueError(f"{full}: {_short(value)} is unknown, expected one of {', '.join(_PROBLEM_TYPES)}")


def check_num_labels(value: object, where: str = "", fewest: int = 1) -> None:
    """ValueError for a number of classes that is none; a table of so many names would be made at once."""
    if not isinstance(value, int) or isinstance(value, bool) or not fewest <= value <= LARGEST:
        raise ValueError(
            f"{where}num_labels: {_short(value)}, expected a whole number of classes in {fewest}..{LARGEST}"
        )


def _check_classes(where: str, values: Mapping, fewest: int = 1) -> None:
    names, numbers, count = (values.get(name) for name in ("id2label", "label2id", "num_labels"))
    if names is not None:
        labels = {str(key) for key in names} if isinstance(names, Mapping) else None
        if labels is None or len(labels) < fewest or labels != {str(label) for label in range(len(names))}:
            raise ValueError(f"{where}id2label: got {_short(names)}, expected the names of labels 0, 1, 2, …")
        wrong = [key for key, name in names.items() if not isinstance(name, str)]
        if wrong:
            raise ValueError(f"{where}id2label: {wrong[0]} is {_short(names[wrong[0]])}, expected a name")
        if count is not None and count != len(names):
            raise ValueError(f"{where}num_labels: {count}, but id2label has {len(names)} names")
    if numbers is not None and not (
        isinstance(numbers, Mapping) and all(isinstance(label, int | str) for label in numbers.values())
    ):
        raise ValueError(f"{where}label2id: got {_short(numbers)}, expected the labels of names")


def _check_together(where: str, values: Mapping, declared: Mapping) -> None:
    def number(name: str) -> int | None:
        value = values.get(name, getattr(declared.get(name), "default", None))
        return value if isinstance(value, int) else None

    width, heads = number("hidden_size"), number("num_attention_heads")
    if width and heads and width % heads:
        raise ValueError(f"{where}num_attention_heads: {heads} does not divide hidden_size ({width})")
    image, patch = number("image_size"), number("patch_size")
    if image and patch and patch > image:
        raise ValueError(f"{where}patch_size: {patch} is larger than image_size ({image})")


def checked(cls: type) -> type:
    """Decorator above `@strict`: values are checked by `check_values` first, and every error is a ValueError that
    names the field. (`@strict` alone raises classes of its own, and only after a part of the work.)"""
    build, assign, validate = cls.__init__, cls.__setattr__, cls.validate

    @functools.wraps(build)
    def __init__(self, *args, **values):
        def run():
            check_values(values, type(self))
            build(self, *args, **values)

        _in_plain_words(type(self), run, values)

    def __setattr__(self, name, value):
        if name == "num_labels":
            check_num_labels(value, fewest=_fewest_labels(type(self)))
        try:
            assign(self, name, value)
        except StrictDataclassError as error:
            raise ValueError(_sentence(error)) from error

    @functools.wraps(validate)
    def validated(self):
        _in_plain_words(type(self), lambda: validate(self), _fields_of(self))

    cls.__init__, cls.__setattr__, cls.validate = __init__, __setattr__, validated
    return cls


def check_max_pixels(value: object) -> None:
    """ValueError for a limit on pixels that is none; also for None, since every image has to have a limit."""
    if type(value) is not int or value < 1:
        raise ValueError(f"max_pixels: {value!r}, expected a whole number of at least 1")


def check_image_settings(settings: Mapping) -> None:
    """ValueError, with its name, for a setting of an image processor that no processor has."""
    for name, value in settings.items():
        if value is None:
            continue
        _check_finite(name, value)
        if name.startswith("do_") and not isinstance(value, bool | int):
            raise ValueError(f"{name}: {_short(value)}, expected true or false")
        if name in ("image_mean", "image_std"):
            low = 1e-4 if name == "image_std" else -1e4
            numbers = value if isinstance(value, list | tuple) else [value]
            if len(numbers) not in (1, 3) or not all(_is_number(one) and low <= one <= 1e4 for one in numbers):
                raise ValueError(f"{name}: {_short(value)}, expected three numbers in {low:g}..1e4")
        if name == "rescale_factor" and not (_is_number(value) and 1e-9 <= abs(value) <= 255):
            raise ValueError(f"{name}: {_short(value)}, expected a number in 1e-9..255, such as 1/255")
        if name in ("size", "crop_size", "pad_size"):
            _check_size(name, value)
        if name == "resample" and (isinstance(value, bool) or (isinstance(value, int) and not 0 <= value <= 5)):
            raise ValueError(f"{name}: {_short(value)}, expected the number of one of Pillow's filters, 0..5")
        if name == "resample" and not isinstance(value, int | Enum):
            raise ValueError(f"{name}: {_short(value)}, expected the number of one of Pillow's filters, 0..5")
        if name == "resample" and int(value) > 3 and settings.get("resample_backend", "torchvision") == "torchvision":
            raise ValueError(
                f"{name}: {_short(value)}, expected 0..3 (nearest, Lanczos, bilinear, bicubic); box and Hamming "
                "filters need resample_backend='pil'"
            )


_NO_SETTINGS = ("annotations", "segmentation_maps")


def with_named_settings(preprocess: Callable) -> Callable:
    """Decorator of an image processor's `preprocess`: settings are checked by `check_image_settings`, and one whose
    type transformers refuses is a ValueError that names it."""

    @functools.wraps(preprocess)
    def checked_preprocess(self, images, *args, **kwargs):
        check_image_settings({name: value for name, value in kwargs.items() if name not in _NO_SETTINGS})
        try:
            return preprocess(self, images, *args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__ or error)) from error

    return checked_preprocess


def _check_size(name: str, value: object) -> None:
    """transformers takes a number, two, or names: of which only these make sense together."""
    if isinstance(value, SizeDict):
        value = {one.name: getattr(value, one.name) for one in fields(value)}
    sets = _SIZES if name == "size" else _SIZES[:1]
    if isinstance(value, Mapping):
        given = {key: edge for key, edge in value.items() if edge is not None}
        if set(given) not in sets or not set(value) <= _SIZE_NAMES:
            wanted = ", or ".join(" and ".join(sorted(names)) for names in sets)
            raise ValueError(f"{name}: {_short(dict(value))}, expected whole numbers of pixels as {wanted}")
    elif isinstance(value, list | tuple) and len(value) == 2:
        given = dict(zip(("height", "width"), value, strict=True))
    else:
        given = {name: value}
    for key, edge in given.items():
        largest = LARGEST_EDGE**2 if key.endswith("_pixels") else LARGEST_EDGE
        if type(edge) is not int or not 1 <= edge <= largest:
            place = "" if key == name else f"{key} "
            raise ValueError(f"{name}: {place}{_short(edge)}, expected whole numbers of pixels in 1..{largest}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _in_plain_words(cls: type, run: Callable[[], object], values: Mapping) -> None:
    try:
        run()
    except (StrictDataclassError, *_BROKEN) as error:
        cause = error.__cause__ or error
        if isinstance(error, StrictDataclassError) and not isinstance(cause, _BROKEN):
            raise ValueError(_sentence(error)) from error
        raise ValueError(
            f"{cls.__name__}: values that do not fit each other ({type(cause).__name__}: {cause})"
            f"{unusual_fields(values, cls)}"
        ) from error


def unusual_fields(values: Mapping, config_class: type) -> str:
    """The end of a sentence about values that no check foresaw: those that are not as in `config_class()`, also in
    nested configurations; first the ones of another type."""
    try:
        usual = config_class().to_dict()
    except Exception:  # a class of others that has no defaults
        usual = {}
    found = _unusual(values, usual, "")
    found.sort(key=lambda one: one[0])
    return f"; look at {', '.join(text for _, text in found[:30])}" if found else ""


def _unusual(values: Mapping, usual: Mapping, where: str) -> list[tuple[bool, str]]:
    """(whether its type is usual, its name and value) of each field."""
    found = []
    for name, value in values.items():
        value = value.to_dict() if isinstance(value, PreTrainedConfig) else value
        given = usual.get(name)
        if value and isinstance(value, Mapping) and str(name).endswith("_config"):
            found += _unusual(value, given if isinstance(given, Mapping) else {}, f"{where}{name}.")
        elif not str(name).startswith("_") and (name not in usual or value != given):
            numbers = isinstance(value, list | tuple) and all(map(_is_number, value))
            found.append((numbers or type(value) is type(given), f"{where}{name} ({_short(value)})"))
    return found


def _sentence(error: StrictDataclassError) -> str:
    cause = str(error.__cause__ or error)
    if isinstance(error, StrictDataclassFieldValidationError):
        return re.sub(r"^Field '(\w+)'", r"\1:", cause)
    return cause


def _words(annotation: object) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else annotation
    return re.sub(r"\b[a-z_]+(\.\w+)*\.(\w+)", r"\2", str(text)).replace("NoneType", "None")


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) > 10**30:
        return f"a number of {len(hex(value)) - 2} hexadecimal digits"
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write a number of thousands of digits, in a list
        text = f"a {type(value).__name__} of huge numbers"
    return text if len(text) <= 80 else f"{text[:60]}…"


__all__ = ["LARGEST", "RANGES", "check_encoder_types", "check_image_settings", "check_num_labels", "check_range"]
__all__ += ["check_max_pixels", "check_stages", "check_values", "checked", "with_named_settings", "without_kernels"]
