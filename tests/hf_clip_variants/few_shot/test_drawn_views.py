"""The views that are encoded are those that fits draw: no other one, and none is missing."""

import random

import numpy as np
import pytest
import torch
from adapter_models import tiny_classifier
from safetensors.torch import load_file
from tiny import CLASS_NAMES

from hf_clip_variants import CLIPClassifier
from hf_clip_variants.data.images.feature_cache import Features
from hf_clip_variants.data.images.labelled_images import CachedImages
from hf_clip_variants.few_shot import runner as runner_module
from hf_clip_variants.few_shot.adapt import adapt
from hf_clip_variants.few_shot.drawn_views import DrawnViews, views_of_fit
from hf_clip_variants.few_shot.dry_run import plan
from hf_clip_variants.few_shot.fitting import Shots, apply_overrides, fit_adapter
from hf_clip_variants.few_shot.method import FEW_SHOT_METHODS, few_shot_method
from hf_clip_variants.few_shot.recipes import recipe


CLASSES, WIDTH = len(CLASS_NAMES), 24
WITH_VIEWS = [
    name
    for name, row in FEW_SHOT_METHODS.items()
    if not row.trains_image_encoder and recipe(name).augmentation != "none"
]


def random_fit(method: str, number: int):
    """Settings that a user may give, images of each class, and whether there is a validation split."""
    draw = random.Random(f"{method} {number}")
    asked = {}
    if recipe(method).epochs:
        asked = {"views": draw.choice([2, 5, 9, 40]), "batch_size": draw.choice([1, 4, 7, 64])}
        asked |= {"epochs": draw.choice([1, 2, 3]), "drop_last": draw.choice([True, False])}
    if "cache_views" in recipe(method).to_dict():
        asked |= {"cache_views": draw.choice([1, 3, 12]), "alpha": 1.0, "beta": 5.5}
    if "ratio_candidates" in recipe(method).to_dict() and draw.random() < 0.5:
        asked["ratio_candidates"] = (0.2, 0.6)
    return asked, draw.choice([1, 2, 3, 5]), draw.random() < 0.4, draw.randrange(1000)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("method", WITH_VIEWS)
def test_exactly_the_views_that_a_fit_draws_are_planned(method, number, monkeypatch):
    asked, count, on_split, seed = random_fit(method, number)
    values, _ = apply_overrides(few_shot_method(method), recipe(method, count), asked)
    labels = torch.arange(CLASSES).repeat(count)
    planned = views_of_fit(values, labels, seed, on_split, asked)
    total, images = planned.shape[1], len(labels)
    features = torch.randn(total, images, WIDTH, generator=torch.Generator().manual_seed(seed))
    training = CachedImages(Features(features, labels), values.views, seed)
    plain = CachedImages(Features(features[:1] + 0.1, labels))
    drawn = np.zeros((images, total), dtype=bool)
    at = CachedImages._features_at

    def recorded(self, place):
        if self._table is training._table:
            drawn[(place % images).flatten(), (place // images).flatten()] = True
        return at(self, place)

    monkeypatch.setattr(CachedImages, "_features_at", recorded)
    classifier = tiny_classifier()
    options = {"recipe_values": values, "overrides": asked, "seed": seed}
    fitted = fit_adapter(classifier, method, Shots(training, plain), plain if on_split else None, **options)
    assert (drawn == planned).all(), (asked, count, on_split)
    expected = [p.detach().clone() for p in fitted.model.parameters() if p.requires_grad]
    fitted.unload()

    # With only these encoded, the fit is the same to the last bit.
    encoded = DrawnViews()
    encoded.add("coop", range(images), planned)
    lists = encoded.lists("coop", range(images))
    samples = [(row, view) for row, views in enumerate(lists) for view in views]
    place = torch.full((total, images), -1)
    for index, (row, view) in enumerate(samples):
        place[view, row] = index
    rows, views = map(torch.tensor, zip(*samples, strict=True))
    some = CachedImages.of_views(
        Features(features[views, rows][None], labels[rows]), place, labels, values.views, seed
    )
    assert len(encoded) == len(samples)
    fitted = fit_adapter(classifier, method, Shots(some, plain), plain if on_split else None, **options)
    found = [p.detach() for p in fitted.model.parameters() if p.requires_grad]
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    if (place < 0).any():
        with pytest.raises(ValueError, match="were not encoded"):
            some.all_features()


def passes_of(monkeypatch, method=CLIPClassifier.pooled_image_features) -> list[int]:
    """Images in each call of the image encoder from now on."""
    calls = []
    monkeypatch.setattr(
        CLIPClassifier, "pooled_image_features", lambda self, p, *a: (calls.append(len(p)), method(self, p, *a))[1]
    )
    return calls


def test_adapt_encodes_what_it_draws_and_says_so(clip, images, tmp_path, monkeypatch, capsys):
    """With epochs=2 of 30 views, two views of each image, and two more in each fold that it is in."""
    calls = passes_of(monkeypatch)
    options = {"methods": ["coop"], "shots": [2], "seeds": [1], "profile": "published"}
    options |= {"overrides": {"coop.epochs": 2, "coop.views": 30}}
    results = adapt(clip, str(images), tmp_path / "run", progress=False, report=False, **options)
    # 12 training images: plain, two views, and up to two more in a fold of 6 images; 12 test images.
    assert results["data"]["encoded_views"] == sum(calls) - 12 <= 12 * (1 + 2 + 2)
    assert plan(clip, str(images), **options)["image_encoder_passes"] == sum(calls)
    count = sum(calls)

    # The same run on all 30 views has the same adapter, up to rounding in batches of other images.
    def every_view(values, labels, *others):
        return np.ones((len(labels), values.views), dtype=bool)

    assert "passes" not in capsys.readouterr().err, "few passes are not worth the images that are timed"
    monkeypatch.setattr(runner_module, "views_of_fit", every_view)
    adapt(clip, str(images), tmp_path / "all", progress=False, report=False, **options)
    passes = 12 * (1 + 30) + 12
    assert sum(calls) - count == passes + 5, "five more for the time"
    assert f"{passes} passes of the image encoder, about " in capsys.readouterr().err
    (one,), (two,) = ((tmp_path / run).rglob("adapter_model.safetensors") for run in ("run", "all"))
    found, expected = load_file(one), load_file(two)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in found)
