"""Programs in processes of their own that start at once: forks of a server that has imported the libraries, no more.

A new python takes 5 to 8 s of processor time to import torch and transformers, a fork 0.1 s. As in a new process, no
library has state; unlike a fork of the test process itself, which has run training and threads.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import time
from multiprocessing import forkserver
from pathlib import Path


SERVER = multiprocessing.get_context("forkserver")
# The server starts with the first process, also with a data loader's worker.
SERVER.set_forkserver_preload(["server_imports"])


def _run(program: str, arguments: list[str], environment: dict[str, str], log: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(Path(log).parent)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [program, *arguments]
    sys.path.insert(0, str(Path(program).parent))
    runpy.run_path(program, run_name="__main__")


def start_program(program, *arguments, log, **environment) -> multiprocessing.Process:
    """Like `python program arguments` with these variables, in the folder of the file `log`, where its output goes."""
    command = str(program), list(map(str, arguments))
    process = SERVER.Process(target=_run, args=(*command, {**os.environ, **environment}, str(log)))
    process.start()
    return process


def finish(processes: dict[Path, multiprocessing.Process], timeout: float = 240.0) -> None:
    """Waits for processes, by their logs. AssertionError with its log if one fails, after killing the others."""
    deadline = time.monotonic() + timeout
    while any(process.exitcode is None for process in processes.values()) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes.values()):
            break
        time.sleep(0.02)
    failed = [log for log, process in processes.items() if process.exitcode]
    late = [log for log, process in processes.items() if process.exitcode is None]
    for process in processes.values():
        process.kill()
        process.join()
    for log in failed or late:
        raise AssertionError(f"{log.name} {'failed' if failed else 'hung'}:\n{log.read_text()[-3000:]}")


def run_on_ranks(program, *arguments, world_size: int, folder: Path) -> None:
    """Like `torchrun --nproc-per-node world_size program arguments` on CPUs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    common |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    ranks = {}
    for rank in map(str, range(world_size)):
        log = folder / f"rank{rank}.log"
        ranks[log] = start_program(program, *arguments, log=log, **common, RANK=rank, LOCAL_RANK=rank)
    finish(ranks)


def server_seconds() -> float:
    """Processor time of the server and of its processes that have ended, which `RUSAGE_CHILDREN` does not have."""
    pid = forkserver._forkserver._forkserver_pid
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
