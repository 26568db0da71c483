"""`PretrainTrainer`: contrastive training of any dual encoder on endless pairs, with evaluation meanwhile."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers.trainer import TRAINER_STATE_NAME

from ..data.pairs.batches import PairDataset, PairLoader, PairStream, PairViews, PositionSampler
from ..data.workers import say_nothing_of_lost_connections
from ..evaluation.retrieval import RetrievalSet, retrieval_of_pairs
from ..evaluation.zero_shot import ZeroShotSet, tokenize_prompts, zero_shot_accuracy
from ..files.atomic_writes import last_complete_checkpoint, staged_folder
from ..files.json_files import write_json
from ..modeling.losses.gradient_cache import backward_in_chunks
from .atomic_trainer import AtomicTrainer
from .callbacks import PretrainingCallback
from .parameter_groups import weight_decay_groups


LOSS_FILE = "loss.json"  # of a checkpoint: the sum of all losses until then, and what was not logged yet
_ENCODERS = ("get_text_features", "get_image_features", "get_audio_features")


def _sum_type(device: torch.device) -> torch.dtype:
    """Of sums of losses: the one in a checkpoint and the one that goes on must have the same digits."""
    return torch.float32 if device.type == "mps" else torch.float64


class PretrainTrainer(AtomicTrainer):
    r"""
    `Trainer` for contrastive pre-training.

    Batches come from a [`PairDataset`] or a [`PairStream`], endless, so `max_steps` is needed; no process ends before
    another. A resumed run sees the batches that it would have seen. Decay, and what follows a step of the optimiser,
    are those of [`weight_decay_groups`] and [`PretrainingCallback`]. The parts of a loss that the model reports
    (`clip_loss`, `ssl_loss`, …) are logged beside it. Evaluation is zero-shot classification and retrieval.

    Args:
        views_on_device ([`PairViews`], *optional*): augments on the device what the collator did not.
        micro_batch_size (`int`, *optional*): pairs encoded at once; the loss is still that of the whole batch
            (GradCache, see `modeling/losses/gradient_cache.py`). Not together with gradient accumulation.
        eval_dataset: [`ZeroShotSet`]s and [`RetrievalSet`]s.
        schedule (*optional*): step -> share of the learning rate, instead of `lr_scheduler_type`; see
            `lr_schedules.py`.
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
                f"micro_batch_size: got {micro_batch_size} with gradient_accumulation_steps="
                f"{self.args.gradient_accumulation_steps}; want 1, the batch is cut anyway"
            )
        self.views_on_device, self.micro_batch_size = views_on_device, micro_batch_size
        self.schedule = schedule
        self._first_step = 0
        self._losses: dict[str, Any] = {"sum": 0.0, "steps": 0}  # of all steps, before a resume, too
        self._parts: dict[str, list[torch.Tensor]] = {}
        self._steps_an_epoch = 1
        # A model with a scale for each pair of modalities clamps them in its forward pass.
        if not hasattr(self.model, "logit_scale_at"):
            self.add_callback(PretrainingCallback())
        for each in eval_dataset or ():
            if isinstance(each, ZeroShotSet):  # bad templates and class names are an error now, not after the training
                tokenize_prompts(self.processing_class, each.images.class_names, each.templates)
        if self.is_fsdp_enabled:
            _make_shardable(self.model, self.accelerator.state.fsdp_plugin)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """`AtomicTrainer.train`; the first batch is the one after the checkpoint's last."""
        checkpoint = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = last_complete_checkpoint(self.args.output_dir)
        # The place in the data follows from the number of steps; nothing else is needed to go on with the next batch.
        self._first_step = 0
        self._losses = {"sum": 0.0, "steps": 0}
        if checkpoint:
            kept = Path(checkpoint) / LOSS_FILE
            if kept.is_file():  # earlier versions did not write it: then the mean is that of the steps to come
                self._losses = json.loads(kept.read_text(encoding="utf-8"))
            with open(os.path.join(checkpoint, TRAINER_STATE_NAME), encoding="utf-8") as file:
                self._first_step = int(json.load(file)["global_step"])
        self.args.ignore_data_skip = True  # the loader begins at the right place by itself
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_train_dataloader(self) -> PairLoader:
        args, data = self.args, self.train_dataset
        # Batches of each process before the one that comes next. Indexed data begins there at once; a stream reads on
        # to it, without decoding what it passes.
        first = self._first_step * args.gradient_accumulation_steps
        options = {
            "collate_fn": self.data_collator,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory and args.device.type == "cuda",
            "prefetch_factor": args.dataloader_prefetch_factor,
            # The libraries' threads do not survive a fork.
            "multiprocessing_context": "forkserver" if args.dataloader_num_workers else None,
            "worker_init_fn": say_nothing_of_lost_connections,
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
        if "images" in inputs:  # the collator left augmentation to the device
            inputs = dict(inputs)
            inputs |= self.views_on_device(inputs.pop("images"), inputs.pop("keys"))
        return inputs

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> torch.Tensor:
        loss = self._training_step(model, inputs, num_items_in_batch)
        # Nothing here waits for the device. As in Trainer's own logs, what is not finite counts as the mean so far.
        value = loss.detach().to(_sum_type(loss.device))
        so_far = torch.as_tensor(self._losses["sum"], device=value.device, dtype=value.dtype)
        self._losses["sum"] = so_far + torch.where(value.isfinite(), value, so_far / max(1, self._steps_done()))
        return loss

    def mean_loss(self) -> float:
        """Over all steps of the run, also those before it was interrupted; the mean over processes."""
        return self._total_loss() / max(1, self._steps_done())

    def _steps_done(self) -> int:
        return self._losses["steps"] + self.state.global_step - self._first_step

    def _total_loss(self) -> float:
        device = self.args.device  # in float64, as the sum in `training_step`
        total = torch.as_tensor(self._losses["sum"], device=device, dtype=_sum_type(device))
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total, "mean")
        return total.item()

    def _run_epoch(self, *args, num_update_steps_per_epoch: int, **kwargs):
        """Goes on with a log entry that the checkpoint was in the middle of; `Trainer` would begin a new one."""
        self._steps_an_epoch = num_update_steps_per_epoch
        if "since_log" in self._losses:
            device = self.args.device
            self._tr_loss += self._losses.pop("since_log")
            self._globalstep_last_logged = self._losses.pop("last_logged")
            parts = self._losses.pop("parts")
            self._parts = {name: list(torch.tensor(values, device=device)) for name, values in parts.items()}
        super()._run_epoch(*args, num_update_steps_per_epoch=num_update_steps_per_epoch, **kwargs)

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        # `Trainer` counts an epoch anew after a resume, because its data begins at the next batch.
        self.state.epoch = self.state.global_step / self._steps_an_epoch
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _finish(self, staged: Path, checkpoint: Path) -> None:
        total, since_log = self._total_loss(), self._tr_loss
        if self.args.world_size > 1:
            since_log = self.accelerator.reduce(since_log, "mean")
        if self.args.should_save:
            found = {"sum": total, "steps": self._steps_done(), "since_log": since_log.item()}
            parts = {name: torch.stack(values) for name, values in self._parts.items()}
            # JSON has no NaN; such an entry is lost anyway.
            found["parts"] = {name: values.tolist() for name, values in parts.items() if values.isfinite().all()}
            write_json(staged / LOSS_FILE, found | {"last_logged": self._globalstep_last_logged})
        super()._finish(staged, checkpoint)

    def _training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> torch.Tensor:
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
        if "train_loss" in logs:
            logs = {**logs, "train_loss": self.mean_loss()}
        super().log(logs, *args, **kwargs)

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Metrics of each set, `eval_<set>_<metric>`; every process takes its part of the images."""
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
                place = {"rank": self.args.process_index, "world_size": self.args.world_size}
                found = zero_shot_accuracy(
                    model,
                    self.processing_class,
                    each.images,
                    each.templates,
                    self.args.eval_batch_size,
                    summed=self._summed,
                    **place,
                )
            else:
                found = retrieval_of_pairs(model, self.processing_class, each, self.args.eval_batch_size)
            metrics |= {f"{metric_key_prefix}_{each.name}_{name}": value for name, value in found.items()}
        model.train(was_training)
        self.log(dict(metrics))  # which adds the epoch
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_trained(self, folder: str | os.PathLike) -> None:
        """The model and its processor as users load them, all at once; each process calls it, the first writes."""
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


__all__ = ["PretrainTrainer"]
