"""Loss, gradients and statistics of an inter-view adapter over processes: python inter_view_ranks.py FOLDER.

Run by torchrun. Writes FOLDER/<rank + 1>of<processes>.safetensors.
"""

import sys
from pathlib import Path

from peft import get_peft_model
from pointclip_runs import pointclip_batch, set_model
from safetensors.torch import save_file
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hf_clip_variants.adapters import InterViewAdapterConfig


folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
bare = get_peft_model(set_model(), InterViewAdapterConfig(dropout=0.0)).train()
model = DistributedDataParallel(bare)
whole = pointclip_batch(6)
own = {name: value[rank * 6 // size : (rank + 1) * 6 // size] for name, value in whole.items()}
loss = model(**own).loss
loss.backward()
found = {name: p.grad.contiguous() for name, p in bare.named_parameters() if p.grad is not None}
found |= {name: buffer.clone() for name, buffer in bare.named_buffers() if "running" in name}
loss = loss.detach().clone()
dist.all_reduce(loss)
save_file(found | {"loss": loss / size}, folder / f"{rank + 1}of{size}.safetensors")
dist.destroy_process_group()
