"""VideoAnomalyClip: windows, centroid, selection, losses, classes, freezing, processes, what is refused."""

import math

import numpy as np
import pytest
import torch
from paths import PROGRAMS
from processes import run_on_ranks
from safetensors.torch import load_file
from tiny import tiny_clip, tiny_tokenizer
from video_anomaly_clip_runs import (
    FRAMES,
    NORMAL,
    feature_batch,
    video_anomaly_batch,
    video_anomaly_config,
    video_anomaly_model,
)

from hf_clip_variants import VideoAnomalyClipModel
from hf_clip_variants.modeling.video_anomaly_clip.losses_video_anomaly_clip import (
    Batch,
    anomaly_losses,
    checked_labels,
    draw_masks,
    log_probabilities,
    select_segments,
)
from hf_clip_variants.modeling.video_anomaly_clip.windows_video_anomaly_clip import (
    sample_training_frames,
    window_frames,
)


def features(videos: int, frames: int, seed: int = 0, width: int = 24) -> torch.Tensor:
    return torch.randn(videos, frames, width, generator=torch.Generator().manual_seed(seed))


# ---- any length


@pytest.mark.parametrize("frames", [1, 2, 5, 6, 7, 31, 60])
def test_each_frame_is_scored_once_in_the_official_windows(frames):
    model, video = video_anomaly_model(), features(1, frames)
    with torch.no_grad():
        output = model(video_features=video)
        # The plain way: fill up with the video from its start, (segments, windows, chunk) -> windows of all segments.
        windows = math.ceil(frames / FRAMES)
        filled = video[0].repeat(math.ceil(windows * FRAMES / frames), 1)[: windows * FRAMES]
        grids = filled.view(3, windows, 2, 24).transpose(0, 1).reshape(windows, FRAMES, 24)
        logits, score_logits = model._grids(grids - model.normal_centroid, model._directions(output.text_features))
        expected = score_logits.view(windows, 3, 2).transpose(0, 1).reshape(-1)[:frames].sigmoid()
    torch.testing.assert_close(output.scores[0], expected, rtol=0, atol=1e-5)
    assert output.scores.shape == (1, frames) and logits.shape == (windows, FRAMES, 3)
    torch.testing.assert_close(output.class_probs.sum(-1), torch.ones(1, frames))
    torch.testing.assert_close(1 - output.class_probs[..., NORMAL], output.scores)


def test_places_of_windows_cover_all_frames_once():
    for frames in (1, 11, 12, 13, 40):
        windows = -(-frames // 6)
        places = torch.cat([window_frames(frames, 2, 3, k, k + 1) for k in range(windows)])
        assert places.flatten().sort().values.tolist() == list(range(windows * 6))


def test_videos_of_a_batch_have_windows_of_their_own():
    model, videos = video_anomaly_model(), features(3, 20)
    lengths, mask = [20, 7, 1], torch.zeros(3, 20)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    with torch.no_grad():
        output = model(video_features=videos, video_mask=mask)
        for row, length in enumerate(lengths):
            alone = model(video_features=videos[row : row + 1, :length])
            torch.testing.assert_close(output.scores[row, :length], alone.scores[0], rtol=0, atol=1e-6)
            torch.testing.assert_close(output.class_probs[row, :length], alone.class_probs[0], rtol=0, atol=1e-6)
            assert not output.scores[row, length:].any() and not output.class_probs[row, length:].any()
        shorter = model(video_features=videos[:2], video_mask=torch.tensor([[1] * 7 + [0] * 13] * 2))
    torch.testing.assert_close(shorter.scores[1, :7], output.scores[1, :7], rtol=0, atol=1e-6)


def test_a_stream_from_a_file_equals_the_whole(tmp_path):
    model, video = video_anomaly_model(), features(1, 97)
    np.save(tmp_path / "video.npy", video[0].half().numpy())
    with torch.no_grad():
        expected = model(video_features=video.half())
    for source in (np.load(tmp_path / "video.npy", mmap_mode="r"), video[0].half()):
        scores, class_probs = model.score_frames(source)
        torch.testing.assert_close(scores, expected.scores[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(class_probs, expected.class_probs[0], rtol=0, atol=1e-5)


def test_pixels_and_their_features_give_the_same():
    model, batch = video_anomaly_model(), video_anomaly_batch()
    pixels, mask = batch["pixel_values_videos"], torch.ones(4, FRAMES)
    mask[1, 4:] = 0
    with torch.no_grad():
        from_pixels = model(pixels, video_mask=mask)
        again = model(video_features=from_pixels.video_features, video_mask=mask)
    torch.testing.assert_close(again.scores, from_pixels.scores, rtol=0, atol=1e-6)
    assert not from_pixels.video_features[1, 4:].any()


def test_training_frames_are_consecutive_in_each_segment():
    for frames, stride in ((1, 1), (5, 1), (12, 1), (100, 1), (100, 3)):
        numbers = sample_training_frames(frames, 4, 3, stride).view(4, 3)
        assert numbers.min() >= 0 and numbers.max() < frames
        assert ((numbers.diff(dim=1) - stride) % frames == 0).all()
    drawn = torch.stack([sample_training_frames(100, 4, 3) for _ in range(200)]).view(200, 4, 3)
    starts = drawn[:, :, 0] - 24 * torch.arange(4)
    assert starts.min() == 0 and starts.max() == 22 and len(starts.unique()) == 23
    with pytest.raises(ValueError, match="num_frames: 0, expected at least 1"):
        sample_training_frames(0)


# ---- centroid


def test_nothing_runs_without_a_centroid_and_no_file_lacks_it(tmp_path):
    model = VideoAnomalyClipModel(video_anomaly_config()).eval()
    with pytest.raises(ValueError, match="normal_centroid: missing; call compute_normal_centroid"):
        model(video_features=features(1, 6))
    with pytest.raises(ValueError, match="normal_centroid: missing"):
        model.score_frames(features(1, 6)[0])
    model.config.allow_zero_centroid = True
    assert model(video_features=features(1, 6)).scores.isfinite().all()
    video_anomaly_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    from safetensors.torch import save_file

    weights = load_file(file)
    save_file({name: t for name, t in weights.items() if name != "normal_centroid"}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing: \['normal_centroid'\]"):
        VideoAnomalyClipModel.from_pretrained(tmp_path)


def test_the_centroid_is_the_mean_of_normal_frames_that_are_there():
    model, videos = VideoAnomalyClipModel(video_anomaly_config()), features(4, 5)
    mask, labels = torch.ones(4, 5), torch.tensor([0, NORMAL, NORMAL, 2])
    mask[2, 3:] = 0
    batches = [
        {"video_features": videos[:2], "labels": labels[:2], "video_mask": mask[:2]},
        {"video_features": videos[2:].half(), "labels": labels[2:], "video_mask": mask[2:]},
    ]
    model.compute_normal_centroid(batches)
    frames = torch.cat([videos[1], videos[2, :3].half().float()])
    torch.testing.assert_close(model.normal_centroid, frames.mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.normal_norm, frames.norm(dim=-1).mean(), rtol=1e-6, atol=0)
    assert int(model.num_normal_frames) == 8
    before = model.normal_centroid.clone()
    with pytest.raises(ValueError, match="batches: no normal frame in them"):
        model.compute_normal_centroid([{"video_features": videos, "labels": torch.zeros(4, dtype=torch.long)}])
    for wrong in (torch.zeros(23), torch.full((24,), torch.nan), torch.zeros(24, dtype=torch.long)):
        with pytest.raises(ValueError, match="normal_centroid"):
            model.set_normal_centroid(wrong)
    assert torch.equal(model.normal_centroid, before)


def test_a_shift_of_frames_centroid_and_texts_changes_nothing(monkeypatch):
    model, video, shift = video_anomaly_model(), features(1, 12), torch.randn(24)
    with torch.no_grad():
        expected = model(video_features=video)
        texts = model.get_class_features()
        monkeypatch.setattr(model, "get_class_features", lambda: texts + shift)
        model.normal_centroid += shift
        found = model(video_features=video + shift)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-4)


# ---- selection and losses


def random_batch(seed: int = 0, videos: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    logits, scores = torch.randn(videos, 4, 3, 2, generator=generator), torch.randn(videos, 4, 3, generator=generator)
    labels = torch.tensor([2, 1, 0, 1, 2])[:videos]
    kept = torch.rand(videos, 4, generator=generator) > 0.3
    kept[:, 0] = kept[:, 3] = True
    return Batch(logits, scores, labels, kept, kept)


def by_loops(batch: Batch, normal: int, top: int, bottom: int) -> dict[str, float]:
    """The terms with loops and probabilities, as the sheet of the method writes them."""
    terms: dict[str, list] = {
        name: [] for name in ("dir_abnormal", "dir_normal", "topk_abnormal", "bottomk_abnormal", "topk_normal")
    }
    scores = []
    for logits, raw, label, kept in zip(
        batch.logits, batch.score_logits, batch.labels.tolist(), batch.topk_mask, strict=True
    ):
        column = label - (label > normal)
        score = raw.sigmoid()
        shares = logits.softmax(-1) * score[..., None]
        sums = logits.sum(1)
        own = sums.sum(-1) if label == normal else sums[:, column]
        segments = [k for k in range(len(own)) if kept[k]]
        highest = sorted(segments, key=lambda k, own=own: -float(own[k]))[:top]
        lowest = sorted(segments, key=lambda k, own=own: float(own[k]))[:bottom]
        if label == normal:
            terms["dir_normal"].append(logits.amax(-1).flatten())
            terms["topk_normal"].append(-(1 - score[highest]).log().flatten())
            continue
        scores.append(score.flatten())
        terms["dir_abnormal"].append(-logits[highest][..., column].flatten())
        terms["topk_abnormal"].append(-shares[highest][..., column].log().flatten())
        terms["bottomk_abnormal"].append(-(1 - score[lowest]).log().flatten())
    found = {name: torch.cat(values).mean() for name, values in terms.items()}
    scores = torch.cat(scores)
    return found | {"smooth": (scores[1:] - scores[:-1]).square().sum(), "sparse": scores.mean()}


@pytest.mark.parametrize("normal", [0, 1, 2])
def test_terms_are_those_of_loops_in_any_order_of_videos(normal):
    batch = random_batch(normal)
    chosen = select_segments(batch, normal, 2, 1)
    found = anomaly_losses(batch, chosen, normal)
    for name, expected in by_loops(batch, normal, 2, 1).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6, msg=name)
    kept = batch.topk_mask[batch.labels != normal].gather(1, chosen.topk_abnormal)
    assert kept.all() and batch.topk_mask[batch.labels == normal].gather(1, chosen.topk_normal).all()


def test_a_batch_of_one_kind_has_finite_terms_and_gradients():
    for labels in (torch.tensor([0, 2]), torch.tensor([1, 1])):
        batch = random_batch(videos=2)
        logits = batch.logits.clone().requires_grad_()
        batch = Batch(logits, batch.score_logits, labels, batch.topk_mask, batch.bottomk_mask)
        terms = anomaly_losses(batch, select_segments(batch, 1, 2, 1), 1)
        absent = ("dir_normal", "topk_normal") if (labels != 1).all() else ("dir_abnormal", "sparse", "smooth")
        assert all(terms[name] == 0 for name in absent)
        sum(terms.values()).backward()
        assert logits.grad.isfinite().all()


def test_a_saturated_score_gives_no_infinity():
    found = log_probabilities(torch.zeros(2, 3), torch.tensor([200.0, -200.0]), 1)
    assert found.isfinite().all() and found[0, 1] == -200 and found.shape == (2, 4)
    torch.testing.assert_close(found[0, 0], torch.tensor(-math.log(3)))


def test_equal_rates_share_their_mask():
    torch.manual_seed(0)
    top, bottom = draw_masks(200, 32, 0.7, 0.7, "cpu")
    assert torch.equal(top, bottom) and abs(top.float().mean() - 0.3) < 0.02
    top, bottom = draw_masks(200, 32, 0.7, 0.2, "cpu")
    assert not torch.equal(top, bottom) and abs(bottom.float().mean() - 0.8) < 0.02


def test_statistics_move_in_training_only():
    model = video_anomaly_model()
    before = model.selector_norm.running_mean.clone()
    model(**feature_batch())
    assert torch.equal(model.selector_norm.running_mean, before)
    model.train()(**feature_batch())
    assert not torch.equal(model.selector_norm.running_mean, before)


# ---- classes, freezing, files


def test_anomalies_are_set_with_a_tokenizer():
    model = VideoAnomalyClipModel.from_clip(tiny_clip(), concat_features=True, num_context_tokens=3)
    with pytest.raises(ValueError, match="no anomalies are set .prompt_length is 0.; call set_anomalies"):
        model.set_normal_centroid(torch.zeros(24))(video_features=features(1, 6))
    names = ["a_cat", "sports car", "forest"]
    assert model.set_anomalies(names, tiny_tokenizer(), normal="nothing", normal_id=1) is model
    config = model.config
    assert config.id2label == {0: "a_cat", 1: "nothing", 2: "sports car", 3: "forest"} and config.normal_id == 1
    row = model.prompt_ids[0].tolist()
    tail = tiny_tokenizer()("a cat.").input_ids
    assert row[: len(tail) + 3] == [tail[0]] * 4 + tail[1:] and set(row[len(tail) + 3 :]) <= {tail[-1]}
    output = model(video_features=features(1, 6))
    assert output.class_probs.shape == (1, 6, 4) and output.scores.isfinite().all()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for wrong in (["a"] * 2, [], ["nothing"], ["x " * 60]):
        with pytest.raises(ValueError, match="names"):
            model.set_anomalies(wrong, tiny_tokenizer(), normal="nothing")
    for wrong in (3, "0", True):
        with pytest.raises(ValueError, match=f"normal_id: {wrong!r}, expected 0..1"):
            model.set_anomalies(["a"], tiny_tokenizer(), normal_id=wrong)
    for kind in (int, object):
        with pytest.raises(ValueError, match="video_features: expected floats, got"):
            model.score_frames(np.ones((3, 24)).astype(kind))
    assert config.id2label[0] == "a_cat" and all(torch.equal(state[n], t) for n, t in model.state_dict().items())


def test_context_vectors_stand_where_placeholders_are():
    model = video_anomaly_model()
    token = model.get_input_embeddings()
    with torch.no_grad():
        model.context.copy_(token(torch.tensor([[30, 31], [32, 33], [34, 35], [36, 37]])))
        ids = model.prompt_ids.clone()
        ids[:, 1:3] = torch.tensor([[30, 31], [32, 33], [34, 35], [36, 37]])
        expected = model.clip.get_text_features(input_ids=ids).pooler_output
        torch.testing.assert_close(model.get_class_features(), expected, rtol=0, atol=1e-5)


def test_of_clip_only_the_text_projection_trains_also_after_loading(tmp_path):
    video_anomaly_model(freeze_clip=True).save_pretrained(tmp_path)
    model = VideoAnomalyClipModel.from_pretrained(tmp_path).train()
    model(**video_anomaly_batch()).loss.backward()
    of_clip = {name for name, p in model.named_parameters() if p.grad is not None and name.startswith("clip.")}
    assert of_clip == {"clip.text_projection.weight"}
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("clip."))


def test_a_saved_model_keeps_classes_centroid_and_scores(tmp_path):
    model, video = video_anomaly_model(), features(1, 20)
    model.save_pretrained(tmp_path)
    loaded = VideoAnomalyClipModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.prompt_ids, model.prompt_ids) and loaded.config.id2label == model.config.id2label
    with torch.no_grad():
        torch.testing.assert_close(loaded(video_features=video).scores, model(video_features=video).scores)


# ---- what is refused


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "video_features, pixel_values_videos: got neither"),
        ({"video_features": features(1, 6), "pixel_values_videos": torch.zeros(1, 6, 3, 24, 24)}, "got both"),
        (
            {"video_features": features(1, 6, width=23)},
            r"video_features: got \[1, 6, 23\], expected \[videos, frames, 24",
        ),
        ({"video_features": torch.randn(1, 6, 2, 24)}, "of several crops give one"),
        ({"video_features": torch.randn(6, 24)}, r"video_features: got \[6, 24\]"),
        ({"video_features": torch.zeros(1, 0, 24)}, "no videos, or videos without frames"),
        ({"video_features": torch.ones(1, 6, 24, dtype=torch.long)}, "video_features: expected floats"),
        ({"video_features": features(2, 6).index_fill(0, torch.tensor([1]), torch.nan)}, "video 1 has NaN .* frame 0"),
        (
            {"video_features": features(1, 6).index_fill(1, torch.tensor([3]), 0.0)},
            "video 0 has only zeros in frame 3",
        ),
        ({"video_features": features(1, 6), "video_mask": torch.zeros(1, 6)}, "video_mask: video 0 has no frames"),
        ({"video_features": features(1, 6), "video_mask": torch.ones(1, 5)}, r"video_mask: got shape \[1, 5\]"),
        ({"video_features": features(1, 6), "video_mask": torch.eye(6)[5:]}, "comes before one that is"),
        ({"pixel_values_videos": torch.zeros(1, 3, 24, 24)}, r"pixel_values_videos: got \[1, 3, 24, 24\]"),
        ({"pixel_values_videos": torch.zeros(1, 6, 3, 24, 24, dtype=torch.uint8)}, "looks unnormalised"),
        ({"video_features": features(2, 7), "labels": torch.tensor([0, 1])}, "labels: videos of 7 frames, expected 6"),
        ({"video_features": features(2, 6), "labels": torch.tensor([0, 4])}, r"labels\[1\] is 4, expected 0..3"),
        (
            {"video_features": features(2, 6), "labels": torch.tensor([0])},
            r"labels: got \[1\], expected one class a video",
        ),
        ({"video_features": features(2, 6), "labels": torch.tensor([0.0, 1.0])}, "labels: expected whole numbers"),
        (
            {"video_features": features(1, 6), "labels": torch.tensor([0]), "topk_mask": torch.ones(1, 2)},
            r"topk_mask: got \[1, 2\], expected \[1, 3\]",
        ),
        (
            {
                "video_features": features(1, 6),
                "labels": torch.tensor([0]),
                "video_mask": torch.tensor([[1] * 5 + [0]]),
            },
            "video_mask: a training video lacks frames",
        ),
    ],
)
def test_wrong_inputs_are_said(inputs, message):
    with pytest.raises(ValueError, match=message):
        video_anomaly_model()(**inputs)


def test_labels_that_are_none_are_said():
    for wrong in ("cat", [None], [[1], [2, 3]]):
        with pytest.raises(ValueError, match="labels: got .* expected one class a video"):
            checked_labels(wrong, 2, 3)


def test_features_of_another_scale_are_refused():
    model, raw = video_anomaly_model(), 10 * features(2, 6)
    unit = torch.nn.functional.normalize(raw, dim=-1)
    model.compute_normal_centroid([{"video_features": raw}])
    assert model(video_features=raw.half()).scores.isfinite().all()
    with pytest.raises(ValueError, match="frames of mean length 1, those of normal_centroid have .*not normalised"):
        model(video_features=unit)
    model.compute_normal_centroid([{"video_features": unit}])
    with pytest.raises(ValueError, match="video_features: frames of mean length"):
        model.score_frames(raw[0])
    model.set_normal_centroid(torch.full((24,), 3.0))  # of an official file: how long frames were is not known
    with pytest.raises(ValueError, match="have at least 14.7"):
        model(video_features=unit)


def test_numbers_that_are_not_finite_are_traced_to_a_weight():
    model = video_anomaly_model()
    with torch.no_grad():
        model.scorer.classifier.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="scores: NaN .* the weight scorer.classifier.weight has some"):
        model(video_features=features(1, 6))


# ---- processes


def test_two_processes_train_and_measure_as_one(tmp_path):
    """Centroid, loss, gradients, batch statistics, weights after two steps, and metrics; shares are unequal."""
    run_on_ranks(PROGRAMS / "video_anomaly_ranks.py", tmp_path, world_size=2, folder=tmp_path)
    run_on_ranks(PROGRAMS / "video_anomaly_ranks.py", tmp_path, world_size=1, folder=tmp_path)
    alone = load_file(tmp_path / "1of1.safetensors")
    assert {
        "metric.auc",
        "metric.map",
        "centroid",
        "1.loss",
        "1.context",
        "after.selector_norm.running_var",
    } <= alone.keys()
    for rank in range(2):
        found = load_file(tmp_path / f"{rank + 1}of2.safetensors")
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            if name.startswith("metric."):
                assert torch.equal(found[name], tensor), name
            else:
                torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
