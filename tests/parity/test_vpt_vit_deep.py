"""The original VPT on ViT (all layers) equals KMnP/vpt; `tests/support/vpt_parity.py` says what is compared."""

import pytest
from vpt_parity import check_vit, initial_bound


pytestmark = pytest.mark.parity


def test_vit_equals_official_code():
    check_vit("vpt_vit_deep")


def test_initial_range_is_the_official_one():
    bound, prompts = initial_bound("vpt_vit_deep")
    assert prompts.abs().max() <= bound and prompts.abs().max() > 0.99 * bound
