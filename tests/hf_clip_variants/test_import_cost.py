"""Imports and time of `import hf_clip_variants` and `hf-clip-variants --help`."""

import resource
import subprocess
import sys

import pytest


# Libraries that `from transformers import AutoModel` does not import either.
NEVER = [
    "peft",
    "torchvision",
    "timm",
    "open_clip",
    "datasets",
    "scipy",
    "sklearn",
    "matplotlib",
    "pycocotools",
    "ftfy",
    "typer",
    "rich",
]
NOT_BY_US = [*NEVER, "transformers", "torch", "numpy", "PIL", "huggingface_hub", "jinja2", "safetensors"]


def loaded(program: str, modules: list[str]) -> list[str]:
    program += f"\nimport sys; print(*(name for name in {modules} if name in sys.modules))"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    ).stdout.split()


def cpu_seconds(program: str) -> float:
    """Processor time of a new process; wall time would depend on other programs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def costs_at_most(limit: float, ours: str, theirs: str, rounds: int = 3) -> bool:
    """The least of some interleaved rounds each; further rounds only where the first ones leave a doubt."""
    times = []
    for _ in range(rounds):
        times.append((cpu_seconds(ours), cpu_seconds(theirs)))
        if min(a for a, _ in times) <= limit * min(b for _, b in times):
            return True
    return False


def test_import_loads_no_heavy_library():
    assert loaded("import hf_clip_variants as h; h.methods(), h.__version__, dir(h), h.__all__", NOT_BY_US) == []


def test_processing_an_image_does_not_import_pandas():
    """As pyarrow's `to_numpy` does: 0.3 s of the start of `predict`."""
    program = """
from PIL import Image
from hf_clip_variants import CLIPClassifierImageProcessor
pixels = CLIPClassifierImageProcessor()(Image.new("RGB", (300, 250)), return_tensors="pt").pixel_values
assert pixels.shape == (1, 3, 224, 224)"""
    assert loaded(program, ["pandas", "pyarrow"]) == ["pyarrow"]


@pytest.mark.slow
def test_auto_model_import_loads_nothing_more_and_costs_at_most_15_percent_more():
    theirs = "from transformers import AutoModel"
    ours = f"import hf_clip_variants; {theirs}"
    of_ours = ["modeling", "adapters", "data", "cli"]
    assert loaded(ours, NEVER + [f"hf_clip_variants.{name}" for name in of_ours]) == []
    assert costs_at_most(1.15, ours, theirs)


def test_convert_help_comes_from_the_table_and_loads_no_heavy_library():
    """Its options are those of the checkpoint formats, whose descriptors are not imported."""
    heavy = [name for name in NOT_BY_US if name not in ("typer", "rich")]
    program = f"""
import sys
from hf_clip_variants.cli import main
try:
    main(["convert", "--help"])
except SystemExit:
    print(*(name for name in {heavy} if name in sys.modules), file=sys.stderr, end="")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert "--keep-head" in done.stdout and done.stderr == ""


def test_help_costs_at_most_30_percent_more_than_hf_help():
    ours = "import sys; from hf_clip_variants.cli import main; main(['--help'])"
    theirs = "import sys; sys.argv = ['hf', '--help']; from huggingface_hub.cli.hf import main; main()"
    assert costs_at_most(1.3, ours, theirs)
