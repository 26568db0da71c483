"""The front end of ESResNe(X)t-fbsp: a spectrogram in decibels by a learnable bank of complex frequency B-spline
wavelets (fbsp).

waveform -> windowed frames -> real and imaginary parts (one matrix product with the filters) -> power -> decibels,
split into three frequency bands, which are the colour channels of the ResNeXt.

Guzhov et al., "ESResNe(X)t-fbsp: Learning Robust Time-Frequency Transformation of Audio", 2021,
https://arxiv.org/abs/2104.11587.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..losses.rank_exchange import Ranks, world_size
from .configuration_audioclip import AudioCLIPAudioConfig


# B waveforms, C channels, N samples, T frames, L samples in a frame, K samples in a filter, M filters

_EPS = 1e-8
_FLOOR = 1e-18  # smallest power, -180 dB
_BANDS = 3
# Coefficients of cosine terms with alternating signs. The windows are periodic, as usual for spectrograms.
_WINDOWS = {"blackmanharris": (0.35875, 0.48829, 0.14128, 0.01168), "hann": (0.5, 0.5)}


def window_function(name: str, length: int, device: torch.device | str | None = None) -> torch.Tensor:
    """The window `name`, `"blackmanharris"` or `"hann"`: (length,), float32. Equal to `scipy.signal.get_window`."""
    phase = 2 * math.pi * torch.arange(length, dtype=torch.float64, device=device) / length
    return sum((-1) ** k * a * (k * phase).cos() for k, a in enumerate(_WINDOWS[name])).float()


def frame_signal(waveform: torch.Tensor, window: torch.Tensor, hop_length: int) -> torch.Tensor:
    """(..., N) -> windowed frames (..., T, L), T = 1 + ceil((N - L) / hop_length), at least 1.

    The waveform is padded with zeros to fill the last frame: half of them on the left, half (and the odd one) on the
    right.
    """
    length, samples = len(window), waveform.shape[-1]
    frames = 1 + max(0, -((length - samples) // hop_length))
    missing = (frames - 1) * hop_length + length - samples
    waveform = F.pad(waveform, (missing // 2, missing - missing // 2))
    return waveform.unfold(-1, length, hop_length) * window


def wavelets(
    m: torch.Tensor, fb: torch.Tensor, fc: torch.Tensor, length: int, normalized: bool = True
) -> torch.Tensor:
    """Order `m`, bandwidth `fb` and centre frequency `fc` of M filters, (M,) each -> their real and imaginary parts,
    (2, M, K), of

    sqrt(fb) * sinc(fb t / m)^m * exp(-i fc t), K values of t from -pi to pi, divided by sqrt(K) if `normalized`.

    sinc(x) is sin(x) / x. The power of a negative sinc is complex, |sinc|^m exp(i pi m). With m = 0, fb = 1 and
    fc = 0, 1, 2, ..., the start of training, the filters are a discrete Fourier transform.

    Deviations from the official code, which gives NaN there: a sinc of exactly 0, and a bandwidth that training made
    negative, which counts as 1e-8. `wavelets_reference` is the formula in complex numbers.
    """
    time = math.pi * torch.linspace(-1, 1, length, dtype=m.dtype, device=m.device) + _EPS
    m, fb, fc = m[:, None], fb[:, None].clamp_min(_EPS), fc[:, None]
    x = fb * time / (m + _EPS)
    # sinc(0) = 1. The inner `where` keeps 0 / 0 out of the gradient.
    zero = x == 0
    x = torch.where(zero, 1, x)
    sinc = torch.where(zero, 1, x.sin() / x)
    # |sinc|^m as (sinc^2)^(m/2): the official order of operations, with bit-equal results. A rounding error here can
    # change which sample is the largest of a pooling window, and with it the gradients, while no output changes. The
    # official code raises a complex number to the power m, which computes 0 * log(0) where sinc is 0.
    magnitude = (sinc.abs() ** 2).clamp_min(torch.finfo(m.dtype).tiny) ** (0.5 * m)
    phase = m * (math.pi * (sinc < 0))
    power_real, power_imag = magnitude * phase.cos(), magnitude * phase.sin()
    # The complex product sinc^m * exp(-i fc t) in real numbers.
    real, imag = (fc * time).cos(), -(fc * time).sin()
    filters = torch.stack([power_real * real - power_imag * imag, power_real * imag + power_imag * real])
    filters = fb.sqrt() * filters
    return filters / length**0.5 if normalized else filters


def wavelets_reference(
    m: torch.Tensor, fb: torch.Tensor, fc: torch.Tensor, length: int, normalized: bool = True
) -> torch.Tensor:
    """`wavelets` as its formula reads, in complex numbers; for tests and for reading. m > 0 and fb > 0."""
    m, fb, fc = m[:, None], fb[:, None], fc[:, None]
    time = math.pi * torch.linspace(-1, 1, length, dtype=m.dtype, device=m.device) + _EPS
    sinc = torch.sinc(fb * time / m / math.pi)  # torch's sinc(x) is sin(pi x) / (pi x)
    power = torch.complex(sinc, torch.zeros_like(sinc)) ** m
    filters = fb.sqrt() * power * torch.exp(-1j * fc * time)
    return torch.view_as_real(filters / length**0.5 if normalized else filters).movedim(-1, 0)


class _MaxNormGradients(torch.autograd.Function):
    """Identity, whose backward pass divides the gradient of each vector by its largest magnitude. Over ranks, the mean
    of the ranks' gradients is taken first: every rank then has the gradient of one process with all waveforms.
    """

    @staticmethod
    def forward(ctx, over_ranks, *vectors):
        ctx.world_size = world_size() if over_ranks else 1
        return tuple(vector.view_as(vector) for vector in vectors)

    @staticmethod
    def backward(ctx, *gradients):
        # The official code does this in a gradient hook g / (max|g| + 1e-8). Hooks are lost by `from_pretrained`, by
        # copies and by FSDP; a function that is part of the forward pass is not.
        gradients = torch.stack(gradients)
        if ctx.world_size > 1:
            gradients = Ranks((0,) * ctx.world_size).sum(gradients) / ctx.world_size
        largest = gradients.abs().amax(dim=1, keepdim=True)
        return None, *(gradients / (largest + _EPS)).unbind()


class AudioCLIPSpectrogram(nn.Module):
    """Waveforms (B, C, N) on the int16 scale -> decibels (B, C, 3, H, T), three bands from low to high frequencies,
    and the penalty () on the filters' norms.

    Computes in float32 (or float64), whatever the model's dtype and autocast: half precision cannot represent centre
    frequencies up to 1024 and phases up to 1024 pi. As in the official code, the largest magnitude in the gradients of
    `m`, `fb` and `fc` is 1, whatever the scale of the loss. A `GradScaler` would divide these gradients by its scale
    and make them vanish: train in float32 or bfloat16.
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
        # `model.half()` and `model.to(dtype)` move this module between devices, but do not lower its precision.
        def keep_precision(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        self._cache = None
        return super()._apply(keep_precision, recurse)

    def train(self, mode: bool = True) -> "AudioCLIPSpectrogram":
        self._cache = None
        return super().train(mode)

    def filters(self) -> torch.Tensor:
        """Real and imaginary parts of the filters, (2, M, K). In eval mode without gradients they are computed once
        and kept until `m`, `fb` or `fc` changes.
        """
        vectors = (self.m, self.fb, self.fc)
        if torch.is_grad_enabled() and any(vector.requires_grad for vector in vectors):
            return self._make(*_MaxNormGradients.apply(self.training, *vectors))
        if self.training or torch.compiler.is_compiling() or self.m.is_meta:
            return self._make(*vectors)
        cache = self._cache
        # Compared by value: the vectors are short, and version counters miss some ways of changing a parameter
        # (`.data`, loading with `assign=True`).
        if cache is None or not all(torch.equal(*pair) for pair in zip(cache[1:], vectors, strict=True)):
            # Not an inference tensor, so that a later call with gradients can use the filters, too.
            with torch.inference_mode(False), torch.no_grad():
                cache = self._cache = (self._make(*vectors), *(vector.clone() for vector in vectors))
        return cache[0]

    def _make(self, m, fb, fc) -> torch.Tensor:
        return wavelets(m, fb, fc, self.config.n_fft, self.config.normalized)

    def penalty(self, filters: torch.Tensor) -> torch.Tensor:
        """The loss on the filters, (): the mean squared difference of their norms, over samples and both parts, from 1
        (from sqrt(K) if they are not normalised).
        """
        wanted = 1 if self.config.normalized else math.sqrt(self.config.n_fft)
        return (torch.linalg.vector_norm(filters, dim=(0, 2)) - wanted).square().mean()

    def frames(self, waveform: torch.Tensor) -> torch.Tensor:
        """(B, C, N) on the int16 scale -> windowed frames (B, C, T, L) between -1 and 1."""
        # The official formula in its order of operations. It maps 0 to 1.5e-5: digital silence is a small constant.
        waveform = (waveform.to(self.window.dtype) + 32768) / 65535 * 2 - 1
        return frame_signal(waveform, self.window, self.config.hop_length)

    def spectrum(self, frames: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
        """Frames (B, C, T, L) and filters (2, M, K) -> real and imaginary parts (B, C, T, 2, M).

        The official code pads each frame with zeros to K samples, the frame in the middle. Taking the middle L samples
        of the filters instead gives the same products.
        """
        start = (filters.shape[-1] - frames.shape[-1]) // 2
        middle = filters[..., start : start + frames.shape[-1]].flatten(0, 1)
        return F.linear(frames, middle).unflatten(-1, (2, -1))

    def decibels(self, spectrum: torch.Tensor) -> torch.Tensor:
        """(B, C, T, 2, M) -> decibels (B, C, 3, H, T), H = M // 3 filters a band. If 3 does not divide M, the one or
        two highest frequencies are left out.
        """
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


__all__ = ["AudioCLIPSpectrogram", "frame_signal", "wavelets", "wavelets_reference", "window_function"]
