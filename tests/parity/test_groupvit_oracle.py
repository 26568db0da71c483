"""The oracle analysis of groups: labels of groups, their IoU, and mean IoU over the images."""

import pytest
import torch
from parity_fixtures import load_fixture

from hf_clip_variants.metrics.group_oracle import GroupOracle, class_ious, label_groups
from hf_clip_variants.modeling.dense.group_counts import group_class_counts
from hf_clip_variants.modeling.groupvit.background_rule import background_groups


pytestmark = pytest.mark.parity

EXACT = 1e-12


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("groupvit_oracle")


def images(fixture):
    return sorted(int(name.rsplit("_", 1)[1]) for name in fixture.inputs if name.startswith("label_"))


def analysis(fixture) -> GroupOracle:
    meta = fixture.meta
    oracle = GroupOracle(meta["num_classes"], meta["background"], meta["ignore_index"])
    for i in images(fixture):
        scores = fixture.inputs[f"group_scores_{i}"]
        background = background_groups(scores, meta["zeroshot_threshold"], never_all=False)
        oracle.add(fixture.inputs[f"group_{i}"], fixture.inputs[f"label_{i}"], scores, background)
    return oracle


@pytest.mark.parametrize("rule, name", [("iou", "oracle_label"), ("majority", "majority_label")])
def test_every_group_has_the_official_class(fixture, rule, name):
    meta = fixture.meta
    for i in images(fixture):
        groups, labels = fixture.inputs[f"group_{i}"], fixture.inputs[f"label_{i}"]
        counts = group_class_counts(groups, labels, meta["num_groups"], meta["num_classes"], meta["ignore_index"])
        classes, iou = label_groups(counts, rule, meta["background"])
        assert torch.equal(classes[groups], fixture.outputs[f"{name}_{i}"])
        if rule == "iou":
            used = torch.bincount(groups.flatten(), minlength=meta["num_groups"]) > 0
            assert torch.equal(torch.where(used, classes, -1), fixture.outputs[f"assigned_class_{i}"])
            known = torch.where(used, iou, -1.0)
            assert (known - fixture.outputs[f"assigned_iou_{i}"]).abs().max() <= EXACT


def test_groups_below_the_threshold_are_background(fixture):
    meta, of_class = fixture.meta, fixture.inputs["per_class_threshold"]
    for i in images(fixture):
        groups, scores = fixture.inputs[f"group_{i}"], fixture.inputs[f"group_scores_{i}"]
        for threshold, name in (
            (meta["zeroshot_threshold"], "zeroshot_label"),
            (of_class, "per_class_threshold_label"),
        ):
            background = background_groups(scores, threshold, never_all=False)
            classes = torch.where(background, meta["background"], 1 + scores.argmax(1))
            assert torch.equal(classes[groups], fixture.outputs[f"{name}_{i}"])


@pytest.mark.parametrize("figure, name", [("oracle", "oracle"), ("majority", "majority"), ("zero_shot", "zeroshot")])
def test_mean_iou_is_the_official_one(fixture, figure, name):
    figures = analysis(fixture).figures()
    wanted = fixture.outputs[f"iou_{name}"].tolist()
    for found, iou in zip(figures["per_class_iou"][figure], wanted, strict=True):
        assert abs((-1 if found is None else found) - iou) <= EXACT
    assert abs(figures["miou"][figure] - fixture.outputs[f"miou_{name}"].item()) <= EXACT


def test_majority_has_the_best_pixel_accuracy(fixture):
    figures = analysis(fixture).figures()
    assert all(
        figures["pixel_accuracy"]["majority"] >= figures["pixel_accuracy"][name] for name in ("oracle", "zero_shot")
    )


def test_classes_that_are_nowhere_have_no_iou():
    assert class_ious(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])) == [3 / 4, 4 / 5, None]
