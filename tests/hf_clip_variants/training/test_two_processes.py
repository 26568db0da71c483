import os
import subprocess
import sys

import pytest
import torch
from paths import PROGRAMS
from safetensors.torch import load_file

import hf_clip_variants


PROGRAM = PROGRAMS / "train_adapters.py"


def run(command, folder):
    folder.mkdir()
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-3000:]
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = run([*launcher, str(PROGRAM), str(tmp_path / "two"), "2"], tmp_path / "two")
    one = run([sys.executable, str(PROGRAM), str(tmp_path / "one"), "4"], tmp_path / "one")

    adapters = {row.name for row in hf_clip_variants.methods("adapter")} - {"tip_adapter"} | {"tip_adapter_f"}
    assert set(one) == set(two) == {"whole"} | adapters
    for method, tensors in one.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(
                two[method][name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, n=f"{method}: {name}": f"{n}: {text}"
            )
