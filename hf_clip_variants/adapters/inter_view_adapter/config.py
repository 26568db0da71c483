"""Configuration of the inter-view adapter."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..tuner import TunerConfig


@dataclass
class InterViewAdapterConfig(TunerConfig):
    """The inter-view adapter (Zhang et al. 2022, arXiv 2112.02413, section 3.2): what the views of an object say
    together, added to what each of them says.

    f = concatenated features of all views; g = a global feature of them; f' = ratio * A(g) + (1 - ratio) * f. All else
    is frozen. It learns from 1 to 16 labelled objects a class, and is trained with at least two objects a batch,
    because of its batch normalisation. Prefer zero-shot without labels.

    Args:
        ratio (`float`): Weight of the adapted features, from 0 to 1; read in every forward pass. 0.6 in the paper.
        dropout (`float`): In training, twice. 0.075 in the official code.
        fusion_init (`float`): Initial weight of each view in the global feature. 0.5 in the official code.

    Raises:
        ValueError: an invalid value.

    Example:

    ```python
    >>> from hf_clip_variants.adapters import InterViewAdapterConfig

    >>> InterViewAdapterConfig(ratio=0.5).peft_type.value
    'CLIPV_INTER_VIEW_ADAPTER'
    ```
    """

    peft_type_name: ClassVar[str] = "CLIPV_INTER_VIEW_ADAPTER"
    filled_fields: ClassVar[frozenset[str]] = frozenset({"pictures"})
    only_for_training: ClassVar[frozenset[str]] = frozenset({"allow_other_backbone", "dropout", "fusion_init"})

    ratio: float = field(
        default=0.6,
        metadata={"help": "Weight of the adapted features; the original ones get the rest.", "range": (0, 1)},
    )
    dropout: float = field(default=0.075, metadata={"help": "Dropout in training.", "range": (0, 0.99)})
    fusion_init: float = field(
        default=0.5, metadata={"help": "Initial weight of each view in the global feature.", "range": (-1e3, 1e3)}
    )
    pictures: str | None = field(
        default=None,
        metadata={"help": "The projection and views that the adapter was made for; others are refused."},
    )
    allow_other_backbone: bool = field(
        default=False, metadata={"help": "Load on a backbone with other weights. Not saved."}
    )

    def adapter_tensors(self) -> dict[str, tuple[int, ...]]:
        (place,) = self.target_modules
        views, width = self.backbone_widths["views"], self.backbone_widths["joint width"]
        shapes: dict[str, tuple[int, ...]] = {"fusion_ratio": (views,)}
        for norm in ("view_norm", "global_norm"):
            shapes |= {f"{norm}.{name}": (width,) for name in ("weight", "bias", "running_mean", "running_var")}
            shapes[f"{norm}.num_batches_tracked"] = ()
        for linear, out, into in (
            ("global_linear", width, views * width),
            ("view_down", width, width),
            ("view_up", views * width, width),
        ):
            shapes |= {f"{linear}.weight": (out, into), f"{linear}.bias": (out,)}
        return {f"{place}.clipv_inter_view_adapter_{name}": shape for name, shape in shapes.items()}


__all__ = ["InterViewAdapterConfig"]
