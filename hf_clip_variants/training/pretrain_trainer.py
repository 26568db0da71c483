"""`PretrainTrainer`: contrastive training of any dual encoder on endless pairs, and what is measured meanwhile."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers.trainer import TRAINER_STATE_NAME

from ..data.images.image_set import ImageSet
from ..data.pairs.batches import PairDataset, PairLoader, PairReader, PairStream, PairViews, PositionSampler
from ..data.pairs.sources import Pairs
from ..files.atomic_writes import last_complete_checkpoint, staged_folder
from ..metrics.retrieval import retrieval
from ..modeling.dual_encoders.backbones import unit_norm
from ..modeling.dual_encoders.prompts import resolve_templates
from ..modeling.losses.gradient_cache import backward_in_chunks
from .atomic_trainer import AtomicTrainer
from .callbacks import PretrainingCallback
from .parameter_groups import weight_decay_groups


_ENCODERS = ("get_text_features", "get_image_features", "get_audio_features")


@dataclass(frozen=True)
class ZeroShotSet:
    """Labelled pictures to classify by their class names during training."""

    name: str
    images: ImageSet
    templates: str | Sequence[str] | None = None


@dataclass(frozen=True)
class RetrievalSet:
    """Pairs to find by each other; row i of each modality belongs to row i of the others.

    Attributes:
        sound (*optional*): file content or path -> waveform (channels, samples).
        reader ([`PairReader`]), views ([`PairViews`], *optional*): look at augmented pictures and sounds, by draws of the reader's own; texts
            stay as they are.
    """

    name: str
    pairs: Pairs
    sound: Any = None
    reader: PairReader | None = None
    views: PairViews | None = None

    def batch(self, start: int, size: int) -> tuple[list[str], Any, torch.Tensor | None]:
        """Texts, pictures (PIL images, or normalised pixels where they are augmented) and waveforms of some rows."""
        numbers = range(start, min(start + size, len(self.pairs.dataset)))
        rows = [self.pairs.dataset[i] for i in numbers]
        texts = [self.pairs.texts(row)[0][0] for row in rows]
        if self.reader is None:
            sounds = None if self.sound is None else torch.stack([self.sound(self.pairs.sound(row)) for row in rows])
            return texts, [self.pairs.image(row) for row in rows], sounds
        samples = [self.reader(self.pairs, row, f"{self.name} {i}") for i, row in zip(numbers, rows, strict=True)]
        sounds = torch.stack([s["sound"] for s in samples]) if self.reader.sound is not None else None
        if self.views is None:
            return texts, torch.stack([s["views"]["pixel_values"] for s in samples]), sounds
        views = self.views(torch.stack([s["canvas"] for s in samples]), [s["key"] for s in samples])
        return texts, views["pixel_values"], sounds


class PretrainTrainer(AtomicTrainer):
    r"""
    `Trainer` for contrastive pre-training.

    Batches come from a [`PairDataset`] or a [`PairStream`], endless, so `max_steps` is needed; no process ends before another. A resumed run sees the
    batches that it would have seen. Decay, and what follows a step of the optimiser, are those of [`weight_decay_groups`] and
    [`PretrainingCallback`]. The parts of a loss that the model reports (`clip_loss`, `ssl_loss`, …) are logged beside it. Evaluation is zero-shot classification and
    retrieval.

    Args:
        views_on_device ([`PairViews`], *optional*): augments on the device what the collator left as canvases.
        micro_batch_size (`int`, *optional*): pairs encoded at once; the loss is still that of the whole batch (GradCache, see
            `modeling/losses/gradient_cache.py`). Not together with gradient accumulation.
        eval_dataset: [`ZeroShotSet`]s and [`RetrievalSet`]s.
        schedule (*optional*): step -> share of the learning rate, instead of `lr_scheduler_type`; see `learning_rate.py`.
        **kwargs: `AtomicTrainer`'s; `processing_class` is the processor that evaluation takes.
    """

    def __init__(
        self,
        *args,
        views_on_device: PairViews | None = None,
        micro_batch_size: int | None = None,
        eval_dataset: Sequence[ZeroShotSet | RetrievalSet] | None = None,
        schedule: Callable[[int], float] | None = None,
        **kwargs,
    ):
        super().__init__(*args, eval_dataset=list(eval_dataset) if eval_dataset else None, **kwargs)
        if micro_batch_size is not None and self.args.gradient_accumulation_steps > 1:
            raise ValueError(
                f"micro_batch_size: got {micro_batch_size} with gradient_accumulation_steps={self.args.gradient_accumulation_steps}; want 1, "
                "the batch is cut anyway"
            )
        self.views_on_device, self.micro_batch_size = views_on_device, micro_batch_size
        self.schedule = schedule
        self._first_step = 0
        self._parts: dict[str, list[torch.Tensor]] = {}
        if not hasattr(
            self.model, "logit_scale_at"
        ):  # AudioCLIP, which has three scales, clamps them in its forward pass
            self.add_callback(PretrainingCallback())
        if self.is_fsdp_enabled:
            _make_shardable(self.model, self.accelerator.state.fsdp_plugin)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """`AtomicTrainer.train`; the first batch is the one after the checkpoint's last."""
        checkpoint = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = last_complete_checkpoint(self.args.output_dir)
        self._first_step = 0
        if checkpoint:
            with open(os.path.join(checkpoint, TRAINER_STATE_NAME), encoding="utf-8") as file:
                self._first_step = int(json.load(file)["global_step"])
        self.args.ignore_data_skip = True  # the loader begins at the right place by itself
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_train_dataloader(self) -> PairLoader:
        args, data = self.args, self.train_dataset
        first = self._first_step * args.gradient_accumulation_steps
        options = {
            "collate_fn": self.data_collator,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory and args.device.type == "cuda",
            "prefetch_factor": args.dataloader_prefetch_factor,
            # The libraries' threads do not survive a fork.
            "multiprocessing_context": "forkserver" if args.dataloader_num_workers else None,
        }
        if isinstance(data, PairStream):
            data.first_batch = first
            options["num_workers"] = min(args.dataloader_num_workers, data.max_workers)
            if not options["num_workers"]:
                options["multiprocessing_context"] = options["prefetch_factor"] = None
            return PairLoader(data, batch_size=self._train_batch_size, first_batch=first, **options)
        if not isinstance(data, PairDataset):
            raise ValueError(f"train_dataset: got {type(data).__name__}; want a PairDataset or a PairStream")
        sampler = PositionSampler(self._train_batch_size, args.process_index, args.world_size, first)
        return PairLoader(data, batch_sampler=sampler, **options)

    def get_decay_parameter_names(self, model) -> list[str]:
        decayed = {
            id(p) for group in weight_decay_groups(model, 1.0) if group["weight_decay"] for p in group["params"]
        }
        return [name for name, parameter in model.named_parameters() if id(parameter) in decayed]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer = None):
        if self.schedule is not None and self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self.schedule)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if "canvases" in inputs:
            inputs = dict(inputs)
            inputs |= self.views_on_device(inputs.pop("canvases"), inputs.pop("keys"))
        return inputs

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> torch.Tensor:
        if self.micro_batch_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            return backward_in_chunks(model, inputs, self.micro_batch_size, backward=self.accelerator.backward)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs):
        outputs = model(**inputs)
        for name, value in outputs.items():
            if (
                name != "loss"
                and name.endswith(("loss", "accuracy"))
                and isinstance(value, torch.Tensor)
                and value.dim() == 0
            ):
                self._parts.setdefault(name, []).append(value.detach())
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs = {**logs, **{name: torch.stack(values).mean().item() for name, values in self._parts.items()}}
            self._parts.clear()
        super().log(logs, *args, **kwargs)

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Metrics of each set, `eval_<set>_<metric>`; every process takes its part of the pictures."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        if self.is_fsdp_enabled:
            for name in _ENCODERS:  # FSDP gathers the weights for `forward` alone
                if hasattr(model, name):
                    register_fsdp_forward_method(model, name)
        metrics = {}
        for each in eval_dataset or self.eval_dataset:
            if isinstance(each, ZeroShotSet):
                found = zero_shot_accuracy(
                    model, self.processing_class, each.images, each.templates, self.args.eval_batch_size, self._summed
                )
            else:
                found = retrieval_of_pairs(model, self.processing_class, each, self.args.eval_batch_size)
            metrics |= {f"{metric_key_prefix}_{each.name}_{name}": value for name, value in found.items()}
        model.train(was_training)
        self.log(dict(metrics))  # which adds the epoch
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_trained(self, folder: str | os.PathLike) -> None:
        """The model and its processor as users load them, all at once; called by every process, written by the first."""
        model = self.accelerator.unwrap_model(self.model)
        state = self.accelerator.get_state_dict(self.model_wrapped) if self.is_fsdp_enabled else None
        if self.is_world_process_zero():
            with staged_folder(folder) as stage:
                model.save_pretrained(stage, **({} if state is None else {"state_dict": state}))
                self.processing_class.save_pretrained(stage)

    def _summed(self, counts: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(counts.to(self.args.device), "sum")


def _make_shardable(model: nn.Module, plugin: Any) -> None:
    """What Accelerate's FSDP2 asks of a model and dual encoders do not have."""
    # A parameter without dimensions cannot be sharded. Its gradient is the same on every process.
    plugin.ignored_modules = [nn.ParameterList(p for p in model.parameters() if p.dim() == 0)]
    try:
        model.get_input_embeddings()
    except NotImplementedError:  # CLIPModel's
        model.get_input_embeddings = model.text_model.get_input_embeddings


@torch.no_grad()
def zero_shot_accuracy(
    model: nn.Module,
    processor: Any,
    images: ImageSet,
    templates: str | Sequence[str] | None = None,
    batch_size: int = 64,
    summed=None,
) -> dict[str, float]:
    """Top-1 and top-5 of classification by class names: features normalised, averaged over the templates, normalised again.

    Args:
        model: anything with `get_text_features` and `get_image_features`, in eval mode.
        processor: a processor with image processor and tokenizer.
        templates: as in `resolve_templates`.
        summed: counts of this process -> counts of all; the pictures are divided over the processes if it is given.
    """
    device = next(model.parameters()).device
    names, templates = list(images.class_names), resolve_templates(templates)
    prompts = [template.replace("{}", name) for name in names for template in templates]
    text = torch.cat([
        _text_features(model, processor, prompts[i : i + batch_size], device) for i in range(0, len(prompts), batch_size)
    ])  # fmt: skip
    classes = unit_norm(unit_norm(text).view(len(names), len(templates), -1).mean(1))
    rank, world = _place() if summed else (0, 1)
    counts = torch.zeros(3, device=device)
    k = min(5, len(names))
    # As many batches on each process, since a sharded tower is a collective operation: some rows come twice and count once.
    rows = [min(i, len(images) - 1) for i in range(rank, -(-len(images) // world) * world, world)]
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        labels = torch.tensor([int(images.labels[i]) for i in batch], device=device)
        counted = torch.tensor([rank + world * (start + j) < len(images) for j in range(len(batch))], device=device)
        features = unit_norm(_image_features(model, processor, [images.image(i) for i in batch], device))
        hits = ((features @ classes.T).topk(k, dim=1).indices == labels[:, None]) & counted[:, None]
        counts += torch.stack([hits[:, 0].sum(), hits.any(1).sum(), counted.sum()])
    top1, top5, number = (summed(counts) if summed else counts).tolist()
    return {"top1": top1 / number, "top5": top5 / number}


@torch.no_grad()
def retrieval_of_pairs(
    model: nn.Module, processor: Any, held_out: RetrievalSet, batch_size: int = 64
) -> dict[str, float]:
    """Recall at 1, 5, 10 and median rank in every direction between the modalities of held-out pairs.

    Pairs with the same text are right answers to and from it: nothing tells them apart.
    """
    device = next(model.parameters()).device
    found, texts = {}, []
    for start in range(0, len(held_out.pairs.dataset), batch_size):
        words, images, sounds = held_out.batch(start, batch_size)
        texts += words
        parts = {"text": _text_features(model, processor, words, device)}
        parts["image"] = _image_features(model, processor, images, device)
        if sounds is not None:
            parts["audio"] = model.get_audio_features(sounds.to(device)).pooler_output.float()
        for name, features in parts.items():
            found.setdefault(name, []).append(unit_norm(features))
    features = {name: torch.cat(values) for name, values in found.items()}
    same = torch.tensor([[a == b for b in texts] for a in texts], device=device)
    return {
        f"{query}_to_{gallery}_{name}": value
        for query in features
        for gallery in features
        if query != gallery
        for name, value in retrieval(
            features[query] @ features[gallery].T, correct=same if "text" in (query, gallery) else None
        ).items()
    }


def _text_features(model: nn.Module, processor: Any, texts: list[str], device: torch.device) -> torch.Tensor:
    tokens = processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
    return model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output.float()


def _image_features(
    model: nn.Module, processor: Any, images: list | torch.Tensor, device: torch.device
) -> torch.Tensor:
    """`images`: PIL images, or pixels that are normalised already."""
    is_ready = isinstance(images, torch.Tensor)
    pixels = images if is_ready else processor.image_processor(images, return_tensors="pt")["pixel_values"]
    return model.get_image_features(pixels.to(device, next(model.parameters()).dtype)).pooler_output.float()


def _place() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


__all__ = ["PretrainTrainer", "RetrievalSet", "ZeroShotSet", "retrieval_of_pairs", "zero_shot_accuracy"]
