"""What the worker processes of a loader say when their program leaves."""

import sys
from types import TracebackType


# A worker hands tensors over in a thread (`multiprocessing.resource_sharer`), which sees the connection end.
LOST_CONNECTION = (EOFError, ConnectionError)


def say_nothing_of_lost_connections(worker_id: int = 0) -> None:
    """No tracebacks of them in this process, which is a worker: where its program goes on, that has an exception of
    its own. A `worker_init_fn` of a `DataLoader`, for workers that are not forked; those that are, inherit it from
    `commands/interruption.py`."""
    hook = sys.excepthook

    def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, LOST_CONNECTION):
            hook(kind, error, trace)

    sys.excepthook = print_traceback


__all__ = ["LOST_CONNECTION", "say_nothing_of_lost_connections"]
