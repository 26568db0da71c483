"""Weights of the official CLIP4Clip ↔ `CLIP4ClipModel`.

The state dict comes from `hf_clip_variants.conversion.checkpoint_reader.read_state_dict`; this file reads no files. An
official file (`pytorch_model.bin.<epoch>`) is flat: `clip.` before the names of OpenAI's CLIP, some of them in half
precision, and the head beside them. The head follows from the names:

| names | head |
|---|---|
| `transformerClip.` | seqTransf |
| `lstm_visual.` | seqLSTM |
| `cross.`, `similarity_dense.` | tightTransf |
| none of these | meanP |

A model with 3-D patches has `clip.visual.conv2.weight`; its 2-D patches `conv1` are not used, and left out. So are the
positions that a seqLSTM's file has, and the cross encoder that a loose head's file may have. A plain CLIP becomes a
model with `CLIP4ClipModel.from_clip`.
"""

from collections.abc import Mapping

import torch

from ..clip.convert_clip import (
    TEXT_SHAPES,
    NameTable,
    count_layers,
    fail_if_any,
    infer_clip_config,
    layer_names,
    rename_from_official,
    rename_to_official,
    shapes_of,
    text_names,
    vision_names,
)
from ..loading_and_saving.checkpoint_format import (
    BuiltModel,
    ModelFormat,
    OfficialFile,
    Signature,
    clip_image_processor,
)
from ..video.example_videos import video_text_outputs, videos_and_texts
from ..video.processing_video import VideoTextProcessor
from ..video.video_processing import CLIPVideoProcessor
from .configuration_clip4clip import FRAMES_SEEN, CLIP4ClipConfig
from .modeling_clip4clip import CLIP4ClipModel


_OF = "CLIP4Clip"
_CLIP = "clip."
_FLAT, _DEEP = "clip.visual.conv1.weight", "clip.visual.conv2.weight"
_OF_TIGHT = ("cross.", "similarity_dense.")
_LSTM = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def clip4clip_from_official(
    state_dict: Mapping[str, torch.Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    head_heads: int | None = None,
) -> CLIP4ClipModel:
    """A `CLIP4ClipModel` with the weights of an official checkpoint: float32, on the CPU, in eval mode.

    Args:
        state_dict: names as the official module has them, without `module.`; any float dtype.
        vision_heads, text_heads, head_heads: attention heads of the encoders and of the head; default: width / 64.

    Raises:
        ValueError: names or shapes are not those of a CLIP4Clip, or a weight is not finite.

    Example:

        >>> from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
        >>> model = clip4clip_from_official(read_state_dict("pytorch_model.bin.4"))  # doctest: +SKIP
    """
    options = {"vision_heads": vision_heads, "text_heads": text_heads, "head_heads": head_heads}
    config = CLIP4ClipConfig(**infer_clip4clip_config(state_dict, **options))
    model = CLIP4ClipModel(config)
    model.load_state_dict(convert_clip4clip_state_dict(state_dict, config))
    return model.eval()


def convert_clip4clip_state_dict(
    state_dict: Mapping[str, torch.Tensor], config: CLIP4ClipConfig
) -> dict[str, torch.Tensor]:
    """An official state dict under `CLIP4ClipModel`'s names, in float32. Strict: every weight of
    `CLIP4ClipModel(config)` once, and no other but `unused_names`.

    Raises:
        ValueError: missing or unexpected names, shapes other than `config`'s, NaN or infinite weights: the first five
            and how many. Names of CLIP are said without `clip.`.
    """
    with torch.device("meta"):
        expected = CLIP4ClipModel(config).state_dict()
    of_clip = _clip_table(config)
    fail_if_any("unexpected", [name for name in state_dict if name in of_clip], _OF)
    unused = set(unused_names(state_dict))
    weights = {name.removeprefix(_CLIP): tensor for name, tensor in state_dict.items() if name not in unused}
    deep = _DEEP.removeprefix(_CLIP)
    if deep in weights:
        weights[deep] = _flattened(weights[deep])
    return rename_from_official(weights, _name_table(config), expected, of=_OF)


def infer_clip4clip_config(
    state_dict: Mapping[str, torch.Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    head_heads: int | None = None,
) -> dict:
    """The keyword arguments of `CLIP4ClipConfig` that fit an official state dict; only shapes are read.

    Arguments and errors as for `clip4clip_from_official`.
    """
    clip = {name.removeprefix(_CLIP): t for name, t in state_dict.items() if name.startswith(_CLIP)}
    if not clip:
        raise ValueError("CLIP4Clip state dict: no names that start with `clip.`")
    deep = clip.pop("visual.conv2.weight", None)
    if deep is not None:
        clip["visual.conv1.weight"] = _flattened(deep)[:, :3]
    shapes_of(clip, [*TEXT_SHAPES, "visual.conv1.weight"], of=_OF)
    config = infer_clip_config(clip, vision_heads=vision_heads, text_heads=text_heads)
    head, width = _head_of(state_dict), config["projection_dim"]
    config |= {"similarity_head": head, "patch_embedding": "2d" if deep is None else "3d"}
    if head in ("seqTransf", "tightTransf"):
        layers, positions = _layers_and_positions(head)
        number, _ = shapes_of(state_dict, [positions], of=_OF)[positions]
        config["head_config"] = {
            "num_hidden_layers": count_layers(state_dict, layers),
            "num_attention_heads": head_heads or config["text_config"]["num_attention_heads"],
            "max_position_embeddings": number,
            "hidden_size": width,
        }
        config["num_frames"] = min(12, number - 1)
    return config


def _head_of(state_dict: Mapping[str, torch.Tensor]) -> str:
    for head, prefix in (("seqTransf", "transformerClip."), ("seqLSTM", "lstm_visual.")):
        if any(name.startswith(prefix) for name in state_dict):
            return head
    return "tightTransf" if any(name.startswith(_OF_TIGHT) for name in state_dict) else "meanP"


def _layers_and_positions(head: str) -> tuple[str, str]:
    if head == "seqTransf":
        return "transformerClip.resblocks.", "frame_position_embeddings.weight"
    return "cross.transformer.resblocks.", "cross.embeddings.position_embeddings.weight"


def unused_names(state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """Names in an official file that its model does not use; see the head of this file."""
    head = _head_of(state_dict)
    unused = [_FLAT] if _DEEP in state_dict and _FLAT in state_dict else []
    if head != "seqTransf" and "frame_position_embeddings.weight" in state_dict:
        unused.append("frame_position_embeddings.weight")
    if head != "tightTransf":
        unused += [name for name in state_dict if name.startswith(_OF_TIGHT)]
    return unused


def to_official(state_dict: Mapping[str, torch.Tensor], config: CLIP4ClipConfig) -> dict[str, torch.Tensor]:
    """The inverse of the conversion, without names that are not used; dtypes as they are."""
    official = rename_to_official(state_dict, _name_table(config), of=_OF)
    of_clip = _clip_table(config)
    official = {_CLIP + name if name in of_clip else name: tensor for name, tensor in official.items()}
    if config.patch_embedding == "3d":
        official[_DEEP] = _deepened(official[_DEEP])
    return official


def _clip_table(config: CLIP4ClipConfig) -> NameTable:
    """OpenAI's names -> ours of the dual encoder."""
    clip = text_names(config.text_config.num_hidden_layers) | vision_names(config.vision_config.num_hidden_layers)
    if config.patch_embedding == "3d":
        clip[_DEEP.removeprefix(_CLIP)] = clip.pop(_FLAT.removeprefix(_CLIP))
    return {
        name: tuple(_CLIP + part for part in ours) if isinstance(ours, tuple) else _CLIP + ours
        for name, ours in clip.items()
    }


def _name_table(config: CLIP4ClipConfig) -> NameTable:
    table = _clip_table(config)
    head, depth = config.similarity_head, config.head_config.num_hidden_layers
    if head == "seqLSTM":
        table |= {f"lstm_visual.{name}": f"temporal_lstm.{name}" for name in _LSTM}
    elif head in ("seqTransf", "tightTransf"):
        ours = "temporal_layers." if head == "seqTransf" else "pair_scorer.layers."
        layers, positions = _layers_and_positions(head)
        table |= {positions: ours + "position_embedding.weight"}
        table |= layer_names(layers + "{i}.", ours + "layers.{i}.", depth)
    if head == "tightTransf":
        for official, name in {
            "cross.pooler.ln_pool": "pooler_norm",
            "cross.pooler.dense": "pooler",
            "similarity_dense": "classifier",
        }.items():
            table |= {f"{official}.{kind}": f"pair_scorer.{name}.{kind}" for kind in ("weight", "bias")}
    return table


def _flattened(weight: torch.Tensor) -> torch.Tensor:
    """(W, 3, time, p, p) -> (W, time * 3, p, p)."""
    if weight.dim() != 5 or weight.shape[1:3] != (3, FRAMES_SEEN):
        raise ValueError(f"{_OF} state dict: {_DEEP} {tuple(weight.shape)}, expected (width, 3, {FRAMES_SEEN}, p, p)")
    return weight.transpose(1, 2).flatten(1, 2).contiguous()


def _deepened(weight: torch.Tensor) -> torch.Tensor:
    return weight.unflatten(1, (FRAMES_SEEN, 3)).transpose(1, 2).contiguous()


def _build(official: OfficialFile) -> BuiltModel:
    model = clip4clip_from_official(official.weights, **official.heads)
    return BuiltModel(model, unused_names(official.weights))


def _processor(image_size: int, tokenizer, settings):
    videos = CLIPVideoProcessor.from_image_processor(clip_image_processor(image_size, settings))
    return videos if tokenizer is None else VideoTextProcessor(videos, tokenizer)


CHECKPOINTS = ModelFormat(
    signature=Signature(every=(r"clip\.visual\.conv1", r"clip\.token_embedding"), none=(r"prompt_learner",)),
    build=_build,
    outputs=("text_features", "frame_features", "logits_per_video", "logits_per_text"),
    make_processor=_processor,
    example_inputs=videos_and_texts,
    outputs_of=video_text_outputs,
)


__all__ = [
    "CHECKPOINTS",
    "clip4clip_from_official",
    "convert_clip4clip_state_dict",
    "infer_clip4clip_config",
    "to_official",
    "unused_names",
]
