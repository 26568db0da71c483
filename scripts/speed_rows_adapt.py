"""Rows of `benchmark_speed.py` for whole commands: files in, results out, with everything in between.

`adapt_…`: three methods are fitted to the same images for the same number of epochs and tested on the same images,
with the published optimisers, schedules, batch sizes and augmentations; the peers are in `speed_peers_adapt.py`. Ours
does more than both: it writes and calibrates adapters, validates CLIP-Adapter and CoOp, and makes the report.

`adapt_500_int8`, `adapt_500_bf16`: the same work with `--precision int8` or `bf16`, which are not exact; the official
trainers run CLIP in 16 bits, too, on a GPU. `adapt_500_own`: the same images of emoji for all, but ours
with the recipe that `adapt` chooses by itself for a model as small as the embedded one (one plain view of each image,
more epochs), which was found on other emoji; the peers with the published one. Its "error" is how much less accurate
ours is than the peer.

Each case is a process of its own, and its whole CPU time counts, start included. Where it goes, is told by
`speed_parts_adapt.py`.
"""

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from speed_peers_adapt import METHODS, RATIO, SEARCH_SCALE, SEARCH_STEPS
from speed_rows import OURS, Row, children_time, imagenet_class_names, output_of


OFFICIAL, CAREFUL = "official trainers", "careful transformers script"
PEERS = {OFFICIAL: "official", CAREFUL: "careful"}
_temporary = tempfile.TemporaryDirectory(prefix="speed-rows-")  # removed when the process ends


@dataclass(frozen=True)
class Sizes:
    classes: int
    train: int  # images of each class; one more for validation
    epochs: int
    test: int = 1  # images of each class

    @property
    def images(self) -> int:
        return self.classes * (self.train + 1 + self.test)


SIZES = {"500": Sizes(50, 8, 5), "5000": Sizes(997, 3, 2)}
EMOJI_STYLES = {"train": ("fluentflat", "emojione"), "validation": ("fluentflat", "emojione"), "test": ("notov1",)}


@cache
def photographs(sizes: Sizes) -> Path:
    """A folder of JPEG files of 500 x 375: SPLIT/CLASS/NUMBER.jpg. A class is two colours that change slowly."""
    root = Path(_temporary.name) / f"{sizes.classes}-{sizes.train}-{sizes.test}"
    generator = np.random.default_rng(0)
    # One name leaves no room for 16 context tokens in the embedded model's texts.
    names = [name for name in imagenet_class_names() if "(xoloitzcuintli)" not in name]
    for name in names[: sizes.classes]:
        colours = generator.integers(0, 256, (2, 2, 3))
        for split, count in (("train", sizes.train), ("validation", 1), ("test", sizes.test)):
            for number in range(count):
                small = np.clip(colours + generator.normal(0, 25, colours.shape), 0, 255).astype(np.uint8)
                picture = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
                _save(picture, root / split / name.replace("/", " "), number, generator)
    return root


@cache
def photographs_of_emoji(sizes: Sizes) -> Path:
    """The same folders and sizes; in each image one emoji, which in the tests has a style that training has not."""
    from hf_clip_variants.data.scenes.scenes import DISTINCT_CLASSES, make_scenes

    root = Path(_temporary.name) / f"emoji-{sizes.classes}-{sizes.train}-{sizes.test}"
    generator = np.random.default_rng(0)
    for number, name in enumerate(DISTINCT_CLASSES[: sizes.classes]):
        for split, count in (("train", sizes.train), ("validation", 1), ("test", sizes.test)):
            how = {"styles": EMOJI_STYLES[split], "class_names": [name], "size": (500, 375), "objects": (1, 1)}
            how |= {"object_size": (0.6, 0.9)}
            for i, scene in enumerate(make_scenes(count, seed=3 * number + len(split), **how)):
                _save(scene["image"].convert("RGB"), root / split / name, i, generator)
    return root


def _save(picture: Image.Image, folder: Path, number: int, generator: np.random.Generator) -> None:
    """As a JPEG file, with grain as a camera's, so that decoding has work to do."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(picture, np.int16)
    grain = generator.normal(0, 8, pixels.shape).astype(np.int16)
    Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)


def model_folder() -> str:
    from hf_clip_variants import embedded_model

    return str(embedded_model())


def our_command(sizes: Sizes, out: Path, seeds: str = "1", kind: str = "published") -> list[str]:
    """Arguments of `hf-clip-variants`. `kind`: "published", "int8", "bf16" or "own" (see above)."""
    images = photographs_of_emoji if kind == "own" else photographs
    command = ["adapt", str(images(sizes)), "--model", model_folder(), "--methods", ",".join(METHODS)]
    command += ["--shots", str(sizes.train), "--seeds", seeds, "--out", str(out), "--json"]
    if kind == "own":
        return command
    values = {
        "epochs": sizes.epochs,
        "views": sizes.epochs,
        "clip_adapter.ratio": RATIO,
        "tip_adapter_f.search_scale": list(SEARCH_SCALE),
        "tip_adapter_f.search_step": list(SEARCH_STEPS),
    }
    changes = [part for name, value in values.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    return [*command, "--profile", "published", *changes, *(["--precision", kind] if kind in ("int8", "bf16") else [])]


def ours(sizes: Sizes, kind: str = "published") -> dict[str, float]:
    """The test accuracy of each method."""
    with tempfile.TemporaryDirectory(dir=_temporary.name) as out:
        command = our_command(sizes, Path(out) / "run", kind=kind)
        results = json.loads(output_of(["-m", "hf_clip_variants.cli", *command]))
    return {run["method"]: next(iter(run["accuracy"].values())) for run in results["runs"]}


def peer(sizes: Sizes, how: str, kind: str = "published") -> dict[str, Any]:
    program = str(Path(__file__).with_name("speed_peers_adapt.py"))
    images = photographs_of_emoji if kind == "own" else photographs
    command = [program, how, str(images(sizes)), "--model", model_folder(), "--epochs", str(sizes.epochs)]
    return json.loads(output_of(command))


def largest_difference(ours: dict[str, float], theirs: dict[str, float]) -> float:
    return max(abs(ours[method] - theirs[method]) for method in METHODS)


def shortfall(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """How much less accurate ours is, at most."""
    return max(0.0, *(theirs[method] - ours[method] for method in METHODS))


def _adapt(sizes: Sizes, kind: str = "published") -> Row:
    images = photographs_of_emoji if kind == "own" else photographs
    images(sizes)
    cases = {OURS: lambda: ours(sizes, kind)}
    cases |= {name: lambda how=how: peer(sizes, how, kind)["accuracy"] for name, how in PEERS.items()}
    tests = sizes.classes * sizes.test
    how = {"published": "", "own": ", ours with its recipe for small models"}
    how |= {precision: f", ours with --precision {precision}" for precision in ("int8", "bf16")}
    error = "how much less accurate ours is" if kind == "own" else "largest difference of accuracies"
    return Row(
        f"whole processes, start to report: {', '.join(METHODS)}; {sizes.images} JPEG files of 500 x 375 in "
        f"{sizes.classes} classes, {sizes.train} shots, {sizes.epochs} epochs, embedded model{how[kind]}; error: "
        f"{error} on {tests} test images",
        cases,
        {OFFICIAL: 3.0, CAREFUL: 1.5},
        error=shortfall if kind == "own" else largest_difference,
        tolerance=2 * (2 * 0.2 * 0.8 / tests) ** 0.5,  # two standard errors: batches are drawn in other orders
        clock=children_time,
        warm_up=False,
    )


def adapt_500(small: bool) -> Row:
    """500 images in 50 classes."""
    return _adapt(Sizes(3, 2, 1) if small else SIZES["500"])


def adapt_500_int8(small: bool) -> Row:
    """The same, the image encoder in 8 bits."""
    return _adapt(Sizes(3, 2, 1) if small else SIZES["500"], "int8")


def adapt_500_bf16(small: bool) -> Row:
    """The same, the image encoder in bfloat16, where the processor has it."""
    return _adapt(Sizes(3, 2, 1) if small else SIZES["500"], "bf16")


def adapt_500_own(small: bool) -> Row:
    """500 images of emoji in 50 classes, with the recipe that `adapt` chooses."""
    return _adapt(Sizes(3, 2, 1) if small else SIZES["500"], "own")


def adapt_5000(small: bool) -> Row:
    """5,000 images in 1,000 classes."""
    return _adapt(Sizes(4, 1, 1) if small else SIZES["5000"])


ADAPT_ROWS = {
    "adapt_500": adapt_500,
    "adapt_500_int8": adapt_500_int8,
    "adapt_500_bf16": adapt_500_bf16,
    "adapt_500_own": adapt_500_own,
    "adapt_5000": adapt_5000,
}
