"""The pipeline "zero-shot-video-classification": every form of input, texts once a call, errors as sentences."""

import numpy as np
import pytest
import torch
from clip4clip_runs import clip4clip_model
from tiny import tiny_tokenizer
from transformers import pipeline
from videos import grey_frames, write_video

from hf_clip_variants import CLIPClassifierImageProcessor, CLIPClassifierProcessor, VideoTextProcessor
from hf_clip_variants.modeling.video.zero_shot_video_classification import TASK


LABELS = ["a cat runs", "a dog", "two birds"]


def processor():
    sizes = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    clip = CLIPClassifierProcessor(CLIPClassifierImageProcessor(**sizes), tiny_tokenizer())
    return VideoTextProcessor.from_clip(clip, num_frames=4)


@pytest.fixture(scope="module", params=["seqTransf", "tightTransf"])
def pipe(request):
    return pipeline(TASK, model=clip4clip_model(similarity_head=request.param), processor=processor())


def comparable(results) -> list:
    return [[(one["label"], round(one["score"], 5)) for one in result] for result in results]


def test_scores_are_the_models(pipe):
    video = np.random.default_rng(0).integers(0, 256, (6, 30, 30, 3), np.uint8)
    result = pipe(video, candidate_labels=LABELS)
    inputs = pipe.processor(LABELS, video, return_tensors="pt")
    with torch.no_grad():
        expected = pipe.model(**inputs).logits_per_video.softmax(-1)[0]
    assert [one["score"] for one in result] == sorted((one["score"] for one in result), reverse=True)
    assert {one["label"]: one["score"] for one in result} == pytest.approx(
        dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-5
    )
    assert len(pipe(video, candidate_labels="a cat, a dog", top_k=1)) == 1


def test_every_form_of_input_and_any_batch_gives_the_same(pipe, tmp_path):
    path = str(write_video(tmp_path / "a.mp4", grey_frames(60), fps=20))
    arrays = [np.stack(grey_frames(9)), np.stack(grey_frames(3))]
    videos = [path, *arrays]
    alone = [pipe(video, candidate_labels=LABELS) for video in videos]
    for size in (1, 3):
        assert comparable(pipe(videos, candidate_labels=LABELS, batch_size=size)) == comparable(alone)
    assert comparable(pipe([path], candidate_labels=LABELS)) == comparable(alone[:1])


def test_texts_are_encoded_once_a_call(pipe, monkeypatch):
    calls, encode = [], pipe.model.get_text_features
    monkeypatch.setattr(pipe.model, "get_text_features", lambda **inputs: calls.append(1) or encode(**inputs))
    videos = [np.stack(grey_frames(n)) for n in (2, 3, 4)]
    pipe(videos, candidate_labels=LABELS, hypothesis_template=["{}", "a video of {}."])
    assert len(calls) == 1


def test_a_saved_folder_is_enough(tmp_path):
    clip4clip_model().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    pipe, video = pipeline(TASK, model=str(tmp_path)), np.stack(grey_frames(5))
    expected = pipeline(TASK, model=clip4clip_model(), processor=processor())(video, candidate_labels=LABELS)
    assert comparable([pipe(video, candidate_labels=LABELS)]) == comparable([expected])


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({}, ValueError, "candidate_labels: missing"),
        ({"candidate_labels": []}, ValueError, "class_names|candidate_labels"),
        ({"candidate_labels": ["a", "a"]}, ValueError, "'a'"),
        ({"candidate_labels": LABELS, "hypothesis_template": "no place"}, ValueError, "'no place'"),
        ({"candidate_labels": LABELS, "frames": 3}, TypeError, "frames: unknown"),
    ],
)
def test_wrong_calls_are_said(pipe, options, error, message):
    with pytest.raises(error, match=message):
        pipe(np.stack(grey_frames(3)), **options)
    with pytest.raises(ValueError, match="videos: got None"):
        pipe(None, **options)
