"""A small campaign against models of videos; scripts/attack.py runs the long one."""

from attack_cases import findings
from attack_video_models import cases


def test_video_models_are_right_or_refused_by_name(tmp_path):
    found = [
        f"{case.name}: {outcome}, {detail}" for case, outcome, detail in findings(cases(11, tmp_path), 24, tmp_path)
    ]
    assert not found, "\n".join(found)
