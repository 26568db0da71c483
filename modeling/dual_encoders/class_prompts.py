"""The place of the class name in a template, and prompts of each class instead of templates that all classes share.

Prompts of each class are what language models write (Pratt et al. 2023, "What does a platypus look like?", CuPL):
`{class: [sentences]}`, any number of sentences a class.
"""

from collections.abc import Mapping, Sequence


SLOTS = ("{}", "{c}", "{classname}")  # CLIP_benchmark writes the second


def with_slot(template: str, what: str = "templates: template", needed: bool = True) -> str:
    """The template with `{}` at the place of the class name. Raises ValueError, beginning with `what`, unless there is
    exactly one place (`needed`) or at most one, for other braces, and for what is blank or no string.

    Only the place is filled: a template is not a format string (`{{}}` would drop the name, `{:999999999}` fill the
    memory).

    >>> with_slot("a photo of a {c}.")
    'a photo of a {}.'
    """
    if not isinstance(template, str):
        raise ValueError(f"{what} {template!r} is a {type(template).__name__}, expected a string")
    if not template.strip():
        raise ValueError(f"{what} {template!r} is blank")
    text = template
    for slot in SLOTS[1:]:
        text = text.replace(slot, SLOTS[0])
    count, rest = text.count(SLOTS[0]), text.replace(SLOTS[0], "")
    if "{" in rest or "}" in rest:
        fault = f"has braces other than {' or '.join(SLOTS)}"
    elif count > 1:
        fault = "has more than one {}"
    elif needed and not count:
        fault = "has no {}"
    else:
        return text
    raise ValueError(
        f"{what} {template!r} {fault}; {'exactly' if needed else 'at most'} one marks the place of the class name"
    )


def resolve_class_prompts(
    prompts: Mapping[str, str | Sequence[str]], class_names: Sequence[str]
) -> dict[str, list[str]]:
    """The prompts of each class, in the order of `class_names`.

    A key is a class name, or differs from one in case, white space and underscores only. A prompt is a sentence; `{}`
    in it (or `{c}`) is the place of the class name, and may be missing. Raises ValueError that names classes without
    prompts and keys that are no class, blank prompts, and braces that are no place of the name.

    >>> resolve_class_prompts({"red apple": ["a round fruit", "a {c}"]}, ["red_apple"])
    {'red_apple': ['a round fruit', 'a {}']}
    """
    if not class_names or isinstance(class_names, str):
        raise ValueError(f"class_names: {class_names!r}, expected the classes that the prompts are of")
    given = dict(prompts)
    key_of = {name: name for name in class_names if name in given}
    other_keys: dict[str, list] = {}
    for key in given:
        if key not in key_of:
            other_keys.setdefault(_cleaned(key), []).append(key)
    for name in class_names:
        if name not in key_of and len(keys := other_keys.get(_cleaned(name), [])) == 1:
            key_of[name] = keys[0]
            del other_keys[_cleaned(name)]
    missing = [name for name in class_names if name not in key_of]
    extra = [key for keys in other_keys.values() for key in keys]
    if missing or extra:
        faults = [f"{len(missing)} classes have none: {_some(missing)}"] if missing else []
        faults += [f"{len(extra)} keys are no class: {_some(extra)}"] if extra else []
        raise ValueError(
            f"templates: prompts of each class need the {len(class_names)} class names as keys; " + "; ".join(faults)
        )
    return {name: _sentences(name, given[key_of[name]]) for name in class_names}


def _sentences(name: str, sentences: str | Sequence[str]) -> list[str]:
    if isinstance(sentences, str):
        sentences = [sentences]
    elif isinstance(sentences, Mapping) or not isinstance(sentences, Sequence):
        raise ValueError(f"templates[{name!r}] is a {type(sentences).__name__}, expected a list of prompts")
    if not sentences:
        raise ValueError(f"templates[{name!r}] is empty, expected at least one prompt")
    return [with_slot(text, f"templates[{name!r}]: prompt", needed=False) for text in sentences]


def _cleaned(key) -> str:
    return " ".join(str(key).replace("_", " ").split()).casefold()


def _some(names: Sequence) -> str:
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")


__all__ = ["SLOTS", "resolve_class_prompts", "with_slot"]
