"""Ctrl-C and SIGTERM end a command alike: one sentence, a folder to go on from, the exit code of the signal."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

from ..data.workers import LOST_CONNECTION


_PATIENCE = 20.0  # seconds that cleaning up may take; files are sound without it
_received: list[int] = []  # the signal that ends this program


class Terminated(KeyboardInterrupt):
    """SIGTERM. What cleans up after Ctrl-C does after it, too."""


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Within the context, SIGTERM raises `Terminated` in the main thread, as Ctrl-C raises KeyboardInterrupt.

    The second signal ends the program at once. Signals that the caller ignores or handles stay as they are. Forked
    workers print no traceback when this program leaves in the middle of what it says to them.
    """
    _received.clear()
    before, timers, hook = {}, [], sys.excepthook
    if threading.current_thread() is threading.main_thread():
        for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(number) == default:
                before[number] = default

    own = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() != own:  # a worker that was forked, which its parent ends
            os.kill(os.getpid(), number)
            return
        _received.append(number)
        # Libraries swallow what is raised inside of their callbacks.
        timers.append(threading.Timer(_PATIENCE, _leave))
        timers[0].daemon = True
        timers[0].start()
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        # As `say_nothing_of_lost_connections` in a worker that was forked.
        if os.getpid() == own or not issubclass(kind, LOST_CONNECTION):
            hook(kind, error, trace)

    for number in before:
        signal.signal(number, interrupt)
    if before:
        sys.excepthook = print_traceback
    try:
        yield
    finally:
        if sys.excepthook is print_traceback:
            sys.excepthook = hook
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code() -> int:
    """128 + the signal, as a shell reports it; 130 for a KeyboardInterrupt that no signal has raised."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def _leave() -> None:
    sys.stderr.write("\nInterrupted.\n")
    sys.stderr.flush()
    os._exit(exit_code())


__all__ = ["Terminated", "exit_code", "listening"]
