"""Tip-Adapter: what the contract of all adapters does not test."""

import pytest
import torch
import torch.nn.functional as F
from adapter_models import tiny_classifier
from peft import PeftModel, get_peft_model
from tiny import CLASS_NAMES, tiny_clip, tiny_pixels, tiny_tokenizer
from transformers_adapters import needs_adapter_methods

from hf_clip_variants.adapters import TipAdapterConfig
from hf_clip_variants.adapters.image_cache import cache_logits, make_keys
from hf_clip_variants.adapters.tip_adapter.convert import labels_from_one_hot
from hf_clip_variants.adapters.tip_adapter.model import build_cache
from hf_clip_variants.adapters.tip_adapter.search import search_alpha_beta, search_grid
from hf_clip_variants.data.images.feature_cache import Features


C, K, D = 5, 4, 24
LABELS = torch.arange(C * K) % C


def _toy(seed: int, noise: float = 0.8):
    """Features of five classes around the same five centres, (C * K, D), un-normalised."""
    centres = torch.randn(C, D, generator=torch.Generator().manual_seed(99))
    return centres[LABELS] + noise * torch.randn(C * K, D, generator=torch.Generator().manual_seed(seed))


def _model(features=None, **config):
    model = get_peft_model(tiny_classifier(), TipAdapterConfig(**config))
    model.build_cache(_toy(0) if features is None else features, LABELS)
    return model


def _layer(model):
    return model.get_base_model().logit_head


def test_cache_logits_equal_the_official_one_hot_product():
    generator = torch.Generator().manual_seed(0)
    features, keys = (F.normalize(torch.randn(n, D, generator=generator), dim=-1) for n in (7, C * K))
    labels = LABELS[torch.randperm(C * K, generator=generator)]
    affinity = features @ keys.t()
    expected = ((-1) * (3.3 - 3.3 * affinity)).exp() @ F.one_hot(labels, C).float()
    torch.testing.assert_close(cache_logits(features, keys, labels, C, 3.3), expected, rtol=1e-5, atol=1e-6)
    uneven = torch.cat([labels[:-3], torch.tensor([0, 0, 0])])
    expected = ((-1) * (3.3 - 3.3 * affinity)).exp() @ F.one_hot(uneven, C).float()
    torch.testing.assert_close(cache_logits(features, keys, uneven, C, 3.3), expected, rtol=1e-5, atol=1e-6)


def test_keys_are_the_mean_of_unnormalised_views():
    views = torch.stack([_toy(0), 5 * _toy(1)])
    keys = make_keys(views)
    torch.testing.assert_close(keys, F.normalize(views.mean(0), dim=-1))
    assert not torch.allclose(keys, F.normalize(F.normalize(views, dim=-1).mean(0), dim=-1), atol=1e-2)
    assert torch.equal(make_keys(views[0]), F.normalize(views[0], dim=-1))


def test_alpha_zero_gives_zero_shot_logits_with_scale_100():
    output = _model(alpha=0.0)(image_features=_toy(1))
    torch.testing.assert_close(output.logits, 100 * output.image_embeds @ output.text_embeds.t(), rtol=1e-5, atol=1e-4)
    base = tiny_classifier()(image_features=_toy(1))
    own = _model(alpha=0.0, logit_scale=None)(image_features=_toy(1))
    torch.testing.assert_close(own.logits, base.logits, rtol=1e-5, atol=1e-4)


def test_large_alpha_and_beta_give_the_nearest_neighbour():
    model = _model(alpha=1e20, beta=60.0)
    features = _toy(1)
    keys = _layer(model).clipv_tip_adapter_keys["default"]
    nearest = LABELS[(F.normalize(features, dim=-1) @ keys.t()).argmax(dim=1)]
    assert torch.equal(model(image_features=features).logits.argmax(1), nearest)
    # A cached image is its own nearest neighbour.
    assert torch.equal(model(image_features=_toy(0)).logits.argmax(1), LABELS)


def test_order_of_cached_images_does_not_matter():
    order = torch.randperm(C * K, generator=torch.Generator().manual_seed(3))
    model, shuffled = _model(), get_peft_model(tiny_classifier(), TipAdapterConfig())
    shuffled.build_cache(_toy(0)[order], LABELS[order])
    pair = [m(image_features=_toy(1)).logits for m in (model, shuffled)]
    torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-4)


def test_tip_adapter_f_starts_from_tip_adapter_and_does_not_change_it():
    model = _model(beta=1.0, alpha=1.17)
    before = model(image_features=_toy(1)).logits
    model.add_adapter("f", TipAdapterConfig(beta=1.0, alpha=1.17, trainable_keys=True))
    layer = _layer(model)
    layer.set_cache("f", layer.clipv_tip_adapter_keys["default"], LABELS)
    model.set_adapter("f")
    assert torch.equal(model(image_features=_toy(1)).logits, before)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "base_model.model.logit_head.clipv_tip_adapter_keys.f"
    ]

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, eps=1e-4)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(model(image_features=_toy(2)).logits, LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(model(image_features=_toy(1)).logits, before)
    model.set_adapter("default")
    assert torch.equal(model(image_features=_toy(1)).logits, before)


def test_search_equals_the_official_double_loop(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    keys = F.normalize(_toy(0), dim=-1)
    features = F.normalize(_toy(1, noise=2.0), dim=-1)
    weights = F.normalize(torch.randn(C, D, generator=generator), dim=-1)
    scale, steps = (9, 20), (6, 7)
    affinity, values = features @ keys.t(), F.one_hot(LABELS, C).float()
    accuracies, best = torch.zeros(steps), (-1.0, None)
    for i in range(steps[0]):
        beta = i * (scale[0] - 0.1) / steps[0] + 0.1
        for j in range(steps[1]):
            alpha = j * (scale[1] - 0.1) / steps[1] + 0.1
            logits = 100.0 * features @ weights.t() + ((-1) * (beta - beta * affinity)).exp() @ values * alpha
            accuracies[i, j] = 100 * (logits.argmax(1) == LABELS).float().mean()
            if accuracies[i, j] > best[0]:
                best = (accuracies[i, j].item(), (alpha, beta))
    assert len(accuracies.unique()) > 3  # otherwise the test compares nothing
    for chunk in (1 << 20, 7 * len(keys)):  # the second: seven images at a time
        monkeypatch.setattr("hf_clip_variants.adapters.tip_adapter.search._CHUNK_ELEMENTS", chunk)
        found = search_alpha_beta(features, LABELS, weights, keys, LABELS, scale=scale, steps=steps)
        torch.testing.assert_close(found.accuracies, accuracies)
        assert (found.alpha, found.beta) == best[1] and found.accuracy == pytest.approx(best[0])


def _full_grid(features, labels, weights, keys, key_labels, scale, steps, dtype=torch.float64):
    """(b, a, n) logit of the correct class minus the best other one, at every point by itself."""
    features, weights, keys = features.to(dtype), weights.to(dtype), keys.to(dtype)
    zero_shot, values = 100 * features @ weights.t(), F.one_hot(key_labels, len(weights)).to(dtype)
    right = F.one_hot(labels, len(weights)).bool()
    margins = []
    for beta in search_grid(scale[0], steps[0]):
        votes = (beta * (features @ keys.t() - 1)).exp() @ values
        logits = zero_shot + torch.tensor(search_grid(scale[1], steps[1]), dtype=dtype)[:, None, None] * votes
        margins.append(logits[:, right] - logits.masked_fill(right, -torch.inf).amax(dim=2))
    return torch.stack(margins)


@pytest.mark.parametrize("seed", range(40))
def test_search_finds_the_optimum_of_the_full_grid(seed):
    """All alphas of a beta come from one pass; nothing of the grid may differ, but for ties of rounding."""
    draw = torch.Generator().manual_seed(seed)

    def pick(*values):
        return values[int(torch.randint(len(values), (), generator=draw))]

    classes, shots, count, width = pick(2, 3, 10, 30), pick(1, 2, 5), pick(1, 7, 60), pick(2, 8, 32)
    noise, pull = pick(0.3, 1.0, 3.0), pick(0.0, 0.3, 1.0)
    scale, steps = pick((7, 3), (50, 50), (20, 10), (0.5, 900)), pick((1, 1), (9, 20), (17, 33), (2, 200))
    centres = torch.randn(classes, width, generator=draw)
    key_labels = torch.arange(classes).repeat_interleave(shots)
    if pick(True, False):  # uneven, in any order, some classes without an image
        key_labels = torch.randint(classes, (len(key_labels),), generator=draw)
    labels = torch.randint(classes, (count,), generator=draw)

    def around(names):
        return F.normalize(centres[names] + noise * torch.randn(len(names), width, generator=draw), dim=-1)

    keys, features = around(key_labels), around(labels)
    if pick(True, False):
        keys = keys * (0.5 + torch.rand(len(keys), 1, generator=draw))  # as after training
    weights = F.normalize(pull * centres + torch.randn(classes, width, generator=draw), dim=-1)
    if classes > 2 and pick(True, False):
        weights[1] = weights[0]  # two classes between which only the votes decide
    found = search_alpha_beta(features, labels, weights, keys, key_labels, scale=scale, steps=steps)
    margins = _full_grid(features, labels, weights, keys, key_labels, scale, steps)
    size = 1e-5 * (100 + torch.tensor(search_grid(scale[1], steps[1]))[:, None])
    unsure = (margins.abs() < size).sum(dim=2)
    wrong_by = (found.accuracies.double() / 100 * count - (margins > 0).sum(dim=2)).abs()
    assert (wrong_by <= unsure + 1e-3).all()
    if not unsure.any():
        counts = (margins > 0).sum(dim=2).flatten().tolist()
        beta, alpha = divmod(counts.index(max(counts)), steps[1])
        assert (found.beta, found.alpha) == (found.betas[beta], found.alphas[alpha])


def test_search_finds_the_optimum_of_the_full_grid_on_images():
    from tiny import EMOJI_CLIP

    from hf_clip_variants import CLIPClassifier, CLIPClassifierProcessor
    from hf_clip_variants.data import compute_features, load_emoji

    names = load_emoji(["fluentflat"]).class_names[:12]
    images = load_emoji(["fluentflat", "emojione", "notov1"], concepts=list(names))
    model = CLIPClassifier.from_pretrained(
        EMOJI_CLIP, class_names=names, templates="icons", dtype=torch.float32
    ).eval()
    processor = CLIPClassifierProcessor.from_clip(EMOJI_CLIP)
    found = compute_features(lambda x: model.get_image_features(x).pooler_output, images, processor, progress=False)
    embeds = F.normalize(found.features[0], dim=-1)
    known = torch.arange(len(embeds)) % 3 > 0
    with torch.no_grad():
        weights = F.normalize(model.get_class_features(), dim=-1)
    problem = embeds[~known], found.labels[~known], weights, embeds[known], found.labels[known], (50, 50), (30, 60)
    counts = (_full_grid(*problem) > 0).sum(dim=2)
    got = search_alpha_beta(*problem[:5], scale=problem[5], steps=problem[6])
    assert torch.equal((got.accuracies / 100 * int((~known).sum())).round().long(), counts)
    beta, alpha = divmod(counts.flatten().tolist().index(int(counts.max())), 60)
    assert (got.beta, got.alpha) == (got.betas[beta], got.alphas[alpha]) and len(counts.unique()) > 1


def test_search_grid_includes_a_tenth_and_excludes_the_maximum():
    assert search_grid(7, 4) == pytest.approx([0.1, 1.825, 3.55, 5.275])
    with pytest.raises(ValueError, match="0 steps"):
        search_grid(7, 0)


def test_search_result_is_saved_with_the_configuration(tmp_path):
    model = _model()
    default = (model(image_features=_toy(1)).logits.argmax(1) == LABELS).float().mean() * 100
    with model.disable_adapter():
        zero_shot = (model(image_features=_toy(1)).logits.argmax(1) == LABELS).float().mean() * 100
    found = model.search_hyperparameters(_toy(1), LABELS, scale=(12, 50), steps=(10, 10))
    assert found.accuracy >= default and found.accuracy >= zero_shot
    accuracy = (model(image_features=_toy(1)).logits.argmax(1) == LABELS).float().mean() * 100
    assert accuracy == pytest.approx(found.accuracy)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_classifier(), tmp_path)
    config = loaded.peft_config["default"]
    assert (config.alpha, config.beta, config.cache_size) == (found.alpha, found.beta, C * K)
    assert torch.equal(loaded(image_features=_toy(2)).logits, model(image_features=_toy(2)).logits)


@needs_adapter_methods
def test_cache_can_be_built_after_add_adapter_of_transformers():
    base = tiny_classifier()
    base.add_adapter(TipAdapterConfig(), "mine")
    build_cache(base, _toy(0), LABELS)
    assert torch.equal(base(image_features=_toy(1)).logits, _model()(image_features=_toy(1)).logits)
    with pytest.raises(ValueError, match=r"adapter_name: 'yours', the model has \['mine'\]"):
        build_cache(base, _toy(0), LABELS, "yours")
    with pytest.raises(ValueError, match="model: has no Tip-Adapter"):
        build_cache(tiny_classifier(), _toy(0), LABELS)


def test_features_of_a_data_set_bring_their_labels():
    given = Features(_toy(0)[None], LABELS, tuple(CLASS_NAMES))
    model = get_peft_model(tiny_classifier(), TipAdapterConfig())
    model.build_cache(given)
    assert torch.equal(model(image_features=_toy(1)).logits, _model()(image_features=_toy(1)).logits)
    found = model.search_hyperparameters(Features(_toy(1)[None], LABELS, tuple(CLASS_NAMES)), steps=(3, 3))
    assert found.accuracies.shape == (3, 3)
    with pytest.raises(ValueError, match="labels: given twice"):
        model.build_cache(given, LABELS)
    with pytest.raises(ValueError, match="labels: None"):
        model.build_cache(_toy(0))
    with pytest.raises(ValueError, match=r"class_names: .*added \['owl'\]"):
        model.build_cache(Features(_toy(0)[None], LABELS, (*CLASS_NAMES[:-1], "owl")))
    with pytest.raises(ValueError, match=r"features: expected one view, .*got \(2, 20, 24\)"):
        model.search_hyperparameters(torch.stack([_toy(0), _toy(1)]), LABELS)


def test_cache_refuses_what_does_not_fit():
    model = get_peft_model(tiny_classifier(), TipAdapterConfig())
    with pytest.raises(ValueError, match="adapter 'default' has an empty cache: call build_cache"):
        model(pixel_values=tiny_pixels())
    with pytest.raises(ValueError, match="empty cache"):
        model.search_hyperparameters(_toy(0), LABELS)
    for features, labels, message in (
        (_toy(0)[:, :9], LABELS, r"features: expected \(N, 24\) or \(V, N, 24\) with N = 20 labels, got \(20, 9\)"),
        (_toy(0)[:9], LABELS, r"got \(9, 24\)"),
        (_toy(0) * torch.nan, LABELS, "features: not finite"),
        (_toy(0), LABELS + 1, r"labels: 5 is outside 0\.\.4"),
        (_toy(0), LABELS.float(), "labels: expected integers"),
        (_toy(0), LABELS.clamp_max(3), r"labels: 1 of 5 classes have no image: \['red apple'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            model.build_cache(features, labels)
    model.build_cache(_toy(0), LABELS.clamp_max(3), allow_missing_classes=True)
    output = model(image_features=_toy(1))
    zero_shot = 100 * output.image_embeds @ output.text_embeds.t()
    torch.testing.assert_close(output.logits[:, 4], zero_shot[:, 4])
    assert (output.logits[:, :4] > zero_shot[:, :4]).all()


def test_classes_of_a_cache_cannot_be_changed(tmp_path):
    model = _model()
    with pytest.raises(ValueError, match=r"caches images of its classes, but the classes differ: added \['owl'\]"):
        model.get_base_model().set_classes([*CLASS_NAMES, "owl"])
    prompts = tiny_tokenizer()(["an owl", "a cat"], padding=True, return_tensors="pt").input_ids
    with pytest.raises(ValueError, match="caches images of 5 classes, but the classifier is asked for 2"):
        model(pixel_values=tiny_pixels(), input_ids=prompts)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"class_names: .*removed \['red apple'\]"):
        PeftModel.from_pretrained(tiny_classifier(class_names=CLASS_NAMES[:-1]), tmp_path)


def test_needs_a_classifier_with_classes():
    with pytest.raises(ValueError, match="adds to logits, which a plain CLIPModel computes inside its forward"):
        get_peft_model(tiny_clip(), TipAdapterConfig())
    with pytest.raises(ValueError, match="class_names: the classifier has no classes"):
        get_peft_model(tiny_classifier(class_names=None), TipAdapterConfig())
    with pytest.raises(ValueError, match="num_classes: 7, the classifier has 5"):
        get_peft_model(tiny_classifier(), TipAdapterConfig(num_classes=7))
    with pytest.raises(ValueError, match="beta: -1"):
        TipAdapterConfig(beta=-1)
    with pytest.raises(ValueError, match="values: rows are not one-hot"):
        labels_from_one_hot(torch.tensor([[1.0, 1.0]]))


def test_bfloat16_base_gives_float32_logits():
    model = get_peft_model(tiny_classifier().to(torch.bfloat16), TipAdapterConfig())
    model.build_cache(_toy(0), LABELS)
    assert model(image_features=_toy(1)).logits.dtype == torch.float32
