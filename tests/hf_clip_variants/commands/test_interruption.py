"""SIGTERM and SIGINT end every long command with one sentence, a sound folder and the exit code of the signal."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from multiprocessing import resource_sharer

import pytest
from adapter_models import tiny_classifier
from attack_checkpoints import official_weights
from interrupted_commands import run_and_say_ready
from official_files import letters_tokenizer, plain
from paths import SCRIPTS
from peft import get_peft_model
from processes import SERVER
from tiny import tiny_tokenizer
from transformers import AutoModelForImageClassification

from hf_clip_variants import CLIPClassifierImageProcessor, CLIPClassifierProcessor, VPTConfig, cli
from hf_clip_variants.commands import interruption


SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def toy_command(monkeypatch):
    def add(function):
        module = types.ModuleType("hf_clip_variants.commands.toy")
        function.__name__ = "toy"
        module.toy = function
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "toy", "A toy.")

    return add


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_gives_one_sentence_its_exit_code_and_cleans_up(run, toy_command, number):
    before, done = [signal.getsignal(each) for each in SIGNALS], []

    def toy():
        try:
            signal.raise_signal(number)
        finally:
            done.append(True)

    toy_command(toy)
    assert run("toy") == (128 + number, "", "\nInterrupted.\n") and done
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_signals_that_the_caller_handles_stay_as_they_are(run, toy_command):
    seen = []
    before = [signal.signal(number, lambda *_: seen.append(1)) for number in SIGNALS]
    try:
        toy_command(lambda: [signal.raise_signal(number) for number in SIGNALS] and None)
        assert run("toy")[0] == 0 and len(seen) == 2
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def test_in_another_thread_no_handler_is_needed(toy_command):
    toy_command(lambda: None)
    codes = []

    def call():
        with pytest.raises(SystemExit) as exit:
            cli.main(["toy"])
        codes.append(exit.value.code)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert codes == [0] or codes == [None]


def interrupted(arguments, number, folder, started=None, ready="from_pretrained"):
    """(exit code, output) of a command that gets a signal once it works."""
    log = folder / "log.txt"
    log.unlink(missing_ok=True)
    ready = ready if started is None else None
    process = SERVER.Process(target=run_and_say_ready, args=([str(a) for a in arguments], str(log), ready))
    process.start()
    deadline = time.monotonic() + 100
    while not (log.exists() and "ready" in log.read_text() if started is None else started()):
        assert process.is_alive() and time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    alive = process.is_alive()
    process.kill()
    assert not alive, log.read_text()
    return process.exitcode, log.read_text()


COMMANDS = {
    "adapt": ["DATA", "--model", "CLIP", "--out", "OUT", "--methods", "coop", "--shots", "1", "--set", "epochs=9999"],
    "demo": ["--out", "OUT", "--shots", "1", "--seeds", "1"],
    "predict": ["DATA", "--model", "CLIP", "--classes", "cat, dog", "--out", "OUT"],
    "evaluate": ["--model", "CLIP", "--data", "DATA"],
    "knn": ["CLIP", "--train", "DATA", "--cache", "OUT", "--k", "3"],
    "linear-probe": ["CLIP", "--train", "DATA", "--cache", "OUT"],
    "export": ["CLIP", "OUT"],
    "index": ["DATA", "--model", "CLIP", "--out", "OUT"],
}


@pytest.mark.parametrize(
    ("name", "number"), [*((name, signal.SIGTERM) for name in COMMANDS), ("predict", signal.SIGINT)]
)
def test_long_commands_end_without_a_traceback_and_leave_nothing_half_done(name, number, clip, images, tmp_path):
    places = {"DATA": images, "CLIP": clip, "OUT": tmp_path / "out"}
    code, said = interrupted([name, *(places.get(a, a) for a in COMMANDS[name])], number, tmp_path)
    assert code == 128 + number and "Traceback" not in said and said.count("Interrupted.") == 1, said
    assert list(tmp_path.rglob(".tmp-*")) == [], "no temporary files"
    if name in ("predict", "export"):
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("there", [False, True], ids=["new folder", "folder of an older model"])
def test_convert_leaves_the_folder_as_it_was(number, there, tmp_path):
    weights = official_weights()
    official = plain(weights, tmp_path / "official.pt")
    tokenizer = letters_tokenizer(len(weights["token_embedding.weight"]), tmp_path / "letters")
    out = tmp_path / "out"
    if there:
        shutil.copytree(tokenizer, out)
    before = {path.name: path.read_bytes() for path in out.glob("*")}
    arguments = ["convert", official, out, "--tokenizer", tokenizer, "--compare", "--overwrite"]
    for ready in ("save_pretrained", "from_pretrained"):
        code, said = interrupted(arguments, number, tmp_path, ready=ready)
        assert code == 128 + number and "Traceback" not in said and said.count("Interrupted.") == 1, said
        assert {path.name: path.read_bytes() for path in out.glob("*")} == before, ready
        assert {path.name for path in tmp_path.iterdir()} - {"out"} == {"official.pt", "letters", "log.txt"}
        assert out.exists() == there


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("with_base", [False, True], ids=["classifier", "adapter with its base"])
def test_push_leaves_the_folder_and_no_temporary_one(number, with_base, tmp_path):
    folder, more = tmp_path / "model", []
    tiny_classifier().save_pretrained(folder)
    CLIPClassifierProcessor(CLIPClassifierImageProcessor(), tiny_tokenizer()).save_pretrained(folder)
    if with_base:
        base = AutoModelForImageClassification.from_pretrained(folder)
        folder, more = tmp_path / "adapter", ["--with-base", "--base", folder]
        get_peft_model(base, VPTConfig(prompt_depth=1)).save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, said = interrupted(["push", folder, "alice/cats", *more], number, tmp_path, ready="commit")
    assert code == 128 + number and "Traceback" not in said and said.count("Interrupted.") == 1, said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not list(tmp_path.glob("hf-clip-variants-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "number"), [("pretrain.py", signal.SIGTERM), ("few_shot_benchmark.py", signal.SIGTERM)]
)
def test_scripts_end_without_a_traceback(script, number, tmp_path):
    out = tmp_path / "out"
    arguments = {
        "pretrain.py": ["--smoke", "--steps", "5000", "--batch-size", "4", "--save-every", "1"],
        "few_shot_benchmark.py": ["--small", "--methods", "coop", "--set", "epochs=9999"],
    }[script]
    wanted = {"pretrain.py": "checkpoint-*", "few_shot_benchmark.py": "work"}[script]
    arguments = [SCRIPTS / script, *arguments, "--out", out]
    code, said = interrupted(arguments, number, tmp_path, lambda: any(out.glob(wanted)))
    assert code == 128 + number and "Traceback" not in said and said.count("Interrupted.") == 1, said


def test_a_signal_that_a_library_swallows_ends_the_command_all_the_same():
    program = (
        "import signal, time\nfrom hf_clip_variants.commands import interruption as i\ni._PATIENCE = 0.2\n"
        "with i.listening():\n  try:\n    signal.raise_signal(15)\n  except KeyboardInterrupt:\n    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 143 and done.stderr == "\nInterrupted.\n"


def test_a_forked_worker_dies_by_the_signal_and_says_nothing(capfd):
    with interruption.listening():
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("fault", [None, TypeError("a fault of its own")])
def test_a_worker_whose_program_leaves_in_the_middle_of_a_sentence_prints_no_traceback(fault, capfd):
    hook = sys.excepthook
    with interruption.listening():
        child = os.fork()
        if child == 0:
            try:
                address, _ = resource_sharer.DupFd(1)._id  # a thread hands out this file descriptor
                with socket.socket(socket.AF_UNIX) as program:
                    program.connect(address)  # and leaves before it says who it is
                time.sleep(1)  # the thread has printed what it prints
                if fault:
                    sys.excepthook(TypeError, fault, None)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    said = capfd.readouterr().err
    assert said == (f"TypeError: {fault}\n" if fault else "") and sys.excepthook is hook


def test_a_worker_that_is_not_forked_prints_none_either():
    """As the loader of pre-training starts them; what is no lost connection is printed."""
    program = (
        "import socket, sys, time\nfrom multiprocessing import resource_sharer\n"
        "from hf_clip_variants.data.workers import say_nothing_of_lost_connections\n"
        "say_nothing_of_lost_connections(0)\n"
        "with socket.socket(socket.AF_UNIX) as program:\n  program.connect(resource_sharer.DupFd(1)._id[0])\n"
        "time.sleep(1)\nraise TypeError('a fault of its own')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.count("Traceback") == 1 and done.stderr.endswith("TypeError: a fault of its own\n"), done.stderr
