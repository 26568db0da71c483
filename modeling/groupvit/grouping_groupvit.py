"""The parts of GroupViT's image encoder: layers, the assignment of tokens to groups, grouping blocks and stages.

Names of modules are those of transformers' GroupViT. That one cannot hold stages with another number of output groups
than of group tokens, has no drop path, and knows one attention kernel.
"""

from collections.abc import Callable
from typing import Unpack

import torch
from torch import nn
from torchvision.ops import StochasticDepth
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward
from transformers.models.groupvit.modeling_groupvit import GroupViTMixerMLP, GroupViTMLP
from transformers.utils import TransformersKwargs

from .configuration_groupvit import GroupViTVisionConfig


# B images, L tokens that enter a stage (patches or groups), G group tokens, O output groups, D width


# ---- assignment


def gumbel_sample(shape: torch.Size, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Noise of the standard Gumbel distribution, from torch's global generator of the device."""
    exponential = torch.empty(shape, device=device, dtype=dtype).exponential_()
    return -exponential.clamp_min(torch.finfo(dtype).tiny).log()


def assign_to_groups(
    logits: torch.Tensor, *, hard: bool = True, noise: torch.Tensor | None = None, temperature: float = 1.0
) -> torch.Tensor:
    r"""Shares of the groups in each token, (..., O, L) -> (..., O, L): softmax over the *groups* (dimension -2) of
    (logits + noise) / temperature (equation 3 of https://arxiv.org/abs/2202.11094).

    Computed in float32 at least, in the dtype of `logits`.

    Args:
        logits: (..., O, L), similarity of group o and token l.
        hard: each token is in one group, exactly 1 or 0, with the gradient of the softmax (straight-through, equation
            5).
        noise: (..., O, L), Gumbel noise in training ([`gumbel_sample`]); None: none.
        temperature: greater than 0.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants.modeling.groupvit.grouping_groupvit import assign_to_groups

    >>> assign_to_groups(torch.tensor([[1.0, 0.0, 3.0], [0.5, 2.0, 3.5]]))
    tensor([[1., 0., 0.],
            [0., 1., 1.]])
    ```
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if noise is not None:
        wide = wide + noise
    soft = (wide / temperature).softmax(-2)
    if hard:
        best = torch.zeros_like(soft).scatter_(-2, soft.argmax(-2, keepdim=True), 1.0)
        # In this order the difference is exactly 0, so that the result is exactly 1 or 0.
        soft = best + (soft - soft.detach())
    return soft.to(logits.dtype)


# ---- layers


class GroupViTAttention(nn.Module):
    """Multi-head attention of (B, L, D) to itself, or to `memory` (B, K, D) -> (B, L, D) and the weights."""

    def __init__(self, config: GroupViTVisionConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        width = config.hidden_size
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, hidden_states: torch.Tensor, memory: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        memory = hidden_states if memory is None else memory

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)

        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            heads(self.q_proj(hidden_states)),
            heads(self.k_proj(memory)),
            heads(self.v_proj(memory)),
            None,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.out_proj(output.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights


class GroupViTLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer with stochastic depth, (B, L, D) -> (B, L, D)."""

    def __init__(self, config: GroupViTVisionConfig, drop_path: float):
        super().__init__()
        self.self_attn = GroupViTAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = GroupViTMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attended, _ = self.self_attn(self.layer_norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(attended)
        return hidden_states + self.drop_path(self.mlp(self.layer_norm2(hidden_states)))


class GroupViTCrossAttentionLayer(nn.Module):
    """Groups (B, O, D) look at tokens (B, L, D) -> (B, O, D): attention without norm before it, MLP, norm after it."""

    def __init__(self, config: GroupViTVisionConfig):
        super().__init__()
        self.attn = GroupViTAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = GroupViTMLP(config)
        self.norm_post = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, groups: torch.Tensor, tokens: torch.Tensor, **kwargs: Unpack[TransformersKwargs]):
        groups = groups + self.attn(groups, tokens, **kwargs)[0]
        return self.norm_post(groups + self.mlp(self.norm2(groups)))


# ---- grouping


class GroupViTAssignAttention(nn.Module):
    """Each token joins a group, and each group is the mean of its tokens: groups (B, O, D), tokens (B, L, D) -> update
    of the groups (B, O, D), soft map without noise (B, O, L), shares that were used (B, O, L).
    """

    def __init__(self, config: GroupViTVisionConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, groups: torch.Tensor, tokens: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        config = self.config
        logits = self.q_proj(groups) @ self.k_proj(tokens).transpose(-2, -1) * config.hidden_size**-0.5
        soft = assign_to_groups(logits, hard=False)
        noisy = self.training and config.gumbel_noise
        if noisy and noise is None:
            # In float32 whatever the dtype of the model: float16 has no small uniform numbers.
            noise = gumbel_sample(logits.shape, logits.device)
        shares = assign_to_groups(
            logits,
            hard=config.assignment == "hard",
            noise=noise if noisy else None,
            temperature=config.gumbel_temperature if noisy else 1.0,
        )
        # With assign_eps 1, an empty group gets 0 and a group of one token half of that token.
        means = shares / (shares.sum(-1, keepdim=True) + config.assign_eps)
        return self.proj(means @ self.v_proj(tokens)), soft, shares


class GroupViTTokenAssign(nn.Module):
    """The grouping block: tokens (B, L, D) and group tokens (B, G, D) -> groups (B, O, D), and the assignment's maps.

    Section 3.2 of the paper.
    """

    def __init__(self, config: GroupViTVisionConfig, num_group_tokens: int, num_output_groups: int):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        over_tokens, over_channels = (int(ratio * width) for ratio in config.assign_mlp_ratio)
        self.norm_tokens = nn.LayerNorm(width, eps=eps)
        self.mlp_inter = GroupViTMixerMLP(config, num_group_tokens, over_tokens, num_output_groups)
        self.norm_post_tokens = nn.LayerNorm(width, eps=eps)
        self.norm_x = nn.LayerNorm(width, eps=eps)
        self.pre_assign_attn = GroupViTCrossAttentionLayer(config)
        self.assign = GroupViTAssignAttention(config)
        self.norm_new_x = nn.LayerNorm(width, eps=eps)
        self.mlp_channels = GroupViTMLP(config, width, over_channels, width)

    def forward(
        self,
        tokens: torch.Tensor,
        group_tokens: torch.Tensor,
        noise: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens = self.norm_x(tokens)
        groups = self.norm_post_tokens(self.mlp_inter(self.norm_tokens(group_tokens)))
        groups = self.pre_assign_attn(groups, tokens, **kwargs)
        update, soft, shares = self.assign(groups, tokens, noise)
        groups = groups + update
        return groups + self.mlp_channels(self.norm_new_x(groups)), soft, shares


class GroupViTStage(nn.Module):
    """
    Layers on tokens and group tokens together, then the grouping block, if the stage has group tokens.

    Args:
        stage: its number, from 0.
        drop_paths: the probability of each layer.
    """

    def __init__(self, config: GroupViTVisionConfig, stage: int, drop_paths: list[float]):
        super().__init__()
        width, count = config.hidden_size, config.num_group_tokens[stage]
        before = config.num_group_tokens[stage - 1] if stage else 0
        self.group_token = nn.Parameter(torch.empty(1, count, width)) if count else None
        self.layers = nn.ModuleList([GroupViTLayer(config, drop_path) for drop_path in drop_paths])
        self.downsample = self.group_projector = None
        if count:
            self.downsample = GroupViTTokenAssign(config, count, config.num_output_groups[stage])
        if count and before:
            # It takes the group tokens that leave the layers of the stage before: G of them, not O.
            mixer = GroupViTMixerMLP(config, before, width // 2, count)
            self.group_projector = nn.Sequential(nn.LayerNorm(width, eps=config.layer_norm_eps), mixer)

    def forward(
        self,
        tokens: torch.Tensor,
        group_tokens: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """
        Args:
            tokens: (B, L, D).
            group_tokens: (B, G of the stage before, D), those that left its layers.
            noise: (B, O, L) for the assignment, instead of a drawn one.

        Returns:
            Tokens of the next stage (B, O, D), or (B, L, D) without grouping; then, with grouping: the group tokens
            (B, G, D) that leave the layers, the soft map and the shares that were used, each (B, O, L).
        """
        if self.group_token is None:
            for layer in self.layers:
                tokens = layer(tokens, **kwargs)
            return tokens, None, None, None
        own = self.group_token.expand(len(tokens), -1, -1)
        if self.group_projector is not None:
            own = own + self.group_projector(group_tokens)
        length = tokens.shape[1]
        both = torch.cat([tokens, own.to(tokens.dtype)], dim=1)
        for layer in self.layers:
            both = layer(both, **kwargs)
        tokens, own = both[:, :length], both[:, length:]
        groups, soft, shares = self.downsample(tokens, own, noise, **kwargs)
        return groups, own, soft, shares


__all__ = ["GroupViTAttention", "GroupViTLayer", "GroupViTStage", "assign_to_groups", "gumbel_sample"]
