"""The grid that an image encoder sees of each image, stored as a data set: input of models on stored features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.images.image_set import explain
from ..files.atomic_writes import staged_folder
from ..modeling.clip_classifier.image_processing_clip_classifier import CLIPClassifierImageProcessor
from .devices import choose_device
from .finite_answers import check_answers
from .prediction import check_readable_path
from .saved_folders import check_model_folder, load_saved_processor


_STRIDES = (32, 16, 14, 8)  # pixels of a cell, of encoders whose configuration has no patch size
_KNOWN = ("resample", "rescale_factor", "do_rescale", "do_normalize", "image_mean", "image_std", "size", "crop_size")


@dataclass(frozen=True)
class Grid:
    """What an encoder sees of one image.

    Attributes:
        cells: (rows, columns, C), floats.
        class_token: (C,), of an encoder that has one.
    """

    cells: np.ndarray
    class_token: np.ndarray | None = None


@dataclass
class GridEncoder:
    """An image encoder without its pooling, and its processor. Made by `load_grid_encoder`."""

    encode: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
    processor: Any
    device: torch.device
    errors: list[tuple[str, str]] = field(default_factory=list)

    def grid_of(self, path: str) -> tuple[Grid, tuple[int, int]]:
        """The grid of an image file, and the height and width that it was seen at."""
        check_readable_path(path)
        pixels = self.processor([path], return_tensors="pt").pixel_values
        cells, token = self.encode(pixels.to(self.device))
        grid = Grid(cells[0].float().cpu().numpy(), None if token is None else token[0].float().cpu().numpy())
        return grid, tuple(pixels.shape[-2:])


def load_grid_encoder(
    source: str | os.PathLike, size: dict[str, int] | None = None, device: torch.device | str | None = None
) -> GridEncoder:
    """The image encoder of a dual encoder, or a model with `get_grid_features`, in eval mode and frozen.

    A ResNet gives its last map, before the attention pooling; a Vision Transformer all its tokens behind its last
    normalisation, not projected. Positions are resized to the grid of each image.

    Args:
        source: folder or Hub id of what `AutoModel` loads.
        size: how images are resized, as in transformers' processors, without a crop: `{"height": 448, "width": 448}`,
            or `{"shortest_edge": 600, "longest_edge": 1000}`, whose shape stays. None: as the model's processor does.
        device: default: a GPU if there is one.

    Raises:
        ValueError: a model without a grid, a checkpoint that lacks weights.
        OSError: no such folder or Hub repository.
    """
    from transformers import AutoModel

    check_model_folder(source)
    device = choose_device(device)
    model = AutoModel.from_pretrained(source, dtype=torch.float32).to(device).eval().requires_grad_(False)
    processor = load_saved_processor(source)
    processor = getattr(processor, "image_processor", processor)
    if size is not None:
        values = processor.to_dict()
        settings = {name: values[name] for name in _KNOWN if values.get(name) is not None}
        processor = CLIPClassifierImageProcessor(**settings | {"size": size, "do_center_crop": False})

    def encode(pixels: torch.Tensor):
        with torch.inference_mode():
            found = cells_of(model, pixels)
        check_answers(found[0], model, "grid", pixel_values=pixels)
        return found

    return GridEncoder(encode, processor, device)


def cells_of(model: torch.nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B, 3, H, W) -> (B, rows, columns, C), and the class token (B, C) of an encoder that has one.

    Raises:
        ValueError: the model has no grid of image cells.
    """
    if hasattr(model, "get_grid_features"):
        tokens = model.get_grid_features(pixels)
        if tokens.dim() == 4:
            return tokens, None
        vision = model.config.vision_config
    else:
        encoder = getattr(model, "vision_model", model)
        if getattr(encoder, "main_input_name", None) != "pixel_values":
            raise ValueError(f"model: {type(model).__name__} has no image encoder with a grid")
        tokens = encoder(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
        if hasattr(encoder, "post_layernorm"):
            tokens = encoder.post_layernorm(tokens)
        vision = encoder.config
    patch = getattr(vision, "patch_size", None)
    for stride in _STRIDES if patch is None else (patch,):
        rows, columns = (side // stride for side in pixels.shape[-2:])
        before = tokens.shape[1] - rows * columns
        if before in (0, 1):
            cells = tokens[:, before:].unflatten(1, (rows, columns))
            return cells, tokens[:, 0] if before else None
    raise ValueError(f"model: {type(model).__name__} gives {tokens.shape[1]} tokens, which are no grid of an image")


def write_grids(
    encoder: GridEncoder,
    paths: Iterable[str],
    out: str | os.PathLike,
    number_type: str = "float16",
    about: dict[str, Any] | None = None,
    on_image: Callable[[int], None] | None = None,
) -> int:
    """A `datasets` folder of the grids of image files, which `datasets.load_from_disk` reads; returns the number of
    rows. It appears as a whole, at the end.

    Columns: `path`, `rows`, `columns`, `grid` (rows * columns lists of C numbers, row after row), `class_token` (C
    numbers, or none), `height` and `width` that the image was seen at.

    Args:
        encoder: whose `errors` get path and reason of each image that cannot be read; it has no row.
        paths: of image files.
        out: the folder.
        number_type: "float16" or "float32" of what is stored.
        about: goes to the data set's description, as JSON.
        on_image: called with the number of images done.

    Raises:
        ValueError: no image could be read, an unknown type of numbers, numbers too large for float16.
    """
    import json

    import datasets

    if number_type not in ("float16", "float32"):
        raise ValueError(f"number_type: {number_type!r}, expected float16 or float32")
    numbers = datasets.Value(number_type)
    whole = datasets.Value("int32")
    columns = {"path": datasets.Value("string"), "rows": whole, "columns": whole, "height": whole, "width": whole}
    columns |= {"grid": datasets.List(datasets.List(numbers)), "class_token": datasets.List(numbers)}

    def rows() -> Iterator[dict[str, Any]]:
        done = 0
        for path in paths:
            done += 1
            try:
                grid, (height, width) = encoder.grid_of(path)
            except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
                encoder.errors.append((path, explain(error, path)))
                continue
            with np.errstate(over="ignore"):
                cells = grid.cells.reshape(-1, grid.cells.shape[-1]).astype(number_type)
                token = None if grid.class_token is None else grid.class_token.astype(number_type)
            if not np.isfinite(cells).all():
                raise ValueError(f"number_type: numbers of {path} are too large for float16; take float32")
            shape = {"rows": grid.cells.shape[0], "columns": grid.cells.shape[1], "height": height, "width": width}
            yield {"path": path, **shape, "grid": list(cells), "class_token": token}
            if on_image is not None:
                on_image(done)

    target = Path(out)
    with staged_folder(target, keep_others=False) as stage:
        info = {"features": datasets.Features(columns), "description": json.dumps(about or {}, ensure_ascii=False)}
        writer = datasets.arrow_writer.ArrowWriter(
            features=info["features"], path=str(stage / "grids.arrow"), writer_batch_size=32
        )
        count = 0
        for row in rows():
            writer.write(row)
            count += 1
        if not count:
            raise ValueError(f"IMAGES: no image could be read{_first(encoder.errors)}")
        writer.finalize()
        found = datasets.Dataset.from_file(str(stage / "grids.arrow"))
        found.info.description = info["description"]
        found.save_to_disk(str(stage / "whole"))
        del found
        (stage / "grids.arrow").unlink()
        for path in sorted((stage / "whole").iterdir()):
            path.rename(stage / path.name)
        (stage / "whole").rmdir()
    return count


def _first(errors: list[tuple[str, str]]) -> str:
    return f"; the first is {errors[0][0]}: {errors[0][1]}" if errors else ""


__all__ = ["Grid", "GridEncoder", "cells_of", "load_grid_encoder", "write_grids"]
