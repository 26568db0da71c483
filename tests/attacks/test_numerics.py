"""A small campaign with numbers; scripts/attack.py runs the long one."""

from attack_cases import findings
from attack_numerics import cases


def test_numbers_that_are_none_are_refused_by_name(tmp_path):
    found = [
        f"{case.name}: {outcome}, {detail}" for case, outcome, detail in findings(cases(11, tmp_path), 50, tmp_path)
    ]
    assert not found, "\n".join(found)
