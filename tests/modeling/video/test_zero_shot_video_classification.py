"""Pipelines: "zero-shot-video-classification" and, with classes that are set, transformers' "video-classification"."""

import numpy as np
import pytest
import torch
from clip4clip_runs import clip4clip_batch, clip4clip_config, clip4clip_model
from tiny import tiny_tokenizer
from transformers import pipeline
from videos import grey_frames, write_video

from hf_clip_variants import (
    CLIP4ClipForVideoClassification,
    CLIPClassifierImageProcessor,
    CLIPClassifierProcessor,
    VideoTextProcessor,
)
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
    for wrong in (0, -1, 1.5, True):
        for name in ("top_k", "batch_size"):
            with pytest.raises(ValueError, match=f"{name}: {wrong}, expected a whole number"):
                pipe(video, candidate_labels=LABELS, **{name: wrong})


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


# ---- transformers' own pipeline, with classes that are set


@pytest.mark.parametrize("head", ["seqTransf", "tightTransf"])
def test_transformers_own_pipeline_runs_from_a_saved_folder_with_set_classes(head, tmp_path):
    source = clip4clip_model(similarity_head=head)
    source.save_pretrained(tmp_path / "bare")
    model = CLIP4ClipForVideoClassification.from_pretrained(tmp_path / "bare")
    path = str(write_video(tmp_path / "a.mp4", grey_frames(60), fps=20))
    with pytest.raises(ValueError, match="class_names: no classes are set"):
        model(torch.zeros(1, 2, 3, 24, 24))
    model.set_classes(LABELS, processor(), templates=["{}.", "a video of {}."]).save_pretrained(tmp_path / "set")
    processor().save_pretrained(tmp_path / "set")
    stock = pipeline("video-classification", model=str(tmp_path / "set"))
    free = pipeline(TASK, model=source, processor=processor())
    # The stock pipeline asks for `config.num_frames` frames.
    expected = free(path, candidate_labels=LABELS, hypothesis_template=["{}.", "a video of {}."], num_frames=5)
    assert comparable([stock(path)]) == comparable([expected])


def test_classes_are_learned_with_labels():
    model = CLIP4ClipForVideoClassification(clip4clip_config()).eval()
    before = dict(model.config.id2label)
    for wrong in ([], ["a", "a"]):
        with pytest.raises(ValueError):
            model.set_classes(wrong, tiny_tokenizer())
    assert model.class_features is None and model.config.id2label == before
    model.set_classes(LABELS, tiny_tokenizer())
    output = model(clip4clip_batch()["pixel_values_videos"], labels=torch.tensor([0, 1, 2, 0]))
    expected = torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(output.loss, expected)
    with pytest.raises(ValueError, match=r"labels: labels\[1\] is 3, expected 0..2"):
        model(clip4clip_batch()["pixel_values_videos"], labels=torch.tensor([0, 3, 2, 0]))
    output.loss.backward()
    assert model.temporal_layers.layers[0].mlp.fc1.weight.grad.abs().sum() > 0
