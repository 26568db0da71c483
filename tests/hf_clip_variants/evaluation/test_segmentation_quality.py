"""Mean IoU of models that segment on data sets with label maps, and the oracle analysis."""

import json

import numpy as np
import pytest
import torch
from paths import PROGRAMS
from processes import run_on_ranks
from segmenters import save_segmenter

from hf_clip_variants.data import make_scenes
from hf_clip_variants.data.images.label_maps import LabelMaps, load_label_maps
from hf_clip_variants.evaluation.segmentation_quality import (
    Windows,
    calibrate_background,
    load_segmentation_model,
    match_labels,
    measure_segmentation,
)
from hf_clip_variants.metrics.segmentation import MeanIoU


NAMES = ["cat", "taco", "whale"]


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(5, seed=1, styles="notov1", class_names=NAMES, size=[(48, 40), (33, 47)])


@pytest.fixture(scope="module")
def data(scenes) -> LabelMaps:
    return load_label_maps(scenes)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("toy"), labels=["thing"])


@pytest.fixture(scope="module")
def groupvit(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("groupvit"), "groups")


def by_hand(segmenter, data, order) -> dict:
    """`order`: the data's class of each label."""
    metric = MeanIoU(len(data.class_names))
    for index in range(len(data)):
        truth = torch.from_numpy(data.label_map(index))
        inputs = segmenter.processor(images=data.image(index), return_tensors="pt")
        with torch.no_grad():
            outputs = segmenter.model(**inputs)
        found = segmenter.processor.post_process_semantic_segmentation(outputs, [tuple(truth.shape)])[0]
        metric.update(torch.tensor(order)[found], truth)
    return metric.compute()


def test_mean_iou_is_that_of_a_loop(toy, data):
    segmenter = load_segmentation_model(toy, data.class_names)
    assert segmenter.labels == ("background", *NAMES)
    result, wanted = measure_segmentation(segmenter, data), by_hand(segmenter, data, [0, 1, 2, 3])
    assert result["mean_iou"] == wanted["mean_iou"] and result["images"] == 5
    assert list(result["per_class_iou"].values()) == [None if np.isnan(v) else v for v in wanted["per_category_iou"]]


def test_labels_are_matched_by_name_and_a_threshold_is_the_background(groupvit, data):
    segmenter = load_segmentation_model(groupvit, ["whale", "Cat", "taco"], background=0.1)
    assert segmenter.labels == ("background", "whale", "Cat", "taco") and segmenter.background == 0
    result, wanted = measure_segmentation(segmenter, data), by_hand(segmenter, data, [0, 3, 1, 2])
    assert result["mean_iou"] == wanted["mean_iou"] and not result["missing_classes"]


def test_labels_that_the_data_does_not_have_are_wrong_everywhere(toy, data):
    result = measure_segmentation(load_segmentation_model(toy, ["cat", "pizza"]), data)
    assert result["unknown_labels"] == ("pizza",) and result["missing_classes"] == ("background", "taco", "whale")
    assert result["per_class_iou"]["taco"] == 0
    with pytest.raises(ValueError, match="none of 'pizza', 'fox' is a class"):
        measure_segmentation(load_segmentation_model(toy, ["pizza", "fox"]), data)


def test_stored_labels_are_used_and_kept(tmp_path, data):
    folder = save_segmenter(tmp_path, "groups", ["cat", "taco;burrito", "whale"], background=0.2, drop_text=True)
    segmenter = load_segmentation_model(folder, default_labels=["other"])
    assert segmenter.labels == ("background", *NAMES)
    measure_segmentation(segmenter, data, oracle=True)  # synonyms are one label
    with pytest.raises(ValueError, match="text encoder was dropped"):
        load_segmentation_model(folder, ["cat"])


def test_a_model_with_fixed_labels_is_measured(tmp_path, data):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=1,
        depths=[1],
        sr_ratios=[1],
        hidden_sizes=[8],
        patch_sizes=[3],
        strides=[2],
        num_attention_heads=[1],
        mlp_ratios=[1],
        decoder_hidden_size=8,
        id2label=dict(enumerate(["cat", "background", "whale"])),
    )
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    SegformerImageProcessor(size=32).save_pretrained(tmp_path)
    segmenter = load_segmentation_model(tmp_path, default_labels=data.class_names)
    result = measure_segmentation(segmenter, data)
    assert result["mean_iou"] == by_hand(segmenter, data, [1, 0, 3])["mean_iou"]
    with pytest.raises(ValueError, match="fixed labels"):
        load_segmentation_model(tmp_path, ["cat"])
    with pytest.raises(ValueError, match="does not group pixels"):
        measure_segmentation(segmenter, load_label_maps_of(data, ["cat", "background", "whale"]), oracle=True)


def load_label_maps_of(data, names):
    return LabelMaps(data.rows, tuple(names), data.columns, ignore_index=3)


def test_windows_scales_and_flips_reach_the_model(toy, data):
    segmenter = load_segmentation_model(toy, data.class_names)
    plain = measure_segmentation(segmenter, data)
    assert measure_segmentation(segmenter, data, Windows(window=500)) == plain
    for windows in (Windows(window=16, stride=8), Windows(scales=(0.5, 1.5)), Windows(flip=True)):
        assert measure_segmentation(segmenter, data, windows)["mean_iou"] != plain["mean_iou"], windows


def test_the_oracle_tells_groups_from_names(groupvit, data):
    segmenter = load_segmentation_model(groupvit, ["whale", "cat", "taco"], background=0.1)
    result = measure_segmentation(segmenter, data, oracle=True)
    figures = result["oracle"]
    assert figures["images"] == 5 and 0 < figures["groups_used"] <= 6
    assert figures["miou"]["oracle"] > figures["miou"]["zero_shot"]
    assert figures["pixel_accuracy"]["majority"] >= result["overall_accuracy"]
    # Images are resized for the model; at the size of the maps borders move by less than a pixel.
    assert abs(figures["miou"]["zero_shot"] - result["mean_iou"]) < 0.02
    assert result["oracle_without_boundaries"]["miou"]["oracle"] is not None
    with pytest.raises(ValueError, match="the oracle analysis wants the classes of the data; .* 'taco'"):
        measure_segmentation(load_segmentation_model(groupvit, ["whale", "cat"], background=0.1), data, oracle=True)


def test_the_background_is_calibrated_on_other_images(groupvit, data):
    segmenter = load_segmentation_model(groupvit, ["whale", "cat", "taco"], background=0.3)
    before = measure_segmentation(segmenter, data)["mean_iou"]
    found = calibrate_background(segmenter, data, shrinkage=0)
    assert list(found) == ["whale", "cat", "taco"] and segmenter.model.config.background == found
    assert measure_segmentation(segmenter, data)["mean_iou"] >= before - 0.02  # on the same images


def test_a_model_without_thresholds_is_not_calibrated(toy, data):
    with pytest.raises(ValueError, match="no thresholds of labels"):
        calibrate_background(load_segmentation_model(toy, data.class_names), data)


def test_sizes_that_differ_are_named(toy, scenes):
    swapped = scenes.select([0, 1]).to_dict()
    sizes = [picture.size for picture in scenes["image"]]
    other = next(n for n, size in enumerate(sizes) if size != sizes[0])
    swapped["label_map"][0] = scenes.to_dict()["label_map"][other]
    from datasets import Dataset

    rows = Dataset.from_dict(swapped, features=scenes.features)
    segmenter = load_segmentation_model(toy, ["background", *NAMES])
    with pytest.raises(ValueError, match="label map 0: .* pixels, its image"):
        measure_segmentation(segmenter, load_label_maps(rows))


def test_names_match_in_any_case_and_the_background_by_its_place():
    found = match_labels(["bg", "Sky", "fox"], ["sky", "background"], background=0)
    assert found.classes.tolist() == [1, 0, 2] and found.unknown == ("fox",) and found.missing == ()


@pytest.mark.slow
def test_two_processes_are_one(groupvit, scenes, tmp_path):
    scenes.save_to_disk(tmp_path / "scenes")
    program, out = PROGRAMS / "segmentation_ranks.py", tmp_path / "result.json"
    run_on_ranks(program, groupvit, tmp_path / "scenes", out, world_size=2, folder=tmp_path)
    data = load_label_maps(scenes)
    one = measure_segmentation(load_segmentation_model(groupvit, data.class_names, background=0.1), data, oracle=True)
    assert json.loads(out.read_text()) == json.loads(json.dumps(one))
