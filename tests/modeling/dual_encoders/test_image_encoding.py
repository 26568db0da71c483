"""The faster way through a frozen image encoder gives what the model's own forward gives, or is not taken."""

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_families import FAMILIES, family_class_names, save_tiny_family
from torch import nn
from transformers import CLIPVisionConfig

from hf_clip_variants import CLIPClassifier
from hf_clip_variants.adapters import VPTConfig
from hf_clip_variants.modeling.dual_encoders import image_encoding


CLASS_TOKEN_FAMILIES = ("clip", "metaclip_2", "chinese_clip", "altclip")


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    folder = save_tiny_family(request.param, tmp_path_factory.mktemp(request.param))
    return request.param, folder


@pytest.fixture
def model(made):
    return (
        CLIPClassifier.from_pretrained(made[1], class_names=family_class_names(made[0])).eval().requires_grad_(False)
    )


@pytest.fixture
def taken(monkeypatch):
    """How often the faster way was taken."""
    calls = []
    plain = image_encoding.encode_images
    monkeypatch.setattr(image_encoding, "encode_images", lambda *a, **k: (calls.append(1), plain(*a, **k))[1])
    return calls


def pixels_of(model, count=35):
    """More than one part, of which the last is smaller."""
    size = model.family.image_size(model.config)
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def own(model, pixels, **options):
    return model.family.image_features(model.clip, pixels, **options).pooler_output


def assert_same(found, expected):
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_features_are_the_models_own(made, model, taken):
    pixels = pixels_of(model)
    with torch.no_grad():
        assert_same(model.pooled_image_features(pixels), own(model, pixels))
        exact = model(pixel_values=pixels).logits
        model.faster_images = True
        logits = model(pixel_values=pixels).logits
        with_states = model(pixel_values=pixels, output_hidden_states=True)
    assert len(taken) == (2 if made[0] in CLASS_TOKEN_FAMILIES else 0)
    assert torch.equal(exact, with_states.logits), "the model's own bits, unless faster images are asked for"
    torch.testing.assert_close(logits, with_states.logits, rtol=1e-5, atol=1e-5)
    layers = getattr(model.config.vision_config, "num_hidden_layers", None)
    if made[0] in CLASS_TOKEN_FAMILIES:
        assert len(with_states.hidden_states) == layers + 1


def test_nothing_bypasses_gradients_records_hooks_or_replaced_parts(made, model, taken):
    if made[0] not in CLASS_TOKEN_FAMILIES:
        pytest.skip("has no faster way")
    pixels, vision = pixels_of(model, 2), model.clip.vision_model
    model.faster_images = True
    model(pixel_values=pixels)  # gradients are on
    pixels.requires_grad_()
    model.pooled_image_features(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0 and not taken
    pixels = pixels.detach()
    last = vision.encoder.layers[-1]
    of_last = (last, last.self_attn, last.mlp, last.mlp.fc1, last.mlp.activation_fn)
    around = (vision.embeddings, vision.post_layernorm, model.clip.visual_projection)
    for module in (vision, vision.encoder, vision.encoder.layers[0], *of_last, *around):
        seen = []
        hook = module.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o))
        with torch.no_grad():
            assert_same(model.pooled_image_features(pixels), own(model, pixels))
        hook.remove()
        assert len(seen) == 2, type(module).__name__
        first, second = (o[0] if isinstance(o, tuple) else getattr(o, "last_hidden_state", o) for o in seen)
        if first.shape == second.shape:
            assert_same(first, second)
    of_mlp = (last.mlp.fc1, last.mlp.fc2, last.mlp.activation_fn)
    for module in (*of_mlp, last.self_attn, last.mlp, vision.encoder.layers[0], vision.encoder, vision):
        plain = module.forward
        module.forward = lambda *a, plain=plain, **k: _twice(plain(*a, **k))
        with torch.no_grad():
            assert_same(model.pooled_image_features(pixels), own(model, pixels))
        del module.forward


def _twice(output):
    if isinstance(output, torch.Tensor):
        return 2 * output
    if isinstance(output, tuple):
        return 2 * output[0], *output[1:]
    for name in ("last_hidden_state", "pooler_output"):
        if getattr(output, name, None) is not None:
            output[name] = 2 * output[name]
    return output


def test_configurations_that_record_keep_the_models_own_forward(made, model, taken):
    if made[0] not in CLASS_TOKEN_FAMILIES:
        pytest.skip("has no faster way")
    pixels, model.faster_images = pixels_of(model, 2), True
    for config in (model.clip.vision_model.config, model.config):
        config.output_hidden_states = True
        with torch.no_grad():
            output = model(pixel_values=pixels)
        config.output_hidden_states = False
        assert output.logits.shape == (2, model.config.num_labels) and not taken
    model.train()
    with torch.no_grad():
        model(pixel_values=pixels)
    assert not taken, "dropout"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_and_autocast(made, model, dtype):
    pixels = pixels_of(model, 3)
    wide = dtype == torch.float64
    model = model.to(dtype) if wide else model
    with torch.no_grad(), nullcontext() if wide else torch.autocast("cpu", dtype):
        found, expected = model.pooled_image_features(pixels), own(model, pixels.to(model.dtype))
    assert found.dtype == expected.dtype
    tolerance = 1e-12 if wide else 0.02
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_interpolated_positions_and_attention(made, attention, taken):
    if made[0] not in CLASS_TOKEN_FAMILIES:
        pytest.skip("has no faster way")
    model = CLIPClassifier.from_pretrained(made[1], attn_implementation=attention).eval()
    size = model.family.image_size(model.config)
    pixels = torch.randn(3, 3, 2 * size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.pooled_image_features(pixels, interpolate_pos_encoding=True)
        assert_same(found, own(model, pixels, interpolate_pos_encoding=True))
        with pytest.raises(ValueError, match="the model takes 24 x 24"):
            model.pooled_image_features(pixels)
    assert len(taken) == 1


def test_adapters_inside_the_encoder_are_called(made, model, taken):
    if made[0] not in CLASS_TOKEN_FAMILIES:
        pytest.skip("has no faster way")
    before = own(model, pixels := pixels_of(model, 3)).detach()
    targets = [n for n, _ in model.named_modules() if "vision_model" in n and n.endswith(("q_proj", "v_proj", "fc1"))]
    for config in (LoraConfig(target_modules=targets, init_lora_weights=False), VPTConfig(prompt_depth=2)):
        adapted = get_peft_model(model, config).eval()
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
            found, expected = model.pooled_image_features(pixels), own(model, pixels)
        assert_same(found, expected)
        assert (expected - before).abs().max() > 1e-3 * before.abs().max()
        adapted.unload()
    assert taken


def test_compiled_and_exported_models_keep_the_models_own_forward(made, taken):
    if made[0] != "clip":
        pytest.skip("one family is enough")
    model = CLIPClassifier.from_pretrained(made[1], class_names=["cat", "dog"]).eval().requires_grad_(False)
    pixels = pixels_of(model, 2)

    class Images(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixels):
            return self.model.pooled_image_features(pixels)

    with torch.no_grad():
        program = torch.export.export(Images(), (pixels,))
        assert not taken
        assert_same(program.module()(pixels), own(model, pixels))


def test_last_layer_computes_one_token(made, model):
    """Counted, not timed: rows that go through the last layer's MLP."""
    if made[0] not in CLASS_TOKEN_FAMILIES:
        pytest.skip("has no faster way")
    pixels, rows = pixels_of(model, 33), []
    layer = model.clip.vision_model.encoder.layers[-1]
    hook = layer.mlp.fc2.register_forward_pre_hook(lambda m, i: rows.append(i[0].shape[:2]))
    with torch.no_grad():
        model.pooled_image_features(pixels)
    hook.remove()
    assert rows == [(32, 1), (1, 1)]


@pytest.mark.parametrize(
    "patch, side, width, dtype, at_once",
    [
        (32, 224, 3072, torch.float32, 8),  # ViT-B/32
        (16, 224, 3072, torch.float32, 8),  # ViT-B/16
        (32, 224, 3072, torch.bfloat16, 17),
        (8, 64, 768, torch.float32, 26),  # the embedded model
        (8, 24, 64, torch.float32, 32),
    ],
)
def test_small_encoders_take_more_images_at_once(patch, side, width, dtype, at_once):
    config = CLIPVisionConfig(patch_size=patch, intermediate_size=width)
    assert image_encoding._images_at_once(config, torch.empty(1, 3, side, side, dtype=dtype)) == at_once
