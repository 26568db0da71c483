"""CLIP4Clip as a classifier of videos: texts that are set once in the place of texts of each call."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import TransformersKwargs, can_return_tuple

from ..clip_classifier.classification_loss import classification_loss
from ..dual_encoders.forward_checks import check_output
from ..dual_encoders.prompts import resolve_class_names, resolve_templates
from ..video.class_texts import class_features
from .configuration_clip4clip import CLIP4ClipConfig
from .modeling_clip4clip import CLIP4ClipModel, check_videos, checked_mask


class CLIP4ClipForVideoClassification(CLIP4ClipModel):
    r"""
    A [`CLIP4ClipModel`] that knows its classes: for the pipeline `video-classification`, and to train with labels.

    `set_classes` encodes the classes' texts; they are saved with the model and do not train.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import CLIP4ClipConfig, CLIP4ClipForVideoClassification
    >>> from hf_clip_variants.modeling.clip.text_clip import official_tokenizer

    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> vision = text | {"image_size": 32, "patch_size": 16}
    >>> config = CLIP4ClipConfig(text_config=text, vision_config=vision, projection_dim=64)
    >>> model = CLIP4ClipForVideoClassification(config).eval()
    >>> model = model.set_classes(["a cat runs", "a dog sleeps"], official_tokenizer())
    >>> model(torch.randn(2, 5, 3, 32, 32)).logits.shape, model.config.id2label
    (torch.Size([2, 2]), {0: 'a cat runs', 1: 'a dog sleeps'})
    ```
    """

    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)

    def __init__(self, config: CLIP4ClipConfig):
        super().__init__(config)
        count = config.num_class_features
        self.register_buffer("class_features", torch.zeros(count, config.projection_dim) if count else None)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self and getattr(self, "class_features", None) is not None:
            init.zeros_(self.class_features)

    @torch.no_grad()
    def set_classes(
        self, class_names: str | Sequence[str], processor, templates: str | Sequence[str] = "{}"
    ) -> "CLIP4ClipForVideoClassification":
        """Makes these the model's classes, in label order, and returns it.

        Args:
            class_names: texts, in one list; a file of names as in `resolve_class_names`.
            processor: the model's processor or tokenizer.
            templates: such as `"a video of {}."`; several are averaged.

        Raises:
            ValueError: no, blank or repeated names, or a template without {}. The model is as it was then.
        """
        names, templates = resolve_class_names(class_names), resolve_templates(templates)
        tokenizer, training = getattr(processor, "tokenizer", processor), self.training
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
            pixel_values_videos: (V, T, 3, H, W), normalised.
            video_mask: (V, T), 1 for frames that are there, which come first; None: all are.
            labels: (V,) of the classes, or what `config.problem_type` says, as in `classification_loss`; with them
                there is a loss.

        Returns:
            `ImageClassifierOutput`: `logits` (V, C), `loss`; hidden states and attentions are the frames'.

        Raises:
            ValueError: no classes are set, inputs of wrong shapes, a video without frames, labels of no class; on a
                CPU, in eval mode, NaN in the answer, with its cause.
        """
        if self.class_features is None:
            raise ValueError("class_names: no classes are set; call set_classes([...], processor)")
        check_videos(pixel_values_videos)
        mask = checked_mask(video_mask, pixel_values_videos)
        frames, outputs = self._encode_frames(pixel_values_videos, mask, **kwargs)
        logits = self._compare(self.class_features, frames, mask)[0].T
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


__all__ = ["CLIP4ClipForVideoClassification"]
