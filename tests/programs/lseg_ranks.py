"""Two steps of LSeg by `Trainer` on the ranks of one batch: python lseg_ranks.py FOLDER; run by torchrun, on gloo.

Writes FOLDER/rank<r>.safetensors, the weights after the steps.
"""

import sys
from pathlib import Path

import torch
from lseg_runs import lseg_inputs, lseg_model
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments

from hf_clip_variants.modeling.lseg.finetuning_lseg import RECIPES, make_optimizer


torch.set_num_threads(1)
folder, inputs = Path(sys.argv[1]), lseg_inputs(4)
model = lseg_model(head_block="bottleneck", use_auxiliary_head=True, freeze_batch_norm=True)
arguments = TrainingArguments(
    str(folder / "runs"),
    **RECIPES["published"].arguments(
        per_device_train_batch_size=2,
        max_steps=2,
        lr_scheduler_type="constant",
        lr_scheduler_kwargs={},
        train_sampling_strategy="sequential",
        use_cpu=True,
        ddp_backend="gloo",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    ),
)
assert arguments.world_size == 2
optimizer = make_optimizer(model, RECIPES["published"])
rows = [{name: value[row] for name, value in inputs.items()} for row in range(4)]
Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None)).train()
save_file(model.state_dict(), folder / f"rank{arguments.process_index}.safetensors")
torch.distributed.destroy_process_group()
