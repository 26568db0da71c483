"""`export --onnx` of a segmenter: equal maps at any size, in a folder that needs neither PyTorch nor this package."""

import json
import runpy
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image
from segmenters import segmenter
from transformers import pipeline

from hf_clip_variants.data import make_scenes
from hf_clip_variants.hub import segmentation_graph
from hf_clip_variants.hub.graph_export import TOLERANCE
from hf_clip_variants.hub.segmentation_graph import TIES, export_segmentation_graph
from hf_clip_variants.modeling.dense.image_processing_dense import DenseImageProcessor


onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
LABELS = ["cat", "sky", "taco"]
SIZES = [(32, 32), (33, 47), (64, 96), (120, 50), (20, 131)]
RUN = """\
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "transformers", "hf_clip_variants"]))  # importing them raises
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def session_of(folder):
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


def pixels_of(size, batch, seed=0):
    coarse = torch.randn(batch, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic")


KINDS = ["toy", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("decoder", "groups"))]


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    """(model, folder, what was reported)."""
    model, processor = segmenter(request.param)
    background = 0.2 if request.param == "toy" else None
    model.set_labels([*LABELS[:2], "taco;burrito"], processor, background=background)
    folder = tmp_path_factory.mktemp(request.param) / "graph"
    return model, folder, export_segmentation_graph(model, processor, folder, license="mit")


def test_maps_are_equal_at_any_size(exported):
    model, folder, report = exported
    assert report.image_size is None and report.same_answers > 0.999 and report.max_difference <= 1e-4
    session = session_of(folder)
    for number, size in enumerate(SIZES):
        pixels = pixels_of(size, 1 + number % 3, number)
        with torch.no_grad():
            expected = model(pixel_values=pixels).logits
        got = torch.as_tensor(session.run(["logits"], {"pixel_values": pixels.numpy()})[0])
        assert got.shape == expected.shape
        off = (got - expected).abs().amax(1) > TOLERANCE * max(1.0, float(expected.abs().max()))
        assert float(off.float().mean()) <= TIES
        assert float((got.argmax(1) == expected.argmax(1)).float().mean()) >= 1 - TIES


def test_the_graph_holds_no_text_encoder_and_no_path_of_this_machine(exported):
    model, folder, _ = exported
    assert model.has_text_encoder  # the model itself is as it was
    names = [weight.name for weight in onnx.load(folder / "model.onnx").graph.initializer]
    assert names and not any("text" in name for name in names)
    for path in folder.iterdir():
        assert str(folder.parent).encode() not in path.read_bytes() and b"site-packages" not in path.read_bytes()


def test_config_and_card_say_what_is_there(exported):
    model, folder, report = exported
    settings = json.loads((folder / "config.json").read_text())
    names = LABELS if model.config.background is None else ["background", *LABELS]
    assert list(settings["id2label"].values()) == names
    assert settings["background"] == (None if model.config.background is None else 0)
    assert settings["image_size"] is None
    card = (folder / "README.md").read_text()
    assert "any size" in card and "image-segmentation" in card and f"{report.max_difference:.2g}" in card


def test_the_program_needs_the_runtime_numpy_and_pillow_alone(exported, tmp_path):
    model, folder, _ = exported
    image = make_scenes(1, 3, class_names=["cat", "taco"], size=(83, 61))[0]["image"]
    image.save(tmp_path / "photo.png")
    command = [sys.executable, "-c", RUN, str(folder / "segment.py"), str(tmp_path / "photo.png")]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, text=True, timeout=120)
    assert not done.returncode, done.stderr
    label_map = np.asarray(Image.open(tmp_path / "photo.labels.png"))
    stock = pipeline("image-segmentation", model=model, image_processor=segmenter("toy")[1].image_processor)
    names = list(json.loads((folder / "config.json").read_text())["id2label"].values())
    expected = np.zeros((61, 83), np.uint8)
    for one in stock(image):
        expected[np.asarray(one["mask"]) > 0] = names.index(one["label"])
    assert (label_map == expected).mean() > 0.99
    assert done.stdout.startswith(str(tmp_path / "photo.png")) and " %" in done.stdout


def test_a_model_that_cannot_be_written_for_any_size_gets_one(tmp_path, monkeypatch):
    model, processor = segmenter("toy")
    model.set_labels(LABELS, processor)
    write = segmentation_graph.write_onnx

    def fixed_only(module, example, file, any_size=False):
        if any_size:
            raise RuntimeError("guards")
        write(module, example, file)

    monkeypatch.setattr(segmentation_graph, "write_onnx", fixed_only)
    report = export_segmentation_graph(model, processor, tmp_path / "graph")
    assert report.image_size == (224, 224) and report.sizes == ((224, 224),)
    assert json.loads((tmp_path / "graph" / "config.json").read_text())["image_size"] == [224, 224]
    saved = json.loads((tmp_path / "graph" / "preprocessor_config.json").read_text())
    assert saved["size"] == {"height": 224, "width": 224}
    assert "224 x 224 pixels" in (tmp_path / "graph" / "README.md").read_text()
    assert processor.image_processor.size["shortest_edge"] == 32  # the caller's


def test_a_graph_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    model, processor = segmenter("toy")
    model.set_labels(LABELS, processor)
    run = segmentation_graph.runner
    monkeypatch.setattr(segmentation_graph, "runner", lambda *a: lambda pixels: run(*a)(pixels) * 1.001)
    with pytest.raises(ValueError, match=r"model.onnx: of \d+\.\d+ % of the pixels, logits differ"):
        export_segmentation_graph(model, processor, tmp_path / "graph")
    assert not (tmp_path / "graph").exists()


@pytest.mark.parametrize(
    "size",
    [
        {"shortest_edge": 32, "longest_edge": 48},
        {"shortest_edge": 32},
        {"longest_edge": 50},
        {"height": 20, "width": 30},
        {"max_height": 30, "max_width": 50},
    ],
)
@pytest.mark.parametrize("multiple", [None, 8])
def test_the_program_resizes_as_the_processor_does(size, multiple, tmp_path):
    processor = DenseImageProcessor(size=size, size_multiple=multiple, resample=2)
    processor.save_pretrained(tmp_path)
    source = files("hf_clip_variants.hub").joinpath("run_segmentation_graph.py").read_text()
    (tmp_path / "segment.py").write_text(source)
    program = runpy.run_path(str(tmp_path / "segment.py"))
    for edges in ((83, 61), (61, 83), (40, 40), (200, 31), (7, 3)):
        pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize(edges, Image.Resampling.BICUBIC)
        expected = processor(image, return_tensors="pt")["pixel_values"][0].numpy()
        got = program["prepare"](program["upright"](image))
        assert got.shape == expected.shape and abs(got - expected).mean() < 0.02


def test_models_without_labels_are_refused(tmp_path):
    model, processor = segmenter("toy")
    with pytest.raises(ValueError, match="model: it has no labels; call model.set_labels"):
        export_segmentation_graph(model, processor, tmp_path / "graph")
