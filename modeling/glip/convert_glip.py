"""
Official GLIP checkpoints to `GLIPForZeroShotObjectDetection`, and back.

The official model takes images whose channels are in the order blue, green, red; here they are red, green, blue: the
first convolution is turned round once. `rpn.head.cls_logits` (never trained, read by nothing but its size) and buffers
that follow from the sizes are left out.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoTokenizer

from ..clip.convert_clip import attention_heads, count_layers, fail_if_any
from ..loading_and_saving.checkpoint_format import BuiltModel, ModelFormat, OfficialFile, Signature
from ..loading_and_saving.example_outputs import Tensors, texts_of
from .configuration_glip import STRIDES, GLIPConfig
from .modeling_glip import GLIPForZeroShotObjectDetection
from .processing_glip import glip_processor


_OF = "GLIP"
_SWIN, _BERT, _HEAD = "backbone.body", "language_backbone.body.model", "rpn.head"
_CELLS = "rpn.anchor_generator.cell_anchors"
_STRAYS = re.compile(
    rf"{re.escape(_SWIN)}\..*\.(relative_position_index|attn_mask)$"
    rf"|{re.escape(_BERT)}\.embeddings\.position_ids$"
    rf"|{re.escape(_CELLS)}\.\d+$"
    rf"|{re.escape(_HEAD)}\.cls_logits\.(weight|bias)$"
)
_DROP_PATH = {96: 0.2, 192: 0.4}  # of the released widths; no weights tell


def _same(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return tensors


@dataclass(frozen=True)
class Rule:
    """Official tensors that become ours, and the operations between them."""

    official: tuple[str, ...]
    ours: tuple[str, ...]
    read: Callable[[list[torch.Tensor]], list[torch.Tensor]] = _same
    write: Callable[[list[torch.Tensor]], list[torch.Tensor]] = _same


def _renamed(official: str, ours: str) -> Rule:
    return Rule((official,), (ours,))


def _layer(official: str, ours: str, **operations: Callable) -> list[Rule]:
    return [Rule((f"{official}.{part}",), (f"{ours}.{part}",), **operations) for part in ("weight", "bias")]


def _thirds(official: str, ours: str) -> list[Rule]:
    """One layer for queries, keys and values -> three."""
    return [
        Rule(
            (f"{official}.{part}",),
            tuple(f"{ours}.{one}_proj.{part}" for one in "qkv"),
            read=lambda tensors: list(tensors[0].chunk(3)),
            write=lambda tensors: [torch.cat(tensors)],
        )
        for part in ("weight", "bias")
    ]


def _swin_rules(config: GLIPConfig) -> list[Rule]:
    def turned(tensors):
        return [tensors[0].flip(1)]

    official, ours = f"{_SWIN}.patch_embed", "backbone.swin.embeddings"
    projection = f"{ours}.patch_embeddings.projection"
    rules = [Rule((f"{official}.proj.weight",), (f"{projection}.weight",), turned, turned)]
    rules += [_renamed(f"{official}.proj.bias", f"{projection}.bias"), *_layer(f"{official}.norm", f"{ours}.norm")]
    for stage, depth in enumerate(config.backbone_config.depths):
        for i in range(depth):
            official = f"{_SWIN}.layers.{stage}.blocks.{i}"
            ours = f"backbone.swin.encoder.layers.{stage}.blocks.{i}"
            table = "relative_position_bias_table"
            rules += _thirds(f"{official}.attn.qkv", f"{ours}.attention")
            rules += _layer(f"{official}.attn.proj", f"{ours}.attention.o_proj")
            rules.append(_renamed(f"{official}.attn.{table}", f"{ours}.attention.relative_position_bias.{table}"))
            rules += _layer(f"{official}.norm1", f"{ours}.layernorm_before")
            rules += _layer(f"{official}.norm2", f"{ours}.layernorm_after")
            rules += _layer(f"{official}.mlp.fc1", f"{ours}.mlp.fc1") + _layer(
                f"{official}.mlp.fc2", f"{ours}.mlp.fc2"
            )
        official, ours = f"{_SWIN}.layers.{stage}.downsample", f"backbone.swin.encoder.layers.{stage}.downsample"
        if stage < 3:
            rules.append(_renamed(f"{official}.reduction.weight", f"{ours}.reduction.weight"))
            rules += _layer(f"{official}.norm", f"{ours}.norm")
        if stage:
            rules += _layer(f"{_SWIN}.norm{stage}", f"backbone.hidden_states_norms.stage{stage + 1}")
    return rules


def _bert_layer_rules(official: str, ours: str) -> list[Rule]:
    parts = [f"attention.self.{one}" for one in ("query", "key", "value")]
    parts += ["attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense"]
    rules = []
    for part in (*parts, "output.LayerNorm"):
        rules += _layer(f"{official}.{part}", f"{ours}.{part}")
    return rules


def _bert_rules(config: GLIPConfig) -> list[Rule]:
    rules = _layer(f"{_BERT}.embeddings.LayerNorm", "text_encoder.embeddings.LayerNorm")
    for part in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        rules.append(_renamed(f"{_BERT}.embeddings.{part}.weight", f"text_encoder.embeddings.{part}.weight"))
    for i in range(config.text_config.num_hidden_layers):
        rules += _bert_layer_rules(f"{_BERT}.encoder.layer.{i}", f"text_encoder.encoder.layer.{i}")
    return rules


def _pyramid_rules() -> list[Rule]:
    rules = []
    for i in range(3):
        rules += _layer(f"backbone.fpn.fpn_inner{i + 2}", f"pyramid.lateral.{i}")
        rules += _layer(f"backbone.fpn.fpn_layer{i + 2}", f"pyramid.smooth.{i}")
    for i in range(2):
        rules += _layer(f"backbone.fpn.top_blocks.p{i + 6}", f"pyramid.further.{i}")
    return rules


def fusion_rules(official: str, ours: str) -> list[Rule]:
    """Of one block of deep fusion; `official` and `ours` end before its names, with a dot."""
    rules = []
    for theirs, name in (("v", "image"), ("l", "text")):
        rules.append(_renamed(f"{official}gamma_{theirs}", f"{ours}{name}_scale"))
        rules += _layer(f"{official}layer_norm_{theirs}", f"{ours}{name}_norm")
        rules += _layer(f"{official}attn.{theirs}_proj", f"{ours}{name}_query")
        rules += _layer(f"{official}attn.values_{theirs}_proj", f"{ours}{name}_value")
        rules += _layer(f"{official}attn.out_{theirs}_proj", f"{ours}{name}_out")
    return rules


def head_rules(config: GLIPConfig) -> list[Rule]:
    """Of the layers of the head and the predictions."""
    tower, each = f"{_HEAD}.dyhead_tower", 3 if config.use_fusion else 1
    rules = []
    for i in range(config.head_num_layers):
        ours = f"layers.{i}"
        if config.use_fusion:
            rules += fusion_rules(f"{tower}.{each * i}.b_attn.", f"{ours}.fusion.")
            rules += _bert_layer_rules(f"{tower}.{each * i + 1}", f"{ours}.text_layer")
        official, ours = f"{tower}.{each * (i + 1) - 1}", f"{ours}.convolution"
        for number, name in enumerate(("from_coarser", "from_same", "from_finer")):
            rules += _layer(f"{official}.DyConv.{number}.conv", f"{ours}.{name}")
            rules += _layer(f"{official}.DyConv.{number}.bn", f"{ours}.{name}.normalization")
        rules += _layer(f"{official}.AttnConv.1", f"{ours}.level_attention")
        rules += _layer(f"{official}.offset", f"{ours}.offset")
        rules += _layer(f"{official}.relu.fc.0", f"{ours}.activation.inner")
        rules += _layer(f"{official}.relu.fc.2", f"{ours}.activation.outer")
    ours = "predictions"
    rules += _layer(f"{_HEAD}.bbox_pred", f"{ours}.box") + _layer(f"{_HEAD}.centerness", f"{ours}.centerness")
    rules += _layer(f"{_HEAD}.dot_product_projection_text", f"{ours}.text_projection")
    for official, name in (("log_scale", "log_scale"), ("bias_lang", "text_bias"), ("bias0", "bias")):
        rules.append(_renamed(f"{_HEAD}.{official}", f"{ours}.{name}"))
    scales = tuple(f"{_HEAD}.scales.{i}.scale" for i in range(len(STRIDES)))
    rules.append(
        Rule(
            scales,
            (f"{ours}.level_scales",),
            read=lambda tensors: [torch.cat(tensors)],
            write=lambda tensors: list(tensors[0].split(1)),
        )
    )
    return rules


def all_rules(config: GLIPConfig) -> list[Rule]:
    return _swin_rules(config) + _bert_rules(config) + _pyramid_rules() + head_rules(config)


def apply_rules(weights: Mapping[str, torch.Tensor], rules: list[Rule]) -> dict[str, torch.Tensor]:
    """Official tensors under our names; every name of `rules` must be there."""
    found = {}
    for rule in rules:
        found |= zip(rule.ours, rule.read([weights[name] for name in rule.official]), strict=True)
    return found


def _without_prefix(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}


def infer_glip_config(
    weights: Mapping[str, torch.Tensor],
    *,
    text_heads: int | None = None,
    fusion_heads: int = 8,
    num_groups: int = 16,
) -> dict[str, Any]:
    """The fields of `GLIPConfig` that fit an official state dict. Only shapes are read, and the anchors if they hold
    numbers.

    Args:
        weights: official names, with or without "module.".
        text_heads: of BERT; default: heads of 64.
        fusion_heads, num_groups: of the fusion and the group norms; the official code has these numbers written in.

    Raises:
        ValueError: names that the sizes are read from are missing, or heads that do not divide the width.
    """
    weights = _without_prefix(weights)
    words, intermediate = (
        f"{_BERT}.embeddings.word_embeddings.weight",
        f"{_BERT}.encoder.layer.0.intermediate.dense.weight",
    )
    positions, patches = f"{_BERT}.embeddings.position_embeddings.weight", f"{_SWIN}.patch_embed.proj.weight"
    types, hidden = f"{_BERT}.embeddings.token_type_embeddings.weight", f"{_HEAD}.bbox_pred.weight"
    tables = [f"{_SWIN}.layers.{i}.blocks.0.attn.relative_position_bias_table" for i in range(4)]
    mlp = f"{_SWIN}.layers.0.blocks.0.mlp.fc1.weight"
    needed = [patches, *tables, mlp, words, positions, types, intermediate, hidden]
    fail_if_any("missing", [name for name in needed if name not in weights], _OF)
    wrong = {name: 4 if name in (patches, hidden) else 2 for name in needed}
    bad = [f"{name} {tuple(weights[name].shape)}" for name, dims in wrong.items() if weights[name].dim() != dims]
    fail_if_any("of the wrong shape", bad, _OF)
    tower = f"{_HEAD}.dyhead_tower"
    places = [
        int(m[1]) for name in weights if (m := re.fullmatch(rf"{re.escape(tower)}\.(\d+)\.offset\.weight", name))
    ]
    fail_if_any("missing", [] if places else [f"{tower}.0.offset.weight"], _OF)
    values = f"{tower}.0.b_attn.attn.v_proj.weight"
    use_fusion = any(".b_attn." in name for name in weights)
    fail_if_any("missing", [values] if use_fusion and values not in weights else [], _OF)
    width, embed = weights[words].shape[1], weights[patches].shape[0]
    narrow = weights.get(f"{tower}.{min(places)}.relu.fc.0.weight")
    fail_if_any("missing", [f"{tower}.{min(places)}.relu.fc.0.weight"] if narrow is None else [], _OF)
    fields: dict[str, Any] = {
        "backbone_config": {
            "embed_dim": embed,
            "patch_size": weights[patches].shape[-1],
            "depths": [count_layers(weights, f"{_SWIN}.layers.{i}.blocks.") for i in range(4)],
            "num_heads": [weights[name].shape[1] for name in tables],
            "window_size": (math.isqrt(weights[tables[0]].shape[0]) + 1) // 2,
            "mlp_ratio": weights[mlp].shape[0] / weights[mlp].shape[1],
            "drop_path_rate": _DROP_PATH.get(embed, 0.2),
        },
        "text_config": {
            "vocab_size": weights[words].shape[0],
            "hidden_size": width,
            "max_position_embeddings": weights[positions].shape[0],
            "type_vocab_size": weights[types].shape[0],
            "intermediate_size": weights[intermediate].shape[0],
            "num_hidden_layers": count_layers(weights, f"{_BERT}.encoder.layer."),
            "num_attention_heads": attention_heads("text_heads", text_heads, width, words),
        },
        "use_fusion": use_fusion,
        "hidden_size": weights[hidden].shape[1],
        "head_num_layers": len(places),
        "num_groups": num_groups,
        "dynamic_relu_reduction": max(weights[hidden].shape[1] // max(narrow.shape[0], 1), 1),
        "max_text_length": min(256, weights[positions].shape[0]),
    }
    if use_fusion:
        inner = weights[values].shape[0]
        fields |= {
            "fusion_hidden_size": inner,
            "fusion_num_heads": attention_heads("fusion_heads", fusion_heads, inner, values),
        }
    cells = [weights.get(f"{_CELLS}.{i}") for i in range(len(STRIDES))]
    if not any(cell is None or cell.is_meta or cell.shape != (1, 4) for cell in cells):
        fields["anchor_sizes"] = [round(float(cell[0, 2] - cell[0, 0] + 1)) for cell in cells]
    return fields


@lru_cache(maxsize=1)
def _expected(config: str) -> dict[str, torch.Tensor]:
    """The state dict of a model with this configuration, in JSON, on the meta device."""
    with torch.device("meta"):
        return GLIPForZeroShotObjectDetection(GLIPConfig.from_dict(json.loads(config))).state_dict()


def convert_glip_state_dict(weights: Mapping[str, torch.Tensor], config: GLIPConfig) -> dict[str, torch.Tensor]:
    """An official state dict under our names, in float32. Strict.

    Raises:
        ValueError: missing or unexpected names, other shapes than `config`'s, NaN or infinite weights: the first five
            and how many.
    """
    weights = {name: tensor for name, tensor in _without_prefix(weights).items() if not _STRAYS.match(name)}
    rules = all_rules(config)
    official = [name for rule in rules for name in rule.official]
    fail_if_any("missing", [name for name in official if name not in weights], _OF)
    known = set(official)
    fail_if_any("unexpected", [name for name in weights if name not in known], _OF)
    fail_if_any("not finite", [n for n, t in weights.items() if not t.is_meta and not t.isfinite().all()], _OF)
    expected = _expected(config.to_json_string(use_diff=False))
    wrong = [
        f"{name} {tuple(weights[name].shape)}"
        for rule in rules
        for name, like in zip(rule.official, rule.write([expected[one] for one in rule.ours]), strict=True)
        if weights[name].shape != like.shape
    ]
    fail_if_any("of the wrong shape", wrong, _OF)
    found = apply_rules({name: tensor.float() for name, tensor in weights.items()}, rules)
    fail_if_any("missing", [name for name in expected if name not in found], _OF)
    return {name: found[name].clone(memory_format=torch.contiguous_format) for name in expected}


def to_official(state_dict: Mapping[str, torch.Tensor], config: GLIPConfig) -> dict[str, torch.Tensor]:
    """The inverse of `convert_glip_state_dict`. ValueError for missing or unexpected names."""
    rules = all_rules(config)
    known = {name for rule in rules for name in rule.ours}
    fail_if_any("unexpected", [name for name in state_dict if name not in known], _OF)
    fail_if_any("missing", [n for rule in rules for n in rule.ours if n not in state_dict], _OF)
    found = {}
    for rule in rules:
        found |= zip(rule.official, rule.write([state_dict[name] for name in rule.ours]), strict=True)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def glip_from_official(weights: Mapping[str, torch.Tensor], **sizes: int) -> GLIPForZeroShotObjectDetection:
    """A `GLIPForZeroShotObjectDetection` with official weights: float32, on the CPU, in eval mode. `sizes` and errors
    as in `infer_glip_config` and `convert_glip_state_dict`."""
    config = GLIPConfig(**infer_glip_config(weights, **sizes))
    found = convert_glip_state_dict(weights, config)
    model = GLIPForZeroShotObjectDetection(config)
    model.load_state_dict(found)
    return model.eval()


def _build(official: OfficialFile) -> BuiltModel:
    sizes = {name: official.options[name] for name in ("text_heads", "fusion_heads") if name in official.options}
    model = glip_from_official(official.weights, **sizes)
    if "fusion_heads" not in sizes and model.config.use_fusion:
        official.notes.append("the fusion has 8 heads, as in all released models; no weights tell")
    return BuiltModel(model, [name for name in _without_prefix(official.weights) if _STRAYS.match(name)])


def _load_tokenizer(source):
    return AutoTokenizer.from_pretrained("bert-base-uncased" if source is None else source)


def _make_processor(image_size: int, tokenizer, settings: Mapping[str, Any]):
    return glip_processor(tokenizer, **settings)


def _outputs_of(model, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    """Of one prompt for all images: features of words, scores of regions and words, boxes."""
    text, pixels = {name: tensor[:1] for name, tensor in texts_of(inputs).items()}, inputs.get("pixel_values")
    found = {}
    if "input_ids" in text:
        found["text_features"] = model.encode_prompts(**text)
        if pixels is not None:
            output = model(pixel_values=pixels, **text)
            found |= {name: output[name] for name in ("logits", "pred_boxes", "centerness")}
    return found


CHECKPOINTS = ModelFormat(
    signature=Signature(every=(r"(module\.)?rpn\.head\.dyhead_tower\.", r"(module\.)?language_backbone\.body\.")),
    build=_build,
    outputs=("logits", "pred_boxes", "centerness"),
    load_tokenizer=_load_tokenizer,
    special_tokens=(),
    max_text_length=256,
    make_processor=_make_processor,
    prompts=("cat. dog. person",),
    outputs_of=_outputs_of,
)


__all__ = [
    "CHECKPOINTS",
    "all_rules",
    "apply_rules",
    "convert_glip_state_dict",
    "fusion_rules",
    "glip_from_official",
    "head_rules",
    "infer_glip_config",
    "to_official",
]
