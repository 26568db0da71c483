"""Official weights of AudioCLIP ↔ `AudioCLIPModel`, and those of its audio encoder alone ↔ `AudioCLIPAudioModel`.

The state dict comes from `hf_clip_variants.conversion.checkpoint_reader.read_state_dict`; this file reads no files.
CLIP's part converts as in `clip_resnet/convert_clip_resnet.py`, names inside the audio encoder are the official ones.
Everything follows from the shapes but the heads (64 wide in the published models), the hop, and how a spectrogram is
scaled and resized.
"""

from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ..clip.convert_clip import (
    NameTable,
    count_layers,
    fail_if_any,
    rename_from_official,
    rename_to_official,
    shapes_of,
    text_names,
)
from ..clip_resnet.convert_clip_resnet import infer_clip_resnet_config
from ..loading_and_saving.checkpoint_format import (
    BuiltModel,
    ModelFormat,
    OfficialFile,
    Signature,
    clip_image_processor,
)
from ..loading_and_saving.example_outputs import Tensors, dual_encoder_outputs, images_and_texts, texts_of
from .configuration_audioclip import AudioCLIPAudioConfig, AudioCLIPConfig
from .feature_extraction_audioclip import AudioCLIPFeatureExtractor
from .modeling_audioclip import AudioCLIPAudioModel, AudioCLIPModel
from .processing_audioclip import AudioCLIPProcessor
from .spectrogram_audioclip import window_function


_AUDIO = "audio."
_BIAS = "fbsp.bias"  # in the files, with no elements
_COUNTER = ".num_batches_tracked"
_SCALES = {name: name for name in ("logit_scale_ai", "logit_scale_at")}
# Official name -> ours, where they differ.
_RENAMED = {"window": "fbsp.window"}
_SHAPES = ["conv1.weight", "layer1.0.conv1.weight", "fc.weight"]


def audioclip_from_official(
    state_dict: Mapping[str, torch.Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    **audio: Any,
) -> AudioCLIPModel:
    """An `AudioCLIPModel` with the weights of `AudioCLIP-Full-Training.pt` or `-Partial-Training.pt`: float32, on the
    CPU, in eval mode.

    Args:
        state_dict: official names, any float dtype.
        vision_heads, text_heads: heads of the image encoder's attention pooling and of the text encoder; default
            `width // 64`.
        audio: what the shapes do not show, as in [`AudioCLIPAudioConfig`]: `hop_length` (default 561), `n_fft`,
            `win_length` (where the file has no window), `onesided`, `normalized`, `spec_height`, `spec_width`,
            `window`; default: the published values.

    Raises:
        ValueError: names or shapes are not those of AudioCLIP, or a weight is not finite.

    Example:

        >>> from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
        >>> model = audioclip_from_official(read_state_dict("AudioCLIP-Full-Training.pt"))  # doctest: +SKIP
    """
    values = infer_audioclip_config(state_dict, vision_heads=vision_heads, text_heads=text_heads, **audio)
    config = _configuration(AudioCLIPConfig, values)
    model = AudioCLIPModel(config)
    model.load_state_dict(convert_audioclip_state_dict(state_dict, config))
    return model.eval()


def audio_encoder_from_official(state_dict: Mapping[str, torch.Tensor], **audio: Any) -> AudioCLIPAudioModel:
    """The audio encoder alone: of a whole AudioCLIP, or `ESRNXFBSP.pt`, whose `pooler_output` are logits of AudioSet's
    527 classes.

    Arguments and errors as for `audioclip_from_official`.
    """
    weights = {n.removeprefix(_AUDIO): t for n, t in state_dict.items() if n.startswith(_AUDIO)} or dict(state_dict)
    config = _configuration(AudioCLIPAudioConfig, _audio_config(weights, **audio))
    with torch.device("meta"):
        expected = AudioCLIPAudioModel(config).state_dict()
    table = _audio_names(expected)
    converted = rename_from_official(_complete(weights, table, config, ""), table, expected, of="ESResNeXt-fbsp")
    model = AudioCLIPAudioModel(config)
    model.load_state_dict(converted)
    return model.eval()


def infer_audioclip_config(
    state_dict: Mapping[str, torch.Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    **audio: Any,
) -> dict:
    """The keyword arguments of `AudioCLIPConfig` that fit an official state dict; tensors may be on the meta device.

    Arguments and errors as for `audioclip_from_official`.
    """
    encoder = {name.removeprefix(_AUDIO): t for name, t in state_dict.items() if name.startswith(_AUDIO)}
    clip = {n: tensor for n, tensor in state_dict.items() if not n.startswith(_AUDIO) and n not in _SCALES}
    config = infer_clip_resnet_config(clip, vision_heads=vision_heads, text_heads=text_heads)
    return config | {"audio_config": _audio_config(encoder, **audio)}


def convert_audioclip_state_dict(
    state_dict: Mapping[str, torch.Tensor], config: AudioCLIPConfig
) -> dict[str, torch.Tensor]:
    """An official state dict under our names, in float32. Strict: each of `AudioCLIPModel(config)` once, no other.

    `audio.fbsp.bias`, which has no elements, is left out. A missing window and missing counters of batches are added.

    Raises:
        ValueError: missing or unexpected names, shapes other than `config`'s, NaN or infinite weights: the first five
            and how many.
    """
    with torch.device("meta"):
        expected = AudioCLIPModel(config).state_dict()
    table = _name_table(expected, config)
    weights = _complete(state_dict, table, config.audio_config, _AUDIO)
    return rename_from_official(weights, table, expected, of="AudioCLIP")


def to_official(
    state_dict: Mapping[str, torch.Tensor], config: AudioCLIPConfig, *, buffers: bool = True
) -> dict[str, torch.Tensor]:
    """The inverse of `convert_audioclip_state_dict`: official names, dtypes as they are.

    Args:
        state_dict: of `AudioCLIPModel(config)`.
        buffers: False for what only parameters have, such as gradients.

    Raises:
        ValueError: missing names, or names that `AudioCLIPModel(config)` does not have.
    """
    with torch.device("meta"):
        model = AudioCLIPModel(config)
    expected = model.state_dict() if buffers else dict(model.named_parameters())
    return rename_to_official(state_dict, _name_table(expected, config), of="AudioCLIP")


def _configuration(config_class: type, values: Mapping[str, Any]):
    """`config_class(**values)` with all its errors as ValueErrors, since the values come from a file."""
    try:
        return config_class(**values)
    except StrictDataclassError as error:
        raise ValueError(f"{error.__cause__ or error} (inferred from the weights and what was given)") from error


def _audio_config(weights: Mapping[str, torch.Tensor], **given: Any) -> dict[str, Any]:
    """Sizes of the audio encoder, from its official names without prefix; `given`: fields that they do not show, or
    that must agree."""
    shapes = shapes_of(weights, _SHAPES, of="AudioCLIP")
    fail_if_any("missing", [n for n in ("fbsp.m", "layer1.0.conv2.weight") if n not in weights], "AudioCLIP")
    width = shapes["conv1.weight"][0]
    depths = [count_layers(weights, f"layer{index}.") for index in (1, 2, 3, 4)]
    grouped = weights["layer1.0.conv2.weight"].shape
    if len(grouped) != 4 or 0 in grouped or grouped[0] % grouped[1]:
        raise ValueError(f"layer1.0.conv2.weight: {tuple(grouped)}, expected a grouped convolution")
    groups = grouped[0] // grouped[1]
    (filters,) = weights["fbsp.m"].shape or (0,)
    onesided = given.get("onesided", True)
    sizes = {
        "n_fft": 2 * (filters - 1) if onesided else filters,
        "hidden_size": 32 * width,
        "depths": depths,
        "groups": groups,
        "width_per_group": _width_per_group(weights, width, groups),
        "apply_attention": "att1.bn.weight" in weights,
        "projection_dim": shapes["fc.weight"][0],
    }
    if "window" in weights:
        sizes["win_length"] = weights["window"].numel()
    for name in sizes.keys() & given.keys() - {"n_fft"}:
        if given[name] != sizes[name]:
            raise ValueError(f"{name}: {given[name]}, but the weights have {sizes[name]}")
    return sizes | given


def _width_per_group(weights: Mapping[str, torch.Tensor], width: int, groups: int) -> int:
    """The smallest that gives the 3 x 3 convolutions of all stages their width, which is rounded down."""
    names = [f"layer{index}.0.conv2.weight" for index in (1, 2, 3, 4)]
    fail_if_any("missing", [name for name in names if name not in weights], "AudioCLIP")
    inner = [weights[name].shape[0] for name in names]
    for candidate in range(1, 64 * max(inner) // width + 2):
        if [int(width * 2**index * (candidate / 64)) * groups for index in range(4)] == inner:
            return candidate
    raise ValueError(f"layer1 to layer4: 3 x 3 convolutions of {inner} channels are not those of a ResNeXt")


def _complete(
    weights: Mapping[str, torch.Tensor], table: NameTable, config: AudioCLIPAudioConfig, prefix: str
) -> dict[str, torch.Tensor]:
    """Without the bias of no elements; with the counters and the window, which some files leave out."""
    weights = dict(weights)
    bias = weights.pop(prefix + _BIAS, None)
    if bias is not None and bias.numel():
        raise ValueError(f"{prefix}{_BIAS}: {bias.numel()} elements, expected none: nothing here adds it")
    made = {name: torch.zeros((), dtype=torch.int64) for name in table if name.endswith(_COUNTER)}
    made[prefix + "window"] = window_function(config.window, config.win_length)
    return made | weights


def _audio_names(expected: Mapping[str, torch.Tensor]) -> NameTable:
    """Official name -> ours, inside the audio encoder."""
    back = {ours: official for official, ours in _RENAMED.items()}
    return {back.get(name, name): name for name in expected}


def _name_table(expected: Mapping[str, torch.Tensor], config: AudioCLIPConfig) -> NameTable:
    """Official name -> ours, for the names of a whole model."""
    table = text_names(config.text_config.num_hidden_layers) | _SCALES
    vision, audio = "vision_model.", "audio_model."
    table |= {"visual." + name.removeprefix(vision): name for name in expected if name.startswith(vision)}
    encoder = _audio_names({name.removeprefix(audio): None for name in expected if name.startswith(audio)})
    return table | {_AUDIO + official: audio + ours for official, ours in encoder.items()}


def _build(official: OfficialFile) -> BuiltModel:
    official.notes.append(
        "the hop and the scaling of the spectrogram are the published ones: the weights do not show them"
    )
    model = audioclip_from_official(official.weights, **official.heads)
    return BuiltModel(model, unused=[name for name in official.weights if name == _AUDIO + _BIAS])


def _make_processor(image_size: int, tokenizer, settings: Mapping[str, Any]):
    """For images, texts and audio; for audio alone without a tokenizer."""
    feature_extractor = AudioCLIPFeatureExtractor()
    if tokenizer is None:
        return feature_extractor
    return AudioCLIPProcessor(clip_image_processor(image_size, settings), tokenizer, feature_extractor)


def _example_inputs(model, prompts: tuple[str, ...], processor, tokenizer) -> Tensors:
    """Image and texts, and half a second of noise, in the range of 16-bit samples."""
    audio = 5000 * torch.randn(2, 1, 22050, generator=torch.Generator().manual_seed(0))
    return images_and_texts(model, prompts, processor, tokenizer) | {"input_features": audio}


def _outputs_of(model, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    found, text = dual_encoder_outputs(model, inputs), texts_of(inputs)
    if (audio := inputs.get("input_features")) is not None:
        found["audio_features"] = model.get_audio_features(input_features=audio).pooler_output
        if "input_ids" in text:
            found["logits_per_audio"] = model(input_features=audio, **text).logits_per_audio
    return found


CHECKPOINTS = ModelFormat(
    signature=Signature(every=(r"visual\.layer1\.", r"audio\.fbsp\.")),
    build=_build,
    outputs=(*ModelFormat.outputs, "audio_features", "logits_per_audio"),
    make_processor=_make_processor,
    example_inputs=_example_inputs,
    outputs_of=_outputs_of,
    elsewhere={
        r"fbsp\.m$": "This is AudioCLIP's audio encoder alone: audio_encoder_from_official in "
        "hf_clip_variants.modeling.audioclip.convert_audioclip takes it."
    },
)


__all__ = [
    "CHECKPOINTS",
    "audio_encoder_from_official",
    "audioclip_from_official",
    "convert_audioclip_state_dict",
    "infer_audioclip_config",
    "to_official",
]
