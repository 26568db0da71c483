"""Saving a folder all at once: whoever reads it, or kills the writer, finds the whole old content or the whole new one."""

import contextlib
import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
# safetensors and torch.save report a failed write as text: Rust's "(os error 28)" and PyTorch's zip writer.
_NO_SPACE_TEXT = re.compile(
    rf"os error ({'|'.join(map(str, sorted(_NO_SPACE)))})\b|No space left|File too large|Disk quota exceeded"
    r"|PytorchStreamWriter failed|inline_container|basic_ios::clear"
)
_STAGE = re.compile(r"\.tmp-.+-[0-9a-f]{12}")
_OPEN_STAGES: set[Path] = set()  # of this process
_AT_FDCWD = -100
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS


def no_space_error(error: BaseException, target: str | os.PathLike, bytes_needed: int | None) -> OSError | None:
    """The error to raise instead of `error` if that means a full disk (or quota, or file size limit): names the folder and the bytes needed."""
    seen = error
    while seen is not None:
        if getattr(seen, "errno", None) in _NO_SPACE or _NO_SPACE_TEXT.search(str(seen)):
            break
        seen = seen.__cause__ or seen.__context__
    else:
        return None
    parent = next(folder for folder in Path(target).absolute().parents if folder.is_dir())
    needed = f"{bytes_needed:,} bytes are needed" if bytes_needed else "more space is needed"
    message = (
        f"{target}: not saved, {needed} and {shutil.disk_usage(parent).free:,} are free; what was there is unchanged"
    )
    return OSError(getattr(seen, "errno", None) or errno.ENOSPC, f"{message} ({seen})")


def fsync_file(path: str | os.PathLike) -> None:
    """Forces a file, or a folder's list of names, to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def fsync_folder(folder: str | os.PathLike) -> None:
    """Forces every file below `folder`, and the folders themselves, to the disk: a power cut after this loses nothing."""
    for path, _, names in os.walk(folder):
        for name in names:
            fsync_file(os.path.join(path, name))
        fsync_file(path)


def _share_files(folder: Path) -> None:
    """safetensors makes files of mode 0600; gives all what `open` would have given under the process's umask."""
    probe = folder / f".mode-{secrets.token_hex(6)}"
    probe.touch()  # asking for the umask itself would mean to set it, for all threads
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o600:
            path.chmod(mode)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two folders in one step; False where the system cannot."""
    if sys.platform not in ("linux", "darwin"):
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        one, two = os.fsencode(first), os.fsencode(second)
        if sys.platform == "linux":
            return libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, two, _EXCHANGE) == 0
        return libc.renamex_np(one, two, _EXCHANGE) == 0
    except (AttributeError, OSError):
        return False


def _replace_files(stage: Path, target: Path, stale: list[Path]) -> None:
    """File by file: each is old or new as a whole, but the folder may be of both if the process dies here."""
    for path in sorted(stage.rglob("*")):
        goal = target / path.relative_to(stage)
        if path.is_dir():
            goal.mkdir(exist_ok=True)
        else:
            os.replace(path, goal)
    for path in stale:
        path.unlink(missing_ok=True)
    shutil.rmtree(stage)


def _must_stay(folder: Path) -> bool:
    """Whether the folder itself cannot be replaced: it is mounted, or this process works in it."""
    try:
        return folder.is_mount() or Path.cwd().is_relative_to(folder)
    except FileNotFoundError:  # the working folder was deleted
        return False


def _rename_to_new(stage: Path, target: Path) -> bool:
    if target.exists():
        return False
    try:
        os.rename(stage, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another saver was faster
            return False
        raise
    return True


def swap_in(stage: str | os.PathLike, target: str | os.PathLike) -> None:
    """Puts the finished folder `stage` in the place of `target` (which may exist) and removes what was there.

    Both must be on one file system. OSError if `target` cannot be moved.
    """
    stage, target = Path(stage), Path(target)
    fsync_folder(stage)
    if not _rename_to_new(stage, target):
        shutil.copymode(target, stage)
        if _exchange(stage, target):
            shutil.rmtree(stage, ignore_errors=True)  # another saver may remove it, too
        else:
            previous = target.with_name(f".{target.name}.previous")
            shutil.rmtree(previous, ignore_errors=True)
            os.rename(target, previous)
            os.rename(stage, target)
            shutil.rmtree(previous)
    fsync_file(target.parent)


def _lock(folder: Path, wait: bool = False) -> int | None:
    """An open handle that holds the folder's lock until it is closed or the process ends; None if somebody else holds it."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle


def _lock_target(target: Path) -> int | None:
    """Holds off other savers to the same folder. Each of them may replace it, hence the second look."""
    while fcntl is not None and target.is_dir():
        with contextlib.suppress(FileNotFoundError):
            handle = _lock(target, wait=True)
            if handle is None:  # a file system without locks
                return None
            if target.is_dir() and os.path.samestat(os.fstat(handle), target.stat()):
                return handle
            os.close(handle)
    return None


def _new_stage(parent: Path, name: str) -> tuple[Path, int | None]:
    """An empty folder that is locked; again if another saver took it for abandoned before the lock was on it."""
    while True:
        stage = parent / f".tmp-{name}-{secrets.token_hex(6)}"
        stage.mkdir()
        if fcntl is None:
            return stage, None
        with contextlib.suppress(FileNotFoundError):
            handle = _lock(stage)
            if handle is not None and stage.exists():
                return stage, handle
            if handle is not None:
                os.close(handle)


def _remove_abandoned(parent: Path, name: str) -> None:
    """Removes what killed processes left behind; a stage that is still being written is locked by its writer."""
    for path in [p for p in parent.iterdir() if p.name.startswith(f".tmp-{name}-") and _STAGE.fullmatch(p.name)]:
        with contextlib.suppress(OSError):
            handle = _lock(path)
            if handle is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(handle)


def _stale_files(target: Path, stage: Path, replaces: re.Pattern | None) -> list[Path]:
    """Files of `target` that what was staged makes wrong: shards of an older save, and strays of killed writers."""
    written = set(os.listdir(stage))
    if replaces is None or not any(replaces.fullmatch(name) for name in written):
        replaces = re.compile("(?!)")  # nothing
    return [
        path
        for path in target.iterdir()
        if path.is_file()
        and path.name not in written
        and (path.name.startswith(".tmp") or replaces.fullmatch(path.name))
    ]


def _keep_others(target: Path, stage: Path, stale: list[Path]) -> None:
    """Links the files of `target` that were not written anew into `stage`."""
    for path, folders, names in os.walk(target):
        inside = Path(path).relative_to(target)
        folders[:] = [name for name in folders if not _STAGE.fullmatch(name)]
        links = [name for name in folders if os.path.islink(os.path.join(path, name))]
        for name in set(folders) - set(links):
            (stage / inside / name).mkdir(exist_ok=True)
        for name in names + links:
            old, new = Path(path) / name, stage / inside / name
            if old in stale or os.path.lexists(new):
                continue
            try:
                os.link(old, new, follow_symlinks=False)
            except OSError:  # no links on this file system
                shutil.copy2(old, new, follow_symlinks=False)


@contextlib.contextmanager
def staged_folder(
    target: str | os.PathLike,
    *,
    bytes_needed: int | None = None,
    keep_others: bool = True,
    replaces: re.Pattern | None = None,
) -> Iterator[Path]:
    r"""Gives an empty folder beside `target` to write to; at the end it takes the place of `target` in one step.

    Killed at any moment, `target` is what it was before or what it should be after, never a mixture; the abandoned folder `.tmp-...` is
    removed by the next save. An exception leaves `target` untouched. Where a folder cannot be replaced (a mount point, the current working
    folder, a parent that is read-only) its files are replaced one by one.

    Args:
        target: the folder to save to; it and its parents are made if missing.
        bytes_needed: what will be written, for a check beforehand and for the message when the disk is full.
        keep_others: files of `target` that are not written anew stay.
        replaces: names of which, when one is written, the others are dropped from `target`: a model in one file or in shards.

    Raises:
        NotADirectoryError: `target` is a file.
        OSError: the disk is full; names `target` and the bytes needed.

    Example:

    ```python
    with staged_folder("my-model") as folder:
        (folder / "notes.txt").write_text("all or nothing")
    ```
    """
    target = Path(os.path.realpath(target))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target}: expected a folder to save to, got a file")
    if any(target.is_relative_to(stage) for stage in tuple(_OPEN_STAGES)):
        target.mkdir(parents=True, exist_ok=True)
        yield target  # part of a folder that is saved all at once
        return
    parent = target.parent
    handle = target_handle = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if bytes_needed and shutil.disk_usage(parent).free < bytes_needed:
            raise OSError(errno.ENOSPC, "checked before writing")
        movable = not target.exists() or (os.access(parent, os.W_OK) and not _must_stay(target))
        place = parent if os.access(parent, os.W_OK) and not target.is_mount() else target  # one file system
        _remove_abandoned(place, target.name)
        stage, handle = _new_stage(place, target.name)
    except OSError as error:
        raise no_space_error(error, target, bytes_needed) or error from None
    _OPEN_STAGES.add(stage)
    try:
        yield stage
        target_handle = _lock_target(target)
        _share_files(stage)
        stale = _stale_files(target, stage, replaces) if target.exists() and keep_others else []
        if target.exists() and keep_others and movable:
            _keep_others(target, stage, stale)
        if movable:
            try:
                swap_in(stage, target)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EBUSY):  # an image layer's folder, a mount elsewhere
                    raise
                movable = False
        if not movable:
            fsync_folder(stage)
            _replace_files(stage, target, stale)
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        full = no_space_error(error, target, bytes_needed) if isinstance(error, Exception) else None
        if full is not None:
            raise full from error
        raise
    finally:
        _OPEN_STAGES.discard(stage)
        for held in (handle, target_handle):
            if held is not None:
                os.close(held)


def _without_auto_map(path: Path) -> None:
    """Removes `auto_map`, at any depth, from a JSON file."""

    def clean(value):
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items() if key != "auto_map"}
        return value

    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if '"auto_map"' in text:
            path.write_text(json.dumps(clean(json.loads(text)), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_all_at_once(saved, save, save_directory, *args, push_to_hub: bool = False, **kwargs):
    """What `saved.save_pretrained(save_directory, ...)` does by `save`, the base class's method, but staged.

    For classes that override `save_pretrained`; `StagedSaving` does it for the others. A full disk raises OSError naming the folder and the bytes
    needed, and changes nothing.
    """
    if args or kwargs.get("distributed_checkpoint") or not kwargs.get("is_main_process", True):
        # Several processes write to one folder (or this one does not write): the caller stages it, if anybody.
        return save(save_directory, *args, push_to_hub=push_to_hub, **kwargs)
    upload = {
        name: kwargs.pop(name)
        for name in ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
        if name in kwargs
    }
    stem = ".".join(filter(None, ("model", kwargs.get("variant"))))
    weights = re.compile(rf"{re.escape(stem)}(-\d{{5}}-of-\d{{5}})?\.safetensors(\.index\.json)?")
    bytes_needed, is_model = None, hasattr(saved, "num_parameters")
    if is_model and not getattr(saved, "_hf_peft_config_loaded", False):
        bytes_needed = sum(t.nbytes for t in (kwargs.get("state_dict") or saved.state_dict()).values())
    with staged_folder(save_directory, bytes_needed=bytes_needed, replaces=weights) as stage:
        written = save(str(stage), **kwargs)
        if saved._auto_class is None:
            for name in ("config.json",) if is_model else ("processor_config.json", "preprocessor_config.json"):
                _without_auto_map(stage / name)
    if push_to_hub:
        upload.setdefault("repo_id", Path(save_directory).name)
        if kwargs.get("token") is not None:
            upload["token"] = kwargs["token"]
        saved.push_to_hub(**upload)
    if isinstance(written, (list, tuple)):  # a processor returns what it wrote
        return [os.path.join(save_directory, os.path.basename(path)) for path in written]
    return written


class StagedSaving:
    """Mixin before `PreTrainedModel`: `save_pretrained` and `push_to_hub` write all at once.

    Killed while saving over an existing folder, the old model still loads, unmixed. Saved from an installed package, `auto_map` entries that a
    checkpoint brought along are dropped: they would name files that are not saved with it.
    """

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As the base class's, by `save_all_at_once`."""
        return save_all_at_once(self, super().save_pretrained, save_directory, *args, **kwargs)


__all__ = [
    "StagedSaving",
    "fsync_file",
    "fsync_folder",
    "no_space_error",
    "save_all_at_once",
    "staged_folder",
    "swap_in",
]
