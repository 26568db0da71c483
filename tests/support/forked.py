"""A program in a process forked from this one, where a new interpreter is not the point: importing everything again takes 8 s."""

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path
from subprocess import CompletedProcess

import torch


class Forked:
    """Runs `action()` with its output in files of `folder`, which it works in; its exit code is what `action` returns or exits with."""

    def __init__(self, action, folder: Path, environment: dict[str, str] | None = None):
        self.folder, self.environment = folder, environment or {}
        folder.mkdir(parents=True, exist_ok=True)
        self.process = multiprocessing.get_context("fork").Process(target=self._run, args=(action,))
        self.process.start()

    def _run(self, action):
        torch.set_num_threads(1)  # OpenMP's other threads do not exist after a fork
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(self.environment)
        os.chdir(self.folder)
        with contextlib.ExitStack() as files:
            for number, name in ((1, "stdout"), (2, "stderr")):
                file = files.enter_context(open(f"{name}.txt", "w", encoding="utf-8"))
                os.dup2(file.fileno(), number)
                setattr(sys, name, file)
            try:
                code = action()
            except SystemExit as exit:
                code = exit.code
            except BaseException:
                traceback.print_exc()
                code = 1
        os._exit(code or 0)

    def finish(self, timeout: float = 250) -> CompletedProcess:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the child hung for {timeout} s")
        out, err = ((self.folder / f"{name}.txt").read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        return CompletedProcess([], self.process.exitcode, out, err)


def script(path: Path, arguments: list[str]):
    """What `python PATH ARGUMENTS` does, for `Forked`."""

    def action():
        sys.argv = [str(path), *arguments]
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name="__main__")

    return action
