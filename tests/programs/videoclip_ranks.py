"""Loss, gradients and embeddings for clusters of a tiny VideoCLIP over one or two processes: python videoclip_ranks.py
FOLDER; run by torchrun.

Writes FOLDER/<rank + 1>of<processes>.safetensors.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from videoclip_runs import toy_pairs, toy_videos, videoclip_features, videoclip_model

from hf_clip_variants.metrics.moments import MomentMetrics, SecondMetrics
from hf_clip_variants.modeling.videoclip.pretraining_videoclip import embed_videos


folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
bare = videoclip_model(use_s3d=False).train()
model = DistributedDataParallel(bare)
whole = videoclip_features(6)
own = {name: value[rank * 6 // size : (rank + 1) * 6 // size] for name, value in whole.items()}
outputs = model(**own, return_loss=True)
outputs.loss.backward()
found = {name: p.grad.contiguous() for name, p in bare.named_parameters() if p.grad is not None}
found |= {"loss": outputs.loss.detach(), "embeddings": embed_videos(bare, toy_pairs(toy_videos(5)))}

seconds, moments = SecondMetrics(), MomentMetrics(ks=(1, 2))
generator = torch.Generator().manual_seed(1)
for number in range(5):
    predicted, right = torch.randint(0, 3, (2, 7), generator=generator)
    if number % size == rank:
        seconds.update(predicted, right)
        moments.update([(0, 5), (5, 10)][:: 1 if number % 2 else -1], (0, 5))
for name, value in (seconds.all_reduce().compute() | moments.all_reduce().compute()).items():
    found[name] = torch.tensor(value)
save_file(found, folder / f"{rank + 1}of{size}.safetensors")
assert torch.isfinite(outputs.loss)
dist.destroy_process_group()
