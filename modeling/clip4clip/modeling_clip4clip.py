"""CLIP4Clip: videos and texts compared by a dual encoder of images and one of four heads.

Paper: "CLIP4Clip: An Empirical Study of CLIP for End to End Video Clip Retrieval", https://arxiv.org/abs/2104.08860.
"""

from typing import Unpack

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as checkpoint_activations
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import TransformersKwargs, can_return_tuple

from ..dual_encoders.backbones import family_of, unit_norm
from ..dual_encoders.forward_checks import check_output, check_token_ids
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from ..loading_and_saving.copied_weights import copy_weights
from ..losses.contrastive_loss import contrastive_loss
from ..video.temporal_layers import TemporalLayers
from ..video.video_dual_encoder import VideoDualEncoder, VideoTextOutput
from ..video.video_inputs import check_videos, checked_mask
from .configuration_clip4clip import FRAMES_SEEN, CLIP4ClipConfig
from .heads_clip4clip import CLIP4ClipPairScorer, unit_masked_mean, with_neighbours


# B texts, L tokens, V videos, T frames, D joint width

_STD = 0.02  # of new layers in heads
_HEAD_PARTS = ("temporal_lstm", "temporal_layers", "pair_scorer")


class CLIP4ClipPreTrainedModel(CheckedLoading, StagedSaving, PreTrainedModel):
    config: CLIP4ClipConfig
    base_model_prefix = "clip"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_attention_backend = True
    _no_split_modules = ["CLIPEncoderLayer", "CLIPTextEmbeddings", "CLIPVisionEmbeddings", "TemporalLayers"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.LSTM):  # PyTorch's own
            for weight in module.parameters(recurse=False):
                init.uniform_(weight, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=_STD)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)


class CLIP4ClipModel(VideoDualEncoder, CLIP4ClipPreTrainedModel):
    r"""
    CLIP4Clip (Luo et al. 2021): retrieval of videos by texts and of texts by videos.

    The dual encoder is `clip`. `from_clip` makes a model of a trained one; its head starts from the text encoder's
    layers, as in the official code, and so does that of a model that is loaded from a plain dual encoder's checkpoint.
    With head meanP nothing is new: a zero-shot model.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import CLIP4ClipConfig, CLIP4ClipModel

    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> vision = text | {"image_size": 32, "patch_size": 16}
    >>> config = CLIP4ClipConfig(text_config=text, vision_config=vision, projection_dim=64)
    >>> model = CLIP4ClipModel(config).eval()
    >>> ids = torch.tensor([[49406, 320, 49407], [49406, 518, 49407], [49406, 550, 49407]])
    >>> model(ids, torch.randn(2, 5, 3, 32, 32)).logits_per_video.shape
    torch.Size([2, 3])
    ```
    """

    def __init__(self, config: CLIP4ClipConfig):
        super().__init__(config)
        self.family = family_of(config.backbone_model_type)
        self.clip = self.family.model_class()._from_config(self.family.model_config(config))
        # transformers tells it to configurations of models; the head's layers are none.
        config.head_config._attn_implementation = config._attn_implementation
        width, head = config.projection_dim, config.similarity_head
        if head == "seqLSTM":
            self.temporal_lstm = nn.LSTM(width, width, batch_first=True)
        elif head == "seqTransf":
            self.temporal_layers = TemporalLayers(config.head_config)
        elif head == "tightTransf":
            self.pair_scorer = CLIP4ClipPairScorer(config.head_config, config.head_dropout)
        self.post_init()
        self.freeze_layers(config.frozen_layers)

    # ---- making and freezing

    @classmethod
    def from_clip(cls, clip: PreTrainedModel, **options) -> "CLIP4ClipModel":
        """A model with the weights of a dual encoder; its head starts from the text encoder's layers.

        Args:
            clip: a `CLIPModel`, or for loose heads another one of `modeling/dual_encoders/backbones.py`.
            options: fields of [`CLIP4ClipConfig`], such as `similarity_head="meanP"` or `patch_embedding="3d"`.
        """
        config = CLIP4ClipConfig(**CLIP4ClipConfig.values_from(clip.config) | options)
        model, weights = cls(config).to(clip.dtype), dict(clip.state_dict())
        if config.patch_embedding == "3d":
            name = "vision_model.embeddings.patch_embedding.weight"
            weights[name] = inflated_patches(weights[name])
        copy_weights(model.clip, weights, options=options)
        model.initialize_head()
        return model.eval()

    @torch.no_grad()
    def initialize_head(self) -> None:
        """Positions and layers of a head of transformer layers as copies of the text encoder's first ones, as far as
        there are some of the same sizes ("Initialization" in section 3.2 of the paper)."""
        head = getattr(self, "temporal_layers", None)
        if hasattr(self, "pair_scorer"):
            head = self.pair_scorer.layers
        if head is None or self.config.backbone_model_type != "clip":
            return
        text = self.clip.text_model
        pairs = [(text.embeddings.position_embedding, head.position_embedding)]
        pairs += zip(text.encoder.layers, head.layers, strict=False)
        for source, target in pairs:
            weights, wanted = source.state_dict(), target.state_dict()
            if all(weights[name].shape == tensor.shape for name, tensor in wanted.items()):
                target.load_state_dict(weights)

    def freeze_layers(self, count: int) -> None:
        """Freezes embeddings, patches and the first `count` layers of both encoders (0: no layer), -1: nothing.

        The official option `freeze_layer_num`. The projections, the last norms, `logit_scale` and the head train, and
        so does a 3-D patch embedding.
        """
        self.requires_grad_(True)
        if count < 0:
            return
        family = self.family
        names = [family.text_embeddings, family.vision_embeddings, family.patch_norm]
        modules = [self.clip.get_submodule(name) for name in names if name and _has(self.clip, name)]
        for name in (family.text_layers, family.vision_layers):
            modules += list(self.clip.get_submodule(name))[:count] if name and _has(self.clip, name) else []
        for module in modules:
            module.requires_grad_(False)
        if self.config.patch_embedding == "3d":
            self.clip.vision_model.embeddings.patch_embedding.requires_grad_(True)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers; layers that `config.frozen_layers` freezes are frozen, too."""
        found = super().from_pretrained(*args, output_loading_info=output_loading_info, **kwargs)
        model = found[0] if output_loading_info else found
        model.freeze_layers(model.config.frozen_layers)
        return found

    def _accept_missing(self, missing: set[str]) -> set[str]:
        """A head of which a checkpoint holds nothing starts from the text encoder; one that is partly there is
        damaged."""
        for part in _HEAD_PARTS:
            names = {name for name in self.state_dict() if name.startswith(part + ".")}
            if names and names <= missing:
                missing = missing - names
                self.initialize_head()
        return missing

    # ---- features

    def _encode_frames(self, pixel_values_videos: torch.Tensor, mask: torch.Tensor, **kwargs):
        if self.config.patch_embedding == "3d":
            pixel_values_videos = with_neighbours(pixel_values_videos)
        return super()._encode_frames(pixel_values_videos, mask, **kwargs)

    def temporal_features(self, frame_features: torch.Tensor, video_mask: torch.Tensor) -> torch.Tensor:
        """(V, T, D) -> (V, T, D): frames that know of each other, by a sequential head; else the same."""
        if hasattr(self, "temporal_lstm"):
            # Frames that are not there come last: no other one sees them, and they are left out of the mean.
            return frame_features + self.temporal_lstm(frame_features)[0]
        if hasattr(self, "temporal_layers"):
            return frame_features + self.temporal_layers(frame_features, video_mask)
        return frame_features

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.FloatTensor,
        video_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """(V, T, 3, H, W) -> `last_hidden_state` (V, T, D), frames after the head; `pooler_output` (V, D), the mean of
        their unit vectors, not of unit norm. `hidden_states` and `attentions` are the image encoder's, with a row for
        each frame that is there.

        Raises:
            ValueError: a tightTransf model: there, a video has no features without a text.
        """
        if self.config.similarity_head == "tightTransf":
            raise ValueError(
                "similarity_head: tightTransf compares each video with each text, a video has no features by itself; "
                "want get_frame_features and score_pairs, or another head"
            )
        check_videos(pixel_values_videos)
        mask = checked_mask(video_mask, pixel_values_videos)
        frames, outputs = self._encode_frames(pixel_values_videos, mask, **kwargs)
        hidden = self.temporal_features(frames, mask)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=unit_masked_mean(hidden, mask),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def score_pairs(
        self, text_features: torch.Tensor, frame_features: torch.Tensor, video_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """tightTransf: (B, D) text features and (V, T, D) frame features -> (B, V) scores, `config.pairs_per_tile`
        pairs at a time; with gradients, each tile is computed again in the backward pass.
        """
        texts, videos = len(text_features), len(frame_features)
        if video_mask is None:
            video_mask = torch.ones(frame_features.shape[:2], dtype=torch.long, device=frame_features.device)
        rows = torch.arange(texts * videos, device=text_features.device)
        tiles = rows.split(self.config.pairs_per_tile)

        def score(pairs: torch.Tensor) -> torch.Tensor:
            text, video = pairs // videos, pairs % videos
            return self.pair_scorer(text_features[text], frame_features[video], video_mask[video])

        again = torch.is_grad_enabled() and len(tiles) > 1
        scores = [checkpoint_activations(score, t, use_reentrant=False) if again else score(t) for t in tiles]
        return torch.cat(scores).view(texts, videos)

    def video_text_logits(
        self,
        pixel_values_videos: torch.FloatTensor,
        text_features: torch.Tensor,
        video_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(V, T, 3, H, W) and (B, D) text features, which may be kept from an earlier call -> logits (V, B)."""
        check_videos(pixel_values_videos)
        mask = checked_mask(video_mask, pixel_values_videos)
        frames = self._encode_frames(pixel_values_videos, mask)[0]
        logits = self._compare(text_features, frames, mask)[0].T
        check_output(self, logits, "logits_per_video", pixel_values_videos=pixel_values_videos)
        return logits

    def _compare(self, texts: torch.Tensor, frames: torch.Tensor, mask: torch.Tensor):
        """Text features (B, D) and frame features (V, T, D) -> logits (B, V), and unit vectors of texts and videos; of
        tightTransf, which has none, the texts' features and None."""
        if self.config.similarity_head == "tightTransf":
            return self.score_pairs(texts, frames, mask), texts, None
        videos, texts = unit_norm(unit_masked_mean(self.temporal_features(frames, mask), mask)), unit_norm(texts)
        logits = self.family.logit_scale(self.clip) * texts @ videos.T.to(texts.dtype)
        bias = self.family.logit_bias(self.clip)
        return logits if bias is None else logits + bias, texts, videos

    # ---- forward

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        pixel_values_videos: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        video_mask: torch.Tensor | None = None,
        return_loss: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VideoTextOutput:
        r"""
        Args:
            input_ids, attention_mask: (B, L), as the tokenizer gives them.
            pixel_values_videos: (V, T, 3, H, W), normalised.
            video_mask: (V, T), 1 for frames that are there, which come first; None: all are.
            return_loss: text i belongs to video i; B = V. On several processes the loose heads' loss is that of all
                pairs (in training), tightTransf's that of this process's, as in the official code.

        Returns:
            [`VideoTextOutput`].

        Raises:
            ValueError: inputs of wrong shapes or types, texts that are too long, a video without frames, texts that
                are not as many as videos; on a CPU, in eval mode, NaN in the answer, with its cause.
        """
        check_videos(pixel_values_videos)
        check_token_ids(input_ids, self.config.text_config.vocab_size)
        if return_loss and len(input_ids) != len(pixel_values_videos):
            raise ValueError(
                f"return_loss: {len(input_ids)} texts for {len(pixel_values_videos)} videos, expected a text of each"
            )
        mask = checked_mask(video_mask, pixel_values_videos)
        text_outputs = self._encode_texts(input_ids, attention_mask, **kwargs)
        frames, frame_outputs = self._encode_frames(pixel_values_videos, mask, **kwargs)
        logits, text_embeds, video_embeds = self._compare(text_outputs.pooler_output, frames, mask)
        check_output(self, logits, "logits_per_text", pixel_values_videos=pixel_values_videos)
        loss = None
        if return_loss and video_embeds is None:
            loss = symmetric_cross_entropy(logits)
        elif return_loss:
            scale = self.family.logit_scale(self.clip).log()
            gather = "exact" if self.training else "none"
            loss = contrastive_loss(video_embeds, text_embeds, scale, gather=gather)
        return VideoTextOutput(
            loss=loss,
            logits_per_video=logits.T,
            logits_per_text=logits,
            text_embeds=text_embeds,
            video_embeds=video_embeds,
            frame_features=frames,
            text_model_output=text_outputs,
            vision_model_output=frame_outputs,
        )


def symmetric_cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Of (N, N) scores with pair i at (i, i): the mean over both directions."""
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits.float(), labels) + F.cross_entropy(logits.T.float(), labels)) / 2


def inflated_patches(weight: torch.Tensor) -> torch.Tensor:
    """(W, 3, p, p) -> (W, 9, p, p) for 3-D patches: of three frames, only the one in the middle counts."""
    empty = torch.zeros_like(weight)
    return torch.cat([empty] * (FRAMES_SEEN // 2) + [weight] + [empty] * (FRAMES_SEEN // 2), 1)


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


__all__ = ["CLIP4ClipModel", "CLIP4ClipPreTrainedModel"]
