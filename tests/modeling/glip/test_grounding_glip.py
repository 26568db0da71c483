"""GLIP's training prompts: names that are not in the image, captions with boxes of their phrases, both together."""

import json
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from glip_runs import NAMES, glip_model, glip_processor, noise, save_glip_data
from paths import SCRIPTS

from hf_clip_variants.data.crops.detection_rows import DetectionRows
from hf_clip_variants.data.detection_sets import join_sets, load_detection_set, load_grounding_set
from hf_clip_variants.training.detection_trainer import TextDetectionCollator


MANY = [f"{colour} {name}" for colour in ("red", "small", "the") for name in ("cat", "dog", "car", "pizza", "bird")]


def drawn(present, seed=0, names=NAMES, **options) -> list[int]:
    return glip_processor().draw_names(names, present, np.random.default_rng(seed), **options)


# ---- names that are not in the image


def test_prompts_have_all_names_of_the_image_and_some_others():
    counts, orders, others = Counter(), set(), Counter()
    for seed in range(300):
        kept = drawn([3, 1, 3], seed)
        assert {1, 3} <= set(kept) and len(set(kept)) == len(kept) and drawn([3, 1, 3], seed) == kept
        counts[len(kept)] += 1
        orders.add(tuple(kept))
        others.update(set(kept) - {1, 3})
    # Half of the prompts have all names; of the rest 1 to 5 names are drawn among all.
    assert 150 <= counts[5] <= 240 and min(counts) == 2 and len(orders) > 50 and set(others) == {0, 2, 4}
    assert all(drawn([], seed) for seed in range(50))  # an image without objects
    assert Counter(len(drawn([2], seed, max_others=0)) for seed in range(20)) == {1: 20}
    assert all(len(drawn([2], seed, max_others=2)) <= 3 for seed in range(50))


def test_prompts_are_never_longer_than_the_model_reads():
    processor = glip_processor()
    for seed in range(20):
        kept = drawn([seed % 15, 14], seed, MANY)
        ids = processor(text=[MANY[i] for i in kept]).input_ids
        assert ids.dim() == 2 and ids.shape[1] <= 24 and {seed % 15, 14} <= set(kept)
        # A prompt with all others is full: nothing was left out too early.
        full = drawn([14], seed, MANY, all_chance=1.0)
        assert len(full) == 7
    with pytest.warns(UserWarning, match="names: of 15 in an image, 8 do not fit into a prompt of 24 tokens"):
        assert len(drawn(range(15), names=MANY)) == 7
    for present, options, message in (
        ([5], {}, "present: 5..5, expected places in 0..4"),
        ([0], {"max_others": -1}, "max_others: -1"),
        ([0], {"names": []}, "names: none"),
        ([0], {"names": ["cat " * 30]}, r"names\[0\]: 30 tokens, expected at most 22"),
    ):
        with pytest.raises(ValueError, match=message):
            drawn(present, **options)


def test_a_batch_has_a_prompt_of_its_own_for_each_image_and_epoch():
    processor = glip_processor()
    marks = [
        [{"bbox": [6, 8, 24, 20], "category_id": 11, "area": 480}],
        [],
        [{"bbox": [5, 5, 9, 9], "category_id": 0, "area": 81}],
    ]
    rows = DetectionRows([noise(64, 48, i) for i in range(3)], marks, seed=5)
    collate = TextDetectionCollator(processor, labels=MANY, others=85)

    def read() -> tuple[dict, list[list[str]]]:
        batch = collate([rows[i] for i in range(3)])
        texts = [processor._names(*one) for one in zip(batch["input_ids"], batch["phrase_map"], strict=True)]
        return batch, [[name for name in names if name] for names in texts]

    batch, names = read()
    assert names[0][batch["labels"][0]["class_labels"]] == MANY[11] and not len(batch["labels"][1]["class_labels"])
    assert names[2][batch["labels"][2]["class_labels"]] == MANY[0]
    assert 1 <= len(names[1]) and all(set(one) <= set(MANY) for one in names)
    assert read()[1] == names
    rows.set_epoch(1)
    assert read()[1] != names
    with torch.no_grad():
        assert glip_model()(**batch).loss.isfinite()
    assert collate.evaluation_batch([rows[0]])["input_ids"].shape[1] > 1  # all names, in several prompts
    with pytest.raises(
        ValueError, match="data: 15 class names make 3 prompts, training takes one; want --other-names"
    ):
        TextDetectionCollator(processor, labels=MANY).check_one_prompt()


# ---- captions


CAPTION = "a red car on the pizza and a small dog"


def save_pairs(folder, marks=None, caption=CAPTION):
    """COCO's json with captions: boxes of three phrases in image 1, none in the others."""
    document = json.loads((folder / "train.json").read_text())
    for image in document["images"]:
        image["caption"] = caption if image["id"] == 1 else "a cat"
    spans = [[[0, 9]], [[13, 22]], [[27, 38], [0, 1]]] if marks is None else marks
    document["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [6, 8, 24, 20 + i], "tokens_positive": span}
        for i, span in enumerate(spans)
    ]
    document["categories"] = [{"id": 1, "name": "object"}]
    (folder / "pairs.json").write_text(json.dumps(document))
    return folder / "pairs.json"


@pytest.fixture
def place(tmp_path):
    save_glip_data(tmp_path)
    return tmp_path


def test_phrases_of_captions_are_what_boxes_are_trained_on(place):
    processor, data = glip_processor(), load_grounding_set(save_pairs(place))
    rows = DetectionRows(data.images, data.annotations, captions=data.captions)
    collate = TextDetectionCollator(processor)
    batch = collate([rows[i] for i in range(2)])
    names = processor._names(batch["input_ids"][1], batch["phrase_map"][1])
    assert [names[label] for label in batch["labels"][1]["class_labels"]] == [
        "a red car",
        "the pizza",
        "a a small dog",
    ]
    assert batch["phrase_map"][0].any(dim=1).sum() == 1 and not len(batch["labels"][0]["boxes"])
    model = glip_model()
    outputs = model(**batch)
    outputs.loss.backward()
    assert outputs.loss.isfinite() and model.text_encoder.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_detection_and_grounding_data_are_trained_on_together(place, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    import finetune_detection

    for part in (glip_model(), glip_processor()):
        part.save_pretrained(place / "model")
    pairs = save_pairs(place)

    def train(out, *more):
        arguments = ["--model", place / "model", "--out", place / out, "--batch-size", "4", "--log-every", "1", *more]
        return finetune_detection.main([str(one) for one in arguments]), capsys.readouterr().err

    try:
        both = ["--data", place / "train.json", "--grounding", pairs, "--other-names", "85", "--steps", "2"]
        code, err = train("both", *both, "--eval-data", place / "train.json")
        assert code == 0 and "6 boxes in 8 images" in err
        run = json.loads((place / "both" / "run.json").read_text())
        assert run["class_names"] == ["cat", "traffic light", "pizza"] and "eval_AP" in run["metrics"]
        code, err = train("alone", "--grounding", pairs, "--steps", "1", "--eval-grounding", pairs)
        assert code == 0 and "3 boxes in 4 images" in err
        run = json.loads((place / "alone" / "run.json").read_text())
        assert 0 <= run["metrics"]["R@1"] <= run["metrics"]["R@10"] <= 1 and "eval_AP" not in run["metrics"]
        for more, message in (
            ([], "--data: got none; want --data, --grounding or both"),
            (["--grounding", pairs, "--tuning", "prompt"], "--tuning: prompt, whose prompt is always the same"),
            (["--grounding", place / "train.json"], "train.json: image 0 has no caption"),
        ):
            code, err = train("wrong", "--steps", "1", *more)
            assert code == 2 and message in err, err
        save_pairs(place, caption="a red car on the pizza and " + "a small dog and " * 9)
        code, err = train("wrong", "--grounding", pairs, "--steps", "1")
        assert code == 2 and "--grounding: the caption of image 1 has 45 tokens, the model reads 24" in err
    finally:
        torch.set_num_threads(threads)
        sys.modules.pop("finetune_detection", None)


def test_sets_that_are_joined_keep_their_captions(place):
    pairs, data = load_grounding_set(save_pairs(place)), load_detection_set(place / "train.json")
    joined = join_sets(join_sets(data, pairs), pairs)
    assert joined.captions == [None] * len(data) + 2 * pairs.captions and len(joined) == len(data) + 2 * len(pairs)
    assert joined.class_names == data.class_names and joined.images[-1].size == pairs.images[-1].size


@pytest.mark.parametrize("spans", [[[0, 99]], [[5, 5]], [[-1, 4]], [], None, [[1, 2, 3]], [["a", 2]]])
def test_spans_outside_of_the_caption_are_named(place, spans):
    with pytest.raises(
        ValueError, match=r"an object of image 1 has tokens_positive .* want \[\[start, end\], …\] in 0..38"
    ):
        load_grounding_set(save_pairs(place, marks=[spans]))


def test_captions_that_say_left_or_right_are_not_mirrored(place):
    data = load_detection_set(place / "all.json")
    for caption, flips in (("a cat to the left of a dog", False), ("a cat", True)):
        rows = DetectionRows(data.images, data.annotations, flip=True, captions=[caption] * 4)
        found = set()
        for epoch in range(8):
            rows.set_epoch(epoch)
            found.add(rows[0]["annotations"][0]["bbox"][0])
        assert found == ({6, 34} if flips else {6})
