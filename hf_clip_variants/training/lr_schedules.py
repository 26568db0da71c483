"""Schedules of the learning rate that transformers does not have, by name."""

import math
from collections.abc import Callable


def warmup_cosine(
    step: int, *, peak: float, num_steps: int, warmup_steps: int, start: float = 1e-6, end: float = 1e-5
) -> float:
    """Learning rate at `step` (from 0), as a share of `peak`: SLIP's schedule, for
    `torch.optim.lr_scheduler.LambdaLR`.

    From `start` at step 0 linearly to `peak` at step `warmup_steps - 1`, again `peak` one step later, then along a
    cosine that would reach `end` at step `num_steps`. transformers' cosine schedules warm up from 0, or step down a
    step earlier.

    Args:
        peak: the optimiser's learning rate. num_steps: steps of the optimiser, warm-up included.

    Raises:
        ValueError: fewer steps than the warm-up has, or a negative rate.

    Example:

    ```python
    >>> from functools import partial
    >>> import torch
    >>> from hf_clip_variants.training.lr_schedules import warmup_cosine

    >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=3e-3)
    >>> schedule = partial(warmup_cosine, peak=3e-3, num_steps=100, warmup_steps=10)
    >>> scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)  # Trainer(optimizers=(…, …))
    >>> [f"{3e-3 * schedule(step):.1e}" for step in (0, 9, 10, 55, 99)]
    ['1.0e-06', '3.0e-03', '3.0e-03', '1.5e-03', '1.1e-05']
    ```
    """
    if not 0 <= warmup_steps <= num_steps or num_steps < 1:
        raise ValueError(
            f"num_steps, warmup_steps: got {num_steps} and {warmup_steps}, expected 0 <= warmup_steps <= num_steps"
        )
    if not (peak > 0 and start >= 0 and end >= 0):
        raise ValueError(
            f"peak, start, end: got {peak}, {start} and {end}, expected peak > 0, start >= 0 and end >= 0"
        )
    if step < warmup_steps:
        rate = start + (peak - start) * step / max(1, warmup_steps - 1)
    else:
        done = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
        rate = end + (peak - end) * (1 + math.cos(math.pi * done)) / 2
    return rate / peak


# Name -> function like `warmup_cosine`; "cosine" is transformers' own.
SCHEDULES: dict[str, Callable[..., float] | None] = {"cosine": None, "slip": warmup_cosine}

__all__ = ["SCHEDULES", "warmup_cosine"]
