"""scripts/finetune_detection.py --tuning full, linear_probe and prompt: what changes, resuming, processes."""

import json
import shutil
import sys

import pytest
import torch
from glip_runs import NAMES, PROBE, glip_model, glip_processor, save_glip_data
from paths import SCRIPTS
from processes import run_on_ranks
from safetensors.torch import load_file
from transformers import AutoModelForZeroShotObjectDetection, pipeline


VECTORS = "base_model.model.text_encoder.clipv_language_prompt_vectors"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuning")
    for part in (glip_model(), glip_processor()):
        part.save_pretrained(folder / "model")
    save_glip_data(folder)
    return folder


@pytest.fixture
def train(place, monkeypatch):
    """Runs finetune_detection.py in this process: (exit code, OUT/run.json or None)."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    import finetune_detection

    def run(out, *more, data="train.json"):
        arguments = ["--model", place / "model", "--data", place / data, "--out", out, "--batch-size", "2"]
        arguments += ["--log-every", "1", "--save-every", "1", "--no-flip", *more]
        code = finetune_detection.main([str(one) for one in arguments])
        file = out / "run.json"
        return code, json.loads(file.read_text()) if file.is_file() else None

    yield run
    torch.set_num_threads(threads)
    sys.modules.pop("finetune_detection", None)


def losses(run) -> list[float]:
    return [row["loss"] for row in run["log"] if "loss" in row]


def test_a_linear_probe_in_one_command(train, place, tmp_path):
    code, run = train(tmp_path / "a", "--tuning", "linear_probe", "--steps", "3", "--lr", "1e-2")
    assert code == 0 and len(losses(run)) == 3
    old, new = (load_file(folder / "model.safetensors") for folder in (place / "model", tmp_path / "a" / "model"))
    assert {name for name in old if not torch.equal(old[name], new[name])} == PROBE


def test_prompt_tuning_in_one_command_goes_on_from_a_checkpoint(train, place, tmp_path, capsys):
    options = ["--tuning", "prompt", "--steps", "4", "--lr", "0.05", "--weight-decay", "0.25", "--accumulate", "2"]
    options += ["--trainer", "save_total_limit=9", "--eval-data", place / "train.json"]
    code, run = train(tmp_path / "a", *options)
    assert code == 0 and "480 trained weights" in capsys.readouterr().err
    assert losses(run)[-1] < losses(run)[0] and 0 <= run["metrics"]["eval_AP50"] <= 1
    (trained,) = load_file(tmp_path / "a" / "model" / "adapter_model.safetensors").items()
    assert trained[0] == VECTORS and not (tmp_path / "a" / "model" / "model.safetensors").exists()
    (tmp_path / "b").mkdir()
    shutil.copytree(tmp_path / "a" / "checkpoint-2", tmp_path / "b" / "checkpoint-2")
    code, again = train(tmp_path / "b", *options)
    assert code == 0 and losses(again)[-2:] == losses(run)[-2:] and again["metrics"] == run["metrics"]
    assert torch.equal(load_file(tmp_path / "b" / "model" / "adapter_model.safetensors")[VECTORS], trained[1])
    # The folder is enough for a pipeline.
    photo, names = str(place / "images" / "1.png"), ["cat", "traffic light", "pizza"]
    found = pipeline("zero-shot-object-detection", str(tmp_path / "a" / "model"))(photo, candidate_labels=names)
    plain = pipeline("zero-shot-object-detection", str(place / "model"))(photo, candidate_labels=names)
    assert {one["label"] for one in found} <= set(names) and found[0]["score"] != plain[0]["score"]
    model = AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path / "a" / "model")
    with pytest.raises(ValueError, match="input_ids: another prompt"):
        model(**glip_processor()(str(place / "images" / "1.png"), NAMES))


def test_a_tuning_that_cannot_be_is_an_error(train, place, tmp_path, capsys):
    categories = [{"id": i, "name": name} for i, name in enumerate([f"{n} {m}" for n in NAMES for m in NAMES])]
    document = json.loads((place / "train.json").read_text()) | {"categories": categories}
    (place / "many.json").write_text(json.dumps(document))
    code, _ = train(tmp_path / "a", "--tuning", "prompt", "--steps", "1", data="many.json")
    said = "--tuning: prompt, but the 25 class names do not fit into one prompt"
    assert code == 2 and said in capsys.readouterr().err


def weights(out) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def test_full_tuning_goes_on_from_a_checkpoint_with_accumulation(train, tmp_path):
    options = ["--steps", "3", "--accumulate", "2", "--lr", "1e-3", "--trainer", "save_total_limit=9"]
    code, run = train(tmp_path / "a", *options)
    assert code == 0
    (tmp_path / "b").mkdir()
    shutil.copytree(tmp_path / "a" / "checkpoint-2", tmp_path / "b" / "checkpoint-2")
    code, again = train(tmp_path / "b", *options)
    assert code == 0 and losses(again) == losses(run)
    old, new = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.slow  # two new processes
@pytest.mark.parametrize("tuning", ["full", "prompt"])
def test_two_processes_equal_one_with_the_doubled_batch(tuning, train, place, tmp_path):
    """Sums are divided by the ranks' mean number of anchors that have an object, at least 1, as officially.

    Plain gradient descent: Adam would make a step of full size of a gradient that is rounding noise.
    """
    options = ["--tuning", tuning, "--steps", "2", "--lr", "1e-1", "--eval-data", place / "all.json"]
    options += ["--trainer", "optim=sgd"]
    code, one = train(tmp_path / "one", *options, data="all.json")
    arguments = ["--model", place / "model", "--data", place / "all.json", "--log-every", "1", "--no-flip", *options]
    out = ["--out", tmp_path / "two", "--batch-size", "1"]
    run_on_ranks(SCRIPTS / "finetune_detection.py", *arguments, *out, world_size=2, folder=tmp_path)
    two = json.loads((tmp_path / "two" / "run.json").read_text())
    assert code == 0 and losses(one) == pytest.approx(losses(two), rel=1e-4)
    file = "adapter_model.safetensors" if tuning == "prompt" else "model.safetensors"
    found, expected = (load_file(tmp_path / name / "model" / file) for name in ("two", "one"))
    assert found.keys() == expected.keys()
    start = load_file(place / "model" / "model.safetensors")
    moved = [float((expected[name] - start[name]).abs().max()) for name in expected if name in start]
    assert tuning == "prompt" or max(moved) > 1e-3
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
    assert one["metrics"]["eval_AP"] == pytest.approx(two["metrics"]["eval_AP"], abs=1e-3)
