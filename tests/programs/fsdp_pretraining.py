"""`PretrainTrainer` under Accelerate's FSDP2, on gloo; run by torchrun: python fsdp_pretraining.py OUT TASK.json.

On a CPU, Accelerate uses DistributedDataParallel whatever its plugin says; `ShardedOnCPU` makes it use FSDP. Writes
the full trained weights to OUT/rank<r>.safetensors, and losses and metrics to OUT/rank<r>.json.
"""

import json
import shutil
import sys
from pathlib import Path

from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file, save_file
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from transformers import Trainer

from hf_clip_variants.training.pretrain_trainer import PretrainTrainer


class ShardedOnCPU:
    """Mixin for a Trainer class."""

    def create_accelerator_and_postprocess(self):
        Trainer.create_accelerator_and_postprocess(self)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            cpu_ram_efficient_loading=False,
            transformer_cls_names_to_wrap=["CLIPEncoderLayer"],
        )
        state = self.accelerator.state
        for name, value in (("distributed_type", DistributedType.FSDP), ("fsdp_plugin", plugin)):
            state._shared_state[name] = value
            setattr(state, name, value)
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True


def main(out: Path, task: dict):
    from pretraining_runs import still_clip, trainer, zero_shot_set

    sharded = type("Sharded", (ShardedOnCPU, PretrainTrainer), {})

    def make():
        return trainer(
            out / "run",
            model=still_clip(),
            sets=[zero_shot_set()],
            trainer_class=sharded,
            save_steps=2,
            **task["options"],
        )

    make().train()
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(out / "run" / f"checkpoint-{task['options']['steps']}")
    dist.barrier()
    run = make()  # whose last steps are those of a resumed run
    run.train(resume_from_checkpoint=True)
    weights = dict(run.accelerator.unwrap_model(run.model).named_parameters())
    whole = sorted(name for name, weight in weights.items() if not isinstance(weight, DTensor))
    metrics = run.evaluate()
    run.save_trained(out / "model")
    dist.barrier()
    save_file(load_file(out / "model" / "model.safetensors"), out / f"rank{dist.get_rank()}.safetensors")
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    found = {"losses": losses, "metrics": metrics, "whole": whole}
    (out / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
