"""Images and texts to GLIP's inputs, and its outputs back to named boxes."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import ProcessingKwargs

from ..dual_encoders.prompts import check_texts
from ..loading_and_saving.checkpoints import save_all_at_once
from ..loading_and_saving.processors import CheckedParts
from .image_processing_glip import GLIPImageProcessor
from .prompts_glip import SEPARATOR, clean_name, join_names, phrase_tokens, read_phrases, split_names


class GLIPProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True}, "common_kwargs": {"return_tensors": "pt"}}


class GLIPProcessor(CheckedParts):
    r"""
    A [`GLIPImageProcessor`] and BERT's tokenizer in one.

    Args:
        image_processor ([`GLIPImageProcessor`]).
        tokenizer: of the model's text encoder; a fast one.
        max_text_length (`int`, defaults to 256): the longest prompt in tokens.

    `processor(images=None, text=None, captions=None, phrases=None, annotations=None, names_per_prompt=None)` returns
    what the image processor does, and `input_ids`, `attention_mask` and `phrase_map`:

    - `text`: class names, one list for all images (then the first dimension is 1) or one for each. They are joined to
      a prompt ("cat. dog"). If that has more than `max_text_length` tokens (or there are more than `names_per_prompt`
      names) there are P prompts, `input_ids` is (B, P, T) and nothing is cut off.
    - `captions`: a sentence for each image, whose `phrases` are found: for each sentence a list of texts that stand in
      it, of spans (first character, and the one behind the last), or of lists of spans. Without `phrases`: its noun
      phrases.

    Label i is the i-th name or phrase.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import BertTokenizerFast
    >>> from hf_clip_variants.modeling.glip.image_processing_glip import GLIPImageProcessor
    >>> from hf_clip_variants.modeling.glip.processing_glip import GLIPProcessor

    >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "cat", "traffic", "light"]
    >>> tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    >>> processor = GLIPProcessor(GLIPImageProcessor(), tokenizer)
    >>> inputs = processor(Image.new("RGB", (640, 480)), ["cat", "traffic_light"])
    >>> inputs.input_ids.tolist(), inputs.phrase_map.tolist()
    ([[2, 6, 5, 7, 8, 3]], [[[0.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]]])
    ```
    """

    valid_processor_kwargs = GLIPProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, max_text_length: int = 256, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)
        self.max_text_length = max_text_length

    @property
    def model_input_names(self) -> list[str]:
        return [*self.image_processor.model_input_names, "input_ids", "attention_mask", "phrase_map"]

    def __call__(
        self,
        images=None,
        text: Sequence[str] | Sequence[Sequence[str]] | None = None,
        captions: str | Sequence[str] | None = None,
        phrases: Sequence[Any] | None = None,
        annotations=None,
        names_per_prompt: int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        if images is None and text is None and captions is None:
            raise ValueError("images, text, captions: got none, expected at least one of them")
        if text is not None and captions is not None:
            raise ValueError("text, captions: got both, expected class names or sentences")
        if phrases is not None and captions is None:
            raise ValueError("phrases: got some, but no captions that they stand in")
        if names_per_prompt is not None and names_per_prompt < 1:
            raise ValueError(f"names_per_prompt: {names_per_prompt}, expected a number >= 1")
        merged = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        inputs = {}
        if images is not None:
            inputs |= self.image_processor(images, annotations=annotations, **merged["images_kwargs"])
        options = {
            name: value
            for name, value in merged["text_kwargs"].items()
            if name not in ("truncation", "return_tensors")
        }
        if text is not None:
            inputs |= self._encoded_names(text, names_per_prompt, options)
        if captions is not None:
            inputs |= self._encoded_captions(captions, phrases, options)
        if images is not None and "input_ids" in inputs and len(inputs["input_ids"]) not in (1, self._count(inputs)):
            what = "text" if text is not None else "captions"
            raise ValueError(
                f"{what}: {len(inputs['input_ids'])} for {self._count(inputs)} images, expected one for each"
            )
        return BatchFeature(inputs)

    @staticmethod
    def _count(inputs) -> int:
        return len(inputs["pixel_values"])

    def _encoded_names(self, text, names_per_prompt: int | None, options) -> dict[str, torch.Tensor]:
        if isinstance(text, str | bytes):
            raise ValueError(f"text: got the single string {text!r}, expected class names; sentences go to captions")
        text = list(text)
        each = bool(text) and all(isinstance(names, list | tuple) for names in text)
        rows = []
        for i, names in enumerate(text if each else [text]):
            what = f"text[{i}]" if each else "text"
            rows.append(
                split_names(
                    _checked_names(names, what),
                    self.tokenizer,
                    self.max_text_length,
                    names_per_prompt=names_per_prompt,
                    what=what,
                )
            )
        count = max(map(len, rows))
        # An image with fewer prompts than others has empty ones, which have no labels.
        prompts = [join_names(names) for row in rows for names in row + [[]] * (count - len(row))]
        found = self._encoded(prompts, "text", options)
        if count == 1:
            return found
        return {name: values.unflatten(0, (len(rows), count)) for name, values in found.items()}

    def _encoded_captions(self, captions, phrases, options) -> dict[str, torch.Tensor]:
        if isinstance(captions, str):
            captions, phrases = [captions], None if phrases is None else [phrases]
        captions = check_texts(captions, "captions")
        if phrases is not None and (isinstance(phrases, str) or len(phrases) != len(captions)):
            got = repr(phrases) if isinstance(phrases, str) else f"{len(phrases)} lists"
            raise ValueError(f"phrases: {got} for {len(captions)} captions, expected a list for each")
        prompts = []
        for i, caption in enumerate(captions):
            given = None if phrases is None else phrases[i]
            prompts.append((caption, read_phrases(caption, given, f"phrases[{i}]" if phrases else f"captions[{i}]")))
        return self._encoded(prompts, "captions", options)

    def draw_names(
        self,
        names: Sequence[str],
        present: Sequence[int],
        generator: np.random.Generator,
        max_others: int = 85,
        all_chance: float = 0.5,
    ) -> list[int]:
        """Which class names an image's prompt has in one pass of training, by the official rule.

        All names that are in the image, and some that are not: the model must learn what is *not* there. With the
        chance `all_chance`, `max_others` names are drawn among all, else a number of them between 1 and `max_others`;
        those that are in the image are not added twice. Others are left out once the prompt is full.

        Args:
            names: of all classes.
            present: places in `names` of those in the image; in any order, may repeat.
            generator: decides; its state goes on.

        Returns:
            places in `names`, shuffled. Names in the image that do not fit are left out, with a warning: their boxes
            are not to be trained on in this pass.

        Raises:
            ValueError: no name, a place outside of `names`, a name that is alone too long, or `max_others` below 0.
        """
        if not len(names):
            raise ValueError("names: none, expected at least one")
        if max_others < 0:
            raise ValueError(f"max_others: {max_others}, expected a number >= 0")
        own = sorted(set(map(int, present)))
        if own and not 0 <= own[0] <= own[-1] < len(names):
            raise ValueError(f"present: {own[0]}..{own[-1]}, expected places in 0..{len(names) - 1}")
        count = min(max_others, len(names))
        if count and generator.random() >= all_chance:
            count = int(generator.integers(1, count + 1))
        if not own:
            count = max(count, 1)  # a prompt has at least one name
        others = [int(i) for i in generator.choice(len(names), count, replace=False) if i not in own]
        own = [own[i] for i in generator.permutation(len(own))]
        kept = [*self._fitting(names, own, skip=True)]
        if len(kept) < len(own):
            warnings.warn(
                f"names: of {len(own)} in an image, {len(own) - len(kept)} do not fit into a prompt of "
                f"{self.max_text_length} tokens; their boxes are not trained on in this pass",
                stacklevel=2,
            )
        kept += self._fitting(names, others, first=kept)
        return [kept[i] for i in generator.permutation(len(kept))]

    def _fitting(self, names, places: Sequence[int], first: Sequence[int] = (), skip: bool = False) -> list[int]:
        """Those of `places` that fit into a prompt behind `first`; up to the first that does not, or `skip` it."""

        def tokens(some: Sequence[int]) -> list[int]:
            texts = [clean_name(names[i]) for i in some]
            options = {"add_special_tokens": False, "split_special_tokens": True}
            return [len(ids) for ids in self.tokenizer(texts, **options).input_ids] if texts else []

        between = len(self.tokenizer(SEPARATOR.strip(), add_special_tokens=False).input_ids)
        special = self.tokenizer.num_special_tokens_to_add()
        used = special + sum(count + between for count in tokens(first))
        found = []
        for place, count in zip(places, tokens(places), strict=True):
            if count + special > self.max_text_length:
                raise ValueError(
                    f"names[{place}]: {count} tokens, expected at most {self.max_text_length - special}: "
                    f"{names[place][:60]!r}…"
                )
            if used + count > self.max_text_length:
                if skip:
                    continue
                break
            found.append(place)
            used += count + between
        return found

    @staticmethod
    def phrases_of(caption: str) -> list[list[tuple[int, int]]]:
        """The spans of each noun phrase of a caption, as `captions` takes them without `phrases`. ValueError if there
        is none."""
        return read_phrases(caption, None, "caption")

    @staticmethod
    def caption_of(names: Sequence[str]) -> tuple[str, list[list[tuple[int, int]]]]:
        """Class names as a caption and its phrases, which are encoded as the names would be."""
        return join_names(_checked_names(names, "names"))

    def _encoded(self, prompts, what: str, options) -> dict[str, torch.Tensor]:
        encoding = self.tokenizer(
            [text for text, _ in prompts], return_tensors="pt", **options | {"split_special_tokens": True}
        )
        length = encoding.input_ids.shape[1]
        used = encoding.attention_mask.sum(dim=1).tolist()
        for i, count in enumerate(used):
            if count > self.max_text_length:
                raise ValueError(f"{what}[{i}]: {count} tokens, expected at most {self.max_text_length}")
        maps = []
        for i, (_, spans) in enumerate(prompts):
            maps.append(phrase_tokens(encoding, i, spans, length, "text" if what == "text" else f"phrases[{i}]"))
        rows = max(map(len, maps))
        padded = torch.stack([torch.nn.functional.pad(one, (0, 0, 0, rows - len(one))) for one in maps])
        return {
            "input_ids": encoding.input_ids,
            "attention_mask": encoding.attention_mask,
            "phrase_map": padded,
        }

    def post_process_grounded_object_detection(
        self,
        outputs,
        input_ids: torch.Tensor | None = None,
        threshold: float = 0.0,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        text_labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """The final detections of each image with the names of their labels, as of Grounding DINO in transformers.

        Args:
            outputs: a model's that was given `phrase_map`.
            input_ids: default: those of `outputs`.
            threshold, target_sizes, options: see `GLIPImageProcessor.post_process_object_detection`.
            text_labels: names of the labels, one list, or one of each image. Default: their tokens, as text.

        Returns:
            dictionaries of `scores` (N,) best first, `labels` (N,), `boxes` (N, 4) as x1, y1, x2, y2, and
            `text_labels` (N names).

        Raises:
            ValueError: `target_sizes` or `text_labels` of another number of images, or fewer names than labels.
        """
        found = self.image_processor.post_process_object_detection(outputs, threshold, target_sizes, **options)
        if text_labels is None:
            input_ids = outputs.get("input_ids") if input_ids is None else input_ids
            if input_ids is None:
                raise ValueError("input_ids: missing, and no text_labels; expected one of them")
            input_ids = input_ids.expand(len(found), *input_ids.shape[1:])
            text_labels = [self._names(*one) for one in zip(input_ids, outputs["phrase_map"], strict=True)]
        elif isinstance(text_labels, str) or not isinstance(text_labels, Sequence):
            raise ValueError(f"text_labels: {text_labels!r}, expected a list of names, or a list for each image")
        elif not text_labels or isinstance(text_labels[0], str):
            text_labels = [text_labels] * len(found)
        if len(text_labels) != len(found):
            raise ValueError(f"text_labels: {len(text_labels)} lists for {len(found)} images, expected one for each")
        for i, one in enumerate(found):
            names = list(text_labels[i])
            if len(one["labels"]) and int(one["labels"].max()) >= len(names):
                raise ValueError(f"text_labels[{i}]: {len(names)} names, a detection has label {one['labels'].max()}")
            one["text_labels"] = [names[label] for label in one["labels"].tolist()]
        return found

    def _names(self, input_ids: torch.Tensor, phrase_map: torch.Tensor) -> list[str]:
        """(T,) and (K, T), or (P, T) and (P, K, T) -> the labels' tokens as texts."""
        if input_ids.dim() == 1:
            return [self.tokenizer.decode(input_ids[row != 0]) for row in phrase_map]
        return [
            self.tokenizer.decode(ids[row != 0])
            for ids, rows in zip(input_ids, phrase_map, strict=True)
            for row in rows[(rows != 0).any(dim=1)]
        ]

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As in transformers; but all at once, see `save_all_at_once`."""
        return save_all_at_once(self, super().save_pretrained, save_directory, push_to_hub=push_to_hub, **kwargs)


def _checked_names(names: Sequence[str], what: str) -> list[str]:
    cleaned = [clean_name(name) for name in check_texts(names, what)]
    for i, name in enumerate(cleaned):
        if not name.strip():
            raise ValueError(f"{what}[{i}]: nothing is left of {names[i]!r} without its brackets, expected a name")
    return cleaned


def glip_processor(tokenizer=None, **settings: Any) -> GLIPProcessor | GLIPImageProcessor:
    """The processor, or without a tokenizer the image processor; `settings` are of the image processor."""
    images = GLIPImageProcessor(**settings)
    return images if tokenizer is None else GLIPProcessor(images, tokenizer)


__all__ = ["SEPARATOR", "GLIPProcessor", "GLIPProcessorKwargs", "glip_processor"]
