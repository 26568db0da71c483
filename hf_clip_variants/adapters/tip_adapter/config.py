"""Configuration of Tip-Adapter and Tip-Adapter-F."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..tuner import TunerConfig


@dataclass
class TipAdapterConfig(TunerConfig):
    """Tip-Adapter (Zhang et al. 2022, arXiv 2207.09519): labelled images vote for their classes. No training.

    The logit of class c is logit_scale * f W_c + alpha * (sum over the cached images k of class c of
    exp(-beta * (1 - f k))). Needs a `CLIPClassifier`. Fill the cache with `build_cache`, and choose alpha and beta on
    validation images with `search_hyperparameters`. `trainable_keys=True` is Tip-Adapter-F, which is usually better
    with four or more images per class. Prefer `CLIPAdapterConfig` or `CoOpConfig` if classes will be added later: a
    cache works only with its own classes.

    Args:
        alpha (`float`): Weight of the cache relative to zero-shot CLIP. The best value depends on the number of images
            per class.
        beta (`float`): Sharpness of the votes: the larger it is, the closer a cached image must be to have an effect.
        trainable_keys (`bool`): Train the keys (Tip-Adapter-F). Labels are never trained.
        logit_scale (`float`, *optional*): Factor of the zero-shot logits. 100 for all models, as in the official code;
            None: the model's own.
        cache_size (`int`, *optional*): Number of cached images, N. Filled by `build_cache`.
        num_classes (`int`, *optional*): Number of classes, C. Taken from the classifier.

    Raises:
        ValueError: a negative or non-finite number.

    Example:

    ```python
    >>> from hf_clip_variants.adapters import TipAdapterConfig

    >>> TipAdapterConfig(alpha=1.17, beta=1.0, trainable_keys=True).peft_type.value
    'CLIPV_TIP_ADAPTER'
    ```
    """

    peft_type_name: ClassVar[str] = "CLIPV_TIP_ADAPTER"
    filled_fields: ClassVar[frozenset[str]] = frozenset({"cache_size", "num_classes", "trainable_keys"})

    alpha: float = field(
        default=1.0, metadata={"help": "Weight of the cached images relative to zero-shot CLIP.", "range": (0, 1e30)}
    )
    beta: float = field(
        default=5.5,
        metadata={
            "help": "Sharpness of the votes: how close a cached image must be to have an effect.",
            "range": (0, 1e30),
        },
    )
    trainable_keys: bool = field(default=False, metadata={"help": "Train the cached features (Tip-Adapter-F)."})
    logit_scale: float | None = field(
        default=100.0,
        metadata={"help": "Factor of the zero-shot logits; None: the model's own temperature.", "range": (0, 1e30)},
    )
    cache_size: int | None = field(default=None, metadata={"help": "Number of cached images.", "range": (0, 10**8)})
    num_classes: int | None = field(default=None, metadata={"help": "Number of classes.", "range": (0, 10**6)})
    allow_other_backbone: bool = field(
        default=False, metadata={"help": "Load on a backbone with other weights. Not saved."}
    )

    def adapter_tensors(self) -> dict[str, tuple[int, ...]]:
        (target,) = self.target_modules
        size = self.cache_size or 0
        return {
            f"{target}.clipv_tip_adapter_keys": (size, self.backbone_widths["joint width"]),
            f"{target}.clipv_tip_adapter_labels": (size,),
        }

    def why_classes_are_fixed(self) -> str | None:
        return "caches images of its classes"


__all__ = ["TipAdapterConfig"]
