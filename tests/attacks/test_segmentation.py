"""A small campaign against models that segment by texts; scripts/attack.py runs the long one."""

from attack_cases import findings
from attack_segmentation import cases


def test_segmentation_is_right_or_refused_by_name(tmp_path):
    found = [
        f"{case.name}: {outcome}, {detail}" for case, outcome, detail in findings(cases(11, tmp_path), 40, tmp_path)
    ]
    assert not found, "\n".join(found)
