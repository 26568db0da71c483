"""`hf-clip-variants push`: an adapter or a model on the Hub."""

import json as json_module
import re
from pathlib import Path
from typing import Annotated

import typer

from ..files.recommended_run import is_run_folder, recommended_adapter
from . import options
from .arguments import check_model
from .options import FLAG
from .output import JsonOption, machine_output, prepare_libraries


def push(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="What adapt wrote: its recommended adapter. Or a saved adapter (RUN/adapters/…) or classifier.",
        ),
    ],
    repo_id: Annotated[str, typer.Argument(metavar="REPOSITORY", help="owner/name. Made if it does not exist.")],
    with_base: Annotated[
        bool,
        typer.Option(
            "--with-base", help="Push the adapter's classifier, too: both load by one id, also in pipelines.", **FLAG
        ),
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="With --with-base: the CLIP under the adapter, if it has moved.",
            show_default="the one that the adapter names",
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Hub id of the CLIP that an adapter was trained on.",
            show_default="that of the run",
        ),
    ] = None,
    license: options.License = None,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.", **FLAG)] = False,
    revision: Annotated[str | None, typer.Option(metavar="NAME", help="Branch to push to.")] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of committing.", **FLAG)
    ] = False,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Commit message.")] = None,
    json: JsonOption = False,
) -> None:
    """
    Put an adapter or a model on the Hub, with a card that holds its measured results.

    \b
    [bold]Example[/bold]
      hf-clip-variants push run me/pets

    Where a run recommends zero-shot CLIP, nothing is pushed unless you name an adapter's folder or RUN/base.

    The token is that of `hf auth login` or HF_TOKEN. When the push fails, everything is still in the folder: repeat
    the command.

    \b
    [bold]More examples[/bold]
      hf-clip-variants push run/adapters/tip_adapter_f/16-shot/seed-1 me/pets \\
        --with-base --license mit
      hf-clip-variants push run/adapters/coop/4-shot/seed-1 me/pets-coop \\
        --base-model openai/clip-vit-base-patch32
      hf-clip-variants push run/base me/pets-zero-shot --private
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"FOLDER: no such folder {folder}; want a saved adapter or classifier")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"REPOSITORY: got {repo_id!r}; want owner/name")
    check_model("--base", base)
    if is_run_folder(folder):
        folder = str(recommended_adapter(folder))
    prepare_libraries(watched=not json)
    from ..hub import push as hub

    run = run_of(Path(folder))
    if with_base and run and base is None:
        base = run / "base"  # the run may have been moved since its adapters were saved
    if run and base_model is None and not with_base:
        base_model = hub_model_of(run)
    card = {} if license is None else {"license": license}
    try:
        with machine_output() as emit:
            commit = hub.push(
                folder,
                repo_id,
                with_base=with_base,
                base=base,
                base_model=base_model,
                private=private or None,
                revision=revision,
                create_pr=create_pr,
                commit_message=message,
                **card,
            )
            if json:
                emit(
                    {"repo_id": repo_id, "url": commit.commit_url, "commit": commit.oid, "pull_request": commit.pr_url}
                )
    except hub.PushError as error:
        raise ConnectionError(str(error)) from error
    if not json:
        typer.echo(commit.pr_url or commit.commit_url)


def hub_model_of(run: Path) -> str | None:
    """The Hub id of the CLIP that a run started from; None for a local folder, which others cannot load.

    Adapters store their classes and templates themselves, so the CLIP alone is enough.
    """
    model = json_module.loads((run / "results.json").read_text(encoding="utf-8"))["settings"]["model"]
    return None if Path(model).is_absolute() or Path(model).exists() else model


def run_of(folder: Path) -> Path | None:
    """The run folder that holds an adapter, or None."""
    return next((parent for parent in folder.absolute().parents if (parent / "results.json").is_file()), None)
