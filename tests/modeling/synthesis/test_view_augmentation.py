"""Views equal torchvision's with the same parameters; each picture's come from its own generator."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from hf_clip_variants.modeling.synthesis.view_augmentation import (
    augmented_views,
    cropped,
    draw_crops,
    draw_perspectives,
    warped,
)


def pictures(count=3, height=40, width=48, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_perspectives_equal_torchvisions(fill):
    images = pictures()
    corners = draw_perspectives(3, 40, 48, 0.5, torch.Generator().manual_seed(1))
    start = [[0, 0], [47, 0], [47, 39], [0, 39]]
    found = warped(images, corners, fill)
    for image, places, ours in zip(images, corners, found, strict=True):
        expected = tv.perspective(image, start, places.int().tolist(), fill=[fill] * 3)
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-3)
        assert (ours - expected).abs().mean() < 1e-4


@pytest.mark.parametrize("size", [64, 20])
def test_crops_equal_torchvisions(size):
    images = pictures(height=48)
    boxes = draw_crops(3, 48, 48, (0.7, 0.9), (3 / 4, 4 / 3), torch.Generator().manual_seed(1))
    for image, box, ours in zip(images, boxes.tolist(), cropped(images, boxes, size), strict=True):
        expected = tv.resized_crop(image, *box, [size, size], antialias=True)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_crops_have_the_areas_and_ratios_that_were_asked_for():
    boxes = draw_crops(500, 224, 224, (0.7, 0.9), (3 / 4, 4 / 3), torch.Generator().manual_seed(0)).double()
    area = boxes[:, 2] * boxes[:, 3] / 224**2
    assert area.min() > 0.69 and area.max() < 0.91 and area.mean() == pytest.approx(0.8, abs=0.02)
    assert (boxes[:, 0] + boxes[:, 2]).max() <= 224 and boxes[:, :2].min() >= 0


def test_views_of_a_picture_do_not_depend_on_the_others():
    images = pictures(2)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    together = augmented_views(images, 4, generators, 32, fill=1.0)
    alone = augmented_views(images[1:], 4, [torch.Generator().manual_seed(6)], 32, fill=1.0)
    assert together.shape == (2, 4, 3, 32, 32) and torch.equal(together[1], alone[0])


def test_channels_that_belong_together_are_warped_alike_and_gradients_flow():
    image = pictures(1).requires_grad_()
    pair = torch.cat([image, image], 1)
    views = augmented_views(pair, 3, [torch.Generator().manual_seed(0)], 40, fill=0.0)
    assert torch.equal(views[:, :, :3], views[:, :, 3:])
    views.sum().backward()
    assert image.grad.isfinite().all() and (image.grad != 0).float().mean() > 0.8
