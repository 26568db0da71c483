"""PointCLIP and PointCLIP V2: clouds of points classified by a dual encoder of images that never saw one.

Papers: "PointCLIP: Point Cloud Understanding by CLIP", https://arxiv.org/abs/2112.02413; "PointCLIP V2: Prompting CLIP
and GPT for Powerful 3D Open-world Learning", https://arxiv.org/abs/2211.11682.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from ..clip_classifier.classification_loss import IGNORED, classification_loss
from ..dual_encoders.backbones import family_of, unit_norm
from ..dual_encoders.forward_checks import check_features, check_output, check_token_ids
from ..dual_encoders.prompts import resolve_class_names, resolve_templates
from ..dual_encoders.tracing import can_be_read
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from ..loading_and_saving.copied_weights import copy_weights
from ..video.class_texts import class_features
from .configuration_pointclip import PointCLIPConfig
from .projection_pointclip import realistic_depth_maps, resized, sparse_depth_maps
from .segmentation_pointclip import cropped, from_nearest, part_logits, part_pictures, places_after_crop


# B clouds, N points, V views, T texts, L tokens, C joint width, S pixels of a side


@dataclass
class PointCLIPOutput(ModelOutput):
    """
    Args:
        loss: (), with `labels`.
        logits: (B, T), of the texts that were given, else of the classes that are set.
        point_embeds: (B, V, C): of each view, weighted. Their squares add up to 1 over a view, or over all of them
            with an adapter over views; times `view_weights`.
        text_embeds: (T, C), of unit norm.
        view_features: (B, V, C), as of the image encoder, not normalised; can be given back to `forward`.
        hidden_states, attentions: of the image encoder, a row a picture.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    point_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    view_features: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class ViewFusion(nn.Module):
    """(B, V, C) features of views -> (B, V, C): each of unit norm. Adapters over views take its place."""

    def forward(self, view_features: torch.Tensor) -> torch.Tensor:
        return unit_norm(view_features)


class PointCLIPPreTrainedModel(CheckedLoading, StagedSaving, PreTrainedModel):
    config: PointCLIPConfig
    base_model_prefix = "clip"
    main_input_name = "points"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_attention_backend = True
    _no_split_modules = ["CLIPEncoderLayer", "CLIPTextEmbeddings", "CLIPVisionEmbeddings"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self and getattr(self, "class_features", None) is not None:
            init.zeros_(self.class_features)


class PointCLIPModel(PointCLIPPreTrainedModel):
    r"""
    PointCLIP (Zhang et al. 2022) and PointCLIP V2 (Zhu et al. 2023): zero-shot classification of clouds of points, and
    of their points into parts.

    A cloud is drawn from several views (`config.projection`), each picture is encoded by the dual encoder `clip`, and
    its similarities with the texts are summed over views. Nothing is new: any dual encoder's checkpoint loads, and
    `from_clip` makes a model of one. An inter-view adapter (`InterViewAdapterConfig` with PEFT) learns from a few
    labelled clouds.

    Clouds stand with +y up; the processor turns others. The sparse projection wants them in the unit sphere, where the
    processor puts them; the realistic one takes any place and size.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import PointCLIPConfig, PointCLIPModel

    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> vision = text | {"image_size": 32, "patch_size": 16}
    >>> model = PointCLIPModel(PointCLIPConfig(text_config=text, vision_config=vision, projection_dim=64)).eval()
    >>> ids = torch.tensor([[49406, 320, 49407], [49406, 518, 49407], [49406, 550, 49407]])
    >>> outputs = model(torch.randn(2, 1024, 3), input_ids=ids)
    >>> outputs.logits.shape, outputs.view_features.shape
    (torch.Size([2, 3]), torch.Size([2, 10, 64]))
    ```
    """

    fused_views = "view_fusion"  # the module in whose place an adapter over views comes

    def __init__(self, config: PointCLIPConfig):
        super().__init__(config)
        self.family = family_of(config.backbone_model_type)
        self.clip = self.family.model_class()._from_config(self.family.model_config(config))
        self.view_fusion = ViewFusion()
        count = config.num_class_features
        self.register_buffer("class_features", torch.zeros(count, config.projection_dim) if count else None)
        self.post_init()

    @classmethod
    def from_clip(cls, clip: PreTrainedModel, **options) -> "PointCLIPModel":
        """A model with the weights of a dual encoder.

        Args:
            clip: a `CLIPModel`, or another one of `modeling/dual_encoders/backbones.py`, such as a CLIP-ResNet.
            options: fields of [`PointCLIPConfig`], such as `projection="sparse"`.
        """
        values = {k: v for k, v in clip.config.to_dict().items() if k not in ("model_type", "architectures", "dtype")}
        values["backbone_model_type"] = clip.config.model_type
        model = cls(PointCLIPConfig(**values | options)).to(clip.dtype)
        copy_weights(model.clip, clip, options=options)
        return model.eval()

    def train(self, mode: bool = True):
        """As in torch, but a frozen image encoder with batch normalisation stays in eval mode."""
        super().train(mode)
        for encoder in map(self.clip.get_submodule, self.family.eval_when_frozen if mode else ()):
            if not any(p.requires_grad for p in encoder.parameters()):
                encoder.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.family.token_embedding_of(self.clip)

    def set_input_embeddings(self, value: nn.Module):
        parent, _, name = self.family.token_embedding.rpartition(".")
        setattr(self.clip.get_submodule(parent), name, value)

    @property
    def logit_scale(self) -> nn.Parameter:
        """CLIP's, for callbacks that limit it."""
        return self.clip.logit_scale

    # ---- classes

    @torch.no_grad()
    def set_classes(
        self,
        class_names: str | Sequence[str],
        tokenizer,
        templates: str | Path | Sequence[str] | Mapping[str, Sequence[str]] = "point cloud depth map of a {}.",
    ) -> "PointCLIPModel":
        """Makes these the model's classes, in label order, and returns it. They are saved with it and do not train.

        Args:
            class_names: names, in one list; a file of names as in `resolve_class_names`.
            tokenizer: the model's, or its processor.
            templates: such as the default, PointCLIP's for zero-shot, or `"point cloud of a big {}."`, its for
                few-shot. Several are averaged. A mapping, or a JSON file of one, has each class's own sentences, as
                language models write them; PointCLIP V2's files are of this kind.

        Raises:
            ValueError: no, blank or repeated names, a template without {}, a class without sentences. The model is as
                it was then.
        """
        names = resolve_class_names(class_names)
        templates = resolve_templates(templates, names)
        tokenizer, training = getattr(tokenizer, "tokenizer", tokenizer), self.training
        self.eval()
        try:
            features = class_features(self, tokenizer, names, templates, "class_names")
        finally:
            self.train(training)
        self.class_features = features.to(self.dtype)
        self.config.num_class_features = len(names)
        self.config.id2label = dict(enumerate(names))
        self.config.label2id = {name: label for label, name in enumerate(names)}
        return self

    # ---- features

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """As in `CLIPModel`: `pooler_output` (T, C), not normalised."""
        text = self.config.text_config
        check_token_ids(input_ids, text.vocab_size, longest=getattr(text, "max_position_embeddings", None))
        kwargs["return_dict"] = True
        return self.clip.get_text_features(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def project_points(self, points: torch.FloatTensor, points_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, 3) -> (B, V, 3, S, S) pictures as the image encoder sees them, float32, three equal channels unless
        they are normalised. Differentiable in the points.

        Raises:
            ValueError: as `forward`.
        """
        check_points(points)
        mask, config = checked_mask(points_mask, points), self.config
        with torch.autocast(points.device.type, enabled=False):
            points, rotations = points.float(), config.view_set.matrices().to(points.device)
            if config.projection == "sparse":
                maps = sparse_depth_maps(points, mask, rotations, config.resolution, config.camera_distance)
            else:
                maps = realistic_depth_maps(points, mask, rotations, config.grid)
            pictures = resized(maps, self.family.image_size(config))
        return self._normalised(pictures)

    def _normalised(self, pictures: torch.Tensor) -> torch.Tensor:
        if self.config.image_mean is None:
            return pictures
        mean, std = (pictures.new_tensor(v)[:, None, None] for v in (self.config.image_mean, self.config.image_std))
        return (pictures - mean) / std

    @can_return_tuple
    def get_point_features(
        self,
        points: torch.FloatTensor,
        points_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """(B, N, 3) -> `pooler_output` (B, V, C), features of each view's picture, not normalised. `hidden_states` and
        `attentions` are the image encoder's, with a row for each picture.
        """
        features, outputs = self._encode_points(points, points_mask, **kwargs)
        return BaseModelOutputWithPooling(
            pooler_output=features,
            hidden_states=None if outputs is None else outputs.get("hidden_states"),
            attentions=None if outputs is None else outputs.get("attentions"),
        )

    def _encode_points(self, points: torch.Tensor, points_mask: torch.Tensor | None, **kwargs):
        """(B, V, C), and the image encoder's output; None for the latter where clouds were encoded in parts."""
        check_points(points)
        recorded = kwargs or self.config.output_hidden_states or self.config.output_attentions
        at_once = max(1, self.config.views_at_once // self.config.num_views)
        if recorded or len(points) <= at_once:
            pictures = self.project_points(points, points_mask).flatten(0, 1).to(self.dtype)
            if not recorded:
                features, outputs = self.family.pooled_image_features(self.clip, pictures), None
            else:
                kwargs["return_dict"] = True
                outputs = self.family.image_features(self.clip, pixel_values=pictures, **kwargs)
                features = outputs.pooler_output
            return features.unflatten(0, (len(points), -1)), outputs
        masks = [None] * len(points) if points_mask is None else points_mask.split(at_once)
        parts = zip(points.split(at_once), masks, strict=False)
        return torch.cat([self._encode_points(*part)[0] for part in parts]), None

    # ---- forward

    @can_return_tuple
    def forward(
        self,
        points: torch.FloatTensor | None = None,
        points_mask: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        view_features: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PointCLIPOutput:
        r"""
        Args:
            points: (B, N, 3), with +y up.
            points_mask: (B, N), 1 for points that are there, in any order; None: all are.
            input_ids, attention_mask: (T, L), texts to classify by; None: the classes that are set.
            labels: (B,) of the texts or classes, smoothed by `config.label_smoothing` in the loss; or what
                `config.problem_type` says, as in `classification_loss`.
            view_features: (B, V, C) from an earlier output or `get_point_features`, in the place of points.

        Returns:
            [`PointCLIPOutput`].

        Raises:
            ValueError: no texts and no classes, inputs of wrong shapes, a cloud without points, NaN in points, labels
                of no class; on a CPU, in eval mode, NaN in the answer, with its cause.
        """
        if (points is None) == (view_features is None):
            raise ValueError("points, view_features: give exactly one of them")
        if input_ids is None and self.class_features is None:
            raise ValueError(
                "class_names: no classes are set (num_class_features is 0); call set_classes([...], processor), or "
                "give input_ids"
            )
        outputs = None
        if view_features is None:
            view_features, outputs = self._encode_points(points, points_mask, **kwargs)
        else:
            self._check_view_features(view_features)
        texts = self.class_features
        if input_ids is not None:
            texts = self.get_text_features(input_ids, attention_mask).pooler_output
        logits, point_embeds, text_embeds = self._compare(view_features, texts)
        check_output(self, logits, points=points)
        loss = None if labels is None else smoothed_loss(logits.float(), labels, self.config)
        return PointCLIPOutput(
            loss=loss,
            logits=logits,
            point_embeds=point_embeds,
            text_embeds=text_embeds,
            view_features=view_features,
            hidden_states=None if outputs is None else outputs.get("hidden_states"),
            attentions=None if outputs is None else outputs.get("attentions"),
        )

    def _check_view_features(self, features: torch.Tensor) -> None:
        wanted = [self.config.num_views, self.config.projection_dim]
        is_tensor = isinstance(features, torch.Tensor)
        if not is_tensor or features.dim() != 3 or list(features.shape[1:]) != wanted or not len(features):
            got = list(features.shape) if is_tensor else type(features).__name__
            raise ValueError(f"view_features: got {got}, expected [clouds, {wanted[0]}, {wanted[1]}]")
        if not features.is_floating_point():
            raise ValueError(f"view_features: got {features.dtype}, expected floats")

    def point_text_logits(
        self, points: torch.FloatTensor, text_features: torch.Tensor, points_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, N, 3) and (T, C) text features, which may be kept from an earlier call -> logits (B, T)."""
        check_features(text_features, self.config.projection_dim, "text_features")
        logits = self._compare(self._encode_points(points, points_mask)[0], text_features)[0]
        check_output(self, logits, points=points)
        return logits

    def _compare(self, view_features: torch.Tensor, texts: torch.Tensor):
        """(B, V, C) and (T, C) -> logits (B, T), weighted views (B, V, C), unit vectors of texts (T, C)."""
        views = self.view_fusion(view_features)
        if self.config.view_weights is not None:
            views = views * views.new_tensor(self.config.view_weights)[:, None]
        texts = unit_norm(texts.to(views.device)).to(views.dtype)
        logits = view_logits(views, texts, self._scale())
        bias = self.family.logit_bias(self.clip)
        return logits if bias is None else logits + bias.to(logits), views, texts

    def _scale(self) -> torch.Tensor | float:
        given = self.config.logit_scale_value
        return self.family.logit_scale(self.clip) if given is None else given

    # ---- parts

    @torch.no_grad()
    def segment_parts(
        self,
        points: torch.FloatTensor,
        text_features: torch.Tensor,
        points_mask: torch.Tensor | None = None,
        transposed_reading: bool = False,
    ) -> torch.Tensor:
        """Logits (B, N, K) of each point for K parts. `argmax` over the last axis is the part.

        PointCLIP V2, for any number of points; its ten views and pictures have settings of their own. View weights
        apply where there are ten. A point that is seen in no view has logits of 0 officially; here those of the
        nearest one that is seen.

        Args:
            text_features: (K, C), as `get_text_features` gives them.
            transposed_reading: as the official code; see `part_pictures`.

        Raises:
            ValueError: the image encoder is not CLIP's ViT, text features of another shape; or as `forward`.
        """
        check_points(points)
        check_features(text_features, self.config.projection_dim, "text_features")
        mask, size = checked_mask(points_mask, points), self.family.image_size(self.config)
        texts, weights = unit_norm(text_features), self.config.view_weights
        weights = points.new_tensor(weights) if weights is not None and len(weights) == 10 else None
        found = points.new_zeros(*points.shape[:2], len(texts))
        for cloud in range(len(points)):
            there = slice(None) if mask is None else mask[cloud]
            pictures, seen, places = part_pictures(points[cloud][there].float(), transposed_reading)
            patches = self._patch_embeds(self._normalised(cropped(pictures, size)))
            logits = part_logits(
                patches, texts.to(patches), seen, places_after_crop(places), weights, float(self._scale())
            )
            found[cloud, there] = (
                logits if transposed_reading else from_nearest(logits, seen, points[cloud][there])
            ).to(found)
        check_output(self, found, "parts", points=points, text_features=text_features)
        return found

    def _patch_embeds(self, pictures: torch.Tensor) -> torch.Tensor:
        """(V, 3, S, S) -> (V, patches, C), of unit norm: every patch through the last norm and the projection."""
        vision = self.clip.vision_model
        projection = self.family.visual_projection
        if projection is None or not self.family.has_class_token or not hasattr(vision, "post_layernorm"):
            raise ValueError(
                f"backbone_model_type: {self.config.backbone_model_type} has no patches in the joint space, expected "
                "CLIP with a ViT: parts are read from its patches"
            )
        hidden = vision(pixel_values=pictures.to(self.dtype), return_dict=True).last_hidden_state[:, 1:]
        return unit_norm(self.clip.get_submodule(projection)(vision.post_layernorm(hidden)))


# ---- logits and loss


def view_logits(view_embeds: torch.Tensor, text_embeds: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """(B, V, C) and unit vectors (T, C) -> (B, T): scale / sqrt(V) times the sum over views of the dot products.

    PointCLIP repeats a text for each view and gives the whole a norm of 1: hence the root.
    """
    return scale * view_embeds.shape[1] ** -0.5 * view_embeds.sum(1) @ text_embeds.T


def smoothed_loss(logits: torch.Tensor, labels: torch.Tensor, config: PointCLIPConfig) -> torch.Tensor:
    """() loss of (B, T) logits. Of whole numbers as labels: cross-entropy with a target of 1 - e on the label and
    e / (T - 1) on each other class (torch's smoothing puts e / T on all of them)."""
    loss = classification_loss(logits, labels, config.problem_type)  # checks the labels, too
    e, classes = config.label_smoothing, logits.shape[1]
    single = config.problem_type in (None, "single_label_classification") and not labels.is_floating_point()
    if not single or not e or classes == 1:
        return loss
    labels = labels.long()
    kept = labels != IGNORED
    logs = F.log_softmax(logits, -1)
    own = logs.gather(1, labels.masked_fill(~kept, 0)[:, None])[:, 0]
    each = (1 - e) * own + e / (classes - 1) * (logs.sum(1) - own)
    return -(each * kept).sum() / kept.sum().clamp_min(1)


def ensemble_logits(point_logits: torch.Tensor, network_logits: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """PointCLIP's logits (B, T) plus `weight` times those of a trained 3-D network, section 3.4 of the paper.

    The two must be of the same clouds and classes, in the same order. No code of the authors' does it, and they give
    no weight: choose it on labelled clouds that are not the test set.

    Raises:
        ValueError: other shapes, or a number that is not finite.
    """
    if point_logits.shape != network_logits.shape or point_logits.dim() != 2:
        raise ValueError(
            f"network_logits: got {list(network_logits.shape)}, expected {list(point_logits.shape)} (clouds, classes)"
        )
    both = point_logits + weight * network_logits.to(point_logits)
    if not both.isfinite().all():
        raise ValueError("point_logits, network_logits, weight: NaN or infinite numbers, expected finite ones")
    return both


# ---- what comes in


def check_points(points: torch.Tensor) -> None:
    """ValueError unless (B, N, 3) finite floats."""
    is_tensor = isinstance(points, torch.Tensor)
    if not is_tensor or points.dim() != 3 or points.shape[-1] != 3:
        got = list(points.shape) if is_tensor else type(points).__name__
        raise ValueError(f"points: got {got}, expected [clouds, points, 3]")
    if not points.is_floating_point():
        raise ValueError(f"points: got {points.dtype}, expected floats")
    if torch.compiler.is_compiling():
        return
    if not points.numel():
        raise ValueError(f"points: got {list(points.shape)}, expected at least one cloud with points")
    if can_be_read(points):
        finite = points.detach().isfinite().flatten(1).all(1)
        if not finite.all():
            raise ValueError(f"points: NaN or infinite coordinates in points[{int((~finite).nonzero()[0])}]")


def checked_mask(points_mask: torch.Tensor | None, points: torch.Tensor) -> torch.Tensor | None:
    """(B, N) bool; ValueError where a cloud has no points."""
    if points_mask is None:
        return None
    is_tensor = isinstance(points_mask, torch.Tensor)
    if not is_tensor or points_mask.shape != points.shape[:2]:
        got = f"shape {list(points_mask.shape)}" if is_tensor else type(points_mask).__name__
        raise ValueError(f"points_mask: got {got}, expected a tensor of shape {list(points.shape[:2])}")
    mask = points_mask.to(points.device).bool()
    if can_be_read(mask):
        empty = (~mask.any(1)).nonzero()
        if len(empty):
            raise ValueError(f"points_mask: cloud {int(empty[0])} has no points")
    return mask


__all__ = [
    "PointCLIPModel",
    "PointCLIPOutput",
    "PointCLIPPreTrainedModel",
    "ensemble_logits",
    "smoothed_loss",
    "view_logits",
]
