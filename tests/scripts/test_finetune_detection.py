"""scripts/finetune_detection.py: both forms of data, accumulation, resuming, bf16, processes, wrong arguments."""

import json
import shutil
import sys

import datasets
import numpy as np
import pytest
import torch
from paths import SCRIPTS
from PIL import Image
from processes import run_on_ranks
from safetensors.torch import load_file
from transformers import pipeline
from vild_runs import vild_model, vild_processor

from hf_clip_variants.data.detection_sets import load_detection_set


SCRIPT = SCRIPTS / "finetune_detection.py"
NAMES = ["cat", "dog", "boat"]
# `vild_model` draws nothing by chance: it trains on all anchors and regions.
PLAIN = ["--batch-size", "1", "--freeze-batch-norm", "--lr", "1e-3", "--save-every", "1", "--log-every", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a detector, COCO's json with images, and the same as a data set."""
    folder = tmp_path_factory.mktemp("finetune")
    vild_model().save_pretrained(folder / "model")
    vild_processor().save_pretrained(folder / "model")
    (folder / "images").mkdir()
    draw, images, marks = np.random.default_rng(0), [], []
    for i in range(5):
        pixels = draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        images.append({"id": 10 + i, "file_name": f"{i}.png", "width": 64, "height": 64})
        for box in ([8, 8, 24, 20], [34, 30, 20, 26])[: i % 3]:  # images without objects, too
            x, y, width, height = box
            pixels[y : y + height, x : x + width] = 40 * (len(marks) % 3)
            mark = {"id": len(marks) + 1, "image_id": 10 + i, "category_id": 2 + 3 * (len(marks) % 3), "bbox": box}
            marks.append(mark | {"area": width * height, "iscrowd": 0, "segmentation": [[x, y, x + 9, y, x, y + 9]]})
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    categories = [{"id": 2 + 3 * n, "name": name} for n, name in enumerate(NAMES)]
    document = {"images": images, "annotations": marks, "categories": categories}
    (folder / "train.json").write_text(json.dumps(document))
    # A test set on which the new model is good: its own detections.
    pipe = pipeline("zero-shot-object-detection", str(folder / "model"))
    paths = [str(folder / "images" / f"{i}.png") for i in range(5)]
    found = pipe(paths, candidate_labels=NAMES, threshold=0.0, top_k=4)
    marks = [
        {"image_id": 10 + i, "category_id": 2 + 3 * NAMES.index(one["label"]), "bbox": [xmin, ymin, wide, high]}
        for i, row in enumerate(found)
        for one in row
        for xmin, ymin, xmax, ymax in [one["box"].values()]
        if (wide := xmax - xmin) > 0 and (high := ymax - ymin) > 0
    ]
    (folder / "own.json").write_text(json.dumps(document | {"annotations": marks}))
    read = load_detection_set(folder / "train.json")
    rows = [
        {
            "image": read.images[i],
            "objects": {
                "bbox": [one["bbox"] for one in read.annotations[i]],
                "category": [one["category_id"] for one in read.annotations[i]],
            },
        }
        for i in range(5)
    ]
    objects = {"bbox": datasets.List(datasets.List(datasets.Value("float32")))}
    objects["category"] = datasets.List(datasets.ClassLabel(names=NAMES))
    features = datasets.Features({"image": datasets.Image(), "objects": objects})
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(folder / "train.parquet"))
    return folder


@pytest.fixture
def train(place, monkeypatch):
    """Runs the script in this process: (exit code, OUT/run.json or None)."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    import finetune_detection

    def run(out, *more, data="train.json"):
        arguments = ["--model", place / "model", "--data", place / data, "--out", out, *PLAIN, *more]
        code = finetune_detection.main([str(one) for one in arguments])
        file = out / "run.json"
        return code, json.loads(file.read_text()) if file.is_file() else None

    yield run
    torch.set_num_threads(threads)
    sys.modules.pop("finetune_detection", None)


def weights(out) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def assert_same(one, other, **tolerance) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, **({"rtol": 0, "atol": 0} | tolerance))


def test_both_forms_of_data_are_read_alike(place):
    one, other = load_detection_set(place / "train.json"), load_detection_set(place / "train.parquet")
    assert one.class_names == other.class_names == NAMES and len(one) == len(other) == 5
    for i in range(5):
        assert one.target(i) == other.target(i)
        assert np.array_equal(np.asarray(one.images[i]), np.asarray(other.images[i]))
    assert [len(row) for row in one.annotations] == [0, 1, 2, 0, 1]
    assert one.groups(["boat"]) == {"base": [0, 1], "novel": [2]} and one.groups([]) == {}
    assert sum(map(len, one.without(["boat"]).annotations)) == 3
    with pytest.raises(ValueError, match="novel: no class 'ship'"):
        one.without(["ship"])


def test_it_trains_resumes_and_evaluates_groups(train, place, tmp_path):
    options = ["--steps", "4", "--accumulate", "2", "--novel", "boat", "--eval-data", place / "train.json", "--masks"]
    code, run = train(tmp_path / "a", *options, "--trainer", "save_total_limit=9")
    assert code == 0 and run["steps"] == 4 and {"eval_AP", "eval_base/AP", "eval_novel/AP50"} <= run["metrics"].keys()
    losses = [row["loss"] for row in run["log"] if "loss" in row]
    assert len(losses) == 4 and all(np.isfinite(losses))
    config = json.loads((tmp_path / "a" / "model" / "config.json").read_text())
    assert config["base_labels"] == ["cat", "dog"] and config["id2label"]["2"] == "boat"
    (tmp_path / "b").mkdir()
    shutil.copytree(tmp_path / "a" / "checkpoint-2", tmp_path / "b" / "checkpoint-2")
    code, again = train(tmp_path / "b", *options)
    assert code == 0 and again["metrics"] == run["metrics"]
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    code, half = train(tmp_path / "c", "--steps", "1", "--bf16", data="train.parquet")
    assert code == 0 and all(np.isfinite(row["loss"]) for row in half["log"] if "loss" in row)


def test_two_processes_equal_one(train, place, tmp_path):
    options = ["--steps", "2", "--eval-data", place / "own.json", "--novel", "boat"]
    code, one = train(tmp_path / "one", *options, "--accumulate", "2")
    arguments = ["--model", place / "model", "--data", place / "train.json", *PLAIN, *options]
    run_on_ranks(SCRIPT, *arguments, "--out", tmp_path / "two", world_size=2, folder=tmp_path)
    two = json.loads((tmp_path / "two" / "run.json").read_text())
    assert code == 0
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-4, atol=2e-5)
    found = [[run["metrics"][name] for name in sorted(one["metrics"]) if "A" in name] for run in (one, two)]
    assert found[0] == pytest.approx(found[1], abs=1e-3) and one["metrics"]["eval_AP"] > 0.01
    assert not all(torch.equal(t, weights(tmp_path / "two")[n]) for n, t in vild_model().state_dict().items())


def test_wrong_arguments_are_sentences(train, place, tmp_path, capsys):
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    for more, message in (
        (["--novel", "ship"], "--novel: no class 'ship'"),
        (["--novel", "cat,dog,boat"], "has no box of a class that is trained on"),
        (["--images", tmp_path], "--images: 0.png"),
        (["--data", wrong], "not COCO's json"),
        (["--data", tmp_path / "none.json"], "none.json"),
    ):
        code, _ = train(tmp_path / "out", "--steps", "1", *more)
        assert code == 2 and message in (err := capsys.readouterr().err), err
