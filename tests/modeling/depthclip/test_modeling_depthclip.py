"""What holds for DepthCLIP whatever its weights: words and bins, sizes, mirror images, panoramas, learning, files."""

import json

import numpy as np
import pytest
import torch
from depthclip_runs import (
    BINS,
    WORDS,
    depth_processor,
    depthclip_config,
    depthclip_model,
    tiny_resnet,
    vit_config,
)
from paths import PROGRAMS
from PIL import Image
from processes import run_on_ranks
from safetensors.torch import load_file, save_file
from tiny import tiny_clip, tiny_tokenizer
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, Trainer, TrainingArguments, pipeline

from hf_clip_variants import DepthCLIPConfig, DepthCLIPForDepthEstimation, DepthCLIPImageProcessor
from hf_clip_variants.metrics.depth import depth_metrics_for_trainer
from hf_clip_variants.modeling.depthclip.loss_depthclip import scale_invariant_loss
from hf_clip_variants.modeling.depthclip.modeling_depthclip import expected_depth, halved_channels


BACKBONES = ("resnet", "vit")


def pixels(batch: int = 2, height: int = 64, width: int = 96, seed: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def depth_of(model, images) -> torch.Tensor:
    return model(images).predicted_depth


# ---- words and bins


@pytest.mark.parametrize("backbone", BACKBONES)
def test_depth_lies_between_the_bins_and_belongs_to_the_words_in_any_order(backbone):
    model, images = depthclip_model(backbone=backbone), pixels()
    depth = depth_of(model, images)
    assert depth.shape == (2, 64, 96) and depth.min() > min(BINS) and depth.max() < max(BINS) and depth.std() > 1e-4
    order = [2, 0, 1]
    other = depthclip_model(backbone=backbone)
    other.set_depth_words(tiny_tokenizer(), [WORDS[i] for i in order], [BINS[i] for i in order])
    torch.testing.assert_close(depth_of(other, images), depth, rtol=1e-5, atol=1e-5)


def test_equal_words_give_the_mean_of_the_bins_and_no_temperature_the_best_word():
    model, images = depthclip_model(), pixels()
    cold = depthclip_model()
    cold.config.temperature = 1e-6
    cold.config.flip_average = False
    with torch.no_grad():
        outputs = cold(images)
        best = torch.tensor(BINS)[outputs.word_logits.argmax(1)]
        torch.testing.assert_close(expected_depth(outputs.word_logits, cold.bins()), best, rtol=1e-4, atol=1e-4)
        model.set_depth_embeddings(torch.ones(3, 128))
    torch.testing.assert_close(depth_of(model, images), torch.full((2, 64, 96), sum(BINS) / 3))


def test_words_bins_and_templates_are_data_that_is_saved_and_checked(tmp_path):
    model, images = depthclip_model(), pixels()
    model.set_depth_words(
        tiny_tokenizer(), ["near", "far"], [1.0, 9.0], ["a {object}, {distance}", "{distance}"], "dog"
    )
    assert model.config.texts == [["a dog, near", "near"], ["a dog, far", "far"]] == model.config.encoded_texts
    each = model.get_text_features(**tiny_tokenizer()(["a dog, far", "far"], padding=True, return_tensors="pt"))
    mean = torch.nn.functional.normalize(each.pooler_output, dim=-1).mean(0)
    torch.testing.assert_close(model.word_embeddings()[1], torch.nn.functional.normalize(mean, dim=-1))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForDepthEstimation.from_pretrained(tmp_path)
    assert torch.equal(depth_of(loaded, images), depth_of(model, images))
    assert json.loads((tmp_path / "config.json").read_text())["bin_centers"] == [1.0, 9.0]
    # Other bins need no text; other words do.
    scaled = AutoModelForDepthEstimation.from_pretrained(tmp_path, bin_centers=[2.0, 18.0])
    torch.testing.assert_close(depth_of(scaled, images), 2 * depth_of(model, images))
    other = AutoModelForDepthEstimation.from_pretrained(tmp_path, depth_words=["close", "remote"])
    with pytest.raises(
        ValueError, match="depth_words, templates, object_word: .*are not the texts whose embeddings are"
    ):
        other(images)
    assert other.set_depth_words(tiny_tokenizer())(images).predicted_depth.isfinite().all()


def test_wrong_words_are_named_and_leave_the_model_as_it_was():
    model, before = depthclip_model(), depth_of(depthclip_model(), pixels())
    for given, said in (
        ({"words": ["near", "far"]}, "bin_centers: 3 depths for 2 depth_words"),
        ({"words": "near"}, "depth_words: got the single string"),
        ({"words": ["near", "Near", "far"]}, "depth_words: 'near' and 'Near' are the same prompts"),
        ({"bins": ["x", "y", "z"]}, "bins: .*expected a list of depths"),
        ({"bins": 3.0}, "bins: '3.0', expected a list of depths"),
        ({"words": 3.0}, "depth_words: got float, expected a list of strings"),
        ({"bins": [1.0, -2.0, 3.0]}, "bin_centers\\[1\\]: -2.0"),
        ({"templates": ["nothing"]}, "templates\\[0\\]: 'nothing' has no {distance}"),
    ):
        with pytest.raises(ValueError, match=said):
            model.set_depth_words(tiny_tokenizer(), **given)
    with pytest.raises(ValueError, match=r"embeddings: got \[3, 5\], expected finite floats \[3, 128\]"):
        model.set_depth_embeddings(torch.ones(3, 5))
    assert torch.equal(depth_of(model, pixels()), before)


def test_the_text_side_is_a_buffer_that_survives_without_the_text_encoder_and_is_missed(tmp_path):
    model, images = depthclip_model(), pixels()
    expected = depth_of(model, images)
    model.drop_text_encoder().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert not any("text_model" in name or "text_projection" in name for name in weights)
    loaded = AutoModelForDepthEstimation.from_pretrained(tmp_path)
    assert torch.equal(depth_of(loaded, images), expected)
    with pytest.raises(ValueError, match="the text encoder was dropped"):
        loaded.set_depth_words(tiny_tokenizer())
    del weights["depth_embeddings"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="depth_embeddings"):
        AutoModelForDepthEstimation.from_pretrained(tmp_path)


def test_a_plain_clip_loads_and_says_that_its_words_are_not_encoded(tmp_path):
    for clip, width in ((tiny_resnet(128), 128), (tiny_clip(), 24)):
        clip.eval().save_pretrained(tmp_path / str(width))
        model = DepthCLIPForDepthEstimation.from_pretrained(tmp_path / str(width), temperature=5.0)
        with pytest.raises(ValueError, match="not encoded yet .encoded_texts is None.; call set_depth_words"):
            model(pixels())
        with pytest.raises(ValueError, match="depth_words: not encoded yet"):
            model.drop_text_encoder()
        made = DepthCLIPForDepthEstimation.from_clip(clip, tiny_tokenizer(), temperature=5.0)
        assert torch.equal(depth_of(model.set_depth_words(tiny_tokenizer()), pixels()), depth_of(made, pixels()))
        assert not any(parameter.requires_grad for parameter in model.parameters())


# ---- features


def test_official_projection_keeps_each_second_channel_and_wants_as_many():
    assert halved_channels(torch.arange(6.0)).tolist() == [0, 2, 4]
    assert depthclip_config().feature_projection == "official"
    for config in (depthclip_config(projection_dim=20), vit_config()):
        assert config.feature_projection == "attnpool_value"
    with pytest.raises(ValueError, match="'official' keeps each second channel, which of a ResNet with 256 channels"):
        depthclip_config(projection_dim=20, feature_projection="official")
    with pytest.raises(ValueError, match="of a Vision Transformer"):
        vit_config(feature_projection="official")


@torch.no_grad()
def test_values_of_attention_pooling_are_what_it_gives_of_one_location():
    """A map with one location everywhere: attention's weights do not matter then."""
    model = depthclip_model(feature_projection="attnpool_value")
    vision = model.clip.vision_model
    one = torch.randn(1, 256, 1, 1)
    vision._maps = lambda images: (one.expand(1, 256, 2, 2),)
    vision.attnpool.positional_embedding.zero_()
    pooled, _ = vision.attnpool(one.expand(1, 256, 2, 2))
    features, _ = model.get_patch_features(torch.zeros(1, 3, 64, 64))
    torch.testing.assert_close(features[0, 2], torch.nn.functional.normalize(pooled[0], dim=-1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_values_of_a_vision_transformer_are_its_last_layer_with_each_patch_alone():
    model = depthclip_model(backbone="vit")
    vision, images = model.clip.vision_model, pixels(height=24, width=24)
    layer = vision.encoder.layers[-1]
    before = vision(images, output_hidden_states=True).hidden_states[-2]
    alone = torch.stack([layer(before[:, place : place + 1], None)[:, 0] for place in range(1, 10)], 1)
    expected = model.clip.visual_projection(vision.post_layernorm(alone))
    features, _ = model.get_patch_features(images)
    torch.testing.assert_close(features, torch.nn.functional.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)


# ---- sizes


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("size", [(64, 96), (50, 77), (9, 200), (40, 8)])
def test_any_size_and_a_mirror_image_has_the_mirrored_depth(backbone, size):
    model, images = depthclip_model(backbone=backbone), pixels(2, *size)
    depth = depth_of(model, images)
    assert depth.shape == (2, *size) and depth.isfinite().all()
    torch.testing.assert_close(depth_of(model, images.flip(-1)), depth.flip(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(depth_of(model, images[1:]), depth[1:], rtol=1e-4, atol=1e-4)


def test_padding_repeats_the_border_and_is_cut_off():
    model, images = depthclip_model(flip_average=False), pixels(2, 50, 77)
    padded = torch.nn.functional.pad(images, (0, 96 - 77, 0, 64 - 50), mode="replicate")
    assert torch.equal(depth_of(model, images), depth_of(model, padded)[:, :50, :77])


def test_corners_may_lie_in_the_middle_of_what_they_have_seen():
    model, images = depthclip_model(align_corners=False, flip_average=False), pixels()
    with torch.no_grad():
        outputs = model(images)
    small = expected_depth(outputs.word_logits, model.bins())
    torch.testing.assert_close(outputs.predicted_depth[:, :16, :16], small[:, :1, :1].expand(2, 16, 16))


@torch.no_grad()
def test_a_panorama_goes_on_behind_its_border():
    images = pixels(1, 64, 512)
    turned = images.roll(256, dims=-1)
    found = {}
    for panorama in (False, True):
        model = depthclip_model(panorama=panorama, flip_average=False)
        logits, other = (model(one).word_logits for one in (images, turned))
        assert logits.shape == (1, 3, 2, 16)
        found[panorama] = (other.roll(-8, dims=-1) - logits).abs().amax((0, 1, 2))
    assert found[True].max() < 1e-4 < found[False][0], "turning a panorama turns its depth"


def test_bfloat16_is_near_float32():
    """The similarity and the softmax stay in float32: rounded logits of hundreds would choose other words."""
    model, images = depthclip_model(temperature=0.1), pixels()
    expected = depth_of(model, images)
    rough = depth_of(model.to(torch.bfloat16), images)
    assert rough.dtype == torch.float32 and (rough - expected).abs().mean() < 0.05 * (max(BINS) - min(BINS))


def test_bad_inputs_are_named():
    model = depthclip_model()
    for images, said in (
        (torch.zeros(2, 1, 64, 64), r"pixel_values: expected \[batch, 3, H, W\], got \[2, 1, 64, 64\]"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "looks unnormalised"),
        (torch.full((1, 3, 64, 64), torch.nan), "pixel_values"),
    ):
        with pytest.raises(ValueError, match=said):
            model(images)
    for labels, said in (
        (torch.ones(2, 32, 32), r"labels: got \[2, 32, 32\], expected depths \[2, 64, 96\]"),
        (torch.ones(2, 64, 96, dtype=torch.long), "labels: got torch.int64, expected depths as floats"),
    ):
        with pytest.raises(ValueError, match=said):
            model(pixels(), labels=labels)
    with pytest.raises(ValueError, match="learnable_parts: nothing of this model is trained"):
        model.train()(pixels(), labels=torch.ones(2, 64, 96))


# ---- what learns


def test_loss_forgives_a_common_factor_as_far_as_asked_and_pixels_without_depth():
    depth, labels = torch.rand(2, 4, 5) + 1, torch.rand(2, 4, 5) + 1
    d = depth.log() - labels.log()
    expected = (d.square().mean((1, 2)) - 0.3 * d.mean((1, 2)).square()).mean()
    torch.testing.assert_close(scale_invariant_loss(depth, labels, 0.3), expected)
    torch.testing.assert_close(scale_invariant_loss(3 * depth, labels, 1.0), scale_invariant_loss(depth, labels, 1.0))
    holes = labels.clone()
    holes[0, 0, :3] = torch.tensor([0.0, torch.nan, torch.inf])
    holes[1] = 0
    d = d[0].flatten()[3:]
    torch.testing.assert_close(scale_invariant_loss(depth, holes, 0.3), d.square().mean() - 0.3 * d.mean().square())
    depth.requires_grad_(True)
    scale_invariant_loss(depth, torch.zeros(2, 4, 5)).backward()
    assert not depth.grad.any()


def ramp(count: int = 6) -> list[dict[str, torch.Tensor]]:
    """Images that grow lighter to the right or to the left, and depth that grows with it, far beyond the bins."""
    rows = []
    for number in range(count):
        light = torch.linspace(-1, 1, 128) * (1 if number % 2 else -1)
        rows.append({"pixel_values": light.expand(3, 64, 128), "labels": (10 * light.exp()).expand(64, 128)})
    return rows


def see_light(model) -> None:
    """Features that turn from one direction to another as locations grow lighter: new weights see no such thing."""
    ends = torch.linalg.qr(torch.randn(128, 2, generator=torch.Generator().manual_seed(0)))[0].T

    def features(images, **options):
        angle = (torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 32).flatten(1) + 1) * torch.pi / 4
        return angle.cos()[..., None] * ends[0] + angle.sin()[..., None] * ends[1], {}

    model.get_patch_features = features


def calibrate(model, rows, folder, steps: int = 60):
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=6,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows, compute_metrics=depth_metrics_for_trainer(100)
    )
    before = trainer.evaluate()
    trainer.train()
    return before, trainer.evaluate()


def test_a_few_labelled_images_calibrate_it_and_what_was_learned_is_saved(tmp_path):
    """Bins of metres read another unit, the words stay as they are; the image encoder does not move."""
    model = depthclip_model(learnable_parts=["bins", "words", "temperature"])
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    see_light(model)
    before, after = calibrate(model, ramp(), tmp_path / "run")
    assert after["eval_rmse"] < 0.5 * before["eval_rmse"], (before, after)
    del model.get_patch_features
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert moved == {"bin_offsets", "word_offsets", "temperature_offset"}
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForDepthEstimation.from_pretrained(tmp_path / "saved")
    assert torch.equal(depth_of(loaded.eval(), pixels()), depth_of(model.eval(), pixels()))
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == moved
    loaded.set_depth_words(tiny_tokenizer(), ["near", "far"], [1.0, 2.0])
    assert loaded.bins().tolist() == [1.0, 2.0] and not loaded.word_offsets.any()


def test_parts_may_be_made_learnable_when_a_model_is_loaded(tmp_path):
    depthclip_model().save_pretrained(tmp_path)
    model = AutoModelForDepthEstimation.from_pretrained(tmp_path, learnable_parts=["bins"])
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["bin_offsets"]
    assert torch.equal(depth_of(model, pixels()), depth_of(depthclip_model(), pixels()))
    assert model.train().clip.training is False, "frozen: batch normalisation keeps its statistics"


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    for size in (2, 1):
        run_on_ranks(PROGRAMS / "depthclip_ranks.py", tmp_path, world_size=size, folder=tmp_path)
    alone = load_file(tmp_path / "1of1.safetensors")
    for rank in range(2):
        found = load_file(tmp_path / f"{rank + 1}of2.safetensors")
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


# ---- processor and pipeline


def test_processor_takes_images_and_depth_maps_of_any_size_and_cuts_the_padding(tmp_path):
    processor = depth_processor()
    assert DepthCLIPImageProcessor().size.shortest_edge == 480
    images = [Image.linear_gradient("L").resize((80, 40)), Image.new("RGB", (50, 70), "red")]
    depth = np.tile(np.linspace(1, 4, 80), (40, 1)).astype(np.float32)
    depth[:, :20], depth[:, 20:24] = 0, np.nan
    millimetres = Image.fromarray(np.full((70, 50), 2500, dtype=np.uint16))
    millimetres.save(tmp_path / "depth.png")
    batch = processor(images, [depth, np.full((70, 50), 2.5)], return_tensors="pt")
    assert batch.pixel_values.shape == (2, 3, 44, 64) and batch.labels.dtype == torch.float32
    assert not batch.labels[0, :, :18].any() and not batch.labels[0, 32:].any() and not batch.labels[1, :, 32:].any()
    assert set(batch.labels[0, :32, 20:].unique().tolist()) <= set(depth[0].tolist()), "depths are not mixed"
    of_file = depth_processor(depth_factor=0.001)(images[1:], [str(tmp_path / "depth.png")], return_tensors="pt")
    assert of_file.labels.unique().tolist() == [2.5]
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(
        batch.pixel_values[1, :, :44, :32] * std + mean, torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 44, 32)
    )

    class Outputs:
        predicted_depth = batch.labels

    found = processor.post_process_depth_estimation(Outputs, [(40, 80), (70, 50)])
    assert [tuple(one["predicted_depth"].shape) for one in found] == [(40, 80), (70, 50)]
    torch.testing.assert_close(found[1]["predicted_depth"], torch.full((70, 50), 2.5))
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clipv-depthclip"}))
    assert AutoImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


@pytest.mark.parametrize(
    "depth, said",
    [
        (np.ones((3, 3)), r"depth_maps\[0\]: 3 x 3 pixels, its image has 80 x 40"),
        (-np.ones((40, 80)), r"depth_maps\[0\]: negative depths"),
        (np.ones((40, 80, 2)), r"depth_maps\[0\]: shape \[40, 80, 2\]"),
        (np.full((40, 80), "far"), r"depth_maps\[0\]: numbers of type"),
        (Image.new("RGB", (80, 40)), r"depth_maps\[0\]: mode RGB"),
        ("missing.png", r"depth_maps\[0\]: "),
    ],
)
def test_depth_maps_that_are_none_are_named(depth, said):
    with pytest.raises(ValueError, match=said):
        depth_processor()(Image.new("RGB", (80, 40)), [depth], return_tensors="pt")


def test_the_stock_pipeline_gives_depth_at_the_size_of_the_image(tmp_path):
    model = depthclip_model()
    model.save_pretrained(tmp_path)
    depth_processor().save_pretrained(tmp_path)
    estimate = pipeline("depth-estimation", model=str(tmp_path))
    image = Image.radial_gradient("L").resize((90, 60)).convert("RGB")
    answers = estimate([image, image.resize((200, 40))])
    assert [answer["depth"].size for answer in answers] == [(90, 60), (200, 40)]
    found = answers[0]["predicted_depth"]
    inputs = depth_processor()(image, return_tensors="pt")
    expected = torch.nn.functional.interpolate(depth_of(model, inputs.pixel_values)[None], (60, 90), mode="bilinear")
    torch.testing.assert_close(found, expected[0, 0])


def test_published_settings_are_the_default():
    config = DepthCLIPConfig()
    assert config.depth_words[0] == "giant" and len(config.bin_centers) == 7 and config.temperature == 0.1
    assert (config.vision_config.hidden_size, config.projection_dim, config.stride) == (2048, 1024, 32)
    assert config.texts[-1] == ["This object is unseen"] and config.flip_average and config.learnable_parts == []
