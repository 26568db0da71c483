"""Class names and prompt templates: checked, named sets, and the prompts that they make.

A template is a string with exactly one `{}`, the place of the class name. Ensembles (Radford et al. 2021, section 3.1.4) average the
normalised text embeddings of several templates; which set helps depends on the pictures, hence the sets below, in our own wording.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a {}.",),
    "general": (
        "a photo of a {}.",
        "a close-up photo of a {}.",
        "a photo of the small {}.",
        "a photo of the large {}.",
        "a blurry photo of a {}.",
        "a bright photo of the {}.",
        "a dark photo of the {}.",
        "a drawing of a {}.",
        "an illustration of the {}.",
        "a picture of one {}.",
        "a picture of many {}.",
        "a {} on a plain background.",
    ),
    "pets": ("a photo of a {}, a type of pet.", "a close-up photo of a {}, a pet.", "a photo of my {}."),
    "flowers": ("a photo of a {}, a type of flower.", "a close-up photo of a {} in bloom.", "a {} in a garden."),
    "food": ("a photo of {}, a type of food.", "a plate of {}.", "a close-up photo of {} ready to eat."),
    "aircraft": ("a photo of a {}, a type of aircraft.", "a {} in flight.", "a {} parked at an airport."),
    "cars": (
        "a photo of a {}.",
        "a photo of a {}, a type of car.",
        "a {} parked on a street.",
        "a side view of a {}.",
    ),
    "textures": ("a photo of a {} texture.", "a {} surface.", "a close-up of a {} pattern."),
    "satellite": ("a satellite photo of {}.", "an aerial view of {}.", "{} seen from above."),
    "actions": ("a photo of a person doing {}.", "a frame of a video of someone doing {}.", "an example of {}."),
    "scenes": ("a photo of a {}.", "a photo taken in a {}.", "a wide view of a {}."),
    "digits": ("a photo of the number {}.", "the handwritten digit {}.", "a sign showing the number {}."),
    "chinese": ("一张{}的照片。", "{}的照片", "一张{}的图片", "一张{}的特写照片", "一张模糊的{}的照片", "一幅{}的画"),
    "icons": ("an emoji of {}", "{}", "a picture of {}", "an icon of {}"),
}


def _parse_template_file(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        templates = json.loads(text)
        if not isinstance(templates, list):
            raise ValueError(f"templates: {path} holds a JSON {type(templates).__name__}, expected a list of strings")
        return templates
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def resolve_templates(templates: str | Path | Sequence[str] | None) -> list[str]:
    """Templates from one string, a list, a named set of `TEMPLATE_SETS`, or a file (JSON list, or a line each, `#` comments).

    `None` gives `"a photo of a {}."`. Raises ValueError for an unknown name, an empty list, a template without exactly one `{}`
    or a repeated one.

    >>> resolve_templates("pets")[0]
    'a photo of a {}, a type of pet.'
    """
    if templates is None:
        templates = TEMPLATE_SETS["photo"]
    if isinstance(templates, Path):
        templates = _parse_template_file(templates)
    elif isinstance(templates, str):
        if "{}" in templates:
            templates = [templates]
        elif templates in TEMPLATE_SETS:
            templates = TEMPLATE_SETS[templates]
        elif Path(templates).suffix in (".txt", ".json") and Path(templates).is_file():
            templates = _parse_template_file(Path(templates))
        else:
            raise ValueError(
                f"templates: template {templates!r} has no {{}}, and it is neither a named set ({', '.join(TEMPLATE_SETS)}) "
                "nor a .txt or .json file"
            )
    templates = list(templates)
    if not templates:
        raise ValueError("templates is empty")
    for template in templates:
        if not isinstance(template, str):
            raise ValueError(f"templates: {template!r} is a {type(template).__name__}, expected a string")
        if template.count("{}") != 1:
            fault = "has no {}" if "{}" not in template else "has more than one {}"
            raise ValueError(
                f"templates: template {template!r} {fault}; exactly one marks the place of the class name"
            )
        try:
            template.format("x")
        except (IndexError, KeyError, ValueError) as error:
            raise ValueError(f"templates: template {template!r} is not a format string ({error})") from None
    duplicates = sorted({t for t in templates if templates.count(t) > 1})
    if duplicates:
        raise ValueError(f"templates: {duplicates[0]!r} is given more than once")
    return templates


def resolve_class_names(
    class_names: str | Sequence[str] | Mapping[int, str], argument: str = "class_names"
) -> list[str]:
    """Class names as a list, in label order; a comma-separated string is split, never read as characters.

    Underscores become spaces in the prompts only (`format_prompts`); the names themselves stay as given. Raises ValueError when the list
    is empty, a name is blank or not a string, or two names are equal.
    """
    if isinstance(class_names, str):
        class_names = [name.strip() for name in class_names.split(",") if name.strip()]
    elif isinstance(class_names, Mapping):
        if sorted(class_names) != list(range(len(class_names))):
            raise ValueError(f"{argument}: keys must be 0..{len(class_names) - 1}, got {sorted(class_names)[:5]}")
        class_names = [class_names[index] for index in range(len(class_names))]
    class_names = list(class_names)
    if not class_names:
        raise ValueError(f"{argument} is empty")
    seen: dict[str, int] = {}
    for index, name in enumerate(class_names):
        if not isinstance(name, str):
            raise ValueError(f"{argument}[{index}] is {name!r} ({type(name).__name__}), expected a string")
        if not name.strip():
            raise ValueError(f"{argument}[{index}] is blank")
        if name in seen:
            raise ValueError(f"{argument}: {name!r} is given twice, at {seen[name]} and {index}")
        seen[name] = index
    return class_names


def format_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """C x T prompts, class by class: `["a photo of a cat.", "art of the cat.", "a photo of a dog.", …]`."""
    return [template.format(name.replace("_", " ")) for name in class_names for template in templates]


__all__ = ["TEMPLATE_SETS", "format_prompts", "resolve_class_names", "resolve_templates"]
