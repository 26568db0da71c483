"""A dual encoder as functions to one space: texts, pictures, clips of videos and sounds, as far as it has them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModel

from ..data.images.heic import heic_is_readable
from ..evaluation.devices import choose_device
from ..evaluation.finite_answers import check_answers
from ..evaluation.image_encoder import image_pooling
from ..evaluation.saved_folders import check_model_folder, load_saved_processor
from ..modeling.clip_classifier.adapter_places import ensemble_prompts
from ..modeling.clip_classifier.processing_clip_classifier import CLIPClassifierProcessor
from ..modeling.dual_encoders.backbones import find_family, unit_norm
from ..modeling.dual_encoders.fingerprint import compare_backbone, features_key, fingerprint
from ..modeling.dual_encoders.prompts import encode_texts, format_prompts, resolve_templates


_OF_NAMES = {"processor_class", "transformers_version", "image_processor_type", "feature_extractor_type"}
_OF_NAMES |= {"video_processor_type", "workers", "return_metadata"}  # no number depends on them


class Encoder:
    """
    A frozen dual encoder. Made by `load_encoder`.

    Attributes:
        name (`str`): folder or Hub id.
        kinds (`tuple[str]`): of "image", "video", "audio", those that it encodes.
        width (`int`): D.
        has_clips (`bool`): it encodes a clip of a video as a whole (`get_video_features`), not only its frames.
    """

    def __init__(self, name: str, model: torch.nn.Module, processor: Any):
        self.name, self.model, self.processor = name, model, processor
        inner = getattr(model, "clip", None)  # a classifier, or a model of videos on a dual encoder of images
        self.dual = inner if inner is not None and hasattr(inner, "get_text_features") else model
        self.family = find_family(self.dual.config.model_type)
        if self.family is None and not hasattr(self.dual, "get_text_features"):
            raise ValueError(f"model: {name} is a {type(model).__name__}, which encodes no texts; want a dual encoder")
        self.video_processor = getattr(processor, "video_processor", None)
        self.feature_extractor = getattr(processor, "feature_extractor", None)
        self.has_clips = hasattr(model, "get_video_features") and self.video_processor is not None
        self._pool = None
        self.images = _image_processor(processor)
        has_images = self.family is not None or hasattr(self.dual, "get_image_features")
        if has_images and self.images is not None:
            self._pool = image_pooling(self.dual, self.family, "projected")
        has_audio = hasattr(self.dual, "get_audio_features") and self.feature_extractor is not None
        held = {"image": self._pool is not None, "video": self._pool is not None or self.has_clips, "audio": has_audio}
        self.kinds = tuple(kind for kind, there in held.items() if there)
        if not self.kinds:
            raise ValueError(f"model: {name} is a {type(model).__name__}, which encodes neither images nor sounds")
        self.key, self.fingerprint = features_key(model), fingerprint(model)
        self.settings = _settings(processor)
        heic_is_readable()  # after this, by Pillow

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def about(self) -> dict[str, Any]:
        """What an index says of its model: enough to recognise it."""
        return {
            "name": self.name,
            "type": type(self.model).__name__,
            "key": self.key,
            "fingerprint": self.fingerprint,
            "processor": self.settings,
        }

    def why_another(self, made_with: Mapping[str, Any]) -> str | None:
        """What is different in the model that `about` described; None if it is this one.

        Weights are compared as a whole, adapters included. Settings that only one of two versions of transformers
        writes are no difference.
        """
        if made_with["key"] != self.key:
            weights = [key.split(":")[1] for key in (made_with["key"], self.key)]
            if weights[0] != weights[1] or not compare_backbone(self.model, made_with["fingerprint"]).same:
                return "its weights or its configuration"
        for part, before in made_with["processor"].items():
            now = self.settings.get(part, {})
            different = sorted(name for name in before.keys() & now.keys() if before[name] != now[name])
            if different:
                return f"{part}: {', '.join(different)}"
        return None

    # ---- encoding; results are (B, D) float32 of unit norm on the CPU

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], templates: str | Sequence[str] | None = None) -> torch.Tensor:
        """Queries as they are, or the mean over templates such as "a photo of a {}." as for class names.

        Raises:
            ValueError: blank or broken text, a template without {}.
        """
        templates = resolve_templates("{}" if templates is None else templates)
        prompts = format_prompts(texts, templates) if templates != ["{}"] else list(texts)
        options = {"what": "query", "padding": True, "truncation": True, "return_tensors": "pt"}
        clean = bool(getattr(self.processor, "clean_text", False))
        tokens = encode_texts(self.processor.tokenizer, prompts, clean=clean, **options).to(self.device)
        if self.family is not None:
            features = self.family.encode_text(self.dual, tokens["input_ids"])
        else:
            features = self.dual.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
        features = ensemble_prompts(features.float(), [len(templates)] * len(texts))
        return self._finished(features, "text features")

    @torch.inference_mode()
    def encode_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Of images or frames (B, 3, H, W) that the image processor made."""
        pixels = pixel_values.to(self.device, self.model.dtype)
        return self._finished(self._pool(pixels), "image features", pixel_values=pixels)

    @torch.inference_mode()
    def encode_clips(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Of what the video processor made of B clips."""
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        return self._finished(self.model.get_video_features(**inputs).pooler_output, "video features")

    @torch.inference_mode()
    def encode_audio(self, input_features: torch.Tensor) -> torch.Tensor:
        """Of what the feature extractor made of B sounds."""
        inputs = input_features.to(self.device, self.model.dtype)
        return self._finished(self.dual.get_audio_features(inputs).pooler_output, "audio features")

    def _finished(self, features: torch.Tensor, what: str, **inputs: Any) -> torch.Tensor:
        check_answers(features, self.model, what, **inputs)
        return unit_norm(features.float()).cpu()


def load_encoder(
    source: str | os.PathLike, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Encoder:
    """The dual encoder in a folder or on the Hub, in eval mode.

    Args:
        source: what `AutoModel` loads: a dual encoder of images and texts, also with sounds or videos.
        device: default: a GPU if there is one.
        dtype: of the model. It is recognised by its weights in float32, whatever this is.

    Raises:
        ValueError: a model without texts, or whose checkpoint lacks weights. OSError: no such folder or repository.
    """
    check_model_folder(source)
    device = choose_device(device)
    try:
        model, info = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except OSError as error:  # transformers' own, which need not say what it is about
        raise OSError(f"model: {source} cannot be loaded: {error}") from error
    if info["missing_keys"]:
        raise ValueError(
            f"model: {source} is not a whole {type(model).__name__} checkpoint, {len(info['missing_keys'])} weights "
            f"are missing: {sorted(info['missing_keys'])[:5]}"
        )
    processor = load_saved_processor(source, of=("images", "videos", "sounds"))
    if not isinstance(processor, CLIPClassifierProcessor) and getattr(processor, "image_processor", None) is not None:
        processor = CLIPClassifierProcessor.from_clip(processor)
    name = os.path.abspath(source) if os.path.isdir(source) else str(source)
    encoder = Encoder(name, model.eval().requires_grad_(False), processor)
    encoder.width = encoder.encode_texts(["width"]).shape[1]
    model.to(device, dtype)
    return encoder


def _image_processor(processor: Any) -> Any:
    """For pictures and frames; of a processor of videos, one that makes the same of each frame."""
    if getattr(processor, "image_processor", None) is not None:
        return processor.image_processor
    if getattr(processor, "video_processor", None) is None:
        return None
    frames = SimpleNamespace(image_processor=processor.video_processor, tokenizer=processor.tokenizer)
    return CLIPClassifierProcessor.from_clip(frames).image_processor


def _settings(processor: Any) -> dict[str, dict[str, Any]]:
    """What each part of a processor does to pixels, samples and texts, as JSON holds it."""
    found = {}
    for part in ("image_processor", "feature_extractor", "video_processor"):
        if getattr(processor, part, None) is not None:
            values = json.loads(getattr(processor, part).to_json_string())
            found[part] = {name: value for name, value in values.items() if name not in _OF_NAMES}
    return found


__all__ = ["Encoder", "load_encoder"]
