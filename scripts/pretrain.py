"""Contrastive pre-training of CLIP (ViT or ResNet), SLIP, AudioCLIP and GroupViT, on one CPU or many GPUs.

From scratch or from a checkpoint:

    python scripts/pretrain.py --smoke --out /tmp/smoke                 # a minute: shows that everything runs
    python scripts/pretrain.py --data "cc3m/*.tar" --arch ViT-B/32 --steps 180000 --batch-size 512 --bf16 \\
        --workers 8 --out runs/b32
    torchrun --nproc-per-node 8 scripts/pretrain.py --method slip --arch ViT-B/16 ...
    python scripts/pretrain.py --method audioclip --init runs/clip-rn50/model --data audio.parquet \\
        --set frozen_modalities='["image","text"]' ...

torchrun or accelerate launch start several processes; FSDP2 is set in the configuration of accelerate.

Data: Parquet files, WebDataset tar shards, a table (.csv, .tsv, .jsonl) of image path and caption, captions as COCO's
captions_train2017.json, a folder of images with a .txt of the same name beside each, with a metadata.csv or .jsonl, or
with a sub-folder for each class, or a data set on the Hub; one source or several, mixed by --mix. What has no image or
no text is left out and counted. With --stream, nothing is indexed or copied first. After an interruption, the same
command continues from the last complete checkpoint with the next batch; all randomness follows from --seed and the
step.

OUT/checkpoint-*  to continue from       OUT/model         the trained model with its processor, for from_pretrained
OUT/run.json      settings, metrics      OUT/pretraining   SLIP only: the same with the self-supervised head
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads of one library would starve those of another

import argparse
import json
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from hf_clip_variants.commands.arguments import parse_overrides
from hf_clip_variants.commands.script_runs import run_script
from hf_clip_variants.few_shot.named_sources import parse_test_data
from hf_clip_variants.files.json_files import digest, write_json
from hf_clip_variants.training.lr_schedules import SCHEDULES
from hf_clip_variants.training.pretraining_methods import pretraining_methods


NO_SETTINGS = ("out", "workers", "eval_batch_size", "log_every", "report_to")  # may differ when a run is continued


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group: Any = made

    def add(name: str, text: str | None = None, **options: Any) -> None:
        group.add_argument(name, help=text, **options)

    add("--out", "folder of the run; the same one to continue after an interruption", type=Path, required=True)
    add("--smoke", "8 steps of a mini model on the embedded images, or on --data", action="store_true")

    group = made.add_argument_group("model")
    add("--method", choices=list(pretraining_methods()), default="clip")
    names = "ViT-mini, RN-mini, ViT-tiny, RN-tiny, ViT-S/16, ViT-B/32, …, RN50, …"
    add("--arch", f"{names}; see training/architectures.py")
    add("--init", "start from this model, folder or Hub id, not from random weights; OUT/model keeps its processor")
    add("--tokenizer", "folder or Hub id; default: the architecture's")
    add("--image-size", "pixels; default: the architecture's", type=int)
    more = {"action": "append", "default": [], "metavar": "NAME=VALUE"}
    add("--set", "a field of the model's configuration, such as ssl_objective=byol; may be repeated", **more)

    group = made.add_argument_group("data")
    several = {"nargs": "+", "action": "extend"}  # also repeated, as the commands take them
    add("--data", "sources of image-text pairs; a glob in quotes is one source", **several, metavar="SOURCE")
    add(
        "--mix",
        "the sources' shares of each batch, with commas; default: in proportion to their lengths",
        type=_floats,
    )
    add("--stream", "read one source in a stream instead of indexing it (always for tar shards)", action="store_true")
    add("--shuffle-buffer", "rows of a stream to choose from", type=int, default=10_000)
    add("--image-column", "default: found by the usual names; also --text-columns and --audio-column")
    add(
        "--image-folder",
        "what image paths are relative to; default: the table's folder, COCO's is found",
        metavar="DIR",
    )
    add(
        "--text-columns",
        "with several, each use of a row takes a random one; json.title is a field of json",
        nargs="+",
    )
    add("--audio-column", "for methods that take audio")
    add("--templates", "a named set, a file or one template with {}; each text gets a random one")
    add("--distinct", "rows equal in this column show the same thing: a batch takes one of them", metavar="COLUMN")
    add(
        "--augment",
        "published: the papers', image by image in the loader's workers; crops: the same distribution, batched; "
        "icons: for drawings with alpha; default: %(default)s",
        choices=("published", "crops", "icons", "none"),
        default="published",
    )
    places = ("workers", "device")
    add("--augment-on", "where batched augmentation runs", choices=places, default="workers")
    add(
        "--source-size",
        "pixels of the squares that batched augmentation crops; default: 8/7 of the image size",
        type=int,
    )
    add("--seconds", "length of the audio; default: %(default)s", type=float, default=5.0)
    add(
        "--on-error",
        "what to do with rows that cannot be read; skipped rows are named",
        choices=("skip", "raise"),
        default="skip",
    )

    group = made.add_argument_group("training")
    add("--epochs", "passes over the longest source; streams need --steps", type=float)
    add("--steps", "optimiser steps", type=int)
    add(
        "--batch-size",
        "pairs per process and step; the loss is over the pairs of all processes",
        type=int,
        default=256,
    )
    add("--accumulate", "batches whose gradients are added; each batch has its own loss", type=int, default=1)
    add(
        "--micro-batch-size",
        "pairs encoded at once, to save memory; the loss is that of the whole batch (GradCache)",
        type=int,
    )
    add("--lr", "default: the paper's; for most mini and tiny models 1e-3", type=float)
    add("--min-lr", "end of the cosine schedule; SLIP's authors: 1e-5", type=float, default=0.0)
    text = "slip: its authors', from 1e-6 up and then down to 1e-5; default: %(default)s"
    add("--schedule", text, choices=list(SCHEDULES), default="cosine")
    add("--warmup", "steps; default: a tenth of all, at most 2000", type=int)
    add("--weight-decay", "of matrices; default: the paper's", type=float)
    add("--clip-norm", "largest gradient norm, 0: no limit; default: the method's, 1 for most", type=float)
    add("--bf16", action="store_true")
    add("--compile", "use torch.compile; texts are then padded to one length", action="store_true")
    add("--checkpointing", "activation checkpointing", action="store_true")
    add("--seed", type=int, default=0)
    add("--trainer", "an argument of TrainingArguments, such as optim=sgd; may be repeated", **more)
    add("--workers", "data loader workers of each process", type=int, default=2)
    add("--report-to", "installed trackers: wandb, tensorboard, trackio, …; default: none", **several)
    add("--log-every", type=int, default=20)
    add("--save-every", "steps; default: a tenth of all", type=int)

    group = made.add_argument_group("evaluation")
    sources = {**several, "default": [], "metavar": "[NAME=]SOURCE"}
    # Second names are the former ones.
    add("--test-data", "zero-shot classification of labelled images that load_images reads", dest="eval", **sources)
    add("--eval", argparse.SUPPRESS, **sources)
    add(
        "--test-templates",
        "prompts of the classes; default: --templates, else 'a photo of a {}.'",
        dest="eval_templates",
    )
    add("--eval-templates", argparse.SUPPRESS)
    add("--label-column", "of --test-data; default: found by its type", dest="eval_label")
    add("--eval-label", argparse.SUPPRESS)
    add("--test-pairs", "retrieval on other pairs with the columns of --data", dest="held_out", **sources)
    add("--held-out", argparse.SUPPRESS, **sources)
    add(
        "--hold-out",
        "keep this share of the rows out of training and measure retrieval on them and, to compare, on as many "
        "training rows with new augmentation",
        type=float,
    )
    add("--eval-every", "steps; default: at the end only", type=int)
    add("--eval-batch-size", type=int, default=64)
    return made


def _floats(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def complete(options: argparse.Namespace) -> Any:
    """Fills in defaults that depend on other options and returns the method's descriptor.

    Raises ValueError for wrong options.
    """
    from hf_clip_variants.data.images.emoji import FOLDER
    from hf_clip_variants.training.architectures import ARCHITECTURES, fitting_architectures, pretraining_for
    from hf_clip_variants.training.smoke_data import TONES

    if options.smoke:
        with_audio = "audio" in pretraining_for(options.method).modalities
        options.arch = options.arch or fitting_architectures(options.method)[0]  # sorted by size
        if not options.data:
            options.data, options.text_columns = [str(FOLDER / "*.parquet")], ["name"]
            options.templates, options.augment = options.templates or "icons", "icons"
            options.eval = options.eval or ["emoji:fluent3d"]
            if with_audio:
                options.data, options.seconds = [TONES], min(options.seconds, 1.0)
        options.steps, options.log_every = options.steps or 8, 2
        options.batch_size, options.workers = min(options.batch_size, 64), min(options.workers, 1)
    if not options.data:
        raise ValueError("data: got none; want --data with one source or more, or --smoke")
    if not options.init and not options.arch:
        raise ValueError("arch: got none; want --arch for a new model or --init for a trained one")
    if options.init and (options.arch or options.tokenizer or options.image_size):
        raise ValueError(
            "init: a trained model has its architecture, tokenizer and image size; leave those options out"
        )
    if (options.steps is None) == (options.epochs is None):
        raise ValueError(f"steps: got steps={options.steps} and epochs={options.epochs}; want one of them")
    for name in ("batch_size", "steps", "accumulate", "epochs"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name}: got {value}; want a positive number")
    if options.seconds <= 0:
        raise ValueError(f"seconds: got {options.seconds}; want a positive number")
    if options.augment == "published" and options.augment_on == "device":
        raise ValueError("augment_on: published augmentation works image by image; want --augment crops on the device")
    pretraining = pretraining_for(options.method, options.arch)
    if options.micro_batch_size and pretraining.has_batch_norm:
        raise ValueError(
            f"micro_batch_size: {options.method} on {options.arch or options.init} has batch normalisation, which "
            "would see parts of the batch; leave the option out"
        )
    is_small = options.arch is not None and ARCHITECTURES[options.arch].scale != "published"
    options.lr = options.lr or (pretraining.small_learning_rate if is_small else pretraining.learning_rate)
    if options.clip_norm is None:
        options.clip_norm = pretraining.max_grad_norm
    if options.weight_decay is None:
        options.weight_decay = pretraining.weight_decay
    return pretraining


def settings_of(options: argparse.Namespace, processes: int) -> dict[str, Any]:
    found = {name: value for name, value in vars(options).items() if name not in NO_SETTINGS}
    return json.loads(json.dumps({**found, "processes": processes}, default=str))


def load_model(options: argparse.Namespace, pretraining: Any) -> tuple[Any, Any]:
    from transformers import set_seed

    from hf_clip_variants.training.architectures import new_model

    set_seed(options.seed)
    fields = parse_overrides(options.set, "set", "NAME=VALUE")
    if options.init:
        return pretraining.load(options.init, fields)
    sizes = {"tokenizer": options.tokenizer, "image_size": options.image_size}
    return new_model(options.method, options.arch, config=fields, **sizes)


def make_data(
    options: argparse.Namespace, pretraining: Any, model: Any, processor: Any, place: Any
) -> tuple[Any, Any, Any, list]:
    """Training data, collator, the views that are made on the device, and the sets for evaluation."""
    from hf_clip_variants.data.pairs.batches import PairCollator
    from hf_clip_variants.modeling.dual_encoders.prompts import resolve_templates
    from hf_clip_variants.training import pretraining_data as data

    reader = data.pair_reader(
        pretraining,
        processor,
        augment=options.augment,
        seed=options.seed,
        templates=resolve_templates(options.templates) if options.templates else ("{}",),
        source_size=options.source_size,
        seconds=options.seconds,
    )
    images = processor.image_processor
    views = data.batched_views(pretraining, model.config, images, options.augment, options.seed)
    plain_audio = data.audio_reader(pretraining, processor, options.seconds, augmented=False)
    columns = {
        name: getattr(options, name) for name in ("image_column", "text_columns", "audio_column", "image_folder")
    }
    parts = data.open_sources(pretraining, options.data, streaming=options.stream, **columns)
    held_out = []
    if options.hold_out:
        parts, held_out = data.hold_out(parts, options.hold_out, reader, views, plain_audio)
    pairs = data.training_pairs(
        parts,
        reader,
        options.batch_size,
        rank=place.process_index,
        world_size=place.world_size,
        mix=options.mix,
        distinct=options.distinct,
        shuffle_buffer=options.shuffle_buffer,
        on_error=options.on_error,
    )
    words, on_device = processor.tokenizer, options.augment_on == "device"
    length = min(words.model_max_length, 77)
    collator = PairCollator(words, length, None if on_device else views, options.compile)
    sets = evaluation_sets(options, pretraining, columns, plain_audio) + held_out
    return pairs, collator, views if on_device else None, sets


def evaluation_sets(options: argparse.Namespace, pretraining: Any, columns: dict[str, Any], plain_audio: Any) -> list:
    from hf_clip_variants.data.images.sources import load_images
    from hf_clip_variants.evaluation.retrieval import RetrievalSet
    from hf_clip_variants.evaluation.zero_shot import ZeroShotSet
    from hf_clip_variants.training.pretraining_data import open_sources

    templates = options.eval_templates or options.templates
    sets: list = []
    for name, source in parse_test_data(options.eval).items():
        sets.append(ZeroShotSet(name, load_images(source, label_column=options.eval_label), templates))
    for name, source in parse_test_data(options.held_out).items():
        (pairs,) = open_sources(pretraining, [source], **columns)
        if pairs.is_stream:
            raise ValueError(f"held_out: {source} is a stream; want data that can be indexed")
        sets.append(RetrievalSet(name, pairs, plain_audio))
    names = [each.name for each in sets]
    if len(set(names)) < len(names):
        raise ValueError(f"held_out: names {names} are not distinct; want NAME=SOURCE")
    return sets


def training_arguments(options: argparse.Namespace, steps: int = 1, evaluates: bool = False) -> Any:
    """With `steps=1` before the data is open, when the number of steps is not known; initialises the process group."""
    import torch
    from transformers import TrainingArguments

    arguments = {
        "output_dir": str(options.out),
        "max_steps": steps,
        "per_device_train_batch_size": options.batch_size,
        "per_device_eval_batch_size": options.eval_batch_size,
        "gradient_accumulation_steps": options.accumulate,
        "learning_rate": options.lr,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": options.min_lr},
        "warmup_steps": min(2000, steps // 10) if options.warmup is None else options.warmup,
        "weight_decay": options.weight_decay,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-6,
        "max_grad_norm": options.clip_norm,
        "bf16": options.bf16,
        "torch_compile": options.compile,
        "activation_checkpointing": options.checkpointing,
        "use_cpu": not torch.accelerator.is_available(),
        "seed": options.seed,
        "dataloader_num_workers": options.workers,
        "remove_unused_columns": False,
        "accelerator_config": {"dispatch_batches": False},
        "ddp_find_unused_parameters": False,
        "report_to": options.report_to or ["none"],
        "logging_steps": options.log_every,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": options.save_every or max(1, steps // 10),
        "save_total_limit": 1,
        "eval_strategy": "steps" if evaluates and options.eval_every else "no",
        "eval_steps": options.eval_every,
    }
    return TrainingArguments(**arguments | parse_overrides(options.trainer, "trainer", "NAME=VALUE"))


def pretrain(options: argparse.Namespace, command: str) -> dict[str, Any]:
    import torch

    from hf_clip_variants.files.atomic_writes import last_complete_checkpoint
    from hf_clip_variants.training.exact_contrastive_loss import ExactContrastiveLoss
    from hf_clip_variants.training.pretrain_trainer import PretrainTrainer
    from hf_clip_variants.training.pretraining_data import steps_of_epochs
    from hf_clip_variants.training.pretraining_run import open_run, report, save_models

    pretraining = complete(options)
    settings = settings_of(options, int(os.environ.get("WORLD_SIZE", 1)))
    run = open_run(options.out, settings)
    if "metrics" in run:
        print(f"{options.out} is finished already", file=sys.stderr)
        return run
    model, processor = load_model(options, pretraining)
    place = training_arguments(options)  # from here on ranks are known
    data, collator, views, sets = make_data(options, pretraining, model, processor, place)
    steps = options.steps or steps_of_epochs(data, options.epochs, options.accumulate)
    arguments = training_arguments(options, steps, bool(sets))
    schedule = SCHEDULES[options.schedule]
    if schedule is not None:
        schedule = partial(schedule, peak=options.lr, num_steps=steps, warmup_steps=arguments.warmup_steps)
    # Models of this package compute the exact loss over processes, and so does training in micro-batches.
    is_exact = type(model).__module__.startswith("hf_clip_variants.") or options.micro_batch_size
    trainer = PretrainTrainer(
        model,
        arguments,
        collator,
        data,
        processing_class=processor,
        eval_dataset=sets,
        views_on_device=views,
        micro_batch_size=options.micro_batch_size,
        schedule=schedule,
        callbacks=[] if is_exact else [ExactContrastiveLoss()],
    )
    is_first = trainer.is_world_process_zero()
    if is_first:
        write_json(options.out / "run.json", {**run, "command": command})
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        print(
            f"{type(model).__name__}, {millions:.1f} M parameters; {steps} steps of {options.batch_size} x "
            f"{place.world_size} pairs on {place.device}",
            file=sys.stderr,
        )
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(options.out) is not None)
    seconds = time.monotonic() - started
    metrics = trainer.evaluate() if sets else {}
    loss = trainer.mean_loss()  # of all processes: each takes part
    save_models(trainer, pretraining, options.out)
    if is_first:
        run |= {
            "command": command,
            "fingerprint": digest(settings),
            "steps": steps,
            "seconds": round(seconds, 1),
            "pairs_a_second": round(steps * options.accumulate * options.batch_size * place.world_size / seconds, 1),
            "device": str(place.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "loss": loss,
            "log": trainer.state.log_history,
            "metrics": metrics,
        }
        write_json(options.out / "run.json", run)
        print(report(run))
    return run


def main(arguments: list[str] | None = None) -> int:
    made = parser()
    options = made.parse_args(arguments)
    command = shlex.join(["python", "scripts/pretrain.py", *(sys.argv[1:] if arguments is None else arguments)])
    goes_on = f"The same command goes on from the last checkpoint in {options.out}."
    return run_script(made, lambda: pretrain(options, command), goes_on)


if __name__ == "__main__":
    sys.exit(main())
