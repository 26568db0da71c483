"""ActionCLIP as a classifier of videos: texts of classes that are set once, for one label a video or several."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import TransformersKwargs, can_return_tuple

from ..clip_classifier.classification_loss import MULTI_LABEL, classification_loss
from ..dual_encoders.backbones import unit_norm
from ..dual_encoders.forward_checks import check_output
from ..dual_encoders.prompts import encode_texts
from ..video.class_texts import encode_classes, set_labels
from .configuration_actionclip import ActionCLIPConfig
from .modeling_actionclip import ActionCLIPModel
from .templates_actionclip import ACTION_TEMPLATES


_NO_CLASS = "a video"  # for templates that are nothing but the class


class ActionCLIPForVideoClassification(ActionCLIPModel):
    r"""
    An [`ActionCLIPModel`] that knows its classes: for the pipeline `video-classification`, and to train with labels.

    `set_classes` encodes the classes' prompts; they are saved with the model and do not train. `logits` are such that
    their softmax is the mean over prompts of the softmax over classes.

    With `problem_type="multi_label_classification"` a video may have several classes or none: a logit is
    `score_scale` times how much more similar the video is to the prompts of the class, in the mean, than to the same
    prompts without a class, plus the trained `logit_bias`. Its sigmoid is a score by itself, and a probability only
    after training or calibration on labelled videos.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import ActionCLIPConfig, ActionCLIPForVideoClassification
    >>> from hf_clip_variants.modeling.clip.text_clip import official_tokenizer

    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> vision = text | {"image_size": 32, "patch_size": 16}
    >>> config = ActionCLIPConfig(text_config=text, vision_config=vision, projection_dim=64, num_fusion_layers=1)
    >>> model = ActionCLIPForVideoClassification(config).eval()
    >>> model = model.set_classes(["running", "rowing boat"], official_tokenizer())
    >>> model(torch.randn(2, 5, 3, 32, 32)).logits.shape, model.class_features.shape
    (torch.Size([2, 2]), torch.Size([16, 2, 64]))
    ```
    """

    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)

    def __init__(self, config: ActionCLIPConfig):
        super().__init__(config)
        classes, prompts, width = config.num_class_features, config.num_class_templates, config.projection_dim
        self.register_buffer("class_features", torch.zeros(prompts, classes, width) if classes else None)
        self.register_buffer("no_class_features", torch.zeros(width) if classes else None)
        if config.problem_type == MULTI_LABEL:
            self.logit_bias = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self:
            for name in ("class_features", "no_class_features", "logit_bias"):
                if getattr(self, name, None) is not None:
                    init.zeros_(getattr(self, name))

    def _accept_missing(self, missing: set[str]) -> set[str]:
        """A checkpoint that was not for several labels has no bias."""
        return super()._accept_missing(missing) - {"logit_bias"}

    def set_classes(
        self, class_names: str | Sequence[str], processor, templates: str | Sequence[str] = ACTION_TEMPLATES
    ) -> "ActionCLIPForVideoClassification":
        """Makes these the model's classes, in label order, and returns it.

        Args:
            class_names: texts, in one list; a file of names as in `resolve_class_names`.
            processor: the model's processor or tokenizer.
            templates: by default the paper's sixteen; the mean is that of their scores.

        Raises:
            ValueError: no, blank or repeated names, or a template without {}. The model is as it was then.
        """
        names, templates, features = encode_classes(self, class_names, processor, templates)
        no_class = self._encode_no_class(getattr(processor, "tokenizer", processor), templates)
        self.class_features, self.no_class_features = features, no_class.to(features.dtype)
        self.config.num_class_templates = len(templates)
        set_labels(self.config, names)
        return self

    @torch.no_grad()
    def _encode_no_class(self, tokenizer, templates: Sequence[str]) -> torch.Tensor:
        """(D,) mean of the unit vectors of the templates without a class."""
        texts = [template.replace("{}", "").strip(" ,?") or _NO_CLASS for template in templates]
        tokens = encode_texts(tokenizer, texts, what="templates", padding=True, truncation=True, return_tensors="pt")
        training = self.training
        self.eval()
        try:
            features = self.get_text_features(**tokens.to(self.device)).pooler_output
        finally:
            self.train(training)
        return unit_norm(features).mean(0)

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor,
        video_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        Args:
            pixel_values_videos: (V, T, 3, H, W), normalised; or (V, R, T, 3, H, W), R views of each video, whose
                scores are averaged.
            video_mask: (V, T) or (V, R, T), 1 for frames that are there, which come first; None: all are.
            labels: (V,) of the classes, or what `config.problem_type` says, as in `classification_loss`; with them
                there is a loss.

        Returns:
            `ImageClassifierOutput`: `logits` (V, C), `loss`; hidden states and attentions are the image encoder's.

        Raises:
            ValueError: no classes are set, inputs of wrong shapes, a video without frames, labels of no class; on a
                CPU, in eval mode, NaN in the answer, with its cause.
        """
        if self.class_features is None:
            raise ValueError("class_names: no classes are set; call set_classes([...], processor)")
        logits, views, outputs = self._class_logits(pixel_values_videos, self.class_features, video_mask, **kwargs)
        if self.config.problem_type == MULTI_LABEL:
            logits = self._logits_of_each_class(views, len(logits))
        check_output(self, logits, pixel_values_videos=pixel_values_videos)
        loss = None
        if labels is not None:
            loss = classification_loss(logits.float(), labels, self.config.problem_type)
        return ImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def _logits_of_each_class(self, views: torch.Tensor, videos: int) -> torch.Tensor:
        """Unit vectors of views (V * R, D) -> (V, C)."""
        texts = unit_norm(self.class_features).mean(0) - self.no_class_features
        scores = (views @ texts.T.to(views.dtype)).unflatten(0, (videos, -1)).mean(1)
        return self._score_scale() * scores + self.logit_bias


__all__ = ["ActionCLIPForVideoClassification"]
