"""A classifier with prompts of each class, any number a class."""

import copy
import json

import pytest
import torch
from adapter_models import tiny_classifier
from peft import get_peft_model
from tiny import tiny_clip, tiny_pixels, tiny_tokenizer

from hf_clip_variants import CLIPClassifier, CLIPClassifierConfig, load_adapter
from hf_clip_variants.adapters import CLIPAdapterConfig, CoCoOpConfig, CoOpConfig, IVLPConfig, MaPLeConfig
from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm
from hf_clip_variants.modeling.dual_encoders.prompts import resolve_templates


CLASSES = ["cat", "hot_dog", "red apple"]
PROMPTS = {
    "cat": ["a furry cat with whiskers", "a small feline", "a {} at home, asleep on the old sofa"],
    "hot dog": ["a sausage in a bun"],
    "red apple": ["a round fruit", "something that grows on trees"],
}


@pytest.fixture
def classifier():
    return tiny_classifier(class_names=CLASSES, templates=PROMPTS)


def test_class_features_are_the_normalised_means_of_each_classes_prompts(classifier):
    expected = []
    with torch.no_grad():
        for prompts in PROMPTS.values():
            texts = [text.replace("{}", "cat") for text in prompts]
            ids = tiny_tokenizer()(texts, padding=True, return_tensors="pt").input_ids
            expected.append(unit_norm(unit_norm(tiny_clip().get_text_features(ids).pooler_output).mean(0)))
        torch.testing.assert_close(classifier.get_class_features(), torch.stack(expected), rtol=0, atol=1e-6)
    assert classifier.prompt_ids.shape[:2] == (3, 3)


@torch.no_grad()
@pytest.mark.parametrize("templates", [["a {}"], ["a photo of a {}.", "{}"]])
def test_the_same_prompts_for_all_classes_change_no_bit(templates):
    shared = tiny_classifier(class_names=CLASSES, templates=templates)
    own = tiny_classifier(class_names=CLASSES, templates=dict.fromkeys(CLASSES, templates))
    assert torch.equal(own.prompt_ids, shared.prompt_ids)
    assert torch.equal(own(tiny_pixels()).logits, shared(tiny_pixels()).logits)


def test_one_prompt_beside_many_is_normalised_as_they_are(classifier):
    with torch.no_grad():
        lengths = classifier.get_class_features().norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(3))


def test_prompts_are_saved_with_the_model(classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["templates"] == resolve_templates(PROMPTS, CLASSES)
    again = CLIPClassifier.from_pretrained(tmp_path)
    assert again.config.templates == classifier.config.templates
    assert torch.equal(again.prompt_ids, classifier.prompt_ids)
    with torch.no_grad():
        logits = classifier.eval()(tiny_pixels()).logits
        assert torch.equal(again(tiny_pixels()).logits, logits), "from the stored features"
        again.forget_class_features()
        torch.testing.assert_close(again(tiny_pixels()).logits, logits, rtol=0, atol=1e-5)


def test_from_pretrained_and_set_classes_take_a_mapping_or_a_file(classifier, tmp_path):
    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    (tmp_path / "cupl.json").write_text(json.dumps(PROMPTS))
    model = CLIPClassifier.from_pretrained(tmp_path / "clip", class_names=CLASSES, templates=tmp_path / "cupl.json")
    assert torch.equal(model.prompt_ids, classifier.prompt_ids)
    other = CLIPClassifier.from_pretrained(tmp_path / "clip", class_names=CLASSES, templates="{c}")
    with torch.no_grad():
        before = other(tiny_pixels()).logits
        after = other.set_classes(CLASSES, PROMPTS)(tiny_pixels()).logits
        assert not torch.equal(after, before)
        torch.testing.assert_close(after, model(tiny_pixels()).logits)
        assert torch.equal(other.set_classes(CLASSES, "{}")(tiny_pixels()).logits, before)
    with pytest.raises(ValueError, match="1 classes have none: 'hot_dog'"):
        other.set_classes(CLASSES, {"cat": ["x"], "red apple": ["y"]})
    assert other.config.templates == ["{}"], "an error changes nothing"


def test_fewer_classes_keep_their_prompts_and_new_ones_need_some(classifier):
    classifier.set_classes(["red apple", "cat"])
    assert classifier.config.templates == {name: PROMPTS[name] for name in ("red apple", "cat")}
    with pytest.raises(ValueError, match="1 classes have none: 'dog'"):
        classifier.set_classes(["cat", "dog"])


def test_gradients_reach_the_text_encoder_as_from_kept_features(classifier):
    classifier.train()
    logits = classifier(tiny_pixels()).logits
    with torch.no_grad():
        torch.testing.assert_close(classifier.eval()(tiny_pixels()).logits, logits, rtol=0, atol=1e-5)
    logits.sum().backward()
    assert classifier.clip.text_projection.weight.grad.any()


def test_copies_keep_their_prompts(classifier):
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(classifier)(tiny_pixels()).logits, classifier(tiny_pixels()).logits)


def test_ids_of_ones_own_take_prompts_of_each_class(classifier):
    ids = (classifier.prompt_ids, classifier.tail_ids, classifier.tail_name_lengths)
    with torch.no_grad():
        logits = classifier(tiny_pixels()).logits
        other = tiny_classifier(class_names=CLASSES).set_prompt_ids(*ids, CLASSES, PROMPTS)
        assert torch.equal(other(tiny_pixels()).logits, logits)
    with pytest.raises(ValueError, match="templates: 2 templates, template_ids has 3"):
        other.set_prompt_ids(*ids, CLASSES, PROMPTS | {"cat": ["a", "b"]})


def test_a_configuration_needs_prompts_of_its_classes():
    with pytest.raises(Exception, match="1 classes have none: 'dog'"):
        CLIPClassifierConfig(id2label={0: "cat", 1: "dog"}, templates={"cat": ["x"]})
    config = CLIPClassifierConfig(id2label={0: "cat", 1: "dog"}, templates={"cat": ["x", "y"], "dog": ["z"]})
    assert config.prompt_counts == [2, 1]


@pytest.mark.parametrize(
    "config",
    [CoOpConfig(), CoCoOpConfig(), IVLPConfig(), MaPLeConfig(prompt_depth=2)],
    ids=lambda config: type(config).__name__,
)
def test_prompt_learners_replace_prompts_of_each_class_as_they_replace_templates(classifier, config):
    logits, of_one = [], tiny_classifier(class_names=CLASSES, templates="{}")
    with torch.no_grad():
        zero_shot = classifier(tiny_pixels()).logits
        for base in (classifier, of_one):
            torch.manual_seed(0)
            model = get_peft_model(base, copy.deepcopy(config)).eval()
            logits.append(model(tiny_pixels()).logits)
            if base is classifier:
                with model.disable_adapter():
                    assert torch.equal(model(tiny_pixels()).logits, zero_shot)
    torch.testing.assert_close(*logits)


def test_an_adapters_file_carries_the_prompts_of_each_class(classifier, tmp_path):
    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    base = CLIPClassifier.from_pretrained(tmp_path / "clip", class_names=CLASSES, templates=PROMPTS)
    model = get_peft_model(base, CLIPAdapterConfig(modality="both")).eval()
    model.save_pretrained(tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter")
    assert again.get_base_model().config.templates == resolve_templates(PROMPTS, CLASSES)
    with torch.no_grad():
        torch.testing.assert_close(again(tiny_pixels()).logits, model(tiny_pixels()).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("templates", [{}, {"cat": []}, {"cat": ["a cat"], "cow": ["a cow"]}])
def test_a_configuration_whose_mapping_lacks_a_class_is_refused(templates):
    with pytest.raises(ValueError, match="templates"):
        CLIPClassifierConfig(id2label={0: "cat", 1: "dog"}, templates=templates)
