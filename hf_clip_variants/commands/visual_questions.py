"""Tasks of `hf-clip-variants predict` for images with language: answers to a question, and captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answer_lines import best_cells, best_columns, best_of, rows_of, write_rows
from .arguments import check_out
from .output import prepare_libraries, use_all_cores
from .segmentation import file_name, png_of


if TYPE_CHECKING:
    from ..evaluation.visual_questions import AnsweredImage

QUESTIONS, CAPTIONS = "visual-question-answering", "captioning"
OUT = "answers"  # the folder that is written
_SHOWN = 5  # answers in a picture
_INK = (60, 60, 60)


def chosen_language_task(task: str | None, model: str | None, question: str | None) -> str | None:
    """The task that was asked for, or the one of a model in a folder; None for others."""
    if task in (QUESTIONS, CAPTIONS):
        return task
    if question is not None:
        if task is not None:
            raise ValueError(f"--question: got it for {task}; it is for {QUESTIONS}")
        return QUESTIONS
    if task is not None or model is None or not Path(model, "config.json").is_file():
        return None
    from ..evaluation.visual_questions import ANSWERS_CLASS, kind_of_questions

    found = kind_of_questions(model)
    return None if found is None else QUESTIONS if found == ANSWERS_CLASS else CAPTIONS


def answer_files(
    task: str,
    inputs: list[str] | Iterator[str],
    model: str | None,
    question: str | None,
    *,
    top: int,
    out: str | None,
    device: str | None,
    as_json: bool,
) -> tuple[int, int]:
    """Answers a question about images, or describes them, prints that and writes pictures: (images that are broken,
    images)."""
    what = "answers questions about images" if task == QUESTIONS else "writes captions"
    if model is None:
        raise ValueError(f"--model: missing; want a model that {what}: folder or Hub id")
    if task == QUESTIONS and (question is None or not question.strip()):
        raise ValueError(
            f"--question: {'missing' if question is None else 'blank'}; want the question about the images"
        )
    if task == CAPTIONS and question is not None:
        raise ValueError(f"--question: got it for {CAPTIONS}; it is for {QUESTIONS}")
    out = OUT if out is None else out
    check_out("--out", out)
    prepare_libraries(watched=not as_json)
    use_all_cores()
    from ..evaluation.prediction import find_images
    from ..evaluation.visual_questions import load_image_reader, read_images

    reader = load_image_reader(model, task == CAPTIONS, device)
    taken: set[str] = set()
    found = read_images(reader, find_images(inputs), question, max(top, _SHOWN))
    return write_rows(
        rows_of(found, lambda one: _saved(one, question, Path(out), taken, top)),
        ["path", "caption"] if task == CAPTIONS else ["path", *best_columns(top, "answer")],
        lambda row: row if task == CAPTIONS else {"path": row["path"]} | best_cells(row, "answer"),
        inputs,
        as_json=as_json,
        wanted="image files",
        note=f"{out} holds pictures/",
    )


def _saved(found: AnsweredImage, question: str | None, out: Path, taken: set[str], top: int) -> dict[str, Any]:
    """Writes the picture of one image with its answers or caption; returns its row."""
    from ..annotations.legend import Entry, with_legend
    from ..files.atomic_writes import write_atomically

    name = file_name(found.path, taken)
    entries = [Entry(_INK, answer, f"{100 * score:.1f} %", i) for i, (answer, score) in enumerate(found.answers)]
    if found.caption is not None:
        entries = [Entry(_INK, part, "", i) for i, part in enumerate(_in_lines(found.caption))]
    picture = with_legend(found.image, entries, question or Path(found.path).name)
    written = write_atomically(out / "pictures" / name, png_of(picture))
    row: dict[str, Any] = {"path": found.path}
    if found.caption is not None:
        return row | {"caption": found.caption, "picture": str(written)}
    return row | {"question": question, "picture": str(written)} | best_of(found.answers, top, "answer")


def _in_lines(text: str, longest: int = 30) -> list[str]:
    import textwrap

    return textwrap.wrap(text, longest) or ["(no words)"]


__all__ = ["CAPTIONS", "OUT", "QUESTIONS", "answer_files", "chosen_language_task"]
