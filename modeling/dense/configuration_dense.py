"""Fields of the configurations of all models that segment by texts: labels, their texts, the background."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from .background import check_background, check_background_index


@dataclass(kw_only=True)
class PromptableSegmentationFields:
    r"""
    Mixin before `PreTrainedConfig` (or a configuration of transformers), under `@checked` and `@strict`.

    `id2label` is empty until `set_labels` has been called, not transformers' two labels: `num_labels` is then 0.

    Args:
        label_texts (`list[list[str]]`, *optional*):
            The texts of each label that has some, in the order of the rows of `class_embeddings`; more than one are
            synonyms. `set_labels` writes it. With the background as a text, that is one of the labels.
        templates (`list[str]`, *optional*):
            Templates of the texts, such as `"a photo of a {}."`.
        synonym_rule (`"max"` or `"mean"`, defaults to `"max"`):
            The score of a label with several texts: the best one's, or their mean.
        background (`float`, `dict[str, float]`, `list[float]` or `str`, *optional*):
            `None`: every pixel has one of the labels. A number: pixels whose best score is below it are background. A
            number for each label: the one of the best label counts. `"learned"`: the model's own rule. Another text:
            one more label, known by that text (`"other"`, or synonyms `"wall;floor"`).
        background_label (`str`, defaults to `"background"`): its name in `id2label`.
        background_index (`int`, defaults to 0): its place in `id2label`.
        background_of (`"logits"` or `"probabilities"`, defaults to `"logits"`):
            What thresholds are compared with; probabilities are the softmax over the labels.
        semantic_loss_ignore_index (`int`, defaults to 255): the label of pixels that do not count.
        text_encoder_dropped (`bool`, defaults to `False`): the model has its stored class embeddings only.
    """

    label_texts: list[list[str]] | None = None
    templates: list[str] | None = None
    synonym_rule: Literal["max", "mean"] = "max"
    background: float | int | dict[str, float] | list[float] | str | None = None
    background_label: str = "background"
    background_index: int = 0
    background_of: Literal["logits", "probabilities"] = "logits"
    semantic_loss_ignore_index: int = 255
    text_encoder_dropped: bool = False

    may_have_no_labels: ClassVar[bool] = True
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "hidden_states",
        "attentions",
        "class_embeddings",
        "pixel_embeddings",
        "group_maps",
        "background_scores",
    ]

    def __post_init__(self, **kwargs):
        if self.id2label is None and kwargs.get("num_labels") is None:
            self.id2label, self.label2id = {}, {}
        super().__post_init__(**kwargs)

    def validate_background(self):
        check_background(self.background)
        if self.background_index < 0:
            raise ValueError(f"background_index: {self.background_index}, expected 0 or more")
        if self.id2label and self.background_has_own_channel:
            check_background_index(self.background_index, len(self.id2label) - 1)

    def validate_label_texts(self):
        texts = self.label_texts
        if texts is None:
            return
        if not texts or not all(texts):
            raise ValueError(f"label_texts: {texts!r}, expected at least one text of each label")
        wanted = len(texts) + self.background_has_own_channel
        if len(self.id2label) != wanted:
            extra = f" and the background ({self.background!r})" if self.background_has_own_channel else ""
            raise ValueError(f"label_texts: for {len(texts)} labels{extra}, but id2label has {len(self.id2label)}")

    @property
    def background_has_own_channel(self) -> bool:
        """Whether `logits` have a channel that comes from no text."""
        return self.background is not None and (not isinstance(self.background, str) or self.background == "learned")

    @property
    def num_class_embeddings(self) -> int:
        """Rows of the stored class embeddings; 0 before `set_labels`."""
        if self.label_texts is not None:
            return sum(map(len, self.label_texts))
        return len(self.id2label) - bool(self.id2label and self.background_has_own_channel)


__all__ = ["PromptableSegmentationFields"]
