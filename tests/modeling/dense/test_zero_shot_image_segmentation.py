"""The pipeline "zero-shot-image-segmentation": every form of input, one result, errors as sentences."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from segmenters import register_toy, save_segmenter, segmenter
from transformers import pipeline

from hf_clip_variants.data import make_scenes
from hf_clip_variants.modeling.dense.zero_shot_image_segmentation import TASK, ZeroShotImageSegmentationPipeline


LABELS = ["cat", "taco", "sky"]


@pytest.fixture(scope="module")
def images():
    sizes = [(80, 50), (33, 47), (80, 50), (64, 64)]
    return [
        make_scenes(1, seed, class_names=["cat", "taco"], size=size)[0]["image"] for seed, size in enumerate(sizes)
    ]


@pytest.fixture(params=["toy", "groups", "decoder"])
def pipe(request):
    model, processor = segmenter(request.param)
    return pipeline(TASK, model=model, processor=processor)


def comparable(result) -> list:
    return [(one["label"], round(one["score"], 5), np.asarray(one["mask"]).tobytes()) for one in result]


def label_map(result, names) -> np.ndarray:
    found = np.full(np.asarray(result[0]["mask"]).shape, -1)
    for one in result:
        mask = np.asarray(one["mask"])
        assert set(np.unique(mask)) <= {0, 255} and (found[mask > 0] == -1).all()
        found[mask > 0] = names.index(one["label"])
    return found


def test_masks_are_the_label_map_of_the_model_and_its_processor(pipe, images):
    image = images[1]
    result = pipe(image, candidate_labels=LABELS)
    inputs = pipe.processor(image, LABELS, return_tensors="pt")
    with torch.no_grad():
        outputs = pipe.model(**inputs)
    (expected,) = pipe.processor.post_process_semantic_segmentation(outputs, [image.size[::-1]])
    assert (label_map(result, LABELS) == expected.numpy()).all()
    assert [one["score"] for one in result] == sorted((one["score"] for one in result), reverse=True)
    assert all(one["mask"].mode == "L" and one["mask"].size == image.size for one in result)
    assert all(0 < one["score"] <= 1 for one in result)


def test_every_form_of_input_gives_the_same(pipe, images, tmp_path):
    image = images[0]
    image.save(tmp_path / "a.png")
    expected = comparable(pipe(image, candidate_labels=LABELS))
    path = str(tmp_path / "a.png")
    for one in (path, {"image": image, "candidate_labels": LABELS}, {"image": path}):
        assert comparable(pipe(one, candidate_labels=LABELS)) == expected
    assert comparable(pipe(image, candidate_labels="cat, taco,sky,")) == expected
    assert comparable(pipe(images=image, candidate_labels=LABELS)) == expected
    assert [comparable(r) for r in pipe([image, path], candidate_labels=LABELS)] == [expected] * 2
    items = [{"image": image, "candidate_labels": LABELS}, {"image": path, "candidate_labels": LABELS}]
    assert [comparable(r) for r in pipe(items)] == [expected] * 2
    assert [comparable(r) for r in pipe((i for i in items), batch_size=2)] == [expected] * 2
    assert pipe([], candidate_labels=LABELS) == []


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_batches_of_mixed_sizes_and_labels_equal_one_by_one(pipe, images, batch_size):
    labels = [LABELS, LABELS, ["taco", "sky"], LABELS]
    alone = [comparable(pipe(i, candidate_labels=names)) for i, names in zip(images, labels, strict=True)]
    together = pipe(images, candidate_labels=labels, batch_size=batch_size)
    assert [comparable(result) for result in together] == alone
    assert [one["mask"].size for one in (result[0] for result in together)] == [image.size for image in images]


def test_texts_are_encoded_once_a_call(pipe, images, monkeypatch):
    calls = []
    encode = pipe.model.embed_texts
    monkeypatch.setattr(pipe.model, "embed_texts", lambda *a, **k: calls.append(a[0]) or encode(*a, **k))
    pipe(images, candidate_labels=LABELS)
    assert calls == [LABELS]
    pipe(images[:1], candidate_labels=LABELS)
    assert len(calls) == 2  # the weights may have changed


def test_templates_synonyms_and_order_of_labels(pipe, images):
    image = images[0]
    plain = comparable(pipe(image, candidate_labels=LABELS))
    assert comparable(pipe(image, candidate_labels=LABELS, hypothesis_template="a {}.")) == plain  # the processor's
    assert comparable(pipe(image, candidate_labels=LABELS, hypothesis_template="{} in fog")) != plain
    pipe(image, candidate_labels=LABELS, hypothesis_template=["a {}.", "{}"])
    turned = pipe(image, candidate_labels=LABELS[::-1])
    assert {r[0]: r[2] for r in comparable(turned)} == {r[0]: r[2] for r in plain}
    merged = pipe(image, candidate_labels=["cat;taco", "sky"])
    assert {one["label"] for one in merged} <= {"cat", "sky"}
    inputs = pipe.image_processor(image, return_tensors="pt")
    pipe.model.set_labels(["cat;taco", "sky"], pipe.processor)
    with torch.no_grad():
        outputs = pipe.model(**inputs)
    (expected,) = pipe.image_processor.post_process_semantic_segmentation(outputs, [image.size[::-1]])
    assert (label_map(merged, ["cat", "sky"]) == expected.numpy()).all()


def test_background_and_thresholds(images):
    model, processor = segmenter("toy")
    pipe = pipeline(TASK, model=model, processor=processor)
    image = images[0]
    whole = label_map(pipe(image, candidate_labels=LABELS), LABELS)
    assert (whole >= 0).all()
    part = label_map(pipe(image, candidate_labels=LABELS, background_threshold=0.5), LABELS)
    assert (part == -1).any() and (part[part >= 0] == whole[part >= 0]).all()
    by_label = pipe(image, candidate_labels=LABELS, background_threshold={"cat": 0.5, "taco": -9.0, "sky": -9.0})
    by_label = label_map(by_label, LABELS)
    assert (by_label[whole != 0] == whole[whole != 0]).all() and set(by_label[whole == 0]) == {-1, 0}
    assert pipe(image, candidate_labels=LABELS, background_threshold=9.0) == []
    best = pipe(image, candidate_labels=LABELS)[0]["score"]
    assert len(pipe(image, candidate_labels=LABELS, threshold=best)) == 1
    model.config.background = 0.5  # the model's own
    assert (label_map(pipe(image, candidate_labels=LABELS), LABELS) == part).all()
    assert (label_map(pipe(image, candidate_labels=LABELS, background_threshold=-9.0), LABELS) == whole).all()


def test_windows(pipe, images):
    image = images[0]
    whole = comparable(pipe(image, candidate_labels=LABELS))
    assert comparable(pipe(image, candidate_labels=LABELS, sliding_window=200)) == whole
    parts = pipe(image, candidate_labels=LABELS, sliding_window=(24, 24), stride=12)
    assert (label_map(parts, LABELS) >= 0).all() and parts[0]["mask"].size == image.size


@pytest.mark.parametrize("kind", ["toy", "groups", "decoder"])
def test_saved_folders_with_and_without_labels(kind, tmp_path, images):
    register_toy()
    model, processor = segmenter(kind)
    expected = comparable(pipeline(TASK, model=model, processor=processor)(images[0], candidate_labels=LABELS))
    free = pipeline(TASK, model=str(save_segmenter(tmp_path / "free", kind)))
    assert isinstance(free, ZeroShotImageSegmentationPipeline)
    assert comparable(free(images[0], candidate_labels=LABELS)) == expected
    folded = save_segmenter(tmp_path / "folded", kind, LABELS, drop_text=True)
    assert comparable(pipeline(TASK, model=str(folded))(images[0])) == expected
    stock = pipeline("image-segmentation", model=str(folded))(images[0])  # transformers' own
    assert {r["label"]: np.asarray(r["mask"]).tobytes() for r in stock} == {r[0]: r[2] for r in expected}
    with pytest.raises(ValueError, match=r"text encoder was dropped, it knows its own labels only \(cat, taco, sky\)"):
        pipeline(TASK, model=str(folded))(images[0], candidate_labels=["dog"])


@pytest.mark.slow  # imports of a new process
def test_a_fresh_process_needs_the_import_of_the_package_only(tmp_path):
    folder = save_segmenter(tmp_path / "model", "groups")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    code = f"""
import sys
import hf_clip_variants
assert "transformers" not in sys.modules
from transformers import pipeline
found = pipeline("zero-shot-image-segmentation", model={str(folder)!r}, device="cpu")(
    {str(tmp_path / "a.png")!r}, candidate_labels="cat, dog")
print(sorted(found[0]), found[0]["mask"].size)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "['label', 'mask', 'score'] (40, 30)", done.stderr


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (0, {}, "candidate_labels: missing, and the model has no labels of its own"),
        (0, {"candidate_labels": []}, "candidate_labels is empty"),
        (0, {"candidate_labels": " , "}, "candidate_labels is empty"),
        (0, {"candidate_labels": ["cat", "cat"]}, "candidate_labels: 'cat' is given twice"),
        (0, {"candidate_labels": ["cat", " "]}, r"candidate_labels\[1\]"),
        (0, {"candidate_labels": "cat", "hypothesis_template": "a photo"}, "a photo"),
        (0, {"candidate_labels": "cat", "background_threshold": {"dog": 1.0}}, r"without a threshold: \['cat'\]"),
        (0, {"candidate_labels": "cat", "sliding_window": 0}, "window: 0, expected pixels"),
        (None, {"candidate_labels": "cat"}, "image: got None"),
        ("nowhere.png", {"candidate_labels": "cat"}, r"images\[0\]: .*nowhere.png"),
        ({"picture": 1}, {"candidate_labels": "cat"}, "got a dict with 'picture', expected the key 'image'"),
        ("list", {"candidate_labels": [["cat"]]}, "1 lists for 2 images"),
    ],
)
def test_errors_are_sentences(image, options, message, images):
    model, processor = segmenter("toy")
    pipe = pipeline(TASK, model=model, processor=processor)
    given = images[image] if isinstance(image, int) else images[:2] if image == "list" else image
    with pytest.raises(ValueError, match=message):
        pipe(given, **options)


def test_other_models_and_arguments_are_refused(images):
    from transformers import BertConfig, BertModel

    small = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    model, processor = segmenter("toy")
    with pytest.raises(ValueError, match="model: BertModel does not segment by texts"):
        ZeroShotImageSegmentationPipeline(model=BertModel(small), processor=processor)
    with pytest.raises(ValueError, match="image_processor: none"):
        ZeroShotImageSegmentationPipeline(model=model)
    with pytest.raises(TypeError, match="treshold: unknown, expected candidate_labels"):
        pipeline(TASK, model=model, processor=processor)(images[0], treshold=1)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (333, 2), (500, 333), (6000, 1)])
def test_images_of_any_size(pipe, size):
    for mode in ("RGB", "L", "RGBA"):
        result = pipe(Image.new(mode, size), candidate_labels=LABELS)
        assert (label_map(result, LABELS) >= 0).all() and result[0]["mask"].size == size


def test_huge_images_are_refused_by_their_number_of_pixels():
    model, processor = segmenter("toy")
    pipe = pipeline(TASK, model=model, processor=processor)
    with pytest.raises(ValueError, match="300000000 pixels"):
        pipe(Image.new("1", (20_000, 15_000)), candidate_labels=LABELS)
