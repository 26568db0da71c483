"""`similarity_residual`: the answer begins at the similarity alone, and training adds to it."""

import copy

import pytest
import torch
from fnd_clip_runs import fnd_clip_config, fnd_clip_model
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from hf_clip_variants import FNDCLIPForSequenceClassification


OURS = {"adapt_features": True, "similarity_residual": True}


def features(posts: int = 200, seed: int = 0) -> dict[str, torch.Tensor]:
    """Of posts whose text and image fit in every other one, as a random turn of each other."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(9)))[0]
    texts, others = torch.randn(2, posts, 24, generator=generator)
    true = torch.arange(posts) % 2 == 1
    return {
        "text_states": torch.randn(posts, 4, 24, generator=generator),
        "clip_text_features": texts,
        "clip_image_features": torch.where(true[:, None], texts, others) @ turn,
        "image_logits": torch.randn(posts, 11, generator=generator),
        "labels": true.long(),
    }


def pair(given):
    return given["clip_text_features"], given["clip_image_features"]


def without_labels(given):
    return {name: value for name, value in given.items() if name != "labels"}


def test_the_answer_begins_at_the_similarity_and_is_saved(tmp_path):
    model, given = copy.deepcopy(fnd_clip_model(**OURS)), without_labels(features())
    labels = features()["labels"]
    model.fit_feature_maps(*(one[labels == 1] for one in pair(given)), epochs=40, batch_size=50, learning_rate=0.01)
    with torch.no_grad():
        similarity = model(**given).similarity
        loss = model.start_from_similarity(similarity, labels)
        found = model(**given, labels=labels)
    answer = found.logits[:, 1] - found.logits[:, 0]
    assert found.loss.item() == pytest.approx(loss, abs=1e-5) and loss < 0.5
    assert torch.equal(answer.argsort(stable=True), similarity.argsort(stable=True))
    # A logistic regression: chances add up to how many posts there are of each class.
    assert found.logits.softmax(-1)[:, 1].mean().item() == pytest.approx(0.5, abs=1e-3)
    scaled = model.fusion.similarity_factor * similarity + model.fusion.similarity_summand
    assert scaled.mean().abs() < 1e-4 and scaled.std().item() == pytest.approx(1, abs=1e-4)
    with torch.no_grad():
        model.fusion.classifier.output_layer.weight[1].add_(0.3)
        trained = model(**given).logits
        maps, model.fusion.text_map.weight.data[:] = model.fusion.text_map.weight.clone(), 1.0
        same = model(**given, similarity=similarity).logits
        model.fusion.text_map.weight.data[:] = maps
    assert not torch.allclose(trained, found.logits)
    torch.testing.assert_close(same, trained)  # what was fitted for the similarity is for it alone
    model.save_pretrained(tmp_path)
    again = FNDCLIPForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(**given).logits, trained, rtol=1e-5, atol=1e-5)
    assert not any("similarity_answer" in name for name, _ in again.named_parameters())
    other = FNDCLIPForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert (other(**given).logits == 0).all()  # five classes begin at nothing
    assert not any("similarity_answer" in name for name in fnd_clip_model().state_dict())


@torch.no_grad()
def test_a_new_model_has_no_correction_and_posts_without_an_image_the_answer_of_the_mean():
    model = FNDCLIPForSequenceClassification(fnd_clip_config(**OURS)).eval()
    given = without_labels(features(6))
    assert (model(**given).logits == 0).all()
    model.start_from_similarity(torch.tensor([0.1, 0.2, 0.5, 0.4, 0.3]), torch.tensor([0, 0, 1, 1, 0]))
    found = model(**given, similarity=torch.full((6,), 0.9), image_mask=torch.tensor([1, 0, 1, 1, 1, 0]))
    assert found.similarity.tolist() == pytest.approx([0.9, 0, 0.9, 0.9, 0.9, 0])
    mean = model(**given, similarity=torch.full((6,), 0.3)).logits
    torch.testing.assert_close(found.logits[1::4], mean[1::4])
    assert (found.logits[0, 1] - found.logits[0, 0] > mean[0, 1] - mean[0, 0] + 1).all()


def test_similarities_of_posts_that_were_not_fitted_on():
    """Text and image have nothing to do with each other: what is fitted on them remembers them, the rest does not."""
    model, generator = copy.deepcopy(fnd_clip_model(**OURS)), torch.Generator().manual_seed(4)
    pairs, true = torch.randn(2, 60, 24, generator=generator), torch.ones(60, dtype=torch.bool)
    settings = {"epochs": 25, "batch_size": 20, "learning_rate": 0.02, "penalty": 1e-3}
    before = copy.deepcopy(model.state_dict())
    found = model.cross_fit_similarity(*pairs, true, **settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.fit_feature_maps(*pairs, **settings)
    with torch.no_grad():
        maps = model.fusion.text_map, model.fusion.image_map
        seen = torch.cosine_similarity(*(one(features) for one, features in zip(maps, pairs, strict=True)))
    assert seen.mean() > 0.5 and found.mean().abs() < 0.15
    # The same posts twice, in one group each: as long as no group is in two folds, nothing is remembered either.
    twice, groups = [torch.cat([one, one]) for one in pairs], torch.arange(60).repeat(2)
    once = torch.arange(120) < 60
    grouped = model.cross_fit_similarity(*twice, once, groups=groups, **settings)
    torch.testing.assert_close(grouped[:60], grouped[60:])
    assert grouped.mean().abs() < 0.15
    assert model.cross_fit_similarity(*twice, once, **settings)[60:].mean() > 0.4  # apart, they are


def test_trainer_learns_the_correction_beside_the_similarity(tmp_path):
    """A text of one style is true, the others are if their image fits: what begins at the second finds the first."""
    torch.manual_seed(0)
    model = FNDCLIPForSequenceClassification(fnd_clip_config(**OURS, freeze_backbone=True)).eval()
    given = features(400)
    similarity = torch.cosine_similarity(*pair(given))
    similarity = similarity + 0.5 * given["labels"]
    style = torch.rand(400, generator=torch.Generator().manual_seed(5)) < 0.4
    given["labels"] = torch.where(style, 1, given["labels"])
    given["clip_text_features"][:, 0] = torch.where(style, 4.0, -4.0)
    rows = [{name: value[row] for name, value in (given | {"similarity": similarity}).items()} for row in range(400)]
    start = model.start_from_similarity(similarity[:300], given["labels"][:300])
    model.fusion.text_map.requires_grad_(False)
    model.fusion.image_map.requires_grad_(False)
    arguments = TrainingArguments(
        str(tmp_path),
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        max_steps=60,
        per_device_train_batch_size=50,
        eval_strategy="steps",
        eval_steps=10,
        save_steps=10,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        remove_unused_columns=False,
        eval_on_start=True,
        disable_tqdm=True,
        report_to=[],
        use_cpu=True,
    )
    stop = EarlyStoppingCallback(2)
    trainer = Trainer(model, arguments, train_dataset=rows[:300], eval_dataset=rows[300:], callbacks=[stop])
    answer = copy.deepcopy(model.fusion.similarity_answer.state_dict())
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert losses[0] == pytest.approx(start, abs=0.1) and min(losses) < 0.85 * losses[0]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-4)
    kept = model.fusion.similarity_answer.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in answer.items())


def test_what_cannot_begin_at_a_similarity_is_said():
    plain, model = fnd_clip_model(), fnd_clip_model(**OURS)
    similarity, labels = torch.rand(4), torch.tensor([0, 1, 1, 0])
    with pytest.raises(ValueError, match="similarity_residual: False, want a model with similarity_residual=True"):
        plain.start_from_similarity(similarity, labels)
    for given, message in (
        ((similarity[:, None], labels), r"similarity: got torch.float32 \[4, 1\], expected floats \[posts\]"),
        (([0.1], labels), "similarity: got list"),
        ((similarity, labels[:3]), r"labels: .*\[4\]"),
        ((similarity, labels + 1), r"labels\[1\] is 2, expected 0..1"),
        ((similarity, torch.ones(4, dtype=torch.long)), "labels: all of class 1, expected two classes or more"),
        ((similarity, labels - 101 * labels), "labels: -100, expected a class for each post"),
        ((torch.ones(4), labels), "similarity: all equal"),
        ((similarity * float("nan"), labels), "similarity: all equal, or NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            model.start_from_similarity(*given)
    several = FNDCLIPForSequenceClassification(fnd_clip_config(**OURS, problem_type="multi_label_classification"))
    with pytest.raises(ValueError, match="problem_type: 'multi_label_classification', expected single_label"):
        several.start_from_similarity(similarity, labels)
    given, true = without_labels(features(4)), torch.tensor([True, True, True, False])
    with pytest.raises(ValueError, match=r"similarity: got torch.float32 \[3\], expected floats \[4\]"):
        model(**given, similarity=similarity[:3])
    with pytest.raises(ValueError, match=r"similarity\[0\] has some"):
        model(**given, similarity=similarity * float("nan"))
    with pytest.raises(ValueError, match="adapt_features: False"):
        plain.cross_fit_similarity(*pair(given), true)
    for options, message in (
        ({"true": true.long()}, r"true: got torch.int64 \[4\], expected booleans \[4\]"),
        ({"true": true[:2]}, r"true: got torch.bool \[2\], expected booleans \[4\]"),
        ({"groups": torch.rand(4)}, "groups: got torch.float32"),
        ({"groups": [1, 2, 3, 4]}, "groups: got list, expected whole numbers"),
        ({"folds": 1}, "folds: 1, expected 2..4, the number of groups"),
        ({"folds": 5}, "folds: 5, expected 2..4"),
        ({"folds": 4, "true": torch.tensor([True, True, False, False])}, "true: 1 outside of a fold, want at least 2"),
        ({"epochs": 0}, "epochs: 0, expected"),
    ):
        with pytest.raises(ValueError, match=message):
            model.cross_fit_similarity(*pair(given), **{"true": true} | options)
