"""The linear head: what the contract of all adapters does not test. GDA's formula and its leave-one-out logits."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from adapter_models import tiny_classifier
from peft import PeftModel, get_peft_model
from tiny import CLASS_NAMES, tiny_clip, tiny_pixels, tiny_tokenizer

from hf_clip_variants.adapters import LinearHeadConfig
from hf_clip_variants.adapters.linear_head.few_shot import pull_of, pulled_weights
from hf_clip_variants.adapters.linear_head.gaussian import gaussian_classifier, leave_one_out_logits
from hf_clip_variants.data import Features
from hf_clip_variants.data.images.labelled_images import CachedImages
from hf_clip_variants.few_shot.evidence import evidence_of
from hf_clip_variants.few_shot.fitting import Shots, fit_adapter, measure, validation_folds


WIDTH = 24


def embeddings(counts, width=WIDTH, seed=0, spread=0.7):
    """Unit vectors around one centre a class, shuffled, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = torch.randn(len(counts), width, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(len(labels), width, generator=generator)
    return F.normalize(centres[labels] + spread * noise, dim=1), labels


def naive_gaussian(embeds, labels, classes):
    """Wang et al. 2024, equations 4 to 6, written out: loops, an inverse, and torch's covariance."""
    x = embeds.double()
    means = torch.stack([x[labels == c].mean(0) for c in range(classes)])
    residuals = torch.stack([row - means[label] for row, label in zip(x, labels.tolist(), strict=True)])
    count, width = x.shape
    covariance = torch.zeros(width, width, dtype=torch.float64)
    for row in residuals:
        covariance += torch.outer(row, row) / (count - 1)
    shrunk = (count - 1) * covariance + covariance.trace() * torch.eye(width, dtype=torch.float64)
    precision = width * torch.linalg.inv(shrunk)
    weight = means @ precision
    prior = torch.tensor(1 / classes, dtype=torch.float64)
    return weight, torch.stack([prior.log() - 0.5 * mean @ precision @ mean for mean in means])


@pytest.mark.parametrize(
    ("counts", "width"),
    [([3, 3, 3], 24), ([4, 2, 7, 2], 24), ([30, 25], 8), ([2, 2], 24), ([1, 5, 3], 24)],
)
def test_weights_and_bias_equal_the_written_out_formula(counts, width):
    embeds, labels = embeddings(counts, width)
    expected = naive_gaussian(embeds, labels, len(counts))
    for found, wanted in zip(gaussian_classifier(embeds, labels, len(counts)), expected, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_with_one_image_a_class_the_covariance_is_that_around_the_mean_of_all():
    embeds, labels = embeddings([1, 1, 1, 1])
    weight, bias = gaussian_classifier(embeds, labels, 4)
    order = labels.argsort()
    together = naive_gaussian(embeds, torch.zeros(4, dtype=torch.int64), 1)  # one class: around its mean
    x, residuals = embeds.double(), embeds.double() - embeds.double().mean(0)
    scatter = residuals.t() @ residuals
    precision = WIDTH * torch.linalg.inv(scatter + scatter.trace() / 3 * torch.eye(WIDTH, dtype=torch.float64))
    torch.testing.assert_close(together[0][0], precision @ x.mean(0))
    torch.testing.assert_close(weight.double(), x[order] @ precision, rtol=1e-5, atol=1e-4)
    quadratic = ((x[order] @ precision) * x[order]).sum(1)
    torch.testing.assert_close(bias.double(), -torch.tensor(4.0).double().log() - quadratic / 2, rtol=1e-5, atol=1e-4)
    assert torch.equal((embeds @ weight.t() + bias).argmax(1), labels)


@pytest.mark.parametrize(
    ("counts", "width"),
    [
        ([3, 3, 3], 24),
        ([2, 5, 3, 2], 24),
        ([1, 4, 2], 24),  # a class with one image
        ([30, 40, 20], 8),  # more images than dimensions
        ([2, 2], 24),
        ([20, 7], 4),
        ([2, 1], 24),  # without one of the pair, every class has one image
        ([1, 2, 1], 24),
    ],
)
def test_leave_one_out_logits_equal_fits_without_each_image(counts, width):
    embeds, labels = embeddings(counts, width)
    found = leave_one_out_logits(embeds, labels, len(counts))
    assert found.dtype == torch.float32 and found.shape == (len(labels), len(counts))
    for row, label in enumerate(labels.tolist()):
        others = torch.arange(len(labels)) != row
        weight, bias = gaussian_classifier(embeds[others].double(), labels[others], len(counts))
        expected = weight @ embeds[row].double() + bias
        if counts[label] == 1:
            assert found[row, label] == -torch.inf
            keep = torch.arange(len(counts)) != label
        else:
            keep = torch.ones(len(counts), dtype=torch.bool)
        torch.testing.assert_close(
            found[row, keep].double(), expected[keep], rtol=1e-4, atol=1e-5 * float(expected[keep].abs().max())
        )


def test_leaving_one_out_is_less_flattering_than_the_images_themselves():
    embeds, labels = embeddings([3] * 6, spread=1.6)
    weight, bias = gaussian_classifier(embeds, labels, 6)
    seen = ((embeds @ weight.t() + bias).argmax(1) == labels).float().mean()
    left_out = (leave_one_out_logits(embeds, labels, 6).argmax(1) == labels).float().mean()
    assert seen == 1 and 1 / 6 < left_out < 0.95


def test_one_image_of_each_class_cannot_be_left_out():
    with pytest.raises(ValueError, match="labels: one image of each class; want two or more of some class"):
        leave_one_out_logits(*embeddings([1, 1, 1]), 3)


def features_and_labels(seed=0):
    embeds, labels = embeddings([4] * 5, seed=seed)
    return embeds * torch.linspace(1, 9, len(labels))[:, None], labels  # of any length


def adapted(**config) -> PeftModel:
    return get_peft_model(tiny_classifier(), LinearHeadConfig(**config))


def test_a_fitted_head_adds_the_gaussians_logits_to_zero_shot_clip():
    model, (features, labels) = adapted(alpha=0.3), features_and_labels()
    model.base_model.fit_gaussian(features, labels)
    asked = features_and_labels(seed=1)[0]
    base = tiny_classifier()(image_features=asked)
    weight, bias = naive_gaussian(F.normalize(features, dim=1), labels, 5)
    expected = base.logits + 0.3 * (F.normalize(asked, dim=1).double() @ weight.t() + bias)
    torch.testing.assert_close(model(image_features=asked).logits, expected.float(), rtol=1e-4, atol=1e-2)
    views = torch.stack([features, 5 * features])
    again = adapted(alpha=0.3)
    again.base_model.fit_gaussian(views, labels)  # views of one direction: the same embeddings
    torch.testing.assert_close(again(image_features=asked).logits, model(image_features=asked).logits)


def test_the_gaussians_separate_what_zero_shot_clip_confuses():
    model, (features, labels) = adapted(), features_and_labels()
    model.base_model.fit_gaussian(features, labels)
    asked, about = features_and_labels(seed=1)
    with model.disable_adapter():
        before = (model(image_features=asked).logits.argmax(1) == about).float().mean()
    after = (model(image_features=asked).logits.argmax(1) == about).float().mean()
    assert after > 0.9 > before + 0.3, (before, after)


def test_cached_images_vote_as_the_formula_says():
    features, labels = features_and_labels()
    keys, model = F.normalize(features, dim=1), adapted(gamma=2.5, beta=3.0)
    model.base_model.head.set_cache("default", keys, labels)
    asked = features_and_labels(seed=1)[0]
    votes = torch.exp(-3.0 * (1 - F.normalize(asked, dim=1) @ keys.t())) @ F.one_hot(labels, 5).float()
    expected = tiny_classifier()(image_features=asked).logits + 2.5 * votes
    torch.testing.assert_close(model(image_features=asked).logits, expected, rtol=1e-5, atol=1e-4)
    assert model.peft_config["default"].cache_size == len(labels)


def test_a_new_head_is_zero_shot_clip_and_training_starts_there(tmp_path):
    from transformers import Trainer, TrainingArguments

    features, labels = features_and_labels()
    expected = tiny_classifier()(image_features=features).logits
    model = adapted(trainable=True)
    assert torch.equal(model(image_features=features).logits, expected)
    names = ["weight", "bias"]
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        f"base_model.model.logit_head.clipv_linear_head_{name}.default" for name in names
    ]
    arguments = TrainingArguments(
        tmp_path / "run",
        max_steps=30,
        per_device_train_batch_size=20,
        learning_rate=0.5,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
        label_names=["labels"],
    )
    rows = [{"image_features": f, "labels": label} for f, label in zip(features, labels, strict=True)]
    Trainer(model, arguments, train_dataset=rows).train()
    model.eval()
    assert (model(image_features=features).logits.argmax(1) == labels).float().mean() > 0.9
    with model.disable_adapter():
        assert torch.equal(model(image_features=features).logits, expected)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_classifier(), tmp_path / "adapter")
    assert torch.equal(loaded(image_features=features).logits, model(image_features=features).logits)
    with pytest.raises(ValueError, match="CLIPV_LINEAR_HEAD cannot be merged.*it adds to logits"):
        model.merge_and_unload()


def test_what_does_not_fit_is_refused_and_changes_nothing():
    model, (features, labels) = adapted(), features_and_labels()
    before = model(image_features=features).logits
    for given, about, message in (
        (features[:, :9], labels, r"features: got \(20, 9\), expected \(20, 24\) for 20 labels"),
        (features[:9], labels, r"features: got \(9, 24\)"),
        (features * torch.nan, labels, "features: not finite"),
        (features, labels + 1, r"labels: 5 is outside 0\.\.4"),
        (features, labels.float(), "labels: expected integers"),
        (features, labels.clamp_max(3), r"labels: 1 of 5 classes have no image: \['red apple'\]$"),
    ):
        with pytest.raises(ValueError, match=message):
            model.base_model.fit_gaussian(given, about)
    with pytest.raises(ValueError, match=r"weight: got shape \(4, 24\), expected \(5, 24\)"):
        model.base_model.head.set_head("default", torch.zeros(4, 24), torch.zeros(4))
    with pytest.raises(ValueError, match="bias: not finite"):
        model.base_model.head.set_head("default", torch.ones(5, 24), torch.full((5,), torch.inf))
    assert torch.equal(model(image_features=features).logits, before)


def test_a_cache_that_does_not_fit_is_refused():
    model = adapted(gamma=1.0)
    for keys, labels, message in (
        (torch.zeros(3, 9), torch.arange(3), r"keys: got shape \(3, 9\), expected \(3, 24\) for 3 labels"),
        (torch.zeros(3, 24), torch.arange(4), r"keys: got shape \(3, 24\), expected \(4, 24\)"),
        (torch.full((1, 24), torch.nan), torch.arange(1), "keys: not finite"),
        (torch.zeros(3, 24), torch.tensor([0, 1, 5]), r"labels: 5 is outside 0\.\.4"),
    ):
        with pytest.raises(ValueError, match=message):
            model.base_model.head.set_cache("default", keys, labels)
    assert model.peft_config["default"].cache_size is None


def test_the_classes_of_a_head_cannot_be_changed(tmp_path):
    model = adapted()
    with pytest.raises(ValueError, match=r"has weights for each of its classes, but the classes differ: added"):
        model.get_base_model().set_classes([*CLASS_NAMES, "owl"])
    prompts = tiny_tokenizer()(["an owl", "a cat"], padding=True, return_tensors="pt").input_ids
    with pytest.raises(ValueError, match="has weights for 5 classes, but the classifier is asked for 2"):
        model(pixel_values=tiny_pixels(), input_ids=prompts)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"class_names: .*removed \['red apple'\]"):
        PeftModel.from_pretrained(tiny_classifier(class_names=CLASS_NAMES[:-1]), tmp_path)


def test_needs_a_classifier_with_classes_and_numbers_that_make_sense():
    with pytest.raises(ValueError, match="CLIPV_LINEAR_HEAD adds to logits, which a plain CLIPModel computes inside"):
        get_peft_model(tiny_clip(), LinearHeadConfig())
    with pytest.raises(ValueError, match="class_names: the classifier has no classes"):
        get_peft_model(tiny_classifier(class_names=None), LinearHeadConfig())
    with pytest.raises(ValueError, match="num_classes: 7, the classifier has 5"):
        get_peft_model(tiny_classifier(), LinearHeadConfig(num_classes=7))
    for name in ("alpha", "gamma", "beta"):
        with pytest.raises(ValueError, match=f"{name}: -1"):
            LinearHeadConfig(**{name: -1})
    with pytest.raises(ValueError, match="alpha: inf"):
        LinearHeadConfig(alpha=float("inf"))


# ---- the fits of `few_shot.py`


def images(counts, seed=0, spread=0.7):
    embeds, labels = embeddings(counts, seed=seed, spread=spread)
    return CachedImages(Features(embeds[None] * 3, labels))


def fitted(method, counts=(3, 3, 3, 3, 3), validation=None, spread=0.7, **overrides):
    shots = images(list(counts), spread=spread)
    return fit_adapter(tiny_classifier(), method, Shots(shots, shots), validation, overrides=overrides)


def evidence(counts=(3, 3, 3, 3, 3), spread=0.7):
    return evidence_of(tiny_classifier(), images(list(counts), spread=spread))


def test_gda_is_validated_by_leaving_out_each_image():
    found, about = fitted("gda", (1, 2, 4, 3, 2), spread=2.0), evidence((1, 2, 4, 3, 2), spread=2.0)
    alpha = found.model.peft_config["default"].alpha
    assert found.hyperparameters["alpha"] == alpha > 0 and found.trained_parameters == 0
    head = found.model.base_model.head
    for name, expected in zip(
        ("weight", "bias"), gaussian_classifier(about.image_embeds, about.labels, 5), strict=True
    ):
        torch.testing.assert_close(
            getattr(head, f"clipv_linear_head_{name}")["default"], expected, rtol=1e-4, atol=1e-4
        )
    logits = []
    for row in range(12):
        others = torch.arange(12) != row
        weight, bias = gaussian_classifier(about.image_embeds[others], about.labels[others], 5)
        logits.append(about.logits[row] + alpha * (weight @ about.image_embeds[row] + bias))
    asked = about.labels != 0  # the only image of its class is not asked about
    expected = measure("leave-one-out", torch.stack(logits)[asked], about.labels[asked], about.logits[asked])
    assert found.validation == expected and expected.images == 11


def test_gdas_weight_is_searched_for_on_a_validation_split():
    split = images([4] * 5, seed=3, spread=2.0)
    found = fitted("gda", validation=split, spread=2.0)
    head, about = found.model.base_model.head, evidence_of(tiny_classifier(), split)
    weight, bias = (getattr(head, f"clipv_linear_head_{name}")["default"] for name in ("weight", "bias"))
    linear = about.image_embeds @ weight.t() + bias

    def right(alpha):
        return int(((about.logits + alpha * linear).argmax(1) == about.labels).sum())

    alpha = found.hyperparameters["alpha"]
    assert found.validation.kind == "split" and found.validation.accuracy == pytest.approx(right(alpha) / 20)
    steps = [right(alpha * 2 ** (k / 2)) for k in range(-24, 25)]
    assert right(alpha) >= max(steps[12:37]) - 1 and right(alpha) > right(0), "near the best of a wide range"


@pytest.mark.parametrize("method", ["gda", "clap"])
def test_two_classes_and_classes_of_one_image_are_fitted(method):
    for counts in ([1, 1], [2, 1], [1, 3]):
        shots = images(counts)
        classifier = tiny_classifier(class_names=CLASS_NAMES[:2])
        found = fit_adapter(classifier, method, Shots(shots, shots))
        logits = found.model(**shots.batch(torch.arange(len(shots)), 0)).logits
        assert logits.isfinite().all() and 0 < found.model.peft_config["default"].alpha < 1e4
        asked = max(counts) if method == "gda" else min(max(counts), 2)  # two folds of one image
        assert found.validation.images == (asked if max(counts) > 1 else 0)


def test_claps_weights_are_the_minimum_of_its_loss():
    about = evidence()
    for pull in (0.05, 1.0, 20.0):
        weight = pulled_weights(about, pull).double().requires_grad_()
        logits = about.calibrated.double() + about.image_embeds.double() @ weight.t()
        loss = F.cross_entropy(logits, about.labels, reduction="sum") + pull * weight.square().sum()
        loss.backward()
        assert weight.grad.abs().max() < 2e-2, "the problem is convex: no gradient, no better weights"
        assert loss < F.cross_entropy(about.calibrated, about.labels, reduction="sum")
    assert pulled_weights(about, 1e6).abs().max() < 1e-4, "a strong pull gives zero-shot CLIP"


def test_clap_pulls_where_zero_shot_clip_is_right():
    about = evidence()
    right = replace(about, logits=9.0 * F.one_hot(about.labels, 5))
    wrong = replace(about, logits=9.0 * F.one_hot((about.labels + 1) % 5, 5))
    assert pull_of(right) > 100 * pull_of(wrong) > 0


def test_claps_model_gives_the_logits_of_its_fit():
    found, about = fitted("clap"), evidence()
    values = found.hyperparameters
    asked = images([2] * 5, seed=4)
    again = evidence_of(tiny_classifier(), asked)
    votes = (
        torch.exp(-about.beta * (1 - again.image_embeds @ about.image_embeds.t())) @ F.one_hot(about.labels, 5).float()
    )
    linear = again.image_embeds @ pulled_weights(about, pull_of(about)).t()
    expected = again.logits / about.temperature + linear + 0.6 * about.vote * votes
    logits = found.model(**asked.batch(torch.arange(10), 0)).logits
    torch.testing.assert_close(logits, expected * about.temperature, rtol=1e-3, atol=1e-3)
    assert values["pull"] == pytest.approx(pull_of(about)) and values["alpha"] == about.temperature
    assert found.trained_parameters == 5 * WIDTH + 5 and found.validation.kind == "cross-validation"


def test_claps_given_values_are_used_in_the_fit_and_in_its_validation():
    values = {"alpha": 3.0, "gamma": 2.0, "beta": 4.0, "pull": 0.5}
    found = fitted("clap", spread=2.0, **values)
    config = found.model.peft_config["default"]
    assert {name: found.hyperparameters[name] for name in values} == values
    assert (config.alpha, config.gamma, config.beta) == (3.0, 2.0, 4.0)
    shots = images([3] * 5, spread=2.0)
    logits, labels = [], []
    for fold in validation_folds(Shots(shots, shots), None, evidence(spread=2.0))[:2]:
        known, asked = fold.evidence, fold.query_evidence
        votes = (
            torch.exp(-4.0 * (1 - asked.image_embeds @ known.image_embeds.t())) @ F.one_hot(known.labels, 5).float()
        )
        logits.append(asked.logits + 3 * asked.image_embeds @ pulled_weights(known, 0.5).t() + 2 * votes)
        labels.append(asked.labels)
    right = (torch.cat(logits).argmax(1) == torch.cat(labels)).float().mean()
    assert found.validation.accuracy == pytest.approx(float(right)) and found.validation.images == 10
    alone = fitted("clap", gamma=0.0)
    assert alone.model.peft_config["default"].cache_size is None, "no votes, no cached images"
