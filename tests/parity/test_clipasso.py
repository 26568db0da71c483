"""CLIPasso equals the official code: losses with gradients, saliency, edges, and where strokes begin."""

import numpy as np
import pytest
import torch
from parity_fixtures import assert_close, fixtures_like, load_fixture
from tiny import tiny_clip, tiny_clip_config
from transformers import CLIPModel

from hf_clip_variants.modeling.clip.convert_clip import clip_from_official, to_official
from hf_clip_variants.modeling.clip_resnet.convert_clip_resnet import clip_resnet_from_official
from hf_clip_variants.modeling.clipasso.losses_clipasso import perceptual_losses
from hf_clip_variants.modeling.clipasso.modeling_clipasso import CLIPassoForImageSynthesis
from hf_clip_variants.modeling.clipasso.saliency_clipasso import (
    attention_map,
    class_attentions,
    edge_map,
    start_probabilities,
)


pytestmark = pytest.mark.parity

LOSSES = fixtures_like("clipasso_losses*")
SALIENCY = fixtures_like("clipasso_saliency*")


def guide(fixture, vit: dict | None) -> CLIPassoForImageSynthesis:
    """A model with the fixture's image encoder, and any text encoder beside it."""
    width = vit["output_dim"] if vit and "output_dim" in vit else fixture.meta["hyper"]["output_dim"]
    text = tiny_clip_config(text_config={"projection_dim": width})
    text.vision_config.projection_dim = text.projection_dim = width
    torch.manual_seed(0)
    official = to_official(CLIPModel(text).state_dict(), text)
    weights = {name: tensor for name, tensor in official.items() if not name.startswith("visual.")}
    weights |= {name: tensor for name, tensor in fixture.state_dict.items() if name.startswith("visual.")}
    if vit:
        clip = clip_from_official(weights, vision_heads=vit["heads"], text_heads=4)
    else:
        heads = fixture.meta["hyper"]["resnet_heads"]
        clip = clip_resnet_from_official(weights, vision_heads=heads, text_heads=4)
    return CLIPassoForImageSynthesis.from_clip(clip)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_equal_the_official_ones(name):
    fixture = load_fixture(name)
    hyper, outputs = fixture.meta["hyper"], fixture.outputs
    model = guide(fixture, hyper["vit"])

    def terms(sketch, target, kind):
        layers, features, _ = model.image_layers(sketch)
        with torch.no_grad():
            target_layers, target_features, _ = model.image_layers(target)
        pairs = [[one[None] for one in some] for some in (layers, target_layers)]
        return perceptual_losses(
            *pairs, features[None], target_features[None], hyper["layer_weights"], hyper["fc_weight"], kind
        )

    kinds = sorted({key.split(".")[1] for key in outputs if key.startswith(("eval.", "train."))})
    for kind in kinds:
        sketch = fixture.inputs["sketch"].clone().requires_grad_()
        found = terms(model.as_guide_sees(sketch), model.as_guide_sees(fixture.inputs["target"]), kind)
        for term, value in found.items():
            if term == "features":  # 1 - cos of nearly equal vectors: a few roundings of a number near 1
                expected = outputs[f"eval.{kind}.fc"].item()
                assert value.item() == pytest.approx(expected, rel=1e-4, abs=5e-7 * hyper["fc_weight"])
                continue
            key = f"clip_conv_loss_{term}"
            assert_close(value, outputs[f"eval.{kind}.{key}"].view(1), f"{kind} {term}")
        total = sum(found.values())
        assert_close(total, outputs[f"eval.{kind}.total"].view(1), f"{kind} total")
        total.backward()
        assert_close(sketch.grad, outputs[f"eval.{kind}.grad_sketch"], f"{kind} gradient")
        if f"train.{kind}.total" in outputs:
            batch = fixture.inputs["train_sketch_batch"], fixture.inputs["train_target_batch"]
            with torch.no_grad():
                found = terms(*batch, kind)
            assert_close(sum(found.values()), outputs[f"train.{kind}.total"].view(1), f"{kind} training total")


@pytest.mark.parametrize("name", LOSSES)
def test_layers_and_embeddings_equal_the_official_ones(name):
    fixture = load_fixture(name)
    model = guide(fixture, fixture.meta["hyper"]["vit"])
    with torch.no_grad():
        layers, features, _ = model.image_layers(fixture.inputs["train_sketch_batch"])
        _, target_features, _ = model.image_layers(fixture.inputs["train_target_batch"])
    assert_close(features, fixture.outputs["sketch.fc"], "sketch")
    assert_close(target_features, fixture.outputs["target.fc"], "target")
    for key in fixture.outputs:
        if key.startswith("sketch.layer"):
            number = int(key.removeprefix("sketch.layer"))
            assert_close(layers[number][:1], fixture.outputs[key], key)


@pytest.mark.parametrize("name", SALIENCY)
def test_strokes_begin_where_the_official_ones_do(name):
    fixture = load_fixture(name)
    hyper, outputs, pixels = fixture.meta["hyper"], fixture.outputs, fixture.inputs["pixel_values"]
    model = guide(fixture, hyper["vit"])
    attentions = class_attentions(model.clip.vision_model, pixels)
    assert_close(attentions[:, 0], outputs["cls_attention_to_patches"], "attention")
    size = pixels.shape[-1]
    saliency = attention_map(attentions, size)[0]
    assert_close(saliency[::2, ::2], outputs["attention_map_112"], "map")
    assert_close(saliency[::28], outputs["attention_map_8rows"], "rows of the map")
    edges = edge_map(pixels[0])
    assert (edges != outputs["xdog_mask"]).float().mean() < 1e-3  # the threshold's rounding decides a pixel
    chances = start_probabilities(saliency, outputs["xdog_mask"], hyper["softmax_temp"])
    assert_close(chances[::28], outputs["sampling_probability_8rows"], "probabilities")
    assert chances.double().sum().item() == pytest.approx(outputs["sampling_probability_sum"].item(), abs=1e-4)
    np.random.seed(fixture.meta["seed"])
    weights = chances.double().numpy().ravel()
    chosen = np.random.choice(range(size * size), hyper["num_paths"], replace=False, p=weights / weights.sum())
    places = np.stack(np.unravel_index(chosen, (size, size)), 1)
    expected = outputs["sampled_inds_row_col"].numpy()
    assert (places == expected).all(1).mean() >= 0.9
    assert_close(torch.from_numpy(expected[:, ::-1] / size).float(), outputs["inds_normalised_xy"].float(), "places")


def test_the_plain_pair_is_the_loss_of_forward():
    model = CLIPassoForImageSynthesis.from_clip(tiny_clip(), num_strokes=3)
    points = 24 * torch.rand(2, 3, 4, 2)
    targets = torch.randn(2, 3, 24, 24)
    output = model(points, targets)
    assert_close(output.terms.sum(1).mean(), output.loss, "sum")
