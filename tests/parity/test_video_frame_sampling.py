"""Frames chosen by the official rules of CLIP4Clip and ActionCLIP."""

import numpy as np
import pytest
from parity_fixtures import load_fixture

from hf_clip_variants.modeling.video.frame_sampling import FrameSampling, drawn_segment_frames


pytestmark = pytest.mark.parity

KEEP = {0: "first", 1: "last", 2: "uniform"}


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("video_frame_sampling")


def test_frames_of_each_second_equal_official(fixture):
    cases, compared = fixture.meta["hyper_parameters"]["clip4clip_cases"], 0
    for key, expected in fixture.outputs.items():
        if not key.startswith("clip4clip."):
            continue
        _, number, *which = key.split(".")
        case = cases[int(number)]
        options = {"num_frames": None}
        if which[0].startswith("max"):
            options = {"num_frames": int(which[0][3:]), "keep": KEEP[int(which[1][3:])]}
        sampling = FrameSampling(
            rate=case["sample_fp"] or None,
            start=case["start_time"],
            end=case["end_time"],
            frame_numbers=True,
            **options,
        )
        assert sampling.frames(case["frame_count"], case["fps"]).tolist() == expected.tolist(), key
        # The frames at those times are the same.
        times = sampling.times(case["frame_count"] / case["fps"], case["fps"], case["frame_count"])
        assert np.floor(times * case["fps"]).astype(int).tolist() == expected.tolist(), key
        if (case["fps"] / (case["sample_fp"] or 1)) % 1 == 0:  # by time, too, where no frame number is rounded
            by_time = FrameSampling(
                rate=case["sample_fp"] or None, start=case["start_time"], end=case["end_time"], **options
            )
            assert by_time.frames(case["frame_count"], case["fps"]).tolist() == expected.tolist(), key
        compared += 1
    assert compared


def test_frames_of_segments_equal_official(fixture):
    cases, compared = fixture.meta["hyper_parameters"]["actionclip_cases"], 0
    for number, case in enumerate(cases):
        total, parts = case["num_frames"], case["num_segments"]
        middle = FrameSampling("segments", parts).frames(total)
        # Official numbers count from 1.
        assert (middle + 1).tolist() == fixture.outputs[f"actionclip.{number}.val_indices"].tolist()
        drawn = fixture.outputs[f"actionclip.{number}.train_indices_numpy_seed{case['seed']}"]
        random = np.random.RandomState(case["seed"])
        for expected in drawn:
            assert (drawn_segment_frames(total, parts, random) + 1).tolist() == expected.tolist()
            compared += 1
        first = FrameSampling("segments", parts, seed=case["seed"]).frames(total)
        assert (first + 1).tolist() == drawn[0].tolist()
    assert compared
