"""Segmentation by text with GroupViT: each group of patches gets scores of the labels, each pixel those of its group.

The rule is in `segmentation_groupvit.py` and `background_rule.py`; here it meets the labels of a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import nn
from transformers.utils import TransformersKwargs, can_return_tuple

from ..dense.background import LEARNED, background_thresholds, check_background_index
from ..dense.outputs_dense import PromptableSegmentationOutput
from ..dense.promptable_segmentation import ClassTexts, PromptableSegmentationMixin
from ..dense.segmentation_loss import checked_labels, segmentation_loss
from ..dual_encoders.backbones import unit_norm
from ..dual_encoders.forward_checks import check_output, check_pixels
from .background_rule import background_groups, nearer_to_vectors
from .background_threshold import BackgroundThreshold
from .configuration_groupvit import GroupViTConfig
from .modeling_groupvit import GroupViTModel, GroupViTVisionModelOutput
from .segmentation_groupvit import (
    compose_group_maps,
    gated_classes,
    group_class_scores,
    resize_group_maps,
    scores_of_pixels,
)


# B images, N labels, M texts of them, T templates, G groups of the last stage, D joint width, h x w patches


@dataclass
class GroupViTSegmentationOutput(PromptableSegmentationOutput):
    """
    `PromptableSegmentationOutput` and what pixels' scores are made of.

    Args:
        logits: (B, N, H, W), float32, scores in 0..1; with a background by thresholds one more channel, which is 1 on
            background and 0 elsewhere.
        group_maps: (B, G, h, w), soft, adding up to 1 over the groups, float32.
        group_embeds: (B, G, D), of unit length.
        image_embeds: (B, D), of unit length.
        group_scores: (B, G, N), of the labels, without the background.
        stage_maps: of each stage that groups, see `GroupViTVisionModelOutput`.
        group_background: (B, G) bool, groups that are background; None where the background is a label or none.
    """

    group_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    group_scores: torch.FloatTensor | None = None
    stage_maps: tuple[torch.FloatTensor, ...] | None = None
    group_background: torch.BoolTensor | None = None


class GroupViTForSemanticSegmentation(PromptableSegmentationMixin, GroupViTModel):
    r"""
    GroupViT (Xu et al. 2022) as a model that labels pixels with free texts, by the official rule.

    Its weights are those of [`GroupViTModel`], and each loads the other's checkpoints; transformers' GroupViT
    checkpoints load, too. Texts come with the call, or once from `set_labels`. In training with `labels` the
    projections keep their statistics. For pictures of the training's size and labels that are given once, LSeg, which
    was trained with label maps, follows outlines better; GroupViT needs captions alone.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import GroupViTConfig, GroupViTForSemanticSegmentation

    >>> text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    >>> vision = {"hidden_size": 32, "num_attention_heads": 1, "intermediate_size": 64, "image_size": 32}
    >>> vision |= {"depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [3]}
    >>> config = GroupViTConfig(text_config=text, vision_config=vision, projection_dim=16)
    >>> model = GroupViTForSemanticSegmentation(config).eval()
    >>> ids = torch.tensor([[49406, 320, 49407], [49406, 518, 49407]])  # two labels
    >>> outputs = model(torch.randn(1, 3, 48, 80), ids)
    >>> outputs.logits.shape, outputs.group_maps.shape, outputs.group_scores.shape
    (torch.Size([1, 2, 48, 80]), torch.Size([1, 3, 3, 5]), torch.Size([1, 3, 2]))
    ```
    """

    needs_text_encoder = False
    text_modules = ("text_model", "text_projection")

    def __init__(self, config: GroupViTConfig):
        super().__init__(config)
        self.make_class_embeddings(config.projection_dim)
        if config.has_background_threshold:
            self.background_threshold = BackgroundThreshold(
                embedding_dim=config.projection_dim, threshold=config.background_start
            )
        self.post_init()
        self._keys_to_ignore_on_load_unexpected = set()
        self._freeze()

    def train(self, mode: bool = True) -> "GroupViTForSemanticSegmentation":
        """As in PyTorch; the projections keep their statistics, which a few images' groups would spoil."""
        super().train(mode)
        for projection in self._projections():
            projection.eval()
        return self

    def get_class_embeddings(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Token ids (N, L) of N texts, or (N, T, L) in T templates -> (N, D) of unit length.

        Templates are averaged before normalisation, unlike in CLIP.
        """
        mask = None if attention_mask is None else attention_mask.flatten(0, -2)
        features = self.get_text_features(input_ids.flatten(0, -2), mask).pooler_output
        features = features.unflatten(0, input_ids.shape[:-1])
        return unit_norm(features.mean(1) if features.dim() == 3 else features)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        class_embeddings: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GroupViTSegmentationOutput:
        r"""
        Args:
            pixel_values: (B, 3, H, W), normalised; any size. What does not fill a patch at the right and lower edge is
                not seen, and the map is stretched over it.
            input_ids, attention_mask, class_embeddings: texts, see `resolve_class_embeddings`; none: the model's own.
            labels: (B, H, W), indices of the logits' channels or `config.semantic_loss_ignore_index`. The loss is the
                cross-entropy of the soft maps' mixture of the groups' class probabilities, the mean over pixels; where
                the background has thresholds, pixels of the background do not count.
            interpolate_pos_encoding: False refuses other sizes than the training's.

        Returns:
            [`GroupViTSegmentationOutput`].

        Raises:
            ValueError: no images or texts, or wrong shapes.
        """
        config = self.config
        check_pixels(pixel_values, config.vision_config.num_channels)
        texts = self.resolve_class_embeddings(class_embeddings, input_ids, attention_mask, pixel_values)
        vision = self._run_image_encoder(
            _with_a_patch(pixel_values, config.vision_config.patch_size), interpolate_pos_encoding, **kwargs
        )
        size = tuple(pixel_values.shape[-2:])
        maps = self.group_maps_of(vision, size)
        group_features = self.visual_projection(vision.last_hidden_state)
        image_features = self.visual_projection(vision.pooler_output)
        scores = self._label_scores(group_features, image_features, texts)
        is_background = self._background_groups(scores, group_features, texts)
        logits, background = self._pixel_scores(maps, scores, is_background, size)
        check_output(self, logits, pixel_values=pixel_values, class_embeddings=class_embeddings)
        loss = None
        if labels is not None:
            labels = checked_labels(logits, labels, config.semantic_loss_ignore_index)
            loss = self._segmentation_loss(maps, group_features, texts, labels)
            check_output(self, loss, "loss", pixel_values=pixel_values, class_embeddings=class_embeddings)
        image_embeds = unit_norm(image_features)
        check_output(self, image_embeds, "image_embeds", pixel_values=pixel_values)
        return GroupViTSegmentationOutput(
            loss=loss,
            logits=logits,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
            class_embeddings=texts.embeddings,
            group_maps=maps,
            background_scores=background,
            group_embeds=unit_norm(group_features),
            image_embeds=image_embeds,
            group_scores=scores,
            stage_maps=vision.stage_maps,
            group_background=is_background,
        )

    def calibrate_background(self, images, **options) -> dict[str, float]:
        """`background_fitting.calibrate_background_thresholds` of this model."""
        from .background_fitting import calibrate_background_thresholds

        return calibrate_background_thresholds(self, images, **options)

    def learn_background(self, images, **options) -> list[float]:
        """`background_fitting.learn_background` of this model."""
        from .background_fitting import learn_background

        return learn_background(self, images, **options)

    def group_maps_of(self, vision: GroupViTVisionModelOutput, size: tuple[int, int]) -> torch.Tensor:
        """(B, G, h, w): which patch of images of `size` (H, W) is in which group of the last stage."""
        patch = self.config.vision_config.patch_size
        stages = vision.stage_maps
        if self.config.segmentation_maps == "hard":
            one_hot = (torch.zeros_like(one).scatter_(1, one.argmax(1, keepdim=True), 1.0) for one in stages)
            stages = tuple(one_hot)
        return compose_group_maps(stages, tuple(max(edge // patch, 1) for edge in size))

    def _label_scores(self, groups: torch.Tensor, image: torch.Tensor, texts: ClassTexts) -> torch.Tensor:
        """(B, G, N) from projected features of groups (B, G, D) and of the image (B, D)."""
        embeddings = texts.embeddings.to(groups.device)
        kept = gated_classes(image, embeddings, self.config.num_gated_classes, texts.counts, texts.valid)
        scores = group_class_scores(groups, embeddings, self.scale(), kept, texts.valid)
        return texts.merge(scores.transpose(1, 2)).transpose(1, 2)

    def _pixel_scores(self, maps, scores, background: torch.Tensor | None, size: tuple[int, int]):
        """Logits, and the background's channel of them or None."""
        index = self.config.background_index
        if background is not None:
            check_background_index(index, scores.shape[-1])
        logits = scores_of_pixels(
            maps,
            scores,
            size,
            background=background,
            background_index=index,
            pixel_assignment=self.config.pixel_assignment,
        )
        return logits, None if background is None else logits[:, index]

    def _background_groups(self, scores: torch.Tensor, groups: torch.Tensor, texts: ClassTexts) -> torch.Tensor | None:
        """(B, G) bool, by the configuration's thresholds or what was learned; None without a background."""
        config, background = self.config, self.config.background
        if not config.background_has_own_channel:
            return None
        scores = scores.detach()
        if background != LEARNED:
            if isinstance(background, Mapping):
                return background_groups(scores, background_thresholds(background, self.labels_with_texts()))
            return background_groups(scores, torch.tensor(background, dtype=torch.float32))
        if config.background_rule == "vectors":
            embeddings = texts.embeddings.to(groups.device)
            if texts.valid is not None:
                embeddings = torch.where(texts.valid[..., None], embeddings, embeddings[:, :1])
            return nearer_to_vectors(groups.detach(), embeddings, self.background_constraint.vectors)
        module = getattr(self, "background_threshold", None)
        if module is None:
            raise ValueError(
                "background: 'learned', but nothing was learned; call learn_background, or set a threshold"
            )
        if texts.embeddings.dim() == 3:
            each = [module.thresholds(one) for one in texts.embeddings]
            return torch.stack([background_groups(s, t) for s, t in zip(scores, each, strict=True)])
        return background_groups(scores, texts.merge(module.thresholds(texts.embeddings)[None])[0])

    def _segmentation_loss(
        self, maps: torch.Tensor, groups: torch.Tensor, texts: ClassTexts, labels: torch.Tensor
    ) -> torch.Tensor:
        """(): each group has one label, by all texts; a pixel is in a group by its soft map."""
        config = self.config
        logits = self.scale() * unit_norm(groups.float()) @ texts.embeddings.float().transpose(-2, -1)
        if texts.valid is not None:
            logits = logits.masked_fill(~texts.valid[:, None], -torch.inf)
        probabilities = logits.softmax(-1)
        if texts.counts is not None:
            parts = [part.sum(-1) for part in probabilities.split(texts.counts, dim=-1)]
            probabilities = torch.stack(parts, dim=-1)
        pixels = torch.einsum("bghw,bgn->bnhw", resize_group_maps(maps, tuple(labels.shape[-2:])), probabilities)
        # The logarithm of probabilities that add up to 1: their softmax is themselves.
        log_pixels = pixels.clamp_min(1e-8).log()
        if config.background_has_own_channel:
            index = config.background_index
            nowhere = torch.full_like(log_pixels[:, :1], -1e4)
            log_pixels = torch.cat([log_pixels[:, :index], nowhere, log_pixels[:, index:]], dim=1)
            labels = torch.where(labels == index, config.semantic_loss_ignore_index, labels)
        return segmentation_loss(log_pixels, labels, config.semantic_loss_ignore_index)


def _with_a_patch(pixel_values: torch.Tensor, patch: int) -> torch.Tensor:
    """Images that are smaller than a patch, enlarged to one by repeating their last pixels."""
    height, width = pixel_values.shape[-2:]
    if height < patch:
        pixel_values = nn.functional.pad(pixel_values, (0, 0, 0, patch - height), mode="replicate")
    if width < patch:
        pixel_values = nn.functional.pad(pixel_values, (0, patch - width, 0, 0), mode="replicate")
    return pixel_values


__all__ = ["GroupViTForSemanticSegmentation", "GroupViTSegmentationOutput"]
