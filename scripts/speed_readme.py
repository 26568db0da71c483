"""
Write the table of speeds in README.md from `scripts/results/speed_cpu.jsonl`, which `benchmark_speed.py` measures.

    python scripts/speed_readme.py           # rewrite it
    python scripts/speed_readme.py --check   # exit 1 if it differs
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path


ROOT = Path(__file__).parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "scripts" / "results" / "speed_cpu.jsonl"
START, END = "<!-- speed:start -->", "<!-- speed:end -->"


class NotMeasured(LookupError):
    """The results have no such figure."""


class Figures:
    """What was measured, as text."""

    def __init__(self, lines: list[dict]):
        self.lines: dict[str, list[dict]] = {}
        for line in lines:
            self.lines.setdefault(line["row"], []).append(line)

    def _line(self, row: str, peer: int | None) -> dict:
        """Measurement of a row against its `peer`-th peer."""
        found = self.lines.get(row, ())
        if len(found) <= (peer or 0):
            raise NotMeasured(f"{row}: no measurement against peer {peer or 0}")
        return found[peer or 0]

    def x(self, row: str, peer: int = 0) -> str:
        """How many times as fast as the row's `peer`-th peer."""
        ratio = self._line(row, peer)["ratio"]
        return f"{ratio:.2f} x" if ratio < 2 else f"{ratio:.1f} x" if ratio < 100 else f"{round(ratio, -1):,.0f} x"

    def mb(self, row: str, kind: str, peer: int = 0) -> tuple[str, str]:
        """Megabytes of ours and of the peer; `kind`: "kept" or "peak"."""
        ours, theirs = (f"{float(f'{value:.3g}'):,.0f}" for value in self._line(row, peer)[f"{kind}_mb"])
        return ours, theirs

    def seconds(self, row: str, peer: int | None = None) -> float:
        """CPU seconds of ours, or of a peer."""
        return self._line(row, peer)["ours_s" if peer is None else "peer_s"]


Cell = str | Callable[[Figures], str]

# What, compared with, speed-up, and clauses of "also". A row without its speed-up is left out, a clause without its
# figure, too: what was not measured is not claimed.
ROWS: list[tuple[str, str, Cell, list[Cell]]] = [
    (
        "`adapt`, 500 images in 50 classes, three methods, report included",
        "the official trainers, one after the other",
        lambda f: f.x("adapt_500"),
        [lambda f: f"{f.x('adapt_500', 1)} against a careful script with transformers"],
    ),
    (
        "the same, 500 images of emoji, with the recipe that `adapt` chooses for so small a model",
        "the official trainers with the published recipe, 5 epochs",
        lambda f: f.x("adapt_500_own"),
        [lambda f: f"{f.x('adapt_500_own', 1)} against a careful script; as accurate"],
    ),
    (
        "`adapt`, 5,000 images in 1,000 classes",
        "the official trainers, one after the other",
        lambda f: f.x("adapt_5000"),
        [lambda f: f"{f.x('adapt_5000', 1)} against a careful script with transformers"],
    ),
    (
        "`predict` of 100 JPEG files, 10 labels, start included",
        "transformers' zero-shot pipeline",
        lambda f: f.x("predict_folder"),
        [
            lambda f: f"{f.x('predict_folder', 1)} against a script that encodes labels once",
            lambda f: f"of one file {f.x('predict_one')}",
        ],
    ),
    (
        "class embeddings, 50 classes x 8 templates",
        "open_clip's zero-shot classifier",
        lambda f: f.x("class_embeddings"),
        [lambda f: f"{f.x('class_embeddings', 1)} against transformers with `padding=longest`"],
    ),
    (
        "zero-shot pipeline, 100 labels, one image after the other",
        "transformers' `CLIPModel` in it",
        lambda f: f.x("serving"),
        [
            "theirs encodes the labels for each image, ours once",
            lambda f: f"in batches of 8, where theirs encodes them once a batch, {f.x('serving_batch')}",
        ],
    ),
    (
        "image encoder, frozen, 32 images",
        "transformers' `CLIPModel`",
        lambda f: f.x("image_encoder"),
        [lambda f: f"with `--precision int8`, which is not exact, {f.x('image_encoder_int8')}"],
    ),
    (
        "CoOp step, 100 classes, 4 context tokens",
        "the official way, 77 tokens",
        lambda f: f.x("coop_step"),
        [
            "image features given to both",
            lambda f: "{} MB kept for backward instead of {}".format(*f.mb("coop_step", "kept")),
        ],
    ),
    (
        "CoCoOp step, 1 image, 50 classes, from pixels in both",
        "the official way, both encoders at every step",
        lambda f: f.x("cocoop_pixels"),
        [],
    ),
    (
        "CoCoOp step, 1 image, 50 classes, ours from image features computed once",
        "the official way, both encoders at every step",
        lambda f: f.x("cocoop_step"),
        [
            lambda f: f"{f.x('cocoop_step', 1)} where image features are given to both",
            lambda f: "{} MB kept instead of {}".format(*f.mb("cocoop_step", "kept")),
        ],
    ),
    (
        "CoCoOp, 8 images at once, 25 classes",
        "8 official steps of one image",
        lambda f: f.x("cocoop_batch_8"),
        [
            "image features given to both",
            lambda f: "with 50 classes {} MB kept for 8 images, {} for 1 in the official code".format(
                *f.mb("cocoop_memory", "kept")
            ),
            lambda f: f"{f.mb('cocoop_memory_chunked', 'kept')[0]} MB with `text_chunk_size=256`",
        ],
    ),
    (
        "MaPLe step, both encoders, 4 images, 100 classes",
        "the official way, 77 tokens",
        lambda f: f.x("maple_step"),
        [lambda f: "{} MB kept instead of {}".format(*f.mb("maple_step", "kept"))],
    ),
    (
        "Tip-Adapter's search for alpha and beta",
        "the official loop",
        lambda f: f.x("tip_search"),
        ["the same accuracies"],
    ),
    (
        "Tip-Adapter-F epoch, CLIP-Adapter epoch",
        "encoders at every step",
        lambda f: f"{f.x('tip_f_epoch')}, {f.x('clip_adapter_epoch')}",
        ["an epoch on one plain view of each image, encoded before; not a whole run"],
    ),
    (
        "CLIP-Adapter, 30 epochs on 4 augmented views",
        "image encoder at every step",
        lambda f: f.x("features_cached"),
        ["the first epochs and decoding included", "bit-identical"],
    ),
    (
        "contrastive loss, 8,192 pairs (16,384)",
        "open_clip's `ClipLoss`",
        lambda f: f"{f.x('clip_loss')} ({f.x('clip_loss_double')})",
        [
            lambda f: "peak of {} MB instead of {} ({} instead of {})".format(
                *f.mb("clip_loss", "peak"), *f.mb("clip_loss_double", "peak")
            )
        ],
    ),
    (
        "image processor, 500 x 375 / 1600 x 1200",
        "`CLIPImageProcessor`",
        lambda f: f"{f.x('image_processor')} / {f.x('image_processor_large')}",
        [
            "bit-identical",
            lambda f: f"from JPEG files of 500 x 375, decoding included, {f.x('image_files')}",
            lambda f: f"of 1600 x 1200 {f.x('image_files_large')}",
        ],
    ),
    (
        "`hf-clip-variants --help`",
        "`hf --help`",
        lambda f: f.x("cli_help"),
        [lambda f: f"`import hf_clip_variants` takes {f.seconds('import'):.2f} s"],
    ),
]


def _text(cell: Cell, figures: Figures) -> str | None:
    if isinstance(cell, str):
        return cell
    try:
        return cell(figures)
    except NotMeasured:
        return None


def rows(figures: Figures) -> list[tuple[str, str, str, str]]:
    """(what, compared with, speed-up, also) of what was measured."""
    found = []
    for what, peer, speed, clauses in ROWS:
        if (speed := _text(speed, figures)) is not None:
            also = [text for clause in clauses if (text := _text(clause, figures)) is not None]
            found.append((what, peer, speed, "; ".join(also)))
    return found


def table(results: list[dict]) -> str:
    lines = ["| what | compared with | speed-up | also |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows(Figures(results)))])


def with_table(text: str, results: list[dict]) -> str:
    """`text` with the table between the markers; ValueError where they are not there once."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"expected {START} and, after it, {END}, each once")
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{table(results)}\n{END}{rest.partition(END)[2]}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the table is stale")
    parser.add_argument("--readme", type=Path, default=README)
    options = parser.parse_args(arguments)
    text = options.readme.read_text(encoding="utf-8")
    wanted = with_table(text, [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()])
    if wanted != text and options.check:
        name = options.readme.name
        sys.exit(f"{name}: its speeds are not those of {RESULTS.name}; run python scripts/speed_readme.py")
    if wanted != text:
        options.readme.write_text(wanted, encoding="utf-8")
        print(f"{options.readme.name} rewritten")


if __name__ == "__main__":
    main()
