"""Clouds and meshes in any form to batches of points."""

import os

import numpy as np
import torch
from transformers import BatchFeature, FeatureExtractionMixin

from .point_decoding import Shape, is_shape, read_shapes
from .point_sampling import UP_AXES, farthest_points, in_unit_sphere, sample_surface, with_y_up


RULES = ("first", "farthest")
_LARGEST = 10**7


class PointCloudProcessor(FeatureExtractionMixin):
    r"""
    Reads clouds of points and meshes, turns them to +y up, puts them into the unit sphere and takes some points.

    One object is an array or tensor (N, 3), whose further columns are left out, or a path: `.npy`, `.h5` (all clouds
    in it), or a mesh (`.ply`, `.off`, `.obj`, `.stl`, `.glb`; needs the extra `points`). A list of these, or an array
    (B, N, 3), is a batch. Meshes with faces are sampled by area; those without are clouds of their vertices.

    Args:
        num_points (`int`, *optional*, defaults to 1024): Points of each object; None: all. Fewer are padded, with a
            mask.
        point_rule (`str`, defaults to `"first"`): which of more points: the first ones, as published, which is right
            where the order is random; `"farthest"`: spread over the object, slower.
        num_sampled (`int`, defaults to 2048): points on a mesh, of which `num_points` are taken; as many as the
            published clouds have.
        up_axis (`str`, defaults to `"y"`): which of the objects' axes points up. `"z"` for scans and most CAD files.
            Files do not say it.
        do_normalize (`bool`, defaults to `True`): into the unit sphere; False: they are there already.
        seed (`int`, defaults to 0): of points on meshes.

    `processor(points, return_tensors="pt", **changes)` returns `points` (B, N, 3) float32 and `points_mask` (B, N).

    Raises:
        ValueError: no objects or points, a wrong shape or type, NaN, a file that cannot be read; the message names the
            object, such as `points[7]`.
        FileNotFoundError: no such file. ImportError: the extra `points` is missing.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_clip_variants.modeling.points.point_processing import PointCloudProcessor

    >>> processor = PointCloudProcessor(num_points=100)
    >>> batch = processor([np.random.rand(500, 3), np.random.rand(30, 6)], return_tensors="pt")
    >>> batch["points"].shape, batch["points_mask"].sum(1)
    (torch.Size([2, 100, 3]), tensor([100,  30]))
    ```
    """

    model_input_names = ["points", "points_mask"]

    def __init__(
        self,
        num_points: int | None = 1024,
        point_rule: str = "first",
        num_sampled: int = 2048,
        up_axis: str = "y",
        do_normalize: bool = True,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_points = num_points
        self.point_rule = point_rule
        self.num_sampled = num_sampled
        self.up_axis = up_axis
        self.do_normalize = do_normalize
        self.seed = seed
        _check_settings(self._settings())

    def _settings(self) -> dict:
        names = ("num_points", "point_rule", "num_sampled", "up_axis", "do_normalize", "seed")
        return {name: getattr(self, name) for name in names}

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of what a call may change."""
        return tuple(self._settings())

    def __call__(self, points, return_tensors: str | None = None, **changes) -> BatchFeature:
        unknown = sorted(set(changes) - set(self._settings()))
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: unknown, expected some of {', '.join(self._settings())}")
        settings = self._settings() | changes
        _check_settings(settings)
        clouds = [
            self._prepared(shape, settings)
            for index, source in enumerate(list_clouds(points))
            for shape in read_shapes(source, f"points[{index}]")
        ]
        if not clouds:
            raise ValueError("points: no objects, expected at least one")
        longest = max(map(len, clouds))
        batch = np.zeros((len(clouds), longest, 3), dtype=np.float32)
        mask = np.zeros((len(clouds), longest), dtype=np.int64)
        for index, cloud in enumerate(clouds):
            batch[index, : len(cloud)], mask[index, : len(cloud)] = cloud, 1
        return BatchFeature({"points": batch, "points_mask": mask}, tensor_type=return_tensors)

    @staticmethod
    def _prepared(shape: Shape, settings: dict) -> np.ndarray:
        cloud = shape.vertices
        if shape.faces is not None:
            # A million points are asked for: as many are there to be taken.
            count = max(settings["num_sampled"], settings["num_points"] or 0)
            cloud = sample_surface(cloud, shape.faces, count, settings["seed"])
        cloud = with_y_up(cloud, settings["up_axis"])
        if settings["do_normalize"]:
            cloud = in_unit_sphere(cloud)
        count = settings["num_points"]
        if count is None or len(cloud) <= count:
            return cloud
        return cloud[:count] if settings["point_rule"] == "first" else farthest_points(cloud, count)


def list_clouds(points) -> list:
    """One object for each of a batch; an array of three dimensions and an .h5 file stay one thing."""
    if points is None:
        raise ValueError("points: got None, expected clouds of points or files")
    if isinstance(points, str | os.PathLike | np.ndarray | torch.Tensor) or is_shape(points):
        return [points]
    if not isinstance(points, list | tuple):
        raise ValueError(f"points: got {type(points).__name__}, expected an array, a tensor, a path or a list of them")
    if points and isinstance(points[0], list | tuple) and points[0] and isinstance(points[0][0], int | float):
        return [points]  # one cloud as a list of rows
    return list(points)


def _check_settings(values: dict) -> None:
    for name in ("num_points", "num_sampled"):
        value = values[name]
        optional = name == "num_points"
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
            raise ValueError(f"{name}: {value!r}, expected a number in 1..{_LARGEST}{', or None' if optional else ''}")
    for name, known in (("point_rule", RULES), ("up_axis", UP_AXES)):
        if values[name] not in known:
            raise ValueError(f"{name}: {values[name]!r}, expected one of {', '.join(known)}")
    if isinstance(values["seed"], bool) or not isinstance(values["seed"], int) or values["seed"] < 0:
        raise ValueError(f"seed: {values['seed']!r}, expected a whole number of at least 0")


__all__ = ["RULES", "PointCloudProcessor", "list_clouds"]
