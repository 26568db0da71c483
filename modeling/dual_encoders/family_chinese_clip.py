"""Where Chinese-CLIP differs from CLIP."""

import torch
from torch import nn

from .backbones import CLIPFamily


class ChineseCLIPFamily(CLIPFamily):
    """`ChineseCLIPModel`: BERT, [CLS] pooling without a pooler, padding masked; CLIP's image encoder."""

    model_type = "chinese_clip"
    text_is_causal = False
    module = "transformers.models.chinese_clip"
    prefix = "ChineseCLIP"
    default_template = "一张{}的照片。"
    default_context = "一张"
    full_stop = "。"
    eval_when_frozen = ("text_model",)
    token_embedding = "text_model.embeddings.word_embeddings"
    text_layers = "text_model.encoder.layer"
    vision_classes = ("VisionModel", "VisionEncoder", "VisionLayer", "VisionAttention", "VisionMLP")

    @staticmethod
    def context_length(config) -> int:
        return min(52, config.text_config.max_position_embeddings)  # what the official models were trained with

    @staticmethod
    def run_text(model: nn.Module, input_ids, inputs_embeds=None, position_ids=None) -> torch.Tensor:
        mask = (input_ids != model.config.text_config.pad_token_id).long()
        text = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        positions = None if position_ids is None else position_ids.expand(input_ids.shape[0], -1)
        return model.text_model(**text, attention_mask=mask, position_ids=positions).last_hidden_state[:, 0]


FAMILY = ChineseCLIPFamily

__all__ = ["FAMILY", "ChineseCLIPFamily"]
