"""Retrieval among held-out pairs."""

import torch
from transformers import AutoModel, AutoProcessor

from hf_clip_variants import embedded_model
from hf_clip_variants.data.images.emoji import FOLDER
from hf_clip_variants.data.pairs.sources import open_pairs
from hf_clip_variants.evaluation.retrieval import RetrievalSet, retrieval_of_pairs


def test_pairs_with_equal_texts_are_right_answers_to_each_other():
    pairs = open_pairs(",".join(str(FOLDER / f"{s}.parquet") for s in ("notov1", "fluentflat")), text_columns=["name"])
    first = pairs.dataset.select([i + 190 * style for i in range(0, 40) for style in (0, 1)])
    held_out = RetrievalSet("icons", type(pairs)(first, "image", ("name",)))
    model = AutoModel.from_pretrained(embedded_model(), dtype=torch.float32)
    found = retrieval_of_pairs(model, AutoProcessor.from_pretrained(embedded_model()), held_out, 32)
    metrics = ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank")
    directions = ("text_to_image", "image_to_text")
    assert set(found) == {f"{direction}_{metric}" for direction in directions for metric in metrics}
    # Each text is there twice: were only the pair's own right, a tie would spoil every first rank.
    assert found["image_to_text_recall_at_1"] > 0.4
