"""The PEFT tuner of IVLP."""

from torch import nn

from ..prompts.text_prompts import fill_text_config, text_targets
from ..prompts.visual_prompts import visual_targets
from ..tuner import Base, Tuner
from .config import IVLPConfig
from .layer import (
    IVLPLayer,
    IVLPPromptEmbedder,
    IVLPTextLayer,
    IVLPTokenEmbedding,
    IVLPVisionLayer,
    IVLPVisualPromptParameters,
)


class IVLPModel(Tuner):
    """Created by `get_peft_model(base, IVLPConfig(...))`.

    `base`: a `CLIPClassifier`, or a plain dual encoder whose image encoder is a vision transformer. With
    `vision_depth=0` the image encoder may be of any kind.
    """

    prefix = "clipv_ivlp_"
    tuner_layer_cls = IVLPLayer
    tensor_widths = ("text width", "image width")

    @classmethod
    def targets(cls, config: IVLPConfig, base: Base) -> dict[str, nn.Module]:
        text_depth, vision_depth = _depths(config, base)
        token_embedding = base.family.token_embedding_of(base.clip)
        text = text_targets(base, text_depth, "maple") if text_depth else []
        vision = visual_targets(base, vision_depth)
        anchors = dict.fromkeys(text, token_embedding)
        return anchors | dict.fromkeys(vision, base.model.get_submodule(vision[0]) if vision else None)

    @classmethod
    def fill_config(cls, config: IVLPConfig, base: Base) -> None:
        config.text_depth, config.vision_depth = _depths(config, base)
        if config.text_depth:
            fill_text_config(config, base, config.num_text_tokens)

    def _wrap(self, target: nn.Module, name: str, anchor: nn.Module) -> IVLPLayer:
        base = Base(self.model, self.prefix)
        family, starts = base.family, base.family.num_start_tokens
        visual_module_name = base.path(family.vision_embeddings)
        # Modules that hold prompts: around the prompt embedder of a classifier or the token embedding of a plain dual
        # encoder, and around the embeddings of the image encoder. All other targets are encoder layers.
        if name == "prompt_embedder":
            return IVLPPromptEmbedder(target, anchor)
        if name == family.token_embedding:
            return IVLPTokenEmbedding(target, anchor, starts)
        if name == visual_module_name:
            return IVLPVisualPromptParameters(
                target, anchor, family.patch_norm is not None, base.widths["image width"]
            )
        index = int(name.rpartition(".")[2])
        if name.startswith(f"{base.path(family.vision_layers)}."):
            return IVLPVisionLayer(target, anchor, self.model, visual_module_name, index, base.widths["image layers"])
        return IVLPTextLayer(target, anchor, self.model, family.token_embedding, index, starts)


def _depths(config: IVLPConfig, base: Base) -> tuple[int, int]:
    """Layers with prompts in the text encoder and in the image encoder."""
    return tuple(
        base.widths[f"{encoder} layers"] if depth == "all" else depth
        for encoder, depth in (("text", config.text_depth), ("image", config.vision_depth))
    )


__all__ = ["IVLPModel"]
