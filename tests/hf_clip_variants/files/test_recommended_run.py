"""Reading what a run folder recommends."""

import json

import pytest

from hf_clip_variants.files.recommended_run import is_run_folder, recommended_adapter, recommended_run


RUNS = [
    {"method": "coop", "shots": 1, "folder": "adapters/coop/1-shot/seed-1", "accuracy": {"test": 0.5}},
    {"method": "coop", "shots": 4, "folder": "adapters/coop/4-shot/seed-1", "accuracy": {"test": 0.75}},
    {"method": "vpt", "shots": 4, "folder": None, "accuracy": {}, "error": "out of memory"},
]
CANDIDATES = [{"method": "vpt"}, {"method": "zero_shot"}, {"method": "coop"}]


def write(folder, recommended):
    results = {"status": "finished", "runs": RUNS, "zero_shot": {"accuracy": {"test": 0.625}}}
    results["recommended"] = recommended | {"candidates": CANDIDATES}
    (folder / "results.json").write_text(json.dumps(results))


def test_the_recommended_adapter_and_its_figures_beside_zero_shot_clips(tmp_path):
    assert not is_run_folder(tmp_path) and not is_run_folder(None)
    chosen = {"method": "coop", "title": "CoOp", "shots": 4, "seed": 1, "folder": RUNS[1]["folder"]}
    write(tmp_path, chosen)
    assert is_run_folder(tmp_path) and recommended_adapter(tmp_path) == tmp_path / RUNS[1]["folder"]
    assert str(recommended_run(tmp_path)) == "CoOp, 4 shots, seed 1: 75.0 % on test; zero-shot CLIP: 62.5 % on test"


def test_zero_shot_clip_is_no_adapter_and_another_one_is_named(tmp_path):
    write(tmp_path, {"method": "zero_shot", "title": "zero-shot CLIP", "shots": 0, "seed": 0, "folder": None})
    found = recommended_run(tmp_path)
    assert found.adapter is None and found.accuracy == {"test": 0.625}
    with pytest.raises(ValueError, match=r"zero-shot CLIP is recommended.*adapters/coop/4-shot/seed-1"):
        recommended_adapter(tmp_path)


@pytest.mark.parametrize(("status", "words"), [("running", "not finished"), ("finished", "nothing is recommended")])
def test_a_run_folder_without_a_recommendation_says_why(tmp_path, status, words):
    (tmp_path / "results.json").write_text(json.dumps({"status": status, "runs": []}))
    with pytest.raises(ValueError, match=words):
        recommended_run(tmp_path)
