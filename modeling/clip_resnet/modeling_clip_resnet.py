"""CLIP with a ResNet image encoder (RN50 to RN50x64): the image encoder, the dual encoder, and a backbone that returns
the feature maps of its stages.

Modules of the image encoder have the names of the official code. The attention pooling projects into the joint space,
so that there is no `visual_projection`.

Paper: "Learning Transferable Visual Models From Natural Language Supervision", https://arxiv.org/abs/2103.00020,
section 2.4.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers import CLIPTextModel, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..dual_encoders.dual_encoder import DualEncoder
from ..loading_and_saving.optional_modules import checkpoint_mixins, optional_checks
from .configuration_clip_resnet import CLIPResNetConfig, CLIPResNetVisionConfig


_checks = optional_checks("..dual_encoders.forward_checks", __package__)


# B images, N texts, L tokens, w channels of the stem, C = 32w channels of the last feature map, H x W size of a map,
# D joint width

_EXPANSION = 4


# ---- batch normalisation


def _convolve(hidden_state: torch.Tensor, convolution: nn.Module, norm: nn.Module) -> torch.Tensor:
    """Convolution, then batch normalisation. One folded convolution instead, if `fuse_batch_norm` was called and no
    gradient of the weight is needed.
    """
    folded = getattr(convolution, "folded_weight", None)
    if folded is None or norm.training or (torch.is_grad_enabled() and convolution.weight.requires_grad):
        return norm(convolution(hidden_state))
    return F.conv2d(hidden_state, folded, convolution.folded_bias, convolution.stride, convolution.padding)


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d):
    """Stores the folded weight and bias as buffers of the convolution that are in no state dict.

    In eval mode batch normalisation is linear, y = g (x - mean) / sqrt(var + eps) + b for each output channel, so that
    it can be multiplied into the weight W that makes x: W' = g W / sqrt(var + eps) and
    bias' = b - g mean / sqrt(var + eps). Computed in float32 also for half-precision weights.
    """
    norm_tensors = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    wide = [value.detach().float() if isinstance(value, torch.Tensor) else value for value in norm_tensors]
    weight, bias = fuse_conv_bn_weights(convolution.weight.detach().float(), None, *wide)
    dtype = convolution.weight.dtype
    weight = weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
    convolution.register_buffer("folded_weight", weight, persistent=False)
    convolution.register_buffer("folded_bias", bias.detach().to(dtype), persistent=False)


def _unfold(convolution: nn.Module):
    """Removes what `_fold` stored."""
    for name in ("folded_weight", "folded_bias"):
        if name in convolution._buffers:
            delattr(convolution, name)


@contextlib.contextmanager
def _running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """For a forward pass that repeats another one: batch normalisation inside `module` normalises by the statistics of
    the batch, but does not add them to its running statistics a second time (momentum 0).
    """
    norms = [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


# ---- blocks


class CLIPResNetBranchNorm(nn.BatchNorm2d):
    """The last batch normalisation of a block's residual branch. Its scale starts at 0, so that a new block returns
    its shortcut (official initialisation).

    A class of its own, because transformers calls `_init_weights` only for modules that have parameters of their own,
    which the block has not.
    """


class BatchNormBlock(GradientCheckpointingLayer):
    """A block with batch normalisation that counts each batch once in its running statistics, also under activation
    checkpointing, which runs the forward pass twice. Subclasses define `_forward` instead of `forward`.
    """

    def __init__(self):
        super().__init__()
        self._runs = False

    def __call__(self, *args, **kwargs) -> torch.Tensor:
        self._runs = True
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self._runs = False

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        # In the backward pass, activation checkpointing calls `forward` again, and not through `__call__`.
        again = self.gradient_checkpointing and self.training and not self._runs
        with _running_statistics_kept(self) if again else contextlib.nullcontext():
            return self._forward(hidden_state)


class CLIPResNetBottleneck(BatchNormBlock):
    """1 x 1, 3 x 3 and 1 x 1 convolution, plus a shortcut: (B, in, H, W) -> (B, 4 planes, H / stride, W / stride).

    No convolution has a stride. Average pooling reduces the feature map instead: between the second and the third
    convolution, and before the convolution of the shortcut.
    """

    def __init__(self, in_channels: int, planes: int, stride: int):
        super().__init__()
        out_channels = planes * _EXPANSION
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = CLIPResNetBranchNorm(out_channels)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            # "0" and "1" are the official names; the pooling before them has no parameters.
            self.downsample = nn.ModuleDict(
                {"0": nn.Conv2d(in_channels, out_channels, 1, bias=False), "1": nn.BatchNorm2d(out_channels)}
            )

    def convolutions(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Pairs of a convolution and the batch normalisation after it."""
        yield from ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3))
        if self.downsample is not None:
            yield self.downsample["0"], self.downsample["1"]

    def _forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        shortcut = hidden_state
        if self.downsample is not None:
            shortcut = _convolve(self.avgpool(hidden_state), self.downsample["0"], self.downsample["1"])
        hidden_state = F.relu(_convolve(hidden_state, self.conv1, self.bn1), inplace=True)
        hidden_state = F.relu(_convolve(hidden_state, self.conv2, self.bn2), inplace=True)
        hidden_state = _convolve(self.avgpool(hidden_state), self.conv3, self.bn3)
        return F.relu(hidden_state + shortcut, inplace=True)


class CLIPResNetStage(nn.Sequential):
    """Bottleneck blocks of one width; the first one reduces the feature map by `stride`."""

    def __init__(self, in_channels: int, planes: int, depth: int, stride: int):
        blocks = [CLIPResNetBottleneck(in_channels, planes, stride)]
        blocks += [CLIPResNetBottleneck(planes * _EXPANSION, planes, 1) for _ in range(depth - 1)]
        super().__init__(*blocks)


class CLIPResNetAttentionPool(nn.Module):
    """Pools a feature map by attention and projects it into the joint space: (B, C, H, W) -> (B, D).

    Multi-head attention with a single query, the mean over all positions of the map; keys and values are this mean and
    all positions. Each of the 1 + H W tokens has a learned position embedding; index 0 belongs to the mean.

    Returns the feature (B, D), and the attention weights (B, heads, 1, 1 + H W), or None if the attention
    implementation does not return them.
    """

    def __init__(self, config: CLIPResNetVisionConfig):
        super().__init__()
        self.config = config
        self.grid_size = config.grid_size
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.positional_embedding = nn.Parameter(torch.empty(config.grid_size**2 + 1, config.hidden_size))
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.projection_dim)

    def interpolated_positions(self, height: int, width: int) -> torch.Tensor:
        """Position embeddings (1 + height * width, C) for a map of this size: those of the grid are resized (bicubic,
        antialiased, as in timm), that of the mean stays. The official code takes the trained size only.
        """
        positions = self.positional_embedding
        if (height, width) == (self.grid_size, self.grid_size):
            return positions
        grid = positions[1:].float().unflatten(0, (self.grid_size, self.grid_size)).permute(2, 0, 1)
        grid = F.interpolate(grid[None], size=(height, width), mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([positions[:1], grid[0].flatten(1).t().to(positions.dtype)])

    def forward(self, feature_map: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        # (B, C, H, W) -> tokens (B, 1 + H W, C). The mean is taken before the position embeddings are added.
        height, width = feature_map.shape[-2:]
        tokens = feature_map.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.interpolated_positions(height, width)

        def heads(states: torch.Tensor) -> torch.Tensor:  # (B, tokens, C) -> (B, heads, tokens, C / heads)
            return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        # Only token 0, the mean, asks: one query instead of 1 + H W.
        query, key, value = self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens)
        pooled, weights = attend(self, heads(query), heads(key), heads(value), None, scaling=self.scaling, **kwargs)
        return self.c_proj(pooled.flatten(1)), weights


# ---- models


class CLIPResNetPreTrainedModel(*checkpoint_mixins(), PreTrainedModel):
    config: CLIPResNetConfig
    base_model_prefix = "clip"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_attention_backend = True
    _no_split_modules = ["CLIPEncoderLayer", "CLIPTextEmbeddings", "CLIPResNetBottleneck", "CLIPResNetAttentionPool"]
    _can_record_outputs = {"hidden_states": CLIPResNetStage, "attentions": CLIPResNetAttentionPool}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        factor = self.config.initializer_factor
        if isinstance(module, nn.Conv2d):
            # PyTorch's default of `nn.Conv2d`, which the official code keeps.
            fan_in = module.weight[0].numel()
            init.uniform_(module.weight, -(factor * fan_in**-0.5), factor * fan_in**-0.5)
        elif isinstance(module, CLIPResNetBranchNorm):
            init.zeros_(module.weight)
        elif isinstance(module, CLIPResNetAttentionPool):
            # The official N(0, C^-0.5). Biases start at 0; officially they are PyTorch's uniform ones.
            std = factor * module.config.hidden_size**-0.5
            init.normal_(module.positional_embedding, std=std)
            for projection in (module.q_proj, module.k_proj, module.v_proj, module.c_proj):
                init.normal_(projection.weight, std=std)
        elif isinstance(module, CLIPResNetModel):
            init.normal_(module.text_projection.weight, std=factor * module.config.text_config.hidden_size**-0.5)
            init.constant_(module.logit_scale, module.config.logit_scale_init_value)


class CLIPResNetTrunk(CLIPResNetPreTrainedModel):
    """Stem and stages, without the attention pooling: the common part of `CLIPResNetVisionModel` and
    `CLIPResNetBackbone`.
    """

    config: CLIPResNetVisionConfig
    base_model_prefix = "vision_model"  # its name in the full model, so that checkpoints of that one load, too
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _input_embed_layer = "conv1"
    _keys_to_ignore_on_load_unexpected = [r"^(text|audio)_model\.", r"^text_projection\.", r"^logit_scale(_ai|_at)?$"]

    def __init__(self, config: CLIPResNetVisionConfig):
        super().__init__(config)
        width = config.width
        self.conv1 = nn.Conv2d(config.num_channels, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        first, *others = config.depths
        self.layer1 = CLIPResNetStage(width, width, first, stride=1)
        for index, depth in enumerate(others, start=1):
            planes = width * 2**index
            self.add_module(f"layer{index + 1}", CLIPResNetStage(planes * _EXPANSION // 2, planes, depth, stride=2))

    @property
    def stages(self) -> list[CLIPResNetStage]:
        """`layer1` to `layer4`."""
        return [self.get_submodule(f"layer{index + 1}") for index in range(len(self.config.depths))]

    def convolutions(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Pairs of a convolution and the batch normalisation after it, for the stem and all blocks."""
        yield from ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3))
        for stage in self.stages:
            for block in stage:
                yield from block.convolutions()

    def fuse_batch_norm(self) -> "CLIPResNetTrunk":
        """Faster inference: folds each batch normalisation into the convolution before it, and runs in
        `channels_last`.

        The folded weights are stored in addition to the original ones, so that convolutions need twice the memory.
        They are used in eval mode if no gradient of the weights is needed; they are not saved, and change nothing that
        is saved or trained. `train()`, loading weights and `unfuse_batch_norm()` remove them. After changing weights
        in place, call this method again.

        Returns:
            The model, in eval mode.
        """
        self.eval()
        for convolution, norm in self.convolutions():
            if type(convolution) is nn.Conv2d:  # a LoRA layer adds its own output before the normalisation
                _fold(convolution, norm)
        return self

    def unfuse_batch_norm(self) -> "CLIPResNetTrunk":
        """Removes the folded weights of `fuse_batch_norm`."""
        for convolution, _ in self.convolutions():
            _unfold(convolution)
        return self

    def train(self, mode: bool = True) -> "CLIPResNetTrunk":
        super().train(mode)
        if mode:
            self.unfuse_batch_norm()
            if self.config.freeze_batch_norm:
                for _, norm in self.convolutions():
                    norm.eval()
        return self

    def _load_from_state_dict(self, *args, **kwargs):
        self.unfuse_batch_norm()
        super()._load_from_state_dict(*args, **kwargs)

    def _maps(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 3, H, W) -> the feature maps of the stem and the four stages, (B, w, H / 4, W / 4) to (B, C, H / 32,
        W / 32).
        """
        hidden_state = pixel_values.to(self.conv1.weight.dtype)
        if "folded_weight" in self.conv1._buffers:
            hidden_state = hidden_state.contiguous(memory_format=torch.channels_last)
        for convolution, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            hidden_state = F.relu(_convolve(hidden_state, convolution, norm), inplace=True)
        maps = [self.avgpool(hidden_state)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return tuple(maps)

    def _check_pixels(self, pixel_values: torch.Tensor):
        _checks.check_pixels(pixel_values, self.config.num_channels)
        if min(pixel_values.shape[2:]) < 32:
            height, width = pixel_values.shape[2:]
            raise ValueError(f"pixel_values: images of {height} x {width}, expected at least 32 x 32")


class CLIPResNetVisionModel(CLIPResNetTrunk):
    r"""
    The image encoder of CLIP-ResNet (Radford et al. 2021): a ResNet with three convolutions in its stem, average
    pooling instead of strided convolutions, and attention pooling that projects into the joint space.

    For image features in the joint space; [`CLIPResNetBackbone`] returns feature maps for dense tasks, and takes any
    image size. Loads its own checkpoints and those of a [`CLIPResNetModel`].

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import CLIPResNetVisionConfig, CLIPResNetVisionModel

    >>> config = CLIPResNetVisionConfig(
    ...     hidden_size=256, depths=[1, 1, 1, 1], num_attention_heads=4, image_size=64, projection_dim=48
    ... )
    >>> model = CLIPResNetVisionModel(config).eval()
    >>> outputs = model(torch.randn(2, 3, 64, 64), output_hidden_states=True)
    >>> outputs.pooler_output.shape, outputs.last_hidden_state.shape
    (torch.Size([2, 48]), torch.Size([2, 4, 256]))
    >>> [tuple(stage.shape[1:]) for stage in outputs.hidden_states]
    [(8, 16, 16), (32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]
    ```
    """

    def __init__(self, config: CLIPResNetVisionConfig):
        super().__init__(config)
        self.attnpool = CLIPResNetAttentionPool(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values: (B, 3, H, W), normalised floats; H and W are `config.image_size`.
            interpolate_pos_encoding: accept other sizes; the position embeddings of the attention pooling are resized.

        Returns:
            `pooler_output` (B, D), the feature in the joint space, not normalised; `last_hidden_state` (B, H W / 1024,
            C), the positions of the last feature map row by row; `hidden_states`, the feature maps of the stem and the
            stages; `attentions`, one tensor (B, heads, 1, 1 + H W / 1024), with `attn_implementation="eager"`.

        Raises:
            ValueError: `pixel_values` has another shape or size, or is not floating point.
        """
        self._check_pixels(pixel_values)
        size, (height, width) = self.config.image_size, pixel_values.shape[2:]
        if not interpolate_pos_encoding and (height, width) != (size, size):
            raise ValueError(
                f"pixel_values: images of {height} x {width}, the model was trained on {size} x {size}; pass "
                "interpolate_pos_encoding=True"
            )
        feature_map = self._maps(pixel_values)[-1]
        pooled, _ = self.attnpool(feature_map, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=feature_map.flatten(2).transpose(1, 2), pooler_output=pooled
        )


class CLIPResNetBackbone(BackboneMixin, CLIPResNetTrunk):
    r"""
    Feature maps of CLIP-ResNet's stages, for detection and segmentation. `out_features` (or `out_indices`) chooses
    among `stem`, `stage1`, …, `stage4`, which are 4, 4, 8, 16 and 32 times smaller than the image. Takes images of any
    size from 32 x 32 pixels on.

    Loads checkpoints of a [`CLIPResNetModel`] and of a [`CLIPResNetVisionModel`]; it has no attention pooling.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import CLIPResNetBackbone, CLIPResNetVisionConfig

    >>> config = CLIPResNetVisionConfig(
    ...     hidden_size=256, depths=[1, 1, 1, 1], num_attention_heads=4, out_features=["stage2", "stage4"]
    ... )
    >>> model = CLIPResNetBackbone(config).eval()
    >>> model.channels, [tuple(one.shape) for one in model(torch.randn(1, 3, 96, 64)).feature_maps]
    ([64, 256], [(1, 64, 12, 8), (1, 256, 3, 2)])
    ```
    """

    has_attentions = False
    _can_record_outputs = {}  # `forward` has all feature maps anyway
    _keys_to_ignore_on_load_unexpected = [*CLIPResNetTrunk._keys_to_ignore_on_load_unexpected, r"attnpool\."]

    def __init__(self, config: CLIPResNetVisionConfig):
        super().__init__(config)
        self.num_features = config.stage_channels
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        r"""
        Args:
            pixel_values: (B, 3, H, W), normalised floats, H and W at least 32.

        Returns:
            `feature_maps`, those of `out_features`; with `output_hidden_states=True` also `hidden_states`, the feature
            maps of the stem and all stages.

        Raises:
            ValueError: `pixel_values` has another shape, is too small, or is not floating point.
        """
        self._check_pixels(pixel_values)
        maps = self._maps(pixel_values)
        chosen = tuple(one for name, one in zip(self.stage_names, maps, strict=True) if name in self.out_features)
        return BackboneOutput(feature_maps=chosen, hidden_states=maps)


class CLIPResNetModel(DualEncoder, CLIPResNetPreTrainedModel):
    r"""
    CLIP with a ResNet image encoder (Radford et al. 2021), with the interface and outputs of `CLIPModel`, but without
    `visual_projection`.

    For accuracy prefer `CLIPModel` with a Vision Transformer. Use this model for methods that were published on RN50
    and its relatives, and for feature maps of several resolutions. `modeling/clip_resnet/convert_clip_resnet.py`
    converts official weights.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import CLIPResNetConfig, CLIPResNetModel

    >>> vision = {"hidden_size": 256, "depths": [1, 1, 1, 1], "num_attention_heads": 4, "image_size": 64}
    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> model = CLIPResNetModel(CLIPResNetConfig(text_config=text, vision_config=vision, projection_dim=48)).eval()
    >>> ids = torch.tensor([[49406, 320, 49407], [49406, 518, 49407], [49406, 550, 49407]])
    >>> model(pixel_values=torch.randn(2, 3, 64, 64), input_ids=ids).logits_per_image.shape
    torch.Size([2, 3])
    ```
    """

    _can_record_outputs = {}  # each encoder records its own outputs

    def __init__(self, config: CLIPResNetConfig):
        super().__init__(config)
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.vision_model = CLIPResNetVisionModel._from_config(config.vision_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(()))  # 0-dim, as in every CLIP checkpoint: under FSDP2, ignore it
        self.post_init()
        # transformers adds up the ignore-on-load lists of all parts. That of the image encoder does not apply to the
        # full model.
        self._keys_to_ignore_on_load_unexpected -= set(CLIPResNetTrunk._keys_to_ignore_on_load_unexpected)

    def fuse_batch_norm(self) -> "CLIPResNetModel":
        """`fuse_batch_norm` of the image encoder; returns the model, in eval mode."""
        self.eval()
        self.vision_model.fuse_batch_norm()
        return self

    def unfuse_batch_norm(self) -> "CLIPResNetModel":
        """`unfuse_batch_norm` of the image encoder."""
        self.vision_model.unfuse_batch_norm()
        return self


__all__ = [
    "BatchNormBlock",
    "CLIPResNetBackbone",
    "CLIPResNetModel",
    "CLIPResNetPreTrainedModel",
    "CLIPResNetVisionModel",
]
