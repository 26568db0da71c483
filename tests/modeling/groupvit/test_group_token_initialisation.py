"""Group tokens that start at cluster centres."""

import pytest
import torch
from groupvit_runs import groupvit_batch, groupvit_model

from hf_clip_variants.modeling.groupvit.group_token_initialisation import start_group_tokens_from_clusters


@pytest.fixture
def pixels():
    """Images of four colours, so that patches have four clusters of content (and positions)."""
    colours = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0], [-2.0, -2.0, -2.0]])
    return colours.repeat(3, 1)[:, :, None, None].expand(-1, -1, 24, 24).contiguous()


def test_tokens_of_the_first_stage_are_the_centres_of_patches(pixels):
    model = groupvit_model(vision={"num_group_tokens": [4, 5, 0], "num_output_groups": [6, 4]})
    with torch.no_grad():
        model.vision_model.embeddings.position_embeddings.zero_()
        patches = model.vision_model.embeddings(pixels)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start_group_tokens_from_clusters(model, pixels)
    tokens = model.vision_model.encoder.stages[0].group_token[0]
    kinds = patches[:4, 0]  # all patches of an image are equal
    nearest = torch.cdist(kinds, tokens.detach()).min(1)
    assert sorted(nearest.indices.tolist()) == [0, 1, 2, 3] and nearest.values.max() < 1e-4
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["vision_model.encoder.stages.0.group_token"]
    again = groupvit_model(vision={"num_group_tokens": [4, 5, 0], "num_output_groups": [6, 4]})
    with torch.no_grad():
        again.vision_model.embeddings.position_embeddings.zero_()
    start_group_tokens_from_clusters(again, pixels)
    assert torch.equal(again.vision_model.encoder.stages[0].group_token[0], tokens)


def test_later_stages_cluster_the_groups_that_enter_them(pixels):
    model = groupvit_model().train()
    start_group_tokens_from_clusters(model, pixels + 0.3 * torch.randn(12, 3, 24, 24), stages=[1, 0], batch_size=5)
    assert model.vision_model.training, "as it was"
    second = model.vision_model.encoder.stages[1].group_token
    assert second.abs().max() > 0 and second.shape == (1, 5, 24)
    model(**groupvit_batch(4), return_loss=True).loss.backward()
    assert second.grad.abs().max() > 0


def test_wrong_arguments_are_named(pixels):
    with pytest.raises(ValueError, match=r"stages: 2 has no group tokens, expected some of \[0, 1\]"):
        start_group_tokens_from_clusters(groupvit_model(), pixels, stages=[2])
    model = groupvit_model(vision={"num_group_tokens": [40, 5, 0]})
    with pytest.raises(ValueError, match="pixel_values: 16 tokens for 40 group tokens, expected more images"):
        start_group_tokens_from_clusters(model, pixels[:1])
