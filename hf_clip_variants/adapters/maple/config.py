"""Configuration of MaPLe."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..prompts.initial_vectors import check_count, check_depth
from ..prompts.text_prompts import TextPromptShape, TextPromptStyle, check_enough_words, check_style, text_tensors
from ..prompts.visual_prompts import VisualPromptShape, visual_home
from ..tuner import TunerConfig


@dataclass
class MaPLeConfig(TunerConfig):
    """MaPLe (Khattak et al. 2023, arXiv 2210.03117): learned tokens in several layers of both towers, those of pictures linear in those of text.

    The coupling keeps the towers together, and with them classes that were not trained on. Prefer `IVLPConfig` without it, `CoCoOpConfig` where the
    image tower must stay as it is (cached features), `CoOpConfig` for speed.

    Args:
        num_prompt_tokens (`int`): Learned tokens in each layer, n.
        prompt_depth (`int` or `"all"`): How many layers of both towers get tokens of their own, J, the first included.
        context_init (`str`, *optional*): Words that prompts begin with; the first n of their tokens become learned, the others stay ("a photo of
            a" with n = 2 learns "a photo"). None: N(0, 0.02²) and no words.
        context_init_ids (`list[int]`, *optional*): Their token ids. Filled from the classifier's tokenizer.
        share_projection (`bool`): One linear map for all layers, the paper's smaller variant, instead of one each.
        text_prompt_style (`str`): `"maple"`: learned tokens replace the first words and carry their positions, as published; `"vpt_deep"`: as VPT
            does it with pictures, they start random and are inserted before the words, without positions, and every word stays what and where it
            was. On a `CLIPClassifier` only.

    Raises:
        ValueError: for values outside these.

    Example:

    ```python
    >>> from hf_clip_variants.adapters import MaPLeConfig

    >>> MaPLeConfig().prompt_depth
    9
    ```
    """

    peft_type_name: ClassVar[str] = "CLIPV_MAPLE"
    filled_fields: ClassVar[frozenset[str]] = frozenset({"context_init_ids"})

    num_prompt_tokens: int = field(default=2, metadata={"help": "Learned tokens in each layer."})
    prompt_depth: int | str = field(
        default=9, metadata={"help": "Layers of both towers with tokens of their own, the first included."}
    )
    context_init: str | None = field(
        default="a photo of a",
        metadata={"help": "Words that prompts begin with; the first of them become learned. None: random."},
    )
    context_init_ids: list[int] | None = field(
        default=None, metadata={"help": "Token ids of `context_init`, without start and end of text."}
    )
    share_projection: bool = field(
        default=False, metadata={"help": "One linear map from text to pictures for all layers."}
    )
    text_prompt_style: TextPromptStyle = field(
        default="maple",
        metadata={"help": "maple: in the place of the first words; vpt_deep: inserted, without positions."},
    )
    allow_other_backbone: bool = field(
        default=False, metadata={"help": "Load on a backbone with other weights. Not saved."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_count("num_prompt_tokens", self.num_prompt_tokens)
        check_depth("prompt_depth", self.prompt_depth)
        check_style(self.text_prompt_style)
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
        home, count = visual_home(self.target_modules), self.num_projections
        text, image = self.backbone_widths["text width"], self.backbone_widths["image width"]
        return text_tensors(self, self.num_prompt_tokens, self.prompt_depth, "clipv_maple") | {
            f"{home}.clipv_maple_projection_weight": (count, image, text),
            f"{home}.clipv_maple_projection_bias": (count, image),
        }


__all__ = ["MaPLeConfig"]
