"""`draw` and `paint`, killed with SIGKILL and called again, leave the files of a run that was not, byte for byte."""

import contextlib
import os
from pathlib import Path

import pytest
from killing import run_and_kill
from painting_runs import tiny_vqgan
from tiny import tiny_clip, tiny_tokenizer

from hf_clip_variants import cli
from hf_clip_variants.synthesis import runs


LINES = {
    "draw": ("a cat ^ a dog", "--strokes", "4", "--mp4"),
    "paint": ("a cat ^ a dog", "--vqgan", "vqgan", "--cuts", "1", "--learning-rate", "2", "--size", "8"),
}


@pytest.mark.parametrize("command", LINES)
def test_a_killed_command_ends_with_the_same_files(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "SAVE_EVERY_SECONDS", 0.0)
    for name, part in (("guide", tiny_clip()), ("guide", tiny_tokenizer()), ("vqgan", tiny_vqgan())):
        part.save_pretrained(name)

    def call(out):
        line = [command, *LINES[command], "--guide", "guide", "--steps", "4", "--out", out]
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
            with pytest.raises(SystemExit) as end:
                cli.main(line)
        assert not end.value.code

    def files(out):
        return {path.name: path.read_bytes() for path in Path(out).iterdir() if not path.name.startswith("state.")}

    writes = run_and_kill(lambda: call("whole"), "whole", timeout=200)
    expected = files("whole")
    assert len(expected) >= 7
    for share, is_done in ((0.25, False), (0.5, True)):  # among the steps, and among the files of the result
        assert run_and_kill(lambda: call("killed"), "killed", round(share * writes), timeout=200) == -9
        assert Path("killed/state.safetensors").is_file() and not Path("killed/results.json").exists()
        assert Path("killed/a-cat-a-dog.png").exists() == is_done
    run_and_kill(lambda: call("killed"), "killed", timeout=200)
    found = files("killed")
    assert found.keys() == expected.keys()
    # The seconds that it took are in results.json.
    assert [name for name in expected if found[name] != expected[name]] in ([], ["results.json"])
