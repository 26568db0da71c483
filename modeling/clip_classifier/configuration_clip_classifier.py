"""Configuration of `CLIPClassifier`: a dual encoder's configuration plus the classes and the templates."""

from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, PreTrainedConfig

from ..dual_encoders.backbones import family_of, find_family
from ..dual_encoders.prompts import prompt_counts, resolve_templates
from ..loading_and_saving.optional_modules import optional_checks


_checks = optional_checks("..loading_and_saving.configuration_checks", __package__)


@_checks.checked
@strict
class CLIPClassifierConfig(CLIPConfig):
    r"""
    A `CLIPConfig` (every field sits where CLIP has it, so a plain CLIP checkpoint loads) and what is classified.

    Class names are `id2label`, as everywhere in transformers; `class_names` reads them in order. `text_config` and
    `vision_config` are of the backbone's family; `projection_dim` is the joint width, whatever the family calls it.

    Args:
        backbone_model_type (`str`, defaults to `"clip"`):
            The family of the dual encoder, one of `modeling/dual_encoders/backbones.py`. Read from the checkpoint that
            is loaded.
        templates (`list[str]` or `dict[str, list[str]]`, defaults to `[]`):
            Prompt templates, each with one `{}`; or the prompts of each class, by its name. Empty: no classes were set
            yet (`CLIPClassifier.set_classes`).
        prompt_length (`int`, defaults to 2):
            Tokens of the longest class prompt, SOS and EOS included. Written by `set_classes`.
        tail_length (`int`, defaults to 1):
            Tokens of the longest `"name."` plus EOS, what prompt learners put behind their context. Written by
            `set_classes`.
        fixed_class_features (`bool`, defaults to `False`):
            The class features are an adapter's, merged, and do not follow from the prompts: they are read from the
            file, and the classes cannot be changed. Written by `CLIPClassifier.fix_class_features`.
        temperature (`float`, *optional*):
            By which logits are divided to give probabilities for these classes; `None`: not calibrated. The model does
            not use it: its logits are CLIP's. `set_classes` with other classes or templates removes it.
        rejection_threshold (`float`, *optional*):
            Probability below which an image is better left without a class: 95 % of the right answers are above.

    Example:

    ```python
    >>> from hf_clip_variants import CLIPClassifierConfig

    >>> config = CLIPClassifierConfig(id2label={0: "cat", 1: "dog"}, templates=["a photo of a {}."], prompt_length=7)
    >>> config.class_names
    ['cat', 'dog']
    ```
    """

    model_type = "clipv-clip_classifier"
    # `Trainer` collects the logits alone: the rest grows with classes (and CoCoOp's with images times classes)
    keys_to_ignore_at_inference = ["logits_per_image", "logits_per_text", "image_embeds", "text_embeds"]
    keys_to_ignore_at_inference += ["hidden_states", "attentions"]

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    backbone_model_type: str = "clip"
    templates: list[str] | dict[str, list[str]] = field(default_factory=list)
    prompt_length: int = 2
    tail_length: int = 1
    fixed_class_features: bool = False
    temperature: float | None = None
    rejection_threshold: float | None = None

    def __post_init__(self, **kwargs):
        family = family_of(self.backbone_model_type)
        for part in ("text_config", "vision_config"):
            values = getattr(self, part)
            if not isinstance(values, PreTrainedConfig) and f"{part}_dict" not in kwargs:  # the latter: CLIP's of 2022
                values = {k: v for k, v in (values or {}).items() if k != "model_type"}
                setattr(self, part, family.sub_config_class(part)(**values))
        super().__post_init__(**kwargs)
        self.projection_dim = family.joint_width(self)
        self.logit_scale_init_value = float(self.logit_scale_init_value)  # models make a parameter of what it is

    @classmethod
    def part_classes(cls, values) -> dict[str, type]:
        """The encoders' configurations, for `check_values`; none for a family that is unknown."""
        family = find_family(values.get("backbone_model_type", "clip"))
        return {part: family.sub_config_class(part) for part in ("text_config", "vision_config")} if family else {}

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file does not choose what code runs: attention kernels come from the caller only,
        encoders are the family's. With another `num_labels` from the caller, the file's names are not taken."""
        backbone = config_dict.get("backbone_model_type", "clip")
        family = family_of(backbone)
        parts = {
            part: (family.sub_config_class(part).model_type, backbone) for part in ("text_config", "vision_config")
        }
        _checks.check_encoder_types(config_dict, parts)
        values = _checks.without_kernels(config_dict)
        names = values.get("id2label")
        if kwargs.get("num_labels") not in (None, len(names) if isinstance(names, dict) else 0):
            values = {name: value for name, value in values.items() if name not in ("id2label", "label2id")}
        return super().from_dict(values, **kwargs)

    @property
    def class_names(self) -> list[str]:
        return [name for _, name in sorted(self.id2label.items())]  # read once: another thread may set it

    @property
    def prompt_counts(self) -> list[int]:
        """How many prompts each class has."""
        return prompt_counts(self.class_names, self.templates)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; a plain backbone's configuration is one of ours without classes, any other model type is
        an error."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            family_of(model_type)
            config_dict = config_dict | {"model_type": cls.model_type, "backbone_model_type": model_type}
        return config_dict, kwargs

    def validate_lengths(self):
        positions = self.text_config.max_position_embeddings if hasattr(self.text_config, "vocab_size") else None
        for name, smallest in (("prompt_length", 2), ("tail_length", 1)):
            value = getattr(self, name)
            if value < smallest or (positions is not None and value > positions):
                raise ValueError(
                    f"{name}: {value} is outside {smallest}..{positions} (text_config.max_position_embeddings)"
                )

    def validate_sizes(self):
        for name in ("image_size", "patch_size"):
            value = getattr(self.vision_config, name, 1)  # of squares: that is all that the models can do
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"vision_config.{name}: {value!r}, expected a whole number of pixels")
        switches = family_of(self.backbone_model_type).vision_switches
        if off := [name for name in switches if not getattr(self.vision_config, name, True)]:
            raise ValueError(f"vision_config.{off[0]}: False, but it makes the image features; want True")

    def validate_tokens(self):
        """Prompts are padded with one of them."""
        if not hasattr(self.text_config, "vocab_size"):
            return  # still a dict
        family = family_of(self.backbone_model_type)
        name = "eos_token_id" if family.text_is_causal else "pad_token_id"
        value, size = getattr(self.text_config, name), self.text_config.vocab_size
        # A causal encoder only looks for it: 2 in the configurations of 2022, and more than there are in small ones.
        if not isinstance(value, int) or value < 0 or (not family.text_is_causal and value >= size):
            raise ValueError(f"text_config.{name}: {value!r}, expected one of {size} tokens (vocab_size)")

    def validate_templates(self):
        if self.templates or isinstance(self.templates, dict):  # an empty mapping leaves every class without
            resolve_templates(self.templates, self.class_names)


__all__ = ["CLIPClassifierConfig"]
