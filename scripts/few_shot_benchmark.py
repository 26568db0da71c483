"""The protocols of the few-shot papers, for any methods, CLIPs, numbers of shots and seeds.

    python scripts/few_shot_benchmark.py --out runs/emoji                  # the embedded emoji: all four protocols, no network
    python scripts/few_shot_benchmark.py --small --out /tmp/small          # seconds; shows that everything runs
    python scripts/few_shot_benchmark.py --out runs/few --models openai/clip-vit-base-patch16 \\
        --data coop:$DATA/oxford_pets coop:$DATA/dtd --protocols few_shot,base_to_new
    python scripts/few_shot_benchmark.py --out runs/transfer --models openai/clip-vit-base-patch16 --data coop:$DATA/imagenet --shots 16 \\
        --targets coop:$DATA/caltech-101 coop:$DATA/oxford_pets --domains coop:$DATA/imagenetv2 coop:$DATA/imagenet-sketch
    torchrun --nproc-per-node 8 scripts/few_shot_benchmark.py ...          # or accelerate launch: cells are divided over the processes

few_shot                learn from K pictures of each class, test on other pictures of them
base_to_new             learn the first half of the classes; test each half among its own names; HM is the harmonic mean of both
cross_dataset           learn one data set, test on others (--targets) with their names
domain_generalisation   learn one data set, test on its classes, or some of them, in other domains (--domains)

A source is what `load_images` reads: a folder with one sub-folder a class, a Hub data set, Parquet, CSV, emoji:<style>, or coop:<folder> for a
data set in the layout of CoOp's DATASETS.md (split_zhou_*.json and all). Shots come from its train split, hyper-parameters are chosen on its
validation split (without one: by cross-validation over the shots), accuracy is that of its test split.

OUT/cells-<process>.jsonl gets a line for every cell (protocol, data, CLIP, method, shots, seed). Killed at any moment, the same command does what
is missing. OUT/table.md and OUT/<protocol>.png are made of the lines at the end.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see prepare_libraries

import argparse
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_clip_variants import embedded_model
from hf_clip_variants.commands.adapt import _numbers, _words, parse_overrides, use_all_cores
from hf_clip_variants.commands.output import prepare_libraries
from hf_clip_variants.few_shot.protocols import PROTOCOLS, Plan, emoji_plans, load_task, templates_for
from hf_clip_variants.few_shot.splits import absolute_source, parse_test_data


EPOCH_LINES_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Cell:
    """One line of results: a method (or zero-shot CLIP) on one plan, with one CLIP, number of shots and seed."""

    plan: Plan
    model: str
    method: str
    shots: int = 0
    seed: int = 0

    @property
    def model_name(self) -> str:
        return Path(self.model).name if Path(self.model).exists() else self.model

    @property
    def key(self) -> tuple:
        return self.plan.protocol, self.plan.name, self.model_name, self.method, self.shots, self.seed

    def __str__(self) -> str:
        shots = f", {self.shots} shot{'s' * (self.shots > 1)}, seed {self.seed}" if self.shots else ""
        return f"{self.plan.protocol}, {self.plan.name}: {self.method}{shots}"


def key_of(record: dict[str, Any]) -> tuple:
    return tuple(record[name] for name in ("protocol", "data", "model", "method", "shots", "seed"))


class Progress:
    """Lines on standard error: one a finished cell, and in long trainings one every half minute."""

    def __init__(self, total: int, prefix: str):
        self.total, self.prefix = total, prefix
        self.done, self.started, self.last = 0, time.monotonic(), time.monotonic()

    def say(self, text: str) -> None:
        print(self.prefix + text, file=sys.stderr, flush=True)
        self.last = time.monotonic()

    def epoch(self, done: int, epochs: int) -> None:
        if time.monotonic() - self.last > EPOCH_LINES_EVERY:
            self.say(f"    epoch {done} of {epochs}")

    def cell(self, cell: Cell, record: dict[str, Any] | None, seconds: float) -> None:
        self.done += 1
        left = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        scores = (
            "failed" if record is None
            else ", ".join(f"{name} {'-' if t['accuracy'] is None else format(100 * t['accuracy'], '.1f')}" for name, t in record["tests"].items())
        )  # fmt: skip
        self.say(f"[{self.done}/{self.total}] {cell}: {scores} ({seconds:.1f} s; {_duration(left)} left)")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def make_plans(options: argparse.Namespace) -> list[Plan]:
    """ValueError for sources that no protocol wants, or that one lacks."""
    named = {word: parse_test_data(getattr(options, word) or ()) for word in ("data", "tests", "targets", "domains")}
    named = {word: {name: absolute_source(source) for name, source in found.items()} for word, found in named.items()}
    if not named["data"]:
        given = [f"--{word}" for word in ("tests", "targets", "domains") if named[word]]
        if given:
            raise ValueError(
                f"{given[0]}: got it without --data; want both (without either, the embedded emoji are used)"
            )
        return emoji_plans(_protocols(options.protocols or ",".join(PROTOCOLS)))
    if named["tests"] and len(named["data"]) > 1:
        raise ValueError(
            f"tests: got them for {len(named['data'])} data sets; want one data set, or sets with test splits of their own"
        )
    further = {"cross_dataset": named["targets"], "domain_generalisation": named["domains"]}
    fitting = [protocol for protocol in PROTOCOLS if further.get(protocol, True)]
    plans = []
    for protocol in _protocols(options.protocols) if options.protocols else fitting:
        if protocol in further and not further[protocol]:
            option = "--targets" if protocol == "cross_dataset" else "--domains"
            raise ValueError(f"{protocol}: got no {option}; want the data sets to test on")
        for name, source in named["data"].items():
            plans.append(Plan(protocol, name, source, named["tests"], further.get(protocol, {})))
    return plans


def _protocols(text: str) -> list[str]:
    unknown = [word for word in _words(text) if word not in PROTOCOLS]
    if unknown:
        raise ValueError(f"protocols: got {unknown[0]!r}; want some of {', '.join(PROTOCOLS)}")
    return _words(text)


def shots_of(plan: Plan, options: argparse.Namespace) -> list[int]:
    """Those asked for; else 1 and 2 on the emoji, which have no more, and what papers report on other data."""
    if options.shots:
        return _numbers("shots", options.shots)
    if not options.data:
        return [1, 2]
    return [1, 2, 4, 8, 16] if plan.protocol == "few_shot" else [16]


def make_cells(plans: list[Plan], options: argparse.Namespace, methods: list[str]) -> list[Cell]:
    """In an order in which neighbours differ in the seed only: they go to different processes and share everything else."""
    cells = []
    for model in options.models:
        for plan in plans:
            cells.append(Cell(plan, model, "zero_shot"))
            cells += [
                Cell(plan, model, m, k, s)
                for m in methods
                for k in shots_of(plan, options)
                for s in _numbers("seeds", options.seeds)
            ]
    return cells


def cell_settings(cell: Cell, options: argparse.Namespace, overrides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What decides a cell's numbers besides its name."""
    embedded = Path(cell.model) == embedded_model()  # lies elsewhere on every machine
    return {
        "model": "embedded" if embedded else absolute_source(cell.model), **cell.plan.settings(), "templates": templates_for(cell.plan.data, options.templates),
        "profile": options.profile, "overrides": overrides.get(cell.method, {}), "reading": parse_overrides(options.read or []),
    }  # fmt: skip


def check_same_settings(records: list[dict[str, Any]], settings: dict[tuple, dict[str, Any]], out: Path) -> None:
    from hf_clip_variants.few_shot.results import what_differs

    for record in records:
        now = settings.get(key_of(record))
        if now is not None and (differing := what_differs(record["settings"], now)):
            raise ValueError(
                f"out: {out} holds {', '.join(map(str, key_of(record)))} with other settings: {'; '.join(differing)}. "
                "Repeat the command as it was to go on with it, or choose another folder."
            )


def check_same_contents(records: list[dict[str, Any]], plan: Plan, contents: dict[str, str], out: Path) -> None:
    for record in records:
        if (record["protocol"], record["data"]) == (plan.protocol, plan.name):
            changed = [name for name, value in contents.items() if record["contents"].get(name) != value]
            if changed:
                raise ValueError(
                    f"out: {out} holds results of {plan.name}, but the pictures of {changed[0]} changed; choose another folder"
                )


def write_tables(lines, cells: list[Cell], command: str) -> str:
    """OUT/table.md and plots from everything that all processes have done; the table. The last process to come here writes the whole."""
    from filelock import FileLock

    from hf_clip_variants.few_shot.plots import plot
    from hf_clip_variants.few_shot.results import markdown
    from hf_clip_variants.files.atomic_writes import write_atomically

    with FileLock(lines.work / ".table.lock"):
        found = {key_of(record): record for record in lines.read()}
        order = {cell.key: place for place, cell in enumerate(cells)}
        records = sorted(found.values(), key=lambda record: order.get(key_of(record), len(order)))
        models = list(dict.fromkeys(record["model"] for record in records))
        plots = {}
        for model in models:
            for protocol in dict.fromkeys(r["protocol"] for r in records if r["model"] == model):
                of_model = "" if len(models) == 1 else "-" + "".join(c if c.isalnum() else "-" for c in model)
                plots[model, protocol] = f"{protocol}{of_model}.png"
                own = [r for r in records if (r["model"], r["protocol"]) == (model, protocol)]
                write_atomically(lines.folder / plots[model, protocol], plot(protocol, own))
        page = markdown(records, command, sum(cell.key not in found for cell in cells), plots)
        write_atomically(lines.folder / "table.md", page)
    return page


def run_cells(cells: list[Cell], everything: list[Cell], options, lines, settings, progress: Progress, device) -> int:
    """Runs `cells`; how many failed. `everything`: the whole command's cells, of which other processes do the others."""
    from hf_clip_variants.few_shot.runner import ZERO_SHOT, ProtocolRunner

    seeds, reading, read = _numbers("seeds", options.seeds), parse_overrides(options.read or []), {}
    tasks, contents, failed = {}, {}, 0
    before = lines.read()
    for plan in dict.fromkeys(id(cell.plan) for cell in everything):
        plan = next(cell.plan for cell in everything if id(cell.plan) == plan)
        progress.say(f"reading {plan.name} for {plan.protocol}")
        task = load_task(plan, shots_of(plan, options), seeds, templates=options.templates, reading=reading, read=read)
        for remark in task.draws.remarks:
            progress.say(f"{plan.name}: {remark}")
        tasks[id(plan)], contents[id(plan)] = task, task.contents()
        check_same_contents(before, plan, contents[id(plan)], options.out)

    methods = list(dict.fromkeys(cell.method for cell in everything if cell.method != ZERO_SHOT))
    every_shots = sorted({cell.shots for cell in everything if cell.shots})
    for model in dict.fromkeys(cell.model for cell in cells):
        runner = ProtocolRunner(
            model, lines.work, list(tasks.values()), methods, every_shots, profile=options.profile,
            overrides=options.overrides, device=device, on_epoch=progress.epoch,
        )  # fmt: skip
        for cell in (cell for cell in cells if cell.model == model):
            start, task, record = time.monotonic(), tasks[id(cell.plan)], None
            try:
                if cell.method == ZERO_SHOT:
                    found = runner.zero_shot(task)
                else:
                    found = runner.run(task, cell.method, cell.shots, cell.seed)
                record = {
                    "protocol": cell.plan.protocol, "data": cell.plan.name, "model": cell.model_name, **found, "note": cell.plan.note,
                    "settings": settings[cell.key], "contents": contents[id(cell.plan)],
                }  # fmt: skip
                lines.append(record)
            except OSError:
                raise  # a full disk is no fault of the method, and the next cell would meet it too
            except Exception as error:
                failed += 1
                progress.say(f"{cell} failed: {type(error).__name__}: {error}")
            progress.cell(cell, record, time.monotonic() - start)
    return failed


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--out", type=Path, required=True, help="folder of results; the same one to go on after an interruption")
    add("--protocols", help=f"with commas: {', '.join(PROTOCOLS)}; default: those that the sources allow")
    add("--methods", help="with commas; default: every one; CoCoOp, MaPLe, VPT and IVLP take hours on real data")
    add(
        "--models",
        nargs="+",
        default=[str(embedded_model())],
        help="CLIPs, folders or Hub ids; default: the embedded tiny one",
    )
    add("--data", nargs="+", metavar="[NAME=]SOURCE", help="data sets to learn from; default: the embedded emoji")
    add(
        "--tests",
        nargs="+",
        metavar="[NAME=]SOURCE",
        help="test pictures of the data's classes; default: its test split",
    )
    add("--targets", nargs="+", metavar="[NAME=]SOURCE", help="other data sets, for cross_dataset")
    add(
        "--domains",
        nargs="+",
        metavar="[NAME=]SOURCE",
        help="the data's classes in other domains, for domain_generalisation",
    )
    add(
        "--shots",
        help="pictures a class, with commas; default: 1,2 on the emoji; on other data 1,2,4,8,16 for few_shot and 16 for the others",
    )
    add("--seeds", help="each draws other pictures; default: 1,2,3")
    add(
        "--templates",
        help="prompt, named set or file for all classes; default: CoOp's for its data sets, icons for emoji, else the CLIP's",
    )
    add("--profile", choices=("published", "tiny"), help="recipes; default: by the size of the CLIP")
    add(
        "--set",
        action="append",
        metavar="[METHOD.]NAME=VALUE",
        help="a value instead of the recipe's; may be repeated",
    )
    add(
        "--read",
        action="append",
        metavar="NAME=VALUE",
        help="an argument of load_images, such as label_column=breed; may be repeated",
    )
    add("--device", help="default: a GPU if there is one, each process its own")
    add("--small", action="store_true", help="1 shot, seed 1, one epoch: to see that it runs")
    return made


def main(arguments: list[str] | None = None) -> int:
    prepare_libraries()
    options = parser().parse_args(arguments)
    if options.small:
        options.shots, options.seeds = options.shots or "1", options.seeds or "1"
    options.seeds = options.seeds or "1,2,3"
    command = shlex.join(
        ["python", "scripts/few_shot_benchmark.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    rank, world = from_launcher("RANK"), from_launcher("WORLD_SIZE", "SIZE", default=1)
    try:
        return benchmark(options, command, rank, world)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def from_launcher(name: str, mpi: str | None = None, default: int = 0) -> int:
    """What torchrun, accelerate or mpirun says about this process."""
    mpi = mpi or name
    names = (name, f"PMI_{mpi}", f"OMPI_COMM_WORLD_{mpi}", f"MV2_COMM_WORLD_{mpi}")
    return next((int(os.environ[n]) for n in names if n in os.environ), default)


def one_epoch(methods: list[str]) -> dict[str, Any]:
    """Overrides: one epoch for those of the methods that are trained."""
    from hf_clip_variants.few_shot.recipes import recipe

    return {f"{m}.epochs": 1 for m in methods if recipe(m, 1).epochs}


def benchmark(options: argparse.Namespace, command: str, rank: int = 0, world: int = 1) -> int:
    """Exit code: 0, or 1 when a method failed."""
    from hf_clip_variants.few_shot.adapt import overrides_by_method
    from hf_clip_variants.few_shot.method import FEW_SHOT_METHODS, few_shot_method
    from hf_clip_variants.few_shot.results import ResultLines

    methods = [few_shot_method(m).name for m in (_words(options.methods) if options.methods else FEW_SHOT_METHODS)]
    options.overrides = parse_overrides(options.set or [])
    if options.small:
        options.overrides = one_epoch(methods) | options.overrides
    overrides = overrides_by_method(methods, options.overrides)
    plans = make_plans(options)
    cells = make_cells(plans, options, methods)
    if len({cell.key for cell in cells}) < len(cells):
        raise ValueError(
            "methods, models, shots, seeds: something is given twice, or two data sets have one name; write NAME=SOURCE"
        )
    lines = ResultLines(options.out, rank)
    progress = Progress(0, f"[process {rank}] " if world > 1 else "")
    with lines.locked():
        settings = {cell.key: cell_settings(cell, options, overrides) for cell in cells}
        before = lines.read()
        check_same_settings(before, settings, options.out)
        done = {key_of(record) for record in before}
        # Every process takes each world-th cell of all, not of the missing: they start at different moments.
        mine = [cell for place, cell in enumerate(cells) if place % world == rank and cell.key not in done]
        failed, progress.total = 0, len(mine)
        if mine:
            device = options.device
            if world == 1:
                use_all_cores()
            elif device is None:
                import torch

                device = f"cuda:{from_launcher('LOCAL_RANK')}" if torch.cuda.is_available() else None
            progress.say(f"{len(mine)} of {len(cells)} cells to do")
            failed = run_cells(mine, cells, options, lines, settings, progress, device)
        else:
            progress.say(
                f"nothing to do: all {len(cells)} cells are in {options.out} already"
                if world == 1
                else "nothing to do"
            )
        page = write_tables(lines, cells, command)
    if rank == 0:
        print(page)
    progress.say(
        f"{options.out / 'table.md'}"
        + (f"; {failed} cells failed, repeat the command to try them again" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
