"""GroupViT trained on the captions of scenes alone, and what its groups are: tables and pictures.

    python scripts/pretrain_groupvit_scenes.py --out scripts/results/groupvit --part report --seeds 0 1 2

Scenes are pasted emoji with exact masks (`data/scenes`); training sees images and captions, never a mask. Settings were
chosen with `--part dev`; `--part report` has other classes and other styles. Rows of the table (`--variants`):

    groupvit       the model, hard assignment, noun prompts
    no_groups      the same image encoder without grouping blocks: mean of patches; patches get classes by similarity
    soft           soft assignment
    no_nouns       without the multi-label loss
    two_stages     groups of groups
    more_groups    twice as many groups
    k_means        group tokens start at cluster centres of patches
    tokens_only    a trained model goes on with other classes, group tokens alone
    small_batch    few distinct things in a batch: as many steps of batches of a sixteenth
    grad_cache     the full batch in micro-batches of a sixteenth, by GradCache: the cure of small_batch

OUT/<part>.json has the figures of every run, OUT/<part>.md the table, OUT/<part>-<variant>.png pictures.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import shlex
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F


STYLES = {"dev": ("emojione", "fluentflat"), "report": ("notov1", "fluent3d")}
CLASSES = {"dev": slice(0, 12), "report": slice(30, 42)}
TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Settings:
    """Of one run. The defaults are those of the table's first row."""

    vision: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    size: int = 64
    scenes: int = 3000
    steps: int = 1000
    batch: int = 128
    micro_batch: int | None = None
    lr: float = 2e-3
    weight_decay: float = 0.05
    nouns: bool = True
    groups: bool = True
    k_means: bool = False
    objects: tuple[int, int] = (1, 3)
    object_size: tuple[float, float] = (0.35, 0.6)
    backgrounds: tuple[str, ...] = ("plain", "gradient", "noise")


VARIANTS: dict[str, Settings] = {
    "groupvit": Settings(),
    "no_groups": Settings(groups=False),
    "soft": Settings(vision={"assignment": "soft"}),
    "no_nouns": Settings(nouns=False, model={"num_noun_prompts": 0}),
}


# ---- data


@dataclass(frozen=True)
class Scenes:
    """Normalised images (S, 3, H, W), label maps (S, H, W) with 0 for the background, token ids of captions (S, L) and,
    for each scene, the classes that its caption names."""

    images: torch.Tensor
    label_maps: torch.Tensor
    captions: torch.Tensor
    named: list[list[int]]
    class_names: list[str]


def make_scenes(part: str, settings: Settings, count: int, seed: int, tokenizer: Any) -> Scenes:
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    from hf_clip_variants.data.scenes.scenes import DISTINCT_CLASSES, SceneMaker

    maker = SceneMaker(
        styles=STYLES[part],
        class_names=DISTINCT_CLASSES[CLASSES[part]],
        size=settings.size,
        objects=settings.objects,
        object_size=settings.object_size,
        backgrounds=settings.backgrounds,
        seed=seed,
    )
    made = [maker.scene(index) for index in range(count)]
    pixels = torch.from_numpy(np.stack([np.asarray(one.image) for one in made])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return Scenes(
        images=(pixels - mean) / std,
        label_maps=torch.from_numpy(np.stack([one.label_map for one in made])).long(),
        captions=tokenize(tokenizer, [one.caption for one in made]),
        named=[sorted({phrase.category for phrase in one.phrases}) for one in made],
        class_names=list(maker.class_names),
    )


def tokenize(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    return tokenizer(texts, padding="max_length", max_length=24, truncation=True, return_tensors="pt")["input_ids"]


# ---- models


def new_model(settings: Settings, tokenizer: Any) -> Any:
    from hf_clip_variants import GroupViTConfig, GroupViTForSemanticSegmentation

    vision = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 3, "patch_size": 8}
    vision |= {"depths": [3, 2], "num_group_tokens": [8, 0], "num_output_groups": [8], "drop_path_rate": 0.0}
    text = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 3, "num_hidden_layers": 2}
    text |= {"vocab_size": len(tokenizer), "max_position_embeddings": 24, "bos_token_id": tokenizer.bos_token_id}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = GroupViTConfig(
        vision_config=vision | {"image_size": settings.size} | settings.vision,
        text_config=text,
        **{"projection_dim": 64, "projection_intermediate_dim": 256, "num_gated_classes": 5} | settings.model,
    )
    return (GroupViTForSemanticSegmentation if settings.groups else without_groups())(config)


def without_groups() -> type:
    """The same encoder without group tokens: patches run through all layers; their mean is the image."""
    from hf_clip_variants import GroupViTForSemanticSegmentation
    from hf_clip_variants.modeling.groupvit.modeling_groupvit import GroupViTVisionModelOutput

    class WithoutGroups(GroupViTForSemanticSegmentation):
        def _run_image_encoder(self, pixel_values, interpolate_pos_encoding=True, **kwargs):
            tokens = self.vision_model.embeddings(pixel_values)
            for stage in self.vision_model.encoder.stages:
                for layer in stage.layers:
                    tokens = layer(tokens)
            tokens = self.vision_model.layernorm(tokens)
            return GroupViTVisionModelOutput(last_hidden_state=tokens, pooler_output=tokens.mean(1))

    return WithoutGroups


def train(model: Any, scenes: Scenes, settings: Settings, seed: int, tokenizer: Any) -> list[float]:
    """By AdamW with a cosine schedule; returns the losses."""
    from hf_clip_variants.modeling.groupvit.modeling_groupvit import GroupViTModel
    from hf_clip_variants.modeling.losses.gradient_cache import backward_in_chunks
    from hf_clip_variants.training.callbacks import limit_logit_scale
    from hf_clip_variants.training.lr_schedules import warmup_cosine
    from hf_clip_variants.training.parameter_groups import weight_decay_groups

    prompts = tokenize(tokenizer, [TEMPLATE.format(name) for name in scenes.class_names])
    optimizer = torch.optim.AdamW(weight_decay_groups(model, settings.weight_decay), lr=settings.lr)
    warmup = max(1, settings.steps // 15)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, partial(warmup_cosine, peak=settings.lr, num_steps=settings.steps, warmup_steps=warmup)
    )
    draw, losses = np.random.default_rng(seed), []
    GroupViTModel.train(model)  # with the projections' statistics
    named = [one for one, classes in enumerate(scenes.named) if classes]
    for _ in range(settings.steps):
        rows = draw.choice(named, size=settings.batch, replace=False)
        batch = {"input_ids": scenes.captions[rows], "pixel_values": scenes.images[rows]}
        if settings.nouns:
            # As many as the model was made for; a caption with fewer nouns repeats them.
            drawn = [draw.choice(scenes.named[row], size=model.config.num_noun_prompts) for row in rows]
            batch["prompt_input_ids"] = prompts[np.stack(drawn)]
        if settings.micro_batch:
            loss = caption_loss_in_chunks(model, batch, settings.micro_batch, backward_in_chunks)
        else:
            loss = GroupViTModel.forward(model, **batch, return_loss=True).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        limit_logit_scale(model)
        losses.append(loss.item())
    model.eval()
    return losses
