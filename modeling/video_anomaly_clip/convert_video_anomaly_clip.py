"""Weights of the official AnomalyCLIP for videos ↔ `VideoAnomalyClipModel`.

The state dict comes from `hf_clip_variants.conversion.checkpoint_reader.read_state_dict`; this file reads no files. An
official file is Lightning's (`last.ckpt`), whose names begin with `net.`:

| official names | |
|---|---|
| `text_encoder.`, `token_embedding.`, `image_encoder.`, `selector_model.logit_scale` | CLIP's parts |
| `prompt_learner.ctx` | the context vectors |
| `prompt_learner.token_prefix`, `prompt_learner.token_suffix` | embeddings of class names: ids, see below |
| `selector_model.bn_layer.` | the batch norm over classes |
| `temporal_model.` | the layers over time |

The embeddings of class names are found again in `token_embedding`: the model keeps token ids. Two things are in other
files: the centroid of normal frames (`ncentroid.pt`), without which the model does not run, and the names of the
classes, which are read from the token ids where the vocabulary is CLIP's. No weight tells the number of heads of the
layers over time (8 in all official runs).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..clip.convert_clip import (
    TEXT_SHAPES,
    VISION_SHAPES,
    NameTable,
    fail_if_any,
    infer_clip_config,
    rename_from_official,
    rename_to_official,
    shapes_of,
    text_names,
    vision_names,
)
from ..dual_encoders.prompts import resolve_class_names
from ..loading_and_saving.checkpoint_format import (
    BuiltModel,
    ModelFormat,
    OfficialFile,
    Signature,
    clip_image_processor,
    clip_tokenizer,
)
from ..loading_and_saving.example_outputs import Tensors
from ..video.example_videos import videos_and_texts, videos_of
from ..video.processing_video import VideoTextProcessor
from ..video.video_processing import CLIPVideoProcessor
from .configuration_video_anomaly_clip import VideoAnomalyClipConfig
from .modeling_video_anomaly_clip import VideoAnomalyClipModel


_OF = "AnomalyCLIP"
_NET = "net."
_PREFIX, _SUFFIX, _CONTEXT = (f"prompt_learner.{name}" for name in ("token_prefix", "token_suffix", "ctx"))
_BUFFERS = ("prompt_ids", "normal_centroid", "normal_norm", "num_normal_frames")  # that no official name holds
_AXIAL = "temporal_model.axial_attn."
_POSITIONS = tuple(f"{_AXIAL}pos_emb.param_{i}" for i in (0, 1))
_IN_CHANNELS = ".net.0."  # norms over channels: (1, E, 1, 1) there, (E,) here
_TRANSPOSED = ("text_encoder.text_projection", "image_encoder.proj")
_HEADS = 8
_CLIP_VOCABULARY = 49408
# CLIP's parts under OpenAI's names -> official names.
_PARTS = {
    "visual.": "image_encoder.",
    "transformer.": "text_encoder.transformer.",
    "positional_embedding": "text_encoder.positional_embedding",
    "ln_final.": "text_encoder.ln_final.",
    "text_projection": "text_encoder.text_projection",
    "token_embedding.": "token_embedding.",
    "logit_scale": "selector_model.logit_scale",
}


def video_anomaly_clip_from_official(
    state_dict: Mapping[str, torch.Tensor],
    *,
    normal_centroid: torch.Tensor,
    class_names: Sequence[str],
    normal: str | int | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    temporal_heads: int = _HEADS,
    **options: Any,
) -> VideoAnomalyClipModel:
    """A `VideoAnomalyClipModel` with the weights of an official checkpoint: float32, on the CPU, in eval mode.

    Args:
        state_dict: official names, with or without `net.`; any float dtype.
        normal_centroid: (D,), the official `ncentroid.pt`.
        class_names: in label order, the normal class among them.
        normal: that class, by name or number; None: the one whose name begins with "normal".
        vision_heads, text_heads, temporal_heads: attention heads; of the encoders width / 64 by default.
        options: fields of [`VideoAnomalyClipConfig`] that no weight tells, such as `num_topk`.

    Raises:
        ValueError: names or shapes are not those of an AnomalyCLIP for videos, or a weight is not finite.

    Example:

        >>> from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
        >>> weights, centroid = read_state_dict("last.ckpt"), read_state_dict("ncentroid.pt")[""]  # doctest: +SKIP
        >>> names = ["Abuse", "Normal", "Riot"]
        >>> video_anomaly_clip_from_official(weights, normal_centroid=centroid, class_names=names)  # doctest: +SKIP
    """
    heads = {"vision_heads": vision_heads, "text_heads": text_heads, "temporal_heads": temporal_heads}
    values = infer_video_anomaly_clip_config(state_dict, class_names=class_names, normal=normal, **heads)
    config = VideoAnomalyClipConfig(**values | options)
    model = VideoAnomalyClipModel(config)
    model.load_state_dict(convert_video_anomaly_clip_state_dict(state_dict, config), strict=False)
    return model.set_normal_centroid(normal_centroid.float()).eval()


def convert_video_anomaly_clip_state_dict(
    state_dict: Mapping[str, torch.Tensor], config: VideoAnomalyClipConfig
) -> dict[str, torch.Tensor]:
    """An official state dict under `VideoAnomalyClipModel`'s names, in float32, with the prompts' token ids; without
    the centroid, which it does not hold. Strict: every weight once, and no other.

    Raises:
        ValueError: missing or unexpected names, shapes other than `config`'s, NaN or infinite weights: the first five
            and how many.
    """
    weights = _without_net(state_dict)
    with torch.device("meta"):
        expected = VideoAnomalyClipModel(config).state_dict()
    expected = {name: tensor for name, tensor in expected.items() if name not in _BUFFERS}
    table = _name_table(config)
    fail_if_any("missing", [name for name in (*table, _PREFIX, _SUFFIX) if name not in weights], _OF)
    own = {name: _reshaped(name, tensor) for name, tensor in weights.items() if name not in (_PREFIX, _SUFFIX)}
    converted = rename_from_official(own, table, expected, of=_OF)
    return converted | {"prompt_ids": prompt_ids_of(weights)}


def infer_video_anomaly_clip_config(
    state_dict: Mapping[str, torch.Tensor],
    *,
    class_names: Sequence[str] | None = None,
    normal: str | int | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    temporal_heads: int = _HEADS,
) -> dict:
    """The keyword arguments of `VideoAnomalyClipConfig` that fit an official state dict; of the weights only shapes
    are read.

    Arguments and errors as for `video_anomaly_clip_from_official`.
    """
    weights = _without_net(state_dict)
    own = [_CONTEXT, _PREFIX, _SUFFIX, *_POSITIONS, "temporal_model.projection.weight"]
    query, convolution = (f"{_AXIAL}layers.blocks.{block}.f.net." for block in (0, 1))
    own += [f"{query}fn.fn.to_q.weight", f"{convolution}1.weight"]
    dims = dict.fromkeys((_CONTEXT, _PREFIX, _SUFFIX), 3) | dict.fromkeys((*_POSITIONS, f"{convolution}1.weight"), 4)
    shapes = shapes_of(weights, own, of=_OF, dims=dims)
    native = {_native(name): tensor for name, tensor in weights.items()}
    if not any(name.startswith("visual.layer1.") for name in native):  # a ResNet is told from them below
        shapes_of(weights, [_official(name) for name in (*TEXT_SHAPES, *VISION_SHAPES)], of=_OF)
    clip = infer_clip_config(native, vision_heads=vision_heads, text_heads=text_heads)
    labels, context, _ = shapes[_CONTEXT]
    inner, width = shapes[f"{query}fn.fn.to_q.weight"]
    if temporal_heads < 1 or inner % temporal_heads:
        raise ValueError(f"temporal_heads: {temporal_heads} does not divide {inner}, the width of attention")
    names = [f"class {label}" for label in range(labels)] if class_names is None else resolve_class_names(class_names)
    if len(names) != labels:
        raise ValueError(f"class_names: {len(names)} names, the checkpoint has {labels} classes (with the normal one)")
    joint, inputs = clip["projection_dim"], shapes["temporal_model.projection.weight"][1]
    if inputs not in (joint, joint + labels - 1):
        raise ValueError(
            f"{_OF} state dict: temporal_model.projection.weight takes {inputs} numbers, expected {joint} or "
            f"{joint + labels - 1} (with the classes' logits)"
        )
    blocks = {name.split(".")[4] for name in weights if name.startswith(f"{_AXIAL}layers.blocks.")}
    return clip | {
        "id2label": dict(enumerate(names)),
        "label2id": {name: label for label, name in enumerate(names)},
        "normal_id": _normal_id(names, normal) if class_names is not None or normal is not None else 0,
        "prompt_length": 1 + context + shapes[_SUFFIX][1],
        "num_context_tokens": context,
        "num_segments": shapes[_POSITIONS[0]][2],
        "segment_length": shapes[_POSITIONS[1]][3],
        "temporal_hidden_size": width,
        "temporal_num_layers": len(blocks) // 2,
        "temporal_num_heads": temporal_heads,
        "temporal_head_dim": None if inner == width else inner // temporal_heads,
        "temporal_mlp_ratio": shapes[f"{convolution}1.weight"][0] // width,
        "concat_features": inputs != joint,
    }


def _normal_id(names: Sequence[str], normal: str | int | None) -> int:
    if isinstance(normal, int) or (isinstance(normal, str) and normal.isdecimal() and normal not in names):
        if not 0 <= int(normal) < len(names):
            raise ValueError(f"normal: {normal}, expected a class 0..{len(names) - 1}")
        return int(normal)
    found = [label for label, name in enumerate(names) if name.casefold().startswith("normal")]
    if normal is not None:
        found = [label for label, name in enumerate(names) if name == normal]
    if len(found) != 1:
        raise ValueError(
            f"normal: {normal!r}, {len(found)} of the classes {', '.join(names[:8])} are it; want its name"
        )
    return found[0]


def prompt_ids_of(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(N, length) token ids whose embeddings an official file holds; placeholders for the context are the start token.

    Raises:
        ValueError: an embedding that is none of the vocabulary's.
    """
    weights = _without_net(weights)
    names = (_PREFIX, _SUFFIX, "token_embedding.weight", _CONTEXT)
    fail_if_any("missing", [name for name in names if name not in weights], _OF)
    infinite = [name for name in names[:3] if not (weights[name].is_meta or weights[name].isfinite().all())]
    fail_if_any("not finite", infinite, _OF)
    table = weights["token_embedding.weight"].float()
    words = torch.cat([weights[_PREFIX], weights[_SUFFIX]], 1).float()
    if words.is_meta:
        return torch.zeros(len(words), weights[_CONTEXT].shape[1] + words.shape[1], dtype=torch.int64)
    distinct, places = words.flatten(0, 1).unique(dim=0, return_inverse=True)
    distances = torch.cdist(distinct, table, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.min(1)
    far = nearest.values > 1e-2 * distinct.norm(dim=1).clamp(min=1e-6)
    if far.any():
        raise ValueError(
            f"{_OF} state dict: {_SUFFIX}: {int(far.sum())} embeddings are none of token_embedding.weight"
        )
    ids = nearest.indices[places].view(words.shape[:2])
    start = ids[:, :1]
    return torch.cat([start, start.expand(-1, weights[_CONTEXT].shape[1]), ids[:, 1:]], 1)


def to_official(state_dict: Mapping[str, torch.Tensor], config: VideoAnomalyClipConfig) -> dict[str, torch.Tensor]:
    """The inverse of the conversion, with `net.` before the names; the centroid is left out."""
    own = {name: tensor for name, tensor in state_dict.items() if name not in _BUFFERS}
    official = rename_to_official(own, _name_table(config), of=_OF)
    for name in (name for name in official if _IN_CHANNELS in name):
        official[name] = official[name][None, :, None, None]
    official |= {name: official[name].t() for name in _TRANSPOSED}
    words = state_dict["clip.text_model.embeddings.token_embedding.weight"][state_dict["prompt_ids"]]
    official |= {_PREFIX: words[:, :1], _SUFFIX: words[:, 1 + config.num_context_tokens :]}
    return {_NET + name: tensor.contiguous() for name, tensor in official.items()}


# ---- names


def _without_net(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(_NET): tensor for name, tensor in weights.items()}


def _reshaped(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name in _TRANSPOSED and tensor.dim() == 2:
        return tensor.t().contiguous()
    if _IN_CHANNELS in name and tensor.dim() == 4 and tensor.shape[1] == tensor.numel():
        return tensor.flatten()
    return tensor


def _native(name: str) -> str:
    """OpenAI's name of one of CLIP's parts; other names stay."""
    for ours, theirs in _PARTS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _official(name: str) -> str:
    for ours, theirs in _PARTS.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _name_table(config: VideoAnomalyClipConfig) -> NameTable:
    clip = text_names(config.text_config.num_hidden_layers) | vision_names(config.vision_config.num_hidden_layers)
    table: NameTable = {
        _official(name): tuple(f"clip.{part}" for part in ours) if isinstance(ours, tuple) else f"clip.{ours}"
        for name, ours in clip.items()
    }
    table[_CONTEXT] = "context"
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        table[f"selector_model.bn_layer.{name}"] = f"selector_norm.{name}"
    for theirs, ours in (
        ("projection", "projection"),
        ("classifier.layer_norm", "norm"),
        ("classifier.linear", "classifier"),
    ):
        table |= {f"temporal_model.{theirs}.{kind}": f"scorer.{ours}.{kind}" for kind in ("weight", "bias")}
    table |= zip(
        _POSITIONS, ("scorer.transformer.segment_positions", "scorer.transformer.frame_positions"), strict=True
    )
    for layer in range(config.temporal_num_layers):
        ours = f"scorer.transformer.layers.{layer}."
        for stream, attention, convolution in (
            ("f", "segment_attention", "first_convolution"),
            ("g", "frame_attention", "second_convolution"),
        ):
            of_attention = f"{_AXIAL}layers.blocks.{2 * layer}.{stream}.net."
            for theirs, name in (("fn.norm.weight", "norm.weight"), ("fn.norm.bias", "norm.bias")):
                table[of_attention + theirs] = f"{ours}{attention}.{name}"
            for name in ("to_q.weight", "to_kv.weight", "to_out.weight", "to_out.bias"):
                table[f"{of_attention}fn.fn.{name}"] = f"{ours}{attention}.{name}"
            of_convolution = f"{_AXIAL}layers.blocks.{2 * layer + 1}.{stream}.net."
            for theirs, name in (("0.g", "norm.weight"), ("0.b", "norm.bias")):
                table[of_convolution + theirs] = f"{ours}{convolution}.{name}"
            for theirs, name in (("1", "expand"), ("3", "reduce")):
                for kind in ("weight", "bias"):
                    table[f"{of_convolution}{theirs}.{kind}"] = f"{ours}{convolution}.{name}.{kind}"
    return table


# ---- files


def _centroid_file(path: Path, options: Mapping[str, Any]) -> list[Path]:
    if "centroid" in options:
        return [Path(options["centroid"])]
    for beside in (path.with_name("ncentroid.pt"), path.parent.parent / "ncentroid.pt"):
        if beside.is_file():
            return [beside]
    raise ValueError(
        f"centroid: no ncentroid.pt lies beside {path.name}, and without the mean of normal frames the model does not "
        "run; name it (--centroid ncentroid.pt)"
    )


def _names_in(weights: Mapping[str, torch.Tensor], official: OfficialFile) -> list[str] | None:
    """Class names from the token ids of a file with CLIP's vocabulary."""
    if weights["token_embedding.weight"].shape[0] != _CLIP_VOCABULARY:
        return None
    source = official.options.get("tokenizer")
    tokenizer = clip_tokenizer(None if source == "none" else source)
    suffixes = prompt_ids_of(weights)[:, 1 + weights[_CONTEXT].shape[1] :].tolist()
    ends = (row[: row.index(tokenizer.eos_token_id)] for row in suffixes)
    names = [tokenizer.decode(row).strip().removesuffix(".").strip() for row in ends]
    official.notes.append(f"classes, read from the prompts in lower case: {', '.join(names)}")
    return names


def _build(official: OfficialFile) -> BuiltModel:
    weights, options = _without_net(official.weights), official.options
    (path,) = official.other_files
    centroid = official.read_weights(path).get("")
    if centroid is None:
        raise ValueError(f"centroid: {path} holds named tensors, expected the single tensor of an ncentroid.pt")
    infer_video_anomaly_clip_config(weights, **official.heads, temporal_heads=options.get("temporal_heads", _HEADS))
    names = options.get("classes")
    names = resolve_class_names(names, "classes") if names else _names_in(weights, official)
    if names is None:
        raise ValueError("classes: the file does not tell the class names; want them in label order (--classes)")
    model = video_anomaly_clip_from_official(
        weights,
        normal_centroid=centroid,
        class_names=names,
        normal=options.get("normal_class"),
        temporal_heads=options.get("temporal_heads", _HEADS),
        **official.heads,
    )
    official.notes.append(
        f"{model.config.id2label[model.config.normal_id]!r} is the normal class; num_topk, selection dropout and loss "
        "weights, which training alone needs, are the official ones for UCF-Crime"
    )
    return BuiltModel(model)


def _processor(image_size: int, tokenizer, settings):
    images = clip_image_processor(image_size, settings)
    videos = CLIPVideoProcessor.from_image_processor(images, num_frames=None, fps=None)
    return videos if tokenizer is None else VideoTextProcessor(videos, tokenizer)


def _outputs_of(model, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    """Of a video; the texts are inside of the model."""
    output = model(**videos_of(inputs))
    return {name: output[name] for name in CHECKPOINTS.outputs}


CHECKPOINTS = ModelFormat(
    signature=Signature(every=(r"(net\.)?temporal_model\.axial_attn", r"(net\.)?selector_model\.")),
    build=_build,
    outputs=("text_features", "logits", "scores", "class_probs"),
    make_processor=_processor,
    other_files=_centroid_file,
    example_inputs=videos_and_texts,
    outputs_of=_outputs_of,
)


__all__ = [
    "CHECKPOINTS",
    "convert_video_anomaly_clip_state_dict",
    "infer_video_anomaly_clip_config",
    "prompt_ids_of",
    "to_official",
    "video_anomaly_clip_from_official",
]
