"""VQGAN: pictures as grids of codes. Encoder and decoder are transformers' (of Janus), which equal the official ones;
codes, any size, straight-through gradients and both quantisers are here.

Paper: "Taming Transformers for High-Resolution Image Synthesis", https://arxiv.org/abs/2012.09841.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder, JanusVQVAEEncoder, JanusVQVAEResnetBlock
from transformers.utils import ModelOutput, can_return_tuple

from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from .configuration_vqgan_clip import VQGANConfig


# B pictures, D width of a code, K codes, h x w grid, f pixels of a code's side, H = h f, W = w f

_CELLS_AT_ONCE = 4096  # that are compared with the codebook together


def nearest_codes(latents: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """(B, D, h, w), (K, D) -> (B, h, w), the code with the least squared distance |z|^2 + |e|^2 - 2 z e.

    Mixed precision (`torch.autocast`) does not touch it: the difference of large numbers needs the codebook's dtype.
    """
    cells = latents.detach().movedim(1, -1).flatten(0, -2).to(codebook.dtype)
    squares = codebook.detach().square().sum(1)
    with torch.autocast(cells.device.type, enabled=False):
        found = [
            (part.square().sum(1, keepdim=True) + squares - 2 * part @ codebook.detach().T).argmin(1)
            for part in cells.split(_CELLS_AT_ONCE)
        ]
    return torch.cat(found).view(len(latents), *latents.shape[2:])


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        ctx.dtype = latents.dtype
        return values.clone()

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        return None, grad.to(ctx.dtype)


def straight_through(values: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """`values`, exactly; their gradient goes to `latents`, of the same shape."""
    return _StraightThrough.apply(values, latents)


def quantization_loss(
    latents: torch.Tensor, codes: torch.Tensor, commitment_weight: float = 0.25, legacy: bool = False
) -> torch.Tensor:
    """() of encoder outputs and their codes (same shape): codes to outputs, and `commitment_weight` times outputs to
    codes. `legacy`: the weight on the first instead, as the official class has it."""
    to_latents = (codes - latents.detach()).square().mean()
    to_codes = (latents - codes.detach()).square().mean()
    if legacy:
        return to_codes + commitment_weight * to_latents
    return to_latents + commitment_weight * to_codes


class VQGANResnetBlock(GradientCheckpointingLayer, JanusVQVAEResnetBlock):
    """transformers' block, whose activations can be computed again in the backward pass."""


class VQGANQuantizer(nn.Module):
    """The codebook; of a Gumbel quantiser, also the convolution that scores codes."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_embeddings, config.embed_dim)
        self.proj = None
        if config.quantizer == "gumbel":
            self.proj = nn.Conv2d(config.embed_dim, config.num_embeddings, 1)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, D, h, w) -> codes (B, D, h, w) with a gradient for `latents`, their loss (), their numbers (B, h, w)."""
        config, codebook = self.config, self.embedding.weight
        if self.proj is None:
            ids = nearest_codes(latents, codebook)
            codes = self.embedding(ids).movedim(-1, 1)
            loss = quantization_loss(latents, codes, config.commitment_weight, config.legacy_loss)
            return straight_through(codes, latents), loss, ids
        logits = self.proj(latents)
        if self.training:
            chosen = F.gumbel_softmax(logits, config.gumbel_temperature, hard=True, dim=1)
        else:  # the official module draws here, too
            chosen = F.one_hot(logits.argmax(1), config.num_embeddings).movedim(-1, 1).to(logits.dtype)
        shares = logits.softmax(1)
        loss = config.kl_weight * (shares * (shares * config.num_embeddings + 1e-10).log()).sum(1).mean()
        codes = torch.einsum("bkhw,kd->bdhw", chosen, codebook)
        return codes, loss, chosen.argmax(1)


@dataclass
class VQGANOutput(ModelOutput):
    """
    Args:
        loss: (), with `return_loss`: mean absolute error of the reconstruction, plus `quantization_loss`.
        reconstruction: (B, 3, H, W), about -1..1.
        codes: (B, h, w), numbers of codes.
        latents: (B, D, h, w), before they are quantised.
        quantization_loss: (), of the codes.
    """

    loss: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    quantization_loss: torch.FloatTensor | None = None


class VQGANModel(CheckedLoading, StagedSaving, PreTrainedModel):
    r"""
    VQGAN (Esser et al. 2021): a picture becomes a grid of codes out of a learned codebook, and a grid of codes a
    picture. Any height and width that are multiples of `config.factor`.

    `forward` reconstructs, and trains with its own loss; a perceptual loss and a discriminator, which make pictures
    sharp, belong to a training script, on `reconstruction`.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import VQGANConfig, VQGANModel

    >>> config = VQGANConfig(base_channels=32, channel_multiplier=[1, 1, 2], num_res_blocks=1, latent_channels=16,
    ...                      embed_dim=8, num_embeddings=64)
    >>> model = VQGANModel(config).eval()
    >>> codes = model.encode_codes(torch.zeros(1, 3, 24, 32))
    >>> codes.shape, model.decode_codes(codes).shape
    (torch.Size([1, 6, 8]), torch.Size([1, 3, 24, 32]))
    ```
    """

    config: VQGANConfig
    base_model_prefix = "vqgan"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_attention_backend = True  # of a guide; attention over pixels is as it is
    supports_gradient_checkpointing = True
    _no_split_modules = ["JanusVQVAEAttnBlock", "VQGANResnetBlock", "VQGANQuantizer"]

    def __init__(self, config: VQGANConfig):
        super().__init__(config)
        parts = config.parts_config()
        self.encoder = JanusVQVAEEncoder(parts)
        self.decoder = JanusVQVAEDecoder(parts)
        self.quantize = VQGANQuantizer(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)
        for module in self.modules():
            if isinstance(module, nn.GroupNorm):  # transformers' parts have the official number
                module.num_groups = config.norm_groups
            elif type(module) is JanusVQVAEResnetBlock:  # the same weights and forward
                module.__class__ = VQGANResnetBlock
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        """As the official code: PyTorch's own of convolutions, codes in -1/K..1/K."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            bound = 1 / module.num_embeddings
            init.uniform_(module.weight, -bound, bound)

    @property
    def codebook(self) -> torch.Tensor:
        """(K, D)."""
        return self.quantize.embedding.weight

    def check_pixels(self, pixel_values: torch.Tensor) -> None:
        factor = self.config.factor
        if not isinstance(pixel_values, torch.Tensor) or pixel_values.dim() != 4 or pixel_values.shape[1] != 3:
            shape = list(pixel_values.shape) if isinstance(pixel_values, torch.Tensor) else type(pixel_values).__name__
            raise ValueError(f"pixel_values: {shape}, expected [pictures, 3, height, width]")
        if not pixel_values.is_floating_point():
            raise ValueError(f"pixel_values: {pixel_values.dtype}, expected floating-point numbers in -1..1")
        height, width = pixel_values.shape[2:]
        if not len(pixel_values) or height % factor or width % factor or not height or not width:
            raise ValueError(
                f"pixel_values: {list(pixel_values.shape)}, expected sides that are multiples of {factor}"
            )

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in -1..1 -> (B, D, h, w), before they are quantised.

        Raises:
            ValueError: another shape, or sides that are no multiples of the factor.
        """
        self.check_pixels(pixel_values)
        return self.quant_conv(self.encoder(pixel_values.to(self.dtype)))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, D, h, w), codes or anything between them -> (B, 3, H, W), about -1..1. ValueError: another shape."""
        self._check_latents(latents)
        return self.decoder(self.post_quant_conv(latents.to(self.dtype)))

    def _check_latents(self, latents: object) -> None:
        width = self.config.embed_dim
        is_tensor = isinstance(latents, torch.Tensor)
        fits = is_tensor and latents.dim() == 4 and latents.shape[1] == width and latents.numel() > 0
        if not fits or not latents.is_floating_point():
            got = f"{latents.dtype} {list(latents.shape)}" if is_tensor else type(latents).__name__
            raise ValueError(f"latents: got {got}, expected floats [pictures, {width}, height / f, width / f]")

    def encode_codes(self, pixel_values: torch.Tensor) -> torch.LongTensor:
        """(B, 3, H, W) in -1..1 -> (B, h, w). Errors as for `encode`."""
        return self.quantize(self.encode(pixel_values))[2]

    def decode_codes(self, codes: torch.LongTensor) -> torch.Tensor:
        """(B, h, w) -> (B, 3, H, W), about -1..1.

        Raises:
            ValueError: no whole numbers, another shape, a code that the codebook does not have.
        """
        return self.decode(self.look_up(codes))

    def look_up(self, codes: torch.LongTensor) -> torch.Tensor:
        """(B, h, w) -> (B, D, h, w). Errors as for `decode_codes`."""
        if not isinstance(codes, torch.Tensor) or codes.is_floating_point() or codes.dim() != 3:
            raise ValueError("codes: expected whole numbers [pictures, height / f, width / f]")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < len(self.codebook):
            raise ValueError(
                f"codes: {int(codes.min())}..{int(codes.max())}, expected numbers in 0..{len(self.codebook) - 1}"
            )
        return self.quantize.embedding(codes).movedim(-1, 1)

    def quantized(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, D, h, w) -> the nearest codes, whose gradient goes to `latents`. Of both quantisers. ValueError: another
        shape."""
        self._check_latents(latents)
        codes = self.quantize.embedding(nearest_codes(latents, self.codebook)).movedim(-1, 1)
        return straight_through(codes, latents)

    def latent_bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(D, 1, 1) each: the smallest and the largest number of the codes in each channel."""
        low, high = self.codebook.detach().aminmax(dim=0)
        return low[:, None, None], high[:, None, None]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        return_loss: bool | None = None,
        quantize: bool = True,
        **kwargs,
    ) -> VQGANOutput:
        r"""
        Reconstructs pictures.

        Args:
            pixel_values: (B, 3, H, W) in -1..1; sides are multiples of `config.factor`.
            return_loss: compute the loss.
            quantize: `False` decodes the encoder's outputs as they are, without codes and their loss: how a training
                may begin.

        Returns:
            [`VQGANOutput`].

        Raises:
            ValueError: as `encode`.
        """
        latents = self.encode(pixel_values)
        codes, quantization, ids = self.quantize(latents) if quantize else (latents, None, None)
        reconstruction = self.decode(codes)
        loss = None
        if return_loss:
            loss = (reconstruction.float() - pixel_values.float()).abs().mean()
            loss = loss if quantization is None else loss + quantization.float()
        return VQGANOutput(
            loss=loss, reconstruction=reconstruction, codes=ids, latents=latents, quantization_loss=quantization
        )


__all__ = ["VQGANModel", "VQGANOutput", "nearest_codes", "quantization_loss", "straight_through"]
