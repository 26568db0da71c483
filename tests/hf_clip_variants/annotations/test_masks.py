"""Run lengths and polygons give the mask back, to the pixel, and mean the same to pycocotools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw

from hf_clip_variants.annotations.masks import (
    encode_mask,
    mask_box,
    mask_to_compressed_rle,
    mask_to_polygons,
    mask_to_rle,
    rle_to_mask,
)


coco = pytest.importorskip("pycocotools.mask")
MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


def as_pycocotools_reads(segmentation, shape) -> np.ndarray:
    """As `COCO.annToMask` does."""
    if isinstance(segmentation, list):
        if not segmentation:
            return np.zeros(shape, bool)
        encoded = coco.merge(coco.frPyObjects(segmentation, *shape))
    elif isinstance(segmentation["counts"], list):
        encoded = coco.frPyObjects(segmentation, *shape)
    else:
        encoded = segmentation
    return coco.decode(encoded).astype(bool)


def smooth(seed: int, side: int = 120) -> np.ndarray:
    """A mask with large parts, small parts, holes, and parts in holes."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)) > 128


@settings(max_examples=150, deadline=None)
@given(MASKS)
def test_every_format_is_exact_for_pycocotools(mask):
    for name in ("rle", "compressed_rle", "polygons"):
        assert (as_pycocotools_reads(encode_mask(mask, name), mask.shape) == mask).all(), name
    assert (rle_to_mask(mask_to_rle(mask)) == mask).all()
    assert (rle_to_mask(mask_to_compressed_rle(mask)) == mask).all()
    assert mask_to_compressed_rle(mask) == {
        "size": list(mask.shape),
        "counts": coco.frPyObjects(mask_to_rle(mask), *mask.shape)["counts"].decode(),
    }


@pytest.mark.parametrize("seed", range(4))
def test_smooth_masks_with_holes_are_exact_and_polygons_do_not_overlap(seed):
    mask = smooth(seed)
    polygons = mask_to_polygons(mask)
    times = np.zeros(mask.shape, int)
    for polygon in polygons:
        assert len(polygon) >= 8 and len(polygon) % 2 == 0
        times += as_pycocotools_reads([polygon], mask.shape)
    assert (times == mask).all()


def test_polygons_are_few_and_follow_the_pixels_edges():
    mask = np.zeros((40, 50), bool)
    mask[5:20, 10:30] = True
    assert mask_to_polygons(mask) == [[10, 5, 30, 5, 30, 20, 10, 20]]
    mask[10:12, 15:18] = False  # a hole: two parts, cut at a row through it
    cut = mask_to_polygons(mask)
    assert len(cut) == 2 and (as_pycocotools_reads(cut, mask.shape) == mask).all()
    corner = np.eye(2, dtype=bool)
    assert sorted(mask_to_polygons(corner)) == [[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]]


def test_pillow_fills_the_same_polygons():
    mask = smooth(3, 60)
    canvas = Image.new("1", (60, 60))
    for polygon in mask_to_polygons(mask):  # Pillow counts pixels, not their corners, and draws the line too
        scaled = [8 * value for value in polygon]
        big = Image.new("1", (480, 480))
        ImageDraw.Draw(big).polygon(scaled, fill=1)
        canvas.paste(1, (0, 0), big.resize((60, 60), Image.Resampling.NEAREST))
    assert (np.asarray(canvas) == mask).all()


def test_empty_full_and_single_pixel_masks():
    assert mask_to_polygons(np.zeros((3, 4))) == [] and mask_to_rle(np.zeros((3, 4)))["counts"] == [12]
    assert mask_to_rle(np.ones((3, 4)))["counts"] == [0, 12]
    assert mask_to_polygons(np.ones((1, 1))) == [[0, 0, 1, 0, 1, 1, 0, 1]]
    assert mask_box(np.zeros((3, 4), bool)) == (0, 0, 0, 0) and mask_box(np.ones((3, 4), bool)) == (0, 0, 4, 3)


def test_wrong_masks_are_named():
    with pytest.raises(ValueError, match=r"mask: got shape \(2, 2, 2\); want \(H, W\)"):
        mask_to_rle(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="to: got 'svg'; want one of polygons, rle, compressed_rle"):
        encode_mask(np.zeros((2, 2)), "svg")
    with pytest.raises(ValueError, match="counts cover 3 pixels; want 2 x 2"):
        rle_to_mask({"counts": [3], "size": [2, 2]})
