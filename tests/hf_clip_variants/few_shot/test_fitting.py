"""`fit_adapter`: what is trained, how hyper-parameters are chosen, and that cached features give the same result."""

import itertools

import pytest
import torch
from adapter_models import tiny_classifier
from few_shot_runs import CONCEPTS
from tiny import CLASS_NAMES

from hf_clip_variants import CLIPClassifierImageProcessor
from hf_clip_variants.adapters.clip_adapter.few_shot import ratio_of
from hf_clip_variants.data import FeatureDataset, Features, compute_features, load_emoji
from hf_clip_variants.data.images.labelled_images import CachedImages, LiveImages, views_of_epoch
from hf_clip_variants.evaluation.image_prediction import class_logits, predict
from hf_clip_variants.few_shot import fitting as fitting_module
from hf_clip_variants.few_shot import training_loop as training_module
from hf_clip_variants.few_shot.evidence import evidence_of
from hf_clip_variants.few_shot.fitting import (
    Shots,
    Validation,
    apply_overrides,
    fit_adapter,
    measure,
    validation_folds,
)
from hf_clip_variants.few_shot.method import FEW_SHOT_METHODS, few_shot_method
from hf_clip_variants.few_shot.recipes import recipe
from hf_clip_variants.few_shot.training_loop import TrainingState, batches, train_adapter


CLASSES, WIDTH = len(CLASS_NAMES), 24
SHORT = {"epochs": 3, "batch_size": 4}
TRAINED = tuple(name for name in FEW_SHOT_METHODS if recipe(name).epochs)  # epoch by epoch
NOTHING_TO_TRAIN = ("tip_adapter", "gda")
STRENGTH_FROM_SHOTS = ("tip_adapter", "tip_adapter_f", "gda", "clap")
ON_FEATURES = tuple(name for name, row in FEW_SHOT_METHODS.items() if not row.trains_image_encoder)


def cached(shots: int, views: int = 1, seed: int = 0, spread: float = 1.0) -> CachedImages:
    """Features around one centre a class; `views` of each image."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(CLASSES).repeat_interleave(shots)
    features = centres[labels] + spread * torch.randn(views, len(labels), WIDTH, generator=generator)
    return CachedImages(Features(features, labels))


def shots_of(count: int, views: int = 1) -> Shots:
    images = cached(count, views)
    return Shots(images, CachedImages(Features(images.all_features()[:1], images.labels)))


def tensors_of(fitted) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return {name: tensor.clone() for name, tensor in get_peft_model_state_dict(fitted.model).items()}


def shots_for(method: str, classifier, count: int) -> Shots:
    """Features, or images for methods that train the image encoder."""
    if method in ON_FEATURES:
        return shots_of(count)
    styles = ["fluentflat", "emojione"][:count]
    images = load_emoji(styles, concepts=list(CONCEPTS[:CLASSES]))
    live = LiveImages(classifier, images, tiny_processor())
    return Shots(live, live)


def tiny_processor() -> CLIPClassifierImageProcessor:
    return CLIPClassifierImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})


def short(method: str, **more) -> dict:
    grid = {"search_scale": [9.0, 9.0], "search_step": [5, 5]} if "tip" in method else {}
    depth = {"prompt_depth": 2} if method == "maple" else {}
    return grid | depth | (SHORT if method in TRAINED else {}) | more


def folds_of(classifier, shots: Shots, split=None):
    asked = None if split is None else evidence_of(classifier, split)
    return validation_folds(shots, split, evidence_of(classifier, shots.plain), asked)


def test_folds_come_from_the_split_or_from_cross_validation():
    classifier = tiny_classifier()
    assert folds_of(classifier, shots_of(1)) == []
    for count, expected in ((2, 2), (3, 3), (4, 4), (8, 4)):
        shots = shots_of(count)
        folds = folds_of(classifier, shots)
        assert len(folds) == expected
        asked = torch.cat([fold.queries.all_features()[0] for fold in folds])
        assert len(asked) == count * CLASSES == len(asked.unique(dim=0)), "every shot is asked about once"
        for fold in folds:
            assert set(fold.shots.labels.tolist()) == set(range(CLASSES))
            known = fold.shots.plain.all_features()[0]
            assert not (known[:, None] == fold.queries.all_features()[0]).all(-1).any(), "and is not learned from then"
            for evidence, images in ((fold.evidence, fold.shots.plain), (fold.query_evidence, fold.queries)):
                assert torch.equal(evidence.logits, class_logits(classifier, images).logits)
                assert torch.equal(evidence.labels, images.labels)
    split = cached(2, seed=5)
    (fold,) = folds_of(classifier, shots_of(4), split)
    assert fold.queries is split and len(fold.shots.labels) == 4 * CLASSES and len(fold.query_evidence.labels) == 10
    nothing = cached(2).select(torch.tensor([], dtype=torch.long))
    everything = shots_of(4)
    folds = validation_folds(everything, nothing, evidence_of(classifier, everything.plain))
    assert len(folds) == 4, "an empty split is none"


def test_the_only_image_of_a_class_is_in_every_fold_and_never_asked_about():
    whole = shots_of(4)
    shots = whole.select(torch.tensor([0, 4, 5, 6, 8, 9, 12, 13, 14, 15, 16, 17]))  # 1, 3, 2, 4, 2 of the classes
    assert torch.bincount(shots.labels).tolist() == [1, 3, 2, 4, 2]
    folds = folds_of(tiny_classifier(), shots)
    assert [torch.bincount(fold.queries.labels, minlength=5).tolist() for fold in folds] == [
        [0, 1, 1, 1, 1],
        [0, 1, 1, 1, 1],
        [0, 1, 0, 1, 0],
        [0, 0, 0, 1, 0],
    ]
    for fold in folds:
        assert len(fold.shots.labels) + len(fold.queries) == 12 and (fold.shots.labels == 0).sum() == 1
        assert set(fold.shots.labels.tolist()) == set(range(CLASSES))


@pytest.mark.parametrize("method", FEW_SHOT_METHODS)
def test_every_method_fits_and_leaves_the_classifier_as_it_was(method):
    classifier = tiny_classifier()
    shots = shots_for(method, classifier, 2)
    before = classifier.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    expected = classifier(**shots.plain.batch(torch.arange(4), 0)).logits
    random_state = torch.get_rng_state()

    overrides = short(method) | (
        {"learning_rate": 0.01, "optimizer": "adamw", "schedule": "cosine", "epochs": 30}
        if method in TRAINED and method not in ("tip_adapter_f", "coop")
        else {}
    )
    if method == "tip_adapter_f":  # with the strength that these shots suggest, nothing is left to learn
        overrides |= {"alpha": 1.0, "beta": 1.0}
    fitted = fit_adapter(classifier, method, shots, overrides=overrides, seed=3)
    assert torch.equal(torch.get_rng_state(), random_state), "the global generator is neither read nor moved"
    assert (fitted.trained_parameters > 0) == (method not in NOTHING_TO_TRAIN)
    assert len(fitted.curve) == fitted.hyperparameters.get("epochs", 0)
    assert 0 < fitted.zero_shot_error < 1
    assert not torch.equal(fitted.model(**shots.plain.batch(torch.arange(4), 0)).logits, expected)
    if method in TRAINED:
        assert fitted.curve[-1] < fitted.curve[0]
        assert fitted.hyperparameters["epochs"] == overrides["epochs"] and fitted.hyperparameters["learning_rate"] == (
            overrides.get("learning_rate") or recipe(method, 2).learning_rate
        )
    first = tensors_of(fitted)

    assert fitted.unload() is classifier
    after = classifier.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(after[name], before[name]) for name in before if "class_features" not in name
    )
    assert torch.equal(classifier(**shots.plain.batch(torch.arange(4), 0)).logits, expected)

    torch.rand(7)
    again = tensors_of(fit_adapter(classifier, method, shots, overrides=overrides, seed=3))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first), (
        "a seed is a result"
    )


@pytest.mark.parametrize("method", ["clip_adapter", "coop"])
def test_another_seed_gives_other_initial_values(method):
    one, two = (
        tensors_of(fit_adapter(tiny_classifier(), method, shots_of(1), overrides=short(method), seed=s))
        for s in (1, 2)
    )
    assert any(not torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def images():
    return load_emoji(["fluentflat", "emojione"], concepts=list(CONCEPTS[:CLASSES]))


@pytest.mark.parametrize("augmentation", ["none", "tip"])
@pytest.mark.parametrize("method", ON_FEATURES)
def test_cached_features_give_the_same_adapter_as_encoding_at_every_step(method, augmentation, images):
    views = 1 if augmentation == "none" else 3
    classifier = tiny_classifier(class_names=list(images.class_names))
    classifier.faster_images = True  # as `FewShotRunner` does, for both
    processor = tiny_processor()

    def encode(pixels):
        return classifier.pooled_image_features(pixels)

    features = compute_features(
        encode, images, processor, views=views, augmentation=augmentation, seed=4, progress=False
    )
    plain = compute_features(encode, images, processor, progress=False)
    live = LiveImages(classifier, images, processor, augmentation, views, view_seed=4, seed=1)
    overrides = short(method, augmentation=augmentation) | ({"views": views} if method in TRAINED else {})
    outcomes = []
    for shots in (
        Shots(CachedImages(features, seed=1), CachedImages(plain)),
        Shots(live, LiveImages(classifier, images, processor)),
    ):
        fitted = fit_adapter(
            classifier,
            method,
            shots,
            overrides=overrides | ({"ratio": 0.5} if method == "clip_adapter" else {}),
            seed=1,
        )
        outcomes.append(
            (tensors_of(fitted), fitted.curve, predict(fitted.model, shots.plain)[1], fitted.hyperparameters)
        )
        fitted.unload()
    (tensors, curve, confidence, values), (live_tensors, live_curve, live_confidence, live_values) = outcomes
    for name in tensors:
        one, two = tensors[name].float(), live_tensors[name].float()
        # Adam divides by the gradient: where that is nearly nothing, so is its rounding no longer.
        assert torch.allclose(one, two, atol=5e-5 * max(1.0, float(one.abs().max()))), name
    # Strengths from the shots multiply the differences of the features, which are errors of rounding.
    assert curve == pytest.approx(live_curve, rel=1e-3, abs=1e-5) and len(curve) == (3 if method in TRAINED else 0)
    assert torch.allclose(confidence, live_confidence, atol=1e-2 if method in STRENGTH_FROM_SHOTS else 1e-5)
    assert values.keys() == live_values.keys()
    for name, value in values.items():
        assert value == (pytest.approx(live_values[name], rel=1e-3) if isinstance(value, float) else live_values[name])


def test_the_order_of_views_equals_the_feature_datasets():
    features = cached(3, views=4)
    dataset = FeatureDataset(Features(features.all_features(), features.labels), seed=8)
    for epoch in range(5):
        assert views_of_epoch(len(features), 4, 8, epoch).tolist() == dataset.chosen_views(epoch).tolist()


def slow_grid(fit_on: Shots, queries, class_embeds, values) -> torch.Tensor:
    """Right answers at every (beta, alpha), by the formulas."""
    unit = torch.nn.functional.normalize
    keys = unit(fit_on.training.all_features()[: values.cache_views].mean(0), dim=-1)
    asked = unit(queries.all_features()[0], dim=-1)
    one_hot = torch.nn.functional.one_hot(fit_on.labels, CLASSES).float()
    (top_beta, top_alpha), (betas, alphas) = values.search_scale, values.search_step
    right = torch.zeros(betas, alphas, dtype=torch.long)
    for i, j in itertools.product(range(betas), range(alphas)):
        beta, alpha = i * (top_beta - 0.1) / betas + 0.1, j * (top_alpha - 0.1) / alphas + 0.1
        logits = 100 * asked @ class_embeds.t() + alpha * torch.exp(-beta * (1 - asked @ keys.t())) @ one_hot
        right[i, j] = (logits.argmax(1) == queries.labels).sum()
    return right


def test_tip_adapter_chooses_the_first_best_pair_on_a_validation_split():
    classifier, shots, split = tiny_classifier(), shots_of(3, views=2), cached(2, seed=5)
    overrides = {"search_scale": [9.0, 40.0], "search_step": [7, 11], "cache_views": 2}
    values, _ = apply_overrides(few_shot_method("tip_adapter"), recipe("tip_adapter", 3), overrides)
    class_embeds = classifier(image_features=torch.randn(1, WIDTH)).text_embeds.detach()
    right = slow_grid(shots, split, class_embeds, values)
    best = right.flatten().tolist().index(int(right.max()))
    fitted = fit_adapter(classifier, "tip_adapter", shots, split, overrides=overrides)
    assert int(right.max()) > int(right.min()), "there is something to choose"
    config = fitted.model.peft_config["default"]
    assert config.beta == pytest.approx((best // 11) * 8.9 / 7 + 0.1) and config.alpha == pytest.approx(
        (best % 11) * 39.9 / 11 + 0.1
    )
    assert fitted.hyperparameters["alpha"] == config.alpha and fitted.hyperparameters["search_step"] == (7, 11)
    assert fitted.validation.kind == "split" and fitted.validation.images == len(split)
    assert fitted.validation.accuracy == pytest.approx(int(right.max()) / len(split))
    assert len(fitted.model.base_model.model.logit_head.clipv_tip_adapter_keys["default"]) == 3 * CLASSES, (
        "all shots are cached"
    )


def slow_leave_one_out(classifier, shots: Shots, alpha: float, beta: float) -> list[torch.Tensor]:
    """For each image, Tip-Adapter's logits from a cache of all the others, their own class's votes made up for."""
    unit = torch.nn.functional.normalize
    embeds = unit(shots.plain.all_features()[0], dim=-1)
    class_embeds = classifier(image_features=torch.randn(1, WIDTH)).text_embeds.detach()
    found = []
    for row, label in enumerate(shots.labels.tolist()):
        logits = 100 * embeds[row] @ class_embeds.t()
        for other in set(range(len(embeds))) - {row}:
            c, count = int(shots.labels[other]), int((shots.labels == label).sum())
            vote = torch.exp(-beta * (1 - embeds[row] @ embeds[other]))
            logits[c] = logits[c] + alpha * vote * (count / (count - 1) if c == label else 1)
        found.append(logits)
    return found


def test_without_a_split_tip_adapters_values_follow_from_the_shots():
    classifier, images = tiny_classifier(), cached(3, spread=5.0)
    shots = Shots(images, images)
    evidence = evidence_of(classifier, shots.plain)
    fitted = fit_adapter(classifier, "tip_adapter", shots, overrides=short("tip_adapter", cache_views=1))
    config = fitted.model.peft_config["default"]
    scale = 100 / float(classifier.clip.logit_scale.exp())
    vote = evidence.fitted_strength(evidence.leave_one_out_votes(), evidence.vote)
    assert config.beta == pytest.approx(evidence.beta)
    assert config.alpha == pytest.approx(vote * evidence.temperature * scale)
    assert fitted.hyperparameters["alpha"] == config.alpha and fitted.hyperparameters["beta"] == config.beta
    assert "search_step" not in fitted.hyperparameters, "nothing was searched for"
    fitted.unload()
    logits = torch.stack(slow_leave_one_out(classifier, shots, config.alpha, config.beta))
    right = (logits.argmax(1) == shots.labels).float().mean()
    assert 1 / CLASSES < float(right) < 1
    assert fitted.validation == measure("leave-one-out", logits, shots.labels, evidence.logits)


@pytest.mark.parametrize("method", FEW_SHOT_METHODS)
def test_one_shot_without_a_split_measures_nothing(method):
    classifier = tiny_classifier()
    shots = shots_for(method, classifier, 1)
    fitted = fit_adapter(classifier, method, shots, overrides=short(method))
    assert fitted.validation == Validation("none") and fitted.validation.accuracy is None
    assert fitted.seconds["search"] == 0 or method == "gda"
    values, config = recipe(method, 1), fitted.model.peft_config["default"]
    fitted.unload()
    if "tip" in method:
        evidence, scale = evidence_of(classifier, shots.plain), 100 / float(classifier.clip.logit_scale.exp())
        assert config.beta == pytest.approx(evidence.beta)
        assert config.alpha == pytest.approx(evidence.vote * evidence.temperature * scale)
    if method == "clip_adapter":
        assert values.ratio is None and config.ratio == ratio_of(evidence_of(classifier, shots.plain))


def test_clip_adapter_keeps_the_ratio_with_the_best_validation():
    shots = shots_of(2)
    candidates = [0.0, 0.9, 0.5]
    overrides = SHORT | {"ratio_candidates": candidates, "learning_rate": 0.05, "epochs": 20}
    fitted = fit_adapter(tiny_classifier(), "clip_adapter", shots, overrides=overrides)
    alone = []
    for ratio in candidates:
        right = 0
        for fold in folds_of(tiny_classifier(), shots):
            one = fit_adapter(tiny_classifier(), "clip_adapter", fold.shots, overrides=overrides | {"ratio": ratio})
            right += int((predict(one.model, fold.queries)[0] == fold.queries.labels).sum())
        alone.append(right)
    assert len(set(alone)) > 1
    assert fitted.model.peft_config["default"].ratio == candidates[alone.index(max(alone))]
    assert (
        fitted.validation.accuracy == max(alone) / len(shots.labels) and fitted.validation.kind == "cross-validation"
    )


@pytest.mark.parametrize("count", [2, 3])
def test_a_single_candidate_is_validated_on_two_folds_or_on_a_split(count):
    shots, classifier = shots_of(count), tiny_classifier()
    found = fit_adapter(classifier, "coop", shots, overrides=SHORT)
    found.unload()
    right = 0
    for fold in folds_of(classifier, shots)[:2]:
        fitted = fit_adapter(classifier, "coop", fold.shots, overrides=SHORT)
        right += int((predict(fitted.model, fold.queries)[0] == fold.queries.labels).sum())
        fitted.unload()
    assert (found.validation.kind, found.validation.images) == ("cross-validation", 2 * CLASSES)
    assert found.validation.accuracy == pytest.approx(right / (2 * CLASSES)) and found.seconds["search"] > 0
    split = cached(2, seed=5)
    fitted = fit_adapter(tiny_classifier(), "coop", shots_of(2), split, overrides=SHORT)
    right = (predict(fitted.model, split)[0] == split.labels).float().mean()
    assert fitted.validation.kind == "split" and fitted.validation.accuracy == pytest.approx(float(right))


def test_given_values_are_used_without_a_search():
    shots = shots_of(2)
    fitted = fit_adapter(tiny_classifier(), "tip_adapter", shots, overrides={"alpha": 3.5, "beta": 2.0})
    config = fitted.model.peft_config["default"]
    assert (config.alpha, config.beta) == (3.5, 2.0) and fitted.validation.kind == "leave-one-out"
    logits = torch.stack(slow_leave_one_out(tiny_classifier(), shots, 3.5, 2.0))
    assert fitted.validation.accuracy == pytest.approx(float((logits.argmax(1) == shots.labels).float().mean()))
    fitted = fit_adapter(tiny_classifier(), "tip_adapter", shots, overrides={"beta": 2.0})
    assert fitted.model.peft_config["default"].beta == 2.0 and fitted.model.peft_config["default"].alpha > 0
    fitted = fit_adapter(
        tiny_classifier(), "clip_adapter", shots_of(2), overrides=SHORT | {"ratio": 0.3, "modality": "both"}
    )
    config = fitted.model.peft_config["default"]
    assert (config.ratio, config.modality) == (0.3, "both") and fitted.validation.kind == "cross-validation"
    assert fitted.curve != [] and fitted.hyperparameters["ratio"] == 0.3
    assert fitted.hyperparameters["modality"] == "both"
    fitted = fit_adapter(tiny_classifier(), "coop", shots_of(1), overrides=SHORT | {"context_init": "a photo of a"})
    config = fitted.model.peft_config["default"]
    assert (
        config.context_init == "a photo of a"
        and config.num_context_tokens == fitted.hyperparameters["num_context_tokens"] > 0
    )


@pytest.mark.parametrize(
    ("method", "overrides", "words"),
    [
        ("coop", {"epoch": 3}, ["coop", "'epoch'", "epochs"]),
        ("tip_adapter", {"num_context_tokens": 3}, ["tip_adapter", "num_context_tokens"]),
        ("coop", {"class_names": ["a"]}, ["class_names"]),
        ("coop", {"epochs": -1}, ["epochs", "-1"]),
        ("clip_adapter", {"ratio": 2.0}, ["ratio", "2.0"]),
        ("tip_adapter", {"augmentation": "none", "views": 4}, ["views", "augmentation"]),
        ("tipadapter", {}, ["'tipadapter'", "tip_adapter"]),
        ("gda", {"epochs": 3}, ["gda", "'epochs'", "alpha"]),
        ("gda", {"pull": 1.0}, ["gda", "'pull'"]),
        ("clap", {"beta": -1.0}, ["beta", "-1"]),
    ],
)
def test_wrong_values_are_named(method, overrides, words):
    classifier = tiny_classifier()
    with pytest.raises(ValueError) as error:
        fit_adapter(classifier, method, shots_of(1), overrides=overrides)
    assert all(word in str(error.value) for word in words)
    assert not hasattr(classifier, "peft_config")


IN_THE_MIDDLE = dict.fromkeys(TRAINED, "hf_clip_variants.few_shot.fitting.train_adapter") | {
    "gda": "hf_clip_variants.adapters.linear_head.few_shot.leave_one_out_logits",
    "clap": "hf_clip_variants.adapters.linear_head.layer.LinearHeadLayer.set_head",
}


@pytest.mark.parametrize("method", IN_THE_MIDDLE)
def test_a_failed_fit_leaves_the_classifier_as_it_was(method, monkeypatch):
    classifier = tiny_classifier()
    shots = shots_for(method, classifier, 2)
    expected = classifier(**shots.plain.batch(torch.arange(4), 0)).logits

    def fail(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(IN_THE_MIDDLE[method], fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit_adapter(classifier, method, shots, overrides=short(method))
    monkeypatch.undo()
    assert torch.equal(classifier(**shots.plain.batch(torch.arange(4), 0)).logits, expected)
    assert not any("clipv_" in name for name in classifier.state_dict())
    fit_adapter(classifier, method, shots, overrides=short(method)).unload()


def test_a_loss_that_is_not_finite_stops_with_the_learning_rate():
    with pytest.raises(FloatingPointError, match="learning rate 9.69"):
        fit_adapter(
            tiny_classifier(),
            "clip_adapter",
            shots_of(1),
            overrides={"learning_rate": 1e30, "epochs": 9, "warmup_epochs": 0},
        )


def test_the_order_of_batches_depends_on_seed_and_epoch():
    one = [rows.tolist() for rows in batches(10, 4, seed=1, epoch=0, drop_last=False)]
    assert sorted(sum(one, [])) == list(range(10)) and [len(rows) for rows in one] == [4, 4, 2]
    assert one == [rows.tolist() for rows in batches(10, 4, seed=1, epoch=0, drop_last=False)]
    assert one != [rows.tolist() for rows in batches(10, 4, seed=1, epoch=1, drop_last=False)]
    assert one != [rows.tolist() for rows in batches(10, 4, seed=2, epoch=0, drop_last=False)]
    assert [len(rows) for rows in batches(10, 4, 1, 0, drop_last=True)] == [4, 4]
    assert [len(rows) for rows in batches(3, 4, 1, 0, drop_last=True)] == [3], "the only batch stays"


@pytest.mark.parametrize("method", TRAINED)
def test_an_interrupted_training_ends_with_the_same_weights(method, tmp_path, monkeypatch):
    overrides = {"epochs": 6, "batch_size": 4, "views": 2, "warmup_epochs": 1}
    overrides |= {"ratio": 0.5} if method == "clip_adapter" else {"alpha": 2.0, "beta": 3.0} if "tip" in method else {}
    overrides |= {"prompt_depth": 2} if method == "maple" else {}

    def fit(**more):
        classifier = tiny_classifier()
        shots = shots_of(2, views=2) if method in ON_FEATURES else shots_for(method, classifier, 2)
        return fit_adapter(classifier, method, shots, overrides=overrides, seed=2, **more)

    whole = fit()
    monkeypatch.setattr(training_module, "SAVE_EVERY_SECONDS", 0.0)

    def interrupt(label, done, epochs):
        if label == "final" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(state_folder=tmp_path, on_epoch=interrupt)
    folds = 2 if method in ON_FEATURES else 0  # trained before, to measure the adapter
    assert len(list(tmp_path.glob("*fold-?.safetensors"))) == folds and (tmp_path / "final.safetensors").is_file()
    epochs = []
    resumed = fit(state_folder=tmp_path, on_epoch=lambda label, done, total: epochs.append((label, done)))
    assert epochs == [("final", 5), ("final", 6)] and resumed.curve == whole.curve
    assert resumed.validation == whole.validation
    one, two = tensors_of(whole), tensors_of(resumed)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_torn_state_is_ignored(tmp_path, caplog):
    path = tmp_path / "final.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0torn")
    fitted = fit_adapter(tiny_classifier(), "clip_adapter", shots_of(1), overrides=SHORT, state_folder=tmp_path)
    assert len(fitted.curve) == 3 and "ignored" in caplog.text and str(path) in caplog.text
    assert TrainingState(tmp_path / "none").load([torch.nn.Parameter(torch.zeros(1))], None) == []


def test_the_loop_computes_what_trainer_computes(tmp_path):
    from peft import get_peft_model_state_dict
    from transformers import Trainer, TrainingArguments

    from hf_clip_variants.adapters import CLIPAdapterConfig

    images = cached(2, views=3)
    values, _ = apply_overrides(
        few_shot_method("clip_adapter"),
        recipe("clip_adapter", 2),
        {
            "optimizer": "adamw",
            "schedule": "constant",
            "learning_rate": 0.01,
            "epochs": 4,
            "batch_size": 100,
            "warmup_epochs": 0,
            "views": 3,
        },
    )
    ends = []
    for loop in ("ours", "trainer"):
        torch.manual_seed(0)
        from peft import get_peft_model

        model = get_peft_model(tiny_classifier(), CLIPAdapterConfig(ratio=0.5))
        if loop == "ours":
            train_adapter(
                model, images, values.make_optimizer, values.learning_rate_at, epochs=4, batch_size=100, seed=0
            )
        else:
            arguments = TrainingArguments(
                tmp_path,
                num_train_epochs=4,
                per_device_train_batch_size=100,
                learning_rate=0.01,
                weight_decay=values.weight_decay,
                lr_scheduler_type="constant",
                max_grad_norm=0.0,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                remove_unused_columns=False,
                label_names=["labels"],
            )
            data = FeatureDataset(Features(images.all_features(), images.labels), seed=0)
            Trainer(model, arguments, train_dataset=data).train()
        ends.append(get_peft_model_state_dict(model))
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-6) for name in ends[0])


@pytest.mark.parametrize("method", sorted(set(FEW_SHOT_METHODS) - set(ON_FEATURES)))
def test_methods_that_train_the_image_encoder_refuse_cached_features(method):
    with pytest.raises(ValueError, match="trains the image encoder"):
        fit_adapter(tiny_classifier(), method, shots_of(1))


def test_a_new_descriptor_can_be_fitted(monkeypatch):
    from dataclasses import replace

    def fit_text_adapter(fit):
        from hf_clip_variants.adapters import CLIPAdapterConfig

        return fit.train_best([CLIPAdapterConfig(modality="text", **fit.config)])[0], {}

    row = replace(FEW_SHOT_METHODS["clip_adapter"], name="text_adapter", fit=fit_text_adapter)
    monkeypatch.setattr(fitting_module, "few_shot_method", {"text_adapter": row}.__getitem__)
    fitted = fit_adapter(
        tiny_classifier(), "text_adapter", shots_of(1), recipe_values=recipe("clip_adapter", 1), overrides=SHORT
    )
    assert len(fitted.curve) == 3 and fitted.curve[-1] < fitted.curve[0]


@pytest.mark.parametrize("class_specific", [False, True])
def test_consecutive_adapters_do_not_share_class_features(class_specific):
    """Tensors of equal shape and equally many updates: the cache of class features must tell them apart."""
    classifier, overrides = (
        tiny_classifier(),
        SHORT | {"learning_rate": 0.5, "class_specific": class_specific, "context_init": "a photo of a"},
    )
    asked = cached(1, seed=7)
    for count in (1, 2, 1):
        fitted = fit_adapter(
            classifier, "coop", shots_of(count), overrides=overrides | {"batch_size": 100}, seed=count
        )
        alone = fit_adapter(
            tiny_classifier(), "coop", shots_of(count), overrides=overrides | {"batch_size": 100}, seed=count
        )
        assert torch.equal(predict(fitted.model, asked)[1], predict(alone.model, asked)[1])
        fitted.unload()
