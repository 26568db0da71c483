"""GLIPv2 where detectors are used: a GLIP's weights, masks in the pipeline, official names, training, bad inputs."""

import json
import sys

import numpy as np
import pytest
import torch
from glip_runs import NAMES, glip_inputs, glip_model, glip_processor, noise, save_glip_data
from glipv2_runs import OFF, glipv2_inputs, glipv2_labels, glipv2_model, glipv2_processor
from paths import SCRIPTS
from safetensors.torch import load_file
from tiny import tiny_pixels
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, pipeline

from hf_clip_variants import GLIPv2ForZeroShotObjectDetection
from hf_clip_variants.modeling.detection.instance_masks import whole_masks
from hf_clip_variants.modeling.glip.convert_glip import to_official as glip_to_official
from hf_clip_variants.modeling.glipv2.convert_glipv2 import convert_glipv2_state_dict, to_official


TASK = "zero-shot-object-detection"


def run(model, **inputs):
    with torch.no_grad():
        return model(**inputs)


# ---- a GLIP's weights, and official names


@pytest.mark.parametrize("use_fusion", [True, False])
def test_a_glips_weights_give_its_detections_to_the_last_bit(use_fusion, tmp_path):
    glip = glip_model(use_fusion=use_fusion)
    inputs = glip_processor()([noise(80, 50), noise(60, 70)], NAMES)
    expected = run(glip, **inputs)
    boxes = glip_processor().post_process_grounded_object_detection(expected)
    model = GLIPv2ForZeroShotObjectDetection.from_glip(glip, mask_token_id=4, end_token_id=3)
    off = GLIPv2ForZeroShotObjectDetection.from_glip(glip, mask_token_id=4, **OFF)
    assert off.state_dict().keys() == glip.state_dict().keys()
    own = {name.split(".")[0] for name in model.state_dict().keys() - glip.state_dict().keys()}
    assert own == {"contrast", "word_predictions", "mask_head"} and not model.training
    glip.save_pretrained(tmp_path)
    config = off.config  # of weights that are missing none is made up
    loaded = GLIPv2ForZeroShotObjectDetection.from_pretrained(tmp_path, config=config).eval()
    for one in (model, off, loaded):
        assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in glip.state_dict().items())
        # The last bit of a sum depends on where in memory weights begin: the same memory for both.
        one.load_state_dict(glip.state_dict(), strict=False, assign=True)
        found = run(one, **inputs)
        for name in ("logits", "pred_boxes", "centerness"):
            assert torch.equal(found[name], expected[name])
        again = glipv2_processor().post_process_grounded_object_detection(found)
        for old, new in zip(boxes, again, strict=True):
            assert old["text_labels"] == new["text_labels"] and torch.equal(old["boxes"], new["boxes"])
    with pytest.raises(ValueError, match="weights are missing"):
        GLIPv2ForZeroShotObjectDetection.from_pretrained(tmp_path, config=model.config)


def test_official_names_there_and_back():
    model = glipv2_model()
    official = to_official(model.state_dict(), model.config)
    more = official.keys() - glip_to_official(glip_model().state_dict(), glip_model().config).keys()
    layers = [f"rpn.loss_evaluator.shallow_contrastive_projection_{kind}" for kind in ("image", "text")]
    layers += [f"rpn.head.mlm_head.{part}" for part in ("transform.dense", "transform.LayerNorm", "decoder")]
    layers += [f"roi_heads.mask.feature_extractor.mask_fcn{i}" for i in (1, 2)]
    layers += [f"roi_heads.mask.predictor.{part}" for part in ("conv5_mask", "dot_product_projection_text")]
    single = ["rpn.loss_evaluator.shallow_log_scale", "rpn.head.mlm_head.bias"]
    single += ["roi_heads.mask.predictor.log_scale", "roi_heads.mask.predictor.bias_lang"]
    assert more == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")} | set(single)
    back = convert_glipv2_state_dict({f"module.{name}": tensor for name, tensor in official.items()}, model.config)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.items())
    for change, message in (
        ({"rpn.head.mlm_head.bias": torch.zeros(29)}, "mlm_head.bias is not rpn.head.mlm_head.decoder.bias"),
        ({"roi_heads.mask.predictor.log_scale": None}, "1 missing: roi_heads.mask.predictor.log_scale"),
        ({"rpn.head.odd": torch.zeros(1)}, "1 unexpected: rpn.head.odd"),
    ):
        changed = {n: t for n, t in (official | change).items() if t is not None}
        with pytest.raises(ValueError, match=message):
            convert_glipv2_state_dict(changed, model.config)


# ---- masks


@pytest.mark.parametrize("names_per_prompt", [None, 2])
def test_masks_are_those_of_the_labels_words(names_per_prompt):
    model, processor = glipv2_model(), glipv2_processor()
    images = [noise(80, 50), noise(60, 70, 3)]
    inputs = processor(images, NAMES, names_per_prompt=names_per_prompt)
    plain = processor.post_process_grounded_object_detection(run(model, **inputs), text_labels=NAMES)
    outputs = run(model, **inputs, output_masks=True)
    found = processor.post_process_grounded_object_detection(outputs, text_labels=NAMES)
    assert outputs.detections.masks.shape == (2, max(len(one["scores"]) for one in plain), 28, 28)
    for one, expected in zip(found, plain, strict=True):
        assert one["text_labels"] == expected["text_labels"] and torch.equal(one["boxes"], expected["boxes"])
        assert len(one["masks"]) == len(one["scores"]) and 0 <= one["masks"].min() < one["masks"].max() <= 1
    # Another name's words in the place of a label's change its masks, and no others.
    label = int(found[0]["labels"][0])
    members = inputs["phrase_map"].flatten(0, -2)
    with torch.no_grad():
        words = run(model, **inputs, output_masks=True).phrase_map
        assert torch.equal(words[0].flatten(0, -2), members)
        model.mask_head.text_bias.add_(1.0)
    changed = processor.post_process_grounded_object_detection(run(model, **inputs, output_masks=True))
    assert not torch.equal(changed[0]["masks"], found[0]["masks"])
    assert torch.equal(changed[0]["boxes"], found[0]["boxes"]) and label == int(changed[0]["labels"][0])


def test_masks_and_words_of_weights_that_are_not_finite_are_no_answer():
    for name, options in (("mask_head.upsampling.bias", {"output_masks": True}), ("word_predictions.", {})):
        model, inputs = glipv2_model(), glip_inputs(2)
        weight = next(p for n, p in model.named_parameters() if n.startswith(name))
        weight.data.view(-1)[0] = float("nan")
        if not options:
            options, inputs["labels"] = {"mlm_labels": torch.zeros_like(inputs["input_ids"])}, None
        with pytest.raises(ValueError, match=f"(masks|mlm_logits): NaN or infinite .*{name}"):
            run(model, **inputs, **options)


def test_a_mask_is_the_mean_over_its_labels_tokens():
    model = glipv2_model()
    head, words = model.mask_head, torch.randn(6, 20)
    members = torch.tensor([[0.0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    regions = torch.randn(2, 12, 7, 7)
    with torch.no_grad():
        logits = head(regions, *head.read(words, members))
        tokens = [head(regions[:1], *head.read(words, row[None]))[0] for row in torch.eye(6)[1:3]]
    torch.testing.assert_close(logits[0], sum(tokens) / 2, rtol=1e-4, atol=1e-5)
    assert (logits[1] == 0).all()  # without tokens; such a label is never found


def test_the_pipeline_gives_masks_from_a_saved_folder(tmp_path):
    for part in (glipv2_model(), glipv2_processor()):
        part.save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is type(glipv2_processor())
    pipe, images = pipeline(TASK, str(tmp_path)), [noise(80, 50), noise(33, 47)]
    plain = pipe(images, candidate_labels=NAMES, threshold=0.3)
    found = pipe(images, candidate_labels=NAMES, threshold=0.3, masks=True, batch_size=2)
    for image, one, expected in zip(images, found, plain, strict=True):
        assert [(o["label"], o["box"]) for o in one] == [(o["label"], o["box"]) for o in expected] and one
        inputs = pipe.processor(image, NAMES)
        (direct,) = pipe.processor.post_process_grounded_object_detection(
            run(pipe.model, **inputs, output_masks=True), target_sizes=[(image.height, image.width)], threshold=0.3
        )
        masks = whole_masks(direct["masks"], direct["boxes"], (image.height, image.width))
        for object_, mask in zip(one, masks, strict=True):
            assert object_["mask"].size == image.size
            assert np.mean((np.asarray(object_["mask"]) > 0) == mask.numpy()) > 0.999
    caption = "a cat on the red car"
    inputs = pipe.processor(images[0], captions=[caption])
    (grounded,) = pipe.processor.post_process_grounded_object_detection(run(pipe.model, **inputs, output_masks=True))
    assert set(grounded["text_labels"]) <= {"a cat", "the red car"} and len(grounded["masks"])
    without = glipv2_model(use_mask_head=False)
    with pytest.raises(ValueError, match="masks: True, but the model predicts none"):
        pipeline(TASK, without, processor=glipv2_processor())(images[0], candidate_labels=NAMES, masks=True)


def test_nothing_found_has_no_masks():
    model, processor = glipv2_model(), glipv2_processor()
    with torch.no_grad():
        model.predictions.bias.fill_(-100.0)
    outputs = run(model, **processor(noise(64, 64), NAMES), output_masks=True)
    (found,) = processor.post_process_grounded_object_detection(outputs, target_sizes=[(64, 64)])
    assert found["masks"].shape == (0, 28, 28) and found["text_labels"] == [] and found["boxes"].shape == (0, 4)


# ---- training


def test_finetuning_trains_all_losses_on_names_and_captions(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    import finetune_detection

    for part in (glipv2_model(), glipv2_processor()):
        part.save_pretrained(tmp_path / "model")
    save_glip_data(tmp_path)
    document = json.loads((tmp_path / "all.json").read_text())
    for one in document["annotations"]:
        x, y, width, height = one["bbox"]
        one["segmentation"] = [[x, y, x + width, y, x, y + height]]
    (tmp_path / "masks.json").write_text(json.dumps(document))
    for one in document["images"]:
        one["caption"] = "a red car on the pizza"
    for one in document["annotations"]:
        one["tokens_positive"] = [[2, 9]]
    (tmp_path / "pairs.json").write_text(json.dumps(document))
    arguments = ["--model", tmp_path / "model", "--data", tmp_path / "masks.json", "--masks", "--other-names", "5"]
    arguments += ["--grounding", tmp_path / "pairs.json", "--out", tmp_path / "run", "--steps", "2"]
    arguments += ["--batch-size", "4", "--lr", "1e-3", "--no-flip", "--log-every", "1"]
    arguments += ["--set", "mlm_probability=0.5", "--eval-data", tmp_path / "all.json"]
    seen = []
    forward = GLIPv2ForZeroShotObjectDetection.forward

    def listen(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        if outputs.loss is not None:
            seen.append((kwargs["is_caption"].tolist(), outputs.loss_dict))
        return outputs

    listen.__wrapped__ = forward
    monkeypatch.setattr(GLIPv2ForZeroShotObjectDetection, "forward", listen)
    try:
        assert finetune_detection.main([str(one) for one in arguments]) == 0
    finally:
        torch.set_num_threads(threads)
        sys.modules.pop("finetune_detection", None)
    kinds = {kind for is_caption, _ in seen for kind in is_caption}
    assert kinds == {True, False}, "class names are no sentences, although they come with some"
    assert all(value > 0 for _, losses in seen for value in losses.values()) and len(seen[0][1]) == 6
    old, new = (load_file(one / "model" / "model.safetensors") for one in (tmp_path, tmp_path / "run"))
    assert all(not torch.equal(old[n], new[n]) for n in old if n.startswith(("contrast.", "word_p", "mask_head.")))
    assert (
        type(AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path / "run" / "model")).__name__[:6] == "GLIPv2"
    )


def test_images_without_objects_or_masks_train_without_nan():
    model, inputs = glipv2_model().train(), glipv2_inputs(2)
    inputs["labels"] = [{"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}] * 2
    inputs["mlm_labels"] = torch.full_like(inputs["mlm_labels"], -100)
    outputs = model(**inputs)
    outputs.loss.backward()
    for name in ("loss_inter_image", "loss_mlm", "loss_mask"):
        assert outputs.loss_dict[name] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_only_some_regions_of_an_image_are_compared(monkeypatch):
    from hf_clip_variants.modeling.glipv2 import modeling_glipv2

    counts = []
    sums = modeling_glipv2.inter_image_sums
    monkeypatch.setattr(
        modeling_glipv2, "inter_image_sums", lambda regions, *more: counts.append(len(regions)) or sums(regions, *more)
    )
    inputs = glipv2_inputs(2)
    glipv2_model()(**inputs)
    few = glipv2_model(max_positive_regions=2)(**inputs)
    assert counts[0] > 4 and counts[1] == 4 and few.loss.isfinite()


# ---- bad inputs


def test_whole_numbers_of_32_bits_are_tokens_as_well():
    model, inputs = glipv2_model(), glipv2_inputs(2)
    with torch.no_grad():
        found = model(**inputs | {"input_ids": inputs["input_ids"].int()})
        expected = model(**inputs)
    torch.testing.assert_close(found.loss_dict, expected.loss_dict, rtol=0, atol=0)


def test_arguments_that_do_not_fit_are_named():
    model, inputs = glipv2_model(), glipv2_inputs(2)
    for change, message in (
        ({"is_caption": [True, False]}, "is_caption: got list, expected true or false for each of 2 images"),
        ({"is_caption": torch.ones(2)}, r"is_caption: got torch.float32 \[2\]"),
        ({"is_caption": torch.ones(3, dtype=torch.bool)}, r"is_caption: got torch.bool \[3\]"),
        ({"is_caption": torch.ones(2, 1, dtype=torch.bool)}, r"is_caption: got torch.bool \[2, 1\]"),
        ({"mlm_labels": torch.zeros(2, 3, dtype=torch.long)}, r"mlm_labels: got torch.int64 \[2, 3\].* as input_ids"),
        ({"mlm_labels": "cat"}, "mlm_labels: got str"),
        ({"mlm_labels": torch.full((2, 16), 99)}, "mlm_labels: 99..99, expected -100 or tokens, 0..28"),
        ({"output_masks": True, "phrase_map": None, "labels": None}, "output_masks: True, but no phrase_map"),
        ({"input_ids": torch.ones(16, 2, dtype=torch.long)}, r"input_ids: got \[16, 2\], expected one row for each"),
        ({"labels": glipv2_labels(1)}, "labels: 1 dictionaries for 2 images"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs | change)
    labels = glipv2_labels(2)
    labels[1]["masks"] = torch.zeros(3, 64, 64)
    with pytest.raises(ValueError, match=r"labels\[1\]\['masks'\]: \[3, 64, 64\], expected \[2, height, width\]"):
        model(**inputs | {"labels": labels})
    with pytest.raises(ValueError, match="text_embeds: given with labels, expected input_ids"):
        words = model.encode_prompts(inputs["input_ids"], inputs["attention_mask"])
        model(tiny_pixels(2, size=64), text_embeds=words, phrase_map=inputs["phrase_map"], labels=labels)
    with pytest.raises(ValueError, match=r"output_masks: True, but the model has no mask head \(use_mask_head\)"):
        glipv2_model(use_mask_head=False)(**glip_inputs(2), output_masks=True)
    outputs = run(model, **inputs, output_masks=True)
    with pytest.raises(ValueError, match="nms_threshold: given, but with masks the model has selected"):
        glipv2_processor().post_process_grounded_object_detection(outputs, nms_threshold=0.3)
    with pytest.raises(ValueError, match="target_sizes: 1 for 2 images"):
        glipv2_processor().post_process_grounded_object_detection(outputs, target_sizes=[(9, 9)])
    with pytest.raises(ValueError, match="glip: .* do not fit; expected a GLIP"):
        GLIPv2ForZeroShotObjectDetection.from_glip(glip_model(), head_num_layers=1, mask_token_id=4, end_token_id=3)
