"""Pipelines that transformers has not, of clouds, posts and questions, where the package is not: they come with the
exported code."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from clip_vil_runs import clip_vil_model, clip_vil_processor
from fnd_clip_runs import fnd_clip_model, news_processor
from paths import PROGRAMS
from PIL import Image
from pointclip_runs import clouds, point_processor, pointclip_model
from transformers import pipeline

from hf_clip_variants.hub.export import export_with_code


PARTS = {
    "zero-shot-point-cloud-classification": (pointclip_model, point_processor),
    "text-and-image-classification": (fnd_clip_model, news_processor),
    "image-question-answering": (clip_vil_model, clip_vil_processor),
}
RUN = """
import json
import sys
import numpy as np
from transformers import pipeline
def answers(folder, **options):
    models = {task: pipeline(task, model=f"{folder}/{task}", device="cpu", **options) for task in sys.argv[2].split()}
    for pipe in models.values():
        assert all("transformers_modules" in type(part).__module__ for part in (pipe, pipe.model))
    clouds, posts, questions = models.values()
    cloud, photo = np.load(f"{folder}/cloud.npy"), f"{folder}/a.png"
    scores = [(one["label"], one["score"]) for one in clouds(cloud, candidate_labels="chair, lamp")]
    return scores, posts("a fire in town", photo), questions(photo, "how many ?")
"""


@pytest.mark.slow  # imports of a new process
def test_the_code_brings_its_pipelines_to_where_the_package_is_not(tmp_path):
    Image.effect_noise((80, 50), 90).convert("RGB").save(tmp_path / "a.png")
    np.save(tmp_path / "cloud.npy", clouds(1)[0].numpy())
    pipes = {}
    for task, (model, processor) in PARTS.items():
        export_with_code(model(), processor(), tmp_path / task, license="mit")
        pipes[task] = pipeline(task, model=model(), processor=processor())
    of_clouds, of_posts, of_questions = pipes.values()
    photo = str(tmp_path / "a.png")
    expected = {one["label"]: one["score"] for one in of_clouds(clouds(1)[0].numpy(), candidate_labels="chair, lamp")}
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(PROGRAMS)}
    program = "import block_package\n" + RUN + "print(json.dumps(answers(sys.argv[1], trust_remote_code=True)))"
    command = [sys.executable, "-c", program, str(tmp_path), " ".join(PARTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    scores, post, answers = json.loads(done.stdout.splitlines()[-1])
    assert dict(scores) == pytest.approx(expected, abs=1e-5)
    own = of_posts("a fire in town", photo)
    assert post["label"] == own["label"] and post["scores"] == pytest.approx(own["scores"], abs=1e-5)
    assert post["weights"] == pytest.approx(own["weights"], abs=1e-5)
    own = of_questions(photo, "how many ?")
    assert [one["answer"] for one in answers] == [one["answer"] for one in own]
    assert [one["score"] for one in answers] == pytest.approx([one["score"] for one in own], abs=1e-5)
