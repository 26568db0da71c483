"""How much a detector's answers depend on how class names are split into prompts: a table, as Markdown.

    python scripts/prompt_drift.py --model detector --data val.json --names-per-prompt all,10,1

Every row compares the same images and names with the first row: "change" is of the best score of each image and name,
"same best" the share of images whose best detection has the same name. AP is of boxes, if there are any.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import sys
from dataclasses import replace

from hf_clip_variants.commands.script_runs import run_script


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--model", required=True, help="a saved detector that reads names in prompts, folder or Hub id")
    add("--data", required=True, help="images: COCO's json, a Parquet file, or a data set")
    add("--images", help="folder of the images of COCO's json")
    add("--names-per-prompt", default="all,10,1", help="default: %(default)s; all: as many as fit")
    add("--most-images", type=int, default=100, help="default: %(default)s")
    add("--score-threshold", type=float, default=0.05, help="labels below it are not found; default: %(default)s")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of the model's configuration")
    return made


def table(rows) -> str:
    lines = [
        "| names in a prompt | prompts | mean change | largest change | same best | AP |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        count = "all" if row.names_per_prompt is None else row.names_per_prompt
        precision = f"{100 * row.metrics['AP']:.1f}" if row.metrics else "-"
        lines.append(
            f"| {count} | {row.prompts} | {row.mean_change:.4f} | {row.max_change:.3f} | {100 * row.same_best:.0f} % "
            f"| {precision} |"
        )
    return "\n".join(lines)


def measured(options: argparse.Namespace) -> None:
    from transformers import AutoModelForZeroShotObjectDetection

    from hf_clip_variants.commands.arguments import parse_overrides
    from hf_clip_variants.data.detection_sets import load_detection_set
    from hf_clip_variants.evaluation.prompt_drift import measure_prompt_drift
    from hf_clip_variants.evaluation.saved_folders import load_saved_processor

    counts = options.names_per_prompt.split(",")
    if not all(one == "all" or one.isdigit() for one in counts):
        raise ValueError(f"names_per_prompt: {options.names_per_prompt!r}, expected such as all,10,1")
    splits = [None if one == "all" else int(one) for one in counts]
    data = load_detection_set(options.data, options.images)
    count = min(options.most_images, len(data))
    data = replace(data, images=[data.images[i] for i in range(count)], annotations=data.annotations[:count])
    fields = parse_overrides(options.set, "set", "NAME=VALUE")
    model = AutoModelForZeroShotObjectDetection.from_pretrained(options.model, **fields).eval()
    processor = load_saved_processor(options.model)
    print(table(measure_prompt_drift(model, processor, data, splits, score_threshold=options.score_threshold)))


def main(arguments: list[str] | None = None) -> int:
    made = parser()
    options = made.parse_args(arguments)
    return run_script(made, lambda: measured(options), "Nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
