"""The benchmark script does each run once, for any number of calls and processes."""

import json
import shutil
import sys

import pytest
import torch
from coop_folders import save_zhou
from few_shot_runs import save_images, save_tiny_clip
from paths import SCRIPTS
from processes import finish, start_program
from safetensors.torch import load_file, save_file

from hf_clip_variants.few_shot.method import FEW_SHOT_METHODS
from hf_clip_variants.few_shot.protocols import PROTOCOLS


SCRIPT = SCRIPTS / "few_shot_benchmark.py"
FAST = ["--profile", "tiny", "--templates", "icons"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.delenv("RANK", raising=False)
    threads = torch.get_num_threads()
    import few_shot_benchmark

    yield few_shot_benchmark
    torch.set_num_threads(threads)
    sys.modules.pop("few_shot_benchmark", None)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A CLIP, a data set with splits, and one without splits."""
    folder = tmp_path_factory.mktemp("sources")
    data = save_images(folder / "icons", {"train": ["fluentflat", "emojione"], "test": ["fluent3d", "notov1"]})
    return (
        str(save_tiny_clip(folder / "clip")),
        str(data),
        str(save_images(folder / "few", {"": ["notov1"]}, ("owl", "dog", "pizza"))),
    )


def arguments(sources, out, *more, methods="tip_adapter,coop", protocols="few_shot,base_to_new"):
    """Two epochs for methods that are trained: 18 runs take seconds."""
    model, data, _ = sources
    trained = ["--set", "epochs=2"] if methods != "tip_adapter" else []
    sizes = ["--methods", methods, "--protocols", protocols, "--shots", "1,2", "--seeds", "1,2"]
    return ["--out", str(out), "--model", model, "--data", data, *sizes, *FAST, *trained, *more]


def records_of(out):
    return [json.loads(line) for path in sorted(out.glob("runs-*.jsonl")) for line in path.read_text().splitlines()]


def comparable(out):
    """What must be equal between two folders of results, for each run."""
    left_out = ("seconds", "environment")
    found = {}
    for record in (record for record in records_of(out) if not record.get("error")):
        key = tuple(record[name] for name in ("protocol", "data", "model", "method", "shots", "seed"))
        assert key not in found, "a run was done twice"
        found[key] = {name: value for name, value in record.items() if name not in left_out}
    return found


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory):
    """All runs, in a separate process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    log = out.parent / "log"
    finish({log: start_program(SCRIPT, *arguments(sources, out), log=log)})
    return out


def test_every_run_is_recorded_with_its_settings(whole, sources):
    records = records_of(whole)
    assert len(records) == 2 * (1 + 2 * 2 * 2)
    for record in records:
        assert set(record["tests"]) == ({"icons"} if record["protocol"] == "few_shot" else {"base", "new"})
        assert (
            record["settings"]["data"] == sources[1]
            and record["settings"]["model"] == sources[0]
            and record["contents"]["data"]
        )
        assert record["environment"]["torch"] and record["environment"]["device"] and record["seconds"]["test"] > 0
        if record["method"] == "coop":
            assert record["hyperparameters"]["epochs"] == 2 and record["settings"]["overrides"] == {"epochs": 2}
    table = (whole / "table.md").read_text()
    assert (
        "### Few-shot accuracy" in table and "| method | shots | Base | New | HM |" in table and "missing" not in table
    )
    assert sorted(path.name for path in whole.glob("*.png")) == ["base_to_new.png", "few_shot.png"]


def test_repeated_command_does_nothing(script, whole, sources, capsys, monkeypatch):
    before = {path: path.read_bytes() for path in whole.glob("runs-*")}
    (whole / "table.md").unlink()
    monkeypatch.setattr("hf_clip_variants.few_shot.benchmark.load_task", None)  # data is not read
    assert script.main(arguments(sources, whole)) == 0
    assert f"nothing to do: all 18 runs are in {whole} already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in whole.glob("runs-*")} == before and (whole / "table.md").exists()


def test_new_method_adds_its_runs_and_keeps_the_others(script, whole, sources, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    before = (out / "runs-0.jsonl").read_bytes()
    assert script.main(arguments(sources, out, methods="tip_adapter,coop,tip_adapter_f", protocols="few_shot")) == 0
    after = (out / "runs-0.jsonl").read_bytes()
    assert after.startswith(before)
    assert [json.loads(line)["method"] for line in after[len(before) :].splitlines()] == ["tip_adapter_f"] * 4
    assert "Tip-Adapter-F" in (out / "table.md").read_text() and "Base-to-new" in (out / "table.md").read_text()


def test_different_settings_in_the_same_folder_are_refused(script, whole, sources, capsys):
    before = (whole / "runs-0.jsonl").read_bytes()
    for change, match in (
        (["--templates", "a {}"], 'templates was ["an emoji of {}"'),
        (["--profile", "published"], 'profile was "tiny", now "published"'),
        (["--set", "coop.epochs=3"], 'coop, 1, 1 with other settings: overrides was {"epochs": 2}, now {"epochs": 3}'),
        (["--test-data", f"icons={sources[1]}"], "tests was {}, now {"),
    ):
        assert script.main(arguments(sources, whole, *change)) == 2
        assert match in capsys.readouterr().err
    assert (whole / "runs-0.jsonl").read_bytes() == before


def test_changed_images_are_refused(script, sources, tmp_path, capsys):
    data = shutil.copytree(sources[1], tmp_path / "icons")
    command = arguments((sources[0], str(data), None), tmp_path / "out", methods="tip_adapter", protocols="few_shot")
    assert script.main(command) == 0
    shutil.copy(data / "test" / "owl" / "notov1.png", data / "test" / "dog" / "notov1.png")
    assert script.main([*command, "--seeds", "1,2,3"]) == 2
    assert "the contents of test icons changed. Repeat the command as it was" in capsys.readouterr().err


def test_changed_weights_are_refused(script, sources, tmp_path, capsys):
    """Whatever changed; results of earlier versions, which did not write it, go on."""
    model, out = shutil.copytree(sources[0], tmp_path / "clip"), tmp_path / "out"
    command = arguments((str(model), sources[1], None), out, methods="tip_adapter", protocols="few_shot")
    assert script.main([*command, "--seeds", "1"]) == 0
    weights = load_file(model / "model.safetensors")
    weights["vision_model.post_layernorm.bias"][0] += 1e-6
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    assert script.main([*command, "--seeds", "1,2,3"]) == 2
    assert "the contents of model changed. Repeat the command as it was" in capsys.readouterr().err
    lines = out / "runs-0.jsonl"
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    for record in records:
        del record["contents"]["model"]
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert script.main([*command, "--seeds", "1,2,3"]) == 0


def test_failing_method_does_not_stop_others_and_is_retried(script, sources, tmp_path, capsys, monkeypatch):
    from dataclasses import replace

    def broken(fit):
        raise RuntimeError("out of luck")

    command = arguments(sources, tmp_path, protocols="few_shot")
    with monkeypatch.context() as patch:
        row = replace(FEW_SHOT_METHODS["tip_adapter"], fit=broken)
        patch.setattr("hf_clip_variants.adapters.tip_adapter.few_shot.TIP_ADAPTER", row)
        assert script.main(command) == 1
    said = capsys.readouterr().err
    assert "few_shot, icons: tip_adapter, 1 shot, seed 1 failed: RuntimeError: out of luck" in said
    assert "4 runs failed, repeat the command" in said and "4 runs are missing" in (tmp_path / "table.md").read_text()
    failed = [record for record in records_of(tmp_path) if record.get("error")]
    assert [record["method"] for record in failed] == ["tip_adapter"] * 4
    assert script.main(command) == 0 and len(comparable(tmp_path)) == 9


def test_transfer_to_targets_and_domains(script, sources, tmp_path):
    pets = f"coop:{save_zhou(tmp_path, 'oxford_pets')}"
    command = [
        "--out",
        str(tmp_path / "out"),
        "--model",
        sources[0],
        "--data",
        sources[1],
        "--shots",
        "2",
        "--seeds",
        "1",
    ]
    command += ["--methods", "tip_adapter", "--targets", pets, "--domains", f"few={sources[2]}", *FAST]
    assert script.main(command) == 0
    records = {(r["protocol"], r["method"]): r["tests"] for r in records_of(tmp_path / "out")}
    assert {protocol for protocol, _ in records} == set(PROTOCOLS), "all that have sources"
    cross, domains = records["cross_dataset", "tip_adapter"], records["domain_generalisation", "tip_adapter"]
    assert cross["icons"]["part"] == "source" and cross["oxford_pets"]["accuracy"] is None
    assert domains["few"]["accuracy"] is not None and (domains["few"]["images"], domains["few"]["classes"]) == (3, 3)
    assert "| method | source: icons | oxford_pets |" in (tmp_path / "out" / "table.md").read_text()


def test_saved_datasets_and_folders_without_splits_are_read(script, sources, tmp_path):
    from datasets import DatasetDict

    from hf_clip_variants.data import load_images

    train = load_images(sources[1])
    DatasetDict(train=train.dataset, test=train.load_split(split="test").dataset).save_to_disk(str(tmp_path / "hub"))
    without_splits = save_images(tmp_path / "mine", {"": ["fluentflat", "emojione", "fluent3d", "notov1"]})
    command = arguments((sources[0], "", None), tmp_path / "out", methods="tip_adapter", protocols="few_shot")
    place = command.index("--data")
    command[place : place + 2] = ["--data", str(tmp_path / "hub"), f"mine={without_splits}"]
    assert script.main(command) == 0
    tests = {record["data"]: record["tests"] for record in records_of(tmp_path / "out")}
    assert tests["hub"]["hub"]["images"] == 12 and tests["mine"]["mine"]["images"] in (6, 12)


@pytest.mark.parametrize(
    "change, message",
    [
        (["--protocols", "zero"], "--protocols: unknown 'zero'. Known: few_shot, base_to_new, cross_dataset"),
        (["--protocols", "cross_dataset"], "cross_dataset: got no --targets; want the data sets to test on"),
        (["--methods", "magic"], "--methods: unknown 'magic'"),
        (["--set", "epoch=1"], "has no 'epoch'"),
        (["--seeds", "1,x"], "seeds: got '1,x'; want whole numbers"),
        (["--seeds", "1,1"], "want none of them twice"),
        (["--data", "no/such/folder/x"], "no such file or folder"),
    ],
)
def test_wrong_arguments_are_refused_before_any_run(script, sources, tmp_path, capsys, change, message):
    assert script.main([*arguments(sources, tmp_path / "out"), *change]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.glob("out/*.jsonl"))


def test_emoji_are_the_default_and_targets_without_data_are_refused(script, tmp_path, capsys):
    options = script.parser().parse_args(["--out", str(tmp_path)])
    plans = script.make_plans(options)
    assert [plan.protocol for plan in plans] == [
        "few_shot",
        "base_to_new",
        "cross_dataset",
        "cross_dataset",
        "domain_generalisation",
    ]
    assert all(script.shots_of(plan, options) == [1, 2] for plan in plans)
    assert script.main(["--out", str(tmp_path), "--targets", "x"]) == 2
    assert "--targets: got it without --data" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.main(["--help"])
    assert "coop:$DATA/oxford_pets" in capsys.readouterr().out


def test_small_run_trains_for_one_epoch(script):
    assert script.one_epoch(["tip_adapter", "coop", "tip_adapter_f"]) == {"coop.epochs": 1, "tip_adapter_f.epochs": 1}


def test_processes_share_the_runs_even_if_one_starts_late(script, sources, tmp_path):
    """Started one after the other: the second process reads the first one's lines and does only its own runs."""
    options = script.parser().parse_args(arguments(sources, tmp_path, protocols="few_shot", methods="tip_adapter"))
    assert script.benchmark(options, "x", rank=0, world_size=2) == 0
    assert "2 runs are missing" in (tmp_path / "table.md").read_text()
    assert script.benchmark(options, "x", rank=1, world_size=2) == 0
    assert len(comparable(tmp_path)) == 5 and "missing" not in (tmp_path / "table.md").read_text()
    assert [len((tmp_path / f"runs-{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)] == [3, 2]


@pytest.mark.slow
def test_two_processes_get_the_results_of_one(sources, whole, tmp_path):
    """With what torchrun tells each of them."""
    logs = [tmp_path / "process-0", tmp_path / "process-1"]
    processes = {}
    for rank, log in enumerate(logs):
        world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        processes[log] = start_program(SCRIPT, *arguments(sources, tmp_path / "out"), log=log, **world)
    finish(processes)
    out = tmp_path / "out"
    assert comparable(out) == comparable(whole)
    assert [len((out / f"runs-{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)] == [9, 9]
    ours, theirs = (
        path.read_text().split("## ", 1)[1].split("runs, ")[0] for path in (out / "table.md", whole / "table.md")
    )
    assert ours == theirs and "missing" not in (out / "table.md").read_text()
    assert "[process 1] 9 of 18 runs to do" in logs[1].read_text()
