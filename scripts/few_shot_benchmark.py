"""The protocols of the few-shot papers, for any methods, CLIPs, numbers of shots and seeds.

    python scripts/few_shot_benchmark.py --out runs/emoji            # the embedded emoji: all protocols, no network
    python scripts/few_shot_benchmark.py --small --out /tmp/small    # seconds: shows that everything runs
    python scripts/few_shot_benchmark.py --out runs/few --model openai/clip-vit-base-patch16 \\
        --data coop:$DATA/oxford_pets coop:$DATA/dtd --protocols few_shot,base_to_new
    python scripts/few_shot_benchmark.py --out runs/transfer --model openai/clip-vit-base-patch16 \\
        --data coop:$DATA/imagenet --shots 16 --targets coop:$DATA/caltech-101 coop:$DATA/oxford_pets \\
        --domains coop:$DATA/imagenetv2 coop:$DATA/imagenet-sketch
    torchrun --nproc-per-node 8 scripts/few_shot_benchmark.py ...    # or accelerate launch: processes share the runs

few_shot                train on K images of each class, test on other images of these classes
base_to_new             train on the first half of the classes; test each half on its own class names; HM: harmonic
                        mean
cross_dataset           train on one data set, test on others (--targets) with their class names
domain_generalisation   train on one data set, test on its classes, or some of them, in other domains (--domains)

A source is what `load_images` reads: a folder with one sub-folder per class, a Hub data set, Parquet, CSV,
emoji:<style>, or coop:<folder> for a data set in the layout of CoOp's DATASETS.md (split_zhou_*.json and the rest).
Shots come from the train split. Hyper-parameters are chosen on the validation split, or without one by
cross-validation over the shots. Accuracy is measured on the test split.

OUT/runs-<process>.jsonl gets a line for every run (protocol, data, CLIP, method, shots, seed). After an interruption,
the same command does the missing runs. OUT/table.md and OUT/<protocol>.png are made from these lines at the end.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see prepare_libraries

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from hf_clip_variants import embedded_model
from hf_clip_variants.commands.arguments import method_names, numbers, parse_overrides, words
from hf_clip_variants.commands.options import reading as columns
from hf_clip_variants.commands.output import use_all_cores
from hf_clip_variants.commands.script_runs import run_script
from hf_clip_variants.data.images.labelled_sets import absolute_source
from hf_clip_variants.few_shot.named_sources import parse_test_data
from hf_clip_variants.few_shot.protocols import PROTOCOLS, Plan, emoji_plans
from hf_clip_variants.registry import unknown_name


def make_plans(options: argparse.Namespace) -> list[Plan]:
    """Raises ValueError if sources are missing, or if no protocol uses them."""
    given = {word: getattr(options, word) or () for word in ("data", "test_data", "targets", "domains")}
    named = {word: parse_test_data(sources, word) for word, sources in given.items()}
    named = {word: {name: absolute_source(source) for name, source in found.items()} for word, found in named.items()}
    if not named["data"]:
        others = [word for word in ("test_data", "targets", "domains") if named[word]]
        if others:
            raise ValueError(
                f"{others[0]}: got it without --data; want both (without either, the embedded emoji are used)"
            )
        return emoji_plans(_protocols(options.protocols or ",".join(PROTOCOLS)))
    if named["test_data"] and len(named["data"]) > 1:
        raise ValueError(
            f"test_data: got them for {len(named['data'])} data sets; want one data set, or sets with test splits"
        )
    further = {"cross_dataset": named["targets"], "domain_generalisation": named["domains"]}
    fitting = [protocol for protocol in PROTOCOLS if further.get(protocol, True)]
    plans = []
    for protocol in _protocols(options.protocols) if options.protocols else fitting:
        if protocol in further and not further[protocol]:
            option = "--targets" if protocol == "cross_dataset" else "--domains"
            raise ValueError(f"{protocol}: got no {option}; want the data sets to test on")
        for name, source in named["data"].items():
            plans.append(Plan(protocol, name, source, named["test_data"], further.get(protocol, {})))
    return plans


def _protocols(text: str) -> list[str]:
    unknown = [word for word in words(text) if word not in PROTOCOLS]
    if unknown:
        raise ValueError(f"protocols: {unknown_name(unknown[0], PROTOCOLS)}")
    return words(text)


def shots_of(plan: Plan, options: argparse.Namespace) -> list[int]:
    """Those asked for; else 1 and 2 on the emoji, which have no more images, and the papers' on other data."""
    if options.shots:
        return numbers("--shots", options.shots, least=1)
    if not options.data:
        return [1, 2]
    return [1, 2, 4, 8, 16] if plan.protocol == "few_shot" else [16]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--out", type=Path, required=True, help="folder of results; the same one to continue after an interruption")
    add("--protocols", help=f"with commas: {', '.join(PROTOCOLS)}; default: those that the sources allow")
    add("--methods", help="with commas; default: all; CoCoOp, MaPLe, VPT and IVLP take hours on real data")
    several = {"nargs": "+", "action": "extend"}  # also repeated, as the commands take them
    add("--model", **several, help="CLIPs, folders or Hub ids; default: the embedded tiny one")
    add("--models", **several, dest="model", help=argparse.SUPPRESS)  # its former name
    sources = {"metavar": "[NAME=]SOURCE", **several}
    add("--data", **sources, help="data sets to learn from; default: the embedded emoji")
    add("--test-data", **sources, help="test images of the data's classes; default: its test split")
    add("--tests", **sources, dest="test_data", help=argparse.SUPPRESS)  # its former name
    add("--targets", **sources, help="other data sets, for cross_dataset")
    add("--domains", **sources, help="the data's classes in other domains, for domain_generalisation")
    add("--image-column", help="column of the images; default: found by its type")
    add("--label-column", help="column of the labels; default: found by its type")
    add(
        "--shots",
        help="images per class, with commas; default: 1,2 on the emoji, else 1,2,4,8,16 for few_shot, 16 for others",
    )
    add("--seeds", help="each seed draws other images; default: 1,2,3")
    add(
        "--templates",
        help="prompt, named set or file for all classes; default: CoOp's for its sets, icons for emoji, or the CLIP's",
    )
    add("--profile", choices=("published", "tiny"), help="recipes; default: by the size of the CLIP")
    add(
        "--set",
        action="append",
        metavar="[METHOD.]NAME=VALUE",
        help="a setting instead of the recipe's; may be repeated",
    )
    add(
        "--read",
        action="append",
        metavar="NAME=VALUE",
        help="another argument of load_images, such as revision=v1; may be repeated",
    )
    add("--device", help="default: a GPU if there is one, a different one for each process")
    add("--small", action="store_true", help="1 shot, seed 1, one epoch: to check that everything runs")
    return made


def main(arguments: list[str] | None = None) -> int:
    made = parser()
    options = made.parse_args(arguments)
    if options.small:
        options.shots, options.seeds = options.shots or "1", options.seeds or "1"
    options.seeds = options.seeds or "1,2,3"
    command = shlex.join(
        ["python", "scripts/few_shot_benchmark.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    rank, world = from_launcher("RANK"), from_launcher("WORLD_SIZE", "SIZE", default=1)
    finished = f"What is finished is in {options.out}; repeat the command to go on."
    return run_script(made, lambda: benchmark(options, command, rank, world), finished)


def from_launcher(name: str, mpi: str | None = None, default: int = 0) -> int:
    """A rank or size from the environment variables of torchrun, accelerate or mpirun."""
    mpi = mpi or name
    names = (name, f"PMI_{mpi}", f"OMPI_COMM_WORLD_{mpi}", f"MV2_COMM_WORLD_{mpi}")
    return next((int(os.environ[n]) for n in names if n in os.environ), default)


def one_epoch(methods: list[str]) -> dict[str, Any]:
    """Overrides: one epoch for the methods that are trained."""
    from hf_clip_variants.few_shot.recipes import recipe

    return {f"{m}.epochs": 1 for m in methods if recipe(m, 1).epochs}


def benchmark(options: argparse.Namespace, command: str, rank: int = 0, world_size: int = 1) -> int:
    """Exit code: 0, or 1 when a method failed."""
    from hf_clip_variants.few_shot.benchmark import Benchmark, make_runs
    from hf_clip_variants.few_shot.method import few_shot_method

    def say(text: str) -> None:
        print((f"[process {rank}] " if world_size > 1 else "") + text, file=sys.stderr, flush=True)

    methods = [few_shot_method(m).name for m in method_names(options.methods or "all")]
    overrides = (one_epoch(methods) if options.small else {}) | parse_overrides(options.set or [])
    seeds = numbers("--seeds", options.seeds)
    models = options.model or [str(embedded_model())]
    reading = columns(options.image_column, options.label_column) | parse_overrides(options.read or [], "--read")
    runs = make_runs(make_plans(options), models, methods, lambda plan: shots_of(plan, options), seeds)
    made = Benchmark(
        options.out,
        runs,
        templates=options.templates,
        profile=options.profile,
        overrides=overrides,
        reading=reading,
        rank=rank,
        world_size=world_size,
        say=say,
    )
    page, failed = made.run(command, options.device or pick_device(world_size))
    if rank == 0:
        print(page)
    again = f"; {failed} runs failed, repeat the command to try them again" if failed else ""
    say(f"{options.out / 'table.md'}{again}")
    return 1 if failed else 0


def pick_device(world_size: int) -> str | None:
    """One process: all cores, and a GPU if there is one. Several processes: a GPU for each."""
    import torch

    if world_size == 1:
        return use_all_cores()
    return f"cuda:{from_launcher('LOCAL_RANK')}" if torch.cuda.is_available() else None


if __name__ == "__main__":
    sys.exit(main())
