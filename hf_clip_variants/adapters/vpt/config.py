"""Configuration of VPT."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ..prompts.initial_vectors import check_depth
from ..prompts.visual_prompts import PromptPosition, VisualPromptShape, visual_prompt_module
from ..tuner import TunerConfig


PromptInit = Literal["normal", "uniform_patch"]


def layers_of_stage(prompt_depth: int, first: int, count: int) -> int:
    """How many of a stage's layers have prompts of their own.

    Args:
        prompt_depth: layers of the whole encoder with prompts of their own, J.
        first, count: number of layers before the stage, and in it.

    >>> [layers_of_stage(3, first, 2) for first in (0, 2, 4)]
    [2, 1, 0]
    """
    return min(max(prompt_depth - first, 0), count)


@dataclass
class VPTConfig(TunerConfig):
    """Visual prompt tuning (Jia et al. 2022, arXiv 2203.12119): learned tokens beside the patches of an image.

    VPT-shallow has them in the first layer (eq. 4), VPT-deep in every layer (eq. 7). The defaults are the CLIP variant
    in the repository of Khattak et al.: prompts at the end of the sequence, normalised with the patches in layer 0.
    For the original on an image classifier, such as `ViTForImageClassification`, use `VPTConfig.original(...)`. Prefer
    `MaPLeConfig` or `IVLPConfig` if text prompts should be trained too, and LoRA if the adapter must be merged into
    the weights.

    Args:
        num_prompt_tokens (`int`): Learned tokens in each layer, n.
        prompt_depth (`int` or `"all"`): Layers with tokens of their own, J, counted from the first: 1 is VPT-shallow,
            `"all"` VPT-deep.
        prompt_position (`str`): `"end"`, or `"after_cls"` directly after the class token. Features do not depend on
            it. On Swin prompts are in every window, and this has no effect.
        normalize_first (`bool`): Apply CLIP's norm before the first layer to the prompts of layer 0, too. Other
            families than CLIP do not have this norm.
        init (`str`): `"normal"`: N(0, 0.02²). `"uniform_patch"`: U(-v, v) with v² = 6 / (3 patch² + width), the
            original. On Swin the width is that of the stage.
        dropout (`float`): Dropout probability of the prompts during training.
        projection_dim (`int`, *optional*): Width of the prompts. One trained `Linear` for all layers maps them to the
            encoder's width (PROJECT in the official code). None: prompts have the encoder's width.
        modules_to_save (`list[str]`, *optional*): Modules that are trained and saved as a whole, such as the
            `"classifier"` of an image model.

    Raises:
        ValueError: an invalid value.

    Example:

    ```python
    >>> from hf_clip_variants.adapters import VPTConfig

    >>> VPTConfig(prompt_depth=1).num_prompt_tokens
    8
    ```
    """

    peft_type_name: ClassVar[str] = "CLIPV_VPT"
    only_for_training: ClassVar[frozenset[str]] = TunerConfig.only_for_training | {"init", "dropout"}

    num_prompt_tokens: int = field(default=8, metadata={"help": "Learned tokens in each layer.", "range": (1, 10_000)})
    prompt_depth: int | str = field(
        default="all", metadata={"help": "Layers with tokens of their own: from 1 (shallow) to all (deep)."}
    )
    prompt_position: PromptPosition = field(
        default="end", metadata={"help": "Position of the tokens: end or after_cls. Features do not depend on it."}
    )
    normalize_first: bool = field(
        default=True,
        metadata={"help": "Apply CLIP's norm before the first layer to the learned tokens of that layer, too."},
    )
    init: PromptInit = field(
        default="normal",
        metadata={"help": "Initial values: N(0, 0.02^2) (normal), or the original's range (uniform_patch)."},
    )
    dropout: float = field(
        default=0.0, metadata={"help": "Dropout probability of the tokens during training.", "range": (0, 1)}
    )
    projection_dim: int | None = field(
        default=None,
        metadata={
            "help": "Width of the tokens, if a trained Linear maps them to the encoder's width.",
            "range": (1, 65_536),
        },
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules to train and save as a whole, such as an image model's classifier."}
    )
    allow_other_backbone: bool = field(
        default=False, metadata={"help": "Load on a backbone with other weights. Not saved."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_depth("prompt_depth", self.prompt_depth)
        if self.dropout == 1:
            raise ValueError("dropout: 1.0, expected at least 0 and less than 1")

    @classmethod
    def original(cls, **changes) -> "VPTConfig":
        """The original on an image classifier: prompts after the class token, its initial range, and a new head that
        is trained too.

        Args:
            changes: fields of `VPTConfig` with other values.


        >>> VPTConfig.original(num_prompt_tokens=10).modules_to_save
        ['classifier']
        """
        settings = {"prompt_position": "after_cls", "init": "uniform_patch", "modules_to_save": ["classifier"]}
        return cls(**settings | {"num_prompt_tokens": 50, "normalize_first": False} | changes)

    @property
    def vision_shape(self) -> VisualPromptShape:
        return VisualPromptShape(self.num_prompt_tokens, self.prompt_depth, self.prompt_position, self.normalize_first)

    def prompt_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Name of each module that holds prompts -> number of its layers with prompts, n, and its width.

        One module holds all prompts; in Swin it is one a stage, because widths differ.
        """
        count, widths = self.num_prompt_tokens, self.backbone_widths
        width = widths["image width"]
        stages = [widths[name] for name in sorted(widths) if name.startswith("stage")]
        if not stages:
            return {visual_prompt_module(self.target_modules): (self.prompt_depth, count, width)}
        shapes = {}
        for name in self.target_modules:
            stage = int(name.rpartition(".")[2])
            if depth := layers_of_stage(self.prompt_depth, sum(stages[:stage]), stages[stage]):
                shapes[name] = (depth, count, width * 2**stage)
        return shapes

    def why_no_weighted_sum(self) -> str | None:
        return "its prompts are projected (projection_dim)" if self.projection_dim else None

    def adapter_tensors(self) -> dict[str, tuple[int, ...]]:
        tensors = {}
        for module, (depth, count, width) in self.prompt_shapes().items():
            tensors[f"{module}.clipv_vpt_prompts"] = (depth, count, self.projection_dim or width)
            if self.projection_dim is not None:
                tensors[f"{module}.clipv_vpt_projection.weight"] = (width, self.projection_dim)
                tensors[f"{module}.clipv_vpt_projection.bias"] = (width,)
        return tensors


__all__ = ["PromptInit", "VPTConfig", "layers_of_stage"]
