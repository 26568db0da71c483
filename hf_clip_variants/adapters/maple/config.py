"""Configuration of MaPLe."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..prompts.initial_vectors import check_depth
from ..prompts.text_prompts import TextPromptShape, TextPromptStyle, check_enough_words, text_tensors
from ..prompts.visual_prompts import VisualPromptShape, visual_prompt_module
from ..tuner import TunerConfig


@dataclass
class MaPLeConfig(TunerConfig):
    """MaPLe (Khattak et al. 2023, arXiv 2210.03117): learned tokens in the first J layers of both encoders, coupled.

    The text prompts P_k are free parameters (section 3.2.1). The visual prompts are a linear function of them,
    F_k(P_k), with one F_k per layer (section 3.2.3). The coupling keeps the two encoders aligned, which helps classes
    that were not trained on. Prefer `IVLPConfig` for prompts without coupling, `CoCoOpConfig` if image features must
    be cached, and `CoOpConfig` for speed.

    Args:
        num_prompt_tokens (`int`): Learned tokens in each layer, n.
        prompt_depth (`int` or `"all"`): Layers of both encoders with tokens of their own, J, counted from the first.
        context_init (`str`, *optional*): Words at the beginning of each prompt. The first n of their tokens are
            learned, the others stay: "a photo of a" with n = 2 learns "a photo". None: random vectors from N(0,
            0.02²), and no words.
        context_init_ids (`list[int]`, *optional*): Token ids of these words. Filled by the classifier's tokenizer.
        share_projection (`bool`): One linear map for all layers, the paper's smaller variant, instead of one per
            layer.
        text_prompt_style (`str`): `"maple"`, as published: learned tokens replace the first words and get those words'
            positions. `"vpt_deep"`, as VPT treats images: learned tokens start at random and are inserted before the
            words, without positions, and all words keep their positions. On a `CLIPClassifier` only.

    Raises:
        ValueError: an invalid value, or fewer words than learned tokens.

    Example:

    ```python
    >>> from hf_clip_variants.adapters import MaPLeConfig

    >>> MaPLeConfig().prompt_depth
    9
    ```
    """

    peft_type_name: ClassVar[str] = "CLIPV_MAPLE"
    filled_fields: ClassVar[frozenset[str]] = frozenset({"context_init_ids"})

    num_prompt_tokens: int = field(default=2, metadata={"help": "Learned tokens in each layer.", "range": (1, 1000)})
    prompt_depth: int | str = field(
        default=9, metadata={"help": "Layers of both encoders with tokens of their own, counted from the first."}
    )
    context_init: str | None = field(
        default="a photo of a",
        metadata={
            "help": "Words at the beginning of each prompt; the first of them are learned. None: random vectors."
        },
    )
    context_init_ids: list[int] | None = field(
        default=None,
        metadata={"help": "Token ids of `context_init`, without start and end of text.", "range": (0, 10**7)},
    )
    share_projection: bool = field(
        default=False, metadata={"help": "One linear map from text prompts to visual prompts for all layers."}
    )
    text_prompt_style: TextPromptStyle = field(
        default="maple",
        metadata={"help": "maple: tokens replace the first words; vpt_deep: tokens are inserted, without positions."},
    )
    allow_other_backbone: bool = field(
        default=False, metadata={"help": "Load on a backbone with other weights. Not saved."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_depth("prompt_depth", self.prompt_depth)
        if self.text_prompt_style == "maple":
            check_enough_words(self, self.num_prompt_tokens)

    @property
    def num_projections(self) -> int:
        return 1 if self.share_projection else self.prompt_depth

    @property
    def text_shape(self) -> TextPromptShape:
        words = tuple(self.context_init_ids or ())
        return TextPromptShape(self.num_prompt_tokens, self.prompt_depth, self.text_prompt_style, words)

    @property
    def vision_shape(self) -> VisualPromptShape:
        return VisualPromptShape(self.num_prompt_tokens, self.prompt_depth)

    def adapter_tensors(self) -> dict[str, tuple[int, ...]]:
        module, count = visual_prompt_module(self.target_modules), self.num_projections
        text, image = self.backbone_widths["text width"], self.backbone_widths["image width"]
        return text_tensors(self, self.num_prompt_tokens, self.prompt_depth, "clipv_maple") | {
            f"{module}.clipv_maple_projection_weight": (count, image, text),
            f"{module}.clipv_maple_projection_bias": (count, image),
        }


__all__ = ["MaPLeConfig"]
