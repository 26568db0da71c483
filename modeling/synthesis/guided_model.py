"""What models share that optimise pictures against frozen dual encoders: the guides, their texts, their pictures."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import PreTrainedModel

from ..decoding.image_decoding import DecodingRules, decode_image
from ..dual_encoders.backbones import family_of, unit_norm
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from ..loading_and_saving.copied_weights import copy_weights
from .guide import IMAGE_MEAN, IMAGE_STD, GuideConfig, GuideFields, GuideModel, GuidingEncoder
from .stories import Story


PUBLISHED_CANVAS = 224  # pixels; lengths and learning rates of the papers are in these
_MOST_GUIDES = 8
_OF_ENCODERS = ("text_config", "vision_config", "projection_dim", "logit_scale_init_value", "backbone_model_type")


class GuidedFields(GuideFields):
    """Mixin before a `CLIPConfig` with the fields of [`GuideFields`], `canvas_size`, and `more_guides` and
    `guide_weights` of the dual encoders that guide beside the first."""

    more_guides: list | None = None
    guide_weights: list | None = None

    @property
    def canvas(self) -> int:
        """Pixels of a side of the pictures."""
        return self.canvas_size or self.guide_size

    @property
    def unit(self) -> float:
        """What a pixel of the papers' canvas is on this one."""
        return self.canvas / PUBLISHED_CANVAS

    def guide_configs(self) -> list[GuideConfig]:
        """Of the guides beside the first one. ValueError that names the guide and the field."""
        return [GuideConfig.of(values, f"more_guides[{place}]") for place, values in enumerate(self.more_guides or ())]

    def validate_canvas(self):
        self.check_ranges((("canvas_size", 8, 2048),))

    def validate_guides(self):
        count = 1 + len(self.more_guides or ())
        if count > _MOST_GUIDES:
            raise ValueError(f"more_guides: {count - 1}, expected at most {_MOST_GUIDES - 1}")
        self.guide_configs()
        weights = self.guide_weights
        if weights is not None and (len(weights) != count or not all(0 < weight <= 1000 for weight in weights)):
            raise ValueError(
                f"guide_weights: {str(weights)[:60]}, expected {count} numbers in 0..1000, more than 0: of the first "
                "guide and of each of more_guides"
            )


class GuidedPreTrainedModel(GuidingEncoder, CheckedLoading, StagedSaving, PreTrainedModel):
    """A dual encoder `clip` of any family, which guides, and others in `more_guides` that guide with it. Its
    configuration has [`GuidedFields`]."""

    base_model_prefix = "clip"
    main_input_name = "points"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_attention_backend = True
    _no_split_modules = ["CLIPEncoderLayer", "CLIPTextEmbeddings", "CLIPVisionEmbeddings"]

    def __init__(self, config):
        super().__init__(config)
        self.family = family_of(config.backbone_model_type)
        self.clip = self.family.model_class()._from_config(self.family.model_config(config))
        self.more_guides = nn.ModuleList(GuideModel._from_config(one) for one in config.guide_configs())

    @classmethod
    def from_clip(cls, clip: PreTrainedModel, **options):
        """A model that is guided by a dual encoder with its weights.

        Args:
            clip: a `CLIPModel`, or another one of `modeling/dual_encoders/backbones.py`.
            options: fields of the configuration.
        """
        values = cls.config_class.values_from(clip.config)
        model = cls(cls.config_class(**values | options)).to(clip.dtype)
        copy_weights(model.clip, clip, options=options)
        return model.eval()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """In eval mode and without gradients of its own parameters, as long as the context lasts."""
        training, wanted = self.training, [p for p in self.parameters() if p.requires_grad]
        self.eval().requires_grad_(False)
        try:
            yield
        finally:
            self.train(training)
            for parameter in wanted:
                parameter.requires_grad_(True)

    # ---- several guides

    @property
    def guides(self) -> list[GuidingEncoder]:
        """All dual encoders that guide; the first one is this model's own."""
        return [self, *self.more_guides]

    def add_guide(
        self,
        clip: PreTrainedModel,
        weight: float = 1.0,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ):
        """
        One more dual encoder guides: the loss is the weighted mean of the guides'. Each has its own tokenizer, which
        `generate` then takes as a list. Configuration and weights are saved with the model.

        Args:
            clip: a `CLIPModel`, or another one of `modeling/dual_encoders/backbones.py`, of any size; its weights are
                copied, in this model's dtype.
            weight: of its loss; the first guide's is 1.
            image_mean, image_std: how pictures are normalised for it. Default: CLIP's.

        Raises:
            ValueError: no dual encoder; a bad weight; too many guides.
        """
        if not isinstance(clip, PreTrainedModel) or isinstance(clip, GuidingEncoder):
            raise ValueError(f"clip: got {type(clip).__name__}, expected a dual encoder")
        values = GuideConfig.values_from(clip.config)
        if isinstance(clip.config, GuideFields):  # the guide of another model
            values |= {"backbone_model_type": clip.config.backbone_model_type}
            values = {name: values[name] for name in _OF_ENCODERS}
        family_of(values["backbone_model_type"])
        numbers = {"image_mean": image_mean, "image_std": image_std}
        numbers = {name: None if value is None else [float(one) for one in value] for name, value in numbers.items()}
        config = GuideConfig(**values | numbers | {"views_at_once": self.config.views_at_once})
        before = {name: getattr(self.config, name) for name in ("more_guides", "guide_weights")}
        weights = list(before["guide_weights"] or [1.0] * len(self.guides)) + [float(weight)]
        try:
            self.config.more_guides = [*(before["more_guides"] or ()), config.to_json_values()]
            self.config.guide_weights = weights
            self.config.validate()
        except ValueError:
            for name, value in before.items():
                setattr(self.config, name, value)
            raise
        guide = GuideModel(config).to(device=self.device, dtype=self.dtype)
        copy_weights(guide.clip, clip)
        self.more_guides.append(guide.train(self.training))
        return self

    @torch.no_grad()
    def similarities(self, images: torch.Tensor, story: Story, normalize: bool = True) -> list[float]:
        """Each guide's cosine of one picture (1, 3, H, W) in 0..1 and the first prompt of its story's last chapter."""
        return [
            float(unit_norm(guide.embed_images(images, normalize))[0] @ unit_norm(goal.embeds)[0])
            for guide, goal in zip(self.guides, story.chapters[-1], strict=True)
        ]

    @property
    def guide_shares(self) -> list[float]:
        """The weight of each guide's loss in their mean."""
        weights = self.config.guide_weights or [1.0] * len(self.guides)
        return [weight / sum(weights) for weight in weights]

    def weighted_mean(self, losses: Sequence[torch.Tensor]) -> torch.Tensor:
        """(n,) losses of each guide -> (n,)."""
        if len(losses) == 1:
            return losses[0]
        return sum(share * loss for share, loss in zip(self.guide_shares, losses, strict=True))


def pictures_of(images, what: str) -> list:
    """A picture, or several in a list, as a list. ValueError for anything else that has members."""
    if images is None:
        return []
    if isinstance(images, dict | set | frozenset):
        raise ValueError(f"{what}: got a {type(images).__name__}, expected a list of pictures")
    return list(images) if isinstance(images, list | tuple) else [images]


def texts_of(texts, what: str) -> list[str]:
    """A text, or several in a list, as a list. ValueError for anything else."""
    if texts is None:
        return []
    if not isinstance(texts, str | list | tuple):
        raise ValueError(f"{what}: got {type(texts).__name__}, expected a text or a list of texts")
    return [texts] if isinstance(texts, str) else list(texts)


def picture_tensor(
    image,
    size: int | None = None,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    what: str = "image",
) -> torch.Tensor:
    """(3, H, W) in 0..1 of anything that `decode_image` takes; transparent pixels show `background`. With `size`,
    (3, S, S), squashed if it is not square, by bicubic interpolation.

    Raises:
        ValueError, OSError: it is no image; `what` stands in front.
    """
    if isinstance(image, torch.Tensor) and image.is_floating_point():
        if (
            image.dim() != 3 or len(image) != 3 or not image.numel()
            or not image.isfinite().all() or image.min() < 0 or image.max() > 1
        ):  # fmt: skip
            raise ValueError(f"{what}: got a tensor {list(image.shape)}, expected [3, H, W] with numbers in 0..1")
        pixels = image.float()
    else:
        rules = DecodingRules(background=tuple(round(255 * value) for value in background))
        try:
            found = decode_image(image, rules)
        except (ValueError, OSError) as error:
            kinds = (FileNotFoundError, OSError, ValueError)
            kind = next(kind for kind in kinds if isinstance(error, kind))
            raise kind(f"{what}: {error}") from error
        found = found if isinstance(found, torch.Tensor) else pil_to_tensor(found)
        pixels = found.float() / 255 if found.dtype == torch.uint8 else found.float()
    if size is None:
        return pixels
    return F.interpolate(pixels[None], (size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)


__all__ = [
    "IMAGE_MEAN",
    "IMAGE_STD",
    "PUBLISHED_CANVAS",
    "GuidedFields",
    "GuidedPreTrainedModel",
    "picture_tensor",
    "pictures_of",
    "texts_of",
]
