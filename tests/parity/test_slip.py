"""SLIP from converted official weights: features, losses, gradients, statistics, decay groups, learning rates."""

import re
from functools import partial

import pytest
import torch
from parity_fixtures import assert_close, load_fixture
from torch.nn import functional as F

from hf_clip_variants import SLIPForPreTraining, SLIPModel
from hf_clip_variants.modeling.slip.convert_slip import slip_from_official, to_official, vit_from_official
from hf_clip_variants.training.lr_schedules import warmup_cosine
from hf_clip_variants.training.parameter_groups import weight_decay_groups


pytestmark = pytest.mark.parity

LOSSES = ("loss", "clip_loss", "ssl_loss")


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("slip")


def convert(fixture, **options):
    heads = {
        "vision_heads": fixture.meta["vision_hparams"]["num_heads"],
        "text_heads": fixture.hparam("transformer_heads"),
    }
    return slip_from_official(fixture.state_dict, **heads, **options)


def forward(fixture, model):
    """(outputs, results under the fixture's names)"""
    model.config.ssl_scale, model.config.ssl_temperature = fixture.meta["ssl_scale"], fixture.meta["ssl_temp"]
    given = fixture.inputs
    outputs = model(
        input_ids=given["text"],
        pixel_values=given["image"],
        pixel_values_aug1=given["aug1"],
        pixel_values_aug2=given["aug2"],
    )
    results = {name: getattr(outputs, name) for name in LOSSES} | {
        "clip_acc": 100 * outputs.clip_accuracy,
        "ssl_acc": 100 * outputs.ssl_accuracy,
        "aug1_embed": outputs.aug1_embeds,
        "aug2_embed": outputs.aug2_embeds,
        "image_embed": outputs.vision_model_output.pooler_output,
        "text_embed": outputs.text_model_output.pooler_output,
        "visual_cls": outputs.vision_model_output.last_hidden_state[:, 0],
        "logit_scale": model.logit_scale.exp(),
    }
    return outputs, results


def learning_rates(fixture) -> dict[str, torch.Tensor]:
    """Every schedule of the fixture, with the arguments of the official call in its meta.json."""
    found = {}
    for name in (name for name in fixture.outputs if name.startswith("schedule.")):
        call = fixture.meta["tensors"][name]
        peak, end = map(float, re.search(r"cosine_scheduler\(([\de.+-]+),\s*([\de.+-]+)", call).groups())
        said = {key: float(value) for key, value in re.findall(r"(\w+)=([\de.+-]+)", call)}
        steps, epochs = int(said["niter_per_ep"]), int(said["epochs"])
        schedule = partial(
            warmup_cosine,
            peak=peak,
            end=end,
            start=said["start_warmup_value"],
            num_steps=epochs * steps,
            warmup_steps=int(said["warmup_epochs"]) * steps,
        )
        found[name] = torch.tensor([peak * schedule(step) for step in range(epochs * steps)], dtype=torch.float64)
    return found


@pytest.fixture(scope="module")
def results(fixture):
    model = convert(fixture)
    with torch.no_grad():
        _, evaluated = forward(fixture, model)
    outputs, trained = forward(fixture, model.train())
    outputs.loss.backward()
    gradients = to_official({name: p.grad for name, p in model.named_parameters()}, model.config)
    after = to_official(model.state_dict(), model.config)
    return {
        **{f"eval.{name}": tensor for name, tensor in evaluated.items()},
        **{f"train.{name}": tensor for name, tensor in trained.items()},
        **{f"train.grad.{name}": tensor for name, tensor in gradients.items()},
        **{f"train.after.{name}": tensor for name, tensor in after.items()},
        **learning_rates(fixture),
    }


def test_configuration_from_shapes(fixture):
    model = convert(fixture)
    config, said = model.config, fixture.meta["vision_hparams"]
    text, vision = config.text_config, config.vision_config
    assert type(model) is SLIPForPreTraining
    assert (vision.image_size, vision.patch_size) == (said["img_size"], said["patch_size"])
    assert (vision.hidden_size, vision.num_hidden_layers) == (said["embed_dim"], said["depth"])
    assert vision.num_attention_heads == said["num_heads"]
    assert vision.layer_norm_eps == fixture.meta["vit_layernorm_eps"] and vision.hidden_act == "gelu"
    assert text.layer_norm_eps == fixture.meta["text_layernorm_eps"] and text.hidden_act == "quick_gelu"
    assert config.projection_dim == fixture.hparam("embed_dim")
    assert text.hidden_size == fixture.hparam("transformer_width")
    assert text.num_hidden_layers == fixture.hparam("transformer_layers")
    assert text.max_position_embeddings == fixture.hparam("context_length")
    assert text.eos_token_id == fixture.text_eos_token_id()
    assert (config.ssl_mlp_dim, config.ssl_emb_dim) == (fixture.hparam("ssl_mlp_dim"), fixture.hparam("ssl_emb_dim"))


@pytest.mark.parametrize("kind", ["eval", "train.grad", "train.after", "train", "schedule"])
def test_equals_official(fixture, results, kind):
    wanted = {name: tensor for name, tensor in fixture.outputs.items() if name.startswith(kind + ".")}
    assert wanted, f"the fixture has no {kind}"
    for name, expected in wanted.items():
        assert_close(results[name], expected, name)


def test_every_output_is_compared(fixture, results):
    assert set(fixture.outputs) <= set(results)


def test_dual_encoder_without_head_equals_official(fixture):
    image, text = fixture.inputs["image"], fixture.inputs["text"]
    whole = convert(fixture)
    for model in (convert(fixture, with_head=False), whole.dual_encoder()):
        assert type(model) is SLIPModel
        with torch.no_grad():
            outputs = model(pixel_values=image, input_ids=text, return_loss=True)
        assert_close(outputs.image_embeds, F.normalize(fixture.outputs["eval.image_embed"], dim=-1), "image_embeds")
        assert_close(outputs.text_embeds, F.normalize(fixture.outputs["eval.text_embed"], dim=-1), "text_embeds")
        assert_close(outputs.loss, fixture.outputs["eval.clip_loss"], "loss")


def test_image_encoder_alone_equals_official(fixture):
    encoder = vit_from_official(fixture.state_dict, vision_heads=fixture.meta["vision_hparams"]["num_heads"])
    with torch.no_grad():
        assert_close(
            encoder(fixture.inputs["image"]).last_hidden_state[:, 0], fixture.outputs["eval.visual_cls"], "visual_cls"
        )


def test_round_trip_is_bit_identical(fixture):
    model = convert(fixture)
    back = to_official(model.state_dict(), model.config)
    assert back.keys() == fixture.state_dict.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in fixture.state_dict.items())


def test_parameters_without_weight_decay_equal_official(fixture):
    model = convert(fixture)
    decays, stays = weight_decay_groups(model, 0.1)
    assert (decays["weight_decay"], stays["weight_decay"]) == (0.1, 0.0)
    kept = {id(parameter) for parameter in stays["params"]}
    # 1 marks a parameter without weight decay. Marks of the three parts of a joint projection must agree.
    marks = {name: torch.full_like(p, float(id(p) in kept)) for name, p in model.named_parameters()}
    official = to_official(marks, model.config)
    assert {name for name, mark in official.items() if mark.all()} == set(fixture.meta["no_weight_decay_params"])
    assert all(mark.unique().numel() == 1 for mark in official.values())
    assert len(decays["params"]) + len(stays["params"]) == len(list(model.parameters()))
