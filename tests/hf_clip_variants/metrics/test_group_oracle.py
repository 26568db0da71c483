"""Grouping errors and naming errors, told apart."""

import pytest
import torch

from hf_clip_variants.metrics.group_oracle import FIGURES, GroupOracle, label_groups, without_boundaries


def random_image(seed: int, groups=5, classes=4, size=(12, 10)):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, size, generator=generator)
    labels[:2] = 255
    return (
        torch.randint(0, groups, size, generator=generator),
        labels,
        torch.rand(groups, classes - 1, generator=generator),
        torch.rand(groups, generator=generator) < 0.3,
    )


def embeddings(seed: int, groups=5, classes=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(groups, 6, generator=generator), torch.randn(classes - 1, 6, generator=generator)


def analysis(seeds, **options) -> GroupOracle:
    oracle = GroupOracle(num_classes=4, **options)
    for seed in seeds:
        oracle.add(*random_image(seed), *embeddings(seed))
    return oracle


def mean_iou(maps, truths, classes) -> float:
    """Over all images, pixel by pixel; classes that are nowhere do not count."""
    maps, truths = (torch.cat([m.flatten() for m in several]) for several in (maps, truths))
    maps, truths = maps[truths != 255], truths[truths != 255]
    ious = []
    for c in range(classes):
        union = ((maps == c) | (truths == c)).sum()
        if union:
            ious.append(((maps == c) & (truths == c)).sum().double() / union)
    return torch.stack(ious).mean().item()


def test_figures_are_those_of_relabelled_maps():
    seeds = range(4)
    maps, truths = {name: [] for name in FIGURES}, []
    right = total = 0
    for seed in seeds:
        groups, truth, scores, background = random_image(seed)
        of_group, of_class = embeddings(seed)
        valid = truth != 255
        named = 1 + scores.argmax(1)
        zero_shot = torch.where(background, 0, named)[groups]
        maps["zero_shot"].append(zero_shot)
        present = [c for c in range(1, 4) if (truth == c).any()]
        best = torch.tensor([max(present, key=lambda c, row=row: row[c - 1]) for row in scores])
        maps["present_classes"].append(torch.where(background, 0, best)[groups])
        maps["true_background"].append(torch.where(truth == 0, 0, named[groups]))
        by_iou, by_pixels = torch.zeros(5).long(), torch.zeros(5).long()
        for g in range(5):
            mine = (groups == g) & valid
            ious = [(mine & (truth == c)).sum() / (mine | (truth == c)).sum().clamp_min(1) for c in range(4)]
            by_iou[g] = torch.stack(ious).argmax()
            by_pixels[g] = torch.stack([(mine & (truth == c)).sum() for c in range(4)]).argmax()
        maps["oracle"].append(by_iou[groups])
        maps["majority"].append(by_pixels[groups])
        masks = torch.zeros_like(truth)
        for c in present:
            feature = of_group[groups[truth == c]].mean(0)
            said = 1 + int((of_class @ feature).argmax())
            masks[truth == c] = said
            right, total = right + (said == c), total + 1
        maps["true_masks"].append(masks)
        truths.append(truth)
    figures = analysis(seeds).figures()
    for name in FIGURES:
        assert figures["miou"][name] == pytest.approx(mean_iou(maps[name], truths, 4), abs=1e-9), name
    assert figures["mask_accuracy"] == right / total and figures["images"] == 4
    assert figures["classification_error"] == figures["miou"]["oracle"] - figures["miou"]["zero_shot"]


def test_true_masks_as_groups_have_a_perfect_oracle():
    oracle = GroupOracle(num_classes=4)
    for seed in range(3):
        labels = random_image(seed)[1]
        oracle.add(torch.where(labels == 255, 0, labels), labels, torch.rand(5, 3))
    figures = oracle.figures()
    assert figures["miou"]["oracle"] == figures["miou"]["majority"] == 1 and figures["grouping_error"] == 0
    assert figures["miou"]["true_masks"] is None and figures["mask_accuracy"] is None


def test_no_labels_of_groups_have_more_right_pixels_than_the_majority():
    for seed in range(20):
        accuracy = analysis([seed]).figures()["pixel_accuracy"]
        assert accuracy["majority"] >= max(accuracy["oracle"], accuracy["zero_shot"], accuracy["present_classes"])


def test_names_of_absent_classes_and_a_wrong_background_are_told_apart():
    groups = torch.tensor([[0, 0, 1, 1]])
    labels = torch.tensor([[0, 0, 1, 1]])
    scores = torch.tensor([[0.6, 0.1], [0.2, 0.7]])  # class 2 is not in the image
    absent = GroupOracle(num_classes=3)
    absent.add(groups, labels, scores, torch.tensor([True, False]))
    assert absent.figures()["absent_class_confusion"] > 0 == absent.figures()["background_error"]
    behind = GroupOracle(num_classes=3)
    behind.add(groups, labels, scores.flip(1), torch.tensor([False, False]))
    assert behind.figures()["background_error"] > 0


def test_gated_scores_fall_back_to_full_ones():
    groups, labels = torch.tensor([[0, 1]]), torch.tensor([[1, 2]])
    scores = torch.tensor([[0.0, 0.0, 0.9], [0.0, 0.0, 0.9]])  # only the absent class 3 was kept
    full = torch.tensor([[0.3, 0.1, 0.6], [0.1, 0.3, 0.6]])
    oracle = GroupOracle(num_classes=4)
    oracle.add(groups, labels, scores, full_scores=full)
    assert oracle.figures()["miou"]["present_classes"] == 1


def test_label_maps_without_a_background_work():
    oracle = GroupOracle(num_classes=2, background=None)
    oracle.add(torch.tensor([[0, 1]]), torch.tensor([[0, 1]]), torch.tensor([[0.9, 0.1], [0.8, 0.2]]))
    figures = oracle.figures()
    assert figures["miou"]["zero_shot"] == 0.25 and figures["miou"]["oracle"] == 1
    assert figures["background_error"] is None and figures["per_class_iou"]["zero_shot"] == [0.5, 0.0]
    with pytest.raises(ValueError, match="background=None"):
        oracle.add(torch.tensor([[0]]), torch.tensor([[0]]), torch.rand(1, 2), torch.tensor([True]))


def test_an_image_of_background_alone_has_no_present_class():
    oracle = GroupOracle(num_classes=3)
    oracle.add(torch.zeros(2, 2).long(), torch.zeros(2, 2).long(), torch.rand(2, 2))
    assert oracle.figures()["miou"]["present_classes"] == 1 and oracle.figures()["groups_used"] == 1


def test_boundaries_are_left_out():
    labels = torch.zeros(30, 30, dtype=torch.long)
    labels[10:25, 8:20] = 3
    labels[0, 0] = 255
    near = without_boundaries(labels, 2)
    for y in range(30):
        for x in range(30):
            around = labels[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
            alone = len(around[around != 255].unique()) == 1
            assert near[y, x] == (labels[y, x] if alone else 255)
    assert torch.equal(without_boundaries(labels, 0), labels)
    shifted = torch.zeros(30, 30, dtype=torch.long)
    shifted[11:26, 8:20] = 1  # groups one pixel off: an error at boundaries alone
    for width, perfect in ((0, False), (2, True)):
        oracle = GroupOracle(num_classes=4, boundary=width)
        oracle.add(shifted, labels, torch.rand(2, 3))
        assert (oracle.figures()["miou"]["oracle"] == 1) == perfect


def test_groups_in_the_ignored_region_are_background():
    counts = torch.tensor([[0, 0, 0], [0, 2, 0]])
    assert label_groups(counts)[0].tolist() == [0, 1] and label_groups(counts)[1].tolist() == [0, 1]
    assert label_groups(counts, background=2)[0].tolist() == [2, 1]


def test_sums_of_two_processes_are_those_of_one():
    whole, first, second = analysis(range(6)), analysis([0, 2, 4]), analysis([1, 3, 5])
    joined = GroupOracle(num_classes=4)
    joined.load_state(first.state() + second.state())
    assert joined.figures() == whole.figures()
    with pytest.raises(ValueError, match="no image was added"):
        GroupOracle(num_classes=4).figures()
    with pytest.raises(ValueError, match="state: shape"):
        joined.load_state(torch.zeros(3))
