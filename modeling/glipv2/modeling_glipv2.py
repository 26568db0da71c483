"""GLIPv2: GLIP whose regions are compared with the words of all images, whose words are masked, and that has masks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from ..detection.inputs_detection import check_prompt_rows, check_tensor
from ..detection.region_features import region_features
from ..dual_encoders.forward_checks import check_output, check_pixels, check_token_ids
from ..glip.configuration_glip import STRIDES
from ..glip.image_processing_glip import GLIPImageProcessor
from ..glip.losses_glip import NO_OBJECT, mean_over_ranks
from ..glip.modeling_glip import GLIPForZeroShotObjectDetection, PromptWords
from ..losses.word_labels import NO_WORD, check_word_labels
from .configuration_glipv2 import GLIPv2Config
from .heads_glipv2 import GLIPv2Contrast, GLIPv2MaskHead, GLIPv2WordPredictions
from .losses_glipv2 import (
    ContrastTexts,
    crop_masks,
    inter_image_sums,
    mask_loss,
    mask_regions,
    mask_words,
    masked_word_loss,
    name_numbers,
    region_labels,
    word_labels,
)
from .outputs_glipv2 import GLIPv2Detections, GLIPv2ObjectDetectionOutput


ROI_RESOLUTION = 14  # of the features of a region; its mask has twice that
_WEIGHTS = {
    "loss_inter_image": "inter_image_weight",
    "loss_mlm": "mlm_weight",
    "loss_mask": "mask_weight",
}


class GLIPv2ForZeroShotObjectDetection(GLIPForZeroShotObjectDetection):
    r"""
    GLIPv2 (Zhang et al. 2022): finds what a text names, as GLIP does, and its masks.

    What it has beside GLIP, each with a switch in the configuration: in training, regions are compared with the words
    of all images of the batch, on all processes, before image and text have met; masked words of the prompt are
    predicted; and the pixels of a region are compared with a label's words, which gives masks. Without masks, its
    answers come from GLIP's layers alone: a GLIP's weights give a GLIP's detections ([`from_glip`]).

    No weights of the authors exist. See the README for what is known of each part.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import GLIPv2Config, GLIPv2ForZeroShotObjectDetection

    >>> model = GLIPv2ForZeroShotObjectDetection(GLIPv2Config.tiny()).eval()
    >>> phrase_map = torch.tensor([[[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]]])
    >>> with torch.no_grad():
    ...     outputs = model(
    ...         torch.randn(1, 3, 64, 96), torch.tensor([[101, 4937, 1012, 3899, 102]]), phrase_map=phrase_map,
    ...         output_masks=True,
    ...     )
    >>> outputs.logits.shape, outputs.detections.masks.shape[2:]
    (torch.Size([1, 129, 5]), torch.Size([28, 28]))
    ```
    """

    config: GLIPv2Config
    _no_split_modules = [*GLIPForZeroShotObjectDetection._no_split_modules, "GLIPv2MaskHead"]

    def __init__(self, config: GLIPv2Config):
        super().__init__(config)
        self.contrast = GLIPv2Contrast(config) if config.use_inter_image_loss else None
        self.word_predictions = GLIPv2WordPredictions(config) if config.use_mlm else None
        self.mask_head = GLIPv2MaskHead(config) if config.use_mask_head else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, GLIPv2Contrast):
            for layer in (module.image_projection, module.text_projection):
                init.xavier_uniform_(layer.weight)
                init.zeros_(layer.bias)
            init.zeros_(module.log_scale)
        elif isinstance(module, GLIPv2MaskHead):
            for layer in (*module.convolutions, module.upsampling, module.text_projection):
                init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                init.zeros_(layer.bias)
            init.zeros_(module.log_scale)
            init.zeros_(module.text_bias)

    @classmethod
    def from_glip(cls, glip: GLIPForZeroShotObjectDetection, **fields: Any) -> "GLIPv2ForZeroShotObjectDetection":
        """A GLIPv2 with the weights of a GLIP, whose detections it gives; what GLIP does not have is new. `fields` are
        of [`GLIPv2Config`]."""
        classes = ("num_labels", "id2label", "label2id")
        replaced = classes if any(name in fields for name in classes) else ()
        values = {n: v for n, v in glip.config.to_dict().items() if n not in ("model_type", *replaced)}
        model = cls(GLIPv2Config.from_dict(values | fields)).to(glip.dtype)
        missing, unexpected = model.load_state_dict(glip.state_dict(), strict=False)
        own = ("contrast.", "word_predictions.", "mask_head.", "answer_head.")
        wrong = [name for name in missing if not name.startswith(own)] + list(unexpected)
        if wrong:
            raise ValueError(f"glip: {wrong[0]} and {len(wrong) - 1} more weights do not fit; expected a GLIP")
        return model.to(glip.device).train(glip.training)

    @property
    def predicts_masks(self) -> bool:
        """Whether `output_masks` gives masks."""
        return self.mask_head is not None

    def detection_options(self, masks: bool) -> dict[str, bool]:
        """What the pipeline calls `forward` with."""
        return {"output_masks": masks}

    @property
    def loss_weights(self) -> dict[str, float]:
        return super().loss_weights | {name: getattr(self.config, field) for name, field in _WEIGHTS.items()}

    # ---- forward

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        phrase_map: torch.FloatTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        text_embeds: torch.FloatTensor | None = None,
        labels: Sequence[Mapping[str, torch.Tensor]] | None = None,
        is_caption: torch.BoolTensor | None = None,
        mlm_labels: torch.LongTensor | None = None,
        output_masks: bool = False,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> GLIPv2ObjectDetectionOutput:
        r"""
        As GLIP's, and:

        Args:
            labels: may have `masks` (N, H, W), at the size of `pixel_values`. Objects without any train no mask.
            is_caption: (B,) or (1,), whether a prompt is a sentence and not class names, which are the same in all
                images. Default: class names. [`GLIPv2Processor`] gives it.
            mlm_labels: (B, T): the words that belong where `input_ids` have others, -100 elsewhere. Without them, in
                training, the model hides words itself.
            output_masks: the final detections and their masks; needs `phrase_map`.

        Raises:
            ValueError: names the argument, what came and what is wanted.
        """
        self._check_additions(
            pixel_values, input_ids, attention_mask, text_embeds, phrase_map, labels, is_caption, mlm_labels
        )
        input_ids = None if input_ids is None else input_ids.long()
        drawn, given = None, input_ids
        if output_masks and (self.mask_head is None or phrase_map is None):
            wrong = "the model has no mask head (use_mask_head)" if self.mask_head is None else "no phrase_map"
            raise ValueError(f"output_masks: True, but {wrong}")
        if self._hides_words(labels, mlm_labels, input_ids, attention_mask):
            given = input_ids.expand(len(pixel_values), -1) if len(input_ids) == 1 else input_ids
            mask = torch.ones_like(given) if attention_mask is None else attention_mask.expand(given.shape)
            attention_mask = mask
            config = self.config
            input_ids, drawn = mask_words(
                given, mask, config.mask_token_id, config.text_config.vocab_size, config.mlm_probability
            )
        return super().forward(
            pixel_values,
            input_ids,
            attention_mask,
            phrase_map,
            pixel_mask,
            text_embeds,
            labels,
            output_hidden_states,
            return_dict=True,
            given_ids=given,
            drawn=drawn,
            is_caption=is_caption,
            mlm_labels=mlm_labels,
            output_masks=output_masks,
            **kwargs,
        )

    def _hides_words(self, labels, mlm_labels, input_ids, attention_mask) -> bool:
        if not self.training or labels is None or mlm_labels is not None or self.word_predictions is None:
            return False
        # What cannot be right is left to GLIP's checks, which name it.
        fits = isinstance(input_ids, torch.Tensor) and input_ids.dim() == 2 and input_ids.dtype == torch.int64
        return fits and (attention_mask is None or attention_mask.shape == input_ids.shape)

    def _check_additions(
        self, pixel_values, input_ids, attention_mask, text_embeds, phrase_map, labels, is_caption, mlm_labels
    ) -> None:
        config = self.config
        check_pixels(pixel_values, config.backbone_config.num_channels)
        batch, several = len(pixel_values), isinstance(input_ids, torch.Tensor) and input_ids.dim() == 3
        if input_ids is not None:
            ids = input_ids.flatten(0, 1) if several else input_ids
            check_token_ids(ids, config.text_config.vocab_size, config.max_text_length, field="max_text_length")
            check_prompt_rows("input_ids", input_ids, (2, 3), batch)
        if labels is not None and text_embeds is not None and (self.contrast is not None or self._asks_words):
            raise ValueError(
                "text_embeds: given with labels, expected input_ids: losses of this model compare and hide words"
            )
        if is_caption is not None:
            is_tensor = isinstance(is_caption, torch.Tensor)
            if (
                not is_tensor
                or is_caption.dtype != torch.bool
                or is_caption.dim() not in ((1, 2) if several else (1,))  # of each prompt of an image
                or len(is_caption) not in (1, batch)
            ):
                got = f"{is_caption.dtype} {list(is_caption.shape)}" if is_tensor else type(is_caption).__name__
                raise ValueError(f"is_caption: got {got}, expected true or false for each of {batch} images, or one")
        if attention_mask is not None:
            check_tensor("attention_mask", attention_mask)
        if phrase_map is not None:
            check_tensor("phrase_map", phrase_map)
        if mlm_labels is None:
            return
        if self.word_predictions is None:
            raise ValueError("mlm_labels: given, but the model predicts no words (use_mlm)")
        length = (phrase_map if input_ids is None else input_ids).shape[-1]
        check_word_labels("mlm_labels", mlm_labels, (batch, length), config.text_config.vocab_size)

    @property
    def _asks_words(self) -> bool:
        return self.training and self.word_predictions is not None

    def with_further_outputs(
        self, outputs, features, words: Sequence[PromptWords], mlm_labels=None, output_masks: bool = False, **kwargs
    ) -> GLIPv2ObjectDetectionOutput:
        fields: dict[str, Any] = {}
        if mlm_labels is not None:
            fields["mlm_logits"] = self.word_predictions(words[0].fused)
            check_output(self, fields["mlm_logits"], "mlm_logits")
        if output_masks:
            fields["detections"] = self._detections_with_masks(outputs, features, words)
        return GLIPv2ObjectDetectionOutput(**outputs, **fields)

    # ---- masks

    @torch.no_grad()
    def _detections_with_masks(self, outputs, features, words: Sequence[PromptWords]) -> GLIPv2Detections:
        """Those that the processor selects by default."""
        found = GLIPImageProcessor().post_process_object_detection(outputs)
        vectors, biases = [], []
        for i, one in enumerate(found):
            rows = outputs.phrase_map[i]
            parts = [rows]
            if rows.dim() == 3:  # labels of several prompts are numbered in their order, without empty ones
                parts = [row[(row != 0).any(dim=1)] for row in rows]
            of_labels = [self.mask_head.read(p.fused[i], own) for p, own in zip(words, parts, strict=True)]
            vector, bias = (torch.cat(part)[one["labels"]] for part in zip(*of_labels, strict=True))
            vectors.append(vector)
            biases.append(bias)
        regions = region_features(features, [one["boxes"] for one in found], STRIDES, ROI_RESOLUTION, aligned=True)
        logits = self.mask_head(regions, torch.cat(vectors), torch.cat(biases))
        check_output(self, logits, "masks")
        masks = logits.float().sigmoid().split([len(one["scores"]) for one in found])
        found = [one | {"masks": own} for one, own in zip(found, masks, strict=True)]
        padded = nn.utils.rnn.pad_sequence
        values = {
            name: padded([one[name] for one in found], batch_first=True, padding_value=-1 if name == "labels" else 0)
            for name in ("scores", "labels", "boxes", "masks")
        }
        return GLIPv2Detections(**values)

    # ---- losses

    def further_losses(
        self,
        features,
        words: PromptWords,
        boxes,
        owners,
        targets,
        labels=None,
        given_ids=None,
        drawn=None,
        phrase_map=None,
        is_caption=None,
        mlm_labels=None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Each with its switch in the configuration; see `GLIPForZeroShotObjectDetection.further_losses`."""
        losses, batch = {}, len(boxes)
        if is_caption is None:
            is_caption = torch.zeros(1, dtype=torch.bool, device=boxes.device)
        is_caption = is_caption.expand(batch)
        if self.contrast is not None:
            losses["loss_inter_image"] = self._inter_image_loss(
                features, words, owners, targets, given_ids.expand(batch, -1), phrase_map, labels, is_caption
            )
        if drawn is not None:
            mlm_labels = self._hidden_words(given_ids, drawn, targets, is_caption, words.mask)
        if mlm_labels is not None:
            loss, count = masked_word_loss(self.word_predictions(words.fused), mlm_labels)
            losses["loss_mlm"] = loss / mean_count(loss, count)
        if self.mask_head is not None:
            losses["loss_mask"] = self._mask_loss(features, words, boxes, owners, targets, labels)
        return losses

    def _inter_image_loss(self, features, words, owners, targets, ids, phrase_map, labels, is_caption) -> torch.Tensor:
        numbers = name_numbers(ids, phrase_map)
        flat = torch.cat([one.flatten(2) for one in features], dim=2).transpose(1, 2)
        seen = words.mask > 0
        regions, of_regions, images, own_words = [], [], [], []
        for i, (own, (_, positive_map)) in enumerate(zip(owners, targets, strict=True)):
            (present,) = torch.where(own != NO_OBJECT)
            if len(present) > self.config.max_positive_regions:
                chosen = torch.randperm(len(present), device=present.device)[: self.config.max_positive_regions]
                present = present[chosen]
            rows = torch.as_tensor(labels[i]["class_labels"], device=ids.device).long().flatten()[own[present]]
            regions.append(flat[i, present])
            of_regions.append(region_labels(numbers[i, rows], bool(is_caption[i])))
            images.append(torch.full_like(present, i))
            placed = positive_map.new_zeros(len(present), *seen.shape)
            placed[:, i] = positive_map[own[present]]
            own_words.append(placed[:, seen])
        of_images = torch.arange(len(seen), device=seen.device)[:, None].expand(seen.shape)
        texts = ContrastTexts(
            torch.cat(of_regions),
            word_labels(numbers, phrase_map, is_caption)[seen],
            torch.cat(images),
            of_images[seen],
            torch.cat(own_words),
        )
        embeddings = self.contrast(torch.cat(regions), words.plain[seen])
        gather = self.config.inter_image_gather if self.training else "none"
        sums = inter_image_sums(*embeddings, self.contrast.log_scale, texts, gather)
        count = sum((own != NO_OBJECT).sum() for own in owners)
        return sum(sums) / 2 / mean_count(sums[0], count)

    @staticmethod
    def _hidden_words(ids, drawn, targets, is_caption, mask) -> torch.Tensor:
        """What is predicted of the words that were `drawn` (B, T): of class names those of objects in the image, of a
        sentence all."""
        asked = torch.stack([(positive_map != 0).any(dim=0) for _, positive_map in targets])
        return torch.where(drawn & (asked | is_caption[:, None]), ids, NO_WORD)

    def _mask_loss(self, features, words, boxes, owners, targets, labels) -> torch.Tensor:
        places, wanted, vectors, biases = [], [], [], []
        for i, (own, (objects, positive_map)) in enumerate(zip(owners, targets, strict=True)):
            if (masks := labels[i].get("masks")) is None:
                places.append(objects[:0])
                continue
            masks = torch.as_tensor(masks, device=boxes.device)  # `read_labels` has looked at them
            found, numbers = mask_regions(boxes[i], own, objects)
            vector, bias = self.mask_head.read(words.fused[i], positive_map)
            places.append(found)
            wanted.append(crop_masks(masks, found, numbers, 2 * ROI_RESOLUTION))
            vectors.append(vector[numbers])
            biases.append(bias[numbers])
        if not wanted:  # the loss is 0, and has a gradient for every weight
            vector, bias = self.mask_head.read(words.fused[0], words.mask.new_zeros(0, words.mask.shape[1]))
            vectors, biases, wanted = [vector], [bias], [vector.new_zeros(0, *2 * (2 * ROI_RESOLUTION,))]
        regions = region_features(features, places, STRIDES, ROI_RESOLUTION, aligned=True)
        logits = self.mask_head(regions, torch.cat(vectors), torch.cat(biases))
        check_output(self, logits, "masks")
        count = torch.tensor(len(logits), device=logits.device)
        loss = mask_loss(logits, torch.cat(wanted))
        return loss / mean_count(loss, count)


def mean_count(like: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """What a sum is divided by: the processes' mean of `count`, at least 1."""
    return mean_over_ranks(torch.as_tensor(count, device=like.device).to(like.dtype)).clamp_min(1)


__all__ = ["GLIPv2ForZeroShotObjectDetection", "mean_count"]
