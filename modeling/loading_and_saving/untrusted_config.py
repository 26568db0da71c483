"""What a config.json from the Hub may not decide: which code runs, and how much memory is asked for."""

from collections.abc import Mapping, Sequence


def without_kernels(values: Mapping) -> dict:
    """A configuration's values, at any depth, without the fields in which transformers takes the name of a repository
    and loads compiled code from it."""
    return {
        name: without_kernels(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if str(name).lstrip("_").removesuffix("_internal") not in ("attn_implementation", "experts_implementation")
    }


LARGEST = 1_000_000  # of a width or a number of pixels: more is a mistake, noticed before memory is asked for


def check_range(config: object, part: str, names: Sequence[str]):
    """ValueError if an attribute of `config` is not in 1..`LARGEST`; `part` comes before its name in the text."""
    for name in names:
        value = getattr(config, name)
        if value is None or not 0 < value <= LARGEST:
            raise ValueError(f"{part}{name}: {value} is outside 1..{LARGEST}")


def check_tower_types(values: Mapping, known: Mapping[str, Sequence[str]]):
    """ValueError if a nested configuration of `values` says another `model_type` than one of `known[part]`; saying
    none is fine."""
    for part, types in known.items():
        tower = values.get(part)
        kind = tower.get("model_type") if isinstance(tower, Mapping) else None
        if kind is not None and kind not in types:
            raise ValueError(f"{part}.model_type: {kind!r}, expected {types[0]!r}")


__all__ = ["LARGEST", "check_range", "check_tower_types", "without_kernels"]
