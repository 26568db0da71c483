"""CLIP-ViL's heads: pre-training (masked words, matching, answers), questions, entailment."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.models.bert.modeling_bert import BertPreTrainingHeads
from transformers.utils import ModelOutput, can_return_tuple

from ..dual_encoders.forward_checks import check_output
from ..losses.word_labels import check_word_labels
from ..questions.answer_labels import IGNORED, check_answer_labels
from .configuration_clip_vil import ENTAILMENT, ClipViLConfig
from .modeling_clip_vil import ClipViLModel, ClipViLPreTrainedModel


# B pairs of a text and an image, T words, V the vocabulary, A answers


@dataclass
class ClipViLForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: (), the sum of the losses below, with equal weights.
        prediction_logits: (B, T, V), of each word.
        matching_logits: (B, 2); 1: the text belongs to the image.
        answer_logits: (B, A), `config.id2label`.
        loss_dict: the losses by name, without gradient: `mlm`, `matching`, `answers`.
        hidden_states, attentions: as in [`ClipViLModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    prediction_logits: torch.FloatTensor | None = None
    matching_logits: torch.FloatTensor | None = None
    answer_logits: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class ClipViLAnswerOutput(ModelOutput):
    """
    Args:
        loss: (), with `labels`.
        logits: (B, A), `config.id2label`.
        hidden_states, attentions: as in [`ClipViLModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class ClipViLAnswerHead(nn.Module):
    """(B, D) -> (B, A): twice as wide, GELU, normalisation, answers."""

    def __init__(self, config: ClipViLConfig):
        super().__init__()
        width = config.hidden_size
        self.dense = nn.Linear(width, 2 * width)
        self.activation = ACT2FN["gelu"]
        self.normalization = nn.LayerNorm(2 * width, eps=config.text_config.layer_norm_eps)
        self.answers = nn.Linear(2 * width, config.num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.answers(self.normalization(self.activation(self.dense(pooled))))


def mean_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(N, K), (N,) -> (), over labels that are not -100; 0 if all are (officially NaN)."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp_min(1)


class _WithModel(ClipViLPreTrainedModel):
    """What the models with a head share: the model inside of them."""

    def get_input_embeddings(self) -> nn.Module:
        return self.clip_vil.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.clip_vil.set_input_embeddings(value)

    @classmethod
    def from_clip_and_bert(cls, clip, bert, **options):
        """As [`ClipViLModel.from_clip_and_bert`], with a new head."""
        base = ClipViLModel.from_clip_and_bert(clip, bert, **options)
        model = cls(base.config)
        model.clip_vil.load_state_dict(base.state_dict())
        return model.eval()


class ClipViLForPreTraining(_WithModel):
    r"""
    CLIP-ViL's pre-training (section 4.1): masked words are predicted from words and grid, whether the text belongs to
    the image, and answers of questions; each of the three where its labels are given. The losses of regions that the
    official code also has are off in the paper's runs, and not here.

    `pretraining_clip_vil.py` makes batches of captions.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import ClipViLConfig, ClipViLForPreTraining

    >>> text = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    >>> vision = {"hidden_size": 256, "depths": [1, 1, 1, 1], "num_attention_heads": 4, "image_size": 64}
    >>> model = ClipViLForPreTraining(ClipViLConfig(text_config=text, vision_config=vision, num_labels=5))
    >>> ids, words = torch.tensor([[101, 103, 102]]), torch.tensor([[-100, 2054, -100]])
    >>> outputs = model(ids, torch.randn(1, 3, 64, 64), labels=words, matching_labels=torch.tensor([1]))
    >>> sorted(outputs.loss_dict)
    ['matching', 'mlm']
    ```
    """

    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "clip_vil.text_model.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: ClipViLConfig):
        super().__init__(config)
        self.clip_vil = ClipViLModel(config)
        self.cls = BertPreTrainingHeads(config.text_config)
        self.answer_head = ClipViLAnswerHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module):
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        grid_features: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        matching_labels: torch.LongTensor | None = None,
        answer_labels: torch.LongTensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ClipViLForPreTrainingOutput:
        r"""
        Args:
            input_ids, pixel_values, attention_mask, token_type_ids, pixel_mask, grid_features: as in [`ClipViLModel`].
            labels: (B, T), the masked words; -100 elsewhere.
            matching_labels: (B,), 1 where the text belongs to the image, 0 where not; -100 where nobody knows.
            answer_labels: (B,), numbers of answers; -100 for texts that are no questions.

        Raises:
            ValueError: as in [`ClipViLModel`], and for labels of other shapes, types or numbers.
        """
        inputs = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs |= {"pixel_mask": pixel_mask, "grid_features": grid_features}
        outputs = self.clip_vil(input_ids, pixel_values, **inputs, return_dict=True, **kwargs)
        words, matching = self.cls(outputs.language_output, outputs.pooler_output)
        answers = self.answer_head(outputs.pooler_output)
        losses = {}
        if labels is not None:
            check_word_labels("labels", labels, input_ids.shape, self.config.vocab_size)
            losses["mlm"] = mean_cross_entropy(words.flatten(0, 1), labels.flatten())
        for name, given, logits in (("matching", matching_labels, matching), ("answer", answer_labels, answers)):
            if given is not None:
                try:
                    known = check_answer_labels(given, len(input_ids), logits.shape[1], may_ignore=True)
                except ValueError as error:
                    raise ValueError(f"{name}_{error}") from None
                if known.is_floating_point():
                    raise ValueError(f"{name}_labels: got floats, expected whole numbers [{len(input_ids)}]")
                losses["answers" if name == "answer" else name] = mean_cross_entropy(logits, known)
        for name, logits in (("prediction", words), ("matching", matching), ("answer", answers)):
            check_output(self, logits, f"{name}_logits", pixel_values=pixel_values, grid_features=grid_features)
        loss = sum(losses.values()) if losses else None
        check_output(self, loss, "loss")
        return ClipViLForPreTrainingOutput(
            loss=loss,
            prediction_logits=words,
            matching_logits=matching,
            answer_logits=answers,
            loss_dict={name: loss.detach() for name, loss in losses.items()} or None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class ClipViLForVisualQuestionAnswering(_WithModel):
    r"""
    A CLIP-ViL that answers questions about images from a list, `config.id2label`.

    Labels are numbers of answers (cross-entropy), or soft: how right each answer is, from 0 to 1 (binary
    cross-entropy, the mean times the number of answers, as the paper's). `soft_answers` makes them.

    Prefer a vision-language model that writes (`image-text-to-text`) for open questions. This one is small, can be
    fine-tuned with little, and says how sure it is of each of its answers.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import ClipViLConfig, ClipViLForVisualQuestionAnswering

    >>> text = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    >>> vision = {"hidden_size": 256, "depths": [1, 1, 1, 1], "num_attention_heads": 4, "image_size": 64}
    >>> config = ClipViLConfig(text_config=text, vision_config=vision, id2label={0: "yes", 1: "no", 2: "red"})
    >>> model = ClipViLForVisualQuestionAnswering(config).eval()
    >>> model(torch.tensor([[101, 2054, 102]]), torch.randn(1, 3, 64, 96)).logits.shape
    torch.Size([1, 3])
    ```
    """

    answers_questions = True  # in the pipeline

    def __init__(self, config: ClipViLConfig):
        super().__init__(config)
        self.clip_vil = ClipViLModel(config)
        self.answer_head = ClipViLAnswerHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        grid_features: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ClipViLAnswerOutput:
        r"""
        Args:
            input_ids, pixel_values, attention_mask, token_type_ids, pixel_mask, grid_features: as in [`ClipViLModel`].
            labels: (B,) numbers of the answers, or (B, A) how right each is, 0 to 1.

        Raises:
            ValueError: as in [`ClipViLModel`], and for labels of other shapes, types or numbers.
        """
        inputs = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs |= {"pixel_mask": pixel_mask, "grid_features": grid_features}
        outputs = self.clip_vil(input_ids, pixel_values, **inputs, return_dict=True, **kwargs)
        logits = self.answer_head(outputs.pooler_output)
        check_output(self, logits, "logits", pixel_values=pixel_values, grid_features=grid_features)
        return ClipViLAnswerOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        labels = check_answer_labels(labels, *logits.shape)
        if labels.is_floating_point():
            return F.binary_cross_entropy_with_logits(logits.float(), labels) * logits.shape[1]
        return mean_cross_entropy(logits, labels)


class ClipViLForVisualEntailment(ClipViLForVisualQuestionAnswering):
    r"""
    A CLIP-ViL that says whether an image entails a sentence: three labels, entailment, neutral and contradiction.

    Other labels are possible, such as true and false. The labels' scores add up to 1.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import ClipViLConfig
    >>> from hf_clip_variants.modeling.clip_vil.answering_clip_vil import ClipViLForVisualEntailment

    >>> text = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    >>> vision = {"hidden_size": 256, "depths": [1, 1, 1, 1], "num_attention_heads": 4, "image_size": 64}
    >>> model = ClipViLForVisualEntailment(ClipViLConfig(text_config=text, vision_config=vision, num_labels=3)).eval()
    >>> outputs = model(torch.tensor([[101, 2054, 102]]), torch.randn(1, 3, 64, 96))
    >>> outputs.logits.shape, model.config.id2label[2]
    (torch.Size([1, 3]), 'contradiction')
    ```
    """

    def __init__(self, config: ClipViLConfig):
        if config.num_labels == len(ENTAILMENT) and all(str(n).startswith("LABEL_") for n in config.id2label.values()):
            config.id2label = dict(enumerate(ENTAILMENT))
            config.label2id = {name: label for label, name in enumerate(ENTAILMENT)}
        config.problem_type = "single_label_classification"
        super().__init__(config)


__all__ = [
    "ClipViLAnswerHead",
    "ClipViLAnswerOutput",
    "ClipViLForPreTraining",
    "ClipViLForPreTrainingOutput",
    "ClipViLForVisualEntailment",
    "ClipViLForVisualQuestionAnswering",
]
