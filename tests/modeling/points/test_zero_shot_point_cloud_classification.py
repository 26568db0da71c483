"""The pipeline "zero-shot-point-cloud-classification"."""

import json

import numpy as np
import pytest
import torch
import trimesh
from pointclip_runs import clouds, cube, point_processor, pointclip_model
from transformers import pipeline

from hf_clip_variants.modeling.points.zero_shot_point_cloud_classification import TASK


LABELS = ["chair", "a lamp", "two birds"]


@pytest.fixture(scope="module")
def pipe():
    return pipeline(TASK, model=pointclip_model(), processor=point_processor())


def comparable(results) -> list:
    return [[(one["label"], round(one["score"], 5)) for one in result] for result in results]


def test_scores_are_the_models(pipe):
    cloud = clouds(1)[0].numpy()
    result = pipe(cloud, candidate_labels=LABELS, hypothesis_template="a {}")
    inputs = pipe.processor([f"a {label}" for label in LABELS], cloud, return_tensors="pt")
    with torch.no_grad():
        expected = pipe.model(**inputs).logits.softmax(-1)[0]
    assert [one["score"] for one in result] == sorted((one["score"] for one in result), reverse=True)
    assert {one["label"]: one["score"] for one in result} == pytest.approx(
        dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-5
    )
    assert len(pipe(cloud, candidate_labels="chair, table", top_k=1)) == 1


def test_every_form_of_input_and_any_batch_gives_the_same(pipe, tmp_path):
    trimesh.Trimesh(*cube(), process=False).export(tmp_path / "a.glb")
    sources = [str(tmp_path / "a.glb"), clouds(1)[0].numpy(), clouds(1, 20)[0]]
    alone = [pipe(source, candidate_labels=LABELS) for source in sources]
    for size in (1, 3):
        assert comparable(pipe(sources, candidate_labels=LABELS, batch_size=size)) == comparable(alone)
    assert comparable(pipe([sources[0]], candidate_labels=LABELS)) == comparable(alone[:1])
    assert comparable(pipe(clouds(3).numpy(), candidate_labels=LABELS)[:1]) == comparable([alone[1]])
    turned = pipe(sources[1], candidate_labels=LABELS, up_axis="z")
    assert comparable([turned]) != comparable([alone[1]])


def test_sentences_of_a_language_model_are_taken_as_a_json_file(pipe, tmp_path):
    sentences = {"chair": ["a depth map of a seat.", "four legs and a back"], "a lamp": ["a 3D model of a lamp."]}
    (tmp_path / "prompts.json").write_text(json.dumps(sentences))
    cloud, labels = clouds(1)[0].numpy(), list(sentences)
    from_file = pipe(cloud, candidate_labels=labels, hypothesis_template=str(tmp_path / "prompts.json"))
    assert comparable([from_file]) == comparable([pipe(cloud, candidate_labels=labels, hypothesis_template=sentences)])
    assert comparable([from_file]) != comparable([pipe(cloud, candidate_labels=labels)])
    with pytest.raises(ValueError, match="1 classes have none: 'two birds'"):
        pipe(cloud, candidate_labels=LABELS, hypothesis_template=sentences)


def test_a_saved_folder_is_enough(tmp_path):
    pointclip_model().save_pretrained(tmp_path)
    point_processor().save_pretrained(tmp_path)
    pipe, cloud = pipeline(TASK, model=str(tmp_path)), clouds(1)[0].numpy()
    expected = pipeline(TASK, model=pointclip_model(), processor=point_processor())(cloud, candidate_labels=LABELS)
    assert comparable([pipe(cloud, candidate_labels=LABELS)]) == comparable([expected])


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({}, ValueError, "candidate_labels: missing"),
        ({"candidate_labels": []}, ValueError, "candidate_labels is empty"),
        ({"candidate_labels": ["a", "a"]}, ValueError, "'a'"),
        ({"candidate_labels": LABELS, "hypothesis_template": "no place"}, ValueError, "'no place'"),
        ({"candidate_labels": LABELS, "top_k": -1}, ValueError, "top_k: -1, expected a whole number of at least 1"),
        ({"candidate_labels": LABELS, "frames": 3}, TypeError, "frames: unknown"),
    ],
)
def test_wrong_calls_are_said(pipe, options, error, message):
    with pytest.raises(error, match=message):
        pipe(clouds(1)[0], **options)
    with pytest.raises(ValueError, match="points: got None"):
        pipe(None, candidate_labels=LABELS)
    with pytest.raises(ValueError, match=r"points\[1\]: NaN"):
        pipe([np.zeros((4, 3)), np.full((4, 3), np.nan)], candidate_labels=LABELS)
