"""Runs go on after a stop and after a kill; their pictures and pages hold what was drawn."""

import io
import json

import pytest
import torch
from drawing_runs import draw_model
from killing import run_and_kill
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import tiny_tokenizer

from hf_clip_variants.data.videos import read_frames
from hf_clip_variants.modeling.strokes.stroke_drawing import StrokeDrawing
from hf_clip_variants.synthesis.progress_pictures import animation, film, strip
from hf_clip_variants.synthesis.result_page import PageEntry, result_page
from hf_clip_variants.synthesis.runs import FRAMES, SynthesisRun
from hf_clip_variants.synthesis.saved_state import load_state, save_state


SETTINGS = {"prompt": "a cat", "steps": 12}


def finished(folder, steps=12, settings=None, callback=None):
    """Points of both drawings after the run."""
    model = draw_model()
    with model.frozen():
        loop = model.make_loop("a cat", tiny_tokenizer(), seeds=[0, 1], num_steps=steps)
        run = SynthesisRun(folder, loop, settings or SETTINGS, seconds=0)
        run.run(callback)
    return run, [sample.tensors["points"].detach().clone() for sample in loop.samples]


def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path):
    _, expected = finished(tmp_path / "whole")
    writes = run_and_kill(lambda: finished(tmp_path / "counted"), tmp_path / "counted")
    for nth in (2, writes // 2, writes - 1):
        folder = tmp_path / str(nth)
        assert run_and_kill(lambda folder=folder: finished(folder), folder, nth) == -9
        run, found = finished(folder)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert run.resumed_at > 0 or nth == 2
        assert [len(frames) for frames in run.frames] == [13, 13]


def test_a_run_stopped_by_ctrl_c_goes_on(tmp_path):
    _, expected = finished(tmp_path / "whole")

    def stop(run):
        if run.loop.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finished(tmp_path / "stopped", callback=stop)
    run, found = finished(tmp_path / "stopped")
    assert run.resumed_at == 5 and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    again, same = finished(tmp_path / "stopped")  # nothing is left to do
    assert again.resumed_at == 12 and torch.equal(same[1], expected[1])


def test_other_settings_and_broken_states_are_refused(tmp_path):
    finished(tmp_path, steps=2, settings={"steps": 2, "prompt": "a cat"})
    with pytest.raises(ValueError, match="another prompt \\(a cat; now a dog\\)"):
        finished(tmp_path, steps=2, settings={"steps": 2, "prompt": "a dog"})
    state = tmp_path / "state.safetensors"
    content = state.read_bytes()
    for place in (len(content) - 3, content.index(b"losses") + 1, content.index(b"tree") + 40):  # a bit each
        state.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(OSError, match="state.safetensors: "):
            finished(tmp_path, steps=2, settings={"steps": 2, "prompt": "a cat"})
    state.write_bytes(content[:100])
    with pytest.raises(OSError, match="not a valid safetensors file"):
        finished(tmp_path, steps=2)


def test_states_come_back_as_they_were(tmp_path):
    value = {"a": [torch.arange(3), 1.5, None, True], "b": {0: {"c": torch.tensor(2.0)}, "d": (1, "x")}}
    save_state(tmp_path / "s", value, {})
    found = load_state(tmp_path / "s", {})
    assert torch.equal(found["a"][0], value["a"][0]) and found["a"][1:] == [1.5, None, True]
    assert found["b"][0]["c"] == 2 and found["b"]["d"] == (1, "x")


@pytest.mark.parametrize("gone", ["tree", "settings", "sha256", "format"])
def test_a_state_without_a_part_of_its_description_is_refused(gone, tmp_path):
    save_state(tmp_path / "s", {"a": torch.arange(3)}, {})
    with safe_open(tmp_path / "s", "pt") as file:
        described = {name: value for name, value in file.metadata().items() if name != gone}
    save_file({"a": torch.arange(3)}, tmp_path / "s", metadata=described)
    with pytest.raises((OSError, ValueError), match=f"{tmp_path / 's'}: .*remove it to begin anew"):
        load_state(tmp_path / "s", {})


def test_frames_do_not_grow_with_the_steps(tmp_path):
    run, _ = finished(tmp_path, steps=60, settings={"steps": 60})
    assert max(len(frames) for frames in run.frames) <= FRAMES + 2
    steps = [frame["step"] for frame in run.frames[0]]
    assert steps[0] == 0 and steps[-1] == 60 and steps == sorted(set(steps))


def test_animation_and_strip_show_the_frames():
    frames = [Image.new("RGB", (20, 10), (40 * i, 0, 0)) for i in range(6)]
    film = Image.open(io.BytesIO(animation(frames)))
    assert film.n_frames == 6 and film.size == (20, 10)
    assert strip(frames, 3).size == (3 * 26 + 6, 22)
    with pytest.raises(ValueError, match="frames: none"):
        animation([])


def test_a_film_shows_the_frames_and_is_the_same_again(tmp_path):
    frames = [Image.new("RGB", (21, 10), (40 * i, 0, 0)) for i in range(6)]
    one, other = (film(tmp_path / f"{name}.mp4", frames).read_bytes() for name in "ab")
    assert one == other
    seen = list(read_frames(tmp_path / "a.mp4"))
    assert len(seen) == 7 and seen[0][1].size == (20, 10)  # the last one twice, so that it stays
    assert [round(time, 2) for time, _ in seen] == [0, 0.09, 0.18, 0.27, 0.36, 0.45, 1.95]
    assert all(abs(image.getpixel((5, 5))[0] - 40 * min(i, 5)) < 12 for i, (_, image) in enumerate(seen))
    with pytest.raises(ValueError, match="frames: none"):
        film(tmp_path / "c.mp4", [])
    assert not (tmp_path / "c.mp4").exists()


def test_a_page_escapes_what_users_wrote_and_holds_the_strokes():
    points = torch.rand(2, 4, 2) * 20
    drawing = StrokeDrawing(points, torch.ones(2), torch.rand(2, 4), torch.ones(2).long(), 20, 20)
    picture, caption = Image.new("RGB", (9, 9)), "</script><b>& {{data}}"
    entries = [
        PageEntry([drawing, drawing], caption, [("seed", "0")], picture, 'a"b.svg', True),
        PageEntry([picture] * 3, "{{title}}", file="a.png"),
    ]
    page = result_page("<i>title</i> {{cards}}", entries)
    assert page.count("{{data}}") == page.count("{{cards}}") // 2 == page.count("{{title}}") == 1
    assert ">SVG</a>" in page and ">PNG</a>" in page and page.count('max="1"') == page.count('max="2"') == 1
    assert "<b>&" not in page and "<i>title" not in page and "&lt;/script&gt;" in page
    data = page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    frames = json.loads(data)[0]["frames"]
    pictures = json.loads(data)[1]["pictures"]
    assert len(pictures) == 3 and all(one.startswith("data:image/jpeg;base64,") for one in pictures)
    assert len(frames) == 2 and len(frames[0]) == 2 and frames[0][0][0].startswith("M ")
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
