"""A small campaign against indexes and what is searched in them; scripts/attack.py runs the long one."""

from attack_cases import findings
from attack_search import cases


def test_search_is_right_or_refused_by_name(tmp_path):
    found = [
        f"{case.name}: {outcome}, {detail}" for case, outcome, detail in findings(cases(11, tmp_path), 24, tmp_path)
    ]
    assert not found, "\n".join(found)
