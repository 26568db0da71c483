"""Configuration of CLIPasso: a dual encoder's configuration, strokes, losses, and where strokes begin."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, PreTrainedConfig

from ..dual_encoders.backbones import family_of
from ..loading_and_saving.configuration_checks import checked
from ..synthesis.guided_model import GuidedFields
from ..synthesis.stroke_samples import MOST_STROKES
from ..synthesis.synthesis_loop import LARGEST_STEPS


LOSS_TYPES = ("L2", "L1", "Cos")
STARTS = ("salient", "edges")
_RESNET_WEIGHTS = [0.0, 0.0, 1.0, 1.0, 0.0]  # stem, then four stages: the authors'


@checked
@strict
class CLIPassoConfig(GuidedFields, CLIPConfig):
    r"""
    A `CLIPConfig` (every field sits where CLIP has it, so a plain CLIP checkpoint loads) and how it sketches. The
    defaults are the paper's, which used a CLIP-ResNet 101. Lengths and learning rates are in pixels of a canvas of
    224; on another one they are scaled.

    Args:
        backbone_model_type (`str`, defaults to `"clip"`):
            The family of the dual encoder that guides, one of `modeling/dual_encoders/backbones.py`. Read from the
            checkpoint that is loaded.
        num_strokes (`int`, defaults to 16):
            Strokes of a sketch: its level of abstraction.
        num_segments (`int`, defaults to 1):
            Cubics of each stroke.
        stroke_radius (`float`, defaults to 1.5):
            Half of a line's width, which does not change.
        canvas_size (`int`, *optional*):
            Pixels of a side of the canvas that is optimised. Default: what the guide takes.
        num_steps (`int`, defaults to 2000), points_lr (`float`, defaults to 1.0):
            Steps of Adam at most, and its constant learning rate.
        num_augmentations (`int`, defaults to 4):
            Views of sketch and photograph in each step, beside the plain pair.
        layer_weights (`list[float]`, *optional*):
            Of the geometric loss: for each layer of the image encoder, the first one first. Default: of a ResNet (stem
            and stages) 0, 0, 1, 1, 0, the paper's; of a transformer (its blocks) 1 for those at a third and at two
            thirds of the depth, 0 for the others.
        loss_type (`str`, defaults to `"L2"`):
            How layers are compared: `"L2"`, `"L1"` or `"Cos"`.
        feature_weight (`float`, defaults to 0.1):
            Of the semantic loss, 1 minus the cosine of the embeddings.
        start (`str`, defaults to `"salient"`):
            Where strokes begin: `"salient"`, short ones at points that are salient, as published; `"edges"`, along the
            longest edges of the picture, and, where it has fewer than strokes, the others at salient points.
        softmax_temperature (`float`, defaults to 0.3), use_edges (`bool`, defaults to `True`):
            Salient points are chosen where the picture is salient, at its edges.
        evaluate_every (`int`, defaults to 10), min_delta (`float`, defaults to 1e-5):
            Steps between evaluations; a sketch is done when two differ by no more.
        optimize_opacity (`bool`, defaults to `False`), optimize_colors (`bool`, defaults to `False`):
            Strokes may fade, and have colours. The paper's are black. Colours begin as the picture's where the stroke
            begins.
        colors_lr (`float`, defaults to 0.01): for both.
        num_stages (`int`, defaults to 1):
            Strokes are added in as many stages of equal length; those that are there are optimised on. At most as many
            as strokes. With several, all steps are made, whatever `min_delta` is.
        perceptual_weight (`float`, defaults to 1.0):
            Of the distance that `generate` takes as `perceptual`, such as LPIPS.
        text_weight (`float`, defaults to 0.1):
            Of 1 minus the cosine between the sketch's embedding and that of its text, if `generate` is given `texts`.
        image_mean, image_std (`list[float]`, *optional*):
            To normalise with. Default: CLIP's.
        more_guides (`list[dict]`, *optional*), guide_weights (`list[float]`, *optional*):
            Configurations of the dual encoders that guide beside the first, of which embeddings are compared; and the
            weights of the guides' losses in their mean, of the first one first. Default: equal.
        views_at_once (`int`, defaults to 64):
            Views that go through the guide together; bounds memory.

    Example:

    ```python
    >>> from hf_clip_variants import CLIPassoConfig

    >>> config = CLIPassoConfig(num_strokes=8)
    >>> config.num_strokes, config.layer_weights
    (8, [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    ```
    """

    model_type = "clipv-clipasso"
    keys_to_ignore_at_inference = ["images", "terms", "hidden_states", "attentions"]

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    backbone_model_type: str = "clip"
    num_strokes: int = 16
    num_segments: int = 1
    stroke_radius: float | int = 1.5
    canvas_size: int | None = None
    num_steps: int = 2000
    points_lr: float | int = 1.0
    num_augmentations: int = 4
    layer_weights: list[float | int] | None = None
    loss_type: str = "L2"
    feature_weight: float | int = 0.1
    start: str = "salient"
    softmax_temperature: float | int = 0.3
    use_edges: bool = True
    evaluate_every: int = 10
    min_delta: float | int = 1e-5
    optimize_opacity: bool = False
    optimize_colors: bool = False
    colors_lr: float | int = 0.01
    num_stages: int = 1
    perceptual_weight: float | int = 1.0
    text_weight: float | int = 0.1
    image_mean: list[float | int] | None = None
    image_std: list[float | int] | None = None
    more_guides: list[dict] | None = None
    guide_weights: list[float | int] | None = None
    views_at_once: int = 64

    def __post_init__(self, **kwargs):
        self.make_encoder_configs(kwargs)
        if self.layer_weights is None:
            self.layer_weights = self._default_weights()
        super().__post_init__(**kwargs)
        self.logit_scale_init_value = float(self.logit_scale_init_value)

    @property
    def has_blocks(self) -> bool:
        """Whether the image encoder is a transformer; else it is a ResNet with a stem and four stages."""
        return family_of(self.backbone_model_type).vision_layers is not None

    @property
    def num_layers(self) -> int:
        """Layers that the geometric loss may look at."""
        return self.vision_config.num_hidden_layers if self.has_blocks else len(_RESNET_WEIGHTS)

    def _default_weights(self) -> list[float]:
        if not self.has_blocks:
            return list(_RESNET_WEIGHTS)
        count = self.num_layers
        chosen = {(count - 1) // 3, 2 * (count - 1) // 3}
        return [float(layer in chosen) for layer in range(count)]

    def validate_choices(self):
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(f"loss_type: {self.loss_type!r}, expected one of {', '.join(LOSS_TYPES)}")
        if self.start not in STARTS:
            raise ValueError(f"start: {self.start!r}, expected one of {', '.join(STARTS)}")
        weights = self.layer_weights
        if weights is not None and hasattr(self.vision_config, "num_channels"):
            if len(weights) != self.num_layers or min(weights) < 0:
                raise ValueError(
                    f"layer_weights: {str(weights)[:60]}, expected {self.num_layers} numbers >= 0, one for each "
                    "layer of vision_config (its num_hidden_layers or depths)"
                )

    def validate_numbers(self):
        self.check_ranges(
            (
                ("num_strokes", 1, MOST_STROKES),
                ("num_segments", 1, 16),
                ("stroke_radius", 1e-3, 1000),
                ("num_steps", 0, LARGEST_STEPS),
                ("points_lr", 0, 1000),
                ("num_augmentations", 0, 1024),
                ("feature_weight", 0, 1e6),
                ("softmax_temperature", 1e-3, 1e3),
                ("evaluate_every", 1, LARGEST_STEPS),
                ("min_delta", 0, 1e3),
                ("colors_lr", 0, 10),
                ("num_stages", 1, MOST_STROKES),
                ("perceptual_weight", 0, 1e6),
                ("text_weight", 0, 1e6),
            )
        )


__all__ = ["LOSS_TYPES", "STARTS", "CLIPassoConfig"]
