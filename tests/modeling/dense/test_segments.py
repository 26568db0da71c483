"""Segments equal the plain way: resize all logits, argmax, softmax, mean over each label's pixels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_clip_variants.modeling.dense.background import add_background
from hf_clip_variants.modeling.dense.label_maps import post_process_semantic_segmentation
from hf_clip_variants.modeling.dense.outputs_dense import PromptableSegmentationOutput
from hf_clip_variants.modeling.dense.segments import NO_LABEL, find_segments


def plain(logits, size, background=None):
    resized = torch.nn.functional.interpolate(logits[None], size=size, mode="bilinear")[0]
    probabilities, labels = resized.softmax(0), resized.argmax(0)
    if background is not None:
        channel = torch.nn.functional.interpolate(background[None, None], size=size, mode="bilinear")[0, 0]
        labels = torch.where(channel > resized.max(0).values, NO_LABEL, labels)
    areas = torch.stack([(labels == n).sum() for n in range(len(logits))])
    scores = [probabilities[n][labels == n].mean() if areas[n] else torch.tensor(0.0) for n in range(len(logits))]
    return labels, areas, torch.stack(scores)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 5), st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(1, 8))
def test_chunks_of_any_size_give_the_plain_result(labels, side, size, chunk):
    generator = torch.Generator().manual_seed(labels * side * chunk)
    logits = 3 * torch.randn(labels, side, side + 1, generator=generator)
    for background in (None, torch.randn(side, side + 1, generator=generator)):
        found = find_segments(logits, size, background, chunk)
        expected = plain(logits, size, background)
        assert torch.equal(found.label_map.long(), expected[0]) and torch.equal(found.areas, expected[1])
        torch.testing.assert_close(found.scores, expected[2], atol=1e-6, rtol=1e-5)


def test_labels_are_those_of_the_post_processing():
    logits = torch.randn(1, 5, 12, 20, generator=torch.Generator().manual_seed(0))
    output = PromptableSegmentationOutput(logits=logits)
    (expected,) = post_process_semantic_segmentation(output, [(33, 47)])
    assert torch.equal(find_segments(logits[0], (33, 47)).label_map.long(), expected)
    with_background, channel = add_background(logits, torch.tensor(0.8))
    (expected,) = post_process_semantic_segmentation(PromptableSegmentationOutput(logits=with_background), [(33, 47)])
    found = find_segments(logits[0], (33, 47), channel[0])
    assert torch.equal(found.label_map.long() + 1, expected) and (expected == 0).any() and (expected > 0).any()


def test_probabilities_are_taken_as_they_are():
    scores = torch.tensor([[[0.2, 0.9]], [[0.7, 0.0]]])
    found = find_segments(scores, (1, 2), are_probabilities=True)
    assert found.label_map.tolist() == [[1, 0]]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7]))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"logits: got \[2, 2\], expected \[labels, height, width\]"):
        find_segments(torch.zeros(2, 2), (2, 2))
