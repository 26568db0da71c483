"""A dual encoder that guides: it encodes prompts, and pictures as it was trained to see them. Several may guide
together; those beside the first one are [`GuideModel`]s inside of the model that makes the pictures."""

from collections.abc import Callable, Mapping, Sequence

import torch
from huggingface_hub.dataclasses import strict
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import CLIPConfig, PreTrainedConfig, PreTrainedModel

from ..dual_encoders.backbones import family_of
from ..dual_encoders.forward_checks import check_token_ids
from ..dual_encoders.prompts import encode_texts, tokenize_texts
from ..loading_and_saving.configuration_checks import checked
from ..video.video_dual_encoder import VideoDualEncoder, VideoDualEncoderFields


IMAGE_MEAN, IMAGE_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


# n pictures, S pixels that the guide takes, T texts, L tokens, D joint width


class GuideFields(VideoDualEncoderFields):
    """Mixin before a `CLIPConfig` with the fields `backbone_model_type`, `image_mean`, `image_std` and
    `views_at_once`."""

    @property
    def guide_size(self) -> int:
        """Pixels of a side of what the guide takes."""
        return family_of(self.backbone_model_type).image_size(self)

    def check_ranges(self, ranges: Sequence[tuple[str, float, float]]) -> None:
        """ValueError for a field outside of its range; None passes."""
        for name, low, high in ranges:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}: {value} is outside {low}..{high}")

    def validate_guide(self):
        self.check_ranges((("views_at_once", 1, 10**6),))
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if value is not None and (len(value) != 3 or (name == "image_std" and min(value) <= 0)):
                raise ValueError(f"{name}: {value}, expected three numbers{' > 0' if name == 'image_std' else ''}")


class GuidingEncoder(VideoDualEncoder):
    """Mixin before a `PreTrainedModel` that has a dual encoder `clip`, its `family`, and [`GuideFields`]."""

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str], tokenizer, what: str = "prompts") -> torch.Tensor:
        """(T, D) float32, not normalised. Texts that are too long are cut, with a warning."""
        if tokenizer is None:
            raise ValueError(
                "tokenizer: None, expected the model's tokenizer or processor, for prompts that are texts"
            )
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if not callable(tokenizer) or not hasattr(tokenizer, "model_max_length"):
            raise ValueError(f"tokenizer: got {type(tokenizer).__name__}, expected the guide's tokenizer or processor")
        longest = min(tokenizer.model_max_length, self.family.context_length(self.config))
        if self.family.text_is_causal:
            tokens = encode_texts(
                tokenizer, texts, what=what, padding=True, truncation=True, return_tensors="pt", max_length=longest
            )
            return self.get_text_features(**tokens.to(self.device)).pooler_output.float()
        # How padding counts differs: the family knows.
        rows = [torch.tensor(row) for row in tokenize_texts(tokenizer, texts, max_length=longest, what=what)]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.family.padding_id(self.config))
        text = self.config.text_config
        check_token_ids(ids, text.vocab_size, longest=getattr(text, "max_position_embeddings", None))
        return self.family.encode_text(self.clip, ids.to(self.device)).float()

    def as_guide_sees(self, images: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        """(n, 3, H, W) in 0..1 -> (n, 3, S, S), resized if needed, normalised, in the model's dtype."""
        size = self.config.guide_size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        if normalize:
            mean, std = self.config.image_mean or IMAGE_MEAN, self.config.image_std or IMAGE_STD
            images = (images - images.new_tensor(mean)[:, None, None]) / images.new_tensor(std)[:, None, None]
        return images.to(self.dtype)

    def embed_images(self, images: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        """(n, 3, H, W) in 0..1 -> (n, D) float32, not normalised, differentiable. More than `views_at_once` are
        encoded in parts, whose activations are computed again in the backward pass: the guide's memory does not grow
        with n."""
        return self.embed_views(lambda rows: images[rows], len(images), normalize)

    def embed_views(self, make: Callable[[slice], torch.Tensor], count: int, normalize: bool = True) -> torch.Tensor:
        """(count, D) of the pictures (rows, 3, H, W) that `make` gives of a slice of rows. In parts as in
        `embed_images`; `make` is then called again in the backward pass, and has to give the same."""

        def encode(rows: slice) -> torch.Tensor:
            pixels = self.as_guide_sees(make(rows), normalize)
            return self.family.image_features(self.clip, pixel_values=pixels, return_dict=True).pooler_output.float()

        step = self.config.views_at_once
        if count <= step:
            return encode(slice(0, count))
        parts = [slice(first, min(first + step, count)) for first in range(0, count, step)]
        return torch.cat([checkpoint(encode, rows, use_reentrant=False) for rows in parts])


@checked
@strict
class GuideConfig(GuideFields, CLIPConfig):
    r"""
    One guide beside the first: a dual encoder's configuration (every field sits where CLIP has it), and how pictures
    are normalised for it. It stands inside of another configuration, in `more_guides`.

    Args:
        backbone_model_type (`str`, defaults to `"clip"`):
            The family of the dual encoder, one of `modeling/dual_encoders/backbones.py`.
        image_mean, image_std (`list[float]`, *optional*):
            To normalise with. Default: CLIP's.
        views_at_once (`int`, defaults to 64):
            Views that go through it together; bounds memory.
    """

    model_type = "clipv-guide"

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    backbone_model_type: str = "clip"
    image_mean: list[float | int] | None = None
    image_std: list[float | int] | None = None
    views_at_once: int = 64

    def __post_init__(self, **kwargs):
        self.make_encoder_configs(kwargs)
        super().__post_init__(**kwargs)
        self.logit_scale_init_value = float(self.logit_scale_init_value)

    @classmethod
    def of(cls, values: Mapping, where: str) -> "GuideConfig":
        """From JSON values: its own, or a plain dual encoder's, whose `model_type` is the family. ValueError with
        `where` in front."""
        try:
            if not isinstance(values, Mapping):
                raise ValueError(f"got {str(values)[:60]}, expected a dual encoder's configuration")
            kind = values.get("model_type", cls.model_type)
            family = {} if kind == cls.model_type else {"backbone_model_type": kind}
            return cls.from_dict({**values, "model_type": cls.model_type, **family})
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error

    def to_json_values(self) -> dict:
        """What `of` reads: JSON values, those of the encoders and what differs from the defaults."""
        values = self.to_dict()
        left_out = ("transformers_version", "architectures", "dtype", "_name_or_path")
        return {name: value for name, value in values.items() if name not in left_out}


class GuideModel(GuidingEncoder, PreTrainedModel):
    """A guide beside the first: a dual encoder of any family inside of a model that makes pictures."""

    config: GuideConfig
    config_class = GuideConfig
    base_model_prefix = "clip"
    main_input_name = "pixel_values"
    _supports_sdpa = _supports_attention_backend = True

    def __init__(self, config: GuideConfig):
        super().__init__(config)
        self.family = family_of(config.backbone_model_type)
        self.clip = self.family.model_class()._from_config(self.family.model_config(config))
        self.post_init()


__all__ = ["IMAGE_MEAN", "IMAGE_STD", "GuideConfig", "GuideFields", "GuideModel", "GuidingEncoder"]
