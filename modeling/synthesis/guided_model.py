"""What models share that optimise pictures against a frozen dual encoder: the guide, its texts, its pictures."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers import PreTrainedModel

from ..decoding.image_decoding import DecodingRules, decode_image
from ..dual_encoders.backbones import family_of
from ..dual_encoders.prompts import encode_texts
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from ..video.video_dual_encoder import VideoDualEncoder, VideoDualEncoderFields


PUBLISHED_CANVAS = 224  # pixels; lengths and learning rates of the papers are in these
IMAGE_MEAN, IMAGE_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class GuidedFields(VideoDualEncoderFields):
    """Mixin before a `CLIPConfig` with the fields `backbone_model_type`, `canvas_size`, `image_mean`, `image_std` and
    `views_at_once`."""

    @property
    def canvas(self) -> int:
        """Pixels of a side of the pictures."""
        return self.canvas_size or self.guide_size

    @property
    def guide_size(self) -> int:
        return family_of(self.backbone_model_type).image_size(self)

    @property
    def unit(self) -> float:
        """What a pixel of the papers' canvas is on this one."""
        return self.canvas / PUBLISHED_CANVAS

    def check_ranges(self, ranges: Sequence[tuple[str, float, float]]) -> None:
        """ValueError for a field outside of its range; None passes."""
        for name, low, high in ranges:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}: {value} is outside {low}..{high}")

    def validate_guide(self):
        self.check_ranges((("canvas_size", 8, 2048), ("views_at_once", 1, 10**6)))
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if value is not None and (len(value) != 3 or (name == "image_std" and min(value) <= 0)):
                raise ValueError(f"{name}: {value}, expected three numbers{' > 0' if name == 'image_std' else ''}")


class GuidedPreTrainedModel(VideoDualEncoder, CheckedLoading, StagedSaving, PreTrainedModel):
    """A dual encoder `clip` of any family, which guides. Its configuration has [`GuidedFields`]."""

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

    @classmethod
    def from_clip(cls, clip: PreTrainedModel, **options):
        """A model that is guided by a dual encoder with its weights.

        Args:
            clip: a `CLIPModel`, or another one of `modeling/dual_encoders/backbones.py`.
            options: fields of the configuration.
        """
        values = cls.config_class.values_from(clip.config)
        model = cls(cls.config_class(**values | options)).to(clip.dtype)
        model.clip.load_state_dict(clip.state_dict())
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

    @torch.no_grad()
    def encode_prompts(self, texts: Sequence[str], tokenizer, what: str = "prompts") -> torch.Tensor:
        """(T, D) float32, not normalised. Texts that are too long are cut, with a warning."""
        if tokenizer is None:
            raise ValueError(
                "tokenizer: None, expected the model's tokenizer or processor, for prompts that are texts"
            )
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        tokens = encode_texts(
            tokenizer, texts, what=what, padding=True, truncation=True, return_tensors="pt",
            max_length=min(tokenizer.model_max_length, self.family.context_length(self.config)),
        )  # fmt: skip
        return self.get_text_features(**tokens.to(self.device)).pooler_output.float()

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
        encoded in parts, whose activations are computed again in the backward pass: memory does not grow with n."""

        def encode(part):
            pixels = self.as_guide_sees(part, normalize)
            return self.family.image_features(self.clip, pixel_values=pixels, return_dict=True).pooler_output.float()

        parts = images.split(self.config.views_at_once)
        if len(parts) == 1:
            return encode(images)
        return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in parts])


def picture_tensor(image, size: int | None = None, background: tuple[float, float, float] = (1.0, 1.0, 1.0)):
    """(3, H, W) in 0..1 of anything that `decode_image` takes; transparent pixels show `background`. With `size`,
    (3, S, S), squashed if it is not square, by bicubic interpolation.

    Raises:
        ValueError, OSError: it is no image.
    """
    if isinstance(image, torch.Tensor) and image.is_floating_point():
        if image.dim() != 3 or len(image) != 3 or not image.isfinite().all() or image.min() < 0 or image.max() > 1:
            raise ValueError(f"image: got a tensor {list(image.shape)}, expected [3, H, W] with numbers in 0..1")
        pixels = image.float()
    else:
        rules = DecodingRules(background=tuple(round(255 * value) for value in background))
        found = decode_image(image, rules)
        found = found if isinstance(found, torch.Tensor) else pil_to_tensor(found)
        pixels = found.float() / 255 if found.dtype == torch.uint8 else found.float()
    if size is None:
        return pixels
    return F.interpolate(pixels[None], (size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)


__all__ = ["PUBLISHED_CANVAS", "GuidedFields", "GuidedPreTrainedModel", "picture_tensor"]
