"""FND-CLIP: is a post with an image true? Text and image are read alone and together, by how well CLIP says they fit.

Paper: "Multimodal Fake News Detection via CLIP-Guided Learning", https://arxiv.org/abs/2205.14304.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import nn
from transformers import BertModel, PreTrainedModel, ResNetConfig, ResNetForImageClassification
from transformers import initialization as init
from transformers.models.resnet.modeling_resnet import ResNetPreTrainedModel
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from ..clip_classifier.classification_loss import classification_loss
from ..dual_encoders.backbones import family_of
from ..dual_encoders.forward_checks import check_features, check_output, check_pixels, check_token_ids
from ..dual_encoders.resnet_backbone import AnyAttentionResNet
from ..dual_encoders.tracing import can_be_read
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from ..loading_and_saving.copied_weights import copy_weights
from .configuration_fnd_clip import MODALITIES, FNDCLIPConfig
from .fusion_fnd_clip import (
    FNDCLIPCorrection,
    FNDCLIPFeatureMap,
    FNDCLIPFusion,
    FNDCLIPSimilarityAnswer,
    cross_fitted_similarity,
    fit_feature_maps,
    folds_of,
    standardise_similarity,
    start_from_similarity,
)


# B posts, L states of BERT, H width of BERT, D joint width, R logits of the ResNet, E width of features, K classes

FEATURES = ("text_states", "clip_text_features", "clip_image_features", "image_logits")


@dataclass
class FNDCLIPFeatures(ModelOutput):
    """What the encoders say of posts; `forward` takes it instead of texts and images.

    Args:
        text_states: (B, L, H), of [CLS] in BERT's embeddings and behind each layer.
        clip_text_features: (B, D), of the dual encoder, not normalised.
        clip_image_features: (B, D), likewise.
        image_logits: (B, R), of the ResNet.
        hidden_states, attentions: of BERT.
    """

    text_states: torch.FloatTensor | None = None
    clip_text_features: torch.FloatTensor | None = None
    clip_image_features: torch.FloatTensor | None = None
    image_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class FNDCLIPOutput(ModelOutput):
    """
    Args:
        loss: (), with `labels`: cross-entropy.
        logits: (B, K), of `config.id2label`.
        similarity: (B,) cosine of text and image in the dual encoder; 0 for a post without an image.
        modality_weights: (B, 3), 0..1: what text, image and both together count. They need not add up to 1.
        layer_attention: (B, L), adds up to 1: which of BERT's states the text is read from, the embeddings first.
        text_embeds, image_embeds, cross_embeds: (B, E), of the three branches, before their weights.
        hidden_states, attentions: of BERT.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    similarity: torch.FloatTensor | None = None
    modality_weights: torch.FloatTensor | None = None
    layer_attention: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    cross_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class FNDCLIPResNet(ResNetForImageClassification):
    """transformers' ResNet with its class logits, in a model with attention."""

    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: ResNetConfig):
        ResNetPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.resnet = AnyAttentionResNet(config)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(config.hidden_sizes[-1], config.num_labels))
        self.post_init()


class FNDCLIPPreTrainedModel(CheckedLoading, StagedSaving, PreTrainedModel):
    config: FNDCLIPConfig
    base_model_prefix = "fnd_clip"
    main_input_name = "input_ids"
    input_modalities = ("text", "image")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_attention_backend = True
    _no_split_modules = ["BertLayer", "BertEmbeddings", "CLIPEncoderLayer", "FNDCLIPFusion"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear):  # as PyTorch has it, and so the published code
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, FNDCLIPFusion):
            for parameter in (module.layer_weights, module.similarity_factor, module.similarity_summand):
                init.uniform_(parameter)
        elif isinstance(module, FNDCLIPFeatureMap):
            init.zeros_(module.weight)
        if isinstance(module, FNDCLIPCorrection | FNDCLIPSimilarityAnswer):
            for tensor in (*module.parameters(), *module.buffers()):
                init.zeros_(tensor)


class FNDCLIPForSequenceClassification(FNDCLIPPreTrainedModel):
    r"""
    FND-CLIP (Zhou et al. 2023): classes of posts, each of a text and an image, such as rumour or not.

    Three branches: the text by BERT and the dual encoder, the image by a ResNet and the dual encoder, and both by the
    dual encoder alone, weighed by the cosine of its text and image features. An attention over the three says what
    each is worth for this post. The answer comes with its reasons: the similarity, the weights of the three, and the
    layers of BERT that were read.

    The dual encoder may be any of `modeling/dual_encoders`; it has a text of its own (`clip_input_ids`), which is the
    same post in the dual encoder's tokens, or a translation if it does not read the post's language.

    Prefer a plain text classifier where posts have no images, and CLIP's similarity alone where the only question is
    whether an image is the one that a text talks about.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import FNDCLIPConfig, FNDCLIPForSequenceClassification

    >>> sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    >>> dual = {"text_config": sizes, "vision_config": sizes | {"image_size": 32, "patch_size": 16}}
    >>> backbone = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_labels": 20}
    >>> config = FNDCLIPConfig(text_config=sizes, dual_encoder_config=dual, backbone_config=backbone)
    >>> model = FNDCLIPForSequenceClassification(config).eval()
    >>> ids, clip_ids = torch.tensor([[101, 2054, 102]]), torch.tensor([[49406, 320, 49407]])
    >>> outputs = model(ids, clip_input_ids=clip_ids, pixel_values=torch.randn(1, 3, 32, 32))
    >>> outputs.logits.shape, outputs.modality_weights.shape, outputs.layer_attention.shape
    (torch.Size([1, 2]), torch.Size([1, 3]), torch.Size([1, 3]))
    ```
    """

    modalities = MODALITIES  # in the pipeline

    def __init__(self, config: FNDCLIPConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.family = family_of(config.dual_encoder_config.model_type)
        self.text_model = BertModel._from_config(config.text_config, add_pooling_layer=False)
        self.dual_encoder = self.family.model_class()._from_config(config.dual_encoder_config)
        self.image_model = FNDCLIPResNet._from_config(config.backbone_config)
        self.fusion = FNDCLIPFusion(config)
        self.post_init()
        self._freeze()

    # ---- making and freezing

    @classmethod
    def from_encoders(
        cls,
        text_model: PreTrainedModel,
        dual_encoder: PreTrainedModel,
        image_model: PreTrainedModel,
        **options,
    ) -> "FNDCLIPForSequenceClassification":
        """A new model on encoders that were trained.

        Args:
            text_model: a `BertModel`.
            dual_encoder: a `CLIPModel`, or another one of `modeling/dual_encoders`.
            image_model: a `ResNetForImageClassification`, whose logits are the image's features.
            options: fields of [`FNDCLIPConfig`], such as `freeze_backbone=True` or `id2label`.

        Raises:
            ValueError: parts that do not fit, or are of another kind.
        """
        parts = {"text_config": text_model, "dual_encoder_config": dual_encoder, "backbone_config": image_model}
        unsaved = ("architectures", "dtype")
        values = {n: {k: v for k, v in part.config.to_dict().items() if k not in unsaved} for n, part in parts.items()}
        longest = {"max_text_length": min(300, text_model.config.max_position_embeddings)}
        model = cls(FNDCLIPConfig(**values, **longest | options)).to(text_model.dtype)
        texts = text_model.state_dict()
        texts = {name: texts[name] for name in model.text_model.state_dict() if name in texts}
        copy_weights(model.text_model, texts, "text_model", options)
        copy_weights(model.dual_encoder, dual_encoder, "dual_encoder", options)
        copy_weights(model.image_model, image_model, "image_model", options)
        return model.eval()

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but missing weights are an error, and what the configuration freezes is frozen."""
        found = super().from_pretrained(*args, output_loading_info=output_loading_info, **kwargs)
        (found[0] if output_loading_info else found)._freeze()  # loading makes new parameters
        return found

    def _parts(self) -> dict[nn.Module, bool]:
        """Encoders and whether they are frozen."""
        config = self.config
        return {
            self.text_model: config.freeze_text,
            self.dual_encoder: config.freeze_dual_encoder,
            self.image_model: config.freeze_backbone,
        }

    def _freeze(self) -> None:
        for part, frozen in self._parts().items():
            part.requires_grad_(not frozen)

    def train(self, mode: bool = True):
        """As in PyTorch; frozen encoders stay in eval mode: no dropout, and statistics as they are."""
        super().train(mode)
        for part, frozen in self._parts().items():
            if frozen:
                part.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    # ---- features

    @can_return_tuple
    def get_features(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        clip_input_ids: torch.LongTensor | None = None,
        clip_attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        backbone_pixel_values: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FNDCLIPFeatures:
        """What the encoders say of the inputs that are there. Of frozen encoders it never changes: computed once, it
        trains the rest in seconds.

        Arguments and errors as for `forward`.
        """
        found: dict = {}
        if input_ids is not None:
            found |= self._text_states(input_ids, attention_mask, token_type_ids, **kwargs)
        if clip_input_ids is not None:
            found["clip_text_features"] = self._clip_text_features(clip_input_ids, clip_attention_mask)
        if pixel_values is not None:
            found["clip_image_features"] = self._clip_image_features(pixel_values)
        seen = pixel_values if backbone_pixel_values is None else backbone_pixel_values
        if seen is not None:
            found["image_logits"] = self._image_logits(seen)
        if not found:
            raise ValueError("input_ids, clip_input_ids, pixel_values: got none of them, expected at least one")
        return FNDCLIPFeatures(**found)

    def _text_states(self, input_ids, attention_mask, token_type_ids, output_hidden_states=None, **kwargs) -> dict:
        config = self.config
        check_token_ids(
            input_ids, config.text_config.vocab_size, longest=config.max_text_length, field="max_text_length"
        )
        _check_mask("attention_mask", attention_mask, input_ids)
        kwargs["return_dict"] = True
        outputs = self.text_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            output_hidden_states=True,
            **kwargs,
        )
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states or config.text_config.output_hidden_states
        return {
            "text_states": torch.stack([state[:, 0] for state in outputs.hidden_states], 1),
            "hidden_states": _chosen(outputs.hidden_states, output_hidden_states),
            "attentions": outputs.attentions,
        }

    def _clip_text_features(self, input_ids, attention_mask) -> torch.Tensor:
        dual = self.config.dual_encoder_config
        longest = self.family.context_length(dual)
        check_token_ids(input_ids, dual.text_config.vocab_size, longest=longest, name="clip_input_ids")
        _check_mask("clip_attention_mask", attention_mask, input_ids)
        if attention_mask is not None:
            input_ids = torch.where(attention_mask.bool(), input_ids, self.family.padding_id(dual))
        return self.family.encode_text(self.dual_encoder, input_ids)

    def _clip_image_features(self, pixels) -> torch.Tensor:
        size = self.family.image_size(self.config.dual_encoder_config)
        check_pixels(pixels, self.config.backbone_config.num_channels, size=size)
        return self.family.pooled_image_features(self.dual_encoder, pixels.to(self.dtype))

    def _image_logits(self, pixels) -> torch.Tensor:
        check_pixels(pixels, self.config.backbone_config.num_channels, "backbone_pixel_values")
        return self.image_model(pixels.to(self.dtype), return_dict=True).logits

    # ---- the similarity's start

    def fit_feature_maps(
        self,
        clip_text_features: torch.Tensor,
        clip_image_features: torch.Tensor,
        *,
        epochs: int = 16,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        penalty: float = 0.1,
        seed: int = 0,
    ) -> float:
        """Fits the matrices of `adapt_features=True` to posts whose text and image belong together, with CLIP's
        contrastive loss: each text against all images of its batch. Takes seconds; do it before the rest is trained,
        and `standardise_similarity` behind it. Not in the paper.

        Worth it where the dual encoder knows your kind of images and texts little: a network that is only told which
        posts are true remembers them sooner than it learns what fits.

        Args:
            clip_text_features, clip_image_features: (N, D) of the same N true posts, as of `get_features`.
            epochs, batch_size, learning_rate: of Adam; what is left of the last batch is left out.
            penalty: times the squares of both matrices; larger for fewer posts.

        Returns:
            The loss of the last batch.

        Raises:
            ValueError: no matrices (`adapt_features`), features of wrong shapes or not finite, fewer than two posts,
                a setting out of its range.
        """
        self._check_pairs(clip_text_features, clip_image_features)
        settings = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "penalty": penalty}
        self._check_fit(**settings)
        maps = self.fusion.text_map, self.fusion.image_map
        return fit_feature_maps(maps, clip_text_features, clip_image_features, **settings, seed=seed)

    def _check_fit(self, epochs: int, batch_size: int, learning_rate: float, penalty: float) -> None:
        if not self.config.adapt_features:
            raise ValueError(
                "adapt_features: False, there are no matrices to fit; want a model with adapt_features=True"
            )
        for name, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 2)):
            if type(value) is not int or value < least:
                raise ValueError(f"{name}: {value!r}, expected a whole number of at least {least}")
        for name, value in (("learning_rate", learning_rate), ("penalty", penalty)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e6:
                raise ValueError(f"{name}: {value!r}, expected a number in 0..1e6")

    def cross_fit_similarity(
        self,
        clip_text_features: torch.Tensor,
        clip_image_features: torch.Tensor,
        true: torch.Tensor,
        *,
        groups: torch.Tensor | None = None,
        folds: int = 5,
        epochs: int = 16,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        penalty: float = 0.1,
        seed: int = 0,
    ) -> torch.Tensor:
        """The similarities that training posts would have if `fit_feature_maps` had not seen them: of each fold by
        matrices that were fitted on the true posts of the others. The model stays as it is. What learns beside the
        similarity (`similarity_residual=True`) must see these: those of fitted posts are too good. Not in the paper.

        Args:
            clip_text_features, clip_image_features: (N, D) of the same N posts, as of `get_features`.
            true: (N,) bool, posts whose text and image belong together, each once: what is fitted on.
            groups: (N,) whole numbers; posts of one group, such as those that share an image, are in one fold. None:
                each its own.
            folds: parts of the groups.
            epochs, batch_size, learning_rate, penalty, seed: as of `fit_feature_maps`.

        Returns:
            (N,) cosines, to be given to `start_from_similarity` and, as `similarity`, to `forward`.

        Raises:
            ValueError: as `fit_feature_maps`; `true` or `groups` of another shape or type; fewer groups than folds;
                fewer than two true posts outside of a fold.
        """
        self._check_pairs(clip_text_features, clip_image_features)
        settings = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "penalty": penalty}
        self._check_fit(**settings)
        count = len(clip_text_features)
        groups = torch.arange(count) if groups is None else groups
        for name, value, wanted in (("true", true, "booleans"), ("groups", groups, "whole numbers")):
            fits = isinstance(value, torch.Tensor) and tuple(value.shape) == (count,)
            if not fits or (value.dtype == torch.bool) != (name == "true") or value.is_floating_point():
                got = f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
                raise ValueError(f"{name}: got {got}, expected {wanted} [{count}], one for each post")
        if type(folds) is not int or not 2 <= folds <= len(groups.unique()):
            raise ValueError(f"folds: {folds!r}, expected 2..{len(groups.unique())}, the number of groups")
        fold = folds_of(groups, folds, seed)
        left = min(int((true & (fold != number)).sum()) for number in range(folds))
        if left < 2:
            raise ValueError(f"true: {left} outside of a fold, want at least 2")
        pairs, device = (clip_text_features.detach(), clip_image_features.detach()), clip_text_features.device
        return cross_fitted_similarity(*pairs, true.to(device), fold.to(device), seed=seed, **settings)

    def start_from_similarity(self, similarity: torch.Tensor, labels: torch.Tensor) -> float:
        """Of a model with `similarity_residual=True`: the answer becomes the logistic regression of the labels on this
        one number, and the similarity's factor and summand start as of `standardise_similarity`. What is trained from
        here is a correction, which is nothing as it starts: stop where held-out posts say so. Not in the paper.

        Args:
            similarity: (N,) of training posts, true and false ones: of `cross_fit_similarity` if features were fitted.
            labels: (N,) their classes, as in `config.id2label`.

        Returns:
            The cross-entropy of these posts.

        Raises:
            ValueError: a model without `similarity_residual`, or for other than single labels; shapes or types that do
                not fit, labels out of range or of one class, similarities that are not finite or all equal.
        """
        answer = self.fusion.similarity_answer
        if answer is None:
            raise ValueError("similarity_residual: False, want a model with similarity_residual=True")
        if self.config.problem_type not in (None, "single_label_classification"):
            raise ValueError(f"problem_type: {self.config.problem_type!r}, expected single_label_classification")
        self._check_similarity(similarity, None)
        classification_loss(similarity[:, None].expand(-1, self.num_labels), labels)
        if labels.is_floating_point() or (labels < 0).any():
            raise ValueError(f"labels: {labels.min().item():g}, expected a class for each post, as a whole number")
        if len(labels.unique()) < 2:
            raise ValueError(f"labels: all of class {labels[0].item()}, expected two classes or more")
        if not similarity.isfinite().all() or not float(similarity.float().std()) > 1e-6:
            raise ValueError("similarity: all equal, or NaN or infinite numbers; expected finite ones that differ")
        return start_from_similarity(self.fusion, similarity, labels)

    def _check_similarity(self, similarity: torch.Tensor, posts: int | None) -> None:
        fits = isinstance(similarity, torch.Tensor) and similarity.dim() == 1 and similarity.is_floating_point()
        if not fits or (posts is not None and len(similarity) != posts):
            is_tensor = isinstance(similarity, torch.Tensor)
            got = f"{similarity.dtype} {list(similarity.shape)}" if is_tensor else type(similarity).__name__
            wanted = "posts" if posts is None else posts
            raise ValueError(f"similarity: got {got}, expected floats [{wanted}], a cosine for each post")

    def standardise_similarity(
        self, clip_text_features: torch.Tensor, clip_image_features: torch.Tensor
    ) -> tuple[float, float]:
        """Starts the similarity's factor and summand from training posts, true and false ones: 1 / deviation and
        -mean / deviation of their similarities, which is the paper's standardisation. The published code starts both
        between 0 and 1, where cosines differ by 0.1 and weigh next to nothing.

        Args:
            clip_text_features, clip_image_features: (N, D) of the same N posts, as of `get_features`.

        Returns:
            The factor and the summand.

        Raises:
            ValueError: features of wrong shapes or not finite, fewer than two posts, or all of one similarity.
        """
        self._check_pairs(clip_text_features, clip_image_features)
        return standardise_similarity(self.fusion, clip_text_features, clip_image_features)

    def _check_pairs(self, texts: torch.Tensor, images: torch.Tensor) -> None:
        for name, one in (("clip_text_features", texts), ("clip_image_features", images)):
            check_features(one, self.config.projection_dim, name)
            if len(one) != len(texts) or len(one) < 2:
                raise ValueError(f"{name}: of {len(one)} posts, expected at least 2 and as many as texts")
            if not one.isfinite().all():
                raise ValueError(f"{name}: NaN or infinite numbers, expected finite ones")

    # ---- forward

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        clip_input_ids: torch.LongTensor | None = None,
        clip_attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_mask: torch.Tensor | None = None,
        backbone_pixel_values: torch.FloatTensor | None = None,
        text_states: torch.FloatTensor | None = None,
        clip_text_features: torch.FloatTensor | None = None,
        clip_image_features: torch.FloatTensor | None = None,
        image_logits: torch.FloatTensor | None = None,
        similarity: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FNDCLIPOutput:
        r"""
        Args:
            input_ids, attention_mask, token_type_ids: (B, T), as BERT's tokenizer gives them, at most
                `config.max_text_length`.
            clip_input_ids, clip_attention_mask: (B, M), the text in the dual encoder's tokens.
            pixel_values: (B, 3, S, S), normalised for the dual encoder.
            image_mask: (B,), 0 for posts without an image, of which the text alone counts; their pixels are not
                looked at, but in training they are part of the batch's statistics. None: all have one.
            backbone_pixel_values: (B, 3, H, W), for the ResNet; None: `pixel_values`, as in the published code.
            text_states, clip_text_features, clip_image_features, image_logits: each instead of its inputs, from
                `get_features`.
            similarity: (B,), instead of the cosine of text and image: in training, what `cross_fit_similarity` gives.
            labels: (B,) classes, as in `config.id2label`; other kinds of labels as in `classification_loss`.

        Returns:
            [`FNDCLIPOutput`].

        Raises:
            ValueError: a text, its second text or the image is missing, inputs of wrong shapes or types, other
                numbers of images than of texts, a single post in training mode; on a CPU, in eval mode, NaN in the
                answer, with its cause.
        """
        given = dict(zip(FEATURES, (text_states, clip_text_features, clip_image_features, image_logits), strict=True))
        features = {name: value for name, value in given.items() if value is not None}
        texts = input_ids if text_states is None else text_states
        if self.training and isinstance(texts, torch.Tensor) and texts.dim() and len(texts) == 1:
            raise ValueError(
                "input_ids: one post in training mode, whose batch has no statistics; want at least two "
                "(dataloader_drop_last=True leaves a last batch of one out)"
            )
        if text_states is None:
            texts = _needed("input_ids", input_ids, "text_states")
            features |= self._text_states(texts, attention_mask, token_type_ids, **kwargs)
        if clip_text_features is None:
            texts = _needed("clip_input_ids", clip_input_ids, "clip_text_features")
            features["clip_text_features"] = self._clip_text_features(texts, clip_attention_mask)
        if clip_image_features is None:
            pixels = _needed("pixel_values", pixel_values, "clip_image_features")
            features["clip_image_features"] = self._clip_image_features(pixels)
        if image_logits is None:
            pixels = pixel_values if backbone_pixel_values is None else backbone_pixel_values
            features["image_logits"] = self._image_logits(_needed("pixel_values", pixels, "image_logits"))
        seen = {name: features[name] for name in FEATURES}
        self._check_together(seen, image_mask)
        if similarity is not None:
            self._check_similarity(similarity, len(seen["text_states"]))
        found = self.fusion(**seen, image_mask=image_mask, similarity=similarity)
        logits = found["logits"]
        check_output(self, logits, pixel_values=pixel_values, **given, similarity=similarity)
        loss = None if labels is None else classification_loss(logits, labels, self.config.problem_type)
        return FNDCLIPOutput(
            loss=loss,
            **{name: found[name] for name in _EXPLANATION},
            hidden_states=features.get("hidden_states"),
            attentions=features.get("attentions"),
        )

    def _check_together(self, features: Mapping[str, torch.Tensor], image_mask: torch.Tensor | None) -> None:
        config = self.config
        states, wanted = features["text_states"], [config.num_text_states, config.hidden_size]
        if not isinstance(states, torch.Tensor):
            raise ValueError(f"text_states: got {type(states).__name__}, expected a tensor of [posts, *{wanted}]")
        if states.dim() != 3 or list(states.shape[1:]) != wanted or not states.is_floating_point():
            raise ValueError(
                f"text_states: got {list(states.shape)}, expected floats [posts, {wanted[0]}, {wanted[1]}]"
            )
        posts = len(states)
        widths = (config.projection_dim, config.projection_dim, config.backbone_config.num_labels)
        for name, width in zip(FEATURES[1:], widths, strict=True):
            check_features(features[name], width, name)
            if len(features[name]) != posts:
                argument = f"{_INPUT_OF[name]} or {name}"
                raise ValueError(f"{argument}: of {len(features[name])} posts, the texts are of {posts}")
        if image_mask is not None:
            is_tensor = isinstance(image_mask, torch.Tensor)
            if not is_tensor or tuple(image_mask.shape) != (posts,):
                got = list(image_mask.shape) if is_tensor else type(image_mask).__name__
                raise ValueError(f"image_mask: got {got}, expected [{posts}], 1 for each post with an image")
            if can_be_read(image_mask) and not ((image_mask == 0) | (image_mask == 1)).all():
                raise ValueError(f"image_mask: got {str(image_mask.tolist())[:60]}, expected 0 and 1")


_EXPLANATION = ("logits", "similarity", "modality_weights", "layer_attention")
_EXPLANATION += ("text_embeds", "image_embeds", "cross_embeds")
_INPUT_OF = {"clip_text_features": "clip_input_ids", "clip_image_features": "pixel_values"}
_INPUT_OF |= {"image_logits": "pixel_values"}


def _chosen(states: tuple[torch.Tensor, ...], wanted: bool | int | Sequence[int] | None) -> tuple | None:
    """The states that transformers' `output_hidden_states` asks for: all, or some, with None in the others' place."""
    if wanted is None or isinstance(wanted, bool):
        return states if wanted else None
    some = {int(one) % len(states) for one in ([wanted] if isinstance(wanted, int) else wanted)}
    return tuple(state if place in some else None for place, state in enumerate(states))


def _needed(argument: str, value, feature: str):
    if value is None:
        more = "; for posts without an image any pixels, with image_mask" if argument == "pixel_values" else ""
        raise ValueError(f"{argument}: missing, and no {feature} instead{more}")
    return value


def _check_mask(name: str, mask, input_ids: torch.Tensor) -> None:
    is_tensor = isinstance(mask, torch.Tensor)
    if mask is None or (is_tensor and mask.shape == input_ids.shape):
        return
    got = list(mask.shape) if is_tensor else type(mask).__name__
    raise ValueError(f"{name}: got {got}, expected {list(input_ids.shape)}, as the token ids")


__all__ = ["FEATURES", "FNDCLIPFeatures", "FNDCLIPForSequenceClassification", "FNDCLIPOutput"]
__all__ += ["FNDCLIPPreTrainedModel"]
