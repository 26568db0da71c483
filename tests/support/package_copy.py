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
    package, own = folder / "hf_clip_variants", ("registry", "adapters", "modeling")
    package.mkdir(parents=True)
    _link(ROOT / "hf_clip_variants", package, but=own)
    for source in (ROOT / "hf_clip_variants" / "adapters", ROOT / "modeling"):
        (package / source.name).mkdir()
        _link(source, package / source.name)
    shutil.copytree(ROOT / "hf_clip_variants" / "registry", package / "registry")
    return package


def _link(source: Path, target: Path, but: tuple[str, ...] = ()) -> None:
    for entry in source.iterdir():
        if entry.name not in (*but, "__pycache__"):
            (target / entry.name).symlink_to(entry)


def _tables(package: Path) -> list[Path]:
    return [package / "registry" / "models.py", package / "registry" / "adapters.py"]


def rows_in(*tables: Path) -> dict[str, str]:
    """Method name -> the source of its row, for the rows in these files."""
    return {
        re.search(r'name="(\w+)"', row)[1]: row
        for table in tables
        for row in re.findall(r"^    Method\(\n.*?^    \),\n", table.read_text(encoding="utf-8"), re.S | re.M)
    }


def remove_method(package: Path, name: str) -> None:
    """Removes its folder and its row, nothing else."""
    (table,) = [table for table in _tables(package) if name in rows_in(table)]
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace(rows_in(table)[name], ""), encoding="utf-8")
    (folder,) = [f for kind in ("modeling", "adapters") if (f := package / kind / name).is_dir()]
    folder.unlink()  # a link


def add_row(package: Path, row: str) -> None:
    """Adds a row at the end of the table."""
    table = _tables(package)[-1]
    text = table.read_text(encoding="utf-8")
    last = list(rows_in(table).values())[-1]
    table.write_text(text.replace(last, last + row), encoding="utf-8")


def methods_built_on(package: Path, name: str) -> set[str]:
    """Methods whose folders import this one's, directly or through others, as AudioCLIP imports CLIP-ResNet."""
    rows, found = rows_in(*_tables(package)), set()
    for other in rows.keys() - {name}:
        for kind in ("modeling", "adapters"):
            files = (package / kind / other).glob("*.py")
            if any(re.search(rf"^\s*from \.\.{name}\b", file.read_text(encoding="utf-8"), re.M) for file in files):
                found |= {other} | methods_built_on(package, other)
    return found
