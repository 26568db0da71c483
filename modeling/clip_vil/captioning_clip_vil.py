"""CLIP-ViL's captions: a Transformer that reads the grid and writes words."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, MBartForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.utils import can_return_tuple

from ..dual_encoders.forward_checks import check_output, check_token_ids
from ..loading_and_saving.copied_weights import copy_weights
from ..losses.word_labels import check_word_labels
from .answering_clip_vil import mean_cross_entropy
from .configuration_clip_vil import ClipViLConfig
from .grid_clip_vil import ClipViLGrid, check_grid
from .modeling_clip_vil import ClipViLModel, ClipViLPreTrainedModel


class ClipViLForImageCaptioning(ClipViLPreTrainedModel, GenerationMixin):
    r"""
    A captioner on CLIP's grid (Shen et al. 2022, section 3.2): a linear layer with ReLU brings the grid to the width
    of an encoder and a decoder, which are transformers' MBart (pre-norm, as the official Transformer).

    Captions are BERT's tokens, from [CLS] on (`config.cls_token_id`) to [SEP] (`config.sep_token_id`). `generate` is
    transformers', with a cache, beams and sampling.

    Official captioning checkpoints have a vocabulary and code of their own and are not converted. The self-critical
    training with CIDEr is not here: it needs a metric's own tools.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import ClipViLConfig, ClipViLForImageCaptioning

    >>> vision = {"hidden_size": 256, "depths": [1, 1, 1, 1], "num_attention_heads": 4, "image_size": 64}
    >>> decoder = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
    >>> model = ClipViLForImageCaptioning(ClipViLConfig(vision_config=vision, decoder_config=decoder)).eval()
    >>> model.generate(pixel_values=torch.randn(1, 3, 64, 96), max_new_tokens=3).shape[0]
    1
    ```
    """

    main_input_name = "pixel_values"

    def __init__(self, config: ClipViLConfig):
        for name in ("cls_token_id", "sep_token_id"):
            if not 0 <= getattr(config, name) < config.vocab_size:
                raise ValueError(f"{name}: {getattr(config, name)}, expected 0..{config.vocab_size - 1}, a token")
        super().__init__(config)
        self.grid = ClipViLGrid(config)
        self.grid_dense = nn.Linear(config.visual_width, config.decoder_config.d_model)
        self.writer = MBartForConditionalGeneration._from_config(config.decoder_config)
        self.post_init()
        self.writer.generation_config.forced_eos_token_id = None  # transformers takes it where ours says None
        # transformers adds up what parts may lack; files of this model lack nothing.
        self._keys_to_ignore_on_load_missing = set()

    @classmethod
    def from_clip(cls, clip, **options) -> "ClipViLForImageCaptioning":
        """A new captioner on the image encoder of a CLIP; `options` are fields of [`ClipViLConfig`]."""
        vision = getattr(clip, "vision_model", clip)
        values = {k: v for k, v in vision.config.to_dict().items() if k not in ("architectures", "dtype")}
        model = cls(ClipViLConfig(**{"vision_config": values} | options))
        weights = vision.state_dict()
        encoder = model.grid.vision_model
        weights = {name: weights[name] for name in encoder.state_dict() if name in weights}
        copy_weights(encoder, weights, options=options)
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        return self.writer.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.writer.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.writer.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module):
        self.writer.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        grid_features: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        r"""
        Args:
            pixel_values: (B, 3, H, W), RGB, normalised; or
            grid_features: of `get_grid_features`.
            input_ids, attention_mask: captions (B, T), from [CLS] on; padding is at the end.
            labels: (B, T), `input_ids` with -100 where a word is not to be predicted: at padding.
            pixel_mask: of the processor; read with `config.mask_padding`.

        Returns:
            `logits` (B, T, V): at each place of the word behind it. `loss` with `labels`: the mean cross-entropy.
            `hidden_states` and `attentions` are those of the words.

        Raises:
            ValueError: names the argument, what came and what is wanted.
        """
        limit = self.config.decoder_config.max_position_embeddings
        check_token_ids(input_ids, self.config.vocab_size, limit, field="decoder_config.max_position_embeddings")
        mask = ClipViLModel._word_mask(attention_mask, input_ids)
        grid, seen = self._grid(pixel_values, grid_features, pixel_mask)
        if len(grid) != len(input_ids):
            raise ValueError(f"input_ids: {len(input_ids)} captions for {len(grid)} images, expected one each")
        if labels is not None:
            check_word_labels("labels", labels, input_ids.shape, self.config.vocab_size)
        outputs = self.writer(
            inputs_embeds=grid,
            attention_mask=seen,
            decoder_input_ids=input_ids,
            decoder_attention_mask=mask,
            use_cache=False,
            return_dict=True,
            **kwargs,
        )
        check_output(self, outputs.logits, "logits", pixel_values=pixel_values, grid_features=grid_features)
        loss = None
        if labels is not None:
            loss = mean_cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        check_output(self, loss, "loss")
        return CausalLMOutput(
            loss=loss,
            logits=outputs.logits,
            hidden_states=outputs.decoder_hidden_states,
            attentions=outputs.decoder_attentions,
        )

    def _grid(self, pixel_values, grid_features, pixel_mask) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, d_model) for the encoder, and (B, N), which tokens it looks at."""
        if (pixel_values is None) == (grid_features is None):
            got = "neither" if pixel_values is None else "both"
            raise ValueError(f"pixel_values, grid_features: got {got}, expected one of them")
        if grid_features is None:
            grid = self.grid(pixel_values)
        else:
            check_grid(grid_features, self.config)
            grid = grid_features.to(self.grid_dense.weight.dtype)
        grid = grid.flatten(1, 2) if grid.dim() == 4 else grid
        limit = self.config.decoder_config.max_position_embeddings
        if grid.shape[1] > limit:
            raise ValueError(
                f"pixel_values: {grid.shape[1]} cells of the grid, the encoder takes {limit} "
                "(decoder_config.max_position_embeddings); want smaller images"
            )
        seen = None
        if self.config.mask_padding and pixel_mask is not None:
            seen = self.grid.cells_with_image(pixel_mask).long().to(grid.device)
        hidden = F.relu(self.grid_dense(grid))
        return F.dropout(hidden, self.config.decoder_config.dropout, self.training), seen

    # ---- generation

    def generate(self, *args: Any, **kwargs: Any):
        """As in transformers, from `pixel_values` (the first argument) or `grid_features`, and maybe `input_ids`, how
        captions begin: (B, T) from [CLS] on. It ends at [SEP], after `max_new_tokens` (default 30), or where the
        decoder has no more positions.

        Returns:
            (B, T) tokens with [CLS], or what `return_dict_in_generate` asks for.

        Raises:
            ValueError: names the argument, what came and what is wanted.
        """
        if args:
            kwargs["pixel_values"] = kwargs.pop("inputs", args[0])
        pixels, features = kwargs.pop("pixel_values", None), kwargs.pop("grid_features", None)
        config = self.config
        with torch.no_grad():
            grid, seen = self._grid(pixels, features, kwargs.pop("pixel_mask", None))
        ids = kwargs.pop("input_ids", None)
        if ids is None:
            ids = torch.full((len(grid), 1), config.cls_token_id, device=grid.device)
        limit = config.decoder_config.max_position_embeddings
        check_token_ids(ids, config.vocab_size, limit, field="decoder_config.max_position_embeddings")
        if len(ids) != len(grid):
            raise ValueError(f"input_ids: {len(ids)} captions for {len(grid)} images, expected one each")
        mask = kwargs.pop("attention_mask", None)
        is_tensor = isinstance(mask, torch.Tensor)
        if mask is not None and (not is_tensor or mask.is_complex() or mask.shape != ids.shape):
            got = f"{mask.dtype} {list(mask.shape)}" if is_tensor else type(mask).__name__
            raise ValueError(f"attention_mask: got {got}, expected {list(ids.shape)}, as the token ids")
        if mask is not None and not bool((mask > 0).all()):
            raise ValueError(
                "attention_mask: padding in the beginnings of captions, expected beginnings of one length"
            )
        if ids.shape[1] > 1 and bool((ids[:, -1] == config.sep_token_id).all()):
            ids = ids[:, :-1]  # of a tokenizer; captions go on
        beams = kwargs.get("num_beams")
        if beams is not None and (isinstance(beams, bool) or not isinstance(beams, int) or beams < 1):
            raise ValueError(f"num_beams: {beams!r}, expected a whole number of at least 1")
        settings = copy.deepcopy(kwargs.pop("generation_config", None) or self.generation_config)
        fixed = {"max_new_tokens": self._room(kwargs, settings, ids.shape[1], limit), "max_length": None}
        fixed |= {"eos_token_id": config.sep_token_id, "pad_token_id": config.text_config.pad_token_id or 0}
        fixed |= {"decoder_start_token_id": config.cls_token_id, "forced_eos_token_id": None}
        others = settings.update(**kwargs | fixed)
        encoded = self.writer.get_encoder()(inputs_embeds=grid, attention_mask=seen, return_dict=True)
        check_output(self, encoded.last_hidden_state, "grid", pixel_values=pixels, grid_features=features)
        return self.writer.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.last_hidden_state.detach()),
            attention_mask=torch.ones(grid.shape[:2], dtype=torch.long, device=grid.device) if seen is None else seen,
            decoder_input_ids=ids,
            generation_config=settings,
            **others,
        )

    @staticmethod
    def _room(kwargs: dict, settings, length: int, limit: int) -> int:
        """How many new tokens there will be at most."""
        for name in ("max_new_tokens", "max_length"):
            count = kwargs.get(name)
            if count is not None and (not isinstance(count, int) or isinstance(count, bool)):
                raise ValueError(f"{name}: {count!r}, expected a whole number")
        longest = kwargs.get("max_length")
        wanted = [kwargs.get("max_new_tokens"), None if longest is None else longest - length]
        wanted.append(settings.max_new_tokens)
        count = min(limit - length, next((one for one in wanted if one is not None), 30))
        if limit - length < 1:
            raise ValueError(f"input_ids: {length} tokens, expected less than {limit}, to go on with")
        if count < 1:
            name = "max_new_tokens" if longest is None else "max_length"
            raise ValueError(f"{name}: {count} words behind input_ids, expected at least 1")
        return count


__all__ = ["ClipViLForImageCaptioning"]
