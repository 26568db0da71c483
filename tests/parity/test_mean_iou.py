"""Mean IoU of the same predictions by mmsegmentation, evaluate and PyTorch-Encoding, to 1e-12."""

import pytest
import torch
from parity_fixtures import load_fixture

from hf_clip_variants.metrics.segmentation import MeanIoU


pytestmark = pytest.mark.parity

KEYS = ("mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy")


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("mean_iou")


def maps(fixture):
    count = sum(name.startswith("pred_") for name in fixture.inputs)
    return tuple([fixture.inputs[f"{kind}_{i}"] for i in range(count)] for kind in ("pred", "label"))


def measured(fixture, **options):
    metric = MeanIoU(fixture.meta["num_classes"], ignore_index=fixture.meta["ignore_index"], **options)
    metric.update(*maps(fixture))
    return metric


def check(actual, expected):
    """NaN is stored as -1 in the fixture."""
    actual = torch.as_tensor(actual, dtype=torch.float64).nan_to_num(nan=-1.0)
    torch.testing.assert_close(actual, expected.double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "prefix, options",
    [("evaluate", {}), ("evaluate_reduce", {"reduce_labels": True}), ("evaluate_nan0", {"nan_to_num": 0.0})],
)
def test_evaluate(fixture, prefix, options):
    found = measured(fixture, **options).compute()
    for key in KEYS:
        check(found[key], fixture.outputs[f"{prefix}_{key}"])


def test_mmsegmentation(fixture):
    metric = measured(fixture)
    found = metric.compute()
    check(found["per_category_iou"], fixture.outputs["mmseg_IoU"])
    check(found["per_category_accuracy"], fixture.outputs["mmseg_Acc"])
    check(found["mean_iou"], fixture.outputs["mmseg_mIoU_nanmean"])
    check(found["overall_accuracy"], fixture.outputs["mmseg_aAcc"])
    both, predicted, labelled = metric.counts.double()
    check(2 * both / (predicted + labelled), fixture.outputs["mmseg_Dice"])


def test_pytorch_encoding(fixture):
    metric = measured(fixture, convention="encoding")
    found = metric.compute()
    check(found["mean_iou"], fixture.outputs["encoding_mIoU"])
    check(found["overall_accuracy"], fixture.outputs["encoding_pixAcc"])
    both, predicted, labelled = metric.counts
    assert torch.equal(both, fixture.outputs["encoding_inter"])
    assert torch.equal(predicted + labelled - both, fixture.outputs["encoding_union"])


def test_every_output_is_compared(fixture):
    compared = {f"{p}_{k}" for p in ("evaluate", "evaluate_reduce", "evaluate_nan0") for k in KEYS}
    compared |= {f"mmseg_{key}" for key in ("IoU", "Acc", "mIoU_nanmean", "aAcc", "Dice")}
    compared |= {f"encoding_{key}" for key in ("mIoU", "pixAcc", "inter", "union")}
    assert set(fixture.outputs) == compared
