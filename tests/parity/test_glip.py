"""GLIP's fusion, dynamic head, losses, assignment, prompts, post-processing and the whole model against the official
code."""

import pytest
import torch
from parity_fixtures import assert_close, load_fixture
from transformers import BatchFeature, BertTokenizerFast
from transformers.image_transforms import center_to_corners_format, corners_to_center_format

from hf_clip_variants.modeling.detection.box_coding import clip_boxes, decode_boxes, encode_boxes
from hf_clip_variants.modeling.glip.boxes_glip import label_scores, make_anchors, select_detections
from hf_clip_variants.modeling.glip.configuration_glip import STRIDES, GLIPConfig
from hf_clip_variants.modeling.glip.convert_glip import (
    apply_rules,
    convert_glip_state_dict,
    fusion_rules,
    glip_from_official,
    head_rules,
    to_official,
)
from hf_clip_variants.modeling.glip.head_glip import GLIPFusion, GLIPTextFusion
from hf_clip_variants.modeling.glip.image_processing_glip import GLIPImageProcessor
from hf_clip_variants.modeling.glip.losses_glip import (
    NO_OBJECT,
    assign_anchors,
    box_losses,
    centerness_loss,
    centerness_targets,
    token_loss,
    token_targets,
)
from hf_clip_variants.modeling.glip.modeling_glip import GLIPForZeroShotObjectDetection
from hf_clip_variants.modeling.glip.outputs_glip import GLIPObjectDetectionOutput
from hf_clip_variants.modeling.glip.processing_glip import GLIPProcessor
from hf_clip_variants.modeling.glip.prompts_glip import clean_name, join_names, phrase_tokens


pytestmark = pytest.mark.parity


def make_config(hyper, use_fusion: bool = True) -> GLIPConfig:
    """Of the head alone; Swin is as small as it gets."""
    width = hyper["lang_dim"]
    text = {
        "hidden_size": width,
        "num_attention_heads": hyper["text_layer_heads"],
        "intermediate_size": hyper["text_layer_intermediate"],
        "layer_norm_eps": hyper["layer_norm_eps_bert"],
        "hidden_act": hyper["hidden_act"],
        "num_hidden_layers": 1,
        "vocab_size": 30,
        "max_position_embeddings": hyper["max_query_len"],
    }
    return GLIPConfig(
        backbone_config={"embed_dim": 4, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 2},
        text_config=text,
        hidden_size=hyper["channels"],
        head_num_layers=hyper["num_convs"],
        fusion_hidden_size=hyper["fusion_embed_dim"],
        fusion_num_heads=hyper["fusion_heads"],
        num_groups=hyper["group_norm_groups"],
        anchor_sizes=hyper["anchor_sizes"],
        max_text_length=hyper["max_query_len"],
        use_fusion=use_fusion,
    )


def levels(tensors, name: str) -> list[torch.Tensor]:
    return [tensors[f"{name}_{i}"] for i in range(len(STRIDES))]


def flat(maps, width: int | None = None) -> torch.Tensor:
    """Maps (B, C, h, w) of all levels -> (B, A, C)."""
    return torch.cat([one.flatten(2).transpose(1, 2) for one in maps], dim=1)


# ---- deep fusion


def test_fusion_and_its_gradients_are_the_official_ones():
    fixture = load_fixture("glip_fusion")
    fusion = GLIPFusion(make_config(fixture.meta["hyper"])).eval()
    official = {n: t for n, t in fixture.state_dict.items() if n.startswith("b_attn.")}
    rules = fusion_rules("b_attn.", "")
    assert {name for rule in rules for name in rule.official} == official.keys()
    fusion.load_state_dict(apply_rules(official, rules))
    given = fixture.inputs
    visual = [one.clone().requires_grad_() for one in levels(given, "visual")]
    hidden = given["hidden"].clone().requires_grad_()
    found, words = fusion(visual, hidden, given["mask"])
    for i, one in enumerate(found):
        assert_close(one, fixture.outputs[f"fused_visual_{i}"], f"level {i}")
    assert_close(words, fixture.outputs["fused_hidden"], "words")
    to_regions, to_words = fusion.updates(
        fusion.image_norm(flat(levels(given, "visual"))), fusion.text_norm(given["hidden"]), given["mask"]
    )
    assert_close(to_regions, fixture.outputs["delta_v"], "delta_v")
    assert_close(to_words, fixture.outputs["delta_l"], "delta_l")
    pairs = zip((*found, words), (*levels(given, "cot_visual"), given["cot_hidden"]), strict=True)
    sum((one * cotangent).sum() for one, cotangent in pairs).backward()
    gradients = {
        "grad_gamma_v": fusion.image_scale.grad,
        "grad_hidden": hidden.grad,
        "grad_v_proj_weight": fusion.image_query.weight.grad,
        "grad_values_l_proj_weight": fusion.text_value.weight.grad,
        "grad_visual_2": visual[2].grad,
    }
    assert gradients.keys() == {name for name in fixture.outputs if name.startswith("grad_")}
    for name, gradient in gradients.items():
        assert_close(gradient, fixture.outputs[name], name)


def test_one_way_fusion_is_the_official_one():
    fixture = load_fixture("glip_fusion")
    fusion = GLIPTextFusion(make_config(fixture.meta["hyper"])).eval()
    names = {"layer_norm_q_1": "image_norm", "layer_norm_k_1": "text_norm", "attn.q_proj": "query"}
    names |= {"attn.k_proj": "key", "attn.v_proj": "value", "attn.out_proj": "out", "gamma": "scale"}
    weights = {}
    for name, tensor in fixture.state_dict.items():
        if name.startswith("t2i_attn."):
            name = name.removeprefix("t2i_attn.")
            official = next(one for one in names if name.startswith(one))
            weights[name.replace(official, names[official])] = tensor
    fusion.load_state_dict(weights)
    given = fixture.inputs
    with torch.no_grad():
        found = fusion(levels(given, "visual"), given["hidden"], given["mask"])
    for i, one in enumerate(found):
        assert_close(one, fixture.outputs[f"t2i_visual_{i}"], f"level {i}")


# ---- head


def make_head(fixture, prefix: str):
    config = make_config(fixture.meta["hyper"], use_fusion=not prefix)
    official = {n.removeprefix(prefix): t for n, t in fixture.state_dict.items() if n.startswith(f"{prefix}rpn.")}
    rules = head_rules(config)
    known = {name for rule in rules for name in rule.official}
    assert known == {name for name in official if ".cls_logits." not in name}
    model = GLIPForZeroShotObjectDetection(config).eval()
    missing, unexpected = model.load_state_dict(apply_rules(official, rules), strict=False)
    assert not unexpected and not any(name.startswith(("layers.", "predictions.")) for name in missing)
    return model


@pytest.mark.parametrize("prefix", ["", "A."])
def test_head_gives_the_official_predictions(prefix):
    fixture = load_fixture("glip_dyhead")
    model, given = make_head(fixture, prefix), fixture.inputs
    words = given["embedded" if prefix else "hidden"]
    with torch.no_grad():
        features, fused = model.run_head(levels(given, "visual"), words, given["mask"])
        logits, codes, centerness = model.predictions(features, words if prefix else fused)
    name = "A_" if prefix else ""
    expected = fixture.outputs
    assert_close(logits, torch.cat(levels(expected, f"{name}dot_product_logits"), dim=1), "logits")
    assert_close(codes, flat(levels(expected, f"{name}bbox_pred")), "box codes")
    assert_close(centerness[..., None], flat(levels(expected, f"{name}centerness")), "centerness")


def test_each_module_of_the_head_is_the_official_one():
    fixture = load_fixture("glip_dyhead")
    model, given, expected = make_head(fixture, ""), fixture.inputs, fixture.outputs
    visual, words, mask = levels(given, "visual"), given["hidden"], given["mask"]
    hidden_mask = torch.zeros(mask.shape).masked_fill(mask == 0, torch.finfo(torch.float32).min)[:, None, None]
    with torch.no_grad():
        for i, one in enumerate(model.layers[0].convolution(visual)):
            assert_close(one, expected[f"dyconv_only_{i}"], f"convolution, level {i}")
        assert_close(model.layers[0].text_layer(words, hidden_mask), expected["bert_layer_only"], "text layer")
        for i, layer in enumerate(model.layers):
            visual, words = layer.fusion(visual, words, mask)
            assert_close(visual[3], expected[f"tower{3 * i}_VLFuse_visual3"], f"fusion {i}, regions")
            assert_close(words, expected[f"tower{3 * i}_VLFuse_hidden"], f"fusion {i}, words")
            words = layer.text_layer(words, hidden_mask)
            assert_close(words, expected[f"tower{3 * i + 1}_BertEncoderLayer_hidden"], f"text layer {i}")
            visual = layer.convolution(visual)
            assert_close(visual[3], expected[f"tower{3 * i + 2}_DyConv_visual3"], f"convolution {i}")
            if i == 0:
                assert_close(visual[0], expected["tower2_DyConv_visual0"], "convolution 0, level 0")


# ---- assignment and losses


def test_assignment_losses_and_gradients_are_the_official_ones():
    fixture = load_fixture("glip_loss")
    hyper, given, expected = fixture.meta["hyper"], fixture.inputs, fixture.outputs
    shapes = fixture.meta["feature_sizes"]
    sizes = [height * width for height, width in shapes]
    anchors = torch.cat([make_anchors(*one) for one in zip(shapes, STRIDES, hyper["anchor_sizes"], strict=True)])
    assert_close(anchors, expected["anchors"], "anchors")
    boxes, centers, logits = (
        [one.clone().requires_grad_() for one in levels(given, name)]
        for name in ("bbox_pred", "centerness", "dot_product_logits")
    )
    codes, joint = flat(boxes), torch.cat(logits, dim=1)
    decoded = decode_boxes(codes, anchors, hyper["box_coder_weights"])
    first, predicted, wanted, centres, places, tokens = 0, [], [], [], [], []
    for i in range(len(codes)):
        objects = given[f"gt_boxes_{i}"]
        own_map = given["positive_map"][first : first + len(objects)]
        first += len(objects)
        owners = assign_anchors(objects, anchors, sizes, hyper["atss_topk"])
        present = owners != NO_OBJECT
        labels = torch.where(present, given[f"gt_labels_{i}"][owners], 0)
        assert torch.equal(labels, expected["assigned_labels"][i])
        assert_close(
            encode_boxes(objects[owners.clamp_min(0)], anchors, hyper["box_coder_weights"])[present],
            expected["reg_targets"][i][present],
            "box codes of the objects",
        )
        tokens.append(token_targets(owners, own_map, no_object=True))
        predicted.append(decoded[i, present])
        wanted.append(objects[owners[present]])
        centres.append(flat(centers)[i, present, 0])
        places.append(anchors[present])
    predicted, wanted, centres, places = (torch.cat(one) for one in (predicted, wanted, centres, places))
    assert torch.equal(torch.stack(tokens), expected["token_labels"])
    weights = centerness_targets(wanted, places)
    assert_close(weights, expected["centerness_targets"], "centerness targets")
    assert_close(predicted, expected["decoded_pos_boxes"], "decoded boxes")
    losses = {
        "loss_reg": hyper["reg_loss_weight"] * (weights * box_losses(predicted, wanted)).sum() / weights.sum(),
        "loss_centerness": centerness_loss(centres, weights) / len(weights),
        "loss_dot_product_token": token_loss(
            joint, torch.stack(tokens), given["text_mask"], hyper["token_alpha"], hyper["token_gamma"]
        )
        / len(weights),
    }
    for name, loss in losses.items():
        assert_close(loss[None], expected[name], name)
    sum(losses.values()).backward()
    for name, parts in (("grad_bbox", boxes), ("grad_centerness", centers), ("grad_dot", logits)):
        scale = max(one.abs().max() for one in levels(expected, name))
        for i, one in enumerate(parts):
            found = torch.zeros_like(one) if one.grad is None else one.grad
            torch.testing.assert_close(found, expected[f"{name}_{i}"], rtol=0, atol=1e-5 * float(scale))


def test_focal_loss_of_words_is_the_official_one():
    fixture = load_fixture("glip_loss")
    given, hyper = fixture.inputs, fixture.meta["hyper"]
    logits = given["focal_logits"].clone().requires_grad_()
    loss = token_loss(logits, given["focal_targets"], given["focal_mask"], hyper["token_alpha"], hyper["token_gamma"])
    loss.backward()
    assert_close(loss[None], fixture.outputs["focal_binary"], "loss")
    assert_close(logits.grad, fixture.outputs["focal_binary_grad"], "gradient")


# ---- post-processing


def as_sets(boxes, scores, labels) -> torch.Tensor:
    """Rows (label, score, box), in an order that does not depend on the given one."""
    rows = torch.cat([labels[:, None].double(), scores[:, None].double(), boxes.double()], dim=1)
    order = sorted(range(len(rows)), key=lambda i: [round(float(x), 2) for x in rows[i, [0, 2, 3, 4, 5]]])
    return rows[order]


def check_sets(found, expected, tag: str, tolerance: float = 1e-4) -> None:
    found, expected = as_sets(*found), as_sets(*expected)
    assert found.shape == expected.shape, f"{tag}: {len(found)} detections, expected {len(expected)}"
    assert torch.equal(found[:, 0], expected[:, 0]), tag
    for columns, what in (([1], "scores"), ([2, 3, 4, 5], "boxes")):
        assert_close(found[:, columns], expected[:, columns], f"{tag} {what}", tolerance)


def phrase_map_of(positive_map: dict, labels: int, tokens: int) -> torch.Tensor:
    """Labels from 1 to lists of tokens -> (labels, tokens)."""
    found = torch.zeros(labels, tokens)
    for label, places in positive_map.items():
        found[int(label) - 1, places] = 1
    return found


def test_post_processing_gives_the_official_detections():
    fixture = load_fixture("glip_postprocess")
    hyper, given, expected = fixture.meta["hyper"], fixture.inputs, fixture.outputs
    anchors = torch.cat(levels(given, "anchors"))
    sizes = [len(one) for one in levels(given, "anchors")]
    logits = torch.cat(levels(given, "dot_product_logits"), dim=1)
    columns = {name: expected[name].shape[-1] for name in expected if name.startswith("agg_")}
    for name, count in columns.items():
        own = phrase_map_of(hyper["positive_map"], count, logits.shape[-1])
        rule = name.split("_")[1]
        assert_close(label_scores(logits[:, : sizes[0]].sigmoid(), own, rule), expected[name], name)
    boxes = clip_boxes(decode_boxes(flat(levels(given, "bbox_pred")), anchors), hyper["image_size_hw"])
    centerness = flat(levels(given, "centerness"))[..., 0].sigmoid()
    own = phrase_map_of(hyper["positive_map"], hyper["num_classes_incl_bg"] - 1, logits.shape[-1])
    for tag, rule, nms in (
        ("MEAN_od", "mean", 0.6),
        ("MAX_od", "max", 0.6),
        ("MEAN_v2", "mean", 0.6),
        ("prenms", "mean", 1.0),
    ):
        for i in range(len(logits)):
            values, labels, found, rows = select_detections(
                label_scores(logits[i].sigmoid(), own, rule),
                centerness[i],
                boxes[i],
                sizes,
                score_threshold=hyper["pre_nms_thresh"],
                pre_nms=hyper["pre_nms_top_n"],
                nms_threshold=nms if tag == "prenms" else hyper["nms_thresh"],
                max_detections=10**6 if tag == "prenms" else hyper["detections_per_img"],
            )
            assert torch.equal(boxes[i, rows], found) and values.tolist() == sorted(values.tolist(), reverse=True)
            wanted = [expected[f"{tag}_{part}_{i}"] for part in ("boxes", "scores", "labels")]
            check_sets((found, values, labels + 1), wanted, f"{tag} image {i}")


def test_the_processor_selects_the_official_detections():
    fixture = load_fixture("glip_postprocess")
    hyper, given, expected = fixture.meta["hyper"], fixture.inputs, fixture.outputs
    logits = torch.cat(levels(given, "dot_product_logits"), dim=1)
    height, width = hyper["image_size_hw"]
    boxes = decode_boxes(flat(levels(given, "bbox_pred")), torch.cat(levels(given, "anchors")))
    own = phrase_map_of(hyper["positive_map"], 7, logits.shape[-1])
    outputs = GLIPObjectDetectionOutput(
        logits=logits,
        pred_boxes=corners_to_center_format(boxes / boxes.new_tensor([width, height, width, height])),
        centerness=flat(levels(given, "centerness"))[..., 0],
        spatial_shapes=torch.tensor([one.shape[-2:] for one in levels(given, "centerness")]),
        image_sizes=torch.tensor([[height, width]] * len(logits)),
        phrase_map=own.expand(len(logits), -1, -1),
    )
    options = {"score_threshold": hyper["pre_nms_thresh"], "nms_threshold": hyper["nms_thresh"]}
    options |= {"pre_nms": hyper["pre_nms_top_n"], "max_detections": hyper["detections_per_img"]}
    for i, one in enumerate(GLIPImageProcessor().post_process_object_detection(outputs, **options)):
        wanted = [expected[f"MEAN_od_{part}_{i}"] for part in ("boxes", "scores", "labels")]
        check_sets((one["boxes"], one["scores"], one["labels"] + 1), wanted, f"image {i}")


# ---- prompts


def make_tokenizer(meta) -> BertTokenizerFast:
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(meta["vocab"])}, do_lower_case=True)


def tokens_of(row: torch.Tensor) -> list[int]:
    return row.nonzero()[:, 0].tolist()


def test_prompts_and_token_maps_are_the_official_ones():
    fixture = load_fixture("glip_positive_map")
    meta, expected = fixture.meta, fixture.outputs
    names = [clean_name(name) for name in meta["raw_names"]]
    assert names == meta["clean_names"]
    query, spans = join_names(names, meta["separation_tokens"])
    assert query == meta["query"] and [[list(span) for span in one] for one in spans] == meta["char_spans"]
    processor = GLIPProcessor(GLIPImageProcessor(), make_tokenizer(meta))
    caption_spans = [[tuple(span) for span in one] for one in meta["caption_spans"]]
    for inputs, ids, wanted_map, tokens in (
        (processor(text=meta["raw_names"]), "det_input_ids", "det_positive_map", "label_to_token"),
        (
            processor(captions=[meta["caption"]], phrases=[caption_spans]),
            "cap_input_ids",
            "cap_positive_map",
            "caption_label_to_token",
        ),
    ):
        assert torch.equal(inputs.input_ids, expected[ids])
        (found,) = inputs.phrase_map
        assert [tokens_of(row) for row in found] == list(meta[tokens].values())
        normalised = found / (found.sum(dim=1, keepdim=True) + 1e-6)
        wide = torch.nn.functional.pad(normalised, (0, expected[wanted_map].shape[1] - found.shape[1]))
        assert_close(wide, expected[wanted_map], wanted_map)


def test_labels_of_tokens_are_the_official_ones():
    fixture = load_fixture("glip_positive_map")
    meta = fixture.meta
    encoding = make_tokenizer(meta)([meta["query"]])
    found = torch.full_like(fixture.outputs["od_labels_map"], -1)
    spans = {int(label): tuple(span) for label, span in meta["od_label_spans"].items()}
    rows = phrase_tokens(encoding, 0, [[span] for span in spans.values()], len(found), "labels")
    for label, row in zip(spans, rows, strict=True):
        found[row != 0] = label
    assert torch.equal(found, fixture.outputs["od_labels_map"])


# ---- the whole model


@pytest.fixture(scope="module")
def whole():
    fixture = load_fixture("glip_tiny_forward")
    hyper = fixture.meta["hyper"]
    model = glip_from_official(
        fixture.state_dict,
        text_heads=hyper["bert"]["heads"],
        fusion_heads=hyper["fusion_heads"],
        num_groups=hyper["group_norm_groups"],
    )
    return fixture, model


def test_sizes_are_read_from_the_file_and_the_names_go_there_and_back(whole):
    fixture, model = whole
    hyper, config = fixture.meta["hyper"], model.config
    swin, bert = hyper["swin"], hyper["bert"]
    assert config.anchor_sizes == hyper["anchor_sizes"] and config.head_num_layers == hyper["num_convs"]
    for name in ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "patch_size"):
        assert getattr(config.backbone_config, name) == swin[name], name
    text = config.text_config
    assert (text.num_hidden_layers, text.intermediate_size, text.vocab_size) == (
        bert["layers"],
        bert["inter"],
        bert["vocab_size"],
    )
    back = to_official(convert_glip_state_dict(fixture.state_dict, config), config)
    for name, tensor in back.items():
        assert torch.equal(tensor, fixture.state_dict[name]), name
    left = ("relative_position_index", "anchor_generator", "cls_logits", "position_ids")
    assert all(any(part in name for part in left) for name in fixture.state_dict.keys() - back.keys())


def test_swin_is_the_official_one_on_maps_below_the_window(whole):
    fixture, model = whole
    given, expected = fixture.inputs, fixture.outputs
    with torch.no_grad():
        for name, images in (("swin", given["images_padded"]), ("small_swin", given["small_image"])):
            found = model.backbone(images.flip(1), output_hidden_states=True)
            for i, one in enumerate(found.feature_maps):
                assert_close(one, expected[f"{name}_{i + 3}"], f"{name} stage {i + 2}")
        assert_close(
            model.backbone(given["small_image"].flip(1), output_hidden_states=True).hidden_states[1],
            expected["small_swin_2"],
            "stage 1",
        )


def test_the_whole_model_gives_the_official_detections(whole):
    fixture, model = whole
    given, expected, meta = fixture.inputs, fixture.outputs, fixture.meta
    hyper, images = meta["hyper"], given["images_padded"].flip(1)
    pixel_mask = torch.zeros(len(images), *images.shape[-2:], dtype=torch.long)
    for mask, (height, width) in zip(pixel_mask, meta["image_sizes_hw"], strict=True):
        mask[:height, :width] = 1
    processor = GLIPProcessor(GLIPImageProcessor(), make_tokenizer(meta), max_text_length=hyper["max_query_len"])
    prompt = processor(text=meta["caption"].split(". "), padding="max_length", max_length=hyper["max_query_len"])
    assert torch.equal(prompt.input_ids.expand(2, -1), given["input_ids"])
    assert torch.equal(prompt.attention_mask.expand(2, -1), given["attention_mask"])
    with torch.no_grad():
        for i, one in enumerate(model.feature_maps(images)[0]):
            assert_close(one, expected[f"fpn_{i}"], f"pyramid {i}")
        words = model.encode_prompts(given["input_ids"], given["attention_mask"])
        real = given["attention_mask"].bool()
        assert_close(words[real], expected["lang_hidden"][real], "words")
        outputs = model(images, pixel_mask=pixel_mask, **prompt)
        short = model(images, pixel_mask=pixel_mask, **processor(text=meta["caption"].split(". ")))
    assert_close(outputs.logits, torch.cat(levels(expected, "dot_product_logits"), dim=1), "logits")
    assert_close(outputs.centerness[..., None], flat(levels(expected, "centerness")), "centerness")
    anchors = torch.cat(model.anchors_of(outputs.spatial_shapes.tolist()))
    scale = outputs.image_sizes.flip(1).repeat(1, 2)[:, None]
    decoded = decode_boxes(flat(levels(expected, "bbox_pred")), anchors)
    assert_close(center_to_corners_format(outputs.pred_boxes) * scale, decoded, "boxes")
    # Padding of the prompt is not needed.
    assert_close(short.logits, outputs.logits[..., : short.logits.shape[-1]], "short prompt")
    options = {"score_threshold": hyper["inference_th"], "nms_threshold": hyper["nms_th"]}
    options |= {"pre_nms": hyper["pre_nms_top_n"], "max_detections": hyper["detections_per_img"]}
    assert isinstance(prompt, BatchFeature)
    for i, one in enumerate(processor.post_process_grounded_object_detection(outputs, **options)):
        wanted = [expected[f"{part}_{i}"] for part in ("boxes", "scores", "labels")]
        check_sets((one["boxes"], one["scores"], one["labels"] + 1), wanted, f"image {i}")
        names = meta["caption"].split(". ")
        assert one["text_labels"] == [names[label] for label in one["labels"]]
