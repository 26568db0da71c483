"""VPT on CLIP (first layer) equals the official code; `tests/support/vpt_parity.py` says what is compared."""

import pytest
from vpt_parity import check_classifier, check_plain_clip_model


pytestmark = pytest.mark.parity


def test_plain_clip_model_equals_official_code():
    check_plain_clip_model("vpt_shallow")


def test_classifier_equals_official_code():
    check_classifier("vpt_shallow")
