import json

import pytest
import torch
from paths import TESTS
from processes import run_on_ranks
from safetensors.torch import save_file

from hf_clip_variants.metrics.retrieval import ranks_in_tiles, retrieval


def test_recall_and_median_rank_equal_a_calculation_by_hand():
    similarity = torch.tensor([[3.0, 2, 1], [3, 2, 1], [3, 2, 1]])
    assert retrieval(similarity, ks=(1, 2, 3)) == pytest.approx(
        {"recall_at_1": 1 / 3, "recall_at_2": 2 / 3, "recall_at_3": 1.0, "median_rank": 2.0, "mean_rank": 2.0}
    )


def test_ties_count_as_wrong():
    found = retrieval(torch.zeros(10, 10), ks=(1, 5))
    assert found == {"recall_at_1": 0.0, "recall_at_5": 0.0, "median_rank": 10.0, "mean_rank": 10.0}


def test_best_of_several_correct_answers_counts():
    similarity = torch.tensor([[0.1, 0.9, 0.5, 0.2]])
    right = torch.tensor([[True, False, True, False]])
    assert retrieval(similarity, ks=(1, 2), correct=right) == {
        "recall_at_1": 0.0,
        "recall_at_2": 1.0,
        "median_rank": 2.0,
        "mean_rank": 2.0,
    }


@pytest.mark.parametrize(
    "similarity, correct, message",
    [
        (torch.zeros(3), None, "similarity"),
        (torch.zeros(0, 3), None, "similarity"),
        (torch.full((2, 2), torch.nan), None, "NaN"),
        (torch.zeros(2, 3), None, "correct: got none"),
        (torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]), "right answer in each row"),
    ],
)
def test_wrong_matrices_are_refused(similarity, correct, message):
    with pytest.raises(ValueError, match=message):
        retrieval(similarity, correct=correct)


# ---- in tiles


def captions(seed: int = 0, videos: int = 23):
    """Scores with many ties (Q, 23), and the video of each query; some videos have none, the order is mixed."""
    random = torch.Generator().manual_seed(seed)
    entries = torch.randint(0, videos, (60,), generator=random)
    return torch.randint(0, 9, (60, videos), generator=random).float(), entries


def ranks_by_hand(similarity, entries):
    of_queries = [
        1 + sum(row[j] >= row[e] for j in range(len(row)) if j != e)
        for row, e in zip(similarity, entries, strict=True)
    ]
    groups = {int(e): similarity[entries == e].amax(0) for e in entries.unique()}
    of_entries = [1 + sum(best[e] >= groups[e][e] for g, best in groups.items() if g != e) for e in sorted(groups)]
    return [int(rank) for rank in of_queries], [int(rank) for rank in of_entries]


@pytest.mark.parametrize("rows, columns", [(1, 1), (7, 5), (1000, 1000)])
def test_tiles_of_any_size_give_the_ranks_by_hand(rows, columns):
    similarity, entries = captions()
    largest = max(int((entries == e).sum()) for e in entries)

    def score(queries, columns_):
        assert len(queries) <= max(rows, largest) and len(columns_) <= columns
        return similarity[queries][:, columns_]

    found = ranks_in_tiles(score, entries, 23, rows, columns)
    assert [ranks.tolist() for ranks in found] == list(ranks_by_hand(similarity, entries))


def test_one_query_each_equals_the_whole_matrix():
    similarity = captions()[0][:23]
    found = ranks_in_tiles(lambda q, e: similarity[q][:, e], torch.arange(23), rows=4, columns=4)
    for ranks, matrix in zip(found, (similarity, similarity.T), strict=True):
        assert ranks.double().mean().item() == pytest.approx(retrieval(matrix)["mean_rank"])


def test_two_processes_share_the_tiles_and_agree_with_one(tmp_path):
    similarity, entries = captions()
    save_file({"similarity": similarity, "entries": entries}, tmp_path / "scores.safetensors")
    run_on_ranks(TESTS / "programs" / "retrieval_ranks.py", tmp_path, world_size=2, folder=tmp_path)
    answers = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    alone = ranks_in_tiles(lambda q, e: similarity[q][:, e], entries, 23)
    assert answers[0]["ranks"] == answers[1]["ranks"] == [ranks.tolist() for ranks in alone]
    assert min(answer["tiles"] for answer in answers) > 5


@pytest.mark.parametrize(
    "entries, scores, message",
    [
        (torch.zeros(0, dtype=torch.long), torch.zeros(0, 2), "entries: got shape"),
        (torch.tensor([0.0]), torch.zeros(1, 2), "whole numbers"),
        (torch.tensor([0, 2]), torch.zeros(2, 2), "entries: numbers 0..2; want 0..1"),
        (torch.tensor([0, 1]), torch.full((2, 2), torch.nan), "NaN"),
    ],
)
def test_wrong_tiles_are_refused(entries, scores, message):
    with pytest.raises(ValueError, match=message):
        ranks_in_tiles(lambda q, e: scores[q][:, e], entries, 2)
