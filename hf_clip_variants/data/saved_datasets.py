"""Folders that `datasets` saved, which may be damaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import datasets

FILES = ("dataset_dict.json", "state.json")


def is_saved_dataset(folder: str | os.PathLike) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any(Path(folder, name).is_file() for name in FILES)


def load_saved_dataset(folder: str | os.PathLike) -> datasets.Dataset | datasets.DatasetDict:
    """
    `datasets.load_from_disk`, with its tables checked: Arrow would read past the ends of damaged buffers, and the
    process would die.

    Raises:
        OSError: with the folder and what is wrong in it.

    Example:

    ```python
    >>> import tempfile
    >>> import datasets
    >>> from hf_clip_variants.data.saved_datasets import load_saved_dataset

    >>> folder = tempfile.mkdtemp()
    >>> datasets.Dataset.from_dict({"label": [0, 1]}).save_to_disk(folder)
    >>> load_saved_dataset(folder)["label"][:]
    [0, 1]

    ```
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(os.fspath(folder))
        for part in loaded.values() if isinstance(loaded, datasets.DatasetDict) else [loaded]:
            part.data.table.validate(full=True)
    except Exception as error:  # of damaged files, `datasets` raises anything
        said = str(error) or type(error).__name__
        raise OSError(f"{os.fspath(folder)}: a saved data set that cannot be read: it is damaged ({said})") from error
    return loaded


__all__ = ["is_saved_dataset", "load_saved_dataset"]
