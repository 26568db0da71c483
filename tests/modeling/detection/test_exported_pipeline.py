"""The pipeline of detectors where the package is not: it comes with the exported code, also from a Hub."""

import json
import os
import subprocess
import sys

import pytest
from paths import PROGRAMS
from PIL import Image
from transformers import pipeline
from vild_runs import vild_model, vild_processor

from hf_clip_variants.hub.export import export_with_code


WITHOUT_PACKAGE = """
import sys
import block_package
import json
from transformers import pipeline
pipe = pipeline("zero-shot-object-detection", model=sys.argv[2], trust_remote_code=True, device="cpu")
assert "transformers_modules" in type(pipe).__module__ and "transformers_modules" in type(pipe.model).__module__
found = pipe(sys.argv[1], candidate_labels="cat, boat", threshold=0.01, masks=True)
print(json.dumps([[one["label"], one["score"], list(one["box"].values()), list(one["mask"].size)] for one in found]))
"""


@pytest.mark.slow  # imports of a new process
def test_the_code_brings_its_pipeline_to_where_the_package_is_not(tmp_path):
    photo, folder = tmp_path / "a.png", tmp_path / "code"
    Image.effect_noise((80, 50), 90).convert("RGB").save(photo)
    export_with_code(vild_model(), vild_processor(), folder, license="mit")
    pipe = pipeline("zero-shot-object-detection", model=vild_model(), processor=vild_processor())
    expected = pipe(str(photo), candidate_labels="cat, boat", threshold=0.01, masks=True)
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(PROGRAMS)}
    command = [sys.executable, "-c", WITHOUT_PACKAGE, str(photo), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(expected) > 0
    for (label, score, box, size), one in zip(found, expected, strict=True):
        assert label == one["label"] and size == [80, 50] and score == pytest.approx(one["score"], abs=1e-5)
        assert box == pytest.approx(list(one["box"].values()), abs=1)
