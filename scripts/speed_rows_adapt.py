"""Rows of `benchmark_speed.py` for whole commands: files in, results out, with everything in between.

`adapt_…`: three methods are fitted to the same images for the same number of epochs and tested on the same images,
with the published optimisers, schedules, batch sizes and augmentations; the peers are in `speed_peers_adapt.py`. Ours
does more than both: it writes and calibrates adapters, validates CLIP-Adapter and CoOp, and makes the report.

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


SIZES = {"500": Sizes(50, 8, 5), "5000": Sizes(998, 3, 2)}


@cache
def photographs(sizes: Sizes) -> Path:
    """A folder of JPEG files of 500 x 375: SPLIT/CLASS/NUMBER.jpg. A class is two colours that change slowly."""
    root = Path(_temporary.name) / f"{sizes.classes}-{sizes.train}-{sizes.test}"
    generator = np.random.default_rng(0)
    for name in imagenet_class_names()[: sizes.classes]:
        colours = generator.integers(0, 256, (2, 2, 3))
        for split, count in (("train", sizes.train), ("validation", 1), ("test", sizes.test)):
            folder = root / split / name.replace("/", " ")
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                small = np.clip(colours + generator.normal(0, 25, colours.shape), 0, 255).astype(np.uint8)
                picture = np.asarray(Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC), np.int16)
                grain = generator.normal(0, 8, picture.shape).astype(np.int16)  # as a camera's: JPEG has work to do
                Image.fromarray(np.clip(picture + grain, 0, 255).astype(np.uint8)).save(
                    folder / f"{number}.jpg", quality=90
                )
    return root


def model_folder() -> str:
    from hf_clip_variants import embedded_model

    return str(embedded_model())


def our_command(sizes: Sizes, out: Path, seeds: str = "1") -> list[str]:
    """Arguments of `hf-clip-variants`."""
    values = {
        "epochs": sizes.epochs,
        "views": sizes.epochs,
        "clip_adapter.ratio": RATIO,
        "tip_adapter_f.search_scale": list(SEARCH_SCALE),
        "tip_adapter_f.search_step": list(SEARCH_STEPS),
    }
    changes = [part for name, value in values.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    command = ["adapt", str(photographs(sizes)), "--model", model_folder(), "--methods", ",".join(METHODS)]
    command += ["--shots", str(sizes.train), "--seeds", seeds, "--profile", "published", *changes]
    return [*command, "--out", str(out), "--json"]


def ours(sizes: Sizes) -> dict[str, float]:
    """The test accuracy of each method."""
    with tempfile.TemporaryDirectory(dir=_temporary.name) as out:
        results = json.loads(output_of(["-m", "hf_clip_variants.cli", *our_command(sizes, Path(out) / "run")]))
    return {run["method"]: next(iter(run["accuracy"].values())) for run in results["runs"]}


def peer(sizes: Sizes, how: str) -> dict[str, Any]:
    program = str(Path(__file__).with_name("speed_peers_adapt.py"))
    folder = str(photographs(sizes))
    command = [program, how, folder, "--model", model_folder(), "--epochs", str(sizes.epochs)]
    return json.loads(output_of(command))


def largest_difference(ours: dict[str, float], theirs: dict[str, float]) -> float:
    return max(abs(ours[method] - theirs[method]) for method in METHODS)


def _adapt(sizes: Sizes) -> Row:
    photographs(sizes)
    cases = {OURS: lambda: ours(sizes)}
    cases |= {name: lambda how=how: peer(sizes, how)["accuracy"] for name, how in PEERS.items()}
    tests = sizes.classes * sizes.test
    return Row(
        f"whole processes, start to report: {', '.join(METHODS)}; {sizes.images} JPEG files of 500 x 375 in "
        f"{sizes.classes} classes, {sizes.train} shots, {sizes.epochs} epochs, embedded model; error: largest "
        f"difference of accuracies on {tests} test images",
        cases,
        {OFFICIAL: 3.0, CAREFUL: 1.5},
        error=largest_difference,
        tolerance=2 * (2 * 0.2 * 0.8 / tests) ** 0.5,  # two standard errors: batches are drawn in other orders
        clock=children_time,
        warm_up=False,
    )


def adapt_500(small: bool) -> Row:
    """500 images in 50 classes."""
    return _adapt(Sizes(3, 2, 1) if small else SIZES["500"])


def adapt_5000(small: bool) -> Row:
    """5,000 images in 1,000 classes."""
    return _adapt(Sizes(4, 1, 1) if small else SIZES["5000"])


ADAPT_ROWS = {"adapt_500": adapt_500, "adapt_5000": adapt_5000}
