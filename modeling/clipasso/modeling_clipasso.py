"""CLIPasso: a photograph becomes a sketch of few strokes.

Paper: "CLIPasso: Semantically-Aware Object Sketching", https://arxiv.org/abs/2202.05822. The authors' code is under
CC BY-NC-SA; this is written from a description of the method.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from ..dual_encoders.forward_checks import check_output, check_pixels
from ..strokes.stroke_rasterizer import render_strokes
from ..synthesis.guide import GuidingEncoder
from ..synthesis.guided_model import IMAGE_MEAN, IMAGE_STD, PUBLISHED_CANVAS, GuidedPreTrainedModel, picture_tensor
from ..synthesis.stories import tokenizers_of
from ..synthesis.stroke_samples import (
    SynthesizedDrawing,
    checked_count,
    drawings_of,
    random_walks,
    render_samples,
)
from ..synthesis.synthesis_loop import LARGEST_STEPS, SynthesisLoop, SynthesisSample, check_count, checked_seeds
from ..synthesis.view_augmentation import augmented_views
from .configuration_clipasso import CLIPassoConfig
from .edges_clipasso import edge_points
from .losses_clipasso import perceptual_loss, perceptual_losses, strokes_begun, text_loss
from .saliency_clipasso import (
    attention_map,
    class_attentions,
    drawn_starts,
    edge_map,
    occlusion_map,
    start_probabilities,
)


# B sketches, N strokes, P points of each, S pixels of a side of the guide's pictures

_REACH = 0.05  # of a new point from the one before, in canvases
_CROP = 0.8  # share of the area that a view shows
_PADDING = 20  # white pixels around a picture that is made square, of the authors' canvas
DEFAULT_SEEDS = (0, 1, 2)


@dataclass
class CLIPassoOutput(ModelOutput):
    """
    Args:
        loss: (), the mean over sketches of the sum of the terms.
        terms: (B, terms), weighted: the layers with a weight, in order, then the embedding, then that of each further
            guide.
        images: (B, 3, S, S), the sketches in 0..1.
        hidden_states, attentions: of the image encoder, for the sketches.
    """

    loss: torch.FloatTensor | None = None
    terms: torch.FloatTensor | None = None
    images: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class Target:
    """A photograph as the loop needs it: (3, C, C) pixels on the canvas, the first guide's features of it without
    augmentation, each further guide's embedding (1, D), and for each guide (D,) of the text that the sketch shall be
    near to, if there is one."""

    pixels: torch.Tensor
    layers: list[torch.Tensor]
    features: torch.Tensor
    more_features: list[torch.Tensor]
    texts: list[torch.Tensor] | None = None


class CLIPassoPreTrainedModel(GuidedPreTrainedModel):
    config: CLIPassoConfig


class CLIPassoForImageSynthesis(CLIPassoPreTrainedModel):
    r"""
    CLIPasso (Vinker et al. 2022): a photograph of one thing becomes a sketch of black strokes; their number is the
    level of abstraction. Nothing is trained: the strokes' points are optimised, through a differentiable rasteriser,
    until layers of an image encoder find the sketch near the photograph. Strokes begin at salient edges.

    Any dual encoder of `modeling/dual_encoders/backbones.py` guides; the paper's is a CLIP-ResNet 101. Of several
    guides (`add_guide`; not in the paper), layers are compared in the first, embeddings in all. `generate` sketches.
    `forward` is the loss of sketches that exist.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import CLIPassoConfig, CLIPassoForImageSynthesis

    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> vision = text | {"num_hidden_layers": 3, "image_size": 32, "patch_size": 16}
    >>> config = CLIPassoConfig(text_config=text, vision_config=vision, projection_dim=64, num_strokes=4)
    >>> model = CLIPassoForImageSynthesis(config).eval()
    >>> found = model.generate(torch.rand(3, 40, 50), seeds=[0, 1], num_steps=3)
    >>> len(found), len(found[0].drawing)
    (2, 4)
    ```
    """

    def __init__(self, config: CLIPassoConfig):
        super().__init__(config)
        self.post_init()

    # ---- features and loss

    def image_layers(self, pixels: torch.Tensor, **kwargs) -> tuple[list[torch.Tensor], torch.Tensor, ModelOutput]:
        """(n, 3, S, S) as the guide sees them -> features of its layers in float32 (blocks of a transformer with all
        tokens, or stem and stages of a ResNet), embeddings (n, D), and the encoder's output."""
        kwargs |= {"output_hidden_states": True, "return_dict": True}
        try:
            output = self.family.image_features(self.clip, pixel_values=pixels, **kwargs)
        except ValueError as error:  # the encoder's own, of images of another size
            size = f"vision_config.image_size is {getattr(self.config.vision_config, 'image_size', 'unknown')}"
            raise ValueError(f"pixel_values: {error} {size}") from error
        states = output.hidden_states[1:] if self.config.has_blocks else output.hidden_states
        return [state.float() for state in states], output.pooler_output.float(), output

    @can_return_tuple
    def forward(
        self,
        points: torch.FloatTensor,
        pixel_values: torch.FloatTensor | None = None,
        radii: torch.FloatTensor | None = None,
        colors: torch.FloatTensor | None = None,
        num_segments: torch.LongTensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CLIPassoOutput:
        r"""
        How near sketches are to photographs, without augmentation; differentiable in the strokes.

        Args:
            points: (B, N, P, 2), in pixels of the canvas.
            pixel_values: (B, 3, S, S), the photographs, normalised, as the processor gives them.
            radii: (B, N), half of the lines' widths. None: `config.stroke_radius`.
            colors: (B, N, 4) in 0..1, with opacity. None: black.
            num_segments: (B, N); None: all.

        Returns:
            [`CLIPassoOutput`].

        Raises:
            ValueError: as `render_strokes`; no photographs, or another number of them.
        """
        config = self.config
        if pixel_values is None:
            raise ValueError("pixel_values: None, expected the photographs that sketches are compared with")
        check_pixels(pixel_values, config.vision_config.num_channels)
        if isinstance(points, torch.Tensor) and points.dim() == 4:
            if radii is None:
                radii = points.new_full(points.shape[:2], config.stroke_radius * config.unit)
            if colors is None:
                colors = points.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*points.shape[:2], 4)
        images = render_strokes(points, radii, colors, num_segments, height=config.canvas, width=config.canvas)
        if len(pixel_values) != len(images):
            raise ValueError(f"pixel_values: {len(pixel_values)} photographs, expected one for each of {len(images)}")
        layers, features, output = self.image_layers(self.as_guide_sees(images), **kwargs)
        with torch.no_grad():
            target_layers, target_features, _ = self.image_layers(pixel_values.to(self.dtype))
        terms = self._terms(layers, features, target_layers, target_features, 1)
        stacked = torch.stack(list(terms.values()), 1)
        if self.more_guides:
            first, *shares = self.guide_shares
            photographs = self._as_given(pixel_values)
            more = [share * embeddings_and_loss(guide, images[:, None], photographs[:, None], config.feature_weight)[1]
                    for share, guide in zip(shares, self.more_guides, strict=True)]  # fmt: skip
            stacked = torch.cat([first * stacked, torch.stack(more, 1)], 1)
        check_output(self, stacked, "terms", points=points, pixel_values=pixel_values)
        wanted = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return CLIPassoOutput(
            loss=stacked.sum(1).mean(),
            terms=stacked.to(self.dtype),
            images=images,
            hidden_states=output.hidden_states if wanted else None,
            attentions=output.get("attentions"),
        )

    def _as_given(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Photographs in 0..1 again, of those that are normalised for the first guide."""
        mean, std = (pixel_values.new_tensor(v)[:, None, None] for v in self._statistics())
        return (pixel_values * std + mean).float().clamp(0, 1)

    def _terms(self, layers, features, target_layers, target_features, views: int) -> dict[str, torch.Tensor]:
        config = self.config
        pairs = [[one.unflatten(0, (-1, views)) for one in some] for some in (layers, target_layers)]
        both = (one.unflatten(0, (-1, views)) for one in (features, target_features))
        return perceptual_losses(*pairs, *both, config.layer_weights, config.feature_weight, config.loss_type)

    # ---- where strokes begin

    @torch.no_grad()
    def saliency_map(self, image) -> torch.Tensor:
        """(224, 224) in 0..1 of one picture, as `picture_tensor` takes it: the class token's mean attention, or, of
        encoders without one, by occlusion. The map of another model can be given to `generate`."""
        pixels = picture_tensor(image, self.config.guide_size).to(self.device)[None]
        vision = getattr(self.clip, "vision_model", None)
        if self.family.has_class_token and hasattr(getattr(vision, "encoder", None), "layers"):
            attentions = class_attentions(vision, self.as_guide_sees(pixels))
            return attention_map(attentions, PUBLISHED_CANVAS)[0]
        return occlusion_map(self.embed_images, pixels, PUBLISHED_CANVAS)[0]

    @torch.no_grad()
    def start_probabilities(self, image, saliency: torch.Tensor | None = None) -> torch.Tensor:
        """(224, 224), adding up to 1: where strokes of a sketch of the picture begin."""
        saliency = self.saliency_map(image) if saliency is None else checked_saliency(saliency).to(self.device)
        edges = None
        if self.config.use_edges:
            pixels = picture_tensor(image, PUBLISHED_CANVAS).to(self.device)
            mean, std = (pixels.new_tensor(v)[:, None, None] for v in self._statistics())
            edges = edge_map((pixels - mean) / std)
        return start_probabilities(saliency.float(), edges, self.config.softmax_temperature)

    def _statistics(self):
        return self.config.image_mean or IMAGE_MEAN, self.config.image_std or IMAGE_STD

    # ---- sketching

    def generate(
        self, images, *, callback: Callable[[SynthesisLoop], object] | None = None, **options
    ) -> list[SynthesizedDrawing]:
        """
        Sketches each picture with each seed. The authors advise three seeds, of which the one with the lowest loss is
        kept: `best_of(results)`.

        Args:
            images: a picture, or a list of them: anything that `decode_image` takes, or (3, H, W) in 0..1.
            callback: called with the loop after each step; `False` ends it there.
            options: see `make_loop`.

        Returns:
            For each picture, each seed, in this order.
        """
        with self.frozen():
            loop = self.make_loop(images, **options)
            loop.run(callback)
            return self.results(loop)

    @torch.no_grad()
    def make_loop(
        self,
        images,
        *,
        masks=None,
        saliency: torch.Tensor | Sequence[torch.Tensor] | None = None,
        texts: str | Sequence[str] | None = None,
        tokenizer=None,
        perceptual: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        pad: bool = False,
        seeds: int | Sequence[int] = DEFAULT_SEEDS,
        num_strokes: int | None = None,
        num_steps: int | None = None,
        samples_at_once: int | None = None,
    ) -> SynthesisLoop:
        """
        The loop that `generate` runs, for those who stop, save and resume it. Run it inside of `frozen()`.

        Args:
            images: as for `generate`.
            masks: (H, W) for each picture, true where the thing is; the rest becomes white. An array, a tensor, a PIL
                image, or an entry of an `image-segmentation` pipeline's answer; of a `mask-generation` pipeline's, one
                of its `"masks"`.
            saliency: (H, W) in 0..1 for each picture, instead of the guide's own.
            texts: what each picture shows, in words; the sketch is drawn to its text, too (`config.text_weight`).
            tokenizer: for `texts`; of several guides, a list of one for each.
            perceptual: a further distance between sketches and photographs (`config.perceptual_weight`): takes two
                (n, 3, S, S) in 0..1, S the largest guide's size, and returns n numbers, differentiable. LPIPS of the
                package `lpips`, say: `lambda sketch, photo: lpips_model(sketch, photo, normalize=True)`.
            pad: make pictures square with white, instead of squashing them as the authors do.
            seeds: of each picture's sketches.
            num_strokes, num_steps: instead of the configuration's.
            samples_at_once: sketches in one pass of the guide. Default: 1 on a CPU, where a sketch is then the same
                whatever else is sketched; all on a GPU.

        Raises:
            ValueError: no picture, masks, maps or texts that do not fit, numbers out of range, equal seeds, more
                stages than strokes.
        """
        config, seeds = self.config, checked_seeds(seeds)
        count = checked_count("num_strokes", config.num_strokes if num_strokes is None else num_strokes)
        pictures = prepared_pictures(images, masks, pad)
        maps = _maps_of(saliency)
        if maps is not None and len(maps) != len(pictures):
            raise ValueError(f"saliency: {len(maps)} maps, expected one for each of {len(pictures)} pictures")
        if config.num_stages > count:
            raise ValueError(f"num_stages: {config.num_stages}, expected at most num_strokes, {count}")
        if perceptual is not None and not callable(perceptual):
            raise ValueError(f"perceptual: {type(perceptual).__name__}, expected a callable")
        wanted = self._text_features(texts, tokenizer, len(pictures))
        steps = config.num_steps if num_steps is None else num_steps
        check_count("num_steps", steps, 0, LARGEST_STEPS)
        samples = []
        for number, pixels in enumerate(pictures):
            chances = self.start_probabilities(pixels, None if maps is None else maps[number])
            target = self._target(pixels, None if wanted is None else wanted[number])
            edges = None
            if config.start == "edges":
                edges = edge_points(picture_tensor(pixels, PUBLISHED_CANVAS), count, config.num_segments)
            for seed in seeds:
                samples.append(self._sample(seed, count, chances, target, steps, edges))
        at_once = samples_at_once or (1 if self.device.type == "cpu" else len(samples))
        task, least = SketchTask(self, perceptual), config.min_delta if config.num_stages == 1 else None
        return SynthesisLoop(task, samples, steps, at_once, config.evaluate_every, True, least)

    def results(self, loop: SynthesisLoop) -> list[SynthesizedDrawing]:
        """The best sketch so far of each sample, with its cosine to the photograph."""
        samples = loop.finish()
        found = drawings_of(loop, self.config.canvas)
        with torch.no_grad():
            for result, sample in zip(found, samples, strict=True):
                strokes = len(result.drawing)
                begun = strokes_begun(strokes, self.config.num_stages, loop.step, loop.num_steps)
                if begun < strokes:  # it was ended before the last stage
                    result.drawing = result.drawing.first(begun)
                images = loop.task.images([sample])
                result.similarities = [
                    float(F.cosine_similarity(guide.embed_images(images), wanted)[0])
                    for guide, wanted in zip(
                        self.guides, [sample.goal.features, *sample.goal.more_features], strict=True
                    )
                ]
                result.similarity = result.similarities[0]
        return found

    def _text_features(self, texts, tokenizer, pictures: int) -> list[list[torch.Tensor]] | None:
        """Of each picture, (D,) of each guide."""
        if texts is None:
            return None
        texts = [texts] if isinstance(texts, str) else list(texts)
        if len(texts) != pictures or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(
                f"texts: {str(texts)[:60]}, expected one that is not empty for each of {pictures} pictures"
            )
        tokenizers = tokenizers_of(self.guides, tokenizer)
        found = [guide.encode_prompts(texts, own, "texts") for guide, own in zip(self.guides, tokenizers, strict=True)]
        return [list(one) for one in zip(*found, strict=True)]

    def _target(self, pixels: torch.Tensor, texts: list[torch.Tensor] | None = None) -> Target:
        on_canvas = picture_tensor(pixels, self.config.canvas).to(self.device)
        layers, features, _ = self.image_layers(self.as_guide_sees(on_canvas[None]))
        more = [guide.embed_images(on_canvas[None]) for guide in self.more_guides]
        return Target(on_canvas, layers, features, more, texts)

    def _sample(
        self,
        seed: int,
        count: int,
        chances: torch.Tensor,
        target: Target,
        num_steps: int,
        edges: torch.Tensor | None = None,
    ) -> SynthesisSample:
        """`edges`: (n, P, 2) in 0..1, where the first n strokes begin; the others at salient points."""
        config, device = self.config, self.device
        generator = torch.Generator().manual_seed(seed)
        starts = drawn_starts(chances, count, generator)
        points = random_walks(starts, 3 * config.num_segments, _REACH, config.canvas, generator)
        if edges is not None:
            points[: len(edges)] = edges * config.canvas
        colors = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(count, 1)
        if config.optimize_colors:
            colors[:, :3] = _colors_at(points, 0 if edges is None else len(edges), target.pixels.cpu())
        colors[strokes_begun(count, config.num_stages, 0, num_steps) :, 3] = 0
        fixed = {
            "radii": torch.full((count,), config.stroke_radius * config.unit),
            "num_segments": torch.full((count,), config.num_segments),
        }
        tensors = {"points": points}
        changes_colors = config.optimize_opacity or config.optimize_colors
        # With stages, the opacity changes between them: it belongs to the state that is kept and shown.
        (tensors if changes_colors or config.num_stages > 1 else fixed)["colors"] = colors
        tensors = {
            name: tensor.to(device).requires_grad_(name == "points" or changes_colors)
            for name, tensor in tensors.items()
        }
        groups = [{"params": [tensors["points"]], "lr": config.points_lr * config.unit}]
        if changes_colors:
            groups.append({"params": [tensors["colors"]], "lr": config.colors_lr})
        fixed = {name: tensor.to(device) for name, tensor in fixed.items()}
        return SynthesisSample(seed, generator, tensors, torch.optim.Adam(groups), fixed, target)


class SketchTask:
    """What [`CLIPassoForImageSynthesis`] says to a `SynthesisLoop`."""

    def __init__(self, model: CLIPassoForImageSynthesis, perceptual: Callable | None = None):
        self.model, self.config, self.perceptual = model, model.config, perceptual

    def images(self, samples: Sequence[SynthesisSample]) -> torch.Tensor:
        return render_samples(samples, self.config.canvas)

    def _total(self, samples, terms, features, views, target_views) -> torch.Tensor:
        """(n,) weighted means over guides of the terms' sums, with those of texts and of `perceptual`: (n, V, D)
        embeddings of the first guide, (n, V, 3, S, S)."""
        config, losses = self.config, []
        of_guides = [(terms, features)]
        for guide in self.model.more_guides:
            shown, loss = embeddings_and_loss(guide, views, target_views, config.feature_weight)
            of_guides.append(({"features": loss}, shown))
        for number, (own, shown) in enumerate(of_guides):
            own = list(own.values())
            if samples[0].goal.texts is not None:
                texts = torch.stack([sample.goal.texts[number] for sample in samples])
                own.append(text_loss(shown, texts, config.text_weight))
            losses.append(torch.stack(own).sum(0))
        loss = self.model.weighted_mean(losses)
        if self.perceptual is not None:
            loss = loss + perceptual_loss(self.perceptual, views, target_views, config.perceptual_weight)
        return loss

    @property
    def _size(self) -> int:
        """Pixels of a side of what guides look at: the largest guide's."""
        return max(guide.config.guide_size for guide in self.model.guides)

    def _as_views(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, H, W) -> (n, 1, 3, S, S)."""
        size = self._size
        return F.interpolate(images, (size, size), mode="bilinear", antialias=True)[:, None]

    def losses(self, samples: Sequence[SynthesisSample], step: int) -> torch.Tensor:
        """Of the plain pair and of pairs that share a perspective and a crop each. The plain photograph's features are
        computed once, and those of its views without gradient."""
        model, count, size = self.model, self.config.num_augmentations, self._size
        sketches = self.images(samples)
        targets = torch.stack([sample.goal.pixels for sample in samples])
        views, target_views = self._as_views(sketches), self._as_views(targets)
        layers = [torch.stack(parts) for parts in zip(*(sample.goal.layers for sample in samples), strict=True)]
        features = torch.stack([sample.goal.features for sample in samples])
        if count:
            # Black where nothing is, in both: the authors' fill.
            pairs = augmented_views(
                torch.cat([sketches, targets], 1), count, [sample.generator for sample in samples], size,
                fill=0.0, scale=(_CROP, _CROP), ratio=(1.0, 1.0),
            )  # fmt: skip
            views = torch.cat([views, pairs[:, :, :3]], 1)
            target_views = torch.cat([target_views, pairs[:, :, 3:]], 1)
            with torch.no_grad():
                pixels = model.as_guide_sees(pairs[:, :, 3:].detach().flatten(0, 1))
                found, embeds, _ = model.image_layers(pixels)
            layers = [
                torch.cat([plain, some.unflatten(0, (-1, count))], 1)
                for plain, some in zip(layers, found, strict=True)
            ]
            features = torch.cat([features, embeds.unflatten(0, (-1, count))], 1)
        sketch_layers, sketch_features, _ = model.image_layers(model.as_guide_sees(views.flatten(0, 1)))
        terms = model._terms(
            sketch_layers, sketch_features, [one.flatten(0, 1) for one in layers], features.flatten(0, 1), count + 1
        )
        return self._total(samples, terms, sketch_features.unflatten(0, (-1, count + 1)), views, target_views)

    def evaluate(self, samples: Sequence[SynthesisSample]) -> torch.Tensor:
        model, sketches = self.model, self.images(samples)
        layers, features, _ = model.image_layers(model.as_guide_sees(sketches))
        targets = [torch.cat(parts) for parts in zip(*(sample.goal.layers for sample in samples), strict=True)]
        target_features = torch.cat([sample.goal.features for sample in samples])
        terms = model._terms(layers, features, targets, target_features, 1)
        pictures = torch.stack([sample.goal.pixels for sample in samples])
        return self._total(samples, terms, features[:, None], self._as_views(sketches), self._as_views(pictures))

    def after_step(self, sample: SynthesisSample, step: int, num_steps: int) -> None:
        colors = sample.tensors.get("colors")
        if colors is None:
            return
        config = self.config
        colors.clamp_(0, 1)
        if not config.optimize_colors:
            colors[:, :3] = 0
        before, begun = (
            strokes_begun(len(colors), config.num_stages, number, num_steps) for number in (step, step + 1)
        )
        if not config.optimize_opacity:
            colors[:begun, 3] = 1
        colors[before:begun, 3] = 1
        colors[begun:, 3] = 0
        if begun > before:
            # A stage begins: another optimiser, and what was best had fewer strokes.
            sample.optimizer.state.clear()
            sample.best = {name: tensor.detach().clone() for name, tensor in sample.tensors.items()}
            sample.best_value = float(self.evaluate([sample])[0])


def embeddings_and_loss(
    guide: GuidingEncoder, views: torch.Tensor, target_views: torch.Tensor, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, V, 3, S, S) of sketches and of photographs, in 0..1 -> a guide's embeddings (n, V, D) of the sketches, and
    (n,), `weight` times the mean of 1 - cos: the semantic loss."""
    shown = guide.embed_images(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    with torch.no_grad():
        wanted = guide.embed_images(target_views.detach().flatten(0, 1)).unflatten(0, views.shape[:2])
    return shown, perceptual_losses([], [], shown, wanted, [], weight)["features"]


def _colors_at(points: torch.Tensor, along_edges: int, pixels: torch.Tensor) -> torch.Tensor:
    """(N, P, 2) points on (3, C, C) -> (N, 3), the picture's colours where strokes begin. The first `along_edges`
    strokes lie between two colours, one of which may be the background's: theirs is the darkest at a point."""
    columns, rows = points.long().clamp(0, pixels.shape[-1] - 1).unbind(-1)
    found = pixels[:, rows, columns].permute(1, 2, 0)
    places = found.sum(-1).argmin(1)
    places[along_edges:] = 0
    return found[torch.arange(len(found)), places]


# ---- what comes in


def prepared_pictures(images, masks=None, pad: bool = False) -> list[torch.Tensor]:
    """(3, H, W) in 0..1 of each picture, white where its mask is not, square if `pad`.

    Raises:
        ValueError: no picture, another number or shape of masks, a mask without any pixel.
    """
    several = isinstance(images, list | tuple)
    images = list(images) if several else [images]
    if not images:
        raise ValueError("images: none, expected at least one picture")
    if masks is not None:
        masks = _maps_of(masks) if several else [masks]
        if len(masks) != len(images):
            raise ValueError(f"masks: {len(masks)}, expected one for each of {len(images)} pictures")
    found = []
    for number, image in enumerate(images):
        pixels = picture_tensor(image)
        if masks is not None:
            pixels = _masked(pixels, masks[number], number)
        if pad:
            pixels = _squared(pixels)
        found.append(pixels)
    return found


def _masked(pixels: torch.Tensor, mask, number: int) -> torch.Tensor:
    if isinstance(mask, dict) and "mask" in mask:  # of an `image-segmentation` pipeline
        mask = mask["mask"]
    if not isinstance(mask, torch.Tensor):
        array = np.array(mask)
        if array.dtype.kind not in "buif":
            raise ValueError(f"masks[{number}]: got {type(mask).__name__}, expected [H, W]")
        mask = torch.from_numpy(array)
    if mask.dim() != 2:
        raise ValueError(f"masks[{number}]: got {list(mask.shape)}, expected [H, W]")
    if not mask.numel():
        raise ValueError(f"masks[{number}]: no pixels, expected [H, W]")
    mask = mask.float() / (255 if mask.dtype == torch.uint8 and mask.max() > 1 else 1)
    if mask.shape != pixels.shape[1:]:
        mask = F.interpolate(mask[None, None], pixels.shape[1:], mode="bilinear")[0, 0]
    inside = mask >= 0.5
    if not inside.any():
        raise ValueError(f"masks[{number}]: no pixel is inside, expected a mask of the thing to sketch")
    return torch.where(inside, pixels, 1.0)


def _squared(pixels: torch.Tensor) -> torch.Tensor:
    """White around it: square, with a margin."""
    height, width = pixels.shape[1:]
    side = max(height, width)
    margin = round(_PADDING * side / PUBLISHED_CANVAS)
    canvas = pixels.new_ones(3, side + 2 * margin, side + 2 * margin)
    top, left = margin + (side - height) // 2, margin + (side - width) // 2
    canvas[:, top : top + height, left : left + width] = pixels
    return canvas


def _maps_of(saliency) -> list | None:
    """A map, or several in a list or a tensor, as a list; they are checked later."""
    if saliency is None or isinstance(saliency, list):
        return saliency
    several = isinstance(saliency, tuple) or (isinstance(saliency, torch.Tensor) and saliency.dim() > 2)
    return list(saliency) if several else [saliency]


def checked_saliency(saliency: torch.Tensor) -> torch.Tensor:
    """(224, 224) of a map of any size; ValueError for anything else."""
    is_map = isinstance(saliency, torch.Tensor) and saliency.dim() == 2 and saliency.numel() > 0
    if not is_map or not saliency.is_floating_point():
        got = list(saliency.shape) if isinstance(saliency, torch.Tensor) else type(saliency).__name__
        raise ValueError(f"saliency: got {got}, expected floats of shape [H, W]")
    if not saliency.isfinite().all() or saliency.min() < 0:
        raise ValueError("saliency: expected finite numbers >= 0")
    size = (PUBLISHED_CANVAS, PUBLISHED_CANVAS)
    return F.interpolate(saliency[None, None].float(), size, mode="bicubic", antialias=True)[0, 0].clamp_min(0)


__all__ = [
    "DEFAULT_SEEDS",
    "CLIPassoForImageSynthesis",
    "CLIPassoOutput",
    "CLIPassoPreTrainedModel",
    "prepared_pictures",
]
