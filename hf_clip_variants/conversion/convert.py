"""`convert_checkpoint`: an official file becomes a folder that `from_pretrained` (or, for an adapter, `load_adapter`) loads.

Files are read by `official.py` alone: tensors, no code. The folder is written aside and put in its place at the end, so that an error, a full disk or
Ctrl-C leaves what was there. `conversion.json` in it says what it was made from.
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
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForPreTraining, AutoTokenizer, PreTrainedModel

from ..files.atomic_writes import staged_folder
from .checkpoint_reader import Contents, printable, read_contents
from .detect import ADAPTERS, MODELS, check_method, detect_method


RECORD = "conversion.json"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ACTIVATIONS = ("quick_gelu", "gelu")

# Which options belong to which methods; the others would be ignored without a word.
_OPTIONS = {
    **dict.fromkeys(("tokenizer", "dtype", "vision_heads", "text_heads"), MODELS),
    **dict.fromkeys(("activation", "open_clip_config"), ("clip", "clip_resnet")),
    **dict.fromkeys(("base", "class_names", "templates"), ADAPTERS),
    "keep_head": ("slip",),
    "class_token_position": ("coop",),
    "context_init": ("maple", "ivlp"),
    "ratio": ("clip_adapter",),
    **dict.fromkeys(("alpha", "beta", "values"), ("tip_adapter",)),
}
_CHINESE_TOKENIZER = "OFA-Sys/chinese-clip-vit-base-patch16"
_NO_TOKENIZER = "none"
# What a saved model consists of: all of it goes when something else takes its place.
_MODEL_FILES = re.compile(
    r"(adapter_)?config\.json|(adapter_|pytorch_)?model[\w.-]*\.(safetensors|bin)(\.index\.json)?|(pre)?processor_config\.json|README\.md"
    r"|tokenizer[\w.]*\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|generation_config\.json|conversion\.json"
)
# Of the largest value of an output: what a comparison with expected outputs lets pass.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_INPUTS = {
    "pixel_values": "pixel_values",
    "image": "pixel_values",
    "input_ids": "input_ids",
    "text": "input_ids",
    "attention_mask": "attention_mask",
    "input_features": "input_features",
    "audio": "input_features",
}
_PROMPTS = {
    "en": ["a photo of a cat", "a diagram", "two dogs on a beach"],
    "cn": ["猫的照片", "一张图", "海滩上的两只狗"],
}


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
    """Converts an official checkpoint: OpenAI's and open_clip's CLIP, SLIP, Chinese-CLIP, AudioCLIP, and the files of the adapters.

    Sizes follow from the shapes, and names must fit exactly. Nothing in the file is run.

    Args:
        file: `.pt`, `.pth.tar`, `.bin`, safetensors or a TorchScript archive; for Tip-Adapter `keys_*.pt`, or `best_F_*.pt` for its trained form.
        out: the folder to write. One that is not empty is an error, unless it holds the same conversion, which is then done again.
        method: one of `SIGNATURES` in `checkpoint_kinds.py`. Default: told from the names in the file.
        compare: load what was written and compare its outputs with those of the model in memory; they must be equal, but for rounding.
        expected: a safetensors file with inputs (`pixel_values`, `input_ids`, `attention_mask`, `input_features`) and official outputs
            (`image_features`, `text_features`, `logits_per_image`, `logits_per_text`; AudioCLIP also `audio_features`, `logits_per_audio`;
            for adapters `logits`, `image_features`, `text_features`), to be met.
        overwrite: replace the model that `out` holds; files that belong to no model stay.

    Options of models:
        tokenizer: folder, Hub id, `bpe_simple_vocab_16e6.txt.gz` or (Chinese-CLIP) `vocab.txt`; `"none"` writes none. Default: the official one.
        dtype: `"float32"` (default), `"float16"` or `"bfloat16"`.
        vision_heads, text_heads: attention heads, where they are not 64 wide.
        activation: `"quick_gelu"` or `"gelu"`, which no weights tell. Default: open_clip's configuration, else `"quick_gelu"`, with a note unless the file
            is OpenAI's.
        keep_head: SLIP; write the model with its self-supervised head, which is of use for going on with the training only.
        open_clip_config: open_clip's configuration of the model. Default: `open_clip_config.json` beside a file called `open_clip*`.

    Options of adapters:
        base: the CLIP that it was trained on, folder or Hub id (needed).
        class_names, templates: of the training, in label order; needed for class-specific contexts and Tip-Adapter. Default: the base's, if it has any.
        class_token_position: CoOp; `"end"`, `"middle"` or `"front"`.
        context_init: MaPLe, IVLP; the words that the training began with, `""` for none.
        ratio: CLIP-Adapter. alpha, beta, values: Tip-Adapter.

    Raises:
        ValueError: another method, missing or unexpected names, an option that does not fit, outputs that differ from the expected ones.
        OSError: `file` is no sound checkpoint (`UnsafeCheckpointError`: it wants to run something), or `out` is in use. Nothing is written.

    Example:

    ```python
    convert_checkpoint("ViT-B-32.pt", "clip-vit-b-32", compare=True)
    convert_checkpoint("model.pth.tar-50", "coop", base="clip-vit-b-32", class_names=["cat", "dog"])
    ```
    """
    file, out = Path(file), Path(out)
    _check_out(out, overwrite)
    options = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(options.keys() - _OPTIONS.keys()):
        raise TypeError(f"convert_checkpoint: unknown options {unknown}, expected {', '.join(_OPTIONS)}")
    if method is not None:
        check_method(method)
        _check_options(method, options)
    contents = read_contents(file)
    if strange := [
        name for name in contents.weights if not name.isprintable()
    ]:  # they would go to terminals, in messages
        raise ValueError(f"{file}: {len(strange)} names that cannot be printed, the first is {printable(strange[0])}")
    method = detect_method(contents.weights, str(file), method)
    _check_options(method, options)
    sources = {str(path): _sha256(path) for path in _files_read(file, method, options)}
    record = {"method": method, "sources": sorted(sources.values()), "options": _plain(options)}
    if _is_in_use(out) and not overwrite and _record_in(out) != record:
        raise FileExistsError(
            f"{out}: not empty, and what it holds is not this conversion of {file.name}; choose another folder, or replace it (--overwrite)"
        )
    wanted = None if expected is None else _read_expected(Path(expected), method)
    write = _convert_model if method in MODELS else _convert_adapter
    target = out.absolute()
    with staged_folder(target, replaces=_MODEL_FILES) as stage:
        result = write(method, contents, file, stage, options, compare, wanted)
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


def _check_options(method: str, options: Mapping[str, Any]) -> None:
    for name in options:
        if method not in _OPTIONS[name]:
            raise ValueError(f"{name}: given, but it belongs to {', '.join(_OPTIONS[name])}, and this is {method}")
    for name, allowed in (("dtype", DTYPES), ("activation", ACTIVATIONS)):
        if name in options and options[name] not in allowed:
            raise ValueError(f"{name}: {options[name]!r}, expected one of {', '.join(allowed)}")


def _files_read(file: Path, method: str, options: Mapping[str, Any]) -> list[Path]:
    if method == "tip_adapter":
        from .adapters import values_file

        return [file, values_file(file, options)]
    config = _open_clip_config(file, method, options)
    return [file] if config is None else [file, config]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON gives them back. Of paths the last name only: the folder may be pushed, and where things lie here is nobody's business."""
    paths = {n: Path(v).name for n, v in options.items() if isinstance(v, str | Path) and Path(v).exists()}
    return json.loads(json.dumps(dict(options) | paths, default=str))


def _record_in(out: Path) -> Any:
    """What `out` was made from, if it says so."""
    try:
        return json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# ---- models


def _open_clip_config(file: Path, method: str, options: Mapping[str, Any]) -> Path | None:
    if method not in _OPTIONS["open_clip_config"]:
        return None
    if "open_clip_config" in options:
        return Path(options["open_clip_config"])
    from .open_clip_config import find_open_clip_config

    return find_open_clip_config(file)


def _convert_model(
    method, contents: Contents, file: Path, stage: Path, options, compare: bool, wanted
) -> dict[str, Any]:
    model, image_settings, notes = _build_model(method, contents.weights, file, options)
    dtype = DTYPES[options.get("dtype", "float32")]
    model = model.to(dtype)
    if lost := [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]:
        raise ValueError(
            f"dtype: {len(lost)} weights are too large for {options['dtype']}: {lost[:5]}; take bfloat16 or float32"
        )
    tokenizer = _tokenizer(method, model.config, options.get("tokenizer"))
    if tokenizer is None:
        alone = "feature extractor" if method == "audioclip" else "image processor"
        notes.append(f"without a tokenizer: AutoProcessor gives the {alone} alone")
    processor = _processor(method, model.config.vision_config.image_size, tokenizer, image_settings)
    model.save_pretrained(stage)
    processor.save_pretrained(stage)
    if method in ("clip_resnet", "slip", "audioclip"):
        from ..hub.model_cards import model_card

        model_card(model, weights=stage).save(stage / "README.md")
    dropped = contents.dropped + contents.never_built + _unused(method, contents.weights, options)
    difference = differences = None
    if compare or wanted:
        inputs, official = wanted or (_example(method, model, processor, tokenizer), {})
        before = _outputs(model, inputs)
        differences = _check_expected(before, official, dtype) if wanted else None
        auto_class = AutoModelForPreTraining if options.get("keep_head") else AutoModel
        loaded = auto_class.from_pretrained(stage).eval()
        if method == "chinese_clip":  # transformers 5.23 zeroes this row on loading; it is masked everywhere
            for each in (model, loaded):
                each.text_model.embeddings.word_embeddings.weight.data[model.config.text_config.pad_token_id] = 0
        _check_weights(model.state_dict(), loaded.state_dict())
        difference = _check_reloaded(before, _outputs(loaded, inputs), dtype)
    return {
        "kind": type(model).__name__, "sizes": _sizes(model.config), "parameters": model.num_parameters(), "dtype": str(dtype).removeprefix("torch."),
        "dropped": dropped, "notes": notes, "difference": difference, "expected_differences": differences,
    }  # fmt: skip


def _build_model(method: str, weights, file: Path, options) -> tuple[PreTrainedModel, dict[str, Any], list[str]]:
    """The model, changes to its image processor's settings, and remarks."""
    heads = {name: options[name] for name in ("vision_heads", "text_heads") if name in options}
    if method == "chinese_clip":
        from ..modeling.chinese_clip.convert_chinese_clip import chinese_clip_from_official

        return chinese_clip_from_official(weights, **heads), {}, []
    if method == "slip":
        from ..modeling.slip.convert_slip import SLIP_IMAGES, slip_from_official

        return slip_from_official(weights, with_head=options.get("keep_head", False), **heads), SLIP_IMAGES, []
    if method == "audioclip":
        from ..modeling.audioclip.convert_audioclip import audioclip_from_official

        notes = ["the hop of the spectrogram and how it is scaled are the published ones: no weights tell"]
        return audioclip_from_official(weights, **heads), {}, notes
    if method == "clip":
        from ..modeling.clip.convert_clip import clip_from_official as from_official
        from ..modeling.clip.convert_clip import infer_clip_config as infer
    else:
        from ..modeling.clip_resnet.convert_clip_resnet import clip_resnet_from_official as from_official
        from ..modeling.clip_resnet.convert_clip_resnet import infer_clip_resnet_config as infer
    config, notes, image_settings = _open_clip_config(file, method, options), [], {}
    activation = options.get("activation")
    if config is not None:
        from .open_clip_config import read_open_clip_config

        given = {
            "vision_heads": 1,
            "text_heads": 1,
        } | heads  # only the picture's size is asked for here, and 1 divides everything
        settings = read_open_clip_config(config, infer(weights, **given)["vision_config"]["image_size"])
        known = {"vision_heads": settings.vision_heads, "text_heads": settings.text_heads}
        heads, image_settings = known | heads, settings.image_processor
        activation = activation or settings.hidden_act
        notes.append(f"activation {activation}, heads and preprocessing are those of {config.name}")
    elif activation is None and "input_resolution" not in weights:  # OpenAI's archives hold it
        notes.append(
            "activation quick_gelu is assumed, as in OpenAI's weights and open_clip's -quickgelu ones: no weights tell. Most others of open_clip want "
            "activation gelu (--activation gelu)"
        )
    model = from_official(weights, hidden_act=activation or "quick_gelu", **heads)
    return model, image_settings, notes


def _unused(method: str, weights: Mapping[str, torch.Tensor], options: Mapping[str, Any]) -> list[str]:
    """What the converters of models leave out."""
    if method == "slip":
        return [name for name in weights if name.startswith("image_mlp.") and not options.get("keep_head")]
    if method == "chinese_clip":
        return [name for name in weights if name.startswith("bert.pooler.")]
    if method == "audioclip":
        return [name for name in weights if name == "audio.fbsp.bias"]
    from ..modeling.clip.convert_clip import native_names

    kept = native_names(weights)
    return [name for name in weights if name.removeprefix("text.") not in kept]


def _tokenizer(method: str, config, source: str | Path | None):
    """The official tokenizer, or what `source` says, checked against the model's vocabulary. None where none is wanted."""
    if source is not None and str(source) == _NO_TOKENIZER:
        return None
    length = config.text_config.max_position_embeddings
    if method == "chinese_clip":
        tokenizer = _chinese_tokenizer(source)
        wrong = (
            len(tokenizer) > config.text_config.vocab_size or tokenizer.pad_token_id != config.text_config.pad_token_id
        )
        ends = f"{len(tokenizer)} tokens and padding {tokenizer.pad_token_id}"
        wanted = f"{config.text_config.vocab_size} and {config.text_config.pad_token_id}"
        length = min(52, length)  # what the official models were trained with
    else:
        if source is None or str(source).endswith(".txt.gz"):
            from ..modeling.clip.text_clip import official_tokenizer

            tokenizer = official_tokenizer(source)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source)
        text = config.text_config
        specials = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        wrong = len(tokenizer) > text.vocab_size or specials != (text.bos_token_id, text.eos_token_id)
        ends = f"{len(tokenizer)} tokens, start and end {specials}"
        wanted = f"{text.vocab_size} and {(text.bos_token_id, text.eos_token_id)}"
    if wrong:
        name = "the official one" if source is None else source
        raise ValueError(
            f"tokenizer: {name} has {ends}, the model in the file wants {wanted}; name its tokenizer (--tokenizer), or 'none' to write none"
        )
    tokenizer.model_max_length = length
    return tokenizer


def _chinese_tokenizer(source: str | Path | None):
    from transformers import BertTokenizer

    if source is not None and str(source).endswith(".txt"):
        if not Path(source).is_file():
            raise FileNotFoundError(f"tokenizer: {source} does not exist")
        return BertTokenizer(str(source))
    try:
        return AutoTokenizer.from_pretrained(source or _CHINESE_TOKENIZER)
    except (OSError, ValueError, TypeError) as error:
        if source is not None:
            raise
        raise OSError(
            f"tokenizer: {_CHINESE_TOKENIZER} is neither cached nor reachable; give cn_clip/clip/vocab.txt of the official code (--tokenizer), or 'none'"
        ) from error


def _processor(method: str, image_size: int, tokenizer, settings: Mapping[str, Any]):
    """OpenAI's preprocessing at the model's size, or Chinese-CLIP's, which squashes; the image processor (AudioCLIP: the feature extractor)
    alone without a tokenizer."""
    from transformers import ChineseCLIPImageProcessor, ChineseCLIPProcessor, CLIPImageProcessor, CLIPProcessor

    square = {"height": image_size, "width": image_size}
    if method == "chinese_clip":
        image_processor = ChineseCLIPImageProcessor(size=square, do_center_crop=False)
        return image_processor if tokenizer is None else ChineseCLIPProcessor(image_processor, tokenizer)
    image_processor = CLIPImageProcessor(
        **{"size": {"shortest_edge": image_size}, "crop_size": square} | dict(settings)
    )
    if method == "audioclip":
        from ..modeling.audioclip.feature_extraction_audioclip import AudioCLIPFeatureExtractor
        from ..modeling.audioclip.processing_audioclip import AudioCLIPProcessor

        sounds = AudioCLIPFeatureExtractor()
        return sounds if tokenizer is None else AudioCLIPProcessor(image_processor, tokenizer, sounds)
    return image_processor if tokenizer is None else CLIPProcessor(image_processor, tokenizer)


def _sizes(config) -> dict[str, Any]:
    text, vision = config.text_config, config.vision_config
    wanted = (
        "image_size",
        "patch_size",
        "depths",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    )
    sizes = {"projection_dim": config.projection_dim}
    sizes |= {f"vision.{name}": getattr(vision, name) for name in wanted if getattr(vision, name, None) is not None}
    names = (*wanted[3:], "max_position_embeddings", "vocab_size", "hidden_act")
    sizes |= {f"text.{name}": getattr(text, name) for name in names}
    if (audio := getattr(config, "audio_config", None)) is not None:
        names = ("n_fft", "win_length", "hop_length", "hidden_size", "depths", "groups", "width_per_group")
        sizes |= {f"audio.{name}": getattr(audio, name) for name in names}
    return sizes


# ---- adapters


def _convert_adapter(
    method, contents: Contents, file: Path, stage: Path, options, compare: bool, wanted
) -> dict[str, Any]:
    from ..adapters import load_adapter
    from ..hub.model_cards import model_card
    from .adapters import adapter_from_official

    converted = adapter_from_official(method, contents.weights, file, options)
    model, classifier = converted.model, converted.classifier
    model.save_pretrained(str(stage))
    model_card(model, weights=stage).save(stage / "README.md")
    config = model.peft_config["default"]
    tensors = load_file(stage / "adapter_model.safetensors")
    difference = differences = None
    if compare or wanted:
        inputs, official = wanted or ({"pixel_values": _picture(classifier.family.image_size(classifier.config))}, {})
        before = _outputs(model, inputs)
        differences = _check_expected(before, official, torch.float32) if wanted else None
        saved = {name: tensor for name, tensor in model.state_dict().items() if ".clipv_" in name}
        loaded = load_adapter(stage, model.unload())
        _check_weights(saved, loaded.state_dict())
        difference = _check_reloaded(before, _outputs(loaded, inputs), torch.float32)
    sizes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return {
        "kind": config.peft_type.value, "sizes": sizes, "parameters": sum(t.numel() for t in tensors.values()), "dtype": "float32",
        "dropped": contents.dropped + contents.never_built + converted.dropped, "notes": converted.notes, "difference": difference,
        "expected_differences": differences,
    }  # fmt: skip


# ---- comparing outputs


def _picture(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def _example(method: str, model, processor, tokenizer) -> dict[str, torch.Tensor]:
    """A random picture, always the same, and prompts; random tokens without a tokenizer; noise where there is a tower for sounds."""
    noise = 5000 * torch.randn(2, 1, 22050, generator=torch.Generator().manual_seed(0))
    sounds = {"input_features": noise} if method == "audioclip" else {}
    return sounds | _example_of_clip(method, model, processor, tokenizer)


def _example_of_clip(method: str, model, processor, tokenizer) -> dict[str, torch.Tensor]:
    config = model.config
    size = config.vision_config.image_size
    if tokenizer is not None:
        noise = torch.randint(256, (size, 2 * size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        prompts = _PROMPTS["cn" if method == "chinese_clip" else "en"]
        inputs = processor(text=prompts, images=noise.numpy(), padding=True, truncation=True, return_tensors="pt")
        return {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    text = config.text_config
    ids = torch.randint(
        1, text.vocab_size - 2, (3, min(8, text.max_position_embeddings)), generator=torch.Generator().manual_seed(0)
    )
    ids[:, -1] = text.vocab_size - 1  # CLIP pools at the end token
    return {"pixel_values": _picture(size), "input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.inference_mode()
def _outputs(model, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything that the inputs suffice for, un-normalised features among it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = {name: tensor.to(base.dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    pixels, text = (
        inputs.get("pixel_values"),
        {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs},
    )
    found = {}
    if "input_features" in inputs and hasattr(base, "get_audio_features"):
        sounds = inputs["input_features"]
        found["audio_features"] = base.get_audio_features(input_features=sounds).pooler_output
        if "input_ids" in text:
            found["logits_per_audio"] = base(input_features=sounds, **text).logits_per_audio
    if pixels is not None:
        found["image_features"] = base.get_image_features(pixel_values=pixels).pooler_output
    if hasattr(base, "get_class_features"):
        if base.config.templates and pixels is not None:
            output = model(pixel_values=pixels)
            found |= {"logits": output.logits, "text_features": output.text_embeds}
            if not base.prompt_embedder.depends_on_images:
                found["text_features"] = base.get_class_features()
    elif "input_ids" in text:
        found["text_features"] = base.get_text_features(**text).pooler_output
        if pixels is not None:
            output = model(pixel_values=pixels, **text, return_loss=False)
            found |= {"logits_per_image": output.logits_per_image, "logits_per_text": output.logits_per_text}
    return {name: tensor.float() for name, tensor in found.items()}


# The same weights on the same machine: what differs in these two is a bug, not something that the user can mend.


def _check_weights(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> None:
    wrong = [name for name, tensor in before.items() if name not in after or not torch.equal(tensor, after[name])]
    if wrong:
        raise RuntimeError(f"compare: {len(wrong)} weights are not as they were written: {wrong[:5]}")


def _check_reloaded(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], dtype) -> float:
    """The largest difference. Not always zero: sums depend on where a matrix lies in memory."""
    differences = _differences(after, before)
    worst = max(differences, key=differences.get)
    if not differences[worst] <= _TOLERANCES[dtype] * _scale(before[worst]):
        raise RuntimeError(f"compare: {worst} differs by {differences[worst]:.3g} between memory and what was written")
    return differences[worst]


def _check_expected(
    actual: Mapping[str, torch.Tensor], official: Mapping[str, torch.Tensor], dtype
) -> dict[str, float]:
    if absent := sorted(official.keys() - actual.keys()):
        raise ValueError(f"expected: the inputs in the file do not give {', '.join(absent)}, but {', '.join(actual)}")
    differences = _differences(actual, official)
    for name, difference in differences.items():
        if not difference <= _TOLERANCES[dtype] * _scale(official[name]):  # also for NaN
            raise ValueError(
                f"expected: {name} differs by {difference:.3g}, values are up to {_scale(official[name]):.3g}; wrong options (activation, heads, base)?"
            )
    return differences


def _differences(actual: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> dict[str, float]:
    for name, tensor in wanted.items():
        if actual[name].shape != tensor.shape:
            raise ValueError(
                f"expected: {name} has shape {list(tensor.shape)}, the model gives {list(actual[name].shape)}"
            )
    return {name: float((actual[name] - tensor.float()).abs().max()) for name, tensor in wanted.items()}


def _scale(tensor: torch.Tensor) -> float:
    return max(float(tensor.abs().max()), 1e-12)


def _read_expected(path: Path, method: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Inputs and outputs in a safetensors file, under their own names."""
    tensors = read_contents(path).weights
    inputs = {_INPUTS[name]: tensor for name, tensor in tensors.items() if name in _INPUTS}
    outputs = {name: tensor for name, tensor in tensors.items() if name not in _INPUTS}
    known = ["image_features", "text_features"]
    known += ["logits_per_image", "logits_per_text"] if method in MODELS else ["logits"]
    known += ["audio_features", "logits_per_audio"] if method == "audioclip" else []
    if unknown := sorted(outputs.keys() - set(known)):
        raise ValueError(
            f"expected: {path} has {', '.join(unknown[:5])} ({len(unknown)}), expected {', '.join(known)}"
        )
    if not inputs or not outputs:
        raise ValueError(
            f"expected: {path} holds {'no outputs' if inputs else 'no inputs'}, want both ({', '.join(_INPUTS)})"
        )
    return inputs, outputs


__all__ = ["Conversion", "convert_checkpoint"]
