"""Tip-Adapter and Tip-Adapter-F equal gaopengcuhk/Tip-Adapter: cache, logits, search, two training steps of keys."""

import re

import pytest
import torch
import torch.nn.functional as F
from adapter_models import Compared, fixture_classifier
from parity_fixtures import assert_close, load_fixture
from peft import get_peft_model

from hf_clip_variants.adapters import TipAdapterConfig, put_adapter
from hf_clip_variants.adapters.tip_adapter.convert import convert_tip_adapter, labels_from_one_hot
from hf_clip_variants.adapters.tip_adapter.search import search_alpha_beta


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("tip_adapter")


@pytest.fixture(scope="module")
def features(fixture):
    """Un-normalised image features of the fixture's images; (V, N, D) of the augmented views."""
    model = fixture_classifier(fixture, fixture.inputs["template_input_ids"])
    with torch.no_grad():
        views = torch.stack([model.get_image_features(view).pooler_output for view in fixture.inputs["train_views"]])
        return views, model.get_image_features(fixture.inputs["val_images"]).pooler_output


def _model(fixture, **config):
    base = fixture_classifier(fixture, fixture.inputs["template_input_ids"])
    return get_peft_model(base, TipAdapterConfig(**config))


def test_equals_official_code(fixture, features):
    compare = Compared(fixture)
    views, val_features = features
    labels, val_labels = fixture.inputs["train_labels"], fixture.inputs["val_labels"]
    model = _model(fixture)
    layer, config = model.get_base_model().logit_head, model.peft_config["default"]
    model.build_cache(views, labels)
    compare("cache_keys", layer.clipv_tip_adapter_keys["default"].t())
    compare("cache_values", F.one_hot(layer.clipv_tip_adapter_labels["default"], config.num_classes))

    output = model(pixel_values=fixture.inputs["val_images"])
    compare("val_features", output.image_embeds)
    compare("clip_weights", output.text_embeds.t())
    config.alpha = 0.0
    compare("clip_logits", model(image_features=val_features).logits)
    for key in fixture.outputs:
        if found := re.fullmatch(r"tip_logits\.beta(.+)_alpha(.+)", key):
            config.beta, config.alpha = map(float, found.groups())
            compare(key, model(image_features=val_features).logits)

    grid = {"scale": fixture.hparam("search_scale"), "steps": fixture.hparam("search_step")}
    found = model.search_hyperparameters(val_features, val_labels, **grid)
    assert (config.alpha, config.beta) == (found.alpha, found.beta)
    compare("search.best_beta", found.beta)
    compare("search.best_alpha", found.alpha)
    compare("search.accuracy_grid", found.accuracies)

    inputs = {k.removeprefix("search2."): v for k, v in fixture.inputs.items() if k.startswith("search2.")}
    found = search_alpha_beta(
        inputs["features"],
        inputs["labels"],
        inputs["clip_weights"].t(),
        inputs["cache_keys"].t(),
        labels_from_one_hot(inputs["cache_values"]),
        scale=fixture.hparam("search2_scale"),
        steps=fixture.hparam("search2_step"),
    )
    compare("search2.best_beta", found.beta)
    compare("search2.best_alpha", found.alpha)
    compare("search2.accuracy_grid", found.accuracies)
    compare("search2.betas", found.betas)
    compare("search2.alphas", found.alphas)

    recipe = fixture.hparam("F")
    model = _model(fixture, beta=recipe["beta"], alpha=recipe["alpha"], trainable_keys=True)
    model.build_cache(views, labels)
    keys = model.get_base_model().logit_head.clipv_tip_adapter_keys["default"]
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=recipe["lr"], eps=recipe["adamw_eps"]
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe["T_max"])
    # The official loop draws a new view in each epoch; the fixture's view is in its outputs.
    train_features = fixture.outputs["F.train_features"]
    unit = F.normalize(views, dim=-1)
    nearest = (unit - train_features).abs().amax(dim=(1, 2)).argmin()
    compare("F.train_features", unit[nearest])
    for step in (1, 2):
        output = model(image_features=views[nearest], labels=labels)
        if step == 1:
            compare("F.logits", output.logits)
            compare("F.loss", output.loss)
        optimizer.zero_grad()
        output.loss.backward()
        if step == 1:
            compare("F.grad_weight", keys.grad)
        optimizer.step()
        scheduler.step()
        compare(f"F.weight_after_step{step}", keys)
        compare(f"F.lr_after_step{step}", scheduler.get_last_lr()[0])
    compare.assert_complete()


def test_converted_cache_equals_built_cache(fixture, features):
    views, val_features = features
    built = _model(fixture)
    built.build_cache(views, fixture.inputs["train_labels"])
    files = fixture.outputs["cache_keys"], fixture.outputs["cache_values"]
    config, tensors = convert_tip_adapter(*files)
    converted = put_adapter(fixture_classifier(fixture, fixture.inputs["template_input_ids"]), config, tensors)
    assert_close(converted(image_features=val_features).logits, built(image_features=val_features).logits)

    config, tensors = convert_tip_adapter(*files, fixture.outputs["F.weight_after_step2"])
    assert config.trainable_keys
    assert torch.equal(tensors["logit_head.clipv_tip_adapter_keys"], fixture.outputs["F.weight_after_step2"])


def test_converter_is_strict(fixture):
    keys, values = fixture.outputs["cache_keys"], fixture.outputs["cache_values"]
    with pytest.raises(ValueError, match="keys: shape"):
        convert_tip_adapter(keys[:, 1:], values)
    with pytest.raises(ValueError, match="not one-hot"):
        convert_tip_adapter(keys, values * 0.5)
    with pytest.raises(ValueError, match="best_keys: shape"):
        convert_tip_adapter(keys, values, keys)
    with pytest.raises(ValueError, match="have no image"):
        convert_tip_adapter(keys, values, num_classes=values.shape[1] + 1)
    config, _ = convert_tip_adapter(keys, values, num_classes=values.shape[1] + 1, allow_missing_classes=True)
    assert config.num_classes == values.shape[1] + 1
