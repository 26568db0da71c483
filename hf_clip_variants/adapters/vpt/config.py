"""Configuration of VPT."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from ..prompts.initial_vectors import check_count, check_depth
from ..prompts.visual_prompts import PromptPosition, VisualPromptShape, visual_home
from ..tuner import TunerConfig


PromptInit = Literal["normal", "uniform_patch"]


@dataclass
class VPTConfig(TunerConfig):
    """Visual prompt tuning (Jia et al. 2022, arXiv 2203.12119): learned tokens beside the patches, in the first layer or in all of them.

    The defaults are the CLIP variant of Khattak et al.'s repository (prompts at the end, normalised with the patches in layer 0); the original
    on a `ViTForImageClassification` is `VPTConfig.original(...)`. Prefer `MaPLeConfig` or `IVLPConfig` where the text side may learn, too, and LoRA
    where the adapter must merge into the weights.

    Args:
        num_prompt_tokens (`int`): Learned tokens in each layer, n.
        prompt_depth (`int` or `"all"`): How many layers get tokens of their own, J; 1 is VPT-shallow, `"all"` VPT-deep.
        prompt_position (`str`): `"end"`, or `"after_cls"` between class token and patches. The features do not depend on it.
        normalize_first (`bool`): Whether CLIP's norm before the first layer is applied to the prompts of layer 0. ViT and SigLIP have none.
        init (`str`): `"normal"`: N(0, 0.02²); `"uniform_patch"`: the original's U(-v, v), v² = 6 / (3 patch² + width).
        dropout (`float`): On the prompts in training.
        projection_dim (`int`, *optional*): Prompts have this width, and one trained `Linear` for all layers brings them to the tower's (PROJECT).
        modules_to_save (`list[str]`, *optional*): Modules that are trained and saved as a whole, such as the `"classifier"` of a ViT.

    Raises:
        ValueError: for values outside these.

    Example:

    ```python
    >>> from hf_clip_variants.adapters import VPTConfig

    >>> VPTConfig(prompt_depth=1).num_prompt_tokens
    8
    ```
    """

    peft_type_name: ClassVar[str] = "CLIPV_VPT"

    num_prompt_tokens: int = field(default=8, metadata={"help": "Learned tokens in each layer."})
    prompt_depth: int | str = field(
        default="all", metadata={"help": "Layers with tokens of their own: 1 (shallow) up to all (deep)."}
    )
    prompt_position: PromptPosition = field(
        default="end", metadata={"help": "Where the tokens stand: end, or after_cls. Features do not depend on it."}
    )
    normalize_first: bool = field(
        default=True, metadata={"help": "Apply CLIP's norm before the first layer to the first layer's tokens."}
    )
    init: PromptInit = field(
        default="normal",
        metadata={"help": "Start from N(0, 0.02^2) (normal) or the original's range (uniform_patch)."},
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the tokens in training."})
    projection_dim: int | None = field(
        default=None, metadata={"help": "Width of the tokens where a trained Linear brings them to the tower's width."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules to train and save as a whole, such as a ViT's classifier."}
    )
    allow_other_backbone: bool = field(
        default=False, metadata={"help": "Load on a backbone with other weights. Not saved."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_count("num_prompt_tokens", self.num_prompt_tokens)
        check_depth("prompt_depth", self.prompt_depth)
        if self.init not in get_args(PromptInit):
            raise ValueError(f"init: {self.init!r}, expected one of {', '.join(get_args(PromptInit))}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout}, expected at least 0 and less than 1")
        if self.projection_dim is not None:
            check_count("projection_dim", self.projection_dim)

    @classmethod
    def original(cls, **changes) -> "VPTConfig":
        """The paper's own on a ViT: behind the class token, its initial range, a new head (`classifier`) trained with the prompts.

        >>> VPTConfig.original(num_prompt_tokens=10).modules_to_save
        ['classifier']
        """
        settings = {"prompt_position": "after_cls", "init": "uniform_patch", "modules_to_save": ["classifier"]}
        return cls(**settings | {"num_prompt_tokens": 50, "normalize_first": False} | changes)

    @property
    def vision_shape(self) -> VisualPromptShape:
        return VisualPromptShape(self.num_prompt_tokens, self.prompt_depth, self.prompt_position, self.normalize_first)

    def adapter_tensors(self) -> dict[str, tuple[int, ...]]:
        home = visual_home(self.target_modules)
        width = self.backbone_widths["image width"]
        shape = (self.prompt_depth, self.num_prompt_tokens, self.projection_dim or width)
        tensors = {f"{home}.clipv_vpt_prompts": shape}
        if self.projection_dim is not None:
            tensors[f"{home}.clipv_vpt_projection.weight"] = (width, self.projection_dim)
            tensors[f"{home}.clipv_vpt_projection.bias"] = (width,)
        return tensors


__all__ = ["PromptInit", "VPTConfig"]
