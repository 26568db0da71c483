"""Weights of a tiny FND-CLIP after two steps of plain gradient descent, over one or two processes: python
fnd_clip_ranks.py FOLDER; run by torchrun.

Two processes see half a batch each. One process sees both halves, one after the other, and adds their gradients up:
batch normalisation looks at its own half in both cases. Writes FOLDER/<rank + 1>of<processes>.safetensors.
"""

import sys
from pathlib import Path

import torch
from fnd_clip_runs import fnd_clip_batch, fnd_clip_model
from safetensors.torch import save_file
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel


folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
bare = fnd_clip_model().train()
model = DistributedDataParallel(bare) if size > 1 else bare
optimizer = torch.optim.SGD([p for p in bare.parameters() if p.requires_grad], lr=0.05)
found = {}
for step in range(2):
    whole = fnd_clip_batch(8, seed=step)
    halves = [{name: value[4 * half : 4 * half + 4] for name, value in whole.items()} for half in range(2)]
    optimizer.zero_grad()
    losses = []
    for half in halves[rank : rank + 1] if size > 1 else halves:
        loss = model(**half).loss
        (loss if size > 1 else loss / 2).backward()
        losses.append(loss.detach())
    mean = torch.stack(losses).mean()
    if size > 1:
        dist.all_reduce(mean)
        mean /= size
    found[f"{step}.loss"] = mean
    found |= {f"{step}.grad.{n}": p.grad.clone() for n, p in bare.named_parameters() if p.grad is not None}
    optimizer.step()
found |= {f"after.{name}": p.detach().clone() for name, p in bare.named_parameters() if p.requires_grad}
save_file(found, folder / f"{rank + 1}of{size}.safetensors")
dist.destroy_process_group()
