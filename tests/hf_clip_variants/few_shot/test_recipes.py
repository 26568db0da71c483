"""Recipes: the figures of the method sheets, and schedules that equal the published optimisers'."""

import math
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from hf_clip_variants.few_shot.method import FEW_SHOT_METHODS
from hf_clip_variants.few_shot.recipes import DATASETS, coop_lr_schedule, recipe


def test_coop_learning_rates_equal_dassls():
    rates = [coop_lr_schedule(epoch, 3.5e-3, 5) for epoch in range(5)]
    assert rates == pytest.approx([1e-5, 3.5e-3, 3.166e-3, 2.291e-3, 1.209e-3], abs=5e-7)
    for bad in ((-1, 5), (0, 0)):
        with pytest.raises(ValueError, match="epoch, max_epochs: got"):
            coop_lr_schedule(bad[0], 1e-3, bad[1])


@pytest.mark.parametrize(("shots", "epochs"), [(1, 50), (2, 100), (4, 100), (8, 200), (16, 200)])
def test_coop(shots, epochs):
    ours = recipe("coop", shots)
    assert (ours.optimizer, ours.learning_rate, ours.weight_decay, ours.momentum) == ("sgd", 2e-3, 5e-4, 0.9)
    assert (ours.epochs, ours.views, ours.batch_size, ours.augmentation) == (epochs, epochs, 32, "coop")
    assert (ours.warmup_epochs, ours.warmup_learning_rate, ours.drop_last) == (1, 1e-5, True)
    assert (ours.few_shot_protocol, ours.seeds, ours.num_context_tokens) == ("coop", (1, 2, 3), 16)
    assert recipe("coop", shots, "ImageNet").epochs == 50
    assert ours.learning_rate_at(0) == 1e-5 and ours.learning_rate_at(1, 7, 9) == 2e-3
    assert ours.learning_rate_at(epochs - 1) == pytest.approx(1e-3 * (1 + math.cos(math.pi * (epochs - 2) / epochs)))


def test_clip_adapters_recipe_equals_coops_for_imagenet():
    ours, coop = recipe("clip_adapter", 4), recipe("coop", 4, "imagenet")
    for name in ("optimizer", "learning_rate", "weight_decay", "momentum", "epochs", "batch_size", "schedule"):
        assert getattr(ours, name) == getattr(coop, name)
    assert [recipe("clip_adapter", dataset=name).ratio for name in ("imagenet", "dtd")] == [0.2, 0.6]
    assert ours.ratio is None, "it follows from the shots"
    assert ours.ratio_candidates == (0, 0.2, 0.4, 0.6, 0.8, 1)


@pytest.mark.parametrize(
    ("dataset", "scale", "alpha", "epochs"),
    [
        ("imagenet", (7, 3), 1.17, 20),
        ("caltech101", (12, 5), 3, 20),
        ("dtd", (13, 13), 2, 20),
        ("eurosat", (12, 10), 2, 100),
        ("fgvc", (30, 30), 5, 20),
        ("food101", (10, 10), 1.17, 20),
        ("oxford_flowers", (50, 50), 10, 20),
        ("oxford_pets", (7, 3), 1.17, 20),
        ("stanford_cars", (20, 10), 3, 20),
        ("sun397", (12, 10), 1.17, 20),
        ("ucf101", (7, 3), 3, 20),
    ],
)
def test_tip_adapter(dataset, scale, alpha, epochs):
    ours = recipe("tip_adapter_f", 16, dataset)
    assert (ours.search_scale, ours.search_step, ours.init_alpha, ours.init_beta) == (scale, (200, 20), alpha, 1)
    assert (ours.epochs, ours.batch_size, ours.learning_rate, ours.adam_epsilon) == (epochs, 256, 1e-3, 1e-4)
    assert (ours.optimizer, ours.weight_decay, ours.augmentation, ours.cache_views) == ("adamw", 0.01, "tip", 10)
    assert (ours.few_shot_protocol, ours.seeds, ours.drop_last) == ("tip", (1,), False)
    free = recipe("tip_adapter", 16, dataset)
    assert (free.method, free.epochs, free.search_scale, free.init_alpha) == ("tip_adapter", 0, scale, alpha)


def test_tip_adapter_f_schedule_is_torchs_cosine_annealing():
    ours, steps = replace(recipe("tip_adapter_f"), epochs=4), 3
    optimizer = ours.make_optimizer([torch.nn.Parameter(torch.zeros(2))])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4 * steps)
    for index in range(4 * steps):
        assert ours.learning_rate_at(index // steps, index % steps, steps) == pytest.approx(
            optimizer.param_groups[0]["lr"]
        )
        optimizer.step()
        scheduler.step()


def test_optimisers_have_the_recipes_settings():
    sgd = recipe("coop").make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(sgd, torch.optim.SGD)
    assert {k: sgd.defaults[k] for k in ("lr", "momentum", "weight_decay", "dampening", "nesterov")} == {
        "lr": 1e-5,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "dampening": 0,
        "nesterov": False,
    }
    adam = recipe("tip_adapter_f").make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(adam, torch.optim.AdamW)
    assert (adam.defaults["lr"], adam.defaults["eps"], adam.defaults["weight_decay"]) == (1e-3, 1e-4, 0.01)
    assert replace(recipe("coop"), schedule="constant").learning_rate_at(3) == 2e-3


def test_recipes_of_prompts_in_both_encoders_are_the_published_ones():
    maple = recipe("maple", 16)
    assert [round(maple.learning_rate_at(epoch), 6) for epoch in range(5)] == [
        1e-05,
        0.0035,
        0.003166,
        0.002291,
        0.001209,
    ]
    assert (maple.batch_size, maple.num_prompt_tokens, maple.prompt_depth, maple.context_init) == (
        4,
        2,
        9,
        "a photo of a",
    )
    transfer = recipe("maple", 16, "imagenet", protocol="cross_dataset")
    assert (transfer.prompt_depth, transfer.learning_rate, transfer.epochs) == (3, 2.6e-3, 2)
    assert (recipe("vpt").learning_rate, recipe("ivlp").learning_rate, recipe("vpt").num_prompt_tokens) == (
        2.5e-3,
        3.5e-3,
        8,
    )
    cocoop = recipe("cocoop", 16)
    assert (cocoop.batch_size, cocoop.epochs, cocoop.learning_rate_at(0), cocoop.context_init) == (
        1,
        10,
        1e-5,
        "a photo of a",
    )
    assert recipe("coop", 16, protocol="base_to_new").context_init == "a photo of a"
    assert recipe("coop", 16).context_init is None and recipe("coop", 16).num_context_tokens == 16
    with pytest.raises(ValueError, match="protocol: got 'base'; want one of few_shot, base_to_new, cross_dataset"):
        recipe("coop", 16, protocol="base")


def test_names_and_overrides():
    assert len(DATASETS) == 11
    for spelling in ("FGVC-Aircraft", "fgvc_aircraft", "aircraft"):
        assert recipe("tip_adapter_f", dataset=spelling).init_alpha == 5
    for method in FEW_SHOT_METHODS:
        tiny = recipe(method, 2, profile="tiny")
        assert all(getattr(tiny, name) == value for name, value in FEW_SHOT_METHODS[method].small_model.items())
        assert tiny.to_dict()["method"] == method
    with pytest.raises(FrozenInstanceError):
        recipe("coop").epochs = 3
    for bad, message in (
        ({"method": "mapel"}, "method: unknown 'mapel'; did you mean 'maple'"),
        ({"dataset": "imagnet"}, "dataset: got 'imagnet'; want one of caltech101"),
        ({"shots": 0}, "shots: got 0"),
        ({"profile": "large"}, "profile: got 'large'"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe(**{"method": "coop"} | bad)
    for change, message in (
        ({"optimizer": "lion"}, "optimizer: got 'lion'; want one of sgd, adamw"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"epochs": 1.5}, "epochs: got 1.5"),
        ({"learning_rate": float("nan")}, "learning_rate: got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(recipe("coop"), **change)


def test_recipes_and_data_names_import_no_torch():
    script = (
        "import sys, hf_clip_variants.few_shot.recipes, hf_clip_variants.data as d; from hf_clip_variants.data import "
        "emoji_styles;"
        "emoji_styles(); dir(d); print([m for m in ('torch', 'datasets', 'transformers.models', 'peft') if m in "
        "sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
