"""VQGAN and VQGAN-CLIP equal the official code: encoding, codes, pictures and gradients; losses, clamps and cuts."""

import pytest
import torch
from parity_fixtures import assert_close, fixtures_like, load_fixture

from hf_clip_variants.modeling.synthesis.guiding_prompts import Goal, Prompt, prompt_losses, spherical_distance
from hf_clip_variants.modeling.vqgan_clip.autoencoder_vqgan_clip import nearest_codes, straight_through
from hf_clip_variants.modeling.vqgan_clip.convert_vqgan_clip import to_official, vqgan_from_official
from hf_clip_variants.modeling.vqgan_clip.cuts_vqgan_clip import (
    lanczos_kernel,
    pooled_cut,
    resample,
    square_cuts,
    with_noise,
)
from hf_clip_variants.modeling.vqgan_clip.losses_vqgan_clip import (
    clamp_with_grad,
    one_sided_contrastive_loss,
    start_loss,
    total_variation,
)


pytestmark = pytest.mark.parity

MODELS = fixtures_like("vqgan_decoder*", "vqgan_gumbel*")


@pytest.fixture(scope="module", params=MODELS)
def converted(request):
    fixture = load_fixture(request.param)
    return fixture, vqgan_from_official(fixture.state_dict)


def test_sizes_follow_from_the_weights_and_the_conversion_has_an_inverse(converted):
    fixture, model = converted
    hyper, config = fixture.meta["hyper"], model.config
    said = hyper["ddconfig"]
    assert (config.base_channels, config.channel_multiplier) == (said["ch"], said["ch_mult"])
    assert (config.num_res_blocks, config.latent_channels) == (said["num_res_blocks"], said["z_channels"])
    assert (config.num_embeddings, config.embed_dim) == (hyper["n_embed"], hyper["embed_dim"])
    assert config.factor == hyper["downsample_factor"] and (config.quantizer == "gumbel") == hyper["gumbel"]
    official = to_official(model.state_dict(), config)
    assert official.keys() == fixture.state_dict.keys()
    assert all(torch.equal(official[name], tensor) for name, tensor in fixture.state_dict.items())


def test_encoding_equals_the_official_one(converted):
    fixture, model = converted
    hyper, outputs = fixture.meta["hyper"], fixture.outputs
    latents = model.encode(fixture.inputs["pixel_values"])
    assert_close(latents, outputs["encode.prequant"], "latents")
    latents = latents.detach().requires_grad_()
    if hyper["gumbel"]:
        assert_close(model.quantize.proj(latents), outputs["encode.gumbel_logits"], "logits")
        assert torch.equal(model.quantize(latents)[2], outputs["encode.gumbel_argmax_indices"])
        return
    model.config.commitment_weight, model.config.legacy_loss = hyper["beta"], hyper["legacy"]
    codes, loss, ids = model.quantize(latents)
    assert_close(codes, outputs["encode.quant"], "codes")
    assert_close(loss.view(1), outputs["encode.emb_loss"].view(1), "loss")
    assert torch.equal(ids.flatten(), outputs["encode.indices"].flatten())
    (3 * loss + (codes * torch.linspace(-1, 1, codes.numel()).view_as(codes)).sum()).backward()
    assert_close(latents.grad, outputs["encode.grad_prequant"], "gradient")


def test_pictures_of_latents_and_their_gradient_equal_the_official_ones(converted):
    fixture, model = converted
    outputs = fixture.outputs
    z = fixture.inputs["z"].clone().requires_grad_()
    assert torch.equal(nearest_codes(z, model.codebook), outputs["synth.indices"])
    codes = model.quantized(z)
    assert torch.equal(codes, outputs["synth.z_q"])
    assert_close(model.post_quant_conv(codes), outputs["synth.post_quant"], "latents of the decoder")
    decoded = model.decode(codes)
    assert_close(decoded, outputs["synth.decoded"], "decoded")
    image = clamp_with_grad((decoded + 1) / 2)
    assert_close(image, outputs["synth.image"], "image")
    (image * fixture.inputs["image_grad"]).sum().backward()
    assert_close(z.grad, outputs["synth.grad_z"], "gradient")
    low, high = model.latent_bounds()
    assert_close(low[None], outputs["z_min"])
    assert_close(high[None], outputs["z_max"])
    assert_close(fixture.inputs["z_to_clamp"].clamp(low, high), outputs["z_clamped"])


@pytest.fixture(scope="module", params=fixtures_like("vqgan_clip_losses*"))
def losses(request):
    return load_fixture(request.param)


def test_losses_of_prompts_and_their_gradients_equal_the_official_ones(losses):
    inputs, outputs = losses.inputs, losses.outputs
    text, stop = inputs["text_embeds"], losses.meta["hyper"]["stop"]
    assert_close(spherical_distance(inputs["image_embeds"], text), outputs["dists"], "distances")
    for name, weight, limit in (
        ("w1", 1.0, -float("inf")), ("w_neg0.6", -0.6, -float("inf")), ("w2_stop", 2.0, stop),
        ("w_neg_stop", -1.5, -stop),
    ):  # fmt: skip
        # The official prompt takes the mean over its texts, too: each of these is a part of one. A pair that is at its
        # stop, as one of the fixture is, has half of the gradient there: the mean of both sides.
        grads = []
        for side in (-1e-5, 1e-5):
            embeds = inputs["image_embeds"].clone().requires_grad_()
            goal = Goal.of(text, [Prompt("text", weight / len(text), limit + side)] * len(text))
            loss = prompt_losses(embeds[None], [goal], spherical_distance, "mean")
            assert_close(loss.view(1), outputs[f"prompt.{name}.loss"].view(1), name)
            loss.sum().backward()
            grads.append(embeds.grad)
        assert_close(sum(grads) / 2, outputs[f"prompt.{name}.grad"], f"{name}.grad")


def test_other_losses_equal_the_official_ones(losses):
    inputs, outputs = losses.inputs, losses.outputs
    z, i0, i10 = inputs["z"], outputs["init_loss_i0_w1"], outputs["init_loss_i10_w0.3"]
    assert_close(start_loss(z, 1.0, 0).view(1), i0.view(1))
    assert_close(start_loss(z, 0.3, 10).view(1), i10.view(1))
    assert_close(total_variation(inputs["image"]).mean().view(1), outputs["tv_loss"].view(1), "total variation")
    found = one_sided_contrastive_loss(inputs["image_embeds"], inputs["target_embeds"])
    assert_close(found.view(1), outputs["one_sided_clip_loss"].view(1), "contrastive")
    embeds = inputs["image_embeds"].clone().requires_grad_()
    apart = spherical_distance(embeds, inputs["target_embeds"]).diagonal()
    assert_close(apart, outputs["eleuther.spherical_dist"])
    apart.sum().backward()
    assert_close(embeds.grad, outputs["eleuther.spherical_dist.grad"])


def test_gradients_that_are_replaced_equal_the_official_ones(losses):
    inputs, outputs = losses.inputs, losses.outputs
    values = inputs["clamp_in"].clone().requires_grad_()
    clamped = clamp_with_grad(values)
    assert torch.equal(clamped, outputs["clamp.out"])
    clamped.backward(inputs["clamp_grad"])
    assert torch.equal(values.grad, outputs["clamp.grad"])
    latents = inputs["rg_backward"].clone().requires_grad_()
    replaced = straight_through(inputs["rg_forward"], latents.expand_as(inputs["rg_forward"]))
    assert torch.equal(replaced, inputs["rg_forward"])
    replaced.backward(inputs["rg_grad"])
    assert_close(latents.grad, outputs["replace_grad.grad"])


def test_cuts_equal_the_official_ones(losses):
    inputs, outputs, size = losses.inputs, losses.outputs, losses.meta["hyper"]["cut_size"]
    image = inputs["image"].clone().requires_grad_()
    cuts = square_cuts(image[0], inputs["cut_boxes_x_y_size"], size)
    assert_close(cuts, outputs["cutouts.orig"], "cuts")
    cuts.backward(inputs["cut_grad"])
    assert_close(image.grad, outputs["cutouts.orig.grad_image"], "gradient of cuts")
    unclamped = [
        resample(inputs["image"][..., top : top + side, left : left + side], (size, size))
        for left, top, side in inputs["cut_boxes_x_y_size"].tolist()
    ]
    assert_close(torch.cat(unclamped), outputs["cutouts.resampled_before_clamp"], "resampled")
    assert_close(resample(inputs["image"][..., :8, :9], (size, size)), outputs["resample.upscale_8x9"], "enlarged")
    pooled = pooled_cut(inputs["image"][0], size)
    assert_close(pooled[None], outputs["cutouts.pooled_once"], "pooled")
    noisy = with_noise(pooled.expand(len(inputs["noise"]), -1, -1, -1), inputs["noise_fac"], inputs["noise"])
    assert_close(noisy, outputs["cutouts.pooled_noise"], "noise")


def test_the_kernel_equals_the_official_one(losses):
    kernel = outputs = losses.outputs["lanczos_kernel"]
    size = losses.meta["hyper"]["cut_size"]
    ratios = [size / side for side in losses.inputs["image"].shape[2:]] + [
        size / int(side) for side in losses.inputs["cut_boxes_x_y_size"][:, 2]
    ]
    found = [lanczos_kernel(ratio) for ratio in ratios if ratio < 1]
    assert any(len(one) == len(kernel) and torch.allclose(one, outputs, atol=1e-6) for one in found)
