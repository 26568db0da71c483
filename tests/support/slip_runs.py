"""A tiny SLIP, batches for it, and training steps, which `programs/slip_ranks.py` also runs on several processes."""

import torch
from paths import PROGRAMS
from tiny import tiny_clip_config, tiny_pixels

from hf_clip_variants import PretrainingCallback, SLIPConfig, SLIPForPreTraining


PROGRAM = PROGRAMS / "slip_ranks.py"
OBJECTIVES = ("simclr", "moco_v3", "byol", "simsiam")
STEPS = 2
VISION = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
VISION |= {"image_size": 24, "patch_size": 8}


def slip_config(**options) -> SLIPConfig:
    """A configuration in which no size is the default."""
    text = tiny_clip_config(text_config={"projection_dim": 20}).text_config.to_dict()
    sizes = {"projection_dim": 20, "logit_scale_init_value": 2.0, "ssl_mlp_dim": 28, "ssl_emb_dim": 12}
    return SLIPConfig(**{"text_config": text, "vision_config": VISION, **sizes, **options})


def slip_batch(batch: int = 8, seed: int = 0, size: int = 24) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 4000, (batch, 7), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, 6] = 4036, 4037
    ids[1::2, 5] = 4037
    views = {"pixel_values": 1, "pixel_values_aug1": 2, "pixel_values_aug2": 3}
    return {"input_ids": ids} | {name: tiny_pixels(batch, seed + 10 * n, size) for name, n in views.items()}


def slip_model(seed: int = 0, **options) -> SLIPForPreTraining:
    """A SLIP in training mode."""
    torch.manual_seed(seed)
    return SLIPForPreTraining(slip_config(**options)).train()


def train_steps(model, bare, batch, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Losses of some steps of SGD, the gradients of the first step, and the state dict afterwards.

    `model` is `bare` or a wrapper of it.
    """
    callback, result = PretrainingCallback(), {}
    optimizer = torch.optim.SGD([p for p in bare.parameters() if p.requires_grad], lr=0.05)
    for step in range(steps):
        outputs = model(**batch)
        outputs.loss.backward()
        result |= {
            f"{name}{step}": outputs[name].detach() for name in ("loss", "clip_loss", "ssl_loss") if name in outputs
        }
        if step == 0:
            result |= {f"grad.{n}": p.grad.clone() for n, p in bare.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        callback.after_step(model, (step + 1) / (2 * steps))
    return result | {f"after.{name}": tensor.detach().clone() for name, tensor in bare.state_dict().items()}


def train_by_trainer(
    folder, batch_size: int, accumulation: int = 1, steps: int = 3, resume=None, dtype=torch.float32, **options
):
    """Runs `Trainer` on sixteen pairs, always in the same order; returns the model and the logged losses.

    `options` are fields of `SLIPConfig`, and `arguments`, a dictionary of `TrainingArguments`.
    """
    from transformers import Trainer, TrainingArguments, default_data_collator

    whole = slip_batch(16)
    data = [{name: value[i] for name, value in whole.items()} for i in range(16)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.05,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0,
        train_sampling_strategy="sequential",
        use_cpu=True,
        save_steps=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        **options.pop("arguments", {}),
    )
    model = slip_model(**options).to(dtype)
    trainer = Trainer(
        model, arguments, train_dataset=data, data_collator=default_data_collator, callbacks=[PretrainingCallback()]
    )
    trainer.train(resume_from_checkpoint=resume)
    return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
