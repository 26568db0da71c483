"""What CLIP-ResNet does otherwise than CLIP, as a backbone of classifiers and adapters."""

from ..dual_encoders.backbones import CLIPFamily


class CLIPResNetFamily(CLIPFamily):
    """`CLIPResNetModel`: CLIP with a ResNet for images, whose attention pooling is the projection."""

    model_type = "clipv-clip_resnet"
    has_class_token = False
    has_fixed_image_size = False
    vision_layers = patch_norm = visual_projection = None
    vision_classes = ()
    eval_when_frozen = ("vision_model",)

    @classmethod
    def _load(cls, name: str) -> type:
        if name == "TextConfig":
            return super()._load(name)
        from .configuration_clip_resnet import CLIPResNetConfig, CLIPResNetVisionConfig
        from .modeling_clip_resnet import CLIPResNetModel

        return {"Model": CLIPResNetModel, "Config": CLIPResNetConfig, "VisionConfig": CLIPResNetVisionConfig}[name]


FAMILY = CLIPResNetFamily

__all__ = ["FAMILY", "CLIPResNetFamily"]
