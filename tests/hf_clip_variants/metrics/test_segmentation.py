"""Mean IoU over a data set: streamed, merged, over ranks, and of few-shot episodes."""

import json

import numpy as np
import pytest
import torch
from paths import TESTS
from processes import run_on_ranks
from safetensors.torch import save_file

from hf_clip_variants.metrics.segmentation import MeanIoU, argmax_for_metrics, mean_iou_metrics


CONVENTIONS = ("mmseg", "encoding", "few_shot")


def maps(images=7, classes=5, seed=0):
    """Predictions that are right half of the time, labels with ignored pixels; the last class is never labelled."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes - 1, (images, 9, 11), generator=generator)
    guesses = torch.randint(0, classes, labels.shape, generator=generator)
    predictions = torch.where(torch.rand(labels.shape, generator=generator) < 0.5, labels, guesses)
    return predictions, labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.2, 255)


def arguments(convention, seed=0):
    predictions, labels = maps(seed=seed)
    if convention != "few_shot":
        return predictions, labels
    return predictions % 2, torch.where(labels == 255, 255, labels % 2), torch.arange(7) % 3


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_streamed_merged_and_whole_are_the_same(convention):
    given = arguments(convention)
    whole = MeanIoU(6, convention)
    whole.update(*given)
    streamed = MeanIoU(6, convention)
    for first in range(0, 7, 3):
        streamed.update(*(values[first : first + 3] for values in given))
    same(streamed.compute(), whole.compute())
    listed = MeanIoU(6, convention)
    listed.update(*(list(values) for values in given))
    same(listed.compute(), whole.compute())
    parts = [MeanIoU(6, convention) for _ in range(3)]
    for part, first in zip(parts, (0, 2, 6), strict=True):
        part.update(*(values[first : {0: 2, 2: 6, 6: 7}[first]] for values in given))
    same(parts[0].merge(*parts[1:]).compute(), whole.compute())
    whole.reset()
    assert not whole.counts.any()


def test_mean_iou_by_hand():
    predictions, labels = maps()
    metric = MeanIoU(6)
    metric.update(predictions.numpy(), labels.numpy().astype(np.uint8))
    found, valid = metric.compute(), labels != 255
    for label in range(6):
        predicted, labelled = (predictions == label)[valid], (labels == label)[valid]
        union = (predicted | labelled).sum().item()
        iou = (predicted & labelled).sum().item() / union if union else float("nan")
        np.testing.assert_equal(found["per_category_iou"][label], iou)
    assert np.isnan(found["per_category_iou"][5]) and found["per_category_iou"][4] == 0
    assert found["mean_iou"] == pytest.approx(found["per_category_iou"][:5].mean(), abs=1e-15)
    assert found["overall_accuracy"] == pytest.approx((predictions == labels)[valid].float().mean().item())
    encoding = MeanIoU(6, "encoding")
    encoding.update(predictions, labels)
    assert encoding.compute()["mean_iou"] == pytest.approx(found["mean_iou"] * 5 / 6)


def test_few_shot_by_hand():
    predictions, labels, classes = arguments("few_shot")
    metric = MeanIoU(20, "few_shot")
    for prediction, label, one in zip(predictions, labels, classes, strict=True):
        metric.update(prediction, label, class_ids=[one])
    found, fold = metric.compute(), {}
    for one in range(3):
        valid = (labels != 255) & (classes == one)[:, None, None]
        sides = []
        for side in (0, 1):
            predicted, labelled = (predictions == side) & valid, (labels == side) & valid
            sides.append(((predicted & labelled).sum().item(), (predicted | labelled).sum().item()))
        fold[one] = sides
    expected = np.mean([fold[one][1][0] / fold[one][1][1] for one in range(3)])
    assert found["mean_iou"] == pytest.approx(expected, abs=1e-15)
    pooled = [sum(fold[one][side][0] for one in fold) / sum(fold[one][side][1] for one in fold) for side in (0, 1)]
    assert found["fb_iou"] == pytest.approx(np.mean(pooled), abs=1e-15)
    # A class of the fold without an image counts 0.
    wider = MeanIoU(20, "few_shot", classes=[0, 1, 2, 3]).merge(metric)
    assert wider.compute()["mean_iou"] == pytest.approx(expected * 3 / 4)


def test_labels_may_be_renamed_and_reduced():
    predictions, labels = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[5, 2, 0, 255]])
    metric = MeanIoU(2, label_map={5: 1}, reduce_labels=True)
    metric.update(predictions, labels)
    assert metric.counts.tolist() == [[1, 1], [1, 1], [1, 1]]


def test_padding_of_trainer_does_not_count():
    metric = MeanIoU(2, ignore_index=-1)
    metric.update(torch.tensor([[0, 1, -100, 1]]), torch.tensor([[0, -1, -100, -100]]))
    assert metric.counts.sum() == 3 and metric.compute()["overall_accuracy"] == 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: MeanIoU(3, "pascal"), "convention: 'pascal'"),
        (lambda: MeanIoU(0), "num_labels: 0"),
        (lambda: MeanIoU(3).update(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)), "predictions: numbers of type"),
        (lambda: MeanIoU(3).update(*torch.zeros(2, 4, dtype=torch.int64)), "predictions: shape"),
        (lambda: MeanIoU(3).update(maps()[0], maps()[1][:3]), "predictions: shape"),
        (lambda: MeanIoU(3, "few_shot").update(*arguments("few_shot")[:2]), "class_ids"),
        (lambda: MeanIoU(2, "few_shot").update(*arguments("few_shot")), "class_ids"),
        (lambda: MeanIoU(3).merge(MeanIoU(4)), "others: 4 labels"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing_counted_is_nan():
    assert np.isnan(MeanIoU(3).compute()["mean_iou"]) and np.isnan(MeanIoU(3).compute()["overall_accuracy"])
    assert MeanIoU(3, nan_to_num=0.0).compute()["mean_iou"] == 0


def test_two_processes_equal_one(tmp_path):
    predictions, labels = maps(images=5)
    save_file({"predictions": predictions, "labels": labels}, tmp_path / "maps.safetensors")
    run_on_ranks(TESTS / "programs" / "mean_iou_ranks.py", tmp_path, world_size=2, folder=tmp_path)
    single = MeanIoU(6)
    single.update(predictions, labels)
    expected = single.compute()
    for rank in range(2):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found["images"] == [3, 2][rank]
        assert found["counts"] == single.counts.tolist()
        assert found["mean_iou"] == expected["mean_iou"]


def test_argmax_for_trainer():
    logits, labels = torch.randn(2, 5, 4, 6), torch.zeros(2, 8, 12)
    resized = torch.nn.functional.interpolate(logits, size=(8, 12), mode="bilinear")
    assert torch.equal(argmax_for_metrics((logits, None), labels), resized.argmax(1))
    assert torch.equal(argmax_for_metrics(logits), logits.argmax(1))
    # Labels whose height Trainer has padded to that of another rank.
    padded = torch.zeros(2, 9, 6, dtype=torch.int64)
    padded[:, 4:] = -100
    found = argmax_for_metrics(logits, padded)
    assert torch.equal(found[:, :4], logits.argmax(1)) and (found[:, 4:] == -100).all()


def test_metrics_are_plain_numbers():
    class Prediction:
        predictions, label_ids = (maps()[0].numpy(), None), maps()[1].numpy()

    found = mean_iou_metrics(6)(Prediction)
    assert set(found) == {"mean_iou", "mean_accuracy", "overall_accuracy"}
    assert all(type(value) is float for value in found.values())
