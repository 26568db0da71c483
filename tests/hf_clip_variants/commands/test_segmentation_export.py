"""`export` of a segmenter: a folder with code and the pipeline, or a graph; errors as sentences."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from fake_hub import FakeHub
from paths import PROGRAMS
from PIL import Image
from segmenters import save_segmenter
from transformers import pipeline


LABELS = ["cat", "sky"]
WITHOUT_PACKAGE = """
import sys
import block_package
import json
import numpy
from transformers import pipeline
photo, own_labels, *sources = sys.argv[1:]
for source in sources:
    pipe = pipeline("zero-shot-image-segmentation", model=source, trust_remote_code=True, device="cpu")
    assert "transformers_modules" in type(pipe).__module__ and "transformers_modules" in type(pipe.model).__module__
    found = pipe(photo, candidate_labels="cat, sky")
    print(json.dumps({one["label"]: [one["score"], int((numpy.asarray(one["mask"]) > 0).sum())] for one in found}))
    if not source.startswith("alice/"):
        pipe.model.save_pretrained(source + "-again")
        pipe.processor.save_pretrained(source + "-again")
stock = pipeline("image-segmentation", model=own_labels, trust_remote_code=True, device="cpu")
assert "transformers_modules" not in type(stock).__module__ and "transformers_modules" in type(stock.model).__module__
print(json.dumps({one["label"]: int((numpy.asarray(one["mask"]) > 0).sum()) for one in stock(photo)}))
"""


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((90, 60), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.mark.hub
@pytest.mark.slow  # imports of a new process
@pytest.mark.parametrize("kind", ["groups", "decoder"])
def test_the_code_brings_its_pipelines_to_where_the_package_is_not(run, kind, tmp_path, photo):
    """From the folder, from the Hub, and saved again; transformers' own pipeline where the labels are in the model."""
    model, folder = save_segmenter(tmp_path / "model", kind), tmp_path / "code"
    code, printed, err = run("export", model, folder, "--license", "mit")
    assert (code, printed.strip()) == (0, str(folder)), err
    folded = save_segmenter(tmp_path / "folded", kind, LABELS, drop_text=True)
    code, _, err = run("export", folded, tmp_path / "folded-code", "--license", "mit")
    assert code == 0, err
    expected = pipeline("zero-shot-image-segmentation", model=str(model))(str(photo), candidate_labels=LABELS)
    with FakeHub() as hub:
        hub.create("alice/coded", folder)
        hub.create("alice/folded", tmp_path / "folded-code")
        environment = os.environ | hub.environment(tmp_path / "home") | {"PYTHONPATH": str(PROGRAMS)}

        def found(*sources):
            command = [sys.executable, "-c", WITHOUT_PACKAGE, str(photo), "alice/folded", *map(str, sources)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
            assert done.returncode == 0, done.stderr
            return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

        areas = {one["label"]: int((np.asarray(one["mask"]) > 0).sum()) for one in expected}
        wanted = {one["label"]: [pytest.approx(one["score"], abs=1e-5), areas[one["label"]]] for one in expected}
        assert found(folder, f"{folder}-again", "alice/coded") == [wanted, wanted, wanted, areas]


@pytest.mark.slow  # the exporter
def test_a_graph_of_labels_that_are_given(run, tmp_path, photo):
    model, folder = save_segmenter(tmp_path / "model", "groups", labels=["dog"]), tmp_path / "graph"
    options = ["--onnx", "--labels", "cat, sky;heaven", "--images", photo.parent, "--json"]
    code, printed, err = run("export", model, folder, *options)
    report = json.loads(printed)
    assert code == 0 and "for images of any size. Compared with PyTorch on 1 images" in err
    assert report["labels"] == 2 and report["image_size"] is None and report["max_difference"] <= 1e-4
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "cat", "1": "sky"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--onnx"], "--labels: missing, and the model has no labels of its own"),
        (["--onnx", "--labels", "cat,cat"], "--labels: 'cat' is given twice"),
        (["--classes", "cat,dog"], "--classes: got it for a model that segments; want --labels"),
        (["--onnx", "--base", "MODEL"], "--base: got it for a model that segments"),
        (["--onnx", "--labels", "cat", "--images", "EMPTY"], "--images: no image files in"),
    ],
)
def test_errors_are_sentences(run, tmp_path, options, message):
    model = save_segmenter(tmp_path / "model", "groups")
    (tmp_path / "empty").mkdir()
    places = {"MODEL": model, "EMPTY": tmp_path / "empty"}
    code, printed, err = run("export", model, tmp_path / "out", *(places.get(option, option) for option in options))
    assert code == 1 and message in err and "Traceback" not in err and not (tmp_path / "out").exists()


def test_labels_are_for_segmenters(run, clip, tmp_path):
    code, _, err = run("export", clip, tmp_path / "out", "--classes", "cat,dog", "--labels", "cat")
    assert code == 1 and "--labels: got it for a model that classifies; want --classes" in err
