"""`choose_device`: the device that a command, a pipeline or a benchmark runs on."""

from __future__ import annotations

import torch


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device called `device`; by default, a CUDA GPU if there is one, else the CPU.

    Args:
        device: as torch writes it (`"cpu"`, `"cuda:1"`, `"mps"`), or `"gpu"` for this machine's accelerator.

    Raises:
        ValueError: no such device here.

    Example:

    ```python
    >>> choose_device("cpu")
    device(type='cpu')
    ```
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = torch.accelerator.current_accelerator(check_available=True)
    if device == "gpu":
        if here is None:
            raise ValueError(f"device: got 'gpu', but torch {torch.__version__} finds no GPU here; want cpu")
        return here
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: got {device!r}; want cpu, gpu, cuda, cuda:1, mps or the like") from None
    if chosen.type in ("cpu", "meta"):
        return chosen
    found = torch.accelerator.device_count() if here is not None and here.type == chosen.type else 0
    if (chosen.index or 0) >= found:
        have = f"{found} of them" if found else "none"
        raise ValueError(
            f"device: got {str(device)!r}, but torch {torch.__version__} finds {have} here; want cpu"
            + (f" or {chosen.type}:0 to {chosen.type}:{found - 1}" if found else "")
        )
    return chosen


__all__ = ["choose_device"]
