"""Label maps at the size of the image."""

import ctypes
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import SegformerImageProcessor
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_clip_variants.modeling.dense.label_maps import (
    argmax_labels,
    argmax_labels_reference,
    post_process_semantic_segmentation,
)


def random_logits(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("chunk", [1, 3, 16, 1000])
@pytest.mark.parametrize("labels", [1, 2, 16, 33])
def test_labels_equal_the_plain_way(labels, chunk):
    logits = random_logits(2, labels, 7, 9)
    for size in (None, (7, 9), (20, 31), (3, 4), (1, 1)):
        for align_corners in (False, True):
            found = argmax_labels(logits, size, align_corners, chunk=chunk)
            assert found.dtype == torch.int64
            assert torch.equal(found, argmax_labels_reference(logits, size, align_corners))


def test_of_equal_scores_the_first_label_is_taken():
    logits = torch.zeros(1, 40, 4, 4)
    logits[:, 20:] = 1.0
    assert argmax_labels(logits, (8, 8), chunk=7).unique().tolist() == [20]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_number_types_and_layouts(dtype):
    logits = random_logits(1, 40, 7, 9).to(dtype)
    assert torch.equal(argmax_labels(logits, (20, 31)), argmax_labels_reference(logits, (20, 31)))
    interleaved = random_logits(1, 40, 7, 9).contiguous(memory_format=torch.channels_last)
    assert torch.equal(argmax_labels(interleaved, (20, 31)), argmax_labels_reference(interleaved, (20, 31)))


def test_maps_need_a_third_of_the_memory_of_the_logits_at_most():
    """150 labels; measured as the process's peak, with chunks larger than what malloc keeps."""

    def kilobytes(name):
        return int(Path("/proc/self/status").read_text().split(name)[1].split()[0])

    logits, size = random_logits(1, 150, 200, 200), (800, 800)
    argmax_labels(logits, (8, 8))  # libraries are loaded
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests have freed would be used again, unseen
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = kilobytes("VmRSS:")
    argmax_labels(logits, size)
    peak, materialised = 1024 * (kilobytes("VmHWM:") - before), 4 * 150 * 800 * 800
    assert 4 * 16 * 800 * 800 < peak <= 0.35 * materialised, f"{peak / materialised:.2f}"


# ---- post-processing


@pytest.mark.parametrize("target_sizes", [None, [(20, 31), (5, 6)], torch.tensor([[20, 31], [5, 6]])])
@pytest.mark.parametrize("with_scores", [False, True])
def test_post_processing_equals_transformers(target_sizes, with_scores):
    outputs = SemanticSegmenterOutput(logits=random_logits(2, 40, 7, 9))
    listed = None if target_sizes is None else [tuple(map(int, size)) for size in target_sizes]
    theirs = SegformerImageProcessor().post_process_semantic_segmentation(outputs, listed, with_scores)
    ours = post_process_semantic_segmentation(outputs, target_sizes, with_scores)
    assert len(ours) == len(theirs) == 2
    for our, their in zip(ours, theirs, strict=True):
        if with_scores:
            assert type(our) is SemanticSegmentationPostProcessorOutput
            assert torch.equal(our.segmentation_scores, their.segmentation_scores)
            our, their = our.segmentation, their.segmentation
        assert torch.equal(our, their) and our.dtype == their.dtype


def test_padding_is_cut_off():
    logits = random_logits(2, 3, 8, 8)
    outputs = SemanticSegmenterOutput(logits=logits)
    found = post_process_semantic_segmentation(outputs, [(10, 6), (16, 16)], content_sizes=[(5, 3), (8, 8)])
    expected = F.interpolate(logits[:1, :, :5, :3], size=(10, 6), mode="bilinear").argmax(1)[0]
    assert torch.equal(found[0], expected) and found[1].shape == (16, 16)


@pytest.mark.parametrize(
    "sizes, message",
    [([(4, 4)], "1 sizes for 2 images"), ([(4, 4), (0, 4)], "target_sizes"), ([4, 4], "target_sizes")],
)
def test_bad_target_sizes_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        post_process_semantic_segmentation(SemanticSegmenterOutput(logits=random_logits(2, 3, 8, 8)), sizes)
