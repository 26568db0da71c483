"""What is wrong is refused in one line, before any library is loaded."""

import json
import os
import subprocess
import sys

import pytest

from hf_clip_variants.commands import arguments
from hf_clip_variants.commands.arguments import (
    check_data,
    check_model,
    in_words_of,
    method_names,
    numbers,
    parse_overrides,
)


# Arguments -> the message. In a folder that holds pets/cat, m/clip, a file `weights.pt` and an adapter `adapter`.
REFUSED = [
    ("adapt pets --shots 0", "--shots: got '0'; want whole numbers of at least 1 with commas, such as 1,2,4"),
    ("adapt pets --shots one", "--shots: got 'one'; want whole numbers"),
    ("adapt pets --seeds 1,1", "--seeds: got '1,1'; want none of them twice"),
    ("adapt pets --methods tip_adaptr", "--methods: unknown 'tip_adaptr'; did you mean 'tip_adapter'"),
    ("adapt pets --methods coop,coop", "--methods: got 'coop,coop'; want"),
    ("demo --methods CoPo", "--methods: unknown 'CoPo'; did you mean 'coop'"),
    ("demo --shots 0", "--shots: got '0'"),
    ("adapt ./pts", "--data: no such file or folder ./pts (did you mean ./pets?); a Hub id has the form owner/name"),
    ("adapt --data pets --data pts/x/y", "--data: no such file or folder pts/x/y"),
    ("adapt emoji:notov2", "--data: unknown 'notov2'; did you mean 'notov1'?"),
    ("adapt pets --test-data a=missing.csv", "--test-data: no such file or folder missing.csv"),
    ("adapt pets --test-data =pets", "--test-data: got '=pets'; want NAME=SOURCE or SOURCE"),
    ("adapt pets --model m/nothere", "--model: no such folder m/nothere; a Hub id has the form owner/name"),
    ("adapt pets --model weights.pt", "--model: weights.pt is a file; want a folder"),
    ("adapt pets --templates pet", "and is neither a file nor a named set; did you mean 'pets'?"),
    ("adapt pets --benchmark pet", "--benchmark: got 'pet'; want one of caltech101"),
    ("adapt pets --device gpus", "--device: got 'gpus'; want cpu, gpu, cuda"),
    ("adapt pets --set epochs", "--set: got 'epochs'; want NAME=VALUE"),
    ("adapt pets --set cop.epochs=3", "--set cop.epochs: unknown 'cop'; did you mean 'coop'?"),
    ("adapt pets --out weights.pt", "--out: weights.pt is a file; want a folder"),
    ("adapt pets --config gone.yaml", "--config: no such file: gone.yaml"),
    ("evaluate --data pets --adapter m/nothere", "--adapter: no such folder m/nothere; a Hub id"),
    ("predict x.png --model ./nothere", "--model: no such folder ./nothere; a Hub id"),
    ("predict x.png --adapter adapter --base m/clap", "--base: no such folder m/clap (did you mean m/clip?)"),
    ("knn m/nothere --train pets", "MODEL: no such folder m/nothere"),
    ("linear-probe m/clip --train ./pts", "--train: no such file or folder ./pts"),
    ("convert gone.pt out", "FILE: no such file gone.pt"),
    ("convert weights.pt out --method clap", "--method: unknown 'clap'; did you mean 'clip'"),
    ("convert adapter out", "adapter: an adapter that `save_pretrained` wrote, not an official checkpoint"),
    ("convert adapter/adapter_model.safetensors out", "an adapter that `save_pretrained` wrote"),
    ("convert m/clip out", "m/clip: a saved model, not an official checkpoint; want a file"),
    ("push gone me/x", "FOLDER: no such folder gone"),
    ("push adapter x", "REPOSITORY: got 'x'; want owner/name"),
    ("export m/nothere out", "MODEL: no such folder m/nothere"),
    ("verify m/nothere", "FOLDER: no such folder m/nothere"),
    ("methods tip_adaptr", "NAMES: unknown 'tip_adaptr'; did you mean 'tip_adapter'"),
    # wrong usage
    ("adapt pets --shot 1", "No such option --shot; did you mean --shots?"),
    ("adapt pets --image-colum x", "No such option --image-colum; did you mean --image-column"),
    ("adapt", "want DATA"),
    ("adpat pets", "No such command 'adpat'. Did you mean 'adapt'"),
]
HEAVY = ("torch", "transformers", "peft", "datasets", "numpy", "pyarrow", "PIL", "accelerate", "huggingface_hub")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("pets/cat", "m/clip", "adapter"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "m/clip/config.json").write_text("{}")
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "weights.pt").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No proxy, no Hub, an empty cache."""

    def refuse(address, timeout):
        raise OSError("Name or service not known")

    monkeypatch.setattr(arguments.socket, "create_connection", refuse)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[line for line, _ in REFUSED])
def test_what_is_wrong_is_one_line_in_the_commands_own_words(run, folder, line, message):
    code, out, err = run(*line.split())
    first, *others = err.splitlines()
    assert code in (1, 2) and out == "" and first.startswith("Error: ") and message in first
    assert [other for other in others if not other.startswith("Try 'hf-clip-variants")] == []
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "m", "pets", "weights.pt"]


def test_refusals_take_no_time_and_load_no_library(folder):
    """All of them in one process: less than a second each, of its processor's time."""
    program = f"""
import json, sys, time
from hf_clip_variants.cli import main
for line in json.loads(sys.stdin.read()):
    start = time.process_time()
    try:
        main(line.split())
    except SystemExit as exit:
        assert exit.code in (1, 2), line
    assert time.process_time() - start < 1, line
    # numpy lists the styles of the embedded images.
    loaded = [name for name in {HEAVY} if name in sys.modules and not (name in ("numpy", "PIL") and "emoji" in line)]
    assert not loaded, (line, loaded)
    [sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in ("numpy", "PIL")]
assert time.process_time() < 10
"""
    lines = sorted((line for line, _ in REFUSED), key=lambda line: "emoji" in line)
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(lines), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_hub_id_without_a_network_is_one_line_and_no_waiting(run, folder, offline):
    for line, name in (
        ("adapt pets --model owner/nothere", "--model: no such folder owner/nothere"),
        ("adapt owner/pets", "--data: no such file or folder owner/pets"),
        ("predict x.png --model nothere --classes a,b", "--model: no such folder nothere"),
    ):
        code, _, err = run(*line.split())
        reason = f"{name}, and the Hub cannot be reached; a Hub id has the form owner/name"
        assert (code, err) == (1, f"Error: {reason}\n")


def test_what_the_cache_has_is_used_without_a_network(offline, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    (offline / "hub/models--owner--clip/snapshots").mkdir(parents=True)
    (offline / "datasets/owner___pets").mkdir(parents=True)
    check_model("--model", "owner/clip")
    check_data("--data", ["owner/pets"])
    assert os.environ["HF_HUB_OFFLINE"] == "1", "or huggingface_hub tries for a minute"
    assert "owner/clip is read from the cache" in capsys.readouterr().err
    with pytest.raises(ConnectionError, match="owner/other"):
        check_model("--model", "owner/other")


def test_a_hub_that_answers_is_asked(offline, monkeypatch):
    reached = []

    class Connection:
        def close(self):
            pass

    def connect(address, timeout):
        reached.append(address)
        return Connection()

    monkeypatch.setattr(arguments.socket, "create_connection", connect)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example:8080")
    check_model("--model", "owner/clip")
    monkeypatch.delenv("HF_ENDPOINT")
    check_data("--data", ["cifar10"])
    assert reached == [("hub.example", 8080), ("huggingface.co", 443)]
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    check_model("--model", "owner/clip")
    assert len(reached) == 2, "a proxy resolves names itself"


def test_lists_are_parsed():
    assert numbers("--shots", " 1, 2 ,16", least=1) == [1, 2, 16] and numbers("--seeds", "0,-3") == [0, -3]
    assert method_names("coop, tip_adapter_f") == ["coop", "tip_adapter_f"]
    assert "vpt" in method_names("all")
    for bad in ("", ",", "1.5", "1;2"):
        with pytest.raises(ValueError, match="--shots: got"):
            numbers("--shots", bad)


def test_overrides_are_parsed_as_json_or_text():
    given = ["epochs=5", "coop.learning_rate=1e-3", "augmentation=none", "search_step=[4, 5]", "drop_last=true"]
    expected = {"epochs": 5, "coop.learning_rate": 1e-3, "augmentation": "none", "search_step": [4, 5]}
    assert parse_overrides(given) == expected | {"drop_last": True}
    for bad in ("epochs", "=5"):
        with pytest.raises(ValueError, match="--set: got"):
            parse_overrides([bad])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("test_data: got x", "--test-data: got x"),
        ("out: the folder is full", "--out: the folder is full"),
        ("class_names: 'a' is given twice", "--classes: 'a' is given twice"),
        ("class_names is empty", "--classes is empty"),
        ("class_names[3] is blank", "--classes[3] is blank"),
        ("overrides: coop has no 'epoch'", "--set: coop has no 'epoch'"),
        ("set label_column or image_column", "set --label-column or --image-column"),
        (
            "2 images cannot be read. Repair or remove them, or pass on_error='skip'.",
            "2 images cannot be read. Repair or remove them.",
        ),
        # names that users gave
        ("/home/me/test_data/x.png: no such file", "/home/me/test_data/x.png: no such file"),
        ("the class 'test_data' is empty", "the class 'test_data' is empty"),
        ("tip_adapter: nothing", "tip_adapter: nothing"),
    ],
)
def test_messages_name_options_and_not_arguments_of_functions(ours, theirs):
    names = ("test_data", "out", "classes", "set", "image_column", "label_column", "data")
    flags = {name: "--" + name.replace("_", "-") for name in names}
    assert in_words_of(flags, ours) == theirs


def test_an_unknown_column_is_an_error_with_the_near_ones(run, folder):
    (folder / "table.csv").write_text("picture,breed\nx.png,cat\n")
    code, _, err = run("evaluate", "--data", "table.csv", "--model", "m/clip", "--label-column", "bred")
    assert code == 1 and "--label-column: got 'bred'" in err and "did you mean 'breed'?" in err
