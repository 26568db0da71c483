"""Safe checkpoints: weights that are all there and fit their configuration, folders saved as a whole."""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.integrations import peft as peft_integration
from transformers.utils import check_peft_version

from .optional_modules import optional_module


try:
    import fcntl
except ImportError:  # Windows: no locks, and abandoned folders stay
    fcntl = None


# ---- loading: an error instead of random, damaged or infinite weights


_weight_files = optional_module(".weight_files", __package__)
_checks = optional_module(".configuration_checks", __package__)


# What a value that no check foresaw may end in.
_BROKEN = (AssertionError, AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError)
_BROKEN += (ZeroDivisionError,)


def _configuration_of_building(cls: type, error: BaseException) -> PreTrainedConfig | None:
    """The configuration from which a model was being built when the error came; None if it came from elsewhere."""
    if not isinstance(error, _BROKEN) or isinstance(error, ValueError):
        return None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        model, config = frame.f_locals.get("self"), frame.f_locals.get("config")
        if frame.f_code.co_name == "__init__" and isinstance(model, cls) and isinstance(config, PreTrainedConfig):
            return config
    return None


class CheckedLoading:
    """Mixin before `PreTrainedModel`: `from_pretrained` loads every weight or says what is wrong."""

    def initialize_weights(self):
        """As in transformers, but no scale of logits is left as it was in memory: `CLIPModel` leaves its own so, and
        a model above it is not asked where a file has the model's own tensors."""
        super().initialize_weights()
        for module in self.modules():
            scale = getattr(module, "logit_scale", None)
            value = getattr(getattr(module, "config", None), "logit_scale_init_value", None)
            if isinstance(scale, torch.Tensor) and value is not None:
                init.constant_(scale, value)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        output_loading_info: bool = False,
        check_finite: bool = False,
        **kwargs,
    ):
        """As in transformers, but missing weights are an error (transformers would leave random layers).

        With `output_loading_info=True` it is not: then the caller has the list. `check_finite` reads all weights and
        makes NaN or infinity an error that names the tensor.

        Raises:
            ValueError: weights are missing, or not finite, or have other sizes than the configuration.
            OSError: a file is damaged; the text names it.
        """
        source = pretrained_model_name_or_path
        folder = Path(str(source), kwargs.get("subfolder") or "")
        if _weight_files is not None and source is not None and not (kwargs.keys() & {"state_dict", "gguf_file"}):
            _weight_files.check_folder(folder, kwargs.get("variant"))
        try:
            model, info = super().from_pretrained(source, *model_args, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise OSError(f"{source}: not a valid safetensors file ({error}). Re-download the checkpoint") from error
        except Exception as error:
            if _checks is not None and (config := _configuration_of_building(cls, error)) is not None:
                cause = f"{type(error).__name__}: {error}"
                raise ValueError(
                    f"{source}: no {cls.__name__} can be built from its configuration ({cause})"
                    f"{_checks.unusual_fields(config.to_dict(), type(config))}"
                ) from error
            refused = type(error).__name__ == "UnpicklingError"  # by name: nothing here unpickles
            pickled = _weight_files is not None and _weight_files.is_pickled(folder)
            if not refused and (not pickled or isinstance(error, ValueError | OSError)):
                raise
            # Without the cause: its text advises to switch the protection off.
            advice = _weight_files.pickle_advice(folder) if pickled else "; want safetensors"
            raise OSError(f"{source}: cannot be loaded{advice}") from None
        missing = sorted(model._accept_missing(set(info["missing_keys"]))) if source is not None else []
        if missing and not output_loading_info:
            hint = _weight_files.fields_behind_layers(model.config, missing) if _weight_files is not None else ""
            raise ValueError(
                f"{source}: not a whole {cls.__name__} checkpoint, {len(missing)} weights are missing: {missing[:5]}"
                f"{hint}"
            )
        if check_finite:
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise ValueError(f"{source}: {name} has NaN or infinite values")
        return (model, info) if output_loading_info else model

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        """transformers' step between building the model on the meta device and filling it."""
        plain = not getattr(load_config, "ignore_mismatched_sizes", False) and _weight_files is not None
        if plain and state_dict is None and getattr(load_config, "hf_quantizer", None) is None:
            _weight_files.check_before_filling(model, checkpoint_files)
        loaded = PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, *args, **kwargs
        )
        for name, other, shape in sorted(getattr(loaded[0], "mismatched_keys", ())) if plain else ():
            raise _weight_files.misfit(model, name, tuple(shape), tuple(other), "the checkpoint")  # renamed ones
        return loaded

    def _accept_missing(self, missing: set[str]) -> set[str]:
        """Those without which the model is not whole. A class with parts that may be new overrides and initialises."""
        return missing

    def add_adapter(self, *args, **kwargs):
        """As in transformers, which from 5.24 on asks for a newer PEFT here than PEFT's own functions do."""
        try:
            check_peft_version(peft_integration.MIN_PEFT_VERSION)
        except ValueError as error:
            advice = (
                "Use peft.get_peft_model(model, config), and peft.PeftModel.from_pretrained(model, folder) to load"
            )
            raise ImportError(f"add_adapter: {error}. {advice}") from error
        return super().add_adapter(*args, **kwargs)


# ---- saving: a folder as a whole

_NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
# safetensors and torch.save report a failed write as text: Rust's "(os error 28)" and PyTorch's zip writer.
_NO_SPACE_TEXT = re.compile(
    rf"os error ({'|'.join(map(str, sorted(_NO_SPACE)))})\b|No space left|File too large|Disk quota exceeded"
    r"|PytorchStreamWriter failed|inline_container|basic_ios::clear"
)
_STAGE = re.compile(r"\.tmp-.+-[0-9a-f]{12}")
_OPEN_STAGES: set[Path] = set()  # of this process


def no_space_error(error: BaseException, target: str | os.PathLike, bytes_needed: int | None) -> OSError | None:
    """The error to raise instead of `error` if that means a full disk (or quota, or file size limit).

    Names the folder and the bytes needed.
    """
    seen = error
    while seen is not None:
        if getattr(seen, "errno", None) in _NO_SPACE or _NO_SPACE_TEXT.search(str(seen)):
            break
        seen = seen.__cause__ or seen.__context__
    else:
        return None
    parent = next(folder for folder in Path(target).absolute().parents if folder.is_dir())
    needed = f"{bytes_needed:,} bytes are needed" if bytes_needed else "more space is needed"
    free = shutil.disk_usage(parent).free
    message = f"{target}: not saved, {needed} and {free:,} are free; what was there is unchanged"
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
    """Forces all that is in `folder`, names included, to the disk: a power cut after this loses nothing."""
    for path in [*Path(folder).rglob("*"), folder]:
        fsync_file(path)


@contextlib.contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a folder, which the system takes back when the process ends; False if it cannot be had."""
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except OSError:  # somebody else has it, or a file system without locks
            held = False
        yield held
    finally:
        os.close(handle)


def _finish_interrupted(target: Path) -> None:
    """After a `swap_in` that was stopped half-way: puts the old folder back if there is none now, else removes it."""
    previous = target.with_name(f".{target.name}.previous")
    if previous.is_dir() and target.exists():
        shutil.rmtree(previous, ignore_errors=True)
    elif previous.is_dir():
        os.rename(previous, target)


def swap_in(stage: str | os.PathLike, target: str | os.PathLike) -> None:
    """Puts the finished folder `stage` in the place of `target` (which may exist) and removes what was there.

    Both must be on one file system. OSError, with `target` as it was, if it cannot be moved.
    """
    stage, target = Path(stage), Path(target)
    fsync_folder(stage)
    _finish_interrupted(target)
    try:
        if target.exists():
            shutil.copymode(target, stage)
            os.rename(target, target.with_name(f".{target.name}.previous"))
        os.rename(stage, target)
    finally:
        _finish_interrupted(target)
    fsync_file(target.parent)


def _replace_files(stage: Path, target: Path, stale: list[Path]) -> None:
    """File by file: each is old or new as a whole, but the folder may be of both if the process dies here."""
    fsync_folder(stage)
    for path in sorted(stage.rglob("*")):
        goal = target / path.relative_to(stage)
        goal.mkdir(exist_ok=True) if path.is_dir() else os.replace(path, goal)
    for path in stale:
        path.unlink(missing_ok=True)
    shutil.rmtree(stage)


def _must_stay(folder: Path) -> bool:
    """Whether the folder itself cannot be replaced: it is mounted, or this process works in it."""
    with contextlib.suppress(FileNotFoundError):  # the working folder was deleted
        return folder.is_mount() or Path.cwd().is_relative_to(folder)
    return False


def _new_stage(place: Path, name: str) -> Path:
    """An empty folder; those that killed processes left behind are removed, their writers hold no lock any more."""
    for path in [p for p in place.iterdir() if p.name.startswith(f".tmp-{name}-") and _STAGE.fullmatch(p.name)]:
        with contextlib.suppress(OSError), _locked(path, wait=False) as abandoned:
            if abandoned:
                shutil.rmtree(path, ignore_errors=True)
    stage = place / f".tmp-{name}-{secrets.token_hex(6)}"
    stage.mkdir()
    return stage


def _keep_others(target: Path, stage: Path, stale: list[Path]) -> None:
    """Links the files of `target` that were not written anew into `stage`."""
    for old in target.rglob("*"):
        new = stage / old.relative_to(target)
        if old.is_dir() and not old.is_symlink():
            new.mkdir(exist_ok=True)
        elif old not in stale and not os.path.lexists(new):
            try:
                os.link(old, new, follow_symlinks=False)
            except OSError:  # no links on this file system
                shutil.copy2(old, new, follow_symlinks=False)


def _put_in_place(stage: Path, target: Path, beside: bool, keep_others: bool, replaces: re.Pattern | None) -> None:
    for path in stage.rglob("*"):
        if path.is_file() and not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o600:
            path.chmod(0o666 & stage.stat().st_mode)  # safetensors lets nobody else read; folders follow the umask
    if beside:
        _finish_interrupted(target)
    stale: list[Path] = []
    if target.exists() and keep_others:
        # Made wrong by what is new: shards of an older save, and strays of killed writers.
        written = set(os.listdir(stage))
        drop = replaces if replaces and any(replaces.fullmatch(name) for name in written) else re.compile("(?!)")
        others = [path for path in target.iterdir() if path.is_file() and path.name not in written]
        stale = [path for path in others if path.name.startswith(".tmp") or drop.fullmatch(path.name)]
    if target.exists() and (not beside or _must_stay(target)):
        _replace_files(stage, target, stale)
        return
    if target.exists() and keep_others:
        _keep_others(target, stage, stale)
    try:
        swap_in(stage, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EBUSY):  # an image layer's folder, a mount elsewhere
            raise
        _replace_files(stage, target, stale)


@contextlib.contextmanager
def staged_folder(
    target: str | os.PathLike,
    *,
    bytes_needed: int | None = None,
    keep_others: bool = True,
    replaces: re.Pattern | None = None,
) -> Iterator[Path]:
    r"""Gives an empty folder beside `target` to write to; at the end it takes the place of `target`.

    What holds:

    - An exception leaves `target` untouched.
    - Killed at any moment, `target` is the whole old folder or the whole new one, never a mixture. It is replaced by
      two renames: the old folder to `.NAME.previous`, the new one to its place. Between the two, for some
      microseconds, there is none: killed just there, the old folder is whole under that name, and the next save puts
      it back first.
    - What was written is on the disk before the renames, so the same holds for a power cut.
    - Of several savers at once, each replaces the folder as a whole, one after the other.
    - Where a folder cannot be replaced (a mount point, the current working folder, a parent that is read-only) its
      files are replaced one by one: each is old or new, the folder may be of both after a kill.
    - Folders `.tmp-NAME-...` that killed savers left behind are removed by the next save.

    Args:
        target: the folder to save to; it and its parents are made if missing.
        bytes_needed: what will be written, for a check beforehand and for the message when the disk is full.
        keep_others: files of `target` that are not written anew stay.
        replaces: names of which, when one is written, the others are dropped: a model in one file or in shards.

    Raises:
        NotADirectoryError: `target` is a file. OSError: the disk is full; names `target` and the bytes needed.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target}: expected a folder to save to, got a file")
    if any(target.is_relative_to(stage) for stage in tuple(_OPEN_STAGES)):
        target.mkdir(parents=True, exist_ok=True)
        yield target  # part of a folder that is saved all at once
        return
    parent, stage = target.parent, None
    with contextlib.ExitStack() as open_locks:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if bytes_needed and shutil.disk_usage(parent).free < bytes_needed:
                raise OSError(errno.ENOSPC, "checked before writing")
            beside = os.access(parent, os.W_OK) and not target.is_mount()
            place = parent if beside else target  # on the file system of `target`
            with _locked(place):  # nobody takes the new stage for an abandoned one before it is locked
                stage = _new_stage(place, target.name)
                open_locks.enter_context(_locked(stage))
            _OPEN_STAGES.add(stage)
            yield stage
            with _locked(place):  # one saver at a time
                _put_in_place(stage, target, beside, keep_others, replaces)
        except BaseException as error:
            if stage is not None:
                shutil.rmtree(stage, ignore_errors=True)
            full = no_space_error(error, target, bytes_needed) if isinstance(error, Exception) else None
            if full is not None:
                raise full from error
            raise
        finally:
            _OPEN_STAGES.discard(stage)


def _without_auto_map(path: Path) -> None:
    """Removes `auto_map`, at any depth, from a JSON file."""
    if path.is_file() and '"auto_map"' in (text := path.read_text(encoding="utf-8")):
        values = json.loads(text, object_pairs_hook=lambda pairs: {k: v for k, v in pairs if k != "auto_map"})
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_all_at_once(saved, save, save_directory, *args, push_to_hub: bool = False, **kwargs):
    """What `saved.save_pretrained(save_directory, ...)` does by `save`, the base class's method, but staged.

    For classes that override `save_pretrained`; `StagedSaving` does it for the others. A full disk raises OSError
    naming the folder and the bytes needed, and changes nothing.
    """
    if args or kwargs.get("distributed_checkpoint") or not kwargs.get("is_main_process", True):
        # Several processes write to one folder (or this one does not write): the caller stages it, if anybody.
        return save(save_directory, *args, push_to_hub=push_to_hub, **kwargs)
    of_upload = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
    upload = {name: kwargs.pop(name) for name in of_upload if name in kwargs}
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
    """Mixin before `PreTrainedModel`: `save_pretrained` and `push_to_hub` write all at once (`staged_folder`).

    Saved from an installed package, `auto_map` entries that a checkpoint brought along are dropped: they would name
    files that are not saved with it.
    """

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As the base class's, by `save_all_at_once`."""
        return save_all_at_once(self, super().save_pretrained, save_directory, *args, **kwargs)


__all__ = ["CheckedLoading", "StagedSaving", "fsync_file", "fsync_folder", "no_space_error"]
__all__ += ["save_all_at_once", "staged_folder", "swap_in"]
