"""Attacks on configurations: every field of every kind of `config.json`, `adapter_config.json` and
`processor_config.json` with values that somebody may write there by mistake or on purpose.

What is right: the file loads and the answers are finite, or ValueError or OSError names the field. Both in ten seconds
and without a gigabyte.
"""

import copy
import functools
import json
import math
import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import adapter_contract
import numpy as np
import torch
from adapter_models import tiny_classifier
from attack_cases import WRONG, Case, waited_for_processor
from tiny import EMOJI_CLIP, tiny_pixels
from tiny_families import FAMILIES, tiny_dual_encoder, tiny_family_inputs, tiny_family_pixels

from hf_clip_variants import CLIPClassifier
from hf_clip_variants.adapters import (
    CLIPAdapterConfig,
    CoCoOpConfig,
    CoOpConfig,
    IVLPConfig,
    LinearHeadConfig,
    MaPLeConfig,
    TipAdapterConfig,
    VPTConfig,
    load_adapter,
)
from hf_clip_variants.evaluation.prediction import load_processor
from hf_clip_variants.evaluation.saved_folders import load_saved_processor


KIND = "configurations"
# Of each method one adapter, with all optional parts that take a field.
ADAPTERS = {
    f"adapter {method}": adapter_contract.Case(method, config, {})
    for method, config in (
        ("clip_adapter", lambda: CLIPAdapterConfig(modality="both", learnable_ratio=True)),
        ("cocoop", lambda: CoCoOpConfig(meta_reduction=4)),
        ("coop", lambda: CoOpConfig(num_context_tokens=3, class_token_position="middle", class_specific=True)),
        ("ivlp", lambda: IVLPConfig(num_vision_tokens=3)),
        ("linear_head", lambda: LinearHeadConfig(gamma=2.0, trainable=True)),
        ("maple", lambda: MaPLeConfig(prompt_depth=2)),
        ("tip_adapter", TipAdapterConfig),
        ("vpt", lambda: VPTConfig(num_prompt_tokens=3, prompt_depth=2, projection_dim=7)),
    )
}
SECONDS, KILOBYTES = 10, 1_000_000  # that one case may take

_HUGE = (10**9, 2**31, 10**18, 10**30, 99_999, 500_000)
_NUMBERS = (0, -1, -7, 1, 2, 3, 5, 7, 1000, *_HUGE)
_FLOATS = (math.nan, math.inf, -math.inf, 1e308, -1e308, 1e39, 0.0, -1.0, 1e-320, 0.5, 2.5, 1e6)
_TEXTS = ("", "gelu", "evil", "os.system", "../../x", "torch", "auto", "x" * 10_000, "é\u0000", "float99", "Module")
_OTHERS = (None, True, False, [], {}, [1], ["a"], [[]], {"a": 1}, {"a": {}}, [None], [math.nan], [10**9], "1", "8")
# What is written from time to time whatever the field holds: fields that transformers knows without being told.
_EXTRA = {
    "num_labels": (10**9, 10**18, 0, -1, 3, "five", math.inf, None),
    "id2label": ({}, {"a": "b"}, {"0": 1}, {"0": "a", "5": "b"}, [1, 2], {"0": "a", "00": "b"}, "cat"),
    "label2id": ([], "x", {"a": []}, 5),
    "dtype": ("float99", "nn", "os", 5, [], "Tensor"),
    "problem_type": ("evil", 5, "regression"),
    "to_dict": (5, "x"),
    "class_names": (["a"], 5),
    "model_type": ("evil", 5, "bert", "os.path"),
    "return_dict": ("x", 5),
    "architectures": (5, "x", [5]),
}


def values_for(good: object, draw: random.Random) -> object:
    """A value to put in the place of `good`: of its type and out of any range, or of another type."""
    if draw.random() < 0.25:
        return draw.choice(_OTHERS)
    if isinstance(good, bool) or good is None or isinstance(good, (list, dict)):
        return draw.choice((*_OTHERS, *_NUMBERS, *_FLOATS, *_TEXTS))
    if isinstance(good, int):
        return draw.choice((*_NUMBERS, *_FLOATS, good + 1, good * 2, -good, float(good), str(good)))
    if isinstance(good, float):
        return draw.choice((*_FLOATS, *_NUMBERS, str(good)))
    return draw.choice((*_TEXTS, *_NUMBERS))


def places(values: dict) -> list[tuple[str, ...]]:
    """The paths of all fields of nested dictionaries, the dictionaries themselves included."""
    found = []
    for name, value in values.items():
        found.append((name,))
        if isinstance(value, dict) and name not in ("id2label", "label2id", "templates"):
            found += [(name, *rest) for rest in places(value)]
    return found


def changed(values: dict, place: tuple[str, ...], value: object) -> dict:
    values = copy.deepcopy(values)
    inner = values
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return values


def _attack(values: dict, draw: random.Random) -> tuple[tuple[str, ...], object]:
    if draw.random() < 0.15:
        name = draw.choice(sorted(_EXTRA))
        parts = [(), *((n,) for n, value in values.items() if n.endswith("_config") and isinstance(value, dict))]
        return (*draw.choice(parts), name), draw.choice(_EXTRA[name])
    place = draw.choice(places(values))
    good = values
    for name in place:
        good = good[name]
    return place, values_for(good, draw)


def _bounded(run: Callable[[], object]) -> object:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic() - waited_for_processor()
    error = None
    try:
        answer = run()
    except Exception as raised:
        error = raised
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seconds = time.monotonic() - waited_for_processor() - start
    if seconds > SECONDS or grown > KILOBYTES:
        return f"{WRONG}took {seconds:.0f} s and {grown / 1e6:.1f} GB"
    if error is not None:
        raise error
    return answer


def _finite(**tensors: torch.Tensor) -> object:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            return f"{WRONG}{name} are not finite"
    return True


# ---- what is loaded: (folder of a good one, name of the file, its loader), made once in a process


@functools.cache
def _model_folder(name: str, folder: Path):
    from model_contract import CASES

    case = CASES[name]
    case.make().save_pretrained(folder / "good" / name)
    return folder / "good" / name


def _model_loader(name: str):
    from model_contract import CASES

    case = CASES[name]

    def load(path: Path):
        model = case.row.load(case.part).from_pretrained(path)
        with torch.no_grad():
            found = model.eval()(**case.inputs(2))
        return _finite(**{case.output: found[case.output]})

    return load


@functools.cache
def _family_folder(name: str, folder: Path):
    tiny_dual_encoder(name).save_pretrained(folder / "good" / name)
    return folder / "good" / name


def _family_loader(name: str):
    def load(path: Path):
        model = CLIPClassifier.from_pretrained(path)
        with torch.no_grad():
            images = model.get_image_features(**tiny_family_pixels(name, 2)).pooler_output
            texts = model.clip.get_text_features(**tiny_family_inputs(name)).pooler_output
        return _finite(image_features=images, text_features=texts)

    return load


@functools.cache
def _adapter_folder(name: str, folder: Path):
    ADAPTERS[name].model().save_pretrained(folder / "good" / name)
    return folder / "good" / name


def _adapter_loader(name: str):
    def load(path: Path):
        model = load_adapter(path, tiny_classifier())
        with torch.no_grad():
            return _finite(logits=model(pixel_values=tiny_pixels(2)).logits)

    return load


@functools.cache
def _processor_folder(name: str, folder: Path):
    from model_contract import CASES

    case = CASES.get(name.partition(" ")[2])
    processor = load_processor(EMOJI_CLIP) if case is None else case.processor()
    processor.save_pretrained(folder / "good" / name)
    return folder / "good" / name


def _processor_loader(name: str):
    from model_contract import CASES

    case = CASES.get(name.partition(" ")[2])
    own = None if case is None else case.row.load("processor")
    load_one = load_processor if own is None else lambda path: load_saved_processor(path, own)

    def load(path: Path):
        images = [tiny_image(50, 40), tiny_image(70, 64)]
        processor = load_one(path)
        if case is not None and case.row.point_processor:
            return _finite(points=processor(points=np.linspace(0, 1, 90).reshape(30, 3), return_tensors="pt").points)
        if hasattr(processor, "video_processor"):
            video = np.stack([np.asarray(images[0].resize((40, 30)))] * 3)
            return _finite(pixels=processor.video_processor([video], return_tensors="pt")["pixel_values_videos"])
        return _finite(pixel_values=processor.image_processor(images, return_tensors="pt").pixel_values)

    return load


def tiny_image(width: int, height: int):
    from PIL import Image

    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def targets() -> dict[str, tuple]:
    """Name -> (folder of a good one, name of the file that is attacked, loader)."""
    from model_contract import CASES

    found = {name: (_model_folder, "config.json", _model_loader(name)) for name in CASES}
    found |= {f"{name}": (_family_folder, "config.json", _family_loader(name)) for name in FAMILIES}
    adapters = {name: (_adapter_folder, "adapter_config.json", _adapter_loader(name)) for name in ADAPTERS}
    own = [f"processor {name}" for name, case in CASES.items() if case.row.processor and case.processor]
    processors = {
        name: (_processor_folder, "processor_config.json", _processor_loader(name)) for name in ("processor", *own)
    }
    return found | adapters | processors


def write_attacked(good: Path, target: Path, file: str, values: object) -> Path:
    """A folder with the files of `good` (links), and `file` with other values."""
    target.mkdir(parents=True, exist_ok=True)
    for path in good.iterdir():
        if path.name != file and not (target / path.name).exists():
            (shutil.copytree if path.is_dir() else os.link)(path, target / path.name)
    (target / file).unlink(missing_ok=True)
    (target / file).write_text(json.dumps(values), encoding="utf-8")
    return target


def cases(seed: int, folder: Path) -> Iterator[Case]:
    draw = random.Random(seed)
    known = targets()
    order: list[str] = []
    number = 0
    while True:
        if not order:
            order = sorted(known)
            draw.shuffle(order)
        name = order.pop()
        make, file, load = known[name]
        good = make(name, folder)
        values = json.loads((good / file).read_text(encoding="utf-8"))
        place, value = _attack(values, draw)
        number += 1
        shown = repr(value)
        title = f"{name}: {'.'.join(place)} = {shown if len(shown) < 60 else shown[:57] + '...'}"

        attacked = changed(values, place, value)

        def run(good=good, file=file, load=load, attacked=attacked, number=number):
            path = write_attacked(good, folder / f"attacked-{number}", file, attacked)
            return _bounded(lambda: load(path))

        named = place[-1:] if len(place) == 1 or place[-2].endswith("_config") else place
        yield Case(KIND, title, run, named)


__all__ = ["KIND", "cases"]
