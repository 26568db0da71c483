"""Frozen image encoders with linear layers in bfloat16 or int8: faster on processors that have instructions for it.

The loss is measured where it is used: on the first images, against float32.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from ..modeling.clip_classifier.modeling_clip_classifier import CLIPClassifier


# B images, L tokens, M rows, K inputs, N outputs

Precision = Literal["float32", "bf16", "int8"]
COMPARED = 8  # images that are encoded in float32, too
LEAST, NARROWEST = 2**15, 2  # weights of a layer that is replaced: small ones would be slower; its least width:
# torch 2.14 multiplies matrices of one column by one row wrongly in int8


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, a scale for each output, and inputs that are rounded to int8 row by row."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127  # (N,)
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8).t().contiguous())  # (K, N)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = hidden.float().reshape(-1, hidden.shape[-1])  # (M, K)
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny) / 127
        product = torch._int_mm((rows / scale).round_().to(torch.int8), self.weight)  # (M, N) int32
        output = product.float().mul_(scale).mul_(self.scale)
        if self.bias is not None:
            output += self.bias
        return output.view(*hidden.shape[:-1], -1).to(hidden.dtype)


class BFloat16Linear(nn.Module):
    """A linear layer in bfloat16; what comes and goes has its own dtype."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().bfloat16())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().bfloat16())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden.bfloat16(), self.weight, self.bias).to(hidden.dtype)


_LAYERS: dict[str, type[nn.Module]] = {"int8": Int8Linear, "bf16": BFloat16Linear}


@dataclass
class ReducedPrecision:
    """The linear layers of a classifier's image encoder, in float32 and in another precision. See
    `reduce_precision`."""

    precision: Precision
    classifier: CLIPClassifier
    layers: list[tuple[nn.Module, str, nn.Module, nn.Module]] = field(repr=False)  # (parent, name, float32, reduced)
    say: Callable[[str], None] = lambda text: None
    _compared: bool = False

    @contextmanager
    def used(self, whether: bool = True) -> Iterator[None]:
        """The reduced layers are in place, or with `whether=False` those in float32; afterwards those that were."""
        before = [getattr(parent, name) for parent, name, _, _ in self.layers]
        self._place([reduced if whether else plain for _, _, plain, reduced in self.layers])
        try:
            yield
        finally:
            self._place(before)

    def _place(self, modules: list[nn.Module]) -> None:
        for (parent, name, _, _), module in zip(self.layers, modules, strict=True):
            setattr(parent, name, module)

    def keep_using(self) -> None:
        """From now on; the first images that the classifier is called with are compared."""
        self._place([reduced for _, _, _, reduced in self.layers])

        def compare_first(module: nn.Module, arguments: tuple, options: dict[str, Any]) -> None:
            if self._compared or "pixel_values" not in options:
                return
            first = options | {"pixel_values": options["pixel_values"][:COMPARED]}
            first.pop("labels", None)
            self._compared = True  # the calls below come here, too
            hook.remove()
            self.compare(lambda: self._answers(first))

        hook = self.classifier.register_forward_pre_hook(compare_first, with_kwargs=True)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`CLIPClassifier.pooled_image_features` in this precision; the classifier itself stays as it is."""
        if not self._compared:
            first = pixel_values[:COMPARED]
            self.compare(lambda: self._zero_shot(self.classifier.pooled_image_features(first)))
        with self.used():
            return self.classifier.pooled_image_features(pixel_values)

    def _answers(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.classifier(**inputs)
        return output.image_embeds, output.logits

    def _zero_shot(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.classifier(image_features=features)
        return output.image_embeds, output.logits

    @torch.no_grad()
    def compare(self, answers: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Says how much faster the encoder is, and what the precision changes: cosine distance of embeddings, and
        labels. `answers` gives embeddings (B, D) and logits (B, C) of the same images each time."""
        self._compared, found, seconds = True, [], []
        # Processor time, which other processes do not disturb; on a GPU it is not spent there.
        clock = time.process_time if self.classifier.device.type == "cpu" else time.perf_counter
        for reduced in (True, False):
            with self.used(reduced):
                answers()  # memory is allocated, class features are computed
                start = clock()
                found.append([tensor.float().cpu() for tensor in answers()])
                seconds.append(clock() - start)
        (embeds, logits), (exact, exact_logits) = found
        distance = 1 - F.cosine_similarity(embeds.double(), exact.double())
        same = int((logits.argmax(1) == exact_logits.argmax(1)).sum())
        self.say(
            f"--precision {self.precision}: {seconds[1] / seconds[0]:.1f} times as fast as float32 on the first "
            f"{len(embeds)} images; 1 - cosine of their embeddings is {float(distance.mean()):.0e} (at most "
            f"{float(distance.max()):.0e}), and {same} of {len(embeds)} get the same label"
        )


def reduce_precision(
    classifier: CLIPClassifier, precision: Precision, say: Callable[[str], None] = lambda text: None
) -> ReducedPrecision | None:
    """The image encoder of a frozen classifier in another precision; None for float32. The classifier is not changed
    before [`ReducedPrecision.keep_using`] or within [`ReducedPrecision.used`].

    Only the linear layers change, and only those in the layers of the image encoder and its projection; everything
    between them stays in float32.

    Args:
        classifier: on its device.
        precision: "float32", "bf16" (about 1e-5 in 1 - cosine) or "int8" (about 1e-3; on a CPU).
        say: gets a sentence about the first images.

    Raises:
        ValueError: an unknown precision, one that this device has no instructions for, or an image encoder without
            large linear layers.
    """
    check_precision(precision, classifier.device)
    if precision == "float32":
        return None
    layers = []
    for part in classifier.family.image_modules(classifier.clip):
        for parent in part.modules():
            for name, child in parent.named_children():
                if type(child) is nn.Linear and child.weight.numel() >= LEAST and min(child.weight.shape) >= NARROWEST:
                    layers.append((parent, name, child, _LAYERS[precision](child).eval()))
    if not layers:
        raise ValueError(
            f"precision: {precision} changes large linear layers, and the image encoder of "
            f"{type(classifier.clip).__name__} has none; want float32"
        )
    return ReducedPrecision(precision, classifier, layers, say)


def use_precision(model: nn.Module, precision: Precision, say: Callable[[str], None]) -> None:
    """From now on, the image encoder of a classifier, with or without an adapter, runs in this precision; `say` gets
    the sentence about the first images. Raises what `reduce_precision` raises."""
    classifier = model.get_base_model() if hasattr(model, "get_base_model") else model
    reduced = reduce_precision(classifier, precision, say)
    if reduced is not None:
        reduced.keep_using()


def check_precision(precision: str, device: torch.device) -> None:
    """ValueError for an unknown precision, and for one that is not faster on this device."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision: got {precision!r}; want one of {', '.join(get_args(Precision))}")
    if precision == "int8" and device.type != "cpu":
        raise ValueError(f"precision: int8 is for a CPU, and the model is on {device}; want bf16 or float32")
    if precision == "int8" and not int8_products_are_exact():
        raise ValueError(
            f"precision: this processor ({platform.machine()}) has no instructions for products of int8, and what "
            "takes their place overflows; want float32"
        )
    if precision == "bf16" and device.type == "cpu" and not cpu_has_bfloat16():
        raise ValueError(
            f"precision: this processor ({platform.machine()}) has no instructions for bfloat16 (avx512_bf16, "
            "amx_bf16 or Arm's bf16), without which it is about five times slower than float32; want int8 or float32"
        )
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"precision: {torch.cuda.get_device_name(device)} has no bfloat16; want float32")


def int8_products_are_exact() -> bool:
    """Whether sums of the largest products come out right: without instructions for them, some kernels add in 16
    bits."""
    rows = torch.tensor([[127], [-127]], dtype=torch.int8).expand(2, 256).contiguous()
    product = torch._int_mm(rows, rows.t().contiguous())
    return product.tolist() == [[256 * 127**2, -256 * 127**2], [-256 * 127**2, 256 * 127**2]]


def cpu_has_bfloat16() -> bool:
    """Whether the processor computes with bfloat16 by itself."""
    wanted = {"avx512_bf16", "amx_bf16", "bf16"}
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is not None and any(ask().get(name) for name in wanted):
        return True
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any(wanted & set(line.split()) for line in lines if line.lower().startswith(("flags", "features")))


__all__ = ["Precision", "ReducedPrecision", "check_precision", "cpu_has_bfloat16", "reduce_precision", "use_precision"]
