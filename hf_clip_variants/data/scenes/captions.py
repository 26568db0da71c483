"""Captions of scenes: varied sentences that name what is there, with the place of every name in the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Phrase(NamedTuple):
    """A class named in a caption.

    Attributes:
        start, end (`int`): `caption[start:end]` is the class name, maybe as a plural ("cats" of "two cats") or,
            first in the sentence, with a capital.
        category (`int`): the class.
        objects (`tuple[int, ...]`): which objects of the scene it speaks of.
    """

    start: int
    end: int
    category: int
    objects: tuple[int, ...]


_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_IRREGULAR = {"mouse": "mice", "ox": "oxen", "goose": "geese", "child": "children", "man": "men", "woman": "women"}
_IRREGULAR |= {"knife": "knives", "leaf": "leaves", "wolf": "wolves", "sheaf": "sheaves", "person": "people"}
_SAME = {"fish", "sheep", "deer", "shrimp", "squid", "sushi", "popcorn", "bacon", "bread", "rice", "milk", "spaghetti"}
_SAME |= {"food", "cooking", "oden", "sake", "custard", "salad", "corn"}
_BACKGROUNDS = {
    "plain": ("a plain background", "a flat background"),
    "gradient": ("a smooth background", "a background of fading colours"),
    "noise": ("a noisy background", "a cloudy background"),
    "checks": ("a checked background", "a chequered pattern"),
    "cover": ("a busy background", "a large picture"),
    "scatter": ("a cluttered background", "a messy background"),
}
_FRAMES = ("{}.", "{}.", "There is {} here.", "This shows {}.", "A picture of {}.", "An image with {}.", "I see {}.")
_EMPTY = ("Nothing to see here.", "An empty picture.", "Nobody is here.", "Just {}.")


def write_caption(
    categories: Sequence[int],
    class_names: Sequence[str],
    boxes: Sequence[Sequence[float]],
    background: str,
    generator: np.random.Generator,
) -> tuple[str, tuple[Phrase, ...]]:
    """A true sentence about the objects of a scene; every class that is there is named once.

    Args:
        categories: the class of each of K objects, from 0.
        class_names: names of all classes.
        boxes: (x, y, width, height) of each object; for "to the left of" and the like.
        background: what it was drawn as: "plain", "noise", …
        generator: chooses the words.

    Returns:
        The caption and the places of the names, in the order of the text.

    Example:

    ```python
    >>> write_caption([0, 0], ["cat"], [(0, 0, 9, 9), (50, 0, 9, 9)], "plain", np.random.default_rng(2))[0]
    'Two cats on a flat background.'
    ```
    """
    behind = str(generator.choice(_BACKGROUNDS.get(background, ("a background",))))
    say_behind = generator.random() < 0.4
    distinct = list(dict.fromkeys(int(c) for c in categories))
    if not distinct:
        return str(generator.choice(_EMPTY)).format(behind), ()
    order = [distinct[i] for i in generator.permutation(len(distinct))]
    parts = [_Part(class_names[c], c, [k for k, other in enumerate(categories) if other == c]) for c in order]
    frame = str(generator.choice(_FRAMES))
    between = [""] + [", "] * (len(parts) - 2) + [" and "] * (len(parts) > 1)
    if len(parts) == 2 and len(categories) == 2 and generator.random() < 0.6:
        between[1] = f" {_relation(boxes[parts[0].objects[0]], boxes[parts[1].objects[0]])} "
    if frame.startswith("There is") and parts[0].is_plural:
        frame = frame.replace("There is", "There are")
    head, tail = frame.split("{}")
    if say_behind:
        tail = f" on {behind}{tail.replace(' here', '')}"
    text, phrases = head, []
    for joint, part in zip(between, parts, strict=True):
        text += joint + part.article
        text = text[:1].upper() + text[1:]
        phrases.append(Phrase(len(text), len(text) + len(part.noun), part.category, tuple(part.objects)))
        text += part.noun
    if phrases[0].start == 0:  # "Cherries and …"
        text = text[:1].upper() + text[1:]
    return text + tail, tuple(phrases)


class _Part:
    """A class with its article or number: `article` and `noun` are the words."""

    def __init__(self, name: str, category: int, objects: list[int]):
        self.category, self.objects, count = category, objects, len(objects)
        already = is_plural(name)
        self.is_plural = already or count > 1
        self.noun = plural(name) if count > 1 else name
        if count > 1:
            number = _NUMBERS[count] if count < len(_NUMBERS) else str(count)
            self.article = f"{number} "
        elif already:
            self.article = ""
        else:
            self.article = "an " if name[:1].lower() in "aeiou" else "a "


def is_plural(name: str) -> bool:
    """Whether an English name is a plural already, or takes no article.

    >>> [is_plural(name) for name in ("cherries", "octopus", "wine glass", "pot of food")]
    [True, False, False, False]
    """
    last = name.partition(" of ")[0].partition(" with ")[0].rsplit(" ", 1)[-1].lower()
    return last in _SAME - {"fish", "sheep", "deer", "shrimp", "squid"} or (
        last.endswith("s") and not last.endswith(("ss", "us", "is"))
    )


def plural(name: str) -> str:
    """The English plural of a class name; its main noun is the last word, or the one before "of" or "with".

    >>> [plural(name) for name in ("cat", "cherries", "honey pot", "slice of bread", "kitchen knife", "fox", "fish")]
    ['cats', 'cherries', 'honey pots', 'slices of bread', 'kitchen knives', 'foxes', 'fish']
    """
    for joint in (" of ", " with ", " without "):
        first, found, rest = name.partition(joint)
        if found:
            return plural(first) + found + rest
    front, space, last = name.rpartition(" ")
    lower = last.lower()
    if lower in _SAME or is_plural(last) or not last.isalpha() or not last.isascii():
        return name
    if lower in _IRREGULAR:
        return front + space + _IRREGULAR[lower]
    if lower.endswith(("s", "x", "ch", "sh", "z")) or lower in ("tomato", "potato"):
        return name + "es"
    if lower.endswith("y") and lower[-2:-1] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def _relation(first: Sequence[float], second: Sequence[float]) -> str:
    """Where the first box is, seen from the second one, by their middles."""
    across = first[0] + first[2] / 2 - second[0] - second[2] / 2
    down = first[1] + first[3] / 2 - second[1] - second[3] / 2
    if abs(across) > 2 * abs(down):
        return "to the left of" if across < 0 else "to the right of"
    if abs(down) > 2 * abs(across):
        return "above" if down < 0 else "below"
    return "near"


__all__ = ["Phrase", "is_plural", "plural", "write_caption"]
