"""Where AltCLIP differs from CLIP."""

import torch
from torch import nn

from .backbones import CLIPFamily


class AltCLIPFamily(CLIPFamily):
    """`AltCLIPModel`: XLM-RoBERTa whose first token is projected twice, padding masked; CLIP's image encoder."""

    model_type = "altclip"
    text_is_causal = False
    module = "transformers.models.altclip"
    prefix = "AltCLIP"
    eval_when_frozen = ("text_model",)
    text_embeddings = "text_model.roberta.embeddings"
    token_embedding = "text_model.roberta.embeddings.word_embeddings"
    text_layers = "text_model.roberta.encoder.layers"

    @classmethod
    def model_config(cls, config):
        """Its own, because transformers renames the weights of old checkpoints by the configuration's `model_type`."""
        names = ("text_config", "vision_config", "projection_dim", "logit_scale_init_value", "initializer_factor")
        own = cls._load("Config")(**{name: getattr(config, name) for name in names})
        own._attn_implementation_internal = getattr(config, "_attn_implementation_internal", None)
        own.dtype = config.dtype
        return own

    @staticmethod
    def context_length(config) -> int:
        text = config.text_config
        # its positions start behind the padding's
        return min(77, text.max_position_embeddings - text.pad_token_id - 1)

    @staticmethod
    def run_text(model: nn.Module, input_ids, inputs_embeds=None, position_ids=None) -> torch.Tensor:
        padding = model.config.text_config.pad_token_id
        mask = (input_ids != padding).long()
        # With inputs_embeds the encoder would count padding, too.
        positions = mask.cumsum(dim=1) if position_ids is None else position_ids + 1
        text = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        return model.text_model(**text, attention_mask=mask, position_ids=positions * mask + padding).pooler_output


FAMILY = AltCLIPFamily

__all__ = ["FAMILY", "AltCLIPFamily"]
