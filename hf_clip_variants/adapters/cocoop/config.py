"""Configuration of CoCoOp."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..prompts.initial_vectors import check_count
from ..tuner import TunerConfig


@dataclass
class CoCoOpConfig(TunerConfig):
    """CoCoOp (Zhou et al. 2022, arXiv 2203.05557): CoOp's context, shifted for each image.

    The prompt of class i for image x is t_i(x) = [v_1(x), ..., v_M(x), c_i] with v_m(x) = v_m + h(x), where h is a
    small network on the image embedding, the "meta-net" (section 3.2, eq. 3). Needs a `CLIPClassifier`. It loses less
    than CoOp on classes that were not trained on, but the text encoder runs once for each pair of image and class.
    Prefer `CoOpConfig` if the classes do not change, and `MaPLeConfig` if the image encoder may be changed too.

    Args:
        num_context_tokens (`int`, *optional*): Number of trained vectors, M. Default: the number of tokens of
            `context_init`, or 4.
        context_init (`str`, *optional*): Words that the context starts from. None: random vectors from N(0, 0.02²).
        context_init_ids (`list[int]`, *optional*): Token ids of these words. Filled by the classifier's tokenizer.
        meta_reduction (`int`): The meta-net's hidden width is the joint width divided by this.
        text_chunk_size (`int`, *optional*): Encode this number of tokens at a time, and recompute them in the backward
            pass instead of keeping their activations. Any batch size then fits into memory, for a third more time.
            None: encode all at once and keep all activations.

    Raises:
        ValueError: an invalid value, or `num_context_tokens` differs from the number of tokens of the words.

    Example:

    ```python
    >>> from hf_clip_variants.adapters import CoCoOpConfig

    >>> CoCoOpConfig(context_init_ids=[320, 1125, 539, 320]).num_context_tokens
    4
    ```
    """

    peft_type_name: ClassVar[str] = "CLIPV_COCOOP"
    filled_fields: ClassVar[frozenset[str]] = frozenset({"context_init_ids"})

    num_context_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Number of trained context vectors. Default: the number of tokens of `context_init`, or 4.",
            "range": (1, 1000),
        },
    )
    context_init: str | None = field(
        default="a photo of a", metadata={"help": "Words that the context starts from; None: random vectors."}
    )
    context_init_ids: list[int] | None = field(
        default=None,
        metadata={"help": "Token ids of `context_init`, without start and end of text.", "range": (0, 10**7)},
    )
    meta_reduction: int = field(
        default=16,
        metadata={"help": "The meta-net's hidden width is the joint width divided by this.", "range": (1, 65_536)},
    )
    text_chunk_size: int | None = field(
        default=None, metadata={"help": "Tokens to encode at a time, recomputed in the backward pass: less memory."}
    )
    allow_other_backbone: bool = field(
        default=False, metadata={"help": "Load on a backbone with other weights. Not saved."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.text_chunk_size is not None:
            check_count("text_chunk_size", self.text_chunk_size)
        if self.context_init is not None and not self.context_init.replace("_", " ").strip():
            raise ValueError("context_init: blank, expected words or None")
        if self.context_init_ids is not None:
            self.set_context_ids(self.context_init_ids)
        elif self.num_context_tokens is None and self.context_init is None:
            self.num_context_tokens = 4

    def set_context_ids(self, ids: list[int]) -> None:
        """Makes the context start from these tokens.

        Raises:
            ValueError: their number differs from `num_context_tokens`, or there is none.
        """
        ids = [int(i) for i in ids]
        if not ids:
            raise ValueError("context_init_ids: empty, expected at least one token")
        if self.num_context_tokens not in (None, len(ids)):
            raise ValueError(
                f"num_context_tokens: {self.num_context_tokens}, but context_init {self.context_init or ids!r} has "
                f"{len(ids)} tokens (context_init_ids); leave num_context_tokens out, or set context_init=None"
            )
        self.context_init_ids, self.num_context_tokens = ids, len(ids)

    @property
    def changes_class_features_alone(self) -> bool:
        return False  # they are other ones for each image

    def adapter_tensors(self) -> dict[str, tuple[int, ...]]:
        width, joint = self.backbone_widths["text width"], self.backbone_widths["joint width"]
        hidden = self.hidden_width(joint)
        tensors = {
            "context": (self.num_context_tokens, width),
            "linear1.weight": (hidden, joint),
            "linear1.bias": (hidden,),
            "linear2.weight": (width, hidden),
            "linear2.bias": (width,),
        }
        return {f"prompt_embedder.clipv_cocoop_{name}": shape for name, shape in tensors.items()}

    def hidden_width(self, joint_width: int) -> int:
        """Hidden width of the meta-net; at least 1."""
        return max(1, joint_width // self.meta_reduction)


__all__ = ["CoCoOpConfig"]
