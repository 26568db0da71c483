"""The contract that the classifier and the adapters have with a dual encoder: one small class a family, found by `model_type`.

A family says where token embeddings enter, which position is pooled, whether padding is masked, cut or part of the input, where layers and
projections are, and how pictures come in. To add one: a class here and a line in `FAMILIES`; `tests/modeling/dual_encoders/test_backbones.py` compares it
with the model's own forward.
"""

import base64
import hashlib
import importlib
from types import MappingProxyType

import torch
from torch import nn

from .prompt_encoding import encode_prompts, encode_rows, own_layers


# N prompts, L tokens, W text width, D joint width, B images, P patches


class CLIPFamily:
    """transformers' `CLIPModel`: causal text tower, EOS pooling, class token, bias-free projections, `exp(logit_scale)`."""

    model_type = "clip"
    module = "transformers.models.clip"
    prefix = "CLIP"  # of the class names in that module

    # text
    text_is_causal = True  # states up to EOS do not see what follows: prompts may be trimmed and share prefixes
    num_start_tokens = 1  # before the words: SOS, [CLS]; context vectors come after them
    default_template = "a photo of a {}."
    default_context = "a photo of a"  # words that learned contexts start from
    full_stop = "."  # prompt learners end their prompts with it
    eval_when_frozen: tuple[
        str, ...
    ] = ()  # towers that compute something else in training mode: dropout, batch normalisation
    text_embeddings = "text_model.embeddings"
    token_embedding = "text_model.embeddings.token_embedding"
    text_layers = "text_model.encoder.layers"
    text_projection: str | None = "text_projection"

    # pictures
    has_class_token = True
    masks_patches = False  # every layer gets a mask of the patches (NaFlex)
    vision_embeddings = "vision_model.embeddings"
    vision_layers: str | None = "vision_model.encoder.layers"  # None: no transformer, no place for visual prompts
    patch_norm: str | None = "vision_model.pre_layrnorm"  # between the embeddings and the first layer
    visual_projection: str | None = "visual_projection"

    # ---- classes and configurations

    @classmethod
    def _load(cls, name: str) -> type:
        return getattr(importlib.import_module(cls.module), cls.prefix + name)

    @classmethod
    def model_class(cls) -> type[nn.Module]:
        return cls._load("Model")

    @classmethod
    def sub_config_class(cls, part: str) -> type:
        """The class of `text_config` or `vision_config`."""
        return cls._load({"text_config": "TextConfig", "vision_config": "VisionConfig"}[part])

    @classmethod
    def model_config(cls, config):
        """What the dual encoder of a classifier is made from: the classifier's configuration itself, so that settings reach both."""
        return config

    @staticmethod
    def joint_width(config) -> int:
        return config.projection_dim

    @staticmethod
    def image_size(config) -> int:
        """Height and width in pixels of the pictures that the model was trained on."""
        return config.vision_config.image_size

    @classmethod
    def widths(cls, config) -> dict[str, int]:
        """The widths and depths that an adapter must agree with."""
        return {
            "text width": config.text_config.hidden_size,
            "image width": config.vision_config.hidden_size,
            "joint width": cls.joint_width(config),
            "text layers": config.text_config.num_hidden_layers,
            "image layers": config.vision_config.num_hidden_layers,
        }

    # ---- text

    @staticmethod
    def context_length(config) -> int:
        """Tokens that a prompt may have, special ones included."""
        return config.text_config.max_position_embeddings

    @staticmethod
    def padding_id(config) -> int:
        """What fills rows of ids behind their end. Here the end token, which pooling finds first."""
        text = config.text_config
        return text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id

    @staticmethod
    def text_tower(model: nn.Module) -> nn.Module:
        return model.text_model

    @classmethod
    def token_embedding_of(cls, model: nn.Module) -> nn.Module:
        return model.get_submodule(cls.token_embedding)

    @staticmethod
    def run_text(model: nn.Module, input_ids, inputs_embeds=None, position_ids=None) -> torch.Tensor:
        """(N, L) ids, or (N, L, W) token embeddings to use instead -> (N, text width) pooled, by the tower's own layers."""
        return own_layers(model.text_model, input_ids, inputs_embeds, position_ids)

    @classmethod
    def encode_text(cls, model: nn.Module, input_ids: torch.Tensor, plan=None, **prompts) -> torch.Tensor:
        """Prompts -> projected features (N, D), or (B, N, D) with `prefix_embeds` of B variants; not normalised.

        `prompts`: `inputs_embeds`, `prefix_embeds`, `position_ids`, `deep_prompts`, `deep_start`, `max_tokens_per_chunk` and `checkpoint` of
        `encode_prompts`. `plan` belongs to causal towers; the others see whole rows.
        """
        pooled = encode_prompts(cls.text_tower(model), input_ids, plan=plan, **prompts)
        return cls.project_text(model, pooled)

    @classmethod
    def project_text(cls, model: nn.Module, pooled: torch.Tensor) -> torch.Tensor:
        """(…, pooled width) -> (…, D), not normalised."""
        return pooled if cls.text_projection is None else model.get_submodule(cls.text_projection)(pooled)

    # ---- pictures

    @staticmethod
    def image_features(model: nn.Module, pixel_values: torch.Tensor, **kwargs):
        """The model's own `get_image_features`: its `pooler_output` is (B, D), not normalised."""
        return model.get_image_features(pixel_values=pixel_values, **kwargs)

    # ---- logits

    @staticmethod
    def logit_scale(model: nn.Module) -> torch.Tensor:
        return model.logit_scale.exp()

    @staticmethod
    def logit_bias(model: nn.Module) -> torch.Tensor | None:
        """Added to every logit; None where the family has none."""
        return None

    # ---- what depends on what

    @classmethod
    def text_modules(cls, model: nn.Module) -> tuple[nn.Module, ...]:
        """Everything that class embeddings depend on."""
        names = ("text_model",) if cls.text_projection is None else ("text_model", cls.text_projection)
        return tuple(model.get_submodule(name) for name in names)

    @classmethod
    def image_modules(cls, model: nn.Module) -> tuple[nn.Module, ...]:
        """Everything that image features depend on."""
        names = ("vision_model",) if cls.visual_projection is None else ("vision_model", cls.visual_projection)
        return tuple(model.get_submodule(name) for name in names)


class CLIPResNetFamily(CLIPFamily):
    """`CLIPResNetModel`: CLIP with a ResNet for pictures, whose attention pooling is the projection."""

    model_type = "clipv-clip_resnet"
    has_class_token = False
    vision_layers = patch_norm = visual_projection = None
    eval_when_frozen = ("vision_model",)

    @classmethod
    def _load(cls, name: str) -> type:
        if name == "TextConfig":
            return super()._load(name)
        from ..clip_resnet.configuration_clip_resnet import CLIPResNetConfig, CLIPResNetVisionConfig
        from ..clip_resnet.modeling_clip_resnet import CLIPResNetModel

        return {"Model": CLIPResNetModel, "Config": CLIPResNetConfig, "VisionConfig": CLIPResNetVisionConfig}[name]


class MetaCLIP2Family(CLIPFamily):
    """`MetaClip2Model`: CLIP with a multilingual vocabulary; the first EOS is pooled whatever its id."""

    model_type = "metaclip_2"
    module = "transformers.models.metaclip_2"
    prefix = "MetaClip2"

    @staticmethod
    def padding_id(config) -> int:
        return config.text_config.eos_token_id


class _WholeRows(CLIPFamily):
    """Bidirectional text towers: nothing of a row can be shared or left out, except what is masked."""

    text_is_causal = False

    @staticmethod
    def padding_id(config) -> int:
        return config.text_config.pad_token_id

    @classmethod
    def encode_text(cls, model: nn.Module, input_ids: torch.Tensor, plan=None, **prompts) -> torch.Tensor:
        pooled = encode_rows(
            lambda ids, embeds, positions: cls.run_text(model, ids, embeds, positions), input_ids,
            layers=model.get_submodule(cls.text_layers), token_embedding=cls.token_embedding_of(model), **prompts,
        )  # fmt: skip
        return cls.project_text(model, pooled)


class ChineseCLIPFamily(_WholeRows):
    """`ChineseCLIPModel`: BERT, [CLS] pooling without a pooler, padding masked; CLIP's image tower."""

    model_type = "chinese_clip"
    module = "transformers.models.chinese_clip"
    prefix = "ChineseCLIP"
    default_template = "一张{}的照片。"
    default_context = "一张"
    full_stop = "。"
    eval_when_frozen = ("text_model",)
    token_embedding = "text_model.embeddings.word_embeddings"
    text_layers = "text_model.encoder.layer"

    @staticmethod
    def context_length(config) -> int:
        return min(52, config.text_config.max_position_embeddings)  # what the official models were trained with

    @staticmethod
    def run_text(model: nn.Module, input_ids, inputs_embeds=None, position_ids=None) -> torch.Tensor:
        mask = (input_ids != model.config.text_config.pad_token_id).long()
        text = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        positions = None if position_ids is None else position_ids.expand(len(input_ids), -1)
        return model.text_model(**text, attention_mask=mask, position_ids=positions).last_hidden_state[:, 0]


class AltCLIPFamily(_WholeRows):
    """`AltCLIPModel`: XLM-RoBERTa whose first token is projected twice, padding masked; CLIP's image tower."""

    model_type = "altclip"
    module = "transformers.models.altclip"
    prefix = "AltCLIP"
    eval_when_frozen = ("text_model",)
    text_embeddings = "text_model.roberta.embeddings"
    token_embedding = "text_model.roberta.embeddings.word_embeddings"
    text_layers = "text_model.roberta.encoder.layers"

    @classmethod
    def model_config(cls, config):
        """Its own, because transformers renames the weights of old checkpoints by the configuration's `model_type`."""
        names = ("text_config", "vision_config", "projection_dim", "logit_scale_init_value", "initializer_factor")
        own = cls._load("Config")(**{name: getattr(config, name) for name in names})
        own._attn_implementation_internal = getattr(config, "_attn_implementation_internal", None)
        own.dtype = config.dtype
        return own

    @staticmethod
    def context_length(config) -> int:
        text = config.text_config
        return min(
            77, text.max_position_embeddings - text.pad_token_id - 1
        )  # its positions start behind the padding's

    @staticmethod
    def run_text(model: nn.Module, input_ids, inputs_embeds=None, position_ids=None) -> torch.Tensor:
        padding = model.config.text_config.pad_token_id
        mask = (input_ids != padding).long()
        # With inputs_embeds the tower would count padding, too.
        positions = mask.cumsum(dim=1) if position_ids is None else position_ids + 1
        text = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        return model.text_model(**text, attention_mask=mask, position_ids=positions * mask + padding).pooler_output


class SiglipFamily(_WholeRows):
    """`SiglipModel`: the last of a fixed number of positions is pooled, padding counts; no class token, no projections, a logit bias."""

    model_type = "siglip"
    module = "transformers.models.siglip"
    prefix = "Siglip"
    num_start_tokens = 0
    has_class_token = False
    text_projection = visual_projection = patch_norm = None

    @staticmethod
    def joint_width(config) -> int:
        return config.text_config.projection_size

    @staticmethod
    def run_text(model: nn.Module, input_ids, inputs_embeds=None, position_ids=None) -> torch.Tensor:
        tower = model.text_model
        missing = tower.config.max_position_embeddings - input_ids.shape[1]
        padding = input_ids.new_full((len(input_ids), missing), tower.config.pad_token_id)
        if inputs_embeds is None:
            inputs_embeds = tower.embeddings.token_embedding(torch.cat([input_ids, padding], dim=1))
        else:
            padding = tower.embeddings.token_embedding(padding).to(inputs_embeds.dtype)
            inputs_embeds = torch.cat([inputs_embeds, padding], dim=1)
        if position_ids is not None:
            behind = torch.arange(input_ids.shape[1], inputs_embeds.shape[1], device=position_ids.device)
            position_ids = torch.cat([position_ids, behind])[None]
        hidden = tower.embeddings(inputs_embeds=inputs_embeds, position_ids=position_ids)
        hidden = tower.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        return tower.head(tower.final_layer_norm(hidden[:, -1]))

    @staticmethod
    def logit_bias(model: nn.Module) -> torch.Tensor:
        return model.logit_bias


class Siglip2Family(SiglipFamily):
    """`Siglip2Model` (NaFlex): patches, their mask and the grids' shapes instead of pixels; square pictures may come as pixels, too."""

    model_type = "siglip2"
    module = "transformers.models.siglip2"
    prefix = "Siglip2"
    masks_patches = True

    @staticmethod
    def image_size(config) -> int:
        return config.vision_config.patch_size * int(config.vision_config.num_patches**0.5)

    @staticmethod
    def image_features(
        model: nn.Module, pixel_values: torch.Tensor, pixel_attention_mask=None, spatial_shapes=None, **kwargs
    ):
        """As the model's own, from (B, P, 3 p²) patches with mask and shapes, or from (B, 3, H, W) pixels."""
        if pixel_values.dim() == 4:
            pixel_values, pixel_attention_mask, spatial_shapes = _as_patches(
                pixel_values, model.config.vision_config.patch_size
            )
        kwargs.pop("interpolate_pos_encoding", None)  # it always does
        return model.get_image_features(
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            **kwargs,
        )


def _as_patches(pixel_values: torch.Tensor, patch_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, 3, H, W) -> (B, P, 3 p²) patches row by row, channels last inside each, their mask (B, P) and grid shapes (B, 2)."""
    batch, _, height, width = pixel_values.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"pixel_values: {height} x {width} pixels, expected multiples of the patch size {patch_size}")
    rows, columns = height // patch_size, width // patch_size
    patches = pixel_values.unflatten(3, (columns, patch_size)).unflatten(2, (rows, patch_size))
    patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)
    mask = torch.ones(batch, rows * columns, dtype=torch.int32, device=pixel_values.device)
    return patches, mask, torch.tensor([[rows, columns]] * batch, device=pixel_values.device)


FAMILIES = MappingProxyType(
    {
        family.model_type: family
        for family in (
            CLIPFamily,
            CLIPResNetFamily,
            MetaCLIP2Family,
            ChineseCLIPFamily,
            AltCLIPFamily,
            SiglipFamily,
            Siglip2Family,
        )  # fmt: skip
    }
)


def family_of(model_type: str) -> type[CLIPFamily]:
    """The contract of a `model_type`; ValueError with the supported ones otherwise."""
    if model_type not in FAMILIES:
        raise ValueError(
            f"backbone: model_type {model_type!r} is not supported, expected one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


_SAMPLES = 8  # values read from each of three tensors
_RELATIVE_TOLERANCE = 0.02  # more than rounding to bfloat16, less than any other weights of the same shape


def _sampled_values(state: dict[str, torch.Tensor]) -> torch.Tensor:
    matrices = [name for name, tensor in state.items() if tensor.dim() >= 2]
    picked = [matrices[0], matrices[len(matrices) // 2], matrices[-1]]
    values = []
    for name in picked:
        flat = state[name].detach().reshape(-1)
        index = torch.linspace(0, flat.numel() - 1, _SAMPLES, dtype=torch.float64).long()
        values.append(flat[index.to(flat.device)].float().cpu())
    return torch.cat(values)


def fingerprint(model: nn.Module) -> str:
    """What a saved adapter remembers of its backbone: SHA-256 over parameter names and shapes, and values sampled from 3 tensors.

    The values are compared with a tolerance (`same_backbone`), so that a base loaded in bfloat16 is still itself. Adapter layers that wrap
    the model are looked through, also around modules that are saved with an adapter: the fingerprint is that of the base weights.
    """
    state = {
        name.replace(".base_layer", "").replace(".original_module", ""): parameter
        for name, parameter in model.named_parameters()
        if not any(part in name for part in ("clipv_", "lora_", ".modules_to_save."))
    }
    state = dict(sorted(state.items()))
    digest = hashlib.sha256("\n".join(f"{n} {tuple(t.shape)}" for n, t in state.items()).encode()).hexdigest()[:16]
    if any(tensor.is_meta for tensor in state.values()):
        return f"v1:{digest}:"
    values = _sampled_values(state).numpy().astype("<f4").tobytes()
    return f"v1:{digest}:{base64.b64encode(values).decode()}"


def same_backbone(ours: str, theirs: str) -> bool:
    """Whether two fingerprints are of the same weights, whatever the dtype that they were loaded in."""
    (_, shapes_a, values_a), (_, shapes_b, values_b) = ours.split(":"), theirs.split(":")
    if shapes_a != shapes_b:
        return False
    if not values_a or not values_b:  # taken on the meta device: shapes are all there is
        return True
    a, b = (torch.frombuffer(bytearray(base64.b64decode(v)), dtype=torch.float32) for v in (values_a, values_b))
    return bool(((a - b).abs() <= _RELATIVE_TOLERANCE * a.abs().clamp_min(1e-6)).all())


__all__ = [
    "FAMILIES", "AltCLIPFamily", "CLIPFamily", "CLIPResNetFamily", "ChineseCLIPFamily", "MetaCLIP2Family", "Siglip2Family", "SiglipFamily", "family_of",
    "fingerprint", "same_backbone",
]  # fmt: skip
