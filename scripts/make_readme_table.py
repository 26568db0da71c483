"""
Write the table of methods into README.md, from the registry.

    python scripts/make_readme_table.py           # rewrite it
    python scripts/make_readme_table.py --check   # exit 1 if it is not what the registry says
"""

import argparse
import sys
from pathlib import Path

from hf_clip_variants.registry import Method, methods


README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- methods:start -->", "<!-- methods:end -->"


def row(method: Method) -> str:
    folder = method.folder.removeprefix("hf_clip_variants.") if method.kind == "model" else method.folder
    title = f"[{method.title}]({folder.replace('.', '/')}/README.md)"
    paper = f"[{method.paper.title}]({method.paper.url}) ({method.paper.year})"
    return f"| {title} | `{method.name}` | {method.kind} | {method.summary} | {paper} |"


def table() -> str:
    lines = ["| method | name | kind | when to use it | paper |", "|---|---|---|---|---|", *map(row, methods())]
    return "\n".join(lines)


def with_table(text: str) -> str:
    """`text` with the table between the markers. Raises `ValueError` if a marker is missing, doubled or in the wrong order."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"expected {START} and, after it, {END}, each once")
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{table()}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the table is stale")
    parser.add_argument("--readme", type=Path, default=README)
    arguments = parser.parse_args()

    text = arguments.readme.read_text(encoding="utf-8")
    wanted = with_table(text)
    if text == wanted:
        return
    if arguments.check:
        sys.exit(f"{arguments.readme.name}: the table of methods is stale; run python scripts/make_readme_table.py")
    arguments.readme.write_text(wanted, encoding="utf-8")
    print(f"{arguments.readme.name}: table of methods rewritten")


if __name__ == "__main__":
    main()
