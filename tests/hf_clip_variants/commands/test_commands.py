"""The commands: tables, JSON, exit codes, and images that cannot be read."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from few_shot_runs import CONCEPTS, results_of
from PIL import Image

from hf_clip_variants import cli, embedded_model


@pytest.fixture(scope="module")
def adapted(images, tmp_path_factory):
    """A run of the embedded model, made by the command: folder, exit code and standard output."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    arguments = [
        "adapt",
        "--data",
        images,
        "--out",
        folder,
        "--methods",
        "tip_adapter,clip_adapter",
        "--shots",
        "1,2",
        "--seeds",
        "1,2",
    ]
    arguments += ["--templates", "icons", "--set", "clip_adapter.epochs=5"]
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit:
        patch.setattr(sys, "stdout", out)
        cli.main([str(argument) for argument in arguments])
    return folder, exit.value.code or 0, out.getvalue()


def rows_of(text: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(text)))


# ------------------------------------------------------------------------------------------------------------- adapt


def test_adapt_prints_a_table_and_the_paths_of_report_and_adapters(adapted):
    folder, code, out = adapted
    assert code == 0
    lines = {
        line.split("│")[1].strip() + line.split("│")[2].strip(): line
        for line in out.splitlines()
        if line.startswith("│")
    }
    assert set(lines) == {"zero-shot CLIP0", "Tip-Adapter1", "Tip-Adapter2", "CLIP-Adapter1", "CLIP-Adapter2"}
    results = results_of(folder)
    means = [r["accuracy"]["test"] for r in results["runs"] if (r["method"], r["shots"]) == ("tip_adapter", 2)]
    spread = abs(means[0] - means[1]) / 2
    assert len(means) == 2 and f"{50 * sum(means):.1f} ± {100 * spread:.1f}" in lines["Tip-Adapter2"]
    # 12 images, plain; Tip-Adapter asks for each once, CLIP-Adapter five times, at (6 + 12) * 2 seeds
    assert "ran on 12 training images instead of 216." in out
    assert "over 2 seeds" in out and "Recommended: " in out and str(folder / "report.html") in out.replace("\n", "")
    assert (folder / "report.html").is_file() and results["settings"]["profile"] == "tiny"


def test_adapt_prints_json_and_exits_1_when_a_method_fails(run, clip, images, tmp_path, monkeypatch):
    from hf_clip_variants.few_shot import runner
    from hf_clip_variants.few_shot.fitting import fit_adapter

    def fail(classifier, method, *arguments, **options):
        if method == "coop":
            raise RuntimeError("out of memory")
        return fit_adapter(classifier, method, *arguments, **options)

    monkeypatch.setattr(runner, "fit_adapter", fail)
    arguments = [
        "adapt",
        "--model",
        clip,
        "--data",
        images,
        "--out",
        tmp_path / "run",
        "--methods",
        "coop,tip_adapter",
        "--shots",
        1,
    ]
    code, out, err = run(*arguments, "--seeds", 1, "--json")
    results = json.loads(out)
    assert code == 1 and [r["error"] for r in results["runs"]] == ["RuntimeError: out of memory", None]
    assert results == results_of(tmp_path / "run") and "1 of 2 runs failed" in err

    monkeypatch.setattr(runner, "fit_adapter", fit_adapter)
    code, out, err = run(*arguments, "--seeds", 2)
    assert code == 1 and out == "" and "Error: --out:" in err and "seeds was [1], now [2]" in err
    code, out, err = run("adapt", "--data", tmp_path / "nowhere", "--out", tmp_path / "x")
    assert code == 1 and "nowhere" in err and not (tmp_path / "x").exists()
    assert run("adapt")[0] == 2, "--data is missing"


# ----------------------------------------------------------------------------------------------------------- predict


def test_a_closed_pipe_gives_exit_code_141_and_no_message(clip, images):
    reading, writing = os.pipe()
    os.close(reading)
    command = [
        sys.executable,
        "-m",
        "hf_clip_variants.cli",
        "predict",
        "--model",
        str(clip),
        "--classes",
        "cat,dog",
        str(images / "test"),
    ]
    process = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (141, b"")


def test_predict_uses_the_adapters_model_and_classes(run, adapted, images):
    folder, _, _ = adapted
    adapter = folder / "adapters" / "tip_adapter" / "2-shot" / "seed-1"
    code, out, err = run("predict", "--adapter", adapter, images / "test")
    rows = rows_of(out)
    assert code == 0 and err == "" and list(rows[0]) == ["path", "label", "score", "probability", "error"]
    assert [row["path"] for row in rows] == sorted(str(path) for path in (images / "test").rglob("*.png"))
    assert all(0 < float(row["score"]) <= 1 and row["error"] == "" for row in rows)
    right = [os.path.basename(os.path.dirname(row["path"])) == row["label"] for row in rows]
    record = next(r for r in results_of(folder)["runs"] if r["folder"] == "adapters/tip_adapter/2-shot/seed-1")
    assert sum(right) / len(right) == pytest.approx(record["accuracy"]["test"])
    assert run("predict", "--model", adapter, images / "test")[1] == out, "a folder says itself what it is"


def test_predict_takes_prompts_of_each_class_from_a_file(run, clip, adapted, images, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({"cat": ["a furry pet", "whiskers"], "pizza": ["cheese on dough"]}))
    image = next((images / "test" / "cat").iterdir())
    options = ("--classes", "cat,pizza", "--top", 2, image)
    code, out, err = run("predict", "--model", clip, "--templates", tmp_path / "own.json", *options)
    assert code == 0, err
    assert out != run("predict", "--model", clip, *options)[1], "other prompts, other scores"
    own = {name: [f"this is {name}", "a {c}"] for name in CONCEPTS}
    (tmp_path / "every.json").write_text(json.dumps(own))
    adapter = adapted[0] / results_of(adapted[0])["runs"][0]["folder"]
    code, out, err = run("predict", "--adapter", adapter, "--templates", tmp_path / "every.json", image)
    assert code == 0 and out != run("predict", "--adapter", adapter, image)[1], err
    del own["cat"]
    (tmp_path / "every.json").write_text(json.dumps(own))
    code, out, err = run("predict", "--adapter", adapter, "--templates", tmp_path / "every.json", image)
    assert code == 1 and "templates" in err and "1 classes have none: 'cat'" in err


def test_predict_works_after_the_run_folder_was_moved(run, adapted, images, tmp_path):
    folder, _, _ = adapted
    expected = run(
        "predict", "--adapter", folder / "adapters/clip_adapter/1-shot/seed-2", images / "test", "--top", 2
    )[1]
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    try:
        code, out, err = run(
            "predict", "--adapter", moved / "adapters/clip_adapter/1-shot/seed-2", images / "test", "--top", 2
        )
    finally:
        hidden.rename(folder)
    assert (code, out) == (0, expected), err


def test_a_base_model_that_has_moved_is_named(run, adapted, images, tmp_path, monkeypatch):
    from hf_clip_variants.hub import push as hub

    folder, _, _ = adapted
    adapter, image = tmp_path / "alone", images / "test" / "cat"
    expected = run("predict", "--adapter", folder / "adapters/clip_adapter/1-shot/seed-1", image)[1]
    shutil.copytree(folder / "adapters/clip_adapter/1-shot/seed-1", adapter)
    moved = folder.with_name("moved")
    folder.rename(moved)
    try:
        for command in (
            ["predict", image, "--adapter", adapter],
            ["evaluate", "--data", images, "--adapter", adapter],
            ["push", adapter, "me/x", "--with-base"],
        ):
            code, out, err = run(*command)
            assert code == 1 and out == "" and err.count("\n") == 1
            assert f"{adapter}: the adapter's base model was {folder / 'base'}, which is not there any more" in err
            assert err.endswith("(--base)\n")
        base = ["--base", moved / "base"]
        assert run("predict", image, "--adapter", adapter, *base)[1] == expected
        assert run("predict", image, "--model", adapter, *base)[1] == expected
        assert run("evaluate", "--data", images, "--adapter", adapter, *base)[0] == 0
        given = []
        monkeypatch.setattr(hub, "push", lambda *_, base, **__: given.append(base) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("push", adapter, "me/x", "--with-base", *base)
        assert given == [str(moved / "base")]
        code, _, err = run("predict", image, "--model", moved / "base", *base)
        assert code == 1 and err.startswith("Error: --base: got") and "without an adapter" in err
    finally:
        moved.rename(folder)


def test_predict_writes_a_file_when_all_is_done(run, clip, images, tmp_path, monkeypatch):
    arguments = ["predict", images / "test", "--model", clip, "--classes", "cat,dog"]
    out = tmp_path / "new" / "predictions.csv"
    code, printed, err = run(*arguments, "--out", out)
    assert (code, printed) == (0, "") and out.read_text() == run(*arguments)[1], err
    assert run(*arguments, "--out", tmp_path / "lines.jsonl", "--json")[1] == ""
    assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == 12

    from hf_clip_variants.evaluation import prediction

    classify = prediction.classify

    def interrupted(*values):
        yield next(classify(*values))
        raise KeyboardInterrupt

    before = out.read_bytes()
    monkeypatch.setattr(prediction, "classify", interrupted)
    code, _, err = run(*arguments, "--out", out)
    assert code == 130 and "Interrupted." in err and out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    code, _, err = run(*arguments, "--out", tmp_path)
    assert code == 1 and f"--out: {tmp_path} is a folder; want a file" in err


@pytest.mark.parametrize("output", ["csv", "json"])
def test_predict_classifies_the_others_when_an_image_is_broken(run, clip, images, tmp_path, output):
    good = images / "test" / "cat" / "notov1.png"
    broken = {
        "truncated.png": good.read_bytes()[:300],
        "page.jpg": b"<html>404</html>",
        "empty.png": b"",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    Image.new("RGBA", (30, 20), (255, 0, 0, 90)).save(tmp_path / "transparent.png")
    Image.new("I;16", (30, 20), 30_000).save(tmp_path / "sixteen.png")
    inputs = [
        good,
        *(tmp_path / name for name in broken),
        tmp_path / "gone.png",
        tmp_path / "transparent.png",
        tmp_path / "sixteen.png",
    ]
    arguments = ["--model", clip, "--classes", "cat, dog,pizza", "--format", output, "--batch-size", 2, "--top", 2]
    code, out, err = run("predict", *arguments, *inputs)
    rows = rows_of(out) if output == "csv" else [json.loads(line) for line in out.splitlines()]
    assert code == 1 and [row["path"] for row in rows] == [str(path) for path in inputs], "in order"
    failed = {os.path.basename(row["path"]): row["error"] for row in rows if row.get("error")}
    assert set(failed) == {*broken, "gone.png"} and "4 of 7 images could not be read" in err
    assert (
        "truncated" in failed["truncated.png"]
        and "empty" in failed["empty.png"]
        and "no such file" in failed["gone.png"].lower()
    )
    assert all(f"{tmp_path / name}: {reason}" in err for name, reason in failed.items())
    for row in rows:
        if not row.get("error"):
            assert row["label"] in ("cat", "dog", "pizza")
            second = row["label_2"] if output == "csv" else row["top"][1]["label"]
            assert second in ("cat", "dog", "pizza") and second != row["label"]


def test_predict_reads_paths_from_standard_input(run, clip, images, monkeypatch):
    paths = sorted(str(path) for path in (images / "test").rglob("*.png"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*paths[:3], "", paths[3]]) + "\n"))
    code, out, _ = run("predict", "--model", clip, "--classes", "cat,dog", "--json")
    assert code == 0 and [json.loads(line)["path"] for line in out.splitlines()] == paths[:4]


def test_the_same_image_gets_the_same_scores_in_any_batch(run, clip, images):
    arguments = [
        "predict",
        "--model",
        clip,
        "--classes",
        ",".join(CONCEPTS),
        "--templates",
        "icons",
        images / "test",
    ]
    one, all_at_once = (rows_of(run(*arguments, "--batch-size", size)[1]) for size in (1, 64))
    assert [row["label"] for row in one] == [row["label"] for row in all_at_once]
    assert [float(row["score"]) for row in one] == pytest.approx(
        [float(row["score"]) for row in all_at_once], abs=2e-6
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x.png"], "--adapter"),
        (["x.png", "--model", "CLIP"], "--classes"),
        (["x.png", "--model", "CLIP", "--classes", "cat, cat"], "'cat' is given twice"),
        (["x.png", "--model", "CLIP", "--classes", " , "], "--classes is empty"),
        (["x.png", "--model", "CLIP", "--classes", "cat,dog", "--templates", "a photo"], "no {}"),
        (["EMPTY", "--model", "CLIP", "--classes", "cat,dog"], "no image files"),
        (["x.png", "--model", "EMPTY"], "config.json"),
        (["x.png", "--adapter", "EMPTY"], "adapter_config.json"),
        (["x.png", "--model", "CLIP", "--classes", "cat,dog", "--device", "cuda:77"], "--device: got 'cuda:77'"),
    ],
)
def test_wrong_arguments_of_predict_are_named(run, clip, tmp_path, arguments, words):
    names = {"CLIP": clip, "EMPTY": tmp_path}
    code, out, err = run("predict", *(names.get(argument, argument) for argument in arguments))
    assert code == 1 and words in err and err.startswith("Error: ")


def test_an_adapter_for_fixed_classes_refuses_others(run, adapted, images):
    folder, _, _ = adapted
    tip, mlp = (folder / "adapters" / method / "1-shot" / "seed-1" for method in ("tip_adapter", "clip_adapter"))
    code, _, err = run("predict", "--adapter", tip, "--classes", "cat,dog", images / "test")
    assert code == 1 and err.startswith("Error: --classes: adapter 'default' caches images of its classes")
    code, out, _ = run("predict", "--adapter", mlp, "--classes", "cat,dog", images / "test")
    assert code == 0 and {row["label"] for row in rows_of(out)} <= {"cat", "dog"}


# ---------------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_measures_an_adapter(run, adapted, images):
    folder, _, _ = adapted
    record = results_of(folder)["runs"][-1]
    code, out, err = run("evaluate", "--adapter", folder / record["folder"], "--data", images, "--json")
    result = json.loads(out)
    assert code == 0 and result["split"] == "test" and result["images"] == 12 and result["unreadable"] == []
    assert result["accuracy"] == pytest.approx(record["accuracy"]["test"])
    assert list(result["per_class"].values()) == pytest.approx(record["per_class"]["test"]) and list(
        result["per_class"]
    ) == sorted(CONCEPTS)
    code, out, _ = run("evaluate", "--adapter", folder / record["folder"], "--data", images)
    assert (
        code == 0
        and f"{100 * result['accuracy']:.1f} %" in out
        and "12 images in 6 classes" in out
        and "banana" in out
    )


def test_evaluate_gives_a_plain_clip_the_classes_of_the_data(run, images, tmp_path, caplog):
    arguments = ["evaluate", "--model", embedded_model(), "--templates", "icons"]
    code, out, _ = run(*arguments, "--data", images, "--split", "train", "--json")
    result = json.loads(out)
    assert code == 0 and result["images"] == 12 and result["classes"] == 6 and result["accuracy"] > 0.6, (
        "six easy classes"
    )

    some = tmp_path / "some"
    shutil.copytree(images / "test", some)
    shutil.rmtree(some / "cat")
    (some / "dog" / "notov1.png").write_bytes(b"no image")
    names = ",".join(sorted(CONCEPTS))
    code, out, err = run(*arguments, "--data", some, "--classes", names, "--json")
    result = json.loads(out)
    assert (
        code == 1
        and result["images"] == 9
        and result["unreadable"] == ["dog/notov1.png"]
        and "1 image could not be read" in err
        and "dog/notov1.png" in caplog.text
    )
    assert result["per_class"]["cat"] is None and result["per_class"]["dog"] is not None
    code, _, err = run(*arguments, "--data", some, "--classes", "cat,dog")
    assert code == 1 and "are not among the 2 trained ones" in err


# ------------------------------------------------------------------------------------------------ push, export, demo


def test_push_sends_the_measured_results(run, adapted, monkeypatch):
    from types import SimpleNamespace

    from hf_clip_variants.hub import push as hub

    folder, _, _ = adapted
    record = results_of(folder)["runs"][0]
    calls = []

    def push(*arguments, **options):
        calls.append((arguments, options))
        return SimpleNamespace(commit_url="https://hub/me/x/commit/1", oid="1", pr_url=None)

    monkeypatch.setattr(hub, "push", push)
    code, out, _ = run("push", folder / record["folder"], "me/x", "--with-base", "--license", "mit")
    assert code == 0 and out == "https://hub/me/x/commit/1\n"
    (arguments, options) = calls.pop()
    assert (
        arguments == (str(folder / record["folder"]), "me/x") and options["with_base"] and options["license"] == "mit"
    )
    assert str(options["base"]) == str(folder / "base")
    code, out, _ = run("push", folder / record["folder"], "me/x", "--base-model", "openai/clip", "--json")
    assert json.loads(out) == {
        "repo_id": "me/x",
        "url": "https://hub/me/x/commit/1",
        "commit": "1",
        "pull_request": None,
    }
    assert calls.pop()[1]["base_model"] == "openai/clip"

    adapted_hub = folder.with_name("from-the-hub")
    shutil.copytree(folder, adapted_hub)
    results = results_of(folder)
    results["settings"]["model"] = "openai/clip-vit-base-patch32"
    (adapted_hub / "results.json").write_text(json.dumps(results))
    run("push", adapted_hub / record["folder"], "me/x")
    assert calls.pop()[1]["base_model"] == "openai/clip-vit-base-patch32", "others can load that one"
    run("push", folder / record["folder"], "me/x")
    assert calls.pop()[1]["base_model"] is None, "a folder of this machine"

    def refuse(*arguments, **options):
        raise hub.PushError("403: try again with\n  hf-clip-variants push x me/x", folder, "me/x")

    monkeypatch.setattr(hub, "push", refuse)
    code, out, err = run("push", folder / record["folder"], "me/x")
    assert code == 1 and out == "" and "403: try again with" in err and "Traceback" not in err


def test_export_writes_a_folder_with_code(run, clip, tmp_path):
    code, out, err = run("export", clip, tmp_path / "out", "--classes", "cat,dog", "--license", "mit")
    assert code == 0 and out.strip() == str(tmp_path / "out"), err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog"} and "AutoModelForImageClassification" in config["auto_map"]
    assert (tmp_path / "out" / "processor_config.json").is_file()
    code, out, _ = run("export", clip, tmp_path / "again", "--classes", "cat,dog", "--json")
    assert code == 0 and json.loads(out) == {"folder": str(tmp_path / "again"), "classes": 2}
    code, _, err = run("export", clip, tmp_path / "none")
    assert code == 1 and "--classes" in err and not (tmp_path / "none").exists()


@pytest.mark.slow
def test_the_demo_beats_zero_shot_on_styles_of_other_designers(run, tmp_path):
    """The whole demo: every method against zero-shot CLIP measured in the same run. `DEMO_RUN` names the folder of one
    that has just ended (`.ci/run`); else one with 2 shots and one seed is run here."""
    folder = Path(os.environ.get("DEMO_RUN", tmp_path / "demo"))
    if "DEMO_RUN" not in os.environ:
        code, out, err = run("demo", "--out", folder, "--shots", 2, "--seeds", 1, "--json")
        assert code == 0 and json.loads(out) == results_of(folder), err
    results = results_of(folder)
    assert len(results["data"]["class_names"]) >= 150
    baseline = results["zero_shot"]["accuracy"]
    assert set(baseline) == {"fluent3d", "notov1"} and min(baseline.values()) > 0.4, "a real model"
    runs = [r for r in results["runs"] if (r["shots"], r["seed"]) == (2, 1)]
    mean = {r["method"]: sum(r["accuracy"].values()) / 2 for r in runs}
    zero_shot = sum(baseline.values()) / 2
    assert set(mean) == {"tip_adapter", "tip_adapter_f", "gda", "clap", "clip_adapter", "coop", "vpt"}
    for method, value in mean.items():
        assert value > zero_shot + (0.02 if method not in ("coop", "gda") else 0.0), (method, value, zero_shot)
    assert results["recommended"]["method"] != "zero_shot"
    assert mean[results["recommended"]["method"]] > zero_shot + 0.04, results["recommended"]
    for record in runs:  # the better ones, on each style alone
        if record["method"].startswith("tip"):
            assert all(record["accuracy"][style] > baseline[style] for style in baseline), record["accuracy"]
    assert (folder / "report.html").is_file()


def test_an_interrupted_adapt_prints_no_traceback_and_can_go_on(clip, images, tmp_path):
    """Ctrl-C: exit code 130, no traceback; repeated, the command finishes."""
    import signal

    arguments = ["--model", str(clip), "--data", str(images), "--out", str(tmp_path / "run"), "--methods", "coop"]
    arguments += ["--shots", "1", "--seeds", "1,2,3", "--profile", "published", "--set", "epochs=1500"]
    arguments += ["--set", "augmentation=none", "--set", "num_context_tokens=4"]
    command = [sys.executable, "-m", "hf_clip_variants.cli", "adapt", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell's background jobs ignore SIGINT, and so would everything that they start.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, **pipes, env=environment, preexec_fn=listening)
    deadline = time.monotonic() + 150
    while not (tmp_path / "run" / "results.json").exists() or len(results_of(tmp_path / "run")["runs"]) < 1:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and out == ""
    assert 1 <= len(results_of(tmp_path / "run")["runs"]) < 3
