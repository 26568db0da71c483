"""GLIP: what the linear probe trains. tests/scripts/test_finetune_tunings.py has prompt and full tuning."""

import pytest
import torch
from glip_runs import PROBE, glip_inputs, glip_model


@pytest.mark.parametrize("use_fusion", [True, False])
def test_the_linear_probe_trains_the_official_tensors(use_fusion):
    model = glip_model(use_fusion=use_fusion)
    model.set_tuning("linear_probe")
    model.train()
    still = {name for name, module in model.named_children() if not module.training}
    assert still == {"backbone", "pyramid", "text_encoder"} and model.training and model.layers.training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(**glip_inputs(2)).loss.backward()
        optimizer.step()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == PROBE
    assert {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])} == PROBE
    model.set_tuning("full")
    assert all(p.requires_grad for p in model.parameters()) and model.text_encoder.training
    with pytest.raises(ValueError, match="mode: 'prompt', expected 'full' or 'linear_probe'"):
        model.set_tuning("prompt")
