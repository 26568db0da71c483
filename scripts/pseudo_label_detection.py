"""A detector that reads captions labels image-text pairs: boxes of the phrases of each caption, for a student.

    python scripts/pseudo_label_detection.py --teacher glip --pairs captions.csv --out labels
    python scripts/finetune_detection.py --model new-glip --data train.json --grounding labels/grounding.json --out run

Pairs: whatever pre-training reads: a csv of image path and caption, COCO's captions, Parquet files, WebDataset shards
(.tar), a folder of images with texts, a Hub id. After an interruption, the same command goes on with the next part.

OUT/grounding.json   COCO's json with captions and tokens_positive      OUT/parts/   what is done so far
OUT/images/          images that were no files                         OUT/settings.json
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import sys
from pathlib import Path

from hf_clip_variants.commands.script_runs import run_script


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--teacher", required=True, help="a saved detector that reads captions, folder or Hub id")
    add("--pairs", required=True, help="images with captions")
    add("--image-folder", help="what paths of images are relative to; default: the folder of the table")
    add("--text-column", action="append", help="may be repeated; default: by the usual names")
    add("--out", type=Path, required=True, help="folder; the same one to continue after an interruption")
    add("--threshold", type=float, default=0.5, help="smallest score of a box; default: %(default)s")
    add(
        "--phrase-nms",
        type=float,
        metavar="IOU",
        help="of boxes that overlap more than this, whatever their phrases, keep the best only: a thing has one name",
    )
    add("--every-phrase", action="store_true", help="leave out captions in which some phrase has no box")
    add("--batch-size", type=int, default=4, help="images in one pass; default: %(default)s")
    add("--part-size", type=int, default=100, help="pairs after which the work is saved; default: %(default)s")
    add("--most-pairs", type=int, help="the first ones only")
    add("--device", help="default: a GPU if there is one")
    return made


def label(options: argparse.Namespace) -> None:
    from transformers import AutoModelForZeroShotObjectDetection

    from hf_clip_variants.data.pairs.sources import open_pairs
    from hf_clip_variants.evaluation.devices import choose_device
    from hf_clip_variants.evaluation.pseudo_labels import label_pairs
    from hf_clip_variants.evaluation.saved_folders import load_saved_processor

    pairs = open_pairs(options.pairs, text_columns=options.text_column, image_folder=options.image_folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(options.teacher, dtype="float32").eval()
    found = label_pairs(
        model.to(choose_device(options.device)),
        load_saved_processor(options.teacher),
        pairs,
        options.out,
        threshold=options.threshold,
        phrase_nms=options.phrase_nms,
        every_phrase=options.every_phrase,
        batch_size=options.batch_size,
        part_size=options.part_size,
        most_pairs=options.most_pairs,
        progress=lambda count: print(f"{count} pairs", file=sys.stderr),
    )
    reasons = ", ".join(f"{name} {count}" for name, count in found.left_out.items())
    left_out = f"; left out: {reasons}" if reasons else ""
    print(f"{found.file}: {found.boxes} boxes in {found.images} of {found.pairs} images{left_out}")


def main(arguments: list[str] | None = None) -> int:
    made = parser()
    options = made.parse_args(arguments)
    goes_on = f"The same command goes on with the next part in {options.out}."
    return run_script(made, lambda: label(options), goes_on)


if __name__ == "__main__":
    sys.exit(main())
