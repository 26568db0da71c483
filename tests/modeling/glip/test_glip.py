"""GLIP: prompts and their errors, several prompts for an image, names read alone, losses at their limits, what padding
changes."""

import pytest
import torch
from glip_runs import NAMES, SIZES, glip_inputs, glip_labels, glip_model, glip_processor
from PIL import Image
from tiny import tiny_pixels

from hf_clip_variants.modeling.glip.boxes_glip import label_scores, select_detections
from hf_clip_variants.modeling.glip.head_glip import (
    GLIPDeformableConvolution,
    deform_conv2d_by_sampling,
    deform_conv2d_of_torchvision,
)
from hf_clip_variants.modeling.glip.losses_glip import NO_OBJECT, assign_anchors, token_loss, token_targets
from hf_clip_variants.modeling.glip.prompts_glip import noun_phrases, split_names


IMAGE = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()


def run(model, **inputs):
    with torch.no_grad():
        return model(**inputs)


# ---- prompts


def test_a_list_of_names_becomes_a_prompt_for_all_images():
    inputs = glip_processor()([IMAGE, IMAGE], ["cat", "traffic_light", "red car"])
    assert inputs.input_ids.shape == (1, 9) and inputs.phrase_map.sum(dim=2).tolist() == [[1, 2, 2]]
    assert set(inputs) == {"pixel_values", "pixel_mask", "input_ids", "attention_mask", "phrase_map"}
    found = run(glip_model(), **inputs)
    assert found.logits.shape[0] == 2 and found.phrase_map.shape[:2] == (2, 3)


def test_a_long_list_of_names_becomes_several_prompts_and_nothing_is_cut_off():
    processor = glip_processor()
    names = [f"{colour} {thing}" for colour in ("red", "small") for thing in ("cat", "dog", "bird", "car", "pizza")]
    inputs = processor(IMAGE, names)
    assert inputs.input_ids.shape == (1, 2, 22) and inputs.phrase_map.shape == (1, 2, 7, 22)
    assert (inputs.phrase_map.sum(dim=3) != 0).sum().item() == len(names)
    assert processor(IMAGE, names, names_per_prompt=4).input_ids.shape[:2] == (1, 3)
    found = processor.post_process_grounded_object_detection(run(glip_model(), **inputs))[0]
    assert {int(label) for label in found["labels"]} <= set(range(len(names))) and int(found["labels"].max()) > 6
    assert found["text_labels"] == [names[label] for label in found["labels"]]


def test_merged_prompts_give_what_each_prompt_alone_gives():
    processor, model = glip_processor(), glip_model()
    parts = [NAMES[:3], NAMES[3:]]
    options = {"score_threshold": 0.0, "pre_nms": 10**6, "max_detections": 10**6}
    together = processor(IMAGE, NAMES, names_per_prompt=3)
    found = processor.post_process_grounded_object_detection(run(model, **together), **options)[0]
    alone = [
        processor.post_process_grounded_object_detection(run(model, **processor(IMAGE, part)), **options)[0]
        for part in parts
    ]
    scores = torch.cat([one["scores"] for one in alone]).sort(descending=True).values
    torch.testing.assert_close(found["scores"], scores, rtol=1e-5, atol=1e-6)
    assert sorted(found["text_labels"]) == sorted(alone[0]["text_labels"] + alone[1]["text_labels"])
    boxes = {tuple(row) for row in torch.cat([one["boxes"] for one in alone]).round().tolist()}
    assert {tuple(row) for row in found["boxes"].round().tolist()} == boxes


@pytest.mark.parametrize("separate", [True, False])
def test_names_read_alone_are_found_alike_however_they_are_split(separate):
    """Without fusion. Officially BERT reads the whole prompt, and then they are not."""
    processor, model = glip_processor(), glip_model(use_fusion=False, separate_names=separate)
    options = {"score_threshold": 0.0, "text_labels": NAMES}
    found = [
        processor.post_process_grounded_object_detection(
            run(model, **processor(IMAGE, NAMES, names_per_prompt=count)), **options
        )[0]
        for count in (None, 1, 2, 3, 4)
    ]
    differences = [(one["scores"] - found[0]["scores"]).abs().max().item() for one in found[1:]]
    if not separate:
        assert min(differences) > 1e-3
        return
    assert max(differences) < 1e-5 and len(found[0]["scores"]) >= 100
    for one in found[1:]:
        assert one["text_labels"] == found[0]["text_labels"]
        torch.testing.assert_close(one["boxes"], found[0]["boxes"], rtol=1e-5, atol=1e-4)


def test_a_name_read_alone_follows_the_start_mark_and_sees_nothing_else():
    # Of one layer: [CLS] alone is officially another one behind the first.
    text = SIZES["text_config"] | {"num_hidden_layers": 1}
    processor, model = glip_processor(), glip_model(separate_names=True, text_config=text)
    prompt = processor(text=[NAMES, NAMES[:2]])
    with torch.no_grad():
        found = model.encode_prompts(**prompt)
        for i, name in enumerate(NAMES):
            alone = processor.tokenizer(name, return_tensors="pt").input_ids[:, :-1]  # without [SEP]
            expected = model.text_encoder(alone).last_hidden_state[0, 1:]
            torch.testing.assert_close(found[0, prompt.phrase_map[0, i] != 0], expected, rtol=1e-5, atol=1e-5)
        # One prompt with names of each image; phrases that share a word.
        own_maps = torch.stack([prompt.phrase_map[0], prompt.phrase_map[0].flip(0)])
        shared = {"input_ids": prompt.input_ids[:1], "attention_mask": prompt.attention_mask[:1]}
        logits = model(tiny_pixels(2, size=64), **shared, phrase_map=own_maps).logits
        assert logits.shape[0] == 2 and logits.isfinite().all()
    with pytest.raises(ValueError, match="phrase_map: missing, which a model with separate_names needs"):
        model(tiny_pixels(1, size=64), input_ids=prompt.input_ids[:1])


def test_images_may_have_different_numbers_of_prompts():
    processor, model = glip_processor(), glip_model()
    inputs = processor([IMAGE, IMAGE], [NAMES, ["dog"]], names_per_prompt=2)
    assert inputs.input_ids.shape[:2] == (2, 3)
    found = processor.post_process_grounded_object_detection(run(model, **inputs))
    (alone,) = processor.post_process_grounded_object_detection(run(model, **processor(IMAGE, ["dog"])))
    torch.testing.assert_close(found[1]["scores"], alone["scores"], rtol=1e-4, atol=1e-5)
    assert set(found[1]["text_labels"]) == {"dog"}


def test_phrases_of_a_caption_are_texts_spans_or_found():
    processor, caption = glip_processor(), "a man holding the small cat and a red car ."
    given = [["the small cat", (2, 5), [(32, 41), (0, 1)]]]
    inputs = processor(IMAGE, captions=[caption], phrases=given)
    tokens = [processor.tokenizer.convert_ids_to_tokens(inputs.input_ids[0][row != 0]) for row in inputs.phrase_map[0]]
    assert tokens == [["the", "small", "cat"], ["man"], ["a", "a", "red", "car"]]
    assert [caption[a:b] for a, b in noun_phrases(caption)] == ["a man", "the small cat", "a red car"]
    found = processor(IMAGE, captions=caption)
    assert found.phrase_map.shape[1] == 3
    detections = processor.post_process_grounded_object_detection(run(glip_model(), **found))[0]
    assert set(detections["text_labels"]) <= {"a man", "the small cat", "a red car"}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "images, text, captions: got none"),
        ({"text": "cat"}, "text: got the single string 'cat'"),
        ({"text": []}, "text is empty"),
        ({"text": ["cat", " "]}, r"text\[1\]: ' ' is blank"),
        ({"text": ["(all of it)"]}, r"text\[0\]: nothing is left of '\(all of it\)'"),
        ({"text": ["cat " * 30]}, r"text\[0\]: 30 tokens, expected at most 22"),
        ({"text": ["cat"], "captions": ["a cat"]}, "text, captions: got both"),
        ({"text": ["cat"], "phrases": [["cat"]]}, "phrases: got some, but no captions"),
        ({"text": ["cat"], "names_per_prompt": 0}, "names_per_prompt: 0"),
        ({"captions": ["cat " * 30]}, r"captions\[0\]: 32 tokens, expected at most 24"),
        ({"captions": ["a cat", ""]}, r"captions\[1\]: '' is blank"),
        ({"captions": ["on and of"]}, r"captions\[0\]: no noun phrase in 'on and of'"),
        ({"captions": ["a cat"], "phrases": [["dog"]]}, r"phrases\[0\]\[0\]: 'dog' does not stand in 'a cat'"),
        ({"captions": ["a cat"], "phrases": [[(2, 6)]]}, r"phrases\[0\]\[0\]: \(2, 6\), expected .* 0..5 of 'a cat'"),
        ({"captions": ["a cat"], "phrases": [[(3, 3)]]}, r"phrases\[0\]\[0\]: \(3, 3\)"),
        ({"captions": ["a cat"], "phrases": [[(1, 2)]]}, r"phrases\[0\]\[0\]: \(1, 2\) holds nothing but spaces"),
        ({"captions": ["a cat"], "phrases": [[]]}, r"phrases\[0\]: no phrase"),
        ({"captions": ["a cat"], "phrases": ["a cat", "a"]}, "phrases: 2 lists for 1 captions"),
        ({"images": [IMAGE] * 3, "captions": ["a cat", "a dog"]}, "captions: 2 for 3 images"),
    ],
)
def test_bad_prompts_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        glip_processor()(**inputs)


def test_a_prompt_that_is_too_long_is_refused_by_the_model():
    ids = torch.ones(1, 25, dtype=torch.long)
    with pytest.raises(ValueError, match=r"input_ids: 25 tokens, expected at most 24 \(max_text_length\)"):
        glip_model()(tiny_pixels(1, size=64), input_ids=ids)


def test_names_are_split_greedily_and_keep_their_order():
    tokenizer = glip_processor().tokenizer
    names = ["traffic light", "cat", "dog", "red car"] * 20
    for length in (4, 7, 24):
        parts = split_names(names, tokenizer, length)
        assert [name for part in parts for name in part] == names
        assert all(len(tokenizer(". ".join(part)).input_ids) <= length for part in parts)
        for part, after in zip(parts, parts[1:], strict=False):
            assert len(tokenizer(". ".join([*part, after[0]])).input_ids) > length


# ---- detections


def test_overlap_counts_the_last_pixel():
    """Two boxes of 3 x 3 and 3 x 4 pixels overlap by 3/4; without the last pixel by 2/3."""
    boxes = torch.tensor([[0.0, 0, 2, 2], [0.0, 0, 2, 3]])
    scores, centre = torch.tensor([[0.9], [0.8]]), torch.ones(2)
    assert len(select_detections(scores, centre, boxes, [2], nms_threshold=0.7)[0]) == 1
    assert len(select_detections(scores, centre, boxes, [2], nms_threshold=0.76)[0]) == 2


def test_a_label_without_tokens_is_never_found():
    scores = label_scores(torch.rand(7, 5), torch.tensor([[0.0, 1, 1, 0, 0], [0.0] * 5]))
    assert (scores[:, 1] == 0).all() and (scores[:, 0] > 0).all()
    assert set(select_detections(scores, torch.ones(7), torch.rand(7, 4), [7])[1].tolist()) <= {0}
    assert len(select_detections(scores[:, :0], torch.ones(7), torch.rand(7, 4), [7])[0]) == 0


def test_boxes_are_scaled_to_the_original_image():
    processor = glip_processor()
    outputs = run(glip_model(), **processor(IMAGE, NAMES))
    small = processor.post_process_grounded_object_detection(outputs)[0]
    large = processor.post_process_grounded_object_detection(outputs, target_sizes=[(400, 600)], text_labels=NAMES)[0]
    height, width = outputs.image_sizes[0].tolist()
    torch.testing.assert_close(large["boxes"], small["boxes"] * torch.tensor([600 / width, 400 / height] * 2))
    assert large["text_labels"] == small["text_labels"]
    with pytest.raises(ValueError, match="target_sizes: 2 for 1 images"):
        processor.post_process_grounded_object_detection(outputs, target_sizes=[(1, 1)] * 2)


def test_files_and_options_that_cannot_be_used_are_named(tmp_path):
    path, processor = tmp_path / "a.png", glip_processor()
    Image.fromarray(IMAGE).save(path)
    whole = processor(str(path), NAMES).pixel_values
    assert torch.equal(whole, processor(IMAGE, NAMES).pixel_values)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"images\[1\]: "):
        processor([IMAGE, str(path)], NAMES)
    mark = {"image_id": 1, "annotations": [{"bbox": [5, 5, -2, 3], "category_id": 0, "area": 6}]}
    with pytest.raises(ValueError, match="bbox of object 0: .* width and height above 0"):
        processor(IMAGE, NAMES, annotations=mark)
    outputs = run(glip_model(), **processor(IMAGE, NAMES))
    for options, message in (
        ({"max_detections": 0}, "max_detections: 0, expected a whole number of at least 1"),
        ({"nms_threshold": "0.5"}, "nms_threshold: '0.5', expected a number"),
        ({"rule": "median"}, "rule: 'median'"),
        ({"target_sizes": [(0, 5)]}, r"target_sizes\[0\]"),
        ({"text_labels": NAMES[:1]}, r"text_labels\[0\]: 1 names, a detection has label"),
        ({"text_labels": "cat"}, "text_labels: 'cat', expected a list of names"),
    ):
        with pytest.raises(ValueError, match=message):
            processor.post_process_grounded_object_detection(outputs, **{"score_threshold": 0.0} | options)


# ---- the model


def test_padding_of_prompt_and_batch_changes_nothing():
    model, processor = glip_model(), glip_processor()
    pixels = tiny_pixels(2, size=64)
    short = processor(text=NAMES)
    long = processor(text=NAMES, padding="max_length", max_length=24)
    expected = run(model, pixel_values=pixels, **short)
    found = run(model, pixel_values=pixels, **long)
    length = short.input_ids.shape[1]
    torch.testing.assert_close(found.logits[..., :length], expected.logits, rtol=1e-4, atol=1e-5)
    long["input_ids"][:, length:] = 7  # what stands in the padding
    again = run(model, pixel_values=pixels, **long)
    assert torch.equal(again.logits[..., :length], found.logits[..., :length])


def test_without_scales_fusion_is_a_normalisation():
    model = glip_model()
    fusion = model.layers[0].fusion
    with torch.no_grad():
        fusion.image_scale.zero_()
        fusion.text_scale.zero_()
        features, words = [torch.randn(1, 12, 4, 4), torch.randn(1, 12, 2, 2)], torch.randn(1, 5, 20)
        found, fused = fusion(features, words, torch.ones(1, 5))
        expected = fusion.image_norm(features[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(found[0], expected)
        torch.testing.assert_close(fused, fusion.text_norm(words))


def test_embedded_prompts_and_prompts_of_one_row_are_shared_by_all_images():
    model, pixels = glip_model(), tiny_pixels(3, size=64)
    prompt = glip_processor()(text=NAMES)
    expected = run(model, pixel_values=pixels, **prompt)
    with torch.no_grad():
        words = model.encode_prompts(prompt.input_ids, prompt.attention_mask)
    found = run(model, pixel_values=pixels, text_embeds=words, attention_mask=prompt.attention_mask)
    assert torch.equal(found.logits, expected.logits)
    rows = {name: value.expand(3, *value.shape[1:]) for name, value in prompt.items()}
    torch.testing.assert_close(run(model, pixel_values=pixels, **rows).logits, expected.logits, rtol=1e-4, atol=1e-5)


def test_the_image_is_encoded_once_for_several_prompts(monkeypatch):
    model, calls = glip_model(), []
    plain = model.feature_maps
    monkeypatch.setattr(model, "feature_maps", lambda *args: calls.append(1) or plain(*args))
    inputs = glip_processor()(IMAGE, NAMES, names_per_prompt=1)
    assert run(model, **inputs).logits.shape[1] == 5 and len(calls) == 1


def test_deformable_convolution_without_shifts_is_a_convolution():
    torch.manual_seed(0)
    layer = GLIPDeformableConvolution(8, 2, stride=2)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 8, 6, 10)
    found = layer(x, torch.zeros(2, 18, 3, 5), torch.ones(2, 9, 3, 5))
    expected = layer.normalization(torch.nn.functional.conv2d(x, layer.weight, layer.bias, 2, 1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "stride"), [((7, 9), 1), ((1, 1), 1), ((1, 5), 1), ((8, 6), 2), ((7, 3), 2)])
def test_deformable_convolution_by_sampling_is_torchvisions(size, stride):
    """Values and gradients, also of maps of one row, and of places outside of the map."""
    generator = torch.Generator().manual_seed(0)
    height, width = ((length - 1) // stride + 1 for length in size)
    shapes = ((2, 4, *size), (2, 18, height, width), (5, 4, 3, 3), (5,), (2, 9, height, width))
    inputs = [torch.randn(one, generator=generator, dtype=torch.float64) for one in shapes]
    inputs[1] *= 4
    inputs = [one.requires_grad_() for one in inputs]
    found = [
        (out := convolve(*inputs, stride), *torch.autograd.grad(out.square().sum(), inputs))
        for convolve in (deform_conv2d_by_sampling, deform_conv2d_of_torchvision)
    ]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(deform_conv2d_by_sampling(*inputs, stride), found[1][0])


# ---- losses


def test_images_without_objects_have_a_finite_loss_that_still_trains_every_weight():
    model, inputs = glip_model().train(), glip_inputs(2)
    inputs["labels"] = [{"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}] * 2
    outputs = model(**inputs)
    outputs.loss.backward()
    assert outputs.loss_dict["loss_box"] == 0 and outputs.loss_dict["loss_centerness"] == 0
    assert outputs.loss > 0 and all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (assign_anchors(torch.zeros(0, 4), torch.rand(7, 4), [7]) == NO_OBJECT).all()


def test_labels_that_do_not_fit_are_named():
    model, inputs = glip_model(), glip_inputs(1)
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    for label, message in (
        ({"class_labels": torch.tensor([9]), "boxes": box}, r"labels\[0\]\['class_labels'\]: 9..9, expected rows of"),
        ({"class_labels": torch.tensor([0, 1]), "boxes": box}, "2 class_labels for 1 boxes"),
        ({"boxes": box}, r"labels\[0\]: no 'class_labels'"),
        ({"class_labels": torch.tensor([0]), "boxes": box * torch.tensor([1, 1, 0, 1])}, "width and height above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs | {"labels": [label]})
    with pytest.raises(ValueError, match="labels: no phrase_map"):
        model(**{n: v for n, v in inputs.items() if n != "phrase_map"})
    several = glip_processor()(IMAGE, NAMES, names_per_prompt=2)
    with pytest.raises(ValueError, match="labels: several prompts for each image"):
        model(**several, labels=glip_labels(1))


def test_masked_words_cost_nothing_whatever_stands_there():
    logits = torch.randn(1, 4, 3, requires_grad=True)
    targets, mask = torch.zeros(1, 4, 3), torch.tensor([[1, 1, 0]])
    wild = logits.detach().clone()
    wild[..., 2] = torch.inf
    wild.requires_grad_()
    assert torch.equal(token_loss(wild, targets, mask), token_loss(logits, targets, mask))
    token_loss(wild, targets, mask).backward()
    assert (wild.grad[..., 2] == 0).all() and wild.grad.isfinite().all()
    owners = torch.tensor([NO_OBJECT, 0])
    assert token_targets(owners, torch.tensor([[0.0, 0.5, 0.5]])).tolist() == [[0, 0, 0], [0, 1, 1]]
    assert token_targets(owners, torch.tensor([[0.0, 0.5, 0.5]]), no_object=True).tolist() == [[0, 0, 1], [0, 1, 1]]


@pytest.mark.slow
def test_a_tiny_model_learns_where_things_are():
    """Three images of squares, whose names are the prompt: the loss falls, and the best box of each is right."""
    torch.manual_seed(0)
    pixels, boxes = torch.zeros(3, 3, 64, 64), []
    for i, (x, y, side) in enumerate(((4, 8, 28), (30, 30, 24), (20, 4, 32))):
        pixels[i, i, y : y + side, x : x + side] = 2
        boxes.append(torch.tensor([[x + side / 2, y + side / 2, side, side]]) / 64)
    labels = [{"class_labels": torch.tensor([i]), "boxes": box} for i, box in enumerate(boxes)]
    processor, model = glip_processor(), glip_model().train()
    prompt = processor(text=NAMES[:3])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(150):
        loss = model(pixels, labels=labels, **prompt).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    found = processor.post_process_grounded_object_detection(run(model.eval(), pixel_values=pixels, **prompt))
    assert [int(one["labels"][0]) for one in found] == [0, 1, 2]


@pytest.mark.parametrize("size", [(1, 1), (3, 1)])
def test_gradients_of_maps_of_one_column_are_finite_in_bfloat16(size):
    """PyTorch's own would take up what was in memory: here NaN."""
    pyramid = glip_model().pyramid.to(torch.bfloat16)
    height, width = size
    widths = [layer.in_channels for layer in pyramid.lateral]
    for _ in range(20):
        torch.full((200_000,), torch.nan, dtype=torch.bfloat16)  # given back at once
        maps = [
            torch.randn(2, channels, height * step, width * step, dtype=torch.bfloat16)
            for channels, step in zip(widths, (4, 2, 1), strict=True)
        ]
        pyramid.zero_grad()
        sum(one.float().sum() for one in pyramid(maps)).backward()
        assert all(parameter.grad.isfinite().all() for parameter in pyramid.parameters())


# ---- prompts at their limits


@pytest.mark.parametrize("use_fusion", [True, False])
def test_a_full_prompt_is_finite_and_a_longer_one_is_never_cut(use_fusion):
    """Of GLIP's 256 tokens, with the special ones; officially the last column of a full prompt means "no object"."""
    text = SIZES["text_config"] | {"max_position_embeddings": 256}
    model = glip_model(use_fusion=use_fusion, text_config=text, max_text_length=256).train()
    processor = glip_processor(max_text_length=256)
    full = "cat " * 253 + "dog"
    prompt = processor(captions=[full, "a cat"], phrases=[[(0, 3), "dog"], ["cat"]])
    assert prompt.input_ids.shape == (2, 256) and prompt.phrase_map[0, 1].nonzero().item() == 254
    labels = [{"class_labels": torch.tensor([n]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])} for n in (1, 0)]
    outputs = model(tiny_pixels(2, size=64), labels=labels, **prompt)
    outputs.loss.backward()
    assert outputs.loss.isfinite() and outputs.logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    for longer in (1, 100):
        with pytest.raises(ValueError, match=rf"captions\[0\]: {256 + longer} tokens, expected at most 256"):
            processor(captions=[full + " dog" * longer], phrases=[["dog"]])
        with pytest.raises(ValueError, match=f"input_ids: {256 + longer} tokens, expected at most 256"):
            model(tiny_pixels(1, size=64), input_ids=torch.ones(1, 256 + longer, dtype=torch.long))
    names = processor(text=["cat"] * 253 + ["dog"])  # 254 names and 253 marks between them
    assert names.input_ids.shape[1] == 2 and (names.phrase_map.sum(dim=3) > 0).sum() == 254


def test_images_without_names_and_maps_without_labels():
    processor, model = glip_processor(), glip_model()
    with pytest.raises(ValueError, match=r"text\[1\] is empty"):
        processor([IMAGE, IMAGE], [["cat"], []])
    inputs = processor(IMAGE, ["cat"])
    inputs["phrase_map"] = inputs["phrase_map"][:, :0]
    (found,) = processor.post_process_grounded_object_detection(run(model, **inputs))
    assert not len(found["scores"]) and found["text_labels"] == []
    # A prompt of special tokens alone names nothing.
    empty = {"input_ids": torch.tensor([[2, 3]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    outputs = run(model, pixel_values=inputs["pixel_values"], **empty, phrase_map=torch.zeros(1, 1, 2))
    assert outputs.logits.isfinite().all()
    (found,) = processor.post_process_grounded_object_detection(outputs)
    assert not len(found["scores"])
    # Nor does one whose tokens are all masked; nothing is NaN.
    empty["attention_mask"] = torch.zeros(1, 2, dtype=torch.long)
    assert run(model, pixel_values=inputs["pixel_values"], **empty).pred_boxes.isfinite().all()
