"""LSeg from converted official weights: encoder, decoder, blocks, scores, few-shot scores and areas, losses."""

import pytest
import torch
from lseg_runs import official_lseg_options, with_a_new_encoder
from parity_fixtures import assert_close, fixtures_like, load_fixture
from torch.nn import functional as F

from hf_clip_variants.metrics.segmentation import MeanIoU
from hf_clip_variants.modeling.dense.promptable_segmentation import ClassTexts
from hf_clip_variants.modeling.dense.segmentation_loss import segmentation_loss
from hf_clip_variants.modeling.lseg.convert_lseg import lseg_from_official, to_official, unused_names
from hf_clip_variants.modeling.lseg.losses_lseg import presence_loss
from hf_clip_variants.modeling.lseg.spatial_blocks_lseg import pixel_text_scores, pixel_text_scores_reference


pytestmark = pytest.mark.parity

WHOLE = fixtures_like("lseg", "lseg_vitb32")
FEW_SHOT = fixtures_like("lseg_zs", "lseg_zs_rn")
BLOCKS = {0: "none", 1: "bottleneck", 2: "depthwise"}


def every_second(maps: torch.Tensor) -> torch.Tensor:
    return maps[..., ::2, ::2]


def convert(fixture, **options):
    return lseg_from_official(fixture.state_dict, **official_lseg_options(fixture.meta) | options)


# ---- the whole model


@pytest.mark.parametrize("name", WHOLE + FEW_SHOT)
def test_conversion_uses_every_weight_and_is_bit_identical(name):
    fixture = load_fixture(name)
    model = convert(fixture)
    back, unused = to_official(model.state_dict(), model.config), unused_names(fixture.state_dict)
    assert back.keys() | set(unused) == fixture.state_dict.keys() and not back.keys() & set(unused)
    assert all(torch.equal(tensor, fixture.state_dict[name]) for name, tensor in back.items())
    config, said = model.config, fixture.meta
    assert config.temperature == pytest.approx(1 / said["logit_scale"])
    assert config.projection_dim == said["out_c"] and config.fusion_hidden_size == said["features"]
    if not config.is_convolutional:
        assert config.vision_config.num_hidden_layers == said["vit"]["depth"]
        vision = config.vision_config
        assert vision.image_size // vision.patch_size == said["vit"]["img_size"] // vision.patch_size
        assert config.neck_hidden_sizes == said["reassemble_channels"]


@pytest.mark.parametrize("name", WHOLE)
def test_every_stage_equals_official(name):
    fixture = load_fixture(name)
    model = convert(fixture)
    pixels, neck = fixture.inputs["pixel_values"], model.lseg.neck
    patch = model.config.vision_config.patch_size
    height, width = pixels.shape[-2:]
    found = {}
    with torch.no_grad():
        features, _ = model.lseg.encode_image(pixels)
        reassembled = neck.reassemble_stage(features, height // patch, width // patch)
        for level in range(4):
            found[f"hidden_{level + 1}"] = features[level]
            found[f"reassembled_{level + 1}"] = reassembled[level]
            found[f"layer{level + 1}_rn"] = neck.convs[level](reassembled[level])[:1]
        for level, path in zip((4, 3, 2, 1), model.lseg.decode(features, height, width), strict=True):
            found[f"path_{level}"] = path[:1] if level > 1 else every_second(path[:1])
        embeddings = model.lseg.vision_model.embeddings
        found["pos_embed_resized"] = embeddings._resize_pos_embed(
            embeddings.position_embeddings, height // patch, width // patch
        )
        for given, scored in (("input_ids", "logits"), ("input_ids_other", "logits_other_labels")):
            logits = model(pixels, input_ids=fixture.inputs[given]).logits
            found[scored] = logits[: len(fixture.outputs[scored])]
        found["text_features"] = model.get_class_embeddings(fixture.inputs["input_ids"])
    # The model that made these has other weights than those in the fixture; tests/modeling/lseg checks both readouts.
    expected = {key: tensor for key, tensor in fixture.outputs.items() if not key.startswith("logits_readout_")}
    if expected["text_features"].norm(dim=-1).sub(1).abs().max() > 1e-3:  # before its normalisation
        expected["text_features"] = F.normalize(expected["text_features"], dim=-1)
    assert set(expected) <= set(found)
    for key, tensor in expected.items():
        assert_close(found[key], tensor, key)


# ---- decoder and head


@pytest.fixture(scope="module")
def head():
    """The fixture has no image encoder: the decoder's inputs are given."""
    fixture = load_fixture("lseg_head")
    return fixture, with_a_new_encoder(fixture)


def head_scores(fixture, model) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        maps = model.lseg.neck([fixture.inputs[f"reassembled_{level}"] for level in (1, 2, 3, 4)])
        pixels = model.lseg.pixel_projection(maps[-1])
        texts = ClassTexts(model.get_class_embeddings(fixture.inputs["input_ids"]))
        low = pixel_text_scores(pixels, texts.embeddings, model.config.temperature)
        blocked = low if model.head_block is None else model.head_block(low)
        return {
            "path_1": maps[-1],
            "head1_features": pixels[:, ::8],
            "text_features": texts.embeddings,
            "plain": low,
            "low": blocked,
            "high": model.score(pixels, texts),
            "in_official_order": pixel_text_scores_reference(pixels, texts.embeddings, model.config.temperature),
        }


def test_every_block_equals_official(head):
    fixture, build = head
    compared = set()
    for option, activation, depth in fixture.meta["configs"]:
        model = build(head_block=BLOCKS[option], block_activation=activation, block_depth=depth)
        found = head_scores(fixture, model)
        if option == 0:
            names = {"logits_low": "low", "logits_arch0": "high", "path_1": "path_1"}
            names |= {"head1_features": "head1_features", "text_features": "text_features"}
        else:
            kind = f"arch{option}_{activation}_depth{depth}"
            names = {f"logits_low_{kind}": "low", f"logits_{kind}": "high"}
        for name, ours in names.items():
            if name not in fixture.outputs:
                continue
            expected = fixture.outputs[name]
            if name == "text_features":
                expected = F.normalize(expected, dim=-1)
            mine = every_second(found[ours]) if ours == "high" and option else found[ours]
            assert_close(mine[: len(expected)], expected, name)
            compared.add(name)
    assert compared == set(fixture.outputs) - {"logits_low_fp16"}


def test_scores_are_near_those_of_the_official_half_precision(head):
    """On a GPU, the official code compares pixels in float16; ours are in float32 there, too."""
    fixture, build = head
    found = head_scores(fixture, build(head_block="none"))["plain"]
    expected = fixture.outputs["logits_low_fp16"]
    assert_close(found[: len(expected)], expected, "logits_low_fp16", tolerance=3e-3)


def test_dividing_after_the_product_changes_nothing(head):
    fixture, build = head
    found = head_scores(fixture, build(head_block="none"))
    assert_close(found["plain"], found["in_official_order"], "scores", tolerance=1e-5)


# ---- two texts of each image


@pytest.mark.parametrize("name", FEW_SHOT)
def test_few_shot_scores_loss_and_areas_equal_official(name):
    fixture = load_fixture(name)
    model, given, expected = convert(fixture), fixture.inputs, fixture.outputs
    ids = given["input_ids_per_class"][given["class_id"]]
    with torch.no_grad():
        logits = model(given["pixel_values"], input_ids=ids[:, :, None]).logits
        cached = model.get_class_embeddings(given["input_ids_per_class"].flatten(0, 1))
        embeddings = cached.view(*given["input_ids_per_class"].shape[:2], -1)[given["class_id"]]
        again = model(given["pixel_values"], class_embeddings=embeddings).logits
    assert_close(logits, expected["logits"], "logits")
    assert_close(again, expected["logits"], "logits of cached texts")
    logits = logits.requires_grad_()
    labels, ignored = given["mask"].long(), given["ignore"] == 1
    loss = segmentation_loss(logits, labels)  # every pixel counts in training, as in the official code
    loss.backward()
    assert_close(loss, expected["loss"], "loss")
    assert_close(logits.grad[: len(expected["grad_logits"])], expected["grad_logits"], "grad_logits")
    prediction = logits.argmax(1)
    for suffix, left_out in (("", ignored), ("_noignore", torch.zeros_like(ignored))):
        inter, union = areas(prediction, labels.masked_fill(left_out, 255))
        assert torch.equal(inter, expected[f"area_inter{suffix}"])
        assert torch.equal(union, expected[f"area_union{suffix}"])


def areas(predictions: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of intersection and union: rows are background and foreground, columns images."""
    metrics = [MeanIoU(1, "few_shot") for _ in predictions]
    for metric, prediction, label in zip(metrics, predictions, labels, strict=True):
        metric.update(prediction, label, [0])
    both, predicted, labelled = torch.stack([metric.counts for metric in metrics], dim=2).float()
    return both, predicted + labelled - both


# ---- losses


def test_losses_and_gradients_equal_official():
    fixture = load_fixture("lseg_losses")
    given, expected = fixture.inputs, fixture.outputs
    weight = 0.2
    assert "aux_weight .2, se_weight .2" in fixture.meta["what"]

    def of(kind: str, target: str = "target", ignored: int = -1):
        logits = given["pred"].clone().requires_grad_()
        auxiliary = given["pred_aux"] if kind in ("aux", "both") else None
        loss = segmentation_loss(logits, given[target], ignored, auxiliary, weight)
        if kind in ("se", "both"):
            loss = loss + weight * presence_loss(given["se_pred"], given[target], ignored)
        loss.backward()
        return loss, logits.grad

    for name, arguments in {
        "plain": ("plain",),
        "aux": ("aux",),
        "se": ("se",),
        "both": ("both",),
        "ignore255": ("plain", "target_255", 255),
    }.items():
        loss, gradient = of(*arguments)
        assert_close(loss, expected[f"loss_{name}"], f"loss_{name}")
        assert_close(gradient, expected[f"grad_pred_{name}"], f"grad_pred_{name}")


def test_a_batch_without_labelled_pixels_has_loss_zero_where_the_official_one_is_nan():
    fixture = load_fixture("lseg_losses")
    assert fixture.outputs["all_ignored_is_nan"] == 1
    logits = fixture.inputs["pred"].clone().requires_grad_()
    loss = segmentation_loss(logits, torch.full_like(fixture.inputs["target"], -1), -1)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()
