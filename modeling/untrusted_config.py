"""What a config.json from the Hub may not decide: which code runs."""

from collections.abc import Mapping, Sequence


def without_kernels(values: Mapping) -> dict:
    """A configuration's values, at any depth, without the fields in which transformers takes the name of a repository
    and loads compiled code from it."""
    return {
        name: without_kernels(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if str(name).lstrip("_").removesuffix("_internal") not in ("attn_implementation", "experts_implementation")
    }


def check_tower_types(values: Mapping, known: Mapping[str, Sequence[str]]):
    """ValueError if a nested configuration of `values` says another `model_type` than one of `known[part]`; saying
    none is fine."""
    for part, types in known.items():
        tower = values.get(part)
        kind = tower.get("model_type") if isinstance(tower, Mapping) else None
        if kind is not None and kind not in types:
            raise ValueError(f"{part}.model_type: {kind!r}, expected {types[0]!r}")


__all__ = ["check_tower_types", "without_kernels"]
