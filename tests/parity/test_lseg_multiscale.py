"""LSeg's evaluation at several scales, with windows and mirrored images, around a convolution."""

import pytest
import torch
import torch.nn.functional as F
from parity_fixtures import assert_close, load_fixture

from hf_clip_variants.modeling.dense.sliding_window import sliding_window_scores


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("lseg_multiscale")


def scores(fixture, image, **options):
    weight, bias = fixture.inputs["conv_weight"], fixture.inputs["conv_bias"]

    def network(x):  # the ramp shows a mirrored image
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2) + torch.linspace(-1, 1, x.shape[-1])

    meta = fixture.meta
    return sliding_window_scores(
        network,
        image,
        meta["crop_size"],
        int(meta["crop_size"] * meta["stride_rate"]),
        mode="pad",
        base_size=meta["base_size"],
        reduce="sum",
        align_corners=True,
        pad_value=[-m / s for m, s in zip(meta["mean"], meta["std"], strict=True)],
        **options,
    )


def images(fixture):
    return {name.removeprefix("image_"): x for name, x in fixture.inputs.items() if name.startswith("image_")}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_of_all_scales_and_mirrored(fixture, batch_size):
    for number, image in images(fixture).items():
        found = scores(fixture, image, scales=fixture.meta["scales"], flip=True, batch_size=batch_size)
        assert_close(found, fixture.outputs[f"scores_{number}"], f"image {number}")


def test_scores_of_one_scale(fixture):
    for number, image in images(fixture).items():
        assert_close(scores(fixture, image), fixture.outputs[f"scores_single_noflip_{number}"], f"image {number}")


def test_every_output_is_compared(fixture):
    kinds = ("scores", "scores_single_noflip")
    assert set(fixture.outputs) == {f"{kind}_{number}" for kind in kinds for number in images(fixture)}
