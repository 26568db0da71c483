"""A copy of the package's sources in which a test adds or removes a method."""

import re
import shutil
from pathlib import Path

from paths import ROOT


def copy_package(folder: Path) -> Path:
    """FOLDER/hf_clip_variants with `modeling` in it, as a wheel installs it; FOLDER first on the path gives the copy.
    Returns the package.

    Files of its own are only the table and the folders that hold methods; the rest are links, compiled already.
    """
    package, own = folder / "hf_clip_variants", ("registry.py", "adapters", "modeling")
    package.mkdir(parents=True)
    _link(ROOT / "hf_clip_variants", package, but=own)
    for source in (ROOT / "hf_clip_variants" / "adapters", ROOT / "modeling"):
        (package / source.name).mkdir()
        _link(source, package / source.name)
    shutil.copy(ROOT / "hf_clip_variants" / "registry.py", package)
    return package


def _link(source: Path, target: Path, but: tuple[str, ...] = ()) -> None:
    for entry in source.iterdir():
        if entry.name not in (*but, "__pycache__"):
            (target / entry.name).symlink_to(entry)


def rows_in(registry: str) -> dict[str, str]:
    """Method name -> the source of its row."""
    body = registry[registry.index("_METHODS = (") :]
    return {
        re.search(r'name="(\w+)"', row)[1]: row
        for row in re.findall(r"^    Method\(\n.*?^    \),\n", body, re.S | re.M)
    }


def remove_method(package: Path, name: str) -> None:
    """Removes its folder and its row, nothing else."""
    table = package / "registry.py"
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace(rows_in(text)[name], ""), encoding="utf-8")
    (folder,) = [f for kind in ("modeling", "adapters") if (f := package / kind / name).is_dir()]
    folder.unlink()  # a link


def add_row(package: Path, row: str) -> None:
    """Adds a row at the end of the table."""
    table = package / "registry.py"
    text = table.read_text(encoding="utf-8")
    last = list(rows_in(text).values())[-1]
    table.write_text(text.replace(last, last + row), encoding="utf-8")


def methods_built_on(package: Path, name: str) -> set[str]:
    """Methods whose folders import this one's, directly or through others, as AudioCLIP imports CLIP-ResNet."""
    rows, found = rows_in((package / "registry.py").read_text(encoding="utf-8")), set()
    for other in rows.keys() - {name}:
        for kind in ("modeling", "adapters"):
            files = (package / kind / other).glob("*.py")
            if any(re.search(rf"^\s*from \.\.{name}\b", file.read_text(encoding="utf-8"), re.M) for file in files):
                found |= {other} | methods_built_on(package, other)
    return found
