"""What CLIP-ResNet does beyond the contract of models: image sizes, batch normalisation, backbone, loading,
training.
"""

import copy
import json

import pytest
import torch
from fake_hub import hub_in_this_process
from model_contract import CASES
from safetensors.torch import load_file, save_file
from tiny import tiny_pixels, tiny_tokenizer
from torch import nn
from transformers import AutoBackbone, AutoConfig, AutoModel, CLIPTextConfig

from hf_clip_variants import (
    CLIPResNetBackbone,
    CLIPResNetConfig,
    CLIPResNetModel,
    CLIPResNetVisionConfig,
    CLIPResNetVisionModel,
)


CASE = CASES["clip_resnet"]
STAGES = ["stem", "stage1", "stage2", "stage3", "stage4"]


@pytest.fixture
def model():
    return CASE.make()


@pytest.fixture
def encoder(model):
    return model.vision_model


@pytest.fixture
def norm_calls(monkeypatch):
    calls = []
    plain = nn.BatchNorm2d.forward
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: calls.append(self) or plain(self, x))
    return calls


def near(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


class TestImageSizes:
    def test_other_sizes_need_interpolate_pos_encoding(self, encoder):
        for size in ((96, 64), (65, 65), (32, 32)):
            with pytest.raises(
                ValueError, match=rf"{size[0]} x {size[1]}, .* trained on 64 x 64; .*interpolate_pos_enc"
            ):
                encoder(torch.randn(1, 3, *size))

    def test_position_embeddings_are_resized_as_in_timm(self, encoder):
        """timm's attention pooling resizes them by default."""
        timm_layers = pytest.importorskip("timm.layers")
        pool, width = encoder.attnpool, encoder.config.hidden_size
        theirs = timm_layers.AttentionPool2d(
            width, feat_size=2, out_features=20, num_heads=8, qkv_separate=True
        ).eval()
        with torch.no_grad():
            theirs.pos_embed.copy_(pool.positional_embedding)
        for name, ours in {"q": pool.q_proj, "k": pool.k_proj, "v": pool.v_proj, "proj": pool.c_proj}.items():
            getattr(theirs, name).load_state_dict(ours.state_dict())
        for size in ((2, 2), (3, 5), (1, 1)):
            feature_map = torch.randn(2, width, *size)
            with torch.no_grad():
                near(pool(feature_map)[0], theirs(feature_map))

    def test_trained_size_is_not_interpolated(self, encoder):
        with torch.no_grad():
            plain, asked = (encoder(tiny_pixels(2, size=64), interpolate_pos_encoding=flag) for flag in (False, True))
        assert torch.equal(plain.pooler_output, asked.pooler_output)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_full_model_takes_other_sizes(self, model, dtype):
        inputs = CASE.inputs(2) | {"pixel_values": torch.randn(2, 3, 96, 160)}
        outputs = model.to(dtype)(**inputs, interpolate_pos_encoding=True, return_loss=True)
        assert outputs.vision_model_output.last_hidden_state.shape == (2, 3 * 5, 256)
        outputs.loss.backward()
        assert outputs.logits_per_image.dtype == dtype and model.vision_model.attnpool.positional_embedding.grad.all()

    @pytest.mark.parametrize(
        ("pixels", "said"),
        [
            (torch.zeros(3, 64, 64), r"expected \[batch, 3, H, W\], got \[3, 64, 64\]"),
            (torch.zeros(1, 64, 64, 3), r"expected \[batch, 3, H, W\], got \[1, 64, 64, 3\]"),
            (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "torch.uint8 looks unnormalised"),
            (torch.zeros(1, 3, 16, 64), "16 x 64, expected at least 32 x 32"),
            ("image.png", r"expected \[batch, 3, H, W\], got str"),
        ],
    )
    def test_invalid_pixels_are_refused(self, encoder, pixels, said):
        for one in (encoder, CLIPResNetBackbone(encoder.config)):
            with pytest.raises(ValueError, match=f"pixel_values: .*{said}"):
                one(pixels)

    def test_pixels_are_cast_to_the_dtype_of_the_model(self, encoder):
        assert encoder(tiny_pixels(1, size=64).double()).pooler_output.dtype == torch.float32

    def test_missing_modality_is_named(self, model):
        for name in ("input_ids", "pixel_values"):
            inputs = {key: value for key, value in CASE.inputs(2).items() if key != name}
            with pytest.raises(ValueError, match=f"{name}: missing; for one modality call get_image_features"):
                model(**inputs)


class TestFoldedBatchNorm:
    def test_folded_model_has_the_same_features(self, model, norm_calls):
        pixels = tiny_pixels(3, size=64)
        with torch.no_grad():
            plain = model.get_image_features(pixels, output_hidden_states=True)
            assert len(norm_calls) == 3 + 3 * 5 + 4
            norm_calls.clear()
            assert model.fuse_batch_norm() is model
            folded = model.get_image_features(pixels, output_hidden_states=True)
        assert not norm_calls, "no batch normalisation ran"
        for one, two in zip(folded.hidden_states, plain.hidden_states, strict=True):
            near(one, two)
            assert one.is_contiguous(memory_format=torch.channels_last)
        near(folded.pooler_output, plain.pooler_output)

    def test_folded_weights_are_not_saved(self, model, tmp_path):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.fuse_batch_norm().save_pretrained(tmp_path)
        for state in (model.state_dict(), load_file(tmp_path / "model.safetensors")):
            assert state.keys() == before.keys() and all(torch.equal(state[name], before[name]) for name in before)
        with torch.no_grad():
            near(
                CLIPResNetModel.from_pretrained(tmp_path)(**CASE.inputs(2)).logits_per_image,
                CASE.run(model, **CASE.inputs(2)),
            )

    def test_weight_gradients_use_the_original_weights(self, model, norm_calls):
        plain = copy.deepcopy(model)
        model.fuse_batch_norm()
        for one in (plain, model):
            one.get_image_features(tiny_pixels(2, size=64)).pooler_output.sum().backward()
        near(model.vision_model.conv1.weight.grad, plain.vision_model.conv1.weight.grad)
        norm_calls.clear()
        model.requires_grad_(False)
        pixels = tiny_pixels(2, size=64).requires_grad_()
        model.get_image_features(pixels).pooler_output.sum().backward()
        assert pixels.grad.any() and not norm_calls, "gradients of pixels use the folded weights"

    def test_training_and_loading_remove_folded_weights(self, model):
        encoder = model.vision_model
        for drop in (
            lambda: model.train(),
            lambda: model.load_state_dict(model.state_dict()),
            lambda: model.unfuse_batch_norm(),
        ):
            model.fuse_batch_norm()
            assert not model.training and "folded_weight" in encoder.layer1[0].conv2._buffers
            drop()
            assert not [name for name, _ in model.named_buffers() if "folded" in name]

    def test_folded_weights_are_copied_and_cast_with_the_model(self, model):
        with torch.no_grad():
            exact = model.get_image_features(tiny_pixels(2, size=64)).pooler_output
            model = copy.deepcopy(model.fuse_batch_norm()).to(torch.bfloat16)
            rough = model.get_image_features(tiny_pixels(2, size=64)).pooler_output
        assert rough.dtype == torch.bfloat16
        torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.05 * exact.abs().max().item())

    def test_lora_layers_are_not_folded(self, encoder):
        from peft import LoraConfig, get_peft_model

        wrapped = get_peft_model(encoder, LoraConfig(target_modules=["conv2"], r=2, init_lora_weights=False)).eval()
        pixels = tiny_pixels(2, size=64)
        with torch.no_grad():
            expected = wrapped(pixels).pooler_output
            encoder.fuse_batch_norm()
            near(wrapped(pixels).pooler_output, expected)
            with wrapped.disable_adapter():
                assert not torch.allclose(wrapped(pixels).pooler_output, expected, rtol=1e-2)

    def test_backbone_can_be_folded(self, encoder):
        backbone = CLIPResNetBackbone(encoder.config).eval()
        with torch.no_grad():
            (expected,) = backbone(tiny_pixels(1, size=96)).feature_maps
            (folded,) = backbone.fuse_batch_norm()(tiny_pixels(1, size=96)).feature_maps
        near(folded, expected)


class TestStatistics:
    def statistics(self, encoder):
        return {name: tensor.clone() for name, tensor in encoder.named_buffers() if "running" in name}

    def test_freeze_batch_norm_keeps_statistics(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path)
        for frozen in (False, True):
            one = CLIPResNetVisionModel.from_pretrained(tmp_path, freeze_batch_norm=frozen).train()
            assert one.training and one.layer1[0].training
            before = self.statistics(one)
            one(tiny_pixels(4, size=64)).pooler_output.sum().backward()
            after = self.statistics(one)
            assert all(torch.equal(after[name], before[name]) == frozen for name in before)
            assert one.bn1.weight.grad.any(), "scale and shift are trained"

    def test_freeze_batch_norm_is_saved(self, encoder, tmp_path):
        encoder.config.freeze_batch_norm = True
        encoder.save_pretrained(tmp_path)
        assert not CLIPResNetVisionModel.from_pretrained(tmp_path).train().bn1.training

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_activation_checkpointing_counts_a_batch_once(self, encoder, reentrant):
        pixels = tiny_pixels(4, size=64).requires_grad_()
        after = []
        for checkpointing in (False, True):
            one = copy.deepcopy(encoder).train()
            if checkpointing:
                one.activation_checkpointing_enable({"use_reentrant": reentrant})
            one(pixels).pooler_output.sum().backward()
            assert {norm.momentum for norm in one.modules() if isinstance(norm, nn.BatchNorm2d)} == {0.1}
            after.append(self.statistics(one))
        assert all(torch.equal(after[1][name], after[0][name]) for name in after[0])


class TestInitialisation:
    def test_new_block_returns_its_shortcut(self):
        encoder = CLIPResNetVisionModel(CASE.config().vision_config).eval()
        with torch.no_grad():
            stem, stage1, *_ = encoder(tiny_pixels(1, size=64), output_hidden_states=True).hidden_states
            block = encoder.layer1[0].downsample
            near(stage1, block["1"](block["0"](stem)).relu())
        assert encoder.bn3.weight.all(), "the stem's batch normalisation does not start at 0"

    def test_standard_deviations_of_initial_weights(self):
        torch.manual_seed(0)
        model = CLIPResNetModel(CASE.config())
        pool = model.vision_model.attnpool
        for weight in (pool.q_proj.weight, pool.k_proj.weight, pool.c_proj.weight, pool.positional_embedding):
            assert weight.std().item() == pytest.approx(256**-0.5, rel=0.05)
        assert model.text_projection.weight.std().item() == pytest.approx(32**-0.5, rel=0.15)
        assert model.logit_scale.item() == 2.0 and not pool.q_proj.bias.any()


class TestBackbone:
    def test_feature_maps_equal_those_of_the_full_model(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        pixels = tiny_pixels(2, size=64)
        with torch.no_grad():
            expected = model.get_image_features(pixels, output_hidden_states=True).hidden_states
            backbone = CLIPResNetBackbone.from_pretrained(tmp_path, out_features=["stem", "stage2", "stage4"])
            outputs = backbone(pixels)
        assert backbone.channels == [8, 64, 256] and outputs.hidden_states is None
        for ours, theirs in zip(outputs.feature_maps, (expected[0], expected[2], expected[4]), strict=True):
            assert torch.equal(ours, theirs)

    def test_images_of_any_size_from_32_pixels_on(self):
        backbone = CLIPResNetBackbone(
            CLIPResNetVisionConfig(hidden_size=64, depths=[1] * 4, num_attention_heads=1, out_features=STAGES)
        )
        shapes = [tuple(one.shape) for one in backbone.eval()(torch.randn(1, 3, 40, 72)).feature_maps]
        assert shapes == [(1, 2, 10, 18), (1, 8, 10, 18), (1, 16, 5, 9), (1, 32, 2, 4), (1, 64, 1, 2)]

    def test_auto_classes_load_the_image_encoder(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path)
        assert type(AutoModel.from_pretrained(tmp_path)) is CLIPResNetVisionModel
        config = AutoConfig.from_pretrained(tmp_path, out_indices=[1, 3])
        assert type(config) is CLIPResNetVisionConfig
        assert AutoBackbone.from_config(config).out_features == ["stage1", "stage3"]
        assert type(AutoBackbone.from_config(config)) is CLIPResNetBackbone

    @pytest.mark.hub
    def test_backbone_loads_from_the_hub(self, encoder, tmp_path):
        """By repository name: for a local folder, transformers' AutoBackbone looks for a timm model."""
        with hub_in_this_process(tmp_path / "home"):
            encoder.push_to_hub("alice/encoder")
            backbone = AutoBackbone.from_pretrained("alice/encoder", out_features=["stage3"])
        assert type(backbone) is CLIPResNetBackbone and backbone.channels == [128]
        assert torch.equal(backbone.conv1.weight, encoder.conv1.weight)

    def test_backbone_of_a_transformers_model(self):
        from transformers import UperNetConfig, UperNetForSemanticSegmentation

        vision = CLIPResNetVisionConfig(hidden_size=64, depths=[1] * 4, num_attention_heads=1, out_features=STAGES[1:])
        config = UperNetConfig(
            backbone_config=vision, hidden_size=16, num_labels=3, auxiliary_in_channels=32, auxiliary_channels=8
        )
        logits = UperNetForSemanticSegmentation(config).eval()(torch.randn(1, 3, 64, 64)).logits
        assert logits.shape == (1, 3, 64, 64)


class TestFiles:
    def test_unexpected_weights_are_reported_by_the_full_model_only(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        weights["text_model.adapter.weight"] = torch.ones(1)
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        for cls, unexpected in (
            (CLIPResNetModel, {"text_model.adapter.weight"}),
            (CLIPResNetVisionModel, set()),
            (CLIPResNetBackbone, set()),
        ):
            _, info = cls.from_pretrained(tmp_path, output_loading_info=True)
            assert set(info["unexpected_keys"]) == unexpected and not info["missing_keys"]

    def test_config_file_cannot_choose_code(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        for part in (values, values["vision_config"], values["text_config"]):
            part |= {"_attn_implementation": "evil/kernel", "_attn_implementation_internal": "evil/kernel"}
        path.write_text(json.dumps(values), encoding="utf-8")
        loaded = CLIPResNetModel.from_pretrained(tmp_path)
        for one in (loaded, loaded.vision_model, loaded.text_model):
            assert one.config._attn_implementation == "sdpa"
        assert CLIPResNetVisionModel.from_pretrained(tmp_path).config._attn_implementation == "sdpa"

    def test_damaged_files_are_refused(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(OSError, match=r"model.safetensors: not a valid safetensors file \(.*\). Re-download"):
            CLIPResNetModel.from_pretrained(tmp_path)
        with torch.no_grad():
            model.vision_model.bn1.weight[0] = torch.nan
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="vision_model.bn1.weight has NaN or infinite values"):
            CLIPResNetModel.from_pretrained(tmp_path, check_finite=True)

    def test_vision_transformer_checkpoint_is_refused(self, tmp_path):
        from tiny import tiny_clip

        tiny_clip().save_pretrained(tmp_path)
        with pytest.raises(
            ValueError, match="vision_config.model_type: 'clip_vision_model', expected 'clipv-clip_resnet_vision'"
        ):
            CLIPResNetModel.from_pretrained(tmp_path)

    def test_projection_dim_is_passed_to_both_encoders(self):
        config = CLIPResNetConfig(projection_dim=64, text_config={"hidden_size": 128, "num_attention_heads": 2})
        assert config.vision_config.projection_dim == config.text_config.projection_dim == 64
        assert type(config.text_config) is CLIPTextConfig


# ---- learning

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}
SHAPES = ("square", "circle", "stripe", "frame")


def coloured_shapes(generator: torch.Generator) -> tuple[torch.Tensor, list[str]]:
    """An image (3, 64, 64) and a caption of each of 16 coloured shapes, at random places on noise."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    images, captions = [], []
    for colour, rgb in COLOURS.items():
        for shape in SHAPES:
            y, x = (
                (rows - torch.randint(24, 40, (), generator=generator)).abs(),
                (columns - torch.randint(24, 40, (), generator=generator)).abs(),
            )
            inside = torch.maximum(x, y) < 18
            mask = {
                "square": inside,
                "circle": x**2 + y**2 < 18**2,
                "stripe": y < 7,
                "frame": inside & (torch.maximum(x, y) > 11),
            }[shape]
            noise = torch.randn(3, 64, 64, generator=generator) * 0.2 - 0.5
            images.append(torch.where(mask, torch.tensor(rgb)[:, None, None] * 2.0 - 0.5, noise))
            captions.append(f"a {colour} {shape}")
    return torch.stack(images), captions


@pytest.mark.slow
def test_training_learns_to_match_images_and_captions(tmp_path):
    """A tiny model, 200 steps of Trainer on 16 captions. It then finds the caption of new images, which it does not
    before training."""
    from transformers import Trainer, TrainingArguments, default_data_collator

    generator = torch.Generator().manual_seed(0)
    rounds = [coloured_shapes(generator) for _ in range(30)]
    captions = rounds[0][1]
    ids = tiny_tokenizer()(captions, padding=True, return_tensors="pt").input_ids
    data = [
        {"pixel_values": image, "input_ids": row}
        for images, _ in rounds[:25]
        for image, row in zip(images, ids, strict=True)
    ]
    torch.manual_seed(0)
    model = CLIPResNetModel(CASE.config())

    def recall(model) -> float:
        with torch.no_grad():
            images = torch.cat([images for images, _ in rounds[25:]])
            best = model.eval()(pixel_values=images, input_ids=ids).logits_per_image.argmax(-1)
        return (best == torch.arange(16).repeat(5)).float().mean().item()

    before = recall(model)
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=200,
        per_device_train_batch_size=16,
        learning_rate=2e-3,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=20,
        train_sampling_strategy="sequential",
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data,
        data_collator=lambda rows: default_data_collator(rows) | {"return_loss": True},
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    chance = torch.tensor(16.0).log().item()
    assert losses[-1] < 0.3 * chance
    assert recall(model) > before + 0.5
