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

from hf_clip_variants.evaluation import segmentation


LABELS = ["cat", "sky"]
# For each of several models: what the own pipeline finds with the code from the folder, from the folder saved again
# and from the Hub, and what the stock pipeline finds with labels in the model.
WITHOUT_PACKAGE = """
import sys
import block_package
import json
import numpy
from transformers import pipeline
photo, *kinds = sys.argv[1:]
def area(one):
    return int((numpy.asarray(one["mask"]) > 0).sum())
for kind in kinds:
    folder, again, hub, own_labels = kind.split(",")
    for source in (folder, again, hub):
        pipe = pipeline("zero-shot-image-segmentation", model=source, trust_remote_code=True, device="cpu")
        assert "transformers_modules" in type(pipe).__module__
        assert "transformers_modules" in type(pipe.model).__module__
        found = pipe(photo, candidate_labels="cat, sky")
        print(json.dumps({one["label"]: [one["score"], area(one)] for one in found}))
        if source == folder:
            pipe.model.save_pretrained(again)
            pipe.processor.save_pretrained(again)
    stock = pipeline("image-segmentation", model=own_labels, trust_remote_code=True, device="cpu")
    assert "transformers_modules" not in type(stock).__module__
    assert "transformers_modules" in type(stock.model).__module__
    print(json.dumps({one["label"]: area(one) for one in stock(photo)}))
"""


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((90, 60), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.mark.hub
@pytest.mark.slow  # a new process imports transformers
def test_the_code_brings_its_pipelines_to_where_the_package_is_not(run, tmp_path, photo):
    """From the folder, from the Hub, and saved again; transformers' own pipeline where the labels are in the model."""
    sources, expected = [], []
    with FakeHub() as hub:
        for kind in ("groups", "decoder"):
            model, folder = save_segmenter(tmp_path / f"{kind}-model", kind), tmp_path / kind
            code, printed, err = run("export", model, folder, "--license", "mit")
            assert (code, printed.strip()) == (0, str(folder)), err
            folded = save_segmenter(tmp_path / f"{kind}-folded", kind, LABELS, drop_text=True)
            code, _, err = run("export", folded, tmp_path / f"{kind}-folded-code", "--license", "mit")
            assert code == 0, err
            hub.create(f"alice/{kind}", folder)
            hub.create(f"alice/{kind}-folded", tmp_path / f"{kind}-folded-code")
            sources.append(f"{folder},{folder}-again,alice/{kind},alice/{kind}-folded")
            found = pipeline("zero-shot-image-segmentation", model=str(model))(str(photo), candidate_labels=LABELS)
            areas = {one["label"]: int((np.asarray(one["mask"]) > 0).sum()) for one in found}
            wanted = {one["label"]: [pytest.approx(one["score"], abs=1e-5), areas[one["label"]]] for one in found}
            expected += [wanted, wanted, wanted, areas]
        environment = os.environ | hub.environment(tmp_path / "home") | {"PYTHONPATH": str(PROGRAMS)}
        command = [sys.executable, "-c", WITHOUT_PACKAGE, str(photo), *sources]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")] == expected


def test_a_graph_of_labels_that_are_given(run, tmp_path, photo, monkeypatch):
    """Of the smallest model, which the table does not have: the exporter's time grows with the number of layers."""
    monkeypatch.setattr(segmentation, "is_segmenter", lambda source: True)
    model, folder = save_segmenter(tmp_path / "model", "toy", labels=["dog"]), tmp_path / "graph"
    options = ["--onnx", "--labels", "cat, sky;heaven", "--images", photo.parent, "--license", "mit", "--json"]
    code, printed, err = run("export", model, folder, *options)
    assert code == 0 and "for images of any size. Compared with PyTorch on 1 images" in err, err
    report = json.loads(printed)
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
