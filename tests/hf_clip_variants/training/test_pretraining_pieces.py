"""Decay groups and learning rates of contrastive pre-training."""

import pickle
from functools import partial

import pytest
import torch
from tiny import tiny_clip

from hf_clip_variants.training.lr_schedules import warmup_cosine
from hf_clip_variants.training.parameter_groups import weight_decay_groups


def test_vectors_and_scalars_do_not_decay():
    model = tiny_clip()
    decays, stays = weight_decay_groups(model, 0.2)
    names = {id(p): name for name, p in model.named_parameters()}
    kept = {names[id(p)] for p in stays["params"]}
    assert {"logit_scale", "text_model.final_layer_norm.weight", "vision_model.pre_layrnorm.bias"} <= kept
    decayed = {names[id(p)] for p in decays["params"]}
    assert {"text_projection.weight", "text_model.embeddings.position_embedding.weight"} <= decayed
    assert decays["weight_decay"] == 0.2 and stays["weight_decay"] == 0 and not kept & decayed
    assert kept | decayed == set(names.values())


def test_frozen_parameters_are_in_no_group():
    model = tiny_clip()
    model.text_model.requires_grad_(False)
    found = sum(len(group["params"]) for group in weight_decay_groups(model, 0.1))
    assert found == sum(p.requires_grad for p in model.parameters())
    model.requires_grad_(False)
    model.logit_scale.requires_grad_(True)
    (only,) = weight_decay_groups(model, 0.1)
    assert only["weight_decay"] == 0 and len(only["params"]) == 1
    with pytest.raises(ValueError, match="weight_decay: got -1"):
        weight_decay_groups(model, -1)


def test_schedule_sets_learning_rates_and_resumes():
    schedule = partial(warmup_cosine, peak=0.5, num_steps=20, warmup_steps=5, start=0.1, end=0.05)

    def rates(steps, state=None):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        if state:
            scheduler.load_state_dict(state)
            optimizer.param_groups[0]["lr"] = scheduler.get_last_lr()[0]
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found, scheduler.state_dict()

    whole, _ = rates(25)
    assert whole[0] == pytest.approx(0.1) and whole[4] == pytest.approx(0.5) == whole[5]
    assert whole[1] - whole[0] == pytest.approx(0.1) and whole[19] > 0.05 and whole[20:] == [pytest.approx(0.05)] * 5
    assert all(a > b for a, b in zip(whole[5:20], whole[6:21], strict=True))
    first, state = rates(12)
    second, _ = rates(13, pickle.loads(pickle.dumps(state)))
    assert first + second == pytest.approx(whole)


def test_edges_of_the_schedule():
    assert warmup_cosine(0, peak=1.0, num_steps=10, warmup_steps=0) == 1
    assert warmup_cosine(0, peak=1.0, num_steps=10, warmup_steps=1, start=0.25) == 0.25
    assert warmup_cosine(9, peak=1.0, num_steps=10, warmup_steps=10, start=0.0) == 1
    for arguments, said in (
        ({"num_steps": 5, "warmup_steps": 6}, "num_steps, warmup_steps: got 5 and 6"),
        ({"num_steps": 0, "warmup_steps": 0}, "num_steps, warmup_steps: got 0 and 0"),
        ({"num_steps": 5, "warmup_steps": 1, "end": -1.0}, "peak, start, end: got"),
    ):
        with pytest.raises(ValueError, match=said):
            warmup_cosine(0, peak=1.0, **arguments)
