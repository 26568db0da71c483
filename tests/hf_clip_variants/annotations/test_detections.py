"""Detections: from label maps and pipelines, to supervision and to COCO json."""

import json

import numpy as np
import pytest
from PIL import Image

from hf_clip_variants.annotations.coco import CocoDocument
from hf_clip_variants.annotations.detections import Detections
from hf_clip_variants.annotations.masks import encode_mask
from hf_clip_variants.data import export_coco, instance_masks, make_scenes


LABEL_MAP = np.array([[0, 0, 2, 255], [0, 0, 2, 2], [7, 0, 0, 0]], dtype=np.uint8)
NAMES = {0: "background", 2: "cat", 7: "sky", 9: "absent"}


def test_regions_of_a_label_map():
    found = Detections.from_label_map(LABEL_MAP, NAMES, {0: 0.5, 2: 0.25, 7: 1.0}, leave_out=[0])
    assert found.class_id.tolist() == [2, 7] and found.data["class_name"].tolist() == ["cat", "sky"]
    assert found.xyxy.tolist() == [[2, 0, 4, 2], [0, 2, 1, 3]] and found.confidence.tolist() == [0.25, 1.0]
    assert (found.mask == np.stack([LABEL_MAP == 2, LABEL_MAP == 7])).all()
    empty = Detections.from_label_map(LABEL_MAP, {3: "dog"})
    assert (len(empty), empty.xyxy.shape, empty.mask.shape) == (0, (0, 4), (0, 3, 4))


def test_segments_of_a_pipeline():
    mask = Image.fromarray(np.where(LABEL_MAP == 2, 255, 0).astype(np.uint8))
    segments = [{"label": "cat", "score": 0.75, "mask": mask}, {"label": "dog", "score": None, "mask": mask}]
    found = Detections.from_segments(segments[:1], {"cat": 5})
    assert (found.class_id.tolist(), found.confidence.tolist()) == ([5], [0.75])
    assert Detections.from_segments(segments).confidence is None  # stock image-segmentation has no scores
    assert len(Detections.from_segments([], size=(3, 4))) == 0


@pytest.mark.parametrize("leave_out", [(), (0, 2, 7)])
def test_supervision_takes_them(leave_out):
    supervision = pytest.importorskip("supervision")
    scores = dict.fromkeys(NAMES, 0.5)
    found = Detections.from_label_map(LABEL_MAP, NAMES, scores, leave_out).to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 3 - len(leave_out)
    chosen = found[found.confidence > 0.4]
    assert chosen.data["class_name"].tolist() == found.data["class_name"].tolist()
    canvas = supervision.MaskAnnotator().annotate(np.zeros((3, 4, 3), np.uint8), chosen)
    assert bool(canvas.any()) == (not leave_out)
    assert chosen.area.tolist() == [int((LABEL_MAP == label).sum()) for label in chosen.class_id]


def test_without_supervision_the_error_has_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(ImportError, match=r'pip install "hf-clip-variants\[supervision\]"'):
        Detections(np.zeros((0, 4))).to_supervision()


def test_arrays_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"class_id: got shape \(2,\) beside 1 boxes"):
        Detections(np.zeros((1, 4)), class_id=[1, 2])
    with pytest.raises(ValueError, match="mask: got shape"):
        Detections(np.zeros((1, 4)), mask=np.zeros((1, 4)))


@pytest.mark.parametrize("masks", ["polygons", "rle", "compressed_rle"])
def test_pycocotools_reads_the_document(masks, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    document = CocoDocument(NAMES, masks)
    scores = dict.fromkeys(NAMES, 0.5)
    assert document.add("a.jpg", LABEL_MAP.shape, Detections.from_label_map(LABEL_MAP, NAMES, scores)) == 0
    assert document.add("b.jpg", (4, 3), Detections.from_label_map(LABEL_MAP.T, NAMES, scores, [0])) == 1
    read = coco.COCO(document.save(tmp_path / "found.json"))
    assert [a["id"] for a in read.dataset["annotations"]] == [1, 2, 3, 4, 5]  # 0 means "no match" to pycocotools
    assert {c["name"] for c in read.loadCats(read.getCatIds())} == set(NAMES.values())
    for number, label_map in enumerate((LABEL_MAP, LABEL_MAP.T)):
        for annotation in read.loadAnns(read.getAnnIds(imgIds=[number])):
            mask = label_map == annotation["category_id"]
            assert (read.annToMask(annotation) == mask).all() and annotation["area"] == mask.sum()


@pytest.mark.parametrize("masks", ["polygons", "rle", "compressed_rle"])
def test_scenes_are_a_coco_data_set(masks, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    scenes = make_scenes(6, seed=2, styles="notov1", class_names=["cat", "taco", "whale"], size=(80, 64))
    read = coco.COCO(export_coco(scenes, tmp_path / "scenes", masks))
    assert [c["name"] for c in read.loadCats([1, 2, 3])] == ["cat", "taco", "whale"]
    for number, row in enumerate(scenes):
        image = read.loadImgs([number])[0]
        assert Image.open(tmp_path / "scenes" / "images" / image["file_name"]).size == (
            image["width"],
            image["height"],
        )
        label_map = np.asarray(Image.open(tmp_path / "scenes" / "label_maps" / image["file_name"]))
        assert (label_map == np.asarray(row["label_map"])).all() and image["caption"] == row["caption"]
        annotations = read.loadAnns(read.getAnnIds(imgIds=[number]))
        assert len(annotations) == len(row["objects"]["id"])
        for place, (annotation, mask) in enumerate(zip(annotations, instance_masks(row), strict=True)):
            assert (read.annToMask(annotation) == mask).all()
            assert annotation["bbox"] == row["objects"]["bbox"][place]
            assert annotation["category_id"] == row["objects"]["category"][place] + 1
            (start, end), *_ = annotation["tokens_positive"]
            assert (
                row["caption"][start:end]
                .lower()
                .startswith(scenes.features["objects"]["category"].feature.names[annotation["category_id"] - 1])
            )
    with pytest.raises(FileExistsError, match="is not empty"):
        export_coco(scenes, tmp_path / "scenes")


def test_documents_hold_plain_json_only(tmp_path):
    document = CocoDocument(["cat"], "rle", {"description": "test"})
    document.add(
        "a.jpg", (2, 2), Detections.from_masks(np.ones((1, 2, 2)), [0], ["cat"], [1 / 3]), {"path": "x/a.jpg"}
    )
    value = json.loads(document.save(tmp_path / "one.json").read_text(encoding="utf-8"))
    assert value == json.loads(json.dumps(document.value()))
    assert value["annotations"][0]["segmentation"] == encode_mask(np.ones((2, 2)), "rle")
    assert value["annotations"][0]["score"] == 0.333333 and value["images"][0]["path"] == "x/a.jpg"


def test_boxes_of_a_detector_become_supervisions():
    import torch

    found = {
        "scores": torch.tensor([0.9, 0.2]),
        "labels": torch.tensor([1, 0]),
        "boxes": torch.tensor([[2.0, 2, 6, 6], [0, 0, 4, 4]]),
        "masks": torch.ones(2, 4, 4),
    }
    whole = Detections.from_boxes(found, ["cat", "dog"], size=(8, 10), threshold=0.1)
    # torchvision pastes up to a pixel more than the box.
    assert whole.mask.shape == (2, 8, 10) and whole.mask[0, 2:6, 2:6].all() and 16 <= whole.mask[0].sum() <= 25
    one = Detections.from_boxes(found, ["cat", "dog"], threshold=0.5)
    assert len(one) == 1 and one.mask is None and one.data["class_name"].tolist() == ["dog"]
    supervision = whole.to_supervision()
    assert supervision.xyxy.tolist() == [[2, 2, 6, 6], [0, 0, 4, 4]] and supervision.class_id.tolist() == [1, 0]
    assert len(Detections.from_boxes({n: t[:0] for n, t in found.items()}, [], size=(8, 10)).to_supervision()) == 0


def test_boxes_are_drawn_with_names_scores_and_masks():
    from hf_clip_variants.annotations.boxes import draw_detections

    image = Image.new("RGB", (400, 300), "white")
    mask = np.zeros((1, 300, 400), dtype=bool)
    mask[0, 120:180, 120:180] = True
    found = Detections([[100, 100, 200, 200]], mask, [0.875], [1])
    picture = draw_detections(image, found, ["cat", "dog"], legend=False, enlarge=False)
    pixels = np.asarray(picture).astype(int)
    assert picture.size == (400, 300) and (pixels[150, 100] != 255).any() and (pixels[150, 150] != 255).any()
    assert (pixels[110, 190] == 255).all() and (pixels[20, 20] == 255).all() and (pixels[90, 110] != 255).any()
    assert draw_detections(image, found, ["cat", "dog"]).width > 400  # with a legend
    empty = Detections(np.zeros((0, 4)), class_id=[])
    assert (np.asarray(draw_detections(image, empty, ["cat"], legend=False)) == 255).all()
    tiny = Detections([[0, 0, 1, 1]], class_id=[0], confidence=[1.0])
    assert draw_detections(Image.new("L", (1, 1)), tiny, ["x" * 99], legend=False).size == (320, 320)
    with pytest.raises(ValueError, match="names: none of label 1"):
        draw_detections(image, found, ["cat"])
