"""R@K of phrases: a model that puts its boxes where a test wants them."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from glip_runs import glip_model, glip_processor, save_glip_data

from hf_clip_variants.data.detection_sets import load_detection_set, load_grounding_set
from hf_clip_variants.evaluation.grounding_recall import measure_grounding_recall


CAPTION = "a red car on the pizza and a small dog"


@pytest.fixture
def data(tmp_path):
    """Image 1 has a red car and a dog, image 2 two pizzas; image 0 has no object."""
    save_glip_data(tmp_path)
    document = json.loads((tmp_path / "train.json").read_text())
    for image in document["images"]:
        image["caption"] = CAPTION
    marks = [(1, 1, [4, 4, 20, 20], [[0, 9]]), (1, 0, [30, 8, 20, 30], [[27, 38]])]
    marks += [(2, 2, [4, 4, 20, 20], [[13, 22]]), (2, 2, [30, 8, 20, 30], [[13, 22]])]
    document["annotations"] = [
        {"id": i, "image_id": image, "category_id": label, "bbox": box, "tokens_positive": spans}
        for i, (image, label, box, spans) in enumerate(marks)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(document))
    return load_grounding_set(tmp_path / "pairs.json")


class Finder:
    """Finds one box first, then another, for every phrase."""

    def __init__(self, processor, *boxes):
        self.processor, self.boxes = processor, torch.tensor(boxes, dtype=torch.float32)

    def __call__(self, images, captions, phrases, **options):
        inputs = self.processor(images, captions=captions, phrases=phrases, **options)
        self.counts = [len(one) for one in phrases]
        return inputs

    def post_process_grounded_object_detection(self, outputs, target_sizes, **options):
        found = []
        for count in self.counts:
            labels = torch.arange(count).repeat_interleave(len(self.boxes))
            scores = torch.linspace(1, 0.5, len(labels))
            found.append({"labels": labels, "boxes": self.boxes.repeat(count, 1), "scores": scores})
        return found


def test_recall_is_of_phrases_and_of_groups_of_classes(data):
    model, finder = glip_model(), Finder(glip_processor(), [4, 4, 24, 24], [30, 8, 50, 38])
    groups = {"animals": [0], "food": [2], "none": []}
    found = measure_grounding_recall(model, finder, data, groups, counts=(1, 2))
    # Of three phrases the car and one of the pizzas are at the first box, the dog is at the second.
    assert found["R@1"] == pytest.approx(2 / 3) and found["R@2"] == 1
    assert (found["animals/R@1"], found["animals/R@2"], found["food/R@1"]) == (0, 1, 1)
    assert math.isnan(found["none/R@1"])
    alone = measure_grounding_recall(model, finder, data, groups, counts=(1, 2), batch_size=1)
    assert str(alone) == str(found)


def test_a_real_processor_gives_shares_and_captions_are_needed(data, tmp_path):
    seen = []
    found = measure_grounding_recall(glip_model(), glip_processor(), data, progress=seen.append)
    assert set(found) == {"R@1", "R@5", "R@10"} and 0 <= found["R@1"] <= found["R@5"] <= found["R@10"] <= 1
    assert seen == [2]
    with pytest.raises(ValueError, match="data: no captions, expected a set of load_grounding_set"):
        measure_grounding_recall(SimpleNamespace(), glip_processor(), load_detection_set(tmp_path / "train.json"))
