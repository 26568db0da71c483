"""The pipeline "zero-shot-object-detection" with all labels at once: forms of input, batches, other models, errors."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, pipeline
from transformers import ZeroShotObjectDetectionPipeline as Stock
from vild_runs import NAMES, vild_model, vild_processor

from hf_clip_variants.hub.model_cards import model_card
from hf_clip_variants.modeling.detection.zero_shot_object_detection import TASK, AllLabelsObjectDetectionPipeline


LABELS = ["cat", "boat", "tree"]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    draw = np.random.default_rng([seed, width, height])
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGES = [noise(80, 50), noise(33, 47), noise(80, 50, 1), noise(64, 64)]


def detector(**parts):
    return pipeline(TASK, **{"model": vild_model(), "processor": vild_processor(), **parts})


def comparable(result) -> list:
    return [(one["label"], round(one["score"], 4), *one["box"].values()) for one in result]


def test_it_is_what_the_model_and_its_processor_find_with_one_forward(monkeypatch):
    pipe, image = detector(), IMAGES[1]
    assert isinstance(pipe, AllLabelsObjectDetectionPipeline)
    calls, forward = [], pipe.model.forward
    monkeypatch.setattr(pipe.model, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    result = pipe(image, candidate_labels=LABELS, threshold=0.0, masks=True)
    assert len(calls) == 1
    with torch.no_grad():
        outputs = pipe.model(**pipe.processor(image, LABELS, return_tensors="pt"), output_detections=True)
    (found,) = pipe.processor.post_process_grounded_object_detection(
        outputs, target_sizes=[(47, 33)], text_labels=LABELS
    )
    assert [one["label"] for one in result] == found["text_labels"] and len(result) > 4
    assert [one["score"] for one in result] == pytest.approx(found["scores"].tolist(), abs=1e-5)
    assert all(one["mask"].size == (33, 47) and one["mask"].mode == "L" for one in result)
    boxes = [tuple(one["box"].values()) for one in result]
    assert boxes == [tuple(box) for box in found["boxes"].int().tolist()]
    few = pipe(image, candidate_labels=LABELS, threshold=result[4]["score"], top_k=3)
    assert [one["label"] for one in few] == [one["label"] for one in result[:3]] and "mask" not in few[0]


def test_every_form_of_input_and_every_batch_size_give_the_same(tmp_path):
    pipe, image = detector(), IMAGES[0]
    image.save(tmp_path / "a.png")
    path, options = str(tmp_path / "a.png"), {"threshold": 0.01}
    expected = comparable(pipe(image, candidate_labels=LABELS, **options))
    for one in (path, {"image": image, "candidate_labels": LABELS}, {"image": path}):
        assert comparable(pipe(one, candidate_labels=LABELS, **options)) == expected and expected
    assert comparable(pipe(image, candidate_labels="cat, boat,tree", **options)) == expected
    items = [{"image": image, "candidate_labels": LABELS}, {"image": path, "candidate_labels": LABELS}]
    assert [comparable(r) for r in pipe((i for i in items), batch_size=2, **options)] == [expected] * 2
    assert pipe([], candidate_labels=LABELS) == []
    labels = [LABELS, LABELS, ["tree", "sky"], LABELS]
    alone = [comparable(pipe(i, candidate_labels=names, **options)) for i, names in zip(IMAGES, labels, strict=True)]
    for size in (2, 4):
        together = pipe(IMAGES, candidate_labels=labels, batch_size=size, **options)
        assert [comparable(result) for result in together] == alone


def test_saved_folders_with_folded_labels_and_transformers_own_pipeline(tmp_path):
    model, processor = vild_model(), vild_processor()
    model.set_labels(LABELS, processor)
    expected = comparable(detector(model=model)(IMAGES[0], threshold=0.01))
    assert expected == comparable(detector()(IMAGES[0], candidate_labels=LABELS, threshold=0.01))
    stock = Stock(model=model, image_processor=processor.image_processor, tokenizer=processor.tokenizer)
    one_by_one = stock(IMAGES[0], candidate_labels=LABELS, threshold=0.01)
    assert one_by_one and {one["label"] for one in one_by_one} <= set(LABELS)
    model.drop_text_encoder()
    model.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    folded = pipeline(TASK, str(tmp_path))
    assert comparable(folded(IMAGES[0], threshold=0.01)) == expected
    with pytest.raises(
        ValueError, match=r"text encoder was dropped, it knows its own labels only \(cat, boat, tree\)"
    ):
        folded(IMAGES[0], candidate_labels=["dog"])


def test_models_of_others_are_run_as_by_transformers():
    text = {"vocab_size": 4038, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": 64, "patch_size": 32}
    heads = {"num_attention_heads": 2}
    torch.manual_seed(0)
    config = OwlViTConfig(text_config=text | heads, vision_config=vision | heads, projection_dim=16)
    model = OwlViTForObjectDetection(config).eval()
    parts = {
        "model": model,
        "image_processor": OwlViTImageProcessor(size={"height": 64, "width": 64}),
        "tokenizer": vild_processor().tokenizer,
    }
    pipe, options = pipeline(TASK, **parts), {"candidate_labels": LABELS, "threshold": 0.0}
    found = pipe(IMAGES[0], **options)
    assert type(pipe) is AllLabelsObjectDetectionPipeline and found and found == Stock(**parts)(IMAGES[0], **options)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (333, 2), (10_000, 10)])
def test_images_of_any_size_and_mode(size):
    for mode in ("RGB", "L", "RGBA"):
        for one in detector()(Image.new(mode, size), candidate_labels=LABELS, threshold=0.0, masks=size[0] < 999):
            box = one["box"]
            assert 0 <= box["xmin"] <= box["xmax"] <= size[0] and 0 <= box["ymin"] <= box["ymax"] <= size[1]


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (0, {"candidate_labels": []}, "candidate_labels is empty"),
        (0, {"candidate_labels": " , "}, "candidate_labels is empty"),
        (0, {"candidate_labels": ["cat", "cat"]}, "candidate_labels: 'cat' is given twice"),
        (0, {"candidate_labels": ["cat", " "]}, r"candidate_labels\[1\]"),
        (None, {"candidate_labels": "cat"}, "image: got None"),
        ({"picture": 1}, {"candidate_labels": "cat"}, "got a dict with 'picture', expected the key 'image'"),
        ("list", {"candidate_labels": [["cat"]]}, "1 lists for 2 images"),
    ],
)
def test_errors_are_sentences(image, options, message):
    given = IMAGES[image] if isinstance(image, int) else IMAGES[:2] if image == "list" else image
    with pytest.raises(ValueError, match=message):
        detector()(given, **options)


def test_what_is_missing_is_named():
    free = vild_model(id2label={}, label2id={}, label_texts=None, base_labels=None)
    with pytest.raises(ValueError, match="candidate_labels: missing, and the model has no labels of its own"):
        detector(model=free)(IMAGES[0])
    with pytest.raises(TypeError, match="treshold: unknown, expected candidate_labels"):
        detector()(IMAGES[0], treshold=1)
    with pytest.raises(ValueError, match="masks: True, but the model predicts none"):
        detector(model=vild_model(use_masks=False))(IMAGES[0], candidate_labels=NAMES, masks=True)


def test_the_card_shows_this_pipeline():
    card = str(model_card(vild_model(), repo_id="me/detector"))
    assert 'pipeline("zero-shot-object-detection", model="me/detector")' in card
    assert "pipeline_tag: zero-shot-object-detection" in card


@pytest.mark.slow  # imports of a new process
def test_a_fresh_process_needs_the_import_of_the_package_only(tmp_path):
    vild_model().save_pretrained(tmp_path)
    vild_processor().save_pretrained(tmp_path)
    IMAGES[0].save(tmp_path / "a.png")
    code = f"""
import hf_clip_variants
from transformers import pipeline
found = pipeline("zero-shot-object-detection", model={str(tmp_path)!r}, device="cpu")(
    {str(tmp_path / "a.png")!r}, candidate_labels="cat, dog", threshold=0.01, masks=True)
print(sorted(found[0]), found[0]["mask"].size)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "['box', 'label', 'mask', 'score'] (80, 50)", done.stderr
