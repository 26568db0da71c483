"""What AudioCLIP does beyond the contract of models: the spectrogram, channels, gates, losses of any modalities,
gradients of the filters, frozen encoders, training."""

import copy
import math

import numpy as np
import pytest
import torch
from contrastive_runs import run_ranks
from model_contract import CASES
from paths import PROGRAMS
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, pipeline

from hf_clip_variants import AudioCLIPAudioModel, AudioCLIPConfig, AudioCLIPModel
from hf_clip_variants.modeling.audioclip.spectrogram_audioclip import (
    frame_signal,
    wavelets,
    wavelets_reference,
    window_function,
)


CASE = CASES["audioclip"]
RANKS = PROGRAMS / "audioclip_ranks.py"
FILTERS = ("m", "fb", "fc")
PAIRS = {"audio_image": "logit_scale_ai", "audio_text": "logit_scale_at", "image_text": "logit_scale"}


@pytest.fixture
def model():
    model = CASE.make()
    model.audio_model.fbsp.requires_grad_(True)
    return model


@pytest.fixture
def encoder(model):
    return model.audio_model


@pytest.fixture
def waveforms():
    return CASE.inputs(4)["input_features"]


def gradients(module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


class TestSpectrogram:
    def test_new_filters_are_a_fourier_transform(self):
        """With each frame shifted by pi, and so with equal magnitudes."""
        config = CASE.config().audio_config
        front = AudioCLIPAudioModel(config).fbsp
        signal = 3000 * torch.randn(2, 1, 500)
        frames = front.frames(signal)
        spectrum = torch.view_as_complex(front.spectrum(frames, front.filters()).movedim(-2, -1).contiguous())
        # The filters' time runs from -pi to pi, both included: n_fft points of a period of n_fft - 1.
        time = math.pi * torch.linspace(-1, 1, config.n_fft, dtype=torch.float64)
        start = (config.n_fft - config.win_length) // 2
        basis = torch.exp(-1j * torch.arange(config.num_filters)[:, None] * time)[:, start : start + config.win_length]
        expected = frames.to(torch.complex128) @ basis.T / math.sqrt(config.n_fft)
        torch.testing.assert_close(spectrum.abs().double(), expected.abs(), rtol=1e-4, atol=1e-5)

    def test_ten_times_the_amplitude_is_20_decibels_more(self, encoder, waveforms):
        waveforms = waveforms - waveforms.mean() + 10_000  # far from the floor
        with torch.no_grad():
            once, twice = (encoder.fbsp(factor * waveforms)[0] for factor in (0.1, 1.0))
        middle = (twice - once).median()
        assert middle.item() == pytest.approx(20, abs=0.1)

    def test_silence_gives_finite_decibels(self, encoder):
        for value in (0.0, -0.5):  # -0.5 is mapped to 0 exactly, where only the smallest power is left
            decibels, _ = encoder.fbsp(torch.full((1, 1, 500), value))
            assert torch.isfinite(decibels).all()
        assert decibels.min().item() == pytest.approx(-180, abs=1e-3)

    @pytest.mark.parametrize("samples", [1, 49, 50, 51, 70, 71, 900])
    def test_waveform_is_padded_on_both_sides(self, samples):
        signal, window = torch.arange(1.0, samples + 1)[None], torch.ones(50)
        frames = frame_signal(signal, window, 20)
        assert frames.shape[1] == CASE.config().audio_config.num_frames(samples)
        total = torch.zeros(50 + 20 * (frames.shape[1] - 1))
        for index, frame in enumerate(frames[0]):
            total[20 * index : 20 * index + 50] = frame
        left = (len(total) - samples) // 2
        assert torch.equal(total[left : left + samples], signal[0]) and total.count_nonzero() == samples

    def test_windows_equal_scipy(self):
        windows = pytest.importorskip("scipy.signal.windows")
        for name in ("blackmanharris", "hann"):
            for length in (50, 101):
                expected = windows.get_window(name, length, fftbins=True)
                torch.testing.assert_close(
                    window_function(name, length).double(), torch.from_numpy(expected), rtol=0, atol=1e-6
                )

    def test_spectrogram_is_resized_to_spec_height_and_width(self, waveforms):
        config = CASE.config().audio_config
        plain = AudioCLIPAudioModel(config).fbsp(waveforms)[0]
        assert plain.shape == (4, 1, 3, *config.spectrogram_size(waveforms.shape[-1]))
        for height, width in ((20, 30), (20, -1), (-1, 30)):
            resized_config = type(config)(**config.to_dict() | {"spec_height": height, "spec_width": width})
            resized = AudioCLIPAudioModel(resized_config).fbsp(waveforms)[0]
            assert resized.shape[-2:] == resized_config.spectrogram_size(waveforms.shape[-1])
            corners = [one[..., [0, 0, -1, -1], [0, -1, 0, -1]] for one in (resized, plain)]
            torch.testing.assert_close(*corners, rtol=1e-4, atol=1e-3)

    def test_filters_equal_reference(self):
        m, fb, fc = torch.rand(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
        for normalized in (True, False):
            expected = wavelets_reference(m, fb, 10 * fc, 64, normalized)
            torch.testing.assert_close(wavelets(m, fb, 10 * fc, 64, normalized), expected, rtol=1e-5, atol=1e-6)

    def test_filters_are_finite_where_the_official_ones_are_nan(self):
        """A sinc of exactly zero, orders of zero, negative bandwidths: filters and gradients."""
        vectors = [
            torch.tensor(v, requires_grad=True)
            for v in ([1.0, 0.0, 2.0, -0.5], [1.0, 1.0, 0.0, -1.0], [0.0, 1.0, 2.0, 3.0])
        ]
        bank = wavelets(*vectors, 9)
        bank.square().sum().backward()
        assert torch.isfinite(bank).all() and all(torch.isfinite(v.grad).all() for v in vectors)

    @pytest.mark.parametrize("how", ["to", "half", "load", "autocast"])
    def test_spectrogram_stays_in_float32(self, model, waveforms, tmp_path, how):
        exact = model.audio_model.fbsp(waveforms)[0]
        if how == "load":
            model.save_pretrained(tmp_path)
            model = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        elif how == "to":
            model = model.to(torch.bfloat16)
        elif how == "half":
            model = model.half()
        assert all(t.dtype == torch.float32 for t in model.audio_model.fbsp.state_dict().values())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
            assert torch.equal(model.audio_model.fbsp(waveforms)[0], exact)
        assert model.audio_model.double().fbsp(waveforms)[0].dtype == torch.float64

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (torch.zeros(4, 900), r"expected waveforms \[batch, channels, samples\], got \[4, 900\]"),
            (torch.zeros(4, 1, 0), r"got \[4, 1, 0\]"),
            (torch.zeros(4, 1, 900, dtype=torch.int16), "expected floats on the int16 scale, got torch.int16"),
            ("bell.wav", "got str"),
        ],
    )
    def test_invalid_waveforms_are_refused(self, encoder, given, said):
        with pytest.raises(ValueError, match=f"input_features: .*{said}"):
            encoder(given)


class TestFilterCache:
    @pytest.fixture
    def made(self, encoder, monkeypatch):
        calls = []
        plain = type(encoder.fbsp)._make
        monkeypatch.setattr(type(encoder.fbsp), "_make", lambda self, *v: calls.append(1) or plain(self, *v))
        return calls

    def test_filters_are_computed_once_without_gradients(self, encoder, waveforms, made):
        for context in (torch.no_grad, torch.inference_mode, torch.no_grad):
            with context():
                encoder(waveforms)
        assert len(made) == 1
        encoder(waveforms).pooler_output.sum().backward()
        assert len(made) == 2, "with gradients they are computed again"
        encoder.fbsp.requires_grad_(False)
        encoder(waveforms).pooler_output.sum().backward()  # uses filters computed in inference mode
        assert len(made) == 2

    @pytest.mark.parametrize("change", ["step", "data", "load", "train", "assign"])
    def test_filters_are_recomputed_after_a_change(self, encoder, waveforms, change):
        with torch.no_grad():
            encoder(waveforms)
            other = copy.deepcopy(encoder)
            other.fbsp.m.add_(0.3)
            expected = other(waveforms).pooler_output
            if change == "step":
                encoder.fbsp.m.add_(0.3)
            elif change == "data":
                encoder.fbsp.m.data += 0.3  # no version counter sees this
            elif change == "load":
                encoder.load_state_dict(other.state_dict())
            elif change == "assign":
                encoder.load_state_dict(other.state_dict(), assign=True)
            else:
                encoder.train()
                assert encoder.fbsp._cache is None
                encoder.eval().fbsp.m.add_(0.3)
            assert torch.equal(encoder(waveforms).pooler_output, expected)

    def test_cached_filters_are_not_saved(self, encoder, waveforms, tmp_path):
        with torch.no_grad():
            expected = encoder(waveforms).pooler_output
        names = set(encoder.state_dict())
        encoder.save_pretrained(tmp_path)
        assert set(load_file(tmp_path / "model.safetensors")) == names
        loaded = AutoModel.from_pretrained(tmp_path)
        assert type(loaded) is AudioCLIPAudioModel
        assert type(AutoConfig.from_pretrained(tmp_path)) is type(encoder.config)
        with torch.no_grad():
            CASE.check_same(loaded(waveforms).pooler_output, expected)


class TestChannels:
    def test_order_of_channels_does_not_matter(self, encoder):
        stereo = 5000 * torch.randn(3, 2, 900)
        with torch.no_grad():
            one, two = (encoder(each, output_hidden_states=True) for each in (stereo, stereo.flip(1)))
        torch.testing.assert_close(one.pooler_output, two.pooler_output)
        assert one.last_hidden_state.shape[1] == 2 * one.hidden_states[-1][0, 0, 0].numel()

    def test_pooled_features_are_summed_over_channels(self, encoder, waveforms):
        pooled = []
        encoder.fc.register_forward_hook(lambda module, given, output: pooled.append(given[0]))
        with torch.no_grad():
            encoder(waveforms)
            encoder(waveforms.expand(-1, 2, -1))
        assert torch.equal(pooled[1], 2 * pooled[0])

    def test_batch_norm_statistics_are_per_channel(self, encoder):
        """As in the official code: two updates of the statistics, each with one channel."""
        stereo = torch.stack([5000 * torch.randn(4, 900), 100 * torch.randn(4, 900)], dim=1)
        by_hand = copy.deepcopy(encoder).train()
        encoder.train()(stereo)
        for channel in (0, 1):
            by_hand(stereo[:, channel : channel + 1])
        assert encoder.bn1.num_batches_tracked == by_hand.bn1.num_batches_tracked
        for norm, other in ((encoder.bn1, by_hand.bn1), (encoder.layer3[0].bn2, by_hand.layer3[0].bn2)):
            torch.testing.assert_close(norm.running_mean, other.running_mean)
            torch.testing.assert_close(norm.running_var, other.running_var)

    def test_freeze_batch_norm_keeps_statistics(self, encoder, waveforms, tmp_path):
        encoder.save_pretrained(tmp_path)
        frozen = AudioCLIPAudioModel.from_pretrained(tmp_path, freeze_batch_norm=True).train()
        before = frozen.bn1.running_mean.clone()
        frozen(waveforms).pooler_output.sum().backward()
        assert torch.equal(frozen.bn1.running_mean, before) and frozen.bn1.weight.grad.any() and frozen.training


class TestGates:
    def test_without_gates_equals_torchvision_resnext(self, waveforms):
        """torchvision's network with the same weights, on the same spectrogram."""
        from torchvision.models.resnet import Bottleneck, ResNet

        sizes = {"hidden_size": 2048, "depths": [1, 1, 1, 1], "n_fft": 64, "win_length": 50, "hop_length": 20}
        config = type(CASE.config().audio_config)(**sizes, apply_attention=False)
        torch.manual_seed(0)
        ours = AudioCLIPAudioModel(config).eval()
        theirs = ResNet(
            Bottleneck, config.depths, num_classes=config.projection_dim, groups=32, width_per_group=4
        ).eval()
        state = {name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("fbsp.")}
        theirs.load_state_dict(state)
        with torch.no_grad():
            spectrogram = ours.fbsp(waveforms[:2])[0][:, 0]
            torch.testing.assert_close(ours(waveforms[:2]).pooler_output, theirs(spectrogram), rtol=1e-4, atol=1e-4)

    def test_closed_gate_sets_features_to_zero(self, encoder, waveforms):
        with torch.no_grad():
            encoder.att4.bn.weight.zero_()
            encoder.att4.bn.bias.fill_(-100)
            torch.testing.assert_close(encoder(waveforms).pooler_output, encoder.fc.bias.expand(4, -1))


class TestLoss:
    def by_hand(self, outputs, pairs, weights=None):
        labels, total = torch.arange(4), 0
        for pair in pairs:
            logits = outputs[f"logits_{pair}"]
            total = total + F.cross_entropy(logits, labels, weights) + F.cross_entropy(logits.t(), labels, weights)
        return total / math.factorial(len(pairs)) + (outputs.loss_ttf or 0)

    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize(
        ("left_out", "pairs"),
        [
            ((), tuple(PAIRS)),
            (("input_ids",), ("audio_image",)),
            (("pixel_values",), ("audio_text",)),
            (("input_features",), ("image_text",)),
        ],
    )
    def test_loss_of_any_modalities(self, model, left_out, pairs, weighted):
        inputs = {name: value for name, value in CASE.inputs(4).items() if name not in left_out}
        weights = torch.tensor([1.0, 0.5, 2.0, 0.0]) if weighted else None
        outputs = model(**inputs, sample_weights=weights, return_loss=True)
        torch.testing.assert_close(outputs.loss, self.by_hand(outputs, pairs, weights))
        ours = torch.autograd.grad(outputs.loss, model.logit_scale_ai, retain_graph=True, allow_unused=True)[0]
        wanted = torch.autograd.grad(self.by_hand(outputs, pairs, weights), model.logit_scale_ai, allow_unused=True)[0]
        assert (ours is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(ours, wanted)
        assert (outputs.loss_ttf is None) == ("input_features" in left_out)

    def test_one_modality_has_no_loss(self, model):
        for name, value in CASE.inputs(2).items():
            outputs = model(**{name: value}, return_loss=True)
            assert outputs.loss is None and outputs.logits_per_text is None
            assert sum(name.endswith("_embeds") for name in outputs) == 1
        with pytest.raises(ValueError, match="input_features, pixel_values, input_ids: all missing"):
            model(return_loss=True)

    def test_missing_modality_gets_no_gradient(self, model):
        inputs = {name: value for name, value in CASE.inputs(4).items() if name != "input_features"}
        model(**inputs, return_loss=True).loss.backward()
        assert all(p.grad is None for p in model.audio_model.parameters())
        assert model.logit_scale_ai.grad is None and model.logit_scale.grad is not None

    @pytest.mark.parametrize(
        ("value", "scale", "trains"),
        [(4.9, 100, False), (4.0, math.exp(4), True), (-0.1, 1, False), (0.5, math.exp(0.5), True)],
    )
    def test_logit_scales_are_limited_without_gradient(self, model, value, scale, trains):
        with torch.no_grad():
            for name in PAIRS.values():
                getattr(model, name).fill_(value)
        outputs = model(**CASE.inputs(4), return_loss=True)
        outputs.loss.backward()
        for pair, name in PAIRS.items():
            one, other = (outputs[f"{side}_embeds"] for side in pair.split("_"))
            torch.testing.assert_close(outputs[f"logits_{pair}"], scale * one @ other.t(), rtol=1e-5, atol=1e-5)
            assert bool(getattr(model, name).grad != 0) == trains

    def test_invalid_combinations_are_refused(self, model):
        inputs = CASE.inputs(4)
        with pytest.raises(ValueError, match=r"return_loss: .* got {'audio': 3, 'image': 4, 'text': 4}"):
            model(**inputs | {"input_features": inputs["input_features"][:3]}, return_loss=True)
        for weights, said in (
            (torch.ones(3), r"shape \(3,\), expected \(4,\)"),
            (torch.tensor([1.0, -1, 1, 1]), "expected finite numbers >= 0"),
            (torch.zeros(4), "not all 0"),
            (torch.full((4,), torch.nan), "finite"),
        ):
            with pytest.raises(ValueError, match=f"sample_weights: .*{said}"):
                model(**inputs, sample_weights=weights, return_loss=True)

    def test_penalty_is_the_squared_deviation_from_the_wanted_norm(self, encoder):
        for normalized in (True, False):
            encoder.fbsp.config.normalized = normalized
            at_init = wavelets(torch.zeros(33), torch.ones(33), torch.arange(33.0), 64, normalized)
            assert encoder.fbsp.penalty(at_init).item() == pytest.approx(0, abs=1e-9)
            wanted = 1 if normalized else 64
            assert encoder.fbsp.penalty(2 * at_init).item() == pytest.approx(wanted, rel=1e-4)


class TestGradientsOfTheFilters:
    def largest(self, front):
        return [getattr(front, name).grad.abs().max().item() for name in FILTERS]

    @pytest.mark.parametrize("how", ["new", "saved", "copied", "scaled"])
    def test_largest_gradient_is_one(self, model, tmp_path, how):
        if how == "saved":
            model.save_pretrained(tmp_path)
            model = AudioCLIPModel.from_pretrained(tmp_path)
        if how == "copied":
            model = copy.deepcopy(model)
        loss = model.train()(**CASE.inputs(4), return_loss=True).loss
        (1000 * loss if how == "scaled" else loss).backward()
        assert self.largest(model.audio_model.fbsp) == pytest.approx([1, 1, 1], abs=1e-6)

    def test_contrastive_loss_and_penalty_are_normalised_together(self, model, monkeypatch):
        """The gradient of the sum is divided once, not that of each loss by itself."""
        inputs = CASE.inputs(4)
        model(**inputs, return_loss=True).loss.backward()
        divided = gradients(model.audio_model.fbsp)
        model.zero_grad()
        module = "hf_clip_variants.modeling.audioclip.spectrogram_audioclip._MaxNormGradients.apply"
        monkeypatch.setattr(module, lambda over_ranks, *vectors: vectors)
        model(**inputs, return_loss=True).loss.backward()
        for name, raw in gradients(model.audio_model.fbsp).items():
            assert raw.abs().max() != pytest.approx(1, abs=1e-3)
            torch.testing.assert_close(divided[name], raw / (raw.abs().max() + 1e-8))

    def test_gradients_of_other_parameters_are_unchanged(self, model, monkeypatch):
        inputs = CASE.inputs(4)
        model(**inputs, return_loss=True).loss.backward()
        with_it = gradients(model)
        model.zero_grad()
        model.audio_model.fbsp.requires_grad_(False)
        model(**inputs, return_loss=True).loss.backward()
        for name, gradient in gradients(model).items():
            assert torch.equal(gradient, with_it[name]), name


class TestFrozen:
    @pytest.fixture
    def frozen(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        return AudioCLIPModel.from_pretrained(tmp_path, frozen_modalities=["image", "text"])

    def test_frozen_modalities_train_audio_encoder_only(self, frozen):
        trained = {name for name, p in frozen.named_parameters() if p.requires_grad}
        of_audio = {name for name, _ in frozen.named_parameters() if name.startswith("audio_model.")}
        assert trained == of_audio | {"logit_scale_ai", "logit_scale_at"}

    def test_frozen_audio_freezes_audio_encoder_only(self):
        config = AudioCLIPConfig.from_dict(CASE.config().to_dict() | {"frozen_modalities": ["audio"]})
        for name, parameter in AudioCLIPModel(config).named_parameters():
            assert parameter.requires_grad != name.startswith("audio_model."), name

    def test_frozen_encoders_stay_in_eval_and_keep_statistics(self, frozen, tmp_path):
        assert frozen.train().training and frozen.audio_model.training
        assert not any(m.training for part in (frozen.vision_model, frozen.text_model) for m in part.modules())
        before = copy.deepcopy(frozen.state_dict())
        optimizer = torch.optim.SGD([p for p in frozen.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            frozen(**CASE.inputs(4), return_loss=True).loss.backward()
            optimizer.step()
        for name, tensor in frozen.state_dict().items():
            is_trained = name.startswith("audio_model.") or name in ("logit_scale_ai", "logit_scale_at")
            assert is_trained or torch.equal(tensor, before[name]), name
        assert not torch.equal(frozen.audio_model.bn1.running_mean, before["audio_model.bn1.running_mean"])
        frozen.save_pretrained(tmp_path / "again")
        again = AudioCLIPModel.from_pretrained(tmp_path / "again")
        assert not again.text_projection.weight.requires_grad and not again.train().vision_model.training


class TestLoadingClipCheckpoints:
    def test_clip_resnet_checkpoint_gets_new_audio_encoder(self, model, tmp_path):
        clip = CASES["clip_resnet"].make()
        clip.save_pretrained(tmp_path)
        values = {"audio_config": CASE.config().audio_config, "frozen_modalities": ["image", "text"]}
        audioclip = AudioCLIPModel.from_pretrained(tmp_path, **values)
        inputs = CASE.inputs(3)
        with torch.no_grad():
            outputs = audioclip(**inputs)
            expected = clip(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"])
        torch.testing.assert_close(outputs.logits_per_image, expected.logits_per_image)
        front = audioclip.audio_model.fbsp
        assert not front.m.any() and (front.fb == 1).all() and torch.equal(front.fc, torch.arange(33.0))
        assert (
            torch.equal(front.window, window_function("blackmanharris", 50))
            and torch.isfinite(outputs.audio_embeds).all()
        )
        assert audioclip.logit_scale_at.item() == pytest.approx(math.log(100))
        assert not audioclip.logit_scale.requires_grad

    def test_incomplete_audio_encoder_is_an_error(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        some = {name: tensor for name, tensor in weights.items() if ".att3." not in name}
        save_file(some, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match="not a whole AudioCLIPModel checkpoint, 9 weights are missing"):
            AudioCLIPModel.from_pretrained(tmp_path)


class TestQueries:
    def test_query_covers_all_directions(self, model):
        inputs = CASE.inputs(5)
        inputs["input_features"], inputs["pixel_values"] = inputs["input_features"][:3], inputs["pixel_values"][:4]
        sizes = {"audio": 3, "image": 4, "text": 5}
        answers = model.query(**inputs)
        assert len(answers.logits) == 6 and answers.logits.keys() == answers.probabilities.keys()
        for name, probabilities in answers.probabilities.items():
            queries, gallery = name.split("_to_")
            assert probabilities.shape == (sizes[queries], sizes[gallery])
            torch.testing.assert_close(probabilities.sum(1), torch.ones(sizes[queries]))
            assert torch.equal(answers.logits[name], answers.logits[f"{gallery}_to_{queries}"].t())
            assert torch.equal(probabilities.argmax(1), answers.logits[name].argmax(1))
        with torch.no_grad():
            outputs = model(**inputs)
        assert torch.equal(answers.logits["audio_to_text"], outputs.logits_per_audio)
        assert torch.equal(answers.logits["image_to_text"], outputs.logits_per_image)
        assert torch.equal(outputs.logits_per_text, outputs.logits_per_image.t())

    def test_query_needs_two_modalities(self, model):
        inputs = CASE.inputs(2)
        del inputs["pixel_values"]
        assert model.query(**inputs).logits.keys() == {"audio_to_text", "text_to_audio"}
        assert torch.equal(model(**inputs).logits_per_text, model(**inputs).logits_per_audio.t())
        with pytest.raises(ValueError, match=r"expected at least two of them, .* got \['text'\]"):
            model.query(input_ids=inputs["input_ids"])


def test_stock_pipelines_load_a_saved_folder(model, tmp_path):
    from PIL import Image

    model.save_pretrained(tmp_path)
    CASE.processor().save_pretrained(tmp_path)
    processor = CASE.processor()
    class_names, waveform = ["cat", "sports car"], np.sin(np.arange(1300) / 3)
    for_audio = pipeline("zero-shot-audio-classification", model=str(tmp_path))(
        waveform, candidate_labels=class_names, hypothesis_template="{}"
    )
    inputs = processor(text=class_names, audio=waveform, sampling_rate=8000, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_audio.softmax(-1)[0]
    assert {answer["label"]: answer["score"] for answer in for_audio} == pytest.approx(
        dict(zip(class_names, expected.tolist(), strict=True)), rel=1e-4
    )
    for_image = pipeline("zero-shot-image-classification", model=str(tmp_path))(
        Image.new("RGB", (70, 50), "red"), candidate_labels=class_names
    )
    assert {answer["label"] for answer in for_image} == set(class_names)


@pytest.mark.slow
def test_two_ranks_have_loss_and_gradients_of_one(tmp_path):
    """All three pairs of modalities, under DDP; also the filters' gradients, which are divided by their largest
    value.
    """
    ((one, _),) = run_ranks(tmp_path / "one", 1, program=RANKS)
    for tensors, refused in run_ranks(tmp_path / "two", 2, program=RANKS):
        assert "sample_weights: given on 2 ranks, but the weighted loss" in refused["weights"]
        assert tensors.keys() == one.keys() and {f"audio_model.fbsp.{name}" for name in FILTERS} <= one.keys()
        for name, expected in one.items():
            atol = 1e-4 * expected.abs().max().item() + 1e-7
            torch.testing.assert_close(tensors[name], expected, rtol=1e-3, atol=atol, msg=name)


@pytest.mark.slow
def test_trainer_in_bfloat16_trains_filters_and_resumes(model, tmp_path):
    from transformers import Trainer, TrainingArguments, default_data_collator

    inputs = CASE.inputs(16)
    data = [{name: value[index] for name, value in inputs.items()} for index in range(16)]

    def train(resume=None):
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=4,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            save_steps=2,
            use_cpu=True,
            learning_rate=0.01,
            optim="sgd",
            bf16=True,
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
            max_grad_norm=0,
            train_sampling_strategy="sequential",
            lr_scheduler_type="constant",
        )
        collate = lambda rows: default_data_collator(rows) | {"return_loss": True}  # noqa: E731
        trainer = Trainer(copy.deepcopy(model), arguments, train_dataset=data, data_collator=collate)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    once, losses = train()
    assert all(map(math.isfinite, losses)) and once.audio_model.fbsp.fc.dtype == torch.float32
    moved = (once.audio_model.fbsp.fc - model.audio_model.fbsp.fc).abs().max().item()
    # Four steps of two accumulated batches, whose gradients have a largest magnitude of 1 each.
    assert 0.01 < moved <= 4 * 2 * 0.01 + 1e-5
    again, losses_again = train(str(tmp_path / "checkpoint-2"))
    assert losses_again == losses
    assert all(torch.equal(p, dict(again.named_parameters())[name]) for name, p in once.named_parameters())


# ---- learning

NAMES = ["cat", "dog", "car", "forest", "apple", "bird", "water", "house"]
COLOURS = ["red", "lime", "blue", "yellow", "magenta", "cyan", "white", "black"]
RATE, SAMPLES = 8000, 2400


def waveform_of(kind: int, generator: np.random.Generator) -> np.ndarray:
    """0.3 s of a tone, a chirp, a beat or noise, with random phase and amplitude."""
    time = np.arange(SAMPLES) / RATE
    phase, noise = generator.uniform(0, 2 * np.pi), generator.standard_normal(SAMPLES)
    tone = lambda frequency: np.sin(2 * np.pi * frequency * time + phase)  # noqa: E731
    tones = [tone(300), tone(900), tone(2500), tone(200 + 4000 * time), tone(1500 - 4000 * time)]
    noises = [noise, np.cumsum(noise) / 20, tone(600) * (np.sin(2 * np.pi * 20 * time) > 0)]
    signal = [*tones, *noises][kind]
    return (generator.uniform(0.2, 0.8) * signal / np.abs(signal).max() + 0.001 * noise).astype(np.float32)


@pytest.mark.slow
def test_audio_encoder_is_trained_into_the_space_of_a_clip(tmp_path):
    """The authors' second stage: a CLIP that knows eight colours by name is frozen, and a new audio encoder is trained
    into its joint space. Audio that was not trained on then finds its name and its image; before training it does
    not.
    """
    from PIL import Image

    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    processor = CASE.processor()
    processor.feature_extractor.max_length = SAMPLES
    values = CASE.config().to_dict() | {"frozen_modalities": ["audio"], "audio_logit_scale_init_value": math.log(30)}
    values["vision_config"] |= {"image_size": 32}
    images = [Image.new("RGB", (64, 64), colour) for colour in COLOURS]
    clip = processor(images=images, text=NAMES, return_tensors="pt")
    clip["pixel_values"] = clip["pixel_values"][..., ::2, ::2]

    model = AudioCLIPModel(AudioCLIPConfig.from_dict(values)).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(60):
        noisy = clip["pixel_values"] + 0.1 * torch.randn_like(clip["pixel_values"])
        model(**clip | {"pixel_values": noisy}, return_loss=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path)
    model = AudioCLIPModel.from_pretrained(tmp_path, frozen_modalities=["image", "text"])
    before = copy.deepcopy(model.state_dict())
    colours = model.query(**clip).logits["image_to_text"].argmax(1) == torch.arange(8)
    assert colours.float().mean() > 0.6, "the frozen part is trained"

    def features(rounds: int) -> torch.Tensor:
        waveforms = [waveform_of(kind, generator) for _ in range(rounds) for kind in range(8)]
        return processor.feature_extractor(waveforms, sampling_rate=RATE, return_tensors="pt").input_features

    train, test = features(12), features(5)

    @torch.no_grad()
    def measure(waveforms) -> tuple[float, float, float]:
        answers = model.eval().query(input_features=waveforms, **clip).logits
        right = torch.arange(8).repeat(len(waveforms) // 8)
        named, matched = (answers[f"audio_to_{other}"].argmax(1) == right for other in ("text", "image"))
        loss = model(input_features=waveforms[:8], **clip, return_loss=True).loss
        return named.float().mean().item(), matched.float().mean().item(), loss.item()

    names_before, images_before, loss_before = measure(test)
    filters = [p for name, p in model.named_parameters() if ".fbsp." in name or name.startswith("logit_scale")]
    others = [p for name, p in model.named_parameters() if p.requires_grad and not any(p is one for one in filters)]
    # Filters are a group of their own, as in the official code: without weight decay. Their learning rate is lower,
    # because their gradients do not become small.
    groups = [
        {"params": others, "weight_decay": 5e-4},
        {"params": [p for p in filters if p.requires_grad], "lr": 1e-4},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.02, momentum=0.9, nesterov=True)
    for step in range(100):
        start = 8 * (step % 12)
        model.train()(input_features=train[start : start + 8], **clip, return_loss=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    names, found, loss = measure(test)
    assert loss < 0.5 * loss_before
    assert measure(train)[0] > 0.8
    assert names > names_before + 0.4 and found > images_before + 0.4
    for name, tensor in model.state_dict().items():
        is_trained = name.startswith("audio_model.") or name in ("logit_scale_ai", "logit_scale_at")
        assert is_trained or torch.equal(tensor, before[name]), name
