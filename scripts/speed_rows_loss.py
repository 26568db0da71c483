"""Rows of `benchmark_speed.py` for the contrastive losses: `LOSS_ROWS`, to be merged into `speed_rows.ROWS`.

A case is loss and gradients of both sides and of the scale; the peers are open_clip's modules on the same unit-length
features.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F


def features(batch: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit-length images and texts (batch, width).

    A pair's cosine is about 0.1: where all pairs match the loss is nearly 0, and its gradients are rounding.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, width, generator=generator)
    text = 0.1 * image + torch.randn(batch, width, generator=generator)
    return F.normalize(image, dim=-1).requires_grad_(), F.normalize(text, dim=-1).requires_grad_()


def loss_row(small: bool, batch: int, form: str):
    from open_clip.loss import ClipLoss, SigLipLoss
    from speed_rows import OURS, Row, largest_relative_error

    from hf_clip_variants.modeling.losses.contrastive_loss import contrastive_loss

    batch, width = (128, 64) if small else (batch, 512)
    image, text = features(batch, width)
    is_sigmoid = form == "sigmoid"
    # Of the peer's time and memory, at most: the peer's grow with the square of the batch.
    time_share, peak_share = (0.75, 0.15) if is_sigmoid else (0.5, 0.05) if batch > 8192 else (0.65, 0.12)
    # SigLIP's values at the start; CLIP's at the end, where the scale is at its limit.
    log_scale = torch.tensor(10.0 if is_sigmoid else 100.0).log().requires_grad_()
    leaves = [image, text, log_scale]
    if is_sigmoid:
        bias = torch.tensor(-10.0, requires_grad=True)
        leaves.append(bias)
        theirs, official = "open_clip.SigLipLoss", SigLipLoss()
    else:
        theirs, official = "open_clip.ClipLoss", ClipLoss()

    def ours():
        loss = contrastive_loss(
            image, text, log_scale, logit_bias=bias if is_sigmoid else None, form=form, normalize=False
        )
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    def open_clip():
        loss = official(image, text, log_scale.exp(), *([bias] if is_sigmoid else []))
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    return Row(
        f"{batch} pairs x {width}, {form}, forward and backward, fp32; peak target {peak_share} of it",
        {OURS: ours, theirs: open_clip},
        {theirs: 1 / time_share},
        error=largest_relative_error,
        peak=True,
    )


def clip_loss(small: bool):
    return loss_row(small, 8192, "softmax")


def clip_loss_double(small: bool):
    return loss_row(small, 16384, "softmax")


def clip_loss_half(small: bool):
    """Half the batch, to see that memory is linear in it."""
    return loss_row(small, 4096, "softmax")


def siglip_loss(small: bool):
    return loss_row(small, 8192, "sigmoid")


def siglip_loss_half(small: bool):
    return loss_row(small, 4096, "sigmoid")


def gradient_cache(small: bool):
    """A step from chunks of 16 against one whole batch of 128: what a smaller device pays in time."""
    from speed_rows import OURS, Row, largest_relative_error
    from transformers import CLIPConfig, CLIPModel

    from hf_clip_variants.modeling.losses.contrastive_loss import contrastive_loss
    from hf_clip_variants.modeling.losses.gradient_cache import backward_in_chunks

    torch.manual_seed(0)
    width = 64 if small else 256
    sizes = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 4,
        "num_attention_heads": width // 64,
    }
    text = {**sizes, "vocab_size": 1000, "bos_token_id": 998, "eos_token_id": 999, "pad_token_id": 999}
    config = CLIPConfig(
        text_config=text, vision_config={**sizes, "image_size": 64, "patch_size": 16}, projection_dim=128
    )
    model = CLIPModel(config).train()
    batch = {"input_ids": torch.randint(998, (128, 16)), "pixel_values": torch.randn(128, 3, 64, 64)}
    batch["input_ids"][:, -1] = 999

    def result(loss):
        weights = (model.text_projection.weight, model.visual_projection.weight, model.logit_scale)
        grads = [p.grad for p in weights]
        model.zero_grad()
        return loss.detach(), *grads

    def whole():
        outputs = model(**batch)
        loss = contrastive_loss(outputs.image_embeds, outputs.text_embeds, model.logit_scale, normalize=False)
        loss.backward()
        return result(loss)

    return Row(
        f"128 pairs, 4 + 4 layers x {width}, in chunks of 16, fp32",
        {OURS: lambda: result(backward_in_chunks(model, batch, 16)), "one batch": whole},
        {"one batch": 1 / 1.45},
        error=largest_relative_error,
        tolerance=1e-4,
        peak=True,
    )


LOSS_ROWS: dict[str, Callable] = {
    "clip_loss": clip_loss,
    "clip_loss_double": clip_loss_double,
    "clip_loss_half": clip_loss_half,
    "siglip_loss": siglip_loss,
    "siglip_loss_half": siglip_loss_half,
    "gradient_cache": gradient_cache,
}
