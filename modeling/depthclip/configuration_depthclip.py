"""Configuration of DepthCLIP: a dual encoder's configuration, words for distances, and the depths they stand for."""

import math

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, CLIPTextConfig, PreTrainedConfig

from ..clip_resnet.configuration_clip_resnet import CLIPResNetVisionConfig
from ..dual_encoders.configuration_over_backbone import OverBackbone
from ..loading_and_saving.configuration_checks import checked


DEPTH_WORDS = ("giant", "extremely close", "close", "not in distance", "a little remote", "far", "unseen")
BIN_CENTERS = (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)
TEMPLATE = "This {object} is {distance}"
PROJECTIONS = ("official", "attnpool_value")
LEARNABLE_PARTS = ("bins", "words", "temperature")
_RESNET = "clipv-clip_resnet"
BACKBONES = (_RESNET, "clip")  # families whose feature maps are read
_MOST_WORDS, _MOST_TEMPLATES, _LONGEST_TEXT = 1024, 256, 10_000
_LARGEST_DEPTH = 1e6


@checked
@strict
class DepthCLIPConfig(OverBackbone, CLIPConfig):
    r"""
    A `CLIPConfig` (every field sits where CLIP has it, so a plain CLIP checkpoint loads), words for distances, and the
    depth that each stands for. The defaults are the paper's: CLIP's RN50, seven words, 1 to 3 metres.

    Args:
        backbone_model_type (`str`, defaults to `"clipv-clip_resnet"`):
            The family of the dual encoder: `"clipv-clip_resnet"`, as in the paper, or `"clip"` with a Vision
            Transformer, which the paper does not have. Read from the checkpoint that is loaded.
        depth_words (`list[str]`):
            A text for each distance, K in all. Their order has no meaning beyond that of `bin_centers`.
        bin_centers (`list[float]`):
            The depth of each word, in metres or in any other unit: the answer has the same.
        templates (`list[str]`):
            Sentences with `{distance}`, and `{object}` if they want. Several are averaged.
        object_word (`str`, defaults to `"object"`): what stands for `{object}`.
        temperature (`float`, defaults to 0.1):
            Scaled similarities are divided by it before the softmax over words.
        logit_scale (`float`, defaults to 100):
            Cosine similarities are multiplied by it. A constant: the dual encoder's own scale is not read.
        feature_projection (`str`, *optional*):
            How a location of the last feature map gets the texts' width. `"official"`: each second channel is kept,
            which wants a ResNet with twice as many channels as the joint space has (of CLIP's: RN50).
            `"attnpool_value"`: what attention pooling would give if it looked at this location alone, its value and
            output projections, which are in the joint space; of a Vision Transformer, each patch attends to itself
            alone in the last layer. Default: official where that is possible.
        flip_average (`bool`, defaults to `True`): the mean of the image's depth and of its mirror image's.
        align_corners (`bool`, defaults to `True`):
            Of the enlargement to the size of the image. As officially, the outermost locations come to lie on the
            image's border; `False` leaves each in the middle of what it has seen.
        panorama (`bool`, defaults to `False`):
            Images are all around: the right border goes on at the left one.
        learnable_parts (`list[str]`, defaults to `[]`):
            What is trained with labelled images, of `"bins"` (a factor for each), `"words"` (a vector for each, added
            to its text's) and `"temperature"`. The paper has none.
        scale_invariance (`float`, defaults to 0.5):
            Of the loss, in 0..1: how far a common factor of all depths of an image is forgiven.
        freeze_image_encoder (`bool`, defaults to `True`):
            The image encoder gets no gradients, and stays in eval mode. The text encoder never trains: what it says is
            stored.
        encoded_texts (`list[list[str]]`, *optional*):
            The sentences of each word whose embeddings are stored in the model; written by `set_depth_words`.
        text_encoder_dropped (`bool`, defaults to `False`):
            There is no text encoder; written by `drop_text_encoder`.

    Example:

    ```python
    >>> from hf_clip_variants import DepthCLIPConfig

    >>> config = DepthCLIPConfig(depth_words=["near", "far"], bin_centers=[1, 4])
    >>> config.feature_projection, config.stride, config.texts
    ('official', 32, [['This object is near'], ['This object is far']])
    ```
    """

    model_type = "clipv-depthclip"
    backbones = BACKBONES
    # Of the default backbone; `make_encoder_configs` makes those of the other one.
    sub_configs_defaults = {"text_config": CLIPTextConfig, "vision_config": CLIPResNetVisionConfig}
    keys_to_ignore_at_inference = ["word_logits", "hidden_states", "attentions"]

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 1024
    backbone_model_type: str = _RESNET
    depth_words: list[str] | tuple[str, ...] | None = None
    bin_centers: list[float | int] | tuple[float | int, ...] | None = None
    templates: list[str] | tuple[str, ...] | None = None
    object_word: str = "object"
    temperature: float | int = 0.1
    logit_scale: float | int = 100.0
    feature_projection: str | None = None
    flip_average: bool = True
    align_corners: bool = True
    panorama: bool = False
    learnable_parts: list[str] | tuple[str, ...] | None = None
    scale_invariance: float | int = 0.5
    freeze_image_encoder: bool = True
    encoded_texts: list[list[str]] | None = None
    text_encoder_dropped: bool = False

    def __post_init__(self, **kwargs):
        self.make_encoder_configs(kwargs, projection_dim=self.projection_dim)
        for name, default in (("depth_words", DEPTH_WORDS), ("bin_centers", BIN_CENTERS), ("templates", (TEMPLATE,))):
            value = getattr(self, name)
            setattr(self, name, list(default if value is None else value))
        self.learnable_parts = list(self.learnable_parts or ())
        if self.feature_projection is None:
            self.feature_projection = "official" if self.has_official_projection else "attnpool_value"
        super().__post_init__(**kwargs)
        self.logit_scale_init_value = float(self.logit_scale_init_value)

    @property
    def is_convolutional(self) -> bool:
        """Whether the image encoder is a ResNet."""
        return self.backbone_model_type == _RESNET

    @property
    def has_official_projection(self) -> bool:
        """Whether half of the channels are as many as the joint space has."""
        return self.is_convolutional and self.vision_config.hidden_size == 2 * self.projection_dim

    @property
    def stride(self) -> int:
        """Pixels of a side of what one location of the feature map stands for."""
        return 32 if self.is_convolutional else self.vision_config.patch_size

    @property
    def texts(self) -> list[list[str]]:
        """K lists of T sentences: of each word, in each template."""
        return [
            [one.replace("{object}", self.object_word).replace("{distance}", word) for one in self.templates]
            for word in self.depth_words
        ]

    def validate_backbone(self):
        if self.backbone_model_type not in BACKBONES:
            raise ValueError(
                f"backbone_model_type: {self.backbone_model_type!r}, expected one of {', '.join(BACKBONES)}: depth "
                "is read from the locations of their feature maps"
            )
        if self.feature_projection not in PROJECTIONS:
            raise ValueError(
                f"feature_projection: {self.feature_projection!r}, expected one of {', '.join(PROJECTIONS)}"
            )
        if self.feature_projection == "official" and not self.has_official_projection:
            width = getattr(self.vision_config, "hidden_size", None)
            what = f"a ResNet with {width} channels" if self.is_convolutional else "a Vision Transformer"
            raise ValueError(
                f"feature_projection: 'official' keeps each second channel, which of {what} are not "
                f"{self.projection_dim} (projection_dim); want 'attnpool_value'"
            )
        vision, size = self.vision_config, getattr(self.vision_config, "image_size", 1)
        if isinstance(vision, PreTrainedConfig) and not self.is_convolutional:
            if (
                any(not isinstance(one, int) or one < 1 for one in (size, vision.patch_size))
                or vision.patch_size > size
            ):
                raise ValueError(
                    f"vision_config.patch_size: {vision.patch_size}, expected a whole number up to image_size ({size})"
                )

    def validate_words(self):
        words, bins = self.depth_words, self.bin_centers
        if words is None or bins is None or self.templates is None:
            return  # not yet what the defaults are
        for name, texts, most in (("depth_words", words, _MOST_WORDS), ("templates", self.templates, _MOST_TEMPLATES)):
            if not 0 < len(texts) <= most:
                raise ValueError(f"{name}: {len(texts)} of them, expected 1 to {most}")
            for index, text in enumerate(texts):
                if not isinstance(text, str) or not text.strip() or len(text) > _LONGEST_TEXT:
                    raise ValueError(f"{name}[{index}]: {str(text)[:40]!r}, expected a text")
            if twice := sorted({text for text in texts if list(texts).count(text) > 1}):
                raise ValueError(f"{name}: {twice[0][:40]!r} is given twice, expected texts that differ")
        for index, template in enumerate(self.templates):
            if "{distance}" not in template:
                raise ValueError(f"templates[{index}]: {template[:60]!r} has no {{distance}}")
        if len(bins) != len(words):
            raise ValueError(f"bin_centers: {len(bins)} depths for {len(words)} depth_words, expected one for each")
        for index, depth in enumerate(bins):
            if not 0 < depth <= _LARGEST_DEPTH:
                raise ValueError(f"bin_centers[{index}]: {depth}, expected a depth in 0..{_LARGEST_DEPTH:g}, not 0")
        if not self.object_word.strip() or len(self.object_word) > _LONGEST_TEXT:
            raise ValueError(f"object_word: {self.object_word[:40]!r}, expected a text")
        encoded = self.encoded_texts
        if encoded is not None:
            wrong = not 0 < len(encoded) <= _MOST_WORDS or any(not 0 < len(row) <= _MOST_TEMPLATES for row in encoded)
            if wrong or any(len(text) > 2 * _LONGEST_TEXT for row in encoded for text in row):
                raise ValueError(f"encoded_texts: {str(encoded)[:60]}, expected sentences for each word")

    def validate_numbers(self):
        for name, low, high in (
            ("temperature", 1e-6, 1e6),
            ("logit_scale", 1e-6, 1e6),
            ("scale_invariance", 0, 1),
        ):
            value = getattr(self, name)
            if not math.isfinite(value) or not low <= value <= high:
                raise ValueError(f"{name}: {value} is outside {low:g}..{high:g}")
        parts = self.learnable_parts or []
        if wrong := [part for part in parts if part not in LEARNABLE_PARTS]:
            raise ValueError(f"learnable_parts: {wrong[0]!r}, expected some of {', '.join(LEARNABLE_PARTS)}")
        if len(set(parts)) < len(parts):
            raise ValueError(f"learnable_parts: {parts}, expected each once")


__all__ = ["BACKBONES", "BIN_CENTERS", "DEPTH_WORDS", "LEARNABLE_PARTS", "PROJECTIONS", "TEMPLATE", "DepthCLIPConfig"]
