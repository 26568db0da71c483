"""Linear probe and nearest neighbours on small arrays: against scikit-learn and against loops."""

import math
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.utils._python_dispatch import TorchDispatchMode

from hf_clip_variants.data.held_out import hold_out
from hf_clip_variants.evaluation import probes
from hf_clip_variants.evaluation.probes import knn_classify, linear_probe


def blobs(count: int, classes, width: int = 5, noise: float = 1.6, seed: int = 0):
    """Overlapping clouds: (count, width) float32 features and their labels, the same clouds for every seed."""
    centres = np.random.default_rng(99).normal(size=(len(classes), width))
    generator = np.random.default_rng(seed)
    places = generator.integers(0, len(classes), count)
    places[: len(classes)] = range(len(classes))
    features = centres[places] + noise * generator.normal(size=(count, width))
    return torch.from_numpy(features).float(), torch.tensor(classes)[places]


def by_loops(train, labels, test, k, temperature) -> list[int]:
    """The documented formula in plain loops."""
    predicted = []
    keys = [row / max(row.norm().item(), 1e-12) for row in train]
    for query in test:
        query = query / max(query.norm().item(), 1e-12)
        similarity = [float(query @ key) for key in keys]
        nearest = sorted(range(len(keys)), key=lambda row: (-similarity[row], row))[:k]
        votes: dict[int, float] = {}
        for row in nearest:
            label = int(labels[row])
            votes[label] = votes.get(label, 0.0) + math.exp(similarity[row] / temperature)
        predicted.append(min(votes, key=lambda label: (-votes[label], label)))
    return predicted


# ------------------------------------------------------------------------------------------------------ linear probe


@pytest.mark.parametrize("classes", [[0, 1, 2], [3, 40, -7, 12], [5, 2]])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 300.0])
def test_a_given_strength_is_the_inverse_of_scikit_learns_c(classes, strength):
    train, labels = blobs(80, classes)
    test, _ = blobs(200, classes, seed=1)
    probe = linear_probe(train, labels, test, strength=strength)
    theirs = LogisticRegression(C=1 / strength, max_iter=1000).fit(train.double().numpy(), labels.numpy())
    assert probe.predicted.tolist() == theirs.predict(test.double().numpy()).tolist()
    assert probe.predicted.dtype == torch.int64 and set(probe.predicted.tolist()) <= set(classes)
    assert (probe.strength, probe.converged, probe.validation, probe.validation_size) == (strength, True, {}, 0)
    assert probe.iterations == int(theirs.n_iter_[0])


def test_the_strength_changes_the_classifier():
    train, labels = blobs(80, [0, 1, 2])
    test, _ = blobs(200, [0, 1, 2], seed=1)
    weak, strong = (linear_probe(train, labels, test, strength=s).predicted for s in (1e-3, 300.0))
    assert 0 < (weak != strong).sum() < 200


def test_the_search_chooses_on_held_out_images_and_fits_on_all():
    train, labels = blobs(120, [4, 1, 9])
    test, _ = blobs(300, [4, 1, 9], seed=1)
    probe = linear_probe(train, labels, test, seed=3)
    held = np.zeros(120, dtype=bool)
    held[hold_out(labels, [str(row) for row in range(120)], 0.2, 3)[1]] = True
    assert probe.validation_size == held.sum() and 0.15 < held.mean() < 0.25
    x, y = train.double().numpy(), labels.numpy()
    scores = {}
    for strength, accuracy in probe.validation.items():
        model = LogisticRegression(C=1 / strength, max_iter=1000).fit(x[~held], y[~held])
        assert accuracy == model.score(x[held], y[held])
        right = np.searchsorted(model.classes_, y[held])
        scores[strength] = (accuracy, model.predict_log_proba(x[held])[np.arange(len(right)), right].mean())
    assert probe.strength == max(scores, key=scores.get)
    on_all = LogisticRegression(C=1 / probe.strength, max_iter=1000).fit(x, y)
    assert probe.predicted.tolist() == on_all.predict(test.double().numpy()).tolist()
    assert (probe.predicted != torch.from_numpy(model.predict(test.double().numpy()))).any(), (
        "the test tells them apart"
    )
    again = linear_probe(train, labels, test, seed=3)
    assert again.validation == probe.validation and again.strength == probe.strength
    assert linear_probe(train, labels, test, seed=4).validation != probe.validation


@pytest.mark.parametrize("peak", [-6.0, -3.625, 0.0, 0.125, 2.5, 6.0])
def test_the_search_tries_the_papers_strengths(peak):
    asked = []

    def score(strength):
        asked.append(math.log10(strength))
        return -abs(math.log10(strength) - peak), 0.0

    strength, tried = probes._sweep(score)
    assert math.log10(strength) == pytest.approx(peak), "eighths of a decade are all reached"
    assert asked[:7] == pytest.approx([-6, -4, -2, 0, 2, 4, 6])
    assert len(asked) == len(set(asked)) <= 15 and max(map(abs, asked)) <= 6 + 1e-9
    assert list(tried) == sorted(tried) and len(tried) == len(asked)
    assert [8 * place for place in asked] == pytest.approx([round(8 * place) for place in asked])


def test_ties_are_broken_by_the_second_score_then_by_the_larger_strength():
    assert probes._sweep(lambda strength: (1.0, 0.0))[0] == pytest.approx(1e6)
    assert probes._sweep(lambda strength: (1.0, -abs(math.log10(strength) + 2)))[0] == pytest.approx(1e-2)
    assert probes._sweep(lambda strength: (float(strength < 1e-3), math.log10(strength)))[0] == pytest.approx(
        10**-3.125
    )


def test_one_image_per_class_needs_a_given_strength():
    features, labels = torch.eye(3), [0, 1, 2]
    with pytest.raises(ValueError, match="strength: no class has two training images.*give a strength"):
        linear_probe(features, labels, features)
    assert linear_probe(features, labels, features, strength=0.1).predicted.tolist() == labels


def test_a_fit_that_did_not_converge_is_reported(recwarn):
    train, labels = blobs(80, [0, 1, 2])
    probe = linear_probe(train, labels, train, strength=1e-6, max_iterations=2)
    assert not probe.converged and probe.iterations == 2 and not recwarn.list, "told once, not also warned of"


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'linear_probe needs sklearn: pip install "hf-clip-variants\[probe\]"'):
        linear_probe(torch.eye(2), [0, 1], torch.eye(2))
    assert knn_classify(torch.eye(2), [0, 1], torch.eye(2), k=1).tolist() == [0, 1], "needs nothing"


# ------------------------------------------------------------------------------------------------ nearest neighbours


@pytest.mark.parametrize("k", [1, 2, 7, 20, 90])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_equals_a_loop_over_the_formula(k, temperature):
    train, labels = blobs(90, [3, 40, -7, 12])
    test, _ = blobs(60, [3, 40, -7, 12], seed=1)
    predicted = knn_classify(train, labels, test, k=k, temperature=temperature)
    assert predicted.tolist() == by_loops(train, labels, test, k, temperature) and predicted.dtype == torch.int64


@pytest.mark.parametrize("k", range(1, 13))
def test_ties_go_to_the_earlier_image_and_the_lower_label(k):
    """Unit axes: every similarity is exactly 0, 1 or -1, so nearly all of them tie."""
    generator = np.random.default_rng(k)
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    train = axes[generator.integers(0, 6, 12)]
    labels = torch.from_numpy(generator.integers(0, 4, 12)) * 5 - 3
    labels[:2] = torch.tensor([2, 7])
    assert knn_classify(train, labels, axes, k=k).tolist() == by_loops(train, labels, axes, k, 0.07)


def test_ties_of_two_neighbours_are_broken_as_documented():
    one, other = [1.0, 0.0], [0.0, 1.0]
    query = torch.tensor([one])
    assert knn_classify(torch.tensor([one, one, other]), [9, 2, 5], query, k=1).tolist() == [9], "the earlier image"
    assert knn_classify(torch.tensor([one, one, other]), [9, 2, 5], query, k=2).tolist() == [2], "the lower label"
    assert knn_classify(torch.tensor([other, one, one]), [5, 2, 9], query, k=1).tolist() == [2]


@pytest.mark.parametrize("k", [1, 5])
def test_features_are_normalised_and_a_zero_feature_has_similarity_0(k):
    train, labels = blobs(40, [0, 1, 2])
    test, _ = blobs(20, [0, 1, 2], seed=1)
    predicted = knn_classify(train, labels, test, k=k)
    scales = torch.rand(40, 1, generator=torch.Generator().manual_seed(0)) + 0.1
    assert torch.equal(knn_classify(train * scales, labels, test * 7, k=k), predicted)
    assert knn_classify(train, labels, torch.zeros(1, 5), k=k).tolist() == by_loops(
        train, labels, torch.zeros(1, 5), k, 0.07
    )


def test_votes_are_finite_at_any_temperature():
    train, labels = blobs(60, [0, 1, 2])
    test, _ = blobs(40, [0, 1, 2], seed=1)
    nearest = knn_classify(train, labels, test, k=1)
    assert torch.equal(knn_classify(train, labels, test, k=60, temperature=1e-6), nearest), "exp(1 / T) overflows"
    labels = [4] * 15 + [1] * 20 + [2] * 25
    assert knn_classify(train, labels, test, k=60, temperature=1e9).tolist() == [2] * 40, "a plain majority"


class LargestTensor(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def test_chunks_give_the_same_result():
    train, labels = blobs(90, [0, 1, 2])
    test, _ = blobs(101, [0, 1, 2], seed=1)
    whole = knn_classify(train, labels, test)
    for chunk_size in (1, 7, 100, 101, 1000):
        with LargestTensor() as mode:
            assert torch.equal(knn_classify(train, labels, test, chunk_size=chunk_size), whole)
        features = 101 * 5
        assert mode.largest <= max(features, min(chunk_size, 101) * 90)


def test_a_chunk_has_a_bounded_number_of_similarities(monkeypatch):
    train, labels = blobs(90, [0, 1, 2])
    test, _ = blobs(101, [0, 1, 2], seed=1)
    monkeypatch.setattr(probes, "CHUNK_SIMILARITIES", 900)
    with LargestTensor() as mode:
        knn_classify(train, labels, test)
    assert mode.largest <= 900


# ------------------------------------------------------------------------------------------------------------ errors


GOOD = {"train_features": torch.eye(4), "train_labels": [0, 0, 1, 1], "test_features": torch.eye(4)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_labels": [2, 2, 2, 2]}, r"train_labels: one class only \(2\)"),
        ({"train_labels": [0, 1, 1]}, r"train_labels: got .*\(3,\); want integers of shape \(4,\)"),
        ({"train_labels": [0.0, 1.0, 1.0, 0.0]}, "train_labels: got torch.float32"),
        ({"test_features": torch.ones(2, 3)}, "test_features: got width 3; want that of train_features, 4"),
        ({"test_features": torch.ones(0, 4)}, "test_features: got .* shape"),
        ({"train_features": torch.ones(4)}, r"train_features: got .*\(4,\); want floats of shape \(images, width\)"),
        ({"train_features": torch.ones(4, 4, dtype=torch.long)}, "train_features: got torch.int64"),
        (
            {"train_features": torch.eye(4).index_fill(0, torch.tensor([2]), float("nan"))},
            r"train_features\[2\]: not f",
        ),
        (
            {"test_features": torch.eye(4).index_fill(0, torch.tensor([1, 3]), math.inf)},
            r"test_features\[1\]: not finite",
        ),
    ],
)
@pytest.mark.parametrize("function", [linear_probe, knn_classify])
def test_wrong_arrays_are_named(function, change, words):
    with pytest.raises(ValueError, match=words):
        function(**GOOD | change)


@pytest.mark.parametrize(
    ("function", "option", "words"),
    [
        (knn_classify, {"k": 5}, "k: got 5; want 1..4, as there are 4 training images"),
        (knn_classify, {"k": 0}, "k: got 0"),
        (knn_classify, {"k": 2, "temperature": 0.0}, "temperature: got 0.0"),
        (knn_classify, {"k": 2, "temperature": math.nan}, "temperature: got nan"),
        (knn_classify, {"k": 2, "chunk_size": 0}, "chunk_size: got 0"),
        (linear_probe, {"strength": 0.0}, "strength: got 0.0"),
        (linear_probe, {"strength": -1.0}, "strength: got -1.0"),
        (linear_probe, {"strength": math.inf}, "strength: got inf"),
        (linear_probe, {"held_out": 1.0}, "held_out: got 1.0"),
        (linear_probe, {"max_iterations": 0}, "max_iterations: got 0"),
    ],
)
def test_values_out_of_range_are_named(function, option, words):
    with pytest.raises(ValueError, match=words):
        function(**GOOD, **option)


def test_half_precision_and_numpy_arrays_are_accepted():
    train, labels = blobs(80, [0, 1, 2])
    test, _ = blobs(40, [0, 1, 2], seed=1)
    for half in (torch.float16, torch.bfloat16):
        rounded = train.to(half), labels, test.to(half)
        full = train.to(half).float(), labels, test.to(half).float()
        assert torch.equal(knn_classify(*rounded), knn_classify(*full))
        assert torch.equal(linear_probe(*rounded, strength=1.0).predicted, linear_probe(*full, strength=1.0).predicted)
    arrays = train.numpy(), labels.numpy(), test.numpy()
    assert torch.equal(knn_classify(*arrays), knn_classify(train, labels, test))
