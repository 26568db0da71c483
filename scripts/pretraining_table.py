"""Probes the models of finished runs of pretrain.py and writes one table about them.

    python scripts/pretraining_table.py runs/clip-vit runs/slip-vit --out scripts/results/pretraining
    python scripts/pretraining_table.py runs/* --probe concepts=emoji:emojione,fluentflat,notov1=emoji:fluent3d --out table

Every probe, NAME=TRAIN=TEST[=LABEL COLUMN], is a linear probe and a k-NN vote (k = 1) on the image tower's features. OUT/runs.jsonl gets a line for each
run, OUT/table.md the table and the commands.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hf_clip_variants.commands.output import prepare_libraries


PROBES = [
    "190 concepts=emoji:emojione,fluentflat,notov1=emoji:fluent3d"
]  # three pictures a class, in styles that training never saw


def parse_probe(text: str) -> dict[str, str | None]:
    parts = text.split("=")
    if len(parts) not in (3, 4) or not all(parts):
        raise ValueError(f"probe: got {text!r}; want NAME=TRAIN=TEST or NAME=TRAIN=TEST=LABEL COLUMN")
    return dict(zip(("name", "train", "test", "label_column"), [*parts, None][:4], strict=True))


def measure(model: Path, probe: dict[str, str | None]) -> dict[str, float]:
    """Accuracies of the linear probe and of the nearest neighbour."""
    from hf_clip_variants.metrics.classification import accuracy
    from hf_clip_variants.probe_features import load_image_encoder, load_probe_pictures
    from hf_clip_variants.probes import knn_classify, linear_probe

    reading = {"label_column": probe["label_column"]}
    sets = load_probe_pictures(probe["train"], probe["test"], reading=reading)
    encoder = load_image_encoder(model, "tower")
    train, test = (encoder.features_of(images, progress=False) for images in sets)
    linear = linear_probe(train.features[0], train.labels, test.features[0])
    nearest = knn_classify(train.features[0], train.labels, test.features[0], k=1)
    return {
        "train_images": len(sets[0]), "test_images": len(sets[1]), "classes": len(sets[0].class_names),
        "linear": accuracy(linear.predicted, test.labels), "strength": linear.strength, "nearest": accuracy(nearest, test.labels),
    }  # fmt: skip


def read_run(folder: Path) -> dict[str, Any]:
    file = folder / "run.json"
    run = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "metrics" not in run:
        raise ValueError(f"runs: {folder} holds no finished run of pretrain.py")
    return run


def describe(name: str, run: dict[str, Any], probes: dict[str, Any]) -> dict[str, Any]:
    losses = [entry for entry in run["log"] if "loss" in entry]
    return {
        "run": name, "command": run["command"], "steps": run["steps"], "pairs": run["steps"] * run["settings"]["batch_size"],
        "seconds": run["seconds"], "device": run["device"], "threads": run["threads"], "torch": run["torch"],
        "last_losses": {key: value for key, value in losses[-1].items() if key.endswith(("loss", "accuracy"))},
        "metrics": run["metrics"], "probes": probes,
    }  # fmt: skip


def table(lines: list[dict[str, Any]], command: str) -> str:
    metrics = [name for name in lines[0]["metrics"] if name.endswith(("top1", "top5"))]
    titles = [name.removeprefix("eval_").replace("_", " ") for name in metrics]
    probes = list(lines[0]["probes"])
    head = [
        "run",
        "steps",
        "pairs",
        *titles,
        *(f"{p}, {kind}" for p in probes for kind in ("linear probe", "1-NN")),
        "s",
    ]
    rows = [
        [
            line["run"], str(line["steps"]), f"{line['pairs']:,}",
            *(f"{100 * line['metrics'][m]:.1f}" for m in metrics),
            *(f"{100 * line['probes'][p][kind]:.1f}" for p in probes for kind in ("linear", "nearest")), f"{line['seconds']:.0f}",
        ]
        for line in lines
    ]  # fmt: skip
    text = "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))
    commands = "\n".join(line["command"] for line in lines)
    machines = {f"{line['device']}, {line['threads']} thread(s), torch {line['torch']}" for line in lines}
    return f"{text}\n\nAccuracies in %. Device: {'; '.join(sorted(machines))}.\n\n```\n{commands}\n{command}\n```\n"


def main(arguments: list[str] | None = None) -> int:
    prepare_libraries()
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("runs", nargs="+", type=Path, help="output folders of pretrain.py")
    made.add_argument("--probe", action="append", metavar="NAME=TRAIN=TEST[=LABEL COLUMN]", help="may be repeated")
    made.add_argument("--out", type=Path, required=True)
    options = made.parse_args(arguments)
    command = " ".join(
        [
            "python scripts/pretraining_table.py",
            *(f'"{a}"' if " " in a else a for a in (sys.argv[1:] if arguments is None else arguments)),
        ]
    )
    try:
        probes = [parse_probe(text) for text in options.probe or PROBES]
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
