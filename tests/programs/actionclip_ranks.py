"""Loss, gradients and metrics of a tiny ActionCLIP over one or two processes: python actionclip_ranks.py FOLDER.

Run by torchrun.

Writes FOLDER/<rank + 1>of<processes>.safetensors.
"""

import sys
from pathlib import Path

import torch
from actionclip_runs import actionclip_batch, actionclip_classifier, actionclip_model, classifier_batch
from safetensors.torch import save_file
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments


folder = Path(sys.argv[1])
arguments = TrainingArguments(folder / "trainer", use_cpu=True, report_to=[], per_device_eval_batch_size=2)
if not dist.is_initialized():
    dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()

# Training: the labels of all ranks say which texts fit which videos. The first rank has more pairs than the second.
bare = actionclip_model(fusion_head="LSTM").train()
model = DistributedDataParallel(bare)
whole = actionclip_batch(6)
own = slice(0, 6) if size == 1 else (slice(0, 4), slice(4, 6))[rank]
outputs = model(**{name: value[own] for name, value in whole.items()})
outputs.loss.backward()
found = {name: p.grad.contiguous() for name, p in bare.named_parameters() if p.grad is not None}
found["loss"] = outputs.loss.detach()

# Metrics: seven videos, so that the last batches are uneven.
batch = classifier_batch(7)
rows = [{name: value[row] for name, value in batch.items()} for row in range(7)]


def measure(predicted):
    found["logits"] = torch.as_tensor(predicted.predictions)
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


trainer = Trainer(actionclip_classifier(), arguments, eval_dataset=rows, compute_metrics=measure)
metrics = trainer.evaluate()
found |= {name: torch.tensor(metrics[f"eval_{name}"]) for name in ("loss", "accuracy")} | {
    "training_loss": found["loss"]
}
save_file(found, folder / f"{rank + 1}of{size}.safetensors")
dist.destroy_process_group()
