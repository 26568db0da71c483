"""Configuration of IVLP."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..prompts.initial_vectors import check_depth
from ..prompts.text_prompts import TextPromptShape, check_enough_words, text_tensors
from ..prompts.visual_prompts import VisualPromptShape, visual_prompt_module
from ..tuner import TunerConfig


@dataclass
class IVLPConfig(TunerConfig):
    """Independent vision-language prompting (Khattak et al. 2023, arXiv 2210.03117, section 4.2).

    Learned tokens in the layers of both encoders, without the coupling of MaPLe. `vision_depth=0` is "deep language
    prompting" (in the paper with `num_text_tokens=4, text_depth=12`); `text_depth=0` is VPT. Prefer `MaPLeConfig` for
    classes that were not trained on: it loses less there in the paper's tables.

    Args:
        num_text_tokens (`int`), num_vision_tokens (`int`): Learned tokens in each layer of the text and of the image
            encoder.
        text_depth (`int` or `"all"`), vision_depth (`int` or `"all"`): Layers of the text and of the image encoder
            with tokens of their own, counted from the first layer; 0: none.
        context_init (`str`, *optional*): Words at the beginning of each prompt. The first `num_text_tokens` of their
            tokens are learned, the others stay. None: random vectors from N(0, 0.02²), and no words.
        context_init_ids (`list[int]`, *optional*): Token ids of these words. Filled by the classifier's tokenizer.

    Raises:
        ValueError: an invalid value, or both depths are 0.

    Example:

    ```python
    >>> from hf_clip_variants.adapters import IVLPConfig

    >>> deep_language = IVLPConfig(num_text_tokens=4, text_depth=12, vision_depth=0)
    ```
    """

    peft_type_name: ClassVar[str] = "CLIPV_IVLP"
    filled_fields: ClassVar[frozenset[str]] = frozenset({"context_init_ids"})

    num_text_tokens: int = field(
        default=2, metadata={"help": "Learned tokens in each layer of the text encoder.", "range": (1, 1000)}
    )
    num_vision_tokens: int = field(
        default=2, metadata={"help": "Learned tokens in each layer of the image encoder.", "range": (1, 10_000)}
    )
    text_depth: int | str = field(
        default="all", metadata={"help": "Layers of the text encoder with tokens of their own; 0: none."}
    )
    vision_depth: int | str = field(
        default="all", metadata={"help": "Layers of the image encoder with tokens of their own; 0: none."}
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
    allow_other_backbone: bool = field(
        default=False, metadata={"help": "Load on a backbone with other weights. Not saved."}
    )

    def __post_init__(self):
        super().__post_init__()
        for argument in ("text_depth", "vision_depth"):
            check_depth(argument, getattr(self, argument), least=0)
        if self.text_depth == self.vision_depth == 0:
            raise ValueError("text_depth, vision_depth: both 0, expected prompts in at least one encoder")
        if self.text_depth:
            check_enough_words(self, self.num_text_tokens)

    @property
    def text_shape(self) -> TextPromptShape:
        return TextPromptShape(self.num_text_tokens, self.text_depth, "maple", tuple(self.context_init_ids or ()))

    @property
    def vision_shape(self) -> VisualPromptShape:
        return VisualPromptShape(self.num_vision_tokens, self.vision_depth)

    def why_no_weighted_sum(self) -> str | None:
        return None

    def adapter_tensors(self) -> dict[str, tuple[int, ...]]:
        # Must agree with the parameters that `update_layer` of the layers creates.
        tensors = {}
        if self.text_depth:
            tensors |= text_tensors(self, self.num_text_tokens, self.text_depth, "clipv_ivlp")
        if self.vision_depth:
            shape = (self.vision_depth, self.num_vision_tokens, self.backbone_widths["image width"])
            tensors[f"{visual_prompt_module(self.target_modules)}.clipv_ivlp_vision_prompts"] = shape
        return tensors


__all__ = ["IVLPConfig"]
