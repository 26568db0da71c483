"""Processes that torchrun started, for an evaluation of which each does a share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[bool]:
    """A process group of the processes that torchrun started, if it did; whether this is the first of them.

    Without torchrun, and where there is a group already, nothing changes.

    >>> with joined_ranks(torch.device("cpu")) as first:
    ...     first
    True
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if started:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield not dist.is_initialized() or dist.get_rank() == 0
    finally:
        if started:
            dist.destroy_process_group()


__all__ = ["joined_ranks"]
