"""CLIP-ViL's own behaviour: padding, positions, masks, frozen towers, sampling of tokens, heads, errors."""

import pytest
import torch
from clip_vil_runs import (
    ANSWERS,
    TEXT,
    VIT,
    WORDS,
    clip_vil_config,
    clip_vil_model,
    entailment_inputs,
    pairs,
    pixels,
    pretraining_inputs,
    texts,
    vit_config,
    vqa_inputs,
    with_open_branches,
)
from tiny import tiny_clip
from transformers import AutoModel, AutoModelForPreTraining, BertConfig, BertModel

from hf_clip_variants import ClipViLConfig, ClipViLForVisualEntailment, ClipViLForVisualQuestionAnswering, ClipViLModel
from hf_clip_variants.modeling.questions.answer_labels import soft_answers
from hf_clip_variants.training.parameter_groups import two_rate_groups


def run(model, **inputs):
    with torch.no_grad():
        return model(**inputs)


def lively(head: str = "model", **fields):
    """With larger weights than a new BERT's, which looks at all alike."""
    text = TEXT | {"initializer_range": 0.3}
    return clip_vil_model(head, text_config=text, initializer_range=0.3, **fields)


# ---- words and grid


def test_padding_of_texts_is_not_read_and_the_grid_is():
    model, inputs = lively(), pairs(4)
    expected = run(model, **inputs).pooler_output
    other = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 7)
    torch.testing.assert_close(run(model, **inputs | {"input_ids": other}).pooler_output, expected)
    changed = run(model, **inputs | pixels(4, seed=9)).pooler_output
    assert (changed - expected).abs().max() > 1e-3


def test_rows_and_columns_have_their_own_positions():
    model = clip_vil_model("model")
    with torch.no_grad():
        for number, table in enumerate((model.grid_position.row_embedding, model.grid_position.column_embedding)):
            table.weight.copy_(torch.arange(6.0)[:, None] * 10**number)
        tokens = model.grid_position(torch.zeros(1, 2, 3, 64))
    assert tokens[0, :, 0].tolist() == [0, 10, 20, 1, 11, 21]
    inputs = pairs(1)
    turned = inputs["pixel_values"].transpose(2, 3)
    assert run(model, **inputs | {"pixel_values": turned}).vision_output.shape == (1, 6, 36)


def test_tokens_of_the_grid_have_no_order_beside_their_positions():
    """Without positions, a permutation of cells leaves the pooled output as it is."""
    model, inputs = lively(use_grid_position=False), texts(2)
    grid = model.get_grid_features(**pixels(2))
    expected = run(model, **inputs, grid_features=grid).pooler_output
    turned = grid.flip(1, 2)
    torch.testing.assert_close(
        run(model, **inputs, grid_features=turned).pooler_output, expected, rtol=1e-4, atol=1e-5
    )
    placed = lively()
    both = [run(placed, **inputs, grid_features=one).pooler_output for one in (grid, turned)]
    assert (both[0] - both[1]).abs().max() > 1e-4


def test_a_mask_hides_cells_without_an_image_only_if_wanted():
    inputs = pairs(2)
    mask = torch.ones(2, 64, 96, dtype=torch.long)
    mask[0, :, 40:] = 0  # of three columns the second has some of the image
    other = inputs["pixel_values"].clone()
    for masks in (False, True):
        model = lively(mask_padding=masks)
        grid = model.get_grid_features(inputs["pixel_values"])
        changed = grid.clone()
        changed[0, :, 2] += 1
        found = [run(model, **texts(2), grid_features=one, pixel_mask=mask).pooler_output for one in (grid, changed)]
        assert bool((found[0] - found[1])[0].abs().max() < 1e-6) is masks
        changed[0, :, 1] += 1
        seen = run(model, **texts(2), grid_features=changed, pixel_mask=mask).pooler_output
        assert (seen - found[0])[0].abs().max() > 1e-4
    assert torch.equal(other, inputs["pixel_values"])


def test_some_tokens_are_drawn_in_training_alone():
    torch.manual_seed(0)
    model = clip_vil_model("model", num_visual_tokens_train=4)
    inputs = pairs(2)
    assert run(model, **inputs).vision_output.shape[1] == 6
    model.train()
    found = [run(model, **inputs).vision_output for _ in range(8)]
    assert all(one.shape == (2, 4, 36) for one in found)
    assert any((one - found[0]).abs().max() > 1e-4 for one in found[1:])
    assert run(clip_vil_model("model", num_visual_tokens_train=60).train(), **inputs).vision_output.shape[1] == 6


# ---- Vision Transformer


def test_positions_of_a_vision_transformer_are_resized():
    model = clip_vil_model("model", config=vit_config)
    grid, table = model.grid, model.grid.vision_model.embeddings.position_embedding.weight
    assert torch.equal(grid.resized_positions(3, 3), table)
    found = grid.resized_positions(4, 6)
    assert found.shape == (25, 40) and torch.equal(found[0], table[0])
    square = table[1:].T.unflatten(1, (3, 3))[None]
    expected = torch.nn.functional.interpolate(square, size=(4, 6), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found[1:].T.unflatten(1, (4, 6)), expected)
    outputs = run(model, **pairs(2))
    assert outputs.vision_output.shape == (2, 1 + 4 * 6, 36)
    # At CLIP's own size it is CLIP's image encoder, normalised.
    image = pixels(1, 48, 48)["pixel_values"]
    vision = model.grid.vision_model
    own = vision.post_layernorm(vision(pixel_values=image).last_hidden_state)
    torch.testing.assert_close(model.get_grid_features(image), own, rtol=1e-4, atol=1e-5)


def test_the_published_fault_is_there_by_flag():
    """New positions that start at zero, given to tokens in their order."""
    model = clip_vil_model("model", config=vit_config, vit_positions="flat", num_flat_positions=24)
    assert not model.grid.flat_positions.table.any()
    image = pixels(1)["pixel_values"]
    shuffled = image.unflatten(3, (6, 16)).flip(3).flatten(3)  # columns of patches, the last one first
    both = [model.get_grid_features(one)[0, 1:].unflatten(0, (4, 6)) for one in (image, shuffled)]
    torch.testing.assert_close(both[0].flip(1), both[1], rtol=1e-3, atol=1e-4)  # nothing tells where a patch was
    resized = clip_vil_model("model", config=vit_config)
    both = [resized.get_grid_features(one)[0, 1:].unflatten(0, (4, 6)) for one in (image, shuffled)]
    assert (both[0].flip(1) - both[1]).abs().max() > 1e-2
    model.train()(**pairs(1)).pooler_output.sum().backward()
    assert model.grid.flat_positions.table.grad.abs().sum() > 0
    upright = pixels(1, 96, 64)["pixel_values"]
    assert model.get_grid_features(upright).shape == (1, 25, 40)
    with pytest.raises(ValueError, match="a grid of 4 x 4 cells, there are 24 positions"):
        model.get_grid_features(pixels(1, 64, 64)["pixel_values"])


# ---- making, freezing, training


def test_a_model_starts_from_a_clip_and_a_bert(tmp_path):
    torch.manual_seed(0)
    text = {k: v for k, v in clip_vil_config().text_config.to_dict().items() if k not in ("architectures", "dtype")}
    bert, clip = BertModel(BertConfig(**text)), tiny_clip()
    options = {"max_text_length": 12, "num_labels": 4, "cls_token_id": 2, "sep_token_id": 3}
    model = ClipViLForVisualQuestionAnswering.from_clip_and_bert(clip, bert, **options)
    assert model.config.vision_config.model_type == "clip_vision_model" and model.config.num_labels == 4
    weights = clip.vision_model.state_dict()
    for name, tensor in model.clip_vil.grid.vision_model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    word = model.get_input_embeddings().weight
    assert torch.equal(word, bert.embeddings.word_embeddings.weight)
    model.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is ClipViLModel
    # A ResNet's attention pooling is left out.
    from model_contract import CASES

    resnet = CASES["clip_resnet"].make()
    found = ClipViLModel.from_clip_and_bert(resnet, bert, **options)
    assert torch.equal(found.grid.vision_model.conv1.weight, resnet.vision_model.conv1.weight)
    assert found.config.visual_width == 256


def test_a_frozen_tower_stays_as_it_is_also_after_loading(tmp_path):
    model = clip_vil_model("vqa", freeze_vision=True)
    model.save_pretrained(tmp_path)
    for one in (model, ClipViLForVisualQuestionAnswering.from_pretrained(tmp_path)):
        before = {name: tensor.clone() for name, tensor in one.clip_vil.grid.state_dict().items()}
        one.train()(**vqa_inputs(4)).loss.backward()
        assert all(p.grad is None for p in one.clip_vil.grid.parameters())
        assert one.clip_vil.grid_projection.dense.weight.grad.abs().sum() > 0
        assert not one.clip_vil.grid.training and one.clip_vil.training
        for name, tensor in one.clip_vil.grid.state_dict().items():
            assert torch.equal(tensor, before[name]), name  # statistics, too
    moving = clip_vil_model("vqa").train()
    before = moving.clip_vil.grid.vision_model.bn1.running_mean.clone()
    run(moving, **vqa_inputs(4))
    assert not torch.equal(moving.clip_vil.grid.vision_model.bn1.running_mean, before)


def test_two_learning_rates_in_one_optimiser():
    model = clip_vil_model("vqa")
    groups = two_rate_groups(model, 1e-4, 30.0, weight_decay=0.01, slow_part="clip_vil.grid.vision_model.")
    optimizer = torch.optim.AdamW(groups)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 3e-3 if ".vision_model." in name else 1e-4
        assert rates[id(parameter)] == pytest.approx(expected), name


def test_the_decoder_of_words_is_tied_also_after_saving(tmp_path):
    model = clip_vil_model("pretraining")
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    for one in (model, again):
        assert one.cls.predictions.decoder.weight is one.get_input_embeddings().weight
        assert one.cls.predictions.decoder.bias is one.cls.predictions.bias
    outputs = [run(one, **pretraining_inputs(3)) for one in (model, again)]
    torch.testing.assert_close(outputs[0].prediction_logits, outputs[1].prediction_logits)


def test_each_loss_of_the_pretraining_stands_alone_and_nothing_to_learn_is_zero():
    model, inputs = clip_vil_model("pretraining"), pretraining_inputs(4)
    labels = {name: inputs.pop(name) for name in ("labels", "matching_labels", "answer_labels")}
    whole = run(model, **inputs, **labels)
    parts = [run(model, **inputs, **{name: value}).loss for name, value in labels.items()]
    torch.testing.assert_close(whole.loss, sum(parts))
    nothing = run(model, **inputs, **{name: torch.full_like(value, -100) for name, value in labels.items()})
    assert nothing.loss == 0 and run(model, **inputs).loss is None
    for change, message in (
        ({"labels": labels["labels"][:, :3]}, r"labels: got torch.int64 \[4, 3\], expected whole numbers \[4, 8\]"),
        ({"labels": labels["labels"] + 99}, "expected -100 or tokens, 0..34"),
        ({"matching_labels": torch.tensor([0, 1, 2, 0])}, "matching_labels: 0..2, expected answers, 0..1"),
        ({"answer_labels": torch.tensor([9] * 4)}, "answer_labels: 9..9, expected answers, 0..4"),
        ({"answer_labels": torch.zeros(4, 5)}, "answer_labels: got floats"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs, **change)


def test_a_tiny_model_learns_what_the_grid_shows_with_soft_and_with_hard_labels():
    """The answer to one question is in the grid, to another one in the question; three answers."""
    torch.manual_seed(0)
    kinds, labels = torch.randn(3, 64), torch.arange(24) % 3
    grids = kinds[labels][:, None, None] + 0.3 * torch.randn(24, 2, 3, 64)
    ids = torch.tensor([[2, 5, 6, 3]]).repeat(24, 1)
    ids[12:, 2], labels[12:] = 7, 0
    for soft in (False, True):
        model = lively("vqa", id2label={0: "red", 1: "green", 2: "blue"}, label2id=None).train()
        given = torch.nn.functional.one_hot(labels, 3).float() if soft else labels
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(60):
            loss = model(ids, grid_features=grids, labels=given).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right = (run(model.eval(), input_ids=ids, grid_features=grids).logits.argmax(1) == labels).float().mean()
        assert right > 0.95, (soft, right)


# ---- labels


def test_answers_of_people_become_scores():
    label2id = {name: i for i, name in enumerate(ANSWERS)}
    found = soft_answers([["red", "red", "blue", "red", "red"], {"yes": 0.5}, "no"], label2id)
    assert found[0].tolist() == pytest.approx([0, 0, 1, 1 / 3, 0]) and found[1, 0] == 0.5 and found[2, 1] == 1
    with pytest.raises(ValueError, match=r"answers\[1\]: 'purple' is not one of the 5 answers"):
        soft_answers(["red", ["purple"]], label2id)
    assert not soft_answers([["purple"]], label2id, unknown="ignore").any()
    for arguments, message in (
        ((["red"], label2id, "drop"), "unknown: 'drop'"),
        ((["red"] * 0, label2id), "answers: got list"),
        (("red", label2id), "answers: got str 'red'"),
        ((None, label2id), "answers: got NoneType"),
        ((["red", []], label2id), r"answers\[1\]: got \[\], expected an answer"),
        ((["red", 3], label2id), r"answers\[1\]: got 3, expected an answer"),
        (([["red", None]], label2id), r"answers\[0\]: got None, expected a text"),
        (([{"red": float("nan")}], label2id), r"answers\[0\]: 'red' is nan right, expected a number in 0..1"),
        (([{"red": "x"}], label2id), r"answers\[0\]: 'red' is 'x' right"),
    ):
        with pytest.raises(ValueError, match=message):
            soft_answers(*arguments)
    model = clip_vil_model("vqa")
    inputs = vqa_inputs(3) | {"labels": soft_answers(["red", "no", "yes"], label2id)}
    logits = run(model, **inputs)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits.logits, inputs["labels"]) * 5
    torch.testing.assert_close(logits.loss, expected)


def test_entailment_has_its_three_names_or_those_that_it_is_given():
    named = ClipViLForVisualEntailment(clip_vil_config(id2label=None, label2id=None, num_labels=3))
    assert named.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    own = ClipViLForVisualEntailment(clip_vil_config(id2label={0: "true", 1: "false"}, label2id=None))
    assert own.config.id2label[1] == "false" and own.config.problem_type == "single_label_classification"
    inputs = entailment_inputs(4)
    found = run(named.eval(), **inputs)
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(found.logits, inputs["labels"]))


# ---- errors


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pixel_values": None}, "pixel_values, grid_features: got neither, expected one of them: an image of each"),
        ({"grid_features": torch.zeros(2, 2, 3, 64)}, "got both"),
        ({"pixel_values": torch.zeros(3, 3, 64, 64)}, "pixel_values: 3 images for 2 texts, expected one of each"),
        ({"pixel_values": torch.zeros(2, 3, 16, 64)}, "pixel_values: images of 16 x 64, expected at least 32 x 32"),
        ({"pixel_values": torch.zeros(2, 3, 64, 32 * 7)}, "a grid of 2 x 7 cells, there are positions for 6 x 6"),
        ({"pixel_values": torch.zeros(2, 3, 64, 64, dtype=torch.uint8)}, "looks unnormalised"),
        ({"pixel_values": torch.full((2, 3, 64, 64), torch.nan)}, r"because pixel_values\[0\] has some"),
        ({"input_ids": torch.full((2, 8), 99)}, "token 99 is outside 0..34"),
        ({"input_ids": torch.ones(2, 13, dtype=torch.long)}, "13 tokens, the text encoder takes 12"),
        ({"attention_mask": torch.zeros(2, 8)}, "attention_mask: a text without tokens"),
        ({"attention_mask": torch.ones(2, 7)}, r"attention_mask: got \[2, 7\], expected \[2, 8\]"),
        ({"token_type_ids": torch.full((2, 8), 5)}, "token_type_ids: token 5 is outside 0..1"),
        ({"pixel_mask": torch.ones(2, 64, 64)}, r"pixel_mask: got \[2, 64, 64\], expected \[2, 64, 96\]"),
        ({"labels": torch.tensor([0, 5])}, "labels: 0..5, expected answers, 0..4"),
        ({"labels": torch.full((2, 5), 1.5)}, "labels: numbers outside of 0..1"),
        ({"labels": torch.zeros(2, 4)}, r"labels: got torch.float32 \[2, 4\]"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        clip_vil_model("vqa")(**vqa_inputs(2) | change)


def test_grids_that_do_not_fit_are_named():
    model, inputs = clip_vil_model("vqa"), texts(2)
    for grid, message in (
        (torch.zeros(2, 6, 64), r"grid_features: got torch.float32 \[2, 6, 64\], expected floats \[batch, rows, colu"),
        (torch.zeros(2, 2, 3, 60), "grid_features: got torch.float32"),
        (torch.zeros(2, 2, 3, 64).long(), "grid_features: got torch.int64"),
        ("grid", "grid_features: got str"),
        (torch.zeros(3, 2, 3, 64), "grid_features: 3 images for 2 texts"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs, grid_features=grid)
    with pytest.raises(ValueError, match="expected floats .batch, 1 . cells, 40."):
        clip_vil_model("vqa", config=vit_config)(**inputs, grid_features=torch.zeros(2, 2, 3, 40))


def test_published_sizes():
    config = ClipViLConfig.rn50x4(num_labels=3129)
    assert (config.visual_width, config.vision_config.depths, config.grid_stride) == (2560, [4, 6, 10, 6], 32)
    vit = ClipViLConfig.vit_b32()
    assert (vit.visual_width, vit.grid_stride, vit.has_class_token) == (768, 32, True)
    with torch.device("meta"):
        model = ClipViLForVisualQuestionAnswering(config)
    assert model.answer_head.answers.weight.shape == (3129, 1536)
    assert VIT["patch_size"] == 16 and len(WORDS) == config.__class__(text_config={"vocab_size": 35}).vocab_size
    small = clip_vil_model("model")
    with_open_branches(small)
