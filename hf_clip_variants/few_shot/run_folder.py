"""`RunFolder`: what `adapt` leaves on disk. results.json is replaced as a whole after every cell, so that a killed run goes on from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files.json_files import write_json


VERSION = 1


def digest(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of a JSON-able value, whatever the order of its keys.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


class RunFolder:
    """RUN/ of one `adapt`: `results.json` and where everything else lies.

    Args:
        path: the folder; made if it does not exist.
        settings: what was asked for, JSON-able; the same folder with other settings is an error.
        contents: name -> hash of what the settings point to (model weights, pictures): changed contents are an error too.

    Raises:
        ValueError: the folder holds a run with other settings or contents (the message names them), or something that is no run.

    Example:

    ```python
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> run = RunFolder(folder, {"model": "x", "seeds": [1]}, {"data": "00"})
    >>> run.record({"method": "coop", "shots": 1, "seed": 1})
    >>> RunFolder(folder, {"model": "x", "seeds": [1]}, {"data": "00"}).finished_cell("coop", 1, 1)["seed"]
    1
    ```
    """

    def __init__(self, path: str | os.PathLike, settings: Mapping[str, Any], contents: Mapping[str, str]):
        self.path = Path(path).absolute()
        self.results_file = self.path / "results.json"
        settings = json.loads(json.dumps(settings))  # tuples are lists in the file
        fingerprint = ";".join(f"{name}={value}" for name, value in {"settings": digest(settings), **contents}.items())
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"out: {self.path} is a file; want a folder")
        self.results = self._read()
        if self.results is None:
            strangers = (
                sorted(p.name for p in self.path.iterdir() if not p.name.startswith(".")) if self.path.is_dir() else []
            )
            if strangers:
                shown = ", ".join(strangers[:5])
                raise ValueError(
                    f"out: {self.path} holds {shown} but no results.json; want a new folder or that of a run"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            self.results = {
                "version": VERSION, "status": "running", "settings": settings, "fingerprint": fingerprint, "environment": {},
                "model": {}, "data": {}, "zero_shot": None, "runs": [], "seconds": 0.0,
            }  # fmt: skip
            self.write()  # first of all: what is in the folder from now on belongs to this run
        else:
            self._check_same(settings, fingerprint)

    def _read(self) -> dict[str, Any] | None:
        try:
            results = json.loads(self.results_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise ValueError(
                f"out: {self.results_file} cannot be read ({error}); remove it or choose another folder"
            ) from error
        if results.get("version") != VERSION:
            raise ValueError(
                f"out: {self.results_file} has version {results.get('version')!r}, expected {VERSION}; choose another folder"
            )
        return results

    def _check_same(self, settings: dict[str, Any], fingerprint: str) -> None:
        before = self.results["settings"]
        differing = [
            f"{key} was {_short(before.get(key))}, now {_short(settings.get(key))}"
            for key in sorted({*before, *settings})
            if before.get(key) != settings.get(key)
        ]
        if not differing and fingerprint != self.results["fingerprint"]:
            then = dict(part.split("=", 1) for part in self.results["fingerprint"].split(";"))
            now = dict(part.split("=", 1) for part in fingerprint.split(";"))
            differing = [
                f"the contents of {key} changed" for key in sorted({*then, *now}) if then.get(key) != now.get(key)
            ]
        if differing:
            raise ValueError(
                f"out: {self.path} holds a run with other settings: {'; '.join(differing)}. "
                "Repeat the command as it was to go on with it, or choose another folder."
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time works in the folder; a killed one leaves no lock behind."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"out: another process is working in {self.path}") from None
        try:
            self._remove_leftovers()
            yield
        finally:
            lock.release()

    def _remove_leftovers(self) -> None:
        """What killed processes were writing: files and folders aside, that were to be renamed."""
        for pattern in (".tmp-*", ".new-*", ".features-*.tmp"):
            for path in [*self.path.glob(pattern), *self.path.glob(f"[!.]*/**/{pattern}")]:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    @property
    def base(self) -> Path:
        """The classifier that the adapters were trained on."""
        return self.path / "base"

    @staticmethod
    def adapter_folder(method: str, shots: int, seed: int) -> str:
        return f"adapters/{method}/{shots}-shot/seed-{seed}"

    @staticmethod
    def predictions_file(method: str | None = None, shots: int = 0, seed: int = 0) -> str:
        name = "zero_shot" if method is None else f"{method}_{shots}-shot_seed-{seed}"
        return f"predictions/{name}.safetensors"

    def finished_cell(self, method: str, shots: int, seed: int) -> dict[str, Any] | None:
        """The record of a cell that is done; None for one that is not, or that failed (and is tried again)."""
        for record in self.results["runs"]:
            if (record["method"], record["shots"], record["seed"]) == (method, shots, seed):
                return record if not record.get("error") else None
        return None

    def record(self, cell: Mapping[str, Any], order: Sequence[tuple[str, int, int]] = ()) -> None:
        """Put a cell's record in its place (`order`: all cells; new ones go last) and write results.json."""
        runs = {(r["method"], r["shots"], r["seed"]): r for r in self.results["runs"]}
        runs[cell["method"], cell["shots"], cell["seed"]] = dict(cell)
        self.results["runs"] = [runs.pop(key) for key in order if key in runs] + list(runs.values())
        self.write()

    def write(self) -> None:
        write_json(self.results_file, self.results)


def _short(value: Any, limit: int = 80) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"


__all__ = ["RunFolder", "digest", "write_json"]
