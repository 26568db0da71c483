"""A tiny VideoAnomalyClip over one or two processes: centroid, loss, gradients, statistics after two steps, metrics.

python video_anomaly_ranks.py FOLDER; run by torchrun. Writes FOLDER/<rank + 1>of<processes>.safetensors.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from video_anomaly_clip_runs import NORMAL, feature_batch, video_anomaly_model

from hf_clip_variants.metrics.video_anomaly import FrameAnomalyMetrics


folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
whole = feature_batch(10)
share = slice(0, 10) if size == 1 else (slice(0, 4), slice(4, 10))[rank]  # unequal ones
own = {name: value[share] for name, value in whole.items()}
found = {}

bare = video_anomaly_model(freeze_clip=True, concat_features=False).train()
bare.compute_normal_centroid([own])
found |= {"centroid": bare.normal_centroid.clone(), "norm": bare.normal_norm.clone()}
model = DistributedDataParallel(bare)
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
for step in range(2):
    outputs = model(**own)
    outputs.loss.backward()
    found |= {f"{step}.{name}": p.grad.clone() for name, p in bare.named_parameters() if p.grad is not None}
    found[f"{step}.loss"] = outputs.loss.detach()
    optimizer.step()
    optimizer.zero_grad()
found |= {f"after.{name}": tensor for name, tensor in bare.state_dict().items() if not name.startswith("clip.")}

metrics = FrameAnomalyMetrics(4, NORMAL)
generator = torch.Generator().manual_seed(0)
for video in range(7):
    scores, labels = torch.rand(50 + video, generator=generator), torch.randint(4, (50 + video,), generator=generator)
    probs = torch.rand(50 + video, 4, generator=generator).mul(20).round() / 20  # with ties
    if video % size == rank:
        metrics.update(scores.mul(30).round() / 30, labels, probs)
computed = metrics.all_gather().compute()
for name in ("auc", "ap", "mauc", "map", "threshold"):
    found[f"metric.{name}"] = torch.tensor(computed[name], dtype=torch.float64)
save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / f"{rank + 1}of{size}.safetensors")
dist.destroy_process_group()
