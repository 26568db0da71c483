"""AudioCLIP from converted official weights: spectrogram, maps and gates, features, losses, gradients."""

import re

import pytest
import torch
from parity_fixtures import assert_close, load_fixture

from hf_clip_variants.modeling.audioclip.convert_audioclip import audioclip_from_official, to_official
from hf_clip_variants.modeling.audioclip.spectrogram_audioclip import wavelets


pytestmark = pytest.mark.parity

# Settings that cannot be inferred from shapes; the converter's arguments have the fixture's names.
SETTINGS = ("n_fft", "hop_length", "win_length", "window", "normalized", "onesided", "spec_height", "spec_width")
HOOKED = ("maxpool", "layer1", "att1", "layer2", "att2", "layer3", "att3", "layer4", "att4", "att5")
COMBINATIONS = {
    "ait": ("input_features", "pixel_values", "input_ids"),
    "ai": ("input_features", "pixel_values"),
    "at": ("input_features", "input_ids"),
    "it": ("pixel_values", "input_ids"),
    "a": ("input_features",),
}


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("audioclip")


@pytest.fixture(scope="module")
def settings(fixture):
    return {name: fixture.meta["audio_hparams"][name] for name in SETTINGS}


@pytest.fixture(scope="module")
def model(fixture, settings):
    return audioclip_from_official(
        fixture.state_dict,
        vision_heads=fixture.meta["vision_heads"],
        text_heads=fixture.hparam("transformer_heads"),
        **settings,
    )


@pytest.fixture(scope="module")
def inputs(fixture):
    return {
        "input_features": fixture.inputs["audio_mono"],
        "pixel_values": fixture.inputs["image"],
        "input_ids": fixture.inputs["text"],
    }


def gradients_of(model, loss) -> dict[str, torch.Tensor]:
    """Under the official names; zeros for parameters without gradient."""
    model.zero_grad()
    loss.backward()
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return to_official(found, model.config, buffers=False)


@pytest.fixture(scope="module")
def results(fixture, model, inputs):
    """All outputs of the fixture, under its names."""
    front, waveforms = model.audio_model.fbsp, inputs["input_features"]
    frames, filters = front.frames(waveforms), front.filters()
    spectrum = front.spectrum(frames, filters)
    numbers = torch.arange(len(front.fc), dtype=torch.float32)
    at_init = wavelets(0 * numbers, torch.ones_like(numbers), numbers, filters.shape[-1], front.config.normalized)
    found = {
        "fbsp_weights_at_init": at_init.permute(1, 2, 0),
        "audio.fbsp_weights": filters.permute(1, 2, 0),
        "audio.frames_head": frames[:, 0, :3],
        "audio.spec_head": spectrum[:1, 0].permute(0, 3, 1, 2),
        "audio.x_db": front.decibels(spectrum),
    }
    hooks = []
    for name in HOOKED:
        keep = lambda module, given, output, name=name: found.update({f"audio.{name}": output})  # noqa: E731
        hooks.append(model.audio_model.get_submodule(name).register_forward_hook(keep))
    found["audio.features_mono"] = model.get_audio_features(waveforms).pooler_output
    for hook in hooks:
        hook.remove()
    found["audio.features_stereo"] = model.get_audio_features(fixture.inputs["audio_stereo"]).pooler_output
    for name, given in COMBINATIONS.items():
        outputs = model(**{key: inputs[key] for key in given}, return_loss=True)
        if outputs.loss is None:
            found[f"{name}.loss_is_none"] = torch.tensor(1)
            continue
        found[f"{name}.loss"] = outputs.loss
        if name == "ait":
            found["audio.loss_ttf"] = outputs.loss_ttf
            found["ait.loss_without_ttf"] = outputs.loss - outputs.loss_ttf
            for modality in ("audio", "image", "text"):
                found[f"ait.{modality}_features"] = outputs[f"{modality}_embeds"]
            for pair in ("audio_image", "audio_text", "image_text"):
                found[f"ait.logits_{pair}"] = outputs[f"logits_{pair}"]
    weighted = model(**inputs, sample_weights=fixture.inputs["sample_weights"], return_loss=True)
    found["ait.loss_weighted_without_ttf"] = weighted.loss - weighted.loss_ttf
    gradients = gradients_of(model, model(**inputs, return_loss=True).loss)
    return found | {f"grad.{name}": gradient for name, gradient in gradients.items()}


@pytest.fixture(scope="module")
def raw_gradients(model, inputs):
    """Gradients of the filters before the division by the largest magnitude."""
    with pytest.MonkeyPatch.context() as patch:
        module = "hf_clip_variants.modeling.audioclip.spectrogram_audioclip._MaxNormGradients.apply"
        patch.setattr(module, lambda over_ranks, *vectors: vectors)
        gradients = gradients_of(model, model(**inputs, return_loss=True).loss)
    return {f"grad_raw.{name}": gradient for name, gradient in gradients.items()}


def test_configuration_from_shapes(fixture, model):
    expected, config = fixture.meta["audio_hparams"], model.config
    audio, vision, text = config.audio_config, config.vision_config, config.text_config
    assert audio.depths == expected["layers"] and audio.groups == expected["groups"]
    assert audio.width == fixture.meta["audio_stage_base_width"]
    assert [audio.width * 2**stage for stage in range(4)] == fixture.meta["audio_stage_planes"]
    assert audio.apply_attention == expected["apply_attention"]
    wide = {"width_per_group": expected["width_per_group"]}
    assert audio.inner_widths == type(audio)(**audio.to_dict() | wide).inner_widths
    assert config.projection_dim == audio.projection_dim == vision.projection_dim == fixture.hparam("embed_dim")
    assert vision.image_size == fixture.hparam("image_resolution") and vision.depths == fixture.hparam("vision_layers")
    assert text.num_hidden_layers == fixture.hparam("transformer_layers")
    assert text.eos_token_id == fixture.text_eos_token_id()


def test_settings_are_inferred_from_shapes(fixture, settings, model):
    heads = {"vision_heads": fixture.meta["vision_heads"], "text_heads": fixture.hparam("transformer_heads")}
    # An odd n_fft has as many filters as the even number below it, so it must be passed.
    inferred = {"win_length"} if settings["n_fft"] % 2 else {"win_length", "n_fft"}
    given = {name: value for name, value in settings.items() if name not in inferred}
    assert audioclip_from_official(fixture.state_dict, **heads, **given).config.to_dict() == model.config.to_dict()


@pytest.mark.parametrize("kind", ["fbsp_weights_at_init", "audio", "ait", "ai", "at", "it", "a", "grad"])
def test_equals_official(fixture, results, kind):
    wanted = {name: tensor for name, tensor in fixture.outputs.items() if re.match(rf"{kind}(\.|$)", name)}
    assert wanted, f"the fixture has no {kind}"
    for name, expected in wanted.items():
        assert_close(results[name], expected, name)


def test_raw_filter_gradients_equal_official(fixture, raw_gradients):
    wanted = {name: tensor for name, tensor in fixture.outputs.items() if name.startswith("grad_raw.")}
    assert wanted
    for name, expected in wanted.items():
        assert_close(raw_gradients[name], expected, name)


def test_every_output_is_compared(fixture, results, raw_gradients):
    assert set(fixture.outputs) <= set(results) | set(raw_gradients)


def test_round_trip_is_bit_identical(fixture, model):
    back = to_official(model.state_dict(), model.config)
    assert (
        fixture.state_dict.keys() - back.keys() == {"audio.fbsp.bias"} and not back.keys() - fixture.state_dict.keys()
    )
    for name, tensor in back.items():
        assert torch.equal(tensor, fixture.state_dict[name]), name
