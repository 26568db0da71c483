"""Class names as an argument of a call: the logits of `set_classes`, and nothing of the model changes."""

import copy
import itertools
import sys
import threading

import pytest
import torch
from adapter_models import tiny_classifier
from peft import get_peft_model
from tiny import CLASS_NAMES, tiny_pixels

from hf_clip_variants import CoCoOpConfig, CoOpConfig, TipAdapterConfig


NAMES = ["dog", "red_car", "a very old house"]
TEMPLATES = {
    "one": None,
    "several": ["a photo of a {}.", "art of the {}.", "{}"],
    "of each class": {name: [f"a {name}", *([f"my {name}"] * (name in NAMES))] for name in [*CLASS_NAMES, *NAMES]},
}


def of_call(model, names, **inputs):
    with torch.no_grad():
        return model(**(inputs or {"pixel_values": tiny_pixels()}), class_names=names).logits


def after_set_classes(model, names, **inputs):
    model = copy.deepcopy(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.set_classes(names)
    with torch.no_grad():
        return model(**(inputs or {"pixel_values": tiny_pixels()})).logits


def with_templates(kind):
    model = tiny_classifier(class_names=[*CLASS_NAMES, *NAMES], templates=TEMPLATES[kind])
    return model


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_call_gives_the_logits_of_set_classes_and_changes_nothing(kind, monkeypatch):
    model = with_templates(kind)
    before = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("class_feat")}
    logits = of_call(model, NAMES)
    torch.testing.assert_close(logits, after_set_classes(model, NAMES), rtol=0, atol=0)
    assert all(torch.equal(of_call(model, names), logits) for names in (", ".join(NAMES), dict(enumerate(NAMES))))
    assert model.class_names == [*CLASS_NAMES, *NAMES]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    monkeypatch.setattr(model.family, "encode_text", None)
    assert torch.equal(of_call(model, NAMES), logits), "the text encoder runs once for a list of names"


@pytest.mark.parametrize("kind", [CoOpConfig, CoCoOpConfig])
def test_prompt_learners_take_the_names_of_a_call(kind):
    model = get_peft_model(tiny_classifier(), kind(num_context_tokens=2, context_init=None)).eval()
    torch.testing.assert_close(of_call(model, NAMES), after_set_classes(model, NAMES), rtol=1e-6, atol=1e-6)
    assert model(pixel_values=tiny_pixels(), class_names=NAMES).logits.requires_grad, "they can be trained with them"


def test_adapters_for_fixed_classes_refuse_others():
    model = get_peft_model(tiny_classifier(), TipAdapterConfig())
    model.build_cache(torch.randn(10, 24), torch.arange(10) % 5)
    with pytest.raises(ValueError, match="class_names: .*but the classes differ"):
        of_call(model, NAMES)
    with pytest.raises(ValueError, match="in another order"):
        of_call(model, CLASS_NAMES[::-1])
    assert of_call(model, CLASS_NAMES).shape == (4, 5)
    merged = get_peft_model(tiny_classifier(), CoOpConfig(num_context_tokens=2)).merge_and_unload()
    with pytest.raises(ValueError, match="class_names: an adapter was merged"):
        of_call(merged, NAMES)


def test_wrong_names_are_named_and_two_ways_at_once_are_refused():
    model = tiny_classifier()
    wrong = ([], "is empty"), (["a", "a"], "given twice"), (["a", 3], "expected a string"), ({"a"}, "set")
    for names, words in wrong:
        with pytest.raises(ValueError, match=f"class_names.*{words}"):
            of_call(model, names)
    with pytest.raises(ValueError, match="class_names, input_ids: give one"):
        of_call(model, NAMES, pixel_values=tiny_pixels(), input_ids=torch.ones(2, 5, dtype=torch.long))


def test_changed_weights_and_other_templates_give_other_features():
    model = tiny_classifier()
    found = [of_call(model, NAMES)]
    with torch.no_grad():
        model.clip.text_projection.weight.add_(0.1)
    found.append(of_call(model, NAMES))
    model.set_classes(CLASS_NAMES, ["art of the {}."])
    found.append(of_call(model, NAMES))
    assert all(not torch.equal(a, b) for a, b in zip(found, found[1:], strict=False))
    torch.testing.assert_close(found[-1], after_set_classes(model, NAMES), rtol=0, atol=0)
    loss = model.train()(pixel_values=tiny_pixels(), class_names=NAMES, labels=torch.tensor([0, 1, 2, 0])).loss
    loss.backward()
    assert model.clip.text_projection.weight.grad.abs().sum() > 0, "trained through the names of a call"


def test_several_labels_an_image_are_calibrated_for_the_models_own_classes_only():
    model = tiny_classifier()
    model.config.problem_type = "multi_label_classification"
    model.label_calibration = model.new_label_calibration()
    with torch.no_grad():
        for parameter in model.label_calibration.parameters():
            parameter.add_(0.3)
    own = model(pixel_values=tiny_pixels()).logits
    assert torch.equal(of_call(model, CLASS_NAMES), own)
    torch.testing.assert_close(of_call(model, NAMES), after_set_classes(model, NAMES), rtol=0, atol=0)


def test_threads_with_names_of_their_own_are_not_disturbed_by_set_classes():
    model = tiny_classifier()
    lists = [NAMES, CLASS_NAMES[::-1], [f"thing {i}" for i in range(7)]]
    expected = [after_set_classes(model, names) for names in lists]
    faults, deadline = [], threading.Event()

    def predict(names, logits):
        try:
            while not deadline.is_set():
                if not torch.equal(of_call(model, names), logits):
                    faults.append(names)
        except Exception as error:
            faults.append(error)

    def rename():
        for turn in range(60):
            model.set_classes([f"{word} {turn}" for word in ("sea", "moon", "tree", "salt")[: 2 + turn % 3]])
            with torch.no_grad():
                model(pixel_values=tiny_pixels())

    threads = [threading.Thread(target=predict, args=pair) for pair in zip(lists, expected, strict=True)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        rename()
    finally:
        deadline.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert faults == []


def test_names_are_those_of_one_moment(monkeypatch):
    """Another thread sets other classes between any two reads."""
    config, turns = (
        tiny_classifier().config,
        itertools.cycle([{0: "sea", 1: "moon", 2: "tree"}, {0: "salt", 1: "sand"}]),
    )
    monkeypatch.setattr(type(config), "id2label", property(lambda self: next(turns)), raising=False)
    for _ in range(4):
        assert config.class_names in (["sea", "moon", "tree"], ["salt", "sand"])
