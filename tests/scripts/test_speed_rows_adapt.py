"""The peers of `adapt` in the speed benchmark train by the published recipes, as ours does."""

import pytest
from paths import SCRIPTS

from hf_clip_variants.data.augmentation.views import AUGMENTATIONS
from hf_clip_variants.few_shot.recipes import recipe


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import speed_peers_adapt

    return speed_peers_adapt


@pytest.mark.parametrize("method", ["tip_adapter_f", "clip_adapter", "coop"])
@pytest.mark.parametrize("epochs, steps", [(5, 2), (2, 93), (1, 1)])
def test_learning_rates_are_those_of_the_recipe(peers, method, epochs, steps):
    published = recipe(method, 8)
    ours = type(published)(**published.to_dict() | {"epochs": epochs, "views": epochs})
    for epoch in range(epochs):
        for step in range(steps):
            expected = ours.learning_rate_at(epoch, step, steps)
            assert peers.learning_rate(method, epoch, step, steps, epochs) == pytest.approx(expected, rel=1e-12)


def test_batches_and_augmentations_are_those_of_the_recipes(peers):
    assert set(peers.TRAININGS) == set(peers.METHODS)
    for method, trained in peers.TRAININGS.items():
        published = recipe(method, 8)
        area = AUGMENTATIONS[published.augmentation].scale[0]
        assert trained == (published.batch_size, published.drop_last, area), method
    tip, coop = recipe("tip_adapter_f", 8), recipe("coop", 8)
    assert (tip.init_alpha, tip.init_beta, tip.cache_views) == (peers.ALPHA, peers.BETA, peers.CACHE_VIEWS)
    assert coop.num_context_tokens == peers.CONTEXT
