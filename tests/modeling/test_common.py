"""The contract of models (tests/support/model_contract.py) over the registry."""

import pytest
from model_contract import CASES, ModelContract

from hf_clip_variants.registry import methods


def test_every_model_of_the_registry_has_a_case():
    assert {case.name for case in CASES.values()} == {row.name for row in methods("model")}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


class TestModels(ModelContract):
    pass
