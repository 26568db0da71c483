"""transformers' ResNet as a part of models with attention."""

from transformers import ResNetModel


class AnyAttentionResNet(ResNetModel):
    """A ResNet, which has no attention and so takes any implementation of it that the whole model is loaded with."""

    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True


__all__ = ["AnyAttentionResNet"]
