"""Prompts made of the nouns of a caption, for training with several texts of an image.

By tags: a caption's words that are nouns or verbs (the published rule: NN, NNS, NNP and VB*, but not NNPS), each in a
random one of the 80 ImageNet templates. By a list: the nouns of a list that the caption names. An image with fewer
nouns than prompts gets its caption instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...modeling.dual_encoders.prompts import resolve_templates
from ...optional_dependencies import require
from ..augmentation.views import view_generator


Tagger = Callable[[str], Sequence[tuple[str, str]]]  # a text -> its words with Penn Treebank tags
TAGS = ("NN", "NNS", "NNP", "VBG", "VB", "VBD", "VBN", "VBP", "VBZ")
CAPTION = -1  # the id of a prompt that is the whole caption


def textblob_tagger() -> Tagger:
    """TextBlob's rule-based tagger, whose lexicon is part of the package: nothing is downloaded. Some 10 000 captions
    a second.

    The published training used NLTK's perceptron, which needs a download:
    `lambda text: nltk.pos_tag(nltk.word_tokenize(text))` is such a tagger.

    Raises:
        ImportError: TextBlob is not installed; names the extra.
    """
    require("textblob", "Finding nouns")
    from textblob.en.taggers import PatternTagger

    return PatternTagger().tag


def tagged_nouns(caption: str, tagger: Tagger, tags: Sequence[str] = TAGS) -> list[str]:
    """The words of a caption with one of `tags`, in its order, with repetitions.

    >>> tagged_nouns("Two dogs run", lambda text: [("Two", "CD"), ("dogs", "NNS"), ("run", "VBP")])
    ['dogs', 'run']
    """
    return [word for word, tag in tagger(caption) if tag in tags]


class NounList:
    """Finds the nouns of a list in captions: whole words, whatever their case, also as an English plural; of two that
    begin at the same word the longer one.

    Args:
        nouns: each may be several words ("hot dog").

    Raises:
        ValueError: not a list, empty, or with a blank.

    Example:
        >>> NounList(["dog", "hot dog", "cherry"]).find("A Hot Dog, two dogs and cherries")
        ['hot dog', 'dog', 'cherry']
    """

    def __init__(self, nouns: Sequence[str]):
        if isinstance(nouns, str) or not nouns or not all(isinstance(n, str) and n.strip() for n in nouns):
            raise ValueError(f"nouns: got {nouns!r}; want a list of words")
        self.of_key = {}
        for noun in nouns:
            self.of_key.setdefault(_keys(noun), noun.strip())
        self.longest = max(map(len, self.of_key))

    def find(self, caption: str) -> list[str]:
        words, found, place = _keys(caption), [], 0
        while place < len(words):
            for length in range(min(self.longest, len(words) - place), 0, -1):
                noun = self.of_key.get(words[place : place + length])
                if noun is not None:
                    found.append(noun)
                    place += length
                    break
            else:
                place += 1
        return found


def _keys(text: str) -> tuple[str, ...]:
    return tuple(word_key(word) for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text))


def word_key(word: str) -> str:
    """A rough stem: words with the same one are taken for the same word, as singular and plural, or forms of a verb.

    It is meant to say too often rather than too seldom that two words are the same.

    >>> [word_key(word) for word in ("Dogs", "cherries", "cherry", "running", "runs", "boxes", "glass", "whale")]
    ['dog', 'cherry', 'cherry', 'run', 'run', 'box', 'glass', 'whal']
    """
    word = word.lower().replace("’", "'").removesuffix("'s")
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes", "zes", "oes")):
        word = word[:-2]
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        if len(word) > len(ending) + 2 and word.endswith(ending) and re.search("[aeiouy]", word[: -len(ending)]):
            word = word[: -len(ending)]
            if len(word) > 2 and word[-1] == word[-2] and word[-1] not in "aeiouls":
                word = word[:-1]
            break
    return word.removesuffix("e") if len(word) > 3 else word


@dataclass(frozen=True)
class DrawnPrompts:
    """`texts`: M prompts. `words`: the noun in each, None where the prompt is the caption."""

    texts: tuple[str, ...]
    words: tuple[str | None, ...]


class NounPrompts:
    """Draws M prompts for a caption. As a transform (`Dataset.with_transform`, `map`) it adds the columns "prompts"
    and "prompt_words" to rows with a caption.

    Nouns are drawn without replacement (a noun that is there twice can be drawn twice), each goes into a random
    template; where there are fewer, the caption itself fills up.

    Args:
        num_prompts (`int`): M.
        nouns (`Sequence[str]`, *optional*): take these nouns instead of tagged words.
        tagger (*optional*): text -> [(word, Penn Treebank tag)]; default TextBlob's (extra `nouns`).
        templates: texts with "{}", or the name of a set.
        text_column (`str`)
        seed (`int`, *optional*): with one, prompts depend on it, on the caption and on `set_epoch` alone. Without,
            they come from torch's generator, which `DataLoader` seeds in its workers.

    Raises:
        ValueError: no prompts, both `nouns` and `tagger`, bad nouns or templates; rows without captions.
        ImportError: neither is given and TextBlob is not installed.

    Example:
        >>> draw = NounPrompts(2, nouns=["cat", "dog"], templates=["a photo of a {}."], seed=0)
        >>> sorted(draw.draw("Two dogs and a cat").texts)
        ['a photo of a cat.', 'a photo of a dog.']
        >>> draw({"text": "One dog"})["prompts"]
        ['a photo of a dog.', 'One dog']

    Paper: "GroupViT: Semantic Segmentation Emerges from Text Supervision", https://arxiv.org/abs/2202.11094, section
    3.3.
    """

    def __init__(
        self,
        num_prompts: int = 3,
        nouns: Sequence[str] | None = None,
        tagger: Tagger | None = None,
        templates: str | Sequence[str] = "imagenet",
        text_column: str = "text",
        seed: int | None = None,
    ):
        if num_prompts < 1:
            raise ValueError(f"num_prompts: got {num_prompts}; want at least one")
        if nouns is not None and tagger is not None:
            raise ValueError("nouns, tagger: got both; want one of them")
        self.num_prompts, self.text_column = num_prompts, text_column
        self.nouns = None if nouns is None else NounList(nouns)
        self.tagger = (tagger or textblob_tagger()) if nouns is None else None
        self.templates = resolve_templates(templates)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """With a `seed`: other prompts from now on."""
        self.epoch = epoch

    def find(self, caption: str) -> list[str]:
        """The nouns of a caption, in its order."""
        return self.nouns.find(caption) if self.tagger is None else tagged_nouns(caption, self.tagger)

    def draw(self, caption: str, generator: torch.Generator | None = None) -> DrawnPrompts:
        """The prompts of one caption.

        Args:
            generator: of all draws, instead of `seed` and torch's own.
        """
        if generator is None and self.seed is not None:
            generator = view_generator(self.seed, 0, f"{self.epoch}\0{caption}")
        found = self.find(caption)
        chosen = torch.randperm(len(found), generator=generator)[: self.num_prompts].tolist()
        templates = torch.randint(len(self.templates), (len(chosen),), generator=generator).tolist()
        words: list[str | None] = [found[place] for place in chosen]
        texts = [self.templates[t].replace("{}", word) for t, word in zip(templates, words, strict=True)]
        missing = self.num_prompts - len(words)
        return DrawnPrompts((*texts, *[caption] * missing), (*words, *[None] * missing))

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """One row, or several as a dictionary of lists."""
        if self.text_column not in rows:
            raise ValueError(f"text_column: rows have {sorted(rows)}; want {self.text_column!r}")
        captions = rows[self.text_column]
        if isinstance(captions, str):
            drawn = self.draw(captions)
            return {**rows, "prompts": list(drawn.texts), "prompt_words": list(drawn.words)}
        drawn = [self.draw(caption) for caption in captions]
        return {
            **rows,
            "prompts": [list(one.texts) for one in drawn],
            "prompt_words": [list(one.words) for one in drawn],
        }


class NounPromptCollator:
    """Rows of an image and a caption -> what multi-label contrastive training takes: `pixel_values`, `input_ids`,
    `attention_mask` (B, T) of captions, `prompt_input_ids`, `prompt_attention_mask` (B, M, T), `return_loss=True`.

    Rows that have the columns "prompts" and "prompt_words" already keep theirs.

    Args:
        processor: a processor with image processor and tokenizer.
        prompts ([`NounPrompts`]): its `text_column` is the caption's.
        image_column (`str`): of images; "pixel_values" in rows (from a transform) are stacked as they are.
        word_ids (`bool`): also `prompt_word_ids` (B, M): numbers of the words in this batch, the same for forms of
            one word (`word_key`), -1 where the prompt is the caption.

    Raises:
        ValueError: an empty batch, or rows without the columns.
    """

    def __init__(self, processor: Any, prompts: NounPrompts, image_column: str = "image", word_ids: bool = False):
        self.processor, self.prompts = processor, prompts
        self.image_column, self.word_ids = image_column, word_ids

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Any]:
        if not rows:
            raise ValueError("NounPromptCollator: got an empty batch")
        rows = [row if "prompts" in row else self.prompts(row) for row in rows]
        captions = [row[self.prompts.text_column] for row in rows]
        prompts = [text for row in rows for text in row["prompts"]]
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        tokens = tokenizer([*captions, *prompts], padding=True, truncation=True, return_tensors="pt")
        batch = {}
        for name in ("input_ids", "attention_mask"):
            batch[name] = tokens[name][: len(rows)]
            batch[f"prompt_{name}"] = tokens[name][len(rows) :].unflatten(0, (len(rows), -1))
        if "pixel_values" in rows[0]:
            batch["pixel_values"] = torch.stack([torch.as_tensor(row["pixel_values"]) for row in rows])
        elif self.image_column in rows[0]:
            images = [row[self.image_column] for row in rows]
            image_processor = getattr(self.processor, "image_processor", self.processor)
            batch["pixel_values"] = image_processor(images=images, return_tensors="pt")["pixel_values"]
        else:
            raise ValueError(
                f"NounPromptCollator: rows have {sorted(rows[0])}; want {self.image_column!r}. With Trainer, pass "
                "remove_unused_columns=False."
            )
        if self.word_ids:
            batch["prompt_word_ids"] = word_ids([row["prompt_words"] for row in rows])
        return {**batch, "return_loss": True}


def word_ids(words: Sequence[Sequence[str | None]]) -> torch.Tensor:
    """(B, M) int64: the same number for forms of one word, `CAPTION` for None.

    >>> word_ids([["dog", "cat"], ["dogs", None]]).tolist()
    [[0, 1], [0, -1]]
    """
    numbers: dict[tuple[str, ...], int] = {}
    return torch.tensor(
        [[CAPTION if word is None else numbers.setdefault(_keys(word), len(numbers)) for word in row] for row in words]
    )


__all__ = [
    "TAGS",
    "DrawnPrompts",
    "NounList",
    "NounPromptCollator",
    "NounPrompts",
    "tagged_nouns",
    "textblob_tagger",
    "word_ids",
    "word_key",
]
