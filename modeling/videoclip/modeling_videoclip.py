"""VideoCLIP: a video's seconds and a text through two BERTs, compared by the dot product of their means.

Paper: "VideoCLIP: Contrastive Pre-training for Zero-shot Video-Text Understanding", https://arxiv.org/abs/2109.14084.
"""

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from ..dual_encoders.forward_checks import check_output, check_token_ids
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from ..loading_and_saving.copied_weights import copy_weights
from ..losses.contrastive_loss import contrastive_loss
from ..video.moments import mean_over_windows, window_starts
from ..video.video_inputs import checked_mask
from .configuration_videoclip import VideoCLIPConfig
from .s3d_videoclip import VideoCLIPS3D


# B texts, L tokens, V videos, T seconds, S frames a second, F width of features, D width of both encoders

_SECONDS_AT_ONCE = 4  # that S3D-G sees: about 150 MB each at 224 pixels


@dataclass
class VideoCLIPOutput(ModelOutput):
    """
    Args:
        loss: (), with `return_loss`: the sum of the cross-entropies of videos over texts and of texts over videos, or
            one of them (`config.loss_direction`).
        logits_per_video: (V, B), dot products; nothing is scaled.
        logits_per_text: (B, V), its transpose.
        text_embeds: (B, D), not normalised.
        video_embeds: (V, D), not normalised.
        video_hidden_states: (V, T, D), of each second; of seconds that are not there, without meaning.
        text_model_output, video_model_output: of the two encoders; the video's has [CLS], the seconds and [SEP].
    """

    loss: torch.FloatTensor | None = None
    logits_per_video: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    video_embeds: torch.FloatTensor | None = None
    video_hidden_states: torch.FloatTensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    video_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


class VideoCLIPFeatureProjection(nn.Module):
    """(..., F) -> (..., D): features of a second as an embedding for BERT."""

    def __init__(self, config: VideoCLIPConfig):
        super().__init__()
        width = config.hidden_size
        self.input_layer = nn.Linear(config.feature_size, width)
        self.normalization = nn.LayerNorm(width, eps=1e-5)
        self.output_layer = nn.Linear(width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.output_layer(self.normalization(F.gelu(self.input_layer(features))))


class VideoCLIPPreTrainedModel(CheckedLoading, StagedSaving, PreTrainedModel):
    config: VideoCLIPConfig
    base_model_prefix = "videoclip"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    has_unit_embeddings = False  # texts of several templates are averaged as they are
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_attention_backend = True
    _no_split_modules = ["BertLayer", "BertEmbeddings", "VideoCLIPInception"]


class VideoCLIPModel(VideoCLIPPreTrainedModel):
    r"""
    VideoCLIP (Xu et al. 2021): videos and texts in one space, for retrieval and for what happens in each second.

    S3D-G makes one vector of each second, and does not train (`config.train_s3d`); it can be left out where features
    are given. The seconds, between [CLS] and [SEP], go through a BERT of their own. A video is the mean over its
    seconds and [SEP], a text the mean over its tokens and [SEP]; scores are dot products.

    Prefer CLIP4Clip for short clips in which images are enough: it starts from CLIP. This model is finer in time (each
    second has a vector) and coarser in space.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import VideoCLIPConfig, VideoCLIPModel

    >>> text = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    >>> model = VideoCLIPModel(VideoCLIPConfig(text_config=text, use_s3d=False)).eval()
    >>> ids = torch.tensor([[101, 2054, 102], [101, 2129, 102], [101, 2339, 102]])
    >>> output = model(ids, video_features=torch.randn(2, 5, 512))
    >>> output.logits_per_video.shape, output.video_hidden_states.shape
    (torch.Size([2, 3]), torch.Size([2, 5, 48]))
    ```
    """

    def __init__(self, config: VideoCLIPConfig):
        super().__init__(config)
        if config.use_s3d:
            self.s3d = VideoCLIPS3D(config.vision_config)
        self.feature_projection = VideoCLIPFeatureProjection(config)
        self.video_model = BertModel._from_config(config.video_config, add_pooling_layer=False)
        self.text_model = BertModel._from_config(config.text_config, add_pooling_layer=False)
        self.post_init()
        self._freeze_s3d()

    # ---- making and freezing

    @classmethod
    def from_bert(cls, bert: PreTrainedModel, video_layers: int | None = None, **options) -> "VideoCLIPModel":
        """A new model whose encoders start from a BERT, as the paper's do: the text encoder is the BERT, the video
        encoder its first layers.

        Args:
            bert: a `BertModel`.
            video_layers: of the video encoder; None: half of the BERT's.
            options: fields of [`VideoCLIPConfig`].
        """
        text = {k: v for k, v in bert.config.to_dict().items() if k not in ("architectures", "dtype")}
        config = VideoCLIPConfig(text_config=text, **options)
        if video_layers is not None:
            config.video_config.num_hidden_layers = video_layers
        model, weights = cls(config).to(bert.dtype), bert.state_dict()
        for part in (model.text_model, model.video_model):
            names = part.state_dict().keys()
            copy_weights(part, {name: tensor for name, tensor in weights.items() if name in names}, "bert", options)
        return model.eval()

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers; S3D-G is frozen, unless `config.train_s3d`."""
        found = super().from_pretrained(*args, output_loading_info=output_loading_info, **kwargs)
        model = found[0] if output_loading_info else found
        model._freeze_s3d()
        return found

    def _freeze_s3d(self) -> None:
        if self.config.use_s3d:
            self.s3d.requires_grad_(self.config.train_s3d)

    def train(self, mode: bool = True):
        """As in PyTorch; a frozen S3D-G stays in eval mode, so that its statistics stay as they are."""
        super().train(mode)
        if self.config.use_s3d and not self.config.train_s3d:
            self.s3d.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    # ---- features of seconds

    def get_second_features(
        self, pixel_values_videos: torch.FloatTensor, video_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Frames -> (V, T, F), S3D-G's vector of each second, not normalised; zeros for seconds that are not there,
        which are not looked at.

        Args:
            pixel_values_videos: (V, T * S, 3, H, W) or (V, T, S, 3, H, W), values 0..1, S frames of each second.
            video_mask: (V, T), or (V, T * S) as the processor gives it.

        Raises:
            ValueError: a model without S3D-G, frames that are no whole seconds, odd sides, numbers outside of 0..1.
        """
        seconds = self._seconds(pixel_values_videos)
        mask = self._mask_of_seconds(video_mask, seconds)
        trains = self.config.train_s3d and torch.is_grad_enabled()
        there = seconds.flatten(0, 1) if torch.compiler.is_compiling() else seconds[mask.bool()]
        with torch.set_grad_enabled(trains):
            videos = there.transpose(1, 2).to(self.dtype)
            at_once = len(videos) if self.s3d.training else _SECONDS_AT_ONCE  # statistics are of all
            found = torch.cat([self.s3d(some) for some in videos.split(at_once)])
        if len(found) == mask.numel():
            return found.unflatten(0, mask.shape) * mask[..., None].to(found.dtype)
        features = found.new_zeros(*mask.shape, found.shape[-1])
        return features.masked_scatter(mask.bool()[..., None], found)

    def _seconds(self, pixels: torch.Tensor) -> torch.Tensor:
        """-> (V, T, S, 3, H, W)."""
        if not self.config.use_s3d:
            raise ValueError(
                "pixel_values_videos: this model has no S3D-G (config.use_s3d=False); want video_features, or "
                "convert with --s3d"
            )
        rate = self.config.vision_config.frames_per_second
        is_tensor = isinstance(pixels, torch.Tensor)
        got = list(pixels.shape) if is_tensor else type(pixels).__name__
        if not is_tensor or pixels.dim() not in (5, 6) or pixels.shape[-3] != 3:
            raise ValueError(
                f"pixel_values_videos: got {got}, expected [videos, frames, 3, H, W], {rate} frames of each second"
            )
        if not pixels.is_floating_point():
            raise ValueError(
                f"pixel_values_videos: {pixels.dtype}, expected floats in 0..1, as the video processor returns"
            )
        if not torch.compiler.is_compiling() and not pixels.numel():
            raise ValueError(f"pixel_values_videos: expected at least one video with frames, got {got}")
        if pixels.dim() == 5 and pixels.shape[1] % rate:
            raise ValueError(
                f"pixel_values_videos: {pixels.shape[1]} frames, expected whole seconds of {rate} frames; want the "
                "sampling rule 'whole_seconds' in the video processor"
            )
        if pixels.dim() == 6 and pixels.shape[2] != rate:
            raise ValueError(f"pixel_values_videos: {pixels.shape[2]} frames a second, expected {rate}")
        if pixels.shape[-1] % 2 or pixels.shape[-2] % 2:
            raise ValueError(f"pixel_values_videos: frames of {list(pixels.shape[-2:])}, expected even sides")
        return pixels if pixels.dim() == 6 else pixels.unflatten(1, (-1, rate))

    def _mask_of_seconds(self, mask: torch.Tensor | None, videos: torch.Tensor) -> torch.Tensor:
        """(V, T); of a mask of frames, every S-th number."""
        rate = self.config.vision_config.frames_per_second
        frames = (videos.shape[0], videos.shape[1] * rate)
        is_of_frames = isinstance(mask, torch.Tensor) and tuple(mask.shape) == frames
        if is_of_frames and rate > 1 and not mask.is_complex():
            mask = mask.reshape(videos.shape[0], -1, rate).amin(-1)  # a second that is begun is filled up
        return checked_mask(mask, videos, "second")

    # ---- features of videos and texts

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_features: torch.FloatTensor | None = None,
        video_mask: torch.Tensor | None = None,
        attend_to_start: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Videos without any text -> `last_hidden_state` (V, T, D), of each second; `pooler_output` (V, D), the mean
        over seconds and [SEP]. `hidden_states` and `attentions` also have [CLS] and [SEP].

        Args:
            pixel_values_videos: as in `get_second_features`; or
            video_features: (V, T, F), of each second, at most `config.max_video_length`.
            video_mask: (V, T), 1 for seconds that are there, which come first; None: all are.
            attend_to_start: `False`: no second looks at [CLS], as in the official code where seconds are labelled.

        Raises:
            ValueError: both or none of frames and features, wrong shapes, too many seconds, a video without seconds.
        """
        outputs, _ = self._encode_video(pixel_values_videos, video_features, video_mask, attend_to_start, **kwargs)
        hidden = outputs.last_hidden_state
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden[:, 1:-1],
            pooler_output=outputs.pooler_output,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _encode_video(self, pixels, features, video_mask, attend_to_start: bool = True, **kwargs):
        """The video encoder's output with [CLS], seconds and [SEP], its `pooler_output` the mean; the mask (V, T)."""
        if (pixels is None) == (features is None):
            got = "neither" if pixels is None else "both"
            raise ValueError(f"pixel_values_videos, video_features: got {got}, expected one of them")
        config = self.config
        seconds = self._seconds(pixels) if features is None else features
        self._check_features(features)
        longest = config.max_video_length
        if seconds.shape[1] > longest:
            name = "pixel_values_videos" if features is None else "video_features"
            raise ValueError(
                f"{name}: {seconds.shape[1]} seconds, the video encoder takes {longest}; want the first {longest}, as "
                "officially, or get_second_logits, which looks at windows"
            )
        mask = self._mask_of_seconds(video_mask, seconds)
        if features is None:
            features = self.get_second_features(pixels, mask)
        hidden = self.feature_projection(self._prepared(features))
        words = self.video_model.get_input_embeddings()
        ends = torch.tensor([config.cls_token_id, config.sep_token_id], device=hidden.device)
        start, end = words(ends).to(hidden.dtype)[:, None, None].expand(2, len(hidden), 1, -1)
        # Officially videos are filled up to `max_video_length`: [SEP] has the place behind that in all of them.
        places = torch.arange(hidden.shape[1] + 2, device=hidden.device)
        places = torch.where(places == hidden.shape[1] + 1, longest + 1, places)
        one = mask.new_ones(len(mask), 1)
        kwargs["return_dict"] = True
        outputs = self.video_model(
            inputs_embeds=torch.cat([start, hidden, end], 1),
            attention_mask=torch.cat([one if attend_to_start else one * 0, mask, one], 1),
            position_ids=places[None],
            **kwargs,
        )
        pooled = _masked_mean(outputs.last_hidden_state[:, 1:], torch.cat([mask, one], 1))
        return _with_pooled(outputs, pooled), mask

    def _check_features(self, features: torch.Tensor | None) -> None:
        if features is None:
            return
        is_tensor, width = isinstance(features, torch.Tensor), self.config.feature_size
        if not is_tensor or features.dim() != 3 or features.shape[-1] != width or not features.is_floating_point():
            got = f"{list(features.shape)} {features.dtype}" if is_tensor else type(features).__name__
            raise ValueError(f"video_features: got {got}, expected floats [videos, seconds, {width}]")
        if not torch.compiler.is_compiling() and not features.numel():
            raise ValueError(f"video_features: expected at least one video with seconds, got {list(features.shape)}")

    def _prepared(self, features: torch.Tensor) -> torch.Tensor:
        features = features.to(self.dtype)
        return F.normalize(features, dim=-1) if self.config.normalize_features else features

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """(B, L) tokens with [CLS] and [SEP] -> `pooler_output` (B, D), the mean over all but [CLS]."""
        return self._encode_texts(input_ids, attention_mask, token_type_ids, **kwargs)

    def _encode_texts(self, input_ids, attention_mask, token_type_ids=None, **kwargs):
        config = self.config
        check_token_ids(input_ids, config.text_config.vocab_size, longest=config.max_text_length)
        if input_ids.shape[1] < 2:
            raise ValueError(f"input_ids: {input_ids.shape[1]} token, expected [CLS] and [SEP] around a text")
        mask = _text_mask(attention_mask, input_ids)
        kwargs["return_dict"] = True
        place = mask.cumsum(1)  # from 1; padding may come before the tokens
        kwargs["position_ids"] = (place - 1).clamp(min=0)
        outputs = self.text_model(input_ids=input_ids, attention_mask=mask, token_type_ids=token_type_ids, **kwargs)
        return _with_pooled(outputs, _masked_mean(outputs.last_hidden_state, mask * (place > 1)))

    def video_text_logits(
        self,
        pixel_values_videos: torch.FloatTensor,
        text_features: torch.Tensor,
        video_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Frames (V, T * S, 3, H, W) and (B, D) text features, also of an earlier call -> logits (V, B)."""
        videos = self.get_video_features(pixel_values_videos, video_mask=video_mask).pooler_output
        logits = videos @ text_features.T.to(videos.dtype)
        check_output(self, logits, "logits_per_video", pixel_values_videos=pixel_values_videos)
        return logits

    @torch.no_grad()
    def get_second_logits(
        self, video_features: torch.Tensor, text_embeds: torch.Tensor, windows_at_once: int = 16
    ) -> torch.Tensor:
        """(T, F) features of one video of any length, (K, D) texts -> (T, K) dot products of each second with each
        text, in float32.

        The video encoder sees windows of `config.max_video_length` seconds, `config.window_stride` apart; a second in
        several windows gets the mean. As in the official code, no second looks at [CLS] here.

        Args:
            video_features: on any device; they go to the model's, `windows_at_once` windows at a time.
            text_embeds: as `get_text_features(...).pooler_output` gives them.

        Raises:
            ValueError: wrong shapes, or no seconds.
        """
        size, width = self.config.max_video_length, self.config.hidden_size
        if not isinstance(video_features, torch.Tensor) or video_features.dim() != 2 or not len(video_features):
            got = list(getattr(video_features, "shape", [])) or type(video_features).__name__
            raise ValueError(f"video_features: got {got}, expected [seconds, {self.config.feature_size}] of one video")
        self._check_features(video_features[None])
        is_tensor = isinstance(text_embeds, torch.Tensor)
        if not is_tensor or text_embeds.dim() != 2 or text_embeds.shape[1] != width or not len(text_embeds):
            got = list(text_embeds.shape) if is_tensor else type(text_embeds).__name__
            raise ValueError(f"text_embeds: got {got}, expected [texts, {width}]")
        if not text_embeds.is_floating_point():
            raise ValueError(f"text_embeds: {text_embeds.dtype}, expected floats")
        if windows_at_once < 1:
            raise ValueError(f"windows_at_once: {windows_at_once}, expected a number > 0")
        starts = list(window_starts(len(video_features), size, self.config.window_stride))
        texts = text_embeds.to(self.device, torch.float32)

        def windows():
            for first in range(0, len(starts), windows_at_once):
                some = starts[first : first + windows_at_once]
                cut = [video_features[start : start + size] for start in some]
                masks = [torch.ones(len(one), dtype=torch.long) for one in cut]
                features, mask = (nn.utils.rnn.pad_sequence(x, batch_first=True).to(self.device) for x in (cut, masks))
                outputs = self.get_video_features(
                    video_features=features, video_mask=mask, attend_to_start=False, return_dict=True
                )
                yield from zip(some, outputs.last_hidden_state.float() @ texts.T, strict=True)

        logits = mean_over_windows(windows(), len(video_features))
        check_output(self, logits, "logits", video_features=video_features, text_embeds=text_embeds)
        return logits

    # ---- forward

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_features: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        video_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VideoCLIPOutput:
        r"""
        Args:
            input_ids, attention_mask: (B, L), as BERT's tokenizer gives them, at most `config.max_text_length`.
            pixel_values_videos: (V, T * S, 3, H, W) or (V, T, S, 3, H, W), values 0..1; or
            video_features: (V, T, F), of each second.
            video_mask: (V, T), 1 for seconds that are there, which come first; with frames also (V, T * S).
            return_loss: text i belongs to video i; B = V. On several processes, in training, the loss in both
                directions is that of all pairs; that in one direction of this process's.

        Returns:
            [`VideoCLIPOutput`].

        Raises:
            ValueError: inputs of wrong shapes or types, texts or videos that are too long, a video without seconds,
                texts that are not as many as videos; on a CPU, in eval mode, NaN in the answer, with its cause.
        """
        text_outputs = self._encode_texts(input_ids, attention_mask, token_type_ids, **kwargs)
        video_outputs, _ = self._encode_video(pixel_values_videos, video_features, video_mask, **kwargs)
        texts, videos = text_outputs.pooler_output, video_outputs.pooler_output
        if return_loss and len(texts) != len(videos):
            raise ValueError(f"return_loss: {len(texts)} texts for {len(videos)} videos, expected a text of each")
        logits = texts @ videos.T
        seen = {"pixel_values_videos": pixel_values_videos, "video_features": video_features}
        check_output(self, logits, "logits_per_text", **seen)
        return VideoCLIPOutput(
            loss=self._loss(videos, texts) if return_loss else None,
            logits_per_video=logits.T,
            logits_per_text=logits,
            text_embeds=texts,
            video_embeds=videos,
            video_hidden_states=video_outputs.last_hidden_state[:, 1:-1],
            text_model_output=text_outputs,
            video_model_output=video_outputs,
        )

    def _loss(self, videos: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """The sum of both cross-entropies (equation 1), temperature 1, vectors as they are."""
        if self.config.loss_direction == "both":
            gather = "exact" if self.training else "none"
            return 2 * contrastive_loss(videos, texts, 0.0, normalize=False, gather=gather)
        of_texts = self.config.loss_direction == "text_to_video"
        logits = (texts @ videos.T if of_texts else videos @ texts.T).float()
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def _with_pooled(outputs, pooled: torch.Tensor) -> BaseModelOutputWithPooling:
    return BaseModelOutputWithPooling(
        last_hidden_state=outputs.last_hidden_state,
        pooler_output=pooled,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


def _masked_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(N, T, D), (N, T) -> (N, D)."""
    weights = mask.to(hidden.dtype)
    return (hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)


def _text_mask(attention_mask: torch.Tensor | None, input_ids: torch.Tensor) -> torch.Tensor:
    """(B, L) whole numbers; ValueError for another shape and for a text without tokens."""
    if attention_mask is None:
        return torch.ones_like(input_ids)
    is_tensor = isinstance(attention_mask, torch.Tensor)
    if not is_tensor or attention_mask.shape != input_ids.shape:
        got = list(attention_mask.shape) if is_tensor else type(attention_mask).__name__
        raise ValueError(f"attention_mask: got {got}, expected {list(input_ids.shape)}, as input_ids")
    mask = attention_mask.to(input_ids.device).bool().long()
    if not torch.compiler.is_compiling() and (mask.sum(1) < 2).any():
        raise ValueError("attention_mask: a text without tokens, expected at least [CLS] and [SEP]")
    return mask


__all__ = ["VideoCLIPModel", "VideoCLIPOutput", "VideoCLIPPreTrainedModel"]
