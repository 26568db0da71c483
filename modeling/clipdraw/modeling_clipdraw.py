"""CLIPDraw: drawings from texts. Strokes are optimised until a dual encoder finds that they show the text.

Paper: "CLIPDraw: Exploring Text-to-Drawing Synthesis through Language-Image Encoders",
https://arxiv.org/abs/2106.14843.
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from transformers.utils import TransformersKwargs, can_return_tuple

from ..strokes.stroke_drawing import StrokeDrawing
from ..strokes.stroke_rasterizer import render_strokes
from ..synthesis.guided_model import picture_tensor, pictures_of, texts_of
from ..synthesis.guiding_prompts import Goal, Prompt, prompt_losses
from ..synthesis.stories import current_goals, stories_of, tokenizers_of
from ..synthesis.stroke_samples import (
    SynthesizedDrawing,
    checked_count,
    drawings_of,
    random_walks,
    render_samples,
)
from ..synthesis.synthesis_loop import SynthesisLoop, SynthesisSample, checked_seeds
from ..synthesis.text_guided_model import TextGuidedModel, TextGuidedOutput
from ..synthesis.view_augmentation import draw_views, views_of
from .configuration_clipdraw import CLIPDrawConfig


# B drawings, N strokes, P points of each, T texts, L tokens, D joint width, V views

NEGATIVE_PROMPTS = ("A badly drawn sketch.", "Many ugly, messy drawings.")  # the authors'; off by default
_REACH = 0.1  # of a new point from the one before, in canvases


class CLIPDrawOutput(TextGuidedOutput):
    """Of drawings; `loss` is minus the mean cosine of each drawing and its text."""


class CLIPDrawPreTrainedModel(TextGuidedModel):
    config: CLIPDrawConfig
    output_class = CLIPDrawOutput

    @staticmethod
    def pair_losses(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return -(images @ texts.T).diagonal()


class CLIPDrawForImageSynthesis(CLIPDrawPreTrainedModel):
    r"""
    CLIPDraw (Frans et al. 2022): a text becomes a drawing of coloured strokes. Nothing is trained: the strokes'
    points, widths and colours are optimised, through a differentiable rasteriser, for the cosine between the drawing
    and the text in a dual encoder. Any of `modeling/dual_encoders/backbones.py` guides; its checkpoint loads as it is.

    `generate` draws. `forward` scores drawings that exist. For a sketch of a photograph instead of a text, there is a
    model of sketches. Several dual encoders guide together after `add_guide`; `forward` compares with the first.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import CLIPDrawConfig, CLIPDrawForImageSynthesis

    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> vision = text | {"image_size": 32, "patch_size": 16}
    >>> config = CLIPDrawConfig(text_config=text, vision_config=vision, projection_dim=64, num_strokes=8)
    >>> model = CLIPDrawForImageSynthesis(config).eval()
    >>> found = model.generate(prompt_embeds=torch.randn(1, 64), seeds=[0, 1], num_steps=3)
    >>> len(found), len(found[0].drawing), found[0].drawing.to_image(scale=4).size
    (2, 8, (128, 128))
    ```
    """

    def __init__(self, config: CLIPDrawConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        points: torch.FloatTensor,
        radii: torch.FloatTensor | None = None,
        colors: torch.FloatTensor | None = None,
        num_segments: torch.LongTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_loss: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CLIPDrawOutput:
        r"""
        How well drawings show texts; differentiable in the strokes.

        Args:
            points: (B, N, P, 2), in pixels of the canvas.
            radii: (B, N), half of the lines' widths. None: `config.min_radius`.
            colors: (B, N, 4) in 0..1, with opacity. None: black.
            num_segments: (B, N); None: all.
            input_ids, attention_mask: (T, L), texts.
            return_loss: needs a text for each drawing.

        Returns:
            [`CLIPDrawOutput`].

        Raises:
            ValueError: as `render_strokes`; no texts; for the loss, other numbers of texts and drawings.
        """
        if input_ids is None:
            raise ValueError("input_ids: None, expected the texts that drawings are compared with")
        config = self.config
        if isinstance(points, torch.Tensor) and points.dim() == 4:
            if radii is None:
                radii = points.new_full(points.shape[:2], config.min_radius * config.unit)
            if colors is None:
                colors = points.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*points.shape[:2], 4)
        images = render_strokes(points, radii, colors, num_segments, height=config.canvas, width=config.canvas)
        return self.compare(
            images, input_ids, attention_mask, return_loss, config.normalize, made_of="points", **kwargs
        )

    # ---- drawing

    def make_loop(
        self,
        prompts: str | Sequence[str] | None = None,
        tokenizer=None,
        *,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompts: str | Sequence[str] | None = None,
        image_prompts: Sequence | None = None,
        seeds: int | Sequence[int] = 0,
        num_strokes: int | None = None,
        num_steps: int | None = None,
        start: StrokeDrawing | None = None,
        samples_at_once: int | None = None,
        evaluate_every: int = 50,
    ) -> SynthesisLoop:
        """
        The loop that `generate` runs, for those who stop, save and resume it. Run it inside of `frozen()`.

        Args:
            prompts, tokenizer: as for `generate`.
            prompt_embeds: (T, D), instead of prompts; of several guides, a list of one for each.
            negative_prompts: what drawings should not look like, with `config.negative_weight`.
            image_prompts: pictures that all drawings should look like, too; anything that `decode_image` takes.
            seeds: of each prompt's drawings.
            num_strokes, num_steps: instead of the configuration's.
            start: a drawing to begin with, instead of random strokes. Its lines are optimised; areas are refused.
            samples_at_once: drawings in one pass of the guide. Default: 1 on a CPU, where a drawing is then the same
                whatever else is drawn; all on a GPU.
            evaluate_every: steps between evaluations without augmentation.

        Raises:
            ValueError: no prompt, a blank one, a bad weight, numbers out of range, equal seeds.
        """
        config, seeds = self.config, checked_seeds(seeds)
        count = checked_count("num_strokes", config.num_strokes if num_strokes is None else num_strokes)
        stories = stories_of(self.guides, prompts, tokenizer, prompt_embeds)
        extra = self._extra_goals(tokenizer, negative_prompts, image_prompts)
        samples = []
        for story in stories:
            for seed in seeds:
                sample = self._sample(seed, count) if start is None else self._sample_of(seed, start)
                sample.goal = story.joined(extra)
                samples.append(sample)
        at_once = samples_at_once or (1 if self.device.type == "cpu" else len(samples))
        steps = config.num_steps if num_steps is None else num_steps
        return SynthesisLoop(DrawingTask(self, steps), samples, steps, at_once, evaluate_every)

    def results(self, loop: SynthesisLoop) -> list[SynthesizedDrawing]:
        """Drawings of a loop as they are, with their similarity to the first of their last prompts."""
        found = drawings_of(loop, self.config.canvas)
        for result, sample in zip(found, loop.finish(), strict=True):
            result.prompt = sample.goal.text
            with torch.no_grad():
                images = loop.task.images([sample])
                result.similarities = self.similarities(images, sample.goal, self.config.normalize)
            result.similarity = result.similarities[0]
        return found

    # ---- parts

    def _extra_goals(self, tokenizer, negative_prompts, image_prompts) -> list[list[Goal]]:
        """Of each guide, for all drawings."""
        found: list[list[Goal]] = [[] for _ in self.guides]
        if texts := texts_of(negative_prompts, "negative_prompts"):
            away = [Prompt(text, -self.config.negative_weight) for text in texts]
            tokenizers = tokenizers_of(self.guides, tokenizer)
            for goals, guide, own in zip(found, self.guides, tokenizers, strict=True):
                embeds = guide.encode_prompts(texts, own, "negative_prompts")
                if self.config.negative_weight:
                    goals.append(Goal.of(embeds, away))
        if images := pictures_of(image_prompts, "image_prompts"):
            names = [f"image_prompts[{number}]" for number in range(len(images))]
            decoded = [picture_tensor(image, what=name) for image, name in zip(images, names, strict=True)]
            for goals, guide in zip(found, self.guides, strict=True):
                pixels = torch.stack([picture_tensor(image, guide.config.guide_size) for image in decoded])
                with torch.no_grad():
                    embeds = guide.embed_images(pixels.to(self.device), self.config.normalize)
                goals.append(Goal.of(embeds, [Prompt("image") for _ in images]))
        return found

    def _sample(self, seed: int, count: int) -> SynthesisSample:
        """Random strokes, as the authors begin: short walks in any colour."""
        config, generator = self.config, torch.Generator().manual_seed(seed)
        segments = torch.randint(1, config.max_segments + 1, (count,), generator=generator)
        starts = torch.rand(count, 2, generator=generator)
        points = random_walks(starts, 3 * config.max_segments, _REACH, config.canvas, generator)
        colors = torch.rand(count, 4, generator=generator)
        radii = torch.full((count,), config.min_radius * config.unit)
        return self._sample_with(seed, generator, points, radii, colors, segments)

    def _sample_of(self, seed: int, start: StrokeDrawing) -> SynthesisSample:
        if not isinstance(start, StrokeDrawing):
            raise ValueError(f"start: got {type(start).__name__}, expected a StrokeDrawing")
        if start.filled is not None and start.filled.any():
            raise ValueError("start: it has filled areas, expected lines only")
        scaled = start.scaled(self.config.canvas / max(start.height, start.width))
        generator = torch.Generator().manual_seed(seed)
        parts = (scaled.points.float(), scaled.radii.float(), scaled.colors.float(), scaled.num_segments.long())
        return self._sample_with(seed, generator, *(part.clone() for part in parts))

    def _sample_with(self, seed, generator, points, radii, colors, segments) -> SynthesisSample:
        config, device = self.config, self.device
        tensors = {"points": points, "radii": radii, "colors": colors}
        tensors = {name: tensor.to(device).requires_grad_() for name, tensor in tensors.items()}
        # Steps of points and widths are in pixels of the authors' canvas.
        rates = (config.points_lr * config.unit, config.radii_lr * config.unit, config.colors_lr)
        groups = [{"params": [tensor], "lr": lr} for tensor, lr in zip(tensors.values(), rates, strict=True)]
        optimizer = torch.optim.Adam(groups)
        return SynthesisSample(seed, generator, tensors, optimizer, {"num_segments": segments.to(device)})


class DrawingTask:
    """What [`CLIPDrawForImageSynthesis`] says to a `SynthesisLoop`."""

    def __init__(self, model: CLIPDrawForImageSynthesis, num_steps: int):
        self.model, self.config, self.num_steps = model, model.config, num_steps

    def images(self, samples: Sequence[SynthesisSample]) -> torch.Tensor:
        return render_samples(samples, self.config.canvas)

    def losses(self, samples: Sequence[SynthesisSample], step: int) -> torch.Tensor:
        """Minus the sum of the cosines of all views, plus the weighted ones of negative prompts; the mean over
        guides, each of which has views of its own."""
        config, count, images = self.config, self.config.num_augmentations, self.images(samples)
        generators, goals = [sample.generator for sample in samples], current_goals(samples, self.num_steps)
        found = []
        for guide, of_guide in zip(self.model.guides, goals, strict=True):
            drawn, size = draw_views(count, *images.shape[-2:], generators), guide.config.guide_size

            def views(rows: slice, drawn=drawn, size=size) -> torch.Tensor:
                # White where nothing is; they are normalised after that.
                return views_of(images, *(part[rows] for part in drawn), size, fill=1.0)

            embeds = guide.embed_views(views, len(samples) * count, config.normalize)
            found.append(prompt_losses(embeds.unflatten(0, (len(samples), count)), of_guide))
        return self.model.weighted_mean(found)

    def evaluate(self, samples: Sequence[SynthesisSample]) -> torch.Tensor:
        images, goals = self.images(samples), current_goals(samples, self.num_steps)
        return self.model.weighted_mean(
            [
                prompt_losses(guide.embed_images(images, self.config.normalize)[:, None], of_guide)
                for guide, of_guide in zip(self.model.guides, goals, strict=True)
            ]
        )

    def after_step(self, sample: SynthesisSample, step: int, num_steps: int) -> None:
        """Ranges of widths and colours; the points' learning rate, which falls within each chapter."""
        config, unit = self.config, self.config.unit
        sample.tensors["radii"].clamp_(config.min_radius * unit, config.max_radius * unit)
        sample.tensors["colors"].clamp_(0, 1)
        share = sample.goal.share(step + 1, num_steps)
        factor = 1.0 if share < 0.5 else 0.4 if share < 0.75 else 0.1
        sample.optimizer.param_groups[0]["lr"] = config.points_lr * unit * factor


def clipdraw_loss(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, *negative_embeds: torch.Tensor
) -> torch.Tensor:
    """() the authors' loss of (V, D) views and (1, D) texts: minus the sum of the cosines, plus 0.3 times those of
    each negative text."""
    prompts = [Prompt("text"), *(Prompt("negative", -0.3) for _ in negative_embeds)]
    return prompt_losses(image_embeds[None], [Goal.of(torch.cat([text_embeds, *negative_embeds]), prompts)])[0]


__all__ = [
    "NEGATIVE_PROMPTS",
    "CLIPDrawForImageSynthesis",
    "CLIPDrawOutput",
    "CLIPDrawPreTrainedModel",
    "clipdraw_loss",
]
