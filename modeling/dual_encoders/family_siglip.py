"""Where SigLIP differs from CLIP."""

import torch
from torch import nn

from .backbones import CLIPFamily
from .offloading import weight_of


class SiglipFamily(CLIPFamily):
    """`SiglipModel`: the last of a fixed number of positions is pooled, padding counts; no class token, no
    projections, a logit bias.
    """

    model_type = "siglip"
    text_is_causal = False
    module = "transformers.models.siglip"
    prefix = "Siglip"
    num_start_tokens = 0
    has_class_token = False
    text_projection = visual_projection = patch_norm = None
    vision_classes = ()
    vision_switches = ("vision_use_head",)  # the head pools the patches

    @staticmethod
    def joint_width(config) -> int:
        return config.text_config.projection_size

    @staticmethod
    def run_text(model: nn.Module, input_ids, inputs_embeds=None, position_ids=None) -> torch.Tensor:
        encoder = model.text_model
        missing = encoder.config.max_position_embeddings - input_ids.shape[1]
        padding = input_ids.new_full((input_ids.shape[0], missing), encoder.config.pad_token_id)
        if inputs_embeds is None:
            inputs_embeds = encoder.embeddings.token_embedding(torch.cat([input_ids, padding], dim=1))
        else:
            padding = encoder.embeddings.token_embedding(padding).to(inputs_embeds.dtype)
            inputs_embeds = torch.cat([inputs_embeds, padding], dim=1)
        if position_ids is not None:
            behind = torch.arange(input_ids.shape[1], inputs_embeds.shape[1], device=position_ids.device)
            position_ids = torch.cat([position_ids, behind])[None]
        hidden = encoder.embeddings(inputs_embeds=inputs_embeds, position_ids=position_ids)
        hidden = encoder.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        return encoder.head(encoder.final_layer_norm(hidden[:, -1]))

    @staticmethod
    def logit_bias(model: nn.Module) -> torch.Tensor:
        return weight_of(model, "logit_bias")


FAMILY = SiglipFamily

__all__ = ["FAMILY", "SiglipFamily"]
