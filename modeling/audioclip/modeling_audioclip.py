"""AudioCLIP: CLIP's text encoder, its ResNet image encoder and a ResNeXt audio encoder with one joint space.

Modules of the audio encoder have the names of the official code. Its spectrogram is in `spectrogram_audioclip.py`.

Papers: "AudioCLIP: Extending CLIP to Image, Text and Audio", https://arxiv.org/abs/2106.13043; the audio encoder:
"ESResNe(X)t-fbsp: Learning Robust Time-Frequency Transformation of Audio", https://arxiv.org/abs/2104.11587.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextModel, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import filter_output_hidden_states
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from ..clip_resnet.modeling_clip_resnet import BatchNormBlock, CLIPResNetVisionModel
from ..dual_encoders.backbones import unit_norm
from ..dual_encoders.dual_encoder import DualEncoder
from ..dual_encoders.forward_checks import check_output
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from ..losses.contrastive_loss import contrastive_loss
from ..losses.rank_exchange import world_size
from .configuration_audioclip import AudioCLIPAudioConfig, AudioCLIPConfig
from .spectrogram_audioclip import AudioCLIPSpectrogram, window_function


# B waveforms (or images), N texts, L tokens, C audio channels, w channels of the stem, H x W size of a feature map,
# D joint width

_EXPANSION = 4
_MODALITIES = ("audio", "image", "text")
# The pairs of modalities that are compared, and the parameter that scales their logits.
_PAIRS = {("audio", "image"): "logit_scale_ai", ("audio", "text"): "logit_scale_at", ("image", "text"): "logit_scale"}


# ---- outputs


@dataclass
class AudioCLIPAudioOutput(BaseModelOutputWithPooling):
    """
    Args:
        last_hidden_state: (B, C H W, 32w), the positions of the last feature maps row by row, one audio channel after
            the other.
        pooler_output: (B, D), the feature in the joint space, not normalised.
        hidden_states: feature maps of the stem and the four stages, (B, C, w, H, W) to (B, C, 32w, H / 8, W / 8).
        loss_ttf: (), the penalty on the norms of the spectrogram's filters.
    """

    loss_ttf: torch.FloatTensor | None = None


@dataclass
class AudioCLIPOutput(ModelOutput):
    """
    Fields of a modality that was not given are None.

    Args:
        loss: (), with `return_loss` and at least two modalities.
        loss_ttf: (), the penalty on the norms of the spectrogram's filters; it is part of `loss`.
        logits_per_audio: (B, N), the same as `logits_audio_text`; pipelines for zero-shot audio classification read
            it.
        logits_per_image: (B, N), the same as `logits_image_text`; pipelines for zero-shot image classification read
            it.
        logits_per_text: (N, B), texts against images, or against audio if no images are given.
        logits_audio_image, logits_audio_text, logits_image_text: scaled cosine similarities; a row is an item of the
            first modality, a column an item of the second.
        audio_embeds, image_embeds, text_embeds: (B, D), (B, D) and (N, D), with unit norm.
        audio_model_output, vision_model_output, text_model_output: outputs of the three encoders.
    """

    loss: torch.FloatTensor | None = None
    loss_ttf: torch.FloatTensor | None = None
    logits_per_audio: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    logits_audio_image: torch.FloatTensor | None = None
    logits_audio_text: torch.FloatTensor | None = None
    logits_image_text: torch.FloatTensor | None = None
    audio_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    audio_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    text_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


@dataclass(frozen=True)
class AudioCLIPQueries:
    """
    Retrieval in all directions between the given modalities. Keys are `"audio_to_text"`, `"text_to_audio"`,
    `"audio_to_image"`, ...; each value is a matrix with a row for each query and a column for each gallery item.

    Args:
        logits: scaled cosine similarities.
        probabilities: their softmax over the gallery; each row sums to 1.
    """

    logits: dict[str, torch.Tensor]
    probabilities: dict[str, torch.Tensor]


# ---- the ResNeXt


class AudioCLIPBottleneck(BatchNormBlock):
    """A ResNeXt block: 1 x 1, grouped 3 x 3 and 1 x 1 convolution, plus a shortcut: (B, in, H, W) -> (B, 4 planes,
    H / stride, W / stride). The stride is in the 3 x 3 convolution, as in torchvision's ResNeXt.
    """

    def __init__(self, in_channels: int, planes: int, inner: int, groups: int, stride: int):
        super().__init__()
        out_channels = planes * _EXPANSION
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def _forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        shortcut = hidden_state if self.downsample is None else self.downsample(hidden_state)
        hidden_state = F.relu(self.bn1(self.conv1(hidden_state)), inplace=True)
        hidden_state = F.relu(self.bn2(self.conv2(hidden_state)), inplace=True)
        return F.relu(self.bn3(self.conv3(hidden_state)) + shortcut, inplace=True)


class AudioCLIPStage(nn.Sequential):
    """Bottleneck blocks of one width; the first one reduces the feature map by `stride`."""

    def __init__(self, in_channels: int, planes: int, inner: int, groups: int, depth: int, stride: int):
        blocks = [AudioCLIPBottleneck(in_channels, planes, inner, groups, stride)]
        blocks += [AudioCLIPBottleneck(planes * _EXPANSION, planes, inner, groups, 1) for _ in range(depth - 1)]
        super().__init__(*blocks)


class AudioCLIPGate(nn.Module):
    """The attention gate of a stage: from the input of the stage, (B, in, H, W), to factors between 0 and 1 for its
    output, (B, out, *size). ESResNeXt's `Attention2d`.

    A kernel of 3 x 1 combines neighbouring frequencies, a kernel of 1 x 5 neighbouring frames.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int]):
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv_depth = nn.Conv2d(in_channels, in_channels, kernel, padding=padding, groups=in_channels)
        self.conv_point = nn.Conv2d(in_channels, out_channels, 1)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, hidden_state: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        # A depthwise convolution over positions, then a 1 x 1 convolution over channels.
        pooled = F.adaptive_max_pool2d(hidden_state, size)
        return self.bn(self.conv_point(self.conv_depth(pooled))).sigmoid()


# ---- models


class AudioCLIPPreTrainedModel(CheckedLoading, StagedSaving, PreTrainedModel):
    config: AudioCLIPConfig
    base_model_prefix = "audioclip"
    input_modalities = ("audio", "image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_attention_backend = True
    _no_split_modules = ["CLIPEncoderLayer", "CLIPTextEmbeddings", "CLIPResNetBottleneck", "CLIPResNetAttentionPool"]
    _no_split_modules += ["AudioCLIPBottleneck", "AudioCLIPSpectrogram"]
    _keep_in_fp32_modules_strict = ["fbsp"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        factor = self.config.initializer_factor
        if isinstance(module, nn.Conv2d):
            # Kaiming initialisation with fan-out, as in torchvision.
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel()
            init.normal_(module.weight, std=factor * (2 / fan_out) ** 0.5)
        elif isinstance(module, AudioCLIPSpectrogram):
            # Order 0, bandwidth 1 and whole centre frequencies: a discrete Fourier transform (see `wavelets`).
            init.zeros_(module.m)
            init.ones_(module.fb)
            init.copy_(module.fc, torch.arange(len(module.fc), dtype=module.fc.dtype, device=module.fc.device))
            window = window_function(module.config.window, module.config.win_length, module.window.device)
            init.copy_(module.window, window)
        elif isinstance(module, AudioCLIPAudioModel):
            bound = factor * module.config.hidden_size**-0.5
            init.uniform_(module.fc.weight, -bound, bound)
        elif isinstance(module, AudioCLIPModel):
            init.normal_(module.text_projection.weight, std=factor * module.config.text_config.hidden_size**-0.5)
            init.constant_(module.logit_scale, module.config.logit_scale_init_value)
            init.constant_(module.logit_scale_ai, module.config.audio_logit_scale_init_value)
            init.constant_(module.logit_scale_at, module.config.audio_logit_scale_init_value)


class AudioCLIPAudioModel(AudioCLIPPreTrainedModel):
    r"""
    The audio encoder of AudioCLIP, ESResNeXt-fbsp (Guzhov et al. 2021): a learnable spectrogram, a ResNeXt with an
    attention gate beside each stage, and a projection into the joint space.

    Each audio channel goes through the network separately; the pooled features are summed over channels before the
    projection. So stereo audio with two equal channels has other features than the mono audio. Loads its own
    checkpoints and those of an [`AudioCLIPModel`].

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import AudioCLIPAudioConfig, AudioCLIPAudioModel

    >>> spectrogram = {"n_fft": 128, "win_length": 100, "hop_length": 50}
    >>> config = AudioCLIPAudioConfig(
    ...     **spectrogram, hidden_size=192, groups=2, width_per_group=32, depths=[1, 1, 1, 1]
    ... )
    >>> model = AudioCLIPAudioModel(config).eval()
    >>> waveforms = 10_000 * torch.randn(2, 1, 4410)  # on the int16 scale
    >>> outputs = model(waveforms, output_hidden_states=True)
    >>> outputs.pooler_output.shape, [tuple(one.shape[1:]) for one in outputs.hidden_states]
    (torch.Size([2, 1024]), [(1, 6, 6, 22), (1, 24, 6, 22), (1, 48, 3, 11), (1, 96, 2, 6), (1, 192, 1, 3)])
    ```
    """

    config: AudioCLIPAudioConfig
    base_model_prefix = "audio_model"  # its name in the full model, so that checkpoints of that one load, too
    main_input_name = "input_features"
    input_modalities = ("audio",)
    _input_embed_layer = "conv1"
    _keys_to_ignore_on_load_unexpected = [r"^(text|vision)_model\.", r"^text_projection\.", r"^logit_scale(_ai|_at)?$"]

    def __init__(self, config: AudioCLIPAudioConfig):
        super().__init__(config)
        width, channels = config.width, config.stage_channels
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for index, (inner, depth) in enumerate(zip(config.inner_widths, config.depths, strict=True)):
            stride = 1 if index == 0 else 2
            stage = AudioCLIPStage(channels[index], width * 2**index, inner, config.groups, depth, stride)
            self.add_module(f"layer{index + 1}", stage)
            # Gates look at frequencies (3 x 1) beside stages 1 and 3, and at time (1 x 5) beside stages 2 and 4.
            if config.apply_attention:
                gate = AudioCLIPGate(channels[index], channels[index + 1], (1, 5) if index % 2 else (3, 1))
                self.add_module(f"att{index + 1}", gate)
        # The fifth gate acts on the pooled features.
        if config.apply_attention:
            self.att5 = AudioCLIPGate(channels[4], channels[4], (3, 5))
        self.fc = nn.Linear(channels[4], config.projection_dim)
        self.fbsp = AudioCLIPSpectrogram(config)
        self.post_init()

    def train(self, mode: bool = True) -> "AudioCLIPAudioModel":
        super().train(mode)
        if mode and self.config.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def _stem(self, spectrogram: torch.Tensor) -> torch.Tensor:
        return self.maxpool(F.relu(self.bn1(self.conv1(spectrogram)), inplace=True))

    def _stage(self, index: int, hidden_state: torch.Tensor) -> torch.Tensor:
        output = self.get_submodule(f"layer{index}")(hidden_state)
        if not self.config.apply_attention:
            return output
        return output * self.get_submodule(f"att{index}")(hidden_state, output.shape[-2:])

    def _pool(self, hidden_state: torch.Tensor) -> torch.Tensor:
        pooled = F.adaptive_avg_pool2d(hidden_state, 1)
        return pooled * self.att5(hidden_state, (1, 1)) if self.config.apply_attention else pooled

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, input_features: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]) -> AudioCLIPAudioOutput:
        r"""
        Args:
            input_features: (B, C, samples), float waveforms between -32768 and 32767, at `config.sampling_rate`
                samples per second; any number of channels and samples.

        Returns:
            [`AudioCLIPAudioOutput`].

        Raises:
            ValueError: `input_features` is not of this shape, or not floating point.
        """
        _check_waveforms(input_features)
        decibels, loss_ttf = self.fbsp(input_features)
        # Feature maps (B, C, channels, H, W); the three bands of decibels are the colour channels of the ResNeXt.
        maps = [_each_channel(self._stem, decibels.to(self.conv1.weight.dtype))]
        for index in range(1, 5):
            maps.append(_each_channel(lambda channel, index=index: self._stage(index, channel), maps[-1]))
        pooled = _each_channel(self._pool, maps[-1]).sum(1).flatten(1)
        return AudioCLIPAudioOutput(
            last_hidden_state=maps[-1].movedim(2, -1).flatten(1, 3),
            pooler_output=self.fc(pooled),
            hidden_states=tuple(maps),
            loss_ttf=loss_ttf,
        )


class AudioCLIPModel(DualEncoder, AudioCLIPPreTrainedModel):
    r"""
    AudioCLIP (Guzhov et al. 2021): audio, images and texts in one joint space. It has the interface of `CLIPModel` and
    of `ClapModel`; pass any of the three modalities.

    Loads checkpoints of [`CLIPResNetModel`], too: the audio encoder is then new, and
    `frozen_modalities=["image", "text"]` trains it into the joint space of that CLIP. For audio and text only,
    transformers' `ClapModel` was trained on more data. `modeling/audioclip/convert_audioclip.py` converts official
    weights.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import AudioCLIPConfig, AudioCLIPModel

    >>> audio = {"n_fft": 128, "win_length": 100, "hop_length": 50}
    >>> audio |= {"hidden_size": 192, "groups": 2, "width_per_group": 32}
    >>> vision = {"hidden_size": 256, "depths": [1, 1, 1, 1], "num_attention_heads": 4, "image_size": 64}
    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> config = AudioCLIPConfig(text_config=text, vision_config=vision, audio_config=audio, projection_dim=48)
    >>> model = AudioCLIPModel(config).eval()
    >>> ids = torch.tensor([[49406, 320, 49407], [49406, 518, 49407], [49406, 550, 49407]])
    >>> waveforms = 10_000 * torch.randn(2, 1, 4410)  # on the int16 scale
    >>> model(input_features=waveforms, input_ids=ids).logits_per_audio.shape
    torch.Size([2, 3])
    >>> answers = model.query(input_features=waveforms, input_ids=ids, pixel_values=torch.randn(4, 3, 64, 64))
    >>> {name: tuple(found.shape) for name, found in answers.probabilities.items() if name.startswith("audio")}
    {'audio_to_image': (2, 4), 'audio_to_text': (2, 3)}
    ```
    """

    def __init__(self, config: AudioCLIPConfig):
        super().__init__(config)
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.vision_model = CLIPResNetVisionModel._from_config(config.vision_config)
        self.audio_model = AudioCLIPAudioModel._from_config(config.audio_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        for name in _PAIRS.values():  # 0-dim, as in every CLIP checkpoint: under FSDP2, ignore them
            self.register_parameter(name, nn.Parameter(torch.empty(())))
        self.post_init()
        # transformers adds up the ignore-on-load lists of all parts. Those of the image and the audio encoder do not
        # apply to the full model.
        for encoder in (CLIPResNetVisionModel, AudioCLIPAudioModel):
            self._keys_to_ignore_on_load_unexpected -= set(encoder._keys_to_ignore_on_load_unexpected)
        self._freeze()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, but the modalities in `config.frozen_modalities` are frozen, and missing weights are an
        error.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        # Loading creates new parameters, which require gradients.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()
        return loaded

    def _accept_missing(self, missing: set[str]) -> set[str]:
        """A checkpoint without any audio weights (of a CLIP-ResNet) gets a new audio encoder. One that lacks only some
        of them is damaged.
        """
        of_audio = {name for name in self.state_dict() if name.startswith(("audio_model.", "logit_scale_"))}
        return missing - of_audio if of_audio <= missing else missing

    def _freeze(self):
        frozen = self.config.frozen_modalities
        for modality in frozen:
            for part in self._parts(modality):
                part.requires_grad_(False)
        # A logit scale is trained as long as one modality of its pair is.
        for pair, name in _PAIRS.items():
            if set(pair) <= set(frozen):
                getattr(self, name).requires_grad_(False)

    def _parts(self, modality: str) -> list[nn.Module]:
        if modality == "text":
            return [self.text_model, self.text_projection]
        return [self.audio_model if modality == "audio" else self.vision_model]

    def train(self, mode: bool = True) -> "AudioCLIPModel":
        super().train(mode)
        for modality in self.config.frozen_modalities:
            for part in self._parts(modality):
                part.eval()
        return self

    @can_return_tuple
    def get_audio_features(
        self, input_features: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> AudioCLIPAudioOutput:
        """As in `ClapModel`: (B, C, samples) -> the audio encoder's output; its `pooler_output` (B, D) is the feature
        in the joint space, not normalised.
        """
        return self.audio_model(input_features=input_features, return_dict=True, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        sample_weights: torch.FloatTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AudioCLIPOutput:
        r"""
        Args:
            input_ids: (N, L); a text ends at its first end token.
            pixel_values: (B, 3, H, W), normalised floats.
            input_features: (B, C, samples), float waveforms on the int16 scale.
            attention_mask, position_ids: (N, L), for the text encoder.
            sample_weights: (B,), weights of the samples in the loss, for instance the sum of the weights of a sample's
                classes. One process only.
            return_loss: compute the loss. Waveform i, image i and text i are one sample; B = N.
            interpolate_pos_encoding: accept image sizes other than `config.vision_config.image_size`.

        The loss is that of the official code: the sum over pairs of modalities of the cross-entropies of both
        directions, divided by the factorial of the number of pairs (1 or 3), plus the penalty on the filters. With one
        modality there is no loss. With two it is twice the loss of CLIP, which halves the sum of both directions.

        Returns:
            [`AudioCLIPOutput`].

        Raises:
            ValueError: no modality is given, inputs have wrong shapes, the numbers of items differ with `return_loss`,
                or `sample_weights` are not weights.
        """
        model_outputs, features = {}, {}
        if input_features is not None:
            model_outputs["audio"] = self.get_audio_features(input_features, **kwargs)
        if pixel_values is not None:
            model_outputs["image"] = self.get_image_features(pixel_values, interpolate_pos_encoding, **kwargs)
        if input_ids is not None:
            model_outputs["text"] = self.get_text_features(input_ids, attention_mask, position_ids, **kwargs)
        if not model_outputs:
            raise ValueError("input_features, pixel_values, input_ids: all missing, expected at least one of them")
        for modality, output in model_outputs.items():
            embeds = unit_norm(output.pooler_output)
            features[modality] = embeds.to(next(iter(features.values()), embeds).device)
        logits = {}
        for (one, other), name in _PAIRS.items():
            if one in features and other in features:
                scale = self._log_scale(name).exp().to(features[one])
                logits[one, other] = scale * features[one] @ features[other].t()
                given = {"input_features": input_features, "pixel_values": pixel_values}
                check_output(self, logits[one, other], f"logits_{one}_{other}", **given)
        loss_ttf = model_outputs["audio"].loss_ttf if "audio" in model_outputs else None
        loss = self._loss(features, loss_ttf, sample_weights) if return_loss and logits else None
        for name, value in (("loss_ttf", loss_ttf), ("loss", loss)):
            check_output(self, value, name, input_features=input_features, pixel_values=pixel_values)
        texts = logits.get(("image", "text"), logits.get(("audio", "text")))
        return AudioCLIPOutput(
            loss=loss,
            loss_ttf=loss_ttf,
            logits_per_audio=logits.get(("audio", "text")),
            logits_per_image=logits.get(("image", "text")),
            logits_per_text=None if texts is None else texts.t(),
            logits_audio_image=logits.get(("audio", "image")),
            logits_audio_text=logits.get(("audio", "text")),
            logits_image_text=logits.get(("image", "text")),
            audio_embeds=features.get("audio"),
            image_embeds=features.get("image"),
            text_embeds=features.get("text"),
            audio_model_output=model_outputs.get("audio"),
            vision_model_output=model_outputs.get("image"),
            text_model_output=model_outputs.get("text"),
        )

    def _log_scale(self, name: str) -> torch.Tensor:
        """Logarithm of the scale in use, which is limited to 1..100; beyond the limits its gradient is 0."""
        # Limited in the forward pass, as in the official code; CLIP limits the parameter after each optimiser step.
        return getattr(self, name).float().exp().clamp(1, 100).log()

    def _loss(
        self, features: dict[str, torch.Tensor], loss_ttf: torch.Tensor | None, sample_weights: torch.Tensor | None
    ) -> torch.Tensor:
        sizes = {modality: len(embeds) for modality, embeds in features.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"return_loss: expected equally many of each modality, got {sizes}")
        if sample_weights is not None:
            self._check_weights(sample_weights, *set(sizes.values()))
        pairs = [pair for pair in _PAIRS if features.keys() >= set(pair)]
        losses = []
        for one, other in pairs:
            sides, log_scale = (features[one], features[other]), self._log_scale(_PAIRS[one, other])
            if sample_weights is None:
                # Only training gathers over ranks: one rank may evaluate alone, and would wait for the others.
                gather = "exact" if self.training else "none"
                # Twice, because the official loss sums both directions and `contrastive_loss` takes their mean.
                losses.append(2 * contrastive_loss(*sides, log_scale, normalize=False, gather=gather))
            else:
                losses.append(_weighted_loss(*sides, log_scale, sample_weights))
        divisor = 6 if len(pairs) == 3 else 1  # factorial of the number of pairs, which is 1 or 3
        loss = torch.stack(losses).sum() / divisor
        return loss if loss_ttf is None else loss + loss_ttf.to(loss.device)

    def _check_weights(self, weights: torch.Tensor, samples: int):
        if weights.shape != (samples,):
            raise ValueError(
                f"sample_weights: shape {tuple(weights.shape)}, expected ({samples},), one for each sample"
            )
        if not torch.compiler.is_compiling() and not (
            torch.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0
        ):
            raise ValueError("sample_weights: expected finite numbers >= 0 that are not all 0")
        if self.training and world_size() > 1:
            raise ValueError(
                f"sample_weights: given on {world_size()} ranks, but the weighted loss knows the samples of one "
                "process only; train on one process, or without sample_weights"
            )

    @torch.no_grad()
    def query(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        **kwargs,
    ) -> AudioCLIPQueries:
        """Retrieval in all directions between the given modalities, audio → text, text → audio, audio → image, ..., in
        one call and without gradients.

        Arguments as in `forward`; the numbers of waveforms, images and texts may differ.

        Returns:
            [`AudioCLIPQueries`].

        Raises:
            ValueError: fewer than two modalities.
        """
        given = {"audio": input_features, "image": pixel_values, "text": input_ids}
        if sum(value is not None for value in given.values()) < 2:
            raise ValueError(
                "input_features, pixel_values, input_ids: expected at least two of them, queries and a gallery, got "
                f"{[name for name, value in given.items() if value is not None]}"
            )
        outputs = self(input_ids, pixel_values, input_features, return_dict=True, **kwargs)
        logits = {}
        for one, other in _PAIRS:
            found = getattr(outputs, f"logits_{one}_{other}")
            if found is not None:
                logits |= {f"{one}_to_{other}": found, f"{other}_to_{one}": found.t()}
        return AudioCLIPQueries(logits, {name: found.float().softmax(-1) for name, found in logits.items()})


def _weighted_loss(
    one: torch.Tensor, other: torch.Tensor, log_scale: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The sum of the cross-entropies of both directions, (); each is a mean weighted by the samples' weights (B,)."""
    with torch.autocast(one.device.type, enabled=False):
        logits = log_scale.exp().to(one.device) * one.float() @ other.float().t()
        pairs, weights = torch.arange(len(one), device=one.device), weights.to(logits)
        return F.cross_entropy(logits, pairs, weights) + F.cross_entropy(logits.t(), pairs, weights)


def _each_channel(function: Callable[[torch.Tensor], torch.Tensor], maps: torch.Tensor) -> torch.Tensor:
    """Applies `function` to each audio channel: (B, C, ...) -> (B, C, ...). One channel after the other, as in the
    official code: batch normalisation takes the statistics of each channel separately.
    """
    if maps.shape[1] == 1:
        return function(maps[:, 0])[:, None]
    return torch.stack([function(channel) for channel in maps.unbind(1)], dim=1)


def _check_waveforms(input_features: torch.Tensor):
    if not isinstance(input_features, torch.Tensor) or input_features.dim() != 3 or 0 in input_features.shape:
        is_tensor = isinstance(input_features, torch.Tensor)
        got = list(input_features.shape) if is_tensor else type(input_features).__name__
        raise ValueError(f"input_features: expected waveforms [batch, channels, samples], got {got}")
    if not input_features.is_floating_point():
        raise ValueError(f"input_features: expected floats on the int16 scale, got {input_features.dtype}")


__all__ = [
    "AudioCLIPAudioModel",
    "AudioCLIPAudioOutput",
    "AudioCLIPModel",
    "AudioCLIPOutput",
    "AudioCLIPPreTrainedModel",
    "AudioCLIPQueries",
]
