"""Which run is recommended: what was validated, weighed against what is expected, zero-shot CLIP included."""

import pytest

from hf_clip_variants.few_shot.method import FEW_SHOT_METHODS, few_shot_method
from hf_clip_variants.few_shot.recommendation import (
    EXPECTED_SPREAD,
    MARGIN,
    VALIDATION_BIAS,
    ZERO_SHOT,
    estimated_gain,
    expected_gain,
    recommend,
)


def run(method="clap", gain=None, error=0.3, kind="cross-validation", standard_error=0.02, shots=4, seed=1):
    """A run as in results.json. `gain`: of the validation; None: nothing was measured."""
    measured = gain is not None
    validation = {
        "kind": kind if measured else "none",
        "accuracy": 0.5 + gain if measured else None,
        "zero_shot": 0.5 if measured else None,
        "standard_error": standard_error if measured else None,
    }
    about = {"method": method, "title": few_shot_method(method).title, "shots": shots, "seed": seed}
    folder = f"adapters/{method}/{shots}-shot/seed-{seed}"
    return about | {"zero_shot_error": error, "validation": validation, "folder": folder}


def test_validation_that_contradicts_keeps_zero_shot_clip():
    found = recommend([run("clap", -0.2), run("tip_adapter", -0.1), run("gda", -0.15)])
    assert (found["method"], found["shots"], found["seed"], found["folder"]) == (ZERO_SHOT, 0, 0, None)
    assert found["title"] == "zero-shot CLIP" and found["estimated_gain"] == 0
    assert [c["method"] for c in found["candidates"]] == [ZERO_SHOT, "tip_adapter", "gda", "clap"]
    assert all(c["estimated_gain"] < 0 for c in found["candidates"][1:])


def test_the_best_validated_method_is_recommended_with_its_run():
    runs = [run("clap", 0.1), run("tip_adapter", 0.25), run("gda", 0.05)]
    found = recommend(runs)
    assert (found["method"], found["shots"], found["seed"]) == ("tip_adapter", 4, 1)
    assert found["folder"] == "adapters/tip_adapter/4-shot/seed-1" and found["title"] == "Tip-Adapter"
    assert 0.1 < found["estimated_gain"] < 0.25 and found["standard_error"] < EXPECTED_SPREAD


@pytest.mark.parametrize("method", FEW_SHOT_METHODS)
def test_without_validation_the_expectation_decides(method):
    for error in (0.02, 0.5, 0.9):
        constant, slope = few_shot_method(method).expected_gain
        assert estimated_gain(run(method, error=error)) == (pytest.approx(constant + slope * error), EXPECTED_SPREAD)
        wanted = method if expected_gain(method, error) >= MARGIN else ZERO_SHOT
        assert recommend([run(method, error=error)])["method"] == wanted


def test_the_estimate_is_the_mean_weighed_by_precision():
    prior = expected_gain("clap", 0.3)
    for kind, bias in (("split", 0.0), ("leave-one-out", VALIDATION_BIAS), ("cross-validation", VALIDATION_BIAS)):
        gain, error = estimated_gain(run("clap", 0.2, kind=kind, standard_error=0.05))
        precisions = 1 / EXPECTED_SPREAD**2, 1 / (0.05**2 + bias**2)
        expected = (prior * precisions[0] + 0.2 * precisions[1]) / sum(precisions)
        assert gain == pytest.approx(expected) and error == pytest.approx(sum(precisions) ** -0.5)


def test_a_validation_split_counts_for_more_than_shots_left_out():
    estimates = [estimated_gain(run("clap", 0.3, kind=kind))[0] for kind in ("split", "cross-validation")]
    assert estimates[0] > estimates[1]
    sure, unsure = (estimated_gain(run("clap", 0.3, standard_error=e))[0] for e in (0.01, 0.2))
    assert sure > unsure > expected_gain("clap", 0.3)


def test_seeds_are_averaged_and_the_best_run_stands_for_the_method():
    lucky = [run("tip_adapter", 0.3, seed=1), run("tip_adapter", -0.3, seed=2)]
    steady = [run("clap", 0.1, seed=1), run("clap", 0.12, seed=2)]
    found = recommend(lucky + steady)
    assert (found["method"], found["seed"]) == ("clap", 2)
    mean = sum(estimated_gain(r)[0] for r in steady) / 2
    assert found["estimated_gain"] == pytest.approx(mean)


def test_only_runs_with_the_most_shots_are_candidates():
    found = recommend([run("clap", 0.4, shots=1), run("gda", 0.1, shots=4), run("tip_adapter", 0.3, shots=2)])
    assert (found["method"], found["shots"]) == ("gda", 4) and len(found["candidates"]) == 2


def test_ties_go_to_the_first_method_and_small_gains_to_zero_shot_clip():
    one, two = run("clap", 0.1, seed=1), run("clap", 0.1, seed=2)
    assert recommend([one, two])["seed"] == 1
    small = [run("gda", gain, kind="split", standard_error=1e-6) for gain in (MARGIN * 0.9, MARGIN * 1.1)]
    assert [recommend([r])["method"] for r in small] == [ZERO_SHOT, "gda"]
    assert recommend(small[:1])["candidates"][0]["method"] == "gda", "the estimates are shown as they are"


def test_without_runs_zero_shot_clip_is_recommended():
    found = recommend([])
    assert found["method"] == ZERO_SHOT and [c["method"] for c in found["candidates"]] == [ZERO_SHOT]
