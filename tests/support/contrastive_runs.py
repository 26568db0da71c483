"""Reference steps for tests of contrastive losses, and a launcher of `programs/contrastive_ranks.py`."""

import json
import os
import subprocess
import sys

import torch
from paths import PROGRAMS
from safetensors.torch import load_file, save_file
from tiny import tiny_clip, tiny_pixels


PROGRAM = PROGRAMS / "contrastive_ranks.py"


def pairs(batch, width=12, seed=0, dtype=torch.float32, size=1.0):
    """image (batch, width), text (batch, width), logit_scale ()."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, width, generator=generator) * size
    text = image + torch.randn(batch, width, generator=generator) * size
    return [x.to(dtype).requires_grad_() for x in (image, text, torch.tensor(2.5))]


def loss_and_gradients(function, inputs, **kwargs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    loss = function(*inputs, **kwargs)
    return loss.detach(), *torch.autograd.grad(loss, inputs)


# ---- Training steps


def step_model():
    return tiny_clip(text_config={"attention_dropout": 0.0}).train()


def step_batch(batch):
    ids = torch.randint(1, 4000, (batch, 6), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 4037
    return {"input_ids": ids, "pixel_values": tiny_pixels(batch, seed=5)}


def plain_steps(batch_size):
    """Losses and parameters of two steps with `CLIPModel`'s own loss on one process.

    `contrastive_ranks.step` does the same on several processes.
    """
    model, batch, result = step_model(), step_batch(batch_size), {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(2):
        loss = model(**batch, return_loss=True).loss
        loss.backward()
        result |= {f"loss{i}": loss.detach(), f"scale_grad{i}": model.logit_scale.grad.clone()}
        optimizer.step()
        optimizer.zero_grad()
    return result | {name: p.detach() for name, p in model.named_parameters()}


def train_by_trainer(out, batch_size, exact, accumulation=1):
    from transformers import Trainer, TrainingArguments

    from hf_clip_variants.training.exact_contrastive_loss import ExactContrastiveLoss

    whole = step_batch(16)
    data = [{k: v[i] for k, v in whole.items()} for i in range(16)]

    def collate(rows):
        return {**{k: torch.stack([row[k] for row in rows]) for k in rows[0]}, "return_loss": True}

    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=3,
        per_device_train_batch_size=batch_size,
        learning_rate=0.1,
        optim="sgd",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        gradient_accumulation_steps=accumulation,
    )
    model = step_model()
    callbacks = [ExactContrastiveLoss(chunk_size=3)] if exact else []
    Trainer(model, arguments, collate, data, callbacks=callbacks).train()
    return model


# ---- Several processes


def run_ranks(folder, world_size, inputs=None, program=PROGRAM, **task):
    """Runs `program` on `world_size` processes and returns (tensors, messages) of each rank.

    Args:
        program: by default `contrastive_ranks.py`; the other arguments are for it.
        inputs: tensors image, text, logit_scale, logit_bias of the whole batch. Each form and gather mode uses them.
        task: `counts` (numbers of pairs on each rank, a list for each run), `steps` and `step_counts` (ways to
            train, and numbers of pairs for them), `trainer` and `failures` (whether to run these parts).
    """
    folder.mkdir(exist_ok=True)
    if inputs is not None:
        save_file({k: v.detach().contiguous() for k, v in inputs.items()}, folder / "inputs.safetensors")
        task["inputs"] = str(folder / "inputs.safetensors")
    (folder / "task.json").write_text(json.dumps(task))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world_size)]
    result = subprocess.run(
        [*launcher, str(program), str(folder), str(folder / "task.json")],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [
        (load_file(folder / f"rank{r}.safetensors"), json.loads((folder / f"rank{r}.json").read_text()))
        for r in range(world_size)
    ]
