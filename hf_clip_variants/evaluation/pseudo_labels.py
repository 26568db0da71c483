"""A detector labels image-text pairs: boxes of the phrases of each caption, which another one then trains on."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import nms

from ..data.pairs.sources import Pairs
from ..data.tables import located
from ..files.atomic_writes import write_atomically
from ..files.json_files import write_json
from ..modeling.dual_encoders.fingerprint import fingerprint


PARTS, SETTINGS, LABELS = "parts", "settings.json", "grounding.json"
_SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"GI": ".gif", b"RI": ".webp", b"BM": ".bmp"}


@dataclass(frozen=True)
class PseudoLabels:
    """What a folder of pseudo-labels holds.

    Attributes:
        file: COCO's json with captions, for `load_grounding_set`.
        pairs: how many were looked at.
        images, boxes: how many are in the file.
        left_out: why pairs are not in it -> how many.
    """

    file: Path
    pairs: int
    images: int
    boxes: int
    left_out: dict[str, int] = field(default_factory=dict)


def label_pairs(
    model: Any,
    processor: Any,
    pairs: Pairs,
    folder: str | os.PathLike,
    *,
    threshold: float = 0.5,
    phrase_nms: float | None = None,
    every_phrase: bool = False,
    batch_size: int = 4,
    part_size: int = 100,
    most_pairs: int | None = None,
    progress: Any = None,
) -> PseudoLabels:
    """Writes boxes of the phrases of captions to `folder`/grounding.json; goes on where an earlier call was killed.

    Of a pair, the first text is the caption. Boxes with a score above `threshold` are kept, and pairs that have one:
    as GLIP's authors label web data. Each `part_size` pairs become a file of their own, in one step; parts that are
    there are not computed again. Images that are no files (of a Parquet file, a shard) are written to
    `folder`/images.

    Args:
        model: a detector that reads captions, in eval mode.
        processor: its processor, with `phrases_of`.
        pairs: from `open_pairs`.
        threshold: the smallest score of a box.
        phrase_nms: of boxes that overlap with a greater intersection over union than this, whatever their phrases,
            only the one with the highest score is kept: a thing has one name. It helps where the teacher knows some
            words of a caption and not others; leave it out where phrases of one caption speak of the same thing.
            Default: each phrase for itself, as GLIP's authors do.
        every_phrase: leave out pairs in which some phrase of the caption has no box. Else the student learns that
            there is nothing of that name.
        batch_size: images in one pass, which are padded to one size.
        part_size: pairs of a part.
        most_pairs: the first ones only.
        progress: called with the number of pairs after each part.

    Raises:
        ValueError: the folder has labels that were made with other settings, another teacher or other pairs, or a
            processor that reads no captions.
    """
    if not hasattr(processor, "phrases_of"):
        raise ValueError(f"processor: {type(processor).__name__} reads no captions, expected one with phrases_of")
    for name, value in (("batch_size", batch_size), ("part_size", part_size)):
        if value < 1:
            raise ValueError(f"{name}: {value}, expected a number >= 1")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: {threshold}, expected 0..1")
    if phrase_nms is not None and not 0 <= phrase_nms <= 1:
        raise ValueError(f"phrase_nms: {phrase_nms}, expected 0..1 or None")
    folder = Path(folder)
    settings = {
        "teacher": fingerprint(model),
        "pairs": pairs.source,
        "texts": list(pairs.text_columns),
        "threshold": threshold,
        "batch_size": batch_size,
        "part_size": part_size,
    }
    # Older folders have no such settings.
    settings |= {} if phrase_nms is None else {"phrase_nms": phrase_nms}
    settings |= {"every_phrase": True} if every_phrase else {}
    rules = threshold, phrase_nms, every_phrase
    _same_settings(folder / SETTINGS, settings)
    number = 0
    while (folder / PARTS / f"{number:06}.json").is_file():
        number += 1
    done = number * part_size
    rows = _rows(pairs, done, most_pairs)
    while some := list(islice(rows, part_size)):
        part = _label_part(model, processor, pairs, some, done, folder, rules, batch_size)
        write_json(folder / PARTS / f"{number:06}.json", part)
        number, done = number + 1, done + len(some)
        if progress is not None:
            progress(done)
    return _joined(folder, number)


def _same_settings(path: Path, settings: Mapping[str, Any]) -> None:
    if not path.is_file():
        write_json(path, settings)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for name in {**settings, **before}:
        if before.get(name) != settings.get(name):
            raise ValueError(
                f"{'out' if name in ('teacher', 'texts') else name}: {path.parent} has labels that were made with "
                f"another {name} ({before.get(name)!r}, now {settings.get(name)!r}); want a new folder, or the same "
                "settings"
            )


def _rows(pairs: Pairs, first: int, most: int | None) -> Iterator[Mapping[str, Any]]:
    """Rows from number `first` on."""
    count = None if most is None else max(most - first, 0)
    if pairs.is_stream:
        yield from islice(pairs.dataset.skip(first), count)
        return
    end = len(pairs.dataset) if most is None else min(most, len(pairs.dataset))
    for number in range(first, end):
        yield pairs.dataset[number]


def _label_part(model, processor, pairs, rows, first, folder, rules, batch_size) -> dict[str, Any]:
    """Images with captions and boxes, and why others were left out."""
    found, left_out, waiting = [], Counter(), []
    longest = processor.max_text_length

    def flush() -> None:
        for item, objects in zip(waiting, _boxes(model, processor, waiting, *rules[:2]), strict=True):
            named = {json.dumps(one["tokens_positive"]) for one in objects}
            if not objects or (rules[2] and len(named) < len(item["phrases"])):
                left_out["a phrase without box" if objects else "no box"] += 1
                continue
            name = _file_name(pairs, item["row"], item["number"], folder)
            image = item["image"]
            found.append(
                {"file_name": name, "width": image.width, "height": image.height, "caption": item["caption"]}
                | {"objects": objects}
            )
        waiting.clear()

    for number, row in enumerate(rows, first):
        try:
            caption = pairs.texts(row)[0][0]
        except ValueError:
            left_out["no text"] += 1
            continue
        try:
            phrases = processor.phrases_of(caption)
        except ValueError:
            left_out["no phrase"] += 1
            continue
        if len(processor.tokenizer(caption, split_special_tokens=True).input_ids) > longest:
            left_out["too long"] += 1
            continue
        try:
            image = pairs.image(row).convert("RGB")
        except Exception:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
            left_out["unreadable image"] += 1
            continue
        waiting.append({"row": row, "number": number, "caption": caption, "phrases": phrases, "image": image})
        if len(waiting) == batch_size:
            flush()
    if waiting:
        flush()
    return {"pairs": len(rows), "left_out": dict(sorted(left_out.items())), "images": found}


@torch.inference_mode()
def _boxes(model, processor, items, threshold: float, phrase_nms: float | None) -> list[list[dict[str, Any]]]:
    images = [item["image"] for item in items]
    captions, phrases = [item["caption"] for item in items], [item["phrases"] for item in items]
    inputs = processor(images, captions=captions, phrases=phrases, return_tensors="pt").to(model.device)
    outputs = model(**inputs)
    sizes = [(image.height, image.width) for image in images]
    found = processor.post_process_grounded_object_detection(outputs, threshold=threshold, target_sizes=sizes)
    rows = []
    for one, spans in zip(found, phrases, strict=True):
        objects = []
        if phrase_nms is not None:
            kept = nms(one["boxes"], one["scores"], phrase_nms)
            one = {name: one[name][kept] for name in ("scores", "labels", "boxes")}
        numbers = zip(one["scores"].tolist(), one["labels"].tolist(), one["boxes"].tolist(), strict=True)
        for score, label, (left, top, right, bottom) in numbers:
            box = [round(edge, 2) for edge in (left, top, right - left, bottom - top)]
            if min(box[2:]) > 0:
                where = [list(span) for span in spans[label]]
                objects.append({"bbox": box, "score": round(score, 4), "tokens_positive": where})
        rows.append(objects)
    return rows


def _file_name(pairs: Pairs, row: Mapping[str, Any], number: int, folder: Path) -> str:
    """The image's file, relative to the folder; written there if it is none yet."""
    value = row[pairs.image_column]
    content = value.get("bytes") if isinstance(value, Mapping) else value if isinstance(value, bytes) else None
    if content is None:
        path = value.get("path") if isinstance(value, Mapping) else value
        return os.path.relpath(located(pairs.folder, path), folder)
    name = f"images/{number:08}{_SUFFIXES.get(bytes(content[:2]), '.img')}"
    if not (folder / name).is_file():
        write_atomically(folder / name, content)
    return name


def _joined(folder: Path, parts: int) -> PseudoLabels:
    """Writes the one file of all parts."""
    images, annotations, left_out, pairs = [], [], Counter(), 0
    for number in range(parts):
        part = json.loads((folder / PARTS / f"{number:06}.json").read_text(encoding="utf-8"))
        pairs += part["pairs"]
        left_out.update(part["left_out"])
        for one in part["images"]:
            place = len(images)
            images.append({"id": place} | {name: value for name, value in one.items() if name != "objects"})
            for mark in one["objects"]:
                area = round(mark["bbox"][2] * mark["bbox"][3], 2)
                more = {"id": len(annotations) + 1, "image_id": place, "category_id": 1, "area": area, "iscrowd": 0}
                annotations.append(more | mark)
    categories = [{"id": 1, "name": "object"}]
    write_json(folder / LABELS, {"images": images, "annotations": annotations, "categories": categories})
    return PseudoLabels(folder / LABELS, pairs, len(images), len(annotations), dict(sorted(left_out.items())))


__all__ = ["LABELS", "PseudoLabels", "label_pairs"]
