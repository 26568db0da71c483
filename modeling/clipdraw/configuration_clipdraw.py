"""Configuration of CLIPDraw: a dual encoder's configuration, strokes, and how they are optimised."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, PreTrainedConfig

from ..loading_and_saving.configuration_checks import checked
from ..synthesis.guided_model import GuidedFields
from ..synthesis.stroke_samples import MOST_STROKES
from ..synthesis.synthesis_loop import LARGEST_STEPS


@checked
@strict
class CLIPDrawConfig(GuidedFields, CLIPConfig):
    r"""
    A `CLIPConfig` (every field sits where CLIP has it, so a plain CLIP checkpoint loads) and how it draws. The
    defaults are the paper's. Lengths and their learning rates are in pixels of a canvas of 224; on another one they
    are scaled.

    Args:
        backbone_model_type (`str`, defaults to `"clip"`):
            The family of the dual encoder that guides, one of `modeling/dual_encoders/backbones.py`. Read from the
            checkpoint that is loaded.
        num_strokes (`int`, defaults to 256), max_segments (`int`, defaults to 3):
            Strokes of a drawing, each a chain of 1..max_segments cubics.
        canvas_size (`int`, *optional*):
            Pixels of a side of the canvas that is optimised. Default: what the guide takes. The result is a vector
            drawing of any size.
        num_steps (`int`, defaults to 1000):
            Steps of a drawing.
        num_augmentations (`int`, defaults to 4):
            Views of the drawing in each step, each in another perspective and crop. The loss is their sum.
        points_lr, radii_lr, colors_lr (1.0, 0.1, 0.01):
            Of Adam. That of the points falls to 0.4 of it after half of the steps, and to 0.1 after three quarters.
        min_radius, max_radius (1.0, 50.0):
            Half of the width of a line, which begins as the first.
        negative_weight (`float`, defaults to 0.3):
            Of negative prompts.
        normalize (`bool`, defaults to `True`):
            Pictures are normalised as the guide was trained. The paper's own pictures were made without.
        image_mean, image_std (`list[float]`, *optional*):
            To normalise with. Default: CLIP's.
        views_at_once (`int`, defaults to 64):
            Views that go through the guide together; bounds memory.
        more_guides (`list[dict]`, *optional*), guide_weights (`list[float]`, *optional*):
            Configurations of further dual encoders that guide together with the first (`add_guide` makes them), and
            the weights of all in the mean of their losses. Default of the weights: equal.

    Example:

    ```python
    >>> from hf_clip_variants import CLIPDrawConfig

    >>> config = CLIPDrawConfig(num_strokes=16)
    >>> config.num_strokes, config.canvas, config.unit
    (16, 224, 1.0)
    ```
    """

    model_type = "clipv-clipdraw"
    keys_to_ignore_at_inference = ["images", "image_embeds", "text_embeds", "text_model_output", "vision_model_output"]

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    backbone_model_type: str = "clip"
    num_strokes: int = 256
    max_segments: int = 3
    canvas_size: int | None = None
    num_steps: int = 1000
    num_augmentations: int = 4
    points_lr: float | int = 1.0
    radii_lr: float | int = 0.1
    colors_lr: float | int = 0.01
    min_radius: float | int = 1.0
    max_radius: float | int = 50.0
    negative_weight: float | int = 0.3
    normalize: bool = True
    image_mean: list[float | int] | None = None
    image_std: list[float | int] | None = None
    views_at_once: int = 64
    more_guides: list[dict] | None = None
    guide_weights: list[float | int] | None = None

    def __post_init__(self, **kwargs):
        self.make_encoder_configs(kwargs)
        super().__post_init__(**kwargs)
        self.logit_scale_init_value = float(self.logit_scale_init_value)

    def validate_numbers(self):
        self.check_ranges(
            (
                ("num_strokes", 1, MOST_STROKES),
                ("max_segments", 1, 16),
                ("num_steps", 0, LARGEST_STEPS),
                ("num_augmentations", 1, 1024),
                ("points_lr", 0, 1000),
                ("radii_lr", 0, 1000),
                ("colors_lr", 0, 10),
                ("min_radius", 0, 1000),
                ("max_radius", 0, 1000),
                ("negative_weight", 0, 1000),
            )
        )
        if self.min_radius > self.max_radius:
            raise ValueError(f"min_radius: {self.min_radius}, expected at most max_radius ({self.max_radius})")


__all__ = ["CLIPDrawConfig"]
