"""`adapt`: the run folder, wrong arguments, unreadable images, methods that fail."""

import json
import shutil

import pytest
import torch
from few_shot_runs import CONCEPTS, adapter_files, comparable, results_of, save_images
from killing import file_size_limit
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_clip_variants import CLIPClassifier, load_adapter
from hf_clip_variants.data.images.labelled_sets import align_classes
from hf_clip_variants.few_shot import runner as runner_module
from hf_clip_variants.few_shot.adapt import adapt
from hf_clip_variants.few_shot.method import FEW_SHOT_METHODS
from hf_clip_variants.few_shot.run_folder import RunFolder
from hf_clip_variants.few_shot.splits import (
    HELD_OUT,
    draw_shots,
    load_training,
    parse_test_data,
    reload_test_set,
)
from hf_clip_variants.metrics.intervals import gain_text


# Everything small: what a method learns is tested elsewhere.
FAST = {
    "tip_adapter": {"augmentation": "tip", "cache_views": 2, "search_step": [4, 4]},
    "tip_adapter_f": {"epochs": 2, "augmentation": "tip", "views": 2, "cache_views": 2, "search_step": [4, 4]},
    "gda": {},
    "clap": {},
    "clip_adapter": {"epochs": 2, "augmentation": "tip", "views": 2, "ratio_candidates": [0.2, 0.6]},
    "coop": {"epochs": 2, "augmentation": "tip", "views": 2},
    "cocoop": {"epochs": 2, "augmentation": "tip", "views": 2, "batch_size": 4, "learning_rate": 0.05},
    "maple": {"epochs": 2, "augmentation": "tip", "views": 2, "prompt_depth": 2, "learning_rate": 0.05},
    "vpt": {"epochs": 2, "augmentation": "tip", "views": 2, "learning_rate": 0.5},
    "ivlp": {"epochs": 2, "augmentation": "tip", "views": 2, "learning_rate": 0.05},
}


def settings(*methods: str, **changes) -> dict:
    overrides = {f"{m}.{name}": value for m in methods for name, value in FAST[m].items()}
    fast = {"methods": list(methods), "shots": [1, 2], "seeds": [1], "overrides": overrides, "profile": "published"}
    return fast | {"progress": False, "report": False} | changes


METHODS = list(FAST)
# How two shots without a validation split are validated: by a formula, or by two more trainings, which cost too much
# where they run the image encoder.
VALIDATED = {"tip_adapter": "leave-one-out", "gda": "leave-one-out"} | {
    name: "none" if row.trains_image_encoder else "cross-validation"
    for name, row in FEW_SHOT_METHODS.items()
    if name not in ("tip_adapter", "gda")
}


@pytest.fixture(scope="module")
def finished(clip, images, tmp_path_factory):
    """One run of all methods; tests read it."""
    run = tmp_path_factory.mktemp("run") / "run"
    adapt(clip, str(images), run, **settings(*METHODS, report=True))
    return run


def test_the_run_folder_holds_all_documented_files(finished, clip, images):
    results = results_of(finished)
    assert results["status"] == "finished" and results["version"] == 2
    assert results["settings"]["test_data"] == {"test": str(images)} and results["settings"]["profile"] == "published"
    assert results["data"]["class_names"] == sorted(CONCEPTS) and results["data"]["train_images"] == 12
    assert results["data"]["test_sets"]["test"]["images"] == 12
    assert [(r["method"], r["shots"], r["seed"]) for r in results["runs"]] == [
        (m, k, 1) for m in METHODS for k in (1, 2)
    ]
    for record in results["runs"]:
        assert record["error"] is None and 0 <= record["accuracy"]["test"] <= 1
        assert len(record["per_class"]["test"]) == len(CONCEPTS) and len(record["train_indices"]) == record[
            "shots"
        ] * len(CONCEPTS)
        adapter = finished / record["folder"]
        assert {p.name for p in adapter.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
        assert record["adapter_bytes"] == (adapter / "adapter_model.safetensors").stat().st_size
        assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
            finished / "base"
        )
        card = (adapter / "README.md").read_text(encoding="utf-8")
        assert f"{100 * record['accuracy']['test']:.1f} %" in card and f"shots {record['shots']}" in card
        assert all(value >= 0 for value in record["seconds"].values())
        frozen = not FEW_SHOT_METHODS[record["method"]].trains_image_encoder
        assert (record["seconds"]["features"] > 0) == (record["passes_at_every_step"] > 0) == frozen
        validation = record["validation"]
        assert validation["kind"] == (VALIDATED[record["method"]] if record["shots"] > 1 else "none")
        measured = validation["kind"] != "none"
        assert validation["images"] == (12 if measured else 0), "two images of each of six classes"
        for name in ("accuracy", "zero_shot", "standard_error", "temperature"):
            assert (validation[name] is not None) == measured
        assert 0 < record["zero_shot_error"] < 1
    assert results["recommended"]["method"] in {"zero_shot", *METHODS}
    assert {c["method"] for c in results["recommended"]["candidates"]} == {"zero_shot", *METHODS}
    assert [(row["method"], row["shots"]) for row in results["table"]] == [
        ("zero_shot", 0),
        *((m, k) for m in METHODS for k in (1, 2)),
    ]
    assert not (finished / "work" / "unfinished").exists()
    assert (finished / "report.html").stat().st_size > 10_000


def test_prompts_of_each_class_are_those_of_zero_shot_and_of_every_adapter(clip, images, tmp_path):
    """Any number a class; the same run goes on with them."""
    own = {name: [f"a {name}", "a {c} of the kind"][: 1 + index % 2] for index, name in enumerate(CONCEPTS)}
    (tmp_path / "own.json").write_text(json.dumps(own))
    arguments = settings("tip_adapter", "coop", shots=[1], templates=str(tmp_path / "own.json"))
    results = adapt(clip, str(images), tmp_path / "run", **arguments)
    assert [record["error"] for record in results["runs"]] == [None, None]
    expected = {name: [text.replace("{c}", "{}") for text in own[name]] for name in sorted(CONCEPTS)}
    assert results["settings"]["templates"] == expected
    assert CLIPClassifier.from_pretrained(tmp_path / "run" / "base").config.templates == expected
    for record in results["runs"]:
        folder = tmp_path / "run" / record["folder"]
        assert json.loads((folder / "adapter_config.json").read_text())["templates"] == expected
        assert "each class has prompts of its own, 9 in all" in (folder / "README.md").read_text(encoding="utf-8")
    assert comparable(adapt(clip, str(images), tmp_path / "run", **arguments)) == comparable(results)


def test_recorded_accuracies_follow_from_the_predictions(finished):
    results = results_of(finished)
    images = reload_test_set(results, "test", finished)
    labels = torch.from_numpy(images.labels.copy())
    for record in [results["zero_shot"] | {"predictions": "predictions/zero_shot.safetensors"}, *results["runs"]]:
        tensors = load_file(finished / record["predictions"])
        predicted, confidence = tensors["test.predicted"], tensors["test.confidence"]
        assert (
            predicted.dtype == torch.int64
            and confidence.dtype == torch.float32
            and len(predicted) == len(labels) == 12
        )
        assert record["accuracy"]["test"] == pytest.approx((predicted == labels).float().mean().item())
        for index, value in enumerate(record["per_class"]["test"]):
            assert value == pytest.approx((predicted == labels)[labels == index].float().mean().item())
        top = tensors["test.top"].long()  # of six classes
        assert top.shape == (12, 5) and torch.equal(top[:, 0], predicted)
        assert all(len(set(row)) == 5 for row in top.tolist())


def test_an_adapters_card_shows_zero_shot_clips_accuracy_on_the_same_images(finished):
    results = results_of(finished)
    zero_shot = results["zero_shot"]["accuracy"]["test"]
    for record in results["runs"]:
        card = (finished / record["folder"] / "README.md").read_text(encoding="utf-8")
        value = record["accuracy"]["test"]
        assert f"{100 * value:.1f} % (zero-shot CLIP: {100 * zero_shot:.1f} %)" in card
        row = next(r for r in results["table"] if (r["method"], r["shots"]) == (record["method"], record["shots"]))
        test = row["tests"]["test"]  # one seed: the same figures
        assert f"gain {gain_text(test['gain'], test['interval'])}" in card


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_adapter_gives_the_recorded_predictions_from_pixels(finished, method):
    from peft import PeftModel
    from transformers import AutoProcessor

    results = results_of(finished)
    record = next(r for r in results["runs"] if r["method"] == method and r["shots"] == 2)
    images = reload_test_set(results, "test", finished)
    processor = AutoProcessor.from_pretrained(finished / "base")
    pixels = processor(images=[images.image(i) for i in range(len(images))], return_tensors="pt")["pixel_values"]
    expected = load_file(finished / record["predictions"])
    ours = load_adapter(finished / record["folder"])
    peft = PeftModel.from_pretrained(
        CLIPClassifier.from_pretrained(finished / "base"), finished / record["folder"]
    ).eval()
    for model in (ours, peft):
        model.get_base_model().faster_images = True  # as in the run: the strength of the votes magnifies rounding
        with torch.no_grad():
            best = model(pixel_values=pixels).logits.softmax(1).max(1)
        assert torch.equal(best.indices, expected["test.predicted"])
        assert torch.allclose(best.values, expected["test.confidence"], atol=1e-5)
    assert ours.get_base_model().class_names == sorted(CONCEPTS)


def test_adapters_do_not_depend_on_the_test_images(finished, clip, images, tmp_path):
    other = save_images(tmp_path / "other", {"": ["fluent3d"]}, CONCEPTS[:3])
    adapt(clip, str(images), tmp_path / "run", **settings("tip_adapter", "coop", test_data={"few": str(other)}))
    for record in results_of(tmp_path / "run")["runs"]:
        one, two = (
            load_file(run / record["folder"] / "adapter_model.safetensors") for run in (finished, tmp_path / "run")
        )
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert record["per_class"]["few"].count(None) == 3, "classes without test images"


def test_a_finished_run_is_not_repeated(finished, clip, images, monkeypatch):
    before, files = results_of(finished), adapter_files(finished)

    def refuse(*arguments, **options):
        raise AssertionError("nothing is to be fitted")

    monkeypatch.setattr(runner_module, "fit_adapter", refuse)
    results = adapt(clip, str(images), finished, **settings(*METHODS))
    assert comparable(results) == comparable(before) and adapter_files(finished) == files


def test_a_run_does_not_depend_on_order_and_other_runs(finished, clip, images, tmp_path):
    adapt(clip, str(images), tmp_path / "run", **settings("coop", "tip_adapter_f", shots=[2], cache_features=True))
    alone = adapter_files(tmp_path / "run")
    together = adapter_files(finished)
    weights = [name for name in alone if name.endswith("adapter_model.safetensors")]
    assert len(weights) == 2 and all(alone[name] == together[name] for name in weights)


def test_encoding_at_every_step_gives_the_same_adapters(finished, clip, images, tmp_path):
    methods = ["tip_adapter_f", "clip_adapter", "coop"]
    results = adapt(clip, str(images), tmp_path / "run", **settings(*methods, shots=[2], cache_features=False))
    cached = {r["folder"]: r for r in results_of(finished)["runs"]}
    for record in results["runs"]:
        one, two = (
            load_file(run / record["folder"] / "adapter_model.safetensors") for run in (finished, tmp_path / "run")
        )
        assert all(torch.allclose(one[name].float(), two[name].float(), atol=1e-5) for name in one)
        # Strengths from the shots multiply the differences of the features, which are errors of rounding.
        assert record["curve"] == pytest.approx(cached[record["folder"]]["curve"], rel=1e-3, abs=1e-5)
        assert record["validation"] == cached[record["folder"]]["validation"]
        assert record["accuracy"] == cached[record["folder"]]["accuracy"]
    assert results["data"]["encoded_views"] == 0 and results_of(finished)["data"]["encoded_views"] == (2 + 1) * 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shots": [1]}, ["shots was [1, 2], now [1]"]),
        ({"seeds": [1, 2]}, ["seeds was [1], now [1, 2]"]),
        ({"methods": METHODS[::-1]}, ["methods"]),
        ({"templates": "general"}, ["templates"]),
        ({"overrides": {"coop.epochs": 9}}, ["overrides"]),
        ({"cache_features": False}, ["cache_features"]),
        ({"profile": "tiny", "overrides": {}}, ["profile", "overrides"]),
    ],
)
def test_the_same_folder_with_other_settings_is_refused(finished, clip, images, change, words):
    before = adapter_files(finished), (finished / "results.json").read_bytes()
    with pytest.raises(ValueError) as error:
        adapt(clip, str(images), finished, **settings(*METHODS) | change)
    assert all(word in str(error.value) for word in [*words, "other settings", str(finished)])
    assert before == (adapter_files(finished), (finished / "results.json").read_bytes())


def test_changed_images_or_weights_are_refused(clip, images, tmp_path):
    data, model, run = tmp_path / "images", tmp_path / "clip", tmp_path / "run"
    shutil.copytree(images, data)
    shutil.copytree(clip, model)
    arguments = settings("tip_adapter")
    adapt(model, str(data), run, **arguments)
    for split in ("train", "test"):
        (image, *_) = sorted((data / split / "cat").iterdir())
        before = image.read_bytes()
        Image.new("RGB", (8, 8), "red").save(image)
        with pytest.raises(
            ValueError, match=rf"the contents of {'data' if split == 'train' else 'test_data.test'} changed"
        ):
            adapt(model, str(data), run, **arguments)
        image.write_bytes(before)
    adapt(model, str(data), run, **arguments)
    weights = load_file(model / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="the contents of model changed"):
        adapt(model, str(data), run, **arguments)


def test_a_folder_that_is_not_a_run_folder_is_refused(clip, images, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds thesis.tex but no results.json"):
        adapt(clip, str(images), tmp_path, **settings("tip_adapter"))
    with pytest.raises(ValueError, match="is a file"):
        adapt(clip, str(images), tmp_path / "thesis.tex", **settings("tip_adapter"))
    run = tmp_path / "run"
    run.mkdir()
    for content, words in (("{", "cannot be read"), ('{"version": 7}', "version 7")):
        (run / "results.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            adapt(clip, str(images), run, **settings("tip_adapter"))


def test_two_processes_in_one_folder_are_refused(clip, images, tmp_path):
    arguments = settings("tip_adapter", shots=[1])
    adapt(clip, str(images), tmp_path / "run", **arguments)
    with RunFolder(tmp_path / "run").locked(), pytest.raises(ValueError, match="another process"):
        adapt(clip, str(images), tmp_path / "run", **arguments)


def test_a_method_that_fails_is_recorded_and_the_others_go_on(clip, images, tmp_path, monkeypatch):
    from hf_clip_variants.few_shot.fitting import fit_adapter

    def fail_once(classifier, method, shots, *arguments, **options):
        if method == "clip_adapter":
            raise RuntimeError("out of memory")
        return fit_adapter(classifier, method, shots, *arguments, **options)

    monkeypatch.setattr(runner_module, "fit_adapter", fail_once)
    arguments = settings("clip_adapter", "tip_adapter", shots=[1], report=True)
    failed, done = adapt(clip, str(images), tmp_path / "run", **arguments)["runs"]
    assert failed["error"] == "RuntimeError: out of memory" and failed["accuracy"] == {} and failed["folder"] is None
    assert done["error"] is None and done["accuracy"]["test"] >= 0
    assert "out of memory" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    monkeypatch.undo()  # tried again, and only that
    calls = []
    monkeypatch.setattr(
        runner_module, "fit_adapter", lambda c, m, *a, **o: calls.append(m) or fit_adapter(c, m, *a, **o)
    )
    mended = adapt(clip, str(images), tmp_path / "run", **arguments)["runs"]
    assert calls == ["clip_adapter"] and [r["error"] for r in mended] == [None, None]


@pytest.mark.parametrize("lost", ["", "base", "base/model.safetensors", "adapters/gda/1-shot", "predictions"])
def test_what_is_removed_while_a_run_goes_on_is_no_success(lost, clip, images, tmp_path, monkeypatch):
    """The command says so, and does it again where its folder is still there."""
    attempt, run = runner_module.FewShotRunner.attempt, tmp_path / "run"

    def removed(self, task, asked, finish=None):
        if asked.shots == 2:
            place = run / lost
            shutil.rmtree(place) if place.is_dir() else place.unlink()
        return attempt(self, task, asked, finish)

    monkeypatch.setattr(runner_module.FewShotRunner, "attempt", removed)
    with pytest.raises(OSError, match="removed while .* running; repeat|No such file .*run.predictions"):
        adapt(clip, images, run, **settings("gda"))
    assert not (run / "results.json").exists() or json.loads((run / "results.json").read_text())["status"] == "running"
    monkeypatch.setattr(runner_module.FewShotRunner, "attempt", attempt)
    if lost == "":
        assert not run.exists() or not (run / "base").exists(), "nothing that looks like a run"
    elif "/model" not in lost:
        results = adapt(clip, images, run, **settings("gda"))
        assert results["status"] == "finished" and (run / "base" / "model.safetensors").is_file()
        assert all((run / r["folder"] / "adapter_model.safetensors").is_file() for r in results["runs"])


def test_a_full_disk_stops_the_command_and_is_no_failure_of_the_method(clip, images, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_clip_variants.few_shot.adapt._save_adapter", full)
    with pytest.raises(OSError, match="No space left"):
        adapt(clip, str(images), tmp_path / "run", **settings("tip_adapter"))
    assert results_of(tmp_path / "run")["runs"] == []


def test_a_full_disk_error_names_the_file_and_the_command_can_go_on(clip, images, tmp_path):
    with file_size_limit(100_000), pytest.raises(OSError) as error:
        adapt(clip, str(images), tmp_path / "run", **settings("tip_adapter"))
    assert str(tmp_path / "run") in str(error.value) and "bytes are needed" in str(error.value)
    results = adapt(clip, str(images), tmp_path / "run", **settings("tip_adapter"))
    assert results["status"] == "finished" and len(results["runs"]) == 2


def test_without_a_test_split_a_share_of_each_class_is_the_test_set(clip, tmp_path, caplog):
    data = save_images(tmp_path / "data", {"": ["fluentflat", "emojione", "fluent3d", "notov1"]})
    results = adapt(clip, str(data), tmp_path / "run", **settings("tip_adapter", shots=[1], seeds=[1, 2], report=True))
    drawn = {row for record in results["runs"] for row in record["train_indices"]}
    assert len(drawn) > 6, "two seeds draw different images"
    images = reload_test_set(results, HELD_OUT, tmp_path / "run")
    train, _ = load_training(str(data))
    assert results["data"]["test_sets"][HELD_OUT]["images"] == len(images) == 6, "one of four images of each class"
    assert sorted(images.labels.tolist()) == list(range(6)) and not set(images.ids) & {train.ids[row] for row in drawn}
    assert "No images" not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    caplog.clear()
    every = adapt(clip, str(data), tmp_path / "all", **settings("tip_adapter", shots=[4]))
    assert reload_test_set(every, HELD_OUT, tmp_path / "all").ids == images.ids
    assert [record["shots"] for record in every["runs"]] == [3] and every["settings"]["shots"] == [4]
    assert "4 shots need 5 images of each class with the test set; most classes leave 3" in caplog.text


def test_hyper_parameters_are_chosen_on_the_validation_split(clip, tmp_path):
    data = save_images(tmp_path / "data", {"train": ["fluentflat"], "val": ["emojione"], "test": ["notov1"]})
    (record,) = adapt(clip, str(data), tmp_path / "run", **settings("tip_adapter", shots=[1]))["runs"]
    assert record["validation"]["kind"] == "split" and 0 <= record["validation"]["accuracy"] <= 1
    assert {"alpha", "beta", "search_step"} <= set(record["hyperparameters"])


def test_benchmark_names_the_data_set_whose_recipes_are_used(clip, images, tmp_path):
    arguments = settings("clip_adapter", shots=[1])
    for benchmark, ratio in (("dtd", 0.6), ("imagenet", 0.2)):
        (record,) = adapt(clip, str(images), tmp_path / benchmark, **arguments, benchmark=benchmark)["runs"]
        assert record["hyperparameters"]["ratio"] == ratio


def test_images_that_cannot_be_read_are_named_and_left_out(clip, tmp_path, caplog):
    data = save_images(tmp_path / "data", {"train": ["fluentflat", "emojione", "notov1"], "test": ["fluent3d"]})
    (data / "train" / "cat" / "fluentflat.png").write_bytes((data / "train" / "cat" / "notov1.png").read_bytes()[:200])
    (data / "train" / "dog" / "emojione.png").write_text("<html>404</html>")
    (data / "test" / "owl" / "fluent3d.png").write_bytes(b"")
    results = adapt(clip, str(data), tmp_path / "run", **settings("tip_adapter", shots=[2], seeds=[1, 2, 3]))
    assert set(results["data"]["skipped"]) == {"cat/fluentflat.png", "dog/emojione.png"}
    assert results["data"]["test_sets"]["test"]["unreadable"] == ["owl/fluent3d.png"]
    assert results["data"]["test_sets"]["test"]["images"] == 5
    train, _ = load_training(str(data))
    drawn = {train.ids[row] for record in results["runs"] for row in record["train_indices"]}
    assert not drawn & set(results["data"]["skipped"]) and {"cat/emojione.png", "cat/notov1.png"} <= drawn
    assert "cat/fluentflat.png" in caplog.text and "owl/fluent3d.png" in caplog.text
    for style in ("emojione", "notov1"):
        (data / "train" / "cat" / f"{style}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="cat"):
        adapt(clip, str(data), tmp_path / "none", **settings("tip_adapter"))


def test_fewer_images_than_shots_give_a_warning(clip, tmp_path, caplog):
    data = save_images(tmp_path / "data", {"train": ["fluentflat", "emojione"], "test": ["notov1"]})
    (data / "train" / "pizza" / "emojione.png").unlink()
    (record,) = adapt(clip, str(data), tmp_path / "run", **settings("tip_adapter", shots=[2]))["runs"]
    assert len(record["train_indices"]) == 11 and record["error"] is None
    assert "fewer than 2 images in 1 classes: 'pizza'" in caplog.text


def test_class_names_are_not_used_as_file_names(clip, tmp_path):
    import datasets

    names = ["../../escaped", "CON", "a/b", "nul\0l", "🦊" * 40, "x" * 300]
    images = save_images(tmp_path / "images", {"": ["fluentflat", "notov1"]})
    files = [images / concept / f"{style}.png" for style in ("fluentflat", "notov1") for concept in CONCEPTS]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    table = {"image": [{"bytes": f.read_bytes(), "path": None} for f in files], "label": list(range(6)) * 2}
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "data.parquet")
    inside = tmp_path / "deep" / "down"
    inside.mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    results = adapt(
        clip, str(tmp_path / "data.parquet"), inside / "run", **settings("tip_adapter", "clip_adapter", shots=[1])
    )
    assert [r["error"] for r in results["runs"]] == [None, None] and results["data"]["class_names"][
        0
    ] == "../../escaped"
    new = set(tmp_path.rglob("*")) - before
    assert new and all(path.is_relative_to(inside / "run") for path in new)
    assert not any("escaped" in path.name or "🦊" in path.name for path in new)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"methods": ["tip"], "overrides": {}}, ["'tip'", "tip_adapter"]),
        ({"methods": []}, ["methods"]),
        ({"methods": ["coop", "coop"]}, ["methods", "twice"]),
        ({"shots": [0]}, ["shots", "0"]),
        ({"shots": [2, 2]}, ["shots"]),
        ({"seeds": []}, ["seeds"]),
        ({"overrides": {"epoch": 1}}, ["'epoch'"]),
        ({"overrides": {"coop.ratio": 0.5}}, ["coop", "'ratio'"]),
        ({"overrides": {"vpt.depth": 1}}, ["'vpt'"]),
        ({"benchmark": "pets2"}, ["pets2"]),
        ({"templates": "no place"}, ["no place"]),
        ({"test_data": {"x": "emoji:notov1"}}, ["emoji:notov1", "not among"]),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(clip, images, tmp_path, arguments, words):
    with pytest.raises(ValueError) as error:
        adapt(clip, str(images), tmp_path / "run", **settings("coop", "tip_adapter") | arguments)
    assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "run").exists()


def test_test_data_arguments_are_parsed():
    sources = {"a": "b/c", "notov1": "emoji:notov1", "test": "pets/test", "x": "emoji:fluent3d"}
    assert parse_test_data(["a=b/c", "emoji:notov1", "pets/test", "x=emoji:fluent3d"]) == sources
    for bad in (["=x"], ["a="], ["a=1", "a=2"]):
        with pytest.raises(ValueError, match="test_data"):
            parse_test_data(bad)


def test_labels_are_matched_by_name(images):
    train, _ = load_training(str(images))
    turned = align_classes(train, train.class_names[::-1], "data")
    assert [turned.class_names[label] for label in turned.labels] == [
        train.class_names[label] for label in train.labels
    ]
    with pytest.raises(ValueError, match="2 of 6 classes .* 'cat'"):
        align_classes(train, [name for name in train.class_names if name not in ("cat", "dog")], "data")


def test_the_draw_equals_the_published_protocols(images):
    from hf_clip_variants.data import sample_few_shot

    train, _ = load_training(str(images))
    draws = draw_shots(train, None, [1, 2], [1, 2])
    for (count, seed), split in draws.splits.items():
        assert split.train == sample_few_shot(train.labels, count, seed, val=False).train
    assert draws.skipped == () and draws.rows == sorted(set(range(12)))
