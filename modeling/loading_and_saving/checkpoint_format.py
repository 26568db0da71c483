"""
What `hf-clip-variants convert` needs to know about a kind of official checkpoint: how to recognise it and how to
build a model from it.

Each method declares its formats in its own folder (`modeling/<method>/convert_<method>.py`,
`adapters/<method>/convert.py`), and the table of methods points to them; the conversion itself names no method. No
model imports this module, so it does not travel to the Hub.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPProcessor, PreTrainedModel

from .example_outputs import Tensors, dual_encoder_outputs, images_and_texts


# Names that the official code of prompt learners adds to CLIP's: files with these hold adapters.
LEARNED_CONTEXT = r"(prompt_learner\.)?ctx$"
LAYER_PROMPTS = r".*\.VPT(_shallow)?$"
# Names beside a CLIP's, or in it, of a network that sees time: a head over frames, embeddings of time, wrapped blocks.
TIME_IN_CLIP = r"fusion_model_state_dict\.|visual\.time_embedding$|visual\.transformer\.resblocks\.\d+\.net\."


@dataclass(frozen=True)
class Signature:
    """Regular expressions that must match the beginning of some tensor's name (`every`), and of no name (`none`)."""

    every: tuple[str, ...]
    none: tuple[str, ...] = ()

    def fits(self, names: list[str]) -> bool:
        def found(pattern: str) -> bool:
            return any(re.match(pattern, name) for name in names)

        return all(map(found, self.every)) and not any(map(found, self.none))


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """
    A checkpoint that is being converted.

    Args:
        path: of the file.
        weights: its tensors under their official names; `""` names the tensor of a file that is a single one.
        options: the user's; those that were not given are absent.
        other_files: the paths that the format's `other_files` gave.
        read_weights: reads the tensors of another checkpoint.
        notes: remarks for the user; the converter appends what the file does not show and what was assumed.
    """

    path: Path
    weights: Mapping[str, torch.Tensor]
    options: Mapping[str, Any]
    other_files: tuple[Path, ...]
    read_weights: Callable[[Path], Mapping[str, torch.Tensor]]
    notes: list[str] = field(default_factory=list)

    @property
    def heads(self) -> dict[str, int]:
        """The numbers of attention heads among the options."""
        return {name: self.options[name] for name in ("vision_heads", "text_heads") if name in self.options}


@dataclass(frozen=True)
class BuiltModel:
    """
    A converted model.

    Args:
        model: float32, on the CPU, in eval mode.
        unused: names in the file that the model does not need.
        image_settings: settings of its image processor that differ from the default.
    """

    model: PreTrainedModel
    unused: list[str] = field(default_factory=list)
    image_settings: Mapping[str, Any] = field(default_factory=dict)


def no_other_files(path: Path, options: Mapping[str, Any]) -> list[Path]:
    return []


@dataclass(frozen=True, kw_only=True)
class CheckpointFormat:
    """
    The fields that formats of models and of adapters share.

    Args:
        signature: names by which a file is recognised.
        outputs: names of the model's outputs, which a file of expected outputs may hold.
        outputs_of: (model, inputs) -> those of these outputs that the inputs suffice for.
        other_files: (path, options) -> further files to read; they count as sources of the conversion.
        elsewhere: pattern of a name -> what to do with a file that has it, because it looks like this format and is
            another.
    """

    signature: Signature
    outputs: tuple[str, ...]
    outputs_of: Callable[[Any, Mapping[str, torch.Tensor]], Tensors]
    other_files: Callable[[Path, Mapping[str, Any]], list[Path]] = no_other_files
    elsewhere: Mapping[str, str] = field(default_factory=dict)


def clip_tokenizer(source: str | Path | None):
    """OpenAI's tokenizer by default, or from its `bpe_simple_vocab_16e6.txt.gz`, a folder or a Hub id."""
    if source is None or str(source).endswith(".txt.gz"):
        from ..clip.text_clip import official_tokenizer

        return official_tokenizer(source)
    return AutoTokenizer.from_pretrained(source)


def clip_image_processor(image_size: int, settings: Mapping[str, Any]) -> CLIPImageProcessor:
    """OpenAI's preprocessing at `image_size`, changed by `settings`."""
    size = {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
    return CLIPImageProcessor(**size | dict(settings))


def clip_processor(image_size: int, tokenizer, settings: Mapping[str, Any]):
    image_processor = clip_image_processor(image_size, settings)
    return image_processor if tokenizer is None else CLIPProcessor(image_processor, tokenizer)


@dataclass(frozen=True, kw_only=True)
class ModelFormat(CheckpointFormat):
    """
    A format whose files become a model. The defaults suit CLIP and models with the same texts and images.

    Args:
        build: makes the model; ValueError if names or shapes do not fit.
        load_tokenizer: from the user's file, folder or Hub id; None means the official one.
        special_tokens: ids that tokenizer and text configuration must have in common.
        max_text_length: the longest text in training, in tokens, if the model has more positions.
        make_processor: (image size, tokenizer or None, image settings) -> the processor to save with the model; None
            for a model that reads pixels in -1..1 and no texts.
        prompts: example texts for a comparison of outputs.
        example_inputs: (model, prompts, processor, tokenizer or None) -> inputs for a comparison of outputs.
        before_comparing: applied to the model in memory and to the one read back before their weights are compared.
        adapter_base: `model_type` of the models that official adapter files of other methods belong to.
        to_official: (state dict, configuration) -> official names, the inverse of `build`; with `adapter_base`.
    """

    build: Callable[[OfficialFile], BuiltModel]
    outputs: tuple[str, ...] = ("image_features", "text_features", "logits_per_image", "logits_per_text")
    outputs_of: Callable[[Any, Mapping[str, torch.Tensor]], Tensors] = dual_encoder_outputs
    load_tokenizer: Callable[[str | Path | None], Any] = clip_tokenizer
    special_tokens: tuple[str, ...] = ("bos_token_id", "eos_token_id")
    max_text_length: int | None = None
    make_processor: Callable[[int, Any, Mapping[str, Any]], Any] | None = clip_processor
    prompts: tuple[str, ...] = ("a photo of a cat", "a diagram", "two dogs on a beach")
    example_inputs: Callable[[Any, tuple[str, ...], Any, Any], Tensors] = images_and_texts
    before_comparing: Callable[[PreTrainedModel], None] | None = None
    adapter_base: str | None = None
    to_official: Callable[[Mapping[str, torch.Tensor], Any], dict[str, torch.Tensor]] | None = None


__all__ = [
    "LAYER_PROMPTS",
    "LEARNED_CONTEXT",
    "TIME_IN_CLIP",
    "BuiltModel",
    "CheckpointFormat",
    "ModelFormat",
    "OfficialFile",
    "Signature",
    "clip_image_processor",
    "clip_processor",
    "clip_tokenizer",
    "no_other_files",
]
