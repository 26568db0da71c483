"""scripts/pretrain.py as a command: smoke run, interruptions, processes, other data, wrong arguments."""

import io
import json
import signal
import subprocess
import sys
import time
import wave

import numpy as np
import pytest
import torch
from paths import SCRIPTS
from PIL import Image
from processes import run_on_ranks, start_program

from hf_clip_variants.data.images.emoji import FOLDER


SCRIPT = SCRIPTS / "pretrain.py"
DATA = [str(FOLDER / "notov1.parquet"), "--text-columns", "name", "--augment", "icons"]
SMALL = ["--data", *DATA, "--image-size", "32", "--workers", "0", "--log-every", "1"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    threads = torch.get_num_threads()
    import pretrain

    yield pretrain
    torch.set_num_threads(threads)
    sys.modules.pop("pretrain", None)


def run_of(out):
    return json.loads((out / "run.json").read_text())


def losses(out):
    return [entry["loss"] for entry in run_of(out)["log"] if "loss" in entry]


@pytest.mark.slow
def test_smoke_run_trains_evaluates_and_saves_a_loadable_model(tmp_path):
    """The README's first command."""
    command = [sys.executable, str(SCRIPT), "--smoke", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fluent3d_top1" in done.stdout and "pairs a second" in done.stdout
    from transformers import pipeline

    classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "run" / "model"))
    found = classify(Image.new("RGB", (64, 64), "red"), candidate_labels=["apple", "frog"])
    assert {each["label"] for each in found} == {"apple", "frog"}
    run = run_of(tmp_path / "run")
    assert run["command"].startswith("python scripts/pretrain.py --smoke") and len(losses(tmp_path / "run")) == 4
    assert set(run["metrics"]) == {"eval_fluent3d_top1", "eval_fluent3d_top5"}


@pytest.mark.parametrize(
    "more, cls",
    [
        (["--method", "clip", "--arch", "ViT-mini"], "CLIPModel"),
        (["--method", "clip", "--arch", "RN-mini", "--augment-on", "device"], "CLIPResNetModel"),
        (["--method", "slip", "--arch", "ViT-mini", "--set", "ssl_mlp_dim=32"], "SLIPModel"),
        (
            ["--method", "slip", "--arch", "RN-mini", "--augment", "published", "--set", "ssl_objective=byol"],
            "SLIPModel",
        ),
        (["--method", "clip", "--arch", "ViT-mini", "--augment", "published", "--stream"], "CLIPModel"),
        (
            ["--method", "clip", "--arch", "ViT-mini", "--micro-batch-size", "3", "--bf16", "--checkpointing"],
            "CLIPModel",
        ),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else value,
)
def test_every_method_trains_and_saves_a_loadable_model(more, cls, script, tmp_path, capsys):
    from transformers import AutoModel, AutoProcessor

    out = tmp_path / "run"
    arguments = [
        *SMALL,
        *more,
        "--steps",
        "3",
        "--batch-size",
        "8",
        "--eval",
        "emoji:fluent3d",
        "--test-templates",
        "icons",
        "--out",
        str(out),
    ]
    assert script.main(arguments) == 0, capsys.readouterr().err
    model, processor = AutoModel.from_pretrained(out / "model"), AutoProcessor.from_pretrained(out / "model")
    assert type(model).__name__ == cls
    inputs = processor(images=Image.new("RGB", (40, 30)), text=["a", "b"], return_tensors="pt", padding=True)
    assert model(**inputs).logits_per_image.shape == (1, 2)
    assert len(losses(out)) == 3 and all(np.isfinite(losses(out)))
    if cls == "SLIPModel":
        from hf_clip_variants import SLIPForPreTraining

        assert {"clip_loss", "ssl_loss"} <= set(run_of(out)["log"][0])
        whole = SLIPForPreTraining.from_pretrained(out / "pretraining")
        assert torch.equal(whole.logit_scale, model.logit_scale)


def test_table_has_the_probes_of_finished_runs(script, tmp_path, capsys):
    import pretraining_table

    probe = "food=emoji:fluentflat,emojione@food-drink=emoji:notov1@food-drink"
    folders = [str(tmp_path / name) for name in ("one", "two")]
    for folder, arch in zip(folders, ("ViT-mini", "RN-mini"), strict=True):
        arguments = [*SMALL, "--arch", arch, "--steps", "1", "--batch-size", "4", "--eval", "emoji:fluent3d"]
        assert script.main([*arguments, "--out", folder]) == 0
    assert pretraining_table.main([*folders, "--probe", probe, "--out", str(tmp_path / "table")]) == 0
    page = (tmp_path / "table" / "table.md").read_text()
    assert "| one | 1 | 4 |" in page and "| two | 1 | 4 |" in page and "--arch RN-mini" in page
    lines = [json.loads(line) for line in (tmp_path / "table" / "runs.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines] == ["one", "two"]
    assert all(0 <= line["probes"]["food"][kind] <= 1 for line in lines for kind in ("linear", "nearest"))
    assert lines[0]["probes"]["food"]["train_images"] == 176

    for given, message in (
        ([str(tmp_path)], "holds no finished run"),
        ([*folders, "--probe", "food"], "want NAME=TRAIN=TEST"),
    ):
        assert pretraining_table.main([*given, "--out", str(tmp_path / "none")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "none").exists()


def write_tones(path, count=12):
    """A Parquet file of tones with images and names."""
    import datasets

    rows = {"image": [], "audio": [], "caption": []}
    for number in range(count):
        image, audio = io.BytesIO(), io.BytesIO()
        Image.new("RGB", (40, 40), (20 * number, 255 - 20 * number, 90)).save(image, "png")
        with wave.open(audio, "wb") as file:
            file.setparams((1, 2, 22050, 0, "NONE", "none"))
            tone = 12000 * np.sin(2 * np.pi * (200 + 100 * number) * np.arange(11025) / 22050)
            file.writeframes(tone.astype("<i2").tobytes())
        rows["image"].append({"bytes": image.getvalue(), "path": None})
        rows["audio"].append({"bytes": audio.getvalue(), "path": f"{number}.wav"})
        rows["caption"].append(f"tone {number}")
    audio_feature = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.Value("string"), "audio": audio_feature}
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def test_audioclip_trains_an_audio_encoder_for_a_frozen_clip(script, tmp_path, capsys):
    """Trains a CLIP-ResNet, then an audio encoder with the rest frozen; measures retrieval in each direction."""
    from transformers import AutoModel, AutoProcessor

    write_tones(tmp_path / "tones.parquet")
    data, clip, out = str(tmp_path / "tones.parquet"), tmp_path / "clip", tmp_path / "run"
    common = ["--data", data, "--augment", "crops", "--steps", "2", "--batch-size", "4", "--workers", "0"]
    assert script.main([*common, "--arch", "RN-mini", "--image-size", "32", "--out", str(clip)]) == 0
    audio_config = json.dumps(
        {
            "hidden_size": 128,
            "depths": [1, 1, 1, 1],
            "groups": 1,
            "width_per_group": 64,
            "n_fft": 256,
            "win_length": 200,
        }
    )
    model_options = ["--init", str(clip / "model"), "--set", f"audio_config={audio_config}"]
    model_options += ["--set", 'frozen_modalities=["image","text"]', "--seconds", "0.5"]
    evaluation = ["--hold-out", "0.34", "--test-pairs", f"tones={data}"]
    arguments = [*common, "--method", "audioclip", *model_options, *evaluation, "--out", str(out)]
    assert script.main(arguments) == 0, capsys.readouterr().err
    model = AutoModel.from_pretrained(out / "model")
    assert type(model).__name__ == "AudioCLIPModel"
    assert type(AutoProcessor.from_pretrained(out / "model")).__name__ == "AudioCLIPProcessor"
    trained = model.state_dict()
    assert all(
        torch.equal(trained[name], value)
        for name, value in AutoModel.from_pretrained(clip / "model").state_dict().items()
    )
    found = run_of(out)["metrics"]
    parts = ("text", "image", "audio")
    assert {name.split("_recall")[0] for name in found if name.endswith("recall_at_1")} == {
        f"eval_{which}_{a}_to_{b}"
        for which in ("tones", "unseen", "seen_augmented")
        for a in parts
        for b in parts
        if a != b
    }
    assert found["eval_unseen_audio_to_text_recall_at_5"] == 1, "four rows of twelve"
    import pretraining_table

    assert pretraining_table.main([str(out), "--no-probes", "--out", str(tmp_path / "table")]) == 0
    page = (tmp_path / "table" / "table.md").read_text()
    assert "| run | unseen | audio → text | " in page and "| run | seen augmented | image → audio | " in page


def test_two_processes_equal_one_with_the_same_total_batch(script, tmp_path):
    arguments = [*SMALL, "--arch", "ViT-mini", "--steps", "3", "--eval", "emoji:fluent3d"]
    assert script.main([*arguments, "--batch-size", "16", "--out", str(tmp_path / "one")]) == 0
    arguments += ["--batch-size", "8", "--out", str(tmp_path / "two")]
    run_on_ranks(SCRIPT, *arguments, world_size=2, folder=tmp_path)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-4)
    one, two = run_of(tmp_path / "one")["metrics"], run_of(tmp_path / "two")["metrics"]
    assert two == pytest.approx(one, abs=0.02) and run_of(tmp_path / "two")["settings"]["processes"] == 2


def test_killed_run_resumes_with_the_same_command(tmp_path, script, monkeypatch):
    from hf_clip_variants.files.atomic_writes import last_complete_checkpoint
    from hf_clip_variants.training.pretrain_trainer import PretrainTrainer

    arguments = [*SMALL, "--arch", "ViT-mini", "--steps", "10", "--save-every", "2", "--batch-size", "8"]
    assert script.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    killed = tmp_path / "killed"
    process = start_program(SCRIPT, *arguments, "--out", killed, log=tmp_path / "log")
    while not list(killed.glob("checkpoint-*")) and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (killed / "model").exists()
    done = int(last_complete_checkpoint(killed).name.removeprefix("checkpoint-"))
    steps, step = [], PretrainTrainer.training_step
    monkeypatch.setattr(PretrainTrainer, "training_step", lambda *args: steps.append(1) or step(*args))
    assert script.main([*arguments, "--out", str(killed)]) == 0
    assert losses(killed) == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    assert len(steps) == 10 - done, "the rest, and not all again"
    assert run_of(killed)["loss"] == pytest.approx(run_of(tmp_path / "whole")["loss"], rel=1e-5), "over all steps"
    assert run_of(killed)["loss"] == pytest.approx(np.mean(losses(killed)), rel=1e-5)


def test_finished_run_is_not_repeated_and_other_settings_are_refused(script, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    arguments = [*SMALL, "--arch", "ViT-mini", "--steps", "1", "--batch-size", "4"]
    assert script.main([*arguments, *out]) == 0
    before = (tmp_path / "run" / "run.json").read_text()
    assert script.main([*arguments, *out]) == 0
    assert "finished already" in capsys.readouterr().err and (tmp_path / "run" / "run.json").read_text() == before
    assert script.main([*arguments, "--lr", "0.5", *out]) == 2
    assert "holds a run with lr=0.001, this one has 0.5" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    assert script.main([*arguments, "--out", str(tmp_path / "other")]) == 2
    assert "holds no run.json" in capsys.readouterr().err


def test_training_starts_from_a_saved_model(script, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert script.main([*SMALL, "--arch", "ViT-mini", "--steps", "1", "--batch-size", "4", "--out", str(first)]) == 0
    data = [word for word in SMALL if word not in ("--image-size", "32")]
    arguments = [
        *data,
        "--steps",
        "1",
        "--batch-size",
        "4",
        "--lr",
        "1e-12",
        "--warmup",
        "0",
        "--init",
        str(first / "model"),
        "--out",
        str(second),
    ]
    assert script.main(arguments) == 0, capsys.readouterr().err
    from transformers import AutoModel

    one, two = (AutoModel.from_pretrained(folder / "model").state_dict() for folder in (first, second))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


@pytest.mark.parametrize("method", ["clip", "slip"])
def test_every_method_starts_from_a_trained_clip(method, script, tmp_path, capsys):
    from hf_clip_variants import embedded_model

    data = [word for word in SMALL if word not in ("--image-size", "32")]
    arguments = [
        *data,
        "--method",
        method,
        "--init",
        str(embedded_model()),
        "--steps",
        "1",
        "--batch-size",
        "4",
        "--lr",
        "1e-7",
    ]
    evaluation = ["--test-data", "emoji:fluent3d", "--test-templates", "icons"]
    assert script.main([*arguments, *evaluation, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert run_of(tmp_path / "run")["metrics"]["eval_fluent3d_top1"] == pytest.approx(0.495, abs=0.01)


ONE_STEP = ["--arch", "ViT-mini", "--steps", "1"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "data: got none"),
        (["--data", "x"], "arch: got none"),
        (["--data", "x", "--arch", "ViT-mini"], "steps: got steps=None and epochs=None"),
        (["--data", "x", *ONE_STEP, "--epochs", "1"], "want one of them"),
        (["--data", "x", "--arch", "ViT-mini", "--steps", "0"], "steps: got 0"),
        (["--data", "nowhere.parquet", *ONE_STEP], "no such file"),
        (["--data", *DATA, *ONE_STEP, "--arch", "ViT-huge"], "architecture: got 'ViT-huge'; want one of ViT-mini"),
        (
            ["--data", *DATA, *ONE_STEP, "--method", "audioclip"],
            "'ViT-mini' for audioclip; want one of RN-mini, RN-tiny",
        ),
        (["--data", *DATA, *ONE_STEP, "--set", "projection"], "set: got 'projection'; want NAME=VALUE"),
        (["--data", *DATA, *ONE_STEP, "--init", "x"], "init: a trained model has"),
        (["--data", DATA[0], "--text-columns", "title", *ONE_STEP], "no column 'title'"),
        (["--data", *DATA[:3], "--augment-on", "device", *ONE_STEP], "want --augment crops"),
        (["--data", *DATA, "--stream", "--distinct", "hexcode", *ONE_STEP], "a stream is one source"),
        (["--data", *DATA, "--stream", "--arch", "ViT-mini", "--epochs", "1"], "a stream does not tell its length"),
        (
            ["--data", *DATA, *ONE_STEP, "--method", "slip", "--micro-batch-size", "2"],
            "slip on ViT-mini has batch norm",
        ),
        (
            ["--data", *DATA, "--arch", "RN-mini", "--steps", "1", "--micro-batch-size", "2"],
            "clip on RN-mini has batch",
        ),
        (["--data", *DATA, *ONE_STEP, "--test-pairs", "a=emoji.parquet"], "no such file"),
        (["--data", *DATA, *ONE_STEP, "--stream", "--hold-out", "0.5"], "--hold-out: rows can be held out of"),
        (["--data", *DATA, *ONE_STEP, "--hold-out", "1.5"], "--hold-out: got 1.5"),
    ],
)
def test_wrong_arguments_are_named_and_leave_no_files(arguments, message, script, tmp_path, capsys):
    assert script.main([*arguments, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
