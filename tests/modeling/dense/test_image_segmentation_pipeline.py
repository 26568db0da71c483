"""transformers' own pipeline "image-segmentation" with a model whose labels are set."""

import numpy as np
import PIL.Image
import pytest
import torch
from toy_segmentation import ToyForSemanticSegmentation, registered_toy, toy_model, toy_processor
from transformers import AutoModelForSemanticSegmentation, pipeline


LABELS = ["cat", "red apple;apple", "forest"]


def picture(height, width, mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values).convert(mode)


def check(found, model, processor, image):
    inputs = processor(images=image, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])
    assert {one["label"] for one in found} == {model.config.id2label[i] for i in expected.unique().tolist()}
    total = np.zeros((image.height, image.width), dtype=int)
    for one in found:
        assert one["mask"].size == image.size
        label = torch.from_numpy(np.array(one["mask"]) == 255)
        assert torch.equal(label, expected == model.config.label2id[one["label"]])
        total += label.numpy()
    assert (total == 1).all()


@pytest.mark.parametrize("options", [{}, {"size_divisor": 32}, {"do_resize": False}])
def test_masks_at_the_size_of_the_image_with_the_set_labels(options):
    model, processor = toy_model(), toy_processor(**options)
    model.set_labels(LABELS, processor, background=0.3)
    segment = pipeline("image-segmentation", model=model, image_processor=processor.image_processor)
    for image in (picture(33, 47), picture(120, 50, "L"), picture(40, 40, "RGBA"), picture(1, 1), picture(2, 300)):
        check(segment(image), model, processor, image)
    images = [picture(33, 47), picture(50, 20)]
    for found, image in zip(segment(images, batch_size=1), images, strict=True):
        check(found, model, processor, image)


def test_from_a_saved_folder(tmp_path):
    model, processor = toy_model(), toy_processor()
    model.set_labels(LABELS, processor)
    model.drop_text_encoder()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with registered_toy():
        assert type(AutoModelForSemanticSegmentation.from_pretrained(tmp_path)) is ToyForSemanticSegmentation
        segment = pipeline("image-segmentation", model=str(tmp_path))
        check(segment(picture(33, 47)), model, processor, picture(33, 47))


def test_a_graph_of_a_model_with_labels():
    model, pixels = toy_model(), torch.randn(1, 3, 32, 32)
    model.set_labels(LABELS, toy_processor(), background={"cat": 0.1, "red apple": 0.4, "forest": 0.2})
    with torch.no_grad():
        graph = torch.export.export(model, (pixels,), strict=False).module()
        torch.testing.assert_close(graph(pixels)["logits"], model(pixels).logits)
