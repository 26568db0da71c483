"""What each of GLIPv2's losses is for, on drawn scenes, against the same model trained without it."""

import sys

import pytest
import torch
from glipv2_runs import glipv2_model, glipv2_processor
from paths import SCRIPTS


WITHOUT = {"inter_image_weight": 0.0, "mlm_weight": 0.0, "mask_weight": 0.0}


@pytest.fixture
def script(monkeypatch):
    """scripts/glipv2_losses.py, whose table has each loss alone."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import glipv2_losses

    yield glipv2_losses
    sys.modules.pop("glipv2_losses", None)


def measured(script, **fields) -> dict[str, float]:
    model, processor = glipv2_model(**fields).train(), glipv2_processor()
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    # With a constant rate, figures go up and down from step to step, and differ between processors.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, 90)
    for step in range(90):
        loss = model(**script.make_batch(processor, 6, step)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return script.measure(model.eval(), processor, 24)


@pytest.mark.slow
def test_each_loss_gives_what_the_model_without_it_has_not(script):
    found, without = measured(script), measured(script, **WITHOUT)
    assert found["words"] > 0.9 and without["words"] < 0.5
    assert found["regions"] > without["regions"] + 0.25
    assert found["masks"] > without["masks"] + 0.2
