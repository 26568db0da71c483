"""Configuration of FND-CLIP: a BERT, a dual encoder and a ResNet, and the layers that weigh what they say."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, BertConfig, PreTrainedConfig, ResNetConfig
from transformers.configuration_utils import SubConfigSpec

from ..dual_encoders.backbones import family_of, find_family
from ..loading_and_saving.configuration_checks import check_encoder_types, check_stages, checked, without_kernels


MODALITIES = ("text", "image", "cross")  # the order of `modality_weights`
_RESNET101 = {"depths": [3, 4, 23, 3], "num_labels": 1000}
_LARGEST_DIM, _LARGEST_LOGITS = 16_384, 65_536


@checked
@strict
class FNDCLIPConfig(PreTrainedConfig):
    r"""
    Configuration of FND-CLIP. The defaults are the paper's sizes with English encoders.

    Args:
        text_config (`dict` or `BertConfig`):
            The BERT that reads the text, whose layers are weighed. `bert-base-chinese` for Weibo.
        dual_encoder_config (`dict` or a configuration of a dual encoder):
            Compares text and image: CLIP's by default, or another one of `modeling/dual_encoders` (Chinese-CLIP,
            SigLIP, …), chosen by `model_type`. One that reads the language of the posts needs no translated text.
        backbone_config (`dict` or `ResNetConfig`):
            The ResNet; its class logits are the image's features. By default ResNet-101 with ImageNet's 1000 classes.
        shared_dim, feature_dim, hidden_dim (`int`, default to 256, 64, 64):
            Widths inside the three branches, of what they give, and inside the classifier.
        dropout (`float`, defaults to 0.5): inside the three branches.
        batch_layer_attention (`bool`, defaults to `False`):
            Weigh BERT's layers by sums over the whole batch, as the published code does. An answer then depends on the
            other posts of its batch. For official weights and for comparison only.
        adapt_features (`bool`, defaults to `False`):
            Two square matrices that change the dual encoder's features before all else, and do nothing as they start.
            `fit_feature_maps` fits them on posts whose text and image belong together. Not in the paper.
        similarity_residual (`bool`, defaults to `False`):
            The answer starts as that of the similarity alone (`start_from_similarity`), and what else is learned is
            added to it, beginning at nothing. For few posts. Not in the paper.
        max_text_length (`int`, defaults to 300): tokens of a text that BERT reads at most.
        freeze_text, freeze_dual_encoder (`bool`, default to `True`), freeze_backbone (`bool`, defaults to `False`):
            What does not train. Frozen parts stay in eval mode.

    Example:

    ```python
    >>> from hf_clip_variants import FNDCLIPConfig

    >>> config = FNDCLIPConfig()
    >>> config.num_text_states, config.projection_dim, config.backbone_config.num_labels, config.id2label
    (13, 512, 1000, {0: 'rumor', 1: 'nonrumor'})
    ```
    """

    model_type = "clipv-fnd_clip"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(AutoConfig, model_type="bert"),
        "dual_encoder_config": SubConfigSpec(AutoConfig, model_type="clip"),
        "backbone_config": SubConfigSpec(AutoConfig, model_type="resnet"),
    }
    keys_to_ignore_at_inference = ["similarity", "modality_weights", "layer_attention"]
    keys_to_ignore_at_inference += ["text_embeds", "image_embeds", "cross_embeds"]

    text_config: dict | BertConfig | None = None
    dual_encoder_config: dict | PreTrainedConfig | None = None
    backbone_config: dict | ResNetConfig | None = None
    shared_dim: int = 256
    feature_dim: int = 64
    hidden_dim: int = 64
    dropout: float | int = 0.5
    batch_layer_attention: bool = False
    adapt_features: bool = False
    similarity_residual: bool = False
    max_text_length: int = 300
    freeze_text: bool = True
    freeze_dual_encoder: bool = True
    freeze_backbone: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        check_encoder_types({"text_config": self.text_config}, {"text_config": ("bert",)})
        if self.backbone_config is None:
            self.backbone_config = dict(_RESNET101)
        if isinstance(self.backbone_config, dict):
            self.backbone_config = {"model_type": "resnet"} | self.backbone_config
            self.backbone_config.pop("stage_names", None)  # made of the depths
            check_encoder_types({"backbone_config": self.backbone_config}, {"backbone_config": ("resnet",)})
            check_stages("backbone_config", self.backbone_config, ("depths", "hidden_sizes"))
        if isinstance(self.dual_encoder_config, dict):
            self.dual_encoder_config = {"model_type": "clip"} | self.dual_encoder_config
            family_of(self.dual_encoder_config["model_type"])
        if isinstance(self.text_config, dict):
            self.text_config = {"model_type": "bert"} | self.text_config
        if not kwargs.keys() & {"id2label", "num_labels"} and self.id2label is None:
            kwargs["id2label"] = {0: "rumor", 1: "nonrumor"}
            kwargs["label2id"] = {"rumor": 0, "nonrumor": 1}
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs: the parts are a BERT, a ResNet and a dual
        encoder that is known here."""
        check_encoder_types(config_dict, {"text_config": ("bert",), "backbone_config": ("resnet",)})
        dual = config_dict.get("dual_encoder_config")
        kind = dual.get("model_type") if isinstance(dual, dict) else None
        if kind is not None and find_family(kind) is None:
            raise ValueError(f"dual_encoder_config.model_type: {kind!r}, expected a dual encoder such as 'clip'")
        values, labels = without_kernels(config_dict), kwargs.get("num_labels")
        if labels is not None and "id2label" not in kwargs and len(values.get("id2label") or ()) != labels:
            values = {name: value for name, value in values.items() if name not in ("id2label", "label2id")}
        return super().from_dict(values, **kwargs)

    @classmethod
    def part_classes(cls, values) -> dict[str, type]:
        """The parts' configurations, for `check_values`; none for a dual encoder that is unknown."""
        dual = values.get("dual_encoder_config")
        family = find_family(dual.get("model_type", "clip") if isinstance(dual, dict) else "clip")
        found = {"text_config": BertConfig, "backbone_config": ResNetConfig}
        return found | ({"dual_encoder_config": family.model_class().config_class} if family else {})

    @property
    def num_text_states(self) -> int:
        """Of BERT: its embeddings and what each layer gives."""
        return self.text_config.num_hidden_layers + 1

    @property
    def hidden_size(self) -> int:
        """Width of BERT."""
        return self.text_config.hidden_size

    @property
    def projection_dim(self) -> int:
        """Width of the dual encoder's joint space."""
        return family_of(self.dual_encoder_config.model_type).joint_width(self.dual_encoder_config)

    @property
    def vision_config(self) -> PreTrainedConfig:
        """Of the dual encoder's image encoder."""
        return self.dual_encoder_config.vision_config

    def validate_numbers(self):
        for name in ("shared_dim", "feature_dim", "hidden_dim"):
            if not 0 < getattr(self, name) <= _LARGEST_DIM:
                raise ValueError(f"{name}: {getattr(self, name)} is outside 1..{_LARGEST_DIM}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout}, expected a number in 0..1, less than 1")

    def validate_parts(self):
        text, backbone = self.text_config, self.backbone_config
        if isinstance(backbone, PreTrainedConfig):
            check_stages("backbone_config", vars(backbone), ("depths", "hidden_sizes"))
            if not 0 < backbone.num_labels <= _LARGEST_LOGITS:
                raise ValueError(
                    f"backbone_config.num_labels: {backbone.num_labels}, expected 1..{_LARGEST_LOGITS} class logits, "
                    "which are the image's features"
                )
            channels = getattr(getattr(self.dual_encoder_config, "vision_config", None), "num_channels", None)
            if channels is not None and channels != backbone.num_channels:
                raise ValueError(
                    f"backbone_config.num_channels: {backbone.num_channels}, expected {channels}, the dual encoder's"
                )
        if isinstance(text, PreTrainedConfig):
            if text.is_decoder or text.add_cross_attention:
                raise ValueError("text_config: got a decoder, expected an encoder (is_decoder=False)")
            if not 2 < self.max_text_length <= text.max_position_embeddings:
                raise ValueError(
                    f"max_text_length: {self.max_text_length}, expected 3..{text.max_position_embeddings} "
                    "(text_config.max_position_embeddings)"
                )


__all__ = ["MODALITIES", "FNDCLIPConfig"]
