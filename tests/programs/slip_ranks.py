"""SLIP's losses and training steps on the ranks of one batch; run by torchrun, on gloo.

python slip_ranks.py OUT TASK.json: `inputs` (a safetensors file with aug1, aug2), `temperature`, `counts`; `steps`,
pairs of objective and `clip_gather`; `trainer`, names of objectives. Writes OUT/rank<r>.safetensors and
OUT/rank<r>.json.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hf_clip_variants.modeling.slip.self_supervised_losses import byol_loss, moco_v3_loss, simclr_loss, simsiam_loss


def own(tensor, counts):
    return tensor.split(counts)[dist.get_rank()].clone()


def losses(inputs, counts, temperature):
    """Each loss on this rank's rows of aug1 and aug2, with its accuracy and gradients.

    The targets of the predictions are the negated rows in reverse order.
    """
    found = {}
    for name in ("simclr", "moco_v3", "byol", "simsiam"):
        views = [own(inputs[view], counts).requires_grad_() for view in ("aug1", "aug2")]
        targets = [own(-inputs[view], counts).flip(1) for view in ("aug1", "aug2")]
        accuracy = None
        if name == "simclr":
            loss, accuracy = simclr_loss(*views, temperature)
        elif name == "moco_v3":
            loss, accuracy = moco_v3_loss(*views, *targets, temperature)
        else:
            loss = {"byol": byol_loss, "simsiam": simsiam_loss}[name](*views, *targets)
        loss.backward()
        found |= {f"{name}.loss": loss.detach(), f"{name}.d_aug1": views[0].grad, f"{name}.d_aug2": views[1].grad}
        if accuracy is not None:
            found[f"{name}.acc"] = accuracy
    return found


def message(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def main(out: Path, task: dict):
    from slip_runs import slip_batch, slip_model, train_by_trainer, train_steps

    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank, results, found = dist.get_rank(), {}, {}
    torch.set_num_threads(1)
    for counts in task["counts"]:
        prefix = "-".join(map(str, counts))
        if "inputs" in task:
            for name, tensor in losses(load_file(task["inputs"]), counts, task["temperature"]).items():
                results[f"{prefix}.{name}"] = tensor
        for objective, gather in task.get("steps", ()):
            if gather == "slip" and len(set(counts)) > 1:
                continue
            bare = slip_model(ssl_objective=objective, clip_gather=gather).double()
            batch = {name: own(tensor, counts) for name, tensor in slip_batch(sum(counts)).items()}
            for name, tensor in train_steps(DistributedDataParallel(bare), bare, batch).items():
                results[f"{prefix}.{objective}.{gather}.{name}"] = tensor
    if task.get("failures"):
        is_last = rank == dist.get_world_size() - 1
        x = torch.eye(4)
        found["shape"] = message(simclr_loss, x, x[:3] if is_last else x)
        found["afterwards"] = message(simclr_loss, x, x)
        model = slip_model()
        found["one image per rank"] = message(model, **slip_batch(1, seed=rank))
        found["evaluation on one rank"] = message(model.eval(), **slip_batch(2)) if rank == 0 else "left"
    for objective in task.get("trainer", ()):
        model, logged = train_by_trainer(
            out / objective,
            8 // dist.get_world_size(),
            arguments={"save_strategy": "no"},
            dtype=torch.float64,
            ssl_objective=objective,
        )
        results |= {f"trainer.{objective}.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
        found[f"trainer.{objective}"] = logged
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, out / f"rank{rank}.safetensors")
    (out / f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    assert "RANK" in os.environ, "start me by torchrun"
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
