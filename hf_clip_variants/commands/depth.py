"""The task "depth" of `hf-clip-variants predict`: how far away what an image shows is, by words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answer_lines import rows_of, write_rows
from .arguments import check_out
from .output import prepare_libraries, use_all_cores
from .segmentation import file_name, list_of_labels, png_of


if TYPE_CHECKING:
    from ..evaluation.depth import EstimatedDepth

DEPTH = "depth"
OUT = "depth"  # the folder that is written
_HEADER = ("path", "width", "height", "nearest", "median", "farthest", "word", "share", "picture", "depth_map", "step")


def has_depth_model(model: str) -> bool:
    """Whether a folder holds a model that reads depth."""
    from ..evaluation.depth import is_depth_model

    return is_depth_model(model)


def words_with_depths(text: str) -> dict[str, float]:
    """`"close=1, far=3"`, or a file with one in each line: word -> depth.

    >>> words_with_depths("close=1, a little remote = 2.5")
    {'close': 1.0, 'a little remote': 2.5}
    """
    found: dict[str, float] = {}
    for entry in list_of_labels(text):
        word, equals, depth = (part.strip() for part in entry.rpartition("="))
        try:
            value = float(depth) if equals and word else math.nan
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value <= 0:
            raise ValueError(f'--labels: got {entry!r}; want a word and its depth above 0, as "close=1, far=3"')
        if word in found:
            raise ValueError(f"--labels: {word!r} is given twice")
        found[word] = value
    return found


def estimate_files(
    inputs: list[str] | Iterator[str],
    model: str | None,
    labels: str | None,
    templates: str | None,
    *,
    out: str | None,
    device: str | None,
    as_json: bool,
) -> tuple[int, int]:
    """Estimates depth, prints it, writes pictures and depth maps: (images that are broken, images)."""
    if model is None:
        raise ValueError(
            "--model: missing; want a model that reads depth by words, or a CLIP to make one of: folder or Hub id"
        )
    out = OUT if out is None else out
    check_out("--out", out)
    words = None if labels is None else words_with_depths(labels)
    if templates is not None and "{}" not in templates:
        raise ValueError(f"--templates: got {templates!r}; want one sentence with {{}} for the word")
    prepare_libraries(watched=not as_json)
    use_all_cores()
    from ..evaluation.depth import estimate_depth, load_depth_estimator
    from ..evaluation.prediction import find_images

    chosen = None if templates is None else [templates.replace("{}", "{distance}")]
    estimator = load_depth_estimator(model, words, chosen, device)
    depths = dict(zip(estimator.model.config.depth_words, estimator.model.bins().tolist(), strict=True))
    taken: set[str] = set()
    return write_rows(
        rows_of(estimate_depth(estimator, find_images(inputs)), lambda one: _saved(one, depths, Path(out), taken)),
        list(_HEADER),
        lambda row: row,
        inputs,
        as_json=as_json,
        wanted="image files",
        note=f"{out} holds pictures/ and depth_maps/ (PNG, 16 bits; times step is the depth)",
    )


def _saved(found: EstimatedDepth, depths: dict[str, float], out: Path, taken: set[str]) -> dict[str, Any]:
    """Writes the picture and the depth map of one image; returns its row."""
    import numpy as np

    from ..annotations.depth_pictures import depth_file, draw_depth
    from ..files.atomic_writes import write_atomically

    name = file_name(found.path, taken)
    words = [(word, depths[word], share) for word, share in found.words]
    drawn = draw_depth(found.image, found.depth, words, Path(found.path).name)
    picture = write_atomically(out / "pictures" / name, png_of(drawn))
    content, step = depth_file(found.depth)
    depth_map = write_atomically(out / "depth_maps" / name, content)
    height, width = found.depth.shape
    word, share = max(found.words, key=lambda pair: pair[1])
    numbers = (found.depth.min(), np.median(found.depth), found.depth.max())
    row = {"path": found.path, "width": width, "height": height}
    row |= {key: round(float(n), 6) for key, n in zip(("nearest", "median", "farthest"), numbers, strict=True)}
    row |= {"word": word, "share": round(share, 6), "picture": str(picture), "depth_map": str(depth_map), "step": step}
    return row | {"words": {text: round(value, 6) for text, value in found.words}}


__all__ = ["DEPTH", "OUT", "estimate_files", "has_depth_model", "words_with_depths"]
