"""Configuration of IVLP."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..prompts.initial_vectors import check_count, check_depth
from ..prompts.text_prompts import TextPromptShape, check_enough_words, text_tensors
from ..prompts.visual_prompts import VisualPromptShape, visual_home
from ..tuner import TunerConfig


@dataclass
class IVLPConfig(TunerConfig):
    """Independent vision-language prompting (Khattak et al. 2023, arXiv 2210.03117, section 4.2): learned tokens in both towers, not coupled.

    `vision_depth=0` leaves "deep language prompting" (the paper's with `num_text_tokens=4, text_depth=12`), `text_depth=0` is VPT. Prefer `MaPLeConfig`
    for classes that were not trained on: its coupling loses less there in the paper's tables.

    Args:
        num_text_tokens (`int`), num_vision_tokens (`int`): Learned tokens in each layer of either tower.
        text_depth (`int` or `"all"`), vision_depth (`int` or `"all"`): How many layers of either tower get tokens of their own; 0: none.
        context_init (`str`, *optional*): Words that prompts begin with; the first `num_text_tokens` of their tokens become learned, the others
            stay. None: N(0, 0.02²) and no words.
        context_init_ids (`list[int]`, *optional*): Their token ids. Filled from the classifier's tokenizer.

    Raises:
        ValueError: for values outside these.

    Example:

    ```python
    >>> from hf_clip_variants.adapters import IVLPConfig

    >>> deep_language = IVLPConfig(num_text_tokens=4, text_depth=12, vision_depth=0)
    ```
    """

    peft_type_name: ClassVar[str] = "CLIPV_IVLP"
    filled_fields: ClassVar[frozenset[str]] = frozenset({"context_init_ids"})

    num_text_tokens: int = field(default=2, metadata={"help": "Learned tokens in each layer of the text tower."})
    num_vision_tokens: int = field(default=2, metadata={"help": "Learned tokens in each layer of the image tower."})
    text_depth: int | str = field(
        default="all", metadata={"help": "Layers of the text tower with tokens of their own; 0: none."}
    )
    vision_depth: int | str = field(
        default="all", metadata={"help": "Layers of the image tower with tokens of their own; 0: none."}
    )
    context_init: str | None = field(
        default="a photo of a",
        metadata={"help": "Words that prompts begin with; the first of them become learned. None: random."},
    )
    context_init_ids: list[int] | None = field(
        default=None, metadata={"help": "Token ids of `context_init`, without start and end of text."}
    )
    allow_other_backbone: bool = field(
        default=False, metadata={"help": "Load on a backbone with other weights. Not saved."}
    )

    def __post_init__(self):
        super().__post_init__()
        for argument in ("num_text_tokens", "num_vision_tokens"):
            check_count(argument, getattr(self, argument))
        for argument in ("text_depth", "vision_depth"):
            check_depth(argument, getattr(self, argument), least=0)
        if self.text_depth == self.vision_depth == 0:
            raise ValueError("text_depth, vision_depth: both 0, expected prompts in at least one tower")
        if self.text_depth:
            check_enough_words(self, self.num_text_tokens)

    @property
    def text_shape(self) -> TextPromptShape:
        return TextPromptShape(self.num_text_tokens, self.text_depth, "maple", tuple(self.context_init_ids or ()))

    @property
    def vision_shape(self) -> VisualPromptShape:
        return VisualPromptShape(self.num_vision_tokens, self.vision_depth)

    def adapter_tensors(self) -> dict[str, tuple[int, ...]]:
        tensors = {}
        if self.text_depth:
            tensors |= text_tensors(self, self.num_text_tokens, self.text_depth, "clipv_ivlp")
        if self.vision_depth:
            shape = (self.vision_depth, self.num_vision_tokens, self.backbone_widths["image width"])
            tensors[f"{visual_home(self.target_modules)}.clipv_ivlp_vision_prompts"] = shape
        return tensors


__all__ = ["IVLPConfig"]
