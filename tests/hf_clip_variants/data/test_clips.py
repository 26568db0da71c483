"""Clips of emoji in motion: seeded, told apart by time alone, written as real files."""

import numpy as np
import pytest

from hf_clip_variants.data.clips import MOTIONS, NORMAL, OPPOSITES, ClipMaker, make_clips
from hf_clip_variants.modeling.video.frame_sampling import FrameSampling
from hf_clip_variants.modeling.video.video_decoding import read_video


SCENE = {"styles": "fluentflat", "class_names": ["cat", "cherries", "octopus"], "size": 48}


def pixels(clip) -> np.ndarray:
    return np.stack([np.asarray(frame).astype(int) for frame in clip.frames])


def centre_of_change(clip) -> np.ndarray:
    """(T, 2): mean row and column of what differs from the median frame or the background."""
    frames = pixels(clip)
    changed = (np.abs(frames - np.median(frames, 0)).sum(-1) > 60).astype(float)
    rows, columns = np.indices(changed.shape[1:])
    weight = changed.sum((1, 2)) + 1e-9
    return np.stack([(changed * rows).sum((1, 2)) / weight, (changed * columns).sum((1, 2)) / weight], 1)


def test_clips_are_the_same_for_a_seed_whatever_was_drawn_before():
    first, again = ClipMaker(scene=SCENE, seed=5), ClipMaker(scene=SCENE, seed=5)
    for index in (3, 0, 3):
        assert (pixels(first.clip(index)) == pixels(again.clip(index))).all()
    assert not (pixels(first.clip(0)) == pixels(ClipMaker(scene=SCENE, seed=6).clip(0))).all()


@pytest.mark.parametrize("motion, axis, sign", [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)])
def test_things_move_where_the_caption_says(motion, axis, sign):
    maker = ClipMaker(motions=[motion], scene=SCENE | {"backgrounds": "plain"})
    for index in range(4):
        path = centre_of_change(maker.clip(index))[:, axis]
        assert sign * (path[-1] - path[0]) > 8, index


def test_opposite_motions_have_the_same_frames_in_the_other_order():
    for one, other in OPPOSITES.items():
        forward, backward = (ClipMaker(motions=[m], scene=SCENE, seed=1).clip(2) for m in (one, other))
        assert (pixels(forward) == pixels(backward)[::-1]).all(), one
        assert not (pixels(forward)[0] == pixels(forward)[-1]).all(), one


def test_captions_name_thing_and_motion():
    maker = ClipMaker(scene=SCENE)
    assert maker.caption(0, "left") == "A cat moves to the left."
    assert maker.caption(1, "vanishing") == "Cherries vanish."
    assert maker.caption(1, "shrinking") == "Cherries shrink."
    assert maker.caption(2, "up") == "An octopus moves up."
    seen = {(clip.category, clip.motion) for clip in map(maker.clip, range(150))}
    assert len(seen) > 25 and {motion for _, motion in seen} == set(MOTIONS)


def test_only_shown_classes_are_drawn():
    maker = ClipMaker(scene=SCENE | {"shown": ["octopus"]})
    assert {maker.clip(index).category for index in range(9)} == {2}


def test_files_hold_the_clips(tmp_path):
    settings = {"scene": SCENE, "motions": ["left", "growing"], "seed": 2, "num_frames": 6}
    there, files = make_clips(3, **settings), make_clips(3, folder=tmp_path, **settings)
    assert there["caption"] == files["caption"] and files.column_names[-1] == "video"
    for row, file in zip(there, files, strict=True):
        frames, metadata = read_video(file["video"], FrameSampling(num_frames=None, rate=None))
        assert len(frames) == 6 and metadata.fps == 4.0
        drawn, read = (np.stack([np.asarray(one).astype(int) for one in some]) for some in (row["frames"], frames))
        difference = np.abs(drawn[:, None] - read[None]).mean((2, 3, 4))
        # What coding changes, colours above all, is less than what a step of the motion does.
        assert (difference.argmin(1) == np.arange(6)).all() and difference.diagonal().max() < 6


def test_two_things_at_once_share_the_image():
    scene = SCENE | {"backgrounds": "plain", "size": 64}
    maker = ClipMaker(scene=scene, things=(2, 2), motions=["clockwise", "appearing"])
    for index in range(4):
        clip = maker.clip(index)
        (first, one), (second, other) = clip.steps[0].things
        assert first != second
        ours = (maker.caption(first, one)[:-1], maker.caption(second, other))
        assert clip.caption == f"{ours[0]} and {ours[1][:1].lower()}{ours[1][1:]}"
        changed = np.ptp(pixels(clip), axis=0).sum(-1) > 60
        halves = [(changed[:32], changed[32:]), (changed[:, :32], changed[:, 32:])]
        assert any(a.any() and b.any() for a, b in halves)


def test_long_clips_tell_when_each_step_begins():
    row = make_clips(1, seed=1, scene=SCENE, steps=(3, 3), motions=["left", "up"], num_frames=4)[0]
    assert [(step["start"], step["end"]) for step in row["steps"]] == [(0, 1), (1, 2), (2, 3)]
    assert len(row["frames"]) == 12 and row["caption"].count(", then ") == 2
    maker = ClipMaker(seed=1, scene=SCENE, steps=(3, 3), motions=["left", "up"], num_frames=4)
    clip = maker.clip(0)
    for step in clip.steps:
        assert step.caption == maker.caption(*step.things[0]) and not step.is_anomaly
        part = pixels(clip)[step.start : step.end]
        assert (np.abs(np.diff(part, axis=0)).sum((1, 2, 3)) > 0).all()  # something moves in each frame of it


def test_anomalies_are_labelled_frame_by_frame():
    settings = {"scene": SCENE, "steps": (2, 4), "motions": ["left", "right"], "anomalies": ["vanishing", "up"]}
    clips = make_clips(30, num_frames=3, **settings)
    names = clips.features["anomaly"].names
    assert names == [NORMAL, "vanishing", "up"]
    counts = np.bincount(clips["anomaly"], minlength=3)
    assert counts.min() >= 3 and 8 <= counts[0] <= 22  # half of 30
    for row in clips:
        labels, motions = row["frame_labels"], clips.features["motion"].names
        assert len(labels) == len(row["frames"]) == 3 * len(row["steps"])
        assert sum(label > 0 for label in labels) == (3 if row["anomaly"] else 0)
        for number, step in enumerate(row["steps"]):
            motion = motions[step["motion"][0]]
            assert labels[3 * number] == (names.index(motion) if motion in names else 0)


def test_things_may_be_the_anomalies():
    settings = {"scene": SCENE, "steps": (3, 3), "things": (1, 2), "motions": ["left"], "num_frames": 2}
    maker, seen = ClipMaker(anomalies=["octopus", "up"], **settings), set()
    for index in range(30):
        clip = maker.clip(index)
        seen.add(clip.anomaly)
        assert clip.frame_labels == [step.anomaly for step in clip.steps for _ in range(2)]
        for step in clip.steps:
            names = [maker.class_names[category] for category, _ in step.things]
            assert ("octopus" in names) == (step.anomaly == "octopus") and names.count("octopus") <= 1
            assert {motion for _, motion in step.things} == {"up" if step.anomaly == "up" else "left"}
    assert seen == {NORMAL, "octopus", "up"}
    rows = make_clips(3, anomalies=["octopus"], anomaly_rate=1.0, **settings)
    assert rows.features["anomaly"].names == [NORMAL, "octopus"] and set(rows["anomaly"]) == {1}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"motions": ["fly"]}, "motions: got \\['fly'\\]; want some of left"),
        ({"motions": []}, "motions: got none"),
        ({"num_frames": 1}, "num_frames: got 1; want 2 or more"),
        ({"reach": 0}, "reach, fps: got 0"),
        ({"things": (2, 1)}, "things: got 2, 1; want fewest and most, in 1..3"),
        ({"steps": (0, 1)}, "steps: got 0, 1"),
        (
            {"motions": ["left"], "anomalies": ["a thing"]},
            "anomalies: got \\['a thing'\\]; .* or classes that are shown",
        ),
        ({"motions": ["left"], "anomalies": ["left"]}, "anomalies: got \\['left'\\]; want some of right"),
        ({"anomaly_rate": 2}, "anomaly_rate: got 2; want 0..1"),
    ],
)
def test_wrong_settings_are_said(settings, message):
    with pytest.raises(ValueError, match=message):
        ClipMaker(scene=SCENE, **settings)
