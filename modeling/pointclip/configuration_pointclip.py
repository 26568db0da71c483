"""Configuration of PointCLIP: a dual encoder's configuration, how clouds become pictures, and view weights."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, PreTrainedConfig

from ..dual_encoders.configuration_over_backbone import OverBackbone
from ..loading_and_saving.configuration_checks import checked
from .projection_pointclip import GridSettings
from .views_pointclip import VIEW_SETS, ViewSet


PROJECTIONS = ("realistic", "sparse")
# Projection and views -> pixels of a side of the picture, and the camera's distance.
_SPARSE = {"sparse_6": (128, 1.6), "sparse_10": (224, 1.4)}
_LARGEST_SIDE, _LARGEST_DEPTH = 2048, 256


@checked
@strict
class PointCLIPConfig(OverBackbone, CLIPConfig):
    r"""
    A `CLIPConfig` (every field sits where CLIP has it, so a plain CLIP checkpoint loads) and how clouds of points
    become pictures. The defaults are those of PointCLIP V2's classification, with uniform view weights.

    Args:
        backbone_model_type (`str`, defaults to `"clip"`):
            The family of the dual encoder, one of `modeling/dual_encoders/backbones.py`. Read from the checkpoint that
            is loaded.
        projection (`str`, defaults to `"realistic"`):
            `"realistic"`: PointCLIP V2's, a surface on white. `"sparse"`: PointCLIP's, single points in perspective on
            black, whose pixels are depths of about 0.6 to 2.6.
        views (`str`, *optional*):
            A set of `VIEW_SETS`: `"sparse_6"` (PointCLIP zero-shot), `"sparse_10"` (few-shot), `"realistic_10"`. By
            default sparse_6 for the sparse projection, realistic_10 for the realistic one.
        view_angles (`list`, *optional*):
            Instead: three angles in units of pi for each view, rotations about x, y and z.
        view_weights (`list[float]`, *optional*):
            One number a view. Default: all 1. `SEARCHED_ON_TEST_LABELS` has the authors', which were chosen on the
            labels of test sets.
        resolution (`int`, *optional*):
            Pixels of a picture before it is resized to what the image encoder takes. Default: 112 for the realistic
            projection, 128 for sparse_6 and 224 for other sparse views.
        camera_distance (`float`, *optional*):
            Of the sparse projection; the clouds are in the unit sphere. Default: 1.6 for sparse_6, else 1.4.
        grid_depth, object_ratio, depth_bias (8, 0.8, 0.2):
            Of the realistic projection: cells in depth, the part of the picture that the cloud takes, and how far it
            stays away from the depth of the background.
        pool_size, pool_padding, smoothing_size, smoothing_sigma (7, 2, 3, 3.0):
            Of the realistic projection: how far points are spread, and the Gaussian after it, in cells.
        image_mean, image_std (`list[float]`, *optional*):
            To normalise the pictures with. Default: they are not normalised, as officially.
        logit_scale_value (`float`, *optional*):
            Instead of the dual encoder's own scale: 100 in PointCLIP V2's code, which is what OpenAI's models have.
        label_smoothing (`float`, defaults to 0.2):
            Of the loss: the label gets so much less than 1, which the other classes share. 0: cross-entropy.
        views_at_once (`int`, defaults to 320):
            Pictures that go through the image encoder together; bounds memory. More clouds are encoded in parts.
        num_class_features (`int`, defaults to 0):
            Classes whose texts are stored in the model; written by `set_classes`.

    Example:

    ```python
    >>> from hf_clip_variants import PointCLIPConfig

    >>> config = PointCLIPConfig(projection="sparse")
    >>> config.views, config.resolution, config.camera_distance, config.num_views
    ('sparse_6', 128, 1.6, 6)
    ```
    """

    model_type = "clipv-pointclip"
    keys_to_ignore_at_inference = ["point_embeds", "text_embeds", "view_features"]

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    backbone_model_type: str = "clip"
    projection: str = "realistic"
    views: str | None = None
    view_angles: list[list[float | int]] | None = None
    view_weights: list[float | int] | None = None
    resolution: int | None = None
    camera_distance: float | int | None = None
    grid_depth: int = 8
    object_ratio: float | int = 0.8
    depth_bias: float | int = 0.2
    pool_size: int = 7
    pool_padding: int = 2
    smoothing_size: int = 3
    smoothing_sigma: float | int = 3.0
    image_mean: list[float | int] | None = None
    image_std: list[float | int] | None = None
    logit_scale_value: float | int | None = None
    label_smoothing: float | int = 0.2
    views_at_once: int = 320
    num_class_features: int = 0

    def __post_init__(self, **kwargs):
        self.make_encoder_configs(kwargs)
        if self.views is None:
            self.views = "sparse_6" if self.projection == "sparse" else "realistic_10"
        resolution, distance = _SPARSE.get(self.views, _SPARSE["sparse_10"])
        if self.resolution is None:
            self.resolution = resolution if self.projection == "sparse" else 112
        if self.camera_distance is None:
            self.camera_distance = distance
        super().__post_init__(**kwargs)
        self.logit_scale_init_value = float(self.logit_scale_init_value)

    @property
    def view_set(self) -> ViewSet:
        """Where the clouds are looked at from."""
        if self.view_angles is not None:
            return ViewSet((tuple(tuple(map(float, angles)) for angles in self.view_angles),))
        return VIEW_SETS[self.views]

    @property
    def num_views(self) -> int:
        return len(self.view_set)

    @property
    def grid(self) -> GridSettings:
        """Settings of the realistic projection."""
        return GridSettings(
            resolution=self.resolution,
            depth=self.grid_depth,
            object_ratio=self.object_ratio,
            depth_bias=self.depth_bias,
            pool=(1, self.pool_size),
            pool_padding=(0, self.pool_padding),
            kernel=(1, self.smoothing_size),
            sigma=(1.0, self.smoothing_sigma),
        )

    @property
    def pictures(self) -> str:
        """In words, what pictures of a cloud depend on: features of other pictures mean something else."""
        views = self.views if self.view_angles is None else f"view_angles {self.view_angles}"
        if self.projection == "sparse":
            said = f"sparse, {views}, {self.resolution} pixels from {self.camera_distance:g}"
        else:
            grid = self.grid
            said = f"realistic, {views}, {grid.resolution} x {grid.depth} cells, {grid.object_ratio:g} of them, bias "
            said += f"{grid.depth_bias:g}, pool {grid.pool[1]} - {grid.pool_padding[1]}, Gaussian {grid.kernel[1]} of "
            said += f"{grid.sigma[1]:g}"
        return said if self.image_mean is None else f"{said}, mean {self.image_mean}, std {self.image_std}"

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file does not choose what code runs: attention kernels come from the caller only,
        encoders are the family's."""
        values = dict(config_dict)
        if "projection" in kwargs or "views" in kwargs or "view_angles" in kwargs:
            # What follows from these is chosen anew, unless it is given, too.
            for name in ("views", "view_angles", "view_weights", "resolution", "camera_distance"):
                values.pop(name, None)
        for name in [name for name in kwargs if name in _PICTURES]:
            values[name] = kwargs.pop(name)
        return super().from_dict(values, **kwargs)

    def validate_choices(self):
        if self.projection not in PROJECTIONS:
            raise ValueError(f"projection: {self.projection!r}, expected one of {', '.join(PROJECTIONS)}")
        if self.views not in VIEW_SETS:
            raise ValueError(f"views: {self.views!r}, expected one of {', '.join(VIEW_SETS)}")

    def validate_views(self):
        angles = self.view_angles
        if angles is not None and (not 0 < len(angles) <= 256 or any(len(view) != 3 for view in angles)):
            raise ValueError(f"view_angles: {str(angles)[:60]}, expected three angles for each of 1..256 views")
        weights, views = self.view_weights, self.views in VIEW_SETS and self.num_views
        if weights is not None and views and (len(weights) != views or not any(weights)):
            raise ValueError(f"view_weights: {str(weights)[:60]}, expected {views} numbers, one a view, not all 0")

    def validate_numbers(self):
        for name, low, high in (
            ("resolution", 8, _LARGEST_SIDE),
            ("grid_depth", 3, _LARGEST_DEPTH),
            ("object_ratio", 0.01, 1),
            ("depth_bias", 0, 10),
            ("pool_size", 1, 65),
            ("pool_padding", 0, 32),
            ("smoothing_size", 1, 65),
            ("smoothing_sigma", 1e-3, 1e3),
            ("camera_distance", 0, 1e3),
            ("label_smoothing", 0, 0.99),
            ("views_at_once", 1, 10**6),
            ("num_class_features", 0, 10**6),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}: {value} is outside {low}..{high}")
        if self.smoothing_size % 2 == 0:
            raise ValueError(f"smoothing_size: {self.smoothing_size}, expected an odd number")
        if 2 * self.pool_padding >= self.pool_size:
            raise ValueError(f"pool_padding: {self.pool_padding}, expected less than half of pool_size")
        if self.resolution is not None and self.pool_size >= self.resolution:
            raise ValueError(f"pool_size: {self.pool_size}, expected less than resolution ({self.resolution})")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if value is not None and (len(value) != 3 or (name == "image_std" and min(value) <= 0)):
                raise ValueError(f"{name}: {value}, expected three numbers{' > 0' if name == 'image_std' else ''}")
        if (self.image_mean is None) != (self.image_std is None):
            raise ValueError("image_mean, image_std: one of them is None, expected both or neither")


_PICTURES = ("projection", "views", "view_angles", "view_weights", "resolution", "camera_distance")


__all__ = ["PROJECTIONS", "PointCLIPConfig"]
