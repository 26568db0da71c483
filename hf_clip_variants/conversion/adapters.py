"""Official adapter files -> an adapter on its CLIP, with every check that the file makes possible.

The files name neither the CLIP that they were trained on nor the classes. But they hold copies of what follows from
both: token embeddings of the training prompts (`token_prefix`, `token_suffix`), and often the frozen CLIP itself.
Converters do not need these; here they are compared, because an adapter on another CLIP, under other names or behind
other words runs and is wrong.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from ..adapters.checkpoint_format import AdapterFormat, OfficialAdapterFile
from ..adapters.loading import put_adapter
from ..modeling.clip_classifier.modeling_clip_classifier import CLIPClassifier
from ..modeling.dual_encoders.prompts import resolve_class_names
from ..modeling.loading_and_saving.checkpoint_format import ModelFormat, OfficialFile
from ..registry import checkpoint_entries
from .detect import load_format, shown


_PROMPT_BUFFER = re.compile(r"(.*\.)?token_(prefix|suffix)")
# Parts of the frozen CLIP in files of whole models, and the official names of the same in CLIP's own files.
_CLIP_PARTS = {"image_encoder.": "visual.", "text_encoder.": "", "clip.": ""}
# Official files are often float16: relative to the largest value of a tensor.
_SAME = 2e-3


@dataclass(frozen=True)
class ConvertedAdapter:
    """An adapter on its classifier, and the names in the file that it does not need."""

    model: PeftModel
    classifier: CLIPClassifier
    unused: list[str]


def adapter_from_official(method: str, format: AdapterFormat, file: OfficialFile) -> ConvertedAdapter:
    """Puts the adapter in `file` on the base that its options name; `conversion.convert_checkpoint` describes the
    options.

    Raises:
        ValueError: no base, another base than the file's, class names or context words that are not those of the
            file's prompts, names or shapes that the method's files do not have.
        OSError: the base or a second file cannot be read.
    """
    classifier, backbone = _load_base(method, file.options, format)
    context_ids = _context_ids(classifier, file.options.get("context_init"))
    official = OfficialAdapterFile(**vars(file), classifier=classifier, context_ids=context_ids)
    adapter_tensor = re.compile(rf"(.*\.)?({'|'.join(format.tensors)})")
    unused = [name for name in official.weights if not adapter_tensor.fullmatch(name)]
    if format.holds_clip:
        _check_clip_inside(official, unused, backbone)
    _check_prompts(official, format)
    config, tensors = format.convert(official)
    base = str(official.options["base"])
    config.base_model_name_or_path = os.path.abspath(base) if Path(base).exists() else base
    config.inference_mode = True
    return ConvertedAdapter(put_adapter(classifier, config, tensors), classifier, unused)


def _load_base(
    method: str, options: Mapping[str, Any], format: AdapterFormat
) -> tuple[CLIPClassifier, ModelFormat | None]:
    """The frozen CLIP as a classifier, and the format of its own official files; or another base, and None."""
    base = options.get("base")
    if base is None:
        raise ValueError(
            f"base: {method} is an adapter, and its file does not say which CLIP it was trained on; name that CLIP "
            "(--base, a folder or Hub id)"
        )
    names = options.get("class_names")
    names = None if names is None else resolve_class_names(names)
    if format.load_base is not None:
        if names is not None:
            raise ValueError(f"class_names: given, but {method} knows no classes; its base has them")
        return format.load_base(str(base)).eval().requires_grad_(False), None
    classifier = CLIPClassifier.from_pretrained(
        base, class_names=names, templates=options.get("templates"), dtype=torch.float32
    )
    formats = [load_format(name) for name, (row, _) in checkpoint_entries().items() if row.kind == "model"]
    backbone = next((f for f in formats if f.adapter_base == classifier.family.model_type), None)
    if backbone is None:
        raise ValueError(
            f"base: {base} is of the family {classifier.family.model_type!r}; official adapter files belong to "
            "OpenAI's CLIP"
        )
    return classifier.eval().requires_grad_(False), backbone


# ---- what the file knows about base, names and words


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    one, other = one.float(), other.float()
    return bool((one - other).abs().max() <= _SAME * other.abs().max()) if one.numel() else True


def _check_clip_inside(official: OfficialAdapterFile, unused: list[str], backbone: ModelFormat) -> None:
    """The frozen CLIP in a file of a whole model is the base, and there is nothing else in it."""
    file, base, clip = official.path, official.options["base"], official.classifier.clip
    of_base = backbone.to_official(clip.state_dict(), clip.config)
    unknown, different, compared = [], [], 0
    for name in unused:
        if _PROMPT_BUFFER.fullmatch(name):
            continue
        part = next((part for part in _CLIP_PARTS if name.startswith(part)), "")
        theirs = of_base.get(_CLIP_PARTS.get(part, "") + name.removeprefix(part))
        if theirs is None:
            unknown.append(name)
            continue
        compared += 1
        if not _same(official.weights[name], theirs):
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


def _check_prompts(official: OfficialAdapterFile, format: AdapterFormat) -> None:
    """`token_prefix` and `token_suffix` are the base's embeddings of the start token, the words left over,
    the names and the end.
    """
    weights, classifier, file, options = official.weights, official.classifier, official.path, official.options
    buffers = {name.rpartition(".")[2]: tensor for name, tensor in weights.items() if _PROMPT_BUFFER.fullmatch(name)}
    prefix, suffix = buffers.get("token_prefix"), buffers.get("token_suffix")
    if prefix is None or suffix is None or prefix.dim() != 3 or suffix.dim() != 3:
        return  # trained without, or taken out: nothing to compare with
    table = classifier.family.token_embedding_of(classifier.clip).weight
    if prefix.shape[-1] != table.shape[-1]:
        raise ValueError(
            f"base: {options['base']} has text width {table.shape[-1]}, the prompts in {file} have "
            f"{prefix.shape[-1]}: another CLIP"
        )
    nearest = (table - prefix[0, 0].float()).abs().amax(dim=-1).argmin()
    if not _same(prefix[0, 0], table[nearest]):
        raise ValueError(
            f"base: {options['base']} is not the CLIP of {file}: it has no token with the embedding of token_prefix"
        )
    learned = _context_length(weights)
    rest = (official.context_ids or [])[learned:]
    if rest and not _same(suffix[:, : len(rest)], table[rest].expand(len(suffix), -1, -1)):
        raise ValueError(
            f"context_init: {options['context_init']!r} is not what the prompts in {file} began with: other tokens "
            f"stand behind the {learned} learned ones"
        )
    alike = len(suffix) > 1 and _same(suffix[:, 0], suffix[:1, 0].expand(len(suffix), -1))
    if format.keeps_initial_words and official.context_ids is None and alike:
        raise ValueError(
            f"context_init: in {file} all prompts go on with the same token behind the {learned} learned ones, so the "
            "training began with words; give them (--context-init 'a photo of a'). If all class names begin alike "
            "and it did not, give ''"
        )
    names = official.class_names
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
                f"class_names: the {index + 1}. class is {name!r}, its prompt in {file} says something else; give the "
                "names in label order, as in training"
            )


def _context_length(weights: Mapping[str, torch.Tensor]) -> int:
    return next(tensor.shape[-2] for name, tensor in weights.items() if name.rpartition(".")[2] == "ctx")


__all__ = ["ConvertedAdapter", "adapter_from_official"]
