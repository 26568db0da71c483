"""`save_pretrained` replaces a folder in one step, also when killed, on a full disk, in mounted or shared folders."""

import json
import os
import re
import stat
import threading

import pytest
import torch
from killing import file_size_limit, run_and_kill
from tiny import tiny_clip, tiny_tokenizer

from hf_clip_variants.modeling.loading_and_saving import checkpoints
from hf_clip_variants.modeling.loading_and_saving.checkpoints import StagedSaving, staged_folder, swap_in


@pytest.fixture(scope="module")
def model_class():
    from transformers import CLIPModel

    class StagedCLIP(StagedSaving, CLIPModel):
        pass

    return StagedCLIP


def make(model_class, fill):
    model = model_class(tiny_clip().config)
    torch.nn.init.constant_(model.text_projection.weight, fill)
    model.config.projection_note = fill
    return model


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def strays(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith((".tmp", ".new")) or p.name.endswith(".previous")]


def content_after_a_kill(target):
    """Of the folder; of the old one beside it where the kill hit between the two renames."""
    return content(target if target.exists() else target.with_name(f".{target.name}.previous"))


def test_after_a_kill_at_any_write_the_folder_is_whole_old_or_new(tmp_path, model_class):
    target = tmp_path / "model"
    old, new = make(model_class, 1.0), make(model_class, 2.0)
    fresh = tmp_path / "fresh"
    new.save_pretrained(fresh)
    old.save_pretrained(target)
    (target / "processor_config.json").write_text("{}")
    before = content(target)
    after = before | content(fresh)
    assert before != after
    writes = run_and_kill(lambda: new.save_pretrained(target), tmp_path)
    assert content(target) == after and writes >= 8
    seen = set()
    for nth in range(1, writes + 1):
        old.save_pretrained(target)  # also removes what the last victim left
        assert strays(tmp_path) == [] and content(target) == before
        assert run_and_kill(lambda: new.save_pretrained(target), tmp_path, nth) == -9
        found = content_after_a_kill(target)
        assert found in (before, after), f"mixed after write {nth}: {sorted(found)}"
        seen.add(found == after if target.exists() else "between")
        if nth % 6 == 0 and target.exists():
            weight = model_class.from_pretrained(target).text_projection.weight
            assert torch.equal(weight, torch.full_like(weight, 2.0 if found == after else 1.0))
    assert seen == {False, "between", True}, "no kill before, within or after the swap: the loop did not cover it"


def test_after_a_kill_between_the_renames_the_next_save_restores_the_old_folder(tmp_path):
    (tmp_path / ".model.previous").mkdir()
    (tmp_path / ".model.previous" / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        with staged_folder(tmp_path / "model") as folder:
            (folder / "b.txt").write_text("new")
            raise KeyboardInterrupt
    with staged_folder(tmp_path / "model") as folder:
        (folder / "b.txt").write_text("new")
    assert content(tmp_path / "model") == {"a.txt": b"old", "b.txt": b"new"} and strays(tmp_path) == []


def test_after_a_kill_while_saving_a_processor_the_old_one_is_whole(tmp_path):
    from hf_clip_variants import CLIPClassifierImageProcessor, CLIPClassifierProcessor

    processors = [
        CLIPClassifierProcessor(CLIPClassifierImageProcessor(max_pixels=n), tiny_tokenizer()) for n in (1000, 2000)
    ]
    target = tmp_path / "model"
    processors[1].save_pretrained(target)
    after = content(target)
    processors[0].save_pretrained(target)
    before = content(target)
    assert before != after
    writes = run_and_kill(lambda: processors[1].save_pretrained(target), tmp_path)
    for nth in range(1, writes + 1, 3):
        processors[0].save_pretrained(target)
        assert run_and_kill(lambda: processors[1].save_pretrained(target), tmp_path, nth) == -9
        assert content_after_a_kill(target) in (before, after)


def test_after_a_kill_in_the_first_save_there_is_no_folder(tmp_path, model_class):
    model = make(model_class, 1.0)
    target = tmp_path / "model"
    assert run_and_kill(lambda: model.save_pretrained(target), tmp_path, nth=6) == -9
    assert not target.exists()
    model.save_pretrained(target)
    assert strays(tmp_path) == [] and "model.safetensors" in content(target)


def test_a_full_disk_is_an_oserror_with_path_and_bytes_and_changes_nothing(tmp_path, model_class):
    target = tmp_path / "model"
    make(model_class, 1.0).save_pretrained(target)
    before = content(target)
    model = make(model_class, 2.0)
    needed = sum(t.nbytes for t in model.state_dict().values())
    with file_size_limit(100_000), pytest.raises(OSError, match=re.escape(f"{needed:,} bytes are needed")) as failure:
        model.save_pretrained(target)
    assert str(target) in str(failure.value)
    assert content(target) == before and strays(tmp_path) == []


def test_too_little_space_is_found_before_anything_is_written(tmp_path):
    with pytest.raises(OSError, match="1,000,000,000,000,000 bytes are needed and [0-9,]+ are free"):
        with staged_folder(tmp_path / "a" / "model", bytes_needed=10**15):
            raise AssertionError("not reached")
    assert not (tmp_path / "a" / "model").exists()


def test_files_can_be_read_by_others(tmp_path, model_class):
    before = os.umask(0o022)
    try:
        make(model_class, 1.0).save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(modes, 0o644) and "model.safetensors" in modes


def test_other_files_stay_and_shards_of_an_older_save_are_removed(tmp_path, model_class):
    target = tmp_path / "model"
    model = make(model_class, 1.0)
    model.save_pretrained(target, max_shard_size="100KB")
    assert "model.safetensors.index.json" in content(target)
    (target / "notes").mkdir()
    (target / "notes" / "mine.txt").write_text("keep me")
    (target / ".tmpAbC123").write_text("left by a killed safetensors")
    (target / "link").symlink_to("notes")
    model.save_pretrained(target)
    names = set(content(target))
    assert {"model.safetensors", "notes/mine.txt"} <= names
    assert not any("-of-" in name or name.startswith(".tmp") or "index" in name for name in names)
    assert (target / "link").is_symlink()
    model.save_pretrained(
        target, max_shard_size="100KB"
    )  # and the other way: a stale single file would win over shards
    assert "model.safetensors" not in content(target)
    assert torch.equal(model_class.from_pretrained(target).text_projection.weight, model.text_projection.weight)


def test_the_current_folder_is_filled_without_being_replaced(tmp_path, model_class, monkeypatch):
    target = tmp_path / "model"
    make(model_class, 1.0).save_pretrained(target)
    inode = target.stat().st_ino
    monkeypatch.chdir(target)
    model = make(model_class, 2.0)
    model.save_pretrained(".", max_shard_size="100KB")
    assert target.stat().st_ino == inode and "model.safetensors" not in content(target)
    assert torch.equal(model_class.from_pretrained(".").text_projection.weight, model.text_projection.weight)
    assert strays(target) == []


def test_an_exception_leaves_the_old_content(tmp_path):
    target = tmp_path / "folder"
    with staged_folder(target) as folder:
        (folder / "a.txt").write_text("one")
    with pytest.raises(KeyboardInterrupt):
        with staged_folder(target) as folder:
            (folder / "a.txt").write_text("two")
            raise KeyboardInterrupt
    assert content(target) == {"a.txt": b"one"} and strays(tmp_path) == []
    with staged_folder(target, keep_others=False) as folder:
        (folder / "b.txt").write_text("three")
    assert content(target) == {"b.txt": b"three"} and sorted(os.listdir(tmp_path)) == ["folder"]


def test_a_folder_that_cannot_be_moved_is_filled_file_by_file(tmp_path, monkeypatch):
    def refuse(stage, target):
        raise OSError(18, "Invalid cross-device link")  # what overlay file systems say for a folder of a lower layer

    target = tmp_path / "folder"
    target.mkdir()
    (target / "a.txt").write_text("one")
    (target / "c.txt").write_text("kept")
    monkeypatch.setattr(checkpoints, "swap_in", refuse)
    with staged_folder(target) as folder:
        (folder / "a.txt").write_text("two")
    assert content(target) == {"a.txt": b"two", "c.txt": b"kept"} and strays(tmp_path) == []


def test_saving_into_a_staged_folder_is_part_of_it(tmp_path, model_class):
    target = tmp_path / "both"
    make(model_class, 1.0).save_pretrained(target)
    before = content(target)
    with pytest.raises(RuntimeError, match="after the model"):
        with staged_folder(target) as folder:
            make(model_class, 2.0).save_pretrained(folder)
            make(model_class, 2.0).save_pretrained(folder / "inner")
            assert {"config.json", "model.safetensors", "inner"} == {p.name for p in folder.iterdir()}
            raise RuntimeError("after the model")
    assert content(target) == before and strays(tmp_path) == []


def test_a_file_at_the_target_is_named(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(NotADirectoryError, match="model: expected a folder"):
        with staged_folder(tmp_path / "model"):
            raise AssertionError("not reached")


def test_writers_do_not_remove_each_others_work(tmp_path):
    """Two at once: both finish, the folder is of one of them, whole."""
    target, both = tmp_path / "folder", threading.Barrier(2)

    def write(who):
        for turn in range(20):
            with staged_folder(target) as folder:
                both.wait(10)
                for name in "abc":
                    (folder / name).write_text(f"{who}{turn}")

    threads = [threading.Thread(target=write, args=(who,)) for who in "xy"]
    [t.start() for t in threads]
    [t.join(30) for t in threads]
    assert len(set(content(target).values())) == 1 and content(target)["a"] in (b"x19", b"y19")
    assert strays(tmp_path) == []


def test_a_failed_rename_leaves_the_old_folder(tmp_path, monkeypatch):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    rename = os.rename

    def refuse(source, goal):
        if source == tmp_path / "new":
            raise OSError(5, "Input/output error")
        rename(source, goal)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        swap_in(tmp_path / "new", tmp_path / "old")
    assert content(tmp_path / "old") == {"a.txt": b"old"} and strays(tmp_path) == []


def test_swap_in_keeps_the_folder_mode(tmp_path):
    (tmp_path / "old").mkdir(mode=0o700)
    (tmp_path / "new").mkdir(mode=0o755)
    swap_in(tmp_path / "new", tmp_path / "old")
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o700


def test_an_auto_map_that_came_with_a_checkpoint_is_not_saved_without_its_code(tmp_path, model_class):
    model = make(model_class, 1.0)
    model.config.auto_map = {"AutoModel": "modeling_x.X"}
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "auto_map" not in config and config["projection_note"] == 1.0
