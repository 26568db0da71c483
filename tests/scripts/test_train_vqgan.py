"""The training of the embedded VQGAN: streams, goes on where it was, with a discriminator."""

import os
import subprocess
import sys

import pytest
from paths import ROOT

from hf_clip_variants.data.images.emoji import load_emoji


@pytest.mark.slow
def test_training_saves_and_goes_on(tmp_path):
    rows = load_emoji("notov1").dataset.select(range(12))
    for name in ("emoji-noto", "emoji-notov1", "emoji-fluent3d", "emoji-fluentflat", "clipart"):
        rows.to_parquet(str(tmp_path / f"{name}.parquet"))
    command = [sys.executable, str(ROOT / "scripts" / "train_vqgan.py"), "--data", str(tmp_path)]
    command += ["--out", str(tmp_path / "run"), "--batch-size", "2", "--perceptual-every", "1", "--quantize-from", "1"]
    command += ["--discriminator-from", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    for steps in ("2", "3"):
        done = subprocess.run(
            [*command, "--steps", steps], capture_output=True, text=True, env=environment, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        files = {path.name for path in (tmp_path / "run" / f"checkpoint-{steps}").iterdir()}
        assert {"model.safetensors", "optimizer.pt", "discriminator.safetensors"} <= files
    assert "from step 2 to 3" in done.stdout
