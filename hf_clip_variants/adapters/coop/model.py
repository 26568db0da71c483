"""The PEFT tuner of CoOp."""

from torch import nn

from ..tuner import Base, Tuner
from .config import CoOpConfig
from .layer import CoOpLayer, PromptEmbedderWithContext, TextEmbeddingsWithContext


class CoOpModel(Tuner):
    """Made by `get_peft_model(base, CoOpConfig(...))`; wraps one module of a `CLIPClassifier` or a `CLIPModel`."""

    prefix = "clipv_coop_"
    tuner_layer_cls = CoOpLayer
    tensor_width = "text width"

    @classmethod
    def targets(cls, config: CoOpConfig, base: Base) -> dict[str, nn.Module]:
        anchor = base.family.text_tower(base.clip).get_input_embeddings()
        return {"prompt_embedder" if base.is_classifier else "text_model.embeddings": anchor}

    @classmethod
    def fill_config(cls, config: CoOpConfig, base: Base) -> None:
        if config.class_specific and config.class_names is None and base.class_names is None:
            raise ValueError(
                "class_names: class_specific=True needs them; "
                + ("call set_classes([...]) first" if base.is_classifier else "pass CoOpConfig(class_names=[...])")
            )
        if config.class_specific and config.class_names is None:
            config.class_names = base.class_names
        if config.context_init is not None and config.context_init_ids is None:
            if not base.is_classifier:
                raise ValueError(
                    f"context_init: {config.context_init!r} needs a tokenizer, which a CLIPModel does not have; pass "
                    "context_init_ids=tokenizer(words, add_special_tokens=False).input_ids"
                )
            words = config.context_init.replace("_", " ").strip()
            config.set_context_ids(base.model.tokenizer(words, add_special_tokens=False).input_ids)
        vocabulary = base.family.text_tower(base.clip).get_input_embeddings().num_embeddings
        for token in config.context_init_ids or []:
            if not 0 <= token < vocabulary:
                raise ValueError(f"context_init_ids: {token} is outside the vocabulary of {vocabulary} tokens")

    def _wrap(self, target: nn.Module, name: str, anchor: nn.Module) -> CoOpLayer:
        layer_class = PromptEmbedderWithContext if name == "prompt_embedder" else TextEmbeddingsWithContext
        return layer_class(target, anchor)


__all__ = ["CoOpModel"]
