"""Scenes with exact depth: the floor's formula, what hides what, the same scene for the same seed."""

import numpy as np
import pytest

from hf_clip_variants.data.scenes.depth_scenes import DepthSceneMaker
from hf_clip_variants.data.scenes.scenes import SceneMaker


THINGS = SceneMaker(styles="fluentflat", class_names=["cat", "taco", "whale"])


def maker(**settings) -> DepthSceneMaker:
    return DepthSceneMaker(scenes=THINGS, **{"size": (64, 48), **settings})


def test_floor_and_wall_have_the_depth_of_a_camera_over_a_plane():
    scene = maker(things=(0, 0), horizon=(0.25, 0.25), walls=(5, 5)).scene(3)
    drop = (np.arange(48) + 0.5 - 12) / (0.9 * 48)
    expected = np.where(drop > 1 / 5, 1 / np.maximum(drop, 1e-9), 5)
    np.testing.assert_allclose(scene.depth, np.repeat(expected[:, None], 64, 1), rtol=1e-6)
    assert scene.image.size == (64, 48) and scene.categories == ()


def test_near_things_hide_far_ones_and_are_larger():
    near, far = (maker(things=(1, 1), nearest=z, walls=(z / 0.94, z / 0.94), heights=(0.5, 0.5)) for z in (1.5, 5.0))
    sizes = [(one.depth < one.wall).sum() for one in (near.scene(1), far.scene(1))]
    assert sizes[0] > 0
    for index in range(4):
        scene = maker(things=(6, 6)).scene(index)
        assert list(scene.distances) == sorted(scene.distances, reverse=True)
        behind = scene.depth[np.isin(scene.depth, np.float32(scene.distances[-1]))]
        assert behind.size, "the nearest thing is never hidden"


def test_the_same_seed_gives_the_same_scenes_and_a_data_set():
    data = maker(seed=4).dataset(3)
    again = [maker(seed=4).scene(index) for index in range(3)]
    for row, scene in zip(data, again, strict=True):
        assert np.array_equal(np.asarray(row["image"]), np.asarray(scene.image))
        assert np.array_equal(np.asarray(row["depth"], dtype=np.float32), scene.depth)
    assert not np.array_equal(maker(seed=5).scene(0).depth, again[0].depth)


def test_haze_takes_colour_away_with_distance():
    clear, hazy = (
        np.asarray(maker(things=(0, 0), haze=(h, h), seed=2).scene(0).image).std(-1).mean(1) for h in (0.0, 1.0)
    )
    assert hazy[0] < 0.2 * clear[0] + 1 and hazy[-1] > 0.5 * clear[-1]


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"size": (4, 48)}, "size"),
        ({"nearest": 9.0}, "nearest: got 9.0; want above 0 and before the wall"),
        ({"horizon": (0.5, 1.0)}, "horizon"),
        ({"haze": (0.5, 2.0)}, "haze"),
        ({"things": (3, 2)}, "things"),
    ],
)
def test_settings_out_of_range_are_named(settings, said):
    with pytest.raises(ValueError, match=said):
        maker(**settings)
