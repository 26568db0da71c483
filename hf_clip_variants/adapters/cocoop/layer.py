"""CoCoOp's prompts: one context per image."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from ..prompts.initial_vectors import check_prompt_length, embed_start, initial_vectors
from ..tuner import TunerLayer
from .config import CoCoOpConfig


# Shapes: B images, C classes, M context tokens, D joint width, d width of the text encoder


class CoCoOpLayer(TunerLayer):
    """Wraps the classifier's `prompt_embedder`: prompts are SOS, context + shift(image), class name, ".".

    See section 3.2 and eq. 3 of Zhou et al. 2022 (arXiv 2203.05557). It holds the context (M, d) and the meta-net
    D -> D / 16 -> d, which computes the shift from the unit-norm embedding of an image.
    """

    adapter_layer_names = ("clipv_cocoop_context", "clipv_cocoop_linear1", "clipv_cocoop_linear2")
    merge_refusal = "it changes the text encoder's input, not its weights"

    def __init__(self, base_layer: nn.Module, anchor: nn.Module, joint_width: int):
        super().__init__(base_layer, anchor)
        self.joint_width = joint_width
        self.clipv_cocoop_context = nn.ParameterDict()
        # One dictionary per Linear. Inside a Sequential, PEFT would not remove the adapter's name from saved keys.
        self.clipv_cocoop_linear1, self.clipv_cocoop_linear2 = nn.ModuleDict(), nn.ModuleDict()

    @property
    def depends_on_images(self) -> bool:
        return self.active_name() is not None or self.base_layer.depends_on_images

    def update_layer(self, adapter_name: str, config: CoCoOpConfig) -> None:
        """Creates the tensors of an adapter, all float32.

        The context starts from words or at random, the meta-net as `nn.Linear` starts. Its shift is not zero, so a new
        adapter differs from zero-shot CLIP, as in the official code.
        """
        token_embedding = self._anchor[0]
        width = token_embedding.weight.shape[1]
        context = initial_vectors((config.num_context_tokens, width), token_embedding, config.context_init_ids)
        hidden = config.hidden_width(self.joint_width)
        where = {"device": self.adapter_device, "dtype": torch.float32}
        self.configs[adapter_name] = config
        self.clipv_cocoop_context[adapter_name] = nn.Parameter(context)
        self.clipv_cocoop_linear1[adapter_name] = nn.Linear(self.joint_width, hidden, **where)
        self.clipv_cocoop_linear2[adapter_name] = nn.Linear(hidden, width, **where)

    def shifts(self, image_embeds: torch.Tensor, adapter_name: str) -> torch.Tensor:
        """(B, D) unit-norm image embeddings -> (B, d): the vector that is added to each context vector."""
        linear1, linear2 = self.clipv_cocoop_linear1[adapter_name], self.clipv_cocoop_linear2[adapter_name]
        return linear2(F.relu(linear1(image_embeds.to(linear1.weight))))

    def forward(self, prompts, token_embedding: nn.Module, image_embeds: torch.Tensor | None = None):
        """`prompts`: ClassPrompts of C classes. Returns EmbeddedPrompts of C rows with B prefixes, one per image."""
        embedded = self.base_layer(prompts, token_embedding, image_embeds)
        name = self.active_name()
        if name is None:
            return embedded
        config, context = self.configs[name], self.clipv_cocoop_context[name]
        starts = prompts.start_ids.shape[1]
        check_prompt_length(len(context), prompts.tail_ids.shape[1], prompts.max_length, starts)
        # Deviation: the official code embeds all B * C prompts. Only their beginning depends on the image, and only
        # their end on the class, so the beginnings (B, S0 + M, d) and the ids (C, L) are passed on separately.
        contexts = context + self.shifts(image_embeds, name)[:, None]  # (B, M, d): v_m(x) = v_m + h(x)
        start = embed_start(prompts, token_embedding).to(contexts).expand(contexts.shape[0], -1, -1)
        return dataclasses.replace(
            embedded,
            input_ids=torch.cat([prompts.start_ids, prompts.placeholders(len(context)), prompts.tail_ids], dim=1),
            prefix_embeds=torch.cat([start, contexts], dim=1),
            prompts_per_class=1,
            max_tokens_per_chunk=config.text_chunk_size,
        )


__all__ = ["CoCoOpLayer"]
