"""Checkpoint files in the official formats, from the parity fixtures, and tokenizers that give the fixtures' ids."""

import argparse
import warnings
from pathlib import Path

import torch


# ---- models


def plain(weights, path: Path, zipped: bool = True) -> Path:
    torch.save(dict(weights), path, _use_new_zipfile_serialization=zipped)
    return path


def from_a_training(weights, path: Path) -> Path:
    """A training script's dictionary: weights with DataParallel's names, and the other entries of such scripts."""
    nested = {f"module.{name}": tensor for name, tensor in weights.items()}
    rest = {"epoch": 3, "args": argparse.Namespace(lr=1e-3), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    torch.save({**rest, "state_dict": nested}, path)
    return path


def jit_archive(weights, path: Path) -> Path:
    """A TorchScript archive whose state_dict() is `weights`, as OpenAI publishes."""
    root = torch.nn.Module()
    for name, tensor in weights.items():
        *parents, last = name.split(".")
        module = root
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, torch.nn.Module())
            module = module.get_submodule(parent)
        module.register_buffer(last, tensor)

    class Archive(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    archive = Archive()
    for name, child in root.named_children():
        archive.add_module(name, child)
    for name, tensor in root.named_buffers(recurse=False):
        archive.register_buffer(name, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(archive, torch.ones(1)), path)
    return path


def letters_tokenizer(vocab_size: int, folder: Path) -> Path:
    """CLIP's tokenizer over single letters, with start and end of text as the last of `vocab_size` tokens."""
    from transformers import CLIPTokenizer

    letters = [chr(ord("a") + i) for i in range(26)]
    symbols = [*letters, *(letter + "</w>" for letter in letters)]
    tokens = [*symbols, *(f"<{i}>" for i in range(vocab_size - 2 - len(symbols))), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[]).save_pretrained(folder)
    return folder


# ---- adapters


def dassl(state_dict, path: Path) -> Path:
    """`model.pth.tar-50` of Dassl, with which CoOp, CoCoOp, MaPLe, VPT, IVLP and CLIP-Adapter are trained."""
    path.parent.mkdir(parents=True, exist_ok=True)
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.002, "params": [0]}]}
    rest = {
        "epoch": 50,
        "optimizer": optimizer,
        "scheduler": {"last_epoch": 50, "_step_count": 51},
        "val_result": None,
    }
    torch.save({"state_dict": dict(state_dict), **rest}, path)
    return path


def learner(fixture) -> dict[str, torch.Tensor]:
    """The prompt learner only, under its own names."""
    prefix = "prompt_learner."
    return {name.removeprefix(prefix): t for name, t in fixture.state_dict.items() if name.startswith(prefix)}


def whole_model(fixture) -> dict[str, torch.Tensor]:
    """The trainer's full model without token embeddings.

    Names: image_encoder.*, text_encoder.*, prompt_learner.*, logit_scale.
    """
    names = {"clip.visual.": "image_encoder.", "clip.logit_scale": "logit_scale", "clip.": "text_encoder."}
    saved = {}
    for name, tensor in fixture.state_dict.items():
        ours = next((ours for ours in names if name.startswith(ours)), "")
        if name != "clip.token_embedding.weight":
            saved[names.get(ours, "") + name.removeprefix(ours)] = tensor
    return saved


def fixture_tokenizer(fixture, templates: dict[str, torch.Tensor], folder: Path) -> Path:
    """
    A tokenizer that gives the ids of the fixture's stub.

    `templates`: template with a `{}` -> (C, L) ids of all classes in it, with placeholders or words before the name.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab_size = fixture.hparam("vocab_size")
    start, end = vocab_size - 2, vocab_size - 1
    said: dict[str, list[int]] = {}
    for template, ids in templates.items():
        rows = [row[1 : row.index(end)] for row in ids.tolist()]
        before = _common(rows)
        after = _common([row[before:][::-1] for row in rows])
        prefix, suffix = template.split("{}")
        said |= {prefix.strip(): rows[0][:before], suffix.strip(): rows[0][len(rows[0]) - after :]}
        for name, row in zip(fixture.meta["class_names"], rows, strict=True):
            said[name.replace("_", " ")] = row[before : len(row) - after]
    said.pop("", None)
    spelled = {text: " " + " ".join(f"w{i}" for i in ids) + " " for text, ids in said.items()}
    steps = [
        normalizers.Replace(Regex(_whole_words(text)), spelled[text])
        for text in sorted(spelled, key=len, reverse=True)
    ]
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab_size)}, unk_token="w0"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        f"w{start} $A w{end}", special_tokens=[(f"w{start}", start), (f"w{end}", end)]
    )
    special = {"bos_token": f"w{start}", "eos_token": f"w{end}", "pad_token": f"w{end}", "unk_token": "w0"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def _common(rows: list[list[int]]) -> int:
    """The number of leading entries that all rows share."""
    count = 0
    while all(len(row) > count for row in rows) and len({row[count] for row in rows}) == 1:
        count += 1
    return count


def _whole_words(text: str) -> str:
    """A pattern that finds `text`, but neither inside other words nor in parts that are tokenized already."""
    pattern = "".join(f"\\{c}" if c in ".,{}" else c for c in text)
    before = r"(?<![a-z0-9])" if text[0].isalnum() else ""
    return before + pattern + (r"(?![a-z0-9])" if text[-1].isalnum() else "")
