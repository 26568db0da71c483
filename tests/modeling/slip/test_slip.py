"""What SLIP does beyond the contract of models: gradients of both losses, momentum encoders, loading with other heads,
all image encoders, invalid inputs, the self-supervised losses."""

import copy
import json
import logging
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from slip_runs import OBJECTIVES, VISION, slip_batch, slip_config, slip_model, train_by_trainer, train_steps
from tiny import tiny_clip, tiny_tokenizer
from transformers import AutoModel, AutoModelForPreTraining, CLIPImageProcessor, CLIPProcessor, pipeline
from transformers.utils import logging as transformers_logging

from hf_clip_variants import PretrainingCallback, SLIPConfig, SLIPForPreTraining, SLIPModel
from hf_clip_variants.modeling.clip_resnet.modeling_clip_resnet import CLIPResNetVisionModel
from hf_clip_variants.modeling.losses.contrastive_loss import contrastive_loss
from hf_clip_variants.modeling.slip.configuration_slip import IMAGE_ENCODERS
from hf_clip_variants.modeling.slip.self_supervised_losses import (
    byol_loss,
    moco_v3_loss,
    simclr_loss,
    simclr_loss_reference,
    simsiam_loss,
)


MOMENTUM = ("moco_v3", "byol")
HEADS = ("ssl_projector.", "ssl_predictor.")
CLIP_ONLY = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")


@pytest.fixture
def batch():
    return slip_batch(6)


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class TestGradients:
    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_which_loss_trains_which_parameters(self, batch, objective):
        model = slip_model(ssl_objective=objective)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        from_texts = set(gradients(model, model(**batch).clip_loss))
        from_views = set(gradients(model, model(**batch).ssl_loss))
        encoder = {name for name in trained if name.startswith("vision_model.")}
        heads = {name for name in trained if name.startswith(HEADS)}
        texts = {name for name in trained if name.startswith(CLIP_ONLY)}
        assert encoder and heads and texts and encoder | heads | texts == trained
        assert from_texts == encoder | texts and from_views == encoder | heads
        assert any(name.startswith("ssl_predictor.") for name in heads) == (objective != "simclr")
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert all(name.startswith("momentum_") for name in frozen) and bool(frozen) == (objective in MOMENTUM)

    def test_ssl_scale_0_ignores_the_views(self, batch):
        model = slip_model(ssl_scale=0)
        views = {name: batch.pop(name) for name in ("pixel_values_aug1", "pixel_values_aug2")}
        outputs = model(**batch)
        assert outputs.ssl_loss is None and torch.equal(outputs.loss, outputs.clip_loss)
        found = gradients(model, outputs.loss)
        assert not any(name.startswith(HEADS) for name in found)
        assert not any(p.requires_grad for p in model.ssl_projector.parameters()), "DDP would wait for them"
        assert (
            torch.equal(model(**batch, **views).loss, outputs.loss)
            and model.ssl_projector.bn1.num_batches_tracked == 0
        )
        dual = model.dual_encoder()
        assert torch.equal(dual(**batch, return_loss=True).loss, outputs.loss)

    def test_loss_is_the_weighted_sum(self, batch):
        model = slip_model(ssl_scale=0.25)
        outputs = model(**batch)
        torch.testing.assert_close(outputs.loss, outputs.clip_loss + 0.25 * outputs.ssl_loss)
        expected = contrastive_loss(outputs.image_embeds, outputs.text_embeds, model.logit_scale)
        torch.testing.assert_close(outputs.clip_loss, expected)
        torch.testing.assert_close(
            outputs.ssl_loss, simclr_loss(outputs.aug1_embeds, outputs.aug2_embeds, model.config.ssl_temperature)[0]
        )

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_swapping_the_views_keeps_the_loss(self, batch, objective):
        swapped = batch | {
            "pixel_values_aug1": batch["pixel_values_aug2"],
            "pixel_values_aug2": batch["pixel_values_aug1"],
        }
        losses = [slip_model(ssl_objective=objective)(**each).ssl_loss for each in (batch, swapped)]
        torch.testing.assert_close(*losses)

    def test_batch_norm_statistics_are_per_view(self, batch):
        model = slip_model()
        before = copy.deepcopy(model)
        outputs = model(**batch)
        assert model.ssl_projector.bn1.num_batches_tracked == 2
        for number in (1, 2):
            tokens = before.vision_model(batch[f"pixel_values_aug{number}"]).last_hidden_state
            torch.testing.assert_close(outputs[f"aug{number}_embeds"], before.ssl_projector(tokens[:, 0]))
        for name, buffer in model.ssl_projector.named_buffers():
            torch.testing.assert_close(buffer, before.ssl_projector.get_buffer(name))

    def test_evaluation_without_views_returns_the_clip_loss(self, batch):
        model = slip_model().eval()
        texts = {name: batch[name] for name in ("input_ids", "pixel_values")}
        with torch.no_grad():
            outputs, with_views, plain = model(**texts), model(**batch), model(**batch, return_loss=False)
        assert outputs.ssl_loss is None and torch.equal(outputs.loss, outputs.clip_loss)
        assert with_views.loss > outputs.loss and torch.equal(with_views.clip_loss, outputs.clip_loss)
        assert plain.loss is plain.clip_loss is plain.clip_accuracy is None
        assert torch.equal(plain.logits_per_image, outputs.logits_per_image)

    def test_accuracies_are_the_share_of_matched_rows(self, batch):
        model = slip_model().eval()
        batch["pixel_values_aug2"] = batch["pixel_values_aug1"]
        with torch.no_grad():
            outputs = model(**batch)
        assert outputs.ssl_accuracy == 1
        hits = outputs.logits_per_image.argmax(1) == torch.arange(6)
        assert outputs.clip_accuracy == hits.float().mean()
        assert slip_model(ssl_objective="byol")(**batch).ssl_accuracy is None


class TestMomentum:
    @pytest.mark.parametrize("objective", MOMENTUM)
    def test_momentum_copies_start_equal_and_are_updated_once_a_step(self, batch, objective):
        model = slip_model(ssl_objective=objective, ssl_momentum=0.9)
        for online, momentum in (
            (model.vision_model, model.momentum_vision_model),
            (model.ssl_projector, model.momentum_projector),
        ):
            assert all(torch.equal(a, b) for a, b in zip(online.parameters(), momentum.parameters(), strict=True))
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(**batch).loss.backward()
        optimizer.step()
        before = parameters(model)
        model.update_momentum_encoder(progress=0.25)
        share = 0.1 * (1 + math.cos(math.pi / 4)) / 2
        name = "layers.0.mlp.fc1.weight"
        old, online = before[f"momentum_vision_model.{name}"], before[f"vision_model.{name}"]
        assert not torch.equal(old, online)
        torch.testing.assert_close(model.momentum_vision_model.get_parameter(name), old + share * (online - old))
        after = parameters(model)
        assert all(torch.equal(after[n], before[n]) for n in after if not n.startswith("momentum_"))
        model.update_momentum_encoder(progress=1.0)
        assert all(torch.equal(tensor, after[n]) for n, tensor in parameters(model).items()), (
            "the last update changes nothing"
        )
        with pytest.raises(ValueError, match=r"progress: 1.5, expected a number in 0..1"):
            model.update_momentum_encoder(1.5)

    def test_update_without_momentum_encoder_changes_nothing(self):
        model = slip_model()
        before = parameters(model)
        model.update_momentum_encoder(0.5)
        assert all(torch.equal(tensor, before[name]) for name, tensor in parameters(model).items())

    def test_forgotten_update_warns(self, batch, caplog):
        transformers_logging.enable_propagation()
        transformers_logging.warning_once.cache_clear()  # another test may have seen it
        for forgotten in (True, False):
            model = slip_model(ssl_objective="moco_v3")
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                for _ in range(2):  # accumulation
                    model(**batch).loss.backward()
                optimizer.step()
                if not forgotten:
                    PretrainingCallback().after_step(model, 0.1)
                model(**batch)
            found = [record for record in caplog.records if "momentum encoder was not updated" in record.message]
            assert bool(found) == forgotten

    def test_trainer_updates_once_per_optimiser_step(self, tmp_path, monkeypatch):
        calls = []
        plain = SLIPForPreTraining.update_momentum_encoder
        monkeypatch.setattr(
            SLIPForPreTraining,
            "update_momentum_encoder",
            lambda self, progress: calls.append(progress) or plain(self, progress),
        )
        train_by_trainer(tmp_path, 4, accumulation=2, steps=4, ssl_objective="byol", arguments={"save_strategy": "no"})
        assert calls == [0.25, 0.5, 0.75, 1.0]

    @pytest.mark.parametrize("objective", ["moco_v3", "simsiam"])
    def test_resumed_training_equals_an_uninterrupted_one(self, tmp_path, objective):
        whole, losses = train_by_trainer(tmp_path, 4, accumulation=2, steps=4, ssl_objective=objective)
        resumed, again = train_by_trainer(
            tmp_path, 4, accumulation=2, steps=4, ssl_objective=objective, resume=str(tmp_path / "checkpoint-2")
        )
        assert again == losses
        states = whole.state_dict(), resumed.state_dict()
        assert all(torch.equal(states[1][name], tensor) for name, tensor in states[0].items())


class TestTrainer:
    def test_bfloat16(self, tmp_path):
        model, losses = train_by_trainer(
            tmp_path, 8, arguments={"bf16": True, "save_strategy": "no"}, ssl_objective="moco_v3"
        )
        exact, expected = train_by_trainer(tmp_path, 8, arguments={"save_strategy": "no"}, ssl_objective="moco_v3")
        assert losses[0] == pytest.approx(expected[0], rel=0.03) and {p.dtype for p in model.parameters()} == {
            torch.float32
        }

    @pytest.mark.parametrize("kind", ["vit", "clipv-clip_resnet_vision"])
    def test_activation_checkpointing_counts_a_batch_once(self, kind):
        vision = {"model_type": kind} | (VISION if kind == "vit" else ENCODERS[kind])
        found = []
        for checkpointing in (False, True):
            model = slip_model(vision_config=vision)
            if checkpointing:
                model.activation_checkpointing_enable()
            found.append(train_steps(model, model, slip_batch(6, size=model.config.vision_config.image_size), steps=1))
        assert sum("num_batches_tracked" in name for name in found[0]) >= 2
        for name, tensor in ((n, t) for n, t in found[0].items() if "num_batches" not in n or "ssl_" in n):
            torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)

    def test_trainer_evaluates_without_return_loss_in_the_batch(self, tmp_path):
        from transformers import Trainer, TrainingArguments, default_data_collator

        batch = slip_batch(4)
        data = [{name: value[i] for name, value in batch.items()} for i in range(4)]
        arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
        trainer = Trainer(slip_model(), arguments, eval_dataset=data, data_collator=default_data_collator)
        with torch.no_grad():
            expected = slip_model().eval()(**batch).loss.item()
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)

    def test_callback_limits_the_logit_scale(self, batch):
        for value, expected in ((9.0, math.log(100)), (-3.0, 0.0), (2.0, 2.0)):
            model = slip_model(logit_scale_init_value=value)
            PretrainingCallback().after_step(torch.nn.parallel.DataParallel(model), 0.5)
            assert model.logit_scale.item() == pytest.approx(expected)
        with pytest.raises(ValueError, match="model: Linear has no logit_scale"):
            PretrainingCallback().after_step(torch.nn.Linear(1, 1), 0.5)
        with pytest.raises(ValueError, match="max_logit_scale: got 0"):
            PretrainingCallback(0)


class TestLoadingWithOtherHeads:
    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_dual_encoder_ignores_heads_silently(self, batch, objective, tmp_path, caplog):
        model = slip_model(ssl_objective=objective).eval()
        model.save_pretrained(tmp_path / "pretraining")
        names = set(load_file(tmp_path / "pretraining" / "model.safetensors"))
        assert names == set(model.state_dict()), "saved with the model's own names"
        transformers_logging.enable_propagation()
        with caplog.at_level(logging.WARNING), torch.no_grad():
            loaded, info = SLIPModel.from_pretrained(tmp_path / "pretraining", output_loading_info=True)
            assert type(AutoModel.from_pretrained(tmp_path / "pretraining")) is SLIPModel
            model.dual_encoder().save_pretrained(tmp_path / "dual")
            texts = {name: batch[name] for name in ("input_ids", "pixel_values")}
            expected = model(**texts).logits_per_image
            for each in (loaded, model.dual_encoder(), SLIPModel.from_pretrained(tmp_path / "dual")):
                assert torch.equal(each(**texts).logits_per_image, expected)
                assert not any(name.startswith((*HEADS, "momentum_")) for name in each.state_dict())
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert not caplog.records, [record.message for record in caplog.records]
        assert not any(tensor.is_meta for tensor in model.dual_encoder().buffers())

    def test_pretraining_from_a_dual_encoder_gets_new_heads(self, tmp_path):
        dual = slip_model(ssl_objective="moco_v3").dual_encoder()
        with torch.no_grad():
            for p in dual.parameters():
                p.add_(0.01)
        dual.save_pretrained(tmp_path)
        model = AutoModelForPreTraining.from_pretrained(tmp_path)
        assert type(model) is SLIPForPreTraining and not any(
            t.is_meta for t in (*model.parameters(), *model.buffers())
        )
        state = model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in dual.state_dict().items())
        for part in ("vision_model", "projector"):
            online = model.vision_model if part == "vision_model" else model.ssl_projector
            copied = getattr(model, f"momentum_{part}").state_dict()
            assert all(torch.equal(copied[name], tensor) for name, tensor in online.state_dict().items())
        weight = model.ssl_projector.layer2.weight
        assert 0.8 < weight.abs().max() * math.sqrt(weight.shape[1]) <= 1, "PyTorch's uniform initialisation"
        assert torch.isfinite(model.train()(**slip_batch(4)).loss)

    def test_another_objective_keeps_shared_modules(self, tmp_path):
        model = slip_model(ssl_objective="moco_v3")
        model.save_pretrained(tmp_path)
        fewer, info = SLIPForPreTraining.from_pretrained(tmp_path, ssl_objective="simsiam", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert torch.equal(fewer.ssl_predictor.layer1.weight, model.ssl_predictor.layer1.weight)
        slip_model().save_pretrained(tmp_path / "simclr")
        more = SLIPForPreTraining.from_pretrained(tmp_path / "simclr", ssl_objective="byol")
        assert torch.equal(more.momentum_projector.layer1.weight, slip_model().ssl_projector.layer1.weight)

    def test_incomplete_head_is_an_error(self, tmp_path):
        slip_model().save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["ssl_projector.layer2.weight"]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"1 weights are missing: \['ssl_projector.layer2.weight'\]"):
            SLIPForPreTraining.from_pretrained(tmp_path)
        assert type(SLIPModel.from_pretrained(tmp_path)) is SLIPModel


CLIP_RESNET = {"hidden_size": 64, "depths": [1, 1, 1, 1], "num_attention_heads": 2, "projection_dim": 16}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "patch_size": 4, "window_size": 2}
ENCODERS = {
    "clip_vision_model": VISION | {"image_size": 32},
    "clipv-clip_resnet_vision": CLIP_RESNET | {"image_size": 32},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "dinov2": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8},
    "swin": SWIN | {"image_size": 32},
}


class TestImageEncoders:
    @pytest.mark.parametrize("kind", ENCODERS)
    def test_image_encoders_train_save_and_load(self, kind, tmp_path):
        model = slip_model(vision_config=ENCODERS[kind] | {"model_type": kind})
        batch = slip_batch(4, size=32)
        outputs = model(**batch)
        found = gradients(model, outputs.loss)
        assert torch.isfinite(outputs.loss) and outputs.image_embeds.shape == (4, 20)
        assert any(name.startswith("vision_model.") and grad.any() for name, grad in found.items())
        model.eval().save_pretrained(tmp_path)
        loaded = SLIPModel.from_pretrained(tmp_path)
        assert type(loaded.vision_model) is type(model.vision_model)
        assert loaded.config.vision_config.to_diff_dict() == model.config.vision_config.to_diff_dict() | {
            "dtype": "float32"
        }
        texts = {name: batch[name] for name in ("input_ids", "pixel_values")}
        with torch.no_grad():
            torch.testing.assert_close(loaded(**texts).logits_per_image, model(**texts).logits_per_image)

    def test_clip_resnet_is_the_class_of_this_package(self):
        model = slip_model(
            vision_config=ENCODERS["clipv-clip_resnet_vision"] | {"model_type": "clipv-clip_resnet_vision"}
        )
        assert type(model.vision_model) is CLIPResNetVisionModel and model.visual_projection.in_features == 16

    def test_clip_checkpoint_loads(self, tmp_path):
        clip = tiny_clip()
        clip.save_pretrained(tmp_path)
        model = SLIPModel.from_pretrained(tmp_path)
        inputs = {name: slip_batch(3)[name] for name in ("input_ids", "pixel_values")}
        with torch.no_grad():
            torch.testing.assert_close(
                model(**inputs).logits_per_image, clip(**inputs).logits_per_image, rtol=1e-5, atol=1e-5
            )

    def test_other_encoders_are_refused(self):
        for kind in ("bert", "audio-spectrogram-transformer"):
            with pytest.raises(
                (StrictDataclassError, ValueError),
                match=f"vision_config.model_type: '{kind}', expected an image encoder",
            ):
                SLIPForPreTraining(slip_config(vision_config={"model_type": kind}))

    def test_config_file_cannot_download_a_backbone(self, monkeypatch):
        """A hybrid DPT downloads the nested backbone that its configuration names."""
        asked = []
        monkeypatch.setattr("socket.socket.connect", lambda *address: asked.append(address))
        evil = {"model_type": "timm_backbone", "backbone": "hf_hub:evil/repo", "use_pretrained_backbone": True}
        encoder = {
            "model_type": "dpt",
            "is_hybrid": True,
            "backbone_config": evil,
            "hidden_size": 24,
            "num_attention_heads": 3,
        }
        for vision in (encoder, evil, {"model_type": "timm_wrapper", "architecture": "hf_hub:evil/repo"}):
            with pytest.raises((StrictDataclassError, ValueError), match="expected an image encoder"):
                SLIPModel(SLIPConfig.from_dict({"vision_config": vision}))
        assert not asked

    @pytest.mark.parametrize("kind", IMAGE_ENCODERS)
    def test_feature_dim_of_every_image_encoder(self, kind):
        """With its default sizes, on the meta device."""
        config = slip_config(vision_config={"model_type": kind})
        size = getattr(config.vision_config, "image_size", 224)
        with torch.device("meta"):
            model = SLIPModel(config)
            pixels = torch.zeros(1, 3, size, size)
            feature = model._run_image_encoder(model.vision_model, pixels, "pixel_values").pooler_output
        assert feature.shape == (1, config.feature_dim)

    def test_config_file_cannot_choose_code(self, tmp_path):
        slip_model().save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        for part in (values, values["vision_config"], values["text_config"]):
            part |= {"_attn_implementation": "evil/kernel", "_attn_implementation_internal": "evil/kernel"}
        values["vision_config"]["auto_map"] = {"AutoModel": "evil--modeling.Evil"}
        path.write_text(json.dumps(values), encoding="utf-8")
        model = SLIPModel.from_pretrained(tmp_path)
        assert model.config._attn_implementation == "sdpa" and type(model.vision_model).__name__ == "ViTModel"

    def test_of_size_refuses_unknown_sizes(self):
        assert SLIPConfig.of_size("large", ssl_scale=0.5).ssl_scale == 0.5
        with pytest.raises(ValueError, match="size: 'huge', expected one of small, base, large"):
            SLIPConfig.of_size("huge")


def test_stock_pipeline_loads_a_pretraining_folder(tmp_path):
    slip_model().save_pretrained(tmp_path)
    images = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, resample=2)
    CLIPProcessor(images, tiny_tokenizer()).save_pretrained(tmp_path)
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    from hf_clip_variants.data import load_emoji

    found = classify(load_emoji("notov1").dataset[0]["image"], candidate_labels=["cat", "pizza"])
    assert type(classify.model) is SLIPModel and sum(one["score"] for one in found) == pytest.approx(1, abs=1e-5)


def test_captions_without_end_token_are_pooled_at_the_start_token():
    """As in the official code, which pools at the largest id; here that is the id of the start token."""
    model, ids = slip_model().eval(), torch.tensor([[4036, 5, 900, 17, 32], [4036, 8, 7, 6, 2000]])
    assert not ids.argmax(1).any()
    with torch.no_grad():
        outputs = model.get_text_features(ids)
        torch.testing.assert_close(outputs.pooler_output, model.text_projection(outputs.last_hidden_state[:, 0]))
        torch.testing.assert_close(outputs.pooler_output[0], outputs.pooler_output[1])


class TestInvalidInputs:
    def test_missing_views_are_named(self, batch):
        for absent in (("pixel_values_aug1",), ("pixel_values_aug2",), ("pixel_values_aug1", "pixel_values_aug2")):
            some = {name: value for name, value in batch.items() if name not in absent}
            with pytest.raises(
                ValueError, match=f"{absent[0]}: missing; simclr needs two views .*TwoViews.*ssl_scale=0"
            ):
                slip_model()(**some)
        with pytest.raises(ValueError, match="pixel_values_aug2: missing"):
            slip_model().eval()(**{name: value for name, value in batch.items() if name != "pixel_values_aug2"})

    def test_missing_modality_is_named(self, batch):
        for name in ("input_ids", "pixel_values"):
            with pytest.raises(ValueError, match=f"{name}: missing"):
                slip_model()(**{key: value for key, value in batch.items() if key != name})

    def test_different_numbers_of_images_are_refused(self, batch):
        with pytest.raises(ValueError, match="pixel_values_aug2: 5 images, pixel_values has 6"):
            slip_model()(**batch | {"pixel_values_aug2": batch["pixel_values_aug2"][:5]})
        with pytest.raises(ValueError, match="pixel_values_aug1: 1 image, batch normalisation needs at least 2"):
            slip_model()(**slip_batch(1))

    @pytest.mark.parametrize("name", ["pixel_values", "pixel_values_aug1", "pixel_values_aug2"])
    def test_invalid_pixels_are_refused(self, batch, name):
        for wrong, said in (
            (torch.zeros(6, 24, 24), r"expected \[batch, 3, H, W\], got \[6, 24, 24\]"),
            (torch.zeros(6, 24, 24, 3), r"expected \[batch, 3, H, W\], got \[6, 24, 24, 3\]"),
            (torch.zeros(6, 3, 24, 24, dtype=torch.uint8), "torch.uint8 looks unnormalised"),
        ):
            with pytest.raises(ValueError, match=f"^{name}: {said}"):
                slip_model()(**batch | {name: wrong})


class TestLosses:
    VIEWS = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))

    def test_simclr_loss_equals_reference(self):
        views, reference_views = (self.VIEWS[:2].clone().requires_grad_() for _ in range(2))
        loss, expected = simclr_loss(*views, 0.3)[0], simclr_loss_reference(*reference_views, 0.3)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(views.grad, reference_views.grad)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_inputs_are_computed_in_float32(self, dtype):
        half = self.VIEWS.to(dtype)
        for loss in (
            lambda v: simclr_loss(v[0], v[1], 0.01)[0],
            lambda v: moco_v3_loss(*v, 0.01)[0],
            lambda v: byol_loss(*v),
        ):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = loss(half)
            assert found.dtype == torch.float32
            assert torch.equal(found, loss(half.float()))

    def test_zero_row_has_finite_loss_and_zero_gradient(self):
        views = self.VIEWS.clone()
        views[:, 2] = 0
        views.requires_grad_()
        losses = [simclr_loss(views[0], views[1])[0], moco_v3_loss(*views)[0], byol_loss(*views), simsiam_loss(*views)]
        torch.stack(losses).sum().backward()
        assert (
            torch.isfinite(torch.stack(losses)).all()
            and torch.isfinite(views.grad).all()
            and not views.grad[:, 2].any()
        )

    def test_invalid_arguments_are_refused(self):
        one, two, *_ = self.VIEWS
        with pytest.raises(ValueError, match=r"view1, view2: expected the same shape .*, got \(5, 6\), \(4, 6\)"):
            simclr_loss(one, two[:4])
        with pytest.raises(ValueError, match=r"prediction1, prediction2, target1, target2: expected the same shape"):
            byol_loss(one, two, one, two[:, :3])
        with pytest.raises(ValueError, match="temperature: expected a number > 0, got 0"):
            moco_v3_loss(one, two, one, two, 0)
        with pytest.raises(ValueError, match="gather: expected 'exact' or 'none', got 'slip'"):
            simsiam_loss(one, two, one, two, gather="slip")
        with pytest.raises(ValueError, match="view1, view2: the batch is empty"):
            simclr_loss(one[:0], two[:0])
