"""`adapt` after a kill: called again, it gives the results of an uninterrupted run, bit for bit."""

import signal

import pytest
from few_shot_runs import adapter_files, comparable, results_of, save_images, save_tiny_clip
from killing import run_and_kill

from hf_clip_variants.few_shot import training_loop as training_module
from hf_clip_variants.few_shot.adapt import adapt


pytestmark = pytest.mark.slow

METHODS = ["tip_adapter", "tip_adapter_f", "coop"]
OVERRIDES = {"epochs": 3, "augmentation": "tip", "views": 2, "cache_views": 2, "search_step": [4, 4]}
SETTINGS = {"methods": METHODS, "shots": [1, 2], "seeds": [1], "profile": "published", "progress": False}
SETTINGS |= {"report": False, "overrides": OVERRIDES | {"num_context_tokens": 4}}
KILLS = 12  # spread over all writes of a run


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    data = save_images(folder / "data", {"train": ["fluentflat", "emojione"], "test": ["notov1"]})
    return save_tiny_clip(folder / "clip"), str(data)


def run_in_child(sources, run, nth=None) -> int:
    def action():
        training_module.SAVE_EVERY_SECONDS = 0.0  # every epoch is kept, so kills fall into trainings, too
        adapt(*sources, run, **SETTINGS)

    return run_and_kill(action, run, nth, timeout=120)


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    writes = run_in_child(sources, run)
    assert writes > 60
    return run, writes


def test_a_run_killed_at_any_write_gives_the_same_results(sources, whole, tmp_path):
    expected, writes = whole
    runs = len(METHODS) * 2
    finished = []
    for place in range(KILLS):
        run = tmp_path / f"run-{place}"
        nth = 1 + place * writes // KILLS
        assert run_in_child(sources, run, nth) == -signal.SIGKILL
        if (run / "results.json").exists():
            half = results_of(run)  # never torn
            finished.append(len(half["runs"]))
            assert half["status"] == "running"
            for record in half["runs"]:
                assert (run / record["folder"] / "adapter_model.safetensors").is_file()
        run_in_child(sources, run)
        assert comparable(results_of(run)) == comparable(results_of(expected))
        assert adapter_files(run) == adapter_files(expected)
        assert not (run / "work" / "unfinished").exists()
        kept = (".lock", ".gitignore")
        strangers = [path for path in run.rglob(".*") if not path.name.endswith(kept)]
        assert strangers == [], "temporary files of the killed process"
    assert min(finished) < 2 and max(finished) > runs - 3, "kills were early and late"


def test_a_run_killed_many_times_gives_the_same_results(sources, whole, tmp_path):
    """Each process is killed after a few more writes than one run needs, until one of them finishes."""
    expected, writes = whole
    run = tmp_path / "run"
    for _ in range(20):
        if run_in_child(sources, run, writes // 4) >= 0:
            break
    assert comparable(results_of(run)) == comparable(results_of(expected)) and adapter_files(run) == adapter_files(
        expected
    )
