"""Help pages and completion in the shell."""

import os
import re
import subprocess
import sys

import pytest

from hf_clip_variants import cli


PAGES = ["", *cli.COMMANDS]


@pytest.mark.parametrize("name", PAGES)
def test_help_fits_80_columns(run, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(*filter(None, [name]), "--help")
    lines = out.splitlines()
    assert code == 0 and max(map(len, lines)) <= 80
    described = [re.fullmatch(r"│ +(?:\* +)?-.*? {2,}(\S(?: ?\S)*) *│", line) for line in lines]
    for text in filter(None, described):
        assert 78 - text.start(1) >= 25, f"texts are squeezed into a narrow column: {text[0]}"


@pytest.mark.parametrize("name", PAGES)
def test_examples_are_not_wrapped_in_80_columns(name):
    text = cli.load_command(name).help if name else cli.make_command().help
    examples = [line for line in text.splitlines() if line.startswith("  ")]
    assert examples and max(map(len, examples)) <= 78


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [100, 140])
def test_paragraphs_of_help_are_as_wide_as_the_terminal(run, monkeypatch, name, width):
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = run(*filter(None, [name]), "--help")
    prose = out.partition("╭")[0]
    for paragraph in re.split(r"\n\s*\n", prose):
        lines = [line.strip() for line in paragraph.splitlines()]
        if "hf-clip-variants" in paragraph:
            continue  # the examples
        for line, following in zip(lines, lines[1:], strict=False):
            assert len(line) + 1 + len(following.split()[0]) > width - 2, f"ends early: {line}"


def test_options_are_in_groups(run):
    _, out, _ = run("adapt", "--help")
    titles = re.findall(r"╭─ (.+?) ─", out)
    assert titles == ["Arguments", "Options", "Data", "Model", "Training", "Running and output"]
    assert "--shots" in out.partition("Data ─")[0], "what matters most comes first"


def completions(*line: str) -> list[str]:
    words = ["hf-clip-variants", *line]
    environment = os.environ | {
        "_HF_CLIP_VARIANTS_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    program = [sys.executable, "-c", "from hf_clip_variants.cli import main; main()"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, env=environment)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["ad"], ["adapt"]),
        (["adapt", "--common"], ["--common-classes"]),
        (["adapt", "--methods", "tip"], ["tip_adapter", "tip_adapter_f"]),
        (["adapt", "--methods", "coop,tip_adapter_"], ["coop,tip_adapter_f"]),
        (["adapt", "--templates", "p"], ["photo", "pets"]),
        (["adapt", "--benchmark", "oxford"], ["oxford_flowers", "oxford_pets"]),
        (["evaluate", "--data", "emoji:n"], ["emoji:notov1"]),
        (["adapt", "x", "--test-data", "far=emoji:fluent3d,e"], ["far=emoji:fluent3d,emojione"]),
        (["adapt", "pe"], []),  # the shell's file names
        (["convert", "--method", "clip_"], ["clip_resnet", "clip_vil", "clip_adapter"]),
        (["knn", "x", "--dtype", "b"], ["bfloat16"]),
        (["methods", "tip"], ["tip_adapter", "tip_adapter_f"]),
    ],
)
def test_values_complete_in_the_shell(line, expected):
    assert completions(*line) == expected
