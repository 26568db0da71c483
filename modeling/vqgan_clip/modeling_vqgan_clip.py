"""VQGAN-CLIP: pictures from texts, and changed by texts. The codes of a VQGAN are optimised until a dual encoder finds
that the picture shows the text.

Paper: "VQGAN-CLIP: Open Domain Image Generation and Editing with Natural Language Guidance",
https://arxiv.org/abs/2204.08583.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Unpack

import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image
from transformers import PreTrainedModel
from transformers.utils import TransformersKwargs, can_return_tuple

from ..loading_and_saving.copied_weights import copy_weights
from ..synthesis.guided_model import picture_tensor, pictures_of
from ..synthesis.guiding_prompts import MOST_PROMPTS, Goal, Prompt, prompt_losses, spherical_distance
from ..synthesis.stories import current_goals, stories_of
from ..synthesis.synthesis_loop import SynthesisLoop, SynthesisSample, checked_seeds
from ..synthesis.text_guided_model import TextGuidedModel, TextGuidedOutput
from .autoencoder_vqgan_clip import VQGANModel, nearest_codes
from .configuration_vqgan_clip import VQGANCLIPConfig
from .cuts_vqgan_clip import CutPlan, plan_cuts
from .losses_vqgan_clip import clamp_with_grad, start_loss, total_variation


# B pictures, D width of a code, h x w grid, H x W pixels, T texts, L tokens, S pixels that the guide takes

STARTS = ("codes", "pixels", "gradient")


class VQGANCLIPOutput(TextGuidedOutput):
    """Of pictures; `loss` is the mean spherical distance of each picture and its text."""


@dataclass
class SynthesizedImage:
    """
    Args:
        pixels: (3, H, W) in 0..1, float32, on the CPU.
        latents: (D, h, w), from which another picture can begin.
        codes: (h, w).
        seed: of its random numbers.
        loss: of the picture without augmentation.
        losses: of each step.
        evaluations: (step, loss without augmentation).
        prompt: what it shows, if that was told in words.
        similarity: cosine between the picture and the first of its last prompts.
        similarities: the same of each guide.
    """

    pixels: torch.Tensor
    latents: torch.Tensor
    codes: torch.Tensor
    seed: int
    loss: float
    losses: list[float]
    evaluations: list[tuple[int, float]]
    prompt: str | None = None
    similarity: float | None = None
    similarities: list[float] = field(default_factory=list)

    def to_image(self, scale: float = 1.0) -> Image.Image:
        """The picture; `scale` times as large, if that is not 1."""
        image = to_pil_image(self.pixels.clamp(0, 1))
        if scale == 1.0:
            return image
        size = tuple(max(1, round(scale * side)) for side in image.size)
        return image.resize(size, Image.Resampling.BICUBIC)


class VQGANCLIPPreTrainedModel(TextGuidedModel):
    config: VQGANCLIPConfig
    output_class = VQGANCLIPOutput
    main_input_name = "latents"
    _no_split_modules = [*TextGuidedModel._no_split_modules, *VQGANModel._no_split_modules]

    @staticmethod
    def pair_losses(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return spherical_distance(images.float(), texts.float()).diagonal()


class VQGANCLIPForImageSynthesis(VQGANCLIPPreTrainedModel):
    r"""
    VQGAN-CLIP (Crowson et al. 2022): a text becomes a picture, without any training. The grid of latents of a frozen
    VQGAN is optimised so that augmented views of the decoded picture come close to the text in a frozen dual encoder,
    any of `modeling/dual_encoders/backbones.py`. Beginning from the codes of a picture changes that picture.

    `generate` paints. `forward` scores latents that exist. Several dual encoders guide together after `add_guide`;
    `forward` compares with the first. For vector drawings of strokes, see CLIPDraw.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import VQGANCLIPConfig, VQGANCLIPForImageSynthesis

    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> vision = text | {"image_size": 32, "patch_size": 16}
    >>> vqgan = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "latent_channels": 8,
    ...          "embed_dim": 4, "num_embeddings": 16}
    >>> config = VQGANCLIPConfig(text_config=text, vision_config=vision, projection_dim=64, vqgan_config=vqgan,
    ...                          num_cuts=2)
    >>> model = VQGANCLIPForImageSynthesis(config).eval()
    >>> found = model.generate(prompt_embeds=torch.randn(1, 64), size=(24, 32), num_steps=2)
    >>> found[0].to_image().size, found[0].codes.shape
    ((32, 24), torch.Size([12, 16]))
    ```
    """

    def __init__(self, config: VQGANCLIPConfig):
        super().__init__(config)
        self.vqgan = VQGANModel._from_config(config.vqgan_config)
        self.post_init()

    @classmethod
    def from_parts(cls, clip: PreTrainedModel, vqgan: VQGANModel, **options):
        """A model with the weights of a dual encoder and a VQGAN.

        Args:
            clip: a `CLIPModel`, or another one of `modeling/dual_encoders/backbones.py`.
            vqgan: decodes; it takes `clip`'s dtype.
            options: fields of the configuration.
        """
        values = cls.config_class.values_from(clip.config) | {"vqgan_config": vqgan.config.to_dict()}
        if isinstance(clip.config, cls.config_class):  # the guide of another model of this kind
            values["backbone_model_type"] = clip.config.backbone_model_type
        model = cls(cls.config_class(**values | options)).to(clip.dtype)
        copy_weights(model.clip, clip, options=options)
        copy_weights(model.vqgan, vqgan, "vqgan", options)
        return model.eval()

    @classmethod
    def from_clip(cls, clip: PreTrainedModel, **options):
        """ValueError: pictures need a VQGAN, too."""
        raise ValueError("vqgan: missing, expected a VQGAN beside the dual encoder: use from_parts(clip, vqgan)")

    def synthesize(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, D, h, w) -> pictures (B, 3, H, W) in 0..1 of the nearest codes, whose gradient goes to `latents`."""
        return clamp_with_grad((self.vqgan.decode(self.vqgan.quantized(latents)).float() + 1) / 2)

    @can_return_tuple
    def forward(
        self,
        latents: torch.FloatTensor,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_loss: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VQGANCLIPOutput:
        r"""
        How well the pictures of latents show texts; differentiable in the latents.

        Args:
            latents: (B, D, h, w).
            input_ids, attention_mask: (T, L), texts.
            return_loss: needs a text for each picture.

        Returns:
            [`VQGANCLIPOutput`].

        Raises:
            ValueError: another shape of latents; no texts; for the loss, other numbers of texts and pictures.
        """
        if input_ids is None:
            raise ValueError("input_ids: None, expected the texts that pictures are compared with")
        return self.compare(self.synthesize(latents), input_ids, attention_mask, return_loss, **kwargs)

    # ---- painting

    def make_loop(
        self,
        prompts: str | Sequence[str] | None = None,
        tokenizer=None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        image_prompts: Sequence | None = None,
        noise_prompts: Sequence[int] | None = None,
        seeds: int | Sequence[int] = 0,
        size: int | tuple[int, int] | None = None,
        num_steps: int | None = None,
        start="codes",
        mask=None,
        samples_at_once: int | None = None,
        evaluate_every: int = 50,
    ) -> SynthesisLoop:
        """
        The loop that `generate` runs, for those who stop, save and resume it. Run it inside of `frozen()`.

        Args:
            prompts, tokenizer: as for `generate`.
            prompt_embeds: (T, joint width), instead of prompts; of several guides, a list of one for each.
            image_prompts: pictures that all pictures should look like, too; anything that `decode_image` takes. The
                goal is all of their cuts.
            noise_prompts: seeds of random directions that pictures should have, too.
            seeds: of each prompt's pictures.
            size: pixels of a side, or height and width, rounded down to multiples of the VQGAN's factor. Default:
                those of the start picture (shrunk to 512 along the longer side), else `config.canvas`.
            num_steps: instead of the configuration's.
            start: `"codes"` (random ones), `"pixels"` (noise), `"gradient"` (from one random colour to another), or a
                picture to change, or latents (D, h, w) of an earlier result.
            mask: with a picture as start, a picture that is white where it may change. The rest stays as it is.
            samples_at_once: pictures in one pass of the VQGAN. Default: 1 on a CPU, where a picture is then the same
                whatever else is painted; all on a GPU.
            evaluate_every: steps between evaluations without augmentation.

        Raises:
            ValueError: no prompt, a blank one, a bad weight, numbers out of range, equal seeds, a mask without a
                picture.
        """
        seeds = checked_seeds(seeds)
        stories = stories_of(self.guides, prompts, tokenizer, prompt_embeds)
        picture, grid = self._start_picture(start, size)
        if mask is not None and picture is None:
            raise ValueError("mask: given without a start picture, expected one to change")
        noise = [] if noise_prompts is None else checked_seeds(noise_prompts, "noise_prompts")
        given = pictures_of(image_prompts, "image_prompts")
        if len(noise) + len(given) > MOST_PROMPTS:
            raise ValueError(f"image_prompts, noise_prompts: more than {MOST_PROMPTS}")
        images = [picture_tensor(image, what=f"image_prompts[{number}]") for number, image in enumerate(given)]
        samples = []
        for story in stories:
            for seed in seeds:
                sample = self._sample(seed, start, picture, grid, mask)
                sample.goal = story.joined(self._extra_goals(sample.generator, images, noise))
                samples.append(sample)
        at_once = samples_at_once or (1 if self.device.type == "cpu" else len(samples))
        steps = self.config.num_steps if num_steps is None else num_steps
        return SynthesisLoop(PaintingTask(self, steps), samples, steps, at_once, evaluate_every)

    def results(self, loop: SynthesisLoop) -> list[SynthesizedImage]:
        """Pictures of a loop as they are, with their similarity to the first of their last prompts."""
        found = []
        with torch.no_grad():
            for sample in loop.finish():
                images = loop.task.images([sample])
                latents = sample.tensors["latents"].detach()
                similarities = self.similarities(images, sample.goal)
                found.append(
                    SynthesizedImage(
                        pixels=images[0].float().cpu(),
                        latents=latents.float().cpu().clone(memory_format=torch.contiguous_format),
                        codes=self._codes_of(latents).cpu().contiguous(),
                        seed=sample.seed,
                        loss=loop.value_of(sample),
                        losses=list(sample.losses),
                        evaluations=list(sample.evaluations),
                        prompt=sample.goal.text,
                        similarity=similarities[0],
                        similarities=similarities,
                    )
                )
        return found

    # ---- parts

    def _codes_of(self, latents: torch.Tensor) -> torch.Tensor:
        return nearest_codes(latents[None], self.vqgan.codebook)[0]

    def _start_picture(self, start, size) -> tuple[torch.Tensor | None, tuple[int, int]]:
        """(3, H, W) in 0..1 or None, and the grid."""
        factor, width = self.config.vqgan_config.factor, self.config.vqgan_config.embed_dim
        if isinstance(start, str) and start in STARTS:
            return None, self.config.grid(size)
        if isinstance(start, torch.Tensor) and start.dim() == 3 and start.shape[0] == width and width != 3:
            grid = tuple(start.shape[1:])
            if not start.is_floating_point() or not start.isfinite().all() or not 1 <= min(grid) <= max(grid) <= 4096:
                raise ValueError(f"start: latents {list(start.shape)}, expected finite floats of a grid in 1..4096")
            if size not in (None, (grid[0] * factor, grid[1] * factor)):
                raise ValueError(f"size: {size!r}, expected none: latents of {grid[0]} x {grid[1]} codes have theirs")
            return None, grid
        picture = picture_tensor(start, what="start")
        grid = self.config.grid(_fitting(picture.shape[1:], factor) if size is None else size)
        wanted = (grid[0] * factor, grid[1] * factor)
        # Lanczos, as the official code resizes.
        picture = picture if picture.shape[1:] == wanted else _resized(picture, wanted)
        return picture, grid

    @torch.no_grad()
    def _sample(self, seed: int, start, picture, grid: tuple[int, int], mask) -> SynthesisSample:
        config, generator = self.config, torch.Generator().manual_seed(seed)
        height, width = (side * config.vqgan_config.factor for side in grid)
        fixed: dict[str, torch.Tensor] = {}
        if picture is None and isinstance(start, torch.Tensor):
            latents = start.clone().to(self.device)
        elif picture is None and start == "codes":
            codes = torch.randint(config.vqgan_config.num_embeddings, (1, *grid), generator=generator)
            latents = self.vqgan.look_up(codes.to(self.device))[0]
        else:
            if start is not None and isinstance(start, str) and start in ("pixels", "gradient"):
                picture = (
                    _noise(height, width, generator) if start == "pixels" else _gradient(height, width, generator)
                )
            pixels = (picture[None] * 2 - 1).to(self.device)
            latents = self.vqgan.quantized(self.vqgan.encode(pixels))[0]
            if mask is not None:
                area = _resized(picture_tensor(mask, what="mask").mean(0, keepdim=True), (height, width))
                fixed = {"picture": picture.to(self.device), "mask": area.to(self.device)}
        latents = latents.detach().float()
        if config.init_weight and config.init_target == "start":
            fixed["start"] = latents.clone()
        with torch.enable_grad():
            tensors = {"latents": latents.clone().requires_grad_()}
        optimizer = getattr(torch.optim, config.optimizer)(tensors.values(), lr=config.learning_rate)
        return SynthesisSample(seed, generator, tensors, optimizer, fixed)

    @torch.no_grad()
    def _extra_goals(self, generator, images, noise) -> list[list[Goal]]:
        """Of each guide."""
        found = []
        for guide in self.guides:
            goals = []
            for image in images:
                plan = self._plan(image, generator, guide.config.guide_size)
                cuts = plan.cuts(image.to(self.device))
                # The mean over all cuts of an image counts as much as one text.
                goals.append(Goal.of(guide.embed_images(cuts), [Prompt("image", 1 / len(cuts))] * len(cuts)))
            for seed in noise:
                drawn = torch.Generator().manual_seed(seed)
                numbers = torch.randn(1, guide.config.projection_dim, generator=drawn)
                goals.append(Goal.of(numbers.to(self.device), [Prompt("noise")]))
            found.append(goals)
        return found

    def _plan(self, image: torch.Tensor, generator: torch.Generator, size: int) -> CutPlan:
        config = self.config
        return plan_cuts(
            *image.shape[1:],
            config.num_cuts,
            size,
            generator,
            method=config.cut_method,
            power=config.cut_power,
            noise_factor=config.noise_factor,
            augmentations=config.augmentations,
        )


class PaintingTask:
    """What [`VQGANCLIPForImageSynthesis`] says to a `SynthesisLoop`."""

    def __init__(self, model: VQGANCLIPForImageSynthesis, num_steps: int):
        self.model, self.config, self.num_steps = model, model.config, num_steps
        self.bounds = model.vqgan.latent_bounds()

    def images(self, samples: Sequence[SynthesisSample]) -> torch.Tensor:
        """(n, 3, H, W); of those with a mask, the picture where it is black."""
        made = self.model.synthesize(torch.stack([sample.tensors["latents"] for sample in samples]))
        if not any("mask" in sample.fixed for sample in samples):
            return made
        return torch.stack(
            [
                image
                if "mask" not in sample.fixed
                else image * sample.fixed["mask"] + sample.fixed["picture"] * (1 - sample.fixed["mask"])
                for image, sample in zip(made, samples, strict=True)
            ]
        )

    def losses(self, samples: Sequence[SynthesisSample], step: int) -> torch.Tensor:
        """Mean spherical distance of all cuts, the mean over guides, each of which has cuts of its own; and the terms
        on latents and pictures."""
        config, model, images = self.config, self.model, self.images(samples)
        found = []
        for guide, goals in zip(model.guides, current_goals(samples, self.num_steps), strict=True):
            size, count = guide.config.guide_size, config.num_cuts
            plans = [model._plan(image, sample.generator, size) for image, sample in zip(images, samples, strict=True)]

            def cuts(rows: slice, plans=plans, count=count) -> torch.Tensor:
                """Some of all samples' cuts."""
                parts = []
                for number, (plan, image) in enumerate(zip(plans, images, strict=True)):
                    first, last = max(rows.start - number * count, 0), min(rows.stop - number * count, count)
                    if first < last:
                        parts.append(plan.cuts(image, slice(first, last)))
                return torch.cat(parts)

            embeds = guide.embed_views(cuts, len(samples) * count).unflatten(0, (len(samples), count))
            found.append(prompt_losses(embeds, goals, spherical_distance, "mean"))
        losses = model.weighted_mean(found)
        if config.tv_weight:
            losses = losses + config.tv_weight * total_variation(images)
        if config.init_weight:
            kept = [
                start_loss(sample.tensors["latents"], config.init_weight, step, sample.fixed.get("start"))
                for sample in samples
            ]
            losses = losses + torch.stack(kept)
        return losses

    def evaluate(self, samples: Sequence[SynthesisSample]) -> torch.Tensor:
        images, goals = self.images(samples), current_goals(samples, self.num_steps)
        return self.model.weighted_mean(
            [
                prompt_losses(guide.embed_images(images)[:, None], of_guide, spherical_distance, "mean")
                for guide, of_guide in zip(self.model.guides, goals, strict=True)
            ]
        )

    def after_step(self, sample: SynthesisSample, step: int, num_steps: int) -> None:
        """Each channel stays within the codebook's numbers."""
        sample.tensors["latents"].clamp_(*(bound.float() for bound in self.bounds))


def _fitting(sides: Sequence[int], factor: int) -> tuple[int, int]:
    """Height and width of a picture, at least one code and at most 512 pixels along the longer side."""
    shrink = min(1.0, 512 / max(sides))
    height, width = (max(factor, round(side * shrink)) for side in sides)
    return height, width


def _resized(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(C, H, W) in 0..1, by Lanczos' filter if it has three channels, as Pillow does."""
    if len(picture) == 3:
        height, width = size
        image = to_pil_image(picture).resize((width, height), Image.Resampling.LANCZOS)
        return (
            torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            .view(height, width, 3)
            .movedim(-1, 0)
            .float()
            .div(255)
        )
    return F.interpolate(picture[None], size, mode="bilinear", antialias=True)[0]


def _noise(height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(3, height, width, generator=generator)


def _gradient(height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Each colour channel grows or falls from one random number to another, along one of the axes."""
    low, high = torch.rand(2, 3, 1, 1, generator=generator)
    along = torch.rand(3, 1, 1, generator=generator) < 0.5
    down, right = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    place = torch.where(along, down.expand(height, width), right.expand(height, width))
    return low + (high - low) * place


__all__ = [
    "SynthesizedImage",
    "VQGANCLIPForImageSynthesis",
    "VQGANCLIPOutput",
    "VQGANCLIPPreTrainedModel",
]
