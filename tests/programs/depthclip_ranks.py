"""Loss and gradients of DepthCLIP's learnable parts over processes: python depthclip_ranks.py FOLDER.

Run by torchrun. Writes FOLDER/<rank + 1>of<processes>.safetensors.
"""

import sys
from pathlib import Path

from depthclip_runs import depthclip_batch, depthclip_model
from safetensors.torch import save_file
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel


folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
# The image encoder trains, too, but its batch normalisation, whose statistics are those of a process.
bare = depthclip_model(
    learnable_parts=["bins", "words", "temperature"], freeze_image_encoder=False, feature_projection="attnpool_value"
)
model = DistributedDataParallel(bare)
whole = depthclip_batch(4)
own = {name: value[rank * 4 // size : (rank + 1) * 4 // size] for name, value in whole.items()}
loss = model(**own).loss
loss.backward()
found = {name: p.grad.contiguous() for name, p in bare.named_parameters() if p.grad is not None}
loss = loss.detach().clone()
dist.all_reduce(loss)
save_file(found | {"loss": loss / size}, folder / f"{rank + 1}of{size}.safetensors")
dist.destroy_process_group()
