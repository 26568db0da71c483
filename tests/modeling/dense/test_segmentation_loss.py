"""The loss of label maps, by itself and under Trainer."""

import pytest
import torch
import torch.nn.functional as F
from toy_segmentation import toy_model, toy_processor
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_clip_variants.metrics.segmentation import argmax_for_metrics, mean_iou_metrics
from hf_clip_variants.modeling.dense.segmentation_loss import segmentation_loss


def logits_and_labels(ignored=0.5, labels=4, ignore_index=255, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, labels, 6, 7, generator=generator)
    maps = torch.randint(0, labels, (2, 6, 7), generator=generator)
    return logits, maps.masked_fill(torch.rand(2, 6, 7, generator=generator) < ignored, ignore_index)


def by_hand(logits, labels, ignore_index=255):
    """The mean of -log softmax over the pixels that count."""
    log, valid = logits.double().log_softmax(1), labels != ignore_index
    return -log.movedim(1, -1)[valid].gather(1, labels[valid][:, None]).mean()


@pytest.mark.parametrize("ignore_index", [255, -1, -100, 3])
def test_the_mean_over_the_pixels_that_count(ignore_index):
    logits, labels = logits_and_labels(ignore_index=ignore_index)
    found = segmentation_loss(logits, labels, ignore_index)
    torch.testing.assert_close(found.double(), by_hand(logits, labels, ignore_index), rtol=1e-6, atol=0)
    assert 0.3 < (labels == ignore_index).float().mean() < 0.8
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if ignore_index >= 0 or dtype != torch.uint8:
            assert torch.equal(segmentation_loss(logits, labels.to(dtype), ignore_index), found)


def test_logits_are_resized_to_the_labels():
    logits, labels = logits_and_labels()
    small = torch.randn(2, 4, 3, 2)
    resized = F.interpolate(small, size=(6, 7), mode="bilinear", align_corners=False)
    torch.testing.assert_close(segmentation_loss(small, labels), segmentation_loss(resized, labels))
    both = segmentation_loss(logits, labels, auxiliary_logits=small, auxiliary_weight=0.3)
    torch.testing.assert_close(both, segmentation_loss(logits, labels) + 0.3 * segmentation_loss(small, labels))


def test_where_all_is_ignored_the_loss_and_its_gradients_are_zero():
    logits, labels = logits_and_labels(ignored=2)
    small = torch.randn(2, 4, 3, 2, requires_grad=True)
    logits.requires_grad_()
    loss = segmentation_loss(logits, labels, auxiliary_logits=small)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any() and not small.grad.any()


def test_half_precision_is_summed_in_float32():
    logits, labels = logits_and_labels(ignored=0)
    logits = (10 * logits).to(torch.float16)
    found = segmentation_loss(logits, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), by_hand(logits, labels), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.zeros(2, 6, 7), "labels: expected whole numbers, got torch.float32"),
        ([[0]], "got list"),
        (torch.zeros(6, 7, dtype=torch.int64), r"expected shape \[2, H, W\]"),
        (torch.zeros(1, 6, 7, dtype=torch.int64), r"expected shape \[2, H, W\]"),
        (torch.full((2, 6, 7), 4), r"labels\[0, 0, 0\] is 4, expected 0..3 or 255"),
        (torch.full((2, 6, 7), -1), r"labels\[0, 0, 0\] is -1"),
    ],
)
def test_bad_labels_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        segmentation_loss(logits_and_labels()[0], labels)


# ---- under Trainer


LABELS = ["cat", "red apple", "forest"]


def samples(count=6, ignored=0.5):
    generator = torch.Generator().manual_seed(3)
    found = []
    for number in range(count):
        labels = torch.randint(0, 3, (8, 8), generator=generator)
        share = ignored * 2 * number / count  # another share of each image
        labels = labels.masked_fill(torch.rand(8, 8, generator=generator) < share, 255)
        found.append({"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": labels})
    return found


class Losses(TrainerCallback):
    def __init__(self):
        self.losses, self.norms = [], []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.losses.append(logs["loss"])
            self.norms.append(logs["grad_norm"])


def trainer_of(model, tmp_path, data, accumulation=1, **options):
    arguments = {"remove_unused_columns": False, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    arguments |= {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 2, "max_grad_norm": 1e9}
    arguments |= {"train_sampling_strategy": "sequential", "logging_steps": 1, "max_steps": 1, "learning_rate": 0.0}
    arguments |= options.pop("arguments", {})
    return Trainer(model, TrainingArguments(tmp_path, **arguments), train_dataset=data, eval_dataset=data, **options)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_trainer_sees_the_mean_over_the_pixels_that_count(accumulation, tmp_path):
    """`num_items_in_batch` of Trainer counts pixels of another ignore index than -100."""
    model, data, seen = toy_model(), samples(), Losses()
    model.set_labels(LABELS, toy_processor())
    expected, gradients = [], []
    for first in range(0, 2 * accumulation, 2):
        pixels, labels = (torch.stack([s[k] for s in data[first : first + 2]]) for k in ("pixel_values", "labels"))
        loss = by_hand(model(pixels).logits, labels)
        expected.append(loss.item())
        gradients.append(torch.autograd.grad(loss, list(model.pixels.parameters())))
    trainer_of(model, tmp_path, data, accumulation, callbacks=[seen]).train()
    assert seen.losses[0] == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    mean = [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]
    norm = torch.cat([part.flatten() for part in mean]).norm().item()
    assert seen.norms[0] == pytest.approx(norm, rel=1e-4)


def test_trainer_goes_on_where_a_batch_is_all_ignored(tmp_path):
    model, data, seen = toy_model(), samples(), Losses()
    model.set_labels(LABELS, toy_processor())
    for sample in data[:2]:
        sample["labels"].fill_(255)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"arguments": {"max_steps": 1, "learning_rate": 0.1, "optim": "sgd"}, "callbacks": [seen]}
    trainer_of(model, tmp_path, data, **options).train()
    assert seen.losses == [0.0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_frozen_text_encoder_stays_as_it_is(tmp_path):
    model, data = toy_model(), samples()
    model.text.requires_grad_(False)
    texts = toy_processor()(text=LABELS, return_tensors="pt")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    collate = lambda rows: {k: torch.stack([row[k] for row in rows]) for k in rows[0]} | dict(texts)  # noqa: E731
    options = {"arguments": {"max_steps": 3, "learning_rate": 0.1}, "data_collator": collate}
    trainer_of(model, tmp_path, data, **options).train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"pixels.weight", "pixels.bias"}


def test_training_through_texts_reaches_the_text_encoder():
    model, data = toy_model().train(), samples(2)
    batch = {k: torch.stack([s[k] for s in data]) for k in data[0]}
    model(**batch, **toy_processor()(text=LABELS, return_tensors="pt")).loss.backward()
    assert model.text.tokens.weight.grad.abs().sum() > 0


# ---- evaluation with Trainer


@pytest.mark.parametrize("by_batch", [False, True])
def test_trainer_computes_the_mean_iou_of_images_of_several_sizes(by_batch, tmp_path):
    from hf_clip_variants.metrics.segmentation import MeanIoU

    model, data = toy_model(), samples()
    model.set_labels(LABELS, toy_processor())
    size = (5, 11 if by_batch else 8)  # Trainer pads the maps of all images to one height, not to one width
    data[4:] = [{"pixel_values": torch.randn(3, *size), "labels": torch.randint(0, 3, size)} for _ in range(2)]
    trainer = trainer_of(
        model,
        tmp_path,
        data,
        compute_metrics=mean_iou_metrics(3),
        preprocess_logits_for_metrics=argmax_for_metrics,
        arguments={"batch_eval_metrics": by_batch, "per_device_eval_batch_size": 2},
    )
    for part in (data, data[:3]):  # nothing is left over from the first
        expected = MeanIoU(3)
        for sample in part:
            with torch.no_grad():
                expected.update(model(sample["pixel_values"][None]).logits.argmax(1)[0], sample["labels"])
        found = trainer.evaluate(part)
        for name in ("mean_iou", "mean_accuracy", "overall_accuracy"):
            assert found[f"eval_{name}"] == expected.compute()[name]


def test_only_logits_reach_the_metrics(tmp_path):
    model, seen = toy_model(background=0.3), []
    model.set_labels(LABELS, toy_processor())

    def preprocess(logits, labels):
        seen.append(logits)
        return argmax_for_metrics(logits, labels)

    options = {"preprocess_logits_for_metrics": preprocess, "compute_metrics": mean_iou_metrics(4)}
    trainer_of(model, tmp_path, samples(), **options).evaluate()
    assert isinstance(seen[0], torch.Tensor) and seen[0].shape[1] == 4
