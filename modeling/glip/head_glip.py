"""The parts between Swin and BERT and the predictions: feature pyramid, deep fusion, dynamic head."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import grid_sample, interpolate, relu6, scaled_dot_product_attention
from torchvision.ops import deform_conv2d, drop_block2d
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.bert.modeling_bert import BertLayer

from .configuration_glip import GLIPConfig


_OFFSETS, _WEIGHTS = 18, 9  # numbers at each place of a deformable 3 x 3 convolution: shifts (y, x), and their weights


def hard_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return relu6(x + 3) / 6


class GLIPPyramid(nn.Module):
    """Three maps of Swin -> five of one width: P3 to P5, and two more by strided convolutions."""

    def __init__(self, config: GLIPConfig):
        super().__init__()
        width = config.hidden_size
        self.drop = (config.drop_block_prob, config.drop_block_size)
        channels = [config.backbone_config.embed_dim * 2**i for i in (1, 2, 3)]
        self.lateral = nn.ModuleList(nn.Conv2d(one, width, 1) for one in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.further = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(2))

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """(B, C_i, h_i, w_i), finest first -> five (B, C, h, w)."""
        found, above = [], None
        for feature, lateral, smooth in reversed(list(zip(features, self.lateral, self.smooth, strict=True))):
            below = lateral(feature)
            above = below if above is None else below + interpolate(above, size=below.shape[-2:])
            found.insert(0, smooth(self._dropped(above)))
        for number, further in enumerate(self.further):
            last = found[-1].relu() if number else found[-1]
            # Zeros below and at the right of a single row or column change no value: the convolution pads with them.
            # Without, PyTorch's gradient of the weights in bfloat16 on a CPU has numbers that were in memory before.
            rows, columns = (int(size == 1) for size in last.shape[-2:])
            found.append(further(F.pad(last, (0, columns, 0, rows))))
        return found

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        prob, size = self.drop
        if not self.training or not prob or min(x.shape[-2:]) < size:
            return x
        return drop_block2d(x, prob, size)


class GLIPFusion(nn.Module):
    """Deep fusion (section 3.2 of the paper): regions and words attend to each other with one matrix of scores.

    What goes on are the *normalised* features plus a scaled update. Padding of the image takes part.
    """

    def __init__(self, config: GLIPConfig):
        super().__init__()
        image, text, inner = config.hidden_size, config.text_config.hidden_size, config.fusion_hidden_size
        self.num_heads, self.dropout = config.fusion_num_heads, config.fusion_dropout
        self.image_norm, self.text_norm = nn.LayerNorm(image), nn.LayerNorm(text)
        self.image_query, self.text_query = nn.Linear(image, inner), nn.Linear(text, inner)
        self.image_value, self.text_value = nn.Linear(image, inner), nn.Linear(text, inner)
        self.image_out, self.text_out = nn.Linear(inner, image), nn.Linear(inner, text)
        self.image_scale, self.text_scale = nn.Parameter(torch.ones(image)), nn.Parameter(torch.ones(text))

    def updates(
        self, regions: torch.Tensor, words: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised regions (B, N, C) and words (B, T, D), mask (B, T) -> what they learn of each other."""

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        dropout = self.dropout if self.training else 0.0
        of_regions, of_words = heads(self.image_query(regions)), heads(self.text_query(words))
        seen = mask.bool()[:, None, None]
        # Words ask regions without a mask: what padding learns is never read.
        to_regions = scaled_dot_product_attention(of_regions, of_words, heads(self.text_value(words)), seen, dropout)
        to_words = scaled_dot_product_attention(of_words, of_regions, heads(self.image_value(regions)), None, dropout)
        return (
            self.image_out(to_regions.transpose(1, 2).flatten(2)),
            self.text_out(to_words.transpose(1, 2).flatten(2)),
        )

    def forward(
        self, features: Sequence[torch.Tensor], words: torch.Tensor, mask: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Maps (B, C, h, w) of all levels and words (B, T, D) -> the same, fused."""
        shapes = [one.shape[-2:] for one in features]
        regions = torch.cat([one.flatten(2) for one in features], dim=2).transpose(1, 2)
        regions, words = self.image_norm(regions), self.text_norm(words)
        to_regions, to_words = self.updates(regions, words, mask)
        regions = (regions + self.image_scale * to_regions).transpose(1, 2)
        parts = regions.split([height * width for height, width in shapes], dim=2)
        fused = [part.unflatten(2, tuple(shape)) for part, shape in zip(parts, shapes, strict=True)]
        return fused, words + self.text_scale * to_words


class GLIPTextFusion(nn.Module):
    """The one-way variant of the official code ("MHA-S"): each level asks the words. No released model has it."""

    def __init__(self, config: GLIPConfig):
        super().__init__()
        image, text, inner = config.hidden_size, config.text_config.hidden_size, config.fusion_hidden_size
        self.num_heads, self.dropout = config.fusion_num_heads, config.fusion_dropout
        self.image_norm, self.text_norm = nn.LayerNorm(image), nn.LayerNorm(text)
        self.query, self.key, self.value = nn.Linear(image, inner), nn.Linear(text, inner), nn.Linear(text, inner)
        self.out, self.scale = nn.Linear(inner, image), nn.Parameter(torch.ones(image))

    def forward(self, features, words, mask):
        found = []
        for one in features:
            words = self.text_norm(words)  # once more at every level, as the official code does
            regions = self.image_norm(one.flatten(2).transpose(1, 2))
            parts = (self.query(regions), self.key(words), self.value(words))
            parts = [part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts]
            answer = scaled_dot_product_attention(*parts, mask.bool()[:, None, None])
            regions = regions + self.scale * self.out(answer.transpose(1, 2).flatten(2))
            found.append(regions.transpose(1, 2).unflatten(2, tuple(one.shape[-2:])))
        return found


class GLIPDeformableConvolution(nn.Module):
    """Modulated deformable 3 x 3 convolution with group norm."""

    def __init__(self, width: int, groups: int, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(width, width, 3, 3))
        self.bias = nn.Parameter(torch.empty(width))
        self.normalization = nn.GroupNorm(groups, width)

    def forward(self, x: torch.Tensor, shifts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w), shifts (B, 18, H, W) and weights (B, 9, H, W) -> (B, C, H', W').

        H' and W' are smaller than H and W where x is the next coarser level. The official kernel then reads the first
        numbers of each image's memory as if they were of size H' x W', and the released weights were trained so.
        """
        size = [(length - 1) // self.stride + 1 for length in x.shape[-2:]]
        shifts, weights = _reread(shifts, size), _reread(weights, size)
        # Outside of the map everything is 0, however far; torchvision's kernel reads memory at random for numbers that
        # are no places. Where shifts are NaN, the weights beside them are, too, and so is the result.
        outside = float(max(x.shape[-2:]) + 4)
        shifts = shifts.clamp(-outside, outside).nan_to_num(nan=outside)
        # There is no kernel for half precision on every device.
        tensors = (one.float() for one in (x, shifts, self.weight, self.bias, weights))
        value, shifts, kernel, bias, weights = tensors
        sampled = value.device.type == "cpu" and not torch.compiler.is_compiling()  # graphs keep one operation
        convolve = deform_conv2d_by_sampling if sampled else deform_conv2d_of_torchvision
        return self.normalization(convolve(value, shifts, kernel, bias, weights, self.stride).to(x.dtype))


def deform_conv2d_of_torchvision(x, shifts, kernel, bias, weights, stride: int = 1) -> torch.Tensor:
    """Modulated deformable 3 x 3 convolution with padding 1, of x (B, C, h, w): shifts (B, 18, H, W), each place's y
    and x in turn, kernel (D, C, 3, 3), bias (D,), weights (B, 9, H, W) -> (B, D, H, W). In float32 or float64."""
    return deform_conv2d(x, shifts, kernel, bias, stride, padding=1, mask=weights)


def deform_conv2d_by_sampling(x, shifts, kernel, bias, weights, stride: int = 1) -> torch.Tensor:
    """The same (to rounding) by `grid_sample` and a product of matrices. On a CPU torchvision's gradient is a loop
    over single numbers: this takes a sixth of its time, and half of it without gradient."""
    batch, channels, height, width = x.shape
    size = shifts.shape[-2:]
    near = torch.arange(-1, 2, device=x.device, dtype=x.dtype)
    rows, columns = (torch.arange(length, device=x.device, dtype=x.dtype) * stride for length in size)
    y, at_x = shifts.unflatten(1, (9, 2)).unbind(2)
    y = y + near.repeat_interleave(3)[:, None, None] + rows[:, None]
    at_x = at_x + near.repeat(3)[:, None, None] + columns
    # Places of pixels as `grid_sample` counts them; outside of the map everything is 0.
    grid = torch.stack([(2 * at_x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    found = grid_sample(x, grid.flatten(1, 2), padding_mode="zeros", align_corners=False)
    found = found.view(batch, channels, 9, -1)
    weights = weights.flatten(2)[:, None]
    found = found * weights if found.requires_grad or weights.requires_grad else found.mul_(weights)
    # Not `@`: what that computes first, and so the last bits, would depend on what wants a gradient.
    kernel = kernel.flatten(1).expand(batch, -1, -1)
    return torch.baddbmm(bias[:, None], kernel, found.flatten(1, 2)).unflatten(2, size)


def _reread(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, *size): the first numbers of each image."""
    if list(x.shape[-2:]) == list(size):
        return x
    height, width = size
    return x.flatten(1)[:, : x.shape[1] * height * width].unflatten(1, (x.shape[1], height, width))


class GLIPDynamicReLU(nn.Module):
    """The larger of two lines, whose slopes and offsets depend on the whole map."""

    def __init__(self, width: int, reduction: int):
        super().__init__()
        narrow = max(width // reduction, 1)
        self.inner, self.outer = nn.Linear(width, narrow), nn.Linear(narrow, 4 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = hard_sigmoid(self.outer(self.inner(x.mean(dim=(2, 3))).relu()))[..., None, None] - 0.5
        slope, offset, other_slope, other_offset = codes.chunk(4, dim=1)
        return torch.maximum(x * (2 * slope + 1) + offset, x * (2 * other_slope) + other_offset)


class GLIPDynamicConvolution(nn.Module):
    """A layer of the dynamic head: each level takes from itself, the finer and the coarser one."""

    def __init__(self, config: GLIPConfig):
        super().__init__()
        width, groups = config.hidden_size, config.num_groups
        self.from_coarser = GLIPDeformableConvolution(width, groups)
        self.from_same = GLIPDeformableConvolution(width, groups)
        self.from_finer = GLIPDeformableConvolution(width, groups, stride=2)
        self.level_attention = nn.Conv2d(width, 1, 1)
        self.offset = nn.Conv2d(width, _OFFSETS + _WEIGHTS, 3, padding=1)
        self.activation = GLIPDynamicReLU(width, config.dynamic_relu_reduction)

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Maps (B, C, h, w) of all levels, finest first -> the same shapes."""
        found = []
        for level, feature in enumerate(features):
            shifts, weights = self.offset(feature).split([_OFFSETS, _WEIGHTS], dim=1)
            weights = weights.sigmoid()
            branches = [self.from_same(feature, shifts, weights)]
            if level:
                branches.append(self.from_finer(features[level - 1], shifts, weights))
            if level + 1 < len(features):
                coarser = self.from_coarser(features[level + 1], shifts, weights)
                size = feature.shape[-2:]
                branches.append(interpolate(coarser, size=size, mode="bilinear", align_corners=True))
            total = sum(self._weight(branch) * branch for branch in branches)
            found.append(self.activation(total / len(branches)))
        return found

    def _weight(self, branch: torch.Tensor) -> torch.Tensor:
        return hard_sigmoid(self.level_attention(branch.mean(dim=(2, 3), keepdim=True)).relu())


class GLIPHeadLayer(GradientCheckpointingLayer):
    """Fusion and a text layer (if the model has fusion), then the dynamic convolution."""

    def __init__(self, config: GLIPConfig):
        super().__init__()
        self.fusion = GLIPFusion(config) if config.use_fusion else None
        self.text_layer = BertLayer(config.text_config) if config.use_fusion else None
        self.convolution = GLIPDynamicConvolution(config)

    def forward(
        self, words: torch.Tensor, mask: torch.Tensor, attention_mask: torch.Tensor | None, *features: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Words (B, T, D), `mask` (B, T), the same as the text layer takes it, and the maps of all levels -> words and
        maps. None is in a list: reentrant checkpoints would not see it, and its gradient would be missing."""
        if self.fusion is not None:
            features, words = self.fusion(features, words, mask)
            words = self.text_layer(words, attention_mask)
        return words, *self.convolution(features)


class GLIPPredictions(nn.Module):
    """Boxes, centerness, and the alignment of regions with words (equation 3), the same layers for every level."""

    def __init__(self, config: GLIPConfig):
        super().__init__()
        width, text = config.hidden_size, config.text_config.hidden_size
        self.box = nn.Conv2d(width, 4, 1)
        self.centerness = nn.Conv2d(width, 1, 1)
        self.level_scales = nn.Parameter(torch.ones(len(config.anchor_sizes)))
        self.text_projection = nn.Linear(text, width)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.text_bias = nn.Parameter(torch.zeros(text))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(
        self, features: Sequence[torch.Tensor], words: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Maps (B, C, h, w) and words (B, T, D) -> logits (B, A, T), box codes (B, A, 4), centerness (B, A)."""
        flat = torch.cat([one.flatten(2) for one in features], dim=2).transpose(1, 2)
        lengths = [one.shape[-2] * one.shape[-1] for one in features]
        codes = torch.cat(
            [
                part * scale
                for part, scale in zip(
                    _pointwise(self.box, flat).split(lengths, dim=1), self.level_scales, strict=True
                )
            ],
            dim=1,
        )
        unit = nn.functional.normalize(words, dim=-1)
        projected = self.text_projection(unit / 2) / self.log_scale.exp()
        logits = flat @ projected.transpose(1, 2) + (unit @ self.text_bias + self.bias)[:, None]
        return logits.clamp(-50000, 50000), codes, _pointwise(self.centerness, flat)[..., 0]


def _pointwise(convolution: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A 1 x 1 convolution on (B, A, C)."""
    return nn.functional.linear(x, convolution.weight[..., 0, 0], convolution.bias)


__all__ = [
    "GLIPDeformableConvolution",
    "GLIPFusion",
    "GLIPHeadLayer",
    "GLIPPredictions",
    "GLIPPyramid",
    "GLIPTextFusion",
]
