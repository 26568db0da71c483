import pytest
import torch

from hf_clip_variants.metrics.retrieval import retrieval


def test_recall_and_median_rank_equal_a_calculation_by_hand():
    similarity = torch.tensor([[3.0, 2, 1], [3, 2, 1], [3, 2, 1]])
    assert retrieval(similarity, ks=(1, 2, 3)) == pytest.approx(
        {"recall_at_1": 1 / 3, "recall_at_2": 2 / 3, "recall_at_3": 1.0, "median_rank": 2.0}
    )


def test_ties_count_as_wrong():
    assert retrieval(torch.zeros(10, 10), ks=(1, 5)) == {"recall_at_1": 0.0, "recall_at_5": 0.0, "median_rank": 10.0}


def test_best_of_several_correct_answers_counts():
    similarity = torch.tensor([[0.1, 0.9, 0.5, 0.2]])
    right = torch.tensor([[True, False, True, False]])
    assert retrieval(similarity, ks=(1, 2), correct=right) == {
        "recall_at_1": 0.0,
        "recall_at_2": 1.0,
        "median_rank": 2.0,
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
