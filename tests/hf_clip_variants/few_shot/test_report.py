import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_clip_variants.data.images.emoji import load_emoji
from hf_clip_variants.few_shot.report import best_run, human_seconds, write_report


def make_run_folder(
    folder, shots=(1, 2), seeds=(1, 2), methods=("tip_adapter", "coop"), test_sets=("fluent3d", "notov1")
):
    """A finished run with made-up predictions; later methods and more shots are right more often."""
    images = {name: load_emoji(name) for name in test_sets}
    class_names = list(images[test_sets[0]].class_names)
    rng = np.random.default_rng(0)
    (folder / "predictions").mkdir(parents=True)

    def predict(right, path):
        tensors, accuracy, per_class = {}, {}, {}
        for name, image_set in images.items():
            truth = image_set.labels
            hit = rng.random(len(truth)) < right
            predicted = np.where(hit, truth, (truth + 1) % len(class_names))
            tensors[f"{name}.predicted"] = predicted
            accuracy[name] = float((predicted == truth).mean())
            per_class[name] = [float((predicted == truth)[truth == c].mean()) for c in range(len(class_names))]
        save_file(tensors, folder / path)
        return accuracy, per_class

    accuracy, per_class = predict(0.4, "predictions/zero_shot.safetensors")
    runs = []
    for m, method in enumerate(methods):
        for k in shots:
            for seed in seeds:
                path = f"predictions/{method}_{k}-shot_seed-{seed}.safetensors"
                run_accuracy, run_per_class = predict(0.5 + 0.1 * m + 0.05 * k, path)
                runs.append(
                    {
                        "method": method,
                        "title": {"tip_adapter": "Tip-Adapter", "coop": "CoOp"}[method],
                        "shots": k,
                        "seed": seed,
                        "accuracy": run_accuracy,
                        "per_class": run_per_class,
                        "validation": {"kind": "none", "accuracy": None},
                        "hyperparameters": {"epochs": 20},
                        "trained_parameters": 1234 * m,
                        "adapter_bytes": 4321,
                        "seconds": {"features": 1.0, "train": 2.0, "search": 0.5, "test": 0.1},
                        "folder": f"adapters/{method}",
                        "predictions": path,
                        "train_indices": [],
                        "curve": [],
                        "error": None,
                    }
                )
    about = {name: {"images": len(image_set), "unreadable": []} for name, image_set in images.items()}
    results = {
        "version": 1,
        "status": "finished",
        "settings": {
            "model": "emoji-clip-tiny",
            "data": "emoji:fluentflat",
            "test_data": {name: f"emoji:{name}" for name in test_sets},
            "seeds": list(seeds),
        },
        "environment": {"device": "cpu", "threads": 2},
        "model": {"name": "emoji-clip-tiny", "parameters": 6_300_000, "image_size": 64},
        "data": {"class_names": class_names, "train_images": 380, "test_sets": about},
        "zero_shot": {"accuracy": accuracy, "per_class": per_class, "seconds": 1.0},
        "runs": runs,
        "seconds": 75.0,
    }
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return results


def test_report_is_one_self_contained_page_with_the_runs_own_numbers(tmp_path):
    results = make_run_folder(tmp_path)
    path = write_report(tmp_path)
    page = path.read_text(encoding="utf-8")

    assert path == tmp_path / "report.html" and not list(tmp_path.glob("*.tmp"))
    assert not re.search(r'(src|href)="(?!data:|#)', page), "nothing is fetched from elsewhere"
    assert page.count("<svg") == 2, "one plot a test set"
    for name, accuracy in results["zero_shot"]["accuracy"].items():
        assert f"{100 * accuracy:.1f}" in page, name
    chosen = best_run(results["runs"])
    assert chosen["method"] == "coop" and chosen["shots"] == 2
    two_seeds = [r["accuracy"]["notov1"] for r in results["runs"] if r["method"] == "coop" and r["shots"] == 2]
    assert f"{100 * np.mean(two_seeds):.1f}" in page and f"± {100 * np.std(two_seeds):.1f}" in page
    assert page.count("<figure>") > 40 and "Fixed by adapting" in page and "Broken by adapting" in page


def test_image_captions_are_the_predictions(tmp_path):
    results = make_run_folder(tmp_path, shots=(1,), seeds=(1,), methods=("coop",), test_sets=("fluent3d",))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    names = results["data"]["class_names"]
    figures = re.findall(
        r'alt="([^"]+)"><b>([^<]+)</b>\s*<span class="(good|bad)">([^<]+)</span>'
        r'(?: → <span class="(good|bad)">([^<]+)<)?',
        page,
    )
    assert figures
    for alt, truth, colour, before, colour_after, after in figures:
        assert alt == truth and truth in names
        assert (colour == "good") == (before == truth)
        if after:
            assert (colour_after == "good") == (after == truth)


def test_markup_in_class_names_is_escaped(tmp_path):
    make_run_folder(tmp_path, shots=(1,), seeds=(1,), methods=("coop",))
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    results["data"]["class_names"][0] = "<script>alert(1)</script>"
    results["settings"]["data"] = "<b>bold</b>"
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script>" not in page and "<b>bold</b>" not in page


def test_report_names_unfinished_and_failed_runs_and_missing_images(tmp_path):
    results = make_run_folder(tmp_path, shots=(1,), seeds=(1,))
    results["runs"][1]["error"] = "out of memory"
    results["status"] = "running"
    results["settings"]["test_data"]["notov1"] = str(tmp_path / "gone")
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "unfinished" in page and "CoOp, 1 shots, seed 1 failed: out of memory" in page and "No images:" in page


def test_the_report_shows_the_passes_that_cached_features_saved(tmp_path):
    results = make_run_folder(tmp_path, shots=(1,), seeds=(1,), methods=("coop",), test_sets=("fluent3d",))
    assert "frozen image encoder" not in write_report(tmp_path).read_text(encoding="utf-8"), "not known"
    results["data"] |= {"encoded_views": 380, "seconds_per_view": 0.1}
    results["runs"][0]["passes_at_every_step"] = 38_000
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    page = " ".join(write_report(tmp_path).read_text(encoding="utf-8").split())
    assert (
        "ran on 380 training images (38 s)" in page
        and "would have been 38,000 (63 min 20 s at the same speed)" in page
    )


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no results.json"):
        write_report(tmp_path)


def test_seconds_are_shown_in_minutes():
    assert [human_seconds(s) for s in (0.2, 12.4, 75.2)] == ["< 1 s", "12 s", "1 min 15 s"]
