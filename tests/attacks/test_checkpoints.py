"""Damaged and hostile checkpoints, some of each kind. `scripts/attack.py --kinds checkpoints` runs more."""

from attack_cases import findings
from attack_checkpoints import cases


def test_checkpoints_are_read_right_or_refused_by_name(tmp_path):
    found = list(findings(cases(20, tmp_path), 60, tmp_path))
    assert not found, "\n".join(f"{each.outcome}: {each.case.name}: {each.detail}" for each in found)
