"""Configuration of the linear head that GDA and CLAP fit."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..tuner import TunerConfig


@dataclass
class LinearHeadConfig(TunerConfig):
    """A linear classifier on the image embeddings, added to zero-shot CLIP's logits; with it, cached images may vote.

    The logit of class c is logit_scale * f t_c + alpha * (f w_c + b_c), plus gamma * (sum over the cached images k of
    class c of exp(-beta * (1 - f k))) where there is a cache. Three ways to get w and b:

    - `fit_gaussian(features, labels)`, without training: Gaussian discriminant analysis, GDA (Wang et al. 2024,
      arXiv 2402.04087);
    - `fit_adapter(..., "clap", ...)`: logistic regression that starts at the text embeddings and is pulled to them, as
      in CLAP (Silva-Rodriguez et al. 2024, arXiv 2312.12730), and votes as Tip-Adapter's;
    - `trainable=True` and `Trainer`: any training of your own, which starts at zero-shot CLIP.

    Needs a `CLIPClassifier`. Prefer `CLIPAdapterConfig` or `CoOpConfig` if classes will be added later: each class has
    weights of its own.

    Args:
        alpha (`float`): Weight of the linear classifier relative to zero-shot CLIP.
        gamma (`float`): Weight of the cached images. They are kept by `set_cache`.
        beta (`float`): Sharpness of their votes, as in `TipAdapterConfig`.
        trainable (`bool`): Train w and b. The cached images are never trained.
        cache_size (`int`, *optional*): Number of cached images, N. Filled by `set_cache`.
        num_classes (`int`, *optional*): Number of classes, C. Taken from the classifier.

    Raises:
        ValueError: a negative or non-finite number.

    Example:

    ```python
    >>> from hf_clip_variants.adapters import LinearHeadConfig

    >>> LinearHeadConfig(alpha=0.1).peft_type.value
    'CLIPV_LINEAR_HEAD'
    ```
    """

    peft_type_name: ClassVar[str] = "CLIPV_LINEAR_HEAD"
    filled_fields: ClassVar[frozenset[str]] = frozenset({"cache_size", "num_classes", "trainable"})
    # without cached images, which cannot be summed
    only_for_training: ClassVar[frozenset[str]] = TunerConfig.only_for_training | {"gamma", "beta", "trainable"}

    alpha: float = field(
        default=1.0,
        metadata={"help": "Weight of the linear classifier relative to zero-shot CLIP.", "range": (0, 1e30)},
    )
    gamma: float = field(
        default=0.0, metadata={"help": "Weight of the cached images; 0 without a cache.", "range": (0, 1e30)}
    )
    beta: float = field(default=5.5, metadata={"help": "Sharpness of the cached images' votes.", "range": (0, 1e30)})
    trainable: bool = field(default=False, metadata={"help": "Train weights and bias."})
    cache_size: int | None = field(default=None, metadata={"help": "Number of cached images.", "range": (0, 10**8)})
    num_classes: int | None = field(default=None, metadata={"help": "Number of classes.", "range": (0, 10**6)})
    allow_other_backbone: bool = field(
        default=False, metadata={"help": "Load on a backbone with other weights. Not saved."}
    )

    def why_no_weighted_sum(self) -> str | None:
        return "it has cached images" if self.cache_size else None

    def adapter_tensors(self) -> dict[str, tuple[int, ...]]:
        (target,) = self.target_modules
        width = self.backbone_widths["joint width"]
        tensors = {
            f"{target}.clipv_linear_head_weight": (self.num_classes, width),
            f"{target}.clipv_linear_head_bias": (self.num_classes,),
        }
        if self.cache_size:
            tensors[f"{target}.clipv_linear_head_keys"] = (self.cache_size, width)
            tensors[f"{target}.clipv_linear_head_labels"] = (self.cache_size,)
        return tensors

    def why_classes_are_fixed(self) -> str | None:
        return "has weights for each of its classes"


__all__ = ["LinearHeadConfig"]
