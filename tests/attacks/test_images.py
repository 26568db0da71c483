"""A small campaign with images: each is answered rightly, or named with a clear error."""

import warnings
from itertools import islice

from attack_cases import findings
from attack_images import cases


def test_every_image_is_answered_or_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about large images and damaged metadata
        found = list(findings(cases(20, tmp_path), 200, tmp_path))
    assert not found, "\n".join(f"{each.outcome}: {each.case}: {each.detail}" for each in found)


def test_each_seed_gives_others(tmp_path):
    first, second = ([case.name for case in islice(cases(seed, tmp_path), 60)] for seed in (1, 2))
    assert first != second
