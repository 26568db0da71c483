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


@pytest.mark.slow  # the exporter
def test_boxes_are_equal_in_a_folder_that_needs_no_package(tmp_path, capsys):
    model, processor = small_model(), glip_processor()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    folder = tmp_path / "out"
    code, out, err = run(capsys, tmp_path, "--onnx", "--labels", ", ".join(NAMES), "--license", "mit", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["labels"] == 5 and told["image_size"] == [64, 64] and told["images"] == 3
    assert told["score_difference"] <= 1e-4 and told["box_difference"] <= 1e-4
    assert {"config.json", "preprocessor_config.json", "detect.py", "README.md", "model.onnx"} <= {
        path.name for path in folder.iterdir()
    }
    program = runpy.run_path(str(folder / "detect.py"))
    # What the processor of the folder and the model find in a batch, and what graph and program find.
    processor.image_processor = GLIPImageProcessor.from_pretrained(folder)
    images = [noise(60, 50), noise(90, 31, 1), noise(30, 47, 2)]
    inputs = processor(images, NAMES)
    assert inputs.pixel_values.shape == (3, 3, 64, 64)
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
        np.testing.assert_allclose(found[2][order], one["boxes"].numpy()[wanted], atol=64e-4)
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


@pytest.mark.parametrize("use_fusion", [True, False])
def test_a_graph_of_several_prompts_has_all_names(use_fusion):
    """Before it is written: what the module that is written gives is what the processor selects from."""
    model, processor = small_model(use_fusion=use_fusion), glip_processor(max_text_length=9)
    assert processor(text=NAMES).input_ids.shape[1] == 2
    module, pixels = model.as_graph(processor, NAMES, (64, 96)), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        scores, boxes = module(pixels)
        outputs = model(pixels, **processor(text=NAMES))
    assert scores.shape == (2, 2 * sum(module.level_sizes), 5) and boxes.shape == (2, scores.shape[1], 4)
    options = {"nms_threshold": 1.0, "max_detections": 10**6, "pre_nms": 10**6}
    for i, one in enumerate(processor.post_process_grounded_object_detection(outputs, **options)):
        own = scores[i].flatten()
        torch.testing.assert_close(own[own > 0].sort(descending=True).values, one["scores"], rtol=1e-4, atol=1e-5)
        for label in range(5):
            assert int((scores[i, :, label] > 0).sum()) == int((one["labels"] == label).sum())
    assert not hasattr(module.model, "text_encoder") and hasattr(model, "text_encoder")


def run(capsys, folder, *more) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit:
        cli.main([str(one) for one in ("export", folder / "model", folder / "out", *more)])
    return exit.value.code or 0, *capsys.readouterr()


def test_wrong_options_and_a_graph_that_differs_are_refused(tmp_path, monkeypatch, capsys):
    for part in (small_model(), glip_processor()):
        part.save_pretrained(tmp_path / "model")
    for more, message in (
        (["--onnx"], "--labels: missing"),
        (["--labels", "cat"], "--labels: got it without --onnx"),
        (["--onnx", "--int8", "--labels", "cat"], "--int8: detectors are written as --onnx in float32 alone"),
        (["--openvino", "--labels", "cat"], "--openvino: detectors are written as --onnx"),
        (["--onnx", "--classes", "cat"], "--classes: got it for a model that finds objects; want --labels"),
    ):
        code, _, err = run(capsys, tmp_path, *more)
        assert code and message in " ".join(err.split()), err
    monkeypatch.setattr(detection_graph, "_compared", lambda *args: (0.0, 3e-4))
    monkeypatch.setattr(detection_graph, "write_module", lambda *args: None)
    with pytest.raises(ValueError, match="model.onnx: its boxes differ from PyTorch's by up to 0.0003, more than"):
        export_detection_graph(small_model(), glip_processor(), NAMES, tmp_path / "none")
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
