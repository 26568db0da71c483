"""The pipeline "zero-shot-video-classification" with a VideoCLIP, from a saved folder."""

import numpy as np
import pytest
import torch
from transformers import pipeline
from videoclip_runs import tiny_processor, videoclip_model
from videos import grey_frames, write_video

from hf_clip_variants.modeling.video.zero_shot_video_classification import TASK


LABELS = ["the cat moves", "a dog", "two owls turn"]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    videoclip_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return pipeline(TASK, model=str(folder))


def scores(result) -> dict[str, float]:
    return {one["label"]: one["score"] for one in result}


def test_scores_are_the_models_for_files_and_frames_in_any_batch(pipe, tmp_path):
    path = str(write_video(tmp_path / "a.mp4", grey_frames(60), fps=20))
    short = str(write_video(tmp_path / "b.mp4", grey_frames(25), fps=25))
    alone = [pipe(one, candidate_labels=LABELS) for one in (path, short)]
    for one, source in zip(alone, (path, short), strict=True):
        inputs = tiny_processor()(LABELS, source, return_tensors="pt")
        with torch.no_grad():
            expected = pipe.model(**inputs).logits_per_video[0].softmax(-1)
        assert scores(one) == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-3)
    together = pipe([path, short], candidate_labels=LABELS, batch_size=2)
    for one, other in zip(together, alone, strict=True):
        assert scores(one) == pytest.approx(scores(other), abs=1e-3)
    frames = np.stack(grey_frames(12))
    found = pipe(frames, candidate_labels=LABELS, video_metadata=[{"fps": 4}])
    assert sum(one["score"] for one in found) == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="fps: got none for frames without times"):
        pipe(frames, candidate_labels=LABELS)


def test_texts_of_several_templates_are_averaged_as_they_are(pipe, tmp_path):
    path = str(write_video(tmp_path / "a.mp4", grey_frames(20), fps=20))
    found = pipe(path, candidate_labels=["cat", "dog"], hypothesis_template=["the {}", "a {} moves"])
    processor = tiny_processor()
    with torch.no_grad():
        tokens = processor(["the cat", "a cat moves", "the dog", "a dog moves"], return_tensors="pt")
        means = pipe.model.get_text_features(**tokens).pooler_output.view(2, 2, -1).mean(1)
        pixels = processor(videos=[path], return_tensors="pt")
        expected = pipe.model.video_text_logits(pixels["pixel_values_videos"], means, pixels["video_mask"])
    wanted = dict(zip(("cat", "dog"), expected[0].softmax(-1).tolist(), strict=True))
    assert scores(found) == pytest.approx(wanted, abs=1e-3)
