"""Proposals and the teacher's embeddings of their crops: bytes that survive kills and do not depend on processes."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from paths import TESTS
from PIL import Image
from tiny import tiny_clip, tiny_pixels
from tiny_families import tiny_dual_encoder, tiny_family_processor
from transformers import CLIPImageProcessor
from vild_runs import vild_model, vild_processor

from hf_clip_variants.annotations.masks import encode_mask
from hf_clip_variants.data.crops.crop_embeddings import crop_box, embed_crops
from hf_clip_variants.data.crops.detection_rows import DetectionCollator, DetectionRows, scenes_as_rows
from hf_clip_variants.data.crops.proposals import Proposals, compute_proposals


def images(count: int = 5) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (40, 30 + i, 3), dtype=np.uint8)) for i in range(count)]


def proposals(count: int = 5) -> Proposals:
    draw = np.random.default_rng(1)
    boxes = []
    for i in range(count):
        corners = draw.uniform(0, 25, ((3 + i) % 5, 2))
        boxes.append(np.concatenate([corners, corners + draw.uniform(0.2, 12, corners.shape)], axis=1))
    return Proposals.from_lists(boxes)


def teacher_images() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})


def embed(folder=None, **options):
    options = {"shard_images": 2, "batch_size": 4, "progress": False} | options
    return embed_crops(tiny_clip(), teacher_images(), images(), proposals(), folder, **options)


def bytes_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_crops_are_snapped_outward_scaled_around_the_centre_and_clipped():
    assert crop_box((1.5, 2.0, 4.0, 6.2), (10, 10)) == (1, 1, 5, 7)
    assert crop_box((4, 4, 8, 8), (100, 100), 1.5) == (2, 2, 10, 10)
    assert crop_box((-5, 3, 200, 4), (10, 10), 1.5) == (0, 2, 10, 5)
    assert crop_box((10, 10, 10, 10), (10, 10)) == (9, 9, 10, 10), "at least one pixel"


def test_embeddings_are_the_normalised_sum_over_scales():
    found, boxes = embed(), proposals()
    clip = tiny_clip().eval()
    index, (image, (box, _)) = 1, (images()[1], boxes[1])
    crops = [np.asarray(image.crop(crop_box(box[2].tolist(), image.size, scale))) for scale in (1.0, 1.5)]
    with torch.no_grad():
        pixels = teacher_images()(crops, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        features = clip.get_image_features(pixels).pooler_output.sum(dim=0)
    torch.testing.assert_close(found[index][2], features / features.norm(), rtol=1e-4, atol=1e-5)
    assert [len(found[i]) for i in range(5)] == boxes.counts.tolist()


def test_store_is_mapped_and_not_computed_again(tmp_path):
    first = embed(tmp_path)
    before = bytes_of(tmp_path)
    teacher = tiny_clip()
    teacher.get_image_features = None  # must not be called
    teacher.vision_model = teacher.vision_model.requires_grad_(False)
    again = embed(tmp_path)
    assert bytes_of(tmp_path) == before and len(before) == 3
    assert all(torch.equal(first[i], again[i]) for i in range(5))
    assert embed(tmp_path, scales=(1.0,))[0].shape == first[0].shape
    assert len(bytes_of(tmp_path)) == 6, "other scales are other files"


def test_two_processes_write_the_files_of_one(tmp_path):
    embed(tmp_path / "one")
    assert embed(tmp_path / "two", rank=1, world_size=2) is None, "the other's shards are missing"
    assert embed(tmp_path / "two", rank=0, world_size=2) is not None
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    with pytest.raises(ValueError, match="rank, world_size"):
        embed(None, rank=0, world_size=2)


PROGRAM = """
import sys
sys.path.insert(0, {support!r})
sys.path.insert(0, {here!r})
import test_crops
import hf_clip_variants.data.crops.crop_embeddings as crops
plain = crops._embed_shard
def slow(*args):
    import time
    time.sleep(0.4)
    return plain(*args)
crops._embed_shard = slow
test_crops.embed({folder!r})
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    embed(tmp_path / "whole")
    folder = tmp_path / "killed"
    here = TESTS / "hf_clip_variants" / "data" / "crops"
    program = PROGRAM.format(support=str(TESTS / "support"), here=str(here), folder=str(folder))
    run = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.time() + 120
    while time.time() < deadline and not (folder.is_dir() and list(folder.glob("features-*"))):
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert 0 < len(list(folder.glob("features-*"))) < 3
    embed(folder)
    assert bytes_of(folder) == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("family", ["chinese_clip", "siglip"])
def test_any_dual_encoder_may_be_the_teacher(family):
    boxes = proposals(2)
    found = embed_crops(
        tiny_dual_encoder(family), tiny_family_processor(family), images(2), boxes, progress=False, batch_size=3
    )
    assert found[1].shape[0] == len(boxes[1][0])
    torch.testing.assert_close(found[1].norm(dim=1), torch.ones(len(found[1])))


def test_bad_proposals_are_named_and_files_are_read_back(tmp_path):
    for boxes in ([[[5, 5, 2, 8]]], [[[0, 0, np.inf, 1]]], [[[0, np.nan, 1, 1]]]):
        with pytest.raises(ValueError, match=r"boxes\[0\]"):
            Proposals.from_lists(boxes)
    with pytest.raises(ValueError, match="images: 4, proposals are of 5"):
        embed_crops(tiny_clip(), teacher_images(), images(4), proposals(), progress=False)
    wanted = proposals()
    found = Proposals.load(wanted.save(tmp_path / "p.safetensors"))
    assert found.digest == wanted.digest and torch.equal(found[3][0], wanted[3][0])
    (tmp_path / "bad").write_bytes(b"no file of proposals")
    with pytest.raises(OSError, match="bad"):
        Proposals.load(tmp_path / "bad")


def test_networks_proposals_are_in_pixels_of_the_original_images():
    model, processor = vild_model(), vild_processor().image_processor
    pictures = [Image.new("RGB", (200, 100), "red"), Image.new("RGB", (30, 60), "blue")]
    found = compute_proposals(model, processor, pictures, count=4, batch_size=2, progress=False)
    for picture, index in zip(pictures, range(2), strict=True):
        boxes, scores = found[index]
        assert 0 < len(boxes) <= 4 and (scores[:-1] >= scores[1:]).all()
        assert (boxes >= 0).all() and (boxes[:, 2] <= picture.width).all() and (boxes[:, 3] <= picture.height).all()


def test_rows_become_batches_with_boxes_in_pixels_of_the_batch():
    pictures, boxes = images(2), proposals(2)
    crops = embed_crops(tiny_clip(), teacher_images(), pictures, boxes, progress=False)
    marks = [[{"bbox": [3, 4, 10, 12], "category_id": 1, "area": 120, "segmentation": np.ones((40, 30), bool)}], []]
    rows = DetectionRows(pictures, marks, crops, boxes, flip=True, seed=0)
    rows.set_epoch(1)
    flipped = [rows[i] for i in range(2)]
    assert rows[0]["distill_boxes"].tolist() == flipped[0]["distill_boxes"].tolist(), "a function of the epoch"
    plain = DetectionRows(pictures, marks, crops, boxes)
    batch = DetectionCollator(vild_processor(), masks=True, count=2)([plain[0], plain[1]])
    assert batch["distill_boxes"].shape[1] == 2 and batch["proposals"].shape[1] == max(boxes.counts.tolist())
    height = int(batch["pixel_mask"][0].any(dim=1).sum())
    torch.testing.assert_close(batch["proposals"][0, 0], boxes[0][0][0] * height / 40, rtol=0.03, atol=0.5)
    assert len(batch["labels"][1]["boxes"]) == 0 and batch["labels"][0]["masks"].shape[0] == 1
    output = vild_model().train()(**batch)
    assert output.loss.isfinite() and "loss_distillation" in output.loss_dict
    mirrored = DetectionRows(pictures, marks, crops, boxes, flip=True, seed=0)
    both = set()
    for epoch in range(6):
        mirrored.set_epoch(epoch)
        both.add(mirrored[0]["annotations"][0]["bbox"][0])
    assert both == {3, 30 - 3 - 10}


@pytest.mark.parametrize("form", ["array", "polygons", "rle", "compressed_rle"])
def test_masks_of_every_form_are_mirrored_with_their_image(form):
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:9, 3:13] = True
    mark = {"bbox": [3, 4, 10, 5], "category_id": 0, "area": 50, "iscrowd": 0}
    mark["segmentation"] = mask if form == "array" else encode_mask(mask, form)
    rows = DetectionRows([Image.fromarray(mask)], [[mark]], flip=True)
    collate, found = DetectionCollator(vild_processor(), masks=True), {}
    for epoch in range(8):
        rows.set_epoch(epoch)
        (label,) = collate([rows[0]])["labels"]
        found[round(float(label["boxes"][0, 0]), 3)] = label["masks"][0]
    plain, mirrored = (found[round(x, 3)] for x in (8 / 30, 22 / 30))
    assert plain.any() and (plain.flip(-1) == mirrored).float().mean() > 0.97


def test_scenes_become_rows_with_novel_objects_left_out():
    from hf_clip_variants.data.scenes.scenes import make_scenes

    scenes = make_scenes(3, seed=7, styles="fluentflat", class_names=["cat", "taco", "whale"], size=64)
    pictures, marks = scenes_as_rows(scenes, lambda c: c if c != 2 else None, masks=True)
    assert len(pictures) == len(marks) == 3
    assert {one["category_id"] for row in marks for one in row} <= {0, 1}
    total = sum(category != 2 for row in scenes for category in row["objects"]["category"])
    assert sum(map(len, marks)) == total and tiny_pixels(1).shape[0] == 1
