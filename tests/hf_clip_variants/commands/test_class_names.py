"""Class names given from outside: one rule for `--classes` and `--class-names` in every command."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from few_shot_runs import results_of

from hf_clip_variants import load_images


NAMES = ["hot dog", "salt, pepper", "taco", "burrito"]


@pytest.fixture
def numbered(tmp_path):
    """Two images of each of four classes, labelled 0 to 3 without names."""
    emoji = load_images("emoji:fluentflat,emojione")
    rows = [*range(4), *range(190, 194)]
    table = {"image": [emoji.encoded_bytes(row) for row in rows], "label": [row % 190 for row in rows]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "ints.parquet")
    return tmp_path / "ints.parquet"


@pytest.fixture(params=["list", "txt", "json", "id2label", "label2id"])
def names(request, tmp_path):
    """The four names in each form that is taken."""
    if request.param == "list":
        return 'hot dog, "salt, pepper", taco,burrito'
    file = tmp_path / f"{request.param}.{'txt' if request.param == 'txt' else 'json'}"
    by_label = dict(enumerate(NAMES))
    content = {"json": NAMES, "id2label": by_label, "label2id": {name: label for label, name in by_label.items()}}
    file.write_text("\n".join(NAMES) if request.param == "txt" else json.dumps(content[request.param]))
    return file


def test_predict_takes_classes_in_each_form(run, clip, names, tmp_path):
    load_images("emoji:fluentflat").image(0).save(tmp_path / "p.png")
    code, out, _ = run("predict", tmp_path / "p.png", "--model", clip, "--classes", names, "--top", 4, "--json")
    assert code == 0 and {row["label"] for row in json.loads(out)["top"]} == set(NAMES)


@pytest.mark.parametrize("option", ["--classes", "--class-names"])
def test_evaluate_names_integer_labels(run, clip, numbered, names, option):
    code, out, err = run("evaluate", "--model", clip, option, names, "--data", numbered, "--json")
    assert code == 0, err
    assert list(json.loads(out)["per_class"]) == NAMES and json.loads(out)["images"] == 8


def test_evaluate_chooses_among_more_classes_than_the_data_has(run, clip, numbered):
    named = ["--class-names", "a,b,c,d", "--classes", "x,d,c,b,a"]
    code, out, err = run("evaluate", "--model", clip, *named, "--data", numbered, "--json")
    assert code == 0 and list(json.loads(out)["per_class"].items())[0] == ("x", None), err


@pytest.mark.parametrize("names", ["id2label"], indirect=True)
def test_adapt_names_integer_labels_and_goes_on_with_them(run, clip, numbered, names, tmp_path):
    adapt = ["adapt", "--model", clip, "--data", numbered, "--methods", "tip_adapter", "--shots", 1, "--seeds", 1]
    adapt += ["--class-names", names, "--out", tmp_path / "run"]
    for _ in range(2):  # the second time, from the run folder
        code, _, err = run(*adapt)
        assert code == 0, err
    assert results_of(tmp_path / "run")["data"]["class_names"] == NAMES
    adapter = tmp_path / "run/adapters/tip_adapter/1-shot/seed-1"
    code, out, _ = run("evaluate", "--adapter", adapter, "--data", numbered)
    assert code == 0 and "of 8 images in 4 classes" in out, "the adapter's classes name the labels"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["predict", "p.png", "--model", "CLIP", "--classes"], "--classes"),
        (["evaluate", "--model", "CLIP", "--data", "DATA", "--classes"], "--classes"),
        (["evaluate", "--model", "CLIP", "--data", "DATA", "--class-names"], "--class-names"),
        (["adapt", "--data", "DATA", "--out", "OUT", "--class-names"], "--class-names"),
        (["linear-probe", "CLIP", "--train", "DATA", "--class-names"], "--class-names"),
        (["knn", "CLIP", "--train", "DATA", "--class-names"], "--class-names"),
        (["convert", "model.pth", "OUT", "--classes"], "--classes"),
    ],
)
def test_a_missing_file_of_names_is_no_class(run, clip, numbered, tmp_path, arguments, option):
    places = {"CLIP": clip, "DATA": numbered, "OUT": tmp_path / "out", "model.pth": tmp_path / "model.pth"}
    (tmp_path / "model.pth").write_bytes(b"anything")
    code, out, err = run(*(places.get(word, word) for word in arguments), "nowhere/names.txt")
    assert (code, out, err) == (1, "", f"Error: {option}: no such file: nowhere/names.txt\n")


@pytest.mark.parametrize("command", ["evaluate", "adapt"])
def test_integer_labels_without_names_are_refused_with_the_option_that_names_them(
    run, clip, numbered, command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # `adapt` goes on with a run that is in the folder where it starts
    code, out, err = run(command, "--model", clip, "--data", numbered)
    assert code == 1 and ("--class-names" in err or "--classes" in err) and err.count("\n") == 1
