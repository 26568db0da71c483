"""`RunFolder`: what `adapt` and the protocols write to disk, so that a killed command can go on where it was."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files.json_files import digest, write_json


VERSION = 2  # of results.json
RUN_KEY = ("protocol", "data", "model", "method", "shots", "seed")  # the fields that name a run


def key_of(record: Mapping[str, Any]) -> tuple:
    """What names the run of a record: protocol, data, model, method, shots, seed."""
    return tuple(record[name] for name in RUN_KEY)


class RunFolder:
    """The folder of a few-shot command. Each process appends one line per run to runs-<rank>.jsonl and reads all
    files.

    A line is written in one piece and flushed to the disk. A killed process may leave half a line at the end of a
    file: it is not read, and is cut off before the next line is written. work/ holds features, locks and unfinished
        trainings;
    it may be deleted when nothing runs, and git ignores it.

    Args:
        path: the folder; made when something is written.
        rank (`int`), world_size (`int`): of this process among those that share the folder.

    Raises:
        ValueError: `path` is a file.

    Example:

    ```python
    >>> import tempfile
    >>> folder = RunFolder(tempfile.mkdtemp())
    >>> run = {"protocol": "few_shot", "data": "pets", "model": "clip", "method": "coop", "shots": 1, "seed": 1}
    >>> folder.append(run)
    >>> list(folder.records()) == [("few_shot", "pets", "clip", "coop", 1, 1)]
    True
    ```
    """

    def __init__(self, path: str | os.PathLike, rank: int = 0, world_size: int = 1):
        self.path, self.rank, self.world_size = Path(path).absolute(), rank, world_size
        self.lines = self.path / f"runs-{rank}.jsonl"
        self.results_file = self.path / "results.json"
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"out: {self.path} is a file; want a folder")

    @property
    def base(self) -> Path:
        """Folder of the classifier that the adapters were trained on."""
        return self.path / "base"

    @property
    def work(self) -> Path:
        folder = self.path / "work"
        if not (folder / ".gitignore").exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".gitignore").write_text("*\n", encoding="utf-8")
        return folder

    # ---- lines

    def records(self) -> dict[tuple, dict[str, Any]]:
        """Each run's key -> its newest record; a finished one is preferred to one that failed.

        ValueError for a line in the middle that is not JSON (file and number are named).
        """
        found: dict[tuple, dict[str, Any]] = {}
        for path in sorted(self.path.glob("runs-*.jsonl")):
            # the last is empty, or half a line
            for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise ValueError(
                        f"out: {path}, line {number} is not JSON ({error}); remove the line to have it redone"
                    ) from error
                key = key_of(record)
                if not record.get("error") or found.get(key, record).get("error"):
                    found[key] = record
        return found

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line. OSError when the disk is full; earlier lines stay.

        Writes behind the last whole line, and cuts the file back to it when that fails.
        """
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self.path.mkdir(parents=True, exist_ok=True)
        file = os.open(self.lines, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            end = _end_of_lines(file)
            os.ftruncate(file, end)
            try:
                if os.pwrite(file, line, end) < len(line):
                    raise OSError(f"{self.lines}: the disk is full")
                os.fsync(file)
            except BaseException:
                os.ftruncate(file, end)
                raise
        finally:
            os.close(file)

    # ---- results.json

    def open_results(self, settings: Mapping[str, Any], contents: Mapping[str, str]) -> dict[str, Any]:
        """The contents of results.json. Written before the first run, which ties the folder to the command.

        Args:
            settings: what was asked for, JSON-able.
            contents: name -> hash of what the settings point to (model weights, images).

        Raises:
            ValueError: the folder holds results with other settings or contents (named), or something that is not a
                run.
        """
        settings = json.loads(json.dumps(settings))  # tuples are lists in the file
        parts = {"settings": digest(settings), **contents}
        fingerprint = ";".join(f"{name}={value}" for name, value in parts.items())
        try:
            results = json.loads(self.results_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            self._check_empty()
            results = {"version": VERSION, "status": "running", "settings": settings, "fingerprint": fingerprint}
            results |= {"environment": {}, "model": {}, "data": {}, "zero_shot": None, "runs": [], "seconds": 0.0}
            write_json(self.results_file, results)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"out: {self.results_file} cannot be read ({error}); remove it or choose another folder"
            ) from error
        if results.get("version") != VERSION:
            found = f"has version {results.get('version')!r}, expected {VERSION}"
            raise ValueError(f"out: {self.results_file} {found}; choose another folder")
        then = dict(part.split("=", 1) for part in results["fingerprint"].split(";"))
        del then["settings"]
        self.check_same("a run", (results["settings"], then), (settings, contents))
        return results

    def _check_empty(self) -> None:
        found = sorted(p.name for p in self.path.iterdir() if p.name[0] != ".") if self.path.is_dir() else []
        if found:
            shown = ", ".join(found[:5])
            raise ValueError(f"out: {self.path} holds {shown} but no results.json; want a new folder or that of a run")

    def check_same(self, what: str, before: tuple[Mapping, Mapping], now: tuple[Mapping, Mapping]) -> None:
        """ValueError that names the settings, or else the contents, in which `before` and `now` differ."""
        differing = what_differs(before[0], now[0])
        if not differing:
            changed = [name for name in {**before[1], **now[1]} if before[1].get(name) != now[1].get(name)]
            differing = [f"the contents of {name} changed" for name in changed]
        if differing:
            raise ValueError(
                f"out: {self.path} holds {what} with other settings: {'; '.join(differing)}. "
                "Repeat the command as it was to go on with it, or choose another folder."
            )

    # ---- what others remove meanwhile

    def files_of(self, part: Path) -> dict[str, int]:
        """Path below the run folder -> size, of all files of one of its folders."""
        found = sorted(path for path in part.rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in found}

    def check_is_there(self, files: Mapping[str, int]) -> None:
        """OSError unless the files are still there: without `base/`, nothing that a run writes is of use."""
        gone = [name for name in files if not (self.path / name).is_file()]
        if gone or not files:
            what = f"{self.path / gone[0]} was" if gone else f"the files of {self.path} were"
            raise OSError(
                f"out: {what} removed while the command was running; repeat it, in another folder if {self.path} is "
                "gone"
            )

    def has(self, record: Mapping[str, Any] | None) -> bool:
        """Whether the files that a record names are there; a run that failed has none."""
        if record is None:
            return False
        named = [record.get("predictions"), record.get("folder") and f"{record['folder']}/adapter_model.safetensors"]
        return all((self.path / name).is_file() for name in named if name)

    # ---- one process at a time

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """At most one process per rank works in the folder. ValueError for a second; a killed one leaves no lock."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.work / f".runs-{self.rank}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"out: another process is working in {self.path}") from None
        try:
            if self.world_size == 1:  # otherwise another rank may be writing
                self._remove_leftovers()
            yield
        finally:
            lock.release()

    def _remove_leftovers(self) -> None:
        """Temporary files and folders of killed processes, which were to be renamed when complete."""
        for path in [*self.path.glob(".tmp-*"), *self.path.glob("[!.]*/**/.tmp-*")]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    # ---- names

    @staticmethod
    def adapter_folder(method: str, shots: int, seed: int) -> str:
        return f"adapters/{method}/{shots}-shot/seed-{seed}"

    @staticmethod
    def predictions_file(method: str, shots: int, seed: int) -> str:
        return (
            f"predictions/{method}_{shots}-shot_seed-{seed}.safetensors"
            if shots
            else f"predictions/{method}.safetensors"
        )


def _end_of_lines(file: int, block: int = 65536) -> int:
    """The offset behind the last newline."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - block)
        place = os.pread(file, end - start, start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0


def what_differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings in which two runs of one name differ, such as `["profile was null, now \\"tiny\\""]`."""

    def short(value: Any) -> str:
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 80 else text[:79] + "…"

    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name} was {short(before.get(name))}, now {short(now.get(name))}" for name in names]


__all__ = ["RUN_KEY", "RunFolder", "key_of", "what_differs"]
