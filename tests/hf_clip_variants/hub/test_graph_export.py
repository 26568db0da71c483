"""`export --onnx` and `--openvino`: the model's answers, from a folder that needs neither PyTorch nor this package."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from adapted_classifiers import adapted
from PIL import Image
from tiny import tiny_pixels, tiny_tokenizer

from hf_clip_variants import CLIPClassifierImageProcessor, CLIPClassifierProcessor
from hf_clip_variants.evaluation.prediction import classify, find_images, load_for_prediction
from hf_clip_variants.hub import graph_export
from hf_clip_variants.hub.graph_export import TOLERANCE, export_graph


onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
RUN = """\
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "transformers", "peft", "hf_clip_variants"]))  # importing them raises
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def processor_of_24_pixels():
    sizes = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    return CLIPClassifierProcessor(CLIPClassifierImageProcessor(**sizes), tiny_tokenizer())


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, size in enumerate([(40, 30), (24, 24), (31, 77), (90, 25)]):
        pixels = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter's folder, beside the base that it names."""
    folder = tmp_path_factory.mktemp("adapted")
    base = adapted(None)
    base.save_pretrained(folder / "base")
    processor_of_24_pixels().save_pretrained(folder / "base")
    base.config._name_or_path = base.name_or_path = str(folder / "base")
    adapted("coop", base).save_pretrained(folder / "coop")
    return folder / "coop"


@pytest.fixture(scope="module")
def graph(adapter, tmp_path_factory):
    from hf_clip_variants.cli import main

    folder = tmp_path_factory.mktemp("graph") / "out"
    with pytest.raises(SystemExit) as ended:
        main(["export", str(adapter), str(folder), "--onnx", "--license", "mit"])
    assert not ended.value.code
    return folder


def session_of(folder):
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


def run_program(folder, paths):
    done = subprocess.run([sys.executable, "-c", RUN, str(folder / "classify.py"), *paths], capture_output=True)
    assert not done.returncode, done.stderr.decode()
    return done.stdout.decode().splitlines()


def test_the_graph_of_an_adapter_answers_like_the_adapter(graph, adapter):
    model, session = load_for_prediction(adapter, device="cpu").model, session_of(graph)
    assert [(i.name, i.shape[1:]) for i in session.get_inputs()] == [("pixel_values", [3, 24, 24])]
    for batch in (1, 5):
        pixels = tiny_pixels(batch, seed=batch)
        with torch.no_grad():
            expected = model(pixel_values=pixels).logits
        got = torch.as_tensor(session.run(["logits"], {"pixel_values": pixels.numpy()})[0])
        torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def test_the_graph_holds_no_text_encoder_and_no_path_of_this_machine(graph):
    names = [weight.name for weight in onnx.load(graph / "model.onnx").graph.initializer]
    assert any("vision_model" in name for name in names) and not any("text_model" in name for name in names)
    content = (graph / "model.onnx").read_bytes()
    assert not any(path in content for path in (b".py", str(graph.parent).encode(), b"site-packages"))


def test_the_program_in_the_folder_scores_as_predict_does(graph, adapter, photos):
    paths = list(find_images([str(photos)]))
    loaded = load_for_prediction(adapter, device="cpu")
    for line, expected in zip(run_program(graph, paths), classify(loaded, paths, top=1), strict=True):
        path, answer = line.rsplit(": ", 1)
        name, score = answer.rsplit(" ", 1)
        assert (path, name) == (expected.path, expected.top[0][0])
        assert float(score) == pytest.approx(expected.top[0][1], abs=0.01), "two resizers, a grey level apart"


def test_the_card_says_how_to_run_it_and_how_exact_it_is(graph):
    card = (graph / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card and "license: mit" in card and "onnxruntime" in card
    assert "largest difference" in card and "100.0 % of the answers" in card
    settings = json.loads((graph / "config.json").read_text())
    assert len(settings["id2label"]) == 5 and settings["thresholds"] is None


@pytest.fixture
def made_before(graph, monkeypatch):
    """The graph is copied instead of exported again."""
    source = (graph / "model.onnx").read_bytes()
    monkeypatch.setattr(graph_export, "write_onnx", lambda model, example, file: file.write_bytes(source))


def test_a_run_folder_stands_for_what_it_recommends_and_int8_says_what_it_costs(
    run, made_before, adapter, photos, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(adapter.parent, folder)
    accuracy = {"accuracy": {"test": 0.5}}
    chosen = {"method": "coop", "title": "CoOp", "shots": 4, "seed": 1, "folder": "coop"}
    results = {"recommended": chosen, "zero_shot": accuracy, "runs": [chosen | accuracy]}
    (folder / "results.json").write_text(json.dumps(results))
    code, out, err = run("export", folder, tmp_path / "out", "--onnx", "--int8", "--images", photos, "--json")
    assert code == 0 and "recommends CoOp" in err and "of the answers are the same" in err
    said = json.loads(out)
    assert said["images"] == 4 and said["same_answers"] >= 0.75 and 0 < said["max_difference"] < 1
    kinds = {weight.data_type for weight in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert len(run_program(tmp_path / "out", list(find_images([str(photos)])))) == 4


def test_a_graph_whose_prompts_depend_on_images_keeps_its_text_encoder(tmp_path):
    model = adapted("cocoop")
    result = export_graph(model, processor_of_24_pixels(), tmp_path / "out")
    assert result.images == 32 and result.max_difference <= TOLERANCE * max(1, result.largest_logit)
    names = [weight.name for weight in onnx.load(result.file).graph.initializer]
    assert any("text_model" in name for name in names)


def test_openvino(made_before, adapter, photos, tmp_path):
    pytest.importorskip("openvino")
    loaded = load_for_prediction(adapter, device="cpu")
    result = export_graph(loaded.model, loaded.processor, tmp_path / "out", to="openvino")
    assert result.max_difference <= TOLERANCE * max(1, result.largest_logit)
    assert not (tmp_path / "out" / "model.onnx").exists()
    assert len(run_program(tmp_path / "out", list(find_images([str(photos)])))) == 4


@pytest.mark.parametrize("change", [lambda logits: logits + 1e-2, lambda logits: logits * np.nan])
def test_a_graph_with_other_logits_is_an_error_and_nothing_is_written(
    made_before, adapter, tmp_path, monkeypatch, change
):
    loaded, runner = load_for_prediction(adapter, device="cpu"), graph_export.runner

    def changed(file, to):
        run = runner(file, to)
        return lambda pixels: change(run(pixels))

    monkeypatch.setattr(graph_export, "runner", changed)
    with pytest.raises(ValueError, match=r"model.onnx: its logits (differ|are not)"):
        export_graph(loaded.model, loaded.processor, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_labels_have_their_thresholds_in_the_folder(made_before, adapter, photos, tmp_path):
    loaded = load_for_prediction(adapter, device="cpu")
    thresholds = [0.0, 1.0, 1.0, 0.0, 1.0]
    export_graph(loaded.model, loaded.processor, tmp_path / "out", thresholds=thresholds)
    (line,) = run_program(tmp_path / "out", [str(photos / "0.png")])
    names = loaded.class_names
    assert names[0] in line and names[3] in line and names[1] not in line


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--int8"], "--int8: got it without --onnx or --openvino"),
        (["--images", "."], "--images: got it without --onnx or --openvino"),
        (["--onnx", "--openvino"], "--onnx: got it beside --openvino"),
        (["--openvino", "--int8"], "--int8: got it beside --openvino"),
        (["--base", "."], "--base: got . without --onnx or --openvino"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, adapter, tmp_path, arguments, error):
    code, _, err = run("export", adapter.parent / "base", tmp_path / "out", *arguments)
    assert code == 1 and error in err and not (tmp_path / "out").exists()


def test_a_plain_clip_and_images_of_any_shape_are_refused(tmp_path):
    from adapted_classifiers import base_classifier
    from tiny import tiny_clip

    with pytest.raises(ValueError, match="no classifier"):
        export_graph(tiny_clip(), None, tmp_path / "out")
    with pytest.raises(ValueError, match="siglip2 keep their own shapes"):
        export_graph(base_classifier("siglip2"), None, tmp_path / "out")
    with pytest.raises(ValueError, match=r"images: got \[2, 3, 8, 8\]"):
        export_graph(base_classifier(), None, tmp_path / "out", images=torch.zeros(2, 3, 8, 8))
