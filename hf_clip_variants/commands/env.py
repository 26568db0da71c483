"""`hf-clip-variants env`: what a bug report needs."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from .output import JsonOption, machine_output, prepare_libraries


LIBRARIES = ("torch", "torchvision", "transformers", "peft", "accelerate", "datasets", "huggingface_hub")
LIBRARIES += ("safetensors", "numpy", "pillow", "scikit-learn", "ftfy", "soundfile")


def env(json: JsonOption = False) -> None:
    """
    Print versions, platform and devices, to copy into a bug report.

    \b
    [bold]Example[/bold]
      hf-clip-variants env
    """
    prepare_libraries(watched=not json)
    found = environment()
    if json:
        with machine_output() as emit:
            emit(found)
        return
    for name, value in found.items():
        typer.echo(f"- {name}: {value}")


def environment() -> dict[str, Any]:
    """Name -> value; nothing in it names the user or the machine."""
    import torch

    found = {"hf-clip-variants": version("hf-clip-variants"), "python": platform.python_version()}
    found |= {"platform": platform.platform(), "processors": os.cpu_count()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    found |= {"threads": torch.get_num_threads(), "devices": _devices()}
    settings = ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")
    found |= {name: os.environ[name] for name in settings if name in os.environ}
    return found | {"virtual environment": "yes" if sys.prefix != sys.base_prefix else "no"}


def _devices() -> str:
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "cpu"
    if accelerator.type != "cuda":
        return str(accelerator.type)
    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(place) for place in range(count))
    return f"{names} (CUDA {torch.version.cuda})"
