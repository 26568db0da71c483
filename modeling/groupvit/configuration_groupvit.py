"""Configurations of GroupViT: the image encoder that groups patches in stages, and the model with texts."""

import math
from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import CLIPTextConfig, PreTrainedConfig

from ..dense.background import LEARNED
from ..dense.configuration_dense import PromptableSegmentationFields
from ..loading_and_saving.configuration_checks import (
    LARGEST,
    LARGEST_LAYERS,
    check_encoder_types,
    check_range,
    checked,
    without_kernels,
)


ASSIGNMENTS = ("hard", "soft")
_TEXT = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
# The configuration of transformers' GroupViT, whose checkpoints load into these models.
UPSTREAM = "groupvit"
_UPSTREAM_PARTS = {"text_config": "groupvit_text_model", "vision_config": "groupvit_vision_model"}


@checked
@strict
class GroupViTVisionConfig(PreTrainedConfig):
    r"""
    Configuration of GroupViT's image encoder: a Vision Transformer without class token, in stages. A stage with group
    tokens ends in a grouping block, which replaces its tokens (patches, or the groups of the stage before) by fewer
    groups. The defaults are the published model.

    Args:
        hidden_size, intermediate_size, num_attention_heads (`int`, default to 384, 1536 and 6):
            Width of the tokens, hidden width of the layers' MLPs, heads.
        depths (`list[int]`, defaults to `[6, 3, 3]`):
            Transformer layers of each stage.
        num_group_tokens (`list[int]`, defaults to `[64, 8, 0]`):
            Learned group tokens that join each stage; 0: the stage does not group. At least one stage groups.
        num_output_groups (`list[int]`, defaults to `[64, 8, 8]`):
            Groups that each stage's grouping block makes, at most that many segments in the end. Entries of stages
            without group tokens are not read, and may be missing at the end.
        image_size, patch_size, num_channels (`int`, default to 224, 16 and 3):
            Of the training images; other sizes with `interpolate_pos_encoding`.
        assignment (`str`, defaults to `"hard"`):
            How a token joins groups: `"hard"` one group (with straight-through gradients), `"soft"` all groups in
            shares.
        gumbel_noise (`bool`, defaults to `True`):
            Add Gumbel noise to the assignment's logits in training.
        gumbel_temperature (`float`, defaults to 1.0):
            Divides noisy logits in training; evaluation has temperature 1.
        assign_eps (`float`, defaults to 1.0):
            A group of n tokens is their sum divided by n + `assign_eps`.
        assign_mlp_ratio (`list[float]`, defaults to `[0.5, 4]`):
            Hidden widths of a grouping block's two MLPs, over tokens and over channels, as multiples of `hidden_size`.
        drop_path_rate (`float`, defaults to 0.1):
            Stochastic depth of the last layer in training; it grows linearly from 0 over all layers.
        hidden_act (`str`, defaults to `"gelu"`), layer_norm_eps (`float`, defaults to 1e-5), dropout,
        attention_dropout (`float`, default to 0.0):
            As in other Vision Transformers.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of initial weights, positions and the first stage's group tokens. Those of later stages
            start at zero.

    Example:

    ```python
    >>> from hf_clip_variants import GroupViTVisionConfig

    >>> config = GroupViTVisionConfig(depths=[6, 6], num_group_tokens=[16, 0], num_output_groups=[16])
    >>> config.num_hidden_layers, config.num_groups
    (12, 16)
    ```
    """

    model_type = "clipv-groupvit_vision"
    base_config_key = "vision_config"

    hidden_size: int = 384
    intermediate_size: int = 1536
    num_hidden_layers: int | None = None
    depths: list[int] | tuple[int, ...] = field(default_factory=lambda: [6, 3, 3])
    num_group_tokens: list[int] | tuple[int, ...] = field(default_factory=lambda: [64, 8, 0])
    num_output_groups: list[int] | tuple[int, ...] = field(default_factory=lambda: [64, 8, 8])
    num_attention_heads: int = 6
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.1
    initializer_range: float = 0.02
    assignment: str = "hard"
    gumbel_noise: bool = True
    gumbel_temperature: float | int = 1.0
    assign_eps: float | int = 1.0
    assign_mlp_ratio: list[float | int] | tuple[float | int, ...] = field(default_factory=lambda: [0.5, 4])

    def __post_init__(self, **kwargs):
        self.num_hidden_layers = sum(self.depths)  # follows from `depths`
        super().__post_init__(**kwargs)

    @property
    def grouping_stages(self) -> list[int]:
        """Numbers of the stages that end in a grouping block."""
        return [stage for stage, tokens in enumerate(self.num_group_tokens) if tokens]

    @property
    def num_groups(self) -> int:
        """Groups that the image is divided into in the end."""
        return self.num_output_groups[self.grouping_stages[-1]]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of a training image."""
        return (self.image_size // self.patch_size,) * 2

    def validate_sizes(self):
        names = ("hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size", "num_channels")
        check_range(self, "", names)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads: {self.num_attention_heads} does not divide hidden_size ({self.hidden_size})"
            )
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size: {self.patch_size} is larger than image_size ({self.image_size})")
        ratio = self.assign_mlp_ratio
        if len(ratio) != 2 or not all(1 <= int(one * self.hidden_size) <= LARGEST for one in ratio):
            raise ValueError(f"assign_mlp_ratio: {ratio}, expected two multiples of hidden_size ({self.hidden_size})")

    def validate_stages(self):
        depths, tokens, groups = self.depths, self.num_group_tokens, self.num_output_groups
        if not depths or not all(0 <= one <= LARGEST_LAYERS for one in depths) or not 0 < sum(depths):
            raise ValueError(f"depths: {depths}, expected numbers of layers of each stage")
        if sum(depths) > LARGEST_LAYERS:
            raise ValueError(f"depths: {depths}, more than {LARGEST_LAYERS} layers together")
        if len(tokens) != len(depths) or not all(0 <= one <= LARGEST for one in tokens) or not any(tokens):
            raise ValueError(
                f"num_group_tokens: {tokens}, expected {len(depths)} numbers (as depths has), of which one is not 0"
            )
        last = max(self.grouping_stages)
        if len(groups) <= last or not all(0 < groups[one] <= LARGEST for one in self.grouping_stages):
            raise ValueError(
                f"num_output_groups: {groups}, expected numbers of groups > 0 for the stages {self.grouping_stages}, "
                "which have group tokens"
            )

    def validate_assignment(self):
        if self.assignment not in ASSIGNMENTS:
            raise ValueError(f"assignment: {self.assignment!r}, expected one of {', '.join(ASSIGNMENTS)}")
        if not 0 < self.gumbel_temperature < math.inf:
            raise ValueError(f"gumbel_temperature: {self.gumbel_temperature}, expected a number > 0")
        if not 0 <= self.assign_eps < math.inf:
            raise ValueError(f"assign_eps: {self.assign_eps}, expected a number >= 0")


@checked
@strict
class GroupViTConfig(PromptableSegmentationFields, PreTrainedConfig):
    r"""
    Configuration of GroupViT: an image encoder that groups patches, CLIP's text encoder, two projections with batch
    normalisation into the joint space. The defaults are the published model that was trained with noun prompts
    (`group_vit_gcc_yfcc_30e`). Fields have the names and places of transformers' `GroupViTConfig`, whose files load.

    Args:
        text_config (`dict` or `CLIPTextConfig`):
            CLIP's text encoder; by default 256 wide with 4 heads.
        vision_config (`dict` or [`GroupViTVisionConfig`]):
            The image encoder.
        projection_dim, projection_intermediate_dim (`int`, default to 256 and 4096):
            Width of the joint space, and hidden width of the projections.
        logit_scale_init_value (`float`, defaults to 2.6592):
            Logarithm of the initial logit scale, ln(1 / 0.07). The scale is used up to 100.
        num_noun_prompts (`int`, defaults to 3):
            Noun prompts of each caption, M in the multi-label loss. 0: the model has no temperature for it.
        multi_label_weight (`float`, defaults to 1.0):
            Weight of the multi-label loss beside the contrastive loss.
        multi_label_form (`str`, defaults to `"mean_of_logs"`):
            Over an image's positive prompts: the mean of their log-probabilities (the official code), or
            `"log_of_sum"`, the logarithm of the sum of their probabilities (the paper's equation).
        share_temperature (`bool`, defaults to `False`):
            The multi-label loss uses `logit_scale` instead of its own temperature.
        num_gated_classes (`int`, defaults to 5):
            Segmentation: only this many classes, those that fit the whole image best, can be in it.
        segmentation_maps (`str`, defaults to `"soft"`):
            Segmentation: multiply the stages' soft maps or, worse, the hard assignments.
        pixel_assignment (`str`, defaults to `"hard"`):
            Segmentation: a pixel has its best group's scores, or with `"soft"` the mean of all groups' scores,
            weighted by the map.
        trained_part (`str`, defaults to `"all"`):
            What training changes: `"all"`, or `"group_tokens"`, the group tokens alone (all else is frozen, and the
            projections' statistics stay as they are).
        num_background_vectors (`int`, defaults to 0):
            Background vectors in the joint space, which training from captions can have groups compete for
            (`background_constraint.py`; ours, not the paper's). 0: none.
        background_weights (`list[float]`, defaults to `[0, 0, 0, 0]`):
            Weights of that constraint's parts in the loss: positive, negative, area, separation.
        background_area (`list[float]`, defaults to `[0.05, 0.95]`):
            Least and largest share of an image that the constraint allows the background.
        background_margin (`float`, defaults to 0.5):
            Cosine of a background vector and a noun from which on the part "separation" grows.
        background_rule (`str`, defaults to `"threshold"`):
            What `background="learned"` means. `"threshold"`: a threshold computed from each label's text embedding
            (`background_threshold.py`), whatever the labels. `"vectors"`: a group is background where a background
            vector is nearer to it than every label.
        background_start (`float`, defaults to 0.95):
            Where the learned threshold starts from.
        templates (`list[str]`, defaults to `["a photo of a {}."]`), background and further fields of labels:
            See `PromptableSegmentationFields`. Thresholds of the background are compared with the scores of groups,
            not of pixels: `background_of` is not read.

    Example:

    ```python
    >>> from hf_clip_variants import GroupViTConfig

    >>> config = GroupViTConfig(vision_config={"num_group_tokens": [64, 20, 0], "num_output_groups": [64, 20]})
    >>> config.vision_config.num_groups, config.text_config.hidden_size
    (20, 256)
    ```
    """

    model_type = "clipv-groupvit"
    sub_configs_defaults = {"text_config": CLIPTextConfig, "vision_config": GroupViTVisionConfig}
    keys_to_ignore_at_inference = [
        *PromptableSegmentationFields.keys_to_ignore_at_inference,
        *("text_model_output", "vision_model_output", "prompt_embeds"),
        *("group_embeds", "image_embeds", "group_scores", "stage_maps", "group_background"),
        *("background_losses", "background_areas"),
    ]

    text_config: dict | CLIPTextConfig | None = None
    vision_config: dict | GroupViTVisionConfig | None = None
    projection_dim: int = 256
    projection_intermediate_dim: int = 4096
    logit_scale_init_value: float | int = 2.6592
    initializer_range: float = 0.02
    initializer_factor: float | int = 1.0
    num_noun_prompts: int = 3
    multi_label_weight: float | int = 1.0
    multi_label_form: str = "mean_of_logs"
    share_temperature: bool = False
    num_gated_classes: int = 5
    segmentation_maps: str = "soft"
    pixel_assignment: str = "hard"
    trained_part: str = "all"
    num_background_vectors: int = 0
    background_weights: list[float | int] | tuple[float | int, ...] = field(default_factory=lambda: [0, 0, 0, 0])
    background_area: list[float | int] | tuple[float | int, ...] = field(default_factory=lambda: [0.05, 0.95])
    background_margin: float | int = 0.5
    background_rule: str = "threshold"
    background_start: float | int = 0.95
    templates: list[str] | None = field(default_factory=lambda: ["a photo of a {}."])

    def __post_init__(self, **kwargs):
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = {"projection_dim": self.projection_dim, **_TEXT} | (self.text_config or {})
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs: attention kernels are chosen by the caller,
        the encoders are CLIP's for texts and GroupViT's for images. Takes the values of transformers' `GroupViTConfig`
        as well: those models have no temperature of the multi-label loss.
        """
        if config_dict.get("model_type") == UPSTREAM:
            config_dict = _from_upstream(config_dict)
        known = {"text_config": ("clip_text_model", "clip"), "vision_config": (GroupViTVisionConfig.model_type,)}
        check_encoder_types(config_dict, known)
        return super().from_dict(without_kernels(config_dict), **kwargs)

    @property
    def has_multi_label_scale(self) -> bool:
        """Whether the multi-label loss has a temperature of its own."""
        return self.num_noun_prompts > 0 and not self.share_temperature

    def validate_sizes(self):
        check_range(self, "", ("projection_dim", "projection_intermediate_dim", "num_gated_classes"))
        if not math.isfinite(self.logit_scale_init_value):
            raise ValueError(f"logit_scale_init_value: {self.logit_scale_init_value}, expected a finite number")

    def validate_losses(self):
        if not 0 <= self.num_noun_prompts <= LARGEST:
            raise ValueError(f"num_noun_prompts: {self.num_noun_prompts}, expected a number >= 0")
        if not 0 <= self.multi_label_weight < math.inf:
            raise ValueError(f"multi_label_weight: {self.multi_label_weight}, expected a number >= 0")
        choices = {
            "multi_label_form": ("mean_of_logs", "log_of_sum"),
            "segmentation_maps": ASSIGNMENTS,
            "pixel_assignment": ASSIGNMENTS,
            "trained_part": ("all", "group_tokens"),
            "background_rule": ("threshold", "vectors"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: {getattr(self, name)!r}, expected one of {', '.join(allowed)}")

    @property
    def has_background_threshold(self) -> bool:
        """Whether the model has a threshold of the background that it computes from labels' texts."""
        return self.background == LEARNED and self.background_rule == "threshold"

    def validate_background_constraint(self):
        if not 0 <= self.num_background_vectors <= LARGEST:
            raise ValueError(f"num_background_vectors: {self.num_background_vectors}, expected a number >= 0")
        weights, area = self.background_weights, self.background_area
        if len(weights) != 4 or not all(0 <= one < math.inf for one in weights):
            raise ValueError(f"background_weights: {weights}, expected four numbers >= 0")
        if any(weights) and not self.num_background_vectors:
            raise ValueError(f"background_weights: {weights}, but num_background_vectors is 0")
        if len(area) != 2 or not 0 <= area[0] <= area[1] <= 1:
            raise ValueError(f"background_area: {area}, expected two shares, 0 <= least <= largest <= 1")
        if self.background == LEARNED and self.background_rule == "vectors" and not self.num_background_vectors:
            raise ValueError("background_rule: 'vectors', but num_background_vectors is 0")
        if not 0 <= self.background_start <= 1 or not math.isfinite(self.background_margin):
            raise ValueError(
                f"background_start, background_margin: {self.background_start} and {self.background_margin}, expected "
                "0..1 and a cosine"
            )

    def validate_encoders(self):
        text = self.text_config
        if isinstance(text, PreTrainedConfig):
            names = ("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size")
            check_range(text, "text_config.", (*names, "num_attention_heads", "num_hidden_layers"))


def _from_upstream(values) -> dict:
    """The values of transformers' `GroupViTConfig` as those of this one."""
    values = dict(values)
    values.pop("model_type")
    values.pop("output_segmentation", None)
    for part, kind in _UPSTREAM_PARTS.items():
        nested = dict(values.get(part) or {})
        if nested.pop("model_type", kind) != kind:
            raise ValueError(f"{part}.model_type: {values[part]['model_type']!r}, expected {kind!r}")
        values[part] = nested
    values["text_config"].pop("dropout", None)  # no layer reads it
    for name in ("num_hidden_layers", "initializer_factor"):
        values["vision_config"].pop(name, None)
    return {"num_noun_prompts": 0} | values


__all__ = ["ASSIGNMENTS", "UPSTREAM", "GroupViTConfig", "GroupViTVisionConfig"]
