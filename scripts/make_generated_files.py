"""
Write the files that follow from the table of methods: the table in README.md, and the public names for type checkers.

    python scripts/make_generated_files.py           # rewrite both
    python scripts/make_generated_files.py --check   # exit 1 if one of them differs from the registry
"""

import argparse
import sys
from pathlib import Path

import hf_clip_variants
from hf_clip_variants.registry import KINDS, Method, methods


ROOT = Path(__file__).parent.parent
README, STUB = ROOT / "README.md", ROOT / "hf_clip_variants" / "__init__.pyi"
START, END = "<!-- methods:start -->", "<!-- methods:end -->"


def row(method: Method) -> str:
    package = KINDS[method.kind].package
    folder = f"modeling/{method.name}" if package == "modeling" else f"hf_clip_variants/{package}/{method.name}"
    title = f"[{method.title}]({folder}/README.md)"
    paper = f"[{method.paper.title}]({method.paper.url}) ({method.paper.year})"
    return f"| {title} | `{method.name}` | {method.kind} | {method.summary} | {paper} |"


def table() -> str:
    lines = ["| method | name | kind | when to use it | paper |", "|---|---|---|---|---|", *map(row, methods())]
    return "\n".join(lines)


def with_table(text: str) -> str:
    """`text` with the table between the markers.

    Raises `ValueError` if a marker is missing, occurs twice or is in the wrong order.
    """
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"expected {START} and, after it, {END}, each once")
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{table()}\n{END}{rest.partition(END)[2]}"


def stub() -> str:
    """The public names of `hf_clip_variants` for type checkers; at run time they are imported when they are used."""
    sources = hf_clip_variants._SOURCES | dict.fromkeys(("method", "methods"), "hf_clip_variants.registry")
    lines = [
        f"from .{module.removeprefix('hf_clip_variants.')} import {name} as {name}"
        for name, module in sorted(sources.items(), key=lambda item: (item[1], item[0]))
    ]
    note = "# Written by scripts/make_generated_files.py from the table of methods."
    return "\n".join([note, *lines, "", "__version__: str", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is stale")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--stub", type=Path, default=STUB)
    arguments = parser.parse_args()

    wanted = {arguments.readme: with_table(arguments.readme.read_text(encoding="utf-8")), arguments.stub: stub()}
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if stale and arguments.check:
        names = " and ".join(path.name for path in stale)
        sys.exit(f"{names}: out of date with the table of methods; run python scripts/make_generated_files.py")
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
        print(f"{path.name} rewritten")


if __name__ == "__main__":
    main()
