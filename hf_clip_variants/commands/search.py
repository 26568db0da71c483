"""`hf-clip-variants search`: pictures, moments of videos and sounds that are near a text, a picture or a sound."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .arguments import check_device, check_model, check_templates, words
from .options import FLAG, MODEL, RUNNING
from .output import machine_output, prepare_libraries, say, screen, title_and_rows, use_all_cores


_FORMS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".html": "html", ".htm": "html"}


def search(
    index: Annotated[str, typer.Argument(metavar="INDEX", help="What index wrote.", show_default=False)],
    query: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="What to look for, in words.", show_default=False)
    ] = None,
    image: Annotated[
        str | None, typer.Option(metavar="FILE", help="A picture to look for.", show_default=False)
    ] = None,
    sound: Annotated[str | None, typer.Option(metavar="FILE", help="A sound to look for.", show_default=False)] = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="How many files to show.")] = 20,
    kinds: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Of image, video, audio; with commas.", show_default="all"),
    ] = None,
    every_moment: Annotated[
        bool,
        typer.Option("--every-moment", help="Show all near moments of a file, instead of the nearest one.", **FLAG),
    ] = False,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Compare with all vectors, also where there is a FAISS index.", **FLAG),
    ] = False,
    templates: options.Templates = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Where the model of the index is now, if it has moved; another one is refused.",
            show_default="as the index names it",
            rich_help_panel=MODEL,
        ),
    ] = None,
    files: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the files are now, if they have moved.",
            show_default="where they were",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV with a header.", rich_help_panel=RUNNING, **FLAG)
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON lines only.", rich_help_panel=RUNNING, **FLAG)
    ] = False,
    html: Annotated[
        bool,
        typer.Option(
            "--html", help="Print a page with thumbnails that opens offline.", rich_help_panel=RUNNING, **FLAG
        ),
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write here instead of printing: .csv, .jsonl or .html.",
            show_default=False,
            rich_help_panel=RUNNING,
        ),
    ] = None,
    device: options.Device = None,
) -> None:
    """
    Find the pictures, moments of videos and sounds of an index that are nearest to a text, a picture or a sound.

    \b
    [bold]Example[/bold]
      hf-clip-variants search holiday-index "a red car"

    Scores are cosine similarities, compared with all vectors in bounded memory (or by FAISS, if the index was made
    with it). Of a text and a picture together, the mean is looked for. Many models answer better in the words that
    they were trained with: --templates 'a photo of a {}.'

    \b
    [bold]More examples[/bold]
      hf-clip-variants search holiday-index "a red car" --out cars.html
      hf-clip-variants search holiday-index --image beach.jpg --kinds video
      hf-clip-variants search films-index --sound rain.ogg --every-moment
    """
    form = _form(csv, json, html, out)
    if query is None and image is None and sound is None:
        raise ValueError("TEXT: missing; want a text, --image or --sound")
    for option, file in (("--image", image), ("--sound", sound)):
        if file is not None and "://" not in file and not Path(file).is_file():
            raise FileNotFoundError(f"{option}: no such file {file}")
    check_model("--model", model)
    check_templates(templates)
    check_device(device)
    if out is not None and Path(out).is_dir():
        raise IsADirectoryError(f"--out: {out} is a folder; want a file")
    prepare_libraries(watched=form == "table")
    use_all_cores()
    from ..search import results
    from ..search.index import open_index

    with machine_output() as emit:  # libraries print to standard error
        opened = open_index(index, model, device, files)
        hits = opened.search(
            query,
            image=image,
            sound=sound,
            top=top,
            kinds=None if kinds is None else words(kinds),
            every_moment=every_moment,
            templates=templates,
            exact=exact or None,
        )
        if opened.faiss is not None and not exact:
            say(f"By FAISS ({opened.faiss}), which may miss some; --exact compares with all {len(opened)} vectors.")
        if form == "json" and out is None:
            for row in results.rows(opened, hits):
                emit(row)
            return
    if form == "table":
        cells = [(_short(opened.location(hit)), hit.kind, results.moment(hit), f"{hit.score:.3f}") for hit in hits]
        screen().print(_table(query, image, sound, cells))
        return
    text = {"csv": _csv, "json": _json_lines, "html": _page}[form](opened, hits, query, image, sound)
    if out is None:
        sys.stdout.write(text)
        return
    from ..files.atomic_writes import write_atomically

    write_atomically(out, text)
    say(f"{out}: {len(hits)} found")


def _short(path: str) -> str:
    """A path below the working folder without it."""
    below = os.path.relpath(path) if os.path.isabs(path) else path
    return path if below.startswith(os.pardir) else below


def _form(csv: bool, json: bool, html: bool, out: str | None) -> str:
    chosen = [name for name, wanted in (("csv", csv), ("json", json), ("html", html)) if wanted]
    if len(chosen) > 1:
        raise ValueError(f"--{chosen[1]}: got it beside --{chosen[0]}; want one of them")
    if chosen:
        return chosen[0]
    if out is None:
        return "table"
    form = _FORMS.get(Path(out).suffix.lower())
    if form is None:
        raise ValueError(f"--out: {out} has no form; want .csv, .jsonl or .html, or one of --csv, --json, --html")
    return form


def _table(query, image, sound, cells):
    title = " + ".join(part for part in (query, image, sound) if part is not None)
    return title_and_rows(title, ("file", "kind", "time", "score"), cells)


def _csv(opened, hits, query, image, sound) -> str:
    from ..search.results import as_csv

    return as_csv(opened, hits)


def _json_lines(opened, hits, query, image, sound) -> str:
    from json import dumps

    from ..search.results import rows

    return "".join(dumps(row, ensure_ascii=False) + "\n" for row in rows(opened, hits))


def _page(opened, hits, query, image, sound) -> str:
    from ..search.results import as_page

    return as_page(opened, hits, query, image, sound)
