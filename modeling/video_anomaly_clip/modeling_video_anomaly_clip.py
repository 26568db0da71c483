"""VideoAnomalyClip: which frames of a video are abnormal and how, learned from labels of whole videos.

Paper: "Delving into CLIP latent space for Video Anomaly Recognition", https://arxiv.org/abs/2310.02835, whose method
is called AnomalyCLIP. Another work of that name finds defects in images of products.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from ..dual_encoders.backbones import CLIPFamily
from ..dual_encoders.forward_checks import check_output
from ..dual_encoders.prompt_encoding import encode_text
from ..dual_encoders.prompts import encode_texts, resolve_class_names
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from ..loading_and_saving.copied_weights import copy_weights
from ..losses.rank_batch_norm import RankBatchNorm1d
from ..losses.rank_exchange import world_size
from .configuration_video_anomaly_clip import VideoAnomalyClipConfig
from .inputs_video_anomaly_clip import (
    check_pixels_of_videos,
    check_scale,
    checked_features,
    checked_mask,
    frame_lengths,
)
from .losses_video_anomaly_clip import (
    Batch,
    anomaly_losses,
    batch_of_all_ranks,
    checked_labels,
    draw_masks,
    log_probabilities,
    select_segments,
)
from .temporal_video_anomaly_clip import AnomalyScorer, AxialAttention, AxialTransformer, ChannelNorm
from .windows_video_anomaly_clip import num_windows, window_frames


# V videos, T frames, D joint width, C anomalies, N = C + 1 classes, S segments, L frames of a segment

_STD = 0.02  # of context vectors
_OWN_PARTS = ("context", "selector_norm.", "scorer.")
_OWN_BUFFERS = ("prompt_ids", "normal_centroid", "normal_norm", "num_normal_frames")


@dataclass
class VideoAnomalyClipOutput(ModelOutput):
    """
    Args:
        loss: (), with `labels`.
        logits: (V, T, C), how far a frame lies in the direction of each anomaly; zeros where there is no frame.
        scores: (V, T), in 0..1: how abnormal a frame is; zeros where there is no frame.
        class_probs: (V, T, N), of all classes with the normal one, adding up to 1.
        loss_dict: with `labels`, the seven terms before they are weighted.
        topk_abnormal, bottomk_abnormal: (abnormal videos, k), the segments chosen in training; of several processes,
            of the videos of all of them.
        topk_normal: (normal videos, k).
        text_features: (N, D), of the classes' prompts.
        video_features: (V, T, D), of frames, not normalised.
        vision_model_output: of the image encoder, with pixels; rows are the frames that are there.
        hidden_states, attentions: those of `vision_model_output`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    class_probs: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    topk_abnormal: torch.LongTensor | None = None
    bottomk_abnormal: torch.LongTensor | None = None
    topk_normal: torch.LongTensor | None = None
    text_features: torch.FloatTensor | None = None
    video_features: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class VideoAnomalyClipPreTrainedModel(CheckedLoading, StagedSaving, PreTrainedModel):
    config: VideoAnomalyClipConfig
    base_model_prefix = "clip"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_attention_backend = True
    _no_split_modules = ["CLIPEncoderLayer", "CLIPTextEmbeddings", "CLIPVisionEmbeddings", "AxialLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, AxialAttention | AnomalyScorer):
            pass
        elif isinstance(module, AxialTransformer):
            init.normal_(module.segment_positions)
            init.normal_(module.frame_positions)
        elif isinstance(module, ChannelNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, VideoAnomalyClipModel):
            init.normal_(module.context, std=_STD)
            if module.prompt_ids is not None:
                init.copy_(module.prompt_ids, _nameless_prompts(module.config))
            for name in ("normal_centroid", "normal_norm", "num_normal_frames"):
                init.zeros_(getattr(module, name))
        elif isinstance(module, nn.Linear | nn.Conv2d):  # torch's own, as in the official code
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)


class VideoAnomalyClipModel(VideoAnomalyClipPreTrainedModel):
    r"""
    AnomalyCLIP for videos (Zanella et al. 2024): a score and class probabilities for each frame, trained with labels
    of whole videos.

    Frames lie around `normal_centroid`, the mean of normal frames. A class is a direction from there to its text,
    whose prompt is learned; an axial transformer over the video makes the scores. Before anything runs, classes have
    to be set (`set_anomalies`) and the centroid computed (`compute_normal_centroid`); both are saved with the model.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import VideoAnomalyClipConfig, VideoAnomalyClipModel
    >>> from hf_clip_variants.modeling.clip.text_clip import official_tokenizer

    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> vision = text | {"image_size": 32, "patch_size": 16}
    >>> sizes = {"num_segments": 4, "segment_length": 2, "temporal_hidden_size": 16}
    >>> config = VideoAnomalyClipConfig(text_config=text, vision_config=vision, projection_dim=64, **sizes)
    >>> model = VideoAnomalyClipModel(config).eval()
    >>> model = model.set_anomalies(["fighting", "fire"], official_tokenizer())
    >>> model = model.compute_normal_centroid([{"video_features": torch.randn(3, 20, 64)}])
    >>> output = model(video_features=torch.randn(1, 30, 64))
    >>> output.scores.shape, output.class_probs.shape
    (torch.Size([1, 30]), torch.Size([1, 30, 3]))
    ```
    """

    def __init__(self, config: VideoAnomalyClipConfig):
        super().__init__(config)
        self.clip = CLIPModel._from_config(config)
        width = config.projection_dim
        self.context = nn.Parameter(
            torch.empty(config.num_labels, config.num_context_tokens, config.text_config.hidden_size)
        )
        self.selector_norm = RankBatchNorm1d(config.num_labels - 1, affine=False)
        self.scorer = AnomalyScorer(config)
        self.register_buffer("prompt_ids", _nameless_prompts(config) if config.prompt_length else None)
        self.register_buffer("normal_centroid", torch.zeros(width))
        self.register_buffer("normal_norm", torch.zeros(()))  # mean length of normal frames' features; 0: not known
        self.register_buffer("num_normal_frames", torch.zeros((), dtype=torch.int64))  # 0: no centroid; -1: not known
        self.post_init()
        self.freeze()

    # ---- making, freezing, loading

    @classmethod
    def from_clip(cls, clip: CLIPModel, **options) -> "VideoAnomalyClipModel":
        """A model with the weights of a CLIP; all else is new. `options`: fields of [`VideoAnomalyClipConfig`]."""
        if clip.config.model_type != "clip":
            raise ValueError(f"clip: a {clip.config.model_type}, expected a CLIPModel: other encoders do not fit")
        kept = ("model_type", "architectures", "dtype", "id2label", "label2id")
        values = {name: value for name, value in clip.config.to_dict().items() if name not in kept}
        model = cls(VideoAnomalyClipConfig(**values | options)).to(clip.dtype)
        copy_weights(model.clip, clip, options=options)
        return model.eval()

    def freeze(self) -> None:
        """With `config.freeze_clip`, of CLIP only the text projection trains. `logit_scale` never does: it is not
        used."""
        self.requires_grad_(True)
        self.clip.requires_grad_(not self.config.freeze_clip)
        self.clip.text_projection.requires_grad_(True)
        self.clip.logit_scale.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers; what `config.freeze_clip` freezes is frozen, too."""
        found = super().from_pretrained(*args, output_loading_info=output_loading_info, **kwargs)
        (found[0] if output_loading_info else found).freeze()
        return found

    def _accept_missing(self, missing: set[str]) -> set[str]:
        """Of a plain CLIP's checkpoint all that is ours is missing; else a part of it is: then it is damaged."""
        names = self.state_dict().keys()
        own = {name for name in names if name.startswith(_OWN_PARTS) or name in _OWN_BUFFERS}
        return missing - own if own <= missing else missing

    def get_input_embeddings(self) -> nn.Module:
        return self.clip.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module):
        self.clip.text_model.embeddings.token_embedding = value

    # ---- classes

    @torch.no_grad()
    def set_anomalies(
        self, names: str | Sequence[str], processor, normal: str = "normal", normal_id: int = 0
    ) -> "VideoAnomalyClipModel":
        """Makes these anomalies, and the normal class, the model's classes, with new context vectors; returns it.

        Call it before training. The batch norm over anomalies starts anew, and with `concat_features` so does the
        first layer of those over time, whose input changes its width.

        Args:
            names: texts of the anomalies, in label order; as in `resolve_class_names`.
            processor: the model's processor or tokenizer.
            normal: name of the class without an anomaly.
            normal_id: its label; anomalies have the others in their order. With names sorted as in the official
                configurations, where "normal" stands among them.

        Raises:
            ValueError: no, blank or repeated names, a name too long. The model is as it was then.
        """
        names = resolve_class_names(names, "names")
        if type(normal_id) is not int or not 0 <= normal_id <= len(names):
            raise ValueError(f"normal_id: {normal_id!r}, expected 0..{len(names)} for {len(names)} anomalies")
        names = resolve_class_names([*names[:normal_id], normal, *names[normal_id:]], "names, normal")
        ids = self._prompts_of(names, getattr(processor, "tokenizer", processor))
        config = self.config
        config.normal_id, config.prompt_length = 0, ids.shape[1]
        config.id2label = dict(enumerate(names))
        config.label2id = {name: label for label, name in enumerate(names)}
        config.normal_id = normal_id
        self.prompt_ids = ids.to(self.device)
        shape = (len(names), *self.context.shape[1:])
        self.context = nn.Parameter(torch.randn(shape, device=self.device).mul_(_STD).to(self.context.dtype))
        self.selector_norm = RankBatchNorm1d(len(names) - 1, affine=False).to(self.device)
        self.selector_norm.train(self.training)
        inputs = config.projection_dim + (len(names) - 1 if config.concat_features else 0)
        if self.scorer.projection.in_features != inputs:
            old = self.scorer.projection
            self.scorer.projection = nn.Linear(inputs, old.out_features).to(old.weight)
        return self

    def _prompts_of(self, names: Sequence[str], tokenizer) -> torch.Tensor:
        """(N, length) ids: start, placeholders for the context, "name.", end; filled up with ends, which a causal
        encoder does not see."""
        texts = [f"{name.replace('_', ' ')}." for name in names]
        encoded = encode_texts(tokenizer, texts, what="names", padding=True, return_tensors="pt")["input_ids"]
        start, context = encoded[:, :1], self.config.num_context_tokens
        ids = torch.cat([start, start.expand(-1, context), encoded[:, 1:]], 1)
        longest = self.config.text_config.max_position_embeddings
        if ids.shape[1] > longest:
            raise ValueError(
                f"names: the longest name and {context} context tokens make a prompt of {ids.shape[1]} tokens, "
                f"the text encoder takes {longest}"
            )
        return ids

    def get_class_features(self) -> torch.Tensor:
        """(N, D) features of the classes' prompts, not normalised, in label order; the normal class's is not used."""
        words = self.get_input_embeddings()(self.prompt_ids)
        count = self.context.shape[1]
        prompts = torch.cat([words[:, :1], self.context.to(words.dtype), words[:, 1 + count :]], 1)
        pooled = encode_text(CLIPFamily, self.clip, self.prompt_ids, inputs_embeds=prompts, shared_prefix=1)
        return self.clip.text_projection(pooled)

    # ---- the centroid of normal frames

    @torch.no_grad()
    def compute_normal_centroid(self, batches: Iterable[Mapping[str, Any]]) -> "VideoAnomalyClipModel":
        """Sets `normal_centroid` to the mean of the features of all normal frames; returns the model.

        On several processes, of all their frames: each comes with its own batches.

        Args:
            batches: with `video_features` or `pixel_values_videos`, perhaps `video_mask`, and perhaps `labels`: then
                videos of other classes are left out. For instance a `DataLoader` of the normal training videos.

        Raises:
            ValueError: no normal frame, or features that do not fit. The model is as it was then.
        """
        sums = torch.zeros(self.config.projection_dim + 2, dtype=torch.float64, device=self.device)
        for batch in batches:
            inputs = {name: batch.get(name) for name in ("video_features", "pixel_values_videos", "video_mask")}
            features, mask, _ = self._frame_features(**inputs)
            keep = mask.bool()
            if batch.get("labels") is not None:
                labels = checked_labels(batch["labels"], len(features), self.config.num_labels)
                keep = keep & (labels.to(keep.device) == self.config.normal_id)[:, None]
            frames = features[keep].double()
            sums += torch.cat([frames.sum(0), frame_lengths(frames).sum()[None], frames.new_tensor([len(frames)])])
        if world_size() > 1:
            dist.all_reduce(sums)
        count = int(sums[-1])
        if not count:
            raise ValueError("batches: no normal frame in them, expected videos of the normal class")
        return self.set_normal_centroid(sums[:-2] / count, count, float(sums[-2]) / count)

    @torch.no_grad()
    def set_normal_centroid(
        self, centroid: torch.Tensor, num_frames: int = -1, norm: float = 0.0
    ) -> "VideoAnomalyClipModel":
        """Sets `normal_centroid` to one that was computed elsewhere, such as the official code's `ncentroid.pt`.

        Args:
            centroid: (D,) or (1, D), finite.
            num_frames: how many frames it is the mean of; -1: not known.
            norm: their mean length, by which features of another scale are refused later; 0: not known.
        """
        centroid = torch.as_tensor(centroid).detach().squeeze()
        if centroid.shape != self.normal_centroid.shape or not centroid.is_floating_point():
            raise ValueError(
                f"normal_centroid: got {centroid.dtype} {list(centroid.shape)}, expected floats of shape "
                f"{list(self.normal_centroid.shape)}"
            )
        if not centroid.isfinite().all():
            raise ValueError("normal_centroid: NaN or infinite numbers")
        self.normal_centroid.copy_(centroid)
        self.num_normal_frames.fill_(num_frames)
        self.normal_norm.fill_(norm)
        return self

    def check_ready(self) -> None:
        """ValueError unless anomalies and a centroid are set."""
        if self.prompt_ids is None:
            length = f"prompt_length is {self.config.prompt_length}"
            raise ValueError(f"names: no anomalies are set ({length}); call set_anomalies([...], processor)")
        if torch.compiler.is_compiling() or self.config.allow_zero_centroid or self.num_normal_frames.is_meta:
            return
        if not int(self.num_normal_frames):
            raise ValueError(
                "normal_centroid: missing; call compute_normal_centroid(batches of normal training videos), or "
                "set_normal_centroid(...) with one that was computed elsewhere"
            )

    # ---- frames

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """As in `CLIPModel`: `pooler_output` (B, D), not normalised. Without a graph where CLIP is frozen."""
        trains = any(parameter.requires_grad for parameter in self.clip.vision_model.parameters())
        kwargs["return_dict"] = True
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            return self.clip.get_image_features(pixel_values=pixel_values.to(self.dtype), **kwargs)

    def _frame_features(self, video_features=None, pixel_values_videos=None, video_mask=None, **kwargs):
        """(V, T, D) in the model's type, (V, T) mask, and the image encoder's output, if it ran."""
        if (video_features is None) == (pixel_values_videos is None):
            got = "neither" if video_features is None else "both"
            raise ValueError(f"video_features, pixel_values_videos: got {got}, expected one of them")
        if video_features is not None:
            mask = checked_mask(video_mask, video_features, "video_features")
            features = checked_features(video_features, self.config.projection_dim, mask)
            return features.to(self.device, self.dtype), mask.to(self.device), None
        check_pixels_of_videos(pixel_values_videos)
        mask = checked_mask(video_mask, pixel_values_videos, "pixel_values_videos").to(self.device)
        all_there = torch.compiler.is_compiling() or bool(mask.all())
        pixels = pixel_values_videos.flatten(0, 1) if all_there else pixel_values_videos[mask.bool()]
        try:
            outputs = self.get_image_features(pixels, **kwargs)
        except ValueError as error:  # the encoder's own, of frames of another size
            size = f"vision_config.image_size is {self.config.vision_config.image_size}"
            raise ValueError(f"pixel_values_videos: {error} {size}") from error
        found = outputs.pooler_output
        if all_there:
            return found.unflatten(0, mask.shape), mask, outputs
        frames = found.new_zeros(*mask.shape, found.shape[-1])
        return frames.masked_scatter(mask.bool()[..., None], found), mask, outputs

    def _directions(self, texts: torch.Tensor) -> torch.Tensor:
        """(N, D) -> (C, D) float32, of length 1: from the centroid to the anomalies' texts."""
        anomalies = texts[self.config.anomaly_ids].float() - self.normal_centroid.float()
        return F.normalize(anomalies, dim=-1)

    def _frame_logits(self, centred: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., C) float32."""
        norm = self.selector_norm
        with torch.autocast(centred.device.type, enabled=False):
            projected = centred.float() @ directions.T
            flat = projected.flatten(0, -2).to(norm.running_mean.dtype)
            return norm(flat).float().view(projected.shape)

    def _grids(self, centred: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames of grids (G, S * L, D), centred -> logits (G, S * L, C) and score logits (G, S * L), float32."""
        logits = self._frame_logits(centred, directions)
        inputs = torch.cat([logits.to(centred.dtype), centred], -1) if self.config.concat_features else centred
        return logits, self.scorer(inputs).float()

    # ---- forward

    @can_return_tuple
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor | None = None,
        video_features: torch.FloatTensor | None = None,
        video_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        topk_mask: torch.Tensor | None = None,
        bottomk_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VideoAnomalyClipOutput:
        r"""
        Args:
            pixel_values_videos: (V, T, 3, H, W), normalised.
            video_features: (V, T, D) instead: features of frames from CLIP's image encoder, not normalised, any float
                type.
            video_mask: (V, T), 1 for frames that are there, which come first; None: all are.
            labels: (V,), the class of each video: the loss. Then T is `num_segments * segment_length`, as
                `sample_training_frames` chooses them; abnormal and normal videos come in any order and number. On
                several processes the loss is that of all videos (in training).
            topk_mask, bottomk_mask: (V, S), 1 for segments that may be chosen; None: drawn in training, all otherwise.

        Returns:
            [`VideoAnomalyClipOutput`]; all of it in float32.

        Raises:
            ValueError: no classes or no centroid are set, inputs of wrong shapes or of another scale than those of the
                centroid, a video without frames, labels of no class; on a CPU, in eval mode, NaN in the answer, with
                its cause.
        """
        self.check_ready()
        features, mask, outputs = self._frame_features(video_features, pixel_values_videos, video_mask, **kwargs)
        check_scale(features, mask, self.normal_norm, self.normal_centroid)
        texts = self.get_class_features()
        directions = self._directions(texts)
        found: dict[str, Any] = {}
        if labels is None:
            logits, score_logits = self._all_frames(features, mask, directions)
        else:
            logits, score_logits = self._one_grid(features, mask, directions)
            found = self._losses(logits, score_logits, labels, topk_mask, bottomk_mask)
        there = mask.to(torch.float32)
        given = {"video_features": video_features, "pixel_values_videos": pixel_values_videos}
        check_output(self, score_logits, "scores", **given)
        check_output(self, logits, **given)
        check_output(self, found.get("loss"), "loss", **given)
        return VideoAnomalyClipOutput(
            **found,
            logits=logits * there[..., None],
            scores=score_logits.sigmoid() * there,
            class_probs=log_probabilities(logits, score_logits, self.config.normal_id).exp() * there[..., None],
            text_features=texts,
            video_features=features,
            hidden_states=outputs.get("hidden_states") if outputs is not None else None,
            attentions=outputs.get("attentions") if outputs is not None else None,
        )

    def _one_grid(self, features: torch.Tensor, mask: torch.Tensor, directions: torch.Tensor):
        config = self.config
        if features.shape[1] != config.frames_per_window:
            raise ValueError(
                f"labels: videos of {features.shape[1]} frames, expected {config.frames_per_window} (num_segments="
                f"{config.num_segments} x segment_length={config.segment_length}) with labels, as "
                "sample_training_frames chooses them"
            )
        if not torch.compiler.is_compiling() and not bool(mask.all()):
            raise ValueError(
                "video_mask: a training video lacks frames; want sample_training_frames, which repeats some"
            )
        return self._grids(features - self.normal_centroid.to(features.dtype), directions)

    def _all_frames(self, features: torch.Tensor, mask: torch.Tensor, directions: torch.Tensor):
        """(V, T, D) -> (V, T, C), (V, T); each video is cut into grids of its own length."""
        lengths = [features.shape[1]] * len(features) if torch.compiler.is_compiling() else mask.sum(1).tolist()
        logits = features.new_zeros(*features.shape[:2], directions.shape[0], dtype=torch.float32)
        score_logits = features.new_zeros(features.shape[:2], dtype=torch.float32)
        rows = [self._one_video(video[:length], directions) for video, length in zip(features, lengths, strict=True)]
        if len(set(lengths)) == 1:
            kept = lengths[0]
            together = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
            missing = features.shape[1] - kept
            return F.pad(together[0], (0, 0, 0, missing)), F.pad(together[1], (0, missing))
        for place, (length, row) in enumerate(zip(lengths, rows, strict=True)):
            logits[place, :length], score_logits[place, :length] = row
        return logits, score_logits

    def _one_video(self, frames: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(T, D) -> (T, C), (T,)."""
        total = len(frames)
        parts = list(self._windows(total, lambda places: frames[places], directions))
        places, logits, score_logits = (torch.cat(part).flatten(0, 1) for part in zip(*parts, strict=True))
        order = places.argsort()[:total]  # places from the end of the video on are fillings
        return logits[order], score_logits[order]

    def _windows(self, total: int, read, directions: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """For some grids after the other: places in time (G, S * L), logits and score logits."""
        config = self.config
        windows = num_windows(total, config.num_segments, config.segment_length)
        for first in range(0, windows, config.windows_per_pass):
            last = min(first + config.windows_per_pass, windows)
            places = window_frames(total, config.num_segments, config.segment_length, first, last)
            frames = read(places % total).to(self.device, self.dtype)
            centred = frames - self.normal_centroid.to(frames.dtype)
            yield places.to(self.device), *self._grids(centred, directions)

    @torch.no_grad()
    def score_frames(self, video_features) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (T,) and class probabilities (T, N) of one video of any length, float32, on the CPU.

        As `forward`, but of the features only those of some grids are in memory at once.

        Args:
            video_features: (T, D), not normalised, any float type: a tensor, or an array, which may lie in a file
                (`numpy.load(path, mmap_mode="r")`).

        Raises:
            ValueError: as `forward`.
        """
        self.check_ready()
        config, features = self.config, video_features
        shape = tuple(getattr(features, "shape", ()))
        if len(shape) != 2 or not shape[0] or shape[1] != config.projection_dim:
            raise ValueError(
                f"video_features: got {list(shape)}, expected [frames, {config.projection_dim}] of one video"
            )
        if isinstance(features, np.ndarray) and features.dtype.kind != "f":
            raise ValueError(f"video_features: expected floats, got {features.dtype}")

        def read(places: torch.Tensor) -> torch.Tensor:
            chosen = (
                features[places.flatten()]
                if isinstance(features, torch.Tensor)
                else features[places.flatten().numpy()]
            )
            frames = torch.as_tensor(chosen)[None]
            there = checked_mask(None, frames, "video_features")
            frames = checked_features(frames, config.projection_dim, there)
            check_scale(frames, there, self.normal_norm, self.normal_centroid)
            return frames[0].unflatten(0, places.shape)

        scores, probabilities = torch.zeros(shape[0]), torch.zeros(shape[0], config.num_labels)
        directions = self._directions(self.get_class_features())
        for places, logits, score_logits in self._windows(shape[0], read, directions):
            check_output(self, score_logits, "scores")
            is_frame = places < shape[0]
            kept = places[is_frame].cpu()
            scores[kept] = score_logits[is_frame].sigmoid().cpu()
            probabilities[kept] = log_probabilities(logits, score_logits, config.normal_id)[is_frame].exp().cpu()
        return scores, probabilities

    def _losses(self, logits, score_logits, labels, topk_mask, bottomk_mask) -> dict[str, Any]:
        config, device, videos = self.config, logits.device, len(logits)
        labels = checked_labels(labels, videos, config.num_labels).to(device)
        rates = (config.selection_dropout_topk, config.selection_dropout_bottomk) if self.training else (0.0, 0.0)
        drawn = draw_masks(videos, config.num_segments, *rates, device)
        shape, masks = (videos, config.num_segments), []
        for name, given, own in zip(("topk_mask", "bottomk_mask"), (topk_mask, bottomk_mask), drawn, strict=True):
            if given is not None and tuple(given.shape) != shape:
                raise ValueError(f"{name}: got {list(given.shape)}, expected {list(shape)} (videos, segments)")
            masks.append(own if given is None else given.to(device).bool())
        grid = (config.num_segments, config.segment_length)
        batch = Batch(logits.unflatten(1, grid), score_logits.unflatten(1, grid), labels, *masks)
        if self.training:
            batch = batch_of_all_ranks(batch)
        chosen = select_segments(batch, config.normal_id, config.num_topk, config.num_bottomk)
        terms = anomaly_losses(batch, chosen, config.normal_id)
        weights = config.loss_weights()
        return {
            "loss": sum(weights[name] * term for name, term in terms.items()),
            "loss_dict": terms,
            "topk_abnormal": chosen.topk_abnormal,
            "bottomk_abnormal": chosen.bottomk_abnormal,
            "topk_normal": chosen.topk_normal,
        }


def _nameless_prompts(config: VideoAnomalyClipConfig) -> torch.Tensor:
    """(N, length) ids of prompts without names, so that a model made of a configuration alone can run."""
    text = config.text_config
    # CLIP's of 2022 say 2 for an end token that is the largest id.
    end = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    ids = torch.full((config.num_labels, config.prompt_length), end, dtype=torch.int64)
    ids[:, : 1 + config.num_context_tokens] = text.bos_token_id if text.bos_token_id != end else 0
    return ids


__all__ = ["VideoAnomalyClipModel", "VideoAnomalyClipOutput", "VideoAnomalyClipPreTrainedModel"]
