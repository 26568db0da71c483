"""Videos seen by a classifier of images: the mean of its frames' features."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..modeling.dual_encoders.backbones import CLIPFamily, unit_norm


def with_mean_of_frames(classifier: Any) -> Any:
    """Makes a [`CLIPClassifier`] read videos, and returns it: `pixel_values` may be (B, 3, T * S, S), T frames of the
    model's image size S below each other (`data.images.video_frames.stacked`). Image features are then the mean of
    the frames' unit vectors. Images (T = 1) are scored as before: up to their length, which no score depends on.

    Adapters work as on images: those of features and texts see the mean, prompts in the image encoder each frame. In
    this process only: files of the classifier stay those of a classifier of images.

    Raises:
        ValueError: a family whose images come as patches, or a classifier of another kind.
    """
    inner = classifier.get_base_model() if hasattr(classifier, "get_base_model") else classifier
    family = getattr(inner, "family", None)
    if family is None or family.masks_patches:
        raise ValueError(
            f"videos: {type(inner).__name__} on {getattr(family, 'model_type', 'another model')} cannot read them; "
            "want a CLIPClassifier on a model of images of one size"
        )
    if not getattr(family, "takes_frames", False):
        inner.family = mean_of_frames(family)
    return classifier


@functools.cache
def mean_of_frames(family: type[CLIPFamily]) -> type[CLIPFamily]:
    """The same family with images of T frames; see `with_mean_of_frames`."""

    def frames_of(model: torch.nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
        size = pixel_values.shape[-1]
        wanted = family.image_size(model.config)
        if family.has_fixed_image_size and size != wanted or pixel_values.shape[-2] % size:
            raise ValueError(
                f"pixel_values: {list(pixel_values.shape)}, expected frames of {wanted} x {wanted} below each other"
            )
        return pixel_values.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1)

    def mean(features: torch.Tensor, videos: int) -> torch.Tensor:
        return unit_norm(features).unflatten(0, (videos, -1)).mean(1)

    def image_features(model, pixel_values, **kwargs):
        output = family.image_features(model, frames_of(model, pixel_values), **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=mean(output.pooler_output, len(pixel_values)),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def pooled_image_features(cls, model, pixel_values, interpolate_pos_encoding=False, project=True):
        frames = frames_of(model, pixel_values)
        found = family.pooled_image_features(model, frames, interpolate_pos_encoding, project)
        return mean(found, len(pixel_values))

    changes = {
        "takes_frames": True,
        "has_fixed_image_size": False,  # looked at above, for each frame
        "image_features": staticmethod(image_features),
        "pooled_image_features": classmethod(pooled_image_features),
    }
    return type(f"{family.__name__}OfFrames", (family,), changes)


__all__ = ["mean_of_frames", "with_mean_of_frames"]
