"""The PEFT tuner of MaPLe."""

from torch import nn

from ..prompts.text_prompts import fill_text_config, text_targets
from ..prompts.visual_prompts import visual_targets
from ..tuner import Base, Tuner
from .config import MaPLeConfig
from .layer import (
    MaPLeLayer,
    MaPLePromptEmbedder,
    MaPLeTextLayer,
    MaPLeTokenEmbedding,
    MaPLeVisionLayer,
    MaPLeVisualPromptParameters,
)


class MaPLeModel(Tuner):
    """Created by `get_peft_model(base, MaPLeConfig(...))`.

    `base`: a `CLIPClassifier`, or a plain dual encoder whose image encoder is a vision transformer.
    """

    prefix = "clipv_maple_"
    tuner_layer_cls = MaPLeLayer
    tensor_widths = ("text width", "image width")

    @classmethod
    def targets(cls, config: MaPLeConfig, base: Base) -> dict[str, nn.Module]:
        depth = _depth(config, base)
        vision = visual_targets(base, depth)
        text = text_targets(base, depth, config.text_prompt_style)
        anchors = dict.fromkeys(text, base.family.token_embedding_of(base.clip))
        return anchors | dict.fromkeys(vision, base.model.get_submodule(vision[0]))

    @classmethod
    def fill_config(cls, config: MaPLeConfig, base: Base) -> None:
        config.prompt_depth = _depth(config, base)
        fill_text_config(config, base, config.num_prompt_tokens if config.text_prompt_style == "maple" else 0)

    def _wrap(self, target: nn.Module, name: str, anchor: nn.Module) -> MaPLeLayer:
        base = Base(self.model, self.prefix)
        family, starts = base.family, base.family.num_start_tokens
        visual_module_name = base.path(family.vision_embeddings)
        text_module_name = "prompt_embedder" if base.is_classifier else family.token_embedding
        # Modules that hold prompts: around the prompt embedder of a classifier or the token embedding of a plain dual
        # encoder, and around the embeddings of the image encoder. All other targets are encoder layers.
        if name == "prompt_embedder":
            return MaPLePromptEmbedder(target, anchor)
        if name == family.token_embedding:
            return MaPLeTokenEmbedding(target, anchor, starts)
        if name == visual_module_name:
            widths, has_norm = (base.widths["text width"], base.widths["image width"]), family.patch_norm is not None
            return MaPLeVisualPromptParameters(target, anchor, has_norm, widths, self.model, text_module_name)
        index = int(name.rpartition(".")[2])
        if name.startswith(f"{base.path(family.vision_layers)}."):
            return MaPLeVisionLayer(target, anchor, self.model, visual_module_name, index, base.widths["image layers"])
        return MaPLeTextLayer(target, anchor, self.model, text_module_name, index, starts)


def _depth(config: MaPLeConfig, base: Base) -> int:
    """Layers with prompts; "all" is the depth of the shallower encoder, because the coupling needs both."""
    layers = min(base.widths["text layers"], base.widths["image layers"])
    return layers if config.prompt_depth == "all" else config.prompt_depth


__all__ = ["MaPLeModel"]
