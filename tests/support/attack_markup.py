"""Attacks on what people read: names, paths and templates with markup, in model cards, reports, tables and on screens.

What is right: a page has the same structure as with harmless words, and its texts hold the names; a snippet is the
same program but for its strings; a cell of a table is one cell and no formula; a line on the screen is the text.
"""

import ast
import csv
import functools
import io
import itertools
import json
import random
import re
import shutil
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import yaml
from adapter_models import tiny_classifier
from attack_cases import WRONG, Case
from few_shot_runs import save_images, save_tiny_clip
from tiny import tiny_tokenizer

from hf_clip_variants.few_shot.report import write_report
from hf_clip_variants.hub.model_cards import accuracy_result, card_arguments, model_card


KIND = "markup"
_PIECES = [
    "<script>alert(1)</script>", "</script>", "<img src=x onerror=alert(1)>", '" onload="alert(1)',
    "'><b>", "<!--", "-->", "]]>", "<svg/onload=x>", "&lt;", "&amp;", "&", "<", ">", "{{ 7*7 }}",
    "{% raw %}", "{# x #}", "{}", "{0}", "{repo_id}", "${x}", "$x$", "$\\frac{1}{0}$", "$", "\\",
    "\\n", "`", "```", "```\n# evil\n```python\nimport os\n", "~~~", "|", "\n", "\r\n",
    "\n\n# Heading\n", "\n---\n", "---", "# x", "- x", "* x", "> x", "![x](http://x)",
    "[x](javascript:alert(1))", "**b**", "_i_", "[bold]", "[/bold]", "[red]x[/]", "[link=http://x]",
    ":smile:", "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "%0A", '"', '""', "'", '"""', "'''",
    '"); import os; os.system("x"); ("', "\x1b[31m", "\x1b]8;;http://x\x07", "\x07", "\x00", "\u202e",
    "\u2028", "é", "猫", "null", "yes", "a: b", "!!python/object/apply:os.system", "%TAG", "x" * 300,
]  # fmt: skip

_BORDER = re.compile(r"(?<!\\)\|")  # of a table's cell


def _text(rng: random.Random) -> str:
    words = rng.choices(_PIECES, k=rng.randint(1, 3))
    return rng.choice(["", " "]).join(rng.sample([*words, rng.choice(["cat", "dog", "owl"])], len(words) + 1))


def _distinct(rng: random.Random, count: int) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        name = _text(rng)
        if name not in names and name.strip():
            names.append(name)
    return names


# ---- model cards


def _blocks_and_rest(text: str) -> tuple[list[str], str]:
    """The code blocks of a Markdown text, and the rest without code spans. A fence ends with one that is at least as
    long; one of backticks has none on its line."""
    blocks, rest, fence, lines = [], [], None, []
    for line in text.split("\n"):
        found = re.match(r" {0,3}(`{3,}|~{3,})(.*)$", line)
        if fence is None and found and not (found[1][0] == "`" and "`" in found[2]):
            fence, lines = found[1], [found[2].strip()]
        elif fence is None:
            rest.append(line)
        elif found and found[1].startswith(fence) and not found[2].strip():
            blocks.append("\n".join(lines))
            fence = None
        else:
            lines.append(line)
    return [*blocks, "not closed"] if fence else blocks, re.sub(
        r"(?<![`\\])(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", "\n".join(rest)
    )


def _program(code: str) -> str:
    """A program without its strings."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = "text"
        if isinstance(node, ast.List):
            node.elts = node.elts[:1]
    return ast.dump(tree)


def _card_problem(card: str, harmless: str) -> str | None:
    (front, body), (harmless_front, harmless_body) = (
        re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups() for text in (card, harmless)
    )
    try:
        data, expected = yaml.safe_load(front), yaml.safe_load(harmless_front)
    except yaml.YAMLError as error:
        return f"front matter: {error}"
    if different := (data.keys() ^ expected.keys()) - {"base_model", "base_model_relation"}:
        return f"front matter has {sorted(different)}"
    blocks, rest = _blocks_and_rest(body)
    expected_blocks, expected_rest = _blocks_and_rest(harmless_body)
    if [b.split("\n")[0] for b in blocks] != [b.split("\n")[0] for b in expected_blocks]:
        return f"code blocks {[b[:40] for b in blocks]}"
    for block, other in zip(blocks, expected_blocks, strict=True):
        if block.startswith("python"):
            try:
                same = _program(block.partition("\n")[2]) == _program(other.partition("\n")[2])
            except (SyntaxError, ValueError) as error:
                return f"the snippet is no program: {error}"
            if not same:
                return "the snippet is another program"

    def structure(text: str) -> list[str]:
        return [
            f"| {len(_BORDER.findall(line))}" if line.startswith("|") else line.split(" ")[0]
            for line in text.split("\n")
            if re.match(r"\s{0,3}(#{1,6} |\||[-*+] |>|---|===|<)", line)
        ]

    if structure(rest) != structure(expected_rest):
        return f"structure {structure(rest)}, not {structure(expected_rest)}"
    if re.search(r"<(script|img|svg|iframe|b>|!--)", rest, re.IGNORECASE):
        return "HTML in the text"
    return None


@functools.cache
def _adapter_config() -> str:
    from peft import get_peft_model

    from hf_clip_variants.adapters import CoOpConfig

    with tempfile.TemporaryDirectory() as place:
        get_peft_model(tiny_classifier(), CoOpConfig(num_context_tokens=3)).save_pretrained(place)
        return (Path(place) / "adapter_config.json").read_text(encoding="utf-8")


def _card(rng: random.Random, folder: Path):
    names, templates = _distinct(rng, rng.randint(1, 3)), [f"a {{}} {_text(rng).replace('{', '(').replace('}', ')')}"]
    base, dataset, setting = _text(rng), _text(rng), _text(rng)
    of_adapter = rng.random() < 0.6
    kind = rng.choice(["CLIPClassifier", "CLIPModel"])

    def made(names, templates, base, dataset, setting, place: Path):
        if of_adapter:
            place.mkdir()
            values = json.loads(_adapter_config())
            values |= {"class_names": names, "templates": templates, "base_model_name_or_path": base}
            values["auto_mapping"] = {"base_model_class": kind}
            (place / "adapter_config.json").write_text(json.dumps(values))
            source = place
        else:
            source = tiny_classifier(class_names=None).set_classes(names, templates, tokenizer=tiny_tokenizer())
        results = [accuracy_result(0.5, dataset, zero_shot=0.4, note=setting)]
        recipe = {setting: dataset}
        return str(model_card(source, base_model=None if of_adapter else base, results=results, recipe=recipe))

    def run():
        card = made(names, templates, base, dataset, setting, folder / "hostile")
        plain_base = "me/clip" if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else "clip"
        harmless = made(
            [f"cat{i}" for i in range(len(names))], ["a {} x"], plain_base, "pets", "rate", folder / "harmless"
        )
        if problem := _card_problem(card, harmless):
            return WRONG + problem
        card_arguments(card)
        return card

    return f"card, {names!a}, {base!a}"[:200], run, ("class_names", "template", "base", "dataset")


# ---- reports


class _Structure(HTMLParser):
    """Tags with the names of their attributes, and all text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(f"{tag} {sorted(name for name, _ in attributes)}")

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")

    def handle_data(self, data):
        self.text.append(data)

    def handle_comment(self, data):
        self.tags.append("comment")


@functools.cache
def _run_folder() -> Path:
    """A finished run, made once in a process."""
    from hf_clip_variants.few_shot.adapt import adapt

    place = Path(tempfile.mkdtemp(prefix="attack-markup-run-"))
    data = save_images(
        place / "data", {"train": ["fluentflat", "emojione"], "test": ["notov1", "fluent3d"]}, ("cat", "dog")
    )
    settings = {"methods": ["tip_adapter"], "shots": [1], "seeds": [1], "profile": "tiny", "progress": False}
    adapt(save_tiny_clip(place / "clip"), str(data), place / "run", **settings)
    return place / "run"


def _report(rng: random.Random, folder: Path):
    names = _distinct(rng, 2)
    model, method = _text(rng), _text(rng)

    def made(place: Path, names, model, method) -> str:
        shutil.copytree(_run_folder(), place)
        path = place / "results.json"
        results = json.loads(path.read_text())
        results["data"]["class_names"] = names
        results["settings"]["model"] = model
        for row in [*results["table"], *results["runs"]]:
            if row.get("title") and row["method"] != "zero_shot":
                row["title"] = method
        path.write_text(json.dumps(results))
        return write_report(place).read_text(encoding="utf-8")

    def run():
        page, harmless = _Structure(), _Structure()
        page.feed(made(folder / "hostile", names, model, method))
        harmless.feed(made(folder / "harmless", ["first", "second"], "clip", "Method"))
        # A long legend leaves the axes less room, and so fewer numbers at them: parts of drawings are not counted.
        drawn = r"/?(tspan|use|path|g|defs|text|clippath|rect|comment)\b"
        tags, expected = ([tag for tag in each.tags if not re.match(drawn, tag)] for each in (page, harmless))
        if tags != expected:
            at = next((i for i, pair in enumerate(itertools.zip_longest(tags, expected)) if pair[0] != pair[1]), 0)
            return f"{WRONG}other tags: {tags[at : at + 3]}, not {expected[at : at + 3]}"
        text = " ".join("".join(page.text).split())
        if missing := [name for name in names if " ".join(name.split()) not in text and "\0" not in name]:
            return f"{WRONG}{missing[0]!r} is not on the page"
        for file in ("predictions.csv", "results.csv"):
            content = (folder / "hostile" / file).read_text(encoding="utf-8")
            rows = list(csv.reader(io.StringIO(content, newline="")))
            if len({len(row) for row in rows}) != 1:
                return f"{WRONG}{file} has rows of several lengths"
            cells = [cell for row in rows for cell in row if cell and not re.fullmatch(r"[-+]?[\d.e-]+", cell)]
            if formulas := [cell for cell in cells if cell.lstrip("\t\r\n ")[:1] in ("=", "+", "-", "@")]:
                return f"{WRONG}a formula in {file}: {formulas[0]!r}"
        return page

    return f"report, {names!a}, {method!a}"[:200], run, ("class_names", "results.json", "title")


def _screen(rng: random.Random, folder: Path):
    """Tables and remarks of commands print names as they are."""
    from hf_clip_variants.commands.output import title_and_rows

    names = _distinct(rng, 3)

    def run():
        from rich.console import Console

        with io.StringIO() as written:
            screen = Console(file=written, highlight=False, markup=False, emoji=False, width=3000, no_color=True)
            screen.print(title_and_rows(names[0], ["name", "value"], [[name, "1"] for name in names]))
            lines = written.getvalue()
        for name in names:
            shown = " ".join(name.split())
            if not any(c in name for c in "\n\r\t\x1b\x07\x00\u202e\u2028") and shown not in lines:
                return f"{WRONG}{shown!r} is not on the screen"
        if "\x1b" in lines or "\x07" in lines:
            return f"{WRONG}control characters on the screen"
        return lines

    return f"screen, {names!a}"[:200], run, ()


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """For ever."""
    rng = random.Random(f"{KIND} {seed}")
    attacks = (_card, _card, _report, _screen)
    for count in itertools.count():
        place = Path(folder) / f"{count}"
        place.mkdir(parents=True)
        name, run, named = attacks[count % len(attacks)](random.Random(rng.random()), place)

        def tidy(run=run, place=place):
            try:
                return run()
            finally:
                shutil.rmtree(place, ignore_errors=True)

        yield Case(KIND, f"{count} {name}", tidy, named)
