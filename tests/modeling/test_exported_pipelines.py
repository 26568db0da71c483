"""Pipelines of clouds, depth, questions, captions, posts and videos: from a saved folder, and from a Hub with code,
where the package is not."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from actionclip_runs import actionclip_model
from clip4clip_runs import clip4clip_config, clip4clip_model
from clip_vil_runs import clip_vil_model, clip_vil_processor
from depthclip_runs import depth_processor, depthclip_model
from fake_hub import FakeHub
from fnd_clip_runs import fnd_clip_model, news_processor
from model_contract import clip_video_processor
from paths import PROGRAMS, SUPPORT
from PIL import Image
from pipeline_answers import TASKS, answer
from pointclip_runs import clouds, point_processor, pointclip_model
from transformers import pipeline
from video_anomaly_clip_runs import video_anomaly_model
from videoclip_runs import tiny_processor, videoclip_model
from videos import grey_frames

from hf_clip_variants import CLIP4ClipForVideoClassification
from hf_clip_variants.hub.export import export_with_code


def video_classifier() -> CLIP4ClipForVideoClassification:
    model = CLIP4ClipForVideoClassification(clip4clip_config()).eval()
    return model.set_classes(["cat", "dog"], clip_video_processor())


PARTS = {
    "zero-shot-point-cloud-classification": (pointclip_model, point_processor),
    "depth-estimation": (depthclip_model, depth_processor),
    "image-question-answering": (clip_vil_model, clip_vil_processor),
    "image-text-to-text": (lambda: clip_vil_model("captioning"), clip_vil_processor),
    "text-and-image-classification": (fnd_clip_model, news_processor),
    "clip4clip-labels": (clip4clip_model, clip_video_processor),
    "actionclip-labels": (actionclip_model, clip_video_processor),
    "videoclip-labels": (videoclip_model, tiny_processor),
    "video-classification": (video_classifier, clip_video_processor),
    "video-anomaly-detection": (video_anomaly_model, clip_video_processor),
}


@pytest.mark.hub
@pytest.mark.slow  # imports of a new process
def test_pipelines_from_a_folder_and_from_a_hub_with_code_answer_the_same(tmp_path):
    Image.effect_noise((80, 50), 90).convert("RGB").save(tmp_path / "a.png")
    np.save(tmp_path / "cloud.npy", clouds(1)[0].numpy())
    frames = [Image.fromarray(frame) for frame in grey_frames(20)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    expected = {}
    with FakeHub() as hub:
        for task, (model, processor) in PARTS.items():
            model, processor = model(), processor()
            for part in (model, processor):
                part.save_pretrained(tmp_path / "saved" / task)
            pipe = pipeline(TASKS.get(task, task), model=str(tmp_path / "saved" / task), device="cpu")
            expected[task] = answer(task, pipe, tmp_path)
            repo_id = f"alice/{task}"
            exported = export_with_code(model, processor, tmp_path / task, license="mit", repo_id=repo_id)
            hub.create(repo_id, exported)
        environment = os.environ | hub.environment(tmp_path / "home") | {"PYTHONPATH": str(SUPPORT)}
        command = [sys.executable, str(PROGRAMS / "pipelines_without_package.py"), *PARTS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment, cwd=tmp_path)
        asked = {repo for repo in hub.repos if hub.requests(f"GET /{repo}/resolve/.*safetensors")}
    assert done.returncode == 0, done.stderr[-4000:]
    assert asked == {f"alice/{task}" for task in PARTS}
    found = json.loads(done.stdout.splitlines()[-1])
    for task, own in expected.items():
        _same(found[task], own, task)


def _same(found, own, path: str):
    """Numbers to 1e-5, all else exactly."""
    if isinstance(own, dict):
        assert found.keys() == own.keys(), path
        for name, value in own.items():
            _same(found[name], value, f"{path}, {name}")
    elif isinstance(own, str):
        assert found == own, path
    else:
        assert found == pytest.approx(own, rel=1e-4, abs=1e-5), path
