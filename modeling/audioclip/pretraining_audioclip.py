"""How AudioCLIP is trained: Guzhov et al. 2021, section 4; on a CLIP-ResNet, from scratch or beside a trained one."""

from collections.abc import Mapping
from typing import Any

from ..dual_encoders.pretraining import Pretraining, clip_image_processor, load_with_auto_classes


# The audio encoder beside small encoders of images and texts; the configuration's default is the published one.
_SMALL_AUDIO = {
    "hidden_size": 512,
    "depths": [1, 1, 1, 1],
    "groups": 4,
    "width_per_group": 16,
    "n_fft": 1024,
    "hop_length": 561,
    "win_length": 1024,
}


def _new_model(fields: dict[str, Any], image_encoder: str, scale: str) -> Any:
    from .configuration_audioclip import AudioCLIPConfig
    from .modeling_audioclip import AudioCLIPModel

    audio = {} if scale == "published" else dict(_SMALL_AUDIO)
    audio["projection_dim"] = fields["projection_dim"]
    return AudioCLIPModel(AudioCLIPConfig(**{"audio_config": audio} | fields))


def _with_audio(image_processor: Any, tokenizer: Any) -> Any:
    from .feature_extraction_audioclip import AudioCLIPFeatureExtractor
    from .processing_audioclip import AudioCLIPProcessor

    return AudioCLIPProcessor(image_processor, tokenizer, AudioCLIPFeatureExtractor())


def _new_processor(size: int, tokenizer: Any) -> Any:
    return _with_audio(clip_image_processor(size), tokenizer)


def _load(source: str, fields: Mapping[str, Any]) -> tuple[Any, Any]:
    """An AudioCLIP, or a CLIP-ResNet, which gets a new audio encoder."""
    import torch
    from transformers import AutoConfig, AutoProcessor

    from ..clip_resnet.configuration_clip_resnet import CLIPResNetConfig
    from .modeling_audioclip import AudioCLIPModel

    if AutoConfig.from_pretrained(source).model_type != CLIPResNetConfig.model_type:
        return load_with_auto_classes(source, fields)
    model = AudioCLIPModel.from_pretrained(source, dtype=torch.float32, **fields)
    processor = AutoProcessor.from_pretrained(source)
    return model, _with_audio(processor.image_processor, processor.tokenizer)


AUDIOCLIP = Pretraining(
    name="audioclip",
    image_encoders=("resnet",),
    new_model=_new_model,
    new_processor=_new_processor,
    load=_load,
    modalities=("image", "text", "audio"),
    learning_rate=1e-4,
    small_learning_rate=1e-4,
    weight_decay=5e-4,
    max_grad_norm=0.0,  # the audio filters' gradients have a norm of their own, which would stop all others
    has_batch_norm=True,
)


__all__ = ["AUDIOCLIP"]
