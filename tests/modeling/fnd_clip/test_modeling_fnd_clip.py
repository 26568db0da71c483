"""What is frozen and trained, independence of posts, posts without an image, any dual encoder, what is refused."""

import copy

import pytest
import torch
from fnd_clip_runs import BACKBONE, TEXT, fnd_clip_batch, fnd_clip_config, fnd_clip_model
from paths import PROGRAMS
from processes import run_on_ranks
from safetensors.torch import load_file
from tiny import tiny_clip, tiny_pixels
from tiny_families import family_image_size, tiny_dual_encoder, tiny_family_inputs
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from hf_clip_variants import FNDCLIPConfig, FNDCLIPForSequenceClassification
from hf_clip_variants.modeling.fnd_clip.fusion_fnd_clip import layer_attention
from hf_clip_variants.modeling.fnd_clip.modeling_fnd_clip import FEATURES


def without_labels(batch: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: value for name, value in fnd_clip_batch(batch, seed).items() if name != "labels"}


def rows_of(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


def encoders(dual_encoder=None):
    torch.manual_seed(3)
    text_model = BertModel(BertConfig(**TEXT)).eval()
    return text_model, dual_encoder or tiny_clip(), ResNetForImageClassification(ResNetConfig(**BACKBONE)).eval()


# ---- independence, and its published absence


@torch.no_grad()
def test_order_and_division_of_a_batch_change_nothing():
    model, batch = fnd_clip_model(), without_labels(6)
    whole, order = model(**batch), torch.tensor([3, 0, 5, 1, 4, 2])
    mixed = model(**rows_of(batch, order))
    halves = [model(**rows_of(batch, rows)) for rows in (slice(0, 2), slice(2, 6))]
    for name in ("logits", "similarity", "modality_weights", "layer_attention"):
        torch.testing.assert_close(mixed[name], whole[name][order], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.cat([half[name] for half in halves]), whole[name], rtol=1e-5, atol=1e-5)
    published = fnd_clip_model(batch_layer_attention=True)
    states = 0.1 * torch.randn(6, 4, 24, generator=torch.Generator().manual_seed(1))
    found = published.get_features(**batch) | {"text_states": states}
    features = {name: found[name] for name in FEATURES}
    together, alone = published(**features).layer_attention, published(**rows_of(features, slice(0, 1)))
    assert (together[:1] - alone.layer_attention).abs().max() > 1e-3


def test_layers_are_weighed_by_weight_times_sum():
    states, weights = torch.randn(3, 4, 5), torch.rand(4)
    expected = [[weights[layer] * states[post, layer].sum() for layer in range(4)] for post in range(3)]
    torch.testing.assert_close(layer_attention(states, weights), torch.tensor(expected).softmax(-1))
    over_batch = torch.tensor([weights[layer] * states[:, layer].sum() for layer in range(4)]).softmax(-1)
    torch.testing.assert_close(layer_attention(states, weights, True), over_batch.expand(3, 4))


@torch.no_grad()
def test_the_length_of_features_does_not_change_the_similarity():
    model, features = fnd_clip_model(), fnd_clip_model().get_features(**without_labels())
    given = {name: features[name] for name in FEATURES}
    found = model(**given)
    doubled = model(**given | {"clip_text_features": 2 * given["clip_text_features"]})
    torch.testing.assert_close(doubled.similarity, found.similarity)
    assert (doubled.logits - found.logits).abs().max() > 1e-5  # the branches get it as it is
    zero = model(**given | {"clip_image_features": torch.zeros_like(given["clip_image_features"])})
    assert zero.logits.isfinite().all() and (zero.similarity == 0).all()


@torch.no_grad()
def test_features_give_the_same_answer_as_texts_and_images():
    model, batch = fnd_clip_model(), without_labels()
    expected, found = model(**batch), model.get_features(**batch)
    given = {name: found[name] for name in FEATURES}
    assert torch.equal(model(**given).logits, expected.logits)
    part = {name: given[name] for name in ("text_states", "clip_image_features")}
    some = {name: batch[name] for name in ("clip_input_ids", "pixel_values")}
    torch.testing.assert_close(model(**some, **part).logits, expected.logits)
    other = model(**batch, backbone_pixel_values=tiny_pixels(4, 9, size=32))
    assert not torch.equal(other.logits, expected.logits) and torch.equal(other.similarity, expected.similarity)


@torch.no_grad()
def test_a_post_without_an_image_is_answered_by_its_text():
    model, batch = fnd_clip_model(), without_labels()
    mask = torch.tensor([1, 0, 1, 0])
    expected, found = model(**batch), model(**batch, image_mask=mask)
    other = model(**batch | {"pixel_values": tiny_pixels(4, 8)}, image_mask=mask)
    torch.testing.assert_close(found.logits[::2], expected.logits[::2])
    assert torch.equal(found.logits[1::2], other.logits[1::2])  # the pixels are not looked at
    assert (found.modality_weights[1::2, 1:] == 0).all() and (found.similarity[1::2] == 0).all()
    assert not torch.equal(found.logits[1::2], expected.logits[1::2])


# ---- encoders


@pytest.mark.parametrize("family", ["chinese_clip", "altclip", "siglip2", "clipv-clip_resnet"])
def test_any_dual_encoder(family, tmp_path):
    dual_encoder = tiny_dual_encoder(family)
    model = FNDCLIPForSequenceClassification.from_encoders(*encoders(dual_encoder), shared_dim=12, feature_dim=6)
    assert model.config.max_text_length == 20
    texts = tiny_family_inputs(family)
    count = len(texts["input_ids"])
    batch = rows_of(without_labels(count), slice(0, count))
    batch |= {"clip_input_ids": texts["input_ids"], "pixel_values": tiny_pixels(count, size=family_image_size(family))}
    batch |= {"clip_attention_mask": texts["attention_mask"]} if "attention_mask" in texts else {}
    with torch.no_grad():
        found = model(**batch)
        own = dual_encoder.get_text_features(**texts).pooler_output
        torch.testing.assert_close(model.get_features(**batch).clip_text_features, own, rtol=1e-4, atol=1e-4)
    assert found.logits.shape == (count, 2) and found.similarity.abs().max() <= 1.0001
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is FNDCLIPForSequenceClassification
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, found.logits, rtol=1e-4, atol=1e-5)


def test_encoders_keep_their_weights_and_what_is_frozen_stays_so(tmp_path):
    text_model, dual_encoder, image_model = encoders()
    model = FNDCLIPForSequenceClassification.from_encoders(text_model, dual_encoder, image_model, shared_dim=12)
    for part, source in ((model.text_model, text_model), (model.dual_encoder, dual_encoder)):
        weights = source.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in part.state_dict().items())
    assert all(torch.equal(t, image_model.state_dict()[n]) for n, t in model.image_model.state_dict().items())
    model.save_pretrained(tmp_path)
    for one in (model, FNDCLIPForSequenceClassification.from_pretrained(tmp_path)):
        trained = {name.split(".")[0] for name, p in one.named_parameters() if p.requires_grad}
        assert trained == {"image_model", "fusion"}
        one.train()
        assert not one.text_model.training and not one.dual_encoder.training and one.image_model.training
    whole = FNDCLIPForSequenceClassification.from_pretrained(tmp_path, freeze_text=False, freeze_backbone=True)
    assert whole.train().text_model.training and not whole.image_model.training
    before = copy.deepcopy(whole.image_model.state_dict())
    whole(**fnd_clip_batch()).loss.backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.image_model.state_dict().items())
    assert whole.text_model.embeddings.word_embeddings.weight.grad is not None


def test_gradients_of_an_unfrozen_dual_encoder_are_its_own():
    model = fnd_clip_model(freeze_dual_encoder=False)
    batch, weight = without_labels(), model.dual_encoder.text_projection.weight
    mask = torch.ones_like(batch["clip_input_ids"])
    wanted = torch.randn(4, 24, generator=torch.Generator().manual_seed(1))
    features = model.get_features(clip_input_ids=batch["clip_input_ids"], clip_attention_mask=mask)
    (found,) = torch.autograd.grad((features.clip_text_features * wanted).sum(), weight)
    own = model.dual_encoder.get_text_features(batch["clip_input_ids"]).pooler_output
    (expected,) = torch.autograd.grad((own * wanted).sum(), weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_another_number_of_classes_makes_a_new_last_layer(tmp_path):
    fnd_clip_model().save_pretrained(tmp_path)
    options = {"num_labels": 5, "ignore_mismatched_sizes": True}
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, **options)
    assert loaded.config.num_labels == 5 and loaded(**without_labels()).logits.shape == (4, 5)
    assert FNDCLIPConfig().id2label == {0: "rumor", 1: "nonrumor"}
    assert fnd_clip_config(num_labels=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_fitted_features_tell_pairs_apart_and_are_saved(tmp_path):
    """Images are a hidden turn of their texts: no similarity as they come, and much of it when it is fitted."""
    torch.manual_seed(0)
    model = FNDCLIPForSequenceClassification(fnd_clip_config(adapt_features=True)).eval()
    texts, turn = torch.randn(80, 24), torch.linalg.qr(torch.randn(24, 24))[0]
    pairs = texts, texts @ turn
    given = {"text_states": torch.randn(80, 4, 24), "image_logits": torch.randn(80, 11)}
    given |= {"clip_text_features": texts, "clip_image_features": pairs[1]}
    with torch.no_grad():
        before = model(**given).similarity
    torch.testing.assert_close(before, torch.cosine_similarity(*pairs), rtol=1e-4, atol=1e-5)
    loss = model.fit_feature_maps(*pairs, epochs=60, batch_size=40, learning_rate=0.01, penalty=1e-4)
    factor, summand = model.standardise_similarity(*pairs)
    with torch.no_grad():
        after = model(**given).similarity
    assert loss < 0.5 and before.mean().abs() < 0.2 and after.mean() > 0.8
    scaled = factor * after + summand
    assert scaled.mean().abs() < 1e-3 and scaled.std().item() == pytest.approx(1, abs=1e-3)
    model.save_pretrained(tmp_path)
    again = FNDCLIPForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**given).similarity, after)
    assert all("_map" not in name for name in fnd_clip_model().state_dict())


def test_features_that_cannot_be_fitted_are_said():
    plain, mapped = fnd_clip_model(), fnd_clip_model(adapt_features=True)
    pair = torch.randn(4, 24), torch.randn(4, 24)
    with pytest.raises(ValueError, match="adapt_features: False, there are no matrices"):
        plain.fit_feature_maps(*pair)
    for given, message in (
        ((pair[0], pair[1][:3]), "clip_image_features: of 3 posts"),
        ((pair[0][:1], pair[1][:1]), "clip_text_features: of 1 posts, expected at least 2"),
        ((pair[0][:, :5], pair[1]), "clip_text_features: expected .batch, 24."),
        ((pair[0], pair[1] * float("nan")), "clip_image_features: NaN or infinite"),
    ):
        for method in (mapped.fit_feature_maps, plain.standardise_similarity):
            with pytest.raises(ValueError, match=message):
                method(*given)
    with pytest.raises(ValueError, match="of one similarity, want several"):
        plain.standardise_similarity(pair[0], pair[0])
    for setting, value in (("epochs", 0), ("batch_size", 1), ("learning_rate", -1), ("penalty", float("nan"))):
        with pytest.raises(ValueError, match=f"{setting}: {value}, expected"):
            mapped.fit_feature_maps(*pair, **{setting: value})


def test_it_learns_whether_text_and_image_fit():
    """The label is the sign of a cosine: no modality alone knows it."""
    torch.manual_seed(0)
    model = fnd_clip_model(dropout=0.0, shared_dim=64, feature_dim=16, freeze_backbone=True).train()
    generator = torch.Generator().manual_seed(0)
    texts, images = torch.randn(2, 256, 24, generator=generator)
    texts = texts + images * torch.where(torch.rand(256, 1, generator=generator) < 0.5, 1.0, -1.0)
    labels = (torch.cosine_similarity(texts, images) > 0).long()
    states = torch.randn(256, 4, 24, generator=generator)
    given = {"text_states": states, "clip_text_features": texts, "clip_image_features": images}
    given |= {"image_logits": torch.randn(256, 11, generator=generator)}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(120):
        rows = torch.randint(256, (64,), generator=generator)
        loss = model(**rows_of(given, rows), labels=labels[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = (model.eval()(**given).logits.argmax(1) == labels).float().mean()
    assert right > 0.9


# ---- what is refused


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input_ids": None}, "input_ids: missing, and no text_states instead"),
        ({"clip_input_ids": None}, "clip_input_ids: missing, and no clip_text_features"),
        ({"pixel_values": None}, "pixel_values: missing.*for posts without an image any pixels, with image_mask"),
        ({"pixel_values": torch.zeros(4, 3, 24, 24, dtype=torch.uint8)}, "pixel_values: torch.uint8 looks unnormal"),
        ({"pixel_values": torch.zeros(4, 3, 30, 30)}, "images of 30 x 30 pixels, the model takes 24 x 24"),
        (
            {"pixel_values": torch.zeros(3, 3, 24, 24)},
            "pixel_values or clip_image_features: of 3 posts",
        ),
        ({"pixel_values": torch.full((4, 3, 24, 24), float("nan"))}, "logits: NaN .* pixel_values\\[0\\] has some"),
        ({"input_ids": torch.full((4, 7), 99)}, "token 99 is outside 0..47"),
        ({"input_ids": torch.zeros(4, 17, dtype=torch.long)}, "17 tokens, the text encoder takes 16 .max_text_length"),
        ({"attention_mask": torch.ones(4, 6)}, "attention_mask: got \\[4, 6\\], expected \\[4, 7\\]"),
        ({"image_mask": torch.ones(3)}, "image_mask: got \\[3\\], expected \\[4\\]"),
        ({"image_mask": torch.tensor([1, 0, -7, 1])}, "image_mask: got \\[1, 0, -7, 1\\], expected 0 and 1"),
        ({"image_mask": torch.tensor([1, 0, torch.nan, 1])}, "image_mask: got .*nan.*, expected 0 and 1"),
        (
            {"text_states": torch.zeros(4, 3, 24)},
            "text_states: got \\[4, 3, 24\\], expected .*, 4, 24",
        ),
        ({"text_states": [[1.0]]}, "text_states: got list, expected a tensor"),
        ({"image_logits": torch.zeros(4, 12)}, "image_logits: expected \\[batch, 11\\]"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, "labels\\[2\\] is 2, expected 0..1"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        fnd_clip_model()(**fnd_clip_batch() | change)


def test_a_single_post_in_training_is_refused():
    with pytest.raises(ValueError, match="one post in training mode.*dataloader_drop_last"):
        fnd_clip_model().train()(**fnd_clip_batch(1))
    with pytest.raises(ValueError, match="got none of them"):
        fnd_clip_model().get_features()


# ---- processes


def test_two_processes_train_as_one(tmp_path):
    run_on_ranks(PROGRAMS / "fnd_clip_ranks.py", tmp_path, world_size=2, folder=tmp_path)
    run_on_ranks(PROGRAMS / "fnd_clip_ranks.py", tmp_path, world_size=1, folder=tmp_path)
    alone = load_file(tmp_path / "1of1.safetensors")
    assert {"1.loss", "1.grad.fusion.layer_weights", "after.fusion.classifier.output_layer.bias"} <= alone.keys()
    for rank in range(2):
        found = load_file(tmp_path / f"{rank + 1}of2.safetensors")
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
