"""A small model that segments by texts, for what all such models share. Its features are colours and letters."""

from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from tiny import tiny_tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.models.auto import image_processing_auto, processing_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_clip_variants.modeling.dense.configuration_dense import PromptableSegmentationFields
from hf_clip_variants.modeling.dense.image_processing_dense import DenseImageProcessor
from hf_clip_variants.modeling.dense.outputs_dense import PromptableSegmentationOutput
from hf_clip_variants.modeling.dense.processing_dense import DenseProcessor
from hf_clip_variants.modeling.dense.promptable_segmentation import PromptableSegmentationMixin
from hf_clip_variants.modeling.dense.segmentation_loss import segmentation_loss
from hf_clip_variants.modeling.loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from hf_clip_variants.modeling.loading_and_saving.configuration_checks import checked


@checked
@strict
class ToySegmentationConfig(PromptableSegmentationFields, PreTrainedConfig):
    model_type = "toy-segmentation"
    vocab_size: int = 4038
    hidden_size: int = 8


class ToyForSemanticSegmentation(PromptableSegmentationMixin, CheckedLoading, StagedSaving, PreTrainedModel):
    """Texts: the mean of their tokens' vectors, and a matrix. Pixels: a convolution."""

    config: ToySegmentationConfig
    text_modules = ("text.tokens", "text.projection")

    def __init__(self, config):
        super().__init__(config)
        self.text = nn.Module()
        self.text.tokens = nn.Embedding(config.vocab_size, config.hidden_size) if self.has_text_encoder else None
        self.text.projection = nn.Linear(config.hidden_size, config.hidden_size) if self.has_text_encoder else None
        self.pixels = nn.Conv2d(3, config.hidden_size, 3, padding=1)
        self.make_class_embeddings(config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Embedding | nn.Conv2d | nn.Linear):
            init.normal_(module.weight)

    def get_class_embeddings(self, input_ids, attention_mask=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        texts = (self.text.tokens(input_ids) * mask[..., None]).sum(-2) / mask.sum(-1, keepdim=True).clamp_min(1)
        texts = nn.functional.normalize(self.text.projection(texts), dim=-1)
        return nn.functional.normalize(texts.mean(1), dim=-1) if texts.dim() == 3 else texts

    def forward(
        self,
        pixel_values,
        input_ids=None,
        attention_mask=None,
        class_embeddings=None,
        labels=None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ):
        texts = self.resolve_class_embeddings(class_embeddings, input_ids, attention_mask)
        features = nn.functional.normalize(self.pixels(pixel_values), dim=1)
        product = "bdhw,nd->bnhw" if texts.embeddings.dim() == 2 else "bdhw,bnd->bnhw"
        scores = texts.merge(torch.einsum(product, features, texts.embeddings))
        logits, background_scores = self.finish_logits(scores, texts)
        loss = None
        if labels is not None:
            loss = segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index)
        return PromptableSegmentationOutput(
            loss=loss,
            logits=logits,
            class_embeddings=texts.embeddings,
            pixel_embeddings=features,
            background_scores=background_scores,
        )


def toy_model(seed: int = 0, **config) -> ToyForSemanticSegmentation:
    torch.manual_seed(seed)
    return ToyForSemanticSegmentation(ToySegmentationConfig(**config)).eval()


def toy_processor(templates=None, **options) -> DenseProcessor:
    options = {"size": {"shortest_edge": 32, "longest_edge": 96}} | options
    return DenseProcessor(DenseImageProcessor(**options), tiny_tokenizer(), templates=templates)


@contextmanager
def registered_toy():
    """The toy behind transformers' Auto classes, as a row of the registry is."""
    config = ToySegmentationConfig
    AutoConfig.register(config.model_type, config)
    AutoModelForSemanticSegmentation.register(config, ToyForSemanticSegmentation)
    AutoImageProcessor.register(config, image_processor_classes={"torchvision": DenseImageProcessor})
    AutoProcessor.register(config, DenseProcessor)
    try:
        yield
    finally:
        CONFIG_MAPPING._extra_content.pop(config.model_type)
        for mapping in (
            AutoModelForSemanticSegmentation._model_mapping,
            image_processing_auto.IMAGE_PROCESSOR_MAPPING,
            processing_auto.PROCESSOR_MAPPING,
        ):
            mapping._extra_content.pop(config)
