"""Does `adapt` ever make a CLIP worse? Many small tasks, each an `adapt` run with its defaults, and a table.

    python scripts/make_emoji_data.py --out emoji                   # the images, from npm packages
    python scripts/adaptation_tasks.py --data emoji --out runs/tasks
    python scripts/adaptation_tasks.py --data emoji --out runs/development --styles fluent3d,notov1 --seeds 0

The embedded CLIP was trained on noto, twemoji and openmoji, so tests are on the other four styles: `fluent3d` and
`notov1` are for development, `fluentflat` and `emojione` for the table in `scripts/results/adaptation_tasks/`. There
are 48 tasks a seed, of three families:

- *style*: a class is a concept, of 5, 10, 50 or 190; 1, 2 or 4 shots from as many other styles, none of the same
  designer; tested on one style.
- *group*: a class is a group of emoji such as "vehicle", 2 to 20 of them; shots and tests are from one style.
- *folder*: a class is a word such as "clock", 2 to 10 of them, with all images whose name has it; shots are from all
  styles, tests from the two styles of the table.

After an interruption, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd


STYLES = ("noto", "notov1", "twemoji", "openmoji", "fluent3d", "fluentflat", "emojione")
DESIGNERS = {"noto": "google", "notov1": "google", "fluent3d": "microsoft", "fluentflat": "microsoft"}
REPORTED = ("fluentflat", "emojione")
SHOTS = (1, 2, 4)
TEST_IMAGES = 60  # of a class, at most
MARGIN = 1.0  # points below zero-shot CLIP that count as worse
# Emojibase numbers its subgroups; these are names that a person would give them.
_GROUPS = """
0 smiling face, 1 affectionate face, 2 face with tongue out, 3 face with hand, 4 neutral face, 5 sleepy face, 6
sick face, 9 worried face, 10 angry face, 11 costume face, 12 cat face, 14 heart, 15 emotion, 16 open hand, 17
hand sign, 18 pointing finger, 19 fist, 20 hands, 22 body part, 23 person, 24 gesture, 25 profession, 26 fantasy
figure, 27 activity, 28 athlete, 29 resting person, 30 family, 31 person symbol, 34 mammal, 35 bird, 37 reptile,
38 sea animal, 39 insect, 40 flower, 41 plant, 42 fruit, 43 vegetable, 44 prepared food, 45 asian food, 46
dessert, 47 drink, 48 dishware, 49 map, 50 landscape, 51 building, 52 place of worship, 53 view of a city, 54
vehicle, 55 ship, 56 aircraft, 58 time, 59 weather, 60 celebration, 61 medal, 62 sport, 63 game, 64 art and
craft, 65 clothing, 66 sound symbol, 67 music, 68 musical instrument, 69 telephone, 70 computer, 71 light and
video, 72 book and paper, 73 money, 74 mail, 75 writing tool, 76 office supplies, 77 lock and key, 78 tool, 79
science instrument, 80 medicine, 81 household item, 82 other object, 83 transport sign, 84 warning sign, 85
arrow, 86 religious symbol, 87 zodiac sign, 88 media control symbol, 90 math symbol, 91 punctuation, 93 other
symbol, 94 keycap, 95 alphanumeric button, 96 geometric shape, 97 flag
"""
GROUPS = {int(number): name for number, _, name in (g.partition(" ") for g in " ".join(_GROUPS.split()).split(", "))}
WORDS = (
    "cat dog clock face heart hand moon tree car bus train ship book phone hat fish bird flower ball mail bag "
    "key flag house glass star sun cloud bell camera ring shoe bear monkey horse cow pig mouse rabbit snake "
    "apple cake rice bread tea box mountain pen lock arrow circle square man woman baby"
).split()
NO_CONCEPTS = {94, 98, 99}  # keycaps and flags of countries differ by a sign only


@dataclass(frozen=True)
class AdaptationTask:
    """One task: its classes, and (style, row, class) of each image to learn from and to test on."""

    name: str
    family: str
    class_names: list[str]
    shots: int
    train: list[tuple[str, int, int]]
    test: list[tuple[str, int, int]]


def style_tasks(tables: dict[str, pd.DataFrame], style: str, rng: random.Random) -> Iterator[AdaptationTask]:
    others = [s for s in STYLES if s != style and DESIGNERS.get(s, s) != DESIGNERS.get(style, style)]
    rows = {s: {code: row for row, code in enumerate(tables[s]["hexcode"])} for s in STYLES}
    own = tables[style]
    names = dict(zip(own["hexcode"], own["name"], strict=True))
    groups = dict(zip(own["hexcode"], own["subgroup"], strict=True))
    pool = {
        names[code].lower(): code
        for code in names
        if groups[code] not in NO_CONCEPTS and all(code in rows[s] for s in others)
    }
    for classes in (5, 10, 50, 190):
        for shots in SHOTS:
            codes, styles = rng.sample(sorted(pool.values()), classes), rng.sample(others, shots)
            train = [(s, rows[s][code], label) for label, code in enumerate(codes) for s in styles]
            test = [(style, rows[style][code], label) for label, code in enumerate(codes)]
            name = f"style-{style}-{classes}-classes-{shots}-shots"
            yield AdaptationTask(name, "style", [names[code] for code in codes], shots, train, test)


def group_tasks(
    tables: dict[str, pd.DataFrame], style: str, sizes: tuple[int, ...], rng: random.Random
) -> Iterator[AdaptationTask]:
    subgroups = tables[style]["subgroup"].tolist()
    rows = {group: [row for row, value in enumerate(subgroups) if value == group] for group in GROUPS}
    for classes in sizes:
        for shots in SHOTS:
            large = [group for group in rows if len(rows[group]) >= shots + 4]
            train, test, groups = [], [], rng.sample(large, classes)
            for label, group in enumerate(groups):
                drawn = rng.sample(rows[group], len(rows[group]))
                train += [(style, row, label) for row in drawn[:shots]]
                test += [(style, row, label) for row in drawn[shots : shots + TEST_IMAGES]]
            name = f"group-{style}-{classes}-classes-{shots}-shots"
            yield AdaptationTask(name, "group", [GROUPS[group] for group in groups], shots, train, test)


def folder_tasks(
    tables: dict[str, pd.DataFrame], styles: tuple[str, ...], rng: random.Random
) -> Iterator[AdaptationTask]:
    found: dict[str, list[tuple[str, int, set[str]]]] = defaultdict(list)
    for style in STYLES:
        for row, name in enumerate(tables[style]["name"]):
            words = set(re.findall("[a-z]+", name.lower()))
            for word in words.intersection(WORDS):
                found[word].append((style, row, words))
    for classes in (2, 4, 7, 10):
        for shots in SHOTS:
            while (task := _folder_task(found, styles, classes, shots, rng)) is None:
                pass
            yield task


def _folder_task(found, styles, classes, shots, rng) -> AdaptationTask | None:
    """None where images of two of the words leave too few of one."""
    train, test, words = [], [], rng.sample(sorted(found), classes)
    for label, word in enumerate(words):
        drawn = [(style, row) for style, row, others in found[word] if len(others.intersection(words)) == 1]
        drawn = rng.sample(drawn, len(drawn))
        tested = [(style, row, label) for style, row in drawn[shots:] if style in styles]
        if len(drawn) < shots or len(tested) < 3:
            return None
        train += [(style, row, label) for style, row in drawn[:shots]]
        test += tested[:TEST_IMAGES]
    return AdaptationTask(f"folder-{classes}-classes-{shots}-shots", "folder", words, shots, train, test)


def task_suite(tables: dict[str, pd.DataFrame], styles: tuple[str, str], seed: int) -> list[AdaptationTask]:
    """The 48 tasks of a seed, tested on two styles."""
    rng = random.Random(seed)
    tasks = [task for style in styles for task in style_tasks(tables, style, rng)]
    for style, sizes in zip(styles, ((2, 20), (5, 10)), strict=True):
        tasks += group_tasks(tables, style, sizes, rng)
    return [*tasks, *folder_tasks(tables, styles, rng)]


def write_images(
    path: Path, images: list[tuple[str, int, int]], tables: dict[str, pd.DataFrame], names: list[str]
) -> str:
    rows = [{"image": tables[style]["image"].iloc[row], "label": names[label]} for style, row, label in images]
    pd.DataFrame(rows).to_parquet(path)
    return str(path)


def run_task(task: AdaptationTask, tables: dict[str, pd.DataFrame], model: str, methods: list[str] | None) -> dict:
    """Adapt to one task with the defaults, in a temporary folder: the accuracies in %, and what was recommended."""
    from hf_clip_variants.few_shot.adapt import adapt

    folder, start = Path(tempfile.mkdtemp()), time.perf_counter()
    try:
        train = write_images(folder / "train.parquet", task.train, tables, task.class_names)
        test = write_images(folder / "test.parquet", task.test, tables, task.class_names)
        results = adapt(
            model,
            train,
            folder / "run",
            methods=methods,
            shots=(task.shots,),
            seeds=(1,),
            test_data={"test": test},
            templates="icons",
            reading={"class_names": task.class_names},
            progress=False,
            report=False,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    accuracies = {run["method"]: 100 * run["accuracy"]["test"] for run in results["runs"] if not run["error"]}
    accuracies["zero_shot"] = 100 * results["zero_shot"]["accuracy"]["test"]
    about = {"task": task.name, "family": task.family, "classes": len(task.class_names), "shots": task.shots}
    about |= {"test_images": len(task.test), "zero_shot_error": results["runs"][0]["zero_shot_error"]}
    seconds = {run["method"]: sum(run["seconds"][part] for part in ("train", "search")) for run in results["runs"]}
    return about | {
        "accuracies": accuracies,
        "recommended": results["recommended"]["method"],
        "fit_seconds": seconds,
        "seconds": time.perf_counter() - start,
    }


def write_table(folder: Path, records: list[dict], styles: tuple[str, str]) -> str:
    """Mean gains by family: Markdown, also written to table.md."""
    methods = list(dict.fromkeys(m for record in records for m in record["accuracies"] if m != "zero_shot"))
    columns = {m: lambda r, m=m: r["accuracies"][m] for m in methods}
    columns["recommended"] = lambda r: r["accuracies"][r["recommended"]]
    columns["best per task"] = lambda r: max(r["accuracies"].values())
    lines = ["| | tasks | zero-shot | " + " | ".join(columns) + " |", "|---" * (len(columns) + 3) + "|"]
    seeds = sorted({record["seed"] for record in records})
    for family in ("style", "group", "folder", "all"):
        own = [r for r in records if family in (r["family"], "all")]
        if not own:
            continue
        cells = []
        for value in columns.values():
            gains = [value(r) - r["accuracies"]["zero_shot"] for r in own]
            per_seed = [
                statistics.fmean(value(r) - r["accuracies"]["zero_shot"] for r in own if r["seed"] == seed)
                for seed in seeds
            ]
            spread = f" ± {statistics.pstdev(per_seed):.1f}" if len(seeds) > 1 else ""
            worse = sum(gain < -MARGIN for gain in gains)
            cells.append(f"{statistics.fmean(gains):+.1f}{spread}; {worse}")
        zero_shot = statistics.fmean(r["accuracies"]["zero_shot"] for r in own)
        lines.append(f"| {family} | {len(own)} | {zero_shot:.1f} | " + " | ".join(cells) + " |")
    chosen = ", ".join(
        f"{method} {sum(r['recommended'] == method for r in records)}"
        for method in sorted({r["recommended"] for r in records})
    )
    text = (
        f"Tested on {' and '.join(styles)}, seeds {', '.join(map(str, seeds))}. Zero-shot accuracy in %; then mean "
        f"gains in points (± standard deviation over seeds; how many tasks end more than {MARGIN:g} point below "
        f"zero-shot CLIP). Recommended: {chosen}.\n\n" + "\n".join(lines) + "\n"
    )
    (folder / "table.md").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    from hf_clip_variants import embedded_model
    from hf_clip_variants.registry import few_shot_entries

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of emoji-<style>.parquet files (make_emoji_data.py)")
    parser.add_argument("--out", required=True, help="folder for tasks.jsonl and table.md")
    parser.add_argument("--model", default=None, help="any CLIP (default: the embedded one)")
    parser.add_argument("--methods", default=None, help="with commas (default: those of adapt)")
    parser.add_argument("--styles", default=",".join(REPORTED), help="the two styles to test on")
    parser.add_argument("--seeds", default="1,2", help="each draws 48 other tasks")
    arguments = parser.parse_args()
    styles = tuple(arguments.styles.split(","))
    if len(styles) != 2 or not set(styles) <= set(STYLES):
        parser.error(f"--styles: got {arguments.styles}; want two of {', '.join(STYLES)}")
    methods = None if arguments.methods is None else arguments.methods.split(",")
    for method in methods or ():
        if method not in few_shot_entries():
            parser.error(f"--methods: got {method}; want {', '.join(few_shot_entries())}")
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "tasks.jsonl"
    records = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()] if lines.exists() else []
    done = {(record["seed"], record["task"]) for record in records}
    tables = {style: pd.read_parquet(Path(arguments.data) / f"emoji-{style}.parquet") for style in STYLES}
    for seed in map(int, arguments.seeds.split(",")):
        for task in task_suite(tables, styles, seed):
            if (seed, task.name) in done:
                continue
            record = {"seed": seed} | run_task(task, tables, arguments.model or str(embedded_model()), methods)
            records.append(record)
            with open(lines, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            before, after = (record["accuracies"][m] for m in ("zero_shot", record["recommended"]))
            print(f"{task.name}, seed {seed}: zero-shot {before:.1f}, {record['recommended']} {after:.1f}", flush=True)
    print(write_table(folder, records, styles))


if __name__ == "__main__":
    main()
