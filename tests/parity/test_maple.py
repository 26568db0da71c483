"""MaPLe equals the official code (random context); `tests/support/maple_parity.py` says what is compared."""

import pytest
from maple_parity import check_classifier, check_plain_clip_model


pytestmark = pytest.mark.parity


def test_plain_clip_model_equals_official_code():
    check_plain_clip_model("maple")


def test_classifier_equals_official_code():
    check_classifier("maple")
