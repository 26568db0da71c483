"""A small campaign against the forward of every model; scripts/attack.py runs the long one."""

import attack_forwards
from attack_cases import findings


def test_forwards_are_right_or_refuse_by_name(tmp_path):
    cases = attack_forwards.cases(1, tmp_path)
    found = [f"{case.name}: {outcome}, {detail}" for case, outcome, detail in findings(cases, 40, tmp_path)]
    assert not found, "\n".join(found)
