"""What the conversion has to know about the official files of an adapter: declared in each method's `convert.py`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..modeling.clip_classifier.modeling_clip_classifier import CLIPClassifier
from ..modeling.loading_and_saving.checkpoint_format import LAYER_PROMPTS as LAYER_PROMPTS
from ..modeling.loading_and_saving.checkpoint_format import LEARNED_CONTEXT as LEARNED_CONTEXT
from ..modeling.loading_and_saving.checkpoint_format import CheckpointFormat, OfficialFile
from ..modeling.loading_and_saving.checkpoint_format import Signature as Signature
from ..modeling.loading_and_saving.example_outputs import Tensors, classifier_images, classifier_outputs


# More names in the files of prompt learners, by which these are told apart: a network that sees the image, and what
# couples text and image prompts.
META_NET = r"(prompt_learner\.)?meta_net\."
COUPLING = r"(prompt_learner\.)?(proj\.weight$|compound_prompt)"


@dataclass(frozen=True, kw_only=True)
class OfficialAdapterFile(OfficialFile):
    """
    An adapter's checkpoint that is being converted.

    Args:
        classifier: the frozen CLIP that it was trained on, with the classes of the training if they are known.
        context_ids: token ids of the words that the training began with; `[]` for random vectors, None where nothing
            was said.
    """

    classifier: CLIPClassifier
    context_ids: list[int] | None

    @property
    def class_names(self) -> list[str] | None:
        """The classes of the training in label order, None if they are not known."""
        return list(self.classifier.class_names) if self.classifier.config.templates else None


@dataclass(frozen=True, kw_only=True)
class AdapterFormat(CheckpointFormat):
    """
    A format whose files become an adapter.

    Args:
        convert: configuration and tensors for `put_adapter`; ValueError where names or shapes do not fit.
        tensors: patterns of the whole names of the adapter's tensors, behind any prefix. All else in a file is not
            needed.
        holds_clip: files may hold the frozen CLIP as well; it must then be the base, and there must be nothing else.
        load_base: (folder or Hub id) -> the frozen model, where it is no classifier of images.
        base_inputs: (that model) -> example inputs, for a comparison of outputs.
        keeps_initial_words: of the words that the training began with, those behind the learned ones stay in the
            prompts. They are in no file: the option `context_init` names them, and is asked for where a file shows
            that there were any.
    """

    convert: Callable[[OfficialAdapterFile], tuple[Any, dict[str, torch.Tensor]]]
    tensors: tuple[str, ...]
    outputs: tuple[str, ...] = ("image_features", "text_features", "logits")
    outputs_of: Callable[[Any, Mapping[str, torch.Tensor]], Tensors] = classifier_outputs
    holds_clip: bool = False
    load_base: Callable[[str], Any] | None = None
    base_inputs: Callable[[Any], Tensors] = classifier_images
    keeps_initial_words: bool = False


__all__ = [
    "COUPLING",
    "LAYER_PROMPTS",
    "LEARNED_CONTEXT",
    "META_NET",
    "AdapterFormat",
    "OfficialAdapterFile",
    "Signature",
]
