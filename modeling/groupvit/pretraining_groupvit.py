"""How GroupViT is trained: Xu et al. 2022, section 4.1; captions, and noun prompts where the data has them."""

from collections.abc import Mapping
from typing import Any

from ..dual_encoders.pretraining import Pretraining


# Layers of the three stages by the number of all layers, and group tokens; as many groups leave a stage.
_STAGES = {
    12: {"depths": [6, 3, 3], "num_group_tokens": [64, 8, 0], "num_output_groups": [64, 8]},
    8: {"depths": [4, 2, 2], "num_group_tokens": [32, 8, 0], "num_output_groups": [32, 8]},
    4: {"depths": [2, 1, 1], "num_group_tokens": [16, 8, 0], "num_output_groups": [16, 8]},
}
_HEAD_WIDTHS = {"mini": 512, "tiny": 1024}


def _new_model(fields: dict[str, Any], image_encoder: str, scale: str) -> Any:
    from .configuration_groupvit import GroupViTConfig
    from .modeling_groupvit import GroupViTModel

    vision = dict(fields["vision_config"])
    vision.pop("projection_dim", None)
    layers = vision.pop("num_hidden_layers", 12)
    stages = _STAGES.get(layers) or {"depths": [layers - layers // 2, layers // 2]} | _ONE_GROUPING
    # Pairs have no noun prompts of their own; with `num_noun_prompts` in the fields, the data has to bring them.
    defaults = {"num_noun_prompts": 0, "projection_intermediate_dim": _HEAD_WIDTHS.get(scale, 4096)}
    return GroupViTModel(GroupViTConfig(**defaults | fields | {"vision_config": stages | vision}))


_ONE_GROUPING = {"num_group_tokens": [8, 0], "num_output_groups": [8]}


def _new_processor(size: int, tokenizer: Any) -> Any:
    from .convert_groupvit import groupvit_processor

    return groupvit_processor(tokenizer, size={"shortest_edge": size, "longest_edge": 4 * size})


def _load(source: str, fields: Mapping[str, Any]) -> tuple[Any, Any]:
    """A GroupViT of ours or of transformers, whose processor has other means."""
    import torch
    from transformers import AutoProcessor

    from ..dense.processing_dense import DenseProcessor
    from .convert_groupvit import groupvit_processor
    from .modeling_groupvit import GroupViTModel

    model = GroupViTModel.from_pretrained(source, dtype=torch.float32, **fields)
    processor = AutoProcessor.from_pretrained(source)
    if not isinstance(processor, DenseProcessor):
        size = model.config.vision_config.image_size
        processor = groupvit_processor(processor.tokenizer, size={"shortest_edge": size, "longest_edge": 4 * size})
    return model, processor


GROUPVIT = Pretraining(
    name="groupvit",
    image_encoders=("vit",),
    new_model=_new_model,
    new_processor=_new_processor,
    load=_load,
    learning_rate=1.6e-3,
    small_learning_rate=1e-3,
    weight_decay=0.05,
    max_grad_norm=5.0,
    # Its projections have batch normalisation, behind the features that GradCache computes in parts.
    has_batch_norm=False,
)


__all__ = ["GROUPVIT"]
