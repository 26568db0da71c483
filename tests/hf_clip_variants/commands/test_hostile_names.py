"""Names that terminals, markup, Markdown, Python or UTF-8 would take for something else."""

import ast
import json
import os
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_clip_variants import cli
from hf_clip_variants.commands import output
from hf_clip_variants.files.json_files import digest, write_json
from hf_clip_variants.files.printable import printable
from hf_clip_variants.hub.model_cards import _literal, model_card


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters()))
def test_what_is_printed_moves_no_cursor(text):
    shown = printable(text)
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", shown
    )
    shown.encode()
    assert printable(shown) == shown


@pytest.mark.parametrize("text", ["café 日本 🌭 👩‍👧 نص [b] :cat: $x$", "a\tb\nc"])
def test_usual_text_is_printed_as_it_is(text):
    assert printable(text) == text


def test_tables_and_remarks_hold_text_only(capsys):
    name = "[/b][red]\x1b[31m\u202eevil :cat:"
    output.say(f"{name} failed")
    output.screen().print(output.title_and_rows(name, (name, "b"), [(name, name)]))
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert "\x1b" not in text and "\u202e" not in text and "[/b][red]" in text and ":cat:" in text


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters()))
def test_code_in_cards_holds_text_on_one_line(text):
    code = _literal(text)
    assert ast.literal_eval(code) == text and code.isprintable() and code[0] == '"'


@pytest.mark.parametrize(
    "base", ['a/b"); import os; os.system("id")#', "a/b\n```\n<script>alert(1)</script>", "a/b\\", "x" * 300, "{a}/b"]
)
@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPClassifier"])
def test_a_foreign_base_model_is_text_in_the_cards_code(base, kind, tmp_path):
    config = {"peft_type": "CLIPV_COOP", "base_model_name_or_path": base, "class_names": ["a```b", "c\nd"]}
    config |= {"templates": ["{}"], "auto_mapping": {"base_model_class": kind}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    card = str(model_card(tmp_path))
    (code,) = re.findall("^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert not any(getattr(node.func, "attr", "") == "system" for node in calls)
    assert base in {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    assert not any(line.startswith(("<script", "```\n")) for line in card.splitlines())
    assert "base_model:" not in card


def test_json_and_digests_take_file_names_of_other_bytes(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    write_json(tmp_path / "a.json", {"path": name})
    assert json.loads((tmp_path / "a.json").read_text()) == {"path": name} and digest(name)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
@pytest.mark.parametrize("form", ["csv", "json"])
def test_predict_takes_file_names_of_other_bytes(form, clip, tmp_path, capsys):
    for name in (b"caf\xe9.png", b"=1.png", b"a\x1b[31m.png"):
        Image.new("RGB", (8, 8), "red").save(os.fsdecode(bytes(tmp_path) + b"/" + name))
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"broken")
    out = tmp_path / f"all.{form}"
    arguments = ["predict", str(tmp_path), "--model", str(clip), "--classes", "[/b],=b", "--format", form]
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--out", str(out)])
    captured = capsys.readouterr()
    assert ended.value.code == 1 and "\x1b[31m.png" not in captured.err and "1 of 4 images" in captured.err
    text = out.read_text(encoding="utf-8")
    if form == "json":
        paths = {os.path.basename(os.fsencode(json.loads(line)["path"])) for line in text.splitlines()}
        assert paths == {b"caf\xe9.png", b"=1.png", b"a\x1b[31m.png", b"\xff.png"}
    else:
        assert "caf\\udce9.png" in text and len(text.splitlines()) == 5


def test_adapt_in_the_folder_of_the_images_goes_on_after_a_kill(clip, tmp_path, monkeypatch, capsys):
    """The run folder is one of the folders there. Its name may be anything."""
    for name in ("[b]a", "=b", "$x$_^"):
        for number in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (80 * number, len(name) * 40, 0)).save(tmp_path / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    arguments = [
        "adapt",
        "--data",
        ".",
        "--model",
        str(clip),
        "--methods",
        "tip_adapter",
        "--shots",
        "1",
        "--seeds",
        "1",
    ]
    results = []
    for out in ("run", "run", "o[red]:cat:"):
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, "--out", out])
        assert not ended.value.code, capsys.readouterr().err
        results.append(json.loads((tmp_path / out / "results.json").read_text()))
    assert {tuple(each["data"]["class_names"]) for each in results} == {("$x$ ^", "=b", "[b]a")}
    assert results[0]["runs"] == results[1]["runs"]
    lines = (tmp_path / "run" / "predictions.csv").read_text().splitlines()
    assert any(",'=b,'=b," in line or ",'=b,$x$" in line or ",'=b," in line for line in lines)
    assert "o[red]:cat:/report.html" in capsys.readouterr().out
    for out, why in (
        (".", "want a new folder"),
        ("..", "want a new folder"),
        (os.fsdecode(b"r\xe9"), "not valid UTF-8"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, "--out", out])
        assert ended.value.code == 1 and why in capsys.readouterr().err
