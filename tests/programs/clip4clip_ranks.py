"""Loss and gradients of a tiny CLIP4Clip over one or two processes: python clip4clip_ranks.py FOLDER; run by torchrun.

Writes FOLDER/<rank + 1>of<processes>.safetensors.
"""

import sys
from pathlib import Path

import torch
from clip4clip_runs import clip4clip_batch, clip4clip_model
from safetensors.torch import save_file
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel


folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
bare = clip4clip_model().train()
model = DistributedDataParallel(bare)
whole = clip4clip_batch(6)
own = {name: value[rank * 6 // size : (rank + 1) * 6 // size] for name, value in whole.items()}
outputs = model(**own, return_loss=True)
outputs.loss.backward()
found = {name: p.grad.contiguous() for name, p in bare.named_parameters() if p.grad is not None}
save_file(found | {"loss": outputs.loss.detach()}, folder / f"{rank + 1}of{size}.safetensors")
assert torch.isfinite(outputs.loss)
dist.destroy_process_group()
