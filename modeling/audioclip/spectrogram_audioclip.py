"""From waveform to decibels by a learnable bank of complex B-spline wavelets (fbsp): the front end of ESResNe(X)t-fbsp.

Guzhov et al., "ESResNe(X)t-fbsp: Learning Robust Time-Frequency Transformation of Audio", 2021,
https://arxiv.org/abs/2104.11587.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..losses.rank_exchange import Ranks, world_size
from .configuration_audioclip import AudioCLIPAudioConfig


# B sounds, C channels, N samples, T frames, L samples a frame, K samples a filter, M filters

_EPS = 1e-8
_FLOOR = 1e-18  # of the power: -180 dB
_BANDS = 3
# Cosine terms with alternating signs; periodic, as windows of spectrograms are.
_WINDOWS = {"blackmanharris": (0.35875, 0.48829, 0.14128, 0.01168), "hann": (0.5, 0.5)}


def window_function(name: str, length: int, device: torch.device | str | None = None) -> torch.Tensor:
    """The window (length,) in float32."""
    phase = 2 * math.pi * torch.arange(length, dtype=torch.float64, device=device) / length
    return sum((-1) ** k * a * (k * phase).cos() for k, a in enumerate(_WINDOWS[name])).float()


def frame_signal(waveform: torch.Tensor, window: torch.Tensor, hop_length: int) -> torch.Tensor:
    """(..., N) -> windowed frames (..., T, L), T = 1 + ceil((N - L) / hop_length), at least 1.

    What the last frame lacks are zeros on both sides of the whole, the odd one on the right.
    """
    length, samples = len(window), waveform.shape[-1]
    frames = 1 + max(0, -((length - samples) // hop_length))
    missing = (frames - 1) * hop_length + length - samples
    waveform = F.pad(waveform, (missing // 2, missing - missing // 2))
    return waveform.unfold(-1, length, hop_length) * window


def wavelets(
    m: torch.Tensor, fb: torch.Tensor, fc: torch.Tensor, length: int, normalized: bool = True
) -> torch.Tensor:
    """Order, bandwidth and centre frequency of M filters (M,) -> real and imaginary parts (2, M, K) of

    sqrt(fb) * sinc(fb t / m)^m * exp(-i fc t), t from -pi to pi, divided by sqrt(K) if `normalized`.

    The power of a negative sinc is complex, |sinc|^m exp(i pi m). At m = 0, fb = 1 and fc = 0, 1, 2, ... this is a discrete
    Fourier transform. A bandwidth that has become negative counts as next to none, where the formula has no value.
    """
    time = math.pi * torch.linspace(-1, 1, length, dtype=m.dtype, device=m.device) + _EPS
    m, fb, fc = m[:, None], fb[:, None].clamp_min(_EPS), fc[:, None]
    x = fb * time / (m + _EPS)
    zero = x == 0
    x = torch.where(zero, 1, x)
    sinc = torch.where(zero, 1, x.sin() / x)
    # In the official order of operations, which gives its very bits: a rounding error here may make another sample the largest of
    # a pooling window, and gradients differ where none of the outputs does. Without its complex product, which has 0 * log(0).
    magnitude = (sinc.abs() ** 2).clamp_min(torch.finfo(m.dtype).tiny) ** (0.5 * m)
    phase = m * (math.pi * (sinc < 0))
    power_real, power_imag = magnitude * phase.cos(), magnitude * phase.sin()
    real, imag = (fc * time).cos(), -(fc * time).sin()
    filters = torch.stack([power_real * real - power_imag * imag, power_real * imag + power_imag * real])
    filters = fb.sqrt() * filters
    return filters / length**0.5 if normalized else filters


class _MaxNormGradients(torch.autograd.Function):
    """Identity; each gradient is divided by its largest magnitude. Over ranks, by that of the mean over them: every rank
    then has the gradient of one process with all sounds.
    """

    @staticmethod
    def forward(ctx, over_ranks, *vectors):
        ctx.world_size = world_size() if over_ranks else 1
        return tuple(vector.view_as(vector) for vector in vectors)

    @staticmethod
    def backward(ctx, *gradients):
        gradients = torch.stack(gradients)
        if ctx.world_size > 1:
            gradients = Ranks((0,) * ctx.world_size).sum(gradients) / ctx.world_size
        largest = gradients.abs().amax(dim=1, keepdim=True)
        return None, *(gradients / (largest + _EPS)).unbind()


class AudioCLIPSpectrogram(nn.Module):
    """Waveforms (B, C, N) on the int16 scale -> decibels (B, C, 3, H, T), three bands from low to high frequencies, and the
    penalty on the filters' norms.

    Works in float32 (or float64) whatever the model's dtype and autocast: centre frequencies up to 1024 and phases up to 1024 pi
    have no half-precision form. The gradients of `m`, `fb` and `fc` have a largest magnitude of 1, as in the official code, whatever
    the scale of the loss; with a `GradScaler` they would vanish, so train in float32 or bfloat16.
    """

    def __init__(self, config: AudioCLIPAudioConfig):
        super().__init__()
        self.config = config
        self.m = nn.Parameter(torch.empty(config.num_filters, dtype=torch.float32))
        self.fb = nn.Parameter(torch.empty(config.num_filters, dtype=torch.float32))
        self.fc = nn.Parameter(torch.empty(config.num_filters, dtype=torch.float32))
        self.register_buffer("window", window_function(config.window, config.win_length))
        self._cache: tuple[torch.Tensor, ...] | None = None

    def _apply(self, fn, recurse=True):
        def keep_precision(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        self._cache = None
        return super()._apply(keep_precision, recurse)

    def train(self, mode: bool = True) -> "AudioCLIPSpectrogram":
        self._cache = None
        return super().train(mode)

    def filters(self) -> torch.Tensor:
        """The bank (2, M, K): real and imaginary parts. In eval mode without gradients it is made once."""
        vectors = (self.m, self.fb, self.fc)
        if torch.is_grad_enabled() and any(vector.requires_grad for vector in vectors):
            return self._make(*_MaxNormGradients.apply(self.training, *vectors))
        if self.training or torch.compiler.is_compiling() or self.m.is_meta:
            return self._make(*vectors)
        cache = self._cache
        # Compared by value: three short vectors, and no way of changing a parameter goes unnoticed.
        if cache is None or not all(torch.equal(*pair) for pair in zip(cache[1:], vectors, strict=True)):
            with torch.inference_mode(False), torch.no_grad():  # for later calls of either kind
                cache = self._cache = (self._make(*vectors), *(vector.clone() for vector in vectors))
        return cache[0]

    def _make(self, m, fb, fc) -> torch.Tensor:
        return wavelets(m, fb, fc, self.config.n_fft, self.config.normalized)

    def penalty(self, filters: torch.Tensor) -> torch.Tensor:
        """Mean squared difference between the filters' norms and what they should be, ()."""
        wanted = 1 if self.config.normalized else math.sqrt(self.config.n_fft)
        return (torch.linalg.vector_norm(filters, dim=(0, 2)) - wanted).square().mean()

    def frames(self, waveform: torch.Tensor) -> torch.Tensor:
        """(B, C, N) on the int16 scale -> windowed frames (B, C, T, L) between -1 and 1."""
        # In this order, to the official rounding error; silence is 1.5e-5, not 0.
        waveform = (waveform.to(self.window.dtype) + 32768) / 65535 * 2 - 1
        return frame_signal(waveform, self.window, self.config.hop_length)

    def spectrum(self, frames: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
        """(B, C, T, L), (2, M, K) -> (B, C, T, 2, M), real and imaginary parts. A frame lies in the middle of the filters."""
        start = (filters.shape[-1] - frames.shape[-1]) // 2
        middle = filters[..., start : start + frames.shape[-1]].flatten(0, 1)
        return F.linear(frames, middle).unflatten(-1, (2, -1))

    def decibels(self, spectrum: torch.Tensor) -> torch.Tensor:
        """(B, C, T, 2, M) -> (B, C, 3, H, T). The one or two filters that do not fill three bands are left out, at the top."""
        power = spectrum.square().sum(dim=-2).transpose(-1, -2)
        rows = power.shape[-2] // _BANDS
        power = power[..., : _BANDS * rows, :].unflatten(-2, (_BANDS, rows))
        height, width = self.config.spec_height, self.config.spec_width
        if height > 0 or width > 0:
            size = (height if height > 0 else rows, width if width > 0 else power.shape[-1])
            resized = F.interpolate(power.flatten(0, 1), size=size, mode="bilinear", align_corners=True)
            power = resized.unflatten(0, power.shape[:2])
        return 10 * torch.where(power > 0, power, _FLOOR).log10()

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(waveform.device.type, enabled=False):
            filters = self.filters()
            decibels = self.decibels(self.spectrum(self.frames(waveform), filters))
            return decibels, self.penalty(filters)


__all__ = ["AudioCLIPSpectrogram", "frame_signal", "wavelets", "window_function"]
