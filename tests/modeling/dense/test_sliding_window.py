"""Windows, scales and mirrored images by the two published conventions; each written plainly here."""

import math

import pytest
import torch
import torch.nn.functional as F
from toy_segmentation import toy_model, toy_processor

from hf_clip_variants.modeling.dense.sliding_window import pad_to, pad_to_multiple, sliding_window_scores


def network(x):
    """Knows the place in the window, its right and left, and its neighbours."""
    ramp = torch.linspace(-1, 1, x.shape[-1]) + torch.linspace(0, 3, x.shape[-2])[:, None] ** 2
    blurred = F.avg_pool2d(x, 3, stride=1, padding=1)
    return torch.cat([blurred + ramp, x[:, :1] * ramp], dim=1)


def images(height=23, width=31, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def mmseg_slide(image, window, stride):
    """mmsegmentation's `slide_inference`, for one image."""
    (height, width), (h_crop, w_crop), (h_stride, w_stride) = image.shape[-2:], window, stride
    h_grids = max(height - h_crop + h_stride - 1, 0) // h_stride + 1
    w_grids = max(width - w_crop + w_stride - 1, 0) // w_stride + 1
    total, count = 0, torch.zeros(1, 1, height, width)
    for row in range(h_grids):
        for column in range(w_grids):
            y2, x2 = min(row * h_stride + h_crop, height), min(column * w_stride + w_crop, width)
            y1, x1 = max(y2 - h_crop, 0), max(x2 - w_crop, 0)
            padding = (x1, width - x2, y1, height - y2)
            total = total + F.pad(network(image[..., y1:y2, x1:x2]), padding)
            count[..., y1:y2, x1:x2] += 1
    return total / count


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize(
    "window, stride",
    [((8, 10), (5, 5)), ((9, 9), (9, 9)), ((40, 10), (20, 3)), ((23, 31), (1, 1)), ((64, 64), (9, 9))],
)
def test_shifted_windows(window, stride, batch_size):
    found = sliding_window_scores(network, images(), window, stride, batch_size=batch_size)
    expected = torch.cat([mmseg_slide(image[None], window, stride) for image in images()])
    torch.testing.assert_close(found, expected)


def test_shifted_windows_at_scales_and_mirrored():
    image, window, stride = images(), (12, 12), (7, 7)
    options = {"scales": (0.5, 1.3), "flip": True}
    found = sliding_window_scores(network, image, window, stride, **options)
    total = 0
    for scale in options["scales"]:
        scaled = F.interpolate(image, size=tuple(int(n * scale + 0.5) for n in image.shape[-2:]), mode="bilinear")
        for mirrored in (False, True):
            turned = scaled.flip(-1) if mirrored else scaled
            scores = torch.cat([mmseg_slide(one[None], window, stride) for one in turned])
            scores = scores.flip(-1) if mirrored else scores
            total = total + F.interpolate(scores, size=image.shape[-2:], mode="bilinear")
    torch.testing.assert_close(found, total / 4)
    summed = sliding_window_scores(network, image, window, stride, reduce="sum", **options)
    torch.testing.assert_close(summed, total)


@pytest.mark.parametrize("size", [(23, 31), (7, 50), (5, 5)])
def test_padded_windows(size):
    image, crop, stride = images(*size, batch=1), 10, 6
    padded = pad_to(image, (crop, crop), -1.0)
    height, width = padded.shape[-2:]
    total, count = torch.zeros(1, 4, height, width), torch.zeros(1, 1, height, width)
    for row in range(math.ceil((height - crop) / stride) + 1):
        for column in range(math.ceil((width - crop) / stride) + 1):
            y, x = row * stride, column * stride
            cut = padded[..., y : y + crop, x : x + crop]
            whole = pad_to(cut, (crop, crop), -1.0)
            scores = network(whole) + network(whole.flip(-1)).flip(-1)
            total[..., y : y + crop, x : x + crop] += scores[..., : cut.shape[-2], : cut.shape[-1]]
            count[..., y : y + crop, x : x + crop] += 1
    expected = (total / count)[..., : size[0], : size[1]]
    for batch_size in (1, 5):
        options = {"mode": "pad", "flip": True, "pad_value": -1.0, "batch_size": batch_size}
        found = sliding_window_scores(network, image, crop, stride, reduce="sum", **options)
        torch.testing.assert_close(found, expected)
        halved = sliding_window_scores(network, image, crop, stride, **options)
        torch.testing.assert_close(halved, expected / 2)


@pytest.mark.parametrize("mode, window", [("shift", 31), ("shift", (23, 31)), ("shift", 500), ("pad", (23, 31))])
def test_a_window_that_holds_the_image_is_the_plain_forward_bit_by_bit(mode, window):
    image = images(batch=1)
    assert torch.equal(sliding_window_scores(network, image, window, mode=mode), network(image))
    both = sliding_window_scores(network, images(), window, mode=mode, batch_size=2)
    assert torch.equal(both, network(images()))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3)])
@pytest.mark.parametrize("mode", ["shift", "pad"])
def test_images_of_any_size(size, mode):
    found = sliding_window_scores(network, images(*size), 8, mode=mode, scales=(0.5, 1, 2), flip=True)
    assert found.shape == (2, 4, *size) and found.isfinite().all()


def test_scores_are_added_in_float32_and_inputs_stay_as_they_are():
    image = images().to(torch.bfloat16)
    before = image.clone()
    found = sliding_window_scores(lambda x: x, image, 8, scales=(1, 1), flip=True, reduce="sum")
    assert found.dtype == torch.float32 and torch.equal(image, before)
    torch.testing.assert_close(found, 4 * before.float())


def test_a_constant_network_gives_a_constant_whatever_the_windows():
    for mode in ("shift", "pad"):
        found = sliding_window_scores(
            lambda x: torch.full_like(x, 3.0), images(), 7, 5, mode=mode, scales=(0.5, 1.7), flip=True
        )
        torch.testing.assert_close(found, torch.full_like(found, 3.0))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window": 0}, "window: 0"),
        ({"stride": (3, 0)}, "stride"),
        ({"stride": 2.5}, "stride: 2.5"),
        ({"mode": "crop"}, "mode: 'crop'"),
        ({"reduce": "max"}, "reduce: 'max'"),
        ({"scales": ()}, "scales"),
        ({"scales": (1, 0)}, "scales"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"forward": lambda x: x[..., ::2]}, "forward: gave"),
        ({"forward": lambda x: x[:, 0]}, "forward: gave"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sliding_window_scores(**{"forward": network, "pixel_values": images(), "window": 8} | options)


def test_windows_without_number_are_refused_before_the_first():
    def forward(windows):
        raise AssertionError("went through the model")

    with pytest.raises(ValueError, match="window: windows of 1 x 1 pixels every 1 x 1 are 4096 for 64 x 64"):
        sliding_window_scores(forward, torch.zeros(1, 3, 64, 64), 1)


def test_padding_to_multiples():
    image = images()
    assert pad_to_multiple(image, 1) is image
    padded = pad_to_multiple(image, 8)
    assert padded.shape[-2:] == (24, 32) and torch.equal(padded[..., :23, :31], image)
    assert torch.equal(padded[..., 31][..., :23], image[..., 30])
    channels = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    assert pad_to_multiple(image, 8, channels)[0, :, 23, 31].tolist() == [1, 2, 3]


# ---- a model's own


@torch.no_grad()
def test_windows_of_a_model_encode_texts_once():
    model, calls = toy_model(), []
    texts = toy_processor()(text=["cat", "forest"], return_tensors="pt")
    model.text.tokens.register_forward_hook(lambda *_: calls.append(1))
    found = model.sliding_window_logits(images(), 8, 5, **texts)
    assert len(calls) == 1
    expected = sliding_window_scores(lambda x: model(x, **texts).logits, images(), 8, 5)
    assert torch.equal(found, expected)
    model.set_labels(["cat;red apple", "forest"], toy_processor(), background=0.2)
    found = model.sliding_window_logits(images(), 8, 5)
    assert found.shape[1] == 3
    assert torch.equal(found, sliding_window_scores(lambda x: model(x).logits, images(), 8, 5))


@torch.no_grad()
@pytest.mark.parametrize("background", [None, 0.2])
def test_windows_of_images_with_texts_of_their_own(background):
    model = toy_model(background=background)
    of_each = [["cat", "forest", "red apple"], ["sports car"]]
    found = model.sliding_window_logits(images(), 8, 5, **toy_processor()(text=of_each, return_tensors="pt"))
    channels = int(background is not None)
    assert found.shape[1] == 3 + channels
    for row, labels in enumerate(of_each):
        texts = toy_processor()(text=labels, return_tensors="pt")
        alone = model.sliding_window_logits(images()[row : row + 1], 8, 5, **texts)[0]
        torch.testing.assert_close(found[row, : len(labels) + channels], alone)
    assert (found[1, 1 + channels :] < -1e30).all()


def test_very_many_windows_are_refused_before_the_first_but_not_those_of_a_large_image():
    calls = []

    def forward(x):
        calls.append(len(x))
        return x[:, :1]

    with pytest.raises(ValueError, match=r"window: windows of 1 x 1 pixels every 1 x 1 are 4096 for 64 x 64 pixels"):
        sliding_window_scores(forward, images(64, 64, 1), window=1, stride=1)
    assert not calls
    with pytest.raises(ValueError, match="more than 20000; want larger ones"):
        sliding_window_scores(forward, images(16, 20_100, 1), window=16, stride=1)
    sliding_window_scores(forward, images(16, 1_300, 1), window=16, stride=1, batch_size=64)  # more than 1,000
    assert sum(calls) == 1285
