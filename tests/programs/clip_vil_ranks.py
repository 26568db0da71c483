"""Training steps of a tiny CLIP-ViL over one or two processes: python clip_vil_ranks.py FOLDER. Run by torchrun.

Writes FOLDER/<rank + 1>of<processes>.safetensors.
"""

import sys
from pathlib import Path

import torch
from clip_vil_runs import clip_vil_model, pretraining_inputs, vqa_inputs
from safetensors.torch import save_file
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments


folder = Path(sys.argv[1])
arguments = TrainingArguments(folder / "trainer", use_cpu=True, report_to=[], per_device_eval_batch_size=2)
if not dist.is_initialized():
    dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
own = slice(0, 4) if size == 1 else slice(2 * rank, 2 * rank + 2)
found = {}

# Plain gradient descent; the statistics of the image encoder are those of the checkpoint.
for head, make in (("vqa", vqa_inputs), ("pretraining", pretraining_inputs)):
    bare = clip_vil_model(head, freeze_vision=True).train()
    model = DistributedDataParallel(bare)
    whole = make(4)
    optimizer = torch.optim.SGD([p for p in bare.parameters() if p.requires_grad], 0.05)
    for _ in range(2):
        optimizer.zero_grad()
        model(**{name: value[own] for name, value in whole.items()}).loss.backward()
        optimizer.step()
    found |= {f"{head}.{name}": p.detach().contiguous().clone() for name, p in bare.named_parameters()}

# Metrics: six questions, so that the second process has none at the end.
batch = vqa_inputs(6)
rows = [{name: value[row] for name, value in batch.items()} for row in range(6)]


def measure(predicted):
    found["logits"] = torch.as_tensor(predicted.predictions)
    return {"score": float((predicted.predictions * predicted.label_ids).mean())}


trainer = Trainer(clip_vil_model("vqa"), arguments, eval_dataset=rows, compute_metrics=measure)
metrics = trainer.evaluate()
found |= {name: torch.tensor(metrics[f"eval_{name}"]) for name in ("loss", "score")}
save_file(found, folder / f"{rank + 1}of{size}.safetensors")
dist.destroy_process_group()
