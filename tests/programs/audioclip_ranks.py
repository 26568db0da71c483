"""AudioCLIP's loss and gradients on this rank's share of a batch, under DDP on gloo; run by torchrun.

python audioclip_ranks.py OUT TASK.json. Writes OUT/rank<r>.safetensors, and the expected error to OUT/rank<r>.json.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

import hf_clip_variants  # noqa: F401  before tests/, which has a folder of that name


BATCH = 6


def main(out: Path):
    from model_contract import CASES

    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    torch.set_num_threads(1)
    rank, size = dist.get_rank(), dist.get_world_size()
    case = CASES["audioclip"]
    bare = case.make()
    bare.audio_model.fbsp.requires_grad_(True)
    # Batch normalisation uses the statistics of each rank; frozen ones are equal on all ranks.
    bare.config.vision_config.freeze_batch_norm = bare.config.audio_config.freeze_batch_norm = True
    share = BATCH // size
    inputs = {name: value[share * rank : share * (rank + 1)] for name, value in case.inputs(BATCH).items()}
    model = DistributedDataParallel(bare.train())
    loss = model(**inputs, return_loss=True).loss
    loss.backward()
    found = {name: parameter.grad for name, parameter in bare.named_parameters()} | {"loss": loss.detach()}
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, out / f"rank{rank}.safetensors")
    refused = {}
    try:
        bare(**inputs, sample_weights=torch.ones(share), return_loss=True)
    except ValueError as error:
        refused["weights"] = str(error)
    (out / f"rank{rank}.json").write_text(json.dumps(refused))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
