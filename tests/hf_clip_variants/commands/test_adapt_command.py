"""`adapt`: several sources, run.yaml, dry runs, what is skipped, trackers, Ctrl-C, names with markup."""

import json
import shutil

import pytest
import yaml
from few_shot_runs import CONCEPTS, comparable, results_of, save_images

from hf_clip_variants.few_shot import adapt as few_shot


SMALL = ["--methods", "tip_adapter", "--shots", 1, "--seeds", 1, "--templates", "icons"]
MORE = "[bold]more[/bold] \N{SUSHI}:cat:"  # rich's markup and its names of emoji


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two folders of the same classes, and one that lacks some and has another."""
    folder = tmp_path_factory.mktemp("sources")
    save_images(folder / "pets", {"": ["fluentflat", "emojione"]})
    save_images(folder / MORE, {"": ["notov1"]})
    save_images(folder / "other", {"": ["fluent3d"]}, ("cat", "dog", "taco"))
    return folder


@pytest.fixture(scope="module")
def finished(sources, clip, tmp_path_factory):
    """A run folder, made by the command from two sources."""
    from hf_clip_variants import cli

    out = tmp_path_factory.mktemp("finished") / "run"
    more = ["--data", sources / MORE, "--model", clip, "--out", out, "--set", "alpha=2", "--json"]
    with pytest.raises(SystemExit) as exit:
        cli.main([str(each) for each in ["adapt", sources / "pets", *more, *SMALL]])
    assert not exit.value.code
    return out


def test_sources_are_joined_whether_named_by_position_or_by_option(finished, sources):
    results = results_of(finished)
    assert results["settings"]["data"] == [str(sources / "pets"), str(sources / MORE)]
    assert results["data"]["train_images"] == 18 and results["data"]["class_names"] == sorted(CONCEPTS)


def test_run_yaml_holds_the_options_and_repeats_the_run(run, finished, sources, clip, tmp_path, monkeypatch):
    options = yaml.safe_load((finished / "run.yaml").read_text(encoding="utf-8"))
    assert options == {
        "model": str(clip),
        "precision": "float32",
        "shots": [1],
        "methods": ["tip_adapter"],
        "seeds": [1],
        "out": str(finished),
        "data": [str(sources / "pets"), str(sources / MORE)],
        "templates": "icons",
        "set": ["alpha=2"],
    }
    monkeypatch.chdir(tmp_path)
    code, out, err = run("adapt", "--config", finished / "run.yaml", "--out", "again", "--json")
    assert code == 0 and comparable(json.loads(out)) == comparable(results_of(finished)), err
    assert yaml.safe_load((tmp_path / "again/run.yaml").read_text()) == options | {"out": str(tmp_path / "again")}


def test_the_command_line_wins_over_the_file(run, finished, sources, tmp_path):
    arguments = ["adapt", sources / "pets", "--config", finished, "--seeds", 2, "--out", tmp_path / "run", "--json"]
    settings = json.loads(run(*arguments)[1])["settings"]
    assert settings["data"] == str(sources / "pets") and settings["seeds"] == [2] and settings["shots"] == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shot: 1", "has 'shot', which is no option; did you mean 'shots'?"),
        ("- 1", "holds list; want lines such as `shots: 1,4`"),
        ("a: [", "is not YAML"),
        ("shots: 0", "--shots: got '0'"),
        ("set: {epochs: 1, cop.alpha: 2}", "--set cop.alpha: unknown 'cop'"),
    ],
)
def test_a_wrong_file_is_refused(run, sources, tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    code, out, err = run("adapt", sources / "pets", "--config", tmp_path / "run.yaml")
    assert (code, out, err.count("\n")) == (1, "", 1) and message in err


def test_a_finished_run_says_what_is_skipped_and_does_nothing(run, finished, monkeypatch):
    before = (finished / "runs-0.jsonl").read_bytes()
    monkeypatch.setattr(few_shot.FewShotRunner, "attempt", None)
    code, out, err = run("adapt", "--config", finished)
    assert code == 0 and f"{finished} holds 1 finished runs already" in err.replace("\n", "")
    assert "Tip-Adapter" in out and (finished / "runs-0.jsonl").read_bytes() == before


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(run, sources, clip, tmp_path, monkeypatch):
    attempt = few_shot.FewShotRunner.attempt

    def interrupted(self, task, run, finish=None):
        if run.seed == 2:
            raise KeyboardInterrupt
        return attempt(self, task, run, finish)

    monkeypatch.setattr(few_shot.FewShotRunner, "attempt", interrupted)
    arguments = ["adapt", sources / "pets", "--model", clip, "--out", tmp_path / "run", *SMALL, "--seeds", "1,2"]
    code, out, err = run(*arguments)
    assert code == 130 and out == "" and "Traceback" not in err
    assert f"Interrupted. 1 of 2 runs are kept in {tmp_path / 'run'}; repeat the command to go on." in err
    assert (tmp_path / "run/run.yaml").is_file()


def test_a_dry_run_counts_and_writes_nothing(run, sources, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["adapt", sources / "pets", sources / MORE, "--model", clip, "--methods", "tip_adapter,coop,vpt"]
    arguments += ["--shots", "1,2", "--seeds", "1,2", "--dry-run"]
    found = json.loads(run(*arguments, "--json")[1])
    assert found["runs"] == 12 and found["training_images"] == {"1": 6, "2": 12}
    assert found["data"]["images"] == 18 and found["data"]["classes"] == 6
    seconds = found["seconds_by_method"]
    assert (
        seconds["tip_adapter"] == 0 < min(seconds["coop"], seconds["vpt"]) and sum(seconds.values()) < found["seconds"]
    )
    assert 1e5 < found["memory_bytes"] < 1e9
    code, out, _ = run(*arguments)
    assert code == 0 and "18 in 6 classes: banana, cat, dog, owl, pizza, …" in out
    assert "12: 3 methods x 2 numbers of shots x 2 seeds" in out and "Nothing was written" in out
    assert list(tmp_path.iterdir()) == []


def test_more_epochs_take_more_time_in_a_dry_run(run, sources, clip):
    arguments = ["adapt", sources / "pets", "--model", clip, "--methods", "coop", "--shots", 1, "--dry-run", "--json"]
    few, many = (
        json.loads(run(*arguments, "--set", f"epochs={epochs}")[1])["seconds_by_method"]["coop"] for epochs in (1, 400)
    )
    assert many > 20 * few


def test_common_classes_keeps_what_both_sides_have(run, sources, clip, tmp_path):
    arguments = ["adapt", sources / "pets", "--test-data", sources / "other", "--model", clip, *SMALL]
    code, _, err = run(*arguments, "--out", tmp_path / "error")
    assert code == 1 and "1 of 3 classes are not among the 6 trained ones: 'taco'" in err and "--common-classes" in err
    code, out, err = run(*arguments, "--out", tmp_path / "run", "--common-classes", "--json")
    results = json.loads(out)
    assert code == 0 and results["data"]["class_names"] == ["cat", "dog"], err
    assert results["data"]["test_sets"]["other"]["images"] == 2
    assert "2 classes are in training and test data; 5 others are left out: 'banana'" in err.replace("\n", "")
    probe = ["knn", clip, "--train", sources / "pets", "--test", sources / "other", "--k", 1, "--json"]
    assert run(*probe)[0] == 1
    result = json.loads(run(*probe, "--common-classes")[1])
    assert list(result["per_class"]) == ["cat", "dog"] and result["images"] == 2
    code, out, err = run("evaluate", "--data", sources / "other", "--model", tmp_path / "run/base", "--json")
    assert code == 1 and "'taco'" in err
    arguments = ["evaluate", "--data", sources / "other", "--model", tmp_path / "run/base", "--common-classes"]
    code, out, err = run(*arguments, "--json")
    assert json.loads(out)["images"] == 2 and "since the model does not have them: 'taco'" in err


def test_results_go_to_trackers(run, sources, clip, tmp_path, monkeypatch):
    from accelerate import tracking

    logged, started, ended = [], [], []

    class Recorder(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "tensorboard", True, None

        def __init__(self, run_name, logging_dir, **_):
            super().__init__()
            started.append(run_name)

        def store_init_configuration(self, values):
            started.append(values)

        def log(self, values, step=None, **_):
            logged.append((step, values))

        def finish(self):
            ended.append(True)

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Recorder)
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.TENSORBOARD])
    arguments = ["adapt", sources / "pets", "--model", clip, "--out", tmp_path / "run", "--methods", "clip_adapter"]
    arguments += ["--shots", 1, "--seeds", 1, "--set", "epochs=3", "--report-to", "tensorboard", "--json"]
    code, out, err = run(*arguments)
    assert code == 0, err
    (record,) = json.loads(out)["runs"]
    front = "clip_adapter/1-shot/seed-1"
    assert [values for _, values in logged][1:4] == [{f"{front}/loss": loss} for loss in record["curve"]]
    assert logged[0][1] == {"zero_shot/accuracy/held-out": json.loads(out)["zero_shot"]["accuracy"]["held-out"]}
    assert logged[4][1][f"{front}/accuracy/held-out"] == record["accuracy"]["held-out"]
    assert [step for step, _ in logged] == [0, 1, 2, 3, 4] and ended == [True]
    assert started[0] == "hf-clip-variants" and started[1]["methods"] == "clip_adapter"
    assert json.loads(run(*arguments)[1])["status"] == "finished" and len(logged) == 5, "nothing is logged twice"


def test_unknown_and_missing_trackers_are_refused(run, sources, clip, tmp_path):
    arguments = ["adapt", sources / "pets", "--model", clip, "--out", tmp_path / "run", "--report-to"]
    code, _, err = run(*arguments, "tensorbord")
    assert code == 1 and "--report-to: unknown 'tensorbord'; did you mean 'tensorboard'?" in err
    code, _, err = run(*arguments, "clearml")
    assert code == 1 and "--report-to: clearml is not installed" in err and not (tmp_path / "run").exists()


def test_names_with_markup_are_printed_as_they_are(run, sources, clip, tmp_path, caplog):
    data = tmp_path / MORE
    shutil.copytree(sources / MORE, data)
    (data / "cat").rename(data / "[red]cat")
    (data / "dog" / "notov1.png").rename(data / "dog" / "[blue]broken.png")
    (data / "dog" / "[blue]broken.png").write_bytes(b"no image")
    code, out, err = run("evaluate", "--data", data, "--model", clip)
    assert code == 1 and str(data) in out and "[red]cat" in out and "[blue]broken.png" in caplog.text
    code, _, err = run("predict", data / "dog", "--model", clip, "--classes", "cat,dog")
    assert code == 1 and err.startswith(f"{data / 'dog' / '[blue]broken.png'}: not an image")
    code, _, err = run("adapt", data / "[green]gone")
    assert code == 1 and str(data / "[green]gone") in err
