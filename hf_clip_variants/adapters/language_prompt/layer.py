"""The layer that adds a learned vector to each token of a prompt."""

import torch
from torch import nn

from ..tuner import TunerLayer
from .config import LanguagePromptConfig


class LanguagePromptLayer(TunerLayer):
    """Wraps a text encoder that returns `last_hidden_state` (B, T, D): vector t is added to token t of each prompt."""

    adapter_layer_names = ("clipv_language_prompt_vectors",)
    merge_refusal = "it adds vectors to the places of a prompt, which no weight matrix can represent"

    def __init__(self, base_layer: nn.Module, anchor: nn.Module):
        super().__init__(base_layer, anchor)
        self.clipv_language_prompt_vectors = nn.ParameterDict()

    def update_layer(self, adapter_name: str, config: LanguagePromptConfig) -> None:
        """Creates the vectors (num_tokens, D): zeros, with which nothing changes. float32."""
        self.configs[adapter_name] = config
        shape = (config.num_tokens, config.backbone_widths["text width"])
        vectors = torch.zeros(shape, dtype=torch.float32, device=self.adapter_device)
        self.clipv_language_prompt_vectors[adapter_name] = nn.Parameter(vectors)

    def forward(self, input_ids: torch.Tensor, *args, **kwargs):
        """(B, T) token ids -> the encoder's outputs.

        Raises:
            ValueError: more tokens than vectors, or another prompt than `prompt_ids`.
        """
        outputs = self.base_layer(input_ids, *args, **kwargs)
        name = self.active_name()
        if name is None:
            return outputs
        vectors, length = self.clipv_language_prompt_vectors[name], input_ids.shape[1]
        if length > len(vectors):
            raise ValueError(f"input_ids: {length} tokens, the adapter has vectors for {len(vectors)} (num_tokens)")
        self._check_prompt(input_ids, self.configs[name])
        hidden = outputs.last_hidden_state
        outputs.last_hidden_state = (hidden.to(vectors.dtype) + vectors[:length]).to(hidden.dtype)
        return outputs

    def _check_prompt(self, input_ids: torch.Tensor, config: LanguagePromptConfig) -> None:
        if config.prompt_ids is None or torch.compiler.is_compiling():
            return
        wanted = torch.tensor(config.prompt_ids, device=input_ids.device)
        padding = input_ids[:, len(wanted) :]
        pad_token = getattr(self.base_layer.config, "pad_token_id", None)
        same = input_ids.shape[1] >= len(wanted) and bool((input_ids[:, : len(wanted)] == wanted).all())
        if not same or not bool((padding == (0 if pad_token is None else pad_token)).all()):
            of = f" (classes {', '.join(config.class_names[:5])}…)" if config.class_names else ""
            raise ValueError(
                f"input_ids: another prompt than the one of {len(wanted)} tokens that the adapter is trained for{of}; "
                "its vectors belong to places in that one: give the same names in the same order, or disable it"
            )


__all__ = ["LanguagePromptLayer"]
