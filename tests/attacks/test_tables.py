"""A small campaign with tables: each is read as it was written, or refused with a clear error."""

from itertools import islice

from attack_cases import findings
from attack_tables import cases


def test_every_table_is_read_right_or_refused(tmp_path):
    found = list(findings(cases(20, tmp_path), 70, tmp_path))
    assert not found, "\n".join(f"{each.outcome}: {each.case}: {each.detail}" for each in found)


def test_each_seed_gives_others(tmp_path):
    for seed in (1, 2):
        list(islice(cases(seed, tmp_path), 20))
    contents = [{file.read_bytes() for file in (tmp_path / f"tables-{seed}").glob("any-*")} for seed in (1, 2)]
    assert len(contents[0]) == 12 and not contents[0] & contents[1]
