"""Tasks of `hf-clip-variants predict` for images with language: answers to a question, and captions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .arguments import check_out
from .output import machine_output, prepare_libraries, say, use_all_cores
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
    broken = done = 0
    stream = sys.stdout
    with machine_output(stream) as emit:
        write = emit if as_json else _csv_writer(stream, task, top)
        for found in read_images(reader, find_images(inputs), question, max(top, _SHOWN)):
            done += 1
            if found.error is not None:
                broken += 1
                say(f"{found.path}: {found.error}", style="red")
                write({"path": found.path, "error": found.error})
                continue
            write(_saved(found, question, Path(out), taken, top))
        if not done:
            where = ", ".join(inputs) if isinstance(inputs, list) else "standard input"
            raise ValueError(f"IMAGES: no image files in {where}")
        if done > broken:
            say(f"{out} holds pictures/")
    return broken, done


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
    best = [{"answer": answer, "score": round(score, 6)} for answer, score in found.answers[:top]]
    return row | {"question": question, **best[0], "picture": str(written)} | ({"top": best} if top > 1 else {})


def _in_lines(text: str, longest: int = 30) -> list[str]:
    import textwrap

    return textwrap.wrap(text, longest) or ["(no words)"]


def _csv_writer(stream: TextIO, task: str, top: int) -> Callable[[dict], None]:
    from ..data.csv_cells import csv_line

    more = [f"{name}_{place}" for place in range(2, top + 1) for name in ("answer", "score")]
    header = ["path", "caption"] if task == CAPTIONS else ["path", "answer", "score", *more]
    stream.write(csv_line([*header, "error"]))

    def write(row: dict) -> None:
        cells = {name: row.get(name, "") for name in ("path", "caption", "answer", "score", "error")}
        for place, one in enumerate(row.get("top", ())[1:], 2):
            cells |= {f"answer_{place}": one["answer"], f"score_{place}": one["score"]}
        stream.write(csv_line([cells.get(name, "") for name in (*header, "error")]))
        stream.flush()

    return write


__all__ = ["CAPTIONS", "OUT", "QUESTIONS", "answer_files", "chosen_language_task"]
