"""The contrastive losses and training steps with them, on the ranks of one batch; run by torchrun, on gloo.

python contrastive_ranks.py OUT TASK.json, written and described by `contrastive_runs.py`. Writes
OUT/rank<r>.safetensors, errors to OUT/rank<r>.json.
"""

import json
import os
import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import distributed as dist

from hf_clip_variants.modeling.losses import rank_exchange
from hf_clip_variants.modeling.losses.contrastive_loss import contrastive_accuracy, contrastive_loss


MODES = (
    ("softmax", "exact"),
    ("softmax", "none"),
    ("softmax", "open_clip"),
    ("softmax", "slip"),
    ("sigmoid", "exact"),
)


@contextmanager
def counted_exchange():
    """Counts the elements of each all-gather and reduce-scatter, summed over all ranks."""
    originals, traffic = (rank_exchange._all_gather, rank_exchange._reduce_scatter), []

    def counted(exchange):
        def run(output, input, **kwargs):
            traffic.append(max(output.numel(), input.numel()))
            return exchange(output, input, **kwargs)

        return run

    rank_exchange._all_gather, rank_exchange._reduce_scatter = map(counted, originals)
    try:
        yield traffic
    finally:
        rank_exchange._all_gather, rank_exchange._reduce_scatter = originals


def losses(inputs, counts, form, gather):
    """Loss and gradients of this rank's rows."""
    image, text = (inputs[name].split(counts)[dist.get_rank()].clone().requires_grad_() for name in ("image", "text"))
    numbers = [inputs["logit_scale"].clone().requires_grad_()]
    options = {}
    if form == "sigmoid":
        numbers.append(inputs["logit_bias"].clone().requires_grad_())
        options["logit_bias"] = numbers[1]
    with counted_exchange() as traffic:
        loss = contrastive_loss(image, text, numbers[0], form=form, gather=gather, chunk_size=3, **options)
        loss.backward()
    names = ("image", "text", "logit_scale", "logit_bias")
    grads = {f"d_{name}": x.grad for name, x in zip(names, (image, text, *numbers), strict=False)}
    accuracy = contrastive_accuracy(image, text, chunk_size=2, gather="none" if gather == "none" else "exact")
    return {"loss": loss.detach(), "accuracy": accuracy, "traffic": torch.tensor(sum(traffic)), **grads}


def step(how, counts, loss_options):
    """Two steps of SGD by `how`; returns the full parameters and the gradients of `logit_scale`."""
    from contrastive_runs import step_batch, step_model
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

    from hf_clip_variants.modeling.losses.gradient_cache import backward_in_chunks
    from hf_clip_variants.training.exact_contrastive_loss import ExactContrastiveLoss

    bare = model = step_model()
    if "cache" not in how:
        ExactContrastiveLoss(**loss_options).attach(bare)
    if "ddp" in how:
        model = DistributedDataParallel(bare)
    else:
        for layer in (*bare.text_model.encoder.layers, *bare.vision_model.encoder.layers):
            fully_shard(layer)
        fully_shard(model, ignored_params={bare.logit_scale})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    batch = {k: v.split(counts)[dist.get_rank()] for k, v in step_batch(sum(counts)).items()}
    result = {}
    for i in range(2):
        if "cache" in how:
            result[f"loss{i}"] = backward_in_chunks(model, batch, 3, **loss_options)
        else:
            loss = model(**batch).loss
            loss.backward()
            result[f"loss{i}"] = loss.detach()
        result[f"scale_grad{i}"] = bare.logit_scale.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
    for name, p in bare.named_parameters():
        result[name] = (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
    return result


def train(out):
    """`Trainer` on a plain CLIPModel with the callback."""
    from contrastive_runs import train_by_trainer

    model = train_by_trainer(out, batch_size=8 // dist.get_world_size(), exact=True)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def message(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except (ValueError, FloatingPointError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def failures(rank):
    """The error on each rank if only the last rank has invalid data, and if the last rank is missing."""
    is_last = rank == dist.get_world_size() - 1
    x = torch.eye(4)
    found = {
        "shape": message(contrastive_loss, x, x[:3] if is_last else x, 1.0),
        "scale": message(contrastive_loss, x, x, float("nan") if is_last else 1.0),
        "width": message(contrastive_loss, x[:, : 3 if is_last else 4], x[:, : 3 if is_last else 4], 1.0),
        "dtype": message(contrastive_loss, x.double() if is_last else x, x.double() if is_last else x, 1.0),
        "empty": message(contrastive_loss, x[:0], x[:0], 1.0),
        "slip": message(contrastive_loss, x[: 3 if is_last else 4], x[: 3 if is_last else 4], 1.0, gather="slip"),
        "afterwards": message(contrastive_loss, x, x, 1.0),
    }
    lonely = dist.new_group(timeout=timedelta(seconds=3))
    found["absent"] = "left" if is_last else message(contrastive_loss, x, x, 1.0, group=lonely)
    dist.barrier()
    return found


def main(out: Path, task: dict):
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank, results = dist.get_rank(), {}
    torch.set_num_threads(1)
    if "inputs" in task:
        inputs = load_file(task["inputs"])
        for counts in task["counts"]:
            for form, gather in MODES:
                if (gather == "slip" and len(set(counts)) > 1) or (gather == "none" and 0 in counts):
                    continue
                prefix = f"{'-'.join(map(str, counts))}.{form}.{gather}"
                results |= {f"{prefix}.{k}": v for k, v in losses(inputs, counts, form, gather).items()}
        large = losses(inputs | {"logit_scale": torch.full_like(inputs["logit_scale"], 8)}, counts, "softmax", "exact")
        results |= {f"large.{k}": v for k, v in large.items()}
    for how in task.get("steps", ()):
        for counts in task["step_counts"]:
            prefix = f"{'-'.join(map(str, counts))}.{how}"
            results |= {f"{prefix}.{k}": v for k, v in step(how, counts, {"chunk_size": 3}).items()}
    if task.get("trainer"):
        results |= {f"trainer.{k}": v for k, v in train(out).items()}
    save_file({k: v.contiguous() for k, v in results.items()}, out / f"rank{rank}.safetensors")
    (out / f"rank{rank}.json").write_text(json.dumps(failures(rank) if task.get("failures") else {}))
    dist.destroy_process_group()


if __name__ == "__main__":
    assert "RANK" in os.environ, "start me by torchrun"
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
