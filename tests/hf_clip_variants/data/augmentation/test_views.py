"""Augmented views: the published transforms, equal in any batch, order, worker and run."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import EMOJI_CLIP
from torchvision.transforms import v2
from transformers import AutoImageProcessor, CLIPImageProcessor

from hf_clip_variants.data import Augmentation, AugmentedViews, load_emoji, load_images
from hf_clip_variants.data.augmentation.views import AUGMENTATIONS, output_size, view_generator
from hf_clip_variants.modeling.clip_classifier.image_processing_clip_classifier import CLIPClassifierImageProcessor


SIZE = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}


@pytest.fixture(scope="module")
def processor():
    return CLIPImageProcessor(**SIZE)


@pytest.fixture(scope="module")
def images():
    return load_emoji(["notov1", "fluent3d"], concepts=["cat", "dog", "red apple"])


@pytest.mark.parametrize("name", ["coop", "tip"])
@pytest.mark.parametrize("size", [(40, 60), (7, 90), (90, 7), (1, 1)])
def test_draws_are_those_of_torchvision(name, size):
    ours = AUGMENTATIONS[name]
    crop = v2.RandomResizedCrop(24, scale=ours.scale, interpolation=v2.InterpolationMode.BICUBIC)
    assert ours.ratio == tuple(crop.ratio)
    for seed in range(20):
        torch.manual_seed(seed)
        expected = crop.make_params([torch.zeros(3, *size)])
        mirrored = torch.rand(1).item() < 0.5  # RandomHorizontalFlip
        drawn = ours.draw(*size, torch.Generator().manual_seed(seed))
        assert drawn == (*(expected[k] for k in ("top", "left", "height", "width")), mirrored)


def test_published_scales():
    assert AUGMENTATIONS["coop"] == Augmentation(scale=(0.08, 1.0), flip=0.5)
    assert AUGMENTATIONS["tip"] == Augmentation(scale=(0.5, 1.0), flip=0.5)
    assert AUGMENTATIONS["none"] is None


def test_a_view_is_near_the_official_pillow_pipeline(processor, images):
    """Composite on white, PIL's bicubic crop, flip, ToTensor, Normalize; the kernels differ by a grey level or so."""
    image = images.image(0)
    white = Image.new("RGBA", image.size, "white")
    rgb = Image.alpha_composite(white, image).convert("RGB")
    views = AugmentedViews(images, processor, 4, "tip", seed=3)
    got = views[0]
    for number in range(4):
        generator = view_generator(3, number, images.ids[0])
        top, left, height, width, mirrored = AUGMENTATIONS["tip"].draw(64, 64, generator)
        crop = rgb.crop((left, top, left + width, top + height)).resize((24, 24), Image.Resampling.BICUBIC)
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop
        expected = torch.from_numpy(np.array(crop)).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(getattr(processor, f"image_{k}"))[:, None, None] for k in ("mean", "std"))
        levels = ((got[number] * std + mean) - expected).abs() * 255
        assert levels.max() < 3 and levels.mean() < 0.2


def test_none_is_the_processor(processor, images):
    views = AugmentedViews(images, processor)
    for row in range(len(images)):
        expected = processor(images=[images.image(row)], return_tensors="pt")["pixel_values"]
        assert torch.equal(views[row], expected)
    assert AugmentedViews(images, processor, 1, None).describe() == {"augmentation": None, "views": 1, "seed": 0}


def test_views_do_not_depend_on_order_number_batch_workers_or_selection(processor, images):
    views = AugmentedViews(images, processor, 3, "coop", seed=5)
    all_views = torch.stack([views[row] for row in range(len(views))])
    state = torch.get_rng_state()
    assert torch.equal(views[4], all_views[4]) and torch.equal(state, torch.get_rng_state())
    assert torch.equal(views.views(2, [2, 0]), all_views[2, [2, 0]])
    assert torch.equal(AugmentedViews(images, processor, 1, "coop", seed=5)[3], all_views[3, :1])
    chosen = AugmentedViews(images.select([5, 1]), processor, 3, "coop", seed=5)
    assert torch.equal(torch.stack([chosen[0], chosen[1]]), all_views[[5, 1]])
    loader = torch.utils.data.DataLoader(views, batch_size=4, num_workers=2)
    assert torch.equal(torch.cat(list(loader)), all_views)


def test_views_differ_by_view_seed_image_and_repetition(processor, images):
    twice = images.select([0, 0])
    views = AugmentedViews(twice, processor, 4, "coop")
    distinct = [*views[0], *views[1], *AugmentedViews(twice, processor, 4, "coop", seed=1)[0]]
    assert all(not torch.equal(a, b) for i, a in enumerate(distinct) for b in distinct[:i])


def test_background_and_backend_are_the_processors(images):
    for kind in (
        CLIPImageProcessor(**SIZE),
        AutoImageProcessor.from_pretrained(EMOJI_CLIP, backend="pil"),
        CLIPClassifierImageProcessor(**SIZE),
        CLIPClassifierImageProcessor(**SIZE, resample_backend="pil"),
    ):
        view = AugmentedViews(images, kind, 1, Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0))[0][0]
        plain = kind(images=[images.image(0)], return_tensors="pt")["pixel_values"][0]
        # The whole image as the crop: the processor's own result, up to the resize kernel.
        assert view.shape == plain.shape and view.dtype == torch.float32
        assert (view - torch.as_tensor(plain)).abs().max() < 0.06
    red = CLIPClassifierImageProcessor(**SIZE, background=(255, 0, 0))
    corner = AugmentedViews(images, red, 1, Augmentation((1.0, 1.0), (1.0, 1.0), 0.0))[0][0, :, 0, 0]
    mean, std = torch.tensor(red.image_mean), torch.tensor(red.image_std)
    torch.testing.assert_close(corner * std + mean, torch.tensor([1.0, 0.0, 0.0]), atol=1e-5, rtol=0)


def test_any_mode_and_size(tmp_path, processor):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number, (mode, size) in enumerate(
            [("L", (5, 80)), ("P", (9, 9)), ("1", (3, 1)), ("CMYK", (30, 3)), ("LA", (4, 4))]
        ):
            Image.new("RGB", size, (200, 40, 90)).convert(mode).save(tmp_path / name / f"{number}.tif")
    images = load_images(tmp_path)
    views = AugmentedViews(images, processor, 2, "coop")
    assert all(views[row].shape == (2, 3, 24, 24) and views[row].isfinite().all() for row in range(len(images)))


def test_errors_name_argument_and_image(tmp_path, processor, images):
    with pytest.raises(ValueError, match="augmentation: got 'mocov3'; want one of .'coop', 'none', 'tip'."):
        AugmentedViews(images, processor, 1, "mocov3")
    with pytest.raises(ValueError, match="num_views: got 0"):
        AugmentedViews(images, processor, 0)
    with pytest.raises(ValueError, match="num_views: got 8, but without augmentation all views are equal"):
        AugmentedViews(images, processor, 8)
    for bad in (
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 0.4)},
        {"scale": (1, 1), "flip": 2},
        {"scale": (1, 1), "ratio": (0, 1)},
    ):
        with pytest.raises(ValueError, match="scale: got|flip: got|ratio: got"):
            Augmentation(**bad)
    with pytest.raises(ValueError, match="processor: cannot tell the output size"):
        output_size(CLIPImageProcessor(size={"longest_edge": 9}, do_center_crop=False))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"images\[1\] 'b/0.png': not an image"):
        AugmentedViews(load_images(tmp_path, verify=False), processor)[1]
