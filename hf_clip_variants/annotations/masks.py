"""Masks as COCO writes them: run lengths, compressed run lengths, polygons. All are exact, in both directions."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from ..optional_dependencies import require


# H, W of a mask in pixels; x to the right, y down; the corner (x, y) is the upper left one of pixel [y, x]

MaskFormat = Literal["polygons", "rle", "compressed_rle"]


def encode_mask(mask: np.ndarray, to: MaskFormat = "rle") -> dict[str, Any] | list[list[int]]:
    """A mask (H, W) in the form that COCO's `segmentation` field has; see `mask_to_rle`, `mask_to_polygons`.

    Raises:
        ValueError: an unknown format, or not two dimensions.
        ImportError: compressed run lengths without pycocotools.
    """
    if to not in get_args(MaskFormat):
        raise ValueError(f"to: got {to!r}; want one of {', '.join(get_args(MaskFormat))}")
    if to == "polygons":
        return mask_to_polygons(mask)
    return mask_to_rle(mask) if to == "rle" else mask_to_compressed_rle(mask)


def mask_to_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths: column by column, the first run counts zeros.

    Args:
        mask: (H, W), bool or numbers (not 0 is inside).

    Returns:
        `{"counts": [...], "size": [H, W]}`, for `rle_to_mask` and pycocotools (`frPyObjects`).

    Example:

    ```python
    >>> mask_to_rle(np.array([[0, 1], [0, 1]]))
    {'counts': [2, 2], 'size': [2, 2]}
    ```
    """
    flat = _checked(mask).T.reshape(-1)
    if not flat.size:
        return {"counts": [], "size": list(mask.shape)}
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"counts": [0, *counts] if flat[0] else counts, "size": list(mask.shape)}


def rle_to_mask(rle: Mapping[str, Any]) -> np.ndarray:
    """(H, W) bool, from uncompressed run lengths (compressed ones need pycocotools).

    >>> rle_to_mask({"counts": [2, 2], "size": [2, 2]}).astype(int).tolist()
    [[0, 1], [0, 1]]
    """
    height, width = rle["size"]
    if isinstance(rle["counts"], str | bytes):
        counts = rle["counts"].encode() if isinstance(rle["counts"], str) else rle["counts"]
        decoded = _pycocotools().decode([{"counts": counts, "size": [height, width]}])
        return np.asarray(decoded)[..., 0].astype(bool)
    counts = np.asarray(rle["counts"], dtype=np.int64)
    if (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"rle: its counts cover {counts.sum()} pixels; want {height} x {width}")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def mask_to_compressed_rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths, `{"size": [H, W], "counts": str}`; needs the extra `detection`."""
    encoded = _pycocotools().encode(np.asfortranarray(_checked(mask).astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """Polygons along the edges of the pixels: filled again, they are the mask, to the pixel.

    Pixels that touch at a corner only are in different polygons. COCO's polygons have no holes: a part with holes is
    cut at rows through them. No polygon overlaps another one.

    Args:
        mask: (H, W), bool or numbers (not 0 is inside).

    Returns:
        `[[x1, y1, x2, y2, …], …]`, clockwise on the screen; empty for an empty mask.

    Example:

    ```python
    >>> mask_to_polygons(np.array([[0, 1, 1], [0, 1, 1]]))
    [[1, 0, 3, 0, 3, 2, 1, 2]]
    ```
    """
    return [polygon.reshape(-1).tolist() for polygon in _without_holes(_checked(mask))]


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(x, y, width, height) of the smallest box around a mask (H, W); zeros for an empty one.

    >>> mask_box(np.array([[0, 1, 1], [0, 0, 0]]))
    (1, 0, 2, 1)
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def _pycocotools() -> Any:
    require("pycocotools", "compressed run lengths")
    return importlib.import_module("pycocotools.mask")


def _checked(mask: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"mask: got shape {mask.shape}; want (H, W)")
    return mask != 0


# ---- polygons


def _without_holes(mask: np.ndarray) -> Iterator[np.ndarray]:
    """(V, 2) corners of polygons that together are the mask; those of parts with holes are cut in two."""
    outlines = _outlines(mask)
    outer = [outline for outline in outlines if _area(outline) > 0]
    holes = [outline for outline in outlines if _area(outline) < 0]
    if not holes:
        yield from outer
        return
    holes_of = _owners(outer, holes)
    for number, outline in enumerate(outer):
        if number not in holes_of:
            yield outline
            continue
        left, top = outline.min(0)
        part = _filled(outline)
        for hole in holes_of[number]:
            x, y = hole.min(0) - (left, top)
            inner = _filled(hole)
            part[y : y + inner.shape[0], x : x + inner.shape[1]] ^= inner
        rows = [0, *(row - top for row in _cuts(holes_of[number])), len(part)]
        for start, end in itertools.pairwise(rows):
            yield from (polygon + (left, top + start) for polygon in _outlines(part[start:end]))


def _cuts(holes: Sequence[np.ndarray]) -> list[int]:
    """Few rows, above the first or below the last of which every hole reaches the edge of its half."""
    cuts: list[int] = []
    low = high = None
    for start, end in sorted(((int(h[:, 1].min()), int(h[:, 1].max())) for h in holes), key=lambda span: span[1]):
        if high is not None and start <= high:
            low = max(low, start)
            continue
        if high is not None:
            cuts.append((low + high) // 2)
        low, high = start, end
    return [*cuts, (low + high) // 2]


def _owners(outer: Sequence[np.ndarray], holes: Sequence[np.ndarray]) -> dict[int, list[np.ndarray]]:
    """Number of an outline -> the holes in it: each is in the smallest outline around it."""
    order = sorted(range(len(outer)), key=lambda number: _area(outer[number]))
    lows, highs = (np.array([getattr(outer[n], side)(0) for n in order]) for side in ("min", "max"))
    filled: dict[int, np.ndarray] = {}
    found: dict[int, list[np.ndarray]] = {}
    for hole in holes:
        low, high = hole.min(0), hole.max(0)
        x, y = hole[
            np.lexsort((hole[:, 0], hole[:, 1]))[0]
        ]  # its upper left corner; above that pixel is the outline's
        for place in np.flatnonzero((lows <= low).all(1) & (highs >= high).all(1)):
            number = order[place]
            if number not in filled:
                filled[number] = _filled(outer[number])
            left, top = lows[place]
            if filled[number][y - top, x - left]:
                found.setdefault(number, []).append(hole)
                break
    return found


def _filled(outline: np.ndarray) -> np.ndarray:
    """(h, w) bool in the outline's own box: the pixels inside."""
    corners = outline - outline.min(0)
    width, height = corners.max(0)
    inside = np.zeros((height + 1, width + 1), dtype=np.uint8)
    np.bitwise_xor.at(inside, (corners[:, 1], corners[:, 0]), 1)
    for axis in (0, 1):  # the inside is where the number of corners up and to the left is odd
        np.bitwise_xor.accumulate(inside, axis=axis, out=inside)
    return inside[:-1, :-1].astype(bool)


def _area(outline: np.ndarray) -> float:
    """Above 0: clockwise on the screen, so an outer outline."""
    x, y = outline.T.astype(np.int64)
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Closed outlines, (V, 2) corners (x, y) each, with the inside on the right: outer ones and holes."""
    inside = np.pad(mask, 1).astype(np.int8)
    steps = np.diff(inside, axis=0)[:, 1:-1]  # (H + 1, W): 1 at an upper edge of a pixel, -1 at a lower one
    across = np.diff(inside, axis=1)[1:-1]  # (H, W + 1): 1 at a left edge, -1 at a right one
    # Straight pieces between corners: (x, y of the start) -> (x, y of the end), by direction.
    right = _runs(steps == 1)
    left = _runs(steps == -1)
    up = _runs((across == 1).T)
    down = _runs((across == -1).T)
    pieces: dict[tuple[int, int, int], tuple[int, int]] = {}  # x, y, direction: 0 right, 1 down, 2 left, 3 up
    pieces.update({(a, line, 0): (b, line) for line, a, b in right})
    pieces.update({(line, a, 1): (line, b) for line, a, b in down})
    pieces.update({(b, line, 2): (a, line) for line, a, b in left})
    pieces.update({(line, b, 3): (line, a) for line, a, b in up})
    outlines = []
    for start in [key for key in pieces if not key[2] % 2]:
        if start not in pieces:
            continue
        corners, at = [], start
        while at in pieces:
            corners.append(at[:2])
            (x, y), direction = pieces.pop(at), at[2]
            # A turn to the right stays at the same pixel where two touch at this corner.
            at = next(
                (key for turn in (1, 3) if (key := (x, y, (direction + turn) % 4)) in pieces), (x, y, direction + 4)
            )
        outlines.append(np.array(corners))
    return outlines


def _runs(edges: np.ndarray) -> list[tuple[int, int, int]]:
    """(line, start, end) of each run of True in a line."""
    padded = np.pad(edges, ((0, 0), (1, 1)))
    changed = padded[:, 1:] != padded[:, :-1]  # (lines, length + 1); a run starts, and ends, where it changes
    lines, places = np.divmod(np.flatnonzero(changed), changed.shape[1])
    lines, places = lines.tolist(), places.tolist()
    return list(zip(lines[::2], places[::2], places[1::2], strict=True))


__all__ = [
    "MaskFormat",
    "encode_mask",
    "mask_box",
    "mask_to_compressed_rle",
    "mask_to_polygons",
    "mask_to_rle",
    "rle_to_mask",
]
