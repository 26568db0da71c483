"""Videos read in worker threads while the caller computes: FFmpeg decodes outside of Python's lock."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def read_ahead(sources: Iterable, read: Callable[[Any], Any], workers: int | None = None) -> Iterator[Any]:
    """`read(source)` of each source, in their order; at most `workers` + 1 results are made before they are asked for.

    Args:
        sources: what `read` takes; an iterator is read no further than needed.
        read: for instance `functools.partial(read_video, sampling=...)`, or a processor.
        workers: threads; None: 4 or the processors there are; 0: none, each is read when it is asked for.

    Raises:
        what `read` raises, when that result is asked for.

    Example:

    ```python
    >>> from hf_clip_variants.modeling.video.read_ahead import read_ahead

    >>> list(read_ahead(["a", "b"], str.upper, workers=2))
    ['A', 'B']

    ```
    """
    if workers is None:
        workers = min(4, os.cpu_count() or 1)
    if workers < 0:
        raise ValueError(f"workers: {workers}, expected a number >= 0")
    if workers == 0:
        yield from map(read, sources)
        return
    pool, waiting = ThreadPoolExecutor(workers, thread_name_prefix="read_ahead"), deque()
    try:
        for source in sources:
            waiting.append(pool.submit(read, source))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


__all__ = ["read_ahead"]
