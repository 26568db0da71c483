"""Pushes a classifier or an adapter to the Hub, with its card, in one commit. A push that fails loses nothing."""

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files.atomic_writes import staged_folder
from .model_cards import PLACEHOLDER_ID, card_arguments, describe, model_card


_ADAPTER_CONFIG = "adapter_config.json"
# Not pushed: states of trainings, pickles, files of other tools.
_NOT_PUSHED_FOLDERS = ("checkpoint-", "tmp-checkpoint-", "runs", "__pycache__")
_NOT_PUSHED_FILES = (".pt", ".pth", ".bin", ".pkl", ".ckpt", ".pyc", ".lock")
_DEFAULT_CARD = "[More Information Needed]"  # in the cards that PEFT and transformers write by default


class PushError(RuntimeError):
    """A push that failed. The text names the folder that holds everything and the command to try again.

    It never holds the token.
    """

    def __init__(self, message: str, folder: Path, repo_id: str):
        super().__init__(message)
        self.folder, self.repo_id = folder, repo_id


def push(
    folder_or_model: Any,
    repo_id: str,
    *,
    processor: Any = None,
    folder: str | Path | None = None,
    with_base: bool = False,
    base: Any = None,
    base_model: str | None = None,
    adapter_name: str = "default",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    **card: Any,
):
    """Pushes a classifier or an adapter with a card, in one commit. A failed push can be repeated from a folder.

    Args:
        folder_or_model: a saved classifier or adapter, or one in memory (`CLIPClassifier`, `PeftModel`).
        repo_id: `owner/name`; made if it does not exist.
        processor: saved with a model. Needed for a classifier that was not loaded from a checkpoint with one.
        folder: where a model is saved first. Default: a temporary folder, removed after success and kept after
            failure.
        with_base: for an adapter: put its classifier and processor into the same repository, so that
            `pipeline("image-classification", model=repo_id)` and
            `AutoModelForImageClassification.from_pretrained(repo_id)` work.
        base: with `with_base` and an adapter folder: the model or checkpoint that it belongs to, if its configuration
            does not say.
        base_model: Hub id of the base model. For an adapter that was trained on a local folder: the model that others
            load instead.
        adapter_name: which adapter of a `PeftModel`.
        private, token, revision, create_pr, commit_message: as in `huggingface_hub`.
        card: `license`, `results`, `recipe`, `tags`, ... of `model_card`; any of them replaces a README.md that is
            there.

    Returns `huggingface_hub.CommitInfo`.

    Raises:
        ValueError: not a model of this package, or a base model that is on this machine only; nothing was sent.
        PushError: the Hub refused (401, 403, 409, ...) or was not reached.

    Example:

    ```python
    push("runs/pets/adapters/tip_adapter", "me/pets-tip-adapter", with_base=True, license="mit")
    ```
    """
    told: dict[str, Any] = {}  # the arguments of the card that is there already
    if isinstance(folder_or_model, (str, Path)) and (Path(folder_or_model) / "README.md").is_file():
        told = card_arguments((Path(folder_or_model) / "README.md").read_text(encoding="utf-8"))
    flags = {
        "--base-model": base_model,
        "--license": card.get("license"),
        "--private": private,
        "--revision": revision,
    }
    if with_base and isinstance(folder_or_model, (str, Path)):
        from ..adapters.loading import load_adapter
        from ..evaluation.prediction import base_of_adapter

        if not (Path(folder_or_model) / _ADAPTER_CONFIG).is_file():
            raise ValueError(f"with_base: {folder_or_model} is not an adapter (no {_ADAPTER_CONFIG})")
        folder_or_model = load_adapter(folder_or_model, _load_base(base or base_of_adapter(folder_or_model)))
    temporary = None
    in_memory = not isinstance(folder_or_model, (str, Path))
    if in_memory:
        if folder is None:
            temporary = Path(tempfile.mkdtemp(prefix="hf-clip-variants-"))
        place = (temporary / repo_id.split("/")[-1]) if temporary else Path(folder).absolute()
        try:
            _save(folder_or_model, processor, place, adapter_name, with_base, repo_id)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True) if temporary else None
            raise
    else:
        place = Path(folder_or_model).absolute()
    changed = _changed_files(place, repo_id, base_model, told, card, rewrite=in_memory)
    options = {
        "revision": revision,
        "create_pr": create_pr,
        "commit_message": commit_message or f"Upload {place.name}",
    }
    try:
        commit = _upload(place, changed, repo_id, private, token, options, flags)
    except PushError:
        raise  # the folder stays: the error names it
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True) if temporary else None
        raise
    if temporary:
        shutil.rmtree(temporary, ignore_errors=True)
    return commit


def _changed_files(
    place: Path, repo_id: str, base_model: str | None, told: dict, card: dict, rewrite: bool
) -> dict[str, bytes]:
    """Files whose content on the Hub differs from the folder's: the adapter's configuration, and the card."""
    changed: dict[str, bytes] = {}
    readme, config = place / "README.md", place / "config.json"
    both = config.is_file() and (place / _ADAPTER_CONFIG).is_file()
    if (place / _ADAPTER_CONFIG).is_file():
        changed[_ADAPTER_CONFIG] = _shared_adapter_config(place, repo_id if both else base_model)
    text = readme.read_text(encoding="utf-8") if readme.is_file() else _DEFAULT_CARD
    if not (rewrite or card or base_model or _DEFAULT_CARD in text):
        return changed | {"README.md": text.replace(PLACEHOLDER_ID, repo_id).encode()}
    arguments = {**told, **card, "with_base": both, "repo_id": repo_id}
    arguments.setdefault("with_code", config.is_file() and "auto_map" in _read_json(config))
    changed["README.md"] = str(model_card(place, base_model=base_model, **arguments)).encode()
    if rewrite:
        readme.write_bytes(changed["README.md"])
    return changed


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _load_base(base: Any) -> Any:
    if not isinstance(base, (str, Path)):
        return base
    from ..modeling.clip_classifier.modeling_clip_classifier import CLIPClassifier

    return CLIPClassifier.from_pretrained(base)


def _save(model: Any, processor: Any, place: Path, adapter_name: str, with_base: bool, repo_id: str) -> None:
    """Saves what is to be pushed, all at once."""
    describe(model, adapter_name)  # raises for models of other packages before anything is written
    is_adapter = bool(getattr(model, "peft_config", None))
    if with_base and not is_adapter:
        raise ValueError(f"with_base: {type(model).__name__} has no adapter")
    with staged_folder(place, keep_others=False) as stage:
        if is_adapter:
            _save_adapter(model, stage, adapter_name)
        else:
            model.save_pretrained(stage)
        if with_base:
            base = model.get_base_model() if hasattr(model, "get_base_model") else model
            _save_without_adapters(base, stage)
        if with_base or not is_adapter:
            processor = processor if processor is not None else _processor_of(model)
            processor.save_pretrained(stage)


def _save_adapter(model: Any, stage: Path, adapter_name: str) -> None:
    if hasattr(model, "get_base_model"):
        model.save_pretrained(stage, selected_adapters=[adapter_name])
    else:  # transformers' add_adapter
        active = model.active_adapters()
        model.set_adapter(adapter_name)
        model.save_pretrained(stage)
        model.set_adapter(active)
    if adapter_name != "default" and (stage / adapter_name).is_dir():
        for path in (stage / adapter_name).iterdir():
            path.rename(stage / path.name)
        (stage / adapter_name).rmdir()


def _save_without_adapters(base: Any, stage: Path) -> None:
    """Saves the model without its adapters: their tensors are left out, wrapped modules get their own names back."""
    adapters = getattr(base, "_hf_peft_config_loaded", False)
    state = {}
    for name, tensor in base.state_dict().items():
        if any(part.startswith(("clipv_", "lora_", "modules_to_save")) for part in name.split(".")):
            continue
        state[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor
    try:
        base._hf_peft_config_loaded = False  # otherwise only adapters are saved
        base.save_pretrained(stage, state_dict=state)
    finally:
        base._hf_peft_config_loaded = adapters


def _processor_of(model: Any) -> Any:
    from transformers import AutoProcessor

    source = model.config._name_or_path
    try:
        return AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"processor: none given, and none found beside the model's checkpoint {source!r} ({error})"
        ) from None


def _shared_adapter_config(place: Path, base_model: str | None) -> bytes:
    """adapter_config.json with a base model that others can load, too."""
    values = _read_json(place / _ADAPTER_CONFIG)
    base_model = base_model or values.get("base_model_name_or_path")
    if not base_model or Path(base_model).exists():
        raise ValueError(
            f"base_model: the adapter was trained on {base_model or 'a model without a name'}, which only this "
            f"machine has; "
            "push both together with with_base=True (--with-base), or name the base on the Hub with "
            "base_model='owner/name' (--base-model)"
        )
    values["base_model_name_or_path"] = base_model
    return (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _files_to_push(place: Path) -> Iterator[Path]:
    for path in sorted(place.rglob("*")):
        inside = path.relative_to(place)
        left = any(part.startswith(".") for part in inside.parts)
        left |= any(part.startswith(_NOT_PUSHED_FOLDERS) for part in inside.parts[:-1])
        left |= path.suffix in _NOT_PUSHED_FILES or path.name == "trainer_state.json"
        if path.is_file() and not left:
            yield path


def _upload(
    place: Path, changed: dict, repo_id: str, private: bool | None, token: str | None, options: dict, flags: dict
):
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HFValidationError

    files = {path.relative_to(place).as_posix(): path for path in _files_to_push(place)} | changed
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if options["revision"] and not options["revision"].startswith("refs/pr/"):
            api.create_branch(repo_id, branch=options["revision"], exist_ok=True)
        return api.create_commit(repo_id, operations, **options)
    except HFValidationError as error:
        raise ValueError(f"repo_id: {error}") from None
    except Exception as error:
        if not _is_from_the_hub(error):
            raise
        reason = str(error).strip().split("\n")[0]
        for secret in filter(None, (token, get_token())):
            reason = reason.replace(secret, "***")
        status = getattr(getattr(error, "response", None), "status_code", None)
        status = f"HTTP {status}, " if status and str(status) not in reason else ""
        message = (
            f"push to {repo_id} failed: {status}{reason or type(error).__name__}{_advice(error)}\n"
            f"Nothing is lost, everything is in {place}. Try again with:\n"
            f"  {_command(place, repo_id, flags)}"
        )
        raise PushError(message, place, repo_id) from None  # the original's text could hold the token


def _is_from_the_hub(error: Exception) -> bool:
    return isinstance(error, OSError) or any(
        kind.__module__.split(".")[0].startswith("httpx") for kind in type(error).__mro__
    )


def _advice(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401 or type(error).__name__ == "LocalTokenNotFoundError":
        return " (log in with `hf auth login`, or set HF_TOKEN)"
    if status == 403:
        return " (the token may not write there: check the owner's name and the token's permissions)"
    if status in (409, 412):
        return " (somebody else changed the repository meanwhile)"
    return ""


def _command(place: Path, repo_id: str, flags: dict) -> str:
    words = ["hf-clip-variants", "push", str(place), repo_id]
    for name, value in flags.items():
        words += [] if not value else [name] if value is True else [name, str(value)]
    return shlex.join(words)


__all__ = ["PushError", "push"]
