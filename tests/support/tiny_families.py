"""Small random models of the CLIP families, each with a tokenizer and a processor of its own kind; no network."""

import math
import string
from functools import cache
from pathlib import Path

import torch
import transformers
from tiny import CLASS_NAMES, tiny_clip, tiny_pixels, tiny_tokenizer


RESNET = "clipv-clip_resnet"  # of this package
FAMILIES = ("clip", RESNET, "metaclip_2", "chinese_clip", "altclip", "siglip", "siglip2")
SIGLIP_FAMILIES = ("siglip", "siglip2")

_MODELS = {
    "clip": "CLIP",
    "metaclip_2": "MetaClip2",
    "chinese_clip": "ChineseCLIP",
    "altclip": "AltCLIP",
    "siglip": "Siglip",
    "siglip2": "Siglip2",
}
_CHINESE_NAMES = ["猫", "金毛犬", "跑车", "森林", "红苹果"]
_CHINESE_CHARACTERS = (
    "一张的照片图猫狗金毛犬跑车森林红苹果绿蓝黄黑白色大小个只辆棵树花草鸟"
    "鱼马牛羊人手画像素描卡通标志上下左右中天地水火山海月日星"
)
_WORDS = tuple("a an photo of the picture image emoji cat dog golden retriever sports car forest red apple".split())
_SPACE = "▁"
_CONTEXT = 32
_SIGLIP_CONTEXT = 16
_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION = {
    "hidden_size": 40,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 8,
}


def family_class_names(model_type: str) -> list[str]:
    """Five names that the family's tiny tokenizer knows: Chinese ones for `chinese_clip`."""
    return list(_CHINESE_NAMES if _known(model_type) == "chinese_clip" else CLASS_NAMES)


def tiny_dual_encoder(model_type: str, seed: int = 0):
    """A random float32 model in eval mode: text 2 x 32, vision 3 x 40, 24 px, patch 8, joint width 24.

    In the SigLIP families the joint width is the image encoder's, 40: image features are not projected. `clip` is
    `tiny.tiny_clip(seed)`.
    """
    if _known(model_type) == "clip":
        return tiny_clip(seed)
    torch.manual_seed(seed)
    if model_type == RESNET:
        from hf_clip_variants import CLIPResNetModel

        model = CLIPResNetModel(tiny_family_config(model_type)).eval()
        _train_batch_norms(model.vision_model)
        return model
    model = getattr(transformers, f"{_MODELS[model_type]}Model")(tiny_family_config(model_type)).eval()
    _spread_out(model)
    return model


def tiny_family_config(model_type: str):
    """The configuration of `tiny_dual_encoder`; vocabulary and token ids are those of `tiny_family_tokenizer`."""
    if _known(model_type) == "clip":
        return tiny_clip(0).config
    if model_type == RESNET:
        from hf_clip_variants import CLIPResNetConfig

        vision = {"hidden_size": 64, "depths": [1, 1, 1, 1], "num_attention_heads": 4, "image_size": 32}
        text = tiny_clip(0).config.text_config.to_dict()
        return CLIPResNetConfig(text_config=text, vision_config=vision | {"projection_dim": 24}, projection_dim=24)
    tokenizer = tiny_family_tokenizer(model_type)
    siglip = model_type in SIGLIP_FAMILIES
    text = _TEXT | {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "max_position_embeddings": _SIGLIP_CONTEXT if siglip else _CONTEXT,
    }
    vision = dict(_VISION) | ({"num_patches": 9} if model_type == "siglip2" else {"image_size": 24})
    outer = {} if siglip else {"projection_dim": 24}
    text |= {
        "metaclip_2": {"projection_dim": 24},
        "chinese_clip": {},
        # XLM-R's positions start after the padding id.
        "altclip": {"project_dim": 28, "max_position_embeddings": _CONTEXT + tokenizer.pad_token_id + 1},
        "siglip": {"projection_size": vision["hidden_size"]},
        "siglip2": {"projection_size": vision["hidden_size"]},
    }[model_type]
    config_class = getattr(transformers, f"{_MODELS[model_type]}Config")
    return config_class(text_config=text, vision_config=vision | outer, **outer)


@cache
def tiny_family_tokenizer(model_type: str):
    """The family's kind of tokenizer over a vocabulary of a few hundred tokens (`clip`: the embedded model's).

    `siglip` and `siglip2` need `padding="max_length"` and return no attention mask, like the released ones.
    """
    return {
        "clip": tiny_tokenizer,
        RESNET: tiny_tokenizer,
        "metaclip_2": _xlm_roberta_tokenizer,
        "chinese_clip": _bert_tokenizer,
        "altclip": _xlm_roberta_tokenizer,
        "siglip": _siglip_tokenizer,
        "siglip2": _siglip2_tokenizer,
    }[_known(model_type)]()


def tiny_family_inputs(model_type: str, texts: list[str] | None = None) -> dict[str, torch.Tensor]:
    """Inputs of the family's text encoder for `texts` (default: the class names), padded as in its training."""
    padding = "max_length" if model_type in SIGLIP_FAMILIES else True
    tokenizer = tiny_family_tokenizer(model_type)
    texts = family_class_names(model_type) if texts is None else texts
    return dict(tokenizer(texts, padding=padding, truncation=True, return_tensors="pt"))


def tiny_family_pixels(model_type: str, batch: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of the family's image encoder for `batch` random images: `pixel_values` (B, 3, 24, 24).

    `siglip2` has (B, 9, 192) patches, a mask (B, 9) and the grids (B, 2); its odd images are 2 x 3 patches, the rest
    is padding.
    """
    pixels = tiny_pixels(batch, seed, size=family_image_size(model_type))
    if _known(model_type) != "siglip2":
        return {"pixel_values": pixels}
    patches = pixels.reshape(batch, 3, 3, 8, 3, 8).permute(0, 2, 4, 3, 5, 1).reshape(batch, 9, 192)
    shapes = torch.tensor([[3, 3], [2, 3]])[torch.arange(batch) % 2]
    mask = (torch.arange(9) < shapes.prod(1, keepdim=True)).int()
    return {"pixel_values": patches * mask[..., None], "pixel_attention_mask": mask, "spatial_shapes": shapes}


def family_image_size(model_type: str) -> int:
    """Side length in pixels; a multiple of 32 for a ResNet."""
    return 32 if model_type == RESNET else 24


def tiny_family_processor(model_type: str):
    """The family's processor for 24 px, with the settings of its released checkpoints.

    `Siglip2Processor` overrides its parts with 64 tokens, 16 px and 256 patches, which the tiny model does not have:
    call its parts, or pass `max_length=16, patch_size=8, max_num_patches=9`.
    """
    tokenizer = tiny_family_tokenizer(model_type)
    size = family_image_size(model_type)
    square, edge = {"height": size, "width": size}, {"shortest_edge": size}
    if _known(model_type) == "siglip2":
        return transformers.Siglip2Processor(
            transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=9), tokenizer
        )
    if model_type == "siglip":
        return transformers.SiglipProcessor(transformers.SiglipImageProcessor(size=square), tokenizer)
    if model_type == "chinese_clip":
        images = transformers.ChineseCLIPImageProcessor(size=square, crop_size=square, do_center_crop=False)
        return transformers.ChineseCLIPProcessor(images, tokenizer)
    processor_class = transformers.AltCLIPProcessor if model_type == "altclip" else transformers.CLIPProcessor
    return processor_class(transformers.CLIPImageProcessor(size=edge, crop_size=square), tokenizer)


def save_tiny_family(model_type: str, folder: str | Path, seed: int = 0) -> Path:
    """Saves model, tokenizer and processor to `folder`, for the Auto classes."""
    tiny_dual_encoder(model_type, seed).save_pretrained(folder)
    tiny_family_processor(model_type).save_pretrained(folder)
    return Path(folder)


@torch.no_grad()
def _train_batch_norms(encoder):
    """Gives batch norms trained values: a new ResNet's residual branches are zero, so all images have one feature."""
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
            module.running_var.uniform_(0.05, 0.2)
            module.running_mean.normal_(0, 0.3)


def _known(model_type: str) -> str:
    if model_type not in FAMILIES:
        raise ValueError(f"model_type={model_type!r}: expected one of {', '.join(FAMILIES)}")
    return model_type


def _spread_out(model) -> None:
    """Enlarges matrices, so that prompts have clearly different features.

    SigLIP's temperature and bias get the values from the start of its training.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("text_model.", "vision_model.")) and parameter.dim() > 1:
                parameter.mul_(_wanted_std(name, parameter[0].numel()) / parameter.std())
            elif name.endswith(".bias"):
                parameter.normal_(std=0.05)
        if hasattr(model, "logit_bias"):
            model.logit_scale.fill_(math.log(10))
            model.logit_bias.fill_(-10)
            # Most positions are padding. At full size, padding would dominate the last position, which is the feature.
            model.text_model.embeddings.token_embedding.weight[model.config.text_config.pad_token_id].mul_(0.1)


def _wanted_std(name: str, fan_in: int) -> float:
    if "word_embeddings" in name or "token_embedding" in name:
        return 0.5
    if "position_embedding" in name or "token_type_embeddings" in name:
        return 0.1
    mixes_tokens = any(part in name for part in ("v_proj", "value", "out_proj", "attention.output"))
    return (3.0 if mixes_tokens else 1.5) / math.sqrt(fan_in)


def _pieces() -> list[str]:
    """Words, and every character with and without a space before it, for any ASCII text and the Chinese names."""
    characters = string.ascii_letters + string.digits + string.punctuation + "。，" + _CHINESE_CHARACTERS
    return [
        _SPACE,
        *(_SPACE + word for word in _WORDS if len(word) > 1),
        *(_SPACE + c for c in characters),
        *characters,
    ]


def _unigrams(special: list[str]) -> list[tuple[str, float]]:
    # Long pieces are more likely than their characters.
    return [(token, 0.0) for token in special] + [(piece, -10.0 + 0.5 * len(piece)) for piece in _pieces()]


def _xlm_roberta_tokenizer():
    vocabulary = [*_unigrams(["<s>", "<pad>", "</s>", "<unk>"]), ("<mask>", 0.0)]
    return transformers.XLMRobertaTokenizer(vocab=vocabulary, model_max_length=_CONTEXT)


def _bert_tokenizer():
    characters = string.ascii_lowercase + string.digits
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [*string.punctuation, *"。，、", *characters, *("##" + c for c in characters), *_CHINESE_CHARACTERS]
    tokens += [word for word in _WORDS if len(word) > 1]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    assert len(vocabulary) == len(tokens), "a token twice"
    return transformers.BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=_CONTEXT)


def _siglip_tokenizer():
    """Does what the Rust conversion of SiglipTokenizer does, without sentencepiece.

    No punctuation, lower case, unigrams, `</s>` at the end and as padding.
    """
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    vocabulary = _unigrams(["<pad>", "</s>", "<unk>"])
    backend = Tokenizer(Unigram(vocab=vocabulary, unk_id=2, byte_fallback=False))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(f"[{''.join(chr(92) + c for c in string.punctuation)}]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        model_max_length=_SIGLIP_CONTEXT,
        model_input_names=["input_ids"],
        padding_side="right",
    )


def _siglip2_tokenizer():
    from tokenizers import processors

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += list(dict.fromkeys(piece.removeprefix(_SPACE) or _SPACE for piece in _pieces() if len(piece) < 3))
    merges = []
    for word in _WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    merges += [(_SPACE, word) for word in _WORDS]
    tokens += [_SPACE + word for word in _WORDS]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    assert len(vocabulary) == len(tokens), "a token twice"
    tokenizer = transformers.Siglip2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=_SIGLIP_CONTEXT,
        model_input_names=["input_ids"],
        padding_side="right",
    )
    # The class adds no <eos>; in a released checkpoint tokenizer.json does.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return tokenizer
