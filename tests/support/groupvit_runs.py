"""A tiny GroupViT, batches for it, and training steps, which `programs/groupvit_ranks.py` also runs on ranks."""

import torch
from paths import PROGRAMS
from tiny import tiny_pixels, tiny_tokenizer
from torchvision.ops import StochasticDepth

from hf_clip_variants import GroupViTConfig, GroupViTForSemanticSegmentation, GroupViTModel
from hf_clip_variants.modeling.groupvit.convert_groupvit import groupvit_from_official


PROGRAM = PROGRAMS / "groupvit_ranks.py"
STEPS = 2
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"vocab_size": 4038, "max_position_embeddings": 24, "bos_token_id": 4036, "eos_token_id": 4037}
TEXT |= {"pad_token_id": 4037}
VISION = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "image_size": 24, "patch_size": 6}
VISION |= {"depths": [2, 1, 1], "num_group_tokens": [7, 5, 0], "num_output_groups": [6, 4], "drop_path_rate": 0.0}
VISION |= {"assign_mlp_ratio": [0.75, 3]}
# Sharp enough that groups differ; with the initial 0.02 they are equal up to the sixth digit.
SHARP = {"initializer_range": 0.3}


def groupvit_config(vision: dict | None = None, **options) -> GroupViTConfig:
    """A configuration in which no size is the default."""
    sizes = {"projection_dim": 20, "projection_intermediate_dim": 28, "logit_scale_init_value": 2.0}
    vision = VISION | SHARP | (vision or {})
    return GroupViTConfig(**{"text_config": TEXT, "vision_config": vision, **sizes, **options})


def groupvit_batch(batch: int = 8, seed: int = 0, size: int = 24, prompts: int = 3) -> dict[str, torch.Tensor]:
    """Images, captions and noun prompts."""
    ids = torch.randint(1, 4000, (batch * (1 + prompts), 7), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, 6] = 4036, 4037
    ids[1::2, 5] = 4037
    found = {"input_ids": ids[:batch], "pixel_values": tiny_pixels(batch, seed, size)}
    if prompts:
        found["prompt_input_ids"] = ids[batch:].view(batch, prompts, -1)
    return found


def with_statistics(model):
    """Statistics of the projections' batch normalisation as after a training, not 0 and 1."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


def groupvit_model(seed: int = 0, cls=GroupViTModel, **options) -> GroupViTModel:
    torch.manual_seed(seed)
    return with_statistics(cls(groupvit_config(**options)))


def segmentation_model(seed: int = 0, **options) -> GroupViTForSemanticSegmentation:
    return groupvit_model(seed, GroupViTForSemanticSegmentation, **options).eval()


def segmentation_processor(size: int = 24, **options):
    from hf_clip_variants.modeling.groupvit.convert_groupvit import groupvit_processor

    return groupvit_processor(tiny_tokenizer(), size={"shortest_edge": size, "longest_edge": 4 * size}, **options)


def converted(fixture, cls=GroupViTModel, **options):
    """The fixture's official weights in a model of class `cls`, without stochastic depth, in eval mode."""
    heads = {"vision_heads": fixture.meta["img_encoder"]["num_heads"][0], "text_heads": fixture.meta["text_heads"]}
    model = groupvit_from_official(fixture.state_dict, **heads)
    if cls is not GroupViTModel or options:
        config = GroupViTConfig.from_dict(model.config.to_dict() | options)
        other = cls(config).eval()
        other.load_state_dict(model.state_dict())
        model = other
    return without_drop_path(model)


def without_drop_path(model):
    for module in model.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0
    return model


def train_steps(model, bare, batch, steps: int = STEPS, micro_batch: int | None = None) -> dict[str, torch.Tensor]:
    """Losses of some steps of SGD, the gradients of the first step, and the state dict afterwards.

    `model` is `bare` or a wrapper of it.
    """
    from hf_clip_variants.modeling.losses.gradient_cache import backward_in_chunks

    optimizer, result = torch.optim.SGD(bare.parameters(), lr=0.05), {}
    for step in range(steps):
        if micro_batch:
            result[f"loss{step}"] = backward_in_chunks(model, batch, micro_batch)
        else:
            outputs = model(**batch, return_loss=True)
            outputs.loss.backward()
            result |= {f"{name}{step}": outputs[name].detach() for name in ("loss", "multi_label_loss")}
        if step == 0:
            result |= {f"grad.{name}": p.grad.clone() for name, p in bare.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
    return result | {f"after.{name}": tensor.detach().clone() for name, tensor in bare.state_dict().items()}


def calm_model(**options):
    """In float64 and training, without noise: two runs of a batch are the same."""
    return groupvit_model(vision={"gumbel_noise": False}, **options).double().train()


def train_by_trainer(
    folder, batch_size: int, accumulation: int = 1, steps: int = 4, resume=None, dtype=None, **options
):
    """Runs `Trainer` on sixteen pairs, always in the same order; returns the model and the logged losses.

    `options` are fields of `GroupViTConfig`, and `arguments`, a dictionary of `TrainingArguments`.
    """
    from transformers import Trainer, TrainingArguments, default_data_collator

    from hf_clip_variants import PretrainingCallback

    whole = groupvit_batch(16)
    data = [{name: value[i] for name, value in whole.items()} for i in range(16)]
    arguments = {
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(str(folder), **arguments | options.pop("arguments", {}))
    trainer = Trainer(
        groupvit_model(**options).to(dtype or torch.float32),
        arguments,
        train_dataset=data,
        data_collator=lambda rows: default_data_collator(rows) | {"return_loss": True},
        callbacks=[PretrainingCallback()],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def upstream_model(**vision):
    """A tiny GroupViTModel of transformers, in eval mode."""
    from transformers import GroupViTConfig as TheirConfig
    from transformers import GroupViTModel as TheirModel

    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "image_size": 24, "patch_size": 6}
    sizes |= {"depths": [1, 1, 1], "num_hidden_layers": 3, "num_group_tokens": [6, 4, 0]}
    sizes |= {"num_output_groups": [6, 4, 4]} | vision
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 97, "eos_token_id": 98}
    torch.manual_seed(0)
    config = TheirConfig(vision_config=sizes, text_config=text, projection_dim=20, projection_intermediate_dim=28)
    model = TheirModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit_scale" not in name and parameter.dim() > 1:
                parameter.normal_(std=0.3)  # its group tokens and positions start at 0
    return model
