"""CoOp: what the contract of all adapters does not test."""

import pytest
import torch
import torch.nn.functional as F
from adapter_models import classifier_from_clip, tiny_classifier
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from tiny import CLASS_NAMES, tiny_clip, tiny_pixels, tiny_tokenizer

from hf_clip_variants.adapters import CoOpConfig, load_adapter
from hf_clip_variants.adapters.coop.layer import (
    coop_prompt_ids,
    fill_placeholders,
    shared_prefix_length,
    splice,
)


POSITIONS = ("end", "middle", "front")


def _expected_layout(start, context, tail, name_length, position):
    """The layouts of the paper, as lists."""
    name, rest, half = tail[:name_length], tail[name_length:], len(context) // 2
    return {
        "end": [start, *context, *name, *rest],
        "middle": [start, *context[:half], *name, *context[half:], *rest],
        "front": [start, *name, *context, *rest],
    }[position]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("num_context_tokens", [1, 2, 5])
def test_splice_has_the_layouts_of_the_paper(position, num_context_tokens):
    generator = torch.Generator().manual_seed(num_context_tokens)
    name_lengths = torch.tensor([3, 0, 1, 6])
    tails = torch.randint(10, 99, (4, 8), generator=generator)
    context = torch.arange(100, 100 + num_context_tokens)
    start = torch.full((4, 1), 7)
    found = splice(start, context, tails, name_lengths, position)
    expected = [
        _expected_layout(7, context.tolist(), tails[i].tolist(), int(name_lengths[i]), position)
        for i in range(len(tails))
    ]
    assert found.tolist() == expected
    table = torch.randn(200, 5, generator=generator)
    embedded = splice(table[start], table[context], table[tails], name_lengths, position)
    assert torch.equal(embedded, table[found])
    own = torch.randint(100, 150, (4, num_context_tokens), generator=generator)  # class-specific
    embedded = splice(table[start], table[own], table[tails], name_lengths, position)
    assert torch.equal(embedded, table[splice(start, own, tails, name_lengths, position)])


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("class_specific", [False, True])
def test_shared_prefix_is_equal_and_eos_position_is_independent_of_layout(position, class_specific):
    model = tiny_classifier()
    config = CoOpConfig(num_context_tokens=5, class_token_position=position, class_specific=class_specific)
    get_peft_model(model, config)
    prompts = model.prompt_embedder(model.class_prompts, model.clip.text_model.embeddings.token_embedding)
    assert prompts.prompts_per_class == 1
    assert prompts.shared_prefix == shared_prefix_length(5, position, class_specific)
    shared = prompts.inputs_embeds[:, : prompts.shared_prefix]
    assert torch.equal(shared, shared[:1].expand_as(shared))
    assert not torch.equal(
        prompts.inputs_embeds[0, prompts.shared_prefix], prompts.inputs_embeds[1, prompts.shared_prefix]
    )
    end = (prompts.input_ids == model.padding_id).int().argmax(dim=1)
    assert end.tolist() == (1 + 5 + (model.tail_ids == model.padding_id).int().argmax(dim=1)).tolist()


def test_context_from_words_starts_from_zero_shot_clip():
    model = tiny_classifier()
    zero_shot = model(pixel_values=tiny_pixels()).logits
    adapted = get_peft_model(model, CoOpConfig(context_init="a_photo_of_a"))
    config = adapted.peft_config["default"]
    words = tiny_tokenizer()("a photo of a", add_special_tokens=False).input_ids
    assert config.context_init_ids == words and config.num_context_tokens == len(words)
    torch.testing.assert_close(adapted(pixel_values=tiny_pixels()).logits, zero_shot, rtol=0, atol=1e-5)


def test_context_is_counted_in_tokens_not_words():
    words = "an ultraviolet photomicrograph of a"
    ids = tiny_tokenizer()(words, add_special_tokens=False).input_ids
    assert len(ids) > len(words.split())  # otherwise the test compares nothing
    model = get_peft_model(tiny_classifier(), CoOpConfig(context_init=words))
    assert model.peft_config["default"].num_context_tokens == len(ids)
    with pytest.raises(ValueError, match=f"num_context_tokens: 5, but context_init .* has {len(ids)} tokens"):
        get_peft_model(tiny_classifier(), CoOpConfig(context_init=words, num_context_tokens=5))


def test_class_specific_contexts_from_words_equal_one_context():
    logits = []
    for class_specific in (False, True):
        config = CoOpConfig(context_init="a photo of a", class_specific=class_specific)
        model = get_peft_model(tiny_classifier(), config)
        logits.append(model(pixel_values=tiny_pixels()).logits)
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("class_token_position", POSITIONS)
@pytest.mark.parametrize("class_specific", [False, True])
def test_plain_clip_model_and_classifier_agree(class_token_position, class_specific):
    options = {"num_context_tokens": 3, "class_token_position": class_token_position, "class_specific": class_specific}
    clip, classifier = tiny_clip(), tiny_classifier()
    models = []
    for base, names in ((clip, CLASS_NAMES), (classifier, None)):
        torch.manual_seed(5)
        models.append(get_peft_model(base, CoOpConfig(**options, class_names=names)))
    ids = coop_prompt_ids(tiny_tokenizer(), CLASS_NAMES, 3, class_token_position, max_length=32)
    on_clip = models[0](input_ids=ids, pixel_values=tiny_pixels()).logits_per_image
    torch.testing.assert_close(models[1](pixel_values=tiny_pixels()).logits, on_clip, rtol=0, atol=1e-5)


def test_one_context_serves_other_classes(tmp_path):
    model = get_peft_model(tiny_classifier(), CoOpConfig(num_context_tokens=4))
    model.save_pretrained(tmp_path)
    other = PeftModel.from_pretrained(tiny_classifier(class_names=["owl", "tea cup"]), tmp_path)
    (before,), (after,) = get_peft_model_state_dict(model).values(), get_peft_model_state_dict(other).values()
    assert torch.equal(before, after)
    assert other(pixel_values=tiny_pixels()).logits.shape == (4, 2)
    model.get_base_model().set_classes([*CLASS_NAMES, "owl"])
    assert model(pixel_values=tiny_pixels()).logits.shape == (4, 6)


def test_class_specific_contexts_refuse_other_classes(tmp_path):
    model = get_peft_model(tiny_classifier(), CoOpConfig(num_context_tokens=4, class_specific=True))
    model.save_pretrained(tmp_path)
    swapped = [CLASS_NAMES[1], CLASS_NAMES[0], *CLASS_NAMES[2:]]
    for names, message in (
        ([*CLASS_NAMES[:-1], "owl"], r"added \['owl'\] \(1\), removed \['red apple'\] \(1\)"),
        (CLASS_NAMES[:-1], r"added \[\] \(0\), removed \['red apple'\] \(1\)"),
        (swapped, "the same names in another order: 'cat' is now 'golden retriever' at 0"),
    ):
        with pytest.raises(ValueError, match=f"class_names: .*one context per class.*{message}"):
            PeftModel.from_pretrained(tiny_classifier(class_names=names), tmp_path)
        with pytest.raises(ValueError, match=message):
            load_adapter(tmp_path, tiny_classifier(class_names=names))
        with pytest.raises(ValueError, match=message):
            model.get_base_model().set_classes(names)
    with pytest.raises(ValueError, match="the classifier has no classes"):
        PeftModel.from_pretrained(tiny_classifier(class_names=None), tmp_path)
    assert model.get_base_model().class_names == CLASS_NAMES

    model.add_adapter("shared", CoOpConfig(num_context_tokens=4))
    model.set_adapter("shared")
    model.delete_adapter("default")
    model.get_base_model().set_classes(swapped)  # no adapter depends on the old classes any more


def test_class_specific_needs_class_names():
    with pytest.raises(ValueError, match=r"class_names: class_specific=True needs them; pass CoOpConfig\(class_names"):
        get_peft_model(tiny_clip(), CoOpConfig(class_specific=True))
    with pytest.raises(ValueError, match="class_names: class_specific=True needs them; call set_classes"):
        get_peft_model(tiny_classifier(class_names=None), CoOpConfig(class_specific=True))


def test_words_on_plain_clip_model_need_ids():
    with pytest.raises(ValueError, match="context_init: 'a photo of a' needs a tokenizer"):
        get_peft_model(tiny_clip(), CoOpConfig(context_init="a photo of a"))
    with pytest.raises(ValueError, match="context_init_ids: 4038 is outside the vocabulary of 4038"):
        get_peft_model(tiny_clip(), CoOpConfig(context_init_ids=[4038]))


def test_placeholders_are_checked():
    embeds, ids, context = (
        torch.zeros(2, 6, 3),
        torch.tensor([[9, 9, 9, 1, 2, 3], [9, 9, 1, 2, 3, 4]]),
        torch.ones(2, 3),
    )
    with pytest.raises(ValueError, match="row 1 has 1 placeholders, the adapter has 2 context tokens"):
        fill_placeholders(embeds, ids, context, class_specific=False)
    filled = fill_placeholders(embeds, ids[:1].expand(2, -1), context, class_specific=False)
    assert filled[:, :, 0].tolist() == [[0, 1, 1, 0, 0, 0]] * 2
    with pytest.raises(ValueError, match="2 prompts, but the class-specific context is for 3 classes"):
        fill_placeholders(embeds, ids, torch.ones(3, 2, 3), class_specific=True)
    model = get_peft_model(tiny_clip(), CoOpConfig(num_context_tokens=4))
    text = tiny_tokenizer()(["a photo of a cat."], return_tensors="pt").input_ids
    with pytest.raises(ValueError, match="row 0 has 0 placeholders"):
        model(input_ids=text, pixel_values=tiny_pixels())
    with model.disable_adapter():
        model(input_ids=text, pixel_values=tiny_pixels())


def test_too_long_prompts_are_refused():
    model = get_peft_model(tiny_classifier(), CoOpConfig(num_context_tokens=30))
    with pytest.raises(ValueError, match="30 context tokens and the longest class name make a prompt of .* takes 32"):
        model(pixel_values=tiny_pixels())
    with pytest.raises(ValueError, match="num_context_tokens: 30"):
        coop_prompt_ids(tiny_tokenizer(), CLASS_NAMES, 30, max_length=32)


def test_start_token_is_read_from_the_prompts_not_the_configuration():
    """Old configurations say that SOS is 0 and EOS is 2."""
    logits = []
    for token_ids in ({}, {"bos_token_id": 0, "eos_token_id": 2}):
        base = classifier_from_clip(tiny_clip(text_config=token_ids))
        base.set_classes(CLASS_NAMES, tokenizer=tiny_tokenizer())
        torch.manual_seed(0)
        model = get_peft_model(base, CoOpConfig(num_context_tokens=4))
        logits.append(model(pixel_values=tiny_pixels()).logits)
    torch.testing.assert_close(*logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_context_tokens": 0}, "num_context_tokens: 0"),
        ({"class_token_position": "start"}, "class_token_position: 'start', expected one of 'end', 'middle', 'front'"),
        ({"context_init": " "}, "context_init: blank"),
        ({"context_init_ids": []}, "context_init_ids: empty"),
        ({"class_names": "cat, dog"}, "class_names: 'cat, dog' is one string"),
        (
            {"context_init_ids": [1, 2], "num_context_tokens": 3},
            "num_context_tokens: 3, but context_init .* has 2 tokens",
        ),
    ],
)
def test_invalid_configuration_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoOpConfig(**arguments)


def test_default_is_sixteen_context_tokens():
    assert CoOpConfig().num_context_tokens == 16


def test_training_fits_and_class_specific_contexts_fit_better():
    """Random features of five classes around five centres; only the context is trained."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 24, generator=generator)
    labels = torch.arange(40) % 5
    features = centres[labels] + 0.3 * torch.randn(40, 24, generator=generator)
    losses = {}
    for class_specific in (False, True):
        torch.manual_seed(0)
        base = tiny_classifier(templates=["a photo of a {}."])
        model = get_peft_model(base, CoOpConfig(num_context_tokens=4, class_specific=class_specific))
        frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        history = []
        for _ in range(50):
            loss = F.cross_entropy(model(image_features=features).logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        losses[class_specific] = history
        assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert losses[False][-1] < 0.85 * losses[False][0]
    assert losses[True][-1] <= losses[False][-1]


def _kept_bytes(run) -> int:
    kept, alive = {}, []

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)  # so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
def test_text_chunk_size_changes_memory_but_no_numbers(position, class_specific):
    names = [f"{word} {noun}" for word in ("red", "big", "old", "wet", "odd", "new") for noun in ("cat", "dog", "car")]
    batch = {"image_features": torch.randn(8, 24, generator=torch.Generator().manual_seed(0))}
    batch["labels"] = torch.arange(8) % len(names)
    found = []
    for size in (0, 1, 40, 90):
        torch.manual_seed(0)
        config = CoOpConfig(
            num_context_tokens=3,
            class_token_position=position,
            class_specific=class_specific,
            text_chunk_size=size,
        )
        model = get_peft_model(tiny_classifier(class_names=names), config)
        (context,) = (p for p in model.parameters() if p.requires_grad)
        loss = model(**batch).loss
        loss.backward()
        with torch.no_grad():
            embeds = model(**batch).text_embeds
        kept = _kept_bytes(lambda model=model: model(**batch))
        found.append((loss.detach(), context.grad, embeds, kept))
    whole, *chunked = found
    for loss, gradient, embeds, kept in chunked:
        torch.testing.assert_close(loss, whole[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, whole[1], rtol=1e-4, atol=1e-6 * float(whole[1].abs().max()))
        assert torch.equal(embeds, whole[2]), "without a backward pass nothing is divided"
        assert kept < whole[3] / 3, (kept, whole[3])


def test_many_classes_are_encoded_in_chunks_unless_asked_otherwise():
    sizes = {count: CoOpConfig().chunk_size(count) for count in (1, 100, 512, 513, 1000, 100_000)}
    assert sizes == {1: None, 100: None, 512: None, 513: 512, 1000: 512, 100_000: 512}
    assert CoOpConfig(text_chunk_size=0).chunk_size(10_000) is None
    assert CoOpConfig(text_chunk_size=64).chunk_size(2) == 64


@pytest.mark.parametrize("value", [-1, 2.5, True, "auto"])
def test_a_wrong_text_chunk_size_is_named(value):
    with pytest.raises(ValueError, match="text_chunk_size: .* expected a whole number"):
        CoOpConfig(text_chunk_size=value)
