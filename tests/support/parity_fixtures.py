"""Fixtures from the official code for parity tests. `PARITY_FIXTURES` selects the set; tests use names only."""

import json
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from paths import FIXTURES
from safetensors.torch import load_file


ROOT = Path(os.environ.get("PARITY_FIXTURES") or FIXTURES)
MAX_RELATIVE_ERROR = 1e-4  # largest absolute error, relative to the tensor's scale, in float32


@dataclass(frozen=True)
class Fixture:
    name: str
    folder: Path
    meta: dict
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    state_dict: dict[str, torch.Tensor]

    def hparam(self, key):
        return self.meta.get("hparams", self.meta.get("hyperparameters", {}))[key]

    def backbone_state_dict(self) -> dict[str, torch.Tensor]:
        """The frozen CLIP of an adapter fixture, under the official names; in some methods it contains the prompts."""
        return {
            k.removeprefix("clip."): v for k, v in self.state_dict.items() if k.startswith("clip.") and "VPT" not in k
        }

    def text_eos_token_id(self) -> int:
        return self.hparam("vocab_size") - 1


def fixtures_like(*patterns: str) -> list[str]:
    """Names of the set's fixtures that match one of the `patterns`: one per method, or one per variant."""
    names = sorted(path.parent.name for path in ROOT.glob("*/meta.json"))
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def load_fixture(name: str) -> Fixture:
    """Skips the test if the fixture is missing in a set other than the repository's."""
    folder = ROOT / name
    if not folder.is_dir() and ROOT != FIXTURES:
        pytest.skip(f"PARITY_FIXTURES={ROOT} has no {name}")

    def tensors(part):
        path = folder / f"{part}.safetensors"
        return load_file(path) if path.exists() else {}

    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return Fixture(name, folder, meta, tensors("inputs"), tensors("outputs"), tensors("state_dict"))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, what: str = "", tolerance: float = MAX_RELATIVE_ERROR):
    """Asserts on the largest absolute difference, relative to the largest expected magnitude."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    scale = expected.abs().max().clamp_min(1e-12).item() if expected.numel() else 1.0
    error = (actual.detach().double() - expected.double()).abs().max().item() / scale if expected.numel() else 0.0
    assert error <= tolerance, f"{what}: relative error {error:.2e} > {tolerance:.0e}"
