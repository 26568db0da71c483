"""Trains a model that finds objects by texts on boxes, from a saved model, on one CPU or many GPUs.

    python scripts/finetune_detection.py --model detector --data train.json --eval-data val.json --epochs 12 --out run
    torchrun --nproc-per-node 4 scripts/finetune_detection.py --bf16 ...

Models: any that `AutoModelForZeroShotObjectDetection` loads from this package, whose processor reads annotations as
COCO has them. Data: COCO's json, or what `datasets` reads: a Parquet file, a saved folder, a Hub id, with columns
`image` and `objects` (`bbox` as x, y, width, height, and `category`).

--grounding trains on captions whose phrases have boxes, beside --data or instead of it: COCO's json with a "caption"
of each image and "tokens_positive" of each object, as scripts/pseudo_label_detection.py writes it.

--novel names classes without boxes in training; the evaluation then tells base and novel classes apart. After an
interruption, the same command goes on from the last complete checkpoint.

OUT/checkpoint-*  to continue from       OUT/model         the trained model with its processor, for from_pretrained
                                         (--tuning prompt: the adapter, with which from_pretrained brings its base)
OUT/run.json      settings, metrics
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads of one library would starve those of another

import argparse
import json
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from hf_clip_variants.commands.arguments import parse_overrides
from hf_clip_variants.commands.script_runs import run_script
from hf_clip_variants.files.json_files import write_json


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--out", type=Path, required=True, help="folder of the run; the same one to continue after an interruption")
    add("--model", required=True, help="a saved detector, folder or Hub id")
    add("--data", help="training images with boxes")
    add("--images", help="folder of the images of COCO's json; default: its own, or images/ in or beside it")
    add("--split", help="of a data set; default: train")
    add("--grounding", metavar="JSON", help="training images with captions whose phrases have boxes")
    add("--grounding-images", help="as --images")
    add("--eval-data", help="the same for the evaluation; default: none")
    add("--eval-images", help="as --images")
    add("--eval-split", help="as --split")
    add(
        "--eval-grounding",
        metavar="JSON",
        help="test images with captions, as --grounding: at the end, R@1, R@5 and R@10 of their phrases",
    )
    add("--eval-grounding-images", help="as --images")
    add("--novel", help="classes without boxes in training, with commas between them, or a .json file of a list")
    add(
        "--other-names",
        type=int,
        metavar="N",
        help="each image's prompt has the names of its objects, and up to N others that are drawn anew each time; "
        "needed where all names do not fit into one prompt; default: all names in each prompt",
    )
    add("--masks", action="store_true", help="train masks, too; every object then needs a segmentation")
    add(
        "--tuning",
        default="full",
        choices=("full", "linear_probe", "prompt"),
        help="what is trained: everything, the last layers, or vectors that are added to the prompt's tokens (then "
        "OUT/model is a PEFT adapter); default: %(default)s",
    )
    add("--epochs", type=float, default=12.0)
    add("--steps", type=int, help="optimiser steps instead of --epochs")
    add("--batch-size", type=int, default=2, help="images of a process in one pass; default: %(default)s")
    add("--accumulate", type=int, default=1, help="passes of a step; default: %(default)s")
    add("--lr", type=float, default=1e-4)
    add("--weight-decay", type=float, default=1e-4)
    add("--warmup", type=int, default=0, help="steps")
    add("--schedule", default="cosine", help="a schedule of transformers; default: %(default)s")
    add("--clip-norm", type=float, default=5.0)
    add("--freeze-batch-norm", action="store_true", help="batch norm keeps its statistics; for small batches")
    add("--no-flip", action="store_true", help="do not mirror half of the images")
    add("--bf16", action="store_true")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=0)
    add("--save-every", type=int, help="steps; default: a tenth of the training")
    add("--eval-every", type=int, help="steps; default: at the end only")
    add("--log-every", type=int, default=10)
    more = {"action": "append", "default": [], "metavar": "NAME=VALUE"}
    add("--set", **more, help="a field of the model's configuration; may be repeated")
    add("--trainer", **more, help="an argument of TrainingArguments; may be repeated")
    return made


def class_list(text: str | None) -> list[str]:
    if text is None:
        return []
    if text.endswith(".json"):
        return list(json.loads(Path(text).read_text(encoding="utf-8")))
    return [name.strip() for name in text.split(",") if name.strip()]


def training_arguments(options: argparse.Namespace, steps: int, evaluates: bool) -> Any:
    import torch
    from transformers import TrainingArguments

    arguments = {
        "output_dir": str(options.out),
        "max_steps": steps,
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.accumulate,
        "learning_rate": options.lr,
        "lr_scheduler_type": options.schedule,
        "warmup_steps": options.warmup,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.clip_norm,
        "bf16": options.bf16,
        "use_cpu": not torch.accelerator.is_available(),
        "seed": options.seed,
        "dataloader_num_workers": options.workers,
        "remove_unused_columns": False,
        "accelerator_config": {"dispatch_batches": False},
        "ddp_find_unused_parameters": True,  # images without objects train no mask
        "report_to": ["none"],
        "logging_steps": options.log_every,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": options.save_every or max(1, steps // 10),
        "save_total_limit": 1,
        "eval_strategy": "steps" if evaluates and options.eval_every else "no",
        "eval_steps": options.eval_every,
    }
    return TrainingArguments(**arguments | parse_overrides(options.trainer, "trainer", "NAME=VALUE"))


def finetune(options: argparse.Namespace, command: str) -> dict[str, Any]:
    from transformers import AutoModelForZeroShotObjectDetection, set_seed

    from hf_clip_variants.data.crops.detection_rows import DetectionRows
    from hf_clip_variants.data.detection_sets import DetectionSet, join_sets, load_detection_set, load_grounding_set
    from hf_clip_variants.evaluation.grounding_recall import measure_grounding_recall
    from hf_clip_variants.evaluation.saved_folders import load_saved_processor
    from hf_clip_variants.files.atomic_writes import last_complete_checkpoint
    from hf_clip_variants.training.detection_trainer import DetectionTrainer, TextDetectionCollator
    from hf_clip_variants.training.detection_tuning import apply_tuning

    novel = class_list(options.novel)
    if options.data is None and options.grounding is None:
        raise ValueError("data: got none; want --data, --grounding or both")
    grounding = None
    if options.grounding is not None:
        grounding = load_grounding_set(options.grounding, options.grounding_images)
    data = DetectionSet([], [], [])
    if options.data is not None:
        data = load_detection_set(options.data, options.images, options.split)
    test = None
    if options.eval_data is not None:
        test = load_detection_set(options.eval_data, options.eval_images, options.eval_split)
        names = list(dict.fromkeys([*data.class_names, *test.class_names]))
        data, test = data.with_classes(names), test.with_classes(names)
    phrases = None
    if options.eval_grounding is not None:
        phrases = load_grounding_set(options.eval_grounding, options.eval_grounding_images)
    groups = data.groups(novel)
    data = data.without(novel)
    if options.data is not None and not any(data.annotations):
        raise ValueError(f"data: {options.data} has no box of a class that is trained on")

    set_seed(options.seed)
    processor = load_saved_processor(options.model)
    fields = parse_overrides(options.set, "set", "NAME=VALUE")
    model = AutoModelForZeroShotObjectDetection.from_pretrained(options.model, **fields)
    texts = None
    if hasattr(model, "set_labels"):
        for name, given in (("grounding", grounding), ("eval_grounding", phrases)):
            if given is not None:
                raise ValueError(f"{name}: {getattr(options, name)}, but {type(model).__name__} reads no captions")
        model.set_labels(data.class_names, processor)
        if hasattr(model.config, "base_labels"):
            model.config.base_labels = [name for name in data.class_names if name not in novel] if novel else None
    else:
        texts = data.class_names
    if options.tuning == "prompt" and (options.other_names is not None or grounding is not None):
        raise ValueError("tuning: prompt, whose prompt is always the same; want no --other-names and no --grounding")
    collator = TextDetectionCollator(processor, masks=options.masks, labels=texts, others=options.other_names)
    if options.data is not None and options.other_names is None and options.tuning != "prompt":
        collator.check_one_prompt()
    if grounding is not None:
        collator.check_captions(grounding.captions)
        data = join_sets(data, grounding)
    model = apply_tuning(model, options.tuning, collator.texts, data.class_names)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    step_images = options.batch_size * options.accumulate * processes
    steps = options.steps or max(1, math.ceil(options.epochs * len(data) / step_images))
    trainer = DetectionTrainer(
        model,
        training_arguments(options, steps, test is not None),
        collator,
        DetectionRows(
            data.images, data.annotations, flip=not options.no_flip, seed=options.seed, captions=data.captions
        ),
        eval_dataset=test,
        groups=groups,
        freeze_batch_norm=options.freeze_batch_norm,
        processing_class=processor,
    )
    is_first = trainer.is_world_process_zero()
    if is_first:
        options.out.mkdir(parents=True, exist_ok=True)
        boxes = sum(map(len, data.annotations))
        trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
        print(
            f"{type(model).__name__} ({trained:,} trained weights): {boxes} boxes in {len(data)} images, {steps} "
            f"steps of {step_images} images on {trainer.args.device}",
            file=sys.stderr,
        )
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(options.out) is not None)
    seconds = time.monotonic() - started
    metrics = trainer.evaluate() if test is not None else {}
    if phrases is not None and is_first:
        metrics |= measure_grounding_recall(trainer.model.eval(), processor, phrases)
    trainer.save_model(str(options.out / "model"))
    run = {"command": command, "steps": steps, "seconds": round(seconds, 1)}
    run |= {"class_names": data.class_names, "novel": novel}
    run |= {"metrics": _known(metrics), "log": [_known(row) for row in trainer.state.log_history]}
    if is_first:
        write_json(options.out / "run.json", run)
        for name, value in run["metrics"].items():
            print(f"{name.removeprefix('eval_')}: {'no object' if value is None else f'{100 * value:.1f}'}")
    return run


def _known(numbers: dict[str, Any]) -> dict[str, Any]:
    """Without NaN, which JSON does not have: of a class without any object there is no precision."""
    return {name: None if isinstance(n, float) and math.isnan(n) else n for name, n in numbers.items()}


def main(arguments: list[str] | None = None) -> int:
    made = parser()
    options = made.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "scripts/finetune_detection.py", *given])
    goes_on = f"The same command goes on from the last checkpoint in {options.out}."
    return run_script(made, lambda: finetune(options, command), goes_on)


if __name__ == "__main__":
    sys.exit(main())
