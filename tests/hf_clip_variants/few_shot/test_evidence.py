"""What the shots say of zero-shot CLIP: temperature, error, spread, votes, and how strongly to adapt."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hf_clip_variants.evaluation.calibration import PRIOR_TEMPERATURE, fit_temperature
from hf_clip_variants.few_shot.evidence import SHARPNESS, VOTE, Evidence


def evidence(counts, width=16, classes=None, spread=0.8, scale=30.0, seed=0) -> Evidence:
    """Images around a centre a class; the texts are near the centres."""
    generator = torch.Generator().manual_seed(seed)
    classes = classes or len(counts)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centres = torch.randn(classes, width, generator=generator)
    images = F.normalize(centres[labels] + spread * torch.randn(len(labels), width, generator=generator), dim=1)
    texts = F.normalize(centres + torch.randn(classes, width, generator=generator), dim=1)
    return Evidence(images, texts, scale * images @ texts.t(), labels)


def closer(about: Evidence, share: float) -> Evidence:
    """Another backbone for the same images: all cosines are nearer to 1, 1 - cosine is `share` of what it was."""
    images = torch.cat([about.image_embeds * share**0.5, torch.full((len(about.labels), 1), (1 - share) ** 0.5)], 1)
    return replace(about, image_embeds=images)


# ---- temperature


def cost(logits, labels, temperature, prior):
    total = abs(math.log2(temperature / prior))
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total += math.log(sum(math.exp((x - row[label]) / temperature) for x in row if x > -math.inf))
    return total


@pytest.mark.parametrize("sharpness", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("prior", [1.0, PRIOR_TEMPERATURE])
def test_the_temperature_is_the_best_of_half_octaves(sharpness, prior):
    about = evidence([9] * 4, spread=2.0)
    logits = sharpness * about.logits / 30
    candidates = [2 ** (k / 2) for k in range(-4, 13)]
    expected = min(candidates, key=lambda t: cost(logits, about.labels, t, prior))
    assert fit_temperature(logits, about.labels, prior) == pytest.approx(expected)


def test_logits_twice_as_sharp_have_twice_the_temperature():
    about = evidence([200] * 3, spread=2.5, scale=10.0)
    once, twice = (fit_temperature(k * about.logits, about.labels) for k in (2, 4))
    assert twice == pytest.approx(2 * once) and 0.25 < once < 32


def test_with_few_images_the_prior_holds_and_many_outweigh_it():
    sure_and_wrong = torch.tensor([[0.5, 0.0]])
    assert fit_temperature(sure_and_wrong, torch.tensor([0])) == PRIOR_TEMPERATURE
    assert fit_temperature(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), prior=4.0) == 4.0
    right = torch.tensor([[5.0, 0.0]]).repeat(200, 1)
    assert fit_temperature(right, torch.zeros(200, dtype=torch.int64)) < 1
    wrong = torch.tensor([[9.0, 0.0], [9.0, 0.0]]).repeat(100, 1)
    assert fit_temperature(wrong, torch.tensor([0, 1]).repeat(100)) > 40


def test_classes_that_are_impossible_do_not_change_the_temperature():
    about = evidence([6] * 3, spread=2.0, scale=10.0)
    never = torch.cat([about.logits, torch.full((18, 1), -torch.inf)], dim=1)
    assert fit_temperature(never, about.labels) == fit_temperature(about.logits, about.labels)


# ---- error, spread, strengths


def test_the_error_is_never_taken_to_be_0_or_1():
    logits = torch.eye(4) * 9
    about = Evidence(torch.eye(4), torch.eye(4), logits, torch.arange(4))
    assert about.error == pytest.approx(1 / 6)
    assert replace(about, labels=(torch.arange(4) + 1) % 4).error == pytest.approx(5 / 6)


def test_the_spread_is_the_mean_distance_between_images_of_different_classes():
    about = evidence([1, 4, 2, 3])
    cosines = about.image_embeds @ about.image_embeds.t()
    pairs = [1 - cosines[i, j] for i in range(10) for j in range(10) if about.labels[i] != about.labels[j]]
    assert about.spread == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)
    assert evidence([5]).spread == 1.0, "one class has no other"


def test_the_strengths_are_the_same_for_backbones_of_any_spread_and_scale():
    about = evidence([3] * 5)
    other = closer(about, 0.1)
    assert other.spread == pytest.approx(0.1 * about.spread, rel=1e-3)
    assert about.beta == pytest.approx(SHARPNESS / about.spread) and other.vote == about.vote
    torch.testing.assert_close(other.leave_one_out_votes(), about.leave_one_out_votes(), rtol=1e-3, atol=1e-4)
    about = evidence([60] * 5, spread=2.5, scale=20.0)
    sharper, votes = replace(about, logits=4 * about.logits), about.leave_one_out_votes()
    assert sharper.temperature == pytest.approx(4 * about.temperature)
    assert sharper.fitted_strength(votes, about.vote) == about.fitted_strength(votes, about.vote)


def test_a_vote_weighs_less_the_more_shots_there_are():
    assert evidence([1, 1, 1]).vote == VOTE
    assert evidence([4, 4, 4]).vote == pytest.approx(VOTE / 2)
    assert evidence([2, 6, 4], classes=7).shots == 4, "classes without images do not count"


# ---- leave one out


@pytest.mark.parametrize("beta", [None, 1.7])
def test_each_image_gets_the_votes_of_the_others(beta):
    about = evidence([1, 2, 4], classes=4)
    found, sharpness = about.leave_one_out_votes(beta), about.beta if beta is None else beta
    expected = torch.zeros(7, 4)
    for i, j in ((i, j) for i in range(7) for j in range(7) if i != j):
        own, count = about.labels[i] == about.labels[j], int((about.labels == about.labels[i]).sum())
        vote = torch.exp(-sharpness * (1 - about.image_embeds[i] @ about.image_embeds[j]))
        expected[i, about.labels[j]] += vote * (count / (count - 1) if own else 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert found[0, 0] == 0 and (found[:, 3] == 0).all()


def test_left_out_images_get_as_many_votes_as_new_ones_in_the_mean():
    own_left_out, own_new = [], []
    for seed in range(40):
        images = F.normalize(torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)), dim=1)
        labels = torch.tensor([0, 0, 0, 1, 1, 1])
        about = Evidence(images[:6], torch.eye(2, 6), torch.zeros(6, 2), labels)
        own_left_out.append(about.leave_one_out_votes(1.0)[torch.arange(6), labels].mean())
        votes = torch.exp(-(1 - images[6:] @ images[:6].t()))
        own_new.append(votes[:, :3].sum(1).mean())  # a new image of the first class
    assert float(torch.stack(own_left_out).mean()) == pytest.approx(float(torch.stack(own_new).mean()), rel=0.05)


def test_many_images_are_taken_in_parts_with_the_same_votes():
    about = evidence([600, 600], width=8)
    votes = about.leave_one_out_votes()
    few = torch.tensor([0, 599, 1023, 1024, 1199])
    affinity = torch.exp(-about.beta * (1 - about.image_embeds[few].double() @ about.image_embeds.double().t()))
    affinity[torch.arange(5), few] = 0
    expected = affinity @ F.one_hot(about.labels, 2).double()
    expected[torch.arange(5), about.labels[few]] *= 600 / 599
    torch.testing.assert_close(votes[few].double(), expected, rtol=1e-4, atol=1e-3)


def test_the_strength_is_the_best_near_its_start():
    about = evidence([4] * 5, spread=1.5)
    added = about.leave_one_out_votes()
    candidates = [10.0 * 2 ** (k / 2) for k in range(-2, 3)]

    def loss(strength):
        logits = about.calibrated + strength * added
        return float(F.cross_entropy(logits, about.labels, reduction="sum")) + 4 * abs(math.log2(strength / 10))

    assert about.fitted_strength(added, 10.0) == pytest.approx(min(candidates, key=loss))
    against = torch.zeros(20, 5).scatter_(1, about.labels[:, None], -5.0)
    assert about.fitted_strength(against, 10.0) == 5.0, "what harms is added half as strongly, not less"
    assert about.fitted_strength(torch.zeros(20, 5), 10.0) == 10.0, "what changes nothing leaves the start"


def test_images_alone_in_their_class_have_no_say_in_the_strength():
    """Left out, such an image is voted against by everybody; that says nothing of how it is with its own shot."""
    about = evidence([4] * 5 + [1] * 5, spread=1.5)
    assert torch.equal(about.answerable, torch.arange(20))
    few = about.select(about.answerable)
    added = about.leave_one_out_votes()
    logits = about.calibrated[:20], few.calibrated
    same = replace(few, logits=few.temperature * logits[0])  # the temperature of all images
    expected = Evidence.fitted_strength(same, added[:20], VOTE / 2)
    assert about.fitted_strength(added, VOTE / 2) == expected
    impossible = added.clone()
    impossible[torch.arange(20, 25), about.labels[20:]] = -torch.inf
    assert about.fitted_strength(impossible, VOTE / 2) == expected
    alone = evidence([1, 1, 1])
    assert len(alone.answerable) == 0 and alone.fitted_strength(torch.zeros(3, 3), 7.0) == 7.0
