"""GLIPv2 that writes captions: each word is predicted from those before it and from the image.

The paper says no more than that; the official repository has no code for it. How the image is kept from seeing the
words is this package's choice.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import can_return_tuple

from ..detection.inputs_detection import check_tensor
from ..dual_encoders.forward_checks import check_output, check_pixels, check_token_ids
from ..losses.word_labels import check_word_labels
from .configuration_glipv2 import GLIPv2Config
from .losses_glipv2 import masked_word_loss
from .modeling_glipv2 import GLIPv2ForZeroShotObjectDetection, mean_count


class GLIPv2ForImageTextToText(GLIPv2ForZeroShotObjectDetection, GenerationMixin):
    r"""
    A GLIPv2 that writes what is in an image, with the weights of a detector: the head of masked words predicts the
    next one. It follows the paper's description alone.

    Words see the words before them, in the text encoder and in the head. Regions see the first token alone, BERT's
    mark: else they would tell words what comes behind them. So of an image, regions are computed once for all words.

    `generate` is transformers', without a cache of the words. A caption's phrases are found by the same weights as a
    detector (`AutoModelForZeroShotObjectDetection`).

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import GLIPv2Config, GLIPv2ForImageTextToText

    >>> model = GLIPv2ForImageTextToText(GLIPv2Config.tiny()).eval()
    >>> start = torch.tensor([[101]])
    >>> model.generate(pixel_values=torch.randn(1, 3, 64, 96), input_ids=start, max_new_tokens=3).shape[0]
    1
    ```
    """

    main_input_name = "input_ids"

    def __init__(self, config: GLIPv2Config):
        if not config.use_mlm or not config.use_fusion:
            missing = "use_fusion" if config.use_mlm else "use_mlm"
            raise ValueError(f"{missing}: False, expected True: captions are written by fused words and their head")
        super().__init__(config)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_states: tuple[torch.Tensor, ...] | None = None,
        labels: torch.LongTensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        r"""
        Args:
            pixel_values: (B, 3, H, W), RGB, normalised.
            input_ids, attention_mask: captions, (B, T), from BERT's first mark on; padding is at the end.
            image_states: of `encode_images`, instead of `pixel_values`.
            labels: (B, T), `input_ids` with -100 where a word is not to be predicted: at padding.

        Returns:
            `logits` (B, T, V): at each place of the word behind it. `loss` with `labels`: the mean cross-entropy.
            `hidden_states` with `output_hidden_states`: the words (B, T, D) before the head and behind each layer.

        Raises:
            ValueError: names the argument, what came and what is wanted.
        """
        if (pixel_values is None) == (image_states is None):
            got = "neither" if pixel_values is None else "both"
            raise ValueError(f"pixel_values, image_states: got {got}, expected one of them")
        check_token_ids(
            input_ids, self.config.text_config.vocab_size, self.config.max_text_length, field="max_text_length"
        )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        _check_mask(attention_mask, input_ids)
        if labels is not None:
            check_word_labels("labels", labels, input_ids.shape, self.config.text_config.vocab_size)
        if image_states is None:
            image_states = self.encode_images(pixel_values, input_ids[:, :1])
        self._check_states(image_states, len(input_ids))
        words = self._read(input_ids, attention_mask, image_states)
        logits = self.word_predictions(words[-1])
        given = {f"image_states[{i}]": one for i, one in enumerate(image_states)} if pixel_values is None else {}
        check_output(self, logits, "logits", pixel_values=pixel_values, **given)
        loss = None
        if labels is not None:
            wanted = labels[:, 1:]
            total, count = masked_word_loss(logits[:, :-1], wanted)
            loss = total / mean_count(total, count)
        check_output(self, loss, "loss")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return CausalLMOutput(loss=loss, logits=logits, hidden_states=words if output_hidden_states else None)

    def _check_states(self, states: object, count: int | None) -> None:
        """ValueError unless they are of `encode_images`, of `count` images."""
        layers, width = len(self.layers), self.config.hidden_size
        tensors = states if isinstance(states, Sequence) else ()
        fits = len(tensors) == layers and all(
            isinstance(one, torch.Tensor) and one.is_floating_point() and one.dim() == 3 and one.shape[2] == width
            for one in tensors
        )
        if not fits or not all(one.numel() and one.shape == tensors[0].shape for one in tensors):
            got = [list(getattr(one, "shape", [])) for one in tensors] or type(states).__name__
            raise ValueError(
                f"image_states: got {got}, expected {layers} of [batch, regions, {width}], of encode_images"
            )
        if count is not None and len(tensors[0]) != count:
            raise ValueError(
                f"input_ids, image_states: {count} captions for {len(tensors[0])} images, expected one each"
            )

    def encode_images(self, pixel_values: torch.Tensor, first: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Images (B, 3, H, W) and the first token (B, 1) -> what words see of them in each layer, (B, N, C)."""
        check_pixels(pixel_values, self.config.backbone_config.num_channels)
        if len(pixel_values) != len(first):
            raise ValueError(f"input_ids: {len(first)} captions for {len(pixel_values)} images, expected one each")
        features, _ = self.feature_maps(pixel_values, output_hidden_states=False)
        words, mask = self._read_alone(first), torch.ones_like(first)
        states = []
        for number, layer in enumerate(self.layers, 1):
            flat = torch.cat([one.flatten(2) for one in features], dim=2).transpose(1, 2)
            states.append(layer.fusion.image_norm(flat))
            if number < len(self.layers):
                words, *features = layer(words, mask, None, *features)
        return tuple(states)

    def _read_alone(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.text_encoder(ids, mask, return_dict=True).last_hidden_state

    def _read(self, ids: torch.Tensor, attention_mask: torch.Tensor, states) -> tuple[torch.Tensor, ...]:
        """Token ids (B, T) -> words (B, T, D) before the head and behind each of its layers, each of those before
        it."""
        length = ids.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril() & (attention_mask > 0)[:, None]
        seen = seen | torch.eye(length, dtype=torch.bool, device=ids.device)  # padding sees itself
        mask = torch.zeros(seen.shape, dtype=self.text_encoder.dtype, device=ids.device)
        mask = mask.masked_fill_(~seen, -torch.inf)[:, None]
        words = self._read_alone(ids, mask)
        found = [words]
        for layer, regions in zip(self.layers, states, strict=True):
            words = layer.fusion.text_norm(words)
            _, update = layer.fusion.updates(regions, words, attention_mask)
            words = layer.text_layer(words + layer.fusion.text_scale * update, mask)
            found.append(words)
        return tuple(found)

    # ---- generation

    def generate(self, *args: Any, **kwargs: Any):
        """As in transformers, from `pixel_values` and the first tokens, `input_ids`. It ends at `end_token_id`, after
        `max_new_tokens` (default 30), or where the prompt is full.

        Raises:
            ValueError: names the argument, what came and what is wanted.
        """
        padding = self.config.text_config.pad_token_id
        fixed = {"use_cache": False, "eos_token_id": self.config.end_token_id, "pad_token_id": padding or 0}
        ids = kwargs.get("input_ids", args[0] if args else None)
        pixels = kwargs.pop("pixel_values", None)
        if (pixels is None) == (kwargs.get("image_states") is None):
            got = "neither" if pixels is None else "both"
            raise ValueError(f"pixel_values, image_states: got {got}, expected one of them")
        check_token_ids(ids, self.config.text_config.vocab_size, self.config.max_text_length, field="max_text_length")
        _check_mask(kwargs.get("attention_mask"), ids)
        for name in ("max_new_tokens", "max_length"):
            count = kwargs.get(name)
            if count is not None and (not isinstance(count, int) or isinstance(count, bool)):
                raise ValueError(f"{name}: {count!r}, expected a whole number")
        room = self.config.max_text_length - ids.shape[1]
        given = (kwargs.get("generation_config"), self.generation_config)
        wanted = [kwargs.get("max_new_tokens"), *(getattr(one, "max_new_tokens", None) for one in given)]
        longest = kwargs.pop("max_length", None)
        if longest is not None:
            wanted.insert(1, longest - ids.shape[1])
        fixed["max_new_tokens"] = min(room, next((one for one in wanted if one is not None), 30))
        if room < 1:
            raise ValueError(f"input_ids: {ids.shape[1]} tokens, expected less than max_text_length, to go on with")
        if fixed["max_new_tokens"] < 1:
            name = "max_new_tokens" if longest is None else "max_length"
            raise ValueError(f"{name}: {fixed['max_new_tokens']} words behind input_ids, expected at least 1")
        for name in ("pixel_mask", "is_caption", "phrase_map"):  # of the processor: nothing here reads them
            kwargs.pop(name, None)
        if pixels is None:
            self._check_states(kwargs["image_states"], len(ids))
        else:
            with torch.no_grad():
                states = kwargs["image_states"] = self.encode_images(pixels, ids[:, :1])
            for one in states:
                check_output(self, one, "image_states", pixel_values=pixels)
        return super().generate(*args, **kwargs | fixed)

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, image_states=None, **kwargs):
        if image_states is not None and len(image_states[0]) != len(input_ids):  # several captions of an image
            times = len(input_ids) // len(image_states[0])
            image_states = tuple(one.repeat_interleave(times, dim=0) for one in image_states)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "image_states": image_states}


def _check_mask(attention_mask: object, ids: torch.Tensor) -> None:
    """ValueError unless numbers, one for each of `ids`, or None."""
    if attention_mask is None:
        return
    check_tensor("attention_mask", attention_mask)
    if attention_mask.shape != ids.shape:
        got = list(attention_mask.shape)
        raise ValueError(f"attention_mask: got {got}, expected {list(ids.shape)}, as input_ids")


__all__ = ["GLIPv2ForImageTextToText"]
