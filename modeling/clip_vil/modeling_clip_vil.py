"""CLIP-ViL: one BERT over the words of a text and the grid of an image, as CLIP's image encoder sees it.

Paper: "How Much Can CLIP Benefit Vision-and-Language Tasks?", https://arxiv.org/abs/2107.06383, section 4.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import nn
from transformers import BertModel, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.bert.modeling_bert import BertLayer, BertLMPredictionHead, BertSelfAttention
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..detection.inputs_detection import check_tensor
from ..dual_encoders.forward_checks import check_output, check_token_ids
from ..loading_and_saving.checkpoints import CheckedLoading, StagedSaving
from ..loading_and_saving.copied_weights import copy_weights
from .configuration_clip_vil import ClipViLConfig
from .grid_clip_vil import ClipViLGrid, ClipViLGridPosition, check_grid, initialise_grid


# B pairs of a text and an image, T words, N tokens of the grid, C their width, D that of the BERT


@dataclass
class ClipViLModelOutput(ModelOutput):
    """
    Args:
        language_output: (B, T, D), of the words.
        vision_output: (B, N, D), of the grid.
        pooler_output: (B, D), of [CLS], one linear layer behind its last state; no tanh.
        hidden_states, attentions: of the words and behind them the grid, (B, T + N, D) and (B, heads, T + N, T + N).
    """

    language_output: torch.FloatTensor | None = None
    vision_output: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class ClipViLGridProjection(nn.Module):
    """(B, N, C) -> (B, N, D): tokens of the grid as embeddings for the BERT, with a normalisation of their own."""

    def __init__(self, config: ClipViLConfig):
        super().__init__()
        self.dense = nn.Linear(config.visual_width, config.hidden_size)
        self.normalization = nn.LayerNorm(config.hidden_size, eps=config.text_config.layer_norm_eps)
        self.dropout = nn.Dropout(config.text_config.hidden_dropout_prob)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.normalization(self.dense(tokens)))


class ClipViLPreTrainedModel(CheckedLoading, StagedSaving, PreTrainedModel):
    config: ClipViLConfig
    base_model_prefix = "clip_vil"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_attention_backend = True
    _no_split_modules = ["BertLayer", "BertEmbeddings", "CLIPResNetBottleneck", "CLIPEncoderLayer", "ClipViLGrid"]
    # Official and CLIP's files hold more than a grid needs.
    _keys_to_ignore_on_load_unexpected = [r"attnpool\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        initialise_grid(module, self.config.initializer_range)
        if isinstance(module, BertLMPredictionHead):
            init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers; a frozen image encoder (`config.freeze_vision`) stays frozen."""
        found = super().from_pretrained(*args, output_loading_info=output_loading_info, **kwargs)
        model = found[0] if output_loading_info else found
        for module in model.modules():
            if isinstance(module, ClipViLGrid) and module.config.freeze_vision:
                module.freeze()
        return found

    @torch.no_grad()
    def get_grid_features(self, pixel_values: torch.FloatTensor) -> torch.Tensor:
        """The grid of images, before positions: what a model also takes as `grid_features`, so that images of a frozen
        encoder are seen once.

        Args:
            pixel_values: (B, 3, H, W), RGB, normalised.

        Returns:
            (B, H / 32, W / 32, C) of a ResNet; (B, 1 + cells, C) of a Vision Transformer, the class token first.

        Raises:
            ValueError: as in `forward`.
        """
        grid = next(module for module in self.modules() if isinstance(module, ClipViLGrid))
        was_training = grid.training
        grid.eval()
        try:
            return grid(pixel_values)
        finally:
            grid.train(was_training)


class ClipViLModel(ClipViLPreTrainedModel):
    r"""
    CLIP-ViL_p (Shen et al. 2022) without a head: words and grid in one sequence through one BERT.

    Prefer [`ClipViLForVisualQuestionAnswering`] for questions, and `CLIPModel` where image and text are to be compared
    by a dot product: here each pair is computed anew.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import ClipViLConfig, ClipViLModel

    >>> text = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    >>> vision = {"hidden_size": 256, "depths": [1, 1, 1, 1], "num_attention_heads": 4, "image_size": 64}
    >>> model = ClipViLModel(ClipViLConfig(text_config=text, vision_config=vision)).eval()
    >>> outputs = model(torch.tensor([[101, 2054, 102]]), torch.randn(1, 3, 96, 160))
    >>> outputs.language_output.shape, outputs.vision_output.shape
    (torch.Size([1, 3, 48]), torch.Size([1, 15, 48]))
    ```
    """

    _can_record_outputs = {"hidden_states": BertLayer, "attentions": BertSelfAttention}

    def __init__(self, config: ClipViLConfig):
        super().__init__(config)
        self.grid = ClipViLGrid(config)
        if config.is_resnet and config.use_grid_position:
            self.grid_position = ClipViLGridPosition(config)
        self.grid_projection = ClipViLGridProjection(config)
        self.text_model = BertModel._from_config(config.text_config, add_pooling_layer=False)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    @classmethod
    def from_clip_and_bert(cls, clip: PreTrainedModel, bert: PreTrainedModel, **options) -> "ClipViLModel":
        """A new model from a CLIP and a BERT, as the paper's starts; positions, projection and pooler are new.

        Args:
            clip: a [`CLIPResNetModel`] or `CLIPModel`, or the image encoder of one.
            bert: a `BertModel`.
            options: fields of [`ClipViLConfig`].
        """
        vision = getattr(clip, "vision_model", clip)
        unwanted = ("architectures", "dtype", "transformers_version")
        parts = {
            f"{name}_config": {k: v for k, v in one.config.to_dict().items() if k not in unwanted}
            for name, one in (("vision", vision), ("text", bert))
        }
        model = cls(ClipViLConfig(**parts | options))
        model.load_parts(vision.state_dict(), bert.state_dict(), options)
        return model.eval()

    def load_parts(
        self, vision: dict[str, torch.Tensor], bert: dict[str, torch.Tensor], options: Iterable[str] = ()
    ) -> None:
        """Puts the weights of a CLIP's image encoder and of a BERT in place; all that are needed must be there."""
        for part, argument, weights in ((self.grid.vision_model, "clip", vision), (self.text_model, "bert", bert)):
            weights = {name: weights[name] for name in part.state_dict() if name in weights}
            copy_weights(part, weights, argument, options)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        grid_features: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ClipViLModelOutput:
        r"""
        Args:
            input_ids, attention_mask, token_type_ids: (B, T), as BERT's tokenizer gives them, at most
                `config.max_text_length`.
            pixel_values: (B, 3, H, W), RGB, normalised; or
            grid_features: of `get_grid_features`.
            pixel_mask: (B, H, W), 1 where an image is and no padding; read with `config.mask_padding`.

        Returns:
            [`ClipViLModelOutput`].

        Raises:
            ValueError: both or none of images and grids, wrong shapes or types, texts that are too long or without a
                token, another number of texts than of images, a grid that is larger than `config.grid_position_size`;
                on a CPU, in eval mode, NaN in the answer, with its cause.
        """
        config = self.config
        if (pixel_values is None) == (grid_features is None):
            got = "neither" if pixel_values is None else "both"
            raise ValueError(f"pixel_values, grid_features: got {got}, expected one of them: an image of each text")
        check_token_ids(input_ids, config.vocab_size, config.max_text_length, field="max_text_length")
        words_there = self._word_mask(attention_mask, input_ids)
        _check_types(token_type_ids, input_ids, config.text_config.type_vocab_size)
        images = pixel_values if grid_features is None else grid_features
        if grid_features is None:
            grid = self.grid(pixel_values)
        else:
            check_grid(grid_features, config)
            grid = grid_features.to(self.grid_projection.dense.weight.dtype)
        if len(grid) != len(input_ids):
            name = "pixel_values" if grid_features is None else "grid_features"
            raise ValueError(f"{name}: {len(images)} images for {len(input_ids)} texts, expected one of each")
        tokens = self._with_positions(grid)
        seen = self._grid_mask(pixel_mask, pixel_values, tokens)
        tokens, seen = self._drawn(tokens, seen)
        words = self.text_model.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        joint = torch.cat([words, self.grid_projection(tokens).to(words.dtype)], dim=1)
        mask = create_bidirectional_mask(
            config=config.text_config, inputs_embeds=joint, attention_mask=torch.cat([words_there, seen], dim=1)
        )
        hidden = self.text_model.encoder(joint, attention_mask=mask, **kwargs).last_hidden_state
        length = input_ids.shape[1]
        pooled = self.pooler(hidden[:, 0])
        check_output(self, pooled, "pooler_output", pixel_values=pixel_values, grid_features=grid_features)
        return ClipViLModelOutput(
            language_output=hidden[:, :length], vision_output=hidden[:, length:], pooler_output=pooled
        )

    def _with_positions(self, grid: torch.Tensor) -> torch.Tensor:
        """-> (B, N, C)."""
        if not self.config.is_resnet:  # its own, inside
            return grid
        return self.grid_position(grid) if self.config.use_grid_position else grid.flatten(1, 2)

    def _grid_mask(self, pixel_mask, pixel_values, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N), which tokens of the grid are looked at. Officially all are, also those of padding."""
        everything = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        if pixel_mask is None:
            return everything
        check_tensor("pixel_mask", pixel_mask)
        sizes = list(pixel_values.shape[-2:]) if pixel_values is not None else ["H", "W"]
        fits = pixel_mask.dim() == 3 and len(pixel_mask) == len(tokens)
        if not fits or (pixel_values is not None and list(pixel_mask.shape[1:]) != sizes):
            expected = f"[{len(tokens)}, {sizes[0]}, {sizes[1]}]"
            raise ValueError(f"pixel_mask: got {list(pixel_mask.shape)}, expected {expected}, 1 where an image is")
        if not self.config.mask_padding:
            return everything
        seen = self.grid.cells_with_image(pixel_mask).long()
        if seen.shape != everything.shape:
            raise ValueError(
                f"pixel_mask: {seen.shape[1]} cells of the grid, but grid_features have {everything.shape[1]}"
            )
        return seen.to(tokens.device)

    def _drawn(self, tokens: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """In training, `num_visual_tokens_train` tokens of each image."""
        count = self.config.num_visual_tokens_train
        if not self.training or count is None or count >= tokens.shape[1]:
            return tokens, seen
        chosen = torch.rand(tokens.shape[:2], device=tokens.device).argsort(dim=1)[:, :count]
        drawn = tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[2]))
        return drawn, seen.gather(1, chosen)

    @staticmethod
    def _word_mask(attention_mask: object, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) whole numbers; ValueError for another shape and for a text without tokens."""
        if attention_mask is None:
            return torch.ones_like(input_ids)
        check_tensor("attention_mask", attention_mask)
        if attention_mask.shape != input_ids.shape:
            got = list(attention_mask.shape)
            raise ValueError(f"attention_mask: got {got}, expected {list(input_ids.shape)}, as input_ids")
        mask = (attention_mask > 0).long()
        if not torch.compiler.is_compiling() and not mask.any(dim=1).all():
            raise ValueError("attention_mask: a text without tokens, expected at least [CLS] and [SEP]")
        return mask


def _check_types(token_type_ids: object, input_ids: torch.Tensor, count: int) -> None:
    if token_type_ids is None:
        return
    check_token_ids(token_type_ids, count, name="token_type_ids")
    if token_type_ids.shape != input_ids.shape:
        got = list(token_type_ids.shape)
        raise ValueError(f"token_type_ids: got {got}, expected {list(input_ids.shape)}, as input_ids")


__all__ = ["ClipViLGridProjection", "ClipViLModel", "ClipViLModelOutput", "ClipViLPreTrainedModel"]
