"""CLIP's loss against the paper's formula on one process, and open_clip's and SLIP's losses on real processes."""

import pytest
import torch
from contrastive_runs import run_ranks
from parity_fixtures import assert_close, load_fixture

from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm
from hf_clip_variants.modeling.losses.contrastive_loss import block_gradients, contrastive_loss, log_normalizers


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
def test_both_directions_equal_official(fixture, chunk_size):
    image, text = unit_norm(fixture.inputs["image_raw"]), unit_norm(fixture.inputs["text_raw"])
    scale = fixture.inputs["logit_scale_param"].exp()
    rows, columns, diagonal = log_normalizers(image, text, scale, chunk_size)
    assert_close(scale * image @ text.T, fixture.outputs["single.logits_per_image"], "logits_per_image")
    assert_close((rows - diagonal).mean(), fixture.outputs["single.loss_image"], "loss_image")
    assert_close((columns - diagonal).mean(), fixture.outputs["single.loss_text"], "loss_text")


GRADIENTS = ("d_image", "d_text", "d_logit_scale")
# official loss -> (our mode, what is equal on each rank, what is equal as the mean over ranks)
OFFICIAL = {
    "openclip.local0_grad1": ("exact", ("loss", *GRADIENTS), ()),
    # Each rank has the loss of its own rows; after DDP's average the step is the same.
    "openclip.local1_grad1": ("exact", ("d_image", "d_text"), ("loss", "d_logit_scale")),
    "openclip.local0_grad0": ("open_clip", ("loss", *GRADIENTS), ()),
    "openclip.local1_grad0": ("slip", ("loss", *GRADIENTS), ()),
    "slip_clip": ("slip", ("loss", "acc", *GRADIENTS), ()),
}


@pytest.fixture(scope="module")
def ranks(fixture, tmp_path_factory):
    world_size, batch = fixture.meta["world_size"], fixture.meta["per_rank_batch"]
    names = {"image": "image_raw", "text": "text_raw", "logit_scale": "logit_scale_param"}
    inputs = {ours: fixture.inputs[theirs] for ours, theirs in names.items()} | {"logit_bias": torch.zeros(1)}
    found = run_ranks(tmp_path_factory.mktemp("ranks"), world_size, inputs, counts=[[batch] * world_size])
    prefix = "-".join([str(batch)] * world_size)
    return [{k.removeprefix(f"{prefix}.softmax."): v for k, v in tensors.items()} for tensors, _ in found]


@pytest.mark.parametrize("official", OFFICIAL)
def test_loss_and_gradients_of_each_rank_equal_official(fixture, ranks, official):
    mode, on_each, on_average = OFFICIAL[official]
    for name in on_each:
        for rank, tensors in enumerate(ranks):
            ours = 100 * tensors[f"{mode}.accuracy"] if name == "acc" else tensors[f"{mode}.{name}"]
            assert_close(ours, fixture.outputs[f"{official}.rank{rank}.{name}"], f"{name} of rank {rank}")
    for name in on_average:
        expected = torch.stack([fixture.outputs[f"{official}.rank{rank}.{name}"] for rank in range(len(ranks))])
        assert_close(ranks[0][f"{mode}.{name}"], expected.mean(0), name)


@pytest.mark.parametrize("mode", ["exact", "open_clip", "slip"])
def test_mean_loss_over_ranks_equals_one_process(fixture, ranks, mode):
    losses = torch.stack([tensors[f"{mode}.loss"] for tensors in ranks])
    assert_close(losses.mean(), fixture.outputs["single.loss"], mode)


@pytest.mark.parametrize("mode, factor", [("exact", lambda ranks: 1), ("open_clip", lambda ranks: 1 / ranks)])
def test_gradients_averaged_over_ranks_equal_one_process(fixture, ranks, mode, factor):
    for name in ("d_image", "d_text"):
        average = torch.cat([tensors[f"{mode}.{name}"] for tensors in ranks]) / len(ranks)
        assert_close(average, factor(len(ranks)) * fixture.outputs[f"single.{name}"], name)
    average = torch.stack([tensors[f"{mode}.d_logit_scale"] for tensors in ranks]).mean(0)
    assert_close(average, fixture.outputs["single.d_logit_scale"], "d_logit_scale")


def test_every_output_is_compared(fixture):
    compared = {"loss", *GRADIENTS, "logits_per_image", "loss_image", "loss_text"}
    expected = {f"single.{name}" for name in compared}
    for official, (_, on_each, on_average) in OFFICIAL.items():
        expected |= {
            f"{official}.rank{r}.{n}" for r in range(fixture.meta["world_size"]) for n in on_each + on_average
        }
    assert set(fixture.outputs) == expected


def test_blocks_of_rows_add_up_to_the_full_loss(fixture):
    """A rank's block: some rows and all columns."""
    image, text = unit_norm(fixture.inputs["image_raw"]), unit_norm(fixture.inputs["text_raw"])
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
