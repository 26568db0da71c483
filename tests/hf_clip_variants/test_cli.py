"""The command line: listing, errors, exit codes, machine-readable output. Each command has its own tests."""

import io
import json
import os
import subprocess
import sys
import types

import pytest

import hf_clip_variants
from hf_clip_variants import cli
from hf_clip_variants.commands.output import JsonOption, machine_output, prepare_libraries
from hf_clip_variants.registry import methods


@pytest.fixture
def toy_command(monkeypatch):
    """Adds a command `toy` that runs the given function."""

    def add(function):
        module = types.ModuleType("hf_clip_variants.commands.toy")
        function.__name__ = "toy"
        module.toy = function
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "toy", "A toy.")

    return add


def in_a_new_process(*arguments, **options):
    program = [sys.executable, "-m", "hf_clip_variants.cli", *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, **options)


def test_help_lists_every_command_and_imports_none(run, monkeypatch):
    loaded = []
    monkeypatch.setattr(cli, "load_command", loaded.append)
    for arguments in (["--help"], ["-h"]):
        code, out, err = run(*arguments)
        assert code == 0 and err == "" and loaded == []
        for name, summary in cli.COMMANDS.items():
            assert f" {name} " in out and summary.split()[0] in out
        assert "hf-clip-variants demo" in out, "examples teach"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_every_command_has_an_example(run, name):
    code, out, _ = run(name, "--help")
    summary, _, rest = out.partition(" Example ")
    assert code == 0 and rest.strip().startswith(f"hf-clip-variants {name}"), "one example first"
    assert "--json" in out and "│" not in summary, "and before the options"


def test_version(run):
    assert run("--version") == (0, f"hf-clip-variants {hf_clip_variants.__version__}\n", "")


def test_wrong_usage_exits_2_with_a_suggestion(run):
    code, out, err = run("metods")
    assert code == 2 and out == "" and "Did you mean 'methods'?" in err
    code, _, err = run("methods", "--kind", "tuner")
    assert code == 2 and "adapter" in err


def test_methods_table_and_json_come_from_the_registry(run):
    code, out, _ = run("methods")
    assert code == 0
    for row in methods():
        assert row.name in out and row.paper.url in out
        assert all(entry.name in out for entry in row.few_shot)
    assert run("methods", "tip_adapter_f", "tip_adapter")[1] == run("methods", "tip_adapter")[1], "the row it is in"
    code, out, err = run("methods", "--json")
    assert code == 0 and err == "" and json.loads(out) == [row.as_dict() for row in methods()]
    models = [row["name"] for row in json.loads(run("methods", "--kind", "model", "--json")[1])]
    assert models == [row.name for row in methods("model")]
    assert [row["name"] for row in json.loads(run("methods", "coop", "--json")[1])] == ["coop"]


def test_user_errors_are_one_line_on_stderr(run, toy_command):
    code, out, err = run("methods", "tip-adapter")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("Error: NAMES: unknown 'tip-adapter'; did you mean 'tip_adapter'")
    for error in (ValueError("a\n  b"), FileNotFoundError(2, "No such file", "x.png"), ImportError("pip install it")):

        def fail(error=error):
            raise error

        toy_command(lambda: fail())
        code, out, err = run("toy")
        assert (code, out) == (1, "") and err == f"Error: {' '.join(str(error).split())}\n"


def test_debug_flag_at_any_position_shows_the_traceback(toy_command):
    def toy(name: str):
        raise ValueError(f"bad {name}")

    toy_command(toy)
    for arguments in (["--debug", "toy", "x"], ["toy", "--debug", "x"], ["toy", "x", "--debug"]):
        with pytest.raises(ValueError, match="bad x"):
            cli.main(arguments)
    with pytest.raises(SystemExit):
        cli.main(["toy", "--", "--debug"])  # after -- it is an argument


def test_unexpected_error_keeps_its_traceback(toy_command):
    def toy():
        raise ZeroDivisionError

    toy_command(toy)
    with pytest.raises(ZeroDivisionError):
        cli.main(["toy"])


def test_ctrl_c_exits_130_without_a_traceback(run, toy_command):
    def toy():
        raise KeyboardInterrupt

    toy_command(toy)
    code, out, err = run("toy")
    assert (code, out, err) == (130, "", "\nInterrupted.\n")


def test_ctrl_c_before_a_command_starts_exits_130_without_a_traceback(run, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "make_command", interrupted)
    assert run("methods") == (130, "", "\nInterrupted.\n")


def test_exit_code_of_a_command_is_kept(run, toy_command):
    import typer

    def toy():
        raise typer.Exit(3)

    toy_command(toy)
    assert run("toy")[0] == 3


def test_machine_output_keeps_stdout_clean(run, toy_command):
    def toy(json: JsonOption = False):
        with machine_output() as emit:
            print("a library talks")
            emit({"label": "日本語 cat", "score": 0.5})
            print("and talks")
        print("after")

    toy_command(toy)
    code, out, err = run("toy", "--json")
    assert (
        code == 0 and out == '{"label": "日本語 cat", "score": 0.5}\nafter\n' and err == "a library talks\nand talks\n"
    )
    with pytest.raises(ValueError), machine_output() as emit:
        emit(float("nan"))  # not JSON


PRINTING = """
import sys, types, hf_clip_variants.cli as cli
module = types.ModuleType("hf_clip_variants.commands.toy")
module.toy = lambda: print("x" * {count})
sys.modules[module.__name__] = module
cli.COMMANDS["toy"] = "A toy."
cli.main(["toy"])
"""


@pytest.mark.parametrize(
    "program",
    [["-m", "hf_clip_variants.cli", *rest] for rest in (["methods"], ["--help"], ["methods", "--json"])]
    + [["-c", PRINTING.format(count=count)] for count in (1, 1_000_000)],
    ids=["methods", "help", "json", "byte, written by the last flush", "megabyte"],
)
def test_closed_stdout_exits_141_silently(program):
    reading, writing = os.pipe()
    os.close(reading)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen([sys.executable, *program], stdout=writing, stderr=subprocess.PIPE, env=environment)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, b"")


def test_other_broken_pipes_are_errors(run, toy_command):
    def toy():
        raise BrokenPipeError(32, "the Hub closed the connection")

    toy_command(toy)
    code, _, err = run("toy")
    assert code == 1 and "the Hub closed the connection" in err


def test_help_loads_neither_torch_nor_transformers():
    heavy = ("torch", "transformers", "peft", "datasets", "numpy", "PIL", "matplotlib", "huggingface_hub")
    program = (
        "import sys, runpy\nsys.argv = ['hf-clip-variants', '--help']\n"
        "try:\n    runpy.run_module('hf_clip_variants.cli', run_name='__main__')\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr == "[]\n" and "Commands" in done.stdout


def test_console_script_is_installed():
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="hf-clip-variants")
    assert script.load() is cli.main
    done = in_a_new_process("methods", "nothing")
    assert done.returncode == 1 and done.stderr.startswith("Error: NAMES: unknown 'nothing'")


def test_without_arguments_the_program_explains_itself(run):
    assert run() == run("--help")


def test_env_is_one_fact_a_line(run):
    code, out, _ = run("env")
    assert code == 0 and all(line.startswith("- ") and ": " in line for line in out.splitlines())
    found = json.loads(run("env", "--json")[1])
    assert found["hf-clip-variants"] == hf_clip_variants.__version__ and found["devices"] and found["torch"]
    assert [line[2:].partition(": ")[0] for line in out.splitlines()] == list(found)


def test_loading_is_said_at_once_and_only_to_who_watches(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    said = []
    for watched, stream in ((True, Terminal()), (False, Terminal()), (True, io.StringIO())):
        monkeypatch.setattr(sys, "stderr", stream)
        prepare_libraries(watched)
        said.append("Loading …" in stream.getvalue())
    assert said == [True, False, False]


def test_the_lecture_on_unknown_repositories_becomes_one_line(run, toy_command):
    def toy():
        raise OSError(
            "m/gone is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'"
            "\nIf this is a private repository, make sure to pass a token having permission to this repo"
        )

    toy_command(toy)
    reason = "no such folder m/gone, and no such repository on the Hub (a private one needs `hf auth login`)"
    assert run("toy") == (1, "", f"Error: {reason}\n")
