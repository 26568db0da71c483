"""ActionCLIP: actions recognised by comparing videos with texts; a dual encoder of images that sees time.

Paper: "ActionCLIP: A New Paradigm for Video Action Recognition", https://arxiv.org/abs/2109.08472.
"""

from typing import Unpack

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPAttention
from transformers.utils import TransformersKwargs, can_return_tuple

from ..dual_encoders.backbones import family_of, unit_norm
from ..dual_encoders.forward_checks import check_output
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from ..loading_and_saving.copied_weights import copy_weights
from ..video.video_dual_encoder import VideoDualEncoder, VideoTextOutput
from ..video.video_inputs import check_videos, checked_mask
from .configuration_actionclip import ActionCLIPConfig
from .loss_actionclip import label_contrastive_loss
from .prompts_actionclip import (
    ActionCLIPFusion,
    ClassTokenEncoder,
    JointCLIPVisionEmbeddings,
    ShiftConv1d,
    ShiftedCLIPEncoderLayer,
    joint_attention_mask,
    shift_weights,
)
from .templates_actionclip import ACTION_TEMPLATES


# B texts, L tokens, V videos, T frames, D joint width, P prompts of a class, C classes, R views of a video

_STD = 0.02  # of new layers in heads
_TIME = "clip.vision_model.embeddings.time_embedding.weight"


class ActionCLIPPreTrainedModel(CheckedLoading, StagedSaving, PreTrainedModel):
    config: ActionCLIPConfig
    base_model_prefix = "clip"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_attention_backend = True
    _no_split_modules = ["CLIPEncoderLayer", "CLIPTextEmbeddings", "CLIPVisionEmbeddings", "ActionCLIPFusion"]
    _no_split_modules += ["ShiftedCLIPEncoderLayer", "JointCLIPVisionEmbeddings"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.LSTM):  # PyTorch's own
            for weight in module.parameters(recurse=False):
                init.uniform_(weight, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
        elif isinstance(module, ShiftConv1d):
            init.copy_(module.weight, shift_weights(module.out_channels))
        elif isinstance(module, ClassTokenEncoder):
            # The official code cuts at two standard deviations, too, by a remainder.
            for weight in (module.class_token, module.position_embedding):
                init.trunc_normal_(weight, std=_STD, a=-2 * _STD, b=2 * _STD)
        elif isinstance(module, CLIPAttention):
            # The official code's joint projection keeps PyTorch's Xavier bounds, which are those of (3 D, D).
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                bound = (6 / (4 * module.embed_dim)) ** 0.5
                init.uniform_(projection.weight, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=_STD)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)


class ActionCLIPModel(VideoDualEncoder, ActionCLIPPreTrainedModel):
    r"""
    ActionCLIP (Wang et al. 2021): recognition of actions as a comparison of videos with texts.

    The dual encoder is `clip`. `from_clip` makes a model of a trained one. With no visual prompt and head meanP
    nothing is new: a zero-shot model. To search videos with sentences, and for text and video vectors whose frames are
    normalised first, see [`CLIP4ClipModel`].

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import ActionCLIPConfig, ActionCLIPModel

    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> vision = text | {"image_size": 32, "patch_size": 16}
    >>> config = ActionCLIPConfig(text_config=text, vision_config=vision, projection_dim=64, num_fusion_layers=1)
    >>> model = ActionCLIPModel(config).eval()
    >>> ids = torch.tensor([[49406, 320, 49407], [49406, 518, 49407], [49406, 550, 49407]])
    >>> model(ids, torch.randn(2, 5, 3, 32, 32)).logits_per_video.shape
    torch.Size([2, 3])
    ```
    """

    # For the pipeline: the prompts of each class, whose scores are averaged, not their features.
    default_templates = ACTION_TEMPLATES
    scores_each_template = True

    def __init__(self, config: ActionCLIPConfig):
        super().__init__(config)
        self.family = family_of(config.backbone_model_type)
        self.clip = self.family.model_class()._from_config(self.family.model_config(config))
        if config.visual_prompt == "shift":
            vision = self.clip.vision_model
            layers = [ShiftedCLIPEncoderLayer(vision.config, config.shift_divisor) for _ in vision.encoder.layers]
            vision.encoder.layers = nn.ModuleList(layers)
        elif config.visual_prompt == "joint":
            vision = self.clip.vision_model
            vision.embeddings = JointCLIPVisionEmbeddings(vision.config, config.num_frames)
        layers = config.head_layers()
        layers._attn_implementation = config._attn_implementation
        self.fusion = ActionCLIPFusion(config, layers)
        self.post_init()
        self.freeze_encoders(config.frozen_encoders)

    # ---- making and freezing

    @classmethod
    def from_clip(cls, clip: PreTrainedModel, **options) -> "ActionCLIPModel":
        """A model with the weights of a dual encoder; what is new (the head, embeddings of time) is random.

        Args:
            clip: a `CLIPModel`, or another one of `modeling/dual_encoders/backbones.py`.
            options: fields of [`ActionCLIPConfig`], such as `fusion_head="meanP"` or `visual_prompt="shift"`.
        """
        config = ActionCLIPConfig(**ActionCLIPConfig.values_from(clip.config) | options)
        model = cls(config).to(clip.dtype)
        new = {name: value for name, value in model.clip.state_dict().items() if f"clip.{name}" == _TIME}
        copy_weights(model.clip, new | clip.state_dict(), options=options)
        return model.eval()

    def freeze_encoders(self, frozen: str) -> None:
        """Freezes no encoder ("none"), the text encoder ("text"), or "both", but what was added to them, and
        `logit_scale`."""
        self.requires_grad_(True)
        modules = []
        if frozen in ("text", "both"):
            modules += self.family.text_modules(self.clip)
        if frozen == "both":
            modules += self.family.image_modules(self.clip)
        for module in modules:
            module.requires_grad_(False)
        if self.config.visual_prompt == "joint":
            self.clip.vision_model.embeddings.time_embedding.requires_grad_(True)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers; encoders that `config.frozen_encoders` freezes are frozen, too."""
        found = super().from_pretrained(*args, output_loading_info=output_loading_info, **kwargs)
        model = found[0] if output_loading_info else found
        model.freeze_encoders(model.config.frozen_encoders)
        return found

    def _accept_missing(self, missing: set[str]) -> set[str]:
        """A plain dual encoder has neither a head nor embeddings of time; a head that is partly there is damaged."""
        for new in (lambda name: name.startswith("fusion."), lambda name: name == _TIME):
            names = {name for name in self.state_dict() if new(name)}
            if names and names <= missing:
                missing = missing - names
        return missing

    # ---- features

    def get_frame_features(
        self, pixel_values_videos: torch.FloatTensor, video_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(V, T, 3, H, W) -> (V, T, D), before the head, not normalised; zeros for frames that are not there. With
        temporal shift a frame knows of its neighbours.

        Raises:
            ValueError: visual_prompt "joint": there, a video is one sequence, and frames have no features.
        """
        if self.config.visual_prompt == "joint":
            raise ValueError(
                "visual_prompt: 'joint' encodes a video as a whole, frames have no features by themselves"
            )
        return super().get_frame_features(pixel_values_videos, video_mask)

    def _encode_frames(self, pixel_values_videos: torch.Tensor, mask: torch.Tensor, **kwargs):
        if self.config.visual_prompt == "none":
            return super()._encode_frames(pixel_values_videos, mask, **kwargs)
        # Temporal shift: rows of the output are all frames, those that are not there, too.
        kwargs |= {"return_dict": True, "video_mask": mask}
        pixels = pixel_values_videos.flatten(0, 1).to(self.dtype)
        with self._frames_named():
            outputs = self.family.image_features(self.clip, pixel_values=pixels, **kwargs)
        features = outputs.pooler_output.unflatten(0, mask.shape)
        return features * mask[..., None].to(features.dtype), outputs

    def _encode_videos(self, pixel_values_videos: torch.Tensor, mask: torch.Tensor, **kwargs):
        """(V, T, 3, H, W), (V, T) -> video features (V, D), frames after and before the head (V, T, D) or None, and
        the image encoder's output."""
        if self.config.visual_prompt != "joint":
            before, outputs = self._encode_frames(pixel_values_videos, mask, **kwargs)
            after, videos = self.fusion(before, mask)
            return videos, after, before, outputs
        vision = self.config.vision_config
        patches = (pixel_values_videos.shape[-2] // vision.patch_size) * (
            pixel_values_videos.shape[-1] // vision.patch_size
        )
        kwargs |= {
            "return_dict": True,
            "attention_mask": joint_attention_mask(vision, mask, patches, vision.hidden_size, self.dtype),
        }
        with self._frames_named():
            outputs = self.clip.get_image_features(pixel_values=pixel_values_videos.to(self.dtype), **kwargs)
        return outputs.pooler_output, None, None, outputs

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.FloatTensor,
        video_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """(V, T, 3, H, W) -> `pooler_output` (V, D), not normalised; `last_hidden_state` (V, T, D), frames after the
        head, None with visual_prompt "joint". `hidden_states` and `attentions` are the image encoder's: rows are the
        frames that are there; with temporal shift all frames, and with "joint" videos.
        """
        check_videos(pixel_values_videos)
        mask = checked_mask(video_mask, pixel_values_videos)
        videos, after, _, outputs = self._encode_videos(pixel_values_videos, mask, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=after,
            pooler_output=videos,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    # ---- scores

    def video_text_logits(
        self,
        pixel_values_videos: torch.FloatTensor,
        text_features: torch.Tensor,
        video_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Videos and text features of classes (C, D), or of P prompts of each (P, C, D) -> logits (V, C), whose
        softmax is the mean over prompts, and over views, of the softmax over classes.

        Args:
            pixel_values_videos: (V, T, 3, H, W), or (V, R, T, 3, H, W) of R views of each video.
            text_features: may be kept from an earlier call.
            video_mask: (V, T) or (V, R, T).
        """
        logits = self._class_logits(pixel_values_videos, text_features, video_mask)[0]
        check_output(self, logits, "logits_per_video", pixel_values_videos=pixel_values_videos)
        return logits

    def _class_logits(self, pixel_values_videos, text_features, video_mask, **kwargs):
        """As `video_text_logits`, and unit vectors of views (V * R, D) and the image encoder's output."""
        views = 1
        if isinstance(pixel_values_videos, torch.Tensor) and pixel_values_videos.dim() == 6:
            views = pixel_values_videos.shape[1]
            pixel_values_videos = pixel_values_videos.flatten(0, 1)
            video_mask = video_mask.flatten(0, 1) if isinstance(video_mask, torch.Tensor) else video_mask
        check_videos(pixel_values_videos)
        mask = checked_mask(video_mask, pixel_values_videos)
        videos, _, _, outputs = self._encode_videos(pixel_values_videos, mask, **kwargs)
        return self.class_logits(videos, text_features, views), unit_norm(videos), outputs

    def class_logits(self, video_features: torch.Tensor, text_features: torch.Tensor, views: int = 1) -> torch.Tensor:
        """`video_text_logits` of features that are there: (V * R, D), all R views of a video together, and (C, D) or
        (P, C, D) -> (V, C)."""
        videos, texts = unit_norm(video_features), unit_norm(text_features).to(video_features.dtype)
        texts = texts[None] if texts.dim() == 2 else texts
        # As in the official evaluation: a softmax over classes for each prompt, then the mean of prompts.
        cosines = torch.einsum("vd,pcd->vpc", videos, texts)
        shares = (self._score_scale() * cosines.float()).log_softmax(-1)
        shares = shares.unflatten(0, (-1, views)).flatten(1, 2)
        logits = shares.logsumexp(1) - torch.tensor(float(shares.shape[1])).log().to(shares.device)
        return logits.to(videos.dtype)

    def _score_scale(self):
        scale = self.config.score_scale
        return self.family.logit_scale(self.clip).float() if scale is None else scale

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        pixel_values_videos: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        video_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VideoTextOutput:
        r"""
        Args:
            input_ids, attention_mask: (B, L), as the tokenizer gives them.
            pixel_values_videos: (V, T, 3, H, W), normalised.
            video_mask: (V, T), 1 for frames that are there, which come first; None: all are.
            labels: (V,) classes of the pairs: text i, a prompt of its class, belongs to video i, and B = V. With them
                there is a loss, `label_contrastive_loss`: on several processes, in training, that of all pairs.
            return_loss: the same without labels: each pair is a class of its own.

        Returns:
            [`VideoTextOutput`]: logits are cosine similarities times `exp(logit_scale)`.

        Raises:
            ValueError: inputs of wrong shapes or types, texts that are too long, a video without frames, texts that
                are not as many as videos; on a CPU, in eval mode, NaN in the answer, with its cause.
        """
        check_videos(pixel_values_videos)
        mask = checked_mask(video_mask, pixel_values_videos)
        text_outputs = self._encode_texts(input_ids, attention_mask, **kwargs)
        if (return_loss or labels is not None) and len(input_ids) != len(pixel_values_videos):
            raise ValueError(
                f"labels, return_loss: {len(input_ids)} texts for {len(pixel_values_videos)} videos, expected a text "
                "of each"
            )
        videos, _, frames, vision_outputs = self._encode_videos(pixel_values_videos, mask, **kwargs)
        video_embeds, text_embeds = unit_norm(videos), unit_norm(text_outputs.pooler_output)
        scale = self.family.logit_scale(self.clip)
        logits = scale * text_embeds @ video_embeds.T.to(text_embeds.dtype)
        bias = self.family.logit_bias(self.clip)
        logits = logits if bias is None else logits + bias
        check_output(self, logits, "logits_per_text", pixel_values_videos=pixel_values_videos)
        loss = None
        if return_loss or labels is not None:
            gather = "exact" if self.training else "none"
            loss = label_contrastive_loss(video_embeds, text_embeds, scale.log(), labels, gather=gather)
        return VideoTextOutput(
            loss=loss,
            logits_per_video=logits.T,
            logits_per_text=logits,
            text_embeds=text_embeds,
            video_embeds=video_embeds,
            frame_features=frames,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )


__all__ = ["ActionCLIPModel", "ActionCLIPPreTrainedModel"]
