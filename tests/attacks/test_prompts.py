"""A small campaign against GLIPv2's forwards and CLIP4Clip's; scripts/attack.py runs the long one."""

import attack_clips
import attack_prompts
import pytest
from attack_cases import findings


@pytest.mark.parametrize("cases", [attack_prompts.cases, attack_clips.cases], ids=["prompts", "clips"])
def test_forwards_are_right_or_refuse_by_name(cases, tmp_path):
    found = [
        f"{case.name}: {outcome}, {detail}" for case, outcome, detail in findings(cases(11, tmp_path), 60, tmp_path)
    ]
    assert not found, "\n".join(found)
