"""ActionCLIP: what heads and visual prompts see, scores of classes and views, several labels, freezing, processes."""

import math

import numpy as np
import pytest
import torch
from actionclip_runs import (
    actionclip_batch,
    actionclip_classifier,
    actionclip_config,
    actionclip_model,
    classifier_batch,
)
from paths import PROGRAMS
from processes import run_on_ranks
from safetensors.torch import load_file
from tiny import tiny_clip, tiny_tokenizer
from tiny_families import FAMILIES, family_image_size, tiny_dual_encoder, tiny_family_inputs
from transformers import pipeline
from videos import grey_frames, write_video

from hf_clip_variants import (
    ActionCLIPForVideoClassification,
    ActionCLIPModel,
    CLIPClassifierImageProcessor,
    CLIPClassifierProcessor,
    VideoTextProcessor,
)
from hf_clip_variants.modeling.actionclip.loss_actionclip import label_contrastive_loss
from hf_clip_variants.modeling.actionclip.templates_actionclip import ACTION_TEMPLATES
from hf_clip_variants.modeling.losses.contrastive_loss_reference import contrastive_loss_reference


LABELS = ["running", "rowing boat", "clapping"]
KINDS = {
    "meanP": {"fusion_head": "meanP"},
    "LSTM": {"fusion_head": "LSTM"},
    "Conv_1D": {"fusion_head": "Conv_1D"},
    "Conv_1D official": {"fusion_head": "Conv_1D", "conv1d_layout": "official"},
    "Transf": {"fusion_head": "Transf"},
    "Transf_cls": {"fusion_head": "Transf_cls"},
    "shift": {"fusion_head": "meanP", "visual_prompt": "shift"},
    "joint": {"fusion_head": "meanP", "visual_prompt": "joint"},
}


def features(model, pixels, mask=None) -> torch.Tensor:
    with torch.no_grad():
        return model.get_video_features(pixels, mask).pooler_output


@pytest.mark.parametrize("kind", ["meanP", "shift", "joint"])
def test_frames_of_another_size_are_named(kind):
    batch = actionclip_batch(2)
    pixels = batch["pixel_values_videos"]
    batch["pixel_values_videos"] = torch.cat([pixels] * 2, dim=-1)
    with pytest.raises(ValueError, match="pixel_values_videos: .* size"):
        actionclip_model(**KINDS[kind])(**batch)


def with_large_heads(model):
    """What is new in a model is small at first."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and (not name.startswith("clip.") or "time_embedding" in name):
                parameter.mul_(10)
    return model


def processor(**options):
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 24, "width": 24}}
    clip = CLIPClassifierProcessor(CLIPClassifierImageProcessor(**sizes), tiny_tokenizer())
    return VideoTextProcessor.from_clip(clip, **{"num_frames": 5, "sampling_rule": "segments"} | options)


# ---- time


@pytest.mark.parametrize("kind", KINDS)
def test_frames_that_are_not_there_change_nothing(kind):
    model, batch = with_large_heads(actionclip_model(**KINDS[kind])), actionclip_batch()
    pixels, mask = batch["pixel_values_videos"], batch["video_mask"]
    found = features(model, pixels, mask)
    other = torch.where(mask.bool()[..., None, None, None], pixels, 100.0)
    torch.testing.assert_close(features(model, other, mask), found, rtol=0, atol=1e-5)
    for video, length in enumerate(mask.sum(1).tolist()):
        alone = features(model, pixels[video : video + 1, :length])
        torch.testing.assert_close(alone, found[video : video + 1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_mean_does_not_know_the_order_of_frames(kind):
    model, pixels = with_large_heads(actionclip_model(**KINDS[kind])), actionclip_batch()["pixel_values_videos"]
    difference = (features(model, pixels) - features(model, pixels.flip(1))).abs().max()
    assert difference < 1e-5 if kind == "meanP" else difference > 1e-4


def test_one_frame_and_the_mean_is_clip():
    clip, batch = tiny_clip(), actionclip_batch(frames=1)
    model = ActionCLIPModel.from_clip(clip, fusion_head="meanP")
    with torch.no_grad():
        expected = clip(input_ids=batch["input_ids"], pixel_values=batch["pixel_values_videos"][:, 0])
        found = model(batch["input_ids"], batch["pixel_values_videos"])
    torch.testing.assert_close(found.logits_per_video, expected.logits_per_image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["LSTM", "Transf"])
def test_a_head_without_effect_is_the_mean(head):
    model, pixels = actionclip_model(fusion_head=head), actionclip_batch()["pixel_values_videos"]
    mean = actionclip_model(fusion_head="meanP")
    mean.clip.load_state_dict(model.clip.state_dict())
    if head == "LSTM":
        torch.nn.init.zeros_(model.fusion.lstm.weight_hh_l0)
        torch.nn.init.zeros_(model.fusion.lstm.weight_ih_l0)
        for bias in (model.fusion.lstm.bias_hh_l0, model.fusion.lstm.bias_ih_l0):
            torch.nn.init.zeros_(bias)
    else:
        model.fusion.layers.forward = lambda frames, mask: torch.zeros_like(frames)
    torch.testing.assert_close(features(model, pixels), features(mean, pixels), rtol=0, atol=1e-5)


def test_a_new_convolution_in_the_meant_layout_shifts_channels_over_time():
    fusion = actionclip_model(fusion_head="Conv_1D").fusion
    frames, mask = torch.randn(2, 4, 24), torch.ones(2, 4, dtype=torch.long)
    found = fusion(frames, mask)[0] - frames
    torch.testing.assert_close(found[:, 1:, :6], frames[:, :-1, :6])
    torch.testing.assert_close(found[..., 6:18], frames[..., 6:18])
    torch.testing.assert_close(found[:, :-1, 18:], frames[:, 1:, 18:])
    fusion.conv1d_layout = "official"
    assert (fusion(frames, mask)[0] - frames - found).abs().max() > 0.1


def test_too_many_frames_are_said():
    for kind, number in (("joint", 5), ("Transf_cls", 5), ("Transf", 32)):
        pixels = torch.zeros(1, number + 1, 3, 24, 24)
        with pytest.raises(ValueError, match=f"pixel_values_videos: .*{number}.* want fewer frames"):
            features(actionclip_model(**KINDS[kind]), pixels)
    with pytest.raises(ValueError, match="visual_prompt: 'joint' encodes a video as a whole"):
        actionclip_model(**KINDS["joint"]).get_frame_features(pixels)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_dual_encoder_carries_a_head(family, tmp_path):
    model = ActionCLIPModel.from_clip(tiny_dual_encoder(family), fusion_head="LSTM", frozen_encoders="both")
    size, texts = family_image_size(family), tiny_family_inputs(family)
    batch = {"input_ids": texts["input_ids"][:2], "pixel_values_videos": torch.randn(2, 4, 3, size, size)}
    if "attention_mask" in texts:
        batch["attention_mask"] = texts["attention_mask"][:2]
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**batch).logits_per_video
        found = ActionCLIPModel.from_pretrained(tmp_path)(**batch).logits_per_video
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="visual_prompt: 'shift' with siglip, expected 'none'"):
        actionclip_config(backbone_model_type="siglip", text_config={}, vision_config={}, visual_prompt="shift")


# ---- loss


def test_the_loss_of_different_labels_approaches_clips():
    torch.manual_seed(0)
    video, text = torch.randn(6, 8), torch.randn(6, 8)
    expected = contrastive_loss_reference(
        *(torch.nn.functional.normalize(x) for x in (video, text)), torch.tensor(2.0)
    )
    found = label_contrastive_loss(video, text, 2.0, sharpness=50.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    # Pairs of one class attract each other: equal scores are the best there are.
    same = torch.zeros(6, dtype=torch.long)
    assert label_contrastive_loss(torch.ones(6, 8), torch.ones(6, 8), 2.0, same).abs() < 1e-6
    assert label_contrastive_loss(torch.ones(6, 8), torch.ones(6, 8), 2.0) > 1


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.zeros(5, dtype=torch.long), r"a whole number of each pair, \[6\], got torch.int64 of shape \[5\]"),
        (torch.zeros(6), "got torch.float32"),
        ([0] * 6, "got list"),
    ],
)
def test_wrong_labels_are_said(labels, message):
    with pytest.raises(ValueError, match=f"labels: expected {message}" if "whole" in message else message):
        label_contrastive_loss(torch.ones(6, 8), torch.ones(6, 8), 2.0, labels)


def test_texts_that_are_none_are_said_before_they_are_counted():
    with pytest.raises(ValueError, match="input_ids"):
        actionclip_model()(**actionclip_batch(2) | {"input_ids": 3})


def test_frozen_encoders_do_not_train_also_after_loading(tmp_path):
    for frozen, parts in (("none", set()), ("text", {"text"}), ("both", {"text", "vision"})):
        actionclip_model(**KINDS["joint"], frozen_encoders=frozen).save_pretrained(tmp_path)
        model = ActionCLIPModel.from_pretrained(tmp_path)
        still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert {
            part for part in ("text", "vision") if f"clip.{part}_model.encoder.layers.0.mlp.fc1.bias" in still
        } == parts
        assert not {"clip.logit_scale", "clip.vision_model.embeddings.time_embedding.weight"} & still
    model(**actionclip_batch()).loss.backward()
    assert model.clip.text_model.embeddings.token_embedding.weight.grad is None
    assert model.clip.vision_model.embeddings.time_embedding.weight.grad.abs().sum() > 0


def test_two_processes_train_and_measure_as_one(tmp_path):
    for size in (2, 1):
        run_on_ranks(PROGRAMS / "actionclip_ranks.py", tmp_path, world_size=size, folder=tmp_path)
    alone = load_file(tmp_path / "1of1.safetensors")
    for rank in range(2):
        found = load_file(tmp_path / f"{rank + 1}of2.safetensors")
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    assert alone["logits"].shape == (7, 3)


# ---- classes


def test_scores_are_averaged_over_prompts_and_views():
    model, batch = actionclip_classifier(), classifier_batch()
    views = torch.stack([batch["pixel_values_videos"], batch["pixel_values_videos"].flip(1)], 1)
    with torch.no_grad():
        found = model(views).logits.softmax(-1)
        shares = []
        for view in views.unbind(1):
            videos = torch.nn.functional.normalize(model.get_video_features(view).pooler_output, dim=-1)
            for prompts in torch.nn.functional.normalize(model.class_features, dim=-1):
                shares.append((100 * videos @ prompts.T).softmax(-1))
    torch.testing.assert_close(found, torch.stack(shares).mean(0), rtol=0, atol=1e-5)
    model.config.score_scale = None
    with torch.no_grad():
        softer = model(views).logits.softmax(-1)
    assert softer.max() < found.max() and math.isclose(model.logit_scale.exp().item(), math.exp(2.0), rel_tol=1e-5)


def test_classes_are_set_and_learned():
    model = ActionCLIPForVideoClassification(actionclip_config()).eval()
    with pytest.raises(ValueError, match="class_names: no classes are set"):
        model(torch.zeros(1, 2, 3, 24, 24))
    before = dict(model.config.id2label)
    for wrong in ([], ["a", "a"]):
        with pytest.raises(ValueError):
            model.set_classes(wrong, tiny_tokenizer())
    assert model.class_features is None and model.config.id2label == before
    model.set_classes(LABELS, tiny_tokenizer())
    assert model.class_features.shape == (16, 3, 24) == (len(ACTION_TEMPLATES), 3, 24)
    output = model(**classifier_batch())
    torch.testing.assert_close(
        output.loss, torch.nn.functional.cross_entropy(output.logits, classifier_batch()["labels"])
    )
    with pytest.raises(ValueError, match=r"labels: labels\[1\] is 3, expected 0..2"):
        model(**classifier_batch() | {"labels": torch.tensor([0, 3, 2, 0])})


def test_a_video_may_have_several_labels(tmp_path):
    torch.manual_seed(0)
    model = ActionCLIPForVideoClassification(
        actionclip_config(problem_type="multi_label_classification", frozen_encoders="both", fusion_head="LSTM")
    ).set_classes(LABELS, tiny_tokenizer())
    batch = classifier_batch() | {"labels": torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 1, 1]])}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        losses.append(model(**batch).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 < losses[0]
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        found = ActionCLIPForVideoClassification.from_pretrained(tmp_path)(**batch).logits
    assert torch.equal(found > 0, batch["labels"] > 0)
    single = actionclip_classifier()
    single.save_pretrained(tmp_path / "single")
    loaded = ActionCLIPForVideoClassification.from_pretrained(
        tmp_path / "single", problem_type="multi_label_classification"
    )
    assert loaded.logit_bias == 0


# ---- pipelines


def comparable(results) -> list:
    return [[(one["label"], round(one["score"], 4)) for one in result] for result in results]


def test_both_pipelines_run_from_saved_folders_and_agree(tmp_path):
    source = actionclip_model(visual_prompt="shift", fusion_head="LSTM")
    source.save_pretrained(tmp_path / "bare")
    for folder in ("bare", "set"):
        processor().save_pretrained(tmp_path / folder)
    model = ActionCLIPForVideoClassification.from_pretrained(tmp_path / "bare")
    model.set_classes(LABELS, processor()).save_pretrained(tmp_path / "set")
    path = str(write_video(tmp_path / "a.mp4", grey_frames(60), fps=20))
    stock = pipeline("video-classification", model=str(tmp_path / "set"))
    free = pipeline("zero-shot-video-classification", model=str(tmp_path / "bare"))
    assert comparable([stock(path)]) == comparable([free(path, candidate_labels=LABELS)])
    # One prompt is another ensemble.
    one = free(path, candidate_labels=LABELS, hypothesis_template="a video of {}.")
    assert comparable([one]) != comparable([stock(path)])
    batched = free([path, np.stack(grey_frames(30))], candidate_labels=LABELS, batch_size=2)
    assert comparable(batched[:1]) == comparable([stock(path)]) and len(batched) == 2


def test_views_go_through_the_pipeline(tmp_path):
    model = actionclip_model(fusion_head="Transf")
    video = np.random.default_rng(0).integers(0, 256, (30, 40, 60, 3), np.uint8)
    free = pipeline("zero-shot-video-classification", model=model, processor=processor())
    one, many = (
        free(video, candidate_labels=LABELS, num_clips=clips, num_crops=crops) for clips, crops in ((1, 1), (2, 3))
    )
    inputs = processor()(videos=video, num_clips=2, num_crops=3, return_tensors="pt")
    assert inputs["pixel_values_videos"].shape == (1, 6, 5, 3, 24, 24)
    assert comparable([one]) != comparable([many])
    for options, message in (
        ({"num_clips": 0}, "num_clips: 0, expected a whole number > 0"),
        ({"num_clips": 2, "sampling_rule": "per_second"}, "num_clips: 2 with sampling_rule 'per_second'"),
        ({"num_crops": 3, "do_center_crop": False}, "num_crops: 3 without do_center_crop"),
        (
            {"num_crops": 3, "crop_size": {"height": 99, "width": 99}},
            "frames of 42 x 28 are smaller than crop_size 99",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            processor()(videos=video, return_tensors="pt", **options)


def test_odd_videos_give_an_answer_or_are_said(tmp_path):
    free = pipeline("zero-shot-video-classification", model=actionclip_model(), processor=processor())
    one_frame = str(write_video(tmp_path / "one.mp4", grey_frames(1), fps=20))
    assert len(free(one_frame, candidate_labels=LABELS)) == 3
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    for wrong in (str(tmp_path / "empty.mp4"), str(tmp_path / "text.mp4"), str(tmp_path / "none.mp4")):
        with pytest.raises(ValueError, match=r"videos\[0\]: "):
            free(wrong, candidate_labels=LABELS)
