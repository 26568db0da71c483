"""`predict RUN images` and `push RUN`: what a run folder recommends, probabilities, rejected images, files."""

import csv
import io
import json
import shutil

import pytest
from few_shot_runs import results_of

from hf_clip_variants import embedded_model
from hf_clip_variants.commands.predict import NONE_OF_THESE
from hf_clip_variants.few_shot.adapt import adapt


ADAPTER = "adapters/gda/2-shot/seed-1"


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A run of one method on the embedded model."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = {"methods": ["gda"], "shots": [1, 2], "seeds": [1], "templates": "icons", "progress": False}
    adapt(embedded_model(), str(images), folder, **options)
    return folder


@pytest.fixture
def recommending(finished, tmp_path):
    """A copy of the run that recommends the adapter, or zero-shot CLIP."""

    def recommending(method):
        folder = tmp_path / f"recommends-{method}"
        shutil.copytree(finished, folder)
        results = results_of(folder)
        chosen = {"method": "gda", "title": "GDA", "shots": 2, "seed": 1, "folder": ADAPTER}
        if method == "zero_shot":
            chosen = {"method": method, "title": "zero-shot CLIP", "shots": 0, "seed": 0, "folder": None}
        results["recommended"] |= chosen
        (folder / "results.json").write_text(json.dumps(results))
        return folder

    return recommending


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_a_run_folder_stands_for_its_recommended_adapter(run, recommending, images):
    folder = recommending("gda")
    record = next(r for r in results_of(folder)["runs"] if r["folder"] == ADAPTER)
    code, out, err = run("predict", folder, images / "test")
    assert code == 0 and "GDA, 2 shots, seed 1" in err
    baseline = results_of(folder)["zero_shot"]["accuracy"]["test"]
    assert f"{100 * record['accuracy']['test']:.1f} % on test; zero-shot CLIP: {100 * baseline:.1f} %" in err
    rows = rows_of(out)
    right = [row["label"] == row["path"].split("/")[-2] for row in rows]
    assert sum(right) / len(right) == pytest.approx(record["accuracy"]["test"])
    assert list(rows[0]) == ["path", "label", "score", "probability", "error"]
    assert all(row["probability"] == row["score"] for row in rows)
    assert run("predict", "--run", folder, images / "test")[1] == out
    assert run("predict", "--adapter", folder / ADAPTER, images / "test")[1] == out

    file = folder / ADAPTER / "adapter_config.json"
    saved = json.loads(file.read_text())
    assert saved["temperature"] == record["validation"]["temperature"]
    file.write_text(json.dumps(saved | {"temperature": 1e6}))
    hot = rows_of(run("predict", folder, images / "test")[1])
    assert all(float(row["score"]) == pytest.approx(1 / 6, abs=1e-3) for row in hot), "six classes"


def test_a_run_folder_that_recommends_zero_shot_clip_is_calibrated_too(run, recommending, images):
    folder = recommending("zero_shot")
    results = results_of(folder)
    code, out, err = run("predict", folder, images / "test", "--json")
    assert code == 0 and "recommends zero-shot CLIP" in err
    rows = [json.loads(line) for line in out.splitlines()]
    right = [row["label"] == row["path"].split("/")[-2] for row in rows]
    assert sum(right) / len(right) == pytest.approx(results["zero_shot"]["accuracy"]["test"])
    assert all(row["probability"] == row["score"] for row in rows)
    saved = json.loads((folder / "base" / "config.json").read_text())
    assert saved["temperature"] == results["zero_shot"]["temperature"] >= 0.25


def test_without_labelled_images_a_score_is_no_probability(run, images):
    arguments = ["predict", "--model", embedded_model(), "--classes", "cat,dog", images / "test" / "cat"]
    code, out, _ = run(*arguments, "--top", 2)
    rows = rows_of(out)
    assert code == 0 and all(row["probability"] == "" and float(row["score"]) > 0.5 for row in rows)
    assert list(rows[0]) == ["path", "label", "score", "probability", "label_2", "score_2", "error"]
    assert float(rows[0]["score"]) + float(rows[0]["score_2"]) == pytest.approx(1, abs=1e-5)
    assert all(json.loads(line)["probability"] is None for line in run(*arguments, "--json")[1].splitlines())
    code, _, err = run(*arguments, "--threshold", 0.9)
    assert code == 0 and "no probabilities" in err
    code, _, err = run(*arguments, "--reject")
    assert code == 1 and err.startswith("Error: --reject: the model was not calibrated")


def test_images_below_the_threshold_are_none_of_these(run, recommending, images):
    folder = recommending("gda")
    before = rows_of(run("predict", folder, images / "test")[1])
    scores = sorted(float(row["score"]) for row in before)
    threshold = (scores[2] + scores[3]) / 2
    after = rows_of(run("predict", folder, images / "test", "--threshold", threshold)[1])
    assert [row["score"] for row in after] == [row["score"] for row in before]
    expected = [row["label"] if float(row["score"]) > threshold else NONE_OF_THESE for row in before]
    assert [row["label"] for row in after] == expected and expected.count(NONE_OF_THESE) == 3

    code, _, err = run("predict", folder, images / "test", "--reject")
    assert code == 1 and "calibrated on too few images" in err, "12 images"
    file = folder / ADAPTER / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rejection_threshold": threshold}))
    code, out, err = run("predict", folder, images / "test", "--reject", "--top", 2, "--json")
    rejected = [row for row in map(json.loads, out.splitlines()) if row["label"] == NONE_OF_THESE]
    assert code == 0 and len(rejected) == 3 and all(row["top"][0]["label"] != NONE_OF_THESE for row in rejected)
    assert run("predict", folder, "x.png", "--reject", "--threshold", 0.5)[0] == 1


def test_results_go_to_a_file_in_the_format_of_its_name(run, recommending, images, tmp_path):
    folder = recommending("gda")
    for name in ("all.csv", "all.jsonl"):
        code, out, _ = run("predict", folder, images / "test", "--out", tmp_path / name)
        assert (code, out) == (0, "")
    rows = rows_of((tmp_path / "all.csv").read_text())
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and [row["label"] for row in rows] == [line["label"] for line in lines]


def test_run_folders_that_cannot_be_used_are_named(run, recommending, images, tmp_path):
    folder = recommending("gda")
    code, _, err = run("predict", folder, images, "--adapter", folder / ADAPTER)
    assert code == 1 and "--adapter: got" in err and "want one of them" in err
    code, _, err = run("predict", "--run", tmp_path, images)
    assert code == 1 and "--run: no results.json" in err
    results = results_of(folder)
    del results["recommended"]
    (folder / "results.json").write_text(json.dumps(results | {"status": "running"}))
    code, _, err = run("predict", folder, images)
    assert code == 1 and "it is not finished" in err


def test_push_of_a_run_folder_sends_the_recommended_adapter_or_refuses(run, recommending, monkeypatch):
    from types import SimpleNamespace

    from hf_clip_variants.hub import push as hub

    pushed = []

    def push(folder, *arguments, **options):
        pushed.append((folder, options["base"]))
        return SimpleNamespace(commit_url="https://hub/me/x/commit/1", oid="1", pr_url=None)

    monkeypatch.setattr(hub, "push", push)
    folder = recommending("gda")
    assert run("push", folder, "me/x", "--with-base")[0] == 0
    assert pushed == [(str(folder / ADAPTER), folder / "base")]
    code, _, err = run("push", recommending("zero_shot"), "me/x")
    assert code == 1 and len(pushed) == 1
    assert "zero-shot CLIP is recommended" in err and ADAPTER in err.replace("\n", "")


def test_evaluate_shows_zero_shot_clip_beside_an_adapter(run, recommending, images):
    folder = recommending("gda")
    results = results_of(folder)
    code, out, _ = run("evaluate", "--adapter", folder / ADAPTER, "--data", images, "--json")
    assert code == 0 and json.loads(out)["zero_shot"] == pytest.approx(results["zero_shot"]["accuracy"]["test"])
    assert json.loads(run("evaluate", "--model", folder, "--data", images, "--json")[1]) == json.loads(out)
    code, out, _ = run("evaluate", "--adapter", folder / ADAPTER, "--data", images)
    assert f"(zero-shot CLIP: {100 * results['zero_shot']['accuracy']['test']:.1f} %)" in out
