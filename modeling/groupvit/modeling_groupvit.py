"""GroupViT: an image encoder that groups patches, trained on captions, and segmentation by text with its groups.

Built on the parts of transformers' GroupViT (Apache-2.0), whose checkpoints load; the official code's licence does not
allow derived works for all uses, and nothing is taken from it. Grouping is in `grouping_groupvit.py`, the rule that
turns groups into labels of pixels in `segmentation_groupvit.py`.

Paper: "GroupViT: Semantic Segmentation Emerges from Text Supervision", https://arxiv.org/abs/2202.11094.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.models.groupvit.modeling_groupvit import GroupViTPatchEmbeddings
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..dual_encoders.backbones import unit_norm
from ..dual_encoders.dual_encoder import DualEncoder
from ..dual_encoders.forward_checks import check_output, check_pixels, check_token_ids
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from ..losses.contrastive_loss import contrastive_loss
from ..losses.rank_batch_norm import RankBatchNorm1d
from .background_constraint import BackgroundConstraint
from .background_threshold import BackgroundThreshold
from .configuration_groupvit import GroupViTConfig, GroupViTVisionConfig
from .grouping_groupvit import GroupViTAttention, GroupViTLayer, GroupViTStage
from .multi_label_loss import LARGEST_SCALE, clamped_scale, multi_label_loss
from .segmentation_groupvit import compose_group_maps


# B images, N texts, M prompts of each image, T tokens of a text, L patches, G groups of the last stage, D joint width,
# D_v and D_t widths of the encoders


# ---- outputs


@dataclass
class GroupViTVisionModelOutput(BaseModelOutputWithPooling):
    """
    Tuples have an entry for each stage that groups; O is its number of groups, I of tokens that enter it (patches, or
    groups of the stage before).

    Args:
        last_hidden_state: (B, G, D_v), the groups of the last stage.
        pooler_output: (B, D_v), their mean.
        stage_maps: (B, O, I), soft maps without noise; each sums to 1 over O.
        stage_assignments: (B, O, I), the shares that tokens were mixed with: 1 or 0 where `assignment` is "hard".
        stage_tokens: (B, O, D_v), what leaves a stage; for *all* stages.
        stage_group_tokens: the group tokens that leave a stage's layers, before grouping.
        hidden_states: outputs of the layers, tokens and group tokens together.
        attentions: of the layers; not the maps of groups, which transformers' GroupViT has here.
    """

    stage_maps: tuple[torch.FloatTensor, ...] | None = None
    stage_assignments: tuple[torch.FloatTensor, ...] | None = None
    stage_tokens: tuple[torch.FloatTensor, ...] | None = None
    stage_group_tokens: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class GroupViTFeatures(ModelOutput):
    """
    What the encoders say of image-text pairs, before the projections, whose batch normalisation looks at whole
    batches. The loss of a batch follows from it: `GroupViTModel.loss_of_features`.

    Args:
        image_features: (B, D_v). text_features: (B, D_t). prompt_features: (B, M, D_t), if there are prompts.
    """

    image_features: torch.FloatTensor | None = None
    text_features: torch.FloatTensor | None = None
    prompt_features: torch.FloatTensor | None = None


@dataclass
class GroupViTOutput(CLIPOutput):
    """
    `CLIPOutput` and the parts of the loss; on several ranks, losses are those of the whole batch.

    Args:
        loss: (), `contrastive_loss + multi_label_weight * multi_label_loss`, and the background's parts by their
            weights.
        contrastive_loss, multi_label_loss: (), without weights; the second with prompts only.
        prompt_embeds: (B, M, D), of unit length, with prompts only.
        text_model_output: of all texts: the N texts, then the B M prompts.
        background_losses: four numbers (), parts of the constraint on background (`background_constraint.PARTS`), with
            background vectors and prompts only.
        background_areas: (B,), the share of each image that is background, likewise.
    """

    contrastive_loss: torch.FloatTensor | None = None
    multi_label_loss: torch.FloatTensor | None = None
    prompt_embeds: torch.FloatTensor | None = None
    background_losses: tuple[torch.FloatTensor, ...] | None = None
    background_areas: torch.FloatTensor | None = None


# ---- the image encoder


class GroupViTEmbeddings(nn.Module):
    """Images (B, 3, H, W) -> patches (B, L, D_v): convolution, layer norm, learned positions."""

    def __init__(self, config: GroupViTVisionConfig):
        super().__init__()
        self.config = config
        self.patch_embeddings = GroupViTPatchEmbeddings(
            config.image_size, config.patch_size, config.num_channels, config.hidden_size
        )
        self.position_embeddings = nn.Parameter(torch.empty(1, math.prod(config.grid), config.hidden_size))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """(1, h w, D_v) for h x w patches; bicubic from the training grid."""
        if tuple(grid) == self.config.grid:
            return self.position_embeddings
        known = self.position_embeddings.unflatten(1, self.config.grid).permute(0, 3, 1, 2)
        wide = known.to(torch.promote_types(known.dtype, torch.float32))
        resized = F.interpolate(wide, size=tuple(grid), mode="bicubic", align_corners=False)
        return resized.to(known.dtype).flatten(2).transpose(1, 2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patches = self.layernorm(self.patch_embeddings(pixel_values, interpolate_pos_encoding=True))
        return self.dropout(patches + self.positions(self.patch_grid(pixel_values)))

    def patch_grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of whole patches; pixels beyond them are not seen."""
        return pixel_values.shape[-2] // self.config.patch_size, pixel_values.shape[-1] // self.config.patch_size


class GroupViTEncoder(nn.Module):
    def __init__(self, config: GroupViTVisionConfig):
        super().__init__()
        # As torch.linspace(0, rate, layers).
        steps = max(1, sum(config.depths) - 1)
        drop_paths = iter([config.drop_path_rate * layer / steps for layer in range(sum(config.depths))])
        self.stages = nn.ModuleList(
            GroupViTStage(config, stage, [next(drop_paths) for _ in range(depth)])
            for stage, depth in enumerate(config.depths)
        )


class GroupViTPreTrainedModel(CheckedLoading, StagedSaving, PreTrainedModel):
    config: GroupViTConfig
    base_model_prefix = "groupvit"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _no_split_modules = ["CLIPEncoderLayer", "CLIPTextEmbeddings", "GroupViTLayer", "GroupViTEmbeddings"]
    _no_split_modules += ["GroupViTTokenAssign"]
    _can_record_outputs = {}  # each encoder records its own outputs

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, GroupViTProjectionLinear | nn.Conv2d):
            # PyTorch's default of linear layers and convolutions: the official code leaves it.
            bound = math.prod(module.weight.shape[1:]) ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, GroupViTEmbeddings):
            init.trunc_normal_(module.position_embeddings, std=std)
        elif isinstance(module, GroupViTStage) and module.group_token is not None:
            # Those of later stages are added to what the projector makes of the stage before.
            if module.group_projector is None:
                init.trunc_normal_(module.group_token, std=std)
            else:
                init.zeros_(module.group_token)
        elif isinstance(module, BackgroundConstraint | BackgroundThreshold):
            module.reset_parameters()
        elif isinstance(module, GroupViTModel):
            for name in ("logit_scale", "multi_label_logit_scale"):
                if getattr(module, name, None) is not None:
                    init.constant_(getattr(module, name), self.config.logit_scale_init_value)


class GroupViTVisionModel(GroupViTPreTrainedModel):
    r"""
    GroupViT's image encoder alone: groups of an image, their features, and the maps of which patch is in which.

    Loads its own checkpoints and those of [`GroupViTModel`].

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import GroupViTVisionConfig, GroupViTVisionModel

    >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "depths": [1, 1, 1]}
    >>> groups = {"num_group_tokens": [9, 4, 0], "num_output_groups": [8, 3]}
    >>> model = GroupViTVisionModel(GroupViTVisionConfig(**sizes, **groups, image_size=64)).eval()
    >>> outputs = model(torch.randn(2, 3, 64, 64))
    >>> outputs.pooler_output.shape, [tuple(one.shape) for one in outputs.stage_maps]
    (torch.Size([2, 32]), [(2, 8, 16), (2, 3, 8)])
    ```
    """

    config: GroupViTVisionConfig
    base_model_prefix = "vision_model"  # its name in the full model, so that checkpoints of that one load, too
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^(text|visual)_projection\.", r"^class_embeddings$"]
    _keys_to_ignore_on_load_unexpected += [r"^(multi_label_)?logit_scale$", r"^background_(constraint|threshold)\."]
    _can_record_outputs = {
        "hidden_states": GroupViTLayer,
        "attentions": OutputRecorder(GroupViTAttention, index=1, layer_name="self_attn"),
    }

    def __init__(self, config: GroupViTVisionConfig):
        super().__init__(config)
        self.embeddings = GroupViTEmbeddings(config)
        self.encoder = GroupViTEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        interpolate_pos_encoding: bool = False,
        gumbel_noise: Sequence[torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GroupViTVisionModelOutput:
        r"""
        Args:
            pixel_values: (B, 3, H, W), normalised.
            interpolate_pos_encoding: accept other sizes than `config.image_size`, of at least one patch. What does not
                fill a patch at the right and lower edge is not seen.
            gumbel_noise: for each stage that groups (B, O, I), used in training instead of drawn noise.

        Returns:
            [`GroupViTVisionModelOutput`].

        Raises:
            ValueError: `pixel_values` has another shape, size or type, or the noise does not fit the stages.
        """
        config = self.config
        size = None if interpolate_pos_encoding else config.image_size
        check_pixels(pixel_values, config.num_channels, size=size)
        if min(pixel_values.shape[-2:]) < config.patch_size:
            raise ValueError(
                f"pixel_values: images of {pixel_values.shape[-2]} x {pixel_values.shape[-1]} pixels, expected at "
                f"least one patch of {config.patch_size} x {config.patch_size}"
            )
        stages = config.grouping_stages
        if gumbel_noise is not None and len(gumbel_noise) != len(stages):
            raise ValueError(
                f"gumbel_noise: {len(gumbel_noise)} tensors, expected one for each of the stages {stages}"
            )
        noise = dict(zip(stages, gumbel_noise, strict=True)) if gumbel_noise is not None else {}
        tokens, group_tokens = self.embeddings(pixel_values.to(self.dtype)), None
        left, maps, assignments, groups = [], [], [], []
        for number, stage in enumerate(self.encoder.stages):
            tokens, group_tokens, soft, shares = stage(tokens, group_tokens, noise.get(number), **kwargs)
            left.append(tokens)
            if soft is not None:
                maps.append(soft)
                assignments.append(shares)
                groups.append(group_tokens)
        tokens = self.layernorm(tokens)
        return GroupViTVisionModelOutput(
            last_hidden_state=tokens,
            pooler_output=tokens.mean(1),
            stage_maps=tuple(maps),
            stage_assignments=tuple(assignments),
            stage_tokens=tuple(left),
            stage_group_tokens=tuple(groups),
        )


# ---- images and texts


class GroupViTProjectionLinear(nn.Linear):
    """A layer of a projection. A class of its own so that `_init_weights` gives it PyTorch's initialisation."""


class GroupViTProjection(nn.Sequential):
    """Features (…, F) -> (…, D): linear, batch normalisation over all rows of all ranks, ReLU, linear."""

    def __init__(self, width: int, hidden: int, joint: int):
        first, last = GroupViTProjectionLinear(width, hidden), GroupViTProjectionLinear(hidden, joint)
        super().__init__(first, RankBatchNorm1d(hidden), nn.ReLU(), last)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features.flatten(0, -2)).unflatten(0, features.shape[:-1])


class GroupViTModel(DualEncoder, GroupViTPreTrainedModel):
    r"""
    GroupViT (Xu et al. 2022): a dual encoder with the interface and outputs of `CLIPModel`, trained with image-text
    pairs and, if there are any, noun prompts of the captions.

    For training, zero-shot classification and retrieval; for segmentation use [`GroupViTForSemanticSegmentation`],
    which has the same weights. Loads its own checkpoints and transformers' `GroupViTModel`'s;
    `modeling/groupvit/convert_groupvit.py` converts official weights.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import GroupViTConfig, GroupViTModel

    >>> text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    >>> vision = text | {"depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [3], "image_size": 32}
    >>> del vision["num_hidden_layers"]
    >>> config = GroupViTConfig(text_config=text, vision_config=vision, projection_dim=16)
    >>> model = GroupViTModel(config).train()
    >>> ids = torch.tensor([[49406, 320, 49407], [49406, 518, 49407]])
    >>> prompts = torch.stack([ids, ids.flip(0)], dim=1)  # two for each image
    >>> outputs = model(ids, torch.randn(2, 3, 32, 32), prompt_input_ids=prompts, return_loss=True)
    >>> torch.equal(outputs.loss, outputs.contrastive_loss + outputs.multi_label_loss), outputs.prompt_embeds.shape
    (True, torch.Size([2, 2, 16]))
    ```
    """

    needs_text_encoder = True
    normalises_before_the_mean = False  # a class in several templates is the mean of features, not of embeddings
    feature_modules = ("text_model", "vision_model")  # what `features_only` needs, for GradCache

    def __init__(self, config: GroupViTConfig):
        super().__init__(config)
        text, vision, hidden = config.text_config, config.vision_config, config.projection_intermediate_dim
        if config.text_encoder_dropped and self.needs_text_encoder:
            raise ValueError(
                "text_encoder_dropped: this checkpoint has no text encoder; load it as GroupViTForSemanticSegmentation"
            )
        self.vision_model = GroupViTVisionModel._from_config(vision)
        self.visual_projection = GroupViTProjection(vision.hidden_size, hidden, config.projection_dim)
        self.text_model = self.text_projection = None
        if not config.text_encoder_dropped:
            self.text_model = CLIPTextModel._from_config(text)
            self.text_projection = GroupViTProjection(text.hidden_size, hidden, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.empty(()))  # 0-dim, as in every CLIP checkpoint: under FSDP2, ignore it
        if config.has_multi_label_scale:
            self.multi_label_logit_scale = nn.Parameter(torch.empty(()))
        if config.num_background_vectors:
            self.background_constraint = BackgroundConstraint(
                config.num_background_vectors,
                config.projection_dim,
                config.initializer_range,
                min_area=config.background_area[0],
                max_area=config.background_area[1],
                margin=config.background_margin,
            )
        self.post_init()
        # transformers adds up the ignore-on-load lists of all parts; the image encoder's does not apply here.
        self._keys_to_ignore_on_load_unexpected = {r"^class_embeddings$", r"^background_threshold\."}
        self._freeze()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, but missing weights are an error, and only `config.trained_part` has gradients."""
        loaded = super().from_pretrained(*args, **kwargs)
        # Loading creates new parameters, which require gradients.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()
        return loaded

    def _freeze(self):
        if self.config.trained_part == "group_tokens":
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.endswith(".group_token"))

    def _projections(self) -> list[nn.Module]:
        return [part for part in (self.visual_projection, self.text_projection) if part is not None]

    def train(self, mode: bool = True) -> "GroupViTModel":
        """As in PyTorch; projections that are not trained keep their statistics."""
        super().train(mode)
        if self.config.trained_part != "all":
            for projection in self._projections():
                projection.eval()
        return self

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        interpolate_pos_encoding: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GroupViTVisionModelOutput:
        """As in `CLIPModel`: (B, 3, H, W) pixels -> the image encoder's output; its `pooler_output` (B, D) is the
        feature in the joint space, not normalised.
        """
        outputs = self._run_image_encoder(pixel_values, interpolate_pos_encoding, **kwargs)
        outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        return outputs

    def _run_image_encoder(self, pixel_values, interpolate_pos_encoding, **kwargs) -> GroupViTVisionModelOutput:
        return self.vision_model(
            pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )

    def scale(self) -> torch.Tensor:
        """(), what cosine similarities are multiplied by: min(exp(logit_scale), 100)."""
        return clamped_scale(self.logit_scale)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = True,
        prompt_input_ids: torch.LongTensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        prompt_word_ids: torch.LongTensor | None = None,
        gumbel_noise: Sequence[torch.Tensor] | None = None,
        features_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GroupViTOutput | GroupViTFeatures:
        r"""
        Args:
            input_ids: (N, T); the first end token ends a text.
            pixel_values: (B, 3, H, W), normalised.
            attention_mask, position_ids: (N, T), for the text encoder; positions not together with prompts.
            return_loss: the contrastive loss, with image i and text i a pair (N = B), and with prompts the multi-label
                loss. In training over the pairs of all ranks.
            interpolate_pos_encoding: False refuses image sizes other than `config.vision_config.image_size`.
            prompt_input_ids, prompt_attention_mask: (B, M, T), prompts made of nouns of each image's caption, as
                `hf_clip_variants.data` collators make them.
            prompt_word_ids: (B, M), numbers of the prompts' words, -1 for a prompt without a noun: needed by the
                constraint on background, which looks at this process's images alone.
            gumbel_noise: see [`GroupViTVisionModel`].
            features_only: return [`GroupViTFeatures`], for `loss_of_features`, which knows no background.

        Returns:
            [`GroupViTOutput`].

        Raises:
            ValueError: inputs are missing or do not fit each other.
        """
        if input_ids is None or pixel_values is None:
            missing = "input_ids" if input_ids is None else "pixel_values"
            raise ValueError(f"{missing}: missing; for one modality call get_image_features or get_text_features")
        vocabulary, longest = self.config.text_config.vocab_size, self.config.text_config.max_position_embeddings
        check_token_ids(input_ids, vocabulary, longest)
        if gumbel_noise is not None:
            kwargs["gumbel_noise"] = gumbel_noise
        vision = self._run_image_encoder(pixel_values, interpolate_pos_encoding, **kwargs)
        kwargs.pop("gumbel_noise", None)
        texts, masks, prompts = self._all_texts(
            input_ids, attention_mask, prompt_input_ids, prompt_attention_mask, len(vision.pooler_output)
        )
        if prompts:
            check_token_ids(texts[len(input_ids) :], vocabulary, longest, name="prompt_input_ids")
        text = self.text_model(
            input_ids=texts, attention_mask=masks, position_ids=position_ids, return_dict=True, **kwargs
        )
        features = GroupViTFeatures(vision.pooler_output, text.pooler_output[: len(input_ids)])
        if prompts:
            features["prompt_features"] = text.pooler_output[len(input_ids) :].unflatten(0, (-1, prompts))
        if features_only:
            return features
        image_embeds, text_embeds, prompt_embeds = self._project(features)
        text_embeds = text_embeds.to(image_embeds.device)
        logits_per_image = self.scale().to(image_embeds) * image_embeds @ text_embeds.t()
        check_output(self, logits_per_image, "logits_per_image", pixel_values=pixel_values)
        losses = self._losses(image_embeds, text_embeds, prompt_embeds) if return_loss else {}
        if return_loss and self.config.num_background_vectors:
            losses |= self._background(losses["loss"], vision, prompt_embeds, prompt_word_ids)
        check_output(self, losses.get("loss"), "loss", pixel_values=pixel_values)
        return GroupViTOutput(
            **losses,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.t(),
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
            prompt_embeds=prompt_embeds,
        )

    def loss_of_features(self, features: GroupViTFeatures) -> torch.Tensor:
        """The loss (): of a whole batch's features, which may have been computed in parts (GradCache)."""
        return self._losses(*self._project(features))["loss"]

    @staticmethod
    def _all_texts(input_ids, attention_mask, prompt_ids, prompt_mask, images: int):
        """Texts and prompts as one batch (N + B M, T), so that the projection's normalisation sees them together; its
        mask; M.
        """
        if prompt_ids is None:
            return input_ids, attention_mask, 0
        if not isinstance(prompt_ids, torch.Tensor):
            raise ValueError(f"prompt_input_ids: got {type(prompt_ids).__name__}, expected token ids")
        shape = tuple(prompt_ids.shape)
        if len(shape) != 3 or shape[0] != images or shape[-1] != input_ids.shape[-1]:
            raise ValueError(
                f"prompt_input_ids: {list(shape)}, expected [{images} images, prompts, {input_ids.shape[-1]} tokens]"
            )
        if (attention_mask is None) != (prompt_mask is None):
            raise ValueError("prompt_attention_mask: expected if and only if there is an attention_mask")
        if prompt_mask is not None and (not isinstance(prompt_mask, torch.Tensor) or prompt_mask.shape != shape):
            got = list(prompt_mask.shape) if isinstance(prompt_mask, torch.Tensor) else type(prompt_mask).__name__
            raise ValueError(f"prompt_attention_mask: got {got}, expected {list(shape)}, as prompt_input_ids")
        texts = torch.cat([input_ids, prompt_ids.flatten(0, 1)])
        masks = None if attention_mask is None else torch.cat([attention_mask, prompt_mask.flatten(0, 1)])
        return texts, masks, shape[1]

    def _project(self, features: GroupViTFeatures) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Embeddings of images (B, D), texts (N, D) and prompts (B, M, D), of unit length."""
        texts, prompts = features.text_features, features.get("prompt_features")
        image_embeds = unit_norm(self.visual_projection(features.image_features))
        if prompts is None:
            return image_embeds, unit_norm(self.text_projection(texts)), None
        together = unit_norm(self.text_projection(torch.cat([texts, prompts.flatten(0, 1)])))
        return image_embeds, together[: len(texts)], together[len(texts) :].view(*prompts.shape[:2], -1)

    def _losses(self, image_embeds, text_embeds, prompt_embeds) -> dict[str, torch.Tensor]:
        if len(image_embeds) != len(text_embeds):
            raise ValueError(
                f"return_loss: expected as many images as texts, got {len(image_embeds)} and {len(text_embeds)}"
            )
        # Over ranks in training; evaluation may run on one of them alone, which would wait for the others.
        gather = "exact" if self.training else "none"
        # The logarithm is clamped: contrastive_loss takes its exponential, and above the limit it has no gradient.
        log_scale = self.logit_scale.clamp(max=math.log(LARGEST_SCALE))
        loss = contrastive_loss(image_embeds, text_embeds, log_scale, normalize=False, gather=gather)
        own_scale = getattr(self, "multi_label_logit_scale", None)
        if prompt_embeds is None:
            # Every parameter takes part: DistributedDataParallel waits for its gradient.
            unused = 0.0 if own_scale is None or not self.training else 0.0 * own_scale
            return {"loss": loss + unused, "contrastive_loss": loss}
        config = self.config
        if own_scale is None:
            own_scale = self.logit_scale
        second = multi_label_loss(image_embeds, prompt_embeds, own_scale, form=config.multi_label_form, gather=gather)
        total = loss + config.multi_label_weight * second
        return {"loss": total, "contrastive_loss": loss, "multi_label_loss": second}

    def _background(self, loss, vision, prompt_embeds, word_ids) -> dict[str, torch.Tensor]:
        """The loss with the constraint on background, and the constraint's parts."""
        weights, constraint = self.config.background_weights, self.background_constraint
        if prompt_embeds is None or word_ids is None:
            if any(weights) and self.training:
                raise ValueError(
                    "prompt_word_ids: missing; the constraint on background wants noun prompts with the numbers of "
                    "their words (NounPromptCollator(..., word_ids=True)), or background_weights of 0"
                )
            return {"loss": loss + 0.0 * constraint.vectors.sum()}  # see `_losses`
        areas = compose_group_maps(vision.stage_maps, (1, vision.stage_maps[0].shape[-1])).mean((-2, -1))
        parts = constraint(
            self.group_embeds_of(vision), areas, prompt_embeds, word_ids.to(prompt_embeds.device), self.scale()
        )
        return {
            "loss": loss + parts.total(weights),
            "background_losses": (parts.positive, parts.negative, parts.area, parts.separation),
            "background_areas": parts.background_area,
        }

    def group_embeds_of(self, vision: GroupViTVisionModelOutput) -> torch.Tensor:
        """(B, G, D), of unit length: the projected groups. The projection normalises by its running statistics, which
        are those of whole images, as in segmentation.
        """
        norms = [module for module in self.visual_projection if module.training]
        try:
            for module in norms:
                module.training = False
            return unit_norm(self.visual_projection(vision.last_hidden_state))
        finally:
            for module in norms:
                module.training = True


__all__ = [
    "GroupViTFeatures",
    "GroupViTModel",
    "GroupViTOutput",
    "GroupViTPreTrainedModel",
    "GroupViTVisionModel",
    "GroupViTVisionModelOutput",
]
