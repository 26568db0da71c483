"""Contrastive pre-training: CLIP with a ViT or a ResNet, SLIP, AudioCLIP; from scratch or from a checkpoint, on one CPU or many GPUs.

    python scripts/pretrain.py --smoke --out /tmp/smoke                              # a minute: shows that everything runs
    python scripts/pretrain.py --data "cc3m/*.tar" --arch ViT-B/32 --steps 180000 --batch-size 512 --bf16 --workers 8 --out runs/b32
    torchrun --nproc-per-node 8 scripts/pretrain.py --method slip --arch ViT-B/16 ... # or accelerate launch, with FSDP2 from its configuration
    python scripts/pretrain.py --method audioclip --arch RN50 --init runs/clip-rn50/model --data sounds.parquet --set frozen_modalities='["image","text"]' ...

Data: Parquet files, WebDataset tar shards, a table (.csv, .tsv, .jsonl) of picture path and caption, a folder of pictures, or a data set on the
Hub; one source or several, mixed by --mix. With --stream nothing is indexed or copied first. The same command, given again, goes on from the last
complete checkpoint with the batch that comes next; everything random follows from --seed and the place in the run.

OUT/checkpoint-*  to go on from          OUT/model         the trained model with its processor, for from_pretrained
OUT/run.json      settings, metrics      OUT/pretraining   SLIP only: the same with the self-supervised head
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads of one library would starve those of another

import argparse
import json
import math
import shlex
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hf_clip_variants.commands.adapt import parse_overrides
from hf_clip_variants.commands.output import prepare_libraries
from hf_clip_variants.few_shot.run_folder import digest, write_json
from hf_clip_variants.few_shot.splits import parse_test_data


DEFAULTS = {  # learning rate, weight decay: the papers'; small pictures take a higher rate
    "clip": (5e-4, 0.2),
    "slip": (3e-3, 0.1),
    "audioclip": (1e-4, 5e-4),
}
SMALL_RATE = 1e-3
TONES = "smoke:tones"
NO_SETTINGS = ("out", "workers", "eval_batch_size", "log_every", "report_to")  # may change between parts of one run


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--out", type=Path, required=True, help="folder of the run; the same one to go on after an interruption")
    add("--smoke", action="store_true", help="8 steps of a mini model on the embedded pictures, or on --data")

    group = made.add_argument_group("model")
    add = group.add_argument
    add("--method", choices=("clip", "slip", "audioclip"), default="clip")
    add(
        "--arch",
        help="ViT-mini, RN-mini, ViT-tiny, RN-tiny, ViT-S/16, ViT-B/32, …, RN50, …; see training/architectures.py",
    )
    add(
        "--init",
        help="begin with this model, folder or Hub id, instead of random weights; OUT/model keeps its processor",
    )
    add("--tokenizer", help="folder or Hub id; default: the architecture's")
    add("--image-size", type=int, help="pixels; default: the architecture's")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of the model's configuration, such as ssl_objective=byol; may be repeated")  # fmt: skip

    group = made.add_argument_group("data")
    add = group.add_argument
    add("--data", nargs="+", metavar="SOURCE", help="sources of pairs; a glob in quotes is one source")
    add("--mix", type=_floats, help="the sources' shares of each batch, with commas; default: by their lengths")
    add("--stream", action="store_true", help="read one source on and on instead of indexing it (tar shards always)")
    add("--shuffle-buffer", type=int, default=10_000, help="rows of a stream to draw from")
    add("--image-column", help="default: found by the usual names; also --text-columns and --audio-column")
    add(
        "--text-columns",
        nargs="+",
        help="several: each use of a row takes a random one; json.title is an entry of a column",
    )
    add("--audio-column", help="AudioCLIP's")
    add("--templates", help="a named set, a file or one template with {}; a text gets a random one of them")
    add("--distinct", metavar="COLUMN", help="rows equal in it are pictures of one thing: a batch takes one of them")
    add("--augment", choices=("published", "crops", "icons", "none"), default="published", help="published: the papers', picture by picture in the loader's workers; crops: the same draws, batched; icons: for drawings with alpha; default: %(default)s")  # fmt: skip
    add("--augment-on", choices=("workers", "device"), default="workers", help="where batched augmentation runs")
    add(
        "--canvas",
        type=int,
        help="pixels of the squares that batched augmentation starts from; default: 8/7 of the image size",
    )
    add("--seconds", type=float, default=5.0, help="length of the sounds; default: %(default)s")
    add(
        "--on-error",
        choices=("skip", "raise"),
        default="skip",
        help="rows that cannot be read; skipped ones are named",
    )

    group = made.add_argument_group("training")
    add = group.add_argument
    add("--epochs", type=float, help="passes over the source that lasts longest; streams need --steps")
    add("--steps", type=int, help="optimiser steps")
    add(
        "--batch-size",
        type=int,
        default=256,
        help="pairs a process and step; all processes' pairs are one batch for the loss",
    )
    add("--accumulate", type=int, default=1, help="batches whose gradients are added up; the loss is each batch's own")
    add(
        "--micro-batch-size",
        type=int,
        help="pairs encoded at once, for batches that do not fit; the loss is the whole batch's (GradCache)",
    )
    add("--lr", type=float, help="default: the paper's; 1e-3 for mini and tiny CLIP and SLIP")
    add("--min-lr", type=float, default=0.0, help="what the cosine schedule ends with; SLIP's authors: 1e-5")
    add("--schedule", choices=("cosine", "slip"), default="cosine", help="slip: its authors', from 1e-6 up and down to 1e-5; default: %(default)s")  # fmt: skip
    add("--warmup", type=int, help="steps; default: a tenth of all, 2000 at most")
    add("--weight-decay", type=float, help="of matrices; default: the paper's")
    add("--clip-norm", type=float, help="largest gradient norm; default: 1, and none (0) for AudioCLIP, whose filters have gradients of a norm of their own")  # fmt: skip
    add("--bf16", action="store_true")
    add("--compile", action="store_true", help="torch.compile; texts are then padded to one length")
    add("--checkpointing", action="store_true", help="activation checkpointing")
    add("--seed", type=int, default=0)
    add("--trainer", action="append", default=[], metavar="NAME=VALUE", help="an argument of TrainingArguments, such as optim=sgd; may be repeated")  # fmt: skip
    add("--workers", type=int, default=2, help="loader processes for each training process")
    add("--report-to", nargs="+", default=["none"], help="trackers that are installed: wandb, tensorboard, trackio, …")
    add("--log-every", type=int, default=20)
    add("--save-every", type=int, help="steps; default: a tenth of all")

    group = made.add_argument_group("evaluation")
    add = group.add_argument
    add(
        "--eval",
        nargs="+",
        default=[],
        metavar="[NAME=]SOURCE",
        help="zero-shot classification of labelled pictures, as load_images reads them",
    )
    add("--eval-templates", help="prompts of the classes; default: --templates, else 'a photo of a {}.'")
    add("--eval-label", help="the label column of --eval")
    add(
        "--held-out",
        nargs="+",
        default=[],
        metavar="[NAME=]SOURCE",
        help="retrieval among held-out pairs, columns as those of --data",
    )
    add("--hold-out", type=float, help="keep this share of the rows out of training, for retrieval among them; and, to compare, among as many that were seen, augmented otherwise")  # fmt: skip
    add("--eval-every", type=int, help="steps; default: at the end only")
    add("--eval-batch-size", type=int, default=64)
    return made


def _floats(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def assignments(option: str, words: list[str]) -> dict[str, Any]:
    return parse_overrides(words, option, "NAME=VALUE")


def complete(options: argparse.Namespace) -> None:
    """Fills in what follows from other options; ValueError for those that do not go together."""
    from hf_clip_variants.data.images.emoji import FOLDER

    if options.smoke:
        options.arch = options.arch or ("RN-mini" if options.method == "audioclip" else "ViT-mini")
        if not options.data:
            options.data, options.text_columns = [str(FOLDER / "*.parquet")], ["name"]
            options.templates, options.augment = options.templates or "icons", "icons"
            options.eval = options.eval or ["emoji:fluent3d"]
            if options.method == "audioclip":
                options.data, options.seconds = [TONES], min(options.seconds, 1.0)
        options.steps, options.batch_size, options.workers = (
            options.steps or 8,
            min(options.batch_size, 64),
            min(options.workers, 1),
        )
        options.log_every = 2
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
        raise ValueError(
            "augment_on: published augmentation works picture by picture; want --augment crops on the device"
        )
    if options.micro_batch_size and options.method != "clip":
        raise ValueError(
            f"micro_batch_size: {options.method} has batch normalisation, which would see parts of the batch; want clip"
        )
    small = (options.arch or "").endswith(("-mini", "-tiny"))
    rate, decay = DEFAULTS[options.method]
    options.lr = options.lr or (SMALL_RATE if small and options.method != "audioclip" else rate)
    options.clip_norm = float(options.method != "audioclip") if options.clip_norm is None else options.clip_norm
    options.weight_decay = decay if options.weight_decay is None else options.weight_decay


def load_model(options: argparse.Namespace) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModel, AutoProcessor, set_seed

    import hf_clip_variants
    from hf_clip_variants.training.architectures import new_model

    set_seed(options.seed)
    fields = assignments("set", options.set)
    if not options.init:
        return new_model(
            options.method, options.arch, tokenizer=options.tokenizer, image_size=options.image_size, config=fields
        )
    import torch

    if options.method == "audioclip" and AutoConfig.from_pretrained(options.init).model_type == "clipv-clip_resnet":
        return hearing_clip(options.init, fields)
    cls = hf_clip_variants.SLIPForPreTraining if options.method == "slip" else AutoModel
    model = cls.from_pretrained(options.init, dtype=torch.float32, **fields)
    return model, AutoProcessor.from_pretrained(options.init)


def hearing_clip(source: str, fields: dict[str, Any]) -> tuple[Any, Any]:
    """AudioCLIP on a trained CLIP-ResNet, with a new sound tower."""
    import torch
    from transformers import AutoProcessor

    from hf_clip_variants import AudioCLIPFeatureExtractor, AudioCLIPModel, AudioCLIPProcessor

    model = AudioCLIPModel.from_pretrained(source, dtype=torch.float32, **fields)
    processor = AutoProcessor.from_pretrained(source)
    return model, AudioCLIPProcessor(processor.image_processor, processor.tokenizer, AudioCLIPFeatureExtractor())


def make_data(
    options: argparse.Namespace, model: Any, processor: Any, rank: int, world: int
) -> tuple[Any, Any, Any, list]:
    """Training data, collator, the views that are made on the device, and the sets that were held out of the data."""
    from hf_clip_variants.data.augmentation.batches import AUGMENTATIONS_OF_BATCHES
    from hf_clip_variants.data.augmentation.views import output_size
    from hf_clip_variants.data.pairs.batches import PairCollator, PairDataset, PairReader, PairStream, PairViews

    images = processor.image_processor
    size = output_size(images)[0]
    names = {"published": ("slip", "slip_views") if options.method == "slip" else ("clip", None), "icons": ("icons", "icons_views"), "none": ("none", "none")}  # fmt: skip
    first, further = names.get(options.augment, names["published"])
    augmentations = {"pixel_values": AUGMENTATIONS_OF_BATCHES[first]}
    if getattr(model.config, "ssl_scale", 0):
        augmentations |= dict.fromkeys(("pixel_values_aug1", "pixel_values_aug2"), AUGMENTATIONS_OF_BATCHES[further])
    views = PairViews(augmentations, size, images.image_mean, images.image_std, options.seed)
    on_device = options.augment_on == "device"
    reader = PairReader(
        options.seed, options.canvas or (size if options.augment in ("icons", "none") else round(size * 8 / 7)), templates_of(options),
        transform=published_views(options.method, size, images) if options.augment == "published" else None,
        audio=sound_reader(options, processor, train=True),
    )  # fmt: skip
    parts = [open_source(options, source, options.stream) for source in options.data]
    unused = set(options.text_columns or ()) - {column for part in parts for column in part.text_columns}
    if unused:
        raise ValueError(f"text_columns: no source has a column {sorted(unused)[0]!r}")
    held_out = []
    if options.hold_out:
        parts, held_out = hold_out(options, parts, reader, views, processor)
    if any(part.is_stream for part in parts):
        if len(parts) > 1 or options.distinct or options.mix:
            raise ValueError(
                "stream: a stream is one source, without --mix and --distinct; want one glob over all its shards"
            )
        data = PairStream(
            parts[0], reader, options.batch_size, rank=rank, world_size=world, shuffle_buffer=options.shuffle_buffer, on_error=options.on_error
        )  # fmt: skip
    else:
        data = PairDataset(parts, reader, options.batch_size * world, options.mix, options.distinct, options.on_error)
    tokenizer = processor.tokenizer
    collator = PairCollator(
        tokenizer, min(tokenizer.model_max_length, 77), None if on_device else views, options.compile
    )
    return data, collator, views if on_device else None, held_out


def hold_out(options: argparse.Namespace, parts: list, reader: Any, views: Any, processor: Any) -> tuple[list, list]:
    """The rows that are left for training, and two sets for retrieval: rows that were held out, and as many seen ones under new augmentation."""
    import torch

    from hf_clip_variants.data.augmentation.views import view_generator
    from hf_clip_variants.training.pretrain_trainer import RetrievalSet

    if len(parts) > 1 or parts[0].is_stream:
        raise ValueError("hold_out: rows can be held out of one source with an index; want one, without --stream")
    if not 0 < options.hold_out < 1:
        raise ValueError(f"hold_out: got {options.hold_out}; want a share between 0 and 1")
    count = len(parts[0].dataset)
    order = torch.randperm(count, generator=view_generator(0, 0, "held out")).tolist()  # the same rows for every seed
    size = max(1, round(options.hold_out * count))

    def part(rows: list[int]) -> Any:
        return replace(parts[0], dataset=parts[0].dataset.select(rows))

    unseen = RetrievalSet("unseen", part(order[:size]), sound_reader(options, processor, train=False))
    other = replace(reader, seed=options.seed + 1, templates=("{}",))
    seen = RetrievalSet("seen_augmented", part(order[size : 2 * size]), None, other, None if reader.transform else replace(views, seed=options.seed + 1))  # fmt: skip
    return [part(order[size:])], [unseen, seen]


def published_views(method: str, size: int, images: Any) -> Any:
    """(picture, generator) -> views, as the papers' code draws them from whole pictures."""
    if method == "slip":
        from hf_clip_variants.data.augmentation.two_views import TwoViews

        return TwoViews(size, images.image_mean, images.image_std).views
    from hf_clip_variants.data.pairs.batches import CropView

    return CropView(size, tuple(images.image_mean), tuple(images.image_std))


def sound_reader(options: argparse.Namespace, processor: Any, train: bool) -> Any:
    if options.method != "audioclip":
        return None
    from hf_clip_variants.data.augmentation.audio import AudioAugmentation
    from hf_clip_variants.data.pairs.batches import AudioReader

    extractor = processor.feature_extractor
    length = round(options.seconds * extractor.sampling_rate)
    return AudioReader(extractor, length, AudioAugmentation(length) if train else None)


def open_source(options: argparse.Namespace, source: str, stream: bool = False) -> Any:
    from hf_clip_variants.data.pairs.sources import open_pairs

    return open_pairs(
        tones() if source == TONES else source, streaming=stream, image_column=options.image_column, text_columns=options.text_columns,
        audio_column=options.audio_column, with_audio=options.method == "audioclip", any_text_column=True,
    )  # fmt: skip


def tones(count: int = 64) -> Any:
    """Made for the smoke test: embedded pictures, their names, and a tone of its own for each."""
    import io
    import wave

    import datasets
    import numpy as np

    from hf_clip_variants.data.images.emoji import load_emoji

    images = load_emoji("notov1").select(range(count))
    sounds = []
    for number in range(count):
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setparams((1, 2, 44_100, 0, "NONE", "none"))
            tone = 12_000 * np.sin(2 * np.pi * 110 * 2 ** (number / 12) * np.arange(22_050) / 44_100)
            file.writeframes(tone.astype("<i2").tobytes())
        sounds.append({"bytes": buffer.getvalue(), "path": f"{number}.wav"})
    pictures = [{"bytes": images.encoded_bytes(i), "path": None} for i in range(count)]
    features = datasets.Features({
        "image": datasets.Image(), "name": datasets.Value("string"),
        "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
    })  # fmt: skip
    names = [images.class_names[label] for label in images.labels]
    return datasets.Dataset.from_dict({"image": pictures, "name": names, "audio": sounds}, features=features)


def templates_of(options: argparse.Namespace) -> tuple[str, ...]:
    from hf_clip_variants.modeling.dual_encoders.prompts import resolve_templates

    return tuple(resolve_templates(options.templates)) if options.templates else ("{}",)


def make_steps(options: argparse.Namespace, data: Any) -> int:
    if options.steps:
        return options.steps
    if not hasattr(data, "epoch_steps"):
        raise ValueError("epochs: a stream does not tell its length; want --steps")
    return max(1, math.ceil(options.epochs * data.epoch_steps / options.accumulate))


def evaluation_sets(options: argparse.Namespace, processor: Any) -> list:
    from hf_clip_variants.data.images.sources import load_images
    from hf_clip_variants.training.pretrain_trainer import RetrievalSet, ZeroShotSet

    templates = options.eval_templates or options.templates
    sets: list = []
    for name, source in parse_test_data(options.eval).items():
        sets.append(ZeroShotSet(name, load_images(source, label_column=options.eval_label), templates))
    for name, source in parse_test_data(options.held_out).items():
        pairs = open_source(options, source)
        if pairs.is_stream:
            raise ValueError(f"held_out: {source} is a stream; want data that can be indexed")
        sets.append(RetrievalSet(name, pairs, sound_reader(options, processor, train=False)))
    names = [each.name for each in sets]
    if len(set(names)) < len(names):
        raise ValueError(f"held_out: names {names} are not distinct; want NAME=SOURCE")
    return sets


def settings_of(options: argparse.Namespace, world: int) -> dict[str, Any]:
    found = {name: value for name, value in vars(options).items() if name not in NO_SETTINGS}
    return json.loads(json.dumps({**found, "processes": world}, default=str))


def check_run(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """OUT/run.json of an earlier part of the run; ValueError if it is another run."""
    if path.is_file():
        run = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in settings if run["settings"].get(name) != settings[name]]
        if changed:
            name = changed[0]
            raise ValueError(
                f"out: {path.parent} holds a run with {name}={run['settings'].get(name)!r}, this one has {settings[name]!r}; want a new folder"
            )
        return run
    if path.parent.is_dir() and any(path.parent.iterdir()):
        raise ValueError(f"out: {path.parent} is not empty and holds no run.json; want a new folder or that of a run")
    return {"settings": settings}


def pretrain(options: argparse.Namespace, command: str) -> dict[str, Any]:
    import torch
    from transformers import TrainingArguments

    from hf_clip_variants.files.atomic_writes import last_complete_checkpoint
    from hf_clip_variants.training.exact_contrastive_loss import ExactContrastiveLoss
    from hf_clip_variants.training.lr_schedules import warmup_cosine
    from hf_clip_variants.training.pretrain_trainer import PretrainTrainer

    complete(options)
    settings = settings_of(options, int(os.environ.get("WORLD_SIZE", 1)))
    run = check_run(options.out / "run.json", settings)
    if "metrics" in run:
        print(f"{options.out} is finished already", file=sys.stderr)
        return run
    model, processor = load_model(options)
    further = assignments("trainer", options.trainer)
    arguments = {
        "output_dir": str(options.out), "per_device_train_batch_size": options.batch_size, "per_device_eval_batch_size": options.eval_batch_size,
        "gradient_accumulation_steps": options.accumulate, "learning_rate": options.lr, "weight_decay": options.weight_decay,
        "adam_beta2": 0.98, "adam_epsilon": 1e-6, "max_grad_norm": options.clip_norm, "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": options.min_lr}, "bf16": options.bf16, "torch_compile": options.compile,
        "activation_checkpointing": options.checkpointing, "seed": options.seed, "dataloader_num_workers": options.workers,
        "remove_unused_columns": False, "report_to": options.report_to, "logging_steps": options.log_every, "save_total_limit": 1,
        "accelerator_config": {"dispatch_batches": False}, "ddp_find_unused_parameters": False, "disable_tqdm": True, "max_steps": 1,
        "use_cpu": not torch.accelerator.is_available(),
    }  # fmt: skip
    place = TrainingArguments(
        **{**arguments, **further}
    )  # initialises the process group: ranks are known from here on
    data, collator, views, held_out = make_data(options, model, processor, place.process_index, place.world_size)
    steps = make_steps(options, data)
    sets = evaluation_sets(options, processor) + held_out
    arguments |= {
        "max_steps": steps, "warmup_steps": min(2000, steps // 10) if options.warmup is None else options.warmup,
        "save_strategy": "steps", "save_steps": options.save_every or max(1, steps // 10),
        "eval_strategy": "steps" if sets and options.eval_every else "no", "eval_steps": options.eval_every,
    }  # fmt: skip
    own = type(model).__module__.startswith("hf_clip_variants.")  # exact over processes by themselves
    schedule = None
    if options.schedule == "slip":
        schedule = partial(warmup_cosine, peak=options.lr, num_steps=steps, warmup_steps=arguments["warmup_steps"])
    trainer = PretrainTrainer(
        model, TrainingArguments(**{**arguments, **further}), collator, data, processing_class=processor, eval_dataset=sets,
        views_on_device=views, micro_batch_size=options.micro_batch_size, schedule=schedule,
        callbacks=[ExactContrastiveLoss()] if not own and not options.micro_batch_size else [],
    )  # fmt: skip
    first = trainer.is_world_process_zero()
    if first:
        write_json(options.out / "run.json", {**run, "command": command})
        parameters = sum(p.numel() for p in model.parameters())
        print(
            f"{type(model).__name__}, {parameters / 1e6:.1f} M parameters; {steps} steps of {options.batch_size} x {place.world_size} pairs on "
            f"{place.device}",
            file=sys.stderr,
        )
    started = time.monotonic()
    found = trainer.train(resume_from_checkpoint=last_complete_checkpoint(options.out) is not None)
    seconds = time.monotonic() - started
    metrics = trainer.evaluate() if sets else {}
    save(trainer, options)
    if first:
        run |= {
            "command": command, "fingerprint": digest(settings), "steps": steps, "seconds": round(seconds, 1),
            "pairs_a_second": round(steps * options.accumulate * options.batch_size * place.world_size / seconds, 1),
            "device": str(place.device), "threads": torch.get_num_threads(), "torch": torch.__version__, "loss": found.training_loss,
            "log": trainer.state.log_history, "metrics": metrics,
        }  # fmt: skip
        write_json(options.out / "run.json", run)
        print(report(metrics, run))
    return run


def report(metrics: dict[str, float], run: dict[str, Any]) -> str:
    lines = [
        f"{name.removeprefix('eval_'):48} {value if 'rank' in name else 100 * value:8.1f}"
        for name, value in metrics.items()
    ]
    return "\n".join(
        [*lines, f"{run['seconds']:.0f} s, {run['pairs_a_second']:.0f} pairs a second, mean loss {run['loss']:.3f}"]
    )


def save(trainer: Any, options: argparse.Namespace) -> None:
    """OUT/model, as users load it; for SLIP that is without heads, and OUT/pretraining has everything that training needs."""
    if options.method != "slip":
        return trainer.save_trained(options.out / "model")
    import torch

    from hf_clip_variants import SLIPModel
    from hf_clip_variants.files.atomic_writes import staged_folder

    trainer.save_trained(options.out / "pretraining")
    if trainer.is_world_process_zero():
        with staged_folder(options.out / "model") as stage:
            SLIPModel.from_pretrained(options.out / "pretraining", dtype=torch.float32).save_pretrained(stage)
            trainer.processing_class.save_pretrained(stage)


def main(arguments: list[str] | None = None) -> int:
    prepare_libraries()
    options = parser().parse_args(arguments)
    command = shlex.join(["python", "scripts/pretrain.py", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        pretrain(options, command)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
