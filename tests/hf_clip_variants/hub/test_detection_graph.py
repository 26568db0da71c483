"""`export --onnx` of a detector: equal boxes, in a folder that needs neither PyTorch nor this package."""

import json
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from glip_runs import NAMES, glip_model, glip_processor, noise
from vild_runs import vild_model, vild_processor

from hf_clip_variants import cli
from hf_clip_variants.hub import detection_graph
from hf_clip_variants.hub.detection_graph import export_detection_graph
from hf_clip_variants.modeling.glip.image_processing_glip import GLIPImageProcessor


pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
RUN = """\
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "transformers", "hf_clip_variants"]))  # importing them raises
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def small_model(**fields):
    backbone = glip_model().config.backbone_config.to_dict() | {"depths": [1, 2, 1, 1]}
    return glip_model(head_num_layers=1, backbone_config=backbone, **fields)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(model, folder, what was reported): names in two prompts, images of 64 x 96 pixels."""
    model, folder = small_model(), tmp_path_factory.mktemp("graph") / "out"
    processor = glip_processor(max_text_length=9)
    assert processor(text=NAMES).input_ids.shape[1] == 2
    return model, folder, export_detection_graph(model, processor, NAMES, folder, image_size=(64, 96), license="mit")


@pytest.mark.slow  # the exporter
def test_boxes_are_equal_in_a_folder_that_needs_no_package(exported, tmp_path):
    model, folder, report = exported
    assert report.score_difference <= 1e-4 and report.box_difference <= 1e-4 and report.image_size == (64, 96)
    assert {"config.json", "preprocessor_config.json", "detect.py", "README.md", "model.onnx"} <= {
        path.name for path in folder.iterdir()
    }
    program = runpy.run_path(str(folder / "detect.py"))
    # What the processor of the folder and the model find in a batch, and what graph and program find.
    processor = glip_processor(max_text_length=9)
    processor.image_processor = GLIPImageProcessor.from_pretrained(folder)
    images = [noise(60, 50), noise(90, 31, 1), noise(30, 47, 2)]
    inputs = processor(images, NAMES)
    assert inputs.pixel_values.shape == (3, 3, 64, 96)
    with torch.no_grad():
        outputs = model(**inputs)
    expected = processor.post_process_grounded_object_detection(outputs, text_labels=NAMES)
    scores, boxes = program["load_graph"]()(inputs.pixel_values.numpy())
    assert sum(len(one["scores"]) for one in expected) > 50
    for i, one in enumerate(expected):
        found = program["select"](scores[i], boxes[i], outputs.image_sizes[i].tolist())
        assert len(found[0]) == len(one["scores"]) and NAMES[found[1][0]] == one["text_labels"][0]
        np.testing.assert_allclose(found[0], one["scores"], atol=1e-4)
        order = np.lexsort((found[1], -found[0].round(4)))
        wanted = np.lexsort((one["labels"], -one["scores"].numpy().round(4)))
        np.testing.assert_allclose(found[2][order], one["boxes"].numpy()[wanted], atol=1e-2)  # of 96 pixels: 1e-4
    # The program alone prepares images itself: another library scales them.
    image = images[0].resize((640, 480))
    image.save(tmp_path / "photo.png")
    command = [sys.executable, "-c", RUN, str(folder / "detect.py"), str(tmp_path / "photo.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert any(name in done.stdout for name in NAMES) and "/" in done.stdout
    found = program["detect"](tmp_path / "photo.png", threshold=0.3)
    with torch.no_grad():
        outputs = model(**processor(image, NAMES))
    (one,) = processor.post_process_grounded_object_detection(
        outputs, threshold=0.3, target_sizes=[(480, 640)], text_labels=NAMES
    )
    assert len(found[0]) == pytest.approx(len(one["scores"]), rel=0.2)
    assert found[0][0] == pytest.approx(float(one["scores"][0]), abs=0.02)


@pytest.mark.slow  # the exporter
def test_the_command_writes_it_and_a_graph_that_differs_is_refused(tmp_path, monkeypatch, capsys):
    processor = glip_processor()
    for part in (small_model(use_fusion=False), processor):
        part.save_pretrained(tmp_path / "model")

    def run(*more) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            cli.main([str(one) for one in ("export", tmp_path / "model", tmp_path / "out", *more)])
        return exit.value.code or 0, *capsys.readouterr()

    code, out, err = run("--onnx", "--labels", "cat, traffic light", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["labels"] == 2 and told["image_size"] == [64, 64] and told["box_difference"] <= 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    scores, _ = session.run(None, {"pixel_values": np.zeros((2, 3, 64, 64), np.float32)})
    assert scores.shape == (2, 85, 2)
    for more, message in (
        (["--onnx"], "--labels: missing"),
        (["--labels", "cat"], "--labels: got it without --onnx"),
        (["--onnx", "--int8", "--labels", "cat"], "--int8: detectors are written as --onnx in float32 alone"),
        (["--openvino", "--labels", "cat"], "--openvino: detectors are written as --onnx"),
        (["--onnx", "--classes", "cat"], "--classes: got it for a model that finds objects; want --labels"),
    ):
        code, _, err = run(*more)
        assert code and message in " ".join(err.split()), err
    monkeypatch.setattr(detection_graph, "_compared", lambda *args: (0.0, 3e-4))
    monkeypatch.setattr(detection_graph, "write_module", lambda *args: None)
    with pytest.raises(ValueError, match="model.onnx: its boxes differ from PyTorch's by up to 0.0003, more than"):
        export_detection_graph(small_model(), processor, NAMES, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_exported_is_named(tmp_path):
    with pytest.raises(ValueError, match="model: .* cannot be written as a graph; want one whose class has as_graph"):
        export_detection_graph(vild_model(), vild_processor(), NAMES, tmp_path / "out")
    for options, message in (
        ({"image_size": (64, 70)}, r"image_size: \(64, 70\), expected \(height, width\), multiples of 32"),
        ({"images": torch.zeros(1, 3, 64, 32)}, r"images: got \[1, 3, 64, 32\], expected \[batch, 3, 64, 64\]"),
    ):
        with pytest.raises(ValueError, match=message):
            export_detection_graph(glip_model(), glip_processor(), NAMES, tmp_path / "out", **options)
