"""A small campaign against configurations; scripts/attack.py runs the long one."""

from attack_cases import findings
from attack_configurations import cases


def test_bad_configurations_are_refused_by_name_or_answer_with_numbers(tmp_path):
    found = [
        f"{case.name}: {outcome}, {detail}" for case, outcome, detail in findings(cases(11, tmp_path), 120, tmp_path)
    ]
    assert not found, "\n".join(found)
