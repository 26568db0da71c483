"""A new model on trained encoders: fields that do not fit them are told, whatever the method."""

import pytest
import torch
from tiny import tiny_clip
from torch import nn

from hf_clip_variants.modeling.loading_and_saving.copied_weights import copy_weights
from hf_clip_variants.registry import methods


# Models that are made of a CLIP alone.
ON_CLIP = [row for row in methods("model") if hasattr(row.load("model"), "from_clip")]
ON_CLIP = [row for row in ON_CLIP if not hasattr(row.load("model"), "from_parts")]


def ids(row) -> str:
    return f"{row.model_type} {row.load('model').__name__}"


@pytest.mark.parametrize("row", ON_CLIP, ids=ids)
@pytest.mark.parametrize("field, value", [("projection_dim", 7), ("backbone_model_type", "siglip"), ("vocab_size", 9)])
def test_fields_that_do_not_fit_the_encoders_are_told(row, field, value):
    options = {field: value}
    if field == "backbone_model_type" and not hasattr(row.load("config")(), field):
        pytest.skip("it takes a CLIP only")
    if field == "vocab_size":
        field, options = "text_config", {"text_config": tiny_clip().config.text_config.to_dict() | {"vocab_size": 9}}
    with pytest.raises(ValueError, match=field):
        row.load("model").from_clip(tiny_clip(), **options)


def test_all_weights_are_copied_or_none():
    part, source = nn.Linear(3, 2), nn.Linear(3, 2)
    copy_weights(part, source)
    assert torch.equal(part.weight, source.weight) and torch.equal(part.bias, source.bias)
    before = part.weight.clone()
    for weights, message in (
        (
            nn.Linear(3, 2, bias=False),
            "bert: its weights do not fit the new model with width, id2label: bias is missing",
        ),
        (nn.Linear(4, 2), r"weight is \[2, 4\], expected \[2, 3\]"),
        ({**nn.Linear(3, 2).state_dict(), "scale": torch.ones(1)}, "scale has no place"),
    ):
        with pytest.raises(ValueError, match=message):
            copy_weights(part, weights, "bert", ("width", "id2label"))
        assert torch.equal(part.weight, before)
