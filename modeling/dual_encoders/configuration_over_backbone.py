"""What configurations share that have a dual encoder's fields at CLIP's own places, and fields of their own."""

from transformers import PreTrainedConfig

from ..loading_and_saving.configuration_checks import check_encoder_types, without_kernels
from .backbones import family_of, find_family


_PARTS = ("text_config", "vision_config")


class OverBackbone:
    """Mixin before `CLIPConfig`, for a configuration with the field `backbone_model_type`: a family's plain checkpoint
    loads, and a file does not choose what code runs."""

    def make_encoder_configs(self, kwargs: dict, **defaults) -> None:
        """The encoders' configurations of the family, of mappings; for `__post_init__`, whose `kwargs` may have those
        of 2022. `defaults` are fields of both encoders that stand where the mapping has none."""
        family = family_of(self.backbone_model_type)
        for part in _PARTS:
            values = getattr(self, part)
            if not isinstance(values, PreTrainedConfig):
                # The latter: CLIP's of 2022.
                values = defaults | dict(values or {}) | dict(kwargs.pop(f"{part}_dict", None) or {})
                values = {k: v for k, v in values.items() if k != "model_type"}
                setattr(self, part, family.sub_config_class(part)(**values))
        self.projection_dim = family.joint_width(self)

    @classmethod
    def part_classes(cls, values) -> dict[str, type]:
        """The encoders' configurations, for `check_values`; none for a family that is unknown."""
        family = find_family(values.get("backbone_model_type", cls.backbone_model_type))
        return {part: family.sub_config_class(part) for part in _PARTS} if family else {}

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file does not choose what code runs: attention kernels come from the caller only,
        encoders are the family's."""
        backbone = config_dict.get("backbone_model_type", cls.backbone_model_type)
        family = family_of(backbone)
        check_encoder_types(
            config_dict, {part: (family.sub_config_class(part).model_type, backbone) for part in _PARTS}
        )
        return super().from_dict(without_kernels(config_dict), **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; a plain dual encoder's configuration is one of ours."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            family_of(model_type)
            config_dict = config_dict | {"model_type": cls.model_type, "backbone_model_type": model_type}
        return config_dict, kwargs


__all__ = ["OverBackbone"]
