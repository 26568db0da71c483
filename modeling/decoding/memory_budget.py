"""A limit on the memory of all images that are being decoded at once, over all threads of the process."""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator


class MemoryBudget:
    """So many bytes may be reserved at once; who asks for more waits, in the order of asking.

    Somebody who wants more than there is gets all of it, alone.
    """

    def __init__(self, size: int):
        self.size = size
        self._start()
        if hasattr(os, "register_at_fork"):  # a child has none of the threads that hold something
            os.register_at_fork(after_in_child=self._start)

    def _start(self) -> None:
        self.free = self.size
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextlib.contextmanager
    def reserve(self, wanted: int) -> Iterator[None]:
        """Inside, `wanted` bytes are taken. Not to be nested in one thread."""
        wanted, ticket = min(max(wanted, 0), self.size), object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is ticket and self.free >= wanted)
                self.free -= wanted
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self.free += wanted
                self._changed.notify_all()


DECODED_IMAGES = MemoryBudget(512 * 2**20)

__all__ = ["DECODED_IMAGES", "MemoryBudget"]
