"""Configuration of CoOp."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ..prompts.initial_vectors import check_count
from ..tuner import TunerConfig


ClassTokenPosition = Literal["end", "middle", "front"]
DEFAULT_NUM_CONTEXT_TOKENS = 16
MANY_CLASSES = 512  # the activations of their prompts are 0.8 GB with the text encoder of ViT-B
CHUNK_SIZE = 512


@dataclass
class CoOpConfig(TunerConfig):
    """CoOp (Zhou et al. 2022, arXiv 2109.01134): trained vectors replace the words around the class name.

    A prompt is [V]_1 ... [V]_M [CLASS] (eq. 2); the M vectors are the only trained weights. On a `CLIPClassifier` they
    replace the templates. On a plain `CLIPModel` they replace placeholders in `input_ids`, which `coop_prompt_ids`
    makes. Prefer `CLIPAdapterConfig` or `TipAdapterConfig` with one or two images per class or a small model: they
    start from zero-shot CLIP, but a random context does not.

    Args:
        num_context_tokens (`int`, *optional*): Number of trained vectors, M. Default: 16, or the number of tokens of
            `context_init`.
        context_init (`str`, *optional*): Words that the context starts from, for instance "a photo of a". Default:
            None, which means random vectors from N(0, 0.02²).
        context_init_ids (`list[int]`, *optional*): Token ids of these words. Filled by the classifier's tokenizer; a
            plain `CLIPModel` has none.
        class_token_position (`str`): Position of the class name: after the context ("end"), in its middle ("middle"),
            or before it ("front").
        class_specific (`bool`): Train one context per class (CSC) instead of one for all classes. The adapter then
            works only with these classes.
        text_chunk_size (`int`, *optional*): In training, encode this number of tokens at a time, and recompute them in
            the backward pass instead of keeping their activations: memory that does not grow with the classes, for
            half more time. 0: keep everything. Default: 512 with more than 512 classes, else 0.

    Raises:
        ValueError: an invalid value, or `num_context_tokens` differs from the number of tokens of the words.

    Example:

    ```python
    >>> from hf_clip_variants.adapters import CoOpConfig

    >>> CoOpConfig(context_init="a photo of a", context_init_ids=[320, 1125, 539, 320]).num_context_tokens
    4
    ```
    """

    peft_type_name: ClassVar[str] = "CLIPV_COOP"
    filled_fields: ClassVar[frozenset[str]] = frozenset({"context_init_ids"})
    only_for_training: ClassVar[frozenset[str]] = TunerConfig.only_for_training | {"context_init", "context_init_ids"}

    num_context_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Number of trained context vectors. Default: 16, or the number of tokens of `context_init`.",
            "range": (1, 1000),
        },
    )
    context_init: str | None = field(
        default=None,
        metadata={"help": 'Words that the context starts from, such as "a photo of a"; None: random vectors.'},
    )
    context_init_ids: list[int] | None = field(
        default=None,
        metadata={"help": "Token ids of `context_init`, without start and end of text.", "range": (0, 10**7)},
    )
    class_token_position: ClassTokenPosition = field(
        default="end", metadata={"help": "Position of the class name relative to the context: end, middle or front."}
    )
    class_specific: bool = field(
        default=False, metadata={"help": "Train one context per class instead of one for all."}
    )
    text_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Tokens to encode at a time in training, recomputed in the backward pass: less memory. "
            "0: keep all. Default: 512 with more than 512 classes."
        },
    )
    allow_other_backbone: bool = field(
        default=False, metadata={"help": "Load on a backbone with other weights. Not saved."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.context_init is not None and not self.context_init.replace("_", " ").strip():
            raise ValueError("context_init: blank, expected words or None")
        if self.context_init_ids is not None:
            self.set_context_ids(self.context_init_ids)
        elif self.num_context_tokens is None and self.context_init is None:
            self.num_context_tokens = DEFAULT_NUM_CONTEXT_TOKENS
        if self.text_chunk_size is not None:
            check_count("text_chunk_size", self.text_chunk_size, least=0)

    def set_context_ids(self, ids: list[int]) -> None:
        """Makes the context start from these tokens.

        Raises:
            ValueError: their number differs from `num_context_tokens`.
        """
        ids = [int(i) for i in ids]
        if not ids:
            raise ValueError("context_init_ids: empty, expected at least one token")
        # Deviation: the official code counts words and takes as many tokens, so it silently cuts a word of two tokens.
        if self.num_context_tokens not in (None, len(ids)):
            raise ValueError(
                f"num_context_tokens: {self.num_context_tokens}, but context_init {self.context_init or ids!r} has "
                f"{len(ids)} tokens (context_init_ids); leave num_context_tokens out"
            )
        self.context_init_ids, self.num_context_tokens = ids, len(ids)

    def chunk_size(self, num_classes: int) -> int | None:
        """Tokens that are encoded at a time in training; None: all, and their activations are kept."""
        if self.text_chunk_size is not None:
            return self.text_chunk_size or None
        return CHUNK_SIZE if num_classes > MANY_CLASSES else None

    def context_shape(self, width: int) -> tuple[int, ...]:
        """(M, d), or (C, M, d) if class-specific."""
        shape = (self.num_context_tokens, width)
        return (len(self.class_names), *shape) if self.class_specific else shape

    def why_no_weighted_sum(self) -> str | None:
        return None

    def adapter_tensors(self) -> dict[str, tuple[int, ...]]:
        (target,) = self.target_modules
        return {f"{target}.clipv_coop_context": self.context_shape(self.backbone_widths["text width"])}

    def why_classes_are_fixed(self) -> str | None:
        return "has one context per class (class_specific=True)" if self.class_specific else None


__all__ = ["ClassTokenPosition", "CoOpConfig"]
