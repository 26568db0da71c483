"""Official adapter files -> an adapter on its CLIP, with every check that the file makes possible.

The files name neither the CLIP that they were trained on nor the classes. But they hold copies of what follows from both: token embeddings of the
training prompts (`token_prefix`, `token_suffix`), and often the frozen CLIP itself. Converters do not need these; here they are compared, because an
adapter on another CLIP, under other names or behind other words runs and is wrong.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from ..adapters.clip_adapter.convert import convert_clip_adapter
from ..adapters.cocoop.convert import convert_cocoop
from ..adapters.coop.convert import convert_coop
from ..adapters.ivlp.convert import convert_ivlp
from ..adapters.loading import put_adapter
from ..adapters.maple.convert import convert_maple
from ..adapters.tip_adapter.convert import convert_tip_adapter, labels_from_one_hot
from ..adapters.vpt.convert import convert_vpt
from ..modeling.clip_classifier.modeling_clip_classifier import CLIPClassifier
from ..modeling.dual_encoders.prompts import resolve_class_names
from .checkpoint_reader import read_contents
from .detect import shown


_ADAPTER_TENSOR = re.compile(
    r"(.*\.)?(ctx|meta_net\..+|proj\.(weight|bias)|compound_prompt\w*\..+|VPT(_shallow)?|fc\.[02]\.weight)"
)
_PROMPT_BUFFER = re.compile(r"(.*\.)?token_(prefix|suffix)")
# Parts of the frozen CLIP in files of whole models, and the official names of the same in CLIP's own files.
_CLIP_PARTS = {"image_encoder.": "visual.", "text_encoder.": "", "clip.": ""}
_WHOLE_MODELS = ("maple", "vpt", "ivlp")
# Official files are often float16: relative to the largest value of a tensor.
_SAME = 2e-3


@dataclass(frozen=True)
class ConvertedAdapter:
    """An adapter on its classifier, the names in the file that it does not need, and remarks for the user."""

    model: PeftModel
    classifier: CLIPClassifier
    dropped: list[str]
    notes: list[str] = field(default_factory=list)


def adapter_from_official(
    method: str, weights: Mapping[str, torch.Tensor], file: Path, options: Mapping[str, Any]
) -> ConvertedAdapter:
    """Puts the adapter in `weights` on the base that `options` name; `conversion.convert_checkpoint` describes the options.

    Raises:
        ValueError: no base, another base than the file's, class names or context words that are not those of the file's prompts, names or shapes that
            the method's files do not have.
        OSError: the base or a second file cannot be read.
    """
    classifier = _load_base(method, options)
    adapter_names = [name for name in weights if _ADAPTER_TENSOR.fullmatch(name) or not name]
    if method in _WHOLE_MODELS:
        _check_clip_inside(weights, adapter_names, classifier, file, str(options["base"]))
    words = _context_ids(classifier, options.get("context_init"))
    _check_prompts(method, weights, classifier, words, file, options)
    notes: list[str] = []
    if method == "tip_adapter":
        config, tensors = _tip_adapter(weights[""], file, classifier, options, notes)
    else:
        config, tensors = _converted(method, weights, classifier, words, options)
    base = str(options["base"])
    config.base_model_name_or_path = os.path.abspath(base) if Path(base).exists() else base
    config.inference_mode = True
    model = put_adapter(classifier, config, tensors)
    return ConvertedAdapter(model, classifier, [name for name in weights if name not in adapter_names], notes)


def _load_base(method: str, options: Mapping[str, Any]) -> CLIPClassifier:
    base = options.get("base")
    if base is None:
        raise ValueError(
            f"base: {method} is an adapter, and its file does not say which CLIP it was trained on; name that CLIP (--base, a folder or Hub id)"
        )
    names = options.get("class_names")
    names = None if names is None else resolve_class_names(names)
    classifier = CLIPClassifier.from_pretrained(
        base, class_names=names, templates=options.get("templates"), dtype=torch.float32
    )
    if classifier.family.model_type not in ("clip", "clipv-clip_resnet"):
        raise ValueError(
            f"base: {base} is of the family {classifier.family.model_type!r}; official adapter files belong to OpenAI's CLIP"
        )
    if method == "tip_adapter" and not classifier.config.templates:
        raise ValueError(
            "class_names: Tip-Adapter caches pictures of its classes; name them in label order (--classes), or give a classifier as base"
        )
    return classifier.eval().requires_grad_(False)


def _class_names(classifier: CLIPClassifier) -> list[str] | None:
    return list(classifier.class_names) if classifier.config.templates else None


def _converted(method, weights, classifier, words, options):
    if method == "coop":
        position = options.get("class_token_position") or "end"
        return convert_coop(weights, class_token_position=position, class_names=_class_names(classifier))
    if method in ("maple", "ivlp"):
        convert = convert_maple if method == "maple" else convert_ivlp
        return convert(weights, context_init_ids=words or None)
    if method == "clip_adapter":
        ratio = options.get("ratio")
        return convert_clip_adapter(weights, **({} if ratio is None else {"ratio": ratio}))
    return {"cocoop": convert_cocoop, "vpt": convert_vpt}[method](weights)


# ---- Tip-Adapter: one tensor a file


def values_file(file: Path, options: Mapping[str, Any]) -> Path:
    """`values_16shots.pt` beside `keys_16shots.pt` or `best_F_16shots.pt`, or what the user named."""
    if options.get("values") is not None:
        return Path(options["values"])
    for prefix in ("keys_", "best_F_"):
        beside = file.with_name("values_" + file.name.removeprefix(prefix))
        if file.name.startswith(prefix) and beside.is_file():
            return beside
    raise ValueError(
        f"values: no values_… file with the labels of {file.name} lies beside it; name it (--values caches/…/values_16shots.pt)"
    )


def _tip_adapter(
    keys: torch.Tensor, file: Path, classifier: CLIPClassifier, options: Mapping[str, Any], notes: list[str]
):
    path = values_file(file, options)
    values = read_contents(path).weights.get("")
    if values is None:
        raise ValueError(
            f"values: {path} holds named tensors, expected the single tensor that Tip-Adapter saves (N, C)"
        )
    num_classes, width = len(classifier.class_names), classifier.config.projection_dim
    rows = len(labels_from_one_hot(values, num_classes))
    # (D, N) in keys_*.pt, (N, D) in best_F_*.pt; the file name decides where both could be meant.
    trained = tuple(keys.shape) == (rows, width) and (rows != width or file.name.startswith("best_F"))
    if not trained and tuple(keys.shape) != (width, rows):
        raise ValueError(
            f"{file}: shape {list(keys.shape)}, expected {[width, rows]} (keys_*.pt) or {[rows, width]} (best_F_*.pt): features of {path.name}'s "
            f"{rows} pictures by the base's joint width"
        )
    if options.get("alpha") is None or options.get("beta") is None:
        notes.append(
            "alpha and beta are in no file: the official search prints them. Where not given, 1.0 and 5.5 are taken"
        )
    found = {name: float(options[name]) for name in ("alpha", "beta") if options.get(name) is not None}
    best = keys if trained else None
    keys = keys.t() if trained else keys
    return convert_tip_adapter(keys, values, best, num_classes=num_classes, **found)


# ---- what the file knows about base, names and words


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    one, other = one.float(), other.float()
    return bool((one - other).abs().max() <= _SAME * other.abs().max()) if one.numel() else True


def _check_clip_inside(weights, adapter_names, classifier: CLIPClassifier, file: Path, base: str) -> None:
    """The frozen CLIP in a file of a whole model is the base, and there is nothing else in it."""
    if classifier.family.model_type == "clip":
        from ..modeling.clip.convert_clip import to_official
    else:
        from ..modeling.clip_resnet.convert_clip_resnet import to_official
    of_base = to_official(classifier.clip.state_dict(), classifier.clip.config)
    unknown, different, compared = [], [], 0
    for name, tensor in weights.items():
        if name in adapter_names or _PROMPT_BUFFER.fullmatch(name):
            continue
        part = next((part for part in _CLIP_PARTS if name.startswith(part)), "")
        theirs = of_base.get(_CLIP_PARTS.get(part, "") + name.removeprefix(part))
        if theirs is None:
            unknown.append(name)
            continue
        compared += 1
        if not _same(tensor, theirs):
            different.append(name)
    if different:
        raise ValueError(f"base: {base} is not the CLIP in {file}: of {compared} weights differ {shown(different)}")
    if unknown:
        raise ValueError(f"{file}: unexpected names {shown(unknown)}")


def _context_ids(classifier: CLIPClassifier, words: str | None) -> list[int] | None:
    """Token ids of the words that a training began with; [] for `""` (random vectors), None where nothing was said."""
    if words is None or not words.replace("_", " ").strip():
        return None if words is None else []
    return list(classifier.tokenizer(words.replace("_", " ").strip(), add_special_tokens=False).input_ids)


def _check_prompts(method, weights, classifier: CLIPClassifier, words, file: Path, options: Mapping[str, Any]) -> None:
    """`token_prefix` and `token_suffix` are the base's embeddings of the start token, the words left over, the names and the end."""
    buffers = {name.rpartition(".")[2]: tensor for name, tensor in weights.items() if _PROMPT_BUFFER.fullmatch(name)}
    prefix, suffix = buffers.get("token_prefix"), buffers.get("token_suffix")
    if prefix is None or suffix is None or prefix.dim() != 3 or suffix.dim() != 3:
        return  # trained without, or taken out: nothing to compare with
    table = classifier.family.token_embedding_of(classifier.clip).weight
    if prefix.shape[-1] != table.shape[-1]:
        raise ValueError(
            f"base: {options['base']} has text width {table.shape[-1]}, the prompts in {file} have {prefix.shape[-1]}: another CLIP"
        )
    nearest = (table - prefix[0, 0].float()).abs().amax(dim=-1).argmin()
    if not _same(prefix[0, 0], table[nearest]):
        raise ValueError(
            f"base: {options['base']} is not the CLIP of {file}: it has no token with the embedding of token_prefix"
        )
    learned = _context_length(weights)
    rest = (words or [])[learned:]
    if rest and not _same(suffix[:, : len(rest)], table[rest].expand(len(suffix), -1, -1)):
        raise ValueError(
            f"context_init: {options['context_init']!r} is not what the prompts in {file} began with: other tokens stand behind the {learned} "
            "learned ones"
        )
    alike = len(suffix) > 1 and _same(suffix[:, 0], suffix[:1, 0].expand(len(suffix), -1))
    if method in ("maple", "ivlp") and words is None and alike:
        raise ValueError(
            f"context_init: in {file} all prompts go on with the same token behind the {learned} learned ones, so the training began with words; "
            "give them (--context-init 'a photo of a'). If all class names begin alike and it did not, give ''"
        )
    names = _class_names(classifier)
    if options.get("class_names") is None or names is None:
        return
    if len(names) != len(suffix):
        raise ValueError(f"class_names: {len(names)} names, {file} was trained on {len(suffix)} classes")
    for index, (name, tail) in enumerate(zip(names, classifier.tail_ids.tolist(), strict=True)):
        length = min(
            tail.index(classifier.padding_id) + 1 if classifier.padding_id in tail else len(tail),
            suffix.shape[1] - len(rest),
        )
        if not _same(suffix[index, len(rest) : len(rest) + length], table[tail[:length]]):
            raise ValueError(
                f"class_names: the {index + 1}. class is {name!r}, its prompt in {file} says something else; give the names in label order, as in "
                "training"
            )


def _context_length(weights: Mapping[str, torch.Tensor]) -> int:
    return next(tensor.shape[-2] for name, tensor in weights.items() if name.rpartition(".")[2] == "ctx")


__all__ = ["ConvertedAdapter", "adapter_from_official", "values_file"]
