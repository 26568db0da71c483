"""ViLD's head, losses, gradients and detections against the official TensorFlow code."""

import pytest
import torch
from parity_fixtures import assert_close, fixtures_like, load_fixture
from transformers import CLIPConfig

from hf_clip_variants.modeling.detection.box_coding import clip_boxes, decode_boxes, encode_boxes
from hf_clip_variants.modeling.vild.boxes_vild import select_detections
from hf_clip_variants.modeling.vild.configuration_vild import ViLDConfig
from hf_clip_variants.modeling.vild.convert_vild import CLASSES, HEAD, head_rules
from hf_clip_variants.modeling.vild.heads_vild import ViLDRegionHead
from hf_clip_variants.modeling.vild.losses_vild import (
    class_scores,
    classification_loss,
    cosine_logits,
    distillation_loss,
    ensemble_scores,
    unit_or_zero,
    valid_regions,
)


pytestmark = pytest.mark.parity

VARIANTS = {"vanilla": "vild", "double_branch": "ensemble"}


def make_head(fixture) -> tuple[ViLDConfig, ViLDRegionHead]:
    hyper = fixture.meta["hyper"]
    config = ViLDConfig(
        dual_encoder_config=CLIPConfig(projection_dim=hyper["clip_dim"]).to_dict(),
        variant=VARIANTS[hyper["visual_feature_distill"]],
        hidden_size=hyper["num_filters"],
        head_num_convs=hyper["num_convs"],
        head_num_layers=hyper["num_fcs"],
        head_hidden_size=hyper["fc_dims"],
        temperature=1 / hyper["temperature"],
        distill_weight=hyper["feat_distill_weight"],
        batch_norm_eps=hyper["bn_epsilon"],
    )
    head = ViLDRegionHead(config).eval()
    for module in head.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eps = config.batch_norm_eps
    weights = dict(fixture.state_dict)
    classes = weights.pop(CLASSES)
    assert torch.equal(classes, fixture.inputs["text_embeddings"])
    rules = head_rules(config, "")
    assert rules.keys() == weights.keys()
    ours = {rule.ours: rule.read(weights[name]).contiguous() for name, rule in rules.items()}
    missing, unexpected = head.load_state_dict(ours, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    for name, rule in rules.items():
        assert torch.equal(rule.write(ours[rule.ours]), weights[name]), name
    return config, head


def regions(fixture, name):
    """(B, R, h, w, C) -> (B * R, C, h, w)"""
    return fixture.inputs[name].flatten(0, 1).permute(0, 3, 1, 2)


@pytest.fixture(scope="module", params=fixtures_like("vild_losses", "vild_ensemble_head"))
def fixture(request):
    return load_fixture(request.param)


def from_codes(codes):
    """dx, dy, dw, dh -> dy, dx, dh, dw"""
    return codes[..., [1, 0, 3, 2]]


def test_head_gives_the_official_logits_and_boxes(fixture):
    config, head = make_head(fixture)
    batch = fixture.inputs["roi_features"].shape[0]
    texts = fixture.inputs["text_embeddings"].t()
    with torch.no_grad():
        embeddings, codes, image_embeddings = head(regions(fixture, "roi_features"))
        logits = cosine_logits(embeddings, texts, head.background, config.temperature)
    assert_close(logits.unflatten(0, (batch, -1)), fixture.outputs["class_outputs"], "class_outputs")
    assert_close(from_codes(codes).unflatten(0, (batch, -1)), fixture.outputs["box_outputs"], "box_outputs")
    if config.variant == "ensemble":
        image_logits = cosine_logits(image_embeddings, texts, None, config.temperature).unflatten(0, (batch, -1))
        assert_close(image_logits, fixture.outputs["distill_class_outputs"], "distill_class_outputs")
        feats = unit_or_zero(image_embeddings).unflatten(0, (batch, -1))
        if "distill_feat_outputs" in fixture.outputs:
            assert_close(feats, fixture.outputs["distill_feat_outputs"], "distill_feat_outputs")
    else:
        assert image_embeddings is None


def test_losses_and_gradients_are_the_official_ones(fixture):
    config, head = make_head(fixture)
    given = fixture.inputs
    batch = given["roi_features"].shape[0]
    embeddings, codes, image_embeddings = head(
        regions(fixture, "roi_features"), regions(fixture, "distill_roi_features")
    )
    texts = given["text_embeddings"].t().clone().requires_grad_()
    features = unit_or_zero(image_embeddings).unflatten(0, (batch, -1))
    features.retain_grad()
    logits = cosine_logits(embeddings, texts.detach(), head.background, config.temperature)
    logits = logits.unflatten(0, (batch, -1))
    logits.retain_grad()
    novel = given["rare_mask"][1:] == 0
    of_classes = classification_loss(logits, given["class_targets"], novel, "zero")
    plain = classification_loss(logits, given["class_targets"], novel, "keep")
    distilled = distillation_loss(features, given["gt_visual_feat"], valid_regions(given["roi_boxes"]))
    total = of_classes + config.distill_weight * distilled
    total.backward()
    expected = fixture.outputs
    results = {
        "train_class_outputs": logits,
        "train_box_outputs": from_codes(codes).unflatten(0, (batch, -1)),
        "train_distill_feat": features,
        "loss_class": of_classes[None],
        "loss_class_without_rare_mask": plain[None],
        "loss_image_l1": distilled[None],
        "loss_total": total[None],
        "grad_project-to-clip_kernel": head.projection.weight.grad.t(),
        "grad_background-class-predict_kernel": head.background.grad[:, None],
        "grad_class_outputs": logits.grad,
        "grad_distill_feat": features.grad,
    }
    if config.variant == "ensemble":
        results["grad_distill-project-to-clip_kernel"] = head.image_projection.weight.grad.t()
    assert set(expected) - set(results) <= {
        "class_outputs",
        "box_outputs",
        "distill_class_outputs",
        "distill_feat_outputs",
    }
    for name in expected.keys() & results.keys():
        assert_close(results[name].detach(), expected[name], name)
    assert texts.grad is None and HEAD in next(iter(fixture.state_dict))


@pytest.mark.parametrize("name", ["vild", "ensemble", "vild_discardbg"])
def test_detections_are_the_official_ones(name):
    fixture = load_fixture("vild_inference")
    hyper, given, expected = fixture.meta["hyper"], fixture.inputs, fixture.outputs
    scores = class_scores(given["class_outputs"], discard_background=name == "vild_discardbg")
    if name == "ensemble":
        image_scores = given["distill_class_outputs"].softmax(dim=-1)
        scores = ensemble_scores(scores, image_scores, given["rare_mask"][1:] == 0)
    assert_close(scores, expected[f"{name}_raw_scores"], "scores")
    wy, wx, wh, ww = hyper["regression_weights"]
    for i, rois in enumerate(given["rois"]):
        rois = rois[:, [1, 0, 3, 2]]
        boxes = decode_boxes(given["box_outputs"][i][:, [1, 0, 3, 2]], rois, (wx, wy, ww, wh))
        back = encode_boxes(boxes, rois, (wx, wy, ww, wh))
        torch.testing.assert_close(back, given["box_outputs"][i][:, [1, 0, 3, 2]], rtol=1e-3, atol=1e-3)
        boxes = clip_boxes(boxes, given["image_shape"][i, 0].tolist())
        assert_close(boxes[:, [1, 0, 3, 2]], expected[f"{name}_raw_boxes"][i, :, 0], "boxes")
        values, labels, found, rows = select_detections(
            scores[i],
            boxes,
            pre_nms=hyper["pre_nms_num_boxes"],
            nms_threshold=hyper["nms_iou_threshold"],
            score_threshold=hyper["score_threshold"],
            max_detections=hyper["max_total_size"],
        )
        count = int(expected[f"{name}_num_detections"][i])
        assert len(values) == count
        assert_close(values, expected[f"{name}_detection_scores"][i, :count], "detection_scores")
        assert_close(found[:, [1, 0, 3, 2]], expected[f"{name}_detection_boxes"][i, :count], "detection_boxes")
        assert (labels + 1).tolist() == expected[f"{name}_detection_classes"][i, :count].tolist()
        assert torch.equal(boxes[rows], found)
