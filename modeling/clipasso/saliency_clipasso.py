"""Where the strokes of a sketch begin: at edges of what a dual encoder finds salient.

The paper speaks of a relevance map; its code averages the class token's attention to the patches over heads and
layers, and so does this. Encoders without a class token get a map by occlusion, which is ours.
"""

import math

import torch
from torch.nn import functional as F


_GRAY = (0.2125, 0.7154, 0.0721)  # weights of red, green, blue
_NARROW, _WIDE, _SHARE = 0.8, 8.0, 0.98  # the edge map's two Gaussians, and how much of the wide one is taken away
_THRESHOLD, _STEEPNESS, _BINS = -0.1, 200.0, 256


# B images, L layers, h heads, P patches


@torch.no_grad()
def class_attentions(vision_model: torch.nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """(B, 3, S, S) -> (L, B, h, P): the class token's attention to the patches, of CLIP's image encoder. Computed from
    the hidden states, whatever the implementation of attention is."""
    states = vision_model(pixel_values=pixel_values, output_hidden_states=True, return_dict=True).hidden_states
    found = []
    for layer, state in zip(vision_model.encoder.layers, states, strict=False):
        attention = layer.self_attn
        inner = layer.layer_norm1(state)
        heads = attention.num_heads
        query = attention.q_proj(inner[:, :1]).unflatten(-1, (heads, -1)).transpose(1, 2)
        keys = attention.k_proj(inner).unflatten(-1, (heads, -1)).transpose(1, 2)
        scores = (query @ keys.transpose(-1, -2)) * keys.shape[-1] ** -0.5
        found.append(scores.float().softmax(-1)[:, :, 0, 1:])
    return torch.stack(found)


def attention_map(attentions: torch.Tensor, size: int) -> torch.Tensor:
    """(L, B, h, P) -> (B, size, size) in 0..1: the mean over heads and layers, bicubic, stretched to 0..1."""
    mean = attentions.clamp_min(0).mean(2).mean(0)
    side = math.isqrt(mean.shape[-1])
    grid = mean.view(-1, 1, side, side)
    return stretched(F.interpolate(grid, (size, size), mode="bicubic", align_corners=False)[:, 0])


def stretched(maps: torch.Tensor) -> torch.Tensor:
    """(B, H, W), each from its least to its greatest value; zeros where all are equal."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1)


@torch.no_grad()
def occlusion_map(embed, images: torch.Tensor, size: int, cells: int = 7) -> torch.Tensor:
    """(B, 3, H, W) in 0..1 -> (B, size, size) in 0..1: how much the embedding turns when a cell is painted over with
    the picture's mean colour. `embed`: (n, 3, H, W) -> (n, D)."""
    height, width = images.shape[-2:]
    whole = F.normalize(embed(images), dim=-1)
    drops = torch.zeros(len(images), 1, cells, cells, device=images.device)
    for row in range(cells):
        for column in range(cells):
            covered = images.clone()
            place = (
                slice(row * height // cells, (row + 1) * height // cells),
                slice(column * width // cells, (column + 1) * width // cells),
            )
            covered[:, :, *place] = images.mean((2, 3), keepdim=True)
            drops[:, 0, row, column] = 1 - (F.normalize(embed(covered), dim=-1) * whole).sum(-1)
    return stretched(F.interpolate(drops, (size, size), mode="bicubic", align_corners=False)[:, 0])


def gaussian_blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """(H, W) with a Gaussian cut at four sigma, the picture mirrored at its border with the border repeated."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = (-0.5 * (offsets / sigma) ** 2).exp()
    kernel = kernel / kernel.sum()
    for axis in (0, 1):
        length = image.shape[axis]
        places = torch.arange(-radius, length + radius, device=image.device) % (2 * length)
        places = torch.where(places < length, places, 2 * length - 1 - places)
        lines = image.index_select(axis, places).movedim(axis, -1)
        image = F.conv1d(lines.reshape(-1, 1, lines.shape[-1]), kernel[None, None]).view(-1, length).movedim(-1, axis)
    return image


def otsu_threshold(image: torch.Tensor) -> float:
    """The level that divides (H, W) into two groups with the least variance inside, of 256 bins."""
    low, high = float(image.min()), float(image.max())
    if low == high:
        return low
    counts = torch.histc(image.float().cpu(), _BINS, low, high).double()
    centres = low + (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (high - low) / _BINS
    below, above = counts.cumsum(0), counts.flip(0).cumsum(0).flip(0)
    mean_below = (counts * centres).cumsum(0) / below
    mean_above = ((counts * centres).flip(0).cumsum(0) / counts.flip(0).cumsum(0)).flip(0)
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[int(between.nan_to_num().argmax())])


def edge_map(pixel_values: torch.Tensor) -> torch.Tensor:
    """(3, H, W) *normalised* pixels -> (H, W), 0 at edges and 1 elsewhere: XDoG (Winnemöller 2011) as CLIPasso uses
    it, whose constants are for normalised pixels. A picture of one colour has no edges."""
    weights = pixel_values.new_tensor(_GRAY)
    gray = (pixel_values.double() * weights.double()[:, None, None]).sum(0)
    difference = gaussian_blur(gray, _NARROW) - _SHARE * gaussian_blur(gray, _WIDE)
    levels = torch.where(difference < _THRESHOLD, 1.0, 1 + (_STEEPNESS * difference).tanh())
    if levels.max() == levels.min():
        return torch.ones_like(levels, dtype=torch.float32)
    levels = (levels - levels.min()) / (levels.max() - levels.min())
    return (levels > otsu_threshold(levels)).float()


def start_probabilities(saliency: torch.Tensor, edges: torch.Tensor | None, temperature: float) -> torch.Tensor:
    """(H, W) saliency, and (H, W) of `edge_map` -> (H, W) probabilities: a softmax over the pixels where both leave
    something, 0 elsewhere. Uniform where nothing is left, as of a black picture."""
    weighted = saliency if edges is None else saliency * (1 - edges)
    there = weighted > 0
    if not there.any():
        return torch.full_like(saliency, 1 / saliency.numel())
    logits = torch.where(there, weighted.double() / temperature, -math.inf)
    return logits.flatten().softmax(0).view_as(saliency).to(saliency.dtype)


def drawn_starts(probabilities: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """(N, 2) x and y in 0..1 of different pixels. If fewer than N are possible, all others have a small chance."""
    flat = probabilities.double().cpu().flatten()
    if int((flat > 0).sum()) < count:
        flat = flat + 1e-6 / flat.numel()
    if count > flat.numel():
        raise ValueError(f"num_strokes: {count}, expected at most {flat.numel()}, the pixels of the saliency map")
    chosen = torch.multinomial(flat, count, replacement=False, generator=generator)
    height, width = probabilities.shape
    rows = torch.div(chosen, width, rounding_mode="floor")
    return torch.stack([(chosen - rows * width) / width, rows / height], 1).float()


__all__ = [
    "attention_map",
    "class_attentions",
    "drawn_starts",
    "edge_map",
    "gaussian_blur",
    "occlusion_map",
    "otsu_threshold",
    "start_probabilities",
    "stretched",
]
