"""VPT on CLIP, on CLIP's image encoder alone, and the original on a ViT."""

import copy

import pytest
import torch
import torch.nn.functional as F
from adapter_models import tiny_classifier
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from tiny import tiny_clip, tiny_pixels
from transformers import (
    CLIPForImageClassification,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from hf_clip_variants.adapters import VPTConfig, load_adapter, put_adapter


PATCHES = 9  # of tests/support/tiny.py: 24 px in patches of 8


def vpt(base=None, seed: int = 0, adapter_name: str = "default", **config) -> PeftModel:
    base = base if base is not None else tiny_classifier()
    torch.manual_seed(seed)
    return get_peft_model(base, VPTConfig(**{"num_prompt_tokens": 3} | config), adapter_name)


def prompts_of(model: torch.nn.Module) -> torch.nn.Parameter:
    (prompts,) = [p for name, p in model.named_parameters() if name.endswith("clipv_vpt_prompts.default")]
    return prompts


def features(model: PeftModel) -> torch.Tensor:
    return model.get_base_model().get_image_features(tiny_pixels()).pooler_output


# ---- on CLIP


@pytest.mark.parametrize("depth", [1, "all"])
def test_features_do_not_depend_on_the_order_of_prompts(depth):
    model = vpt(prompt_depth=depth)
    before = features(model)
    with torch.no_grad():
        prompts_of(model).copy_(prompts_of(model)[:, [2, 0, 1]])
    torch.testing.assert_close(features(model), before, rtol=0, atol=1e-5)


def test_features_depend_on_the_first_norm_but_not_on_the_position():
    found = [
        features(vpt(prompt_position=position, normalize_first=normalize))
        for position in ("end", "after_cls")
        for normalize in (True, False)
    ]
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[3], found[1], rtol=0, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_text_features_do_not_change():
    base = tiny_classifier()
    with torch.no_grad():
        classes, images = base.get_class_features(), features_of(base)
    model = vpt(base)
    assert torch.equal(base.get_class_features(), classes)
    assert not torch.allclose(features(model), images, atol=1e-3)


def features_of(classifier) -> torch.Tensor:
    return classifier.get_image_features(tiny_pixels()).pooler_output


@pytest.mark.parametrize("position", ["end", "after_cls"])
def test_all_layers_see_the_prompts_and_the_output_has_none(position):
    model = vpt(prompt_depth=2, prompt_position=position)
    encoder, lengths = model.get_base_model().clip.vision_model, []
    for layer in encoder.encoder.layers:
        bare = getattr(layer, "base_layer", layer)
        bare.register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
    output = encoder(tiny_pixels())
    assert lengths == [1 + PATCHES + 3] * 3 and output.last_hidden_state.shape == (4, 1 + PATCHES, 40)


def test_dropout_is_active_in_training_only():
    model, plain = vpt(dropout=0.5), vpt()
    assert torch.equal(features(model.eval()), features(plain.eval()))
    model.train()
    assert not torch.equal(features(model), features(model))
    torch.manual_seed(1)
    prompt_module = model.get_base_model().clip.vision_model.embeddings
    dropped = prompt_module.layer_prompts("default", 0, 2)  # one mask per image; kept values are doubled
    kept = dropped != 0
    assert 0.2 < kept.float().mean() < 0.8 and not torch.equal(kept[0], kept[1])
    torch.testing.assert_close(dropped[kept], (2 * prompts_of(model)[0]).expand_as(dropped)[kept])


def test_projection_maps_prompts_to_the_encoders_width():
    model, plain = vpt(projection_dim=7), vpt()
    prompt_module = model.get_base_model().clip.vision_model.embeddings
    projection = prompt_module.clipv_vpt_projection["default"]
    with torch.no_grad():
        prompts_of(plain).copy_(prompts_of(model) @ projection.weight.T + projection.bias)
    assert prompts_of(model).shape == (3, 3, 7)
    torch.testing.assert_close(features(model), features(plain), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("count", "depth"), [(1, 1), (5, 2), (8, "all")])
def test_number_of_parameters(count, depth):
    model = vpt(num_prompt_tokens=count, prompt_depth=depth)
    assert model.get_nb_trainable_parameters()[0] == count * (3 if depth == "all" else depth) * 40
    # CLIP ViT-B/16 with the defaults
    config = VPTConfig(prompt_depth=12, target_modules=["vision_model.embeddings"])
    config.backbone_widths = {"image width": 768}
    assert [torch.Size(shape).numel() for shape in config.adapter_tensors().values()] == [73_728]


def test_modules_to_save_do_not_change_the_backbone_fingerprint(tmp_path):
    model = vpt(modules_to_save=["visual_projection"])
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "second")
    model.set_adapter("second")
    assert load_adapter(tmp_path, model, adapter_name="third") is model
    model.save_pretrained(tmp_path)
    assert torch.equal(features(load_adapter(tmp_path / "second", tiny_classifier())), features(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_prompt_tokens": 0}, "num_prompt_tokens: 0, expected a whole number of at least 1"),
        ({"prompt_depth": 0}, "prompt_depth: 0"),
        ({"prompt_depth": "deep"}, "prompt_depth: 'deep', expected a number of layers or 'all'"),
        ({"init": "zeros"}, "init: 'zeros', expected one of 'normal', 'uniform_patch'"),
        ({"dropout": 1.0}, "dropout: 1.0, expected at least 0 and less than 1"),
        ({"projection_dim": 0}, "projection_dim: 0"),
    ],
)
def test_invalid_configuration_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VPTConfig(**arguments)


def test_unknown_position_is_refused():
    with pytest.raises(ValueError, match="prompt_position: 'start', expected one of 'end', 'after_cls'"):
        vpt(prompt_position="start")


# ---- on an image encoder alone


def test_image_encoder_alone_equals_the_full_model():
    clip = tiny_clip()
    on_clip = vpt(clip)
    expected = clip.get_image_features(tiny_pixels()).pooler_output
    bare = CLIPVisionModel(clip.config.vision_config).eval()
    projected = CLIPVisionModelWithProjection(clip.config.vision_config).eval()
    state = {name.replace(".base_layer", ""): t for name, t in clip.state_dict().items() if "clipv_" not in name}
    vision = {name: t for name, t in state.items() if name.startswith(("vision_model.", "visual_projection."))}
    projected.load_state_dict(vision)
    bare.load_state_dict({n.removeprefix("vision_model."): t for n, t in vision.items() if n.startswith("vision_")})
    found = []
    for base in (bare, projected):
        model = vpt(base)
        with torch.no_grad():
            prompts_of(model).copy_(prompts_of(on_clip))
        found.append(model(pixel_values=tiny_pixels()))
    torch.testing.assert_close(found[1].image_embeds, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(projected.visual_projection(found[0].pooler_output), expected, rtol=0, atol=1e-5)
    assert found[0].last_hidden_state.shape == (4, 1 + PATCHES, 40)


def test_head_that_averages_tokens_sees_patches_only():
    """`CLIPForImageClassification` averages all tokens but the first."""
    config = tiny_clip().config
    config.num_labels = 5
    torch.manual_seed(0)
    model = CLIPForImageClassification(config).eval()
    seen = []
    model.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    vpt(model.vision_model, prompt_position="after_cls")
    model(tiny_pixels())
    last = model.vision_model(tiny_pixels()).last_hidden_state
    assert last.shape[1] == 1 + PATCHES
    torch.testing.assert_close(seen[0], last[:, 1:].mean(1))


# ---- the original, on a ViT


def tiny_vit(num_labels: int = 5, head_seed: int = 0, kind=ViTForImageClassification):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=40,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=24,
        patch_size=8,
        num_labels=num_labels,
        initializer_range=0.2,
    )
    model = kind(config).eval()
    if hasattr(model, "classifier"):  # as after from_pretrained on a checkpoint with another head
        torch.manual_seed(head_seed)
        torch.nn.init.normal_(model.classifier.weight)
    return model


def original(base=None, seed: int = 0, **changes) -> PeftModel:
    base = base if base is not None else tiny_vit()
    torch.manual_seed(seed)
    return get_peft_model(base, VPTConfig.original(num_prompt_tokens=4, **changes))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=tiny_pixels()).logits


def train_a_little(model, output_dir, max_steps: int = 3, resume: str | None = None):
    """Trains `model` for `max_steps` of SGD, with a checkpoint after the second step, and returns it."""
    pixels = tiny_pixels()
    Trainer(
        model=model,
        args=TrainingArguments(
            str(output_dir),
            learning_rate=0.1,
            optim="sgd",
            max_steps=max_steps,
            save_steps=2,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            lr_scheduler_type="constant",
            seed=0,
        ),
        train_dataset=[{"pixel_values": pixels[i % 4], "labels": i % 4} for i in range(8)],
    ).train(resume_from_checkpoint=resume)
    return model.eval()


HEAD_AND_PROMPTS = {
    "base_model.model.classifier.bias": (5,),
    "base_model.model.classifier.weight": (5, 40),
    "base_model.model.vit.embeddings.clipv_vpt_prompts": (3, 4, 40),
}


def test_original_trains_prompts_and_head_and_can_be_reloaded(tmp_path):
    model = original()
    config = model.peft_config["default"]
    assert (config.prompt_position, config.normalize_first, config.init) == ("after_cls", False, "uniform_patch")
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    before = copy.deepcopy(get_peft_model_state_dict(model))
    train_a_little(model, tmp_path / "run")
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    trained = get_peft_model_state_dict(model)
    assert not any(torch.equal(trained[name], before[name]) for name in HEAD_AND_PROMPTS)

    model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == HEAD_AND_PROMPTS
    # A head with other random values does not make it another backbone.
    for load in (
        lambda base: PeftModel.from_pretrained(base, tmp_path / "adapter"),
        lambda base: load_adapter(tmp_path / "adapter", base),
    ):
        assert torch.equal(logits(load(tiny_vit(head_seed=9))), logits(model))
    base = tiny_vit(head_seed=9)
    base.load_adapter(tmp_path / "adapter", "other")
    torch.testing.assert_close(logits(base), logits(model), rtol=0, atol=1e-5)


def test_file_without_the_head_is_refused(tmp_path):
    config = VPTConfig.original(num_prompt_tokens=4)
    model = original()
    prompts = {n: t for n, t in get_peft_model_state_dict(model).items() if "clipv_" in n}
    with pytest.raises(ValueError, match="1 missing tensors: classifier"):
        put_adapter(tiny_vit(), config, prompts)


def test_original_resumes_training_with_the_same_result(tmp_path):
    whole = train_a_little(original(seed=1), tmp_path)
    resumed = train_a_little(original(seed=2), tmp_path, resume=str(tmp_path / "checkpoint-2"))
    for name, tensor in get_peft_model_state_dict(resumed).items():
        assert torch.equal(tensor, get_peft_model_state_dict(whole)[name]), name


@torch.no_grad()
def change_head(base, adapter_name: str, factor: float) -> None:
    base.classifier.modules_to_save[adapter_name].weight.mul_(factor)


def test_each_original_adapter_has_its_own_head(tmp_path):
    base = tiny_vit()
    plain, kinds = logits(base), [type(m) for m in base.modules()]
    model = original(base)
    change_head(base, "default", 2)
    first = logits(model)
    model.add_adapter("second", VPTConfig.original(num_prompt_tokens=2, prompt_depth=1))
    change_head(base, "second", 3)
    model.set_adapter("second")
    second = logits(model)
    assert not torch.allclose(second, first, atol=1e-3)
    model.save_pretrained(tmp_path)

    again = PeftModel.from_pretrained(tiny_vit(head_seed=9), tmp_path)
    again.load_adapter(tmp_path / "second", "second")
    assert torch.equal(logits(again), first)
    again.set_adapter("second")
    assert torch.equal(logits(again), second)
    alone = load_adapter(tmp_path / "second", tiny_vit(head_seed=9))
    assert torch.equal(logits(alone), second)

    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    assert model.unload() is base and [type(m) for m in base.modules()] == kinds
    assert torch.equal(logits(base), plain)


def test_other_backbone_or_number_of_classes_is_refused(tmp_path):
    original().save_pretrained(tmp_path)
    other = tiny_vit()
    with torch.no_grad():
        for parameter in other.vit.parameters():
            parameter.mul_(1.5)
    with pytest.raises(ValueError, match="backbone_fingerprint"):
        load_adapter(tmp_path, other)
    base = tiny_vit(num_labels=7)
    kinds = [type(m) for m in base.modules()]
    with pytest.raises(RuntimeError, match=r"size mismatch for .*classifier.*\[5, 40\].*\[7, 40\]"):
        load_adapter(tmp_path, base)
    assert [type(m) for m in base.modules()] == kinds and all(p.requires_grad for p in base.parameters())


def test_vit_without_a_head():
    base, with_head = tiny_vit(kind=ViTModel), tiny_vit()
    with_head.vit.load_state_dict({n: t for n, t in base.state_dict().items() if not n.startswith("pooler.")})
    model, expected = vpt(base), vpt(with_head)
    assert model.peft_config["default"].target_modules == ["embeddings", "layers.0", "layers.1", "layers.2"]
    output = model(pixel_values=tiny_pixels())
    assert output.last_hidden_state.shape == (4, 1 + PATCHES, 40)
    class_token = output.last_hidden_state[:, 0]
    torch.testing.assert_close(with_head.classifier(class_token), expected(pixel_values=tiny_pixels()).logits)
    F.mse_loss(class_token, torch.zeros_like(class_token)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == [
        "base_model.model.embeddings.clipv_vpt_prompts.default"
    ]
