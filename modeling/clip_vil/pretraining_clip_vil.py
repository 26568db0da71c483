"""Batches for CLIP-ViL's pre-training: masked words, texts of other images, answers (section 4.1).

`Trainer` runs it with [`ClipViLPreTrainingCollator`] as `data_collator`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..questions.answer_labels import IGNORED


class ClipViLPreTrainingCollator:
    r"""
    Rows with an image and a text (and maybe an answer) -> inputs of [`ClipViLForPreTraining`].

    Half of the texts are replaced by those of other rows of the batch; their answers do not count. Of all texts 15 %
    of the words are chosen; of those 80 % become [MASK], 10 % another word, 10 % stay. At least one word of a text is.

    Args:
        processor: a [`ClipViLProcessor`].
        mlm_probability (`float`, defaults to 0.15): share of words that are to be predicted.
        mismatch_probability (`float`, defaults to 0.5): share of texts that are another image's.
        seed (`int`, *optional*): for the same draws again; None: PyTorch's generator.

    A row has `text`, `image` (what the processor reads) or `grid_features`, and maybe `answer`, an answer's number.

    Raises:
        ValueError: no rows, a row without an image or a text, rows with and without grids, a share outside of 0..1, a
            tokenizer without a mask.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import BertTokenizerFast
    >>> from hf_clip_variants import ClipViLImageProcessor, ClipViLProcessor
    >>> from hf_clip_variants.modeling.clip_vil.pretraining_clip_vil import ClipViLPreTrainingCollator

    >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog"]
    >>> tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    >>> collate = ClipViLPreTrainingCollator(ClipViLProcessor(ClipViLImageProcessor(), tokenizer), seed=0)
    >>> image = Image.new("RGB", (64, 48))
    >>> batch = collate([{"image": image, "text": "a cat"}, {"image": image, "text": "a dog", "answer": 3}])
    >>> sorted(name for name in batch if "label" in name)
    ['answer_labels', 'labels', 'matching_labels']
    ```
    """

    def __init__(
        self,
        processor: Any,
        mlm_probability: float = 0.15,
        mismatch_probability: float = 0.5,
        seed: int | None = None,
    ):
        for name, value in (("mlm_probability", mlm_probability), ("mismatch_probability", mismatch_probability)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: {value}, expected a number in 0..1")
        if processor.tokenizer.mask_token_id is None:
            raise ValueError("processor: its tokenizer has no mask token")
        self.processor, self.mlm_probability = processor, mlm_probability
        self.mismatch_probability = mismatch_probability
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if not rows:
            raise ValueError("rows: none, expected at least one image with a text")
        stored = ["grid_features" in row for row in rows]
        for place, row in enumerate(rows):
            if not isinstance(row.get("text"), str) or not row["text"].strip():
                raise ValueError(f"rows[{place}]: text is {row.get('text')!r}, expected what is said of the image")
            if not stored[place] and row.get("image") is None:
                raise ValueError(f"rows[{place}]: no image, expected image or grid_features")
        if any(stored) and not all(stored):
            raise ValueError("rows: some with grid_features and some with images, expected one kind")
        matches = self._drawn(len(rows), 1 - self.mismatch_probability)
        if len(rows) == 1:
            matches[:] = True  # there is no other text
        texts = [row["text"] if matches[i] else self._other(rows, i) for i, row in enumerate(rows)]
        # The same caption of two images fits both.
        matches = torch.tensor([text == row["text"] for text, row in zip(texts, rows, strict=True)])
        found = dict(self.processor(text=texts, return_tensors="pt"))
        found["input_ids"], found["labels"] = self._masked(found["input_ids"], found["attention_mask"])
        found["matching_labels"] = matches.long()
        answers = [row.get("answer") for row in rows]
        if any(answer is not None for answer in answers):
            known = [IGNORED if answer is None else int(answer) for answer in answers]
            found["answer_labels"] = torch.tensor(known).masked_fill(~matches, IGNORED)
        if all(stored):
            grids = [torch.as_tensor(row["grid_features"], dtype=torch.float32) for row in rows]
            return found | {"grid_features": torch.stack(grids)}
        return found | dict(self.processor(images=[row["image"] for row in rows], return_tensors="pt"))

    def _drawn(self, shape, probability: float) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator) < probability

    def _other(self, rows, place: int) -> str:
        step = int(torch.randint(1, len(rows), (1,), generator=self.generator))
        return rows[(place + step) % len(rows)]["text"]

    def _masked(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids with masks, and labels, -100 where nothing is to be predicted."""
        tokenizer = self.processor.tokenizer
        special = torch.tensor(
            [tokenizer.get_special_tokens_mask(one, already_has_special_tokens=True) for one in ids.tolist()]
        )
        words = (special == 0) & (mask > 0)
        chosen = self._drawn(ids.shape, self.mlm_probability) & words
        if self.mlm_probability > 0:
            lucky = torch.rand(ids.shape, generator=self.generator).masked_fill(~words, -1).argmax(dim=1)
            empty = ~chosen.any(dim=1) & words.any(dim=1)
            chosen[empty, lucky[empty]] = True
        labels = ids.masked_fill(~chosen, IGNORED)
        kind = torch.rand(ids.shape, generator=self.generator)
        others = torch.randint(len(tokenizer), ids.shape, generator=self.generator)
        hidden = ids.masked_fill(chosen & (kind < 0.8), tokenizer.mask_token_id)
        return torch.where(chosen & (kind >= 0.9), others, hidden), labels


__all__ = ["ClipViLPreTrainingCollator"]
