"""Configuration of ViLD: a Mask R-CNN whose classes are texts, and the dual encoder that it learns from."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, ResNetConfig
from transformers.configuration_utils import SubConfigSpec

from ..dense.configuration_dense import PromptableSegmentationFields
from ..dual_encoders.backbones import family_of, find_family
from ..loading_and_saving.configuration_checks import LARGEST, check_range, check_stages, checked, without_kernels


STRIDES = (4, 8, 16, 32, 64)  # of the five levels of the feature pyramid, P2 to P6
_RESNET152 = {"depths": [3, 8, 36, 3]}
# Sizes, and the weight of the distillation loss, of the released models.
_VARIANTS = {
    "resnet50_vild": {},
    "resnet50_vild_ensemble": {"variant": "ensemble"},
    "resnet152_vild": {"backbone_config": _RESNET152, "distill_weight": 1.0},
    "resnet152_vild_ensemble": {"backbone_config": _RESNET152, "variant": "ensemble", "distill_weight": 2.0},
}


@checked
@strict
class ViLDConfig(PromptableSegmentationFields, PreTrainedConfig):
    r"""
    Configuration of ViLD. The defaults are the released ResNet-50 model with the texts of CLIP's ViT-B/32;
    `ViLDConfig.of_variant` returns the four released ones, `ViLDConfig.tiny` one that trains on a laptop.

    Args:
        dual_encoder_config (`dict` or a configuration of a dual encoder):
            The dual encoder whose texts are the classes and whose image encoder is the teacher: CLIP's by default, or
            another one of `modeling/dual_encoders` (Chinese-CLIP, SigLIP, …), chosen by `model_type`. The detector has
            its text encoder only; the teacher is needed when its embeddings of crops are computed, see
            `hf_clip_variants.data.crops`.
        backbone_config (`dict` or `ResNetConfig`):
            The ResNet under the feature pyramid.
        variant (`"text"`, `"image"`, `"vild"` or `"ensemble"`, defaults to `"vild"`):
            `"text"`: classes by texts alone. `"image"`: the head learns from the teacher's image embeddings alone, and
            texts only come in at test time. `"vild"`: one head learns from both (officially "vanilla"). `"ensemble"`:
            two heads, whose scores are fused (officially "double_branch").
        temperature (`float`, defaults to 0.01):
            Cosines are divided by it.
        distill_weight (`float`, defaults to 0.5):
            Weight of the distillation loss; 0.5 for ResNet-50, 1 (vild) and 2 (ensemble) for ResNet-152.
        base_labels (`list[str]`, *optional*):
            Names of the labels that are trained on. All others of `id2label` are novel: `novel_in_loss` says what
            happens to them in training, and the ensemble weighs its heads by it. None: all labels are base ones.
        novel_in_loss (`"zero"`, `"exclude"` or `"keep"`, defaults to `"zero"`):
            What becomes of the logits of novel labels before the softmax of the loss. `"zero"`: multiplied by 0, so
            that they stay in the softmax with cosine 0 (the official code). `"exclude"`: they leave the softmax
            (DetPro's -1e11). `"keep"`: nothing.
        ensemble_weight (`float`, defaults to 2/3):
            Exponent of the head that knows better: the text head for base labels, the image head for novel ones.
        convention (`"tensorflow"` or `"mmdet"`, defaults to `"tensorflow"`):
            Whose geometry and normalisation the detector has. `"tensorflow"` (official): width = x2 - x1 + 1, anchors
            at pixel centres, batch norm in all parts, P6 by a convolution, regions sampled once a bin. `"mmdet"`
            (DetPro): width = x2 - x1, anchors at pixel corners, batch norm in the ResNet and in the head's
            convolutions only, P6 by subsampling, adaptive and aligned sampling of regions.
        anchor_scale (`float`, defaults to 8), anchor_ratios (`list[float]`):
            Anchors have side `anchor_scale` times the level's stride, and these ratios of width and height.
        hidden_size (`int`, defaults to 256): channels of the pyramid, of the RPN and of the heads' convolutions.
        head_num_convs, head_num_layers, head_hidden_size (`int`, default to 4, 2, 1024):
            Convolutions, linear layers and their width in the head (of each, if there are two).
        rpn_num_convs (`int`, defaults to 2): convolutions of the region proposal network.
        use_masks (`bool`, defaults to `True`): whether there is a mask head. Its masks do not depend on the class.
        mask_num_convs (`int`, defaults to 4): its convolutions.
        batch_norm_eps (`float`, defaults to 1e-4), batch_norm_momentum (`float`, defaults to 0.003):
            Momentum as PyTorch has it; 0.1 for short trainings.
        rpn_pre_nms, rpn_post_nms, rpn_pre_nms_in_training, rpn_post_nms_in_training (`int`):
            Proposals of each level before, and of all levels after the suppression of overlaps.
        rpn_nms_threshold (`float`, defaults to 0.7).
        rpn_positive_iou, rpn_negative_iou (`float`, default to 0.7, 0.3):
            From which and up to which overlap an anchor is an object, or none.
        rpn_samples, rpn_positive_share, roi_samples, roi_positive_share (`int` and `float`):
            Anchors and regions of an image that are trained on, and the largest share of objects among them.
        roi_positive_iou (`float`, defaults to 0.5).
        pre_nms, nms_threshold, score_threshold, max_detections:
            Of the final detections: candidates of each label, overlap of two of the same label, smallest score, number
            for each image.
        templates, label_texts, synonym_rule, …:
            Labels, as `set_labels` writes them: see [`PromptableSegmentationFields`]. `background` must stay `None`:
            the background is a learned vector.

    Example:

    ```python
    >>> from hf_clip_variants import ViLDConfig

    >>> config = ViLDConfig.of_variant("resnet152_vild_ensemble")
    >>> config.backbone_config.depths, config.variant, config.distill_weight, config.projection_dim
    ([3, 8, 36, 3], 'ensemble', 2.0, 512)
    ```
    """

    model_type = "clipv-vild"
    sub_configs_defaults = {
        "dual_encoder_config": SubConfigSpec(AutoConfig, model_type="clip"),
        "backbone_config": SubConfigSpec(AutoConfig, model_type="resnet"),
    }
    keys_to_ignore_at_inference = [
        "class_embeddings",
        "loss_dict",
        "class_logits",
        "image_logits",
        "region_embeddings",
        "proposals",
        "objectness",
        "detections",
    ]

    dual_encoder_config: dict | PreTrainedConfig | None = None
    backbone_config: dict | ResNetConfig | None = None
    variant: Literal["text", "image", "vild", "ensemble"] = "vild"
    temperature: float | int = 0.01
    distill_weight: float | int = 0.5
    base_labels: list[str] | None = None
    novel_in_loss: Literal["zero", "exclude", "keep"] = "zero"
    ensemble_weight: float | int = 2 / 3
    convention: Literal["tensorflow", "mmdet"] = "tensorflow"
    anchor_scale: float | int = 8
    anchor_ratios: list[float | int] | tuple[float | int, ...] = (1.0, 2.0, 0.5)
    hidden_size: int = 256
    head_num_convs: int = 4
    head_num_layers: int = 2
    head_hidden_size: int = 1024
    rpn_num_convs: int = 2
    use_masks: bool = True
    mask_num_convs: int = 4
    batch_norm_eps: float = 1e-4
    batch_norm_momentum: float = 0.003
    rpn_pre_nms: int = 1000
    rpn_post_nms: int = 1000
    rpn_pre_nms_in_training: int = 2000
    rpn_post_nms_in_training: int = 1000
    rpn_nms_threshold: float = 0.7
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_samples: int = 256
    rpn_positive_share: float = 0.5
    roi_samples: int = 512
    roi_positive_share: float = 0.25
    roi_positive_iou: float = 0.5
    pre_nms: int = 1000
    nms_threshold: float = 0.5
    score_threshold: float = 0.0
    max_detections: int = 300
    initializer_range: float = 0.01

    def __post_init__(self, **kwargs):
        if isinstance(self.backbone_config, dict):
            self.backbone_config = {"model_type": "resnet"} | self.backbone_config
            self.backbone_config.pop("stage_names", None)  # made of the depths
            if (kind := self.backbone_config["model_type"]) != "resnet":
                raise ValueError(f"backbone_config.model_type: {kind!r}, expected 'resnet'")
            check_stages("backbone_config", self.backbone_config, ("depths", "hidden_sizes"))
        if isinstance(self.dual_encoder_config, dict):
            self.dual_encoder_config = {"model_type": "clip"} | self.dual_encoder_config
            family_of(self.dual_encoder_config["model_type"])
        super().__post_init__(**kwargs)
        self.anchor_ratios = list(self.anchor_ratios)

    @classmethod
    def of_variant(cls, name: str, **kwargs) -> "ViLDConfig":
        """A released model: `"resnet50_vild"`, `"resnet50_vild_ensemble"`, `"resnet152_vild"` or
        `"resnet152_vild_ensemble"`. `kwargs` are further fields. ValueError for another name."""
        if name not in _VARIANTS:
            raise ValueError(f"name: {name!r}, expected one of {', '.join(_VARIANTS)}")
        return cls(**_VARIANTS[name] | kwargs)

    @classmethod
    def tiny(cls, dual_encoder_config, **kwargs) -> "ViLDConfig":
        """About 1.3 million weights beside the text encoder, for images of 128 pixels: trains on two processor cores
        in minutes. Batch norm has PyTorch's momentum. `kwargs` are further fields."""
        backbone = {
            "embedding_size": 24,
            "hidden_sizes": [32, 48, 64, 96],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
        }
        values = {
            "backbone_config": backbone,
            "hidden_size": 48,
            "head_num_convs": 1,
            "head_num_layers": 1,
            "head_hidden_size": 256,
            "rpn_num_convs": 1,
            "mask_num_convs": 1,
            "batch_norm_momentum": 0.1,
            "rpn_pre_nms": 200,
            "rpn_post_nms": 100,
            "rpn_pre_nms_in_training": 200,
            "rpn_post_nms_in_training": 100,
            "rpn_samples": 64,
            "roi_samples": 32,
            "max_detections": 100,
        }
        return cls(dual_encoder_config=dual_encoder_config, **values | kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs: attention kernels are chosen by the caller,
        the dual encoder is one that is known here, and the backbone is a ResNet."""
        for part, known in (("backbone_config", ("resnet",)), ("dual_encoder_config", None)):
            values = config_dict.get(part)
            kind = values.get("model_type") if isinstance(values, dict) else None
            if kind is not None and not (kind in known if known else find_family(kind)):
                raise ValueError(f"{part}.model_type: {kind!r}, expected {known[0] if known else 'a dual encoder'!r}")
        return super().from_dict(without_kernels(config_dict), **kwargs)

    @classmethod
    def part_classes(cls, values) -> dict[str, type]:
        """The parts' configurations, for `check_values`; none for a dual encoder that is unknown."""
        dual = values.get("dual_encoder_config")
        family = find_family(dual.get("model_type", "clip") if isinstance(dual, dict) else "clip")
        found = {"backbone_config": ResNetConfig}
        return found | ({"dual_encoder_config": family.model_class().config_class} if family else {})

    @property
    def projection_dim(self) -> int:
        """Width of the joint space of regions and texts."""
        return family_of(self.dual_encoder_config.model_type).joint_width(self.dual_encoder_config)

    @property
    def text_config(self) -> PreTrainedConfig:
        """The text encoder's configuration."""
        return self.dual_encoder_config.text_config

    @property
    def vision_config(self) -> PreTrainedConfig:
        """The teacher's configuration."""
        return self.dual_encoder_config.vision_config

    @property
    def box_offset(self) -> float:
        """What is added to x2 - x1 to give a width."""
        return 1.0 if self.convention == "tensorflow" else 0.0

    @property
    def novel_mask(self) -> list[bool]:
        """For each label, whether it is novel: not among `base_labels`."""
        names = [name for _, name in sorted(self.id2label.items())]
        return [self.base_labels is not None and name not in self.base_labels for name in names]

    def validate_no_background(self):
        if self.background is not None:
            raise ValueError(f"background: {self.background!r}, expected None: ViLD has learned its background")

    def validate_numbers(self):
        check_range(self, "", ("hidden_size",))
        counts = ("head_num_layers", "head_hidden_size", "rpn_num_convs", "rpn_pre_nms", "rpn_post_nms")
        counts += ("rpn_pre_nms_in_training", "rpn_post_nms_in_training", "rpn_samples", "roi_samples", "pre_nms")
        for name in (*counts, "max_detections", "head_num_convs", "mask_num_convs"):
            least = 0 if name in ("head_num_convs", "mask_num_convs") else 1
            if not least <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a whole number in {least}..{LARGEST}")
        shares = ("rpn_nms_threshold", "rpn_positive_iou", "rpn_negative_iou", "rpn_positive_share", "nms_threshold")
        for name in (*shares, "roi_positive_share", "roi_positive_iou", "score_threshold", "ensemble_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a number in 0..1")
        if self.rpn_negative_iou > self.rpn_positive_iou:
            raise ValueError(f"rpn_negative_iou: {self.rpn_negative_iou} is above rpn_positive_iou")
        for name, low in (("temperature", False), ("distill_weight", True), ("anchor_scale", False)):
            value = getattr(self, name)
            if not (0 <= value if low else 0 < value) or not math.isfinite(value):
                raise ValueError(f"{name}: {value}, expected a number {'>=' if low else '>'} 0")
        if not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(f"batch_norm_momentum: {self.batch_norm_momentum}, expected a number in 0..1")
        ratios = self.anchor_ratios
        if not ratios or not all(0 < ratio < math.inf for ratio in ratios):
            raise ValueError(f"anchor_ratios: {ratios}, expected at least one number > 0")

    def validate_backbone(self):
        if isinstance(self.backbone_config, PreTrainedConfig):
            check_stages("backbone_config", vars(self.backbone_config), ("depths", "hidden_sizes"))


__all__ = ["STRIDES", "ViLDConfig"]
