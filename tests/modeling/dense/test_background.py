"""Pixels that are none of the labels."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from toy_segmentation import ToyForSemanticSegmentation, toy_model, toy_processor

from hf_clip_variants import GroupViTConfig
from hf_clip_variants.modeling.dense.background import add_background, background_thresholds


LABELS = ["cat", "red apple", "sports car"]
PIXELS = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))


def scores(seed=0):
    return torch.randn(2, 4, 6, 7, generator=torch.Generator().manual_seed(seed))


def expected_map(values, thresholds, index):
    """Background where the best label's score is below its threshold."""
    best, label = values.max(1)
    own = thresholds[label] if thresholds.dim() else thresholds
    numbers = label + (label >= index)
    return torch.where(best < own, index, numbers)


@pytest.mark.parametrize("index", [0, 2, 4])
@pytest.mark.parametrize("thresholds", [torch.tensor(0.7), torch.tensor([0.2, 1.4, 0.5, 1.0])])
def test_a_pixel_is_background_where_its_best_score_is_below_the_threshold(thresholds, index):
    values = scores()
    logits, channel = add_background(values, thresholds, index)
    assert torch.equal(logits.argmax(1), expected_map(values, thresholds, index))
    assert torch.equal(logits[:, index], channel)
    kept = torch.cat([logits[:, :index], logits[:, index + 1 :]], dim=1)
    assert torch.equal(kept, values)


def test_equal_thresholds_are_one_threshold():
    assert torch.equal(
        add_background(scores(), torch.full((4,), 0.7))[0], add_background(scores(), torch.tensor(0.7))[0]
    )


@pytest.mark.parametrize("index", [0, 4])
@pytest.mark.parametrize("value", [0.7, 0.0, -3.0, 1e-30, 250.0])
def test_a_score_of_the_threshold_is_the_labels(value, index):
    values = torch.full((1, 4, 1, 1), value)
    logits, _ = add_background(values, torch.tensor(value), index)
    assert logits.argmax(1).item() == (1 if index == 0 else 0)


@pytest.mark.parametrize("index", [0, 3])
def test_thresholds_of_probabilities(index):
    values = 3 * scores()
    for thresholds in (torch.tensor(0.6), torch.tensor([0.2, 0.9, 0.5, 0.7])):
        logits, _ = add_background(values, thresholds, index, of="probabilities")
        assert torch.equal(logits.argmax(1), expected_map(values.softmax(1), thresholds, index))


def test_the_labels_keep_their_gradients():
    values = scores().requires_grad_()
    logits, _ = add_background(values, torch.tensor(0.5))
    logits[:, 1:].sum().backward()
    assert torch.equal(values.grad, torch.ones_like(values))


def test_bad_thresholds_are_named():
    with pytest.raises(ValueError, match=r"without a threshold: \['dog'\]"):
        background_thresholds({"cat": 0.5}, ["cat", "dog"])
    with pytest.raises(ValueError, match=r"no labels: \['cow'\]"):
        background_thresholds({"cat": 0.5, "cow": 1.0}, ["cat"])
    with pytest.raises(ValueError, match="2 thresholds for 3 labels"):
        background_thresholds([0.5, 0.5], ["cat", "dog", "cow"])
    with pytest.raises(ValueError, match="background_index: 5, expected 0..4"):
        add_background(scores(), torch.tensor(0.5), index=5)
    with pytest.raises(ValueError, match="2 thresholds for 4 labels"):
        add_background(scores(), torch.ones(2))


# ---- in a model


@torch.no_grad()
def labelled(given, **config):
    model = toy_model(**config)
    model.set_labels(LABELS, toy_processor(), background=given)
    return model, model(PIXELS)


@torch.no_grad()
def plain_scores():
    model = toy_model()
    model.set_labels(LABELS, toy_processor())
    return model(PIXELS).logits


@pytest.mark.parametrize(
    "given, thresholds",
    [
        (0.3, torch.tensor(0.3)),
        (1, torch.tensor(1.0)),
        ({"sports car": 0.1, "cat": 0.3, "red apple": 0.6}, torch.tensor([0.3, 0.6, 0.1])),
        ([0.3, 0.6, 0.1], torch.tensor([0.3, 0.6, 0.1])),
        (torch.tensor([0.25, 0.5, 0.125]), torch.tensor([0.25, 0.5, 0.125])),
    ],
)
def test_each_form_of_threshold_in_a_saved_model(given, thresholds, tmp_path):
    model, output = labelled(given)
    assert torch.equal(output.logits.argmax(1), expected_map(plain_scores(), thresholds, 0))
    assert torch.equal(output.background_scores, output.logits[:, 0])
    assert model.config.id2label == dict(enumerate(["background", *LABELS]))
    model.save_pretrained(tmp_path)
    again = ToyForSemanticSegmentation.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(PIXELS).logits, output.logits)


def test_the_background_has_another_place_and_name():
    model, output = labelled(0.3, background_index=3, background_label="void", background_of="probabilities")
    assert model.config.id2label == dict(enumerate([*LABELS, "void"])) and model.labels_with_texts() == LABELS
    assert torch.equal(output.logits.argmax(1), expected_map(plain_scores().softmax(1), torch.tensor(0.3), 3))
    with pytest.raises(ValueError, match="background_index: 3, expected 0..2"):
        model.set_labels(LABELS[:2], toy_processor())


def test_no_background():
    model, output = labelled(None)
    assert output.background_scores is None and output.logits.shape[1] == 3
    model, output = labelled(False, background=0.5)
    assert model.config.background is None and output.logits.shape[1] == 3


def test_the_configurations_background_stays_unless_another_one_is_given():
    model, _ = labelled(None, background=0.4)
    assert model.config.background == 0.4 and model.config.id2label[0] == "background"
    model.set_labels(["cat"], toy_processor(), background=0.6)
    assert model.config.background == 0.6


@torch.no_grad()
def test_a_text_for_the_background_is_one_more_label():
    model, output = labelled("other;golden retriever")
    assert model.config.id2label == dict(enumerate(["background", *LABELS])) and output.background_scores is None
    assert model.config.label_texts[0] == ["other", "golden retriever"]
    other = toy_model()
    other.set_labels(["other;golden retriever", *LABELS], toy_processor())
    torch.testing.assert_close(other(PIXELS).logits, output.logits)
    with pytest.raises(ValueError, match="'cat' is given twice"):
        model.set_labels(LABELS, toy_processor(), background="cat")


@torch.no_grad()
def test_a_model_may_have_a_rule_of_its_own():
    class Learned(ToyForSemanticSegmentation):
        def learned_background(self, logits, **features):
            return logits.mean(1)

    model, _ = labelled(None)
    learned = Learned(model.config)
    learned.load_state_dict(model.state_dict())
    learned.set_labels(LABELS, toy_processor(), background="learned")
    logits = learned(PIXELS).logits
    assert torch.equal(logits[:, 0], plain_scores().mean(1)) and torch.equal(logits[:, 1:], plain_scores())
    with pytest.raises(ValueError, match="has learned no background"):
        labelled("learned")


@torch.no_grad()
def test_a_number_is_for_any_texts_and_numbers_by_label_for_the_models_own():
    texts = toy_processor()(text=["forest", "cat"], return_tensors="pt")
    model, _ = labelled(0.3)
    assert model(PIXELS, **texts).logits.shape[1] == 3
    model, _ = labelled([0.3, 0.6, 0.1])
    with pytest.raises(ValueError, match="3 thresholds for 2 labels"):
        model(PIXELS, **texts)


@pytest.mark.parametrize("background", [0.5, "learned"])
def test_the_background_has_a_place_among_the_labels(background):
    labels = {"id2label": {0: "background", 1: "cat", 2: "sky"}, "background": background}
    with pytest.raises((ValueError, StrictDataclassError), match="background_index: 3, expected 0..2 for 2 labels"):
        GroupViTConfig(**labels, background_index=3)
