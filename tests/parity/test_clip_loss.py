"""CLIP's contrastive loss on one process against the paper's formula."""

import pytest
import torch
from parity_fixtures import assert_close, load_fixture

from hf_clip_variants.modeling.contrastive_loss import block_gradients, contrastive_loss, log_normalizers, unit_rows


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("clip_loss")


@pytest.mark.parametrize("chunk_size", [1, 3, 512])
def test_loss_and_gradients(fixture, chunk_size):
    inputs = [fixture.inputs[name].clone().requires_grad_() for name in ("image_raw", "text_raw", "logit_scale_param")]
    loss = contrastive_loss(*inputs, chunk_size=chunk_size)
    loss.backward()
    assert_close(loss, fixture.outputs["single.loss"], "loss")
    for name, tensor in zip(("d_image", "d_text", "d_logit_scale"), inputs, strict=True):
        assert_close(tensor.grad, fixture.outputs[f"single.{name}"], name)


@pytest.mark.parametrize("chunk_size", [1, 3, 512])
def test_each_direction(fixture, chunk_size):
    image, text = unit_rows(fixture.inputs["image_raw"]), unit_rows(fixture.inputs["text_raw"])
    scale = fixture.inputs["logit_scale_param"].exp()
    rows, columns, diagonal = log_normalizers(image, text, scale, chunk_size)
    assert_close(scale * image @ text.T, fixture.outputs["single.logits_per_image"], "logits_per_image")
    assert_close((rows - diagonal).mean(), fixture.outputs["single.loss_image"], "loss_image")
    assert_close((columns - diagonal).mean(), fixture.outputs["single.loss_text"], "loss_text")


def test_every_single_process_output_is_compared(fixture):
    compared = {"loss", "d_image", "d_text", "d_logit_scale", "logits_per_image", "loss_image", "loss_text"}
    assert {k.removeprefix("single.") for k in fixture.outputs if k.startswith("single.")} == compared


def test_rectangular_blocks_add_up_to_the_whole(fixture):
    """What one rank will own: some rows, all columns."""
    image, text = unit_rows(fixture.inputs["image_raw"]), unit_rows(fixture.inputs["text_raw"])
    scale = fixture.inputs["logit_scale_param"].exp()
    rows, columns, diagonal = log_normalizers(image, text, scale, 2)
    half = len(image) // 2
    lower_rows, lower_columns, lower_diagonal = log_normalizers(image[half:], text, scale, 2, first_pair=half)
    upper_columns = log_normalizers(image[:half], text, scale, 2)[1]
    assert_close(lower_rows, rows[half:], "rows")
    assert_close(lower_diagonal, diagonal[half:], "pairs")
    assert_close(torch.logaddexp(upper_columns, lower_columns), columns, "columns")

    needed = (True, True, True)
    whole = block_gradients(image, text, scale, rows, columns, 3, needed)
    upper = block_gradients(image[:half], text, scale, rows[:half], columns, 3, needed)
    lower = block_gradients(image[half:], text, scale, rows[half:], columns, 3, needed, first_pair=half)
    assert_close(torch.cat([upper[0], lower[0]]), whole[0], "image gradient")
    assert_close(upper[1] + lower[1], whole[1], "text gradient")
    assert_close(upper[2] + lower[2], whole[2], "scale gradient")
