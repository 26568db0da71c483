"""The image processor against OpenAI's `_transform` (and SLIP's), bit-identical with the Pillow back end."""

import pytest
import torch
from parity_fixtures import load_fixture
from PIL import Image
from transformers import CLIPImageProcessor

from hf_clip_variants import CLIPClassifierImageProcessor


pytestmark = pytest.mark.parity

IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
BILINEAR = 2


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("clip_preprocess")


def images(fixture):
    return {name: Image.fromarray(pixels.numpy()) for name, pixels in fixture.inputs.items()}


def processor(fixture, **options):
    n_px = fixture.meta["n_px"]
    return CLIPClassifierImageProcessor(size={"shortest_edge": n_px}, crop_size=n_px, **options)


def test_outputs_cover_all_inputs(fixture):
    cases = {key.split(".", 1)[1] for key in fixture.outputs}
    assert cases == set(fixture.inputs)


def test_pil_equals_openai(fixture):
    ours = processor(fixture, resample_backend="pil", convert_rgb_last=True)
    for name, image in images(fixture).items():
        pixels = ours(image, return_tensors="pt").pixel_values[0]
        assert torch.equal(pixels, fixture.outputs[f"clip.{name}"]), name


def test_default_conversion_equals_openai_for_opaque_images(fixture):
    ours = processor(fixture, resample_backend="pil")
    for name, image in images(fixture).items():
        if image.mode != "RGBA":
            pixels = ours(image, return_tensors="pt").pixel_values[0]
            assert torch.equal(pixels, fixture.outputs[f"clip.{name}"]), name


def test_pil_equals_slip(fixture):
    ours = processor(fixture, resample_backend="pil", resample=BILINEAR, **IMAGENET)
    cases = [key for key in fixture.outputs if key.startswith("slip_eval.")]
    assert cases
    for key in cases:
        image = images(fixture)[key.removeprefix("slip_eval.")]
        assert torch.equal(ours(image, return_tensors="pt").pixel_values[0], fixture.outputs[key]), key


def test_default_equals_transformers_and_is_close_to_openai(fixture):
    n_px = fixture.meta["n_px"]
    ours, theirs = processor(fixture), CLIPImageProcessor(size={"shortest_edge": n_px}, crop_size=n_px)
    grey_level = 1 / 255 / torch.tensor(ours.image_std).view(3, 1, 1)
    for name, image in images(fixture).items():
        pixels = ours(image, return_tensors="pt").pixel_values[0]
        assert torch.equal(pixels, theirs(image, return_tensors="pt").pixel_values[0]), name
        if image.mode != "RGBA":
            error = (pixels - fixture.outputs[f"clip.{name}"]).abs() / grey_level
            assert error.mean() < 0.5, name
