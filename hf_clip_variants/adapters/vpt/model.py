"""The PEFT tuner of VPT."""

from torch import nn

from ..prompts.visual_prompts import check_position
from ..tuner import Base, Tuner
from .config import VPTConfig
from .image_models import VisionBase
from .layer import VPTBiasedEncoderLayer, VPTEncoderLayer, VPTLayer, VPTPromptParameters


class VPTModel(Tuner):
    """Created by `get_peft_model(base, VPTConfig(...))`; wraps the image encoder's embeddings and layers.

    `base`: a `CLIPClassifier`, a plain dual encoder whose image encoder is a vision transformer, or an image model of
    a kind in `image_models.py`, with a head or without one.
    """

    prefix = "clipv_vpt_"
    tuner_layer_cls = VPTLayer
    tensor_widths = ("image width",)
    base_class = VisionBase

    @classmethod
    def targets(cls, config: VPTConfig, base: VisionBase) -> dict[str, nn.Module]:
        names = base.prompt_targets(_depth(config, base), config.normalize_first)
        anchor = base.model.get_submodule(names[0])  # embeddings or a stage: has parameters in every family
        return dict.fromkeys(names, anchor)

    @classmethod
    def fill_config(cls, config: VPTConfig, base: VisionBase) -> None:
        if not base.stages:  # Swin has no class token; its prompts are in windows, not at a position
            check_position(config.prompt_position, base.family)
        modules = [name for name, _ in base.model.named_modules()]
        for wanted in config.modules_to_save or ():
            if not any(f".{name}".endswith(f".{wanted}") for name in modules):
                raise ValueError(
                    f"modules_to_save: {type(base.model).__name__} has no module {wanted!r}; pass the name of its "
                    "head, or None to train prompts only"
                )
        config.prompt_depth = _depth(config, base)

    def _wrap(self, target: nn.Module, name: str, anchor: nn.Module) -> VPTLayer:
        base = self.base_class(self.model, self.__class__.__name__)
        patch_size, width = base.vision_config.patch_size, base.widths["image width"]
        if base.stages:
            from .swin import SwinPromptStage  # imports transformers' Swin

            stage = int(name.rpartition(".")[2])
            return SwinPromptStage(
                target,
                anchor,
                first=sum(base.stages[:stage]),
                count=base.stages[stage],
                is_last=stage == len(base.stages) - 1,
                patch_size=patch_size,
                width=width * 2**stage,
            )
        embeddings = base.path(base.family.vision_embeddings)
        if name == embeddings:  # the module that holds the prompts; all other targets are encoder layers
            has_patch_norm = base.family.patch_norm is not None
            return VPTPromptParameters(
                target, anchor, has_patch_norm=has_patch_norm, patch_size=patch_size, width=width
            )
        index, count = int(name.rpartition(".")[2]), base.widths["image layers"]
        layer_class = getattr(base.family, "layer_class", VPTEncoderLayer)
        return layer_class(target, anchor, self.model, embeddings, index, count)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        super()._replace_module(parent, child_name, new_module, child)
        if isinstance(child, VPTBiasedEncoderLayer):
            child.release()


def _depth(config: VPTConfig, base: Base) -> int:
    return base.widths["image layers"] if config.prompt_depth == "all" else config.prompt_depth


__all__ = ["VPTModel"]
