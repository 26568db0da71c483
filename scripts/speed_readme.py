"""
Write the table of speeds in README.md from `scripts/results/speed_cpu.jsonl`, which `benchmark_speed.py` measures.

    python scripts/speed_readme.py           # rewrite it
    python scripts/speed_readme.py --check   # exit 1 if it differs
"""

import argparse
import json
import sys
from pathlib import Path


ROOT = Path(__file__).parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "scripts" / "results" / "speed_cpu.jsonl"
START, END = "<!-- speed:start -->", "<!-- speed:end -->"


class Figures:
    """What was measured, as text."""

    def __init__(self, lines: list[dict]):
        self.lines: dict[str, list[dict]] = {}
        for line in lines:
            self.lines.setdefault(line["row"], []).append(line)

    def x(self, row: str, peer: int = 0) -> str:
        """How many times as fast as the row's `peer`-th peer."""
        ratio = self.lines[row][peer]["ratio"]
        return f"{ratio:.2f} x" if ratio < 2 else f"{ratio:.1f} x" if ratio < 100 else f"{round(ratio, -1):,.0f} x"

    def mb(self, row: str, kind: str, peer: int = 0) -> tuple[str, str]:
        """Megabytes of ours and of the peer; `kind`: "kept" or "peak"."""
        ours, theirs = (f"{float(f'{value:.3g}'):,.0f}" for value in self.lines[row][peer][f"{kind}_mb"])
        return ours, theirs

    def seconds(self, row: str, peer: int | None = None) -> float:
        """CPU seconds of ours, or of a peer."""
        return self.lines[row][0]["ours_s"] if peer is None else self.lines[row][peer]["peer_s"]


def rows(f: Figures) -> list[tuple[str, str, str, str]]:
    """(what, compared with, speed-up, also)"""
    coop, cocoop, batch = (f.mb(row, "kept") for row in ("coop_step", "cocoop_step", "cocoop_memory"))
    chunked, maple = f.mb("cocoop_memory_chunked", "kept"), f.mb("maple_step", "kept")
    loss, double = f.mb("clip_loss", "peak"), f.mb("clip_loss_double", "peak")
    return [
        (
            "`adapt`, 500 images in 50 classes, three methods, report included",
            "the official trainers, one after the other",
            f.x("adapt_500"),
            f"{f.x('adapt_500', 1)} against a careful script with transformers",
        ),
        (
            "`adapt`, 5,000 images in 1,000 classes",
            "the same",
            f.x("adapt_5000"),
            f"{f.x('adapt_5000', 1)} against the script",
        ),
        (
            "`predict` of 100 JPEG files, 10 labels, start included",
            "transformers' zero-shot pipeline",
            f.x("predict_folder"),
            f"{f.x('predict_folder', 1)} against a script that encodes labels once; of one file {f.x('predict_one')}",
        ),
        (
            "class embeddings, 50 classes x 8 templates",
            "open_clip's zero-shot classifier",
            f.x("class_embeddings"),
            f"{f.x('class_embeddings', 1)} against transformers with `padding=longest`",
        ),
        (
            "zero-shot pipeline, 100 labels, one image after the other",
            "transformers' `CLIPModel` in it",
            f.x("serving"),
            f"in batches of 8 {f.x('serving_batch')}: theirs encodes the labels once a batch, ours once",
        ),
        (
            "image encoder, frozen, 32 images",
            "transformers' `CLIPModel`",
            f.x("image_encoder"),
            f"with `--precision int8`, which is not exact, {f.x('image_encoder_int8')}",
        ),
        (
            "CoOp step, 100 classes, 4 context tokens",
            "the official way, 77 tokens",
            f.x("coop_step"),
            f"image features given to both; {coop[0]} MB kept for backward instead of {coop[1]}",
        ),
        (
            "CoCoOp step, 1 image, 50 classes",
            "the official way, both encoders at every step",
            f.x("cocoop_pixels"),
            f"from pixels in both; ours from image features computed once: {f.x('cocoop_step')}; "
            f"{cocoop[0]} MB kept instead of {cocoop[1]}",
        ),
        (
            "CoCoOp, 8 images at once, 25 classes",
            "8 official steps of one image",
            f.x("cocoop_batch_8"),
            f"image features given to both; with 50 classes {batch[0]} MB kept for 8 images, {batch[1]} for 1 in the "
            f"official code; {chunked[0]} MB with `text_chunk_size=256`",
        ),
        (
            "MaPLe step, both encoders, 4 images, 100 classes",
            "the official way, 77 tokens",
            f.x("maple_step"),
            f"{maple[0]} MB kept instead of {maple[1]}",
        ),
        (
            "Tip-Adapter's search for alpha and beta",
            "the official loop",
            f.x("tip_search"),
            "the same accuracies",
        ),
        (
            "Tip-Adapter-F epoch, CLIP-Adapter epoch",
            "encoders at every step",
            f"{f.x('tip_f_epoch')}, {f.x('clip_adapter_epoch')}",
            "an epoch on one plain view of each image, encoded before; whole runs on augmented views are in the "
            "first two rows",
        ),
        (
            "CLIP-Adapter, 30 epochs on 4 augmented views",
            "image encoder at every step",
            f.x("features_cached"),
            "the first epochs and decoding included; bit-identical",
        ),
        (
            "contrastive loss, 8,192 pairs (16,384)",
            "open_clip's `ClipLoss`",
            f"{f.x('clip_loss')} ({f.x('clip_loss_double')})",
            f"peak of {loss[0]} MB instead of {loss[1]} ({double[0]} instead of {double[1]})",
        ),
        (
            "image processor, 500 x 375 / 1600 x 1200",
            "`CLIPImageProcessor`",
            f"{f.x('image_processor')} / {f.x('image_processor_large')}",
            f"bit-identical; {f.x('image_files')} / {f.x('image_files_large')} from JPEG files, decoding included",
        ),
        (
            "`hf-clip-variants --help`",
            "`hf --help`",
            f.x("cli_help"),
            f"`import hf_clip_variants` takes {f.seconds('import'):.2f} s",
        ),
    ]


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
