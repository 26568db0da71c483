"""Labels of a model that segments by texts, on a small one."""

import json

import pytest
import torch
from tiny import tiny_tokenizer
from toy_segmentation import ToyForSemanticSegmentation, ToySegmentationConfig, toy_model, toy_processor

from hf_clip_variants.modeling.dense.promptable_segmentation import ClassTexts


LABELS = ["cat", "red apple", "sports car"]
PIXELS = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))


def with_labels(labels=LABELS, processor=None, **options):
    model = toy_model()
    model.set_labels(labels, processor or toy_processor(), **options)
    return model


@torch.no_grad()
def logits(model, **inputs):
    return model(PIXELS, **inputs).logits


# ---- texts of a call


def test_stored_embeddings_equal_those_of_a_call():
    for templates in (None, ["a photo of a {}.", "{}"]):
        processor = toy_processor(templates)
        fresh = logits(toy_model(), **processor(text=LABELS, return_tensors="pt"))
        torch.testing.assert_close(logits(with_labels(processor=processor)), fresh)
        explicit = logits(toy_model(), class_embeddings=with_labels(processor=processor).class_embeddings)
        torch.testing.assert_close(explicit, fresh)


def test_permuted_labels_give_permuted_logits():
    order = [2, 0, 1]
    expected = logits(with_labels())[:, order]
    torch.testing.assert_close(logits(with_labels([LABELS[i] for i in order])), expected)


def test_explicit_embeddings_come_first_then_ids_then_stored_ones():
    model, other = with_labels(), torch.nn.functional.normalize(torch.randn(4, 8), dim=1)
    ids = toy_processor()(text=["forest"], return_tensors="pt")
    assert logits(model, class_embeddings=other, **ids).shape[1] == 4
    assert logits(model, **ids).shape[1] == 1
    assert logits(model).shape[1] == 3


def test_a_call_may_bring_synonyms():
    model, texts = toy_model(), ["cat", "forest", "red apple"]
    embeddings = model.embed_texts(texts, toy_processor())
    found = logits(model, class_embeddings=ClassTexts(embeddings, counts=(2, 1)))
    assert torch.equal(found, logits(with_labels(["cat;forest", "red apple"])))


def test_no_texts_at_all_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="input_ids: missing.*set_labels"):
        toy_model()(PIXELS)
    with pytest.raises(ValueError, match=r"class_embeddings: got \[8\]"):
        toy_model()(PIXELS, class_embeddings=torch.ones(8))
    with pytest.raises(ValueError, match=r"input_ids: got \[4\]"):
        toy_model()(PIXELS, input_ids=torch.ones(4, dtype=torch.int64))


@pytest.mark.parametrize("templates", [None, ["a {}.", "{}"]])
def test_texts_of_each_image_equal_those_of_the_image_alone(templates):
    processor, model = toy_processor(templates), toy_model()
    of_each = [["cat", "forest"], ["red apple", "cat", "sports car"]]
    found = logits(model, **processor(text=of_each, return_tensors="pt"))
    for row, labels in enumerate(of_each):
        alone = logits(model, **processor(text=labels, return_tensors="pt"))
        torch.testing.assert_close(found[row, : len(labels)], alone[row])
    assert (found[0, 2] < -1e30).all() and found.isfinite().all()
    resized = torch.nn.functional.interpolate(found, size=(20, 31), mode="bilinear")
    assert (resized[0].argmax(0) < 2).all() and not resized.isnan().any()


def test_ids_of_each_image_need_no_templates_where_the_model_says_so():
    encoded = toy_processor()(text=[["cat", "forest"], ["red apple"]], return_tensors="pt")
    model = toy_model()
    expected = logits(model, **encoded)
    model.text_per_image = True
    flat = {name: values[:, :, 0] for name, values in encoded.items()}
    torch.testing.assert_close(logits(model, **flat), expected)


def test_texts_of_the_last_call_are_kept_until_something_changes():
    model, calls, encoded = toy_model(), [], toy_processor()(text=LABELS, return_tensors="pt")
    model.text.tokens.register_forward_hook(lambda *_: calls.append(1))
    first = logits(model, **encoded)
    assert torch.equal(logits(model, **{name: value.clone() for name, value in encoded.items()}), first)
    with torch.inference_mode():
        model(PIXELS, **encoded)
    assert len(calls) == 1
    with torch.no_grad():
        model.text.tokens.weight.mul_(-1)
    assert not torch.equal(logits(model, **encoded), first) and len(calls) == 2
    logits(model, **toy_processor()(text=LABELS[:2], return_tensors="pt"))
    assert len(calls) == 3
    model.train().eval()
    logits(model, **toy_processor()(text=LABELS[:2], return_tensors="pt"))
    assert len(calls) == 4
    for _ in range(2):
        model(PIXELS, **encoded).logits.sum().backward()  # under gradients nothing is kept
    assert len(calls) == 6 and model.text.tokens.weight.grad.abs().sum() > 0


def test_texts_kept_by_a_model_do_not_travel_with_its_copy():
    import copy

    model, encoded = toy_model(), toy_processor()(text=LABELS, return_tensors="pt")
    expected = logits(model, **encoded)
    again = copy.deepcopy(model)
    with torch.no_grad():
        again.text.tokens.weight.mul_(-1)
    assert torch.equal(logits(model, **encoded), expected) and not torch.equal(logits(again, **encoded), expected)


@torch.no_grad()
def test_texts_of_the_last_call_follow_an_adapter_that_is_switched_or_merged():
    from peft import LoraConfig, get_peft_model

    encoded = toy_processor()(text=LABELS, return_tensors="pt")
    plain = logits(toy_model(), **encoded)
    adapted = get_peft_model(toy_model(), LoraConfig(target_modules=["projection"], init_lora_weights=False)).eval()
    expected = logits(adapted, **encoded)
    assert not torch.allclose(expected, plain, atol=1e-3)
    with adapted.disable_adapter():
        torch.testing.assert_close(logits(adapted, **encoded), plain)
    torch.testing.assert_close(logits(adapted, **encoded), expected)
    adapted.merge_adapter()
    torch.testing.assert_close(logits(adapted, **encoded), expected)
    adapted.set_labels(LABELS, toy_processor())
    torch.testing.assert_close(logits(adapted), expected)


# ---- set_labels


def test_a_saved_model_needs_no_texts(tmp_path):
    model = with_labels(background=0.3)
    model.save_pretrained(tmp_path)
    again = ToyForSemanticSegmentation.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert again.config.id2label == {0: "background", 1: "cat", 2: "red apple", 3: "sports car"}
    assert again.config.label2id == {name: i for i, name in again.config.id2label.items()}
    assert again.config.num_labels == 4 and again.labels_with_texts() == LABELS
    again.set_labels(["forest"], toy_processor(), background=False)
    assert again.config.id2label == {0: "forest"} and logits(again).shape[1] == 1
    again.save_pretrained(tmp_path)
    assert torch.equal(logits(ToyForSemanticSegmentation.from_pretrained(tmp_path)), logits(again))


def test_a_model_without_labels_has_no_buffer(tmp_path):
    model = toy_model()
    assert model.config.num_labels == 0 and "class_embeddings" not in model.state_dict()
    model.save_pretrained(tmp_path)
    again = ToyForSemanticSegmentation.from_pretrained(tmp_path)
    assert again.config.num_labels == 0 and again.class_embeddings is None
    assert ToySegmentationConfig(num_labels=3).num_class_embeddings == 3
    assert toy_model(num_labels=3).class_embeddings.shape == (3, 8)


def test_another_number_of_labels_than_the_checkpoint_has_is_an_error(tmp_path):
    with_labels().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_labels: 5, but id2label has 3 names"):
        ToyForSemanticSegmentation.from_pretrained(tmp_path, num_labels=5)
    toy_model().save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="num_labels: 5, but id2label has 0 names"):
        ToyForSemanticSegmentation.from_pretrained(tmp_path / "none", num_labels=5)


def test_embeddings_have_no_gradient_and_know_no_autocast_or_dropout():
    model, expected = toy_model(), with_labels().class_embeddings
    model.train()
    model.text.tokens.register_forward_hook(
        lambda module, _, output: torch.nn.functional.dropout(output, 0.5, module.training)
    )
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        model.set_labels(LABELS, tiny_tokenizer())
    assert torch.equal(model.class_embeddings, expected)
    assert not model.class_embeddings.requires_grad and not model.class_embeddings.is_inference()
    assert model.text.tokens.training and model.training
    half = toy_model().to(torch.bfloat16)
    half.set_labels(LABELS, toy_processor())
    assert half.class_embeddings.dtype == torch.bfloat16


def test_many_labels_are_encoded_in_parts(monkeypatch):
    from hf_clip_variants.modeling.dense import promptable_segmentation

    expected = with_labels(templates=["{}", "a {}."]).class_embeddings
    monkeypatch.setattr(promptable_segmentation, "_TEXTS_AT_ONCE", 3)
    torch.testing.assert_close(with_labels(templates=["{}", "a {}."]).class_embeddings, expected)


@pytest.mark.parametrize("rule", ["max", "mean"])
def test_synonyms_merge_their_scores(rule):
    model = toy_model(synonym_rule=rule)
    model.set_labels(["cat;forest", ["red apple"], ["sports car", "golden retriever", "cow"]], toy_processor())
    assert model.config.id2label == {0: "cat", 1: "red apple", 2: "sports car"}
    texts = ["cat", "forest", "red apple", "sports car", "golden retriever", "cow"]
    each = logits(with_labels(texts))
    merge = (lambda part: part.amax(1)) if rule == "max" else (lambda part: part.mean(1))
    expected = torch.stack([merge(part) for part in each.split([2, 1, 3], dim=1)], dim=1)
    torch.testing.assert_close(logits(model), expected)


@pytest.mark.parametrize(
    "labels, message",
    [
        ("cat", "labels: got the single string 'cat'"),
        (torch.tensor(0), "labels: got Tensor, expected a list"),
        ([], "labels is empty"),
        ({"cat", "dog"}, "labels: got set"),
        (["cat", "dog", "cat"], "'cat' is given twice, at 0 and 2"),
        (["cat;dog", "dog"], "'dog' is given twice"),
        (["cat", " "], r"labels\[1\].* is blank"),
        (["cat", "dog;"], r"labels\[1\].* is blank"),
        (["cat", 3], r"labels\[1\]: 3, expected a text"),
        (["cat", []], r"labels\[1\]: \[\]"),
        (["cat", "CAT"], "same prompts"),
        (["background", "cat"], "'background' is the background's name"),
    ],
)
def test_bad_labels_are_named_and_leave_the_model_as_it_was(labels, message):
    model = with_labels()
    config, before = model.config.to_dict(), logits(model)
    with pytest.raises(ValueError, match=message):
        model.set_labels(labels, toy_processor(), background=0.5)
    assert model.config.to_dict() == config and torch.equal(logits(model), before)


def test_synonyms_with_the_same_tokens_are_fine():
    assert with_labels(["cat;Cat", "dog"]).config.num_labels == 2


def test_templates_come_from_the_call_the_processor_or_the_configuration(tmp_path):
    assert with_labels().config.templates == ["{}"]
    assert with_labels(processor=toy_processor("a {}.")).config.templates == ["a {}."]
    assert with_labels(processor=toy_processor("a {}."), templates="the {}.").config.templates == ["the {}."]
    model = toy_model(templates=["one {}."])
    model.set_labels(LABELS, tiny_tokenizer())
    assert model.config.templates == ["one {}."]
    with pytest.raises(ValueError, match="templates"):
        model.set_labels(LABELS, tiny_tokenizer(), templates="{} and {}")


def test_a_dropped_text_encoder_makes_the_folder_small(tmp_path):
    model = with_labels()
    expected = logits(model)
    model.save_pretrained(tmp_path / "whole")
    model.drop_text_encoder()
    model.save_pretrained(tmp_path / "small")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "small")]
    assert sizes[1] < sizes[0] / 20
    again = ToyForSemanticSegmentation.from_pretrained(tmp_path / "small")
    assert torch.equal(logits(again), expected)
    for call in (
        lambda: again(PIXELS, **toy_processor()(text=LABELS, return_tensors="pt")),
        lambda: again.set_labels(LABELS, toy_processor()),
        again.drop_text_encoder,
    ):
        with pytest.raises(ValueError, match=r"(input_ids|labels|drop_text_encoder): the text encoder was dropped"):
            call()
    with pytest.raises(ValueError, match="drop_text_encoder: the model has no labels"):
        toy_model().drop_text_encoder()


# ---- configuration


@pytest.mark.parametrize(
    "values, message",
    [
        ({"background": float("inf")}, "background"),
        ({"background": True}, "background: got True"),
        ({"background": " "}, "background: ' ' is blank"),
        ({"background_index": -1}, "background_index: -1"),
        ({"synonym_rule": "sum"}, "synonym_rule"),
        ({"label_texts": [["cat"], []], "num_labels": 2}, "label_texts"),
        ({"label_texts": [["cat"]], "num_labels": 2}, "label_texts: for 1 labels, but id2label has 2"),
        ({"id2label": {0: "a", 2: "b"}}, "id2label"),
        ({"num_labels": -1}, "num_labels: -1"),
    ],
)
def test_bad_fields_of_the_configuration_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        ToySegmentationConfig(**values)


def test_other_configurations_still_need_a_label():
    from hf_clip_variants import SLIPConfig

    with pytest.raises(ValueError, match="num_labels: 0"):
        SLIPConfig(num_labels=0)


def test_the_configuration_file_is_plain_json(tmp_path):
    with_labels(["cat;feline", "dog"], background={"cat": 0.5, "dog": 0.25}).config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["label_texts"] == [["cat", "feline"], ["dog"]] and saved["background"] == {"cat": 0.5, "dog": 0.25}
    assert ToySegmentationConfig.from_pretrained(tmp_path).to_dict() == ToySegmentationConfig(**saved).to_dict()


def test_masks_and_merges_of_class_texts():
    texts = ClassTexts(torch.ones(3, 2), counts=(1, 1, 1))
    scores = torch.randn(1, 3, 2, 2)
    assert texts.merge(scores) is scores and texts.mask(scores) is scores


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"input_ids": [[1, 2]]}, "input_ids: got list"),
        ({"input_ids": torch.ones(3, 4)}, "input_ids: expected whole numbers"),
        ({"input_ids": torch.ones(5, 3, 1, 4).long()}, "input_ids: got .*of 5 images, for 2"),
        ({"input_ids": torch.ones(3, 4).long(), "attention_mask": torch.ones(3, 5)}, "attention_mask: got"),
        ({"class_embeddings": torch.ones(3, 5)}, "class_embeddings: got .*width 8"),
        ({"class_embeddings": torch.ones(3, 8).long()}, "class_embeddings: expected floats"),
        ({"class_embeddings": torch.ones(5, 3, 8)}, "class_embeddings: got .*of 5 images, for 2"),
    ],
)
def test_texts_of_wrong_types_and_shapes_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        toy_model().resolve_class_embeddings(**inputs, images=torch.zeros(2, 3, 8, 8))
