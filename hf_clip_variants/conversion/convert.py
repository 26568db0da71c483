"""`convert_checkpoint`: an official file becomes a folder that `from_pretrained` (or, for an adapter, `load_adapter`)
loads.

Files are read by `checkpoint_reader` alone: tensors, no code. What is special about a method's files is declared in
its folder; the table of methods points there. The folder is written aside and put in its place at the end, so that an
error, a full disk or Ctrl-C leaves what was there. `conversion.json` in it says what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import BaseVideoProcessor, FeatureExtractionMixin, PreTrainedModel

from ..files.atomic_writes import staged_folder
from ..modeling.loading_and_saving.checkpoint_format import ModelFormat, OfficialFile
from ..registry import Method, methods
from .checkpoint_reader import printable, read_contents
from .compare import (
    check_expected,
    check_reloaded,
    check_weights,
    compute_outputs,
    example_inputs,
    read_expected,
)
from .detect import detect_method, load_format
from .options import check_format, check_official, check_options, offered_options


RECORD = "conversion.json"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_NO_TOKENIZER = "none"
# What a saved model consists of: all of it goes when something else takes its place.
_MODEL_FILES = re.compile(
    r"(adapter_)?config\.json|(adapter_|pytorch_)?model[\w.-]*\.(safetensors|bin)(\.index\.json)?"
    r"|(pre)?processor_config\.json|README\.md|tokenizer[\w.]*\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(json|txt)|merges\.txt|generation_config\.json|conversion\.json"
)


@dataclass(frozen=True)
class Conversion:
    """What `convert_checkpoint` did.

    Attributes:
        method: whose checkpoint it was; `folder`: what was written; `kind`: the class, or the adapter's type.
        sources: SHA-256 of each file that was read.
        sizes: everything that was inferred.
        parameters, dtype: of what was written.
        dropped: names in the file that are not needed.
        notes: what the file could not say, and what was assumed.
        difference: with `compare`: the largest absolute difference between outputs before and after saving.
        expected_differences: with `expected`: the same for each expected output.
    """

    method: str
    folder: str
    kind: str
    sources: dict[str, str]
    sizes: dict[str, Any]
    parameters: int
    dtype: str
    dropped: list[str]
    notes: list[str] = field(default_factory=list)
    difference: float | None = None
    expected_differences: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def convert_checkpoint(
    file: str | Path,
    out: str | Path,
    method: str | None = None,
    *,
    compare: bool = False,
    expected: str | Path | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Conversion:
    """Converts an official checkpoint, of a model or an adapter; the rows of the table of methods name the formats.

    Sizes follow from the shapes, and names must fit exactly. Nothing in the file is run.

    Args:
        file: `.pt`, `.pth.tar`, `.bin`, safetensors or a TorchScript archive.
        out: the folder to write. One that is not empty is an error, unless it holds the same conversion, which is then
            done again.
        method: name of a format (`registry.checkpoint_entries`). Default: told from the names in the file.
        compare: load what was written and compare its outputs with those of the model in memory; they must be equal,
            but for rounding.
        expected: a safetensors file with inputs (`pixel_values`, `input_ids`, `attention_mask`, `input_features`,
            `pixel_values_videos`, `video_mask`) and official outputs, to be met: `image_features`, `text_features` and
            what else the model computes (`logits_per_image`, `logits_per_text`; for adapters `logits`).
        overwrite: replace the model that `out` holds; files that belong to no model stay.

    Options of models:
        tokenizer: folder, Hub id or the official vocabulary file; `"none"` writes none. Default: the official one.
        dtype: `"float32"` (default), `"float16"` or `"bfloat16"`.
        vision_heads, text_heads: attention heads, where they are not 64 wide.

    Options of adapters:
        base: the CLIP that it was trained on, folder or Hub id (needed).
        class_names, templates: of the training, in label order; needed where tensors belong to classes. Default: the
            base's, if it has any.

    Options of single formats: as `hf-clip-variants convert --help` lists them, with the formats they belong to.

    Raises:
        ValueError: another method, missing or unexpected names, an option that does not fit, outputs that differ from
            the expected ones.
        OSError: `file` is no sound checkpoint (`UnsafeCheckpointError`: it wants to run something), or `out` is in
            use. Nothing is written.

    Example:

    ```python
    convert_checkpoint("ViT-B-32.pt", "clip-vit-b-32", compare=True)
    convert_checkpoint("model.pth.tar-50", "coop", base="clip-vit-b-32", class_names=["cat", "dog"])
    ```
    """
    file, out = Path(file), Path(out)
    check_official(file)
    _check_out(out, overwrite)
    options = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(options.keys() - offered_options().keys()):
        raise TypeError(f"convert_checkpoint: unknown options {unknown}, expected {', '.join(offered_options())}")
    if method is not None:
        check_format(method)
        check_options(method, options)
    contents = read_contents(file)
    # Names go to terminals, in messages.
    if strange := [name for name in contents.weights if not name.isprintable()]:
        raise ValueError(f"{file}: {len(strange)} names that cannot be printed, the first is {printable(strange[0])}")
    method = detect_method(contents.weights, str(file), method)
    check_options(method, options)
    format = load_format(method)
    official = OfficialFile(
        path=file,
        weights=contents.weights,
        options=options,
        other_files=tuple(format.other_files(file, options)),
        read_weights=lambda path: read_contents(path).weights,
    )
    sources = {str(path): _sha256(path) for path in (file, *official.other_files)}
    record = {"method": method, "sources": sorted(sources.values()), "options": _plain(options)}
    if _is_in_use(out) and not overwrite and _record_in(out) != record:
        raise FileExistsError(
            f"{out}: not empty, and what it holds is not this conversion of {file.name}; choose another folder, or "
            "replace it (--overwrite)"
        )
    wanted = None if expected is None else read_expected(Path(expected), format)
    target = out.absolute()
    with staged_folder(target, replaces=_MODEL_FILES) as stage:
        if isinstance(format, ModelFormat):
            result = _convert_model(format, official, stage, compare, wanted)
        else:
            result = _convert_adapter(method, format, official, stage, compare, wanted)
        result["dropped"] = [*contents.dropped, *contents.never_built, *result["dropped"]]
        result = Conversion(**result, method=method, folder=str(out), sources=sources)
        (stage / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


# ---- before anything is written


def _is_in_use(out: Path) -> bool:
    return out.is_dir() and any(out.iterdir())


def _check_out(out: Path, overwrite: bool) -> None:
    """Early, because a large file takes a while to read."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out}: expected a folder to write to, got a file")
    if _is_in_use(out) and not overwrite and not (out / RECORD).is_file():
        raise FileExistsError(f"{out}: not empty; choose another folder, or replace the model in it (--overwrite)")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON gives them back, of paths the last name only: the folder may be pushed."""
    paths = {n: Path(v).name for n, v in options.items() if isinstance(v, str | Path) and Path(v).exists()}
    return json.loads(json.dumps(dict(options) | paths, default=str))


def _record_in(out: Path) -> Any:
    """What `out` was made from, if it says so."""
    try:
        return json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# ---- models


def _convert_model(format: ModelFormat, official: OfficialFile, stage: Path, compare: bool, wanted) -> dict[str, Any]:
    options, notes = official.options, official.notes
    built = format.build(official)
    _check_types(official, built.unused)
    dtype = DTYPES[options.get("dtype", "float32")]
    model = built.model.to(dtype)
    if lost := [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]:
        raise ValueError(
            f"dtype: {len(lost)} weights are too large for {_dtype_name(dtype)}: {lost[:5]}; take bfloat16 or float32"
        )
    tokenizer = processor = None
    if format.make_processor is not None:
        tokenizer = _tokenizer(format, model.config, options.get("tokenizer"))
        processor = format.make_processor(model.config.vision_config.image_size, tokenizer, built.image_settings)
    elif options.get("tokenizer") not in (None, _NO_TOKENIZER):
        raise ValueError("tokenizer: given, but this model reads no texts")
    if tokenizer is None and processor is not None:
        kinds = {FeatureExtractionMixin: "AutoFeatureExtractor", BaseVideoProcessor: "AutoVideoProcessor"}
        auto = next((name for kind, name in kinds.items() if isinstance(processor, kind)), "AutoImageProcessor")
        notes.append(f"without a tokenizer: load what was written with {auto}, not with AutoProcessor")
    model.save_pretrained(stage)
    if processor is not None:
        processor.save_pretrained(stage)
    row = _row_of(model)
    if row is not None:
        from ..hub.model_cards import model_card

        model_card(model, weights=stage).save(stage / "README.md")
    difference = differences = None
    if compare or wanted:
        inputs, expected = wanted or (example_inputs(format, model, processor, tokenizer), {})
        before = compute_outputs(format, model, inputs)
        differences = check_expected(before, expected, dtype) if wanted else None
        loaded = _auto_class(row, model).from_pretrained(stage).eval()
        if format.before_comparing is not None:
            for each in (model, loaded):
                format.before_comparing(each)
        check_weights(model.state_dict(), loaded.state_dict())
        difference = check_reloaded(before, compute_outputs(format, loaded, inputs), dtype)
    return {
        "kind": type(model).__name__,
        "sizes": _sizes(model.config),
        "parameters": model.num_parameters(),
        "dtype": _dtype_name(dtype),
        "dropped": built.unused,
        "notes": notes,
        "difference": difference,
        "expected_differences": differences,
    }


def _check_types(official: OfficialFile, unused: list[str]) -> None:
    """ValueError for weights that are no real numbers: of quantised ones, nobody has applied the scales."""
    wrong = [
        name
        for name, tensor in official.weights.items()
        if not tensor.is_floating_point() and name not in unused and not name.endswith("num_batches_tracked")
    ]
    if wrong:
        raise ValueError(
            f"{official.path}: {len(wrong)} weights are {_dtype_name(official.weights[wrong[0]].dtype)}, the first is "
            f"{printable(wrong[0])}; want floating-point numbers, of a checkpoint that is not quantised"
        )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _row_of(model: PreTrainedModel) -> Method | None:
    """The row of a model of ours; None for one of transformers' own classes."""
    return next((row for row in methods("model") if row.model_type == model.config.model_type), None)


def _auto_class(row: Method | None, model: PreTrainedModel) -> type:
    """The Auto class that gives this very class back, `AutoModel` first."""
    names = [name for name in (row.auto_classes if row else ()) if row.load(name) is type(model)]
    return getattr(transformers, "AutoModel" if "AutoModel" in names or not names else names[0])


def _tokenizer(format: ModelFormat, config, source: str | Path | None):
    """The official tokenizer, or what `source` says, checked against the model's vocabulary; None for `"none"`."""
    if source is not None and str(source) == _NO_TOKENIZER:
        return None
    tokenizer, text = format.load_tokenizer(source), config.text_config

    def specials(of) -> str:
        return " and ".join(f"{name} {getattr(of, name)}" for name in format.special_tokens)

    if len(tokenizer) > text.vocab_size or specials(tokenizer) != specials(text):
        name = "the official one" if source is None else source
        raise ValueError(
            f"tokenizer: {name} has {len(tokenizer)} tokens, {specials(tokenizer)}, the model in the file wants "
            f"{text.vocab_size} and {specials(text)}; name its tokenizer (--tokenizer), or 'none' to write none"
        )
    positions = text.max_position_embeddings
    tokenizer.model_max_length = min(format.max_text_length or positions, positions)
    return tokenizer


_ENCODER_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# Of each encoder, what its configuration has of it.
_SIZES = {
    "vision": ("image_size", "patch_size", "depths", *_ENCODER_SIZES),
    "text": (*_ENCODER_SIZES, "max_position_embeddings", "vocab_size", "hidden_act"),
    "audio": ("n_fft", "win_length", "hop_length", "hidden_size", "depths", "groups", "width_per_group"),
}


def _sizes(config) -> dict[str, Any]:
    sizes = {"projection_dim": config.projection_dim} if hasattr(config, "projection_dim") else {}
    for encoder, names in _SIZES.items():
        part = getattr(config, f"{encoder}_config", None)
        found = {f"{encoder}.{name}": getattr(part, name, None) for name in names}
        sizes |= {name: value for name, value in found.items() if value is not None}
    return sizes


# ---- adapters


def _convert_adapter(
    method: str, format, official: OfficialFile, stage: Path, compare: bool, wanted
) -> dict[str, Any]:
    from ..adapters.loading import load_adapter
    from ..hub.model_cards import model_card
    from .adapters import adapter_from_official

    converted = adapter_from_official(method, format, official)
    model, classifier = converted.model, converted.classifier
    model.save_pretrained(str(stage))
    model_card(model, weights=stage).save(stage / "README.md")
    config = model.peft_config["default"]
    tensors = load_file(stage / "adapter_model.safetensors")
    difference = differences = None
    if compare or wanted:
        inputs, expected = wanted or (format.base_inputs(classifier), {})
        before = compute_outputs(format, model, inputs)
        differences = check_expected(before, expected, torch.float32) if wanted else None
        saved = {name: tensor for name, tensor in model.state_dict().items() if ".clipv_" in name}
        loaded = load_adapter(stage, model.unload())
        check_weights(saved, loaded.state_dict())
        difference = check_reloaded(before, compute_outputs(format, loaded, inputs), torch.float32)
    return {
        "kind": config.peft_type.value,
        "sizes": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "dtype": "float32",
        "dropped": converted.unused,
        "notes": official.notes,
        "difference": difference,
        "expected_differences": differences,
    }


__all__ = ["Conversion", "convert_checkpoint"]
