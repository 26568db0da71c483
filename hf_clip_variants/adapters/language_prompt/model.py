"""The PEFT tuner of prompt tuning for detectors that read a prompt."""

from contextlib import contextmanager

from torch import nn

from ..tuner import Base, Tuner
from .config import LanguagePromptConfig
from .layer import LanguagePromptLayer


class PromptReader(Base):
    """A model of this package that reads a prompt: its class says by `prompt_encoder` which module does.

    Attributes:
        encoder: name of that module.
        longest: the longest prompt in tokens.
    """

    def __init__(self, model: nn.Module, peft_type: str):
        encoder = getattr(model, "prompt_encoder", None)
        if not isinstance(encoder, str):
            raise ValueError(f"model: {peft_type} works on {self.works_on()}, got {type(model).__name__}")
        self.model = self.clip = model
        self.is_classifier, self.family, self.encoder = False, None, encoder
        self.longest = model.config.max_text_length
        self.widths = {"text width": model.config.text_config.hidden_size}

    @classmethod
    def works_on(cls) -> str:
        return "detectors that read a prompt, whose class has a `prompt_encoder`"


class LanguagePromptModel(Tuner):
    """Created by `get_peft_model(base, LanguagePromptConfig(...))`; wraps the text encoder.

    The base model stays in eval mode in training, as officially: its dropout would be noise for the vectors.
    """

    prefix = "clipv_language_prompt_"
    tuner_layer_cls = LanguagePromptLayer
    tensor_widths = ("text width",)
    base_class = PromptReader

    @classmethod
    def targets(cls, config: LanguagePromptConfig, base: PromptReader) -> dict[str, nn.Module]:
        return {base.encoder: base.model.get_input_embeddings()}

    @classmethod
    def fill_config(cls, config: LanguagePromptConfig, base: PromptReader) -> None:
        count = 0 if config.prompt_ids is None else len(config.prompt_ids)
        if count > base.longest:
            raise ValueError(f"prompt_ids: {count} tokens, the model reads at most {base.longest}")
        config.num_tokens = base.longest if config.num_tokens is None else config.num_tokens

    def _wrap(self, target: nn.Module, name: str, anchor: nn.Module) -> LanguagePromptLayer:
        return LanguagePromptLayer(target, anchor)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, adapter_names: list[str] | None = None, **kwargs):
        if adapter_names is not None:
            raise ValueError("adapter_names: the images of a batch share one adapter of this kind; use set_adapter")
        yield

    def train(self, mode: bool = True) -> "LanguagePromptModel":
        super().train(mode)
        self.model.eval()
        return self


__all__ = ["LanguagePromptModel", "PromptReader"]
