"""`predict --task visual-question-answering` and `captioning`: answers, pictures, broken files, errors."""

import csv
import io
import json

import pytest
import torch
from clip_vil_runs import ANSWERS, clip_vil_model, clip_vil_processor, noise
from PIL import Image
from transformers import pipeline

from hf_clip_variants.evaluation.visual_questions import kind_of_questions


QUESTION = "what colour is the cat ?"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without --out, answers/ is written there


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models of each head, and images."""
    folder = tmp_path_factory.mktemp("answers")
    for head in ("vqa", "captioning", "entailment", "model"):
        torch.manual_seed(0)
        clip_vil_model(head).save_pretrained(folder / head)
        clip_vil_processor().save_pretrained(folder / head)
    (folder / "photos").mkdir()
    for number, size in enumerate([(90, 50), (40, 70), (64, 64)]):
        noise(*size, number).save(folder / "photos" / f"{number}.png")
    return folder


def test_kinds_follow_the_class_that_saved_a_model(folder):
    found = {head: kind_of_questions(folder / head) for head in ("vqa", "entailment", "captioning", "model")}
    answers, captions = "AutoModelForVisualQuestionAnswering", "AutoModelForImageTextToText"
    assert found == {"vqa": answers, "entailment": answers, "captioning": captions, "model": None}


def test_one_command_answers_and_writes_pictures(run, folder, tmp_path):
    out = tmp_path / "out"
    code, printed, err = run("predict", folder / "vqa", folder / "photos", "--question", QUESTION, "--out", out)
    assert code == 0 and f"{out} holds pictures/" in err, err
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert list(rows[0]) == ["path", "answer", "score", "error"] and len(rows) == 3
    pipe = pipeline("image-question-answering", str(folder / "vqa"))
    for row in rows:
        (best,) = pipe(row["path"], QUESTION, top_k=1)
        assert row["answer"] == best["answer"] and float(row["score"]) == pytest.approx(best["score"], abs=1e-4)
        picture = Image.open(out / "pictures" / row["path"].rpartition("/")[2])
        assert picture.width > Image.open(row["path"]).width
    code, printed, _ = run("predict", folder / "vqa", folder / "photos", "--question", QUESTION, "--json", "--top", 3)
    (row, *_) = [json.loads(line) for line in printed.splitlines()]
    assert code == 0 and len(row["top"]) == 3 and row["question"] == QUESTION and row["top"][0]["answer"] in ANSWERS


def test_captions_need_no_question_and_claims_have_scores_that_add_up(run, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed, err = run("predict", folder / "captioning", folder / "photos" / "0.png", "--json")
    row = json.loads(printed)
    assert code == 0 and isinstance(row["caption"], str) and row["picture"] == "answers/pictures/0.png", err
    options = ["--task", "visual-question-answering", "--question", "a cat", "--top", "9", "--json"]
    code, printed, err = run("predict", folder / "entailment", folder / "photos" / "0.png", *options)
    assert code == 0 and sum(one["score"] for one in json.loads(printed)["top"]) == pytest.approx(1, abs=1e-4), err


def test_files_that_cannot_be_read_are_told_in_their_line(run, folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    code, printed, err = run(
        "predict", folder / "vqa", tmp_path, "--question", QUESTION, "--json", "--out", tmp_path / "o"
    )
    rows = {row["path"].rpartition("/")[2]: row for row in map(json.loads, printed.splitlines())}
    assert code == 1 and "1 of 2 images could not be read" in err and "answer" in rows["one.png"]
    assert "error" in rows["broken.png"]


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("vqa", [], "--question: missing; want the question about the images"),
        ("vqa", ["--question", " "], "--question: blank"),
        ("vqa", ["--question", "a", "--labels", "cat"], "--labels: got it for visual-question-answering"),
        ("vqa", ["--question", "a", "--task", "detection"], "--question: got it for detection"),
        ("vqa", ["--task", "captioning"], "which writes no captions; want"),
        ("captioning", ["--task", "captioning", "--question", "a"], "--question: got it for captioning"),
        ("captioning", ["--question", "a"], "which answers no questions; want"),
        ("model", ["--question", "a"], "ClipViLModel, which answers no questions"),
    ],
)
def test_errors_are_sentences(run, folder, head, options, message):
    code, _, err = run("predict", folder / head, folder / "photos" / "0.png", *options)
    assert code == 1 and message in err, err
