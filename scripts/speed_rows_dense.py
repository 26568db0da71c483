"""Rows of `benchmark_speed.py` for dense outputs: `DENSE_ROWS`, to be merged into `speed_rows.ROWS`."""

from collections.abc import Callable

import numpy as np
import torch


def label_map(small: bool):
    """The label of each pixel from the logits of 150 labels."""
    from speed_rows import OURS, Row
    from transformers import SegformerImageProcessor
    from transformers.modeling_outputs import SemanticSegmenterOutput

    from hf_clip_variants.modeling.dense.label_maps import post_process_semantic_segmentation

    side, target = (16, 50) if small else (240, 960)
    outputs = SemanticSegmenterOutput(logits=torch.randn(1, 150, side, side))
    theirs = SegformerImageProcessor().post_process_semantic_segmentation

    return Row(
        f"150 labels, {side} x {side} logits to a map of {target} x {target}; peak target 0.35 of it",
        {
            OURS: lambda: post_process_semantic_segmentation(outputs, [(target, target)])[0],
            "transformers": lambda: theirs(outputs, [(target, target)])[0],
        },
        {"transformers": 1.0},
        error=lambda ours, peer: (ours != peer).double().mean().item(),
        tolerance=0.0,
        peak=True,
    )


def dense_images(small: bool):
    """Images and label maps to tensors of one size."""
    from PIL import Image
    from speed_rows import OURS, Row
    from transformers import SegformerImageProcessor

    from hf_clip_variants.modeling.dense.image_processing_dense import DenseImageProcessor

    height, width, count = (60, 80, 2) if small else (1200, 1600, 4)
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, height // 20, width // 20, 3), dtype=np.uint8)
    images = [Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC) for values in coarse]
    maps = [values[..., 0].repeat(20, 0).repeat(20, 1) for values in coarse]
    size = {"height": 512, "width": 512}
    ours, theirs = DenseImageProcessor(size=size), SegformerImageProcessor(size=size)

    def run(processor):
        batch = processor(images, maps, return_tensors="pt")
        return batch.pixel_values, batch.labels

    def error(ours, peer):
        return max((ours[0] - peer[0]).abs().max().item(), (ours[1] != peer[1]).double().mean().item())

    return Row(
        f"{count} images of {width} x {height} with label maps to 512 x 512",
        {OURS: lambda: run(ours), "transformers": lambda: run(theirs)},
        {"transformers": 1.25},
        error=error,
        peak=True,
    )


DENSE_ROWS: dict[str, Callable] = {"label_map": label_map, "dense_images": dense_images}
