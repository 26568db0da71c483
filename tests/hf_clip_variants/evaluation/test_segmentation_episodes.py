"""Few-shot segmentation: folds, episodes, and the mean IoU of two texts for each image."""

import numpy as np
import pytest
import torch
from lseg_runs import lseg_model
from tiny import tiny_tokenizer

from hf_clip_variants import DenseImageProcessor, DenseProcessor
from hf_clip_variants.data.scenes.scenes import make_scenes
from hf_clip_variants.data.segmentation_episodes import (
    COCO_CLASSES,
    PASCAL_CLASSES,
    Episode,
    draw_episodes,
    fold_classes,
)
from hf_clip_variants.evaluation.segmentation_episodes import evaluate_episodes


NAMES = ["cat", "taco", "whale"]


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(6, styles="fluentflat", class_names=NAMES, size=64, objects=(1, 2))


@pytest.fixture(scope="module")
def processor():
    return DenseProcessor(DenseImageProcessor(), tiny_tokenizer())


@pytest.mark.parametrize(("benchmark", "count"), [("pascal", 20), ("coco", 80)])
def test_folds_divide_the_classes(benchmark, count):
    folds = [fold_classes(benchmark, fold) for fold in range(4)]
    assert sorted(one for fold in folds for one in fold) == list(range(count))
    names = {"pascal": PASCAL_CLASSES, "coco": COCO_CLASSES}[benchmark]
    assert len(set(names)) == count and not any(" " in name for name in names)


def test_unknown_folds_are_named():
    for arguments, said in ((("pascal", 4), "fold: 4"), (("fss", 0), "fold: 0"), (("ade", 0), "benchmark: 'ade'")):
        with pytest.raises(ValueError, match=said):
            fold_classes(*arguments)
    parts = [fold_classes("fss", part) for part in ("train", "validation", "test")]
    assert [one for part in parts for one in part] == list(range(1000))


def test_episodes_have_their_class_and_are_drawn_by_the_seed(scenes):
    first = list(draw_episodes(scenes, [0, 2], count=8, seed=3))
    again = list(draw_episodes(scenes, [0, 2], count=8, seed=3))
    assert all((a.mask == b.mask).all() and a.class_id == b.class_id for a, b in zip(first, again, strict=True))
    assert all(episode.class_id in (0, 2) and (episode.mask == 1).any() for episode in first)
    other = list(draw_episodes(scenes, [0, 2], count=8, seed=4))
    assert any((a.mask != b.mask).any() for a, b in zip(first, other, strict=True))
    with pytest.raises(ValueError, match=r"classes: none of \[7\] is in an image"):
        draw_episodes(scenes, [7])


def test_pixels_that_do_not_count_stay_so(scenes):
    def with_border(row):
        label_map = np.array(row["label_map"])
        label_map[:4] = 255
        return row | {"label_map": label_map}

    rows = [with_border(row) for row in scenes]
    from datasets import Dataset

    dataset = Dataset.from_dict(
        {"image": [row["image_id"] for row in rows], "label_map": [row["label_map"].tolist() for row in rows]}
    )
    for episode in draw_episodes(dataset, [0, 1, 2], count=5):
        assert (episode.mask[:4] == 255).all() and set(np.unique(episode.mask[4:])) <= {0, 1}


class Painter(torch.nn.Module):
    """Scores of the two texts that are the image's red and green channel."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.encoded = []

    def embed_texts(self, texts, processor):
        self.encoded.append(texts)
        return torch.eye(2)

    def forward(self, pixel_values, class_embeddings):
        from hf_clip_variants.modeling.dense.outputs_dense import PromptableSegmentationOutput

        assert class_embeddings.shape == (len(pixel_values), 2, 2) and not self.training
        return PromptableSegmentationOutput(logits=pixel_values[:, :2] * self.weight)


def test_the_means_are_those_of_the_counted_pixels(processor):
    """Two classes: one of which is found as a whole, and one of which half is found and as much of the background."""
    episodes = []
    for class_id in (0, 2, 0, 2, 2):
        mask, found = np.zeros((8, 8), np.uint8), np.zeros((8, 8), bool)
        mask[2:6] = 1
        found[2:6] = True
        if class_id == 2:
            found[:] = False
            found[4:8] = True
        image = np.zeros((8, 8, 3), np.uint8)
        image[..., 0], image[..., 1] = 255 * ~found, 255 * found
        episodes.append(Episode(image, mask, class_id))
    model = Painter().train()
    result = evaluate_episodes(model, processor, iter(episodes), NAMES, size=8, batch_size=2)
    half = 16 / 48  # intersection and union of the second class, foreground and background
    assert result["episodes"] == 5 and result["mean_iou"] == pytest.approx((1 + half) / 2)
    pooled = (2 * 32 + 3 * 16) / (2 * 32 + 3 * 48)
    assert result["fb_iou"] == pytest.approx(pooled)
    assert result["per_category_iou"].tolist() == pytest.approx([1, 0, half])
    assert model.encoded == [["others", "cat"], ["others", "whale"]] and model.training
    whole_fold = evaluate_episodes(model, processor, episodes, NAMES, classes=[0, 1, 2], size=8)
    assert whole_fold["mean_iou"] == pytest.approx((1 + half) / 3)


def test_a_model_is_evaluated_by_name(scenes, processor):
    model = lseg_model()
    result = evaluate_episodes(model, processor, draw_episodes(scenes, [0, 1, 2], count=5), NAMES, size=64)
    assert 0 <= result["mean_iou"] < 0.9 and 0 < result["fb_iou"] < 0.9
    with pytest.raises(ValueError, match="episodes: none"):
        evaluate_episodes(model, processor, [], NAMES)
    with pytest.raises(ValueError, match="class_names: 1 names, but an episode has class"):
        evaluate_episodes(model, processor, draw_episodes(scenes, [1, 2], count=1), NAMES[:1], size=64)
