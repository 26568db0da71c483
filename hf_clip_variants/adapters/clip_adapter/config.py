"""Configuration of CLIP-Adapter."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ..tuner import TunerConfig


Modality = Literal["image", "text", "both"]
# Modality -> the module that its adapter wraps, on a CLIPClassifier and on a CLIPModel
TARGETS = {
    "image": ("image_feature_adapter", "visual_projection"),
    "text": ("text_feature_adapter", "text_projection"),
}


@dataclass
class CLIPAdapterConfig(TunerConfig):
    """CLIP-Adapter (Gao et al. 2021, arXiv 2110.04544): a bottleneck on CLIP's final features, blended with them.

    f' = ratio * A(f) + (1 - ratio) * f, on un-normalised features (section 3.2). It is small, trains fast on cached
    features, and works for new classes of the same domain. Prefer `TipAdapterConfig` if nothing should be trained, and
    `CoOpConfig` to train through the text encoder.

    Args:
        modality (`str`): Adapt "image" features (the paper's default), "text" features (class weights), or "both".
        reduction (`int`): The bottleneck has width // reduction units.
        ratio (`float`): Weight of the adapted features, from 0 to 1. It is read in every forward pass, so it can be
            varied after training. The paper uses about 0.2 for ImageNet and 0.6 for fine-grained data sets.
        text_ratio (`float`, *optional*): Ratio of the text adapter. Default: `ratio`.
        output_relu (`bool`): Apply a ReLU after the second layer, too, as in the official code. The paper's formula
            has none.
        learnable_ratio (`bool`): Train the ratios as well, starting from the given values. The paper mentions it, the
            official code does not have it.

    Raises:
        ValueError: an invalid value.

    Example:

    ```python
    >>> from hf_clip_variants.adapters import CLIPAdapterConfig

    >>> CLIPAdapterConfig(modality="both", ratio=0.2, text_ratio=0.1).peft_type.value
    'CLIPV_CLIP_ADAPTER'
    ```
    """

    peft_type_name: ClassVar[str] = "CLIPV_CLIP_ADAPTER"

    modality: Modality = field(default="image", metadata={"help": "Features to adapt: image, text or both."})
    reduction: int = field(
        default=4, metadata={"help": "Width of the features divided by that of the bottleneck.", "range": (1, 65_536)}
    )
    ratio: float = field(
        default=0.2,
        metadata={
            "help": "Weight of the adapted features, from 0 to 1; the original ones get the rest.",
            "range": (0, 1),
        },
    )
    text_ratio: float | None = field(
        default=None, metadata={"help": "Ratio of text features. Default: `ratio`.", "range": (0, 1)}
    )
    output_relu: bool = field(
        default=True, metadata={"help": "Apply a ReLU after the second layer, as in the official code."}
    )
    learnable_ratio: bool = field(default=False, metadata={"help": "Train the ratio, too."})
    allow_other_backbone: bool = field(
        default=False, metadata={"help": "Load on a backbone with other weights. Not saved."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("ratio", "text_ratio"):
            value = getattr(self, name)
            if self.learnable_ratio and value in (0, 1):
                raise ValueError(f"{name}: {value} cannot be learned (it is a sigmoid), expected between 0 and 1")

    @property
    def modalities(self) -> tuple[str, ...]:
        return ("image", "text") if self.modality == "both" else (self.modality,)

    def ratio_of(self, modality: str) -> float:
        """Ratio of "image" or "text" features."""
        return self.text_ratio if modality == "text" and self.text_ratio is not None else self.ratio

    def hidden_width(self, width: int) -> int:
        """Units of the bottleneck for features of this width; at least 1."""
        return max(width // self.reduction, 1)

    def adapter_tensors(self) -> dict[str, tuple[int, ...]]:
        width = self.backbone_widths["joint width"]
        hidden = self.hidden_width(width)
        shapes = {"down.weight": (hidden, width), "up.weight": (width, hidden)}
        if self.learnable_ratio:
            shapes["ratio_logit"] = ()
        return {f"{target}.clipv_clip_adapter_{k}": v for target in self.target_modules for k, v in shapes.items()}


__all__ = ["CLIPAdapterConfig", "Modality"]
