"""Zero-shot accuracy of a model in training equals that of a `CLIPClassifier` with the same weights."""

import pytest
import torch
from model_contract import CASES
from tiny import tiny_tokenizer
from transformers import AutoModel, AutoProcessor

from hf_clip_variants import CLIPClassifier, embedded_model
from hf_clip_variants.data.images.emoji import load_emoji
from hf_clip_variants.evaluation.prediction import load_processor
from hf_clip_variants.evaluation.zero_shot import class_embeddings, zero_shot_accuracy


@pytest.fixture(scope="module")
def images():
    return load_emoji("notov1").select(range(0, 190, 5))


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(embedded_model(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(embedded_model())


def test_accuracy_equals_the_classifiers(images, model, processor):
    found = zero_shot_accuracy(model, processor, images, "icons", batch_size=16)
    classifier = CLIPClassifier.from_pretrained(embedded_model(), dtype=torch.float32)
    classifier.set_classes(images.class_names, "icons")
    pixels = load_processor(str(embedded_model()))(
        images=[images.image(i) for i in range(len(images))], return_tensors="pt"
    )
    with torch.no_grad():
        order = classifier(pixel_values=pixels["pixel_values"]).logits.topk(5).indices
    right = (order == torch.as_tensor(images.labels)[:, None]).float()
    assert found == pytest.approx({"top1": right[:, 0].mean().item(), "top5": right.sum(1).mean().item()})
    assert found["top1"] > 0.3


OWN = {"hot dog": ["a sausage in a bun", "a {c}"], "<|endoftext|>": ["the end"], "red apple": ["fruit", "{}", "a {}"]}


@pytest.mark.parametrize("templates", ["icons", "a photo of a {}.", OWN], ids=["several", "one", "of each class"])
def test_class_embeddings_equal_the_classifiers(templates, model, processor):
    """Also for names with an underscore, and for a name that contains the end token as text."""
    names = ["hot_dog", "<|endoftext|>", "red apple"]
    classifier = CLIPClassifier.from_pretrained(embedded_model(), dtype=torch.float32)
    classifier.set_classes(names, templates)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(classifier.get_class_features(), dim=-1)
        found = class_embeddings(model, processor, names, templates, batch_size=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_names_with_the_same_tokens_are_refused(batch_size, model, processor):
    with pytest.raises(ValueError, match="'Cat' and 'cat' are the same prompts"):
        class_embeddings(model, processor, ["a very long name", "Cat", "dog", "cat"], "icons", batch_size)


@pytest.mark.parametrize("kind", ["slip", "audioclip"])
def test_models_without_a_classifier_are_evaluated_too(kind):
    model = CASES[kind].make().eval()
    names = ["cat", "dog"]
    processor = type("Words", (), {"tokenizer": tiny_tokenizer()})
    with torch.no_grad():
        found = class_embeddings(model, processor, names, ["{}", "a {}"])
        tokens = tiny_tokenizer()(["cat", "a cat", "dog", "a dog"], padding=True, return_tensors="pt")
        features = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
        expected = torch.nn.functional.normalize(features, dim=-1).view(2, 2, -1).mean(1)
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=-1), rtol=0, atol=1e-6)


def test_groupvit_averages_templates_before_normalising():
    model = CASES["groupvit"].make().eval()
    processor = type("Words", (), {"tokenizer": tiny_tokenizer()})
    with torch.no_grad():
        found = class_embeddings(model, processor, ["cat", "dog"], ["{}", "a {}"])
        tokens = tiny_tokenizer()(["cat", "a cat", "dog", "a dog"], padding=True, return_tensors="pt")
        features = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
    expected = torch.nn.functional.normalize(features.view(2, 2, -1).mean(1), dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    other = torch.nn.functional.normalize(features, dim=-1).view(2, 2, -1).mean(1)
    assert not torch.allclose(found, torch.nn.functional.normalize(other, dim=-1), atol=1e-4)


def test_processes_count_every_image_once(images, model, processor):
    """38 images on three processes: the last of two comes again and is not counted."""
    whole = zero_shot_accuracy(model, processor, images, "icons")
    counts, shares = [], []

    def keep(count):
        counts.append(count)
        return count

    for rank in range(3):
        place = {"rank": rank, "world_size": 3}
        shares.append(zero_shot_accuracy(model, processor, images, "icons", batch_size=4, summed=keep, **place))
    top1, top5, number = sum(counts).tolist()
    assert [count[2].item() for count in counts] == [13, 13, 12] and number == len(images)
    assert {"top1": top1 / number, "top5": top5 / number} == pytest.approx(whole)
