"""Processor of AudioCLIP: audio, images and texts to model inputs."""

from collections.abc import Sequence

from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import ProcessingKwargs

from ..clip_classifier.processing_clip_classifier import CLIPClassifierProcessor
from .feature_extraction_audioclip import AudioCLIPFeatureExtractor


class AudioCLIPProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True, "truncation": False}}


class AudioCLIPProcessor(CLIPClassifierProcessor):
    r"""
    An image processor, a tokenizer and a feature extractor in one. It prepares images and texts as
    `CLIPClassifierProcessor`, and audio as [`AudioCLIPFeatureExtractor`].

    A text may also be a list of class names, the classes of one sample; they are joined by ", ". Underscores become
    spaces, as in the authors' data sets. A text that is longer than the model's context is an error, as in the
    official code; `truncation=True` cuts it.

    Args:
        image_processor: CLIP's, of this package or transformers'.
        tokenizer: CLIP's.
        feature_extractor ([`AudioCLIPFeatureExtractor`], *optional*): defaults to that of the published model.
        clean_text (`bool`, defaults to `False`): see `CLIPClassifierProcessor`.

    `processor(images=None, text=None, audio=None, sampling_rate=None, audio_kwargs=None, **kwargs)` returns
    `pixel_values` (B, 3, H, W), `input_ids` and `attention_mask` (N, L), `input_features` (B, channels, samples).
    `padding`, `truncation` and `max_length` apply to texts only; arguments of the feature extractor go into
    `audio_kwargs`.

    Raises:
        ValueError: nothing is given; or an error of a part, which names the item, such as `images[7]`, `text[7]` or
            `audio[7]`.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_clip_variants import AudioCLIPProcessor, CLIPClassifierImageProcessor
    >>> from hf_clip_variants.modeling.clip.text_clip import official_tokenizer

    >>> processor = AudioCLIPProcessor(CLIPClassifierImageProcessor(), official_tokenizer())
    >>> class_names = [["dog_bark", "siren"], ["street_music"]]
    >>> inputs = processor(text=class_names, audio=np.zeros(44100), sampling_rate=44100, return_tensors="pt")
    >>> {name: tuple(value.shape) for name, value in inputs.items()}
    {'input_ids': (2, 6), 'attention_mask': (2, 6), 'input_features': (1, 1, 220500)}
    ```
    """

    valid_processor_kwargs = AudioCLIPProcessorKwargs

    def __init__(
        self, image_processor=None, tokenizer=None, feature_extractor=None, clean_text: bool = False, **kwargs
    ):
        feature_extractor = AudioCLIPFeatureExtractor() if feature_extractor is None else feature_extractor
        super().__init__(image_processor, tokenizer, clean_text, feature_extractor=feature_extractor, **kwargs)

    def __call__(
        self,
        images=None,
        text: str | Sequence[str | Sequence[str]] | None = None,
        audio=None,
        **kwargs,
    ) -> BatchFeature:
        if images is None and text is None and audio is None:
            raise ValueError("images, text, audio: got none of them, expected at least one")
        inputs, audio_kwargs = {}, {"sampling_rate": kwargs.pop("sampling_rate", None)}
        audio_kwargs |= {"return_tensors": kwargs.get("return_tensors")} | dict(kwargs.pop("audio_kwargs", None) or {})
        if images is not None or text is not None:
            sentences = None if text is None else _sentences(text)
            inputs |= super().__call__(images=images, text=sentences, **kwargs)
            if text is not None:
                self._check_lengths(sentences, inputs["input_ids"])
        if audio is not None:
            inputs |= self.feature_extractor(audio, **audio_kwargs)
        return BatchFeature(inputs)

    def _check_lengths(self, sentences: str | list[str], input_ids):
        """ValueError that names the first text with more tokens than the model's context."""
        limit = self.tokenizer.model_max_length
        rows = [input_ids] if isinstance(sentences, str) and isinstance(input_ids[0], int) else input_ids
        if max(map(len, rows), default=0) <= limit:
            return
        for index, sentence in enumerate([sentences] if isinstance(sentences, str) else sentences):
            length = len(self.tokenizer(sentence, split_special_tokens=True).input_ids)
            if length > limit:
                raise ValueError(
                    f"text[{index}]: {length} tokens, expected at most {limit}: {sentence[:60]!r}; shorten it or pass "
                    "truncation=True"
                )


def _sentences(text: str | Sequence[str | Sequence[str]]) -> str | list[str]:
    """Class names with spaces instead of underscores; those of one sample are joined by ", "."""
    if isinstance(text, str):
        return text.replace("_", " ")
    joined = []
    for index, one in enumerate(text):
        names = [one] if isinstance(one, str) else one
        if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"text[{index}]: {one!r}, expected a string, or the class names of one sample as a list of strings"
            )
        joined.append(", ".join(name.replace("_", " ") for name in names))
    return joined


__all__ = ["AudioCLIPProcessor", "AudioCLIPProcessorKwargs"]
