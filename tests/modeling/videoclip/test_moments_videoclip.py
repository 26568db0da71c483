"""Scores of seconds from windows, labels, steps in their order, moments."""

import itertools
import tracemalloc

import pytest
import torch
from videoclip_runs import videoclip_features, videoclip_model

from hf_clip_variants.evaluation.video_moments import (
    SecondsModel,
    find_moments,
    retrieve,
    score_videos,
    segment_video,
)
from hf_clip_variants.modeling.video.moments import (
    background_threshold,
    best_seconds,
    candidate_moments,
    labelled_seconds,
    merged_windows,
    moment_scores,
    ordered_steps,
    segments_of,
    window_starts,
)


def random_logits(length, texts, seed=0):
    return 3 * torch.randn(length, texts, generator=torch.Generator().manual_seed(seed))


# ---- windows


@pytest.mark.parametrize("size, stride", [(5, 3), (4, 4), (32, 16), (7, 1)])
def test_every_second_is_in_a_window_and_constants_stay(size, stride):
    for length in range(1, 70):
        starts = list(window_starts(length, size, stride))
        covered = {second for start in starts for second in range(start, min(start + size, length))}
        assert covered == set(range(length)) and starts[-1] < length
        assert all(length - start > size for start in starts[:-1])  # it ends with the first that reaches the end
        windows = torch.full((len(starts), size, 2), 3.0)
        assert merged_windows(windows, length, stride).eq(3).all()
    with pytest.raises(ValueError, match="windows: got 2, expected 1 for 3 seconds"):
        merged_windows(torch.zeros(2, size, 2), 3, stride)


def test_scores_of_a_long_video_are_means_over_windows_however_many_at_once():
    model = videoclip_model(use_s3d=False)
    features = torch.randn(27, 10, generator=torch.Generator().manual_seed(1))
    texts = torch.randn(3, 24, generator=torch.Generator().manual_seed(2))
    found = [model.get_second_logits(features, texts, at_once) for at_once in (1, 2, 16)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-4)
    total, count = torch.zeros(27, 3), torch.zeros(27, 1)
    with torch.no_grad():
        for start in window_starts(27, 8, 4):
            cut = features[None, start : start + 8]
            seconds = model.get_video_features(video_features=cut, attend_to_start=False).last_hidden_state[0]
            total[start : start + 8] += seconds @ texts.T
            count[start : start + 8] += 1
    torch.testing.assert_close(found[0], total / count, rtol=0, atol=1e-4)


def test_a_video_of_ten_hours_stays_small():
    model = videoclip_model(use_s3d=False)
    features = torch.randn(36_000, 10, generator=torch.Generator().manual_seed(1))
    calls, encode = [], model.get_video_features

    def counted(video_features, **options):
        calls.append(video_features.shape)
        return encode(video_features=video_features, **options)

    model.get_video_features = counted
    tracemalloc.start()
    texts = torch.randn(4, 24, generator=torch.Generator().manual_seed(2))
    logits = model.get_second_logits(features, texts, windows_at_once=256)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert logits.shape == (36_000, 4) and logits.isfinite().all()
    assert max(shape[0] for shape in calls) <= 256 and max(shape[1] for shape in calls) == 8
    assert peak < 50e6  # of Python's own objects; tensors are at most 256 windows
    moments = candidate_moments(len(logits))
    assert len(moments) < 6 * 7200 and moment_scores(logits, moments).shape == (len(moments), 4)
    # The first four seconds are in one window only.
    torch.testing.assert_close(logits[:4], model.get_second_logits(features[:9], texts)[:4], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "features, texts, options, message",
    [
        (torch.zeros(0, 10), torch.zeros(2, 24), {}, r"video_features: got \[0, 10\], expected \[seconds, 10\]"),
        (torch.zeros(1, 3, 10), torch.zeros(2, 24), {}, r"video_features: got \[1, 3, 10\]"),
        (torch.zeros(3, 10), torch.zeros(2, 23), {}, r"text_embeds: got \[2, 23\], expected \[texts, 24\]"),
        (torch.zeros(3, 11), torch.zeros(2, 24), {}, r"video_features: got .*10"),
        (torch.zeros(3, 10), torch.zeros(2, 24), {"windows_at_once": 0}, "windows_at_once: 0, expected a number > 0"),
        (torch.zeros(3, 10).long(), torch.zeros(2, 24), {}, "video_features: got .*int64, expected floats"),
        (torch.zeros(3, 10), torch.zeros(2, 24).long(), {}, "text_embeds: torch.int64, expected floats"),
        (torch.zeros(3, 10), "a text", {}, r"text_embeds: got str, expected \[texts, 24\]"),
        (torch.full((3, 10), torch.nan), torch.zeros(2, 24), {}, r"NaN .* because video_features\[0\] has some"),
    ],
)
def test_wrong_inputs_are_said(features, texts, options, message):
    with pytest.raises(ValueError, match=message):
        videoclip_model(use_s3d=False).get_second_logits(features, texts, **options)


# ---- labels


def test_seconds_below_the_threshold_are_background():
    logits = torch.tensor([[5.0, 1], [1, 2], [2, 6], [3, 7], [3, 3]])
    labels = labelled_seconds(logits, 3.0)
    assert labels.tolist() == [1, 0, 2, 2, 0]
    assert [(one.start, one.end, one.label, one.score) for one in segments_of(labels, logits)] == [
        (0, 1, 0, 5.0),
        (2, 4, 1, 6.5),
    ]
    assert segments_of(torch.zeros(4, dtype=torch.long), logits) == []
    assert background_threshold(torch.tensor([[3.0, 0], [1, 1], [0, 2]])) == 3
    with pytest.raises(ValueError, match="at least two labels"):
        background_threshold(torch.ones(1, 4))


# ---- steps


def test_wrong_options_of_tasks_are_said():
    loaded = SecondsModel(videoclip_model(use_s3d=False), None)
    features, texts = torch.randn(9, 10), torch.randn(2, 24)
    for call, message in (
        (lambda: segment_video(loaded, features, texts, float("nan")), "threshold: nan, expected a number"),
        (lambda: segment_video(loaded, features, texts, "3"), "threshold: '3', expected a number"),
        (lambda: find_moments(loaded, features, texts, top=0), "top: 0, expected a whole number > 0"),
        (lambda: find_moments(loaded, features, texts, chunk=2.5), "chunk: 2.5, expected a whole number > 0"),
        (lambda: find_moments(loaded, features[:0], texts), r"video_features: got \[0, 10\]"),
        (lambda: retrieve(torch.zeros(2, 2), top=-1), "top: -1, expected a whole number > 0"),
        (lambda: score_videos(loaded, [], texts), "videos: none"),
        (
            lambda: score_videos(loaded, [features[:, :3]], texts),
            r"videos\[0\]: features: got \[9, 3\], expected a tensor",
        ),
        (lambda: score_videos(loaded, [features], texts * torch.nan), "texts: .* expected finite floats"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert segment_video(loaded, features, texts, 10**40) == segment_video(loaded, features, texts, 10**30) == []
    assert len(segment_video(loaded, features, texts, -(10**40))) >= 1


def test_steps_in_their_order_are_the_best_of_all():
    for seed, (length, steps) in enumerate([(1, 1), (4, 4), (6, 3), (9, 4), (7, 1)]):
        logits = random_logits(length, steps, seed)
        scores = logits.double().log_softmax(1) if steps > 1 else logits.double()
        best = max(
            itertools.combinations(range(length), steps),
            key=lambda seconds: sum(float(scores[second, step]) for step, second in enumerate(seconds)),
        )
        assert ordered_steps(logits).tolist() == list(best)
    assert best_seconds(torch.tensor([[0.0, 5], [4, 0], [1, 1]])).tolist() == [1, 0]
    with pytest.raises(ValueError, match="2 seconds and 3 steps, expected at least a second"):
        ordered_steps(torch.zeros(2, 3))


# ---- moments


def test_moments_are_scored_by_the_mean_of_their_seconds():
    logits = random_logits(28, 3)
    moments = candidate_moments(28)
    assert len(moments) == 21 and moments[-1] == (25, 28)
    expected = torch.stack([logits[start:end].mean(0) for start, end in moments])
    torch.testing.assert_close(moment_scores(logits, moments), expected)
    with pytest.raises(ValueError, match="chunk: 0"):
        candidate_moments(28, chunk=0)


def test_a_second_alone_is_its_window():
    model, batch = videoclip_model(use_s3d=False), videoclip_features()
    texts = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output.detach()
    assert model.get_second_logits(batch["video_features"][0, :1], texts).shape == (1, 4)
