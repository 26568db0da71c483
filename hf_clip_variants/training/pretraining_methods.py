"""The methods that can be pre-trained, as the table of methods has them. Loading their descriptors is cheap."""

from __future__ import annotations

from ..modeling.dual_encoders.pretraining import ImageEncoderKind, Pretraining
from ..registry import methods


def pretraining_methods() -> dict[str, tuple[Pretraining, ...]]:
    """Name -> descriptors of that name, for image encoders of different kinds; in the table's order.

    >>> list(pretraining_methods())
    ['clip', 'slip', 'audioclip', 'groupvit']
    """
    found: dict[str, tuple[Pretraining, ...]] = {}
    for row in methods():
        if row.pretraining:
            each = row.load("pretraining")
            found[each.name] = (*found.get(each.name, ()), each)
    return found


def pretraining_of(method: str, image_encoder: ImageEncoderKind | None = None) -> Pretraining:
    """The descriptor of a method on an image encoder of this kind; without a kind, the method's first.

    Raises:
        ValueError: no such method, or it cannot be built on such an image encoder.
    """
    known = pretraining_methods()
    if method not in known:
        raise ValueError(f"method: got {method!r}; want one of {', '.join(known)}")
    for each in known[method]:
        if image_encoder is None or image_encoder in each.image_encoders:
            return each
    kinds = [kind for each in known[method] for kind in each.image_encoders]
    raise ValueError(f"image_encoder: got {image_encoder!r} for {method}; want {' or '.join(map(repr, kinds))}")


__all__ = ["pretraining_methods", "pretraining_of"]
