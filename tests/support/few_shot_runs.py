"""A tiny CLIP checkpoint and folders of real images, for tests of complete few-shot runs."""

import json
from pathlib import Path

from PIL import Image
from tiny import tiny_clip, tiny_tokenizer

from hf_clip_variants.data import load_emoji


CONCEPTS = ("cat", "dog", "pizza", "banana", "rose", "owl")
NOT_THE_SAME = ("seconds", "environment", "seconds_per_view")  # between two equal runs


def save_tiny_clip(folder: Path) -> Path:
    """A random CLIP for 24 px with processor and tokenizer, saved as by transformers."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    tiny_clip().save_pretrained(folder)
    image_processor = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    CLIPProcessor(image_processor, tiny_tokenizer()).save_pretrained(folder)
    return folder


def save_images(folder: Path, splits: dict[str, list[str]], concepts=CONCEPTS) -> Path:
    """folder/<split>/<concept>/<style>.png for the styles of each split ("" for a folder without splits)."""
    for split, styles in splits.items():
        for style in styles:
            images = load_emoji(style, concepts=list(concepts))
            for index, concept in enumerate(concepts):
                place = folder / split / concept
                place.mkdir(parents=True, exist_ok=True)
                flat = Image.new("RGBA", (64, 64), "white")
                flat.alpha_composite(images.image(index).convert("RGBA"))
                flat.convert("RGB").save(place / f"{style}.png")
    return folder


def comparable(results: dict) -> dict:
    """results.json without times and the machine, which differ between two equal runs."""

    def clean(value):
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if k not in NOT_THE_SAME}
        return [clean(v) for v in value] if isinstance(value, list) else value

    return clean(results)


def adapter_files(run: Path) -> dict[str, bytes]:
    """Every file below adapters/ and predictions/, by name, with the path of the run folder replaced."""
    return {
        path.relative_to(run).as_posix(): path.read_bytes().replace(str(run).encode(), b"RUN")
        for part in ("adapters", "predictions")
        for path in sorted((run / part).rglob("*"))
        if path.is_file()
    }


def results_of(run: Path) -> dict:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))
