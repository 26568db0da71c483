"""GroupViT's losses and training steps on the ranks of one batch; run by torchrun, on gloo.

python groupvit_ranks.py OUT TASK.json: `counts`, numbers of images on each rank, a list for each run; `micro_batch`.
Writes OUT/rank<r>.safetensors and OUT/rank<r>.json.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hf_clip_variants.modeling.groupvit.multi_label_loss import multi_label_loss


def message(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def main(out: Path, task: dict):
    from groupvit_runs import calm_model, groupvit_batch, groupvit_model, train_by_trainer, train_steps

    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank, results, found = dist.get_rank(), {}, {}
    torch.set_num_threads(1)
    for counts in task["counts"]:
        own = {name: tensor.split(counts)[rank] for name, tensor in groupvit_batch(sum(counts)).items()}
        own["pixel_values"] = own["pixel_values"].double()
        for name, micro_batch in (("whole", None), ("chunks", task["micro_batch"])):
            bare = calm_model()
            steps = train_steps(DistributedDataParallel(bare), bare, own, micro_batch=micro_batch)
            results |= {f"{'-'.join(map(str, counts))}.{name}.{key}": tensor for key, tensor in steps.items()}
    x, is_last = torch.eye(4), rank == dist.get_world_size() - 1
    prompts = torch.eye(4)[:, None].repeat(1, 2, 1)
    found["shape"] = message(multi_label_loss, x, prompts[:3] if is_last else prompts, torch.zeros(()))
    found["more prompts"] = message(
        multi_label_loss, x, prompts.repeat(1, 2, 1) if is_last else prompts, torch.zeros(())
    )
    found["afterwards"] = message(multi_label_loss, x, prompts, torch.zeros(()))
    batch = groupvit_batch(2)
    found["evaluation on one rank"] = message(groupvit_model().eval(), **batch, return_loss=True) if not rank else ""
    model, logged = train_by_trainer(
        out / "trainer",
        8 // dist.get_world_size(),
        arguments={"save_strategy": "no"},
        dtype=torch.float64,
        vision={"gumbel_noise": False},
    )
    results |= {f"trainer.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    found["trainer"] = logged
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, out / f"rank{rank}.safetensors")
    (out / f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    assert "RANK" in os.environ, "start me by torchrun"
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
