"""Cheap methods gain on real images without a validation split, and what is recommended does not lose.

Small relatives of the task suite's tasks: classes are concepts and the images to classify are in other styles, or
classes are groups of concepts in one style.
"""

import random
from dataclasses import asdict
from statistics import fmean

import pytest
import torch

from hf_clip_variants import CLIPClassifier, CLIPClassifierProcessor, embedded_model
from hf_clip_variants.data import Features, compute_features, load_emoji
from hf_clip_variants.data.images.labelled_images import CachedImages
from hf_clip_variants.evaluation.image_prediction import predict
from hf_clip_variants.few_shot.fitting import Shots, fit_adapter
from hf_clip_variants.few_shot.recipes import recipe
from hf_clip_variants.few_shot.recommendation import recommend


STYLES = ("fluentflat", "emojione", "fluent3d", "notov1")
METHODS = ("tip_adapter", "clap", "gda")
CONCEPTS_OF_A_GROUP = 30


def tasks():
    """(class names, images to learn from, images to classify); an image is (style, concept, class)."""
    draw = random.Random(0)
    animals, food = (load_emoji("notov1", groups=g).class_names for g in ("animals-nature", "food-drink"))
    known = [draw.sample(names, CONCEPTS_OF_A_GROUP) for names in (animals, food)]
    for count in (5, 20, 60):
        for learnt in (("fluentflat", "emojione"), ("emojione",), ("notov1", "fluent3d")):
            names = draw.sample(known[0] + known[1], count)
            images = [
                [(s, name, c) for s in STYLES for c, name in enumerate(names) if (s in learnt) == k] for k in (1, 0)
            ]
            yield names, *images
    for style in STYLES:
        for shots in (2, 4):
            names = ["animal or plant", "food or drink"]
            members = [(style, name, c) for c, group in enumerate(known) for name in draw.sample(group, len(group))]
            place = [i % CONCEPTS_OF_A_GROUP for i in range(len(members))]
            yield (
                names,
                [m for m, i in zip(members, place, strict=True) if i < shots],
                [m for m, i in zip(members, place, strict=True) if i >= shots],
            )


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, float]]:
    """For each task the accuracy of zero-shot CLIP, of each method, and of what is recommended."""
    every = list(tasks())
    concepts = sorted({name for _, *parts in every for part in parts for _, name, _ in part})
    classifier = CLIPClassifier.from_pretrained(
        embedded_model(), class_names=concepts, templates="icons", dtype=torch.float32
    )
    classifier = classifier.eval().requires_grad_(False)
    processor = CLIPClassifierProcessor.from_clip(embedded_model())
    images = load_emoji(list(STYLES), concepts=concepts)
    features = compute_features(
        lambda pixels: classifier.get_image_features(pixels).pooler_output, images, processor, progress=False
    ).features[0]

    def cached(part) -> CachedImages:
        rows = [STYLES.index(style) * len(concepts) + concepts.index(name) for style, name, _ in part]
        return CachedImages(Features(features[rows][None], torch.tensor([label for *_, label in part])))

    def accuracy(model, asked):
        return (predict(model, asked)[0] == asked.labels).float().mean().item()

    found = []
    for names, learnt, asked in every:
        classifier.set_classes(names, "icons")
        shots, asked = cached(learnt), cached(asked)
        accuracies, runs = {"zero_shot": accuracy(classifier, asked)}, []
        for method in METHODS:
            values = recipe(method, len(shots) // len(names), profile="tiny")
            fitted = fit_adapter(classifier, method, Shots(shots, shots), recipe_values=values, seed=1)
            accuracies[method] = accuracy(fitted.model, asked)
            fitted.unload()
            about = {"method": method, "title": method, "shots": 1, "seed": 1, "folder": ""}
            about |= {"zero_shot_error": fitted.zero_shot_error, "validation": asdict(fitted.validation)}
            runs.append(about)
        found.append(accuracies | {"recommended": accuracies[recommend(runs)["method"]]})
    return found


def gains(outcomes, name) -> list[float]:
    return [task[name] - task["zero_shot"] for task in outcomes]


@pytest.mark.parametrize("name", [*METHODS, "recommended"])
def test_the_mean_gain_over_zero_shot_clip_is_clear(name, outcomes):
    """7 to 8 points on 17 tasks."""
    assert fmean(gains(outcomes, name)) > 0.04, outcomes


def test_the_recommendation_is_not_below_zero_shot_clip(outcomes):
    found = gains(outcomes, "recommended")
    assert sum(gain < -0.01 for gain in found) <= 1 and min(found) > -0.05, found
