"""GLIPv2 that answers questions: the answer stands where the question has a mask, and regions are compared with it.

The paper describes this in words; the official repository has no code for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform
from transformers.utils import ModelOutput, can_return_tuple

from ..detection.inputs_detection import check_tensor
from ..dual_encoders.forward_checks import check_output, check_pixels, check_token_ids
from ..losses.word_labels import NO_WORD
from ..questions.answer_labels import check_answer_labels
from .configuration_glipv2 import GLIPv2Config
from .modeling_glipv2 import GLIPv2ForZeroShotObjectDetection
from .outputs_glipv2 import GLIPv2ObjectDetectionOutput


@dataclass
class GLIPv2AnsweringOutput(ModelOutput):
    """
    Args:
        loss: (), if `labels` or `object_labels` were given.
        logits: (B, N) of the answers, `config.id2label`; `logits.sigmoid()` are their scores.
        loss_dict: its parts by name, before their weights.
        detection: what the same pass finds; its `phrase_map` is the mask's, so its boxes are what the answer is about.
        hidden_states: the Swin transformer's maps.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    detection: GLIPv2ObjectDetectionOutput | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class GLIPv2AnswerHead(nn.Module):
    """Of the fused words at the mask: dense, GELU, layer norm, and a logit for each answer."""

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        self.transform = BertPredictionHeadTransform(config.text_config)
        self.answers = nn.Linear(config.text_config.hidden_size, config.num_labels)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.answers(self.transform(words))


class GLIPv2ForVisualQuestionAnswering(GLIPv2ForZeroShotObjectDetection):
    r"""
    A GLIPv2 with a head for the answers to questions, `config.id2label`. It follows the paper's description alone.

    The prompt is the question with a mask behind it ([`GLIPv2Processor`], `questions`). The head reads what fusion
    makes of the mask; regions are compared with it as with any word, so that the answer has boxes. A folder with this
    model also loads as a detector.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import GLIPv2Config, GLIPv2ForVisualQuestionAnswering

    >>> model = GLIPv2ForVisualQuestionAnswering(GLIPv2Config.tiny(num_labels=3)).eval()
    >>> ids, mask_place = torch.tensor([[101, 2054, 103, 102]]), torch.tensor([[[0, 0, 1, 0]]])
    >>> with torch.no_grad():
    ...     outputs = model(torch.randn(1, 3, 64, 96), ids, phrase_map=mask_place)
    >>> outputs.logits.shape, outputs.detection.pred_boxes.shape
    (torch.Size([1, 3]), torch.Size([1, 129, 4]))
    ```
    """

    answers_questions = True  # in the pipeline

    def __init__(self, config: GLIPv2Config):
        super().__init__(config)
        self.answer_head = GLIPv2AnswerHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        phrase_map: torch.FloatTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        is_caption: torch.BoolTensor | None = None,
        labels: torch.Tensor | None = None,
        object_labels: Sequence[Mapping[str, torch.Tensor]] | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> GLIPv2AnsweringOutput:
        r"""
        Args:
            pixel_values, pixel_mask: as a detector's.
            input_ids, attention_mask: questions, (B, T) or (1, T), with a mask in the answer's place.
            phrase_map: (B, 1, T), 1 at the mask.
            labels: (B,) numbers of the answers, or (B, N) how right each is, 0 to 1. Their loss is the binary
                cross-entropy, summed over answers.
            object_labels: as a detector's `labels`; `class_labels` are 0: the boxes that the answer is about. They add
                the detector's losses.

        Raises:
            ValueError: names the argument, what came and what is wanted.
        """
        if phrase_map is None or input_ids is None:
            missing = "phrase_map" if phrase_map is None else "input_ids"
            raise ValueError(f"{missing}: missing, expected questions and the place of their mask")
        check_pixels(pixel_values, self.config.backbone_config.num_channels)
        check_token_ids(
            input_ids, self.config.text_config.vocab_size, self.config.max_text_length, field="max_text_length"
        )
        check_tensor("phrase_map", phrase_map)
        if phrase_map.dim() != 3 or phrase_map.shape[1] != 1:
            shape = list(phrase_map.shape)
            raise ValueError(f"phrase_map: got {shape}, expected [batch, 1, tokens], for one question an image")
        targets = None if labels is None else self._targets(labels, len(pixel_values))
        if is_caption is None:
            is_caption = torch.ones(1, dtype=torch.bool, device=input_ids.device)
        if object_labels is not None and self.word_predictions is not None:  # no word but the answer is hidden
            rows = (len(pixel_values), input_ids.shape[1])
            kwargs["mlm_labels"] = torch.full(rows, NO_WORD, device=input_ids.device)
        heard: list[torch.Tensor] = []
        try:
            outputs = super().forward(
                pixel_values,
                input_ids,
                attention_mask,
                phrase_map,
                pixel_mask,
                labels=object_labels,
                is_caption=is_caption,
                output_hidden_states=output_hidden_states,
                return_dict=True,
                heard=heard,
                **kwargs,
            )
        except ValueError as error:
            if not str(error).startswith("labels"):  # of the detector; here they have another name
                raise
            raise ValueError(f"object_{error}") from None
        fields = {"logits": heard[0], "detection": outputs, "hidden_states": outputs.hidden_states}
        check_output(self, heard[0], "logits", pixel_values=pixel_values)
        losses = dict(outputs.loss_dict or {})
        if targets is not None:
            answers = nn.functional.binary_cross_entropy_with_logits(heard[0].float(), targets, reduction="none")
            losses["loss_answer"] = answers.sum(dim=1).mean()
        if losses:
            fields["loss"] = (0 if outputs.loss is None else outputs.loss) + losses.get("loss_answer", 0)
            fields["loss_dict"] = {name: value.detach() for name, value in losses.items()}
        return GLIPv2AnsweringOutput(**fields)

    def with_further_outputs(self, outputs, features, words, heard: list | None = None, **kwargs: Any):
        if heard is not None:
            mask = (outputs.phrase_map != 0).to(words[0].fused.dtype)
            mask = mask / mask.sum(dim=-1, keepdim=True).clamp_min(1)
            heard.append(self.answer_head((mask @ words[0].fused)[:, 0]))
        return super().with_further_outputs(outputs, features, words, **kwargs)

    def _targets(self, labels: torch.Tensor, batch: int) -> torch.Tensor:
        count = self.config.num_labels
        labels = check_answer_labels(labels, batch, count)
        return labels if labels.is_floating_point() else nn.functional.one_hot(labels, count).float()


__all__ = ["GLIPv2AnswerHead", "GLIPv2AnsweringOutput", "GLIPv2ForVisualQuestionAnswering"]
