"""SLIP: a dual encoder (`SLIPModel`), and its pre-training with CLIP's loss and a self-supervised loss on two
augmented views of each image (`SLIPForPreTraining`).

Paper: "SLIP: Self-supervision meets Language-Image Pre-training", https://arxiv.org/abs/2112.12750, algorithm 1.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import nn
from transformers import AutoModel, CLIPTextModel, PreTrainedModel, ViTModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.utils import TransformersKwargs, can_return_tuple, logging

from ..clip_resnet.configuration_clip_resnet import CLIPResNetVisionConfig
from ..clip_resnet.modeling_clip_resnet import CLIPResNetVisionModel
from ..dual_encoders.dual_encoder import DualEncoder
from ..dual_encoders.forward_checks import check_output, check_pixels
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from ..losses.contrastive_loss import contrastive_accuracy
from ..losses.rank_batch_norm import RankBatchNorm1d
from ..losses.rank_exchange import world_size
from .configuration_slip import WITH_MOMENTUM, WITH_PREDICTOR, SLIPConfig
from .self_supervised_losses import byol_loss, moco_v3_loss, simclr_loss, simsiam_loss


logger = logging.get_logger(__name__)

# B images, N texts, L tokens, F width of the image encoder's feature, D joint width, E output width of the projection
# head

# Modules that `SLIPForPreTraining` has and `SLIPModel` has not.
_PRETRAINING_PARTS = ("ssl_projector", "ssl_predictor", "momentum_vision_model", "momentum_projector")


def _make_image_encoder(config) -> PreTrainedModel:
    if config.model_type == CLIPResNetVisionConfig.model_type:
        return CLIPResNetVisionModel._from_config(config)
    if config.model_type == "vit":
        return ViTModel._from_config(config, add_pooling_layer=False)
    return AutoModel.from_config(config, trust_remote_code=False)


# ---- heads


class SLIPHeadLinear(nn.Linear):
    """A layer of a head. A class of its own so that `_init_weights` gives it PyTorch's initialisation, as in the
    official code, and not that of the encoders.
    """


class SLIPProjector(nn.Module):
    """The projection head, (R, F) -> (R, E): three linear layers, with batch normalisation and ReLU after the first
    two.

    One call is one batch of statistics: call it once for each view.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__()
        self.layer1 = SLIPHeadLinear(in_dim, hidden_dim)
        self.bn1 = RankBatchNorm1d(hidden_dim)
        self.layer2 = SLIPHeadLinear(hidden_dim, hidden_dim)
        self.bn2 = RankBatchNorm1d(hidden_dim)
        self.layer3 = SLIPHeadLinear(hidden_dim, out_dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.bn1(self.layer1(features)).relu()
        return self.layer3(self.bn2(self.layer2(hidden)).relu())


class SLIPPredictor(nn.Module):
    """The predictor, (R, E) -> (R, E): two linear layers, with batch normalisation and ReLU between them."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.layer1 = SLIPHeadLinear(dim, hidden_dim)
        self.bn1 = RankBatchNorm1d(hidden_dim)
        self.layer2 = SLIPHeadLinear(hidden_dim, dim)

    def forward(self, projection: torch.Tensor) -> torch.Tensor:
        return self.layer2(self.bn1(self.layer1(projection)).relu())


# ---- models


class SLIPPreTrainedModel(CheckedLoading, StagedSaving, PreTrainedModel):
    config: SLIPConfig
    base_model_prefix = "slip"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _no_split_modules = ["CLIPEncoderLayer", "CLIPTextEmbeddings", "CLIPVisionEmbeddings", "ViTLayer", "ViTEmbeddings"]
    _no_split_modules += ["CLIPResNetBottleneck", "CLIPResNetAttentionPool"]
    _can_record_outputs = {}  # each encoder records its own outputs

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, SLIPHeadLinear):
            # PyTorch's default of `nn.Linear`.
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, SLIPModel):
            # The official N(0, width^-0.5), without bias.
            for projection in (module.visual_projection, module.text_projection):
                init.normal_(projection.weight, std=self.config.initializer_factor * projection.in_features**-0.5)
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers, but with the model's own parameter names in the file. By default, transformers writes a
        Vision Transformer with the names of version 4: `from_pretrained` reads them, but a resumed `Trainer` does not.
        """
        kwargs.setdefault("save_original_format", False)
        return super().save_pretrained(save_directory, *args, **kwargs)


class SLIPModel(DualEncoder, SLIPPreTrainedModel):
    r"""
    The dual encoder of SLIP (Mu et al. 2021), with the interface and outputs of `CLIPModel`, on any of
    `configuration_slip.IMAGE_ENCODERS`.

    For inference and fine-tuning; [`SLIPForPreTraining`] has the self-supervised loss. Loads its own checkpoints and
    those of [`SLIPForPreTraining`], without their heads. `modeling/slip/convert_slip.py` converts official weights.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import SLIPConfig, SLIPModel

    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> vision = text | {"image_size": 32}
    >>> model = SLIPModel(SLIPConfig(text_config=text, vision_config=vision, projection_dim=48)).eval()
    >>> ids = torch.tensor([[49406, 320, 49407], [49406, 518, 49407], [49406, 550, 49407]])
    >>> model(pixel_values=torch.randn(2, 3, 32, 32), input_ids=ids).logits_per_image.shape
    torch.Size([2, 3])
    ```
    """

    def __init__(self, config: SLIPConfig):
        super().__init__(config)
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.vision_model = _make_image_encoder(config.vision_config)
        self.visual_projection = nn.Linear(config.feature_dim, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(()))  # 0-dim, as in every CLIP checkpoint: under FSDP2, ignore it
        self.post_init()
        # transformers adds up the ignore-on-load lists of all parts. Those of the encoders do not apply to the full
        # model: it ignores the modules of pre-training, and nothing else.
        self._keys_to_ignore_on_load_unexpected = {rf"^{part}\." for part in _PRETRAINING_PARTS}

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """As in `CLIPModel`: (B, 3, H, W) pixels -> the image encoder's output; its `pooler_output` (B, D) is the
        feature in the joint space, not normalised.
        """
        if interpolate_pos_encoding:  # convolutional encoders do not know this argument
            kwargs["interpolate_pos_encoding"] = True
        outputs = self._run_image_encoder(self.vision_model, pixel_values, "pixel_values", **kwargs)
        outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        return outputs

    @staticmethod
    def _run_image_encoder(
        encoder: PreTrainedModel, pixel_values: torch.Tensor, name: str, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Output of `encoder`; its `pooler_output` (B, F) is the feature: the pooled output, or the first token (the
        class token) of an encoder that does not pool. `name` is the argument that errors name.
        """
        config, size = encoder.config, None
        if hasattr(config, "patch_size") and not kwargs.get("interpolate_pos_encoding"):
            size = config.image_size if isinstance(config.image_size, int) else None
        check_pixels(pixel_values, getattr(config, "num_channels", 3), name, size=size)
        outputs = encoder(pixel_values=pixel_values.to(encoder.dtype), return_dict=True, **kwargs)
        # Convolutional models pool to (B, F, 1, 1).
        pooled = outputs.get("pooler_output")
        outputs["pooler_output"] = outputs.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
        return outputs


@dataclass
class SLIPForPreTrainingOutput(CLIPOutput):
    """`CLIPOutput` and the parts of the loss. On several ranks, losses are those of the whole batch, and accuracies
    those of this rank's rows.

    Args:
        loss (`torch.Tensor`): (), `clip_loss + ssl_scale * ssl_loss`; in evaluation without views, `clip_loss`.
        clip_loss, ssl_loss (`torch.Tensor`): (), without their weights.
        clip_accuracy (`torch.Tensor`): (), the share of images whose own text is the most similar text of the batch.
        ssl_accuracy (`torch.Tensor`): (), the share of first views whose second view is the most similar row; SimCLR
            and MoCo v3 only.
        aug1_embeds, aug2_embeds (`torch.Tensor`): (B, E), outputs of the projection head for the views, or of the
            predictor where there is one; not normalised.
    """

    clip_loss: torch.Tensor | None = None
    ssl_loss: torch.Tensor | None = None
    clip_accuracy: torch.Tensor | None = None
    ssl_accuracy: torch.Tensor | None = None
    aug1_embeds: torch.Tensor | None = None
    aug2_embeds: torch.Tensor | None = None


class SLIPForPreTraining(SLIPModel):
    r"""
    SLIP in training: the dual encoder, and a projection head on the image encoder's feature that is trained with
    `config.ssl_objective`. MoCo v3, BYOL and SimSiam add a predictor. MoCo v3 and BYOL add momentum copies of the
    image encoder and the projection head, which get no gradient.

    With `Trainer`, add `hf_clip_variants.PretrainingCallback`: after each optimiser step it limits `logit_scale` and
    calls `update_momentum_encoder`. To get the trained dual encoder, call `SLIPModel.from_pretrained` on the saved
    folder, or `dual_encoder()` on the model in memory. `from_pretrained` on a folder of [`SLIPModel`] adds new heads.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import SLIPConfig, SLIPForPreTraining

    >>> text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 128}
    >>> vision = text | {"image_size": 32}
    >>> config = SLIPConfig(text_config=text, vision_config=vision, projection_dim=48, ssl_mlp_dim=32, ssl_emb_dim=16)
    >>> model = SLIPForPreTraining(config).train()
    >>> image, view1, view2 = torch.randn(3, 2, 3, 32, 32)
    >>> ids = torch.tensor([[49406, 320, 49407], [49406, 518, 49407]])
    >>> outputs = model(ids, image, view1, view2)
    >>> torch.equal(outputs.loss, outputs.clip_loss + outputs.ssl_loss), outputs.aug1_embeds.shape
    (True, torch.Size([2, 16]))
    ```
    """

    def __init__(self, config: SLIPConfig):
        super().__init__(config)
        self.ssl_projector = SLIPProjector(config.feature_dim, config.ssl_mlp_dim, config.ssl_emb_dim)
        if config.ssl_objective in WITH_PREDICTOR:
            self.ssl_predictor = SLIPPredictor(config.ssl_emb_dim, config.ssl_mlp_dim)
        if config.ssl_objective in WITH_MOMENTUM:
            self.momentum_vision_model = _make_image_encoder(config.vision_config)
            self.momentum_projector = SLIPProjector(config.feature_dim, config.ssl_mlp_dim, config.ssl_emb_dim)
        self.post_init()
        # A checkpoint of another objective may hold modules that this one does not use.
        here = dict(self.named_children())
        self._keys_to_ignore_on_load_unexpected = {rf"^{part}\." for part in _PRETRAINING_PARTS if part not in here}
        for online, momentum in self._momentum_pairs():
            momentum.requires_grad_(False)
            momentum.load_state_dict(online.state_dict())
        # Heads that no loss reaches are frozen: DistributedDataParallel would wait for their gradients.
        if config.ssl_scale == 0:
            for part in _PRETRAINING_PARTS:
                if part in here:
                    here[part].requires_grad_(False)
        self._version_at_update: int | None = None

    def _momentum_pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Pairs of a trained module and its momentum copy; none for objectives without momentum encoder."""
        if self.config.ssl_objective in WITH_MOMENTUM:
            yield self.vision_model, self.momentum_vision_model
            yield self.ssl_projector, self.momentum_projector

    def _accept_missing(self, missing: set[str]) -> set[str]:
        """A module of pre-training of which a checkpoint holds nothing starts anew; one that is partly there is
        damaged.

        A new momentum copy starts equal to the module that it copies.
        """
        for part in _PRETRAINING_PARTS:
            names = {name for name in self.state_dict() if name.startswith(part + ".")}
            if names and names <= missing:
                missing = missing - names
                for online, momentum in self._momentum_pairs():
                    if momentum is getattr(self, part):
                        momentum.load_state_dict(online.state_dict())
        return missing

    @torch.no_grad()
    def update_momentum_encoder(self, progress: float = 0.0):
        """Moves the momentum copies towards the trained weights: copy <- m copy + (1 - m) weight (BYOL, equation 1).
        Call it once after each optimiser step. Does nothing for objectives without momentum encoder.

        Args:
            progress: the share of training that is done, 0 to 1. The momentum m follows from it:
                m = 1 - (1 - `ssl_momentum`) (1 + cos(pi `progress`)) / 2.

        Raises:
            ValueError: `progress` is outside 0..1.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress: {progress}, expected a number in 0..1")
        share = (1 - self.config.ssl_momentum) * (1 + math.cos(math.pi * progress)) / 2
        for online, momentum in self._momentum_pairs():
            for weight, copy in zip(online.parameters(), momentum.parameters(), strict=True):
                copy.lerp_(weight, share)
        self._version_at_update = self._weights_version()

    def _weights_version(self) -> int:
        """PyTorch's counter of in-place changes of one trained weight: it grows with each optimiser step."""
        return self.ssl_projector.layer3.weight._version

    def _warn_if_momentum_encoder_is_stale(self):
        """Warns once if the optimiser changed the weights and nobody called `update_momentum_encoder`."""
        if torch.compiler.is_compiling():
            return
        version = self._weights_version()
        if self._version_at_update is None:
            self._version_at_update = version
        elif version != self._version_at_update:
            logger.warning_once(
                f"ssl_objective={self.config.ssl_objective!r}: the weights changed, but the momentum encoder was not "
                "updated. Call update_momentum_encoder after each optimiser step, or give Trainer a "
                "PretrainingCallback."
            )

    def dual_encoder(self) -> SLIPModel:
        """The dual encoder without heads. It shares its parameters with this model; save it with `save_pretrained`."""
        # Built without memory; then each module is replaced by the one of this model.
        with torch.device("meta"):
            model = SLIPModel(self.config)
        for name in ("text_model", "vision_model", "text_projection", "visual_projection", "logit_scale"):
            setattr(model, name, getattr(self, name))
        model.training = self.training
        return model

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_aug1: torch.FloatTensor | None = None,
        pixel_values_aug2: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_loss: bool = True,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SLIPForPreTrainingOutput:
        r"""
        Args:
            input_ids: (B, L), the text of each image; it ends at the first end token.
            pixel_values: (B, 3, H, W), normalised floats: the view for the CLIP loss.
            pixel_values_aug1, pixel_values_aug2: (B, 3, H, W), two augmented views of the same images, as
                `hf_clip_variants.data.TwoViews` makes them. Required in training, unless `ssl_scale` is 0.
            attention_mask, position_ids: (B, L), for the text encoder.
            return_loss: False returns embeddings and logits only, as `SLIPModel` does.
            interpolate_pos_encoding: accept image sizes other than `config.vision_config.image_size`.

        Returns:
            [`SLIPForPreTrainingOutput`].

        Raises:
            ValueError: inputs are missing or have wrong shapes, the numbers of images differ, or a batch of one image
                in training.
        """
        # The paper's algorithm 1: total loss = CLIP loss + ssl_scale * self-supervised loss. The views go through the
        # image encoder first, as in the official code.
        views = {"pixel_values_aug1": pixel_values_aug1, "pixel_values_aug2": pixel_values_aug2}
        ssl = self._self_supervision(pixel_values, views, interpolate_pos_encoding) if return_loss else {}
        outputs = super().forward(
            input_ids, pixel_values, attention_mask, position_ids, return_loss, interpolate_pos_encoding, **kwargs
        )
        if return_loss:
            gather = "exact" if self.training else "none"
            accuracy = contrastive_accuracy(outputs.image_embeds, outputs.text_embeds, gather=gather)
            ssl |= {"clip_loss": outputs.loss, "clip_accuracy": accuracy}
            if "ssl_loss" in ssl:
                outputs.loss = outputs.loss + self.config.ssl_scale * ssl["ssl_loss"]
        return SLIPForPreTrainingOutput(**outputs, **ssl)

    def _self_supervision(self, pixel_values, views: dict[str, torch.Tensor | None], interpolate: bool) -> dict:
        """`ssl_loss` and the other self-supervised fields of the output; {} if there is no such loss to compute."""
        absent = [name for name, view in views.items() if view is None]
        if self.config.ssl_scale == 0 or (len(absent) == 2 and not self.training):
            return {}
        if absent:
            raise ValueError(
                f"{absent[0]}: missing; {self.config.ssl_objective} needs two views of each image (TwoViews makes "
                "them). ssl_scale=0 trains with the CLIP loss alone"
            )
        channels = getattr(self.vision_model.config, "num_channels", 3)
        if pixel_values is not None:
            check_pixels(pixel_values, channels)
        for name, view in views.items():
            check_pixels(view, channels, name)
            if pixel_values is not None and len(view) != len(pixel_values):
                raise ValueError(f"{name}: {len(view)} images, pixel_values has {len(pixel_values)}")
            if self.training and len(view) < 2 and world_size() == 1:
                raise ValueError(f"{name}: {len(view)} image, batch normalisation needs at least 2 in training")
        options = {"interpolate_pos_encoding": True} if interpolate else {}

        def project(encoder, projector) -> list[torch.Tensor]:
            # One view after the other: batch normalisation takes the statistics of each view separately, and updates
            # its running statistics twice a step, as in the official code.
            return [
                projector(self._run_image_encoder(encoder, view, name, **options).pooler_output)
                for name, view in views.items()
            ]

        objective, gather = self.config.ssl_objective, "exact" if self.training else "none"
        # The trained branch: encoder, projection head and, except in SimCLR, predictor.
        embeds = projections = project(self.vision_model, self.ssl_projector)
        if objective in WITH_PREDICTOR:
            embeds = [self.ssl_predictor(each) for each in projections]
        # The target branch: momentum copies (MoCo v3, BYOL), or the same projections without gradient (SimSiam).
        for (name, view), each in zip(views.items(), embeds, strict=True):
            check_output(self, each, f"{name.removeprefix('pixel_values_')}_embeds", **{name: view})
        targets = projections
        if objective in WITH_MOMENTUM:
            if self.training:
                self._warn_if_momentum_encoder_is_stale()
            with torch.no_grad():
                targets = project(self.momentum_vision_model, self.momentum_projector)
        accuracy = None
        if objective == "simclr":
            loss, accuracy = simclr_loss(*embeds, self.config.ssl_temperature, gather=gather)
        elif objective == "moco_v3":
            loss, accuracy = moco_v3_loss(*embeds, *targets, self.config.ssl_temperature, gather=gather)
        else:
            loss = {"byol": byol_loss, "simsiam": simsiam_loss}[objective](*embeds, *targets, gather=gather)
        return {"ssl_loss": loss, "ssl_accuracy": accuracy, "aug1_embeds": embeds[0], "aug2_embeds": embeds[1]}


__all__ = ["SLIPForPreTraining", "SLIPForPreTrainingOutput", "SLIPModel", "SLIPPreTrainedModel"]
