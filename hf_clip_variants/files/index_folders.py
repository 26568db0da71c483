"""What the folder of an index says of its model, for commands that have not loaded any library yet."""

import json
import os
from pathlib import Path


MANIFEST = "index.json"


def model_of_index(folder: str | os.PathLike) -> str | None:
    """Folder or Hub id of the model that made an index; None if there is no index, or one that cannot be read."""
    try:
        return json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))["model"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


__all__ = ["MANIFEST", "model_of_index"]
