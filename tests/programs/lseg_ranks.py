"""Two steps of LSeg on the ranks of one batch: python lseg_ranks.py FOLDER; run by torchrun, on gloo.

Writes FOLDER/rank<r>.safetensors, the weights after the steps.
"""

import sys
from pathlib import Path

import torch
from lseg_runs import lseg_inputs, lseg_model
from safetensors.torch import save_file
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hf_clip_variants.modeling.lseg.finetuning_lseg import RECIPES, make_optimizer


dist.init_process_group("gloo")
torch.set_num_threads(1)
rank = dist.get_rank()
model = lseg_model(head_block="bottleneck", use_auxiliary_head=True, freeze_batch_norm=True).train()
optimizer, parallel = make_optimizer(model, RECIPES["published"]), DistributedDataParallel(model)
own = {name: tensor[2 * rank : 2 * rank + 2] for name, tensor in lseg_inputs(4).items()}
for _ in range(2):
    parallel.zero_grad()
    parallel(**own).loss.backward()
    optimizer.step()
save_file(model.state_dict(), Path(sys.argv[1]) / f"rank{rank}.safetensors")
dist.destroy_process_group()
