"""VQGAN: codes, any size, straight-through gradients, both quantisers, training, and what is refused."""

import pytest
import torch
from painting_runs import VQGAN_BAD_VALUES, corners, reconstruction_batch, tiny_vqgan, vqgan_config
from transformers import AutoConfig, AutoModel, JanusVQVAE, Trainer, TrainingArguments

from hf_clip_variants import VQGANConfig, VQGANModel
from hf_clip_variants.modeling.vqgan_clip.autoencoder_vqgan_clip import nearest_codes


@pytest.mark.parametrize(("values", "said"), VQGAN_BAD_VALUES, ids=[str(v)[:40] for v, _ in VQGAN_BAD_VALUES])
def test_values_that_no_vqgan_has_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        vqgan_config(**values)


def test_it_equals_januss_own_and_takes_other_sizes():
    torch.manual_seed(0)
    model = VQGANModel(vqgan_config(norm_groups=32)).eval()
    janus = JanusVQVAE(model.config.parts_config()).eval()
    janus.load_state_dict(model.state_dict())
    pixels = torch.rand(2, 3, 12, 8) * 2 - 1
    with torch.no_grad():
        theirs, ours = janus.encode(pixels), model(pixels)
        assert torch.equal(ours.codes.flatten(), theirs.image_tokens)
        for size in ((4, 4), (6, 20)):
            codes = model.encode_codes(torch.rand(1, 3, *size))
            assert codes.shape == (1, size[0] // 2, size[1] // 2)
            assert model.decode_codes(codes).shape == (1, 3, *size)


def test_a_move_within_a_cell_changes_nothing_and_the_gradient_passes():
    model = tiny_vqgan()
    codes = torch.randint(0, 32, (1, 4, 4), generator=torch.Generator().manual_seed(0))
    latents = corners(codes).movedim(-1, 1)
    moved = (latents * 0.6 + 0.1).requires_grad_()
    exact = latents.clone().requires_grad_()
    pictures = [model.decode(model.quantized(one)) for one in (moved, exact)]
    assert torch.equal(*pictures) and torch.equal(nearest_codes(moved, model.codebook), codes)
    weights = torch.randn(pictures[0].shape)
    by_latents = torch.autograd.grad((pictures[0] * weights).sum(), moved)[0]
    by_codes = torch.autograd.grad((model.decode(exact) * weights).sum(), exact)[0]
    torch.testing.assert_close(by_latents, by_codes)


def test_many_cells_in_parts_are_those_at_once(monkeypatch):
    latents, codebook = torch.randn(2, 5, 9, 7), torch.randn(32, 5)
    whole = nearest_codes(latents, codebook)
    monkeypatch.setattr("hf_clip_variants.modeling.vqgan_clip.autoencoder_vqgan_clip._CELLS_AT_ONCE", 10)
    assert torch.equal(nearest_codes(latents, codebook), whole)
    apart = (latents[1, :, 3, 2] - codebook).square().sum(1)
    assert whole[1, 3, 2] == apart.argmin()


def test_mixed_precision_finds_the_same_codes():
    """Rounded to bfloat16, differences of squares choose others."""
    g = torch.Generator().manual_seed(0)
    codebook = 10 + 0.1 * torch.randn(64, 5, generator=g)
    latents = (10 + 0.1 * torch.randn(2, 5, 9, 7, generator=g)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest_codes(latents, codebook)
    apart = (latents.float().movedim(1, -1)[..., None, :] - codebook).square().sum(-1)
    assert (found == apart.argmin(-1)).float().mean() > 0.99


@pytest.mark.parametrize("quantizer", ["vector", "gumbel"])
def test_without_codes_it_is_a_plain_autoencoder(quantizer):
    model, pixels = tiny_vqgan(quantizer=quantizer), reconstruction_batch(2)["pixel_values"]
    output = model(pixels, return_loss=True, quantize=False)
    assert output.codes is None and output.quantization_loss is None
    assert torch.equal(output.reconstruction, model.decode(output.latents))
    torch.testing.assert_close(output.loss, (output.reconstruction - pixels).abs().mean())
    output.loss.backward()
    assert model.codebook.grad is None and model.encoder.conv_in.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("quantizer", ["vector", "gumbel"])
def test_it_learns_and_comes_back_from_the_disk(quantizer, tmp_path):
    torch.manual_seed(0)
    model = VQGANModel(vqgan_config(quantizer=quantizer))
    rows = [{"pixel_values": pixels} for pixels in reconstruction_batch(8)["pixel_values"][:, :, :8, :8]]
    settings = TrainingArguments(
        str(tmp_path / "run"), max_steps=12, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        learning_rate=3e-3, lr_scheduler_type="constant", report_to=[], use_cpu=True, save_strategy="no",
        logging_steps=1, disable_tqdm=True,
    )  # fmt: skip

    class WithLoss(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            output = model(**inputs, return_loss=True)
            return (output.loss, output) if return_outputs else output.loss

    before = {name: p.detach().clone() for name, p in model.quantize.named_parameters()}
    trainer = WithLoss(model, settings, train_dataset=rows)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert float(losses[-1]) < float(losses[0])
    assert not any(torch.equal(p, before[name]) for name, p in model.quantize.named_parameters())
    model.eval().save_pretrained(tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved")
    assert type(again) is VQGANModel and again.config.quantizer == quantizer
    pixels = reconstruction_batch(2)["pixel_values"]
    with torch.no_grad():
        assert torch.equal(again(pixels).codes, model(pixels).codes)
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "saved"), VQGANConfig)


def test_a_gumbel_quantiser_draws_in_training_only():
    torch.manual_seed(0)
    model = VQGANModel(vqgan_config(quantizer="gumbel"))
    latents = torch.randn(2, 5, 6, 6)
    with torch.no_grad():
        assert torch.equal(model.eval().quantize(latents)[2], model.quantize.proj(latents).argmax(1))
        drawn = [model.train().quantize(latents)[2] for _ in range(2)]
    assert not torch.equal(*drawn)


def test_odd_inputs_are_named():
    model = tiny_vqgan()
    for pixels, said in (
        (torch.zeros(3, 4, 4), "\\[3, 4, 4\\], expected \\[pictures, 3, height, width\\]"),
        (torch.zeros(1, 3, 5, 4), "expected sides that are multiples of 2"),
        (torch.zeros(0, 3, 4, 4), "pixel_values: \\[0, 3, 4, 4\\]"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "torch.uint8, expected floating-point"),
        (None, "pixel_values: NoneType"),
    ):
        with pytest.raises(ValueError, match=said):
            model(pixels)
    for codes, said in (
        (torch.zeros(1, 2, 2), "codes: expected whole numbers"),
        (torch.full((1, 2, 2), 32), "codes: 32..32, expected numbers in 0..31"),
        (torch.full((1, 2, 2), -1), "codes: -1..-1"),
    ):
        with pytest.raises(ValueError, match=said):
            model.decode_codes(codes)
    for latents, got in ((torch.zeros(1, 4, 2, 2), "torch.float32 \\[1, 4, 2, 2\\]"), (True, "bool")):
        for use in (model.decode, model.quantized):
            with pytest.raises(ValueError, match=f"latents: got {got}, expected floats \\[pictures, 5"):
                use(latents)
    with pytest.raises(ValueError, match="latents: got torch.int64"):
        model.decode(torch.zeros(1, 5, 2, 2, dtype=torch.long))
