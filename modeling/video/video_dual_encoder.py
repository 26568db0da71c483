"""What video models share that are built on a dual encoder of images: its parts, its configuration, its features."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from ..dual_encoders.backbones import family_of, find_family
from ..dual_encoders.forward_checks import check_token_ids
from ..loading_and_saving.configuration_checks import check_encoder_types, without_kernels
from .video_inputs import check_videos, checked_mask


# B texts, L tokens, V videos, T frames, D joint width


class VideoDualEncoderFields:
    """Mixin before a `CLIPConfig` with a field `backbone_model_type`: encoders of any family, checked."""

    nested_types: dict = {}  # further nested configurations -> their `model_type`s
    read_first: tuple[str, ...] = ()  # fields that others follow from

    def make_encoder_configs(self, kwargs: dict) -> None:
        """`text_config` and `vision_config` as objects of the family's classes, and `projection_dim`."""
        family = family_of(self.backbone_model_type)
        for part in ("text_config", "vision_config"):
            values = getattr(self, part)
            if not isinstance(values, PreTrainedConfig):
                values = dict(values or {}) | dict(
                    kwargs.pop(f"{part}_dict", None) or {}
                )  # the latter: CLIP's of 2022
                values = {k: v for k, v in values.items() if k != "model_type"}
                setattr(self, part, family.sub_config_class(part)(**values))
        self.projection_dim = family.joint_width(self)

    @classmethod
    def part_classes(cls, values) -> dict[str, type]:
        """The encoders' configurations, for `check_values`; none for a family that is unknown. A head's is not among
        them: its defaults follow from the encoders'."""
        family = find_family(values.get("backbone_model_type", "clip"))
        return {part: family.sub_config_class(part) for part in ("text_config", "vision_config")} if family else {}

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file does not choose what code runs: attention kernels come from the caller only,
        encoders are the family's."""
        backbone = config_dict.get("backbone_model_type", "clip")
        family = family_of(backbone)
        parts = {
            part: (family.sub_config_class(part).model_type, backbone) for part in ("text_config", "vision_config")
        }
        check_encoder_types(config_dict, parts | cls.nested_types)
        values = without_kernels(config_dict)
        # Others follow from these: they are set before the configuration is made, not after it.
        for name in cls.read_first:
            if name in kwargs:
                values[name] = kwargs.pop(name)
        return super().from_dict(values, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; a plain dual encoder's configuration is one of ours with a new head."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            family_of(model_type)
            config_dict = config_dict | {"model_type": cls.model_type, "backbone_model_type": model_type}
        return config_dict, kwargs

    @classmethod
    def values_from(cls, config: PreTrainedConfig) -> dict:
        """The fields of a dual encoder's configuration, as fields of one of ours."""
        left_out = ("model_type", "architectures", "dtype")
        values = {name: value for name, value in config.to_dict().items() if name not in left_out}
        return values | {"backbone_model_type": config.model_type}


@dataclass
class VideoTextOutput(ModelOutput):
    """
    Args:
        loss: (), the model's loss, where it was asked for.
        logits_per_video: (V, B), scaled cosine similarities; of CLIP4Clip's tightTransf, the scores themselves.
        logits_per_text: (B, V), its transpose.
        text_embeds: (B, D), of unit norm; of tightTransf, the features.
        video_embeds: (V, D), of unit norm; None for tightTransf.
        frame_features: (V, T, D), of each frame before the head, not normalised; zeros for frames that are not there.
            None where a video is encoded as one sequence.
        text_model_output, vision_model_output: outputs of the two encoders; rows of the latter are the frames that are
            there, one video after the other, unless the model says otherwise.
    """

    loss: torch.FloatTensor | None = None
    logits_per_video: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    video_embeds: torch.FloatTensor | None = None
    frame_features: torch.FloatTensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


class VideoDualEncoder:
    """Mixin before a `PreTrainedModel` that has a dual encoder `clip` and its `family`."""

    def get_input_embeddings(self) -> nn.Module:
        return self.family.token_embedding_of(self.clip)

    def set_input_embeddings(self, value: nn.Module):
        parent, _, name = self.family.token_embedding.rpartition(".")
        setattr(self.clip.get_submodule(parent), name, value)

    @property
    def logit_scale(self) -> nn.Parameter:
        """CLIP's, for callbacks that limit it."""
        return self.clip.logit_scale

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """As in `CLIPModel`: `pooler_output` (B, D), not normalised."""
        return self._encode_texts(input_ids, attention_mask, **kwargs)

    def _encode_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs):
        text = self.config.text_config
        check_token_ids(input_ids, text.vocab_size, longest=getattr(text, "max_position_embeddings", None))
        kwargs["return_dict"] = True
        return self.clip.get_text_features(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def get_frame_features(
        self, pixel_values_videos: torch.FloatTensor, video_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(V, T, 3, H, W) -> (V, T, D), each frame by itself, not normalised; zeros for frames that are not there,
        which are not encoded.
        """
        check_videos(pixel_values_videos)
        return self._encode_frames(pixel_values_videos, checked_mask(video_mask, pixel_values_videos))[0]

    def _encode_frames(self, pixel_values_videos: torch.Tensor, mask: torch.Tensor, **kwargs):
        """(V, T, 3, H, W), (V, T) -> (V, T, D), and the image encoder's output for the frames that are there."""
        all_there = torch.compiler.is_compiling() or bool(mask.all())
        pixels = pixel_values_videos.flatten(0, 1) if all_there else pixel_values_videos[mask.bool()]
        kwargs["return_dict"] = True
        with self._frames_named():
            outputs = self.family.image_features(self.clip, pixel_values=pixels.to(self.dtype), **kwargs)
        features = outputs.pooler_output
        if all_there:
            return features.unflatten(0, mask.shape) * mask[..., None].to(features.dtype), outputs
        frames = features.new_zeros(*mask.shape, features.shape[-1])
        return frames.masked_scatter(mask.bool()[..., None], features), outputs

    @contextmanager
    def _frames_named(self) -> Iterator[None]:
        """The image encoder's own ValueError of frames of another size, with the argument's name."""
        try:
            yield
        except ValueError as error:
            size = f"vision_config.image_size is {getattr(self.config.vision_config, 'image_size', 'unknown')}"
            raise ValueError(f"pixel_values_videos: {error} {size}") from error


__all__ = ["VideoDualEncoder", "VideoDualEncoderFields", "VideoTextOutput"]
