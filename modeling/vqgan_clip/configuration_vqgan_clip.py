"""Configurations of VQGAN-CLIP: the autoencoder whose codes become pictures, and the model that is guided by CLIP."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, JanusVQVAEConfig, PreTrainedConfig

from ..loading_and_saving.configuration_checks import check_encoder_types, checked, without_kernels
from ..synthesis.guided_model import GuidedFields
from ..synthesis.synthesis_loop import LARGEST_STEPS


CUT_METHODS = ("original", "updated", "nrupdated", "updatedpooling", "latest")
AUGMENTATIONS = ("flip", "jitter", "sharpness", "affine", "perspective", "erasing")
OPTIMIZERS = ("Adam", "AdamW", "Adagrad", "Adamax", "RAdam", "RMSprop")
_NORM_GROUPS = 32  # of every group normalisation: channels are multiples of it
_MOST_LEVELS = 7
_MOST_NUMBERS = 2**28  # of a codebook, and of the widest convolution: a gigabyte


def _check_ranges(config, ranges) -> None:
    for name, low, high in ranges:
        value = getattr(config, name)
        if not low <= value <= high:
            raise ValueError(f"{name}: {value} is outside {low}..{high}")


def _check_choice(config, name: str, choices) -> None:
    if getattr(config, name) not in choices:
        raise ValueError(f"{name}: {getattr(config, name)!r}, expected one of {', '.join(choices)}")


@checked
@strict
class VQGANConfig(PreTrainedConfig):
    r"""
    Configuration of a VQGAN. The defaults are `imagenet_f16_16384`, the model that VQGAN-CLIP uses by default.

    | | `num_embeddings` | `channel_multiplier` | `factor` | `quantizer` |
    |---|---|---|---|---|
    | imagenet_f16_1024 | 1024 | 1, 1, 2, 2, 4 | 16 | vector |
    | imagenet_f16_16384 | 16384 | 1, 1, 2, 2, 4 | 16 | vector |
    | openimages_f8_8192 | 8192 | 1, 1, 2, 4 | 8 | gumbel |

    Args:
        base_channels (`int`, defaults to 128), channel_multiplier (`list[int]`, defaults to `[1, 1, 2, 2, 4]`):
            Channels of each level, the one with most pixels first: multiples of 32. Each level but the last halves
            the sides.
        num_res_blocks (`int`, defaults to 2):
            Blocks of a level of the encoder; the decoder has one more. The last level has attention.
        latent_channels (`int`, defaults to 256), embed_dim (`int`, defaults to 256):
            Channels between encoder and codes; width of a code.
        num_embeddings (`int`, defaults to 16384):
            Codes.
        quantizer (`str`, defaults to `"vector"`):
            `"vector"`: the nearest code. `"gumbel"`: a convolution scores the codes, and training draws one.
        commitment_weight (`float`, defaults to 0.25), legacy_loss (`bool`, defaults to `False`):
            In training, the weight of the term that pulls the encoder to its codes. The official code has it on the
            other term, that pulls codes to the encoder; `legacy_loss` does the same.
        gumbel_temperature (`float`, defaults to 1.0), kl_weight (`float`, defaults to 5e-4):
            Of a Gumbel quantiser's training.
        dropout (`float`, defaults to 0.0):
            In the residual blocks.
        norm_groups (`int`, defaults to 32):
            Of each group normalisation. 32 is official; with 32 `base_channels`, fewer are needed: where a group is a
            single channel, the decoder cannot say how bright a picture is.

    Example:

    ```python
    >>> from hf_clip_variants import VQGANConfig

    >>> VQGANConfig(channel_multiplier=[1, 1, 2, 4]).factor
    8
    ```
    """

    model_type = "clipv-vqgan_clip_autoencoder"
    base_config_key = "vqgan_config"

    base_channels: int = 128
    channel_multiplier: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    latent_channels: int = 256
    embed_dim: int = 256
    num_embeddings: int = 16384
    quantizer: str = "vector"
    commitment_weight: float | int = 0.25
    legacy_loss: bool = False
    gumbel_temperature: float | int = 1.0
    kl_weight: float | int = 5e-4
    dropout: float | int = 0.0
    norm_groups: int = 32

    def __post_init__(self, **kwargs):
        self.channel_multiplier = list(self.channel_multiplier)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs."""
        return super().from_dict(without_kernels(config_dict), **kwargs)

    @property
    def factor(self) -> int:
        """Pixels of a code's side: pictures have multiples of it."""
        return 2 ** (len(self.channel_multiplier) - 1)

    def parts_config(self) -> JanusVQVAEConfig:
        """For transformers' encoder and decoder, which are the official ones with attention at the last level."""
        return JanusVQVAEConfig(
            base_channels=self.base_channels,
            channel_multiplier=self.channel_multiplier,
            num_res_blocks=self.num_res_blocks,
            latent_channels=self.latent_channels,
            embed_dim=self.embed_dim,
            num_embeddings=self.num_embeddings,
            dropout=self.dropout,
        )

    def validate_sizes(self):
        _check_choice(self, "quantizer", ("vector", "gumbel"))
        _check_ranges(
            self,
            (
                ("base_channels", 1, 4096),
                ("num_res_blocks", 1, 16),
                ("latent_channels", 1, 8192),
                ("embed_dim", 1, 8192),
                ("num_embeddings", 2, 1_000_000),
                ("commitment_weight", 0, 1000),
                ("gumbel_temperature", 1e-3, 1000),
                ("kl_weight", 0, 1000),
                ("dropout", 0, 0.99),
            ),
        )
        levels = self.channel_multiplier
        if not 1 <= len(levels) <= _MOST_LEVELS or any(type(level) is not int or level < 1 for level in levels):
            raise ValueError(
                f"channel_multiplier: {str(levels)[:60]}, expected 1..{_MOST_LEVELS} whole numbers of at least 1"
            )
        for level in levels:
            if self.base_channels * level % _NORM_GROUPS or self.base_channels * level > 4096:
                raise ValueError(
                    f"channel_multiplier: {level} x base_channels ({self.base_channels}) is not a multiple of "
                    f"{_NORM_GROUPS} of at most 4096"
                )
        if self.norm_groups < 1 or _NORM_GROUPS % self.norm_groups:
            raise ValueError(f"norm_groups: {self.norm_groups}, expected a divisor of {_NORM_GROUPS}")
        if self.num_embeddings * max(self.embed_dim, self.latent_channels) > _MOST_NUMBERS:
            raise ValueError(
                f"num_embeddings: {self.num_embeddings} codes of {self.embed_dim} numbers, expected at most "
                f"{_MOST_NUMBERS} numbers"
            )


@checked
@strict
class VQGANCLIPConfig(GuidedFields, CLIPConfig):
    r"""
    A `CLIPConfig` of the guide, a [`VQGANConfig`], and how pictures are painted. The defaults are the popular code's.

    Args:
        vqgan_config (`dict` or [`VQGANConfig`]):
            The autoencoder whose codes become pictures.
        backbone_model_type (`str`, defaults to `"clip"`):
            The family of the dual encoder that guides, one of `modeling/dual_encoders/backbones.py`.
        canvas_size (`int`, *optional*):
            Pixels of a side of pictures. Default: what the guide takes. `generate(size=...)` takes others, also of
            pictures that are not square.
        num_steps (`int`, defaults to 500):
            Steps of a picture.
        optimizer (`str`, defaults to `"Adam"`), learning_rate (`float`, defaults to 0.1):
            Of the latent grid. Adam, AdamW, Adagrad, Adamax, RAdam or RMSprop.
        num_cuts (`int`, defaults to 32), cut_power (`float`, defaults to 1.0):
            Views of the picture in each step; a larger power makes crops smaller.
        cut_method (`str`, defaults to `"latest"`):
            `"original"`, `"updated"` and `"nrupdated"` crop squares; `"updatedpooling"` and `"latest"` see the whole
            picture. All but the first augment.
        augmentations (`list[str]`, *optional*):
            Instead of those of `"nrupdated"` and `"latest"`, in this order: flip, jitter, sharpness, affine,
            perspective, erasing.
        noise_factor (`float`, defaults to 0.1):
            Noise on each view, of a strength in 0..noise_factor. Not with `"original"`.
        init_weight (`float`, defaults to 0.0), init_target (`str`, defaults to `"zero"`):
            Pulls the latent grid to zero, as the code does, or to where it started (`"start"`), as it meant to. Falls
            with the steps.
        tv_weight (`float`, defaults to 0.0):
            Of the picture's total variation: smoother pictures.
        image_mean, image_std (`list[float]`, *optional*), views_at_once (`int`, defaults to 64):
            As of other guided models.
        more_guides (`list[dict]`, *optional*), guide_weights (`list[float]`, *optional*):
            Configurations of further dual encoders that guide together with the first (`add_guide` makes them), and
            the weights of all in the mean of their losses. Default of the weights: equal.

    Example:

    ```python
    >>> from hf_clip_variants import VQGANCLIPConfig

    >>> config = VQGANCLIPConfig(canvas_size=100)
    >>> config.vqgan_config.factor, config.grid()
    (16, (6, 6))
    ```
    """

    model_type = "clipv-vqgan_clip"
    keys_to_ignore_at_inference = ["images", "image_embeds", "text_embeds", "text_model_output", "vision_model_output"]
    nested_types = {"vqgan_config": (VQGANConfig.model_type,)}
    read_first = ("vqgan_config",)
    sub_configs_defaults = CLIPConfig.sub_configs_defaults | {"vqgan_config": VQGANConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    vqgan_config: dict | PreTrainedConfig | None = None
    backbone_model_type: str = "clip"
    canvas_size: int | None = None
    num_steps: int = 500
    optimizer: str = "Adam"
    learning_rate: float | int = 0.1
    num_cuts: int = 32
    cut_power: float | int = 1.0
    cut_method: str = "latest"
    augmentations: list[str] | None = None
    noise_factor: float | int = 0.1
    init_weight: float | int = 0.0
    init_target: str = "zero"
    tv_weight: float | int = 0.0
    image_mean: list[float | int] | None = None
    image_std: list[float | int] | None = None
    views_at_once: int = 64
    more_guides: list[dict] | None = None
    guide_weights: list[float | int] | None = None

    def __post_init__(self, **kwargs):
        self.make_encoder_configs(kwargs)
        if not isinstance(self.vqgan_config, PreTrainedConfig):
            check_encoder_types({"vqgan_config": self.vqgan_config}, self.nested_types)
            values = {k: v for k, v in (self.vqgan_config or {}).items() if k != "model_type"}
            self.vqgan_config = VQGANConfig(**values)
        super().__post_init__(**kwargs)
        self.logit_scale_init_value = float(self.logit_scale_init_value)

    @classmethod
    def part_classes(cls, values) -> dict[str, type]:
        return super().part_classes(values) | {"vqgan_config": VQGANConfig}

    def grid(self, size: int | tuple[int, int] | None = None) -> tuple[int, int]:
        """Codes along height and width of pictures of `size` (a side, or height and width; None: the canvas), whose
        sides are rounded down to multiples of the factor.

        Raises:
            ValueError: `size` is no size, or less than a code.
        """
        sides = (self.canvas,) * 2 if size is None else (size,) * 2 if type(size) is int else size
        factor = self.vqgan_config.factor
        if (
            not isinstance(sides, list | tuple)
            or len(sides) != 2
            or any(type(side) is not int or not factor <= side <= 4096 for side in sides)
        ):
            raise ValueError(f"size: {size!r}, expected pixels of a side, or of height and width, in {factor}..4096")
        return sides[0] // factor, sides[1] // factor

    def validate_numbers(self):
        self.check_ranges(
            (
                ("num_steps", 0, LARGEST_STEPS),
                ("learning_rate", 0, 1000),
                ("num_cuts", 1, 4096),
                ("cut_power", 0, 100),
                ("noise_factor", 0, 100),
                ("init_weight", 0, 1000),
                ("tv_weight", 0, 1000),
            )
        )
        _check_choice(self, "optimizer", OPTIMIZERS)
        _check_choice(self, "cut_method", CUT_METHODS)
        _check_choice(self, "init_target", ("zero", "start"))
        for name in self.augmentations or ():
            if name not in AUGMENTATIONS:
                raise ValueError(f"augmentations: {name!r}, expected some of {', '.join(AUGMENTATIONS)}")
        if len(self.augmentations or ()) > 32:
            raise ValueError(f"augmentations: {len(self.augmentations)}, expected at most 32")


__all__ = ["VQGANCLIPConfig", "VQGANConfig"]
