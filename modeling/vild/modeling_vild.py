"""ViLD: Mask R-CNN whose classes are texts, and whose regions are embedded as a dual encoder embeds their crops."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.image_transforms import corners_to_center_format
from transformers.utils import can_return_tuple

from ..dense.promptable_segmentation import ClassTexts, PromptableSegmentationMixin
from ..detection.box_coding import clip_boxes, decode_boxes
from ..detection.inputs_detection import ImageTargets, check_tensor, content_sizes, read_labels
from ..detection.region_features import region_features
from ..dual_encoders.backbones import family_of, unit_norm
from ..dual_encoders.forward_checks import check_output, check_pixels, check_token_ids
from ..dual_encoders.resnet_backbone import AnyAttentionResNet
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from ..loading_and_saving.copied_weights import copy_weights
from .boxes_vild import keep_best, make_anchors, select_detections
from .configuration_vild import STRIDES, ViLDConfig
from .heads_vild import (
    MASK_SIZE,
    ROI_RESOLUTION,
    ViLDMaskHead,
    ViLDPyramid,
    ViLDRegionHead,
    ViLDRegionProposalHead,
)
from .losses_vild import (
    class_scores,
    classification_loss,
    cosine_logits,
    distillation_loss,
    ensemble_scores,
    unit_or_zero,
    valid_regions,
)
from .outputs_vild import ViLDDetections, ViLDObjectDetectionOutput
from .training_vild import (
    box_loss,
    mask_loss,
    mask_targets,
    proposal_losses,
    sample_regions,
)


_NO_SCORE = 1e-12  # scores below it have the logit of this one
_BEST_SCORE = 1 - 2**-24  # and above it of this one, the largest below 1
_ABSENT = -1.0  # coordinates of a proposal that is none


class ViLDPreTrainedModel(CheckedLoading, StagedSaving, PreTrainedModel):
    config: ViLDConfig
    base_model_prefix = "vild"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True  # of the text encoder
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_attention_backend = True
    _no_split_modules = ["ViLDRegionHead", "ViLDPyramid", "ViLDMaskHead", "CLIPEncoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        if isinstance(module, ViLDRegionProposalHead):
            for convolution in (*module.convolutions, module.objectness, module.codes):
                init.normal_(convolution.weight, std=0.01)
        elif isinstance(module, ViLDRegionHead):
            init.normal_(module.box_codes.weight, std=0.001)
            if module.background is not None:
                init.normal_(module.background, std=self.config.initializer_range)


class ViLDForZeroShotObjectDetection(PromptableSegmentationMixin, ViLDPreTrainedModel):
    r"""
    ViLD (Gu et al. 2022): finds objects of classes that are texts, also of classes without any training box.

    Mask R-CNN with a feature pyramid; the boxes and masks of a region do not depend on its class. Its embedding is
    compared with the embeddings of the labels' texts and of a learned background (section 3.2), and learns to be what
    the image encoder of a dual encoder gives for the region's crop (section 3.3), so that it also fits texts that were
    never trained on. `set_labels` stores the labels; other texts can be given with each call. The vocabulary is a
    buffer: it changes no weight.

    `hf_clip_variants.data.crops` computes proposals and the teacher's embeddings of their crops. Prefer GLIP where
    sentences ("the dog on the left") are to be found; OWL-ViT of transformers where no masks are wanted.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import ViLDConfig, ViLDForZeroShotObjectDetection

    >>> dual = {"text_config": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1},
    ...         "vision_config": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1},
    ...         "projection_dim": 16}
    >>> model = ViLDForZeroShotObjectDetection(ViLDConfig.tiny(dual)).eval()
    >>> with torch.no_grad():
    ...     outputs = model(torch.randn(1, 3, 128, 128), class_embeddings=torch.randn(5, 16), output_detections=True)
    >>> outputs.logits.shape, outputs.pred_boxes.shape, outputs.detections.boxes.shape
    (torch.Size([1, 100, 5]), torch.Size([1, 100, 4]), torch.Size([1, 100, 4]))
    ```
    """

    text_modules = ("text_encoder",)
    takes_all_labels = True  # in the pipeline

    def __init__(self, config: ViLDConfig):
        super().__init__(config)
        self.family = family_of(config.dual_encoder_config.model_type)
        self.text_encoder = self._make_text_encoder() if self.has_text_encoder else None
        self.backbone = AnyAttentionResNet._from_config(config.backbone_config)
        self.pyramid = ViLDPyramid(config)
        self.proposal_head = ViLDRegionProposalHead(config)
        self.region_head = ViLDRegionHead(config)
        self.mask_head = ViLDMaskHead(config) if config.use_masks else None
        for part in (self.backbone, self.pyramid, self.proposal_head, self.region_head, self.mask_head):
            for module in part.modules() if part is not None else ():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eps, module.momentum = config.batch_norm_eps, config.batch_norm_momentum
        self.make_class_embeddings(config.projection_dim)
        self.post_init()
        self._freeze()

    @property
    def predicts_masks(self) -> bool:
        """Whether `output_masks` gives masks."""
        return self.mask_head is not None

    def detection_options(self, masks: bool) -> dict[str, bool]:
        """What the pipeline calls `forward` with."""
        return {"output_detections": True, "output_masks": masks}

    def _make_text_encoder(self) -> nn.Module:
        """The dual encoder without its image encoder."""
        model = self.family.model_class()._from_config(self.config.dual_encoder_config)
        of_images = self.family.image_modules(model)
        for name, child in list(model.named_children()):
            if any(child is module for module in of_images):
                setattr(model, name, None)
        return model

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, but missing weights are an error, and the text encoder is frozen."""
        loaded = super().from_pretrained(*args, **kwargs)
        # Loading creates new parameters, which require gradients.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()
        return loaded

    @classmethod
    def from_dual_encoder(cls, dual_encoder: PreTrainedModel, **config) -> "ViLDForZeroShotObjectDetection":
        """A new detector with the text encoder of `dual_encoder`; `config` are fields of `ViLDConfig`, by default
        those of `ViLDConfig.tiny`."""
        fields = {"dual_encoder_config": dual_encoder.config.to_dict()}
        model = cls(ViLDConfig.tiny(**fields, **config))
        wanted = model.text_encoder.state_dict()
        weights = {name: tensor for name, tensor in dual_encoder.state_dict().items() if name in wanted}
        copy_weights(model.text_encoder, weights, "dual_encoder", config)
        return model

    def _freeze(self) -> None:
        if self.text_encoder is not None:
            self.text_encoder.requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.text_encoder is not None:
            self.text_encoder.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.embedder.embedder.convolution

    @torch.no_grad()
    def get_class_embeddings(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Token ids (N, L), or (N, T, L) in T templates -> (N, D) of length 1: the mean of the normalised embeddings
        of the templates, normalised (section A.2)."""
        if attention_mask is not None:
            padding = self.family.padding_id(self.config.dual_encoder_config)
            input_ids = torch.where(attention_mask.bool(), input_ids, padding)
        flat = input_ids.flatten(0, -2)
        text = self.config.text_config
        check_token_ids(flat, text.vocab_size, text.max_position_embeddings)
        features = unit_norm(self.family.encode_text(self.text_encoder, flat))
        features = features.view(*input_ids.shape[:-1], -1)
        return unit_norm(features.mean(dim=1)) if features.dim() == 3 else features

    # ---- parts of the forward pass

    def feature_maps(self, pixel_values: torch.Tensor) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
        """Images (B, 3, H, W) -> the pyramid's five maps, and the ResNet's hidden states. Images are padded at the
        right and the bottom to multiples of 64."""
        height, width = pixel_values.shape[-2:]
        pixel_values = pixel_values.to(self.backbone.embedder.embedder.convolution.weight.dtype)
        coarsest = STRIDES[-1]
        padding = (0, -width % coarsest, 0, -height % coarsest)
        hidden_states = self.backbone(
            nn.functional.pad(pixel_values, padding), output_hidden_states=True, return_dict=True
        ).hidden_states
        return self.pyramid(hidden_states[1:]), hidden_states

    def _anchors(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        config = self.config
        centred = config.convention == "tensorflow"
        return [
            make_anchors(one.shape[-2:], stride, config.anchor_scale, config.anchor_ratios, centred, device=one.device)
            for one, stride in zip(features, STRIDES, strict=True)
        ]

    @torch.no_grad()
    def _propose(self, objectness, codes, anchors, sizes) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Boxes (R, 4) and their objectness (R,) of each image, best first."""
        config = self.config
        pre, post = (
            (config.rpn_pre_nms_in_training, config.rpn_post_nms_in_training)
            if self.training
            else (config.rpn_pre_nms, config.rpn_post_nms)
        )
        boxes, scores, levels = [], [], []
        limits = torch.tensor([[[width, height]] for height, width in sizes], device=objectness[0].device)
        for level, (score, code, anchor) in enumerate(zip(objectness, codes, anchors, strict=True)):
            # Anchors in the padding are not trained on (`proposal_losses`): their scores may be anything.
            outside = ((anchor[:, :2] + anchor[:, 2:]) / 2 >= limits.clamp_min(1)).any(dim=-1)
            score, chosen = score.float().masked_fill(outside, -torch.inf).topk(min(pre, score.shape[1]), dim=1)
            code = code.float().gather(1, chosen[..., None].expand(-1, -1, 4))
            boxes.append(decode_boxes(code, anchor[chosen], (1.0,) * 4, config.box_offset))
            scores.append(score)
            levels.append(torch.full_like(chosen, level))
        found_boxes, found_scores = [], []
        for box, score, level, size in zip(
            torch.cat(boxes, dim=1), torch.cat(scores, dim=1), torch.cat(levels, dim=1), sizes, strict=True
        ):
            box = clip_boxes(box, size, config.box_offset)
            inside = score.isfinite()
            (fine,) = torch.where((box[:, 2:] > box[:, :2]).all(dim=1) & (inside if inside.any() else ~inside))
            if not len(fine):  # an image of one pixel: all of it
                fine = torch.arange(1, device=box.device)
                box = torch.cat([clip_boxes(box.new_tensor([[0, 0, size[1], size[0]]]), size, 0.0), box[1:]])
            kept = fine[keep_best(box[fine], score[fine], level[fine], config.rpn_nms_threshold, post)]
            found_boxes.append(box[kept])
            found_scores.append(score[kept].sigmoid())
        return found_boxes, found_scores

    def _regions(self, features, boxes: Sequence[torch.Tensor], resolution: int = ROI_RESOLUTION) -> torch.Tensor:
        aligned = self.config.convention == "mmdet"
        count = 4 if aligned else len(features)
        return region_features(features[:count], boxes, STRIDES[:count], resolution, aligned)

    def logits_of(
        self, embeddings: torch.Tensor, texts: ClassTexts, background: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Embeddings (B, R, D) of regions -> logits (B, R, N), with `background` (D,) (B, R, 1 + N). Float32."""
        logits = cosine_logits(embeddings, texts.embeddings, background, self.config.temperature)
        first = 0 if background is None else 1
        if texts.counts is not None and max(texts.counts) > 1:
            merged = texts.merge(logits[..., first:].transpose(1, 2)).transpose(1, 2)
            logits = torch.cat([logits[..., :first], merged], dim=-1)
        if texts.valid is not None:
            allowed = nn.functional.pad(texts.valid, (first, 0), value=True)
            logits = logits.masked_fill(~allowed[:, None], torch.finfo(logits.dtype).min / 2)
        return logits

    def novel_labels(self, count: int, stored: bool) -> torch.Tensor:
        """(N,) bool. Texts that come with a call have no names: they are novel, unless there is no `base_labels`."""
        mask = self.config.novel_mask
        if not stored or len(mask) != count:
            mask = [self.config.base_labels is not None] * count
        return torch.tensor(mask, dtype=torch.bool, device=self.device)

    def scores_of(
        self,
        class_logits: torch.Tensor | None,
        image_logits: torch.Tensor | None,
        novel: torch.Tensor,
        objectness: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores (B, R, N) by the variant's rule.

        `"text"` and `"vild"`: the softmax with the background. `"ensemble"`: equation 6, with the image head's softmax
        over the labels alone. `"image"`: its softmax over the labels and the objectness, their geometric mean (there
        is no background to tell regions without an object; the paper combines its crop baseline so).
        """
        if self.config.variant == "image":
            scores = image_logits.softmax(dim=-1)
            return scores if objectness is None else (scores * objectness[..., None]).sqrt()
        scores = class_scores(class_logits)
        if image_logits is None:
            return scores
        return ensemble_scores(scores, image_logits.softmax(dim=-1), novel, self.config.ensemble_weight)

    # ---- forward

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        pixel_mask: torch.LongTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        class_embeddings: torch.FloatTensor | None = None,
        labels: Sequence[Mapping[str, torch.Tensor]] | None = None,
        proposals: torch.FloatTensor | None = None,
        distill_boxes: torch.FloatTensor | None = None,
        distill_embeddings: torch.FloatTensor | None = None,
        only_proposals: bool = False,
        output_detections: bool = False,
        output_masks: bool = False,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ViLDObjectDetectionOutput:
        r"""
        Args:
            pixel_values: (B, 3, H, W), normalised.
            pixel_mask: (B, H, W), 1 where an image is and 0 in its padding, at the right and the bottom.
            input_ids, attention_mask: texts of the labels, (N, L), (N, T, L) in T templates, or (B, N, T, L); default:
                the stored labels.
            class_embeddings: (N, D) or (B, N, D) instead of texts.
            labels: of each image a dictionary of `class_labels` (K,), `boxes` (K, 4) as `pred_boxes`, and maybe
                `masks` (K, H, W), as DETR's processors give them. Then there is a loss, in eval mode, too.
            proposals: (B, R, 4) boxes in pixels, rows of -1 being padding: used instead of the model's own, which are
                trained all the same if there are `labels`.
            distill_boxes, distill_embeddings: (B, M, 4) and (B, M, D): regions, and what the teacher gives for them.
                Rows whose largest coordinate is not above 0 are padding.
            only_proposals: only the losses of the region proposal network, for training it before the proposals are
                stored. Needs no texts; the classes of `labels` are not looked at.
            output_detections: the final detections, too; in eval mode.
            output_masks: their masks, too.

        Raises:
            ValueError: names the argument, what came and what is wanted.
        """
        config = self.config
        check_pixels(pixel_values, config.backbone_config.num_channels)
        sizes = content_sizes(pixel_values, pixel_mask)
        if only_proposals:
            return self._forward_proposals(pixel_values, labels, sizes)
        texts = self.resolve_class_embeddings(class_embeddings, input_ids, attention_mask, pixel_values)
        stored = class_embeddings is None and input_ids is None
        given = self._given_proposals(proposals, len(pixel_values))
        self._check_distillation(distill_boxes, distill_embeddings, len(pixel_values), labels)

        features, hidden_states = self.feature_maps(pixel_values)
        if given is None or labels is not None:
            objectness, codes = self.proposal_head(features)
            anchors = self._anchors(features)
        if given is None:
            boxes, scores = self._propose(objectness, codes, anchors, sizes)
        else:
            boxes, scores = given, [one.new_ones(len(one)) for one in given]

        fields: dict[str, Any] = {"class_embeddings": texts.embeddings}
        if output_hidden_states or (output_hidden_states is None and config.output_hidden_states):
            fields["hidden_states"] = _chosen_states(hidden_states, output_hidden_states)
        if labels is not None:
            count = texts.embeddings.shape[-2] if texts.counts is None else len(texts.counts)
            targets = read_labels(labels, sizes, count, pixel_values.device)
            losses = self._losses(features, boxes, targets, texts, stored, distill_boxes, distill_embeddings)
            losses |= proposal_losses(objectness, codes, anchors, targets, sizes, config)
            weights = {"loss_distillation": config.distill_weight}
            fields["loss"] = sum(weights.get(name, 1.0) * value for name, value in losses.items())
            fields["loss_dict"] = {name: value.detach() for name, value in losses.items()}
        if not self.training or labels is None:
            regions = len(proposals[0]) if given is not None else config.rpn_post_nms
            found, values = self._detect(features, boxes, scores, regions, sizes, texts, stored)
            fields |= values
            for name in ("logits", "pred_boxes", "loss"):
                inputs = {"pixel_values": pixel_values, "class_embeddings": class_embeddings}
                check_output(self, fields.get(name), name, **inputs)
            if output_detections or output_masks:
                fields["detections"] = self._final_detections(*found, features, output_masks)
        return ViLDObjectDetectionOutput(**fields)

    def _forward_proposals(self, pixel_values, labels, sizes) -> ViLDObjectDetectionOutput:
        if labels is None:
            raise ValueError("labels: missing, expected the objects' boxes (only_proposals)")
        targets = read_labels(labels, sizes, None, pixel_values.device)
        features, _ = self.feature_maps(pixel_values)
        objectness, codes = self.proposal_head(features)
        losses = proposal_losses(objectness, codes, self._anchors(features), targets, sizes, self.config)
        loss_dict = {name: value.detach() for name, value in losses.items()}
        return ViLDObjectDetectionOutput(loss=sum(losses.values()), loss_dict=loss_dict)

    def _losses(
        self, features, boxes, targets: list[ImageTargets], texts: ClassTexts, stored: bool, distill_boxes, teacher
    ) -> dict[str, torch.Tensor]:
        config = self.config
        sampled = sample_regions(boxes, targets, config)
        regions = self._regions(features, [one.boxes for one in sampled])
        distilled = valid = None
        if distill_boxes is not None and config.variant != "text":
            valid = valid_regions(distill_boxes)
            # Padding is left out, so that it does not count in batch norm, either.
            rows = [one[fine].float() for one, fine in zip(distill_boxes, valid, strict=True)]
            if any(map(len, rows)):
                distilled = self._regions(features, rows)
        embeddings, codes, image_embeddings = self.region_head(regions, distilled)
        losses = {}
        if config.variant != "image":
            losses["loss_class"] = self._class_loss(embeddings, sampled, texts, stored)
        losses["loss_box"] = box_loss(codes, sampled, targets, config.box_offset)
        if distilled is not None:
            wanted = teacher[valid].to(image_embeddings.device)
            fine = torch.ones(len(wanted), dtype=torch.bool, device=wanted.device)
            losses["loss_distillation"] = distillation_loss(unit_or_zero(image_embeddings.float()), wanted, fine)
        elif config.variant != "text":
            unused = image_embeddings if image_embeddings is not None else embeddings
            losses["loss_distillation"] = 0.0 * unused.sum()
        if self.mask_head is not None and any(target.masks is not None for target in targets):
            mask_boxes, wanted, counted = mask_targets(sampled, targets, MASK_SIZE)
            if len(wanted):
                logits = self.mask_head(self._regions(features, mask_boxes, 2 * ROI_RESOLUTION))
                losses["loss_mask"] = mask_loss(logits, wanted, counted)
        return losses

    def _class_loss(self, embeddings, sampled, texts: ClassTexts, stored: bool) -> torch.Tensor:
        background = self.region_head.background
        classes = [one.classes for one in sampled]
        per_image = embeddings.split(list(map(len, classes)))
        if texts.embeddings.dim() == 2:
            logits = self.logits_of(embeddings[None], texts, background)[0]
        else:
            logits = torch.cat(
                [
                    self.logits_of(
                        one[None],
                        ClassTexts(own[None], texts.counts, texts.rule, None if texts.valid is None else fine[None]),
                        background,
                    )[0]
                    for one, own, fine in zip(
                        per_image,
                        texts.embeddings,
                        texts.embeddings if texts.valid is None else texts.valid,
                        strict=True,
                    )
                ]
            )
        novel = self.novel_labels(logits.shape[-1] - 1, stored) if stored else None
        return classification_loss(logits, torch.cat(classes), novel, self.config.novel_in_loss)

    def _detect(
        self, features, boxes, scores, regions: int, sizes, texts: ClassTexts, stored: bool
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]:
        """Scores (B, R, N) and boxes (B, R, 4) in float32 and pixels, and the fields of the output."""
        config, counts = self.config, list(map(len, boxes))
        embeddings, codes, image_embeddings = self.region_head(self._regions(features, boxes))
        decoded = decode_boxes(codes.float(), torch.cat(boxes).float(), offset=config.box_offset).split(counts)
        decoded = [
            _ordered(clip_boxes(one, size, config.box_offset)) for one, size in zip(decoded, sizes, strict=True)
        ]
        padded = partial(_stacked, count=regions)
        objectness, dtype = padded(scores), embeddings.dtype
        present = padded([torch.ones_like(one) for one in scores]) > 0
        embeddings = padded(embeddings.split(counts))
        class_logits = image_logits = None
        if config.variant == "image":
            image_logits = self.logits_of(embeddings, texts)
        else:
            class_logits = self.logits_of(embeddings, texts, self.region_head.background)
        if image_embeddings is not None:
            image_logits = self.logits_of(padded(image_embeddings.split(counts)), texts)
        count = image_logits.shape[-1] if class_logits is None else class_logits.shape[-1] - 1
        found = self.scores_of(class_logits, image_logits, self.novel_labels(count, stored), objectness)
        found = torch.where(present[..., None], found, 0.0)
        located = padded(decoded)
        scale = located.new_tensor([[width, height, width, height] for height, width in sizes])
        return (found, located), {
            "logits": (found.clamp_min(_NO_SCORE).log() - (-found.clamp_max(_BEST_SCORE)).log1p()).to(dtype),
            "pred_boxes": corners_to_center_format(located / scale[:, None]).to(dtype),
            "class_logits": None if class_logits is None else class_logits.to(dtype),
            "image_logits": None if image_logits is None else image_logits.to(dtype),
            "region_embeddings": unit_or_zero(embeddings),
            "proposals": padded(boxes, _ABSENT),
            "objectness": objectness,
        }

    @torch.no_grad()
    def _final_detections(self, scores, boxes, features, with_masks: bool) -> ViLDDetections:
        config = self.config
        rows = [
            select_detections(
                *one,
                pre_nms=config.pre_nms,
                nms_threshold=config.nms_threshold,
                score_threshold=config.score_threshold,
                max_detections=config.max_detections,
            )
            for one in zip(scores, boxes, strict=True)
        ]
        padded = partial(_stacked, count=config.max_detections)
        values, labels, found, regions = zip(*rows, strict=True)
        masks = None
        if with_masks:
            masks = padded(self.predict_masks(features, found))
        return ViLDDetections(padded(values), padded(labels, -1), padded(found), masks, padded(regions, -1))

    def predict_masks(self, features: Sequence[torch.Tensor], boxes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Masks (K, 28, 28) in 0..1 of the boxes (K, 4) of each image, from `feature_maps`."""
        if self.mask_head is None:
            raise ValueError("output_masks: the model has no mask head (use_masks)")
        counts = list(map(len, boxes))
        if not sum(counts):
            return [one.new_zeros(0, MASK_SIZE, MASK_SIZE) for one in boxes]
        logits = self.mask_head(self._regions(features, boxes, 2 * ROI_RESOLUTION))
        check_output(self, logits, "masks")
        return list(logits.float().sigmoid().split(counts))

    @torch.no_grad()
    def propose(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The region proposal network alone: of each image boxes (R, 4) in pixels and their objectness (R,), best
        first. Needs no labels."""
        check_pixels(pixel_values, self.config.backbone_config.num_channels)
        sizes = content_sizes(pixel_values, pixel_mask)
        features, _ = self.feature_maps(pixel_values)
        objectness, codes = self.proposal_head(features)
        return self._propose(objectness, codes, self._anchors(features), sizes)

    # ---- checks

    @staticmethod
    def _given_proposals(proposals, batch: int) -> list[torch.Tensor] | None:
        if proposals is None:
            return None
        check_tensor("proposals", proposals)
        if proposals.dim() != 3 or len(proposals) != batch or proposals.shape[-1] != 4:
            raise ValueError(f"proposals: got {list(proposals.shape)}, expected [{batch}, regions, 4]")
        found = []
        for i, rows in enumerate(proposals.float()):
            present = valid_regions(rows)
            wrong = present & (~rows.isfinite().all(dim=1) | (rows[:, 2:] < rows[:, :2]).any(dim=1))
            wrong |= ~rows.isfinite().all(dim=1)
            wrong |= ~present & (torch.arange(len(rows), device=rows.device) < int(present.sum()))
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0])
                raise ValueError(
                    f"proposals[{i}][{row}]: {rows[row].tolist()}, expected x1, y1, x2, y2 with x1 <= x2 and y1 <= y2"
                    ", and padding (-1) behind them"
                )
            found.append(rows[present])
        if not any(map(len, found)):
            raise ValueError("proposals: no box in any image, expected at least one")
        return found

    def _check_distillation(self, boxes, embeddings, batch: int, labels) -> None:
        if (boxes is None) != (embeddings is None):
            missing = "distill_boxes" if boxes is None else "distill_embeddings"
            raise ValueError(f"{missing}: missing, expected both distill_boxes and distill_embeddings")
        if boxes is None:
            return
        if labels is None:
            raise ValueError("labels: missing, and distill_boxes are for training")
        check_tensor("distill_boxes", boxes)
        check_tensor("distill_embeddings", embeddings)
        if boxes.dim() != 3 or len(boxes) != batch or boxes.shape[-1] != 4:
            raise ValueError(f"distill_boxes: got {list(boxes.shape)}, expected [{batch}, regions, 4]")
        if tuple(embeddings.shape) != (*boxes.shape[:2], self.config.projection_dim):
            raise ValueError(
                f"distill_embeddings: got {list(embeddings.shape)}, expected "
                f"{[*boxes.shape[:2], self.config.projection_dim]}"
            )
        fine = valid_regions(boxes)
        if not math.isfinite(float(embeddings[fine].float().sum())):
            raise ValueError("distill_embeddings: NaN or infinite numbers in a row that is no padding")


def _chosen_states(hidden_states: tuple[torch.Tensor, ...], chosen: Any) -> tuple[torch.Tensor, ...]:
    """All of them, or those with the numbers `chosen` (None for the others), as transformers takes them."""
    if chosen is None or isinstance(chosen, bool):
        return hidden_states
    numbers = [chosen] if isinstance(chosen, int) else chosen
    wanted = {range(len(hidden_states))[number] for number in numbers}
    return tuple(one if number in wanted else None for number, one in enumerate(hidden_states))


def _ordered(boxes: torch.Tensor) -> torch.Tensor:
    """With a width of x2 - x1 + 1, a box that is narrower than a pixel would have x2 < x1."""
    return torch.cat([boxes[..., :2], torch.maximum(boxes[..., :2], boxes[..., 2:])], dim=-1)


def _stacked(parts: Sequence[torch.Tensor], value: float = 0.0, *, count: int) -> torch.Tensor:
    """Tensors (K_b, …) -> (B, count, …), filled up with `value`."""
    return torch.stack(
        [nn.functional.pad(p, (*(0, 0) * (p.dim() - 1), 0, count - len(p)), value=value) for p in parts]
    )


__all__ = ["ViLDForZeroShotObjectDetection", "ViLDPreTrainedModel"]
