"""The four places of a `CLIPClassifier` where adapters plug in, as they are without adapters, and what passes between
them.

B images, C classes, T templates, N = C*T prompts, L tokens, S tail tokens, P prefix tokens, n deep tokens,
W text width, D joint width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ..dual_encoders.backbones import unit_norm


@dataclass(frozen=True)
class ClassPrompts:
    """The classes as token ids: what a prompt embedder makes prompts from. S0 start tokens: 1 (SOS, [CLS]) or, for
    SigLIP, none."""

    template_ids: torch.Tensor  # (C, T, L) int: start, template with the name in it, end, padding
    tail_ids: torch.Tensor  # (C, S) int: name, full stop, end, padding
    tail_name_lengths: torch.Tensor  # (C,) int: tokens of the name alone
    padding_id: int
    num_start_tokens: int = 1  # S0
    max_length: int = 77  # tokens that a prompt may have
    counts: tuple[int, ...] | None = None  # (C,) where classes have prompts of their own: the rest of T is padding

    @property
    def start_ids(self) -> torch.Tensor:
        """(C, S0): the tokens before the words, read from the prompts (in configurations of 2022, SOS is 0)."""
        return self.template_ids[:, 0, : self.num_start_tokens]

    def placeholders(self, count: int) -> torch.Tensor:
        """(C, count) ids where learned vectors go: neither end nor padding, so that pooling is not disturbed."""
        return self.template_ids[:, 0, :1].expand(-1, count)


@dataclass(frozen=True)
class EmbeddedPrompts:
    """Prompts ready for the text encoder. Learned parts: see `encode_prompts` in `prompt_encoding.py`."""

    input_ids: torch.Tensor  # (N, L) int: where the end is, and (where no embeddings are given) the tokens themselves
    inputs_embeds: torch.Tensor | None = None  # (N, L, W) token embeddings, positions not yet added
    # T, or of each class its own: consecutive rows that are averaged to one class
    prompts_per_class: int | tuple[int, ...] = 1
    shared_prefix: int | None = None  # leading positions that are the same in all rows; None: found from the ids
    prefix_embeds: torch.Tensor | None = None  # (P, W), or (B, P, W) for each image its own: of the first P tokens
    position_ids: torch.Tensor | None = None  # (L,) where positions are not 0..L-1
    deep_prompts: dict[int, torch.Tensor] = field(default_factory=dict)  # layer -> (n, W) behind the start tokens
    max_tokens_per_chunk: int | None = None  # run so many tokens at once, and in training compute them twice
    num_start_tokens: int = 1  # S0: where deep prompts begin

    def learned(self) -> dict:
        """What plain prompts do not have, as arguments of `CLIPFamily.encode_text`."""
        options = {
            "inputs_embeds": self.inputs_embeds,
            "shared_prefix": self.shared_prefix,
            "prefix_embeds": self.prefix_embeds,
            "position_ids": self.position_ids,
        }
        options = {name: value for name, value in options.items() if value is not None}
        if self.deep_prompts:
            options |= {"deep_prompts": self.deep_prompts, "deep_start": self.num_start_tokens}
        return options


class PromptEmbedder(nn.Module):
    """Hook: class prompts -> token embeddings. This one uses the templates unchanged; CoOp puts learned context
    vectors in their place.

    `token_embedding` is the text encoder's table; `image_embeds` (B, D) of unit norm come only where
    `depends_on_images`.
    """

    depends_on_images = False  # True: classes have features for each image (CoCoOp), and nothing can be kept

    def forward(
        self, prompts: ClassPrompts, token_embedding: nn.Module, image_embeds: torch.Tensor | None = None
    ) -> EmbeddedPrompts:
        ids, counts = prompts.template_ids, prompts.counts
        if counts is None:
            return EmbeddedPrompts(ids.flatten(0, 1), prompts_per_class=int(ids.shape[1]))
        own = [prompts_of_class[:count] for prompts_of_class, count in zip(ids, counts, strict=True)]
        return EmbeddedPrompts(torch.cat(own), prompts_per_class=counts)


class FeatureAdapter(nn.Module):
    """Hook: un-normalised features (…, D) -> features (…, D). The identity; CLIP-Adapter blends a bottleneck in."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


class LogitHead(nn.Module):
    """Hook: (B, D) and (C, D) or (B, C, D) unit-norm embeddings, scale -> (B, C) logits. Tip-Adapter adds its cache's
    vote."""

    def forward(
        self, image_embeds: torch.Tensor, class_embeds: torch.Tensor, logit_scale: torch.Tensor
    ) -> torch.Tensor:
        if class_embeds.dim() == 3:
            return logit_scale * (class_embeds @ image_embeds[:, :, None])[..., 0]
        return logit_scale * image_embeds @ class_embeds.t()


def ensemble_prompts(features: torch.Tensor, counts: Sequence[int] | None = None) -> torch.Tensor:
    """(…, C, T, D) text features of T templates -> (…, C, D) class features: normalise, mean over templates, normalise
    (Radford et al. 2021).

    One template is passed through un-normalised, so that a text adapter sees what the projection gave. With `counts`,
    of C classes, the features are (…, N, D), class by class, N their sum.
    """
    if counts is not None and len(set(counts)) > 1:
        means = [of_class.mean(dim=-2) for of_class in unit_norm(features).split(list(counts), dim=-2)]
        return unit_norm(torch.stack(means, dim=-2))
    if counts is not None:
        features = features.unflatten(-2, (-1, counts[0]))
    if features.shape[-2] == 1:
        return features[..., 0, :]
    return unit_norm(unit_norm(features).mean(dim=-2))


def is_adapter_layer(module: nn.Module) -> bool:
    """Whether PEFT made it. Told without importing peft, which is slow and optional for inference."""
    return "_disable_adapters" in vars(module) or hasattr(type(module), "_disable_adapters")


def adapters_in(layers: Sequence[nn.Module]) -> tuple:
    """Of each PEFT layer: what is active, switched off and merged."""
    return tuple(
        (str(getattr(m, "_active_adapter", None)), m._disable_adapters, tuple(getattr(m, "merged_adapters", ())))
        for m in layers
    )


def adapters_on(modules: Sequence[nn.Module]) -> tuple:
    """`adapters_in` of all PEFT layers in `modules`."""
    return adapters_in([m for module in modules for m in module.modules() if is_adapter_layer(m)])


__all__ = ["ClassPrompts", "EmbeddedPrompts", "FeatureAdapter", "LogitHead", "PromptEmbedder", "ensemble_prompts"]
__all__ += ["adapters_in", "adapters_on", "is_adapter_layer"]
