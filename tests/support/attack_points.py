"""Attacks on PointCLIP: its forward, its projections and parts, clouds and files of them, the pipeline.

What is right: pictures and logits of all clouds, finite, and each cloud's are those that it has alone; the sparse
projection is that of the plain way; a file's cloud is the one that was written; or ValueError names the argument, the
weight, the cloud or the file.
"""

import functools
import io
import itertools
import math
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from attack_cases import WRONG, Case
from attack_prompts import BAD, ODD, _ways, _weight
from pointclip_runs import clouds, cube, point_processor, pointclip_batch, pointclip_model, set_model
from tiny import CLASS_NAMES

from hf_clip_variants.modeling.pointclip.projection_pointclip import sparse_depth_maps
from hf_clip_variants.modeling.pointclip.projection_reference_pointclip import sparse_depth_maps_reference
from hf_clip_variants.modeling.pointclip.views_pointclip import VIEW_SETS
from hf_clip_variants.modeling.points.point_decoding import ARRAY_FORMATS, MESH_FORMATS, read_shapes
from hf_clip_variants.modeling.points.point_processing import PointCloudProcessor
from hf_clip_variants.modeling.points.zero_shot_point_cloud_classification import (
    ZeroShotPointCloudClassificationPipeline,
)


KIND = "points"
PROJECTIONS = ("realistic", "sparse")

Attack = tuple[str, Callable[[], object], tuple[str, ...]]


def _shown(value: object) -> str:
    shown = f"{type(value).__name__} {tuple(value.shape)} {value.dtype}" if hasattr(value, "dtype") else f"{value!r}"
    return " ".join(shown.split())[:70]


def _cloud(rng: random.Random) -> tuple[str, torch.Tensor]:
    """(N, 3), often without an extent in some direction."""
    count, kind = (
        rng.choice([1, 2, 3, 60, 500]),
        rng.choice(["ball", "equal", "line", "plane", "far", "small", "large"]),
    )
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(rng.randrange(10**6)))
    changes = {
        "equal": lambda: points[:1].expand(count, 3).clone(),
        "line": lambda: points * torch.eye(3)[rng.randrange(3)],
        "plane": lambda: points * (1 - torch.eye(3)[rng.randrange(3)]),
        "far": lambda: points + 1e6,
        "small": lambda: points * 1e-30,
        "large": lambda: points * 1e17,
    }
    return f"{kind} of {count}", changes[kind]() if kind in changes else points


# ---- model


def forward(rng: random.Random, folder: Path) -> Attack:
    """One argument, or one weight."""
    model = set_model(projection=rng.choice(PROJECTIONS))
    given = pointclip_batch(2)
    named: tuple[str, ...]
    if rng.random() < 0.25:
        model, weight, name, value = _weight(model, rng)
        named = (weight, "overflow", "not finite", "numbers")
    else:
        if rng.random() < 0.2:
            with torch.no_grad():
                given["view_features"] = model.get_point_features(
                    given.pop("points"), given.pop("points_mask")
                ).pooler_output
        name = rng.choice(sorted(given))
        ways = (
            _ways(given[name], rng) if given[name].dim() > 1 else (*_ways(given[name][:, None], rng), given[name] + 9)
        )
        given[name] = value = rng.choice((*ODD, None, *ways))
        named = (name, *(["points", "points_mask", "labels"] if name in ("points", "view_features") else []))
        named += ("view_features",) if name == "points" else ("overflow",) if name == "view_features" else ()

    def run():
        with torch.inference_mode():
            found = model(**given)
        rows = given["view_features"] if "view_features" in given else given["points"]
        if list(found.logits.shape) != [len(rows), len(CLASS_NAMES)]:
            return f"{WRONG}logits {list(found.logits.shape)}"
        tensors = (found.logits, found.loss, found.view_features, found.point_embeds)
        return True if all(one is None or one.isfinite().all() for one in tensors) else f"{WRONG}not finite"

    return f"forward, {name} = {_shown(value)}", run, named


def alone(rng: random.Random, folder: Path) -> Attack:
    """A cloud of any form beside others has the picture that it has alone, in any order; what stands in place of
    points that are not there is nothing."""
    projection = rng.choice(PROJECTIONS)
    model, (kind, first) = pointclip_model(projection=projection), _cloud(rng)
    if projection == "sparse":
        first = first / first.norm(dim=-1).max().clamp_min(1)
    others = clouds(2, 80, seed=rng.randrange(99))
    count = max(len(first), 80)
    points, mask = torch.full((3, count, 3), rng.choice([0.0, 7.0, -1e6])), torch.zeros(3, count, dtype=torch.long)
    for row, one in enumerate([first, *others]):
        points[row, : len(one)], mask[row, : len(one)] = one, 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(rng.randrange(99)))

    def run():
        own = model.project_points(first[None])
        if not own.isfinite().all():
            return f"{WRONG}not finite"
        if projection == "realistic" and not (own.min() >= 0 and own.max() <= 1):
            return f"{WRONG}pictures from {own.min()} to {own.max()}"
        wrong = {
            "beside others": model.project_points(points, mask)[:1],
            "in another order": model.project_points(points[:, order], mask[:, order])[:1],
            "with a gradient": model.project_points(first[None].clone().requires_grad_()).detach(),
        }
        wrong = {name: float((one - own).abs().max()) for name, one in wrong.items()}
        wrong = {name: one for name, one in wrong.items() if not one < 1e-4}
        return f"{WRONG}another picture {wrong}" if wrong else True

    return f"alone, {projection}, {kind}", run, ("points",)


def plain(rng: random.Random, folder: Path) -> Attack:
    """The fast projection is the plain one."""
    points = torch.stack([clouds(1, 50, seed=rng.randrange(999))[0] for _ in range(rng.randint(1, 3))])
    points = points * rng.choice([0.1, 1.0, 1.0, 3.0])
    points[:, : rng.randrange(40)] = points[:, 49:]  # equal ones
    size, distance = rng.choice([8, 33, 64, 224]), rng.choice([0.5, 1.4, 1.6, 5.0])
    views = VIEW_SETS[rng.choice(["sparse_6", "sparse_10"])].matrices()

    def run():
        found = sparse_depth_maps(points, None, views, size, distance)
        expected = sparse_depth_maps_reference(points, views, size, distance)
        share = ((found - expected).abs() > 1e-4 * distance).float().sum() / (expected > 0).sum().clamp_min(1)
        return True if float(share) < 0.02 else f"{WRONG}{float(share):.3f} of pixels"  # some are at a border

    return f"plain, {len(points)} of {size} pixels, distance {distance}", run, ("points",)


def parts(rng: random.Random, folder: Path) -> Attack:
    model, (kind, first) = pointclip_model(), _cloud(rng)
    texts = torch.randn(rng.randint(1, 4), 24, generator=torch.Generator().manual_seed(0))
    given = {"points": first[None], "text_features": texts, "points_mask": None}
    given["transposed_reading"] = rng.random() < 0.2
    name, value = "points", first
    if rng.random() < 0.6:
        name = rng.choice(["points", "text_features", "points_mask"])
        sound = torch.ones(given["points"].shape[:2], dtype=torch.long) if name == "points_mask" else given[name]
        given[name] = value = rng.choice((*ODD, None, *_ways(sound, rng)))

    def run():
        found = model.segment_parts(**given)
        if list(found.shape) != [*given["points"].shape[:2], len(given["text_features"])]:
            return f"{WRONG}logits {list(found.shape)}"
        return True if found.isfinite().all() else f"{WRONG}not finite"

    return f"parts, {kind}, {name} = {_shown(value)}", run, (name, "points")


# ---- files


def _mesh(suffix: str, points: np.ndarray, faces: np.ndarray | None, rng: random.Random) -> bytes:
    """A file as other programs write it; plain text, or numbers in PLY and STL."""
    faces = np.zeros((0, 3), dtype=int) if faces is None else faces
    if suffix == ".off":
        lines = [f"OFF\n{len(points)} {len(faces)} 0", *(" ".join(map(repr, map(float, one))) for one in points)]
        return "\n".join([*lines, *(f"3 {a} {b} {c}" for a, b, c in faces)]).encode()
    if suffix == ".obj":
        lines = ["v " + " ".join(map(repr, map(float, one))) for one in points]
        return "\n".join([*lines, *(f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces)]).encode() + b"\n"
    if suffix == ".stl":
        corners = points[faces].astype("<f4")
        rows = b"".join(bytes(12) + one.tobytes() + b"\0\0" for one in corners)
        return bytes(80) + struct.pack("<I", len(faces)) + rows
    binary = rng.random() < 0.5
    head = f"ply\nformat {'binary_little_endian' if binary else 'ascii'} 1.0\nelement vertex {len(points)}\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz")
    if len(faces):
        head += f"element face {len(faces)}\nproperty list uchar int vertex_indices\n"
    head = head.encode() + b"end_header\n"
    if binary:
        body = points.astype("<f4").tobytes()
        return head + body + b"".join(b"\3" + one.astype("<i4").tobytes() for one in faces)
    lines = [*(" ".join(map(repr, map(float, one))) for one in points), *(f"3 {a} {b} {c}" for a, b, c in faces)]
    return head + "\n".join(lines).encode() + b"\n"


def _array(suffix: str, points: np.ndarray, rng: random.Random) -> bytes:
    file = io.BytesIO()
    points = points.astype(rng.choice([np.float32, np.float64])) if rng.random() < 0.8 else np.c_[points, points]
    if suffix == ".npy":
        np.save(file, points)
        return file.getvalue()
    import h5py

    with h5py.File(file, "w") as opened:
        opened["data"] = points[None] if rng.random() < 0.5 else points
        opened["label"] = np.zeros(1)
    return file.getvalue()


def _damaged(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    change, changed = rng.choice(["bits", "cut", "numbers", "spliced", "words", "none"]), bytearray(content)
    if change == "none":
        return change, rng.choice([b"", b"\0", b"x" * 100, rng.randbytes(300)])
    if change == "cut":
        return change, content[: rng.randrange(len(content))]
    if change == "spliced":
        return change, content[: rng.randrange(len(content))] + rng.randbytes(rng.randrange(200))
    for _ in range(rng.choice([1, 2, 8])):
        spot = rng.randrange(min(len(changed), rng.choice([120, len(changed)])))
        if change == "bits":
            changed[spot] ^= 1 << rng.randrange(8)
        elif change == "numbers":
            changed[spot : spot + 4] = struct.pack("<I", rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 0x7FC00000]))
        else:
            word = rng.choice(
                [b"nan", b"inf", b"-1", b"999999999", b"1e300", b" ", b"\n", b"end_header\n", b"f 1 2 9\n"]
            )
            changed[spot : spot + len(word)] = word
    return change, bytes(changed)


def files(rng: random.Random, folder: Path) -> Attack:
    """A file comes back as it was; a damaged one gives finite points, or its name is said."""
    suffix = rng.choice([one for one in (*ARRAY_FORMATS, *MESH_FORMATS) if one != ".glb"])
    points, faces = cube()
    points = points * rng.choice([1.0, 1e-3, 1e4]) + np.float32(rng.choice([0.0, 5.0]))
    faces = None if rng.random() < 0.3 and suffix not in (".stl", ".obj") or suffix in ARRAY_FORMATS else faces
    content = _array(suffix, points, rng) if suffix in ARRAY_FORMATS else _mesh(suffix, points, faces, rng)
    change = "as it was"
    if rng.random() < 0.75:
        change, content = _damaged(content, rng)
    file = folder / f"shape{suffix}"
    file.write_bytes(content)
    processor = PointCloudProcessor(num_points=64, num_sampled=64)

    def run():
        shapes = read_shapes(file)
        found = processor(file, return_tensors="pt")["points"]
        if not found.isfinite().all() or found.norm(dim=-1).max() > 1 + 1e-4:
            return f"{WRONG}points up to {found.abs().max()}"
        if change != "as it was":
            return True
        (shape,) = shapes
        rows = {tuple(round(float(x) / 1e-4 / points.max()) for x in one) for one in shape.vertices}
        wanted = {tuple(round(float(x) / 1e-4 / points.max()) for x in one) for one in points}
        if rows != wanted or (shape.faces is None) != (faces is None):
            return f"{WRONG}{len(rows)} vertices of {len(wanted)}"
        return True

    return f"file, {suffix}, {change}, {'no ' if faces is None else ''}faces", run, (file.name,)


def arrays(rng: random.Random, folder: Path) -> Attack:
    """Clouds that are no files, and settings."""
    kind, cloud = _cloud(rng)
    sound = cloud.numpy()
    spot = sound.copy()
    spot[rng.randrange(len(spot)), rng.randrange(3)] = rng.choice(BAD)
    ways = (sound, spot, sound.T, sound[:, :2], sound[:0], sound[0], sound[None], sound.astype(object), sound.tolist())
    ways += (np.c_[sound, sound], sound.astype(str), sound > 0, sound.astype(np.float16), torch.from_numpy(sound), {})
    ways += ([sound, sound[:1]], [sound, None], [], [[]], (sound,), "no such.ply", "x", b"x", 7, None, [[1, 2, 3]])
    value = rng.choice(ways)
    known = {"num_points": [1, 10, None, 0, -1, "x", 2.0, 10**9, True], "seed": [0, -1, 1.5, "x"]}
    known |= {"point_rule": ["farthest", "first", "x", None], "up_axis": ["x", "y", "z", "w", 1]}
    known |= {"do_normalize": [True, False, "x"], "num_sampled": [1, 0, "x"], "other": [1]}
    name = rng.choice(sorted(known))
    options = {name: rng.choice(known[name])} if rng.random() < 0.5 else {}

    def run():
        try:
            found = point_processor().feature_extractor(value, return_tensors="pt", **options)
        except TypeError as error:  # of unknown settings, as Python has it
            if "other" in options and "other: unknown" in str(error):
                raise ValueError(str(error)) from error
            raise
        if not found["points"].isfinite().all() or found["points"].shape[:2] != found["points_mask"].shape:
            return f"{WRONG}points {list(found['points'].shape)}"
        if not found["points_mask"].any(1).all():
            return f"{WRONG}a cloud without points"
        limit = found["points"].norm(dim=-1).max()
        if options.get("do_normalize", True) is True and limit > 1 + 1e-4:
            return f"{WRONG}a radius of {limit}"
        return True

    return f"array, {kind}, {_shown(value)}, {options}", run, ("points", *options)


# ---- pipeline


@functools.cache
def _pipeline() -> ZeroShotPointCloudClassificationPipeline:
    return ZeroShotPointCloudClassificationPipeline(model=pointclip_model(), processor=point_processor())


def labels(rng: random.Random, folder: Path) -> Attack:
    """Labels, templates and options of the pipeline."""
    (kind, first), classify = _cloud(rng), _pipeline()
    given: dict = {"candidate_labels": ["a chair", "lamp"]}
    name = rng.choice(["candidate_labels", "hypothesis_template", "top_k", "num_points", "batch_size", "nothing"])
    sentences = ["{}", "a", "", "{} {}", "{0}", "{x}", [], ["a {}", "b {}"], {"a chair": ["x"]}, 3, None]
    named = ["chair, lamp", "", [], ["x", "x"], ["x", " "], [1], None, ["{}"], ["日本", "a"], {"x": 1}]
    ways = {"candidate_labels": named, "hypothesis_template": sentences, "top_k": [1, 2, 9, 0, -1, "x", 1.5, True]}
    ways |= {"num_points": [1, 5, None, 0, "x"], "batch_size": [1, 2, 0, "x"]}
    if name != "nothing":
        given[name] = rng.choice(ways[name])

    def run():
        found = classify([first.numpy(), clouds(1, 30)[0]], **given)
        count = len(given["candidate_labels"])
        count = len(given["candidate_labels"].split(",")) if isinstance(given["candidate_labels"], str) else count
        top = given.get("top_k") or count
        if [len(one) for one in found] != [min(count, top)] * 2:
            return f"{WRONG}{[len(one) for one in found]} labels"
        for one in found:
            scores = [each["score"] for each in one]
            if scores != sorted(scores, reverse=True) or not all(math.isfinite(score) for score in scores):
                return f"{WRONG}{scores}"
            if len(one) == count and abs(sum(scores) - 1) > 1e-4:
                return f"{WRONG}they add up to {sum(scores)}"
        return True

    return f"pipeline, {kind}, {name} = {_shown(given.get(name))}", run, (name, "points", "template", "label")


ATTACKS = (forward, files, alone, arrays, parts, files, forward, plain, labels, files)


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """For ever, every attack in turn."""
    rng = random.Random(f"{KIND} {seed}")
    for count in itertools.count():
        place = folder / f"points-{seed}-{count}"
        place.mkdir(parents=True, exist_ok=True)
        name, run, named = ATTACKS[count % len(ATTACKS)](random.Random(rng.random()), place)
        yield Case(KIND, f"{count} {name}", run, named)


__all__ = ["KIND", "cases"]
