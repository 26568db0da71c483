"""Prompts made of the nouns of captions."""

import sys

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from hf_clip_variants import embedded_model
from hf_clip_variants.data import NounPromptCollator, NounPrompts, load_emoji
from hf_clip_variants.data.pairs.noun_prompts import TAGS, NounList, tagged_nouns, word_ids, word_key
from hf_clip_variants.modeling.dual_encoders.template_sets import TEMPLATE_SETS


CAPTION = "Two dogs are chasing a ball in the garden near a hot dog."


def test_imagenet_templates_are_the_published_ones():
    open_clip = pytest.importorskip("open_clip")
    assert list(TEMPLATE_SETS["imagenet"]) == [make("{}") for make in open_clip.OPENAI_IMAGENET_TEMPLATES]


def test_nouns_and_verbs_are_kept_with_repetitions_and_plural_names_are_not():
    tagged = [("Dogs", "NNS"), ("run", "VBP"), ("Alps", "NNPS"), ("red", "JJ"), ("dogs", "NNS"), ("Rome", "NNP")]
    assert tagged_nouns("", lambda text: tagged) == ["Dogs", "run", "dogs", "Rome"]
    assert len(TAGS) == 9 and "NNPS" not in TAGS and "JJ" not in TAGS


def test_the_default_tagger_needs_no_download(monkeypatch):
    pytest.importorskip("textblob")
    monkeypatch.setenv("NLTK_DATA", "/nowhere")
    found = NounPrompts(2).find(CAPTION)
    assert [word for word in found if word != "are"] == ["dogs", "chasing", "ball", "garden", "dog"]


def test_without_the_tagger_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "textblob", None)
    with pytest.raises(ImportError, match=r'pip install "hf-clip-variants\[nouns\]"'):
        NounPrompts(2)
    assert NounPrompts(2, nouns=["dog"]).find(CAPTION) == ["dog", "dog"]


def test_a_list_finds_plurals_and_the_longer_name():
    nouns = NounList(["dog", "hot dog", "wine glass", "cherry", "leaf"])
    assert nouns.find(CAPTION) == ["dog", "hot dog"]
    assert nouns.find("WINE GLASSES, a wine bottle and Cherries; dogma") == ["wine glass", "cherry"]
    assert nouns.find("") == []


@pytest.mark.parametrize("same", [("dog", "Dogs"), ("box", "boxes"), ("run", "running"), ("cherry", "cherries")])
def test_forms_of_a_word_are_one_word(same):
    assert word_key(same[0]) == word_key(same[1])


def test_different_words_stay_different():
    words = ["cat", "car", "glass", "octopus", "bus", "tree", "trees house", "whale", "king", "ring", "red"]
    assert len({word_key(word) for word in words}) == len(words)


def test_every_noun_is_drawn_at_most_as_often_as_it_is_there():
    draw = NounPrompts(4, nouns=["dog", "ball", "garden"], templates=["a {}"], seed=1)
    for epoch in range(20):
        draw.set_epoch(epoch)
        drawn = draw.draw("dogs, a ball and a dog")
        assert sorted(drawn.words[:3]) == ["ball", "dog", "dog"]
        assert drawn.words[3] is None and drawn.texts[3] == "dogs, a ball and a dog"
        assert all(text == f"a {word}" for text, word in zip(drawn.texts[:3], drawn.words[:3], strict=True))


def test_all_nouns_and_templates_come_up():
    draw = NounPrompts(1, nouns=["dog", "ball"], templates=["a {}", "the {}", "my {}"])
    torch.manual_seed(0)
    assert {draw.draw("a dog and a ball").texts for _ in range(60)} == {
        (f"{article} {noun}",) for article in ("a", "the", "my") for noun in ("dog", "ball")
    }


def test_a_seed_decides_whatever_the_order():
    captions = [f"dog {i} and ball" for i in range(8)]
    first, second = (NounPrompts(2, nouns=["dog", "ball"], seed=3) for _ in range(2))
    made = [first.draw(caption) for caption in captions]
    assert [second.draw(caption) for caption in reversed(captions)] == made[::-1]
    second.set_epoch(1)
    assert [second.draw(caption) for caption in captions] != made
    assert [NounPrompts(2, nouns=["dog", "ball"], seed=4).draw(caption) for caption in captions] != made


def test_torch_seeds_what_has_no_seed():
    draw = NounPrompts(2, nouns=["dog", "ball", "garden"])
    torch.manual_seed(5)
    made = [draw.draw(CAPTION) for _ in range(5)]
    torch.manual_seed(5)
    assert [draw.draw(CAPTION) for _ in range(5)] == made and len(set(made)) > 1


@pytest.fixture(scope="module")
def processor():
    from hf_clip_variants import CLIPClassifierProcessor

    return CLIPClassifierProcessor.from_pretrained(embedded_model())


def rows(count=4) -> Dataset:
    images = load_emoji("notov1").dataset[:count]["image"]
    return Dataset.from_dict({"image": images, "text": ["a cat", "two cats and a dog", "nothing", "dogs"][:count]})


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_captions_and_prompts_of_one_length(processor, workers):
    collator = NounPromptCollator(processor, NounPrompts(3, nouns=["cat", "dog"], seed=0), word_ids=True)
    (batch,) = DataLoader(rows(), batch_size=4, collate_fn=collator, num_workers=workers)
    assert batch["prompt_input_ids"].shape == (4, 3, batch["input_ids"].shape[1])
    assert batch["prompt_attention_mask"].shape == batch["prompt_input_ids"].shape and len(batch["pixel_values"]) == 4
    ids = batch["prompt_word_ids"]
    assert sorted(ids[1].tolist())[0] == -1 and ids[2].tolist() == [-1, -1, -1]
    assert set(ids[0].tolist()) & set(ids[1].tolist()) - {-1} and set(ids[3].tolist()) & set(ids[1].tolist()) - {-1}
    decoded = processor.tokenizer.batch_decode(batch["prompt_input_ids"][2], skip_special_tokens=True)
    assert decoded == ["nothing"] * 3 and batch["return_loss"] is True


def test_a_transform_makes_the_prompts_that_the_collator_takes(processor):
    draw = NounPrompts(2, nouns=["cat", "dog"], seed=0)
    one_by_one = rows().with_transform(draw)
    mapped = rows().map(draw, batched=True)
    assert [one_by_one[i]["prompts"] for i in range(4)] == mapped["prompts"][:]
    made = NounPromptCollator(processor, draw)([mapped[i] for i in range(4)])
    drawn = NounPromptCollator(processor, draw)([rows()[i] for i in range(4)])
    assert torch.equal(made["prompt_input_ids"], drawn["prompt_input_ids"]) and "prompt_word_ids" not in made


def test_wrong_arguments_are_named(processor):
    with pytest.raises(ValueError, match="num_prompts: got 0"):
        NounPrompts(0, nouns=["cat"])
    with pytest.raises(ValueError, match="want one of them"):
        NounPrompts(1, nouns=["cat"], tagger=lambda text: [])
    for nouns in ("cat", [], [" "]):
        with pytest.raises(ValueError, match="want a list of words"):
            NounList(nouns)
    draw = NounPrompts(1, nouns=["cat"])
    with pytest.raises(ValueError, match="rows have"):
        draw({"caption": "a cat"})
    with pytest.raises(ValueError, match="empty batch"):
        NounPromptCollator(processor, draw)([])
    with pytest.raises(ValueError, match="remove_unused_columns"):
        NounPromptCollator(processor, draw)([{"text": "a cat"}])
    assert word_ids([["cat", "Cats"], ["dog", None]]).tolist() == [[0, 0], [1, -1]]
