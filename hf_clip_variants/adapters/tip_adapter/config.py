"""Configuration of Tip-Adapter and Tip-Adapter-F."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..tuner import TunerConfig


@dataclass
class TipAdapterConfig(TunerConfig):
    """Tip-Adapter (Zhang et al. 2022, arXiv 2207.09519): labelled pictures vote for their classes, beside zero-shot CLIP. No training.

    logits = logit_scale * f W + alpha * sum over cached pictures of class c of exp(-beta * (1 - f k)). Needs a `CLIPClassifier`. Fill the
    cache with `build_cache`, choose alpha and beta with `search_hyperparameters` on validation pictures. `trainable_keys=True` is
    Tip-Adapter-F, usually the better one from four pictures a class on; prefer `CLIPAdapterConfig` or `CoOpConfig` when classes will be added
    later, which a cache cannot follow.

    Args:
        alpha (`float`): Weight of the cache against zero-shot CLIP. What is best depends on how many pictures a class has.
        beta (`float`): Sharpness: how near a picture must be to vote.
        trainable_keys (`bool`): Train the keys (Tip-Adapter-F). Labels stay.
        logit_scale (`float`, *optional*): Of the zero-shot logits. The official code has 100 whatever the model; None: the model's own.
        cache_size (`int`, *optional*): Cached pictures, N. Written by `build_cache`.
        num_classes (`int`, *optional*): C. Taken from the classifier.

    Raises:
        ValueError: for negative or non-finite numbers.

    Example:

    ```python
    >>> from hf_clip_variants.adapters import TipAdapterConfig

    >>> TipAdapterConfig(alpha=1.17, beta=1.0, trainable_keys=True).peft_type.value
    'CLIPV_TIP_ADAPTER'
    ```
    """

    peft_type_name: ClassVar[str] = "CLIPV_TIP_ADAPTER"
    filled_fields: ClassVar[frozenset[str]] = frozenset({"cache_size", "num_classes", "trainable_keys"})

    alpha: float = field(default=1.0, metadata={"help": "Weight of the cached pictures against zero-shot CLIP."})
    beta: float = field(default=5.5, metadata={"help": "Sharpness: how near a cached picture must be to vote."})
    trainable_keys: bool = field(default=False, metadata={"help": "Train the cached features (Tip-Adapter-F)."})
    logit_scale: float | None = field(
        default=100.0, metadata={"help": "Factor of the zero-shot logits; None: the model's own temperature."}
    )
    cache_size: int | None = field(default=None, metadata={"help": "How many pictures are cached."})
    num_classes: int | None = field(default=None, metadata={"help": "How many classes they belong to."})
    allow_other_backbone: bool = field(
        default=False, metadata={"help": "Load on a backbone with other weights. Not saved."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("alpha", "beta", "logit_scale", "cache_size", "num_classes"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name}: {value}, expected a finite number of at least 0")

    def adapter_tensors(self) -> dict[str, tuple[int, ...]]:
        (target,) = self.target_modules
        size = self.cache_size or 0
        return {
            f"{target}.clipv_tip_adapter_keys": (size, self.backbone_widths["joint width"]),
            f"{target}.clipv_tip_adapter_labels": (size,),
        }

    def why_classes_are_fixed(self) -> str | None:
        return "caches pictures of its classes"


__all__ = ["TipAdapterConfig"]
