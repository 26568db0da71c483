"""Weights of the official CLIP-ViL_p (pre-trained, VQA, entailment) ↔ our models.

The state dict comes from `hf_clip_variants.conversion.checkpoint_reader.read_state_dict`; this file reads no files.
A pre-training file (`Epoch11_LXRT.pth`) has `cls.` and `answer_head.`, a fine-tuned one (`BEST.pth`) `logit_fc.`. The
official loader takes what fits and says nothing of the rest; here all is accounted for. Left out are CLIP's text
encoder, its attention pooling or projection, and the layers for boxes, which no grid uses.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from ..clip.convert_clip import (
    NameTable,
    attention_heads,
    bert_names,
    count_layers,
    rename_from_official,
    rename_to_official,
    shapes_of,
    vision_names,
    weight_and_bias,
)
from ..dual_encoders.prompts import resolve_class_names
from ..loading_and_saving.checkpoint_format import BuiltModel, ModelFormat, OfficialFile, Signature
from ..loading_and_saving.example_outputs import Tensors, images_and_texts, noise_pictures, processed_texts, texts_of
from .answering_clip_vil import ClipViLForPreTraining, ClipViLForVisualQuestionAnswering
from .configuration_clip_vil import ClipViLConfig
from .modeling_clip_vil import ClipViLModel
from .processing_clip_vil import clip_vil_processor


_OF = "CLIP-ViL"
_WRAPPERS = ("module.", "lxrt_encoder.model.")
_BERT, _VISUAL, _LAYERS = "bert.", "bert.encoder.visual_model.visual.", "bert.encoder.layer."
_POSITIONS, _PROJECTION = "bert.encoder.visual_pos.", "bert.encoder.visn_fc."
_CLIP = "bert.encoder.visual_model."
_DECODER = "cls.predictions.decoder.weight"  # the word embeddings once more
_UNUSED = (f"{_PROJECTION}box_", f"{_VISUAL}attnpool.", f"{_VISUAL}proj", f"{_BERT}embeddings.position_ids")
_UNUSED += tuple(f"{_CLIP}{name}" for name in ("transformer.", "token_embedding.", "ln_final.", "text_projection"))
_UNUSED += tuple(f"{_CLIP}{name}" for name in ("logit_scale", "positional_embedding"))
_COUNTER = ".num_batches_tracked"
_STAGES = [f"{_VISUAL}layer{number}." for number in (1, 2, 3, 4)]
_HEAD = {"0": "dense", "2": "normalization", "3": "answers"}
_PRETRAINING_HEADS = {f"cls.{part}.{kind}" for part in ("seq_relationship",) for kind in ("weight", "bias")}
_PRETRAINING_HEADS |= {
    f"cls.predictions.transform.{part}.{kind}" for part in ("dense", "LayerNorm") for kind in ("weight", "bias")
}


# ---- names


def _grid_names(config: ClipViLConfig, expected: Mapping[str, torch.Tensor]) -> NameTable:
    prefix = "grid.vision_model."
    if config.is_resnet:
        table: NameTable = {_VISUAL + n.removeprefix(prefix): n for n in expected if n.startswith(prefix)}
        if config.use_grid_position:
            table[f"{_POSITIONS}x_position_embedding.weight"] = "grid_position.row_embedding.weight"
            table[f"{_POSITIONS}y_position_embedding.weight"] = "grid_position.column_embedding.weight"
    else:
        table = {}
        for name, ours in vision_names(config.vision_config.num_hidden_layers).items():
            if name not in ("visual.proj", "image_projection"):
                many = isinstance(ours, tuple)
                table[_CLIP + name] = tuple(f"grid.{one}" for one in ours) if many else f"grid.{ours}"
        if config.vit_positions == "flat":
            table[f"{_VISUAL}positional_embedding"] = "grid.flat_positions.table"
    table |= weight_and_bias(f"{_PROJECTION}visn_fc", "grid_projection.dense")
    return table | weight_and_bias(f"{_PROJECTION}visn_layer_norm", "grid_projection.normalization")


def _head_names(official: str) -> NameTable:
    return {
        f"{official}.{number}.{kind}": f"answer_head.{part}.{kind}"
        for number, part in _HEAD.items()
        for kind in ("weight", "bias")
    }


def _names(model: torch.nn.Module) -> NameTable:
    """Official names of a model's weights, without what is tied."""
    base = getattr(model, "clip_vil", model)
    inner = bert_names("bert.", "text_model.", model.config.num_hidden_layers)
    inner |= weight_and_bias("bert.pooler.dense", "pooler") | _grid_names(model.config, base.state_dict())
    prefix = "" if base is model else "clip_vil."
    table: NameTable = {
        name: tuple(prefix + one for one in ours) if isinstance(ours, tuple) else prefix + ours
        for name, ours in inner.items()
    }
    if base is model:
        return table
    if isinstance(model, ClipViLForPreTraining):
        words = {name: name for name in [*sorted(_PRETRAINING_HEADS), "cls.predictions.bias"]}
        return words | _head_names("answer_head.logit_fc") | table
    return _head_names("logit_fc") | table


def _without_wrappers(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in state_dict.items():
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
        found[name] = tensor
    return found


def unused_names(state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """Names in an official file that no model here uses."""
    short = dict(zip(_without_wrappers(state_dict), state_dict, strict=True))
    unused = _UNUSED
    if f"{_VISUAL}class_embedding" in short:
        unused += (_POSITIONS,)  # officially made for each model, and read by those with a ResNet
    if any(name.startswith("logit_fc.") for name in short):
        unused += ("cls.", "answer_head.")  # heads of the pre-training
    return [name for one, name in short.items() if one.startswith(unused) and one != f"{_VISUAL}positional_embedding"]


# ---- both ways


def clip_vil_from_official(
    state_dict: Mapping[str, torch.Tensor],
    *,
    text_heads: int | None = None,
    vision_heads: int | None = None,
    **fields: Any,
) -> ClipViLModel | ClipViLForPreTraining | ClipViLForVisualQuestionAnswering:
    """The model of an official file: float32, on the CPU, in eval mode. A file with `cls.` is one of pre-training, one
    with `logit_fc.` answers questions (or says what an image entails); one with both is taken as the latter.

    Args:
        state_dict: official names, with or without `module.` before them.
        text_heads, vision_heads: attention heads; default: width / 64.
        fields: of `ClipViLConfig`, which no weights tell, such as `id2label`.

    Raises:
        ValueError: names or shapes are not those of a CLIP-ViL, or a weight is not finite.

    Example:

        >>> from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
        >>> model = clip_vil_from_official(read_state_dict("BEST.pth"))  # doctest: +SKIP
    """
    config = ClipViLConfig(
        **infer_clip_vil_config(state_dict, text_heads=text_heads, vision_heads=vision_heads) | fields
    )
    model = _class_of(state_dict)(config)
    model.load_state_dict(convert_clip_vil_state_dict(state_dict, config))
    return model.eval()


def _class_of(state_dict: Mapping[str, torch.Tensor]) -> type:
    names = _without_wrappers(state_dict)
    if any(name.startswith("logit_fc.") for name in names):
        return ClipViLForVisualQuestionAnswering
    return ClipViLForPreTraining if any(name.startswith(("cls.", "answer_head.")) for name in names) else ClipViLModel


def convert_clip_vil_state_dict(
    state_dict: Mapping[str, torch.Tensor], config: ClipViLConfig
) -> dict[str, torch.Tensor]:
    """An official state dict under our names, in float32. Strict: every weight once, and no other but `unused_names`.

    Raises:
        ValueError: missing or unexpected names, shapes other than `config`'s, NaN or infinite weights: the first five
            and how many; a decoder of words that is not the word embeddings.
    """
    kind = _class_of(state_dict)
    unused = set(unused_names(state_dict))
    weights = _without_wrappers({name: tensor for name, tensor in state_dict.items() if name not in unused})
    decoder = weights.pop(_DECODER, None)
    words = weights.get("bert.embeddings.word_embeddings.weight")
    if decoder is not None and words is not None and not torch.equal(decoder, words):
        raise ValueError(f"{_OF} state dict: {_DECODER} differs from the word embeddings, expected the same")
    with torch.device("meta"):
        model = kind(config)
    table, expected = _names(model), model.state_dict()
    ours = {name for value in table.values() for name in (value if isinstance(value, tuple) else (value,))}
    left = {name: tensor for name, tensor in expected.items() if name in ours}
    counters = {name: torch.zeros((), dtype=torch.int64) for name in table if name.endswith(_COUNTER)}
    found = rename_from_official(counters | weights, table, left, of=_OF)
    return found | _implied(expected.keys() - ours, found, expected)


def _implied(missing, found: dict[str, torch.Tensor], expected) -> dict[str, torch.Tensor]:
    """Weights that no official file has: what is tied, and CLIP's own table beside flat positions."""
    implied = {}
    for name in sorted(missing):
        if name == "cls.predictions.decoder.weight":
            implied[name] = found["clip_vil.text_model.embeddings.word_embeddings.weight"]
        elif name == "cls.predictions.decoder.bias":
            implied[name] = found["cls.predictions.bias"]
        elif name.endswith("position_embedding.weight"):
            implied[name] = torch.zeros(expected[name].shape)
    return implied


def infer_clip_vil_config(
    state_dict: Mapping[str, torch.Tensor], *, text_heads: int | None = None, vision_heads: int | None = None
) -> dict[str, Any]:
    """The keyword arguments of `ClipViLConfig` that fit an official state dict; only shapes are read.

    Arguments and errors as for `clip_vil_from_official`.
    """
    weights = _without_wrappers(state_dict)
    words, places, types = (f"bert.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type"))
    inner = f"{_LAYERS}0.intermediate.dense.weight"
    shapes = shapes_of(weights, [words, places, types, inner], of=_OF)
    text = {
        "vocab_size": shapes[words][0],
        "hidden_size": shapes[words][1],
        "max_position_embeddings": shapes[places][0],
        "type_vocab_size": shapes[types][0],
        "intermediate_size": shapes[inner][0],
        "num_hidden_layers": count_layers(weights, _LAYERS),
        "num_attention_heads": attention_heads("text_heads", text_heads, shapes[words][1], words),
    }
    found: dict[str, Any] = {"text_config": text, "max_text_length": min(20, text["max_position_embeddings"])}
    is_vit = any(name.startswith(f"{_VISUAL}transformer.") for name in weights)
    found |= _infer_vit(weights, vision_heads) if is_vit else _infer_resnet(weights, vision_heads)
    last = next(
        (f"{head}.3.weight" for head in ("logit_fc", "answer_head.logit_fc") if f"{head}.3.weight" in weights), ""
    )
    if last:
        found["num_labels"] = shapes_of(weights, [last], of=_OF)[last][0]
    return found


def _infer_resnet(weights: Mapping[str, torch.Tensor], heads: int | None) -> dict[str, Any]:
    first, rows = f"{_VISUAL}layer1.0.conv1.weight", f"{_POSITIONS}x_position_embedding.weight"
    has_positions = any(name.startswith(_POSITIONS) for name in weights)
    shapes = shapes_of(weights, [first, *([rows] if has_positions else [])], of=_OF)
    width = 32 * shapes[first][0]
    # Heads and size of the attention pooling, which is left out; 64 wide in all published models.
    heads = heads or (width // 64 if width % 64 == 0 else 1)
    vision = {"hidden_size": width, "depths": [count_layers(weights, stage) for stage in _STAGES]}
    vision |= {"num_attention_heads": heads}
    found = {"vision_config": vision, "use_grid_position": has_positions}
    return found | ({"grid_position_size": shapes[rows][0]} if has_positions else {})


def _infer_vit(weights: Mapping[str, torch.Tensor], heads: int | None) -> dict[str, Any]:
    patches, places = f"{_VISUAL}conv1.weight", f"{_VISUAL}positional_embedding"
    inner = f"{_VISUAL}transformer.resblocks.0.mlp.c_fc.weight"
    shapes = shapes_of(weights, [patches, places, inner], of=_OF)
    width, count = shapes[patches][0], shapes[places][0] - 1
    side = round(max(count, 1) ** 0.5)
    is_square = side * side == count
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "patch_size": shapes[patches][-1],
        "image_size": shapes[patches][-1] * (side if is_square else 7),
        "intermediate_size": shapes[inner][0],
        "num_hidden_layers": count_layers(weights, f"{_VISUAL}transformer.resblocks."),
        "num_attention_heads": attention_heads("vision_heads", heads, width, patches),
    }
    # A table that is no square is that of the official code's padded images, which is read in the tokens' order.
    return {"vision_config": vision} | ({} if is_square else {"vit_positions": "flat", "num_flat_positions": count})


def to_official(state_dict: Mapping[str, torch.Tensor], config: ClipViLConfig) -> dict[str, torch.Tensor]:
    """The inverse of the conversion, without names that are not used; dtypes as they are. Also of gradients."""
    kind = ClipViLModel
    if any(name.startswith("answer_head.") for name in state_dict):
        kind = ClipViLForVisualQuestionAnswering
        kind = ClipViLForPreTraining if any(name.startswith("cls.") for name in state_dict) else kind
    with torch.device("meta"):
        model = kind(config)
    left_out = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    if not config.is_resnet and config.vit_positions == "flat":
        prefix = "" if kind is ClipViLModel else "clip_vil."
        left_out.add(f"{prefix}grid.vision_model.embeddings.position_embedding.weight")
    weights = {name: tensor for name, tensor in state_dict.items() if name not in left_out}
    return rename_to_official(weights, _names(model), of=_OF)


# ---- for `convert`


def _answers(source: str, count: int | None) -> dict[str, Any]:
    """`id2label` and `label2id` of a list of answers in the order of the file's head."""
    names = resolve_class_names(source, "answers")
    if len(names) != count:
        raise ValueError(f"answers: {len(names)} in {Path(source).name}, the file has {count or 'no head for any'}")
    return {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}


def _build(official: OfficialFile) -> BuiltModel:
    fields: dict[str, Any] = dict(official.heads)
    if "answers" in official.options:
        count = infer_clip_vil_config(official.weights, **official.heads).get("num_labels")
        fields |= {"num_labels": count} | _answers(official.options["answers"], count)
    model = clip_vil_from_official(official.weights, **fields)
    if not model.config.is_resnet and model.config.vit_positions == "flat":
        official.notes.append("positions of the grid are read in the tokens' order, as this file was trained with")
    if type(model) is not ClipViLModel and "answers" not in official.options:
        official.notes.append(
            "the answers have no names in the file: id2label has LABEL_0, … (--answers FILE names them)"
        )
    return BuiltModel(model, unused_names(official.weights), {})


def _load_tokenizer(source):
    return AutoTokenizer.from_pretrained("bert-base-uncased" if source is None else source)


def _make_processor(image_size: int, tokenizer, settings: Mapping[str, Any]):
    return clip_vil_processor(tokenizer, **settings)


def _example_inputs(model, prompts: tuple[str, ...], processor, tokenizer) -> Tensors:
    """An image of noise with each prompt; without a tokenizer two images and random tokens."""
    if tokenizer is None:
        return images_and_texts(model, prompts, processor, tokenizer)
    image = noise_pictures(model.config.vision_config.image_size).numpy()
    return processed_texts(prompts, processor, images=[image] * len(prompts))


def _outputs_of(model, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    """Of as many pairs as there are images and texts; one image is every text's."""
    text, pixels = texts_of(inputs), inputs.get("pixel_values")
    if not text or pixels is None:
        return {}
    count = len(text["input_ids"]) if len(pixels) == 1 else min(len(pixels), len(text["input_ids"]))
    pixels = pixels.expand(count, -1, -1, -1) if len(pixels) == 1 else pixels[:count]
    output = model(pixel_values=pixels, **{name: tensor[:count] for name, tensor in text.items()})
    return {name: tensor for name, tensor in output.items() if isinstance(tensor, torch.Tensor)}


CHECKPOINTS = ModelFormat(
    signature=Signature(every=(r"(module\.)?(lxrt_encoder\.model\.)?bert\.encoder\.visual_model\.",)),
    build=_build,
    outputs=("logits", "answer_logits", "prediction_logits", "matching_logits", "pooler_output"),
    load_tokenizer=_load_tokenizer,
    special_tokens=(),
    max_text_length=20,
    make_processor=_make_processor,
    example_inputs=_example_inputs,
    outputs_of=_outputs_of,
)


__all__ = [
    "CHECKPOINTS",
    "clip_vil_from_official",
    "convert_clip_vil_state_dict",
    "infer_clip_vil_config",
    "to_official",
    "unused_names",
]
