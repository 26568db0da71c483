"""DepthCLIP: the depth of an image, read from the similarity of its locations with sentences about distance.

Paper: "Can Language Understand Depth?", https://arxiv.org/abs/2207.01077.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import filter_output_hidden_states
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from ..dense.sliding_window import pad_to_multiple
from ..dual_encoders.backbones import family_of, unit_norm
from ..dual_encoders.forward_checks import check_output, check_pixels, check_token_ids
from ..dual_encoders.prompts import check_names_differ, check_texts, encode_texts
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from ..loading_and_saving.copied_weights import copy_weights
from .configuration_depthclip import DepthCLIPConfig
from .loss_depthclip import scale_invariant_loss


# B images, H x W pixels, h x w locations of the feature map, C joint width, K words, T templates

_AROUND = 256  # pixels that a panorama is continued by on either side, at most; a multiple of every usual stride


@dataclass
class DepthCLIPOutput(ModelOutput):
    """
    Args:
        loss: (), with `labels`.
        predicted_depth: (B, H, W), float32, in the unit of `config.bin_centers`, at the size of `pixel_values`.
        word_logits: (B, K, h, w), float32: how near each location is to each word, over the temperature; a softmax
            over K gives the shares of the words. Of the image itself, not of its mirror image; where H and W are no
            multiples of the stride, with the locations of the padding.
        hidden_states, attentions: of the image encoder, of the images and not of their mirror images.
    """

    loss: torch.FloatTensor | None = None
    predicted_depth: torch.FloatTensor | None = None
    word_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


# ---- from features to depth


def halved_channels(features: torch.Tensor) -> torch.Tensor:
    """(…, 2C) -> (…, C): channels 0, 2, 4, …

    The official code interpolates along the channels by a half, by the nearest: a choice of channels that the paper
    does not mention, and that is not trained for the joint space.
    """
    return features[..., ::2]


def text_weights(features: torch.Tensor) -> torch.Tensor:
    """(K, T, C) features of sentences -> (K, C): of unit norm each, their mean over T, of unit norm again."""
    return unit_norm(unit_norm(features).mean(1))


def expected_depth(word_logits: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:
    """(B, K, h, w) and (K,) -> (B, h, w): the mean of the depths, weighted by the softmax over words."""
    return (word_logits.float().softmax(1) * bins.float().view(-1, 1, 1)).sum(1)


def _first(tensors: tuple[torch.Tensor, ...] | None, count: int) -> tuple[torch.Tensor, ...] | None:
    """The first `count` rows of each; the tensors themselves where they have no others, for gradients."""
    return tensors and tuple(one if len(one) == count else one[:count] for one in tensors)


# ---- model


class DepthCLIPPreTrainedModel(CheckedLoading, StagedSaving, PreTrainedModel):
    config: DepthCLIPConfig
    base_model_prefix = "clip"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_attention_backend = True
    _no_split_modules = ["CLIPEncoderLayer", "CLIPTextEmbeddings", "CLIPVisionEmbeddings"]
    _can_record_outputs = {}  # the image encoder records its own outputs

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self:
            for name in ("depth_embeddings", *_OFFSETS.values()):
                if getattr(self, name, None) is not None:
                    init.zeros_(getattr(self, name))

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, but what the configuration freezes is frozen. Parts that learn may be new."""
        loaded = super().from_pretrained(*args, **kwargs)
        # Loading creates new parameters, which require gradients.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._freeze()
        return loaded

    def _accept_missing(self, missing: set[str]) -> set[str]:
        return missing - set(_OFFSETS.values())

    def _freeze(self):
        raise NotImplementedError


def _depths(values) -> list[float]:
    """ValueError unless `values` are numbers; which ones, the configuration checks."""
    try:
        if isinstance(values, str | bytes):
            raise TypeError
        return [float(depth) for depth in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"bins: {str(values)[:60]!r}, expected a list of depths") from error


_OFFSETS = {"bins": "bin_offsets", "words": "word_offsets", "temperature": "temperature_offset"}


class DepthCLIPForDepthEstimation(DepthCLIPPreTrainedModel):
    r"""
    DepthCLIP (Zhang et al. 2022): depth of an image without any training, by sentences such as "This object is far".

    Each location of the image encoder's last feature map is compared with the K sentences; the softmax over them
    weighs their depths (the paper's equation 2). Depth lies between the smallest and the largest of
    `config.bin_centers`. Nothing is trained: any CLIP loads, and `from_clip` makes a model of one. The sentences'
    embeddings are stored, so that images need no text encoder.

    This shows what CLIP's images know of distance words. For depth to be used, take Depth Anything (in transformers).

    With `config.learnable_parts`, a few images with depth maps calibrate it (`Trainer`); the paper has nothing of it.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import DepthCLIPConfig, DepthCLIPForDepthEstimation

    >>> vision = {"hidden_size": 256, "depths": [1, 1, 1, 1], "num_attention_heads": 4, "image_size": 64}
    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> config = DepthCLIPConfig(text_config=text, vision_config=vision, projection_dim=128)
    >>> model = DepthCLIPForDepthEstimation(config).eval()
    >>> model = model.set_depth_embeddings(torch.randn(7, 128))  # or set_depth_words(tokenizer)
    >>> outputs = model(torch.randn(2, 3, 64, 100))
    >>> outputs.predicted_depth.shape, outputs.word_logits.shape
    (torch.Size([2, 64, 100]), torch.Size([2, 7, 2, 4]))
    ```
    """

    def __init__(self, config: DepthCLIPConfig):
        super().__init__(config)
        self.family = family_of(config.backbone_model_type)
        self.clip = self.family.model_class()._from_config(self.family.model_config(config))
        if config.text_encoder_dropped:
            self._remove_text_encoder()
        rows, words, width = len(config.encoded_texts or ()), len(config.depth_words), config.projection_dim
        self.register_buffer("depth_embeddings", torch.zeros(rows, width) if rows else None)
        shapes = {"bins": (words,), "words": (words, width), "temperature": ()}
        for part, name in _OFFSETS.items():
            given = part in config.learnable_parts
            self.register_parameter(name, nn.Parameter(torch.zeros(shapes[part])) if given else None)
        self.post_init()
        self._freeze()

    @classmethod
    def from_clip(cls, clip: PreTrainedModel, tokenizer=None, **options) -> "DepthCLIPForDepthEstimation":
        """A model with the weights of a dual encoder.

        Args:
            clip: a `CLIPResNetModel`, as in the paper, or a `CLIPModel` with a Vision Transformer.
            tokenizer: the dual encoder's, or its processor; the words are encoded with it. None: `set_depth_words`
                does it later.
            options: fields of [`DepthCLIPConfig`], such as `depth_words` and `bin_centers`.
        """
        values = {k: v for k, v in clip.config.to_dict().items() if k not in ("model_type", "architectures", "dtype")}
        values["backbone_model_type"] = clip.config.model_type
        model = cls(DepthCLIPConfig(**values | options)).to(clip.dtype)
        copy_weights(model.clip, clip, options=options)
        model.eval()
        return model if tokenizer is None else model.set_depth_words(tokenizer)

    # ---- words and bins

    @torch.no_grad()
    def set_depth_words(
        self,
        tokenizer,
        words: Sequence[str] | None = None,
        bins: Sequence[float] | None = None,
        templates: Sequence[str] | None = None,
        object_word: str | None = None,
    ) -> "DepthCLIPForDepthEstimation":
        """Encodes the words and stores their embeddings, which are saved with the model; returns the model.

        Args:
            tokenizer: the model's, or its processor.
            words, bins, templates, object_word: as in [`DepthCLIPConfig`]; None: the configuration's. Give `bins` with
                another number of words. What was learned for other words or bins is forgotten.

        Raises:
            ValueError: words and bins that are not as many, a blank or repeated word, two words that are the same to
                the tokenizer, a template without {distance}, no text encoder. The model is as it was then.
        """
        given = {"depth_words": words, "bin_centers": bins, "templates": templates, "object_word": object_word}
        given = {name: value for name, value in given.items() if value is not None}
        for name, value in given.items():
            if name in ("depth_words", "templates"):
                given[name] = check_texts(value, name)
            elif name == "bin_centers":
                given[name] = _depths(value)
        wanted = DepthCLIPConfig.from_dict(self.config.to_dict() | {"encoded_texts": None} | given)
        texts = wanted.texts
        tokens = encode_texts(
            getattr(tokenizer, "tokenizer", tokenizer),
            [text for row in texts for text in row],
            what="depth_words",
            padding=True,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        rows = tokens["input_ids"].view(len(texts), -1).tolist()
        check_names_differ(wanted.depth_words, [tuple(row) for row in rows], "depth_words")
        training = self.training
        self.eval()
        try:
            features = self.get_text_features(**tokens).pooler_output
        finally:
            self.train(training)
        self._store(wanted, text_weights(features.unflatten(0, (len(texts), -1))), texts)
        return self

    @torch.no_grad()
    def set_depth_embeddings(self, embeddings: torch.Tensor) -> "DepthCLIPForDepthEstimation":
        """Stores embeddings (K, C) of the configuration's words that were made elsewhere; returns the model.

        Raises:
            ValueError: another shape, no floats, or numbers that are not finite.
        """
        wanted = [len(self.config.depth_words), self.config.projection_dim]
        is_tensor = isinstance(embeddings, torch.Tensor) and embeddings.is_floating_point()
        if not is_tensor or list(embeddings.shape) != wanted or not embeddings.isfinite().all():
            got = list(embeddings.shape) if isinstance(embeddings, torch.Tensor) else type(embeddings).__name__
            raise ValueError(f"embeddings: got {got}, expected finite floats {wanted} (words, projection_dim)")
        self._store(self.config, unit_norm(embeddings.to(self.device)), self.config.texts)
        return self

    def _store(self, wanted: DepthCLIPConfig, embeddings: torch.Tensor, texts: list[list[str]]) -> None:
        config = self.config
        for part, new, old in (
            ("bins", wanted.bin_centers, config.bin_centers),
            ("words", texts, config.encoded_texts),
        ):
            offsets = getattr(self, _OFFSETS[part])
            if offsets is not None and new != old:
                shape = (len(new), *offsets.shape[1:])
                setattr(self, _OFFSETS[part], nn.Parameter(offsets.detach().new_zeros(shape)))
        for name in ("depth_words", "bin_centers", "templates", "object_word"):
            setattr(config, name, getattr(wanted, name))
        config.encoded_texts = texts
        self.depth_embeddings = embeddings.to(self.dtype)

    def drop_text_encoder(self) -> "DepthCLIPForDepthEstimation":
        """Removes the text encoder, and returns the model: it keeps its words, and is saved without it.

        Raises:
            ValueError: no words are encoded yet.
        """
        self._stored_words()
        self._remove_text_encoder()
        self.config.text_encoder_dropped = True
        return self

    def _remove_text_encoder(self) -> None:
        for name in filter(None, ("text_model", self.family.text_projection)):
            setattr(self.clip, name, None)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """As in `CLIPModel`: `pooler_output` (N, C), not normalised. ValueError without a text encoder."""
        self._check_text_encoder()
        text = self.config.text_config
        check_token_ids(input_ids, text.vocab_size, longest=text.max_position_embeddings)
        kwargs["return_dict"] = True
        return self.clip.get_text_features(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def _check_text_encoder(self) -> None:
        if self.config.text_encoder_dropped:
            raise ValueError(
                "depth_words: the text encoder was dropped (text_encoder_dropped), the model has its stored words "
                "only; load the checkpoint that still has it"
            )

    def _stored_words(self) -> torch.Tensor:
        """(K, C) of the configuration's words; ValueError where there are none, or others."""
        if self.depth_embeddings is None:
            raise ValueError("depth_words: not encoded yet (encoded_texts is None); call set_depth_words(tokenizer)")
        if self.config.encoded_texts != self.config.texts:
            raise ValueError(
                f"depth_words, templates, object_word: {str(self.config.texts)[:80]} are not the texts whose "
                "embeddings are stored; call set_depth_words(tokenizer)"
            )
        return self.depth_embeddings

    # ---- what learns

    def word_embeddings(self) -> torch.Tensor:
        """(K, C) float32 of unit norm: what locations are compared with, with what was learned."""
        stored = self._stored_words().float()
        return stored if self.word_offsets is None else unit_norm(stored + self.word_offsets.float())

    def bins(self) -> torch.Tensor:
        """(K,) float32: the depth of each word, with what was learned: the configuration's times e to the offset."""
        bins = torch.tensor(self.config.bin_centers, dtype=torch.float32, device=self.device)
        return bins if self.bin_offsets is None else bins * self.bin_offsets.float().exp()

    def scale(self) -> torch.Tensor | float:
        """By what cosine similarities are multiplied: the logit scale over the temperature."""
        scale = self.config.logit_scale / self.config.temperature
        return scale if self.temperature_offset is None else scale * (-self.temperature_offset.float()).exp()

    def _freeze(self):
        """All but the parts that learn and, if it is trained, what is read of the image encoder."""
        self.clip.requires_grad_(False)
        if self.config.freeze_image_encoder:
            return
        vision, official = self.clip.vision_model, self.config.feature_projection == "official"
        vision.requires_grad_(True)
        if self.config.is_convolutional:
            pool = vision.attnpool
            pool.requires_grad_(not official)
            pool.positional_embedding.requires_grad_(False)
            unread = (pool.q_proj, pool.k_proj)
        else:
            self.clip.visual_projection.requires_grad_(True)
            attention = vision.encoder.layers[-1].self_attn
            unread = (attention.q_proj, attention.k_proj)
        for module in unread:
            module.requires_grad_(False)

    def train(self, mode: bool = True):
        """As in torch, but a frozen image encoder stays in eval mode."""
        super().train(mode)
        if mode and self.config.freeze_image_encoder:
            self.clip.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        self._check_text_encoder()
        return self.family.token_embedding_of(self.clip)

    def set_input_embeddings(self, value: nn.Module):
        self._check_text_encoder()
        self.clip.text_model.embeddings.token_embedding = value

    # ---- features

    def get_patch_features(self, pixel_values: torch.Tensor, **kwargs) -> tuple[torch.Tensor, ModelOutput]:
        """(B, 3, H, W), H and W multiples of the stride -> (B, h w, C) float32, as they are compared with words, and
        what the image encoder recorded (`hidden_states`, `attentions`)."""
        pixel_values, vision = pixel_values.to(self.dtype), self.clip.vision_model
        if self.config.is_convolutional:
            maps = vision._maps(pixel_values)
            tokens = maps[-1].flatten(2).transpose(1, 2)  # (B, h w, 2048)
            recorded = ModelOutput(hidden_states=maps if kwargs.get("output_hidden_states") else None)
            if self.config.feature_projection == "official":
                # The norm is over all channels, before half of them are left out.
                return halved_channels(unit_norm(tokens.float())), recorded
            pool = vision.attnpool
            return unit_norm(pool.c_proj(pool.v_proj(tokens)).float()), recorded
        layers = len(vision.encoder.layers)
        recorded = vision(
            pixel_values, **kwargs | {"output_hidden_states": True, "return_dict": True}, interpolate_pos_encoding=True
        )
        # In the last layer each patch attends to itself alone (MaskCLIP): attention's weights become 1.
        tokens, layer = recorded.hidden_states[layers - 1], vision.encoder.layers[-1]
        attention = layer.self_attn
        tokens = tokens + attention.out_proj(attention.v_proj(layer.layer_norm1(tokens)))
        tokens = tokens + layer.mlp(layer.layer_norm2(tokens))
        tokens = self.clip.visual_projection(vision.post_layernorm(tokens[:, 1:]))
        if not kwargs.get("output_hidden_states"):
            recorded = ModelOutput(attentions=recorded.get("attentions"))
        return unit_norm(tokens.float()), recorded

    def _around(self, width: int) -> int:
        """Pixels by which a panorama of this width is continued on either side: whole locations."""
        stride = self.config.stride
        return min(_AROUND // stride or 1, width // stride) * stride if self.config.panorama else 0

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DepthCLIPOutput:
        r"""
        Args:
            pixel_values: (B, 3, H, W), floats, normalised with ImageNet's mean and deviation, of any size. Where H or
                W is no multiple of the stride, the last row and column are repeated up to one, and cut off later.
            labels: (B, H, W), depth in the unit of the bins; 0, NaN and infinite where it is not known.

        Returns:
            [`DepthCLIPOutput`]. With `labels`, `loss` is `scale_invariant_loss`.

        Raises:
            ValueError: no words are encoded, or other ones; inputs of wrong shapes or types.
        """
        config = self.config
        check_pixels(pixel_values, getattr(config.vision_config, "num_channels", 3))
        words = self.word_embeddings()
        (count, _, height, width), around = pixel_values.shape, self._around(pixel_values.shape[-1])
        images = torch.cat([pixel_values, pixel_values.flip(-1)]) if config.flip_average else pixel_values
        if around:
            images = F.pad(images, (around, around, 0, 0), mode="circular")
        padded = pad_to_multiple(images, config.stride)
        kwargs.pop("return_dict", None)
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name) is None:
                kwargs[name] = getattr(config, name)
        features, recorded = self.get_patch_features(padded, **kwargs)
        rows, columns = (side // config.stride for side in padded.shape[-2:])
        with torch.autocast(pixel_values.device.type, enabled=False):
            # In float32: logits of several hundreds, in whose softmax half precision sees one word only.
            logits = self.scale() * features.float() @ words.T
            logits = logits.transpose(1, 2).unflatten(2, (rows, columns))
            depth = expected_depth(logits, self.bins())
            full = F.interpolate(
                depth[:, None], size=padded.shape[-2:], mode="bilinear", align_corners=config.align_corners
            )[:, 0, :height, around : around + width]
        if config.flip_average:
            # Officially the small maps are averaged: the same but for rounding, and wrong where one side is padded.
            full = (full[:count] + full[count:].flip(-1)) / 2
        check_output(self, full, "predicted_depth", pixel_values=pixel_values)
        loss = None if labels is None else self._loss(full, labels)
        seen = -(-width // config.stride)
        start = around // config.stride
        return DepthCLIPOutput(
            loss=loss,
            predicted_depth=full,
            word_logits=logits[:count, :, :, start : start + seen],
            hidden_states=_first(recorded.get("hidden_states"), count),
            attentions=_first(recorded.get("attentions"), count),
        )

    def _loss(self, depth: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled() and not depth.requires_grad:
            raise ValueError(
                "learnable_parts: nothing of this model is trained; want some of bins, words, temperature, or "
                "freeze_image_encoder=False (from_pretrained(..., learnable_parts=[...]))"
            )
        return scale_invariant_loss(depth, labels, self.config.scale_invariance)


__all__ = [
    "DepthCLIPForDepthEstimation",
    "DepthCLIPOutput",
    "DepthCLIPPreTrainedModel",
    "expected_depth",
    "halved_channels",
    "text_weights",
]
