"""What `forward` takes and gives, checked in one place: a ValueError names the argument, what came and what is wanted.

No check reads a number from an accelerator, where that would wait for all work before it, and none looks at numbers
while a graph is made (`torch.compile`, `torch.export`): there, shapes and types are checked. Answers are checked in
eval mode on a CPU, at the price of one pass over the logits; on an accelerator whoever reads the answers checks them
(`predict`, `evaluate`, the benchmark), when they wait for the numbers anyway.
"""

import math
from pathlib import Path

import torch
from torch import nn

from .tracing import can_be_read


def check_pixels(
    pixel_values: torch.Tensor,
    channels: int,
    name: str = "pixel_values",
    dimensions: int = 4,
    size: int | None = None,
):
    """ValueError unless `pixel_values` is a batch of normalised images (B, channels, H, W), B at least 1, squares of
    `size` pixels where it is given; or, with 3 dimensions, of patches."""
    is_tensor = isinstance(pixel_values, torch.Tensor)
    got = list(pixel_values.shape) if is_tensor else type(pixel_values).__name__
    if not is_tensor or pixel_values.dim() != dimensions or (dimensions == 4 and pixel_values.shape[1] != channels):
        raise ValueError(f"{name}: expected [batch, {channels}, H, W], got {got}")
    if not torch.compiler.is_compiling() and not pixel_values.numel():
        raise ValueError(f"{name}: expected at least one image with pixels, got {got}")
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"{name}: {pixel_values.dtype} looks unnormalised; the image processor returns normalised floats"
        )
    if size is not None and tuple(pixel_values.shape[-2:]) != (size, size):
        raise ValueError(
            f"{name}: images of {pixel_values.shape[-2]} x {pixel_values.shape[-1]} pixels, the model takes {size} x "
            f"{size} (image_size); other sizes with interpolate_pos_encoding=True"
        )


def check_features(image_features: torch.Tensor, width: int, name: str = "image_features"):
    """ValueError unless `image_features` are floats (B, width), B at least 1."""
    is_tensor = isinstance(image_features, torch.Tensor)
    got = list(image_features.shape) if is_tensor else type(image_features).__name__
    if not is_tensor or image_features.dim() != 2 or image_features.shape[-1] != width:
        raise ValueError(f"{name}: expected [batch, {width}], got {got}")
    if not image_features.is_floating_point():
        raise ValueError(f"{name}: expected floats, got {image_features.dtype}")
    if not torch.compiler.is_compiling() and not len(image_features):
        raise ValueError(f"{name}: expected at least one image, got {got}")


def check_token_ids(input_ids, vocab_size: int, longest: int | None = None, name="input_ids", field="positions"):
    """ValueError unless `input_ids` are whole numbers (N, L), neither 0, in 0..vocab_size - 1 and not too long;
    `field` is what allows `longest` tokens."""
    is_tensor = isinstance(input_ids, torch.Tensor)
    got = list(input_ids.shape) if is_tensor else type(input_ids).__name__
    if not is_tensor or input_ids.dim() != 2:
        raise ValueError(f"{name}: expected token ids [texts, tokens], got {got}")
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: expected whole numbers, got {input_ids.dtype}")
    if torch.compiler.is_compiling():
        return
    if not input_ids.numel():
        raise ValueError(f"{name}: expected at least one text with tokens, got {got}")
    if longest is not None and input_ids.shape[1] > longest:
        got = f"{input_ids.shape[1]} tokens"
        raise ValueError(f"{name}: {got}, the text encoder takes {longest} ({field}); truncate the texts")
    if can_be_read(input_ids):
        smallest, largest = int(input_ids.min()), int(input_ids.max())
        if smallest < 0 or largest >= vocab_size:
            wrong = smallest if smallest < 0 else largest
            raise ValueError(
                f"{name}: token {wrong} is outside 0..{vocab_size - 1}, the text encoder's vocabulary; want ids from "
                "its own tokenizer"
            )


def check_label_texts(
    input_ids: object, attention_mask: object, class_embeddings: object, width: int, images: object = None
):
    """ValueError unless the texts of labels have types and shapes that a model which takes free labels can have.

    Args:
        input_ids: whole numbers, (N, L), (N, T, L) or (B, N, T, L); their range is checked where they are encoded.
        attention_mask: of the same shape, numbers.
        class_embeddings: floats (N, width) or (B, N, width).
        images: the batch, whose B three-dimensional `class_embeddings` must have.
    """
    if class_embeddings is not None:
        is_tensor = isinstance(class_embeddings, torch.Tensor)
        got = list(class_embeddings.shape) if is_tensor else type(class_embeddings).__name__
        fits = is_tensor and class_embeddings.dim() in (2, 3) and class_embeddings.shape[-1] == width
        if not fits or (not torch.compiler.is_compiling() and not class_embeddings.numel()):
            raise ValueError(
                f"class_embeddings: got {got}, expected [labels, width] or [batch, labels, width], width {width}"
            )
        if not class_embeddings.is_floating_point():
            raise ValueError(f"class_embeddings: expected floats, got {class_embeddings.dtype}")
        check_one_for_each("class_embeddings", class_embeddings, images, dimensions=3)
    elif input_ids is not None:
        is_tensor = isinstance(input_ids, torch.Tensor)
        got = list(input_ids.shape) if is_tensor else type(input_ids).__name__
        if not is_tensor or input_ids.dim() not in (2, 3, 4):
            raise ValueError(
                f"input_ids: got {got}, expected [labels, tokens], [labels, templates, tokens] or [batch, labels, "
                "templates, tokens]"
            )
        if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
            raise ValueError(f"input_ids: expected whole numbers, got {input_ids.dtype}")
        if not torch.compiler.is_compiling() and not input_ids.numel():
            raise ValueError(f"input_ids: expected at least one text with tokens, got {got}")
        if attention_mask is not None:
            is_mask = isinstance(attention_mask, torch.Tensor) and not attention_mask.is_complex()
            found = list(attention_mask.shape) if is_mask else type(attention_mask).__name__
            if not is_mask or tuple(attention_mask.shape) != tuple(input_ids.shape):
                raise ValueError(f"attention_mask: got {found}, expected {got} as input_ids")
            if attention_mask.is_floating_point() and can_be_read(attention_mask):
                if not attention_mask.isfinite().all():
                    raise ValueError("attention_mask: NaN or infinite numbers, expected 0 and 1")
        check_one_for_each("input_ids", input_ids, images, dimensions=4)


def check_one_for_each(name: str, values: torch.Tensor, images: object, dimensions: int):
    """ValueError if `values` of so many dimensions, (B, ...), are of another number of images."""
    if torch.compiler.is_compiling() or not isinstance(images, torch.Tensor) or not images.dim():
        return
    if values.dim() == dimensions and len(values) != len(images):
        raise ValueError(f"{name}: got {list(values.shape)}, of {len(values)} images, for {len(images)}")


# ---- answers


def check_output(model: nn.Module, values: torch.Tensor | None, name: str = "logits", **inputs: object) -> None:
    """ValueError that names the cause if a model in eval mode answered with NaN or infinity. On a CPU only."""
    if values is None or model.training or not can_be_read(values):
        return
    try:
        finite = bool(values.detach().isfinite().all())
    except RuntimeError:  # inside functorch's transforms a tensor has no numbers
        return
    if not finite:
        raise ValueError(why_not_finite(model, name, **inputs))


def why_not_finite(model: nn.Module, name: str = "logits", **inputs: object) -> str:
    """Where NaN or infinity in a model's answers came from: an input, a weight (and its file), a number of an
    adapter's configuration, the logit scale, or the number type. Reads all weights."""
    start = f"{name}: NaN or infinite numbers, because"
    for argument, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.isfinite().all():
            row = int((~value.flatten(1).isfinite().all(dim=1)).nonzero()[0]) if value.dim() > 1 else 0
            hint = "; look at image_mean, image_std, rescale_factor and the image" if "pixel" in argument else ""
            return f"{start} {argument}[{row}] has some{hint}"
    tensors = [*model.named_parameters(), *model.named_buffers()]
    made = ("class_features",)  # of weights: a consequence, not a cause
    for tensor_name, tensor in sorted(tensors, key=lambda item: item[0].rpartition(".")[2] in made):
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
            return f"{start} the weight {tensor_name} has some{_file_of(model, tensor_name)}"
    for tensor_name, tensor in tensors:
        scale = tensor_name.rpartition(".")[2]
        if scale.startswith("logit_scale") and tensor.numel() == 1 and not math.isfinite(_exp(float(tensor), tensor)):
            return f"{start} exp({tensor_name}) overflows: it is {float(tensor):.4g}{_file_of(model, tensor_name)}"
    kinds = {tensor.dtype for _, tensor in tensors if tensor.is_floating_point()}
    if torch.float16 in kinds or torch.is_autocast_enabled(next(iter(tensors))[1].device.type if tensors else "cpu"):
        return f"{start} float16 ends at 65504 and the model's numbers are larger; use float32 or bfloat16"
    largest = max(
        ((float(t.abs().max()), n) for n, t in tensors if t.is_floating_point() and t.numel()), default=(0.0, "none")
    )
    numbers = ", ".join(f"{n}: {v:g}" for n, v in _floats_of_adapters(model).items())
    reach = [f"{n} reach {float(v.abs().max()):.3g}" for n, v in inputs.items() if _has_floats(v)]
    parts = [f"its largest weight is {largest[1]} with {largest[0]:.3g}", *reach]
    parts += [f"the adapter has {numbers}"] if numbers else []
    return f"{start} numbers overflow on the way: {'; '.join(parts)}{_file_of(model, largest[1])}"


def _exp(value: float, tensor: torch.Tensor) -> float:
    return float(torch.tensor(value, dtype=tensor.dtype).exp())


def _has_floats(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 0


def _floats_of_adapters(model: nn.Module) -> dict[str, float]:
    configs = getattr(model, "peft_config", None) or {}
    return {
        f"{adapter}.{name}": value
        for adapter, config in configs.items()
        for name, value in vars(config).items()
        if isinstance(value, float)
    }


def _file_of(model: nn.Module, tensor_name: str) -> str:
    """ " (in FOLDER)", where the model was loaded from, if it is known."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    source = getattr(getattr(inner, "config", None), "_name_or_path", "")
    adapters = getattr(model, "peft_config", None) or {}
    if adapters and any(part in tensor_name for part in ("clipv_", "lora_", "modules_to_save")):
        return f" (of the adapter {', '.join(adapters)})"
    file = Path(source) / "model.safetensors"
    return f" ({file if file.is_file() else source})" if source else ""


__all__ = ["check_features", "check_label_texts", "check_output", "check_pixels", "check_token_ids"]
__all__ += ["why_not_finite"]
