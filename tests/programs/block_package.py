"""Importing this module makes the package impossible to import, as where it is not installed."""

import sys
from pathlib import Path


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hf_clip_variants", "modeling"):
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)


sys.meta_path.insert(0, Blocked())
sys.path = [entry for entry in sys.path if not (Path(entry or ".") / "hf_clip_variants").exists()]
