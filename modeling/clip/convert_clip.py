"""Weights of OpenAI's CLIP and of open_clip's native CLIP ↔ transformers' `CLIPModel`, for the Vision Transformer
models.

The state dict comes from `hf_clip_variants.conversion.checkpoint_reader.read_state_dict`; this file reads no files.
Everything but three things follows from the shapes:

- the number of attention heads: width / 64 in every OpenAI model; `vision_heads=`, `text_heads=` say otherwise.
  open_clip's ViT-H, g, G and e have wider heads and are recognised by their width;
- the activation: OpenAI's weights (and open_clip's `-quickgelu` ones) were trained with `quick_gelu`, most other
  open_clip weights with `gelu`;
- the token ids: start of text is `vocab_size - 2`, end of text `vocab_size - 1`, as in CLIP's tokenizer.

Converters of other checkpoints with one of CLIP's encoders use this file's public functions: tables of names, and
strict renaming by a table.
"""

import math
from collections.abc import Callable, Mapping

import torch
from transformers import CLIPConfig, CLIPModel

from ..loading_and_saving.checkpoint_format import (
    LAYER_PROMPTS,
    LEARNED_CONTEXT,
    TIME_IN_CLIP,
    BuiltModel,
    ModelFormat,
    OfficialFile,
    Signature,
)
from .open_clip_config import ASSUMED_POOLING, open_clip_files, read_open_clip_config, refuse_fixed_positions


# Official name -> the name in transformers, or the three that a joint projection is split into.
NameTable = dict[str, str | tuple[str, ...]]

# The layers, their joint projections and the transposed matrices are listed apart.
_OUTER = {
    "logit_scale": "logit_scale",
    "text_projection": "text_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_VISION = {
    "visual.proj": "visual_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_LAYER = {
    f"{official}.{kind}": f"{ours}.{kind}"
    for official, ours in {
        "ln_1": "layer_norm1",
        "attn.out_proj": "self_attn.out_proj",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }.items()
    for kind in ("weight", "bias")
}
_JOINT = {
    f"attn.in_proj_{kind}": tuple(f"self_attn.{part}_proj.{kind}" for part in ("q", "k", "v"))
    for kind in ("weight", "bias")
}
_TEXT = "transformer.resblocks.{i}."
_VISUAL = "visual.transformer.resblocks.{i}."
# What `infer_text_config` and `infer_vision_config` read.
TEXT_SHAPES = [
    "positional_embedding",
    "token_embedding.weight",
    "text_projection",
    _TEXT.format(i=0) + "mlp.c_fc.weight",
]
VISION_SHAPES = ["visual.conv1.weight", "visual.positional_embedding", _VISUAL.format(i=0) + "mlp.c_fc.weight"]
_TRANSPOSED = {"text_projection", "visual.proj", "image_projection"}  # the last is SLIP's
# Entries beside the weights: sizes (OpenAI) and the causal mask (old open_clip).
_STRAY = {"input_resolution", "context_length", "vocab_size", "attn_mask"}
# open_clip's models whose vision heads are not 64 wide (80, 88, 104, 112): ViT-H-14, ViT-g-14, ViT-bigG-14, ViT-e-14.
_VISION_HEADS = {1280: 16, 1408: 16, 1664: 16, 1792: 16}


def clip_from_official(
    state_dict: Mapping[str, torch.Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    hidden_act: str = "quick_gelu",
) -> CLIPModel:
    """A `CLIPModel` with the weights of an official checkpoint: float32, on the CPU, in eval mode.

    Image features equal the official `encode_image`, text features `encode_text`, for token ids in which the largest
    id ends the text (CLIP's do).

    Args:
        state_dict: OpenAI's or open_clip's names (also with open_clip's `text.` prefix), any float dtype.
        vision_heads, text_heads: attention heads; default `width // 64` (see the head of this file).
        hidden_act: `"quick_gelu"` for OpenAI's weights, `"gelu"` for most of open_clip's. Not visible in the weights.

    Raises:
        ValueError: names or shapes are not those of a Vision Transformer CLIP, or a weight is not finite.

    Example:

        >>> from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
        >>> model = clip_from_official(read_state_dict("ViT-B-32.pt"))  # doctest: +SKIP
    """
    config = CLIPConfig(
        **infer_clip_config(state_dict, vision_heads=vision_heads, text_heads=text_heads, hidden_act=hidden_act)
    )
    weights = convert_clip_state_dict(state_dict, config)
    model = CLIPModel(config)
    model.load_state_dict(weights)
    return model.eval()


def infer_clip_config(
    state_dict: Mapping[str, torch.Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    hidden_act: str = "quick_gelu",
) -> dict:
    """The keyword arguments of `CLIPConfig` (`text_config`, `vision_config`, `projection_dim`) that fit an official
    state dict.

    Arguments as for `clip_from_official`; only shapes are read, so tensors may be on the meta device.

    Raises:
        ValueError: another architecture (CLIP-ResNet, a timm or Hugging Face encoder), a name that the shapes are read
            from is missing, a patch grid that is not square, heads that do not divide the width.
    """
    weights = _vision_transformer(state_dict)
    shapes = shapes_of(weights, VISION_SHAPES + TEXT_SHAPES)
    text = infer_text_config(weights, shapes, text_heads) | {"hidden_act": hidden_act}
    shared = {"hidden_act": hidden_act, "projection_dim": text["projection_dim"]}
    return {
        "projection_dim": text["projection_dim"],
        "text_config": text,
        "vision_config": infer_vision_config(weights, shapes, vision_heads) | shared,
    }


def convert_clip_state_dict(state_dict: Mapping[str, torch.Tensor], config: CLIPConfig) -> dict[str, torch.Tensor]:
    """An official state dict under `CLIPModel`'s names, in float32. Strict: every weight of `CLIPModel(config)` once,
    no other.

    Raises:
        ValueError: missing or unexpected names, shapes other than `config`'s, NaN or infinite weights: the first five
            and how many.
    """
    with torch.device("meta"):
        model = CLIPModel(config)
    return rename_from_official(_vision_transformer(state_dict), _name_table(config), model.state_dict())


def to_official(state_dict: Mapping[str, torch.Tensor], config: CLIPConfig) -> dict[str, torch.Tensor]:
    """The inverse of `convert_clip_state_dict`: `CLIPModel`'s weights under the names of OpenAI and open_clip, dtypes
    as they are.

    Raises:
        ValueError: missing names, or names that `CLIPModel(config)` does not have.
    """
    return rename_to_official(state_dict, _name_table(config))


def _name_table(config: CLIPConfig) -> NameTable:
    """All official names of a model, each with its one or three names here."""
    return text_names(config.text_config.num_hidden_layers) | vision_names(config.vision_config.num_hidden_layers)


def text_names(num_layers: int) -> NameTable:
    """Official names of the text encoder, its projection and the temperature -> those of `CLIPModel`."""
    return _OUTER | layer_names(_TEXT, "text_model.encoder.layers.{i}.", num_layers)


def vision_names(num_layers: int) -> NameTable:
    """Official names of the Vision Transformer and its projection -> those of `CLIPModel`,
    which other dual encoders in transformers share.
    """
    return _VISION | layer_names(_VISUAL, "vision_model.encoder.layers.{i}.", num_layers)


def layer_names(official: str, ours: str, num_layers: int, one_layer: NameTable | None = None) -> NameTable:
    """The table of `num_layers` layers; `{i}` in the two prefixes is the layer. `one_layer`: the names behind them,
    default those of CLIP's blocks.
    """
    table: NameTable = {}
    for i in range(num_layers):
        for name, our_name in (one_layer or _LAYER | _JOINT).items():
            prefix = ours.format(i=i)
            table[official.format(i=i) + name] = (
                tuple(prefix + part for part in our_name) if isinstance(our_name, tuple) else prefix + our_name
            )
    return table


_BERT_LAYER = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
_BERT_LAYER += ("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")


def weight_and_bias(official: str, ours: str) -> NameTable:
    """The table of one linear layer or normalisation."""
    return {f"{official}.{part}": f"{ours}.{part}" for part in ("weight", "bias")}


def bert_names(official: str, ours: str, layers: int) -> NameTable:
    """Official names of a BERT without its pooler -> those of `BertModel`; the two prefixes end with a dot."""
    table = weight_and_bias(f"{official}embeddings.LayerNorm", f"{ours}embeddings.LayerNorm")
    for part in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        table[f"{official}embeddings.{part}.weight"] = f"{ours}embeddings.{part}.weight"
    for number in range(layers):
        layer = f"encoder.layer.{number}."
        for part in _BERT_LAYER:
            table |= weight_and_bias(f"{official}{layer}{part}", f"{ours}{layer}{part}")
    return table


def rename_from_official(
    weights: Mapping[str, torch.Tensor],
    table: NameTable,
    expected: Mapping[str, torch.Tensor],
    *,
    of: str = "CLIP",
) -> dict[str, torch.Tensor]:
    """`weights` under our names, floats in float32; joint projections are split, those into the joint space
    transposed.

    Args:
        weights: official names, exactly those of `table`.
        expected: the state dict of our model, for its shapes; may be on the meta device.
        of: what the checkpoint is, for messages.

    Raises:
        ValueError: missing or unexpected names, other shapes, NaN or infinite weights: the first five and how many.
    """
    fail_if_any("missing", [name for name in table if name not in weights], of)
    fail_if_any("unexpected", [name for name in weights if name not in table], of)
    wrong = [
        f"{name} {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in rename_to_official(expected, table, of=of).items()
        if weights[name].shape != tensor.shape
    ]
    fail_if_any("of the wrong shape", wrong, of)
    fail_if_any("not finite", [name for name in table if not _is_finite(weights[name])], of)

    converted: dict[str, torch.Tensor] = {}
    for name, ours in table.items():
        tensor = weights[name].detach()
        tensor = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        tensor = tensor.t().contiguous() if name in _TRANSPOSED else tensor
        if isinstance(ours, tuple):
            # Copies: a view would keep the joint matrix in memory, and safetensors refuses to save shared memory.
            converted |= {part: third.clone() for part, third in zip(ours, tensor.chunk(3), strict=True)}
        else:
            converted[ours] = tensor
    return converted


def rename_to_official(
    state_dict: Mapping[str, torch.Tensor], table: NameTable, *, of: str = "CLIP"
) -> dict[str, torch.Tensor]:
    """The inverse of `rename_from_official`, dtypes as they are.

    Raises:
        ValueError: missing or unexpected names.
    """
    ours = [name for value in table.values() for name in (value if isinstance(value, tuple) else (value,))]
    fail_if_any("missing", [name for name in ours if name not in state_dict], of)
    fail_if_any("unexpected", [name for name in state_dict if name not in set(ours)], of)
    official: dict[str, torch.Tensor] = {}
    for name, value in table.items():
        tensor = torch.cat([state_dict[part] for part in value]) if isinstance(value, tuple) else state_dict[value]
        official[name] = tensor.t().contiguous() if name in _TRANSPOSED else tensor
    return official


def shapes_of(
    weights: Mapping[str, torch.Tensor], names: list[str], *, of: str = "CLIP", dims: Mapping[str, int] | None = None
) -> dict[str, tuple[int, ...]]:
    """The shapes that a configuration is read from: of matrices, of convolutions, and of what has `dims[name]`
    dimensions.

    Raises:
        ValueError: a name is missing, or a tensor has another number of dimensions, or an empty one.
    """
    fail_if_any("missing", [name for name in names if name not in weights], of)
    shapes = {name: tuple(weights[name].shape) for name in names}
    dims = {name: 4 if name.endswith("conv1.weight") else 2 for name in names} | dict(dims or {})
    wrong = [f"{n} {s}" for n, s in shapes.items() if len(s) != dims[n] or 0 in s]
    fail_if_any("of the wrong shape", wrong, of)
    return shapes


def infer_text_config(
    weights: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], text_heads: int | None
) -> dict:
    """The sizes of the text encoder, as `CLIPTextConfig` names them; `shapes` has those of `TEXT_SHAPES`.

    Raises:
        ValueError: heads that do not divide the width.
    """
    vocab_size, width = shapes["token_embedding.weight"]
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": shapes[_TEXT.format(i=0) + "mlp.c_fc.weight"][0],
        "num_hidden_layers": count_layers(weights, "transformer.resblocks."),
        "num_attention_heads": attention_heads("text_heads", text_heads, width, "token_embedding.weight"),
        "max_position_embeddings": shapes["positional_embedding"][0],
        "projection_dim": shapes["text_projection"][1],
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": vocab_size - 1,
    }


def infer_vision_config(
    weights: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], vision_heads: int | None
) -> dict:
    """The sizes of the Vision Transformer, as `CLIPVisionConfig` names them; `shapes` has those of `VISION_SHAPES`.

    Raises:
        ValueError: a patch grid that is not square, heads that do not divide the width.
    """
    width, _, _, patch = shapes["visual.conv1.weight"]
    positions = shapes["visual.positional_embedding"][0] - 1
    grid = math.isqrt(max(positions, 0))
    if grid < 1 or grid * grid != positions:
        raise ValueError(
            f"visual.positional_embedding: {positions} patch positions, expected a square number (and one for the "
            "class)"
        )
    return {
        "hidden_size": width,
        "intermediate_size": shapes[_VISUAL.format(i=0) + "mlp.c_fc.weight"][0],
        "num_hidden_layers": count_layers(weights, "visual.transformer.resblocks."),
        "num_attention_heads": attention_heads(
            "vision_heads", vision_heads, width, "visual.conv1.weight", _VISION_HEADS
        ),
        "image_size": patch * grid,
        "patch_size": patch,
    }


def _vision_transformer(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`native_names` of a checkpoint that `CLIPModel` can hold."""
    if any(name.startswith("visual.layer1.") for name in state_dict):
        raise ValueError(
            "the image encoder is a CLIP-ResNet (visual.layer1…): it needs the model clip_resnet, not CLIPModel"
        )
    return native_names(state_dict)


def native_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without open_clip's `text.` prefix and the stray entries, the temperature 0-dim.

    Raises:
        ValueError: encoders that are not CLIP's own, or SigLIP's `logit_bias`.
    """
    for prefix, encoder in {
        "visual.trunk.": "timm image",
        "text.transformer.embeddings.": "Hugging Face text",
    }.items():
        if any(name.startswith(prefix) for name in state_dict):
            raise ValueError(
                f"the checkpoint has a {encoder} encoder ({prefix}…): only CLIP's own encoders can be converted"
            )
    if "logit_bias" in state_dict:
        raise ValueError(
            "the checkpoint has a logit_bias (it was trained with SigLIP's loss), which CLIP's models cannot hold"
        )
    names = {name.removeprefix("text."): name for name in state_dict}
    if len(names) != len(state_dict):
        raise ValueError("CLIP state dict: the same weight with and without the prefix `text.`")
    weights = {short: state_dict[name] for short, name in names.items() if short not in _STRAY}
    if "logit_scale" in weights and weights["logit_scale"].shape == (1,):
        # open_clip can store the temperature as one element, for FSDP.
        weights["logit_scale"] = weights["logit_scale"].reshape(())
    return weights


def _is_finite(tensor: torch.Tensor) -> bool:
    return tensor.is_meta or bool(torch.isfinite(tensor).all())


def count_layers(weights: Mapping[str, torch.Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


def attention_heads(
    argument: str, heads: int | None, width: int, tensor: str, known: Mapping[int, int] | None = None
) -> int:
    """`heads` if given, else `known[width]`, else heads of 64. `tensor`: the name of the weight that has the width.

    Raises:
        ValueError: they do not divide the width; the text starts with `argument` and names `tensor`, which may be what
            is wrong.
    """
    if heads is None:
        known = known or {}
        if width % 64 and width not in known:
            raise ValueError(
                f"{argument}: the width {width} is not a multiple of 64, say how many heads the model has (the width "
                f"is that of {tensor})"
            )
        return known.get(width, width // 64)
    if heads < 1 or width % heads:
        raise ValueError(f"{argument}={heads}: expected a divisor of the width {width}, which is that of {tensor}")
    return heads


def fail_if_any(what: str, names: list[str], of: str = "CLIP") -> None:
    """A ValueError that counts `names` and shows the first five, if there are any."""
    if names:
        more = "" if len(names) <= 5 else ", …"
        raise ValueError(f"{of} state dict: {len(names)} {what}: {', '.join(names[:5])}{more}")


def build_from_official(official: OfficialFile, from_official: Callable, infer_config: Callable) -> BuiltModel:
    """
    A converted CLIP. Values that the weights do not show come from the options, else from open_clip's configuration,
    else they are OpenAI's.

    Args:
        official: the file; its `other_files` hold open_clip's configuration, if there is one.
        from_official, infer_config: `clip_from_official` and `infer_clip_config`, or those of another image encoder.
    """
    weights, heads, activation = official.weights, official.heads, official.options.get("activation")
    image_settings = {}
    if official.other_files:
        (config,) = official.other_files
        # Only the image size is needed here, which does not depend on the heads; one head divides every width.
        sizes = infer_config(weights, **{"vision_heads": 1, "text_heads": 1} | heads)
        settings = read_open_clip_config(config, sizes["vision_config"]["image_size"])
        heads = {"vision_heads": settings.vision_heads, "text_heads": settings.text_heads} | heads
        image_settings, activation = settings.image_processor, activation or settings.hidden_act
        official.notes.append(f"activation {activation}, heads and preprocessing are those of {config.name}")
    elif "input_resolution" not in weights:  # OpenAI's archives hold it
        refuse_fixed_positions(weights)
        if activation is None:
            official.notes.append(
                "activation quick_gelu is assumed, as in OpenAI's weights and open_clip's -quickgelu ones: the "
                "weights do not show it. Most other weights of open_clip need activation gelu (--activation gelu)"
            )
        official.notes.append(f"{ASSUMED_POOLING}; their open_clip_config.json does (--open-clip-config)")
    model = from_official(weights, hidden_act=activation or "quick_gelu", **heads)
    used = native_names(weights)
    unused = [name for name in weights if name.removeprefix("text.") not in used]
    return BuiltModel(model, unused, image_settings)


CHECKPOINTS = ModelFormat(
    signature=Signature(
        every=(r"visual\.", r"(text\.)?(text_projection|token_embedding|transformer)"),
        # A ResNet, Chinese-CLIP's BERT, SLIP's projection, or an adapter's file that holds its CLIP.
        none=(r"visual\.layer1\.", r"bert\.", r"image_projection$", LEARNED_CONTEXT, LAYER_PROMPTS, TIME_IN_CLIP),
    ),
    other_files=open_clip_files,
    build=lambda official: build_from_official(official, clip_from_official, infer_clip_config),
    adapter_base="clip",
    to_official=to_official,
)
