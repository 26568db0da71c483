"""Group tokens that start at cluster centres of what they will group, instead of at random numbers."""

from collections.abc import Sequence

import torch

from .modeling_groupvit import GroupViTModel, GroupViTVisionModel


@torch.no_grad()
def start_group_tokens_from_clusters(
    model: GroupViTModel | GroupViTVisionModel,
    pixel_values: torch.Tensor,
    stages: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> None:
    """Sets the learned group tokens of some stages to the centres of k-means clusters of the tokens that enter them.

    For the first stage these are patches with their positions. Officially its group tokens are random numbers of
    standard deviation 0.02, and those of later stages, which are added to a projection of the stage before, are zero.
    An option for training from scratch, before the first step, or for group tokens of a new domain
    (`trained_part="group_tokens"`).

    Args:
        model: changed in place.
        pixel_values: (S, 3, H, W), normalised images; a few hundred. Together they need at least as many tokens as
            there are group tokens.
        stages: numbers of stages; None: the first one that groups.
        seed: of the clustering.
        batch_size: images that are encoded at once.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: a stage without group tokens, or fewer tokens than group tokens.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import GroupViTVisionConfig, GroupViTVisionModel
    >>> from hf_clip_variants.modeling.groupvit.group_token_initialisation import start_group_tokens_from_clusters

    >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "image_size": 64}
    >>> groups = {"depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [4]}
    >>> model = GroupViTVisionModel(GroupViTVisionConfig(**sizes, **groups))
    >>> start_group_tokens_from_clusters(model, torch.randn(2, 3, 64, 64))
    >>> model.encoder.stages[0].group_token.shape
    torch.Size([1, 4, 32])
    ```
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ImportError(
            "start_group_tokens_from_clusters: k-means needs scikit-learn; pip install 'hf-clip-variants[probe]'"
        ) from error
    vision = getattr(model, "vision_model", model)
    grouping = vision.config.grouping_stages
    stages = grouping[:1] if stages is None else list(stages)
    if wrong := [stage for stage in stages if stage not in grouping]:
        raise ValueError(f"stages: {wrong[0]} has no group tokens, expected some of {grouping}")
    was_training = vision.training
    vision.eval()
    try:
        for stage in sorted(stages):
            tokens = torch.cat([_entering(vision, batch, stage) for batch in pixel_values.split(batch_size)])
            parameter = vision.encoder.stages[stage].group_token
            count = parameter.shape[1]
            if len(tokens) < count:
                raise ValueError(f"pixel_values: {len(tokens)} tokens for {count} group tokens, expected more images")
            clusters = KMeans(count, n_init=4, random_state=seed).fit(tokens.float().cpu().numpy())
            parameter.copy_(torch.from_numpy(clusters.cluster_centers_)[None])
    finally:
        vision.train(was_training)


def _entering(vision: GroupViTVisionModel, pixel_values: torch.Tensor, stage: int) -> torch.Tensor:
    """(tokens of all images, D): what enters a stage."""
    pixel_values = pixel_values.to(vision.device, vision.dtype)
    if stage == 0:
        return vision.embeddings(pixel_values).flatten(0, 1)
    outputs = vision(pixel_values, interpolate_pos_encoding=True)
    return outputs.stage_tokens[stage - 1].flatten(0, 1)


__all__ = ["start_group_tokens_from_clusters"]
