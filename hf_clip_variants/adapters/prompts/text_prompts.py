"""Learned tokens in several layers of a text tower: what IVLP and MaPLe put into prompts.

On a `CLIPClassifier` one module around `prompt_embedder` holds all tensors and hands them to the encoder, which shares work between prompts. On a
plain dual encoder the home is around the token embedding and modules around layers put the deeper prompts in, as the official code does.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..tuner import Base, TunerConfig, TunerLayer
from .initial_vectors import check_prompt_length, check_token_ids, initial_vectors, words_to_ids


# C classes, n learned tokens, J layers with prompts, S0 start tokens (SOS), d text width

TextPromptStyle = Literal["maple", "vpt_deep"]


@dataclasses.dataclass(frozen=True)
class TextPromptShape:
    """How the text side of an adapter looks.

    count: n learned tokens a layer. depth: J layers; 0: no text prompts. style: "maple": they stand in the place of the first words, with those
    words' positions; "vpt_deep": they are inserted before the words, without positions, and no word moves. word_ids: of the words that the
    prompts begin with ("maple": the context starts from the first of them); () for none.
    """

    count: int
    depth: int
    style: TextPromptStyle
    word_ids: tuple[int, ...]


class TextPromptHome(TunerLayer):
    """Holds the context (n, d) of layer 0 and the prompts (J - 1, n, d) of the layers behind it; `adapter_layer_names` of subclasses name both."""

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

    def prompt_of(self, adapter_name: str, layer: int) -> torch.Tensor:
        """(n, d) prompts of `layer`."""
        return self.context[adapter_name] if layer == 0 else self.deep[adapter_name][layer - 1]

    def update_layer(self, adapter_name: str, config: TunerConfig) -> None:
        """New tensors for an adapter: the words that they replace in layer 0, N(0, 0.02²) where there are none and behind it."""
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


class TextPromptEmbedder(TextPromptHome):
    """Wraps the classifier's `prompt_embedder`: prompts are start, learned tokens, the words that they do not replace, name, full stop."""

    def forward(self, prompts, token_embedding: nn.Module, image_embeds: torch.Tensor | None = None):
        """`prompts`: ClassPrompts of C classes. Returns EmbeddedPrompts of C rows."""
        embedded = self.base_layer(prompts, token_embedding, image_embeds)
        name = self.active_name()
        if not self.has_text_prompts(name):
            return embedded
        shape, starts = self.shape_of(name), prompts.start_ids.shape[1]
        kept_words = shape.word_ids if shape.style == "vpt_deep" else shape.word_ids[shape.count :]
        tails = prompts.tail_ids
        check_prompt_length(shape.count + len(kept_words), tails.shape[1], prompts.max_length, starts)
        words = torch.tensor(kept_words, dtype=tails.dtype, device=tails.device).expand(len(tails), -1)
        ids = torch.cat([prompts.start_ids, prompts.placeholders(shape.count), words, tails], dim=1)
        deep = {layer: self.prompt_of(name, layer) for layer in range(1, shape.depth)}
        common = {"input_ids": ids, "prompts_per_class": 1, "num_start_tokens": starts}
        if shape.style == "vpt_deep":
            after = torch.arange(starts, ids.shape[1] - shape.count)
            positions = torch.cat([torch.arange(starts), torch.zeros(shape.count, dtype=torch.int64), after])
            deep[0] = self.prompt_of(name, 0)  # overwrites whatever the placeholders and their positions gave
            return dataclasses.replace(embedded, **common, deep_prompts=deep, position_ids=positions.to(ids.device))
        start = token_embedding(prompts.start_ids[0])
        context = self.prompt_of(name, 0)
        return dataclasses.replace(
            embedded, **common, deep_prompts=deep, prefix_embeds=torch.cat([start.to(context), context])
        )


class TextPromptTokenEmbedding(TextPromptHome):
    """Wraps a plain dual encoder's token embedding: the learned context stands at the n tokens behind SOS, whatever ids are there."""

    def __init__(self, base_layer: nn.Module, anchor: nn.Module, num_start_tokens: int):
        super().__init__(base_layer, anchor)
        self.num_start_tokens = num_start_tokens

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        embeds = self.base_layer(input_ids)
        name = self.active_name()
        return (
            put_prompts(embeds, self.prompt_of(name, 0), self.num_start_tokens)
            if self.has_text_prompts(name)
            else embeds
        )


class TextPromptLayer(TunerLayer):
    """Wraps one layer of a plain dual encoder's text tower; see `VisualPromptLayer`."""

    def __init__(
        self, base_layer: nn.Module, anchor: nn.Module, root: nn.Module, home: str, index: int, num_start_tokens: int
    ):
        super().__init__(base_layer, anchor)
        self._root = (root,)  # not registered
        self.home_name, self.index, self.num_start_tokens = home, index, num_start_tokens

    def update_layer(self, adapter_name: str, config) -> None:
        self.configs[adapter_name] = config

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any):
        name = self.active_name()
        home = self._root[0].get_submodule(self.home_name)
        if home.has_text_prompts(name) and self.index < home.shape_of(name).depth:
            hidden_states = put_prompts(hidden_states, home.prompt_of(name, self.index), self.num_start_tokens)
        return self.base_layer(hidden_states, *args, **kwargs)


def put_prompts(hidden: torch.Tensor, prompts: torch.Tensor, start: int) -> torch.Tensor:
    """(N, L, d), (n, d) -> (N, L, d) with tokens `start` .. `start + n` overwritten. ValueError for rows that are too short.

    >>> put_prompts(torch.tensor([[[0.0], [1.0], [2.0], [3.0]]]), torch.tensor([[9.0]]), 1).flatten().tolist()
    [0.0, 9.0, 2.0, 3.0]
    """
    if hidden.shape[1] < start + len(prompts) + 1:
        raise ValueError(
            f"input_ids: rows of {hidden.shape[1]} tokens have no place for {len(prompts)} learned ones; write as many words, "
            'or placeholders ("X"), before the class name'
        )
    prompts = prompts.to(hidden).expand(len(hidden), -1, -1)
    return torch.cat([hidden[:, :start], prompts, hidden[:, start + prompts.shape[1] :]], dim=1)


def text_targets(base: Base, depth: int, style: TextPromptStyle) -> list[str]:
    """Names of the modules to wrap for text prompts in the first `depth` layers, the home first. ValueError where it cannot be done."""
    layers = base.widths["text layers"]
    if not 0 <= depth <= layers:
        raise ValueError(f"prompt_depth: {depth}, but the text tower has {layers} layers")
    if base.is_classifier:
        return ["prompt_embedder"]
    if not depth:
        return []
    if style == "vpt_deep":
        raise ValueError(
            f"text_prompt_style: 'vpt_deep' inserts tokens into prompts, which a plain {type(base.model).__name__} gets ready-made; "
            "use CLIPClassifier, or 'maple'"
        )
    family = base.family
    return [family.token_embedding] + [f"{family.text_layers}.{i}" for i in range(1, depth)]


def text_home(target_modules: list[str]) -> str:
    """The wrapped module that holds the text prompts: the classifier's prompt embedder, or a token embedding."""
    (home,) = [
        name
        for name in target_modules
        if name.split(".")[-1] in ("prompt_embedder", "token_embedding", "word_embeddings")
    ]
    return home


def text_tensors(config: TunerConfig, count: int, depth: int, prefix: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the text side's tensors."""
    home, width = text_home(config.target_modules), config.backbone_widths["text width"]
    tensors = {f"{home}.{prefix}_context": (count, width)}
    if depth > 1:
        tensors[f"{home}.{prefix}_text_prompts"] = (depth - 1, count, width)
    return tensors


def fill_text_config(config: TunerConfig, base: Base, count: int) -> None:
    """`config.context_init` -> `config.context_init_ids`. ValueError where there is no tokenizer, and for fewer words than learned tokens."""
    if config.context_init is not None and config.context_init_ids is None:
        config.context_init_ids = words_to_ids(config, base, config.context_init)
    check_token_ids("context_init_ids", config.context_init_ids, base)
    check_enough_words(config, count)


def check_enough_words(config: TunerConfig, count: int) -> None:
    """ValueError when the words that the context starts from are fewer tokens than are learned."""
    if config.context_init_ids is not None and len(config.context_init_ids) < count:
        raise ValueError(
            f"context_init: {config.context_init or config.context_init_ids!r} has {len(config.context_init_ids)} tokens, fewer than the "
            f"{count} learned ones; give more words, or None for a random context"
        )


def check_style(style: str) -> None:
    """ValueError for an unknown style."""
    if style not in get_args(TextPromptStyle):
        raise ValueError(f"text_prompt_style: {style!r}, expected one of {', '.join(get_args(TextPromptStyle))}")


__all__ = [
    "TextPromptEmbedder", "TextPromptHome", "TextPromptLayer", "TextPromptShape", "TextPromptStyle", "TextPromptTokenEmbedding",
    "check_enough_words", "check_style", "fill_text_config", "put_prompts", "text_targets", "text_tensors",
]  # fmt: skip
