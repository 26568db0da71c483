import pytest
import torch

from hf_clip_variants.data.augmentation.batches import AUGMENTATIONS_OF_BATCHES, BatchAugmentation


def generators(count, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


@pytest.fixture
def images():
    """Four images whose left half is red, upper half green, and whose right edge is transparent."""
    image = torch.zeros(4, 4, 32, 32, dtype=torch.uint8)
    image[:, 0, :, :16] = 255
    image[:, 1, :16] = 255
    image[:, 3, :, :28] = 255
    return image


@pytest.mark.parametrize("name", AUGMENTATIONS_OF_BATCHES)
def test_a_view_depends_on_its_own_generator_alone(name, images):
    augmentation = AUGMENTATIONS_OF_BATCHES[name]
    together = augmentation(images, 24, generators(4))
    assert together.shape == (4, 3, 24, 24) and together.dtype == torch.float32
    assert 0 <= together.min() and together.max() <= 1
    for i in (3, 1):
        alone = augmentation(images[i : i + 1], 24, generators(1, first=i))[0]
        torch.testing.assert_close(alone, together[i], atol=1e-5, rtol=0)
    if name != "none":
        assert not torch.equal(together[0], together[1])


def test_without_randomness_it_is_the_image_on_white(images):
    view = AUGMENTATIONS_OF_BATCHES["none"](images, 32, generators(4))
    alpha = images[:, 3:].float() / 255
    torch.testing.assert_close(view, images[:, :3].float() / 255 * alpha + 1 - alpha, atol=1e-5, rtol=0)


def test_the_colour_under_transparent_pixels_is_not_seen(images):
    hidden = images.clone()
    hidden[:, :3, :, 28:] = 77
    augmentation = AUGMENTATIONS_OF_BATCHES["icons"]
    torch.testing.assert_close(augmentation(hidden, 24, generators(4)), augmentation(images, 24, generators(4)))


def test_a_crop_never_shows_what_lies_beyond_an_opaque_image():
    dark = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    crops = BatchAugmentation(scale=(0.5, 1.0))(dark, 16, generators(64))
    assert crops.max() < 1e-5


def test_flip_mirrors_and_crops_keep_size(images):
    flipped = BatchAugmentation(scale=(1, 1), ratio=(1, 1), flip=1.0)(images, 32, generators(4))
    plain = AUGMENTATIONS_OF_BATCHES["none"](images, 32, generators(4))
    torch.testing.assert_close(flipped, plain.flip(-1), atol=1e-5, rtol=0)


def test_greyscale_and_hue_keep_the_luma():
    pixels = torch.randint(60, 190, (8, 3, 16, 16), dtype=torch.uint8)
    still = {"scale": (1, 1), "ratio": (1, 1)}
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    luma = (pixels / 255 * weights).sum(1)
    for augmentation in (BatchAugmentation(**still, greyscale=1.0), BatchAugmentation(**still, hue=0.05)):
        view = augmentation(pixels, 16, generators(8))
        torch.testing.assert_close((view * weights).sum(1), luma, atol=2e-3, rtol=0)
    assert torch.equal(
        *(v := BatchAugmentation(**still, greyscale=1.0)(pixels, 16, generators(8)))[:, :2].unbind(1)
    ), v


def test_blur_keeps_the_mean_of_each_image_and_takes_its_edges():
    checks = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    checks[..., ::2] = 255
    still = {"scale": (1, 1), "ratio": (1, 1)}
    blurred = BatchAugmentation(**still, blur=1.0, blur_sigma=(1.5, 2.0))(checks, 32, generators(4))
    assert blurred.std() < 0.1 < 0.4 < BatchAugmentation(**still)(checks, 32, generators(4)).std()
    torch.testing.assert_close(blurred.mean((1, 2, 3)), torch.full((4,), 0.5), atol=0.02, rtol=0)


def test_noise_and_gradient_backgrounds_are_behind_the_image(images):
    empty = torch.zeros_like(images)
    for kind in ("flat", "gradient", "noise"):
        view = BatchAugmentation(backgrounds=(kind,))(empty, 24, generators(4))
        spread = view.std((2, 3)).mean()
        assert (spread < 1e-5) == (kind == "flat"), kind
        assert not torch.allclose(view[0].mean((1, 2)), view[1].mean((1, 2)), atol=1e-3)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"images": torch.zeros(2, 4, 8, 8)}, "float32"),
        ({"images": torch.zeros(2, 4, 8, 9, dtype=torch.uint8)}, "squares"),
        ({"images": torch.zeros(2, 2, 8, 8, dtype=torch.uint8)}, "3 or 4"),
        ({"generators": generators(1)}, "1 generators"),
    ],
)
def test_wrong_images_are_refused(changed, message):
    given = {"images": torch.zeros(2, 4, 8, 8, dtype=torch.uint8), "size": 8, "generators": generators(2)} | changed
    with pytest.raises(ValueError, match=message):
        AUGMENTATIONS_OF_BATCHES["clip"](**given)


@pytest.mark.parametrize(
    "field",
    [{"scale": (0, 1)}, {"flip": 1.5}, {"blur_sigma": (2, 1)}, {"backgrounds": ("mauve",)}, {"backgrounds": ()}],
)
def test_wrong_settings_are_refused(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        BatchAugmentation(**field)
