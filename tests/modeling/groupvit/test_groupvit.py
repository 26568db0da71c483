"""What holds of GroupViT's encoder and of its training, whatever the weights."""

import math

import pytest
import torch
from groupvit_runs import (
    VISION,
    groupvit_batch,
    groupvit_config,
    groupvit_model,
    segmentation_model,
    upstream_model,
    without_drop_path,
)
from parity_fixtures import load_fixture
from tiny import tiny_pixels
from torchvision.ops import StochasticDepth

from hf_clip_variants import (
    GroupViTConfig,
    GroupViTForSemanticSegmentation,
    GroupViTModel,
    GroupViTVisionConfig,
    GroupViTVisionModel,
)
from hf_clip_variants.modeling.groupvit.grouping_groupvit import gumbel_sample
from hf_clip_variants.modeling.losses.gradient_cache import backward_in_chunks


@pytest.fixture(scope="module")
def model():
    return groupvit_model().eval()


def encode(model, pixels, **options):
    with torch.no_grad():
        return model.vision_model(pixels, interpolate_pos_encoding=True, **options)


# ---- groups


def test_maps_add_up_to_one_over_groups_and_hard_ones_are_exactly_one_hot(model):
    outputs = encode(model, tiny_pixels(3))
    shapes = [tuple(one.shape) for one in outputs.stage_maps]
    assert shapes == [(3, 6, 16), (3, 4, 6)]
    for soft, hard in zip(outputs.stage_maps, outputs.stage_assignments, strict=True):
        torch.testing.assert_close(soft.sum(1), torch.ones_like(soft[:, 0]))
        assert set(hard.unique().tolist()) == {0.0, 1.0} and torch.equal(hard.sum(1), torch.ones_like(hard[:, 0]))
        assert torch.equal(hard.argmax(1), soft.argmax(1)), "without noise the best group is the soft map's"


def test_evaluation_is_deterministic_and_training_has_noise(model):
    pixels = tiny_pixels(2)
    assert torch.equal(encode(model, pixels).pooler_output, encode(model, pixels).pooler_output)
    noisy = groupvit_model().train()
    first, second = encode(noisy, pixels), encode(noisy, pixels)
    assert not torch.equal(first.pooler_output, second.pooler_output)
    noisy.vision_model.config.gumbel_noise = False
    calm = encode(noisy, pixels)
    assert torch.equal(calm.pooler_output, encode(model, pixels).pooler_output)


def test_given_noise_is_used_in_training_and_not_in_evaluation():
    model, pixels = groupvit_model(), tiny_pixels(2)
    torch.manual_seed(3)
    noise = [gumbel_sample((2, 6, 16), torch.device("cpu")), gumbel_sample((2, 4, 6), torch.device("cpu"))]
    plain = encode(model.eval(), pixels)
    assert torch.equal(encode(model, pixels, gumbel_noise=noise).pooler_output, plain.pooler_output)
    given = encode(model.train(), pixels, gumbel_noise=noise)
    torch.manual_seed(3)
    drawn = encode(model, pixels)  # the same numbers, by torch's generator
    assert torch.equal(given.pooler_output, drawn.pooler_output)
    logits = [(soft.log() + one).argmax(1) for soft, one in zip(given.stage_maps, noise, strict=True)]
    for wanted, hard in zip(logits, given.stage_assignments, strict=True):
        assert torch.equal(hard.argmax(1), wanted)
    with pytest.raises(ValueError, match=r"gumbel_noise: 1 tensors, expected one for each of the stages \[0, 1\]"):
        encode(model, pixels, gumbel_noise=noise[:1])


def test_noise_is_of_the_standard_gumbel_distribution_in_float32():
    torch.manual_seed(0)
    noise = gumbel_sample(torch.Size([200_000]), torch.device("cpu"))
    assert noise.dtype == torch.float32 and noise.isfinite().all()
    assert abs(noise.mean().item() - 0.5772) < 0.01 and abs(noise.std().item() - math.pi / math.sqrt(6)) < 0.01
    drawn = []
    model = groupvit_model().bfloat16().train()
    import hf_clip_variants.modeling.groupvit.grouping_groupvit as module

    original = module.gumbel_sample
    try:
        module.gumbel_sample = lambda *args: drawn.append(original(*args)) or drawn[-1]
        encode(model, tiny_pixels(2))
    finally:
        module.gumbel_sample = original
    assert [one.dtype for one in drawn] == [torch.float32] * 2


@pytest.mark.parametrize(
    ("depths", "tokens", "groups", "left"),
    [
        ([1, 1], [5, 0], [12], 12),  # more groups than tokens, more than eight
        ([1], [3], [2], 2),  # ends with a grouping block
        ([1, 0, 1, 1], [4, 6, 3, 0], [9, 5, 2], 2),  # three times
        ([1, 1, 1], [0, 4, 0], [1, 3], 3),  # not in the first stage
    ],
)
def test_any_stages_and_numbers_of_groups(depths, tokens, groups, left):
    stages = {"depths": depths, "num_group_tokens": tokens, "num_output_groups": groups}
    model = GroupViTVisionModel(GroupViTVisionConfig(**VISION | stages)).eval()
    outputs = model(tiny_pixels(2))
    assert outputs.last_hidden_state.shape == (2, left, VISION["hidden_size"])
    assert len(outputs.stage_maps) == sum(map(bool, tokens)) and model.config.num_groups == left
    assert all(p.isfinite().all() for p in model.parameters())
    product = torch.eye(16).expand(2, -1, -1)
    for one in outputs.stage_maps:
        product = one @ product
    torch.testing.assert_close(product.sum(1), torch.ones(2, 16))


def test_soft_assignment_mixes_tokens_in_shares():
    soft = groupvit_model(vision={"assignment": "soft"}).eval()
    outputs = encode(soft, tiny_pixels(2))
    for shares, maps in zip(outputs.stage_assignments, outputs.stage_maps, strict=True):
        assert torch.equal(shares, maps)
    hard = groupvit_model().eval()
    assert not torch.allclose(encode(hard, tiny_pixels(2)).pooler_output, outputs.pooler_output, atol=1e-4)


@pytest.mark.parametrize("size", [(6, 6), (24, 30), (35, 11), (100, 61)])
def test_any_size_from_one_patch_on(model, size):
    outputs = encode(model, torch.randn(1, 3, *size))
    patches = (size[0] // 6) * (size[1] // 6)
    assert outputs.stage_maps[0].shape == (1, 6, patches) and outputs.pooler_output.isfinite().all()


def test_sizes_that_do_not_fit_are_named(model):
    with pytest.raises(
        ValueError, match="pixel_values: images of 5 x 24 pixels, expected at least one patch of 6 x 6"
    ):
        encode(model, torch.randn(1, 3, 5, 24))
    with pytest.raises(ValueError, match="pixel_values: images of 30 x 24 pixels, the model takes 24 x 24"):
        model.vision_model(torch.randn(1, 3, 30, 24))


def test_positions_of_the_training_grid_are_those_that_were_learned(model):
    embeddings = model.vision_model.embeddings
    assert embeddings.positions((4, 4)) is embeddings.position_embeddings
    assert embeddings.positions((2, 8)).shape == embeddings.position_embeddings.shape
    assert not torch.equal(embeddings.positions((2, 8)), embeddings.position_embeddings), "as many, but elsewhere"


def test_official_initialisation():
    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3}
    model = GroupViTModel(GroupViTConfig(vision_config=sizes | {"depths": [1, 1, 1]}, text_config={}))
    state, vision = model.state_dict(), "vision_model.encoder.stages."
    assert state[vision + "0.group_token"].std().item() == pytest.approx(0.02, rel=0.05)
    assert not state[vision + "1.group_token"].any(), "later stages start with what the projector makes"
    assert state["vision_model.embeddings.position_embeddings"].std().item() == pytest.approx(0.02, rel=0.05)
    for name in ("0.layers.0.self_attn.q_proj", "0.downsample.assign.k_proj", "1.group_projector.1.fc1"):
        assert state[f"{vision}{name}.weight"].std().item() == pytest.approx(0.02, rel=0.05), name
        assert state[f"{vision}{name}.weight"].abs().max() <= 2.0 and not state[f"{vision}{name}.bias"].any()
    bound = 192**-0.5
    first = state["visual_projection.0.weight"]
    assert 0.9 * bound < first.abs().max() <= bound, "PyTorch's own, as in the official projections"
    patches = state["vision_model.embeddings.patch_embeddings.projection.weight"]
    assert 0.9 * 768**-0.5 < patches.abs().max() <= 768**-0.5
    assert state["logit_scale"] == state["multi_label_logit_scale"] == pytest.approx(math.log(1 / 0.07), abs=1e-4)


def test_drop_path_grows_linearly_over_all_stages():
    model = GroupViTVisionModel(GroupViTVisionConfig(**VISION | {"depths": [2, 1, 2], "drop_path_rate": 0.2}))
    rates = [module.p for module in model.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    torch.manual_seed(0)
    pixels = tiny_pixels(2)
    model.config.gumbel_noise = False
    outputs = [model.train()(pixels).pooler_output for _ in range(2)]
    assert not torch.equal(*outputs)
    calm = [without_drop_path(model)(pixels).pooler_output for _ in range(2)]
    assert torch.equal(*calm)


# ---- losses


def test_multi_label_weight_zero_is_the_contrastive_loss_alone():
    batch = groupvit_batch(4)
    weighed = groupvit_model(multi_label_weight=0.0).eval()(**batch, return_loss=True)
    plain = groupvit_model().eval()(**batch, return_loss=True)
    assert torch.equal(weighed.loss, weighed.contrastive_loss)
    assert torch.equal(weighed.contrastive_loss, plain.contrastive_loss)
    assert torch.equal(plain.loss, plain.contrastive_loss + plain.multi_label_loss) and plain.multi_label_loss > 0
    del batch["prompt_input_ids"]
    alone = groupvit_model().eval()(**batch, return_loss=True)
    torch.testing.assert_close(alone.loss, plain.contrastive_loss)
    assert alone.multi_label_loss is None


def test_every_parameter_takes_part_without_prompts():
    batch = groupvit_batch(4, prompts=0)
    model = groupvit_model().train()
    model(**batch, return_loss=True).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert model.multi_label_logit_scale.grad == 0


def test_a_shared_temperature_has_no_parameter_of_its_own():
    names = set(groupvit_model(share_temperature=True).state_dict())
    assert "multi_label_logit_scale" not in names | set(groupvit_model(num_noun_prompts=0).state_dict())
    batch = groupvit_batch(4)
    model = groupvit_model(share_temperature=True).train()
    model(**batch, return_loss=True).loss.backward()
    assert model.logit_scale.grad != 0


def test_the_scale_ends_at_a_hundred_and_has_no_gradient_there():
    model = groupvit_model().train()
    with torch.no_grad():
        model.logit_scale.fill_(6.0)
        model.multi_label_logit_scale.fill_(6.0)
    assert model.scale().item() == 100.0
    model(**groupvit_batch(4), return_loss=True).loss.backward()
    assert model.logit_scale.grad == model.multi_label_logit_scale.grad == 0


def test_prompts_that_do_not_fit_are_named():
    model, batch = groupvit_model(), groupvit_batch(4)
    prompts = batch.pop("prompt_input_ids")
    with pytest.raises(ValueError, match=r"prompt_input_ids: \[3, 3, 7\], expected \[4 images, prompts, 7 tokens\]"):
        model(**batch, prompt_input_ids=prompts[:3])
    with pytest.raises(ValueError, match="prompt_attention_mask: expected if and only if there is an attention_mask"):
        model(**batch, prompt_input_ids=prompts, attention_mask=torch.ones_like(batch["input_ids"]))
    with pytest.raises(ValueError, match="return_loss: expected as many images as texts, got 4 and 2"):
        model(batch["input_ids"][:2], batch["pixel_values"], return_loss=True)


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_the_loss_in_micro_batches_is_that_of_the_batch_with_its_statistics_and_noise(micro_batch):
    """GradCache: features by chunks, projections with batch normalisation on the whole batch."""
    batch = groupvit_batch(8)
    batch["pixel_values"] = batch["pixel_values"].double()
    results = []
    for chunks in (False, True):
        model = groupvit_model(vision={"gumbel_noise": False}).double().train()
        if chunks:
            loss = backward_in_chunks(model, batch, micro_batch)
        else:
            loss = model(**batch, return_loss=True).loss
            loss.backward()
        found = {f"grad {name}": p.grad for name, p in model.named_parameters()} | dict(model.named_buffers())
        results.append(found | {"loss": loss.detach()})
    assert results[0].keys() == results[1].keys() and "visual_projection.1.running_mean" in results[0]
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-9, atol=1e-12, msg=name)


def test_micro_batches_draw_the_same_noise_twice():
    """Otherwise the gradient is not that of the loss: compare with finite differences of one parameter."""
    batch = groupvit_batch(4)
    batch["pixel_values"] = batch["pixel_values"].double()
    options = {"vision": {"assignment": "soft"}}  # smooth, so that differences exist

    def loss_at(shift: float, backward=False):
        model = groupvit_model(**options).double().train()
        with torch.no_grad():
            model.vision_model.layernorm.weight += shift
        torch.manual_seed(5)
        loss = backward_in_chunks(model, batch, 2)
        return loss, model.vision_model.layernorm.weight.grad

    loss, gradient = loss_at(0.0)
    again, _ = loss_at(0.0)
    assert loss == again
    slope = (loss_at(1e-5)[0] - loss_at(-1e-5)[0]) / 2e-5
    assert slope.item() == pytest.approx(gradient.sum().item(), rel=1e-5)


def test_bfloat16_and_autocast_train():
    batch = groupvit_batch(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = groupvit_model().train()(**batch, return_loss=True)
    assert outputs.loss.dtype == torch.float32 and outputs.loss.isfinite()
    exact = groupvit_model(vision={"gumbel_noise": False}).train()(**batch, return_loss=True).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = groupvit_model(vision={"gumbel_noise": False}).train()(**batch, return_loss=True).loss
    assert rough.item() == pytest.approx(exact.item(), rel=0.1)


# ---- what trains


def test_group_tokens_alone_can_be_trained(tmp_path):
    groupvit_model().save_pretrained(tmp_path)
    for cls in (GroupViTModel, GroupViTForSemanticSegmentation):
        model = cls.from_pretrained(tmp_path, trained_part="group_tokens").train()
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {f"vision_model.encoder.stages.{stage}.group_token" for stage in (0, 1)}
        assert not model.visual_projection[1].training and not model.text_projection[1].training
    model = GroupViTModel.from_pretrained(tmp_path, trained_part="group_tokens").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**groupvit_batch(4), return_loss=True).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == trained
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == (7 + 5) * 24
    model.save_pretrained(tmp_path / "tuned")
    assert GroupViTModel.from_pretrained(tmp_path / "tuned").config.trained_part == "group_tokens"


def test_segmentation_training_keeps_the_projections_statistics():
    model = segmentation_model().train()
    assert model.training and model.vision_model.training
    assert not model.visual_projection[1].training and not model.text_projection[1].training


# ---- transformers' checkpoints


@pytest.mark.parametrize("cls", [GroupViTModel, GroupViTForSemanticSegmentation])
def test_checkpoints_of_transformers_load_and_give_the_same_outputs(cls, tmp_path):
    theirs = upstream_model()
    theirs.save_pretrained(tmp_path)
    ours, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert ours.config.num_noun_prompts == 0 and ours.config.model_type == "clipv-groupvit"
    assert ours.config.text_config.hidden_size == 32 and ours.config.vision_config.num_groups == 4
    pixels = tiny_pixels(2)
    ids = torch.tensor([[97, 5, 6, 98, 98], [97, 7, 8, 9, 98]])
    with torch.no_grad():
        wanted = theirs(input_ids=ids, pixel_values=pixels, output_attentions=True)
        found = GroupViTModel.forward(ours.eval(), ids, pixels)
    torch.testing.assert_close(found.logits_per_image, wanted.logits_per_image, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.image_embeds, wanted.image_embeds, rtol=1e-5, atol=1e-5)
    maps = wanted.vision_model_output.attentions
    for ours_map, theirs_map in zip(found.vision_model_output.stage_maps, maps, strict=True):
        torch.testing.assert_close(ours_map, theirs_map, rtol=1e-5, atol=1e-5)


def test_ours_go_back_to_transformers_where_it_can_hold_them(tmp_path):
    theirs = upstream_model()
    theirs.save_pretrained(tmp_path)
    ours = GroupViTModel.from_pretrained(tmp_path)
    missing = theirs.load_state_dict(ours.state_dict(), strict=True)
    assert not missing.missing_keys and not missing.unexpected_keys


def test_a_checkpoint_of_transformers_that_lacks_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    upstream_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["vision_model.encoder.stages.1.group_token"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weights are missing: .*stages.1.group_token"):
        GroupViTModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="vision_config.model_type: 'vit', expected 'groupvit_vision_model'"):
        GroupViTConfig.from_dict({"model_type": "groupvit", "vision_config": {"model_type": "vit"}})


def test_the_fixture_is_one_that_transformers_cannot_hold():
    meta = load_fixture("groupvit").meta["img_encoder"]
    assert meta["num_group_tokens"][0] != meta["num_output_groups"][0]


# ---- parts


def test_the_image_encoder_alone_loads_from_the_whole_model(tmp_path, model):
    model.save_pretrained(tmp_path)
    alone, info = GroupViTVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pixels = tiny_pixels(2)
    assert torch.equal(alone.eval()(pixels).pooler_output, encode(model, pixels).pooler_output)


def test_defaults_are_the_published_model():
    config = GroupViTConfig()
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.depths, vision.num_group_tokens) == (384, [6, 3, 3], [64, 8, 0])
    assert (vision.num_hidden_layers, vision.num_groups, vision.grid) == (12, 8, (14, 14))
    assert (text.hidden_size, text.num_attention_heads, text.num_hidden_layers) == (256, 4, 12)
    assert (config.projection_dim, config.projection_intermediate_dim) == (256, 4096)
    with torch.device("meta"):
        model = GroupViTModel(config)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 55.7
    assert groupvit_config().vision_config.num_groups == 4
