"""Losses and gradients of a GLIPv2 on the ranks of one batch: python glipv2_ranks.py FOLDER; run by torchrun, on gloo.

Writes FOLDER/rank<r>.safetensors: of each case the losses and the gradients.
"""

import sys
from pathlib import Path

import torch
from glipv2_runs import RANK_CASES, glipv2_step
from safetensors.torch import save_file
from torch import distributed as dist


torch.set_num_threads(1)
folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, found = dist.get_rank(), {}
for name, (counts, fields) in RANK_CASES.items():
    first = sum(counts[:rank])
    step = glipv2_step(slice(first, first + counts[rank]), **fields)
    found |= {f"{name}.{key}": value for key, value in step.items()}
save_file(found, folder / f"rank{rank}.safetensors")
dist.destroy_process_group()
