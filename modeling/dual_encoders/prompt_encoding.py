r"""Encode many prompts with a causal CLIP text encoder, exactly and without unnecessary work.

The way from class names to class features (C classes, T templates, N = C T prompts of at most L tokens):

    set_classes(names, templates)
        |  tokenizer
        v
    ClassPrompts        ids of the classes: template_ids (C, T, L), and names alone, for learned contexts
        |  prompt_embedder     plain: the templates as they are; CoOp and others: learned vectors among them
        v
    EmbeddedPrompts     input_ids (N, L), and the embeddings to use instead of theirs, if any
        |  family.encode_text -> encode_text here -> encode_prompts (causal) or encode_rows (bidirectional)
        v
    text features       (N, D), averaged over the T templates of a class: class features (C, D)

A causal encoder never looks ahead, so two facts hold to the last bit of rounding:

- nothing after a prompt's EOS token can change its pooled feature: padding is never computed;
- prompts that start with the same tokens have the same hidden states there: "a photo of a" is computed once, not once
  per class.

Prompts are therefore packed as *trees*: one token sequence holds many prompts, every shared token once, children after
their parent (depth first). Two prompts "a cat" and "a dog" make this tree of six tokens, in slots 0 to 5:

    SOS(0) - a(1) - cat(2) - EOS(3)          slot              0    1    2    3    4    5
                  \                          token            SOS   a   cat  EOS  dog  EOS
                   dog(4) - EOS(5)           position          0    1    2    3    2    3
                                             subtree ends at   6    6    4    4    6    6

A token sees its ancestors and itself only: slot i sees slot j where j <= i < end of j's subtree. This boolean mask
turns the encoder's ordinary layers into tree attention, all matrix products stay large, and nothing is padded to the
longest prompt. In the last layer only EOS tokens ask a query. Compared with 77 padded tokens a prompt this is 10-20x
less work (`scripts/benchmark_speed.py`, rows `class_embeddings` and `coop_step`).

The plain way, the reference that tests compare with, is the encoder's own forward: `own_layers`, and
`backbones.encode_whole_rows`, which exported code uses. Bidirectional encoders (SigLIP, Chinese-CLIP, AltCLIP) have no
other: there later tokens change earlier ones, and `encode_rows` runs them whole.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as checkpoint_activations
from transformers import CLIPTextModel
from transformers.masking_utils import create_causal_mask
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoder, CLIPEncoderLayer, CLIPTextEmbeddings

from .offloading import device_of
from .row_encoding import check_prefix, checked_deep_prompts, chunks, encode_rows, has_variants
from .tracing import is_traced


# Tokens of one tree. Attention is dense over a tree, so its share of the work grows with this number; the shared
# prefix is repeated in every tree, so its share shrinks. Between 128 and 256 the speed of the ViT-B text encoder is
# about the same.
TREE_TOKENS = 192

# text encoder -> (ids, shared prefix, plan) of its last prompts; see `_plan_of`
_LAST_PLANS: weakref.WeakKeyDictionary[nn.Module, tuple] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class PromptPlan:
    """How prompts are packed into trees. Made by `plan_prompts`; depends on ids only, so it is made once for fixed
    prompts.

    N prompts of at most L tokens, packed in G trees of T slots with at most E EOS tokens each. All tensors are int64.
    """

    token_index: torch.Tensor  # (G, T) slot -> index into `input_ids.flatten()`
    positions: torch.Tensor  # (G, T) slot -> position of the token in its prompt
    subtree_end: torch.Tensor  # (G, T) slot -> first later slot that does not descend from it
    eos_slots: torch.Tensor  # (G, E) the slots that hold an EOS token
    row_of_prompt: torch.Tensor  # (N,) prompt -> index into the flattened (G, E)
    eos_positions: torch.Tensor  # (N,) position of each prompt's EOS token
    prompts_shape: tuple[int, int]  # (N, L)
    longest: int  # tokens of the longest prompt, SOS and EOS included
    shared_prefix: int | Literal["auto"]
    _copies: dict = field(default_factory=dict, repr=False, compare=False)

    def to(self, device: torch.device | str) -> "PromptPlan":
        """The plan on `device`; copied at the first call only, not in every training step."""
        device = torch.device(device)
        if self.token_index.device == device:
            return self
        if device not in self._copies:
            values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "_copies"}
            moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in values.items()}
            self._copies[device] = PromptPlan(**moved)
        return self._copies[device]

    @property
    def num_tokens(self) -> int:
        """Tokens that the encoder computes, without the empty slots at the ends of trees."""
        return int((self.subtree_end > 0).sum())


def plan_prompts(
    input_ids: torch.Tensor, eos_token_id: int | None, shared_prefix: int | Literal["auto"] = "auto"
) -> PromptPlan:
    """Find each prompt's EOS and what the prompts share.

    Args:
        input_ids: (N, L) integer ids; whatever follows a prompt's EOS is ignored.
        eos_token_id: its first occurrence ends a prompt. None: the position of the largest id does.
            `pooled_token(text_model)` says which.
        shared_prefix: `"auto"` shares every common beginning, found by comparing ids (right when equal ids mean equal
            embeddings). A number n states that the first n tokens of *all* prompts are the same and none after them,
            whatever the ids.

    Raises:
        ValueError: no prompts, a prompt without EOS, or ids that contradict `shared_prefix`.
    """
    if input_ids.ndim != 2 or input_ids.shape[0] == 0 or input_ids.is_floating_point():
        raise ValueError(
            f"input_ids: expected integer ids of shape (prompts, tokens) with at least one prompt, got "
            f"{input_ids.dtype} {tuple(input_ids.shape)}"
        )
    ids = input_ids.detach().cpu().numpy().astype(np.int64)
    eos_positions = _eos_positions(ids, eos_token_id)
    lengths = eos_positions + 1
    longest = int(lengths.max())
    columns = np.arange(longest)
    ids = np.where(columns < lengths[:, None], ids[:, :longest], -1)

    # `order` sorts prompts like words in a dictionary: those that share a beginning are neighbours. `shared` counts
    # the tokens that each has in common with the one before it, which need not be computed again.
    if shared_prefix == "auto":
        order = np.lexsort(ids.T[::-1])
        ids, lengths = ids[order], lengths[order]
        differs = np.concatenate([ids[1:] != ids[:-1], np.ones((len(ids) - 1, 1), dtype=bool)], axis=1)
        shared = np.minimum(differs.argmax(axis=1), lengths[1:])
    else:
        _check_shared_prefix(ids, shared_prefix)
        order = np.arange(len(ids))
        shared = np.minimum(np.minimum(shared_prefix, lengths[1:]), lengths[:-1])
    shared = np.concatenate([[0], shared])

    starts = _tree_starts(lengths, shared, max(TREE_TOKENS, longest))
    shared[starts] = 0
    return _pack(order, lengths, shared, starts, tuple(input_ids.shape), eos_positions, shared_prefix)


def pooled_token(text_model: nn.Module) -> int | None:
    """The id whose first occurrence `text_model` pools; None where it pools the largest id (`CLIPTextModel` with an
    EOS of 2, as of 2022).
    """
    return None if isinstance(text_model, CLIPTextModel) and text_model.eos_token_id == 2 else text_model.eos_token_id


def _eos_positions(ids: np.ndarray, eos_token_id: int | None) -> np.ndarray:
    if eos_token_id is None:
        return ids.argmax(axis=1)
    is_eos = ids == eos_token_id
    missing = np.flatnonzero(~is_eos.any(axis=1))
    if len(missing):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ValueError(f"input_ids: row {missing[0]} has no EOS token (eos_token_id {eos_token_id}){more}")
    return is_eos.argmax(axis=1)


def _check_shared_prefix(ids: np.ndarray, shared_prefix: int):
    if not isinstance(shared_prefix, int) or isinstance(shared_prefix, bool) or shared_prefix < 0:
        raise ValueError(f'shared_prefix: expected "auto" or a number of tokens >= 0, got {shared_prefix!r}')
    differs = np.argwhere(ids[:, :shared_prefix] != ids[:1, :shared_prefix])
    if len(differs):
        row, column = differs[0]
        raise ValueError(
            f"shared_prefix: {shared_prefix} tokens are said to be the same in all prompts, but row {row} has id "
            f"{ids[row, column]} at position {column} where row 0 has {ids[0, column]}"
        )


def _tree_starts(lengths: np.ndarray, shared: np.ndarray, capacity: int) -> list[int]:
    """First prompts of trees: as few trees as `capacity` allows, then as equal as possible, because all are padded to
    the largest.
    """
    lengths, new_tokens = lengths.tolist(), (lengths - shared).tolist()

    def fill(capacity):
        starts, used = [0], lengths[0]
        for row in range(1, len(lengths)):
            used += new_tokens[row]
            if used > capacity:
                starts.append(row)
                used = lengths[row]
        return starts

    # The smallest capacity that needs no more trees than the largest one, found by bisection.
    best = fill(capacity)
    too_small, enough = max(max(lengths), -(-sum(new_tokens) // len(best))) - 1, capacity
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        starts = fill(middle)
        if len(starts) == len(best):
            enough, best = middle, starts
        else:
            too_small = middle
    return best


def _pack(order, lengths, shared, starts, prompts_shape, eos_positions, shared_prefix) -> PromptPlan:
    """The sorted prompts as trees. A node is one token of a tree; rows are prompts in the order of `order`."""
    num_rows, longest = len(lengths), int(lengths.max())
    columns = np.arange(longest)
    exists = columns < lengths[:, None]
    is_new = exists & (columns >= shared[:, None])
    node_count = np.cumsum(is_new.sum(axis=1))  # nodes made by this and all earlier rows
    # Rows are in depth-first order: a token that is not new belongs to the last row above that made one in its column.
    node_of = np.where(is_new, np.cumsum(is_new).reshape(is_new.shape) - 1, -1)
    node_of = np.maximum.accumulate(node_of, axis=0)
    end_of_node = np.zeros(node_count[-1], dtype=np.int64)
    np.maximum.at(end_of_node, node_of[exists], np.broadcast_to(node_count[:, None], exists.shape)[exists])

    # Nodes are numbered depth first over all trees; a slot is a node's number within its own tree.
    rows, cols = np.nonzero(is_new)
    tree_of_row = np.zeros(num_rows, dtype=np.int64)
    tree_of_row[starts[1:]] = 1
    tree_of_row = np.cumsum(tree_of_row)
    first_node = np.concatenate([[0], node_count[np.array(starts[1:], dtype=np.int64) - 1]])
    tree = tree_of_row[rows]
    slot = np.arange(len(rows)) - first_node[tree]
    shape = (len(starts), int(slot.max()) + 1)

    token_index, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    subtree_end = np.zeros(shape, dtype=np.int64)  # 0: an empty slot
    token_index[tree, slot] = order[rows] * prompts_shape[1] + cols
    positions[tree, slot] = cols
    subtree_end[tree, slot] = end_of_node - first_node[tree]

    # Equal prompts share their EOS node: each is computed once, and prompts point to it.
    eos_nodes, eos_of_row = np.unique(node_of[np.arange(num_rows), lengths - 1], return_inverse=True)
    eos_tree = tree[eos_nodes]
    rank = np.arange(len(eos_nodes)) - np.searchsorted(eos_tree, eos_tree)
    eos_slots = np.zeros((len(starts), int(rank.max()) + 1), dtype=np.int64)
    eos_slots[eos_tree, rank] = slot[eos_nodes]
    row_of_prompt = np.empty(num_rows, dtype=np.int64)
    row_of_prompt[order] = (eos_tree * eos_slots.shape[1] + rank)[eos_of_row]

    return PromptPlan(
        *map(torch.from_numpy, (token_index, positions, subtree_end, eos_slots, row_of_prompt, eos_positions)),
        prompts_shape=prompts_shape,
        longest=longest,
        shared_prefix=shared_prefix,
    )


def encode_prompts(
    text_model: CLIPTextModel,
    input_ids: torch.Tensor,
    inputs_embeds: torch.Tensor | None = None,
    *,
    prefix_embeds: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    deep_prompts: Mapping[int, torch.Tensor] | None = None,
    deep_start: int = 1,
    shared_prefix: int | Literal["auto"] | None = None,
    plan: PromptPlan | None = None,
    max_tokens_per_chunk: int = 16384,
    checkpoint: bool = False,
) -> torch.Tensor:
    """`text_model(input_ids).pooler_output` of many prompts: (N, L) ids -> (N, width), equal up to rounding, gradients
    included.

    The pooled feature is the last layer's state at the EOS token after the final layer norm; the text projection is
    the caller's. Layers are used through their sub-modules, so LoRA on `q_proj`, `fc1`, ... takes part. Where that
    would not be the model's own computation (see `why_own_layers`), prompts are only trimmed to the longest and the
    model's own layers run.

    Args:
        text_model: a transformers `CLIPTextModel` or `MetaClip2TextModel`.
        input_ids: (N, L) ids; where embeddings are given they only say where EOS is and which prefix is shared.
        inputs_embeds: (N, L, width) *token* embeddings to use instead of the ids' (B, N, L, width: B variants of all
            prompts); positions are added here. The result is then (N, width) or (B, N, width).
        prefix_embeds: (P, width) or (B, P, width) token embeddings of the first P tokens of all prompts, in B variants
            (one per image, say): the cheap way to B variants, as nothing of size B x N x L exists.
        position_ids: (L,) position of each token of a prompt. Default: 0..L-1.
        deep_prompts: layer -> (n, width): these replace the states from token `deep_start` on in the layer's input
            (layer 0 is the first).
        deep_start: see `deep_prompts`.
        shared_prefix: see `plan_prompts`. Default: `"auto"` without `inputs_embeds`, 0 with them, because equal ids
            need not mean equal embeddings. A number n with `inputs_embeds` states that the first n embeddings of all
            prompts are the same tensor: they are read from row 0, and their whole gradient goes there (for CoOp's
            shared context: 1 + number of context vectors).
        plan: `plan_prompts(input_ids, pooled_token(text_model), shared_prefix)`, made beforehand for ids that do not
            change.
        max_tokens_per_chunk: tokens run at once; bounds memory without gradients, and with them under `checkpoint`.
        checkpoint: recompute each chunk in the backward pass (one more forward) instead of keeping its activations.
            Also on when gradient checkpointing is enabled on the model.

    Raises:
        TypeError: another kind of text encoder. ValueError: shapes, EOS, or a plan that do not fit.

    Example:
        >>> import torch
        >>> from transformers import CLIPTextConfig, CLIPTextModel
        >>> sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 99}
        >>> config = CLIPTextConfig(**sizes, eos_token_id=98, max_position_embeddings=16)
        >>> text_model = CLIPTextModel(config).eval()
        >>> ids = torch.tensor([[97, 5, 6, 7, 98, 98], [97, 5, 6, 8, 9, 98]])
        >>> torch.allclose(encode_prompts(text_model, ids), text_model(ids).pooler_output, atol=1e-5)
        True
    """
    classes = _classes_of(text_model)
    if inputs_embeds is not None and (
        inputs_embeds.ndim not in (3, 4) or inputs_embeds.shape[-3:-1] != input_ids.shape
    ):
        raise ValueError(
            f"inputs_embeds: expected shape ([batch,] *{tuple(input_ids.shape)}, width) to go with input_ids, got "
            f"{tuple(inputs_embeds.shape)}"
        )
    check_prefix(prefix_embeds, inputs_embeds, input_ids)
    embeddings = text_model.embeddings
    plain_embeddings = type(embeddings) is classes["TextEmbeddings"] and not is_intercepted(embeddings)
    ids_tell_embeddings = inputs_embeds is None and plain_embeddings
    if plan is None:
        if shared_prefix is None:
            shared_prefix = "auto" if ids_tell_embeddings else 0
        plan = plan_prompts(input_ids, pooled_token(text_model), shared_prefix)
    elif plan.prompts_shape != tuple(input_ids.shape):
        raise ValueError(f"plan: made for input_ids of shape {plan.prompts_shape}, got {tuple(input_ids.shape)}")
    elif shared_prefix is not None and shared_prefix != plan.shared_prefix:
        raise ValueError(f"plan: made with shared_prefix={plan.shared_prefix!r}, but {shared_prefix!r} was asked for")
    if plan.shared_prefix == "auto" and not ids_tell_embeddings:
        if inputs_embeds is not None:
            raise ValueError(
                'shared_prefix: "auto" compares ids, which do not determine inputs_embeds; say how many tokens are '
                "shared"
            )
        plan = plan_prompts(input_ids, pooled_token(text_model), 0)
    max_positions = text_model.config.max_position_embeddings
    if plan.longest > max_positions and position_ids is None:
        row = int(plan.eos_positions.argmax())
        raise ValueError(
            f"input_ids: row {row} has {plan.longest} tokens, the text encoder takes {max_positions}; truncate, "
            "keeping EOS"
        )
    layers = text_model.encoder.layers
    deep_prompts = checked_deep_prompts(deep_prompts, len(layers))
    checkpoint = (checkpoint or (layers[0].gradient_checkpointing and layers[0].training)) and torch.is_grad_enabled()

    if why_own_layers(text_model) is not None:
        trimmed = slice(0, plan.longest)
        return encode_rows(
            lambda ids, embeds, positions: own_layers(text_model, ids, embeds, positions),
            input_ids[:, trimmed],
            None if inputs_embeds is None else inputs_embeds[..., trimmed, :],
            layers=layers,
            token_embedding=embeddings.token_embedding,
            prefix_embeds=prefix_embeds,
            position_ids=None if position_ids is None else position_ids[trimmed],
            deep_prompts=deep_prompts,
            deep_start=deep_start,
            max_tokens_per_chunk=max_tokens_per_chunk,
            checkpoint=checkpoint,
        )

    # Trees are independent of each other, and so are variants: any slice of both can run alone.
    plan = plan.to(device_of(text_model.final_layer_norm))
    embed = _SlotEmbeddings(text_model, input_ids, inputs_embeds, prefix_embeds, position_ids, plan, plain_embeddings)
    trees, slots = plan.token_index.shape
    variants_at_once = min(embed.variants, max(1, max_tokens_per_chunk // slots))
    pooled = []
    for variants in chunks(embed.variants, variants_at_once):
        of_variants = []
        for chunk in chunks(trees, max_tokens_per_chunk // (slots * variants_at_once)):
            deep = {
                layer: _DeepPrompt(prompt, plan.positions[chunk], deep_start) for layer, prompt in deep_prompts.items()
            }
            run = (text_model, embed(chunk, variants), plan.subtree_end[chunk], plan.eos_slots[chunk], deep)
            if checkpoint:
                # No dropout gets here (`why_own_layers`), so there is no random state to restore.
                output = checkpoint_activations(_run_trees, *run, use_reentrant=False, preserve_rng_state=False)
            else:
                output = _run_trees(*run)
            of_variants.append(output.unflatten(0, (-1, len(plan.subtree_end[chunk]))))
        pooled.append(torch.cat(of_variants, dim=1))
    pooled = torch.cat(pooled).flatten(1, 2)[:, plan.row_of_prompt]
    return pooled if has_variants(inputs_embeds, prefix_embeds) else pooled[0]


def _classes_of(text_model: nn.Module) -> dict[str, type]:
    """The classes that the text encoder and its parts must be of, for their insides to be known."""
    if isinstance(text_model, CLIPTextModel):
        return _CLIP_CLASSES
    if type(text_model).__module__ == "transformers.models.metaclip_2.modeling_metaclip_2":
        from transformers.models.metaclip_2 import modeling_metaclip_2 as metaclip

        if isinstance(text_model, metaclip.MetaClip2TextModel):
            return {name: getattr(metaclip, f"MetaClip2{name}") for name in _CLIP_CLASSES}
    raise TypeError(
        f"text_model: expected transformers' CLIPTextModel or MetaClip2TextModel, got {type(text_model).__name__}"
    )


_CLIP_CLASSES = {
    "TextEmbeddings": CLIPTextEmbeddings,
    "Encoder": CLIPEncoder,
    "EncoderLayer": CLIPEncoderLayer,
    "Attention": CLIPAttention,
}


class _DeepPrompt:
    """Replaces the states at some tokens before a layer. `columns` (G, T): the token that each slot holds."""

    def __init__(self, prompt: torch.Tensor, columns: torch.Tensor, start: int):
        place = columns - start
        self.inside = ((place >= 0) & (place < len(prompt)))[..., None]  # (G, T, 1)
        self.states = prompt[place.clamp(0, len(prompt) - 1)]  # (G, T, width)

    def put_into(self, hidden: torch.Tensor) -> torch.Tensor:
        """(variants * G, T, width), the slots of the prompt overwritten."""
        split = hidden.unflatten(0, (-1, len(self.inside)))
        return torch.where(self.inside, self.states.to(hidden.dtype), split).flatten(0, 1)


class _SlotEmbeddings:
    """Slice of trees, slice of variants -> (variants * trees, T, width), positions added."""

    def __init__(self, text_model, input_ids, inputs_embeds, prefix_embeds, position_ids, plan, plain_embeddings):
        like = {"device": device_of(text_model.final_layer_norm), "dtype": text_model.final_layer_norm.weight.dtype}
        self.embeddings, self.plan, self.variants = text_model.embeddings, plan, 1
        self.position_ids = None if position_ids is None else position_ids.to(like["device"])
        # one of them: ids, embeddings without, embeddings with positions
        self.ids = self.token_embeds = self.embeds = None
        self.prefix = (
            None if prefix_embeds is None else prefix_embeds.to(**like).reshape(-1, *prefix_embeds.shape[-2:])
        )
        if inputs_embeds is not None:
            self.token_embeds = inputs_embeds.to(**like).reshape(-1, input_ids.numel(), inputs_embeds.shape[-1])
            self.variants = len(self.token_embeds)
        elif plain_embeddings or prefix_embeds is not None:
            self.ids = input_ids.to(like["device"]).flatten()
        else:
            # A tuner's module may turn ids into embeddings that depend on the row: it sees the rows.
            rows = self.embeddings(input_ids=input_ids[:, : plan.longest].to(like["device"]))
            self.embeds = F.pad(rows, (0, 0, 0, input_ids.shape[1] - plan.longest)).flatten(0, 1)
        if self.prefix is not None:
            self.variants = len(self.prefix)

    def __call__(self, trees: slice, variants: slice) -> torch.Tensor:
        index, columns = self.plan.token_index[trees], self.plan.positions[trees]
        positions = columns if self.position_ids is None else self.position_ids[columns]
        # The encoder's module takes at most `max_position_embeddings` tokens a row, a tree has more: one token
        # a row.
        if self.embeds is not None:
            hidden = self.embeds[index]
        elif self.token_embeds is None and self.prefix is None:
            hidden = self.embeddings(input_ids=self.ids[index].view(-1, 1), position_ids=positions.reshape(-1, 1))
        else:
            if self.token_embeds is not None:
                which = variants if len(self.token_embeds) > 1 else slice(None)
                hidden = self.token_embeds[which][:, index.flatten()]
            else:
                hidden = self.embeddings.token_embedding(self.ids[index.flatten()][None])
            if self.prefix is not None:
                hidden = self._put_prefix(hidden, self.prefix[variants], columns.flatten())
            position_ids = positions.reshape(-1, 1).repeat(len(hidden), 1)
            hidden = hidden.reshape(-1, 1, hidden.shape[-1])
            hidden = self.embeddings(inputs_embeds=hidden, position_ids=position_ids)
        return hidden.view(-1, index.shape[1], hidden.shape[-1])

    @staticmethod
    def _put_prefix(hidden: torch.Tensor, prefix: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """(1, S, width) of S slots -> (variants, S, width)."""
        last = prefix.shape[1] - 1
        return torch.where((columns <= last)[:, None], prefix[:, columns.clamp(max=last)], hidden)


def _run_trees(text_model, hidden, subtree_end, eos_slots, deep: dict[int, _DeepPrompt]):
    """hidden (variants * G, T, width), subtree_end (G, T), eos_slots (G, E) -> (variants * G, E, width)."""
    trees, slots = subtree_end.shape
    variants = len(hidden) // trees
    slot = torch.arange(slots, device=hidden.device)
    # Depth-first order: j is i or an ancestor of i exactly when j <= i < end of j's subtree. An empty slot sees
    # itself.
    visible = (slot[None, :] <= slot[:, None]) & (slot[:, None] < subtree_end[:, None, :])
    visible = visible | (slot[None, :] == slot[:, None])
    # A huge number instead of -inf: equally exact, and safe in kernels that see a whole block masked.
    mask = torch.zeros(visible.shape, dtype=hidden.dtype, device=hidden.device)
    mask = mask.masked_fill(~visible, torch.finfo(hidden.dtype).min / 2).repeat(variants, 1, 1)[:, None]
    eos_slots = eos_slots.repeat(variants, 1)
    batch = torch.arange(len(hidden), device=hidden.device)[:, None]

    layers = text_model.encoder.layers
    for number, layer in enumerate(layers):
        if number in deep:
            hidden = deep[number].put_into(hidden)
        if number < len(layers) - 1:
            hidden = _run_layer(layer, hidden, mask)
    hidden = _run_layer(layers[-1], hidden, mask[batch, 0, eos_slots][:, None], queries=(batch, eos_slots))
    return text_model.final_layer_norm(hidden)


def _run_layer(layer, hidden, mask, queries=None):
    """A pre-norm encoder layer under `mask` (B, 1, queries, T); `queries` indexes the tokens to go on with (default:
    all).
    """
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden)
    key, value = (split_heads(project(normed), attention) for project in (attention.k_proj, attention.v_proj))
    if queries is not None:
        hidden, normed = hidden[queries], normed[queries]
    query = split_heads(attention.q_proj(normed), attention)
    context = F.scaled_dot_product_attention(query, key, value, mask.to(query.dtype), scale=attention.scale)
    hidden = hidden + attention.out_proj(context.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.layer_norm2(hidden))


def split_heads(states, attention):
    return states.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)


def why_own_layers(text_model: CLIPTextModel) -> str | None:
    """Why `encode_prompts` must run the model's own layers (None: it need not).

    A replaced, wrapped or intercepted layer may compute something else than its sub-modules say; recorded outputs
    belong to the model's own pass; and dropout draws one mask per prompt, which a shared token cannot have.
    """
    config = text_model.config
    if getattr(config, "output_hidden_states", False) or getattr(config, "output_attentions", False):
        return "the configuration asks to record hidden states or attentions"
    if is_intercepted(text_model):
        return "the text model has a hook or a patched forward"
    if text_model.training and hasattr(text_model.embeddings.token_embedding, "neftune_noise_alpha"):
        return "noise is added to token embeddings, and its size follows from the length of a prompt"
    # Exactly the modules whose own `forward` is not called here; all others are called and may be anything.
    classes = _classes_of(text_model)
    bypassed = [(text_model.encoder, classes["Encoder"])]
    for layer in text_model.encoder.layers:
        bypassed += [(layer, classes["EncoderLayer"]), (getattr(layer, "self_attn", None), classes["Attention"])]
    for module, kind in bypassed:
        if type(module) is not kind:
            return f"a {kind.__name__} was replaced by a {type(module).__name__}"
        if is_intercepted(module):
            return f"a {kind.__name__} has a hook or a patched forward"
        if kind is classes["Attention"] and module.training and module.dropout > 0:
            return "attention dropout is on"
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0 for m in text_model.modules()):
        return "dropout is on"
    return None


def is_intercepted(module: nn.Module) -> bool:
    hooks = [
        *module._forward_hooks.values(),
        *module._forward_pre_hooks.values(),
        *module._backward_hooks.values(),
        *module._backward_pre_hooks.values(),
    ]
    # transformers leaves its recording hooks in place for ever; they do nothing unless the model's own forward
    # records.
    return "forward" in vars(module) or any(getattr(h, "__name__", "") != "output_capturing_hook" for h in hooks)


def own_layers(
    text_model: nn.Module,
    input_ids: torch.Tensor,
    inputs_embeds: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """(N, L) ids -> (N, width) pooled by the causal encoder's own layers, padding and all.

    `inputs_embeds` (N, L, width) and `position_ids` (L,) as in `encode_prompts`.
    """
    if inputs_embeds is None and position_ids is None:
        return text_model(input_ids).pooler_output
    position_ids = None if position_ids is None else position_ids[None]
    text = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
    hidden = text_model.embeddings(**text, position_ids=position_ids)
    # The fourth argument, the cache, was renamed in transformers 5.24: positions are right on both sides of it.
    mask = create_causal_mask(text_model.config, hidden, None, None)
    hidden = text_model.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    token = pooled_token(text_model)
    eos = input_ids.argmax(dim=1) if token is None else (input_ids == token).int().argmax(dim=1)
    return text_model.final_layer_norm(hidden[torch.arange(hidden.shape[0], device=hidden.device), eos])


def encode_text(
    family, model: nn.Module, input_ids: torch.Tensor, *, shared_prefix: int | Literal["auto"] | None = None, **options
) -> torch.Tensor:
    """(N, L) ids -> (N, width) or (B, N, width) pooled, the way that suits the `CLIPFamily` of `model`.

    `options`: those of `encode_prompts`.
    """
    if not family.text_is_causal or is_traced():  # a plan of shared work is made from the ids' numbers
        return encode_rows(
            lambda ids, embeds, positions: family.run_text(model, ids, embeds, positions),
            input_ids,
            layers=model.get_submodule(family.text_layers),
            token_embedding=family.token_embedding_of(model),
            **options,
        )
    if shared_prefix is None:
        shared_prefix = "auto" if options.get("inputs_embeds") is None else 0
    plan = _plan_of(model.text_model, input_ids, shared_prefix)
    return encode_prompts(model.text_model, input_ids, plan=plan, **options)


def _plan_of(text_model: nn.Module, ids: torch.Tensor, shared_prefix: int | Literal["auto"]) -> PromptPlan:
    """How the prompts share work; planned once for the same ids, because a training step asks for it each time."""
    if torch.compiler.is_compiling():  # planning is NumPy's, and kept from call to call
        return torch.compiler.disable(_plan_of)(text_model, ids, shared_prefix)
    planned_ids, planned_prefix, plan = _LAST_PLANS.get(text_model, (None, None, None))
    same = plan is not None and planned_prefix == shared_prefix and planned_ids.shape == ids.shape
    if not (same and planned_ids.device == ids.device and torch.equal(planned_ids, ids)):
        plan = plan_prompts(ids, pooled_token(text_model), shared_prefix)
        _LAST_PLANS[text_model] = (ids.detach().clone(), shared_prefix, plan)
    return plan


__all__ = [
    "PromptPlan",
    "encode_prompts",
    "encode_text",
    "own_layers",
    "plan_prompts",
    "pooled_token",
    "why_own_layers",
]
