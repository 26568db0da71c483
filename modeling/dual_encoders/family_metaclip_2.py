"""Where MetaCLIP 2 differs from CLIP."""

from .backbones import CLIPFamily


class MetaCLIP2Family(CLIPFamily):
    """`MetaClip2Model`: CLIP with a multilingual vocabulary; the first EOS is pooled whatever its id."""

    model_type = "metaclip_2"
    module = "transformers.models.metaclip_2"
    prefix = "MetaClip2"

    @staticmethod
    def padding_id(config) -> int:
        return config.text_config.eos_token_id


FAMILY = MetaCLIP2Family

__all__ = ["FAMILY", "MetaCLIP2Family"]
