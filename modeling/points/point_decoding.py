"""Clouds of points from arrays and files: .npy, .h5, and meshes (.ply, .off, .obj, .stl, .glb), with faces or not.

Meshes are read by trimesh, .h5 by h5py; both come with the extra `points` and are imported when they are needed. A
file is read from its bytes alone: no file that it names (materials, textures, buffers) is opened.
"""

import importlib
import io
import os
from typing import NamedTuple

import numpy as np
import torch

from ..decoding.opening import read_regular


MESH_FORMATS = (".ply", ".off", ".obj", ".stl", ".glb")
ARRAY_FORMATS = (".npy", ".h5", ".hdf5")
MAX_POINTS = 10**8  # of a file: 1.2 GB
_COLUMNS = 16  # coordinates, normals, colours; more means that the array is transposed


class Shape(NamedTuple):
    """One object: (N, 3) float32 vertices, and (M, 3) whole numbers of a mesh's triangles, or None."""

    vertices: np.ndarray
    faces: np.ndarray | None = None


def is_shape(source) -> bool:
    """Whether it is a [`Shape`]: also one of another copy of this code, as pipelines and processors of exported models
    may have their own."""
    return isinstance(source, tuple) and hasattr(source, "vertices") and hasattr(source, "faces")


def read_shapes(source, name: str = "points") -> list[Shape]:
    """Objects in an array or a file; several in an .h5 file or an array of three dimensions, else one.

    Args:
        source: (N, 3) array or tensor, whose further columns (normals, colours) are left out; or of clouds of equal
            sizes (B, N, 3); or a path.
        name: what errors call it.

    Raises:
        FileNotFoundError: no such file. ImportError: the extra `points` is missing.
        ValueError: another shape or type, NaN or infinity, no points, a file that cannot be read.
    """
    if isinstance(source, torch.Tensor):
        source = source.detach().float().cpu().numpy()
    if is_shape(source):
        return [Shape(_checked(source.vertices, name)[0], source.faces)]
    if isinstance(source, str | os.PathLike):
        path, suffix = os.fspath(source), os.path.splitext(source)[1].lower()
        if not os.path.exists(path):
            raise FileNotFoundError(f"{name}: {path}: no such file")
        if suffix in MESH_FORMATS:
            return [_read_mesh(path, suffix)]
        if suffix not in ARRAY_FORMATS:
            known = ", ".join(ARRAY_FORMATS + MESH_FORMATS)
            raise ValueError(f"{name}: {path}: files of this name are not known, expected one of {known}")
        source, name = _read_npy(path) if suffix == ".npy" else _read_h5(path), path
    elif isinstance(source, list | tuple):
        try:
            source = np.asarray(source, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: a list that is no array of (points, 3) numbers") from error
    if not isinstance(source, np.ndarray):
        raise ValueError(f"{name}: got {type(source).__name__}, expected an array (points, 3), a tensor or a path")
    return [Shape(cloud) for cloud in _checked(source, name)]


def _checked(array: np.ndarray, name: str) -> np.ndarray:
    """(B, N, 3) float32; ValueError for what is none."""
    shape = array.shape
    if array.ndim not in (2, 3) or not 3 <= shape[-1] <= _COLUMNS or array.dtype.kind not in "fiu":
        hint = "; transpose it" if array.ndim == 2 and shape[0] == 3 else ""
        raise ValueError(f"{name}: got {array.dtype} of shape {list(shape)}, expected numbers (points, 3){hint}")
    if not array.size:
        raise ValueError(f"{name}: got {list(shape)}, expected at least one point")
    if array.size > 3 * MAX_POINTS:
        raise ValueError(f"{name}: got {list(shape)}, expected at most {MAX_POINTS} points")
    array = np.ascontiguousarray(array[..., :3], dtype=np.float64)
    largest = np.abs(array).max()
    if not np.isfinite(largest):
        wrong = np.argwhere(~np.isfinite(array).all(-1))[0].tolist()
        raise ValueError(f"{name}: NaN or infinite coordinates of point {wrong[-1]}, expected finite ones")
    if largest > 1e18:
        raise ValueError(f"{name}: coordinates of up to {largest:.3g}, expected at most 1e18")
    return array.astype(np.float32).reshape(-1, *array.shape[-2:])


def _read_npy(path: str) -> np.ndarray:
    try:
        return np.load(io.BytesIO(read_regular(path)), allow_pickle=False)
    except Exception as error:  # numpy raises what Python's parser meets in a damaged header, too
        raise ValueError(f"{path}: cannot be read as .npy ({type(error).__name__}: {error})") from error


def _read_h5(path: str) -> np.ndarray:
    """The data set "data" of a file, as in ModelNet40's and ScanObjectNN's, or its only one of (…, points, 3)."""
    h5py = _optional("h5py", "Reading .h5 files")
    try:
        with h5py.File(io.BytesIO(read_regular(path)), "r") as file:
            fitting = [key for key, one in file.items() if getattr(one, "ndim", 0) in (2, 3) and one.shape[-1] >= 3]
            key = "data" if "data" in fitting else fitting[0] if len(fitting) == 1 else None
            if key is None:
                raise ValueError(f'no data set "data" of (clouds, points, 3); there are {sorted(file)[:5]}')
            if file[key].size > 3 * MAX_POINTS:
                raise ValueError(f"{file[key].shape} numbers, expected at most {MAX_POINTS} points")
            return file[key][()]
    except Exception as error:  # h5py raises OverflowError and others for damaged numbers
        raise ValueError(f"{path}: cannot be read as .h5 ({type(error).__name__}: {error})") from error


def _read_mesh(path: str, suffix: str) -> Shape:
    trimesh, content = _optional("trimesh", f"Reading {suffix} files"), read_regular(path)
    try:
        scene = trimesh.load_scene(io.BytesIO(content), file_type=suffix[1:], process=False, resolver=None)
        parts = scene.dump() if hasattr(scene, "dump") else [scene]
        vertices = [np.asarray(part.vertices, dtype=np.float64).reshape(-1, 3) for part in parts]
        faces, count = [], 0
        for part, own in zip(parts, vertices, strict=True):
            if len(getattr(part, "faces", ())):
                faces.append(np.asarray(part.faces, dtype=np.int64).reshape(-1, 3) + count)
            count += len(own)
    except Exception as error:  # trimesh raises whatever its readers meet
        raise ValueError(f"{path}: cannot be read as {suffix} ({type(error).__name__}: {error})") from error
    if not count:
        raise ValueError(f"{path}: no vertices in it")
    found = _checked(np.concatenate(vertices), path)[0]
    triangles = np.concatenate(faces) if faces else None
    if triangles is not None and not (0 <= triangles.min() and triangles.max() < len(found)):
        raise ValueError(f"{path}: a triangle of vertex {triangles.max()}, there are {len(found)}")
    return Shape(found, triangles)


def _optional(module: str, purpose: str):
    # Not an import statement: transformers asks for every package that travelling code imports, when it loads it.
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ImportError(f'{purpose} needs {module}: pip install "hf-clip-variants[points]"', name=module) from error


__all__ = ["ARRAY_FORMATS", "MAX_POINTS", "MESH_FORMATS", "Shape", "is_shape", "read_shapes"]
