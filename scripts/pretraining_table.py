"""Probes the models of finished runs of pretrain.py and writes one table about them.

    python scripts/pretraining_table.py runs/clip-vit runs/slip-vit --out scripts/results/pretraining
    python scripts/pretraining_table.py runs/* --probe concepts=emoji:emojione,fluentflat=emoji:fluent3d --out table
    python scripts/pretraining_table.py runs/audio-* --no-probes --out scripts/results/pretraining/audio

Every probe, NAME=TRAIN=TEST[=LABEL COLUMN], is a linear probe and a nearest-neighbour classifier on the image
encoder's features. OUT/runs.jsonl gets a line for each run, OUT/table.md the table and the commands.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hf_clip_variants.commands.output import prepare_libraries


# Three images per class, in styles that were not trained on.
PROBES = ["190 concepts=emoji:emojione,fluentflat,notov1=emoji:fluent3d"]


def parse_probe(text: str) -> dict[str, str | None]:
    parts = text.split("=")
    if len(parts) not in (3, 4) or not all(parts):
        raise ValueError(f"probe: got {text!r}; want NAME=TRAIN=TEST or NAME=TRAIN=TEST=LABEL COLUMN")
    return dict(zip(("name", "train", "test", "label_column"), [*parts, None][:4], strict=True))


def measure(model: Path, probe: dict[str, str | None]) -> dict[str, float]:
    """Accuracies of the linear probe and of the nearest neighbour."""
    from hf_clip_variants.evaluation.image_encoder import load_image_encoder, load_probe_images
    from hf_clip_variants.evaluation.probes import knn_classify, linear_probe
    from hf_clip_variants.metrics.classification import accuracy

    reading = {"label_column": probe["label_column"]}
    sets = load_probe_images(probe["train"], probe["test"], reading=reading)
    encoder = load_image_encoder(model, "encoder")
    train, test = (encoder.features_of(images, progress=False) for images in sets)
    linear = linear_probe(train.features[0], train.labels, test.features[0])
    nearest = knn_classify(train.features[0], train.labels, test.features[0], k=1)
    return {
        "train_images": len(sets[0]),
        "test_images": len(sets[1]),
        "classes": len(sets[0].class_names),
        "linear": accuracy(linear.predicted, test.labels),
        "strength": linear.strength,
        "nearest": accuracy(nearest, test.labels),
    }


def read_run(folder: Path) -> dict[str, Any]:
    file = folder / "run.json"
    run = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "metrics" not in run:
        raise ValueError(f"runs: {folder} holds no finished run of pretrain.py")
    return run


def describe(name: str, run: dict[str, Any], probes: dict[str, Any]) -> dict[str, Any]:
    last = ([entry for entry in run["log"] if "loss" in entry] or [{}])[
        -1
    ]  # none if the run is shorter than --log-every
    return {
        "run": name,
        "command": run["command"],
        "steps": run["steps"],
        "pairs": run["steps"] * run["settings"]["batch_size"],
        **{key: run[key] for key in ("seconds", "device", "threads", "torch")},
        "last_losses": {key: value for key, value in last.items() if key.endswith(("loss", "accuracy"))},
        "metrics": run["metrics"],
        "probes": probes,
    }


def table(lines: list[dict[str, Any]], command: str) -> str:
    metrics = [name for name in lines[0]["metrics"] if name.endswith(("top1", "top5"))]
    titles = [name.removeprefix("eval_").replace("_", " ") for name in metrics]
    probes = list(lines[0]["probes"])
    probe_titles = [f"{p}, {kind}" for p in probes for kind in ("linear probe", "1-NN")]
    head = ["run", "steps", "pairs", *titles, *probe_titles, "s"]
    rows = []
    for line in lines:
        measured = [line["metrics"][m] for m in metrics]
        measured += [line["probes"][p][kind] for p in probes for kind in ("linear", "nearest")]
        accuracies = [f"{100 * value:.1f}" for value in measured]
        rows.append([line["run"], str(line["steps"]), f"{line['pairs']:,}", *accuracies, f"{line['seconds']:.0f}"])
    text = markdown(head, rows)
    found = [row for line in lines for row in retrieval_rows(line)]
    if found:
        text += "\n\n" + markdown(
            ["run", "rows", "query → gallery", "recall at 1", "at 5", "at 10", "median rank"], found
        )
    commands = "\n".join(line["command"] for line in lines)
    machines = {f"{line['device']}, {line['threads']} thread(s), torch {line['torch']}" for line in lines}
    notes = f"Accuracies and recalls in %. Device: {'; '.join(sorted(machines))}."
    return f"{text}\n\n{notes}\n\n```\n{commands}\n{command}\n```\n"


def retrieval_rows(line: dict[str, Any]) -> list[list[str]]:
    """One row for each set and direction of `retrieval_of_pairs`."""
    suffix = "_recall_at_1"
    rows = []
    for name in line["metrics"]:
        if not name.endswith(suffix):
            continue
        stem = name.removesuffix(suffix)
        rest, _, gallery = stem.removeprefix("eval_").partition("_to_")
        rows_of, _, query = rest.rpartition("_")
        recalls = [f"{100 * line['metrics'][f'{stem}_recall_at_{k}']:.1f}" for k in (1, 5, 10)]
        rank = f"{line['metrics'][f'{stem}_median_rank']:.1f}"
        rows.append([line["run"], rows_of.replace("_", " "), f"{query} → {gallery}", *recalls, rank])
    return rows


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def main(arguments: list[str] | None = None) -> int:
    prepare_libraries()
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("runs", nargs="+", type=Path, help="output folders of pretrain.py")
    made.add_argument("--probe", action="append", metavar="NAME=TRAIN=TEST[=LABEL COLUMN]", help="may be repeated")
    made.add_argument("--no-probes", action="store_true", help="only what the runs measured")
    made.add_argument("--out", type=Path, required=True)
    options = made.parse_args(arguments)
    command = " ".join(
        [
            "python scripts/pretraining_table.py",
            *(f'"{a}"' if " " in a else a for a in (sys.argv[1:] if arguments is None else arguments)),
        ]
    )
    try:
        probes = [parse_probe(text) for text in ([] if options.no_probes else options.probe or PROBES)]
        runs = {folder.name: read_run(folder) for folder in options.runs}
        lines = [
            describe(name, run, {p["name"]: measure(folder / "model", p) for p in probes})
            for folder, (name, run) in zip(options.runs, runs.items(), strict=True)
        ]
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "runs.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
        page = table(lines, command)
        (options.out / "table.md").write_text(page, encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
