"""The PEFT tuner of CoOp."""

from torch import nn

from ..prompts.initial_vectors import check_token_ids, words_to_ids
from ..tuner import Base, Tuner
from .config import CoOpConfig
from .layer import CoOpLayer, PromptEmbedderWithContext, TextEmbeddingsWithContext


class CoOpModel(Tuner):
    """Created by `get_peft_model(base, CoOpConfig(...))`.

    It wraps `prompt_embedder` of a `CLIPClassifier`, or the text embeddings of a plain `CLIPModel`.
    """

    prefix = "clipv_coop_"
    tuner_layer_cls = CoOpLayer
    tensor_widths = ("text width",)

    @classmethod
    def targets(cls, config: CoOpConfig, base: Base) -> dict[str, nn.Module]:
        anchor = base.family.token_embedding_of(base.clip)
        if base.is_classifier:
            return {"prompt_embedder": anchor}
        if not base.family.text_is_causal:
            raise ValueError(
                f"model: CLIPV_COOP finds its placeholders in prompts of CLIP, not in those of a plain "
                f"{type(base.model).__name__}; use CLIPClassifier"
            )
        return {base.family.text_embeddings: anchor}

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
            config.set_context_ids(words_to_ids(config, base, config.context_init))
        check_token_ids("context_init_ids", config.context_init_ids, base)

    def _wrap(self, target: nn.Module, name: str, anchor: nn.Module) -> CoOpLayer:
        layer_class = PromptEmbedderWithContext if name == "prompt_embedder" else TextEmbeddingsWithContext
        return layer_class(target, anchor)


__all__ = ["CoOpModel"]
