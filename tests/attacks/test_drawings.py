"""A small campaign against models that draw, sketch and paint; scripts/attack.py runs the long one."""

from attack_cases import findings
from attack_drawings import cases


def test_drawings_are_right_or_refused_by_name(tmp_path):
    found = [
        f"{case.name}: {outcome}, {detail}" for case, outcome, detail in findings(cases(5, tmp_path), 60, tmp_path)
    ]
    assert not found, "\n".join(found)
