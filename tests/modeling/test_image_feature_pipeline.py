"""The `image-feature-extraction` pipeline of transformers gives features of our models, not logits."""

import numpy as np
import pytest
import torch
from adapted_classifiers import adapted, base_classifier
from PIL import Image
from tiny import tiny_pixels, tiny_tokenizer
from tiny_families import RESNET, save_tiny_family, tiny_family_processor
from transformers import AutoImageProcessor, AutoModel, pipeline

import hf_clip_variants


def saved_classifier(folder):
    base_classifier().save_pretrained(folder)
    tiny_family_processor("clip").save_pretrained(folder)


def saved_adapter(folder):
    saved_classifier(folder / "base")
    base = AutoModel.from_pretrained(folder / "base", tokenizer=tiny_tokenizer())
    adapted("vpt", base).save_pretrained(folder)
    tiny_family_processor("clip").save_pretrained(folder)


def saved_slip(folder):
    from tiny import tiny_clip

    from hf_clip_variants import SLIPConfig, SLIPModel

    values = tiny_clip().config.to_dict()
    config = {name: values[name] for name in ("text_config", "vision_config", "projection_dim")}
    torch.manual_seed(0)
    SLIPModel(SLIPConfig(**config)).save_pretrained(folder)
    tiny_family_processor("clip").save_pretrained(folder)


SAVED = {
    "classifier": saved_classifier,
    "adapter": saved_adapter,
    "slip": saved_slip,
    "clip_resnet": lambda folder: save_tiny_family(RESNET, folder),
}


@pytest.mark.parametrize("kind", SAVED)
def test_the_pipeline_gives_features(kind, tmp_path):
    SAVED[kind](tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    extract = pipeline("image-feature-extraction", model=str(tmp_path))
    model = AutoModel.from_pretrained(tmp_path).eval()
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_image_features(**pixels)
    torch.testing.assert_close(torch.tensor(extract(image)), expected.last_hidden_state)
    torch.testing.assert_close(torch.tensor(extract(image, pool=True)), expected.pooler_output)


def test_other_ways_to_load_give_logits(tmp_path):
    saved_classifier(tmp_path)
    names = hf_clip_variants.CLIPClassifier.from_pretrained(tmp_path).class_names
    assert AutoModel.from_pretrained(tmp_path)(pixel_values=tiny_pixels(2)).logits.shape == (2, len(names))
    answers = pipeline("image-classification", model=str(tmp_path))(Image.new("RGB", (24, 24)))
    assert {answer["label"] for answer in answers} <= set(names)
