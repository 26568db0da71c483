"""`CLIPModel`'s interface for dual encoders with another image encoder."""

from typing import Unpack

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.utils import TransformersKwargs, can_return_tuple

from ..loading_and_saving.optional_modules import optional_checks
from ..losses.contrastive_loss import contrastive_loss
from .backbones import unit_norm


_checks = optional_checks(".forward_checks", __package__)


# B images, N texts, L tokens, D joint width


class DualEncoder:
    """Mixin before a `PreTrainedModel` that has `text_model` (a `CLIPTextModel`), `text_projection`, `logit_scale` and
    `vision_model`, whose `pooler_output` is in the joint space; where it is not, override `get_image_features`.
    """

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.embeddings.token_embedding = value

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """As `CLIPModel`'s: (N, L) ids -> the text encoder's output; `pooler_output` (N, D) is the projected
        feature.
        """
        text = self.config.text_config
        _checks.check_token_ids(input_ids, text.vocab_size, text.max_position_embeddings)
        outputs = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )
        outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """As `CLIPModel`'s: the image encoder's output; `pooler_output` (B, D) is in the joint space,
        un-normalised.
        """
        return self.vision_model(
            pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CLIPOutput:
        r"""
        Args:
            input_ids: (N, L); the first end token ends a text.
            pixel_values: (B, 3, H, W), normalised.
            attention_mask, position_ids: (N, L), for the text encoder.
            return_loss: CLIP's contrastive loss, with image i and text i a pair; needs N = B.
            interpolate_pos_encoding: accept image sizes other than `config.vision_config.image_size`.

        Returns `loss`, `logits_per_image` (B, N), `logits_per_text` (N, B), unit-norm `text_embeds` (N, D) and
        `image_embeds` (B, D), and both encoders' outputs.
        """
        if input_ids is None or pixel_values is None:
            missing = "input_ids" if input_ids is None else "pixel_values"
            raise ValueError(f"{missing}: missing; for one modality call get_image_features or get_text_features")
        vision = self.get_image_features(pixel_values, interpolate_pos_encoding, **kwargs)
        text = self.get_text_features(input_ids, attention_mask, position_ids, **kwargs)
        image_embeds = unit_norm(vision.pooler_output)
        text_embeds = unit_norm(text.pooler_output).to(image_embeds.device)
        logits_per_image = self.logit_scale.exp().to(image_embeds.device) * image_embeds @ text_embeds.t()
        _checks.check_output(self, logits_per_image, "logits_per_image", pixel_values=pixel_values)
        loss = None
        if return_loss:
            if len(image_embeds) != len(text_embeds):
                raise ValueError(
                    f"return_loss: expected as many images as texts, got {len(image_embeds)} and {len(text_embeds)}"
                )
            # Over ranks in training; evaluation may run on one of them alone, which would wait for the others.
            gather = getattr(self.config, "clip_gather", "exact") if self.training else "none"
            loss = contrastive_loss(image_embeds, text_embeds, self.logit_scale, normalize=False, gather=gather)
            _checks.check_output(self, loss, "loss", pixel_values=pixel_values)
        return CLIPOutput(
            loss=loss,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.t(),
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )


__all__ = ["DualEncoder"]
