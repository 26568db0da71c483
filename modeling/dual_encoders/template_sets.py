"""Prompt templates by name or from a file. Exported code has no such file: there, templates are given as text."""

import json
from pathlib import Path

from ..decoding.opening import read_regular
from ..loading_and_saving.optional_modules import optional_module


# The package works without any one of its methods.
_actions = optional_module("..actionclip.templates_actionclip", __package__)

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
    **({} if _actions is None else {"actionclip": _actions.ACTION_TEMPLATES}),
    "scenes": ("a photo of a {}.", "a photo taken in a {}.", "a wide view of a {}."),
    "digits": ("a photo of the number {}.", "the handwritten digit {}.", "a sign showing the number {}."),
    "chinese": ("一张{}的照片。", "{}的照片", "一张{}的图片", "一张{}的特写照片", "一张模糊的{}的照片", "一幅{}的画"),
    "icons": ("an emoji of {}", "{}", "a picture of {}", "an icon of {}"),
    # The 80 of CLIP's paper, as published with its code (MIT).
    "imagenet": (
        "a bad photo of a {}.",
        "a photo of many {}.",
        "a sculpture of a {}.",
        "a photo of the hard to see {}.",
        "a low resolution photo of the {}.",
        "a rendering of a {}.",
        "graffiti of a {}.",
        "a bad photo of the {}.",
        "a cropped photo of the {}.",
        "a tattoo of a {}.",
        "the embroidered {}.",
        "a photo of a hard to see {}.",
        "a bright photo of a {}.",
        "a photo of a clean {}.",
        "a photo of a dirty {}.",
        "a dark photo of the {}.",
        "a drawing of a {}.",
        "a photo of my {}.",
        "the plastic {}.",
        "a photo of the cool {}.",
        "a close-up photo of a {}.",
        "a black and white photo of the {}.",
        "a painting of the {}.",
        "a painting of a {}.",
        "a pixelated photo of the {}.",
        "a sculpture of the {}.",
        "a bright photo of the {}.",
        "a cropped photo of a {}.",
        "a plastic {}.",
        "a photo of the dirty {}.",
        "a jpeg corrupted photo of a {}.",
        "a blurry photo of the {}.",
        "a photo of the {}.",
        "a good photo of the {}.",
        "a rendering of the {}.",
        "a {} in a video game.",
        "a photo of one {}.",
        "a doodle of a {}.",
        "a close-up photo of the {}.",
        "a photo of a {}.",
        "the origami {}.",
        "the {} in a video game.",
        "a sketch of a {}.",
        "a doodle of the {}.",
        "a origami {}.",
        "a low resolution photo of a {}.",
        "the toy {}.",
        "a rendition of the {}.",
        "a photo of the clean {}.",
        "a photo of a large {}.",
        "a rendition of a {}.",
        "a photo of a nice {}.",
        "a photo of a weird {}.",
        "a blurry photo of a {}.",
        "a cartoon {}.",
        "art of a {}.",
        "a sketch of the {}.",
        "a embroidered {}.",
        "a pixelated photo of a {}.",
        "itap of the {}.",
        "a jpeg corrupted photo of the {}.",
        "a good photo of a {}.",
        "a plushie {}.",
        "a photo of the nice {}.",
        "a photo of the small {}.",
        "a photo of the weird {}.",
        "the cartoon {}.",
        "art of the {}.",
        "a drawing of the {}.",
        "a photo of the large {}.",
        "a black and white photo of a {}.",
        "the plushie {}.",
        "a dark photo of a {}.",
        "itap of a {}.",
        "graffiti of the {}.",
        "a toy {}.",
        "itap of my {}.",
        "a photo of a cool {}.",
        "a photo of a small {}.",
        "a tattoo of the {}.",
    ),
}


def _parse_template_file(path: Path) -> list[str] | dict[str, list[str]]:
    try:
        text = read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"templates: {path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    if path.suffix != ".json":
        return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    try:
        templates = json.loads(text, object_pairs_hook=_without_repeated_keys)
    except ValueError as error:
        raise ValueError(f"templates: {path}: {error}") from None
    if not isinstance(templates, list | dict):
        raise ValueError(
            f"templates: {path} holds a JSON {type(templates).__name__}, expected a list of templates, or an object "
            "with the prompts of each class"
        )
    return templates


def _without_repeated_keys(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is a key more than once")
    return found


def find_templates(source: str | Path) -> list[str] | dict[str, list[str]]:
    """The templates of a named set or of a file, or a JSON file's prompts of each class; ValueError for what is
    neither."""
    if isinstance(source, str) and source in TEMPLATE_SETS:
        return list(TEMPLATE_SETS[source])
    if isinstance(source, Path) or (Path(source).suffix in (".txt", ".json") and Path(source).exists()):
        return _parse_template_file(Path(source))
    known = ", ".join(TEMPLATE_SETS)
    raise ValueError(
        f"templates: template {source!r} has no {{}}, and it is neither a named set ({known}) nor a .txt or .json file"
    )


__all__ = ["TEMPLATE_SETS", "find_templates"]
