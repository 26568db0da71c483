"""Thresholds that are trained: at the start the official ones, after training better ones."""

import copy

import pytest
import torch

from hf_clip_variants.modeling.groupvit.background_rule import background_groups
from hf_clip_variants.modeling.groupvit.background_threshold import (
    BackgroundThreshold,
    background_pixel_loss,
    background_tag_loss,
    fit_background_threshold,
)


LABELS, WIDTH = 5, 6


def modules(threshold: float) -> list[BackgroundThreshold]:
    return [
        BackgroundThreshold(num_labels=LABELS, threshold=threshold),
        BackgroundThreshold(embedding_dim=WIDTH, threshold=threshold),
    ]


def embeddings() -> torch.Tensor:
    vectors = torch.randn(LABELS, WIDTH, generator=torch.Generator().manual_seed(1))
    return vectors / vectors.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("threshold", [0.0, 0.35, 0.7, 0.95, 1.0])
def test_at_the_start_they_are_exactly_the_given_threshold(threshold):
    scores = torch.rand(4, 8, LABELS, generator=torch.Generator().manual_seed(2))
    scores[0, 0, 0] = threshold  # exactly at it: not below
    for module in modules(threshold):
        found = module.thresholds(embeddings())
        assert torch.equal(found, torch.full((LABELS,), threshold))
        assert torch.equal(background_groups(scores, found), background_groups(scores, threshold))


def labelled_images(count: int, seed: int):
    """Label 0 is right from a score of 0.3 on, label 1 only from 0.8 on; (scores, maps, label map, tags)."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for _ in range(count):
        label = torch.randint(0, 2, (4,), generator=generator)
        best = torch.rand(4, generator=generator)
        scores = torch.zeros(4, 2).scatter(1, label[:, None], best[:, None])
        right = best > torch.tensor([0.3, 0.8])[label]
        classes = torch.where(right, label + 1, 0)
        maps = torch.eye(4).reshape(4, 2, 2).repeat_interleave(2, 1).repeat_interleave(2, 2) * 0.96 + 0.01
        label_map = classes.reshape(2, 2).repeat_interleave(2, 0).repeat_interleave(2, 1)
        tags = torch.zeros(2, dtype=torch.bool)
        tags[classes[classes > 0] - 1] = True
        images.append((scores, maps, label_map, tags))
    return images


def errors(module, images, class_embeddings=None) -> float:
    thresholds = module.thresholds(class_embeddings).detach()
    wrong = [
        (torch.where(background_groups(s, thresholds, False), 0, s.argmax(1) + 1).reshape(2, 2) != m[::2, ::2]).float()
        for s, _, m, _ in images
    ]
    return torch.stack(wrong).mean().item()


@pytest.mark.parametrize("truth", ["pixels", "tags"])
def test_training_finds_the_threshold_of_each_label(truth):
    known, others = labelled_images(60, 3), labelled_images(100, 4)
    module = BackgroundThreshold(num_labels=2, threshold=0.5)
    before = errors(module, others)
    losses = fit_background_threshold(module, [(s, m, t if truth == "tags" else lm) for s, m, lm, t in known])
    low, high = module.thresholds().tolist()
    assert losses[-1] < losses[0] and low < 0.45 and high > 0.55
    assert errors(module, others) < (0.6 if truth == "tags" else 0.3) * before


def test_an_open_vocabulary_learns_from_the_embeddings():
    embedded = torch.eye(2)
    module = BackgroundThreshold(embedding_dim=2, threshold=0.5)
    fit_background_threshold(module, [(s, m, lm) for s, m, lm, _ in labelled_images(60, 3)], embedded)
    low, high = module.thresholds(embedded).tolist()
    assert low < 0.4 and high > 0.65
    with pytest.raises(ValueError, match="class_embeddings: None"):
        module.thresholds()


def test_the_soft_decision_becomes_the_hard_one():
    scores = torch.rand(3, 8, 5, generator=torch.Generator().manual_seed(5))
    module = BackgroundThreshold(num_labels=5, threshold=0.8, temperature=1e-4)
    assert torch.equal(module(scores) > 0.5, background_groups(scores, 0.8, never_all=False))


def test_only_the_thresholds_get_gradients_that_equal_differences():
    torch.manual_seed(0)
    module = BackgroundThreshold(num_labels=3, threshold=0.6).double()
    scores, maps = torch.rand(2, 4, 3).double(), torch.rand(2, 4, 5, 5).softmax(1).double()
    labels = torch.randint(0, 4, (2, 5, 5))
    labels[0, :2] = 255

    def loss(raw):
        one = copy.deepcopy(module)
        del one.raw
        one.raw = raw
        return background_pixel_loss(one(scores), scores, maps, labels).double()

    raw = module.raw.detach().clone().requires_grad_()
    loss(raw).backward()
    step = 1e-2  # the loss is computed in float32
    for i in range(3):
        moved = torch.zeros(3).double().index_fill_(0, torch.tensor(i), step)
        with torch.no_grad():
            slope = (loss(raw + moved) - loss(raw - moved)) / (2 * step)
        assert slope.item() == pytest.approx(raw.grad[i].item(), rel=2e-2, abs=2e-4)


def test_maps_without_a_labelled_pixel_give_no_loss():
    module = BackgroundThreshold(num_labels=3)
    scores, maps = torch.rand(1, 4, 3), torch.rand(1, 4, 2, 2).softmax(1)
    loss = background_pixel_loss(module(scores), scores, maps, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0 and module.raw.grad.abs().max() == 0


def test_tags_decide_which_groups_should_be_background():
    scores = torch.tensor([[[0.9, 0.1], [0.2, 0.6]]])
    tags, areas = torch.tensor([[True, False]]), torch.tensor([[0.5, 0.5]])
    right, wrong = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    assert background_tag_loss(right, scores, tags, areas) < 1e-5
    assert background_tag_loss(wrong, scores, tags, areas) > 10
    assert background_tag_loss(wrong, scores, tags, torch.zeros(1, 2)) == 0


def test_wrong_arguments_are_named():
    for arguments in ({}, {"num_labels": 2, "embedding_dim": 3}):
        with pytest.raises(ValueError, match="want one of them"):
            BackgroundThreshold(**arguments)
    with pytest.raises(ValueError, match="want 0..1"):
        BackgroundThreshold(num_labels=2, threshold=1.5)
    with pytest.raises(ValueError, match="at least one"):
        fit_background_threshold(BackgroundThreshold(num_labels=2), [])
    with pytest.raises(ValueError, match="label_maps: shape"):
        background_pixel_loss(torch.rand(1, 2), torch.rand(1, 2, 3), torch.rand(1, 2, 4, 4), torch.zeros(1, 4, 5))
