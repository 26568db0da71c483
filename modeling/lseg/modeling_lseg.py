"""LSeg: a DPT decoder whose pixels are compared with CLIP's texts, `LSegModel` (pixel embeddings and text features)
and `LSegForSemanticSegmentation` (a score for each pixel and label).

The Vision Transformer, the decoder and the text encoder are transformers' own `DPTModel`, `DPTNeck` and
`CLIPTextModel`; this file joins them, and adds what the paper adds.

Paper: "Language-driven Semantic Segmentation", https://arxiv.org/abs/2201.03546.
"""

import re
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPVisionModel, DPTModel, PreTrainedModel, ResNetModel
from transformers import initialization as init
from transformers.backbone_utils import filter_output_hidden_states
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.dpt.modeling_dpt import DPTNeck
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from ..dense.outputs_dense import PromptableSegmentationOutput
from ..dense.promptable_segmentation import ClassTexts, PromptableSegmentationMixin
from ..dense.segmentation_loss import segmentation_loss
from ..dense.sliding_window import pad_to_multiple
from ..dual_encoders.backbones import unit_norm
from ..dual_encoders.forward_checks import check_output, check_pixels, check_token_ids
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from ..loading_and_saving.copied_weights import copy_weights
from .configuration_lseg import SIZE_DIVISOR, LSegConfig
from .losses_lseg import presence_loss
from .spatial_blocks_lseg import LSegSpatialBlock, pixel_text_scores


# B images, N labels, L tokens, D joint width, F channels of the decoder, H x W size of an image


@dataclass
class LSegModelOutput(ModelOutput):
    """
    Args:
        pixel_embeddings: (B, D, h, w), not normalised, for each second pixel in both directions of the padded image.
        hidden_states, attentions: of the image encoder.
    """

    pixel_embeddings: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


# Names of transformers' ViTModel -> those of the same layers in its DPTModel.
_VIT_TO_DPT = {
    r"^layers\.": "encoder.layer.",
    r"attention\.q_proj": "attention.attention.query",
    r"attention\.k_proj": "attention.attention.key",
    r"attention\.v_proj": "attention.attention.value",
    r"attention\.o_proj": "attention.output.dense",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
}
_VIT_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
_VIT_FIELDS += ("layer_norm_eps", "image_size", "patch_size", "num_channels", "qkv_bias")


def _as_dpt(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a `ViTModel` under `DPTModel`'s names."""
    found = {}
    for name, tensor in weights.items():
        for pattern, ours in _VIT_TO_DPT.items():
            name = re.sub(pattern, ours, name)
        found[name] = tensor
    return found


def _make_image_encoder(config) -> PreTrainedModel:
    if config.model_type == "resnet":
        return ResNetModel._from_config(config)
    if config.model_type == "clip_vision_model":
        return CLIPVisionModel._from_config(config)
    return DPTModel._from_config(config, add_pooling_layer=False)


class LSegPreTrainedModel(CheckedLoading, StagedSaving, PreTrainedModel):
    config: LSegConfig
    base_model_prefix = "lseg"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _no_split_modules = ["CLIPEncoderLayer", "CLIPTextEmbeddings", "CLIPVisionEmbeddings", "DPTViTEmbeddings"]
    _no_split_modules += ["DPTViTLayer", "DPTReassembleLayer", "DPTFeatureFusionLayer", "ResNetBottleNeckLayer"]
    _can_record_outputs = {}  # the image encoder records its own outputs

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            # PyTorch's default, as in the official decoder. Encoders initialise their own layers.
            fan_in = module.weight[0].numel()
            init.uniform_(module.weight, -(fan_in**-0.5), fan_in**-0.5)
            if module.bias is not None:
                init.uniform_(module.bias, -(fan_in**-0.5), fan_in**-0.5)
        elif isinstance(module, LSegModel) and module.text_projection is not None:
            init.normal_(module.text_projection.weight, std=self.config.text_config.hidden_size**-0.5)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, but what the configuration freezes is frozen, and missing weights are an error.

        A checkpoint of a CLIP gives its encoders, and its image encoder is used if it is a Vision Transformer; the
        decoder is then new.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        # Loading creates new parameters, which require gradients.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()
        return loaded

    def _accept_missing(self, missing: set[str]) -> set[str]:
        """Of a CLIP's files, the whole decoder is missing and may be new. One that is partly there is damaged."""
        new = ("neck.", "pixel_projection.", "auxiliary_projection.", "head_block.")
        of_decoder = {name for name in self.state_dict() if name.removeprefix("lseg.").startswith(new)}
        return missing - of_decoder if of_decoder <= missing else missing

    def _freeze(self):
        raise NotImplementedError


class LSegModel(LSegPreTrainedModel):
    r"""
    The encoders and the decoder of LSeg (Li et al. 2022): pixel embeddings of an image, and features of texts in the
    same space. [`LSegForSemanticSegmentation`] compares them.

    Images may have any size. `modeling/lseg/convert_lseg.py` converts official weights.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import LSegConfig, LSegModel

    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> vision = text | {"num_hidden_layers": 4, "image_size": 64, "patch_size": 16}
    >>> model = LSegModel(LSegConfig(text_config=text, vision_config=vision, fusion_hidden_size=16)).eval()
    >>> model(torch.randn(2, 3, 64, 96)).pixel_embeddings.shape
    torch.Size([2, 512, 32, 48])
    >>> model.get_text_features(torch.tensor([[49406, 320, 49407]])).pooler_output.shape
    torch.Size([1, 512])
    ```
    """

    def __init__(self, config: LSegConfig):
        super().__init__(config)
        self.vision_model = _make_image_encoder(config.vision_config)
        self.text_model = self.text_projection = None
        if not config.text_encoder_dropped:
            self.text_model = CLIPTextModel._from_config(config.text_config)
            self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.neck = DPTNeck(config.neck_config())
        if config.is_convolutional:
            self.neck.reassemble_stage = None  # a ResNet's maps have the decoder's strides already
        self.pixel_projection = nn.Conv2d(config.fusion_hidden_size, config.projection_dim, 1)
        self.post_init()
        # CLIP's projection of images and its temperature, in files of a CLIP.
        self._keys_to_ignore_on_load_unexpected = {r"(^|\.)visual_projection\.", r"(^|\.)logit_scale$"}
        self._freeze()

    def _freeze(self):
        """Parameters that get no gradient by configuration, or because nothing reads what they make (of the latter,
        DistributedDataParallel would wait for gradients).
        """
        unread = [self.neck.fusion_stage.layers[0].residual_layer1]  # the coarsest map is not added to another one
        for name in ("layernorm", "post_layernorm"):
            unread += [getattr(self.vision_model, name)] if hasattr(self.vision_model, name) else []
        if not self.config.is_convolutional:
            layers = getattr(self.vision_model.encoder, "layer", None) or self.vision_model.encoder.layers
            unread += layers[max(self.config.backbone_out_indices) + 1 :]
        for part in (*unread, *(self._text_parts() if self.config.freeze_text_encoder else ())):
            part.requires_grad_(False)

    def _text_parts(self) -> list[nn.Module]:
        return [part for part in (self.text_model, self.text_projection) if part is not None]

    def train(self, mode: bool = True) -> "LSegModel":
        super().train(mode)
        if mode and self.config.freeze_text_encoder:
            for part in self._text_parts():
                part.eval()
        if mode and self.config.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        self._check_text_encoder()
        return self.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.embeddings.token_embedding = value

    def _check_text_encoder(self):
        if self.text_model is None:
            raise ValueError(
                "input_ids: the text encoder was dropped (text_encoder_dropped); load the checkpoint that still has it"
            )

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """As `CLIPModel`'s: (N, L) ids -> the text encoder's output; `pooler_output` (N, D) is the projected feature,
        not normalised.
        """
        self._check_text_encoder()
        check_token_ids(input_ids, self.config.text_config.vocab_size, self.config.text_config.max_position_embeddings)
        outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    def encode_image(self, pixel_values: torch.Tensor, **kwargs) -> tuple[list[torch.Tensor], ModelOutput]:
        """The four outputs of the image encoder that the decoder takes, and all of its outputs.

        Args:
            pixel_values: (B, 3, H, W), H and W multiples of 32.
        """
        if self.config.vision_config.model_type == "clip_vision_model":
            kwargs["interpolate_pos_encoding"] = True
        outputs = self.vision_model(pixel_values, **kwargs | {"output_hidden_states": True, "return_dict": True})
        after_layers = outputs.hidden_states[1:]  # the first one is the embedded image
        chosen = range(4) if self.config.is_convolutional else self.config.backbone_out_indices
        return [after_layers[index] for index in chosen], outputs

    def decode(self, features: list[torch.Tensor], height: int, width: int) -> list[torch.Tensor]:
        """The decoder: what `encode_image` gives -> four maps (B, F, h, w), from the coarsest (stride 16) to the
        finest (stride 2). `height` and `width` are those of the padded image.
        """
        patch = 1 if self.config.is_convolutional else self.config.vision_config.patch_size
        return self.neck(features, height // patch, width // patch)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]) -> LSegModelOutput:
        r"""
        Args:
            pixel_values: (B, 3, H, W), normalised floats. Where H or W is no multiple of 32, the last column and row
                are repeated up to one.

        Returns:
            [`LSegModelOutput`].

        Raises:
            ValueError: `pixel_values` is not of this shape, or not floating point.
        """
        maps, outputs = self.run(pixel_values, **kwargs)
        return LSegModelOutput(
            pixel_embeddings=self.pixel_projection(maps[-1]),
            hidden_states=outputs.hidden_states,
            attentions=outputs.get("attentions"),
        )

    def run(self, pixel_values: torch.Tensor, **kwargs) -> tuple[list[torch.Tensor], ModelOutput]:
        """The decoder's maps of images of any size, and the image encoder's outputs."""
        check_pixels(pixel_values, getattr(self.config.vision_config, "num_channels", 3))
        padded = pad_to_multiple(pixel_values.to(self.pixel_projection.weight.dtype), SIZE_DIVISOR)
        features, outputs = self.encode_image(padded, **kwargs)
        return self.decode(features, *padded.shape[-2:]), outputs


class LSegForSemanticSegmentation(PromptableSegmentationMixin, LSegPreTrainedModel):
    r"""
    LSeg (Li et al. 2022): a score for each pixel and label, where labels are texts of the user.

    Texts come with each call, or once by `set_labels`; then the model needs none, and is a closed-set model for the
    pipeline `image-segmentation`. Texts of each image make it the few-shot model of the paper: for `["others", "dog"]`
    it tells background and dog.

    Loads checkpoints of a CLIP, too: the decoder is then new and has to be trained with label maps, on which the novel
    labels need not be. For training without label maps see GroupViT.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import LSegConfig, LSegForSemanticSegmentation

    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> vision = text | {"num_hidden_layers": 4, "image_size": 64, "patch_size": 16}
    >>> config = LSegConfig(text_config=text, vision_config=vision, fusion_hidden_size=16)
    >>> model = LSegForSemanticSegmentation(config).eval()
    >>> ids = torch.tensor([[49406, 320, 49407], [49406, 518, 49407], [49406, 550, 49407]])  # three labels
    >>> model(torch.randn(2, 3, 50, 75), input_ids=ids).logits.shape
    torch.Size([2, 3, 50, 75])
    >>> few_shot = ids[torch.tensor([[0, 1], [0, 2]])][:, :, None]  # two labels of each image, in one template
    >>> model(torch.randn(2, 3, 64, 64), input_ids=few_shot).logits.shape
    torch.Size([2, 2, 64, 64])
    ```
    """

    text_modules = ("lseg.text_model", "lseg.text_projection")

    def __init__(self, config: LSegConfig):
        super().__init__(config)
        self.lseg = LSegModel(config)
        self.head_block = None
        if config.head_block != "none":
            self.head_block = LSegSpatialBlock(config.head_block, config.block_depth, config.block_activation)
        self.auxiliary_projection = None
        if config.use_auxiliary_head:
            self.auxiliary_projection = nn.Conv2d(config.fusion_hidden_size, config.projection_dim, 1)
        self.make_class_embeddings(config.projection_dim)
        self.post_init()
        self._freeze()

    @classmethod
    def from_encoders(
        cls, image_encoder: PreTrainedModel, text_encoder: PreTrainedModel, **fields
    ) -> "LSegForSemanticSegmentation":
        """A model with copies of trained encoders, in float32, and a new decoder: where a training begins.

        Args:
            image_encoder: a `ViTModel` (the paper's is "google/vit-large-patch16-384", trained on ImageNet), a
                `ResNetModel`, a `CLIPVisionModel`, or a `CLIPModel` with one.
            text_encoder: a `CLIPTextModelWithProjection` or a `CLIPModel`.
            fields: of [`LSegConfig`].

        Raises:
            ValueError: an encoder of another kind.
        """
        texts = getattr(text_encoder.config, "text_config", text_encoder.config)
        if texts.model_type != "clip_text_model" or not hasattr(text_encoder, "text_projection"):
            raise ValueError(
                f"text_encoder: {type(text_encoder).__name__}, expected a CLIPTextModelWithProjection or a CLIPModel"
            )
        images = getattr(image_encoder, "vision_model", image_encoder)
        kind, weights = images.config.model_type, images.state_dict()
        if kind == "vit":
            vision = {name: getattr(images.config, name) for name in _VIT_FIELDS} | {"model_type": "dpt"}
            weights = _as_dpt({name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")})
        elif kind in ("resnet", "clip_vision_model"):
            vision = images.config.to_dict()
        else:
            raise ValueError(f"image_encoder: a {kind} model, expected a ViTModel, a ResNetModel or a CLIPVisionModel")
        width = text_encoder.text_projection.out_features
        config = LSegConfig(text_config=texts.to_dict(), vision_config=vision, projection_dim=width, **fields)
        model = cls(config)
        copy_weights(model.lseg.vision_model, weights, "image_encoder", fields)
        copy_weights(model.lseg.text_model, text_encoder.text_model, "text_encoder", fields)
        copy_weights(model.lseg.text_projection, text_encoder.text_projection, "text_encoder", fields)
        return model

    def _freeze(self):
        self.lseg._freeze()

    def get_input_embeddings(self) -> nn.Module:
        return self.lseg.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.lseg.set_input_embeddings(value)

    def get_class_embeddings(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Token ids (N, L) of N texts, or (N, T, L) of N texts in T templates -> (N, D) with unit norm. Templates are
        averaged with unit norm, as in CLIP. A frozen text encoder makes no graph.
        """
        templates = input_ids.shape[1] if input_ids.dim() == 3 else None
        if templates:
            input_ids = input_ids.flatten(0, 1)
            attention_mask = None if attention_mask is None else attention_mask.flatten(0, 1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_text_encoder):
            features = unit_norm(self.lseg.get_text_features(input_ids, attention_mask).pooler_output)
        return features if templates is None else unit_norm(features.unflatten(0, (-1, templates)).mean(1))

    def score(self, pixel_embeddings: torch.Tensor, texts: ClassTexts) -> torch.Tensor:
        """Scores (B, N, 2h, 2w) of labels for pixel embeddings (B, D, h, w): scaled cosine similarities, spatial
        regularisation, and twice the size (bilinear, corners aligned, as in the paper).
        """
        scores = texts.merge(pixel_text_scores(pixel_embeddings, texts.embeddings, self.config.temperature))
        scores = scores.to(self.dtype)
        if self.head_block is not None:
            scores = self.head_block(scores)
        return F.interpolate(scores, scale_factor=2, mode="bilinear", align_corners=True)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        class_embeddings: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PromptableSegmentationOutput:
        r"""
        Args:
            pixel_values: (B, 3, H, W), normalised floats, of any size.
            input_ids, attention_mask: texts of N labels, (N, L), or (N, T, L) in T templates; or (B, N, T, L), of N
                labels of each image.
            class_embeddings: (N, D) or (B, N, D), from `get_class_embeddings`, instead of texts. Without either, the
                labels of `set_labels` are used.
            labels: (B, H, W), numbers of labels; `config.semantic_loss_ignore_index` where a pixel does not count.

        Returns:
            [`PromptableSegmentationOutput`]; `logits` (B, N, H, W) are cosine similarities times 1 / 0.07, at the size
            of `pixel_values`. With `labels`, `loss` is their mean cross-entropy over all pixels that count (0 if none
            does), plus that of the auxiliary head and of presence, times their weights.

        Raises:
            ValueError: no labels at all, or inputs of wrong shapes or types.
        """
        check_pixels(pixel_values, getattr(self.config.vision_config, "num_channels", 3))
        texts = self.resolve_class_embeddings(class_embeddings, input_ids, attention_mask, pixel_values)
        maps, outputs = self.lseg.run(pixel_values, **kwargs)
        pixel_embeddings = self.lseg.pixel_projection(maps[-1])
        height, width = pixel_values.shape[-2:]
        scores = self.score(pixel_embeddings, texts)[..., :height, :width]
        logits, background = self.finish_logits(scores, texts)
        check_output(self, logits, pixel_values=pixel_values, class_embeddings=class_embeddings)
        loss = None
        if labels is not None:
            loss = self._loss(logits, labels, maps, pixel_embeddings, texts)
            check_output(self, loss, "loss", pixel_values=pixel_values, class_embeddings=class_embeddings)
        return PromptableSegmentationOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.get("attentions"),
            class_embeddings=texts.embeddings,
            background_scores=background,
        )

    def _loss(self, logits, labels, maps, pixel_embeddings, texts: ClassTexts) -> torch.Tensor:
        config, auxiliary = self.config, None
        if self.auxiliary_projection is not None:
            coarse = self.auxiliary_projection(maps[-2])  # stride 4
            scores = texts.merge(pixel_text_scores(coarse, texts.embeddings, config.temperature))
            height, width = logits.shape[-2:]
            scores = F.interpolate(scores, scale_factor=4, mode="bilinear", align_corners=True)[..., :height, :width]
            auxiliary, _ = self.finish_logits(scores, texts)
        ignored = config.semantic_loss_ignore_index
        loss = segmentation_loss(logits, labels, ignored, auxiliary, config.auxiliary_loss_weight)
        if config.presence_loss_weight:
            pooled = pixel_embeddings.mean((2, 3), keepdim=True)
            presence = texts.merge(pixel_text_scores(pooled, texts.embeddings, config.temperature))
            presence, _ = self.finish_logits(presence, texts)
            loss = loss + config.presence_loss_weight * presence_loss(presence[:, :, 0, 0], labels, ignored)
        return loss


__all__ = ["LSegForSemanticSegmentation", "LSegModel", "LSegModelOutput", "LSegPreTrainedModel"]
