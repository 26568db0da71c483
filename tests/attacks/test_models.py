"""Small campaigns against GLIPv2's forwards, CLIP4Clip's, FND-CLIP, PointCLIP, CLIP-ViL and DepthCLIP;
scripts/attack.py runs the long ones."""

import warnings

import attack_clips
import attack_points
import attack_posts
import attack_prompts
import attack_questions
import pytest
from attack_cases import findings


KINDS = {
    "prompts": (attack_prompts, 60),
    "clips": (attack_clips, 60),
    "posts": (attack_posts, 44),
    "points": (attack_points, 30),
    "questions": (attack_questions, 44),
}


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_answered_right_or_refused_by_name(kind, tmp_path):
    attack, count = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of long texts and damaged files
        found = list(findings(attack.cases(11, tmp_path), count, tmp_path))
    assert not found, "\n".join(f"{case.name}: {outcome}, {detail}" for case, outcome, detail in found)
