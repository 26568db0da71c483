"""The run folder: lines that survive a kill and a full disk, one process at a time, settings that differ are named."""

import json

import pytest
from killing import file_size_limit

from hf_clip_variants.few_shot.run_folder import RUN_KEY, RunFolder, key_of, what_differs


def record(seed, **more):
    return dict(zip(RUN_KEY, ("few_shot", "pets", "clip", "coop", 1, seed), strict=True)) | more


def seeds(folder):
    return sorted(found["seed"] for found in folder.records().values())


def test_a_half_written_last_line_is_ignored_and_cut_off(tmp_path):
    folder = RunFolder(tmp_path)
    for seed in (1, 2):
        folder.append(record(seed, name="Käse"))
    whole, next_line = folder.lines.read_bytes(), json.dumps(record(4)).encode() + b"\n"
    torn = json.dumps(record(3)).encode()
    for rest in (b"{", torn[:-5], torn, "é".encode()[:1], b"\0" * 70_000):
        folder.lines.write_bytes(whole + rest)
        assert seeds(folder) == [1, 2]
        folder.append(record(4))
        assert folder.lines.read_bytes() == whole + next_line
    folder.lines.write_bytes(torn[:-5])
    assert folder.records() == {}
    folder.append(record(4))
    assert folder.lines.read_bytes() == next_line


def test_each_rank_reads_all_files_and_writes_its_own(tmp_path):
    first, second = RunFolder(tmp_path), RunFolder(tmp_path, rank=1, world_size=2)
    assert first.records() == {}
    first.append(record(1))
    second.append(record(2))
    assert seeds(first) == seeds(second) == [1, 2]
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["runs-0.jsonl", "runs-1.jsonl"]


def test_the_newest_successful_record_of_a_run_counts(tmp_path):
    first, second = RunFolder(tmp_path), RunFolder(tmp_path, rank=1, world_size=2)
    for value, error in ((1, "a"), (2, "b")):
        second.append(record(1, value=value, error=error))
    key = key_of(record(1))
    assert first.records()[key]["value"] == 2
    first.append(record(1, value=3, error=None))
    assert first.records()[key]["value"] == 3, "the other file comes later, but its run failed"


def test_broken_line_in_the_middle_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append(record(1))
    folder.lines.write_bytes(b"oops\n" + folder.lines.read_bytes())
    with pytest.raises(ValueError, match="runs-0.jsonl, line 1 is not JSON"):
        folder.records()


def test_a_full_disk_leaves_earlier_lines(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append(record(1))
    before = folder.lines.read_bytes()
    with file_size_limit(400), pytest.raises(OSError):
        folder.append(record(2, text="x" * 1000))
    assert folder.lines.read_bytes() == before


def test_second_process_of_one_rank_is_refused(tmp_path):
    with RunFolder(tmp_path).locked():
        with pytest.raises(ValueError, match="another process is working in"), RunFolder(tmp_path).locked():
            pass
        with RunFolder(tmp_path, rank=1, world_size=2).locked():
            pass
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; want a folder"):
        RunFolder(tmp_path / "file")
    assert (tmp_path / "work" / ".gitignore").read_text() == "*\n"


def test_leftovers_of_killed_processes_are_removed_unless_others_may_be_writing(tmp_path):
    leftovers = [tmp_path / ".tmp-results.json-0a", tmp_path / "adapters" / "coop" / ".tmp-x" / "file"]
    for path in leftovers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with RunFolder(tmp_path, world_size=2).locked():
        assert all(path.exists() for path in leftovers)
    with RunFolder(tmp_path).locked():
        assert not any(path.exists() for path in leftovers)


def test_settings_and_contents_that_differ_are_named(tmp_path):
    assert what_differs({"a": 1, "b": [1]}, {"a": 1, "b": [1]}) == []
    assert what_differs({"a": 1, "profile": None}, {"a": 1, "profile": "tiny", "new": {}}) == [
        'profile was null, now "tiny"',
        "new was null, now {}",
    ]
    before = {"model": "x", "seeds": (1,)}, {"data": "00"}
    RunFolder(tmp_path / "run").open_results(*before)
    assert RunFolder(tmp_path / "run").open_results(*before)["settings"] == {"model": "x", "seeds": [1]}
    for now, words in (
        (({"model": "y", "seeds": [1]}, {"data": "00"}), 'a run with other settings: model was "x", now "y"'),
        (({"model": "x", "seeds": [1]}, {"data": "01"}), "the contents of data changed"),
    ):
        with pytest.raises(ValueError, match=words):
            RunFolder(tmp_path / "run").open_results(*now)
