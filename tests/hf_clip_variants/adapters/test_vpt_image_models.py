"""VPT on image models of transformers other than ViT: against plain references that are written out here."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from tiny import copy_of, tiny_pixels
from transformers import Trainer, TrainingArguments

from hf_clip_variants.adapters import VPTConfig, load_adapter
from hf_clip_variants.adapters.vpt.image_models import IMAGE_MODELS


VIT_SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
VIT_SIZES |= {"image_size": 24, "patch_size": 8}
# 10 x 10 patches in windows of 4 are padded and shifted; so are the 5 x 5 of the second stage.
SWIN_SIZES = {"embed_dim": 12, "depths": [2, 3], "num_heads": [2, 3], "window_size": 4, "mlp_ratio": 2.0}
SWIN_SIZES |= {"image_size": 40, "patch_size": 4, "drop_path_rate": 0.0}
# Kind -> prefix of its classes, changes of its configuration
KINDS = {
    "deit": ("DeiT", {}),
    "dinov2": ("Dinov2", {}),
    "dinov2_swiglu": ("Dinov2", {"use_swiglu_ffn": True}),
    "dinov2_with_registers": ("Dinov2WithRegisters", {"num_register_tokens": 2}),
    "vit_msn": ("ViTMSN", {}),
    "beit": ("Beit", {"use_relative_position_bias": True, "layer_scale_init_value": 0.5}),
    "beit_shared": ("Beit", {"use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True}),
    "beit_class_token": ("Beit", {"use_relative_position_bias": True, "use_mean_pooling": False}),
    "swin": ("Swin", {}),
}
ONE_OF_EACH = ["deit", "dinov2", "dinov2_with_registers", "vit_msn", "beit", "beit_shared", "swin"]
ONE_OF_EACH_MECHANISM = ["dinov2", "beit", "beit_shared", "swin"]  # where prompts are inserted; position biases
COUNT = 3  # prompts in a layer
every_kind = pytest.mark.parametrize("kind", KINDS)
one_of_each = pytest.mark.parametrize("kind", ONE_OF_EACH)
one_of_each_mechanism = pytest.mark.parametrize("kind", ONE_OF_EACH_MECHANISM)


def image_model(kind: str, head: str = "ForImageClassification", **changes):
    """A random model in eval mode. All its numbers are random: transformers starts some at zero, such as biases."""

    def build():
        prefix, own_changes = KINDS[kind]
        config = getattr(transformers, f"{prefix}Config")(
            **((SWIN_SIZES if kind == "swin" else VIT_SIZES) | own_changes | {"num_labels": 5} | changes)
        )
        torch.manual_seed(0)
        model = getattr(transformers, prefix + head)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        return model

    return copy_of(f"image model {kind} {head} {changes}", build)


def pixels_for(kind: str) -> torch.Tensor:
    return tiny_pixels(batch=2, size=40 if kind == "swin" else 24)


def vpt(base, seed: int = 0, **changes) -> PeftModel:
    """The model with random prompts, in eval mode."""
    torch.manual_seed(seed)
    model = get_peft_model(base, VPTConfig.original(num_prompt_tokens=COUNT, **changes))
    with torch.no_grad():
        for prompts in all_prompts(model):
            prompts.copy_(torch.randn_like(prompts))
    return model.eval()


def all_prompts(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for name, p in model.named_parameters() if "clipv_vpt_prompts" in name]


def encoder_of(model: torch.nn.Module) -> torch.nn.Module:
    return getattr(model, model.base_model_prefix)


@torch.no_grad()
def logits(model, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=pixels).logits


# ---- references: the model's own layers, one after the other, with tokens inserted by hand


def attention_with_bias(attention, tokens: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Softmax attention, written out. tokens (B, N, d), bias (heads, N, N) or (B, heads, N, N)."""
    heads, width = attention.num_attention_heads, attention.head_dim
    q, k, v = (
        projection(tokens).view(*tokens.shape[:2], heads, width).permute(0, 2, 1, 3)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    scores = q @ k.mT / width**0.5 + bias
    return attention.o_proj((scores.softmax(-1) @ v).permute(0, 2, 1, 3).flatten(2))


def beit_layer(layer, hidden: torch.Tensor, shared, count: int) -> torch.Tensor:
    """A layer of BEiT on [class token, prompts, patches]. The bias is 0 wherever a prompt takes part."""
    side = 3
    bias_module = layer.relative_position_bias or shared
    of_image = bias_module((side, side))[0]  # (heads, 1 + P, 1 + P)
    places = torch.tensor([0, *range(1 + count, 1 + count + side * side)])
    bias = torch.zeros(len(of_image), hidden.shape[1], hidden.shape[1])
    bias[:, places[:, None], places] = of_image
    attended = attention_with_bias(layer.attention, layer.layernorm_before(hidden), bias)
    hidden = hidden + layer.lambda_1 * attended
    return hidden + layer.lambda_2 * layer.mlp(layer.layernorm_after(hidden))


def vit_reference(base, pixels: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """Prompts (J, n, d) on a ViT of any kind -> its last hidden state, without prompts."""
    encoder, count = encoder_of(base), prompts.shape[1]
    hidden = encoder.embeddings(pixels)
    for i, layer in enumerate(encoder.layers if hasattr(encoder, "layers") else encoder.encoder.layer):
        if i < len(prompts):
            others = hidden[:, 1:] if i == 0 else hidden[:, 1 + count :]
            hidden = torch.cat([hidden[:, :1], prompts[i].expand(len(pixels), -1, -1), others], dim=1)
        if base.config.model_type == "beit":
            hidden = beit_layer(layer, hidden, encoder.shared_position_bias, count)
        else:
            hidden = layer(hidden)
    return encoder.layernorm(torch.cat([hidden[:, :1], hidden[:, 1 + count :]], dim=1))


def head_reference(base, hidden: torch.Tensor) -> torch.Tensor:
    """Logits from the last hidden state (B, N, d), which has no prompts."""
    kind = base.config.model_type
    if kind == "dinov2":
        pooled = torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], dim=1)
    elif kind == "dinov2_with_registers":
        pooled = torch.cat([hidden[:, 0], hidden[:, 1 + base.config.num_register_tokens :].mean(1)], dim=1)
    elif kind == "beit" and base.config.use_mean_pooling:
        pooled = base.beit.pooler.layernorm(hidden[:, 1:].mean(1))
    elif kind == "swin":
        pooled = hidden.mean(1)
    else:
        pooled = hidden[:, 0]
    return base.classifier(pooled)


def regions(size: int, window: int, shift: int) -> list[int]:
    """Which of the three parts of a shifted axis a place belongs to. Places of different parts do not see each other
    (all are one without a shift)."""
    return [0 if not shift or i < size - window else (1 if i < size - shift else 2) for i in range(size)]


def swin_block(block, prompts: torch.Tensor, patches: torch.Tensor, side: int):
    """One layer of Swin on prompts (B, n, d) and patches (B, side², d), window by window, as in the paper's words."""
    batch_size, count, width = prompts.shape
    window, shift = block.window_size, block.shift_size
    padded = -(-side // window) * window
    normed = torch.zeros(batch_size, padded, padded, width)
    normed[:, :side, :side] = block.layernorm_before(patches).view(batch_size, side, side, width)
    normed_prompts = block.layernorm_before(prompts)
    position = block.attention.relative_position_bias
    table, heads = position.relative_position_bias_table, block.attention.num_attention_heads
    region = regions(padded, window, shift)

    attended = torch.zeros_like(normed)
    outputs_of_prompts = []
    for top in range(0, padded, window):
        for left in range(0, padded, window):
            # Places in the shifted image, and where these are in the image itself
            places = [(top + i, left + j) for i in range(window) for j in range(window)]
            sources = [((y + shift) % padded, (x + shift) % padded) for y, x in places]
            tokens = torch.stack([normed[:, y, x] for y, x in sources], dim=1)
            index = [
                [(y - v + window - 1) * (2 * window - 1) + x - u + window - 1 for v, u in places] for y, x in places
            ]
            apart = [[(region[y], region[x]) != (region[v], region[u]) for v, u in places] for y, x in places]
            bias = torch.zeros(heads, count + len(places), count + len(places))
            bias[:, count:, count:] = table[torch.tensor(index)].permute(2, 0, 1) - 100.0 * torch.tensor(apart)
            output = attention_with_bias(block.attention, torch.cat([normed_prompts, tokens], dim=1), bias)
            outputs_of_prompts.append(output[:, :count])
            rows, columns = torch.tensor(sources).T
            attended[:, rows, columns] = output[:, count:]
    prompts = prompts + sum(outputs_of_prompts) / len(outputs_of_prompts)
    patches = patches + attended[:, :side, :side].reshape(batch_size, side * side, width)
    prompts, patches = (x + block.mlp(block.layernorm_after(x)) for x in (prompts, patches))
    return prompts, patches


def swin_reference(base, pixels: torch.Tensor, prompts: list[torch.Tensor]) -> torch.Tensor:
    """Prompts of the first J layers, (n, d of the layer) each -> the last hidden state, of patches only."""
    encoder, layer, side = base.swin, 0, 10
    patches, _ = encoder.embeddings(pixels)
    current = torch.zeros(len(pixels), 0, patches.shape[-1])
    for stage in encoder.encoder.layers:
        for block in stage.blocks:
            if layer < len(prompts):
                current = prompts[layer].expand(len(pixels), -1, -1)
            current, patches = swin_block(block, current, patches, side)
            layer += 1
        if stage.downsample is not None:
            merging, rows = stage.downsample, patches.view(len(pixels), side, side, -1)
            four = [rows[:, 0::2, 0::2], rows[:, 1::2, 0::2], rows[:, 0::2, 1::2], rows[:, 1::2, 1::2]]
            patches = merging.reduction(merging.norm(torch.cat(four, dim=-1))).flatten(1, 2)
            current = merging.reduction(merging.norm(torch.cat([current] * 4, dim=-1)))
            side //= 2
    return encoder.layernorm(patches)


@torch.no_grad()
def reference_logits(base, pixels: torch.Tensor, prompts: list[torch.Tensor]) -> torch.Tensor:
    if base.config.model_type == "swin":
        hidden = swin_reference(base, pixels, [layer for stage in prompts for layer in stage])
    else:
        (every_layer,) = prompts
        hidden = vit_reference(base, pixels, every_layer)
    return head_reference(base, hidden)


@every_kind
def test_the_reference_without_prompts_is_the_model(kind):
    base, pixels = image_model(kind), pixels_for(kind)
    found = reference_logits(base, pixels, [] if kind == "swin" else [torch.zeros(0, 0, 24)])
    torch.testing.assert_close(found, logits(base, pixels), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "depth"), [*((kind, "all") for kind in KINDS), *((k, d) for k in ONE_OF_EACH_MECHANISM for d in (1, 2))]
)
def test_logits_equal_the_reference(kind, depth):
    base, pixels = image_model(kind), pixels_for(kind)
    model = vpt(copy.deepcopy(base), prompt_depth=depth)
    expected = reference_logits(base, pixels, all_prompts(model))
    torch.testing.assert_close(logits(model, pixels), expected, rtol=0, atol=2e-5)
    assert (expected - logits(base, pixels)).abs().max() > 0.05
    with model.disable_adapter():
        assert torch.equal(logits(model, pixels), logits(base, pixels))


def test_swin_takes_over_prompts_in_the_middle_of_a_stage():
    base, pixels = image_model("swin"), pixels_for("swin")
    model = vpt(copy.deepcopy(base), prompt_depth=4)
    assert [tuple(p.shape) for p in all_prompts(model)] == [(2, COUNT, 12), (2, COUNT, 24)]
    expected = reference_logits(base, pixels, all_prompts(model))
    torch.testing.assert_close(logits(model, pixels), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "swin"])
def test_position_of_prompts_does_not_matter(kind):
    pixels = pixels_for(kind)
    found = [logits(vpt(image_model(kind), prompt_position=p), pixels) for p in ("after_cls", "end")]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["beit", "beit_shared", "swin"])
def test_both_ways_to_compute_attention_agree(kind, attention):
    base, pixels = image_model(kind), pixels_for(kind)
    model = vpt(copy.deepcopy(base))
    expected = reference_logits(base, pixels, all_prompts(model))
    model.get_base_model().set_attn_implementation(attention)
    torch.testing.assert_close(logits(model, pixels), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["beit", "beit_shared"])
def test_interpolated_position_bias_is_that_of_the_image(kind):
    pixels = pixels_for(kind)
    model = vpt(image_model(kind))
    interpolated = model(pixel_values=pixels, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(interpolated, logits(model, pixels), rtol=0, atol=2e-5)


def test_hidden_patches_stay_hidden():
    """An attention mask of transformers' ViTs, with prompts in front of the patches: it moves with them."""
    base, pixels = image_model("deit"), pixels_for("deit")
    visible = torch.ones(2, 11)
    visible[:, -1] = 0  # the last patch; 2 + 9 tokens
    model = vpt(base)
    masked = model(pixel_values=pixels, attention_mask=visible).logits
    changed = pixels.clone()
    changed[:, :, 16:, 16:] += 1
    torch.testing.assert_close(model(pixel_values=changed, attention_mask=visible).logits, masked)
    assert not torch.allclose(logits(model, pixels), masked, atol=1e-3)


# ---- training and files


@one_of_each
def test_prompts_and_head_are_trained_saved_and_loaded(kind, tmp_path):
    base, pixels = image_model(kind), pixels_for(kind)
    plain, kinds = logits(base, pixels), [type(module) for module in base.modules()]
    names = [name for name, _ in base.named_parameters()]
    model = vpt(base)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = copy.deepcopy(get_peft_model_state_dict(model))
    assert {name.split(".")[-1] for name in before} == {"clipv_vpt_prompts", "weight", "bias"}
    Trainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path / "run"),
            learning_rate=0.1,
            optim="sgd",
            max_steps=2,
            per_device_train_batch_size=2,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
        ),
        train_dataset=[{"pixel_values": pixels[i % 2], "labels": i} for i in range(4)],
    ).train()
    model.eval()
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    trained = get_peft_model_state_dict(model)
    assert not any(torch.equal(trained[name], tensor) for name, tensor in before.items())

    model.save_pretrained(tmp_path / "adapter")
    for load in (
        lambda base: PeftModel.from_pretrained(base, tmp_path / "adapter"),
        lambda base: load_adapter(tmp_path / "adapter", base),
    ):
        assert torch.equal(logits(load(image_model(kind)), pixels), logits(model, pixels))
    assert not torch.allclose(logits(model, pixels), plain, atol=1e-3)
    assert model.unload() is base and [type(module) for module in base.modules()] == kinds
    assert torch.equal(logits(base, pixels), plain) and [name for name, _ in base.named_parameters()] == names


@pytest.mark.parametrize(
    ("kind", "use_reentrant"), [*((k, False) for k in ONE_OF_EACH), *((k, True) for k in ONE_OF_EACH_MECHANISM)]
)
def test_checkpointing_changes_no_gradient(kind, use_reentrant):
    pixels = pixels_for(kind)
    gradients = []
    for checkpointing in (False, True):
        model = vpt(image_model(kind), prompt_depth=2).train()
        if checkpointing:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": use_reentrant})
        norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
        calls = []
        norms[0 if kind != "swin" else 1].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(pixel_values=pixels, labels=torch.tensor([0, 1])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert len(calls) == 1 + checkpointing  # the first layer's norm is computed again
    assert gradients[0].keys() == gradients[1].keys()
    assert all("clipv_vpt_" in name or "classifier" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-6)
        assert gradient.abs().max() > 1e-6


@one_of_each_mechanism
def test_two_adapters_of_different_depth_are_switched(kind):
    base, pixels = image_model(kind), pixels_for(kind)
    alone = logits(vpt(copy.deepcopy(base), seed=1, prompt_depth=1), pixels)
    model = vpt(base)
    deep = logits(model, pixels)
    torch.manual_seed(1)
    model.add_adapter("second", VPTConfig.original(num_prompt_tokens=COUNT, prompt_depth=1))
    model.set_adapter("second")
    with torch.no_grad():
        for name, prompts in model.named_parameters():
            if "clipv_vpt_prompts.second" in name:
                prompts.copy_(torch.randn_like(prompts))
    torch.testing.assert_close(logits(model, pixels), alone)
    model.set_adapter("default")
    assert torch.equal(logits(model, pixels), deep)


@one_of_each_mechanism
def test_a_copy_works_on_its_own(kind):
    pixels = pixels_for(kind)
    model = vpt(image_model(kind))
    prompted, twin = logits(model, pixels), copy.deepcopy(model)
    assert torch.equal(logits(twin, pixels), prompted)
    assert torch.equal(logits(model.unload(), pixels), logits(image_model(kind), pixels))
    assert torch.equal(logits(twin, pixels), prompted)
    assert torch.equal(logits(twin.unload(), pixels), logits(image_model(kind), pixels))


@one_of_each_mechanism
def test_projection_and_dropout(kind, tmp_path):
    pixels = pixels_for(kind)
    model = vpt(image_model(kind), projection_dim=7, dropout=0.5)
    assert all(prompts.shape[-1] == 7 for prompts in all_prompts(model))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_adapter(tmp_path, image_model(kind)), pixels), logits(model, pixels))
    model.train()
    assert not torch.equal(logits(model, pixels), logits(model, pixels))


def test_half_precision_keeps_prompts_in_float32():
    for kind in ("beit", "swin"):
        base, pixels = image_model(kind), pixels_for(kind)
        full = logits(vpt(copy.deepcopy(base)), pixels)
        model = vpt(base.to(torch.bfloat16))
        assert all(prompts.dtype == torch.float32 for prompts in all_prompts(model))
        model.get_base_model().classifier.float()
        half = model.get_base_model().to(torch.bfloat16)(pixel_values=pixels.to(torch.bfloat16)).logits
        torch.testing.assert_close(half.float(), full, rtol=0, atol=0.5)


# ---- outputs and other classes


@pytest.mark.parametrize("kind", ["deit", "dinov2", "dinov2_with_registers", "vit_msn", "beit", "swin"])
def test_bare_models_have_patches_only_in_their_output(kind):
    base, pixels = image_model(kind, head="Model"), pixels_for(kind)
    plain = base(pixels)
    model = vpt(base, modules_to_save=None)
    output = model(pixel_values=pixels)
    assert output.last_hidden_state.shape == plain.last_hidden_state.shape
    assert not torch.allclose(output.last_hidden_state, plain.last_hidden_state, atol=1e-3)
    output.last_hidden_state[:, 0].square().mean().backward()
    assert all("clipv_vpt_prompts" in name for name, p in model.named_parameters() if p.grad is not None)
    if kind == "swin":
        torch.testing.assert_close(output.pooler_output, output.last_hidden_state.mean(1))


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("depth", [1, "all"])
def test_hidden_states_of_swin_have_no_prompts(depth, asked_before):
    base, pixels = image_model("swin"), pixels_for("swin")
    ask = {"output_hidden_states": True, "output_attentions": True}
    base.set_attn_implementation("eager")
    if asked_before:  # transformers puts its hooks on the model when they are asked for
        base(pixels, **ask)
    model = vpt(base, prompt_depth=depth)
    prompted = model(pixel_values=pixels, **ask)
    with model.disable_adapter():
        plain = model(pixel_values=pixels, **ask)
    for states in ("hidden_states", "reshaped_hidden_states"):
        shapes = [[tuple(state.shape) for state in output[states]] for output in (plain, prompted)]
        assert shapes[0] == shapes[1] and len(shapes[0]) == 3
    assert torch.equal(prompted.hidden_states[0], plain.hidden_states[0])
    assert not torch.allclose(prompted.hidden_states[1], plain.hidden_states[1], atol=1e-3)
    assert [weights.shape[-1] for weights in prompted.attentions] == [COUNT + 16] * 2


def test_swin_backbone_has_maps_of_patches():
    base, pixels = image_model("swin", head="Backbone", out_features=["stage1", "stage2"]), pixels_for("swin")
    plain = base(pixels).feature_maps
    maps = vpt(base, modules_to_save=None)(pixel_values=pixels).feature_maps
    for ours, theirs in zip(maps, plain, strict=True):
        assert ours.shape == theirs.shape and not torch.allclose(ours, theirs, atol=1e-3)


def test_both_heads_of_a_distilled_deit_are_trained(tmp_path):
    heads = ["cls_classifier", "distillation_classifier"]
    make, pixels = partial(image_model, "deit", head="ForImageClassificationWithTeacher"), pixels_for("deit")
    model = vpt(make(), modules_to_save=heads)
    F.cross_entropy(model(pixel_values=pixels).logits, torch.tensor([0, 1])).backward()
    assert sorted({name.split(".")[2] for name, p in model.named_parameters() if p.grad is not None}) == [
        "cls_classifier",
        "deit",
        "distillation_classifier",
    ]
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_adapter(tmp_path, make()), pixels), logits(model, pixels))


@pytest.mark.parametrize(("patch_size", "expected"), [(16, (6 / (768 + 12)) ** 0.5), (8, (6 / (192 + 12)) ** 0.5)])
def test_initial_values_of_swin_have_the_range_of_their_stage(patch_size, expected):
    base = image_model("swin", patch_size=patch_size, image_size=patch_size * 8)
    model = get_peft_model(base, VPTConfig.original(num_prompt_tokens=200))
    first, second = all_prompts(model)
    assert first.abs().max() <= expected and first.abs().max() > 0.95 * expected
    wider = (6 / (3 * patch_size**2 + 24)) ** 0.5
    assert second.abs().max() <= wider and second.abs().max() > 0.95 * wider


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (
            lambda: transformers.ConvNextModel(transformers.ConvNextConfig(hidden_sizes=[4] * 4, depths=[1] * 4)),
            VPTConfig.original,
            r"image models of the types beit, .*swin, vit, vit_msn, got ConvNextModel \(model_type 'convnext'\)",
        ),
        (
            partial(image_model, "dinov2", head="Backbone"),
            VPTConfig,
            "Dinov2Backbone reads the outputs of inner layers, which have CLIPV_VPT's tokens in them",
        ),
        (
            partial(image_model, "deit", head="Model"),
            VPTConfig.original,
            "modules_to_save: DeiTModel has no module 'classifier'; pass the name of its head, or None",
        ),
        (
            partial(image_model, "deit", head="ForImageClassificationWithTeacher"),
            VPTConfig.original,
            "modules_to_save: DeiTForImageClassificationWithTeacher has no module 'classifier'",
        ),
        (partial(image_model, "swin"), partial(VPTConfig, prompt_depth=6), "prompt_depth: 6, .* has 5 layers"),
        (partial(image_model, "beit"), partial(VPTConfig, prompt_depth=4), "prompt_depth: 4, .* has 3 layers"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(make, config, message):
    base = make()
    kinds = [type(module) for module in base.modules()]
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, config())
    assert [type(module) for module in base.modules()] == kinds


def test_swin_with_other_stages_is_refused(tmp_path):
    vpt(image_model("swin")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"adapter expects depth 2, backbone has 3 \(stage 0 layers\)"):
        load_adapter(tmp_path, image_model("swin", depths=[3, 2]))


def test_every_image_model_of_the_table_is_tested():
    tested = {image_model(kind).config.model_type for kind in KINDS}
    assert tested | {"vit", "clip_vision_model"} == {*IMAGE_MODELS}
