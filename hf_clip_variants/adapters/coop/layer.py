"""CoOp's prompts: the layout of context vectors and class names, and the modules that insert the vectors."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from ..prompts.initial_vectors import check_prompt_length, initial_vectors
from ..tuner import TunerLayer
from .config import ClassTokenPosition, CoOpConfig


# Shapes: C classes, M context tokens, S0 start tokens (1 for SOS, or 0), S tail tokens (name, ".", EOS, padding),
# d width of the text encoder. A prompt has S0 + M + S tokens.


def splice_order(
    num_context_tokens: int,
    tail_length: int,
    name_lengths: torch.Tensor,
    position: ClassTokenPosition,
    num_start_tokens: int = 1,
) -> torch.Tensor:
    """For each position of the prompt: the index of its token in `[start, context, tail]`. (C, S0 + M + S) int64.

    - end (Zhou et al. 2022, eq. 2): SOS, context, name, rest of the tail.
    - middle (eq. 4): SOS, first M // 2 of the context, name, rest of the context, rest of the tail.
    - front (in the official code): SOS, name, context, rest of the tail.

    All three have the same length, so EOS has the same position in all of them.

    Args:
        num_context_tokens: M.
        tail_length: S.
        name_lengths: (C,) number of tokens of each class name, which are the first ones of its tail.
        position: position of the class name.
        num_start_tokens: S0, 1 for SOS, or 0.
    """
    # The start keeps its positions. `before` tokens precede the name. From there on the name moves forward by
    # `first_name - before` positions, and the context tokens that it passes move back by the length of the name.
    # The rest of the tail keeps its positions.
    before = num_start_tokens + {"end": num_context_tokens, "middle": num_context_tokens // 2, "front": 0}[position]
    place = torch.arange(num_start_tokens + num_context_tokens + tail_length, device=name_lengths.device)
    name_lengths = name_lengths.long()[:, None]  # (C, 1)
    first_name = num_start_tokens + num_context_tokens  # index of the names in [start, context, tail]
    in_name = (place >= before) & (place < before + name_lengths)
    in_rest_of_context = (place >= before + name_lengths) & (place < first_name + name_lengths)
    order = torch.where(in_name, place - before + first_name, place)
    return torch.where(in_rest_of_context, place - name_lengths, order)


def splice(
    start: torch.Tensor,
    context: torch.Tensor,
    tails: torch.Tensor,
    name_lengths: torch.Tensor,
    position: ClassTokenPosition,
) -> torch.Tensor:
    """Puts prompts together from SOS, context and class names, as token ids or as token embeddings.

    Args:
        start: (C, S0) ids or (C, S0, d) embeddings of the start tokens.
        context: (M,) or (M, d) for all classes; (C, M) or (C, M, d) for one per class.
        tails: (C, S) or (C, S, d): name, ".", EOS, padding.
        name_lengths: (C,) number of tokens of each name.
        position: "end", "middle" or "front", see `splice_order`.

    Returns:
        (C, S0 + M + S) or (C, S0 + M + S, d), in the dtype of `tails`.

    Example:

    >>> start, context = torch.tensor([[7]]), torch.tensor([91, 92])
    >>> tails = torch.tensor([[1, 2, 3, 8]])  # a name of two tokens, ".", EOS
    >>> splice(start, context, tails, torch.tensor([2]), "middle").tolist()
    [[7, 91, 1, 2, 92, 3, 8]]
    """
    if context.dim() < tails.dim():
        context = context.expand(len(tails), *context.shape)
    tokens = torch.cat([start.to(tails.dtype), context.to(tails.dtype), tails], dim=1)
    if position == "end":
        return tokens
    order = splice_order(context.shape[1], tails.shape[1], name_lengths, position, start.shape[1])
    if tokens.dim() == 3:
        order = order[..., None].expand(-1, -1, tokens.shape[-1])
    return tokens.gather(1, order)


def shared_prefix_length(
    num_context_tokens: int, position: ClassTokenPosition, class_specific: bool, num_start_tokens: int = 1
) -> int:
    """Number of leading tokens that all prompts have in common: at least the start tokens."""
    if class_specific or position == "front":
        return num_start_tokens
    return num_start_tokens + (num_context_tokens if position == "end" else num_context_tokens // 2)


def fill_placeholders(
    token_embeds: torch.Tensor, input_ids: torch.Tensor, context: torch.Tensor, class_specific: bool
) -> torch.Tensor:
    """Replaces placeholders in prompts by context vectors.

    A placeholder is a repetition of the prompt's first token (SOS). No tokenizer writes SOS inside a text.

    Args:
        token_embeds: (N, L, d).
        input_ids: (N, L) with M placeholders per row.
        context: (M, d), or (C, M, d) with N = C: row k is for class k.
        class_specific: whether `context` has one row per class.

    Returns:
        (N, L, d) in the dtype of `token_embeds`.

    Raises:
        ValueError: another number of placeholders or rows.
    """
    if class_specific and len(input_ids) != len(context):
        raise ValueError(
            f"input_ids: {len(input_ids)} prompts, but the class-specific context is for {len(context)} classes, in "
            "order"
        )
    placeholder = input_ids == input_ids[:, :1]
    placeholder[:, 0] = False
    if not torch.compiler.is_compiling():  # the check reads numbers from the device, which would break the graph
        counts = placeholder.sum(dim=1)
        wrong = torch.nonzero(counts != context.shape[-2])
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(
                f"input_ids: row {row} has {int(counts[row])} placeholders, the adapter has {context.shape[-2]} "
                "context tokens; make prompts with coop_prompt_ids(...), or use disable_adapter() for other texts"
            )
    context = context if class_specific else context.expand(len(input_ids), *context.shape)
    # `masked_scatter` reads its source in row order: the m-th placeholder of a row gets the m-th context vector.
    return token_embeds.masked_scatter(placeholder[..., None], context.to(token_embeds.dtype))


def coop_prompt_ids(
    tokenizer,
    class_names: Sequence[str],
    num_context_tokens: int,
    class_token_position: ClassTokenPosition = "end",
    max_length: int = 77,
) -> torch.Tensor:
    """`input_ids` for CoOp on a plain `CLIPModel`: class prompts with M placeholders for the context vectors.

    A placeholder is the start token. A `CLIPClassifier` does not need this function.

    Args:
        tokenizer: a CLIP tokenizer.
        class_names: C names; underscores are read as spaces.
        num_context_tokens: M of the adapter.
        class_token_position: position of the class name, as in the adapter.
        max_length: positions of the text encoder.

    Returns:
        (C, L) int64, padded with EOS.

    Raises:
        ValueError: a prompt is longer than `max_length`.
    """
    names = [name.replace("_", " ") for name in class_names]
    tails = [row[1:] for row in tokenizer([f"{name}." for name in names]).input_ids]
    alone = [len(row) - 2 for row in tokenizer(names).input_ids]  # tokens of each name without SOS and EOS
    start, eos = tokenizer(names[0]).input_ids[0], tails[0][-1]
    longest = max(len(tail) for tail in tails)
    check_prompt_length(num_context_tokens, longest, max_length)
    tail_ids = torch.tensor([tail + [eos] * (longest - len(tail)) for tail in tails])
    # "name." can have fewer tokens than the name plus one, if the tokenizer merges "." with the end of the name.
    name_lengths = torch.tensor([min(n, len(tail) - 1) for n, tail in zip(alone, tails, strict=True)])
    starts = torch.full((len(names), 1), start)
    return splice(starts, torch.full((num_context_tokens,), start), tail_ids, name_lengths, class_token_position)


class CoOpLayer(TunerLayer):
    """Holds the context vectors; subclasses insert them into prompts."""

    adapter_layer_names = ("clipv_coop_context",)
    merge_refusal = "it changes the text encoder's input, not its weights"

    def __init__(self, base_layer: nn.Module, anchor: nn.Module):
        super().__init__(base_layer, anchor)
        self.clipv_coop_context = nn.ParameterDict()

    def update_layer(self, adapter_name: str, config: CoOpConfig) -> None:
        """Creates a context from the words in `config`, or a random one. float32."""
        token_embedding = self._anchor[0]
        shape = config.context_shape(token_embedding.weight.shape[1])
        self.configs[adapter_name] = config
        context = initial_vectors(shape, token_embedding, config.context_init_ids)
        self.clipv_coop_context[adapter_name] = nn.Parameter(context)


class PromptEmbedderWithContext(CoOpLayer):
    """Wraps the classifier's `prompt_embedder`: prompts of context and class name replace the templates."""

    def forward(self, prompts, token_embedding: nn.Module, image_embeds: torch.Tensor | None = None):
        """Returns the EmbeddedPrompts of C rows.

        Args:
            prompts: ClassPrompts of C classes.
            token_embedding: the text encoder's.
            image_embeds: not used.
        """
        embedded = self.base_layer(prompts, token_embedding, image_embeds)
        name = self.active_name()
        if name is None:
            return embedded
        config, context = self.configs[name], self.clipv_coop_context[name]
        tail_ids, name_lengths = prompts.tail_ids, prompts.tail_name_lengths
        if config.class_specific and len(context) != len(tail_ids):
            raise ValueError(
                f"class_names: {len(tail_ids)} classes, but adapter {name!r} has contexts for {len(context)} "
                "(class_specific=True)"
            )
        start_ids, placeholders = prompts.start_ids, prompts.placeholders(config.num_context_tokens)
        starts = start_ids.shape[1]
        check_prompt_length(config.num_context_tokens, tail_ids.shape[1], prompts.max_length, starts)
        # The ids have placeholders instead of the context: the encoder needs them to find EOS. The embeddings have the
        # context itself. Positions are added later, as in the official code.
        layout = (name_lengths, config.class_token_position)
        words = token_embedding(torch.cat([start_ids, tail_ids], dim=1))
        # Only where there is a backward pass: elsewhere nothing is kept, and large products are faster.
        trained = context.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_exporting()
        return dataclasses.replace(
            embedded,
            input_ids=splice(start_ids, placeholders, tail_ids, *layout),
            inputs_embeds=splice(words[:, :starts], context, words[:, starts:], *layout),
            prompts_per_class=1,
            shared_prefix=shared_prefix_length(
                config.num_context_tokens, config.class_token_position, config.class_specific, starts
            ),
            max_tokens_per_chunk=config.chunk_size(len(tail_ids)) if trained else None,
        )


class TextEmbeddingsWithContext(CoOpLayer):
    """Wraps `text_model.embeddings` of a plain `CLIPModel`: context vectors replace placeholders in `input_ids`."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        name = self.active_name()
        if name is None or input_ids is None or inputs_embeds is not None:
            return self.base_layer(input_ids=input_ids, position_ids=position_ids, inputs_embeds=inputs_embeds)
        token_embeds = self.base_layer.token_embedding(input_ids)
        context, class_specific = self.clipv_coop_context[name], self.configs[name].class_specific
        inputs_embeds = fill_placeholders(token_embeds, input_ids, context, class_specific)
        return self.base_layer(inputs_embeds=inputs_embeds, position_ids=position_ids)


__all__ = [
    "CoOpLayer",
    "PromptEmbedderWithContext",
    "TextEmbeddingsWithContext",
    "coop_prompt_ids",
    "fill_placeholders",
    "shared_prefix_length",
    "splice",
    "splice_order",
]
