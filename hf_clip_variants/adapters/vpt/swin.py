"""VPT on Swin (Jia et al. 2022), whose tokens attend to each other within windows.

In the paper prompts take part in the attention of every window, and are ignored when patches are merged. The rest is
our reading:

- A prompt's output is the mean of its outputs in all windows.
- Prompts have no position. The relative position bias is 0 between prompts and all tokens, and the mask of shifted
  windows does not apply to them.
- Where the next stage goes on with the same prompts, the weights that merge patches make them as wide as its tokens,
  as if each were four equal patches.
- Prompts are removed after the last stage, so the mean over tokens is one over patches.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.swin.modeling_swin import eager_attention_forward, window_partition, window_reverse

from .config import VPTConfig, layers_of_stage
from .layer import VPTPrompts


# Shapes: B images, W windows of an image, s side of a window, n prompts, H x W' patches, d width of the stage


def merge_prompts(merging: nn.Module, prompts: torch.Tensor) -> torch.Tensor:
    """(B, n, d) -> (B, n, 2 d), by the weights that merge four patches."""
    return merging.reduction(merging.norm(prompts.repeat(1, 1, 4)))


def attend(
    attention: nn.Module, tokens: torch.Tensor, count: int, mask: torch.Tensor | None, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention within windows that begin with prompts -> output of the same shape, and the weights if they are there.

    Args:
        attention: `SwinAttention`.
        tokens: (B W, n + s², d), normalised.
        count: n.
        mask: (W, s², s²) of shifted windows, additive.
    """
    queries, keys, values = (
        projection(tokens).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    bias = F.pad(attention.relative_position_bias(), (count, 0, count, 0))  # (1, heads, n + s², n + s²)
    if mask is not None:
        mask = F.pad(mask, (count, 0, count, 0))
        bias = bias + mask.repeat(len(tokens) // len(mask), 1, 1).unsqueeze(1)
    function: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, eager_attention_forward
    )
    dropout = attention.attention_dropout if attention.training else 0.0
    output, weights = function(
        attention, queries, keys, values, bias, dropout=dropout, scaling=attention.scaling, **kwargs
    )
    return attention.o_proj(output.flatten(2)), weights


def run_block(
    block: nn.Module,
    prompts: torch.Tensor,
    patches: torch.Tensor,
    grid: tuple[int, int],
    always_partition: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What a `SwinLayer` computes, with prompts in every window.

    Args:
        block: the `SwinLayer`.
        prompts: (B, n, d).
        patches: (B, H W', d).
        grid: (H, W').
        always_partition: whether a window may be larger than the grid.
        kwargs: for the attention.

    Returns:
        prompts and patches of the same shapes; and the attention's weights, or None.
    """
    if not always_partition:
        block.set_shift_and_window_size(grid)
    (height, width), side = grid, block.window_size
    batch_size, count, channels = prompts.shape
    tokens = torch.cat([prompts, patches], dim=1)

    normed = block.layernorm_before(tokens)
    image, _ = block.maybe_pad(normed[:, count:].reshape(batch_size, height, width, channels), height, width)
    padded_height, padded_width = image.shape[1:3]
    mask = block.get_attn_mask(padded_height, padded_width, dtype=image.dtype, device=image.device)
    windows = window_partition(block.cyclic_shift(image), side).flatten(1, 2)  # an image's windows are neighbours
    num_windows = windows.shape[0] // batch_size
    windows = torch.cat([normed[:, :count].repeat_interleave(num_windows, dim=0), windows], dim=1)
    windows, weights = attend(block.attention, windows, count, mask, **kwargs)
    windows = block.dropout(windows)
    of_prompts = windows[:, :count].unflatten(0, (batch_size, num_windows)).mean(1)
    image = window_reverse(windows[:, count:].unflatten(1, (side, side)), side, padded_height, padded_width)
    image = block.cyclic_shift(image, reverse=True)[:, :height, :width]
    tokens = tokens + block.drop_path(torch.cat([of_prompts, image.flatten(1, 2)], dim=1))

    tokens = tokens + block.dropout(block.mlp(block.layernorm_after(tokens)))
    prompts, patches = tokens.split([count, height * width], dim=1)
    return prompts, patches, weights


class SwinPromptStage(VPTPrompts):
    """Wraps one stage of Swin's encoder, and holds the prompts of its layers that have prompts of their own.

    Args:
        base_layer, anchor, patch_size, width: see `VPTPrompts`; `width` is that of the stage.
        first, count: number of the encoder's layers before the stage, and in it.
        is_last: whether it is the last stage.
    """

    def __init__(
        self, base_layer: nn.Module, anchor: nn.Module, *, first: int, count: int, is_last: bool, **sizes: Any
    ):
        super().__init__(base_layer, anchor, **sizes)
        self.first, self.count, self.is_last = first, count, is_last

    def own_depth(self, config: VPTConfig) -> int:
        return layers_of_stage(config.prompt_depth, self.first, self.count)

    def forward(
        self,
        hidden_states: torch.Tensor,
        input_dimensions: tuple[int, int],
        always_partition: bool = False,
        output_hidden_states_before_downsampling: bool = False,
        **kwargs: Any,
    ):
        """As `SwinStage.forward`. If the first layer of the next stage has no prompts of its own, those of this stage
        stand before the patches that are handed to it."""
        name, stage = self.active_name(), self.base_layer
        options = {
            "always_partition": always_partition,
            "output_hidden_states_before_downsampling": output_hidden_states_before_downsampling,
        } | kwargs
        if name is None:
            return stage(hidden_states, input_dimensions, **options)
        height, width = input_dimensions
        prompts, patches = hidden_states.tensor_split([hidden_states.shape[1] - height * width], dim=1)
        if self.own_depth(self.configs[name]):
            prompts = self.layer_prompts(name, 0, patches.shape[0]).to(patches)

        run = partial(self._run, name=name, grid=input_dimensions, **options)
        if stage.gradient_checkpointing and self.training and torch.is_grad_enabled():
            # After the prompts were inserted, because one kind of checkpointing asks for inputs that want gradients.
            prompts, *outputs = stage._gradient_checkpointing_func(run, prompts, patches)
        else:
            prompts, *outputs = run(prompts, patches)
        # The stage itself is not called, but transformers collects hidden states with hooks on it.
        for key, hook in stage._forward_hooks.items():
            with_kwargs = (options,) if key in stage._forward_hooks_with_kwargs else ()
            hook(stage, (patches, input_dimensions), *with_kwargs, tuple(outputs))
        if self._hands_on(name):
            outputs[0] = torch.cat([prompts, outputs[0]], dim=1)
        return tuple(outputs)

    def _hands_on(self, name: str) -> bool:
        """Whether the next stage starts with this one's prompts."""
        return not self.is_last and self.first + self.count >= self.configs[name].prompt_depth

    def _run(
        self,
        prompts: torch.Tensor,
        patches: torch.Tensor,
        *,
        name: str,
        grid: tuple[int, int],
        always_partition: bool,
        output_hidden_states_before_downsampling: bool,
        **kwargs: Any,
    ):
        """`SwinStage.forward` with prompts -> prompts as the next stage takes them, and what the stage returns."""
        stage, own_depth, weights = self.base_layer, self.own_depth(self.configs[name]), None
        for index, block in enumerate(stage.blocks):
            if 0 < index < own_depth:
                prompts = self.layer_prompts(name, index, patches.shape[0]).to(patches)
            prompts, patches, weights = run_block(block, prompts, patches, grid, always_partition, **kwargs)
        if self._hands_on(name):
            prompts = merge_prompts(stage.downsample, prompts)
        before_merging = patches
        if stage.downsample is not None:
            patches = stage.downsample(patches, grid)
        reshaped = stage.get_reshaped_hidden_states(
            patches, before_merging, *grid, output_hidden_states_before_downsampling
        )
        return prompts, patches, reshaped, weights


__all__ = ["SwinPromptStage", "attend", "merge_prompts", "run_block"]
