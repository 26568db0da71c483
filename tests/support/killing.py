"""Kills a process at its n-th file operation, or simulates a full disk, for tests of saving."""

import contextlib
import os
import resource
import signal
import sys
import time
import traceback


_WRITES = {
    "os.rename",
    "os.link",
    "os.symlink",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.chmod",
    "os.truncate",
    "shutil.rmtree",
}


def _is_write(event: str, arguments: tuple, folder: str) -> bool:
    if event == "open":
        path, _, flags = arguments
        changes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        return changes and isinstance(path, (str, bytes)) and os.fsdecode(path).startswith(folder)
    return event in _WRITES and any(
        os.fspath(a).startswith(folder) for a in arguments[:2] if isinstance(a, (str, os.PathLike))
    )


def run_and_kill(
    action, folder, nth: int | None = None, timeout: float = 60.0, after: float | None = None, on_start=None
) -> int:
    """Runs `action()` in a forked child and SIGKILLs it right before its n-th write below `folder` (None: never), or
    `after` so many seconds. `on_start` is called with its process id.

    Returns -9 if the child was killed, else its number of writes. AssertionError if it failed for another reason.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        import torch

        torch.set_num_threads(1)  # the other threads of OpenMP do not exist after a fork
        count = 0

        def watch(event, arguments):
            nonlocal count
            if _is_write(event, arguments, str(folder)):
                count += 1
                if count == nth:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            action()
            os.write(writing, str(count).encode())
        except BaseException:
            os.write(writing, traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(0)
    os.close(writing)
    if on_start is not None:
        on_start(child)
    started = time.monotonic()
    deadline = time.monotonic() + timeout
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if after is not None and time.monotonic() > started + after:
            os.kill(child, signal.SIGKILL)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"the child hung for {timeout} s")
        time.sleep(0.005)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    if os.WIFSIGNALED(status):
        return -os.WTERMSIG(status)
    assert said.isdigit(), said
    return int(said)


@contextlib.contextmanager
def file_size_limit(size: int):
    """Within the context, files of this process cannot exceed `size` bytes: writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
