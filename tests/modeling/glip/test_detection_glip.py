"""GLIP where detectors are used: the pipeline, `predict --task detection`, finetune_detection.py, code from a Hub."""

import csv
import io
import json
import os
import subprocess
import sys

import pytest
import torch
from fake_hub import FakeHub
from glip_runs import NAMES, glip_model, glip_processor, noise, save_glip_data
from paths import PROGRAMS, SCRIPTS
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

from hf_clip_variants import cli
from hf_clip_variants.hub.export import export_with_code


TASK = "zero-shot-object-detection"
FOUND = {"threshold": 0.3}


def comparable(result) -> list:
    return [(one["label"], round(one["score"], 4), *one["box"].values()) for one in result]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, an image, and COCO's json of four images."""
    folder = tmp_path_factory.mktemp("glip")
    for part in (glip_model(), glip_processor()):
        part.save_pretrained(folder / "model")
    save_glip_data(folder)
    return folder


def test_the_pipeline_gives_what_model_and_processor_find(place, monkeypatch):
    pipe, image = pipeline(TASK, str(place / "model")), noise(80, 50)
    calls, forward = [], pipe.model.forward
    monkeypatch.setattr(pipe.model, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    result = pipe(image, candidate_labels=NAMES, **FOUND)
    assert len(calls) == 1 and len({one["label"] for one in result}) > 1
    with torch.no_grad():
        outputs = pipe.model(**pipe.processor(image, NAMES))
    (found,) = pipe.processor.post_process_grounded_object_detection(
        outputs, target_sizes=[(50, 80)], text_labels=NAMES, threshold=FOUND["threshold"]
    )
    assert [one["label"] for one in result] == found["text_labels"]
    assert [one["score"] for one in result] == pytest.approx(found["scores"].tolist(), abs=1e-5)
    assert [list(one["box"].values()) for one in result] == found["boxes"].int().tolist()
    # Names of any number, of each image, in batches.
    many = [f"{colour} {name}" for colour in ("red", "small", "the") for name in ("cat", "dog", "car", "pizza")]
    images, labels = [image, noise(33, 47), noise(80, 50, 1)], [NAMES, ["dog"], many]
    alone = [comparable(pipe(one, candidate_labels=own, **FOUND)) for one, own in zip(images, labels, strict=True)]
    together = pipe(images, candidate_labels=labels, batch_size=3, **FOUND)
    assert [comparable(one) for one in together] == alone and {one[0] for one in alone[2]} <= set(many)
    with pytest.raises(ValueError, match="candidate_labels: missing, and the model has no labels of its own"):
        pipe(image)
    with pytest.raises(ValueError, match="masks: True, but the model predicts none"):
        pipe(image, candidate_labels=NAMES, masks=True)


def test_predict_finds_labels_in_files(place, tmp_path, capsys):
    photo, out = place / "images" / "0.png", tmp_path / "out"
    options = ["--task", "detection", "--labels", "cat, traffic light", "--threshold", "0.3", "--out", out]
    with pytest.raises(SystemExit) as exit:
        cli.main([str(one) for one in ("predict", place / "model", photo, *options)])
    printed, err = capsys.readouterr()
    assert not exit.value.code, err
    rows = list(csv.DictReader(io.StringIO(printed)))
    pipe = pipeline(TASK, str(place / "model"))
    expected = pipe(str(photo), candidate_labels=["cat", "traffic light"], **FOUND)
    assert [row["label"] for row in rows] == [one["label"] for one in expected] and expected
    assert [float(row["score"]) for row in rows] == pytest.approx([one["score"] for one in expected], abs=1e-4)
    with pytest.raises(SystemExit):
        cli.main([str(one) for one in ("predict", place / "model", photo, *options, "--templates", "a {}.")])
    assert "--templates: GLIPForZeroShotObjectDetection reads the labels alone" in capsys.readouterr().err
    assert (out / "annotations.json").is_file() and Image.open(out / "pictures" / "0.png").width > 64


def test_finetuning_on_cocos_json_lowers_the_loss_and_evaluates(place, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads, out = torch.get_num_threads(), tmp_path / "run"
    import finetune_detection

    arguments = ["--model", place / "model", "--data", place / "train.json", "--eval-data", place / "train.json"]
    arguments += ["--out", out, "--steps", "5", "--batch-size", "4", "--lr", "3e-3", "--log-every", "1", "--no-flip"]
    arguments += ["--save-every", "5"]
    try:
        assert finetune_detection.main([str(one) for one in arguments]) == 0
    finally:
        torch.set_num_threads(threads)
        sys.modules.pop("finetune_detection", None)
    run = json.loads((out / "run.json").read_text())
    losses = [row["loss"] for row in run["log"] if "loss" in row]
    assert len(losses) == 5 and losses[-1] < 0.9 * losses[0]
    assert 0 <= run["metrics"]["eval_AP50"] <= 1
    old, new = (load_file(folder / "model.safetensors") for folder in (place / "model", out / "model"))
    assert old.keys() == new.keys() and sum(not torch.equal(old[name], new[name]) for name in old) > 0.9 * len(old)


WITHOUT_PACKAGE = """
import block_package
import json, sys
from transformers import pipeline
pipe = pipeline("zero-shot-object-detection", model="alice/glip", trust_remote_code=True, device="cpu")
assert "transformers_modules" in type(pipe).__module__ and "transformers_modules" in type(pipe.model).__module__
found = pipe(sys.argv[1], candidate_labels="cat, traffic light", threshold=0.3)
print(json.dumps([[one["label"], round(one["score"], 4), *one["box"].values()] for one in found]))
"""


@pytest.mark.hub
@pytest.mark.slow  # imports of a new process
def test_code_from_a_hub_brings_its_pipeline(place, tmp_path):
    photo = place / "images" / "1.png"
    pipe = pipeline(TASK, str(place / "model"))
    expected = comparable(pipe(str(photo), candidate_labels="cat, traffic light", **FOUND))
    exported = export_with_code(glip_model(), glip_processor(), tmp_path / "code", license="mit", repo_id="alice/glip")
    with FakeHub() as hub:
        hub.create("alice/glip", exported)
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "PYTHONPATH": str(PROGRAMS)}
        command = [sys.executable, "-c", WITHOUT_PACKAGE, str(photo)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert [tuple(one) for one in json.loads(done.stdout.splitlines()[-1])] == expected and expected
