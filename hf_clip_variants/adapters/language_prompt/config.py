"""Configuration of prompt tuning for detectors that read a prompt."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..tuner import TunerConfig


@dataclass
class LanguagePromptConfig(TunerConfig):
    """Prompt tuning of grounded detectors (Li et al. 2022, arXiv 2112.03857, section 4.4): a learned vector for each
    token of one prompt, added to what the text encoder makes of it before regions see it. Everything else is frozen.

    It keeps the detector as it is for all other tasks, and needs little memory. The vectors belong to places in the
    prompt, so they serve one list of classes alone. Prefer the linear probe or full tuning for lists that change.

    Args:
        num_tokens (`int`, *optional*): Places with a vector. Default: the longest prompt of the model; 1000 in the
            official code, which reads at most 256 of them.
        prompt_ids (`list[int]`, *optional*): Token ids of the prompt that the vectors are learned for, as the
            processor returns them. Another prompt is then an error. None: the vectors are added to any prompt.
        class_names (`list[str]`, *optional*): The classes of that prompt, for the model card.

    Raises:
        ValueError: an invalid value.

    Example:

    ```python
    >>> from hf_clip_variants.adapters import LanguagePromptConfig

    >>> LanguagePromptConfig(prompt_ids=[101, 4937, 1012, 3899, 102]).peft_type.value
    'CLIPV_LANGUAGE_PROMPT'
    ```
    """

    peft_type_name: ClassVar[str] = "CLIPV_LANGUAGE_PROMPT"

    num_tokens: int | None = field(
        default=None,
        metadata={"help": "Places with a vector. Default: the longest prompt of the model.", "range": (1, 100_000)},
    )
    prompt_ids: list[int] | None = field(
        default=None,
        metadata={
            "help": "Token ids of the prompt that the vectors belong to; others are refused. None: any prompt.",
            "range": (0, 10**9),
        },
    )
    allow_other_backbone: bool = field(
        default=False, metadata={"help": "Load on a model with other weights. Not saved."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.prompt_ids is not None and not self.prompt_ids:
            raise ValueError("prompt_ids: an empty list, expected the token ids of a prompt, or None")
        if self.num_tokens is not None and self.prompt_ids is not None and len(self.prompt_ids) > self.num_tokens:
            raise ValueError(
                f"prompt_ids: {len(self.prompt_ids)} tokens, expected at most {self.num_tokens} (num_tokens)"
            )

    def adapter_tensors(self) -> dict[str, tuple[int, ...]]:
        (encoder,) = self.target_modules
        shape = (self.num_tokens, self.backbone_widths["text width"])
        return {f"{encoder}.clipv_language_prompt_vectors": shape}


__all__ = ["LanguagePromptConfig"]
