"""Opens regular files and nothing else: reading a FIFO, a socket or a device may wait for ever or change it."""

import os
import stat
from typing import BinaryIO


_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular(path: str | os.PathLike) -> None:
    """OSError for what is there and no regular file, and for what is not there; nothing is opened."""
    _check_mode(os.stat(path).st_mode, path)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A regular file, open for reading bytes. OSError names the path and says what it is instead."""
    check_regular(path)
    # Another process may have put a FIFO in its place since: then this does not wait, and the second look sees it.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_mode(os.fstat(handle).st_mode, path)
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: str | os.PathLike) -> bytes:
    """The content of a regular file; see `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def _check_mode(mode: int, path: str | os.PathLike) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder, not a file")
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    raise OSError(f"{os.fspath(path)!r} is not a regular file but {kind}")


__all__ = ["check_regular", "open_regular", "read_regular"]
