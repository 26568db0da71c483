"""The PEFT tuner of CoCoOp."""

from torch import nn

from ..prompts.initial_vectors import check_token_ids, words_to_ids
from ..tuner import Base, Tuner
from .config import CoCoOpConfig
from .layer import CoCoOpLayer


class CoCoOpModel(Tuner):
    """Created by `get_peft_model(classifier, CoCoOpConfig(...))`; wraps the classifier's `prompt_embedder`."""

    prefix = "clipv_cocoop_"
    tuner_layer_cls = CoCoOpLayer
    tensor_widths = ("text width", "joint width")

    @classmethod
    def targets(cls, config: CoCoOpConfig, base: Base) -> dict[str, nn.Module]:
        if not base.is_classifier:
            raise ValueError(
                "model: CLIPV_COCOOP makes prompts for each image, but a plain "
                f"{type(base.model).__name__} encodes one batch of texts for all images; use "
                "CLIPClassifier.from_pretrained(same_checkpoint, class_names=[...])"
            )
        return {"prompt_embedder": base.family.token_embedding_of(base.clip)}

    @classmethod
    def fill_config(cls, config: CoCoOpConfig, base: Base) -> None:
        if config.context_init is not None and config.context_init_ids is None:
            config.set_context_ids(words_to_ids(config, base, config.context_init))
        check_token_ids("context_init_ids", config.context_init_ids, base)

    def _wrap(self, target: nn.Module, name: str, anchor: nn.Module) -> CoCoOpLayer:
        return CoCoOpLayer(target, anchor, Base(self.model, self.prefix).widths["joint width"])


__all__ = ["CoCoOpModel"]
