"""README.md: its table follows from the registry, its links work, its Python code runs and prints the output shown."""

import json
import re
import subprocess
import sys

import pytest
from paths import ROOT
from processes import finish, start_program

from hf_clip_variants.registry import methods


README = ROOT / "README.md"
SCRIPT = ROOT / "scripts" / "make_generated_files.py"
CI = ROOT / ".ci" / "run"
METHOD_READMES = sorted([*ROOT.glob("modeling/*/README.md"), *ROOT.glob("hf_clip_variants/adapters/*/README.md")])
PAGES = [README, ROOT / "CONTRIBUTING.md", *METHOD_READMES]
# A Python block, whether it is marked <!-- no-run -->, and the output block that may follow it.
BLOCK = re.compile(
    r"(?P<skip><!-- no-run -->\n+)?^```python\n(?P<code>.*?)^```\n(?:\n*```text\n(?P<output>.*?)^```\n)?", re.M | re.S
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def make_table(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def test_methods_table_equals_the_registry():
    done = make_table("--check")
    assert done.returncode == 0, done.stderr
    text = README.read_text(encoding="utf-8")
    for row in methods():
        assert row.summary in text and row.paper.url in text


def test_stale_table_is_reported_and_rewritten(tmp_path):
    readme, stub = tmp_path / "README.md", tmp_path / "__init__.pyi"
    stale = README.read_text(encoding="utf-8").replace(methods()[0].summary, "Old.")
    readme.write_text(stale, encoding="utf-8")
    done = make_table("--check", "--readme", readme, "--stub", stub)
    assert (
        done.returncode == 1
        and "README.md and __init__.pyi: out of date with the table of methods; run python" in done.stderr
    )
    assert readme.read_text(encoding="utf-8") == stale, "--check writes nothing"
    assert not stub.exists()
    assert make_table("--readme", readme, "--stub", stub).returncode == 0
    assert readme.read_text(encoding="utf-8") == README.read_text(encoding="utf-8")
    assert stub.read_text(encoding="utf-8") == (ROOT / "hf_clip_variants" / "__init__.pyi").read_text(encoding="utf-8")
    readme.write_text("no markers", encoding="utf-8")
    done = make_table("--readme", readme, "--stub", stub)
    assert done.returncode == 1 and "expected <!-- methods:start -->" in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_point_to_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.M)
    }
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        assert (page.parent / path).exists(), link
        if not path:
            assert anchor in headings, link


def blocks(text: str) -> list[re.Match]:
    return [block for block in BLOCK.finditer(text) if not block["skip"]]


def same_output(printed: str, shown: str) -> bool:
    """Equal words, and numbers within 2 % or 0.02, because they differ between machines."""
    if NUMBER.sub("#", printed.strip()) != NUMBER.sub("#", shown.strip()):
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    return all(abs(float(a) - float(b)) <= max(0.02, 0.02 * abs(float(b))) for a, b in pairs)


def test_code_blocks_and_outputs_are_parsed():
    text = "```python\na\n```\n\n```text\n1\n```\n<!-- no-run -->\n```python\nb\n```\n```python\nc\n```\n"
    assert [(block["code"], block["output"]) for block in blocks(text)] == [("a\n", "1\n"), ("c\n", None)]
    assert same_output("{'cat': 0.981}\n", "{'cat': 0.979}") and same_output("57.4%", "58.0%")
    assert not same_output("{'cat': 0.981}", "{'dog': 0.981}") and not same_output("57.4%", "62%")
    assert not same_output("1", "1 2")


# Each page in a namespace of its own, as a reader would who pastes one block after the other.
PROGRAM = """
import json
from contextlib import redirect_stdout
with open("printed", "w") as printed, redirect_stdout(printed):
    for page, blocks in json.load(open("pages.json")).items():
        names = {"__name__": page}
        for block in blocks:
            exec(compile(block, page, "exec"), names)
            print("--- next block ---", flush=True)
"""


@pytest.mark.slow
def test_python_blocks_run_in_order_and_print_the_output_shown(tmp_path):
    found = {
        page.relative_to(ROOT).as_posix(): blocks(page.read_text(encoding="utf-8"))
        for page in [README, *METHOD_READMES]
    }
    assert len(found) > len(methods()) and all(found.values()), "each has something to run"
    pages = {page: [block["code"] for block in those] for page, those in found.items()}
    (tmp_path / "pages.json").write_text(json.dumps(pages))
    (tmp_path / "program.py").write_text(PROGRAM)
    log = tmp_path / "log"
    finish({log: start_program(tmp_path / "program.py", log=log)})
    printed = (tmp_path / "printed").read_text().split("--- next block ---\n")
    for block, output in zip([block for those in found.values() for block in those], printed[:-1], strict=True):
        assert block["output"] is None or same_output(output, block["output"]), f"{block['code']}\nprinted:\n{output}"


@pytest.mark.skipif(not CI.exists(), reason="not in the sdist")
def test_ci_runs_the_commands_of_the_readme():
    """The demo before the tests, which must pass with what it leaves behind."""
    page = README.read_text(encoding="utf-8")
    install, tests = (page.split(f"\n## {title}\n")[1].split("```")[1].split("\n") for title in ("Install", "Tests"))
    commands = [tests[1], install[2], tests[2]]
    assert commands == ['pip install -e ".[test]"', "hf-clip-variants demo", "pytest"]
    lines = [line.partition(" || ")[0] for line in CI.read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if line.removesuffix(" --durations=30") in commands] == [
        *commands[:2],
        "pytest --durations=30",
    ]
    assert "PYTEST" not in CI.read_text(encoding="utf-8"), "no setting that the README does not have"
