"""Retrieval metrics of CLIP4Clip, with one caption a video and with several."""

import pytest
import torch
from parity_fixtures import load_fixture

from hf_clip_variants.metrics.retrieval import rank_summary, ranks_in_tiles, retrieval


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("retrieval_metrics")


def check(found: dict[str, float], fixture, prefix: str, median: str = "MedianR"):
    expected = {name.removeprefix(prefix): value.item() for name, value in fixture.outputs.items() if value.dim() == 0}
    for k in fixture.meta["hyper_parameters"]["k"]:
        assert 100 * found[f"recall_at_{k}"] == pytest.approx(expected[f"R{k}"], abs=1e-4)
    assert found["median_rank"] == pytest.approx(expected[median], abs=1e-6)
    assert found["mean_rank"] == pytest.approx(expected["MeanR"], abs=1e-4)


def scores_of(similarity):
    return lambda queries, entries: similarity[queries][:, entries]


def test_one_caption_a_video_equals_official(fixture):
    similarity = fixture.inputs["square.similarity"]
    ks = fixture.meta["hyper_parameters"]["k"]
    for prefix, matrix in (("square.t2v.", similarity), ("square.v2t.", similarity.T)):
        check(retrieval(matrix, ks), fixture, prefix)
    ranks = ranks_in_tiles(scores_of(similarity), torch.arange(len(similarity)), rows=4, columns=5)
    for direction, found in zip(("t2v", "v2t"), ranks, strict=True):
        official = fixture.outputs[f"square.{direction}.ranks0"] + 1
        assert torch.equal(found.sort().values, official.sort().values)
        check(rank_summary(found, ks), fixture, f"square.{direction}.")


def test_several_captions_a_video_equal_official(fixture):
    similarity, counts = fixture.inputs["multi.similarity"], fixture.inputs["multi.captions_per_video"]
    ks = fixture.meta["hyper_parameters"]["k"]
    entries = torch.arange(len(counts)).repeat_interleave(counts)
    for rows, columns in ((1, 1), (4, 3), (100, 100)):
        of_texts, of_videos = ranks_in_tiles(scores_of(similarity), entries, rows=rows, columns=columns)
        # There, the official code takes the lower one of two middle ranks.
        check(rank_summary(of_texts, ks, lower_median=True), fixture, "multi.t2v.")
        check(rank_summary(of_videos, ks), fixture, "multi.v2t.")


def test_ties_count_as_misses_where_the_official_code_counts_them_several_times(fixture):
    similarity = fixture.inputs["ties.similarity"]
    official = fixture.outputs["ties.t2v.ranks0"]
    assert len(official) > len(similarity)
    own = similarity.diagonal()[:, None]
    ours, _ = ranks_in_tiles(scores_of(similarity), torch.arange(len(similarity)))
    assert torch.equal(ours, (similarity >= own).sum(1))
    assert retrieval(similarity)["recall_at_1"] <= (official == 0).sum().item() / len(similarity)
