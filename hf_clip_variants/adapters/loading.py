"""Loads adapters. All checks run before the base model is changed."""

import importlib
import json
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from peft import PeftModel, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..registration.peft_methods import register_all
from ..registry import methods
from .tuner import TunerConfig, check_adapter_tensors, is_multi_label


_PEFT_PREFIX = "base_model.model."
_CONFIG_FILE, _WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "endpoint")


def _local_folder(path_or_id: str, subfolder: str | None, hub_arguments: dict) -> Path:
    folder = Path(path_or_id) / (subfolder or "")
    if folder.is_dir():
        for name in (_CONFIG_FILE, _WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise OSError(f"{folder / name}: not found; {folder} is not an adapter that save_pretrained wrote")
        return folder
    config_file, _ = (
        hf_hub_download(str(path_or_id), name, subfolder=subfolder, **hub_arguments)
        for name in (_CONFIG_FILE, _WEIGHTS_FILE)
    )
    return Path(config_file).parent


def _read_config(path: Path) -> tuple[TunerConfig, str | None]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        peft_type = values["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"{path}: not a valid adapter configuration ({type(error).__name__}: {error})") from error
    ours = {t: c for t, c in PEFT_TYPE_TO_CONFIG_MAPPING.items() if issubclass(c, TunerConfig)}
    if peft_type not in ours:
        known = ", ".join(t.value for t in ours)
        raise ValueError(
            f"peft_type: {path} has {peft_type!r}, this version of hf-clip-variants loads {known}; upgrade it, or use "
            "PeftModel.from_pretrained"
        )
    config = ours[peft_type].from_pretrained(str(path.parent))
    return config, (values.get("auto_mapping") or {}).get("base_model_class")


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise OSError(
            f"{path}: not a valid safetensors file ({error}). Re-download or save the adapter again"
        ) from error


def _class_called(name: str) -> type[nn.Module]:
    """The model class `name` of transformers or of the table of methods.

    Raises:
        ValueError: any other name, because `name` comes from a file, which must not decide what is imported.
    """
    import transformers

    ours = {export: module for row in methods("model") for export, module in row.exports.items()}
    module = importlib.import_module(ours[name]) if name in ours else transformers
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(
            f"base: the adapter was made on a {name!r}, which is not a model of transformers or hf_clip_variants; "
            "pass base=..."
        )
    return found


def _build_base(config: TunerConfig, base_class: str | None) -> nn.Module:
    name = config.base_model_name_or_path
    if not name:
        raise ValueError(
            "base: the adapter does not say what it was trained on (base_model_name_or_path is empty); pass base=..."
        )
    if base_class not in (None, "CLIPClassifier"):
        return _class_called(base_class).from_pretrained(name, revision=config.revision)
    from hf_clip_variants.modeling.clip_classifier.label_calibration import MULTI_LABEL
    from hf_clip_variants.modeling.clip_classifier.modeling_clip_classifier import CLIPClassifier

    options = {"class_names": config.class_names, "templates": config.templates} if config.class_names else {}
    if is_multi_label(config):
        options["problem_type"] = MULTI_LABEL
    return CLIPClassifier.from_pretrained(name, revision=config.revision, **options)


def load_adapter(
    path_or_id: str | Path,
    base: nn.Module | None = None,
    allow_other_backbone: bool = False,
    *,
    adapter_name: str = "default",
    is_trainable: bool = False,
    subfolder: str | None = None,
    **hub_arguments,
) -> PeftModel:
    """Loads a saved adapter from a folder or the Hub and puts it on a base model.

    It is stricter than `PeftModel.from_pretrained`: file, configuration, tensor names and shapes, backbone and classes
    are checked before `base` is changed. After an error `base` has the same weights as before.

    Args:
        path_or_id: the folder that `save_pretrained` wrote, or a Hub repository.
        base: the model that gets the adapter. Default: loaded as the adapter's configuration says (base model, class
            names, templates). If it is a `PeftModel` with adapters of the same method, it gets one more: pass another
            `adapter_name`, then call `set_adapter`.
        allow_other_backbone: load on a backbone with other weights than those that the adapter was trained with.
        adapter_name: name of the adapter in the model.
        is_trainable: prepare for further training instead of inference.
        subfolder: subfolder of the folder or repository.
        hub_arguments: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `endpoint`.

    Returns:
        The model, in evaluation mode unless `is_trainable`. The adapter's tensors are float32.

    Raises:
        OSError: a missing, truncated or damaged file; the text has its path.
        ValueError: an unknown PEFT type, a newer format, missing or unexpected tensors, another backbone or other
            classes.
        TypeError: unknown `hub_arguments`.

    Example:

    ```python
    model = load_adapter("me/pets-tip-adapter")
    model(pixel_values=pixel_values).logits
    ```
    """
    if unknown := sorted(set(hub_arguments) - set(_HUB_ARGUMENTS)):
        raise TypeError(f"load_adapter: unknown arguments {unknown}, expected {', '.join(_HUB_ARGUMENTS)}")
    # First all checks that need only the files, then those that need the base model (in `Tuner`), then the changes.
    register_all()
    folder = _local_folder(path_or_id, subfolder, hub_arguments)
    config, base_class = _read_config(folder / _CONFIG_FILE)
    tensors = _read_tensors(folder / _WEIGHTS_FILE)
    if config.target_modules is None or config.backbone_widths is None:
        raise OSError(f"{folder / _CONFIG_FILE}: target_modules or backbone_widths is missing")
    check_adapter_tensors(config, tensors, str(folder / _WEIGHTS_FILE))
    config.allow_other_backbone = allow_other_backbone
    config.inference_mode = not is_trainable
    if base is None:
        base = _build_base(config, base_class)
    return put_adapter(base, config, tensors, adapter_name)


def put_adapter(
    base: nn.Module, config: TunerConfig, tensors: dict[str, torch.Tensor], adapter_name: str = "default"
) -> PeftModel:
    """Puts an adapter that is already in memory on a base model. For one in a file use `load_adapter`.

    Args:
        base: a `CLIPClassifier`, a `CLIPModel` or its like, or a `PeftModel` on one. It is changed in place, as by
            `get_peft_model`, unless a check fails.
        config: configuration of the adapter.
        tensors: name -> tensor as in the adapter's file, for instance from a converter in `adapters/*/convert.py`.
        adapter_name: name of the adapter in the model.

    Raises:
        ValueError: tensors that `config` does not describe, or a base model that the adapter does not fit. `base` is
            then as before.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import CLIPClassifier, embedded_model
    >>> from hf_clip_variants.adapters import CoOpConfig, put_adapter

    >>> classifier = CLIPClassifier.from_pretrained(embedded_model(), class_names=["cat", "dog"])
    >>> context = torch.zeros(4, classifier.clip.config.text_config.hidden_size)
    >>> tensors = {"prompt_embedder.clipv_coop_context": context}
    >>> model = put_adapter(classifier, CoOpConfig(num_context_tokens=4), tensors)
    >>> model.peft_config["default"].class_names
    ['cat', 'dog']
    ```
    """
    if not isinstance(base, nn.Module):
        raise ValueError(f"base: got a {type(base).__name__}; want a model that is loaded, or None in load_adapter")
    trained = [p for p in base.parameters() if p.requires_grad]  # injecting an adapter freezes them
    wrapped = isinstance(base, PeftModel)
    # Both calls run the checks of `Tuner` before they wrap a module, so that an error in them needs no clean-up.
    if wrapped:
        model = base
        model.add_adapter(adapter_name, config)
    else:
        model = PeftModel(base, config, adapter_name)
    try:
        check_adapter_tensors(config, tensors)
        tensors = {_PEFT_PREFIX + name.removeprefix(_PEFT_PREFIX): tensor for name, tensor in tensors.items()}
        set_peft_model_state_dict(model, tensors, adapter_name=adapter_name)
    except Exception:
        # The modules are wrapped already: remove the adapter, and make the base model trainable again.
        model.delete_adapter(adapter_name) if wrapped else model.unload()
        for parameter in trained:
            parameter.requires_grad_(True)
        raise
    if wrapped and not config.inference_mode:
        model.set_requires_grad(adapter_name)  # PEFT does this only for the adapter that is active
    return model.eval() if config.inference_mode else model


__all__ = ["load_adapter", "put_adapter"]
