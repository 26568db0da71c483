"""The contract of models on VQGAN-CLIP's autoencoder, which is a model of its own: both quantisers."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
from model_contract import ModelCase, ModelContract
from painting_runs import VQGAN_BAD_VALUES, reconstruction_batch, vqgan_config, with_corners

from hf_clip_variants.registry import Method, method


@dataclass(frozen=True)
class PartCase(ModelCase):
    @property
    def row(self) -> Method:
        """As if the part were a method."""
        whole = method(self.name)
        (part,) = whole.submodels
        classes = part.auto_classes
        return replace(whole, config=part.config, model=classes["AutoModel"], auto_classes=classes, submodels=())

    @property
    def id(self) -> str:
        return f"{self.name}-{self.config().quantizer}"


COMMON = {
    "name": "vqgan_clip",
    "inputs": reconstruction_batch,
    "loss_options": {"return_loss": True},
    "by_row": ("reconstruction", "latents"),
    "output": "reconstruction",
    "rounding": 1e-5,
}
CASES = [
    PartCase(config=vqgan_config, bad_values=VQGAN_BAD_VALUES, prepare=with_corners, **COMMON),
    PartCase(config=partial(vqgan_config, quantizer="gumbel"), **COMMON),
]


@pytest.fixture(params=CASES, ids=lambda case: case.id)
def case(request):
    return request.param


class TestAutoencoder(ModelContract):
    def test_bfloat16_is_near_float32(self, case):
        """Before codes are chosen: rounding moves some latents to the other side of an edge."""
        super().test_bfloat16_is_near_float32(replace(case, output="latents"))
