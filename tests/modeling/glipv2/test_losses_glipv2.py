"""GLIPv2's losses: which regions and words belong together, what depends on what, hidden words, two processes."""

import pytest
import torch
from glipv2_runs import (
    MASK,
    OFF,
    RANK_CASES,
    glipv2_inputs,
    glipv2_labels,
    glipv2_model,
    glipv2_processor,
    glipv2_step,
)
from paths import PROGRAMS
from processes import run_on_ranks
from safetensors.torch import load_file
from tiny import tiny_pixels

from hf_clip_variants.modeling.glipv2.losses_glipv2 import (
    ContrastTexts,
    crop_masks,
    inter_image_sums,
    mask_regions,
    mask_words,
    name_numbers,
    soft_cross_entropy,
    word_labels,
)


CAT, DOG, CAR = 11, 22, 33  # numbers of classes


def texts(regions, words, images=None, of_words=None, own=()) -> ContrastTexts:
    """One image by default; `own`: pairs of a region and a word of its image that belong together."""
    own_words = torch.zeros(len(regions), len(words))
    for region, word in own:
        own_words[region, word] = 1
    images = [0] * len(regions) if images is None else images
    of_words = [0] * len(words) if of_words is None else of_words
    return ContrastTexts(*map(torch.tensor, (regions, words, images, of_words)), own_words)


def embeddings(count: int, words: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(number, 6, generator=generator) for number in (count, words)]
    return [torch.nn.functional.normalize(one, dim=-1) for one in draws]


def sums(regions, words, one: ContrastTexts) -> list[float]:
    return [float(x) for x in inter_image_sums(regions, words, torch.tensor([-1.0]), one, "none")]


# ---- regions and words of all images


def test_of_one_image_regions_are_compared_as_its_annotation_says():
    regions, words = embeddings(3, 4)
    one = texts([CAT, CAT, DOG], [-1, CAT, DOG, DOG], own=[(0, 1), (1, 1), (2, 2), (2, 3)])
    wanted = torch.tensor([[0.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0.5, 0.5]])
    similar = regions @ words.T / torch.tensor(-1.0).exp()
    expected = -(wanted * similar.log_softmax(dim=1)).sum()
    columns = torch.tensor([[0.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [0, 0, 1]])
    assert sums(regions, words, one) == pytest.approx(
        [float(expected), float(-(columns * similar.T.log_softmax(dim=1)).sum())], rel=1e-5
    )


def test_across_images_the_same_class_belongs_together_and_sentences_do_not():
    regions, words = embeddings(2, 4)
    # Image 0 has a cat, image 1 a dog; both prompts are "cat dog".
    one = texts([CAT, DOG], [CAT, DOG, CAT, DOG], [0, 1], [0, 0, 1, 1], own=[(0, 0), (1, 3)])
    similar = regions @ words.T / torch.tensor(-1.0).exp()
    wanted = torch.tensor([[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]])
    columns = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    expected = -(wanted * similar.log_softmax(dim=1)).sum(), -(columns * similar.T.log_softmax(dim=1)).sum()
    assert sums(regions, words, one) == pytest.approx([float(x) for x in expected], rel=1e-5)
    # The second prompt is a sentence: nothing of it belongs to image 0, nor its region to the first prompt.
    one = texts([CAT, -2], [CAT, DOG, -1, -1], [0, 1], [0, 0, 1, 1], own=[(0, 0), (1, 3)])
    wanted = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1]])
    assert sums(regions, words, one)[0] == pytest.approx(float(-(wanted * similar.log_softmax(dim=1)).sum()), rel=1e-5)


def test_names_have_the_same_number_in_every_prompt():
    processor = glipv2_processor()
    prompts = processor(text=[["cat", "traffic light", "red car"], ["red car", "cat", "small car"]])
    numbers = name_numbers(prompts.input_ids, prompts.phrase_map)
    assert numbers[0, 0] == numbers[1, 1] and numbers[0, 2] == numbers[1, 0] and len(numbers.unique()) == 4
    reversed_name = processor(captions=["light traffic"], phrases=[["light traffic"]])
    assert name_numbers(reversed_name.input_ids, reversed_name.phrase_map)[0, 0] != numbers[0, 1]
    labels = word_labels(numbers, prompts.phrase_map, torch.tensor([False, True]))
    light = int(numbers[0, 1])
    assert labels[0].tolist() == [-1, int(numbers[0, 0]), -1, light, light, -1, *2 * [int(numbers[0, 2])], -1]
    assert (labels[1] == -1).all()
    many = torch.randint(0, 30_000, (1, 6000), generator=torch.Generator().manual_seed(0))
    pairs = torch.eye(3000).repeat_interleave(2, dim=1)[None]
    found = name_numbers(many, pairs)
    assert len(found.unique()) == len({tuple(pair) for pair in many.view(-1, 2).tolist()}) and (found >= 0).all()


def test_a_row_without_a_pair_adds_nothing_and_no_rows_are_no_loss():
    logits = torch.randn(3, 4)
    targets = torch.zeros(3, 4)
    targets[1, 2] = 1
    assert soft_cross_entropy(logits, targets) == pytest.approx(float(-logits.log_softmax(dim=1)[1, 2]))
    regions, words = embeddings(0, 4)
    assert sums(regions, words, texts([], [CAT] * 4)) == [0, 0]


def test_the_order_of_images_changes_nothing_and_masks_change_no_other_loss():
    model, inputs = glipv2_model(), glipv2_inputs(3)

    def losses(order):
        given = {name: [v[i] for i in order] if name == "labels" else v[order] for name, v in inputs.items()}
        with torch.no_grad():
            return model(**given).loss_dict

    first, second = losses([0, 1, 2]), losses([2, 0, 1])
    assert set(first) == {
        *("loss_words", "loss_box", "loss_centerness"),
        *("loss_inter_image", "loss_mlm", "loss_mask"),
    }
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)
        assert value > 0
    for one in inputs["labels"]:
        del one["masks"]
    without = losses([0, 1, 2])
    assert without.pop("loss_mask") == 0 and all(torch.equal(first[name], value) for name, value in without.items())


def test_padding_of_the_prompt_changes_no_loss():
    model, processor = glipv2_model(mlm_probability=0.0), glipv2_processor()
    pixels, labels = tiny_pixels(2, size=64), glipv2_labels(2)
    prompts = [processor(text=["cat", "dog", "bird", "pizza"], padding="max_length", max_length=n) for n in (9, 20)]
    found = [model(pixels, labels=labels, **one).loss_dict for one in prompts]
    for name in ("loss_inter_image", "loss_mask"):
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)


def test_the_same_class_under_another_number_is_the_same_class():
    """Data sets number classes as they like: names count."""
    model, processor = glipv2_model(), glipv2_processor()
    pixels, labels = tiny_pixels(2, size=64), glipv2_labels(2)
    names = ["cat", "dog", "bird", "pizza"]
    plain = processor(text=[names, names])
    with torch.no_grad():
        one = model(pixels, labels=labels, **plain).loss_dict["loss_inter_image"]
        # Rows of the map in another order, with the labels' numbers to match.
        order = torch.tensor([2, 0, 3, 1])
        labels[1] = labels[1] | {"class_labels": order.argsort()[labels[1]["class_labels"]]}
        plain["phrase_map"][1] = plain["phrase_map"][1, order]
        other = model(pixels, labels=labels, **plain).loss_dict["loss_inter_image"]
        caption = model(pixels, labels=labels, **plain | {"is_caption": torch.tensor([False, True])})
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert (caption.loss_dict["loss_inter_image"] - one).abs() > 1e-3


# ---- what depends on what


def reached(model, inputs, name: str) -> set[str]:
    """Parts of the model that get a gradient of one loss."""
    weights = {"loss_inter_image": "inter_image_weight", "loss_mlm": "mlm_weight", "loss_mask": "mask_weight"}
    gradients = []
    for weight in (1.0, 2.0):
        setattr(model.config, weights[name], weight)
        model.zero_grad()
        model(**inputs).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    more = {n for n, g in gradients[1].items() if (g - gradients[0][n]).abs().max() > 1e-7}
    return {n.split(".")[0] for n in more}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("loss_inter_image", {"backbone", "pyramid", "text_encoder", "contrast"}),
        ("loss_mlm", {"backbone", "pyramid", "text_encoder", "layers", "word_predictions"}),
        ("loss_mask", {"backbone", "pyramid", "text_encoder", "layers", "mask_head"}),
    ],
)
def test_each_loss_trains_what_it_is_made_of(name, parts):
    """The inter-image loss compares regions and words before fusion: no layer of the head."""
    assert reached(glipv2_model(), glipv2_inputs(2), name) == parts


@pytest.mark.parametrize("switch", OFF)
def test_each_loss_has_a_switch(switch):
    loss = {"use_inter_image_loss": "loss_inter_image", "use_mlm": "loss_mlm", "use_mask_head": "loss_mask"}[switch]
    inputs, whole = glipv2_inputs(2), glipv2_model()
    model = glipv2_model(**{switch: False})
    missing, _ = model.load_state_dict({n: whole.state_dict()[n] for n in model.state_dict()})
    assert not missing
    if switch == "use_mlm":
        with pytest.raises(ValueError, match=r"mlm_labels: given, but the model predicts no words \(use_mlm\)"):
            model(**inputs)
        del inputs["mlm_labels"]
    with torch.no_grad():
        expected, found = whole(**glipv2_inputs(2)), model(**inputs)
    assert expected.loss_dict.keys() - found.loss_dict.keys() == {loss} and torch.equal(found.logits, expected.logits)
    rest = expected.loss - expected.loss_dict[loss]
    torch.testing.assert_close(found.loss, rest, rtol=1e-5, atol=1e-5)


# ---- hidden words


def test_words_are_hidden_as_bert_hides_them():
    ids = torch.arange(5, 25).expand(4000, 20).clone()
    mask = torch.ones_like(ids)
    mask[:, 15:] = 0
    hidden, drawn = mask_words(ids, mask, MASK, 29, 0.15, torch.Generator().manual_seed(0))
    assert not drawn[:, 0].any() and not drawn[:, 14:].any() and torch.equal(hidden[~drawn], ids[~drawn])
    assert drawn[:, 1:14].float().mean() == pytest.approx(0.15, abs=0.01)
    of_drawn, were = hidden[drawn], ids[drawn]
    assert (of_drawn == MASK).float().mean() == pytest.approx(0.8 + 0.1 / 29, abs=0.01)
    assert (of_drawn == were).float().mean() == pytest.approx(0.1 + 0.1 / 29, abs=0.01)
    again, _ = mask_words(ids, mask, MASK, 29, 0.15, torch.Generator().manual_seed(0))
    assert torch.equal(again, hidden) and mask_words(ids, mask, MASK, 29, 0.0)[1].sum() == 0


def test_in_training_the_model_hides_words_and_asks_for_those_of_objects(monkeypatch):
    from hf_clip_variants.modeling.glipv2 import modeling_glipv2

    seen = {}
    loss = modeling_glipv2.masked_word_loss
    monkeypatch.setattr(
        modeling_glipv2, "masked_word_loss", lambda logits, labels: seen.update(labels=labels) or loss(logits, labels)
    )
    model, inputs = glipv2_model(mlm_probability=1.0).train(), glipv2_inputs(2)
    prompts = glipv2_processor()(text=[["cat", "dog", "bird", "pizza"]] * 2)
    inputs = {name: inputs[name] for name in ("pixel_values", "labels")} | dict(prompts)
    inputs["is_caption"] = torch.tensor([False, True])
    torch.manual_seed(0)
    outputs = model(**inputs)
    ids, asked = prompts.input_ids, seen["labels"]
    assert outputs.loss_dict["loss_mlm"] > 0 and not torch.equal(outputs.input_ids, ids)
    # Image 0 has objects of names 0 and 3; of a sentence all words are asked, but not BERT's marks.
    members = (prompts.phrase_map[0, [0, 3]] != 0).any(dim=0)
    assert torch.equal(asked[0], torch.where(members, ids[0], -100))
    assert torch.equal(asked[1], torch.cat([torch.tensor([-100]), ids[1, 1:-1], torch.tensor([-100])]))
    assert "loss_mlm" not in model.eval()(**inputs).loss_dict
    # One prompt for all images: each hides its own words.
    shared = {name: value if name in ("pixel_values", "labels") else value[:1] for name, value in inputs.items()}
    model.config.mlm_probability = 0.5
    assert len(model.train()(**shared).input_ids.unique(dim=0)) == 2


# ---- masks


def test_masks_are_trained_in_objects_boxes_and_in_good_predicted_ones():
    objects = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
    predicted = torch.tensor([[0.0, 0, 10, 9], [1, 0, 11, 10], [0, 0, 40, 40], [20, 20, 40, 40]])
    boxes, numbers = mask_regions(predicted, torch.tensor([0, 0, 1, -1]), objects)
    assert numbers.tolist() == [0, 1, 2, 0] and boxes[3].tolist() == [0, 0, 10, 9]
    boxes, numbers = mask_regions(predicted, torch.full((4,), -1), objects)
    assert torch.equal(boxes, objects) and numbers.tolist() == [0, 1, 2]
    assert not len(mask_regions(predicted, torch.full((4,), -1), objects[:0])[0])


def test_masks_are_cut_out_where_the_box_is():
    masks = torch.zeros(2, 40, 40)
    masks[0, :20], masks[1, :, 10:20] = 1, 1
    boxes = torch.tensor([[0.0, 10, 20, 30], [10, 0, 20, 40], [20, 0, 40, 40]])
    found = crop_masks(masks, boxes, torch.tensor([0, 1, 1]), 8)
    assert found[0, :4].all() and not found[0, 4:].any() and found[1].all() and not found[2].any()


# ---- processes


@pytest.mark.slow  # new processes
def test_two_processes_equal_one_with_all_images(tmp_path):
    run_on_ranks(PROGRAMS / "glipv2_ranks.py", tmp_path, world_size=2, folder=tmp_path)
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)]
    expected = glipv2_step(slice(0, 4))
    for case in RANK_CASES:
        found = {name: (ranks[0][f"{case}.{name}"] + ranks[1][f"{case}.{name}"]) / 2 for name in expected}
        off = {}
        for name, value in expected.items():
            scale = max(float(value.abs().max()), 1e-3)
            off[name] = float((found[name] - value).abs().max()) / scale
        of_losses = {name: error for name, error in off.items() if not name.startswith("grad.")}
        assert max(of_losses.values()) < 1e-4, of_losses
        wrong = {name.split(".")[1] for name, error in off.items() if error > 1e-3}
        # The authors' gradient takes the other process' embeddings for constants.
        others = {"backbone", "pyramid", "text_encoder", "contrast"} if case == "official" else set()
        assert wrong == others, case
