"""Configurations of AudioCLIP: its sound tower, and the tower with both of CLIP's."""

import math
from dataclasses import field
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import CLIPTextConfig, PreTrainedConfig

from ..clip_resnet.configuration_clip_resnet import CLIPResNetVisionConfig
from ..loading_and_saving.checkpoints import LARGEST, check_range, check_tower_types, without_kernels


_REDUCTION = 32  # how many times wider than the stem the last map is
_BANDS = 3  # of frequencies: the input channels of the ResNeXt


@strict
class AudioCLIPAudioConfig(PreTrainedConfig):
    r"""
    The sound tower of AudioCLIP, ESResNeXt-fbsp: a learnable bank of B-spline wavelets turns the waveform into a picture of
    decibels, a ResNeXt with attention gates looks at it. The defaults are the published model, ResNeXt-50 32x4d.

    Args:
        sampling_rate (`int`, defaults to 44100):
            Samples a second that the model was trained on. The model itself does not read it.
        n_fft (`int`, defaults to 2048):
            Length of the filters in samples.
        hop_length (`int`, defaults to 561):
            Samples from one frame to the next, 12.7 ms.
        win_length (`int`, defaults to 1654):
            Samples of a frame, 37.5 ms; at most `n_fft`.
        window (`str`, defaults to `"blackmanharris"`):
            What frames are multiplied with; or `"hann"`. A new model starts with it, a checkpoint brings its own.
        normalized (`bool`, defaults to `True`):
            Divide the filters by `sqrt(n_fft)`; their norm is then pulled towards 1, else towards `sqrt(n_fft)`.
        onesided (`bool`, defaults to `True`):
            Filters for half of the spectrum, `round(n_fft / 2) + 1`, else `n_fft` of them.
        spec_height, spec_width (`int`, defaults to -1):
            Rows (of each of three bands) and columns that the spectrogram is resized to; -1 leaves them as they are.
        hidden_size (`int`, defaults to 2048):
            Channels of the last map, a multiple of 32; the stem has a 32nd of it.
        depths (`list[int]`, defaults to `[3, 4, 6, 3]`):
            Bottleneck blocks of the four stages.
        groups, width_per_group (`int`, default to 32 and 4):
            Of the 3 x 3 convolutions: how many groups, and how wide one is in the first stage of a model whose stem has
            64 channels.
        apply_attention (`bool`, defaults to `True`):
            Gates beside each stage and behind the pooling.
        projection_dim (`int`, defaults to 1024):
            Width of the joint space: what the tower puts out.
        freeze_batch_norm (`bool`, defaults to `False`):
            Keep the running statistics of batch normalisation while training.
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
        """As in transformers, but a file does not choose what code runs."""
        return super().from_dict(without_kernels(config_dict), **kwargs)

    @property
    def width(self) -> int:
        """Channels behind the stem."""
        return self.hidden_size // _REDUCTION

    @property
    def stage_channels(self) -> list[int]:
        """Channels of the maps of stem and stages."""
        return [self.width, *(self.width * 4 * 2**index for index in range(4))]

    @property
    def inner_widths(self) -> list[int]:
        """Channels of the 3 x 3 convolutions of the four stages."""
        return [int(self.width * 2**index * (self.width_per_group / 64)) * self.groups for index in range(4)]

    @property
    def num_hidden_layers(self) -> int:
        """Stages: `hidden_states` are what they put out, after what the stem does."""
        return len(self.depths)

    @property
    def num_filters(self) -> int:
        """Frequencies that the wavelets answer to."""
        return round(self.n_fft / 2) + 1 if self.onesided else self.n_fft

    def num_frames(self, samples: int) -> int:
        """Columns of the spectrogram of so many samples."""
        return 1 + max(0, math.ceil((samples - self.win_length) / self.hop_length))

    def spectrogram_size(self, samples: int) -> tuple[int, int]:
        """Rows (of a band) and columns that the ResNeXt sees."""
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
                f"width_per_group: {self.width_per_group} leaves no channel in the first stage of a stem of {self.width}"
            )
        for name in ("spec_height", "spec_width"):
            if not (getattr(self, name) == -1 or 0 < getattr(self, name) <= LARGEST):
                raise ValueError(f"{name}: {getattr(self, name)}, expected -1 or a number in 1..{LARGEST}")
        if not (math.isfinite(self.initializer_factor) and self.initializer_factor >= 0):
            raise ValueError(f"initializer_factor: {self.initializer_factor}, expected a number >= 0")

    def validate_depths(self):
        if len(self.depths) != 4 or not all(0 < depth <= 1000 for depth in self.depths):
            raise ValueError(f"depths: {self.depths}, expected four numbers of blocks in 1..1000")


@strict
class AudioCLIPConfig(PreTrainedConfig):
    r"""
    AudioCLIP: CLIP with a ResNet image tower, and a sound tower. Fields sit where `CLIPConfig` has them; the defaults are the
    published model, on RN50.

    Args:
        text_config (`dict` or `CLIPTextConfig`):
            CLIP's text tower.
        vision_config (`dict` or [`CLIPResNetVisionConfig`]):
            The image tower.
        audio_config (`dict` or [`AudioCLIPAudioConfig`]):
            The sound tower.
        projection_dim (`int`, defaults to 1024):
            Width of the joint space; those of the image and the sound tower are the same number and follow it where they
            are not given.
        frozen_modalities (`list[str]`, defaults to `[]`):
            Of `"audio"`, `"image"` and `"text"`: towers that are not trained. They stay in eval mode in `train()`, so that
            the statistics of batch normalisation stay, too. `["image", "text"]` is how the authors teach a CLIP to hear.
            With both of a pair, its temperature is frozen as well.
        logit_scale_init_value (`float`, defaults to 2.6592):
            Logarithm of the initial scale of image-text logits, ln(1 / 0.07).
        audio_logit_scale_init_value (`float`, defaults to 4.6052):
            Logarithm of that of audio-image and audio-text logits, ln(100).
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
        """As in transformers, but a file does not choose what code runs: the caller chooses attention kernels, and the
        towers are these three.
        """
        types = {
            "text_config": ("clip_text_model", "clip"),
            "vision_config": (CLIPResNetVisionConfig.model_type,),
            "audio_config": (AudioCLIPAudioConfig.model_type,),
        }
        check_tower_types(config_dict, types)
        return super().from_dict(without_kernels(config_dict), **kwargs)

    def validate_sizes(self):
        if not isinstance(self.text_config, PreTrainedConfig):
            return  # still dicts: the base class turns them into configurations
        check_range(self, "", ("projection_dim",))
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
        check_range(self.text_config, "text_config.", (*names, "max_position_embeddings"))
        for part in ("vision_config", "audio_config"):
            width = getattr(self, part).projection_dim
            if width != self.projection_dim:
                raise ValueError(
                    f"{part}.projection_dim: {width}, expected projection_dim ({self.projection_dim}): the tower projects "
                    "into the joint space"
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
