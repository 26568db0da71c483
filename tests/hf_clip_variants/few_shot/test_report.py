import csv
import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_clip_variants.data.images.emoji import load_emoji
from hf_clip_variants.few_shot.next_commands import next_commands
from hf_clip_variants.few_shot.recommendation import recommend
from hf_clip_variants.few_shot.report import class_changes, confused_pairs, confusion, human_seconds, write_report
from hf_clip_variants.few_shot.summary import finished_runs, summary
from hf_clip_variants.files.json_files import write_json
from hf_clip_variants.metrics.intervals import gain_text


CONCEPTS = ("cat", "dog", "pizza", "banana", "rose", "owl", "taco", "whale")
STYLES = ("fluentflat", "emojione", "fluent3d", "notov1")
TITLES = {"tip_adapter": "Tip-Adapter", "coop": "CoOp"}


def make_run_folder(folder, methods=None, shots=(1, 2), seeds=(1, 2), concepts=CONCEPTS, styles=STYLES):
    """A finished run with made-up predictions on one test set of `concepts` in `styles`.

    `methods`: name -> (share of right test images, share of right validation images); zero-shot CLIP has half of them.
    """
    methods = methods or {"tip_adapter": (0.8, 0.9), "coop": (0.95, 0.5)}
    images = folder / "images"
    for style in styles:
        loaded = load_emoji(style, concepts=list(concepts))
        for index, concept in enumerate(concepts):
            (images / concept).mkdir(parents=True, exist_ok=True)
            loaded.image(index).save(images / concept / f"{style}.png")
    names = sorted(concepts)
    labels = np.repeat(np.arange(len(names)), len(styles))
    rng = np.random.default_rng(0)
    (folder / "predictions").mkdir()

    def predict(right, path, **more):
        hit = np.arange(len(labels)) < round(right * len(labels))
        rng.shuffle(hit)
        predicted = np.where(hit, labels, (labels + 1) % len(names))
        top = (predicted[:, None] + np.arange(5)) % len(names)
        score = np.full(len(labels), 0.5, np.float32)
        save_file({"test.predicted": predicted, "test.confidence": score, "test.top": top} | more, folder / path)
        right_by_class = [float((predicted == labels)[labels == c].mean()) for c in range(len(names))]
        return {"accuracy": {"test": float((predicted == labels).mean())}, "per_class": {"test": right_by_class}}

    zero_shot = predict(0.5, "predictions/zero_shot.safetensors", **{"test.labels": labels})
    runs = []
    for method, (right, validated) in methods.items():
        for k in shots:
            for seed in seeds:
                path = f"predictions/{method}_{k}-shot_seed-{seed}.safetensors"
                validation = {"kind": "cross-validation", "accuracy": validated, "zero_shot": 0.5, "images": 40}
                runs.append(
                    {
                        **{"method": method, "title": TITLES[method], "shots": k, "seed": seed},
                        **predict(right, path),
                        "validation": validation | {"standard_error": 0.01, "temperature": 1.0},
                        "zero_shot_error": 0.0,
                        "hyperparameters": {"epochs": 20},
                        "trained_parameters": 1234,
                        "adapter_bytes": 4321,
                        "seconds": {"features": 1.0, "train": 2.0, "search": 0.5, "test": 0.1},
                        "folder": f"adapters/{method}/{k}-shot/seed-{seed}",
                        "predictions": path,
                        "passes_at_every_step": 0,
                        "error": None,
                    }
                )
    about = {"images": len(labels), "unreadable": [], "source": str(images), "split": None}
    results = {
        "version": 2,
        "status": "finished",
        "settings": {"model": "emoji-clip-tiny", "data": "emoji:fluentflat", "test_data": {}, "seeds": list(seeds)},
        "environment": {"device": "cpu", "threads": 2},
        "model": {"name": "emoji-clip-tiny", "parameters": 6_300_000, "image_size": 64},
        "data": {"class_names": names, "train_images": 380, "encoded_views": 0, "test_sets": {"test": about}},
        "zero_shot": zero_shot | {"seconds": 1.0},
        "runs": runs,
        "seconds": 75.0,
    }
    return summarise(folder, results)


def summarise(folder, results):
    results |= {"recommended": recommend(finished_runs(results)), "table": summary(folder, results)}
    write_json(folder / "results.json", results)
    return results


def page_of(folder) -> str:
    """The page with single spaces."""
    return " ".join(write_report(folder).read_text(encoding="utf-8").split())


def text_of(folder) -> str:
    """What a reader sees."""
    page = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<script>.*?</script>", "", page_of(folder))
    return re.sub(r"\s+([,.)])", r"\1", " ".join(re.sub(r"<[^>]+>", " ", page).split()))


def test_the_report_is_one_self_contained_page(tmp_path):
    make_run_folder(tmp_path)
    path = write_report(tmp_path)
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.html" and not list(tmp_path.glob("*.tmp"))
    assert not re.search(r'((src|href)="(?!data:|#)|url\((?!#))', page), "nothing is fetched from elsewhere"
    assert page.count("<svg") == 1 and 'role="img" aria-label="test, 32 test images' in page
    assert page.count("<figure>") > 20 and "Fixed by adapting" in page and "Broken by adapting" in page
    assert page.count("<caption>") == page.count("<table") and "<img src" in page and 'alt=""' not in page


def test_the_method_shown_is_chosen_by_validation_and_not_by_test_accuracy(tmp_path):
    results = make_run_folder(tmp_path)
    coop, tip = (
        next(row for row in results["table"] if (row["method"], row["shots"]) == (method, 2))["tests"]["test"]
        for method in ("coop", "tip_adapter")
    )
    assert coop["accuracy"] > tip["accuracy"] + 0.1, "the best on the test set is another one"
    text = text_of(tmp_path)
    gain = gain_text(tip["gain"], tip["interval"])
    assert "Recommended: Tip-Adapter with 2 images a class." in text
    assert (
        f"On test: {100 * tip['accuracy']:.1f} ± {100 * tip['spread']:.1f} % (zero-shot CLIP: 50.0 %), gain {gain}"
        in text
    )
    assert "test: Tip-Adapter beside zero-shot CLIP" in text
    assert "Tip-Adapter had 90.0 % right and zero-shot CLIP 50.0 %" in text, "what validation said"
    assert "CoOp 2 " + f"{100 * coop['accuracy']:.1f} ± " in text and 'class="best"' not in page_of(tmp_path)


def test_where_no_adapter_is_worth_it_the_page_says_keep_zero_shot_clip(tmp_path):
    results = make_run_folder(tmp_path, {"tip_adapter": (0.8, 0.3), "coop": (0.55, 0.4)})
    assert results["recommended"]["method"] == "zero_shot"
    text = text_of(tmp_path)
    assert "Keep zero-shot CLIP. No adapter of this run promises to be better. On test: 50.0 % of 32" in text
    assert "Recommended:" not in text
    assert "For comparison, the adapter that promises most, CoOp with 2 images a class:" in text
    assert "A comparison, as zero-shot CLIP is recommended. The run with 2 images a class, seed 1:" in text


def test_a_gain_whose_interval_includes_0_is_marked(tmp_path):
    results = make_run_folder(tmp_path, {"tip_adapter": (0.95, 0.9), "coop": (0.55, 0.6)}, shots=(1,), seeds=(1,))
    text = text_of(tmp_path)
    for row in results["table"][1:]:
        test = row["tests"]["test"]
        shown = gain_text(test["gain"], test["interval"])
        includes = test["interval"][0] <= 0 <= test["interval"][1]
        assert includes == (row["method"] == "coop")
        assert (f"{shown} may be chance" in text) == includes and shown in text
    assert "±" not in text.split("What each candidate promises")[0], "one seed has no spread"


def test_top_5_stands_in_the_table_where_there_are_more_than_five_classes(tmp_path):
    results = make_run_folder(tmp_path)
    row = results["table"][-1]
    assert row["tests"]["test"]["top5"] >= row["tests"]["test"]["accuracy"] > 0.5
    assert f"{100 * row['tests']['test']['top5']:.1f}" in text_of(tmp_path) and "top-5, %" in text_of(tmp_path)
    for path in (tmp_path / "predictions").iterdir():  # as with up to five classes
        from safetensors.numpy import load_file

        save_file({k: v for k, v in load_file(path).items() if not k.endswith(".top")}, path)
    results = summarise(tmp_path, results)
    assert "top5" not in results["table"][-1]["tests"]["test"] and "top-5" not in text_of(tmp_path)


def test_changes_of_classes_are_counts_and_single_images_are_left_out():
    labels = np.array([0, 0, 0, 0, 1, 2, 2, 3])
    before = np.array([0, 0, 1, 1, 0, 2, 2, 3])
    after = np.array([0, 0, 0, 1, 1, 2, 0, 3])
    rows, single = class_changes(labels, before, after, ["a", "b", "c", "d", "without images"])
    assert single == 2, "b and d"
    assert [(r["name"], r["before"], r["after"], r["count"]) for r in rows] == [("a", 2, 3, 4), ("c", 2, 1, 2)]


def test_classes_are_shown_by_counts_with_several_images_and_not_with_one(tmp_path):
    (tmp_path / "several").mkdir(), (tmp_path / "one").mkdir()
    make_run_folder(tmp_path / "several")
    text = text_of(tmp_path / "several")
    assert re.search(r"\d of 4 → \d of 4", text) and "0 → 100 %" not in text
    make_run_folder(tmp_path / "one", styles=("notov1",))
    text = text_of(tmp_path / "one")
    assert "Each class has 1 test image: too few for a gain or loss of a class." in text
    assert "Classes that gained most" not in text and " of 1 →" not in text


def test_the_confusion_matrix_has_the_counts_of_the_predictions(tmp_path):
    make_run_folder(tmp_path)
    page = page_of(tmp_path)
    matrices = re.findall(r'<table class="matrix">.*?</table>', page)
    assert len(matrices) == 2 and "zero-shot CLIP: images of the class in the row" in matrices[0]
    for matrix, right in zip(matrices, (16, 26), strict=True):
        rows = re.findall(r"<tr><th scope=\"row\">([^<]+)</th>(.*?)</tr>", matrix)
        counts = [[int(n or 0) for n in re.findall(r"<td[^>]*>(\d*)</td>", cells)] for _, cells in rows]
        assert [name for name, _ in rows] == sorted(CONCEPTS) and np.array(counts).shape == (8, 8)
        assert np.array(counts).sum(1).tolist() == [4] * 8
        assert np.trace(np.array(counts)) == right


def test_with_many_classes_the_most_frequent_mistakes_are_shown():
    labels = np.array([0, 0, 0, 1, 1, 2, 2])
    before, after = np.array([1, 0, 0, 0, 0, 2, 2]), np.array([1, 1, 1, 0, 0, 0, 2])
    pairs = confused_pairs(confusion(labels, before, 3), confusion(labels, after, 3), ["a", "b", "c"])
    assert pairs == [
        {"truth": "a", "taken_for": "b", "before": 1, "after": 3},
        {"truth": "b", "taken_for": "a", "before": 2, "after": 2},
    ], "one image of c was taken for a: that is no frequent mistake"


def test_image_captions_are_the_predictions(tmp_path):
    results = make_run_folder(tmp_path, {"coop": (0.6, 0.9)}, shots=(1,), seeds=(1,))
    names = results["data"]["class_names"]
    figures = re.findall(
        r'alt="an image of ([^"]+)"><b>([^<]+)</b>\s*<span class="(good|bad)">(✓|✗) ([^<]+)</span>'
        r'(?: → <span class="(good|bad)">(✓|✗) ([^<]+)<)?',
        page_of(tmp_path),
    )
    assert len(figures) > 10
    for alt, truth, colour, sign, before, colour_after, sign_after, after in figures:
        assert alt == truth and truth in names
        assert (colour == "good") == (sign == "✓") == (before == truth)
        if after:
            assert (colour_after == "good") == (sign_after == "✓") == (after == truth)


def test_markup_in_names_is_escaped(tmp_path):
    results = make_run_folder(tmp_path, {"coop": (0.6, 0.9)}, shots=(1,), seeds=(1,))
    results["data"]["class_names"][0] = "<em>x</em>"
    results["settings"]["data"] = "<b>bold</b>"
    results["runs"][0]["title"] = results["recommended"]["title"] = "<u>$${x}$t$</u>"  # nor is it a formula
    write_json(tmp_path / "results.json", results)
    page = page_of(tmp_path)
    assert "$${x}$t$" in page
    assert "<em>" not in page and "<b>bold</b>" not in page and "<u>" not in page and "&lt;em&gt;x" in page


def test_unfinished_and_failed_runs_and_missing_images_are_named(tmp_path):
    results = make_run_folder(tmp_path, shots=(1,), seeds=(1,))
    results["runs"][1]["error"] = "out of memory"
    results["status"] = "running"
    results["data"]["test_sets"]["test"]["source"] = str(tmp_path / "gone")
    del results["table"], results["recommended"]
    write_json(tmp_path / "results.json", results)
    text = text_of(tmp_path)
    assert "unfinished" in text and "CoOp, 1 shot, seed 1 failed: out of memory" in text
    assert "The test images are not shown, as they cannot be read any more:" in text and "gone" in text
    line = list(csv.DictReader((tmp_path / "predictions.csv").open(encoding="utf-8")))[0]
    assert line["image"] == "" and line["class"] == "banana", "labels are in the run folder"


def test_a_run_without_a_finished_adapter_still_has_a_report(tmp_path):
    results = make_run_folder(tmp_path, {"coop": (0.6, 0.9)}, shots=(1,), seeds=(1,))
    results["runs"][0]["error"] = "out of memory"
    summarise(tmp_path, results)
    assert "Keep zero-shot CLIP. There is no finished adapter to compare it with." in text_of(tmp_path)


def test_results_csv_is_the_table(tmp_path):
    results = make_run_folder(tmp_path)
    write_report(tmp_path)
    lines = list(csv.DictReader((tmp_path / "results.csv").open(encoding="utf-8")))
    assert len(lines) == len(results["table"]) == 5
    for line, row in zip(lines, results["table"], strict=True):
        test = row["tests"]["test"]
        assert (line["method"], line["shots"], line["test_set"]) == (row["method"], str(row["shots"]), "test")
        assert float(line["accuracy"]) == test["accuracy"]
        if row["shots"]:
            assert [float(line[end]) for end in ("gain_low", "gain_high")] == test["interval"]


def test_predictions_csv_has_every_test_image_with_both_answers(tmp_path):
    results = make_run_folder(tmp_path)
    write_report(tmp_path)
    lines = list(csv.DictReader((tmp_path / "predictions.csv").open(encoding="utf-8")))
    assert len(lines) == 32 and len({line["image"] for line in lines}) == 32
    assert all(f"{line['class']}/" in line["image"] for line in lines)
    shown = next(r for r in results["runs"] if r["folder"] == results["recommended"]["folder"])
    for column, accuracy in (("zero_shot", results["zero_shot"]["accuracy"]), ("adapted", shown["accuracy"])):
        assert np.mean([line[column] == line["class"] for line in lines]) == accuracy["test"]
        assert all(0 <= float(line[f"{column}_score"]) <= 1 for line in lines)


def test_the_next_commands_name_the_run_folder_and_more_shots_where_there_are_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my run"
    folder.mkdir()
    results = make_run_folder(folder)
    commands = dict(next_commands(results, results["recommended"], folder))
    assert commands == {
        "Classify images with Tip-Adapter": "hf-clip-variants predict 'my run' photos/",
        "Share Tip-Adapter on the Hub": "hf-clip-variants push 'my run' YOUR_NAME/MODEL_NAME",
    }
    assert all(command.replace("'", "&#39;") in page_of(folder) for command in commands.values())
    (folder / "run.yaml").write_text("shots: 1,2\n")
    commands = dict(next_commands(results, results["recommended"], folder))
    assert (
        commands["Learn from 4 images a class"]
        == "hf-clip-variants adapt --config 'my run/run.yaml' --shots 4 --out 'my run-4-shots'"
    )
    results["data"]["train_images"] = 31
    assert len(next_commands(results, results["recommended"], folder)) == 2, "four of eight classes are 32"


def test_the_report_shows_the_passes_that_cached_features_saved(tmp_path):
    results = make_run_folder(tmp_path, {"coop": (0.6, 0.9)}, shots=(1,), seeds=(1,))
    assert "frozen image encoder" not in text_of(tmp_path), "not known"
    results["data"] |= {"encoded_views": 380, "seconds_per_view": 0.1}
    results["runs"][0]["passes_at_every_step"] = 38_000
    write_json(tmp_path / "results.json", results)
    text = text_of(tmp_path)
    assert "ran on 380 training images (38 s)" in text
    assert "would have been 38,000 (63 min 20 s at the same speed)" in text


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no results.json"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"zero_shot": None}))
    with pytest.raises(ValueError, match="nothing is measured yet"):
        write_report(tmp_path)


def test_seconds_are_shown_in_minutes():
    assert [human_seconds(s) for s in (0.2, 12.4, 75.2)] == ["< 1 s", "12 s", "1 min 15 s"]
