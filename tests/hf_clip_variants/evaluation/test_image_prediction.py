"""The most likely classes of many images."""

from types import SimpleNamespace

import torch

from hf_clip_variants.evaluation.image_prediction import predict


LOGITS = torch.tensor([[0.0, 900.0, 300.0, 600.0], [5.0, 4.0, 2.0, 3.0], [0.0, 0.0, 0.0, 1.0]])


class Scorer(torch.nn.Module):
    def forward(self, rows):
        return SimpleNamespace(logits=LOGITS[rows])


class Rows:
    def __len__(self):
        return len(LOGITS)

    def batch(self, rows, epoch):
        return {"rows": rows}


def test_the_best_class_and_its_probability():
    predicted, confidence = predict(Scorer(), Rows(), batch_size=2)
    assert predicted.tolist() == [1, 0, 3]
    torch.testing.assert_close(confidence, LOGITS.softmax(1).amax(1))


def test_top_classes_come_best_first_even_where_probabilities_are_zero():
    predicted, confidence = predict(Scorer(), Rows(), batch_size=2, top=3)
    assert predicted[:2].tolist() == [[1, 3, 2], [0, 1, 3]] and confidence[0].tolist() == [1.0, 0.0, 0.0]
    assert predict(Scorer(), Rows(), top=9)[0].shape == (3, 4), "there are four classes"


def test_columns_are_chosen_before_the_best():
    predicted, confidence = predict(Scorer(), Rows(), columns=(3, 2), top=1)
    assert predicted.tolist() == [[0], [0], [0]]
    torch.testing.assert_close(confidence[1, 0], torch.tensor([3.0, 2.0]).softmax(0)[0])
