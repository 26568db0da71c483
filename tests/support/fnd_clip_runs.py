"""A tiny FND-CLIP, its processor and batches for it, and the official fixture as a model."""

import torch
from tiny import copy_of, tiny_clip_config, tiny_pixels, tiny_tokenizer
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from hf_clip_variants import (
    CLIPClassifierImageProcessor,
    FNDCLIPConfig,
    FNDCLIPForSequenceClassification,
    FNDCLIPProcessor,
)
from hf_clip_variants.modeling.fnd_clip.convert_fnd_clip import fnd_clip_from_official


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "cat", "dog", "fire", "flood", "in", "town", "big"]
WORDS += [".", ",", "old", "news", "photo", "of", *(f"w{number}" for number in range(20))]
TEXT = {
    "vocab_size": 48,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
BACKBONE = {"embedding_size": 6, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 2, 1, 1], "num_labels": 11}
# Arguments of a configuration that are wrong, and what the error says.
FND_CLIP_BAD_VALUES = (
    ({"shared_dim": 0}, "shared_dim: 0 is outside 1"),
    ({"feature_dim": 10**9}, "feature_dim: 1000000000 is outside 1"),
    ({"hidden_dim": -1}, "hidden_dim: -1 is outside 1"),
    ({"dropout": 1.0}, "dropout: 1.0, expected a number in 0..1"),
    ({"dropout": float("nan")}, "dropout: nan"),
    ({"batch_layer_attention": "yes"}, "batch_layer_attention"),
    ({"freeze_text": 2}, "freeze_text"),
    ({"adapt_features": "yes"}, "adapt_features"),
    ({"similarity_residual": 1}, "similarity_residual"),
    ({"max_text_length": 2}, "max_text_length: 2, expected 3..20"),
    ({"max_text_length": 30}, "max_text_length: 30, expected 3..20"),
    ({"text_config": {"model_type": "gpt2"}}, "text_config.model_type: 'gpt2', expected 'bert'"),
    ({"text_config": {"num_hidden_layers": -1}}, "text_config.num_hidden_layers: -1"),
    ({"text_config": {"is_decoder": True}}, "text_config: got a decoder, expected an encoder"),
    ({"backbone_config": {"model_type": "vit"}}, "backbone_config.model_type: 'vit', expected 'resnet'"),
    ({"backbone_config": {"depths": [1, 1]}}, "backbone_config.depths: \\[1, 1\\], expected a number for each of 4"),
    ({"backbone_config": {"hidden_sizes": [8, 8, 8, 10**9]}}, "hidden_sizes"),
    ({"backbone_config": {"num_channels": 1}}, "backbone_config.num_channels: 1, expected 3, the dual encoder's"),
    ({"dual_encoder_config": {"model_type": "bert"}}, "dual_encoder_config.model_type: 'bert'"),
    ({"dual_encoder_config": {"vision_config": {"patch_size": 300}}}, "patch_size: 300 is larger than image_size"),
)


def fnd_clip_config(**fields) -> FNDCLIPConfig:
    """A configuration in which no size is the default, without dropout."""
    sizes = {"shared_dim": 18, "feature_dim": 10, "hidden_dim": 14, "dropout": 0.0, "max_text_length": 16}
    parts = {"text_config": TEXT, "backbone_config": BACKBONE, "dual_encoder_config": tiny_clip_config().to_dict()}
    return FNDCLIPConfig(**parts | sizes | fields)


@torch.no_grad()
def with_statistics(model) -> None:
    """Batch norm's statistics become those of some posts: with those of a new model, all posts have one answer."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(**fnd_clip_batch(16, 5))
    model.eval()
    for norm in norms:
        norm.momentum = 0.1
        norm.running_var.mul_(2)  # less enlarging of what is rounded


def fnd_clip_model(seed: int = 0, **fields) -> FNDCLIPForSequenceClassification:
    def build():
        torch.manual_seed(seed)
        model = FNDCLIPForSequenceClassification(fnd_clip_config(**fields)).eval()
        with_statistics(model)
        return model

    return copy_of(f"fnd_clip {seed} {sorted(fields.items())}", build)


def fnd_clip_batch(batch: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 48, (batch, 7), generator=generator)
    mask = torch.ones_like(ids)
    ids[:, 0], ids[:, 6] = 2, 3
    ids[1::2, 4], ids[1::2, 5:], mask[1::2, 5:] = 3, 0, 0
    clip_ids = torch.randint(0, 4036, (batch, 6), generator=generator)
    clip_ids[:, 0], clip_ids[:, 5] = 4036, 4037
    clip_ids[1::2, 4] = 4037
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "clip_input_ids": clip_ids,
        "pixel_values": tiny_pixels(batch, seed),
        "labels": torch.arange(batch) % 2,
    }


def bert_tokenizer() -> BertTokenizerFast:
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)}, do_lower_case=True)


def news_processor(**settings) -> FNDCLIPProcessor:
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    return FNDCLIPProcessor(CLIPClassifierImageProcessor(**size), bert_tokenizer(), tiny_tokenizer(), 16, **settings)


# The case of tests/support/model_contract.py.
FND_CLIP = {
    "name": "fnd_clip",
    "config": fnd_clip_config,
    "inputs": fnd_clip_batch,
    "processor": news_processor,
    "auto_class": "AutoModelForSequenceClassification",
    "by_row": ("logits", "similarity", "modality_weights", "layer_attention", "text_embeds", "cross_embeds"),
    "loss_is_of_the_batch": True,  # batch normalisation
    "prepare": with_statistics,
    "rounding": 1e-5,
    "untrained": ("text_model.", "dual_encoder."),
    "bad_values": FND_CLIP_BAD_VALUES,
}


# ---- the official fixture


def fixture_parts(said: dict):
    """Encoders of the fixture's widths; their outputs are in the fixture."""
    torch.manual_seed(0)
    layers = {"num_hidden_layers": said["L"] - 1, "hidden_size": said["bert"], "num_attention_heads": 1}
    text_model = BertModel(BertConfig(**TEXT | layers))
    dual_encoder = CLIPModel(CLIPConfig(**tiny_clip_config().to_dict() | {"projection_dim": said["clip"]}))
    return (
        text_model,
        dual_encoder,
        ResNetForImageClassification(ResNetConfig(**BACKBONE | {"num_labels": said["res"]})),
    )


def official_model(fixture, **fields) -> FNDCLIPForSequenceClassification:
    text_model, dual_encoder, image_model = fixture_parts(fixture.meta["hyper"])
    parts = {"text_model": text_model, "dual_encoder": dual_encoder, "image_model": image_model}
    return fnd_clip_from_official(fixture.state_dict, **parts, **fields)


def official_inputs(fixture) -> dict[str, torch.Tensor]:
    given = fixture.inputs
    return {
        "text_states": given["bert_hidden_states"][:, :, 0].transpose(0, 1),
        "clip_text_features": given["clip_text"],
        "clip_image_features": given["clip_image"],
        "image_logits": given["resnet_logits"],
    }
