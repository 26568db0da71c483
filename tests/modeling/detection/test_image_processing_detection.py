"""Settings of the detectors' image processors that do not fit the images."""

import pytest
import torch

from hf_clip_variants import GLIPImageProcessor, ViLDImageProcessor


@pytest.mark.parametrize("make", [GLIPImageProcessor, ViLDImageProcessor])
@pytest.mark.parametrize("do_pad", [False, None])
def test_images_of_two_sizes_without_padding_are_an_error_that_names_do_pad(make, do_pad):
    images = [torch.zeros(3, 30, 40, dtype=torch.uint8), torch.zeros(3, 30, 35, dtype=torch.uint8)]
    processor = make(do_pad=do_pad)
    with pytest.raises(ValueError, match="do_pad: False, but images of more than one size"):
        processor(images, return_tensors="pt")
    with pytest.raises(ValueError, match="do_pad: False, but images of more than one size"):
        make()(images, return_tensors="pt", do_pad=do_pad)
    assert processor(images[:1], return_tensors="pt").pixel_values.shape[0] == 1
