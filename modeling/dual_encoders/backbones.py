"""The contract that the classifier and the adapters have with a dual encoder: one small class a family.

A family says where token embeddings enter, which position is pooled, whether padding is masked, cut or part of the
input, where layers and projections are, and how images come in. CLIP's is here; every other one is a module of its own
with a class `FAMILY`, found by name from the `model_type` of the configuration; to add one, write such a module:

    model_type "siglip"             dual_encoders/family_siglip.py           a model of transformers
    model_type "clipv-clip_resnet"  clip_resnet/family_clip_resnet.py        a method of ours, in its folder
"""

import importlib
import re
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as checkpoint_activations

from ..loading_and_saving.optional_modules import optional_module
from .offloading import device_of, weight_of


# N prompts, L tokens, W text width, D joint width, B images, P patches


def unit_norm(x: torch.Tensor) -> torch.Tensor:
    """(…, D) -> (…, D) of length 1, in the dtype of `x`, computed in float32 at least.

    A row of zeros stays zero and gets gradient zero (`F.normalize` would give it the gradient divided by 1e-12).
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    if not norm.requires_grad:  # half the operations
        return (wide / norm.clamp_min(torch.finfo(norm.dtype).tiny)).to(x.dtype)
    is_zero = norm == 0
    # The inner `where` keeps 1 / 0 out of the gradient, the outer one makes it zero.
    return torch.where(is_zero, 0, wide / torch.where(is_zero, 1, norm)).to(x.dtype)


# Learned prompts, and many prompts fast. Where the package is not installed, prompts are encoded in whole rows.
_prompt_encoding = optional_module(".prompt_encoding", __package__)
_image_encoding = optional_module(".image_encoding", __package__)  # images on a CPU, faster; likewise


class CLIPFamily:
    """transformers' `CLIPModel`: causal text, EOS, class token, projections without bias, `exp(logit_scale)`."""

    model_type = "clip"
    module = "transformers.models.clip"
    prefix = "CLIP"  # of the class names in that module

    # text
    # Causal: states up to EOS do not see what follows, prompts may be trimmed and share prefixes. Else they run whole.
    text_is_causal = True
    num_start_tokens = 1  # before the words: SOS, [CLS]; context vectors come after them
    default_template = "a photo of a {}."
    default_context = "a photo of a"  # words that learned contexts start from
    full_stop = "."  # prompt learners end their prompts with it
    # encoders that compute something else in training mode: dropout, batch normalisation
    eval_when_frozen: tuple[str, ...] = ()
    text_embeddings = "text_model.embeddings"
    token_embedding = "text_model.embeddings.token_embedding"
    text_layers = "text_model.encoder.layers"
    text_projection: str | None = "text_projection"

    # images
    has_class_token = True
    has_fixed_image_size = True  # unless positions are interpolated
    masks_patches = False  # every layer gets a mask of the patches (NaFlex)
    vision_embeddings = "vision_model.embeddings"
    vision_layers: str | None = "vision_model.encoder.layers"  # None: no transformer, no place for visual prompts
    patch_norm: str | None = "vision_model.pre_layrnorm"  # between the embeddings and the first layer
    visual_projection: str | None = "visual_projection"
    # Classes of an image encoder that is built as CLIP's and pools the class token (`image_encoding.py`), or none.
    vision_classes: tuple[str, ...] = ("VisionModel", "Encoder", "EncoderLayer", "Attention", "MLP")
    vision_switches: tuple[str, ...] = ()  # of `vision_config`, without which there are no image features

    # ---- classes and configurations

    @classmethod
    def _load(cls, name: str) -> type:
        return getattr(importlib.import_module(cls.module), cls.prefix + name)

    @classmethod
    def model_class(cls) -> type[nn.Module]:
        return cls._load("Model")

    @classmethod
    def part_class(cls, name: str) -> type[nn.Module]:
        """A class of the family's modeling file, by its name without the family's prefix."""
        file = f"{cls.module}.modeling_{cls.module.rpartition('.')[2]}"
        return getattr(importlib.import_module(file), cls.prefix + name)

    @classmethod
    def sub_config_class(cls, part: str) -> type:
        """The class of `text_config` or `vision_config`."""
        return cls._load({"text_config": "TextConfig", "vision_config": "VisionConfig"}[part])

    @classmethod
    def model_config(cls, config):
        """What the dual encoder of a classifier is made from: the classifier's configuration itself, so that settings
        reach both."""
        return config

    @staticmethod
    def joint_width(config) -> int:
        return config.projection_dim

    @staticmethod
    def image_size(config) -> int:
        """Height and width in pixels of the images that the model was trained on."""
        return config.vision_config.image_size

    # ---- text

    @staticmethod
    def context_length(config) -> int:
        """Tokens that a prompt may have, special ones included."""
        return config.text_config.max_position_embeddings

    @classmethod
    def padding_id(cls, config) -> int:
        """What fills rows of ids behind their end. For causal encoders the end token, which pooling finds first."""
        text = config.text_config
        if not cls.text_is_causal:
            return text.pad_token_id
        return text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id

    @classmethod
    def token_embedding_of(cls, model: nn.Module) -> nn.Module:
        return model.get_submodule(cls.token_embedding)

    @classmethod
    def run_text(cls, model: nn.Module, input_ids, inputs_embeds=None, position_ids=None) -> torch.Tensor:
        """(N, L) ids, or (N, L, W) token embeddings to use instead -> (N, text width) pooled, by the encoder's own
        layers."""
        if inputs_embeds is None and position_ids is None:
            return model.text_model(input_ids).pooler_output
        return _prompt_encoding.own_layers(model.text_model, input_ids, inputs_embeds, position_ids)

    @classmethod
    def encode_text(
        cls,
        model: nn.Module,
        input_ids: torch.Tensor,
        max_tokens_per_chunk: int = 16384,
        checkpoint: bool = False,
        **learned,
    ) -> torch.Tensor:
        """Prompts -> projected features (N, D), or (B, N, D) with `prefix_embeds` of B variants; not normalised.

        Args:
            input_ids: (N, L), each row with its start and end tokens.
            max_tokens_per_chunk: tokens run at once; bounds memory.
            checkpoint: in training, compute each chunk a second time in the backward pass instead of keeping it.
            learned: `inputs_embeds`, `prefix_embeds`, `position_ids`, `deep_prompts`, `deep_start`, `shared_prefix`:
                see `prompt_encoding.encode_prompts`. For adapters, which need the package.
        """
        options = {"max_tokens_per_chunk": max_tokens_per_chunk, "checkpoint": checkpoint}
        if _prompt_encoding is not None:
            pooled = _prompt_encoding.encode_text(cls, model, input_ids, **options, **learned)
        else:
            pooled = encode_whole_rows(cls, model, input_ids, **options, **learned)
        return cls.project_text(model, pooled)

    @classmethod
    def project_text(cls, model: nn.Module, pooled: torch.Tensor) -> torch.Tensor:
        """(…, pooled width) -> (…, D), not normalised."""
        return pooled if cls.text_projection is None else model.get_submodule(cls.text_projection)(pooled)

    # ---- images

    @staticmethod
    def image_features(model: nn.Module, pixel_values: torch.Tensor, **kwargs):
        """The model's own `get_image_features`: its `pooler_output` is (B, D), not normalised."""
        return model.get_image_features(pixel_values=pixel_values, **kwargs)

    @classmethod
    def pooled_image_features(
        cls,
        model: nn.Module,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        project: bool = True,
    ) -> torch.Tensor:
        """`image_features(...).pooler_output` (B, D) alone: up to rounding the same, and faster on a CPU without
        gradient. `project=False`: (B, image width) before the projection, for families that have one."""
        if _image_encoding is None or _image_encoding.why_own_forward(cls, model, pixel_values) is not None:
            options = {"pixel_values": pixel_values, "interpolate_pos_encoding": interpolate_pos_encoding}
            output = cls.image_features(model, **options) if project else model.vision_model(**options)
            return output.pooler_output
        return _image_encoding.encode_images(cls, model, pixel_values, interpolate_pos_encoding, project)

    # ---- logits

    @staticmethod
    def logit_scale(model: nn.Module) -> torch.Tensor:
        return weight_of(model, "logit_scale").exp()

    @staticmethod
    def logit_bias(model: nn.Module) -> torch.Tensor | None:
        """Added to every logit; None where the family has none."""
        return None

    # ---- what depends on what

    @classmethod
    def text_modules(cls, model: nn.Module) -> tuple[nn.Module, ...]:
        """Everything that class embeddings depend on."""
        return tuple(model.get_submodule(name) for name in ("text_model", cls.text_projection) if name)

    @classmethod
    def image_modules(cls, model: nn.Module) -> tuple[nn.Module, ...]:
        """Everything that image features depend on."""
        return tuple(model.get_submodule(name) for name in ("vision_model", cls.visual_projection) if name)


def encode_whole_rows(
    family: type[CLIPFamily],
    model: nn.Module,
    input_ids: torch.Tensor,
    max_tokens_per_chunk: int = 16384,
    checkpoint: bool = False,
) -> torch.Tensor:
    """(N, L) ids -> (N, text width) pooled: the plain way, by the model's own text encoder, some rows at a time.

    What exported code does, and the reference for `prompt_encoding.encode_text`, which gives the same up to rounding.
    """
    ids = input_ids.to(device_of(family.token_embedding_of(model)))
    pooled = []
    for rows in ids.split(max(1, max_tokens_per_chunk // ids.shape[1])):
        if checkpoint and torch.is_grad_enabled():
            pooled.append(checkpoint_activations(family.run_text, model, rows, use_reentrant=False))
        else:
            pooled.append(family.run_text(model, rows))
    return torch.cat(pooled)


def find_family(model_type: str | None) -> type[CLIPFamily] | None:
    """The contract of a `model_type`; None if there is none."""
    if model_type == CLIPFamily.model_type:
        return CLIPFamily
    # It comes from a file, and becomes a module's name.
    if not isinstance(model_type, str) or not re.fullmatch(r"[a-z0-9_-]+", model_type):
        return None
    name, (package, _, room) = model_type.removeprefix("clipv-"), __package__.rpartition(".")
    module = None
    if model_type != name and room == "dual_encoders":
        module = optional_module(f"{package}.{name}.family_{name}")
    module = module or optional_module(f"{__package__}.family_{name}")
    return module.FAMILY if module is not None and module.FAMILY.model_type == model_type else None


def family_of(model_type: str) -> type[CLIPFamily]:
    """The contract of a `model_type`; ValueError with the supported ones otherwise."""
    family = find_family(model_type)
    if family is None:
        raise ValueError(
            f"backbone: model_type {model_type!r} is not supported, expected one of {_known()} "
            "(backbone_model_type in a classifier's configuration)"
        )
    return family


def _known() -> str:
    here = Path(__file__).parent
    ours = [f"clipv-{p.parent.name}" for p in here.parent.glob("*/family_*.py") if p.stem == f"family_{p.parent.name}"]
    return ", ".join(
        ["clip", *sorted(ours), *sorted(p.stem.removeprefix("family_") for p in here.glob("family_*.py"))]
    )


__all__ = ["CLIPFamily", "encode_whole_rows", "family_of", "find_family", "unit_norm"]
