"""Configurations of AudioCLIP: the audio encoder, and the model that joins it to CLIP's image and text encoder."""

import math
from dataclasses import field
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import CLIPTextConfig, PreTrainedConfig

from ..clip_resnet.configuration_clip_resnet import CLIPResNetVisionConfig
from ..loading_and_saving.configuration_checks import (
    LARGEST,
    check_encoder_types,
    check_range,
    checked,
    without_kernels,
)


_REDUCTION = 32  # the last feature map has 32 times the channels of the stem
_BANDS = 3  # frequency bands of the spectrogram: the input channels of the ResNeXt


@checked
@strict
class AudioCLIPAudioConfig(PreTrainedConfig):
    r"""
    Configuration of AudioCLIP's audio encoder, ESResNeXt-fbsp: a learnable bank of B-spline wavelets computes a
    spectrogram in decibels, which is the input of a ResNeXt with attention gates. The defaults are the published
    model, ResNeXt-50 32x4d.

    Args:
        sampling_rate (`int`, defaults to 44100):
            Samples per second of the training audio. The model itself does not read it.
        n_fft (`int`, defaults to 2048):
            Length of the filters in samples.
        hop_length (`int`, defaults to 561):
            Samples from one frame to the next, 12.7 ms.
        win_length (`int`, defaults to 1654):
            Samples in a frame, 37.5 ms; at most `n_fft`.
        window (`"blackmanharris"` or `"hann"`, defaults to `"blackmanharris"`):
            Window function of a new model's frames. A checkpoint contains its own window.
        normalized (`bool`, defaults to `True`):
            Divide the filters by `sqrt(n_fft)`. The penalty then pulls their norms towards 1, otherwise towards
            `sqrt(n_fft)`.
        onesided (`bool`, defaults to `True`):
            `round(n_fft / 2) + 1` filters, for half of the spectrum; otherwise `n_fft` filters.
        spec_height, spec_width (`int`, defaults to -1):
            Size to which the spectrogram is resized: rows of each of the three bands, and columns. -1 does not resize.
        hidden_size (`int`, defaults to 2048):
            Channels of the last feature map, a multiple of 32. The stem has `hidden_size / 32` channels.
        depths (`list[int]`, defaults to `[3, 4, 6, 3]`):
            Bottleneck blocks in each of the four stages.
        groups, width_per_group (`int`, default to 32 and 4):
            Number of groups of the 3 x 3 convolutions, and channels of one group in the first stage of a model whose
            stem has 64 channels.
        apply_attention (`bool`, defaults to `True`):
            Attention gates beside each stage and after the pooling.
        projection_dim (`int`, defaults to 1024):
            Width of the joint space, which is the output width of the encoder.
        freeze_batch_norm (`bool`, defaults to `False`):
            Keep the running statistics of batch normalisation fixed in training.
        initializer_factor (`float`, defaults to 1.0):
            Scales the standard deviations of the initial weights; for tests.

    Example:

    ```python
    >>> from hf_clip_variants import AudioCLIPAudioConfig

    >>> config = AudioCLIPAudioConfig()
    >>> config.num_filters, config.spectrogram_size(5 * 44100), config.stage_channels
    (1025, (341, 392), [64, 256, 512, 1024, 2048])
    ```
    """

    model_type = "clipv-audioclip_audio"
    base_config_key = "audio_config"

    sampling_rate: int = 44_100
    n_fft: int = 2048
    hop_length: int = 561
    win_length: int = 1654
    window: Literal["blackmanharris", "hann"] = "blackmanharris"
    normalized: bool = True
    onesided: bool = True
    spec_height: int = -1
    spec_width: int = -1
    hidden_size: int = 2048
    depths: list[int] | tuple[int, ...] = field(default_factory=lambda: [3, 4, 6, 3])
    groups: int = 32
    width_per_group: int = 4
    apply_attention: bool = True
    projection_dim: int = 1024
    freeze_batch_norm: bool = False
    initializer_factor: float | int = 1.0

    def __post_init__(self, **kwargs):
        self.depths = list(self.depths)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs."""
        return super().from_dict(without_kernels(config_dict), **kwargs)

    @property
    def width(self) -> int:
        """Output channels of the stem."""
        return self.hidden_size // _REDUCTION

    @property
    def stage_channels(self) -> list[int]:
        """Output channels of the stem and of the four stages."""
        return [self.width, *(self.width * 4 * 2**index for index in range(4))]

    @property
    def inner_widths(self) -> list[int]:
        """Channels of the 3 x 3 convolutions of the four stages; torchvision computes them in the same way."""
        return [int(self.width * 2**index * (self.width_per_group / 64)) * self.groups for index in range(4)]

    @property
    def num_hidden_layers(self) -> int:
        """Number of stages. `hidden_states` has one entry more: the output of the stem comes first."""
        return len(self.depths)

    @property
    def num_filters(self) -> int:
        """Number of filters, one for each frequency."""
        return round(self.n_fft / 2) + 1 if self.onesided else self.n_fft

    def num_frames(self, samples: int) -> int:
        """Columns of the spectrogram of a waveform with `samples` samples."""
        return 1 + max(0, math.ceil((samples - self.win_length) / self.hop_length))

    def spectrogram_size(self, samples: int) -> tuple[int, int]:
        """Rows of one band, and columns, of the spectrogram that the ResNeXt gets."""
        rows, columns = self.num_filters // _BANDS, self.num_frames(samples)
        return self.spec_height if self.spec_height > 0 else rows, self.spec_width if self.spec_width > 0 else columns

    def validate_sizes(self):
        names = ("sampling_rate", "n_fft", "hop_length", "win_length", "hidden_size", "groups", "width_per_group")
        check_range(self, "", (*names, "projection_dim"))
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length: {self.win_length} is longer than n_fft ({self.n_fft})")
        if self.num_filters < _BANDS:
            raise ValueError(f"n_fft: {self.n_fft} gives {self.num_filters} filters, expected at least {_BANDS}")
        if self.hidden_size % _REDUCTION:
            raise ValueError(f"hidden_size: {self.hidden_size} is not a multiple of {_REDUCTION}")
        if not all(self.inner_widths):
            raise ValueError(
                f"width_per_group: {self.width_per_group} gives 0 channels in the first stage with hidden_size "
                f"{self.hidden_size}, expected a larger number"
            )
        for name in ("spec_height", "spec_width"):
            if not (getattr(self, name) == -1 or 0 < getattr(self, name) <= LARGEST):
                raise ValueError(f"{name}: {getattr(self, name)}, expected -1 or a number in 1..{LARGEST}")
        if not (math.isfinite(self.initializer_factor) and self.initializer_factor >= 0):
            raise ValueError(f"initializer_factor: {self.initializer_factor}, expected a number >= 0")

    def validate_depths(self):
        if len(self.depths) != 4 or not all(0 < depth <= 1000 for depth in self.depths):
            raise ValueError(f"depths: {self.depths}, expected four numbers of blocks in 1..1000")


@checked
@strict
class AudioCLIPConfig(PreTrainedConfig):
    r"""
    Configuration of AudioCLIP: CLIP with a ResNet image encoder, and an audio encoder. Fields have the names and
    places that `CLIPConfig` gives them. The defaults are the published model, on RN50.

    Args:
        text_config (`dict` or `CLIPTextConfig`):
            CLIP's text encoder.
        vision_config (`dict` or [`CLIPResNetVisionConfig`]):
            The image encoder.
        audio_config (`dict` or [`AudioCLIPAudioConfig`]):
            The audio encoder.
        projection_dim (`int`, defaults to 1024):
            Width of the joint space. `projection_dim` of the image and of the audio encoder must be the same number,
            and is set to it where it is not given.
        frozen_modalities (`list[str]`, defaults to `[]`):
            Modalities (`"audio"`, `"image"`, `"text"`) whose encoders are not trained. Frozen encoders stay in eval
            mode when `train()` is called, so that the statistics of their batch normalisation do not change either.
            The authors add audio to a trained CLIP with `["image", "text"]`. If both modalities of a pair are frozen,
            its logit scale is frozen, too.
        logit_scale_init_value (`float`, defaults to 2.6592):
            Logarithm of the initial scale of image-text logits, ln(1 / 0.07).
        audio_logit_scale_init_value (`float`, defaults to 4.6052):
            Logarithm of the initial scale of audio-image and audio-text logits, ln(100).
        initializer_factor (`float`, defaults to 1.0):
            Scales the standard deviation of the initial text projection; for tests.

    Example:

    ```python
    >>> from hf_clip_variants import AudioCLIPConfig

    >>> config = AudioCLIPConfig(projection_dim=512, frozen_modalities=["image", "text"])
    >>> config.audio_config.projection_dim, config.vision_config.projection_dim
    (512, 512)
    ```
    """

    model_type = "clipv-audioclip"
    sub_configs_defaults = {
        "text_config": CLIPTextConfig,
        "vision_config": CLIPResNetVisionConfig,
        "audio_config": AudioCLIPAudioConfig,
    }
    keys_to_ignore_at_inference = ["text_model_output", "vision_model_output", "audio_model_output"]

    text_config: dict | CLIPTextConfig | None = None
    vision_config: dict | CLIPResNetVisionConfig | None = None
    audio_config: dict | AudioCLIPAudioConfig | None = None
    projection_dim: int = 1024
    frozen_modalities: list[str] | tuple[str, ...] = field(default_factory=list)
    logit_scale_init_value: float | int = 2.6592
    audio_logit_scale_init_value: float | int = math.log(100)
    initializer_factor: float | int = 1.0

    def __post_init__(self, **kwargs):
        self.frozen_modalities = list(self.frozen_modalities)
        for part in self.sub_configs_defaults:
            if not isinstance(getattr(self, part), PreTrainedConfig):
                setattr(self, part, {"projection_dim": self.projection_dim} | (getattr(self, part) or {}))
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs: attention kernels are chosen by the caller,
        and the encoders are the three named below.
        """
        types = {
            "text_config": ("clip_text_model", "clip"),
            "vision_config": (CLIPResNetVisionConfig.model_type,),
            "audio_config": (AudioCLIPAudioConfig.model_type,),
        }
        check_encoder_types(config_dict, types)
        return super().from_dict(without_kernels(config_dict), **kwargs)

    def validate_sizes(self):
        if not isinstance(self.text_config, PreTrainedConfig):
            return  # still dicts: the base class has not converted them yet
        check_range(self, "", ("projection_dim",))
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
        check_range(self.text_config, "text_config.", (*names, "max_position_embeddings"))
        for part in ("vision_config", "audio_config"):
            width = getattr(self, part).projection_dim
            if width != self.projection_dim:
                raise ValueError(
                    f"{part}.projection_dim: {width}, expected projection_dim ({self.projection_dim}): the encoder "
                    "projects into the joint space"
                )
        for name in ("logit_scale_init_value", "audio_logit_scale_init_value", "initializer_factor"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: {getattr(self, name)}, expected a finite number")

    def validate_frozen_modalities(self):
        known = ("audio", "image", "text")
        wrong = [name for name in self.frozen_modalities if name not in known]
        if wrong or len(set(self.frozen_modalities)) < len(self.frozen_modalities):
            raise ValueError(f"frozen_modalities: {self.frozen_modalities}, expected some of {', '.join(known)}")


__all__ = ["AudioCLIPAudioConfig", "AudioCLIPConfig"]
