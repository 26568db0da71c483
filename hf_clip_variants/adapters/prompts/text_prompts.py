"""Learned tokens in the layers of a text encoder, as IVLP and MaPLe use them.

On a `CLIPClassifier` one wrapper around `prompt_embedder` holds all tensors and passes them to `encode_prompts`, which
shares computation between prompts. On a plain dual encoder a wrapper around the token embedding holds the tensors, and
wrappers around the layers insert the deeper prompts, as the official code does.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import nn

from ..tuner import Base, TunerConfig, TunerLayer
from .initial_vectors import check_prompt_length, check_token_ids, embed_start, initial_vectors, words_to_ids


# Shapes: C classes, n learned tokens per layer, J layers with prompts, S0 start tokens (1 for SOS, or 0),
# d width of the text encoder

TextPromptStyle = Literal["maple", "vpt_deep"]


@dataclasses.dataclass(frozen=True)
class TextPromptShape:
    """Where an adapter has text prompts.

    Attributes:
        count: n, learned tokens per layer.
        depth: J, layers with prompts of their own; 0 for no text prompts.
        style: "maple": learned tokens replace the first words and get those words' positions. "vpt_deep": learned
            tokens are inserted before the words, without positions, and all words keep their positions.
        word_ids: token ids of the words at the beginning of each prompt; () for none. With "maple" the context starts
            from the first n of them.
    """

    count: int
    depth: int
    style: TextPromptStyle
    word_ids: tuple[int, ...]


class TextPromptParameters(TunerLayer):
    """Holds the context (n, d) of layer 0 and the prompts (J - 1, n, d) of the deeper layers.

    `adapter_layer_names` of subclasses names the two tensors, in this order.
    """

    def __init__(self, base_layer: nn.Module, anchor: nn.Module):
        super().__init__(base_layer, anchor)
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())

    def shape_of(self, adapter_name: str) -> TextPromptShape:
        """`text_shape` of the adapter's configuration."""
        return self.configs[adapter_name].text_shape

    @property
    def context(self) -> nn.ParameterDict:
        return getattr(self, self.adapter_layer_names[0])

    @property
    def deep(self) -> nn.ParameterDict:
        return getattr(self, self.adapter_layer_names[1])

    def has_text_prompts(self, adapter_name: str | None) -> bool:
        return adapter_name is not None and self.shape_of(adapter_name).depth > 0

    def layer_prompts(self, adapter_name: str, layer: int) -> torch.Tensor:
        """(n, d) prompts of `layer`."""
        return self.context[adapter_name] if layer == 0 else self.deep[adapter_name][layer - 1]

    def update_layer(self, adapter_name: str, config: TunerConfig) -> None:
        """Creates the tensors of an adapter.

        The context starts from the embeddings of the words that it replaces, or from N(0, 0.02²) if there are none.
        The prompts of deeper layers always start from N(0, 0.02²).
        """
        self.configs[adapter_name] = config
        shape = self.shape_of(adapter_name)
        if not shape.depth:
            return
        token_embedding = self._anchor[0]
        width = token_embedding.weight.shape[1]
        ids = None if shape.style == "vpt_deep" else list(shape.word_ids[: shape.count]) or None
        self.context[adapter_name] = nn.Parameter(initial_vectors((shape.count, width), token_embedding, ids))
        if shape.depth > 1:
            deep = initial_vectors((shape.depth - 1, shape.count, width), token_embedding)
            self.deep[adapter_name] = nn.Parameter(deep)


class TextPromptEmbedder(TextPromptParameters):
    """Wraps the classifier's `prompt_embedder`: prompts are SOS, learned tokens, the other words, class name, "."."""

    def forward(self, prompts, token_embedding: nn.Module, image_embeds: torch.Tensor | None = None):
        """`prompts`: ClassPrompts of C classes. Returns EmbeddedPrompts of C rows."""
        embedded = self.base_layer(prompts, token_embedding, image_embeds)
        name = self.active_name()
        if not self.has_text_prompts(name):
            return embedded
        shape, starts = self.shape_of(name), prompts.start_ids.shape[1]
        # Style "maple" replaces the first n words; "vpt_deep" keeps all of them.
        kept_words = shape.word_ids if shape.style == "vpt_deep" else shape.word_ids[shape.count :]
        tails = prompts.tail_ids
        check_prompt_length(shape.count + len(kept_words), tails.shape[1], prompts.max_length, starts)
        words = torch.tensor(kept_words, dtype=tails.dtype, device=tails.device).expand(len(tails), -1)
        # Placeholders stand where the learned tokens go, so that all later positions (and that of EOS) are right.
        ids = torch.cat([prompts.start_ids, prompts.placeholders(shape.count), words, tails], dim=1)
        deep = {layer: self.layer_prompts(name, layer) for layer in range(1, shape.depth)}
        common = {"input_ids": ids, "prompts_per_class": 1, "num_start_tokens": starts}
        if shape.style == "vpt_deep":
            # Positions: 0 .. S0 - 1 for the start, then n unused ones for the learned tokens, then the words count on
            # from S0, as if no token had been inserted. Treating the context as the prompt of layer 0 overwrites the
            # placeholders after positions were added: the learned tokens get no position embedding.
            after = torch.arange(starts, ids.shape[1] - shape.count)
            positions = torch.cat([torch.arange(starts), torch.zeros(shape.count, dtype=torch.int64), after])
            deep[0] = self.layer_prompts(name, 0)
            return dataclasses.replace(embedded, **common, deep_prompts=deep, position_ids=positions.to(ids.device))
        # Start and context are the same for all classes: given once as (S0 + n, d), they are encoded once.
        start = embed_start(prompts, token_embedding)
        context = self.layer_prompts(name, 0)
        return dataclasses.replace(
            embedded, **common, deep_prompts=deep, prefix_embeds=torch.cat([start.to(context), context])
        )


class TextPromptTokenEmbedding(TextPromptParameters):
    """Wraps a plain dual encoder's token embedding: the context replaces the n tokens after SOS, whatever they are."""

    def __init__(self, base_layer: nn.Module, anchor: nn.Module, num_start_tokens: int):
        super().__init__(base_layer, anchor)
        self.num_start_tokens = num_start_tokens

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        embeds = self.base_layer(input_ids)
        name = self.active_name()
        if not self.has_text_prompts(name):
            return embeds
        return overwrite_tokens(embeds, self.layer_prompts(name, 0), self.num_start_tokens)


class TextPromptLayer(TunerLayer):
    """Wraps one layer of a plain dual encoder's text encoder, and replaces the n tokens after SOS by its prompts.

    It has no tensors.

    Args:
        base_layer, anchor: see `TunerLayer`.
        root: the model.
        prompt_module_name: name in `root` of the `TextPromptTokenEmbedding`, looked up in every forward pass.
        index: index of the layer.
        num_start_tokens: S0.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        anchor: nn.Module,
        root: nn.Module,
        prompt_module_name: str,
        index: int,
        num_start_tokens: int,
    ):
        super().__init__(base_layer, anchor)
        self._root = (root,)  # in a tuple, so that nn.Module does not register it
        self.prompt_module_name, self.index, self.num_start_tokens = prompt_module_name, index, num_start_tokens

    def update_layer(self, adapter_name: str, config) -> None:
        self.configs[adapter_name] = config

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any):
        name = self.active_name()
        prompt_module = self._root[0].get_submodule(self.prompt_module_name)
        # Khattak et al. 2023, section 3.2.1: each of the first J layers gets prompts of its own; the outputs of the
        # layer before at these positions are discarded.
        if prompt_module.has_text_prompts(name) and self.index < prompt_module.shape_of(name).depth:
            prompts = prompt_module.layer_prompts(name, self.index)
            hidden_states = overwrite_tokens(hidden_states, prompts, self.num_start_tokens)
        return self.base_layer(hidden_states, *args, **kwargs)


def overwrite_tokens(hidden: torch.Tensor, prompts: torch.Tensor, start: int) -> torch.Tensor:
    """(N, L, d) and (n, d) -> (N, L, d): the tokens `start` to `start + n - 1` of each row are replaced.

    Raises:
        ValueError: rows that are too short.

    >>> overwrite_tokens(torch.tensor([[[0.0], [1.0], [2.0], [3.0]]]), torch.tensor([[9.0]]), 1).flatten().tolist()
    [0.0, 9.0, 2.0, 3.0]
    """
    if hidden.shape[1] < start + len(prompts) + 1:
        raise ValueError(
            f"input_ids: rows of {hidden.shape[1]} tokens are too short for {len(prompts)} learned tokens; write as "
            'many words, or placeholders ("X"), before the class name'
        )
    prompts = prompts.to(hidden).expand(hidden.shape[0], -1, -1)
    return torch.cat([hidden[:, :start], prompts, hidden[:, start + prompts.shape[1] :]], dim=1)


def text_targets(base: Base, depth: int, style: TextPromptStyle) -> list[str]:
    """Names of the modules to wrap for text prompts in the first `depth` layers; the one with the tensors comes first.

    Raises:
        ValueError: more layers than the text encoder has, or "vpt_deep" on a plain dual encoder.
    """
    layers = base.widths["text layers"]
    if not 0 <= depth <= layers:
        raise ValueError(f"prompt_depth: {depth}, but the text encoder has {layers} layers")
    if base.is_classifier:
        return ["prompt_embedder"]
    if not depth:
        return []
    if style == "vpt_deep":
        raise ValueError(
            "text_prompt_style: 'vpt_deep' inserts tokens into prompts, but a plain "
            f"{type(base.model).__name__} gets finished prompts; use CLIPClassifier, or 'maple'"
        )
    family = base.family
    return [family.token_embedding] + [f"{family.text_layers}.{i}" for i in range(1, depth)]


def text_prompt_module(target_modules: list[str]) -> str:
    """Name of the wrapped module that holds the text prompts: a prompt embedder or a token embedding."""
    (name,) = [
        name
        for name in target_modules
        if name.split(".")[-1] in ("prompt_embedder", "token_embedding", "word_embeddings")
    ]
    return name


def text_tensors(config: TunerConfig, count: int, depth: int, prefix: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of the text prompts."""
    module, width = text_prompt_module(config.target_modules), config.backbone_widths["text width"]
    tensors = {f"{module}.{prefix}_context": (count, width)}
    if depth > 1:
        tensors[f"{module}.{prefix}_text_prompts"] = (depth - 1, count, width)
    return tensors


def fill_text_config(config: TunerConfig, base: Base, count: int) -> None:
    """Fills `config.context_init_ids` from `config.context_init`.

    Raises:
        ValueError: there is no tokenizer, an id is outside its vocabulary, or there are fewer than are learned.
    """
    if config.context_init is not None and config.context_init_ids is None:
        config.context_init_ids = words_to_ids(config, base, config.context_init)
    check_token_ids("context_init_ids", config.context_init_ids, base)
    check_enough_words(config, count)


def check_enough_words(config: TunerConfig, count: int) -> None:
    """Raises ValueError if the words that the context starts from have fewer tokens than are learned."""
    ids = config.context_init_ids
    if ids is not None and not ids:
        raise ValueError("context_init_ids: empty, expected at least one token, or None for random vectors")
    if ids is not None and len(ids) < count:
        name = "context_init_ids" if config.context_init is None else "context_init"
        raise ValueError(
            f"{name}: {config.context_init or ids!r} has {len(ids)} tokens, fewer than the {count} learned ones "
            "(num_prompt_tokens, num_text_tokens, context_init_ids); give more words, or None for random vectors"
        )


__all__ = [
    "TextPromptEmbedder",
    "TextPromptLayer",
    "TextPromptParameters",
    "TextPromptShape",
    "TextPromptStyle",
    "TextPromptTokenEmbedding",
    "check_enough_words",
    "fill_text_config",
    "overwrite_tokens",
    "text_targets",
    "text_tensors",
]
