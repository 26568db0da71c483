"""GroupViT labels pixels: labels, texts, backgrounds, any size, files, pipelines; and the rule's parts."""

import pytest
import torch
from groupvit_runs import groupvit_model, segmentation_model, segmentation_processor
from PIL import Image
from tiny import tiny_pixels
from transformers import AutoModelForSemanticSegmentation, AutoProcessor, Trainer, TrainingArguments, pipeline

from hf_clip_variants import GroupViTForSemanticSegmentation, GroupViTModel
from hf_clip_variants.metrics.segmentation import mean_iou_metrics
from hf_clip_variants.modeling.groupvit.segmentation_groupvit import (
    compose_group_maps,
    gated_classes,
    group_class_scores,
    scores_of_pixels,
)


LABELS = ["cat", "red apple", "sky", "taco", "whale", "car", "forest"]


@pytest.fixture(scope="module")
def processor():
    return segmentation_processor()


@pytest.fixture
def model(processor):
    found = segmentation_model()
    found.set_labels(LABELS, processor)
    return found


def logits_of(model, pixels, **options):
    with torch.no_grad():
        return model(pixels, **options).logits


# ---- the rule


def test_a_pixel_has_its_groups_scores():
    maps = torch.tensor([[[[0.9, 0.2], [0.4, 0.1]], [[0.1, 0.8], [0.6, 0.9]]]])  # (1, 2, 2, 2)
    scores = torch.tensor([[[0.7, 0.1, 0.2], [0.0, 0.9, 0.1]]])
    hard = scores_of_pixels(maps, scores, (2, 2))
    assert hard.argmax(1).tolist() == [[[0, 1], [1, 1]]]
    assert torch.equal(hard[0, :, 0, 0], scores[0, 0]) and torch.equal(hard[0, :, 1, 1], scores[0, 1])
    soft = scores_of_pixels(maps, scores, (2, 2), pixel_assignment="soft")
    torch.testing.assert_close(soft[0, :, 0, 0], 0.9 * scores[0, 0] + 0.1 * scores[0, 1])
    for index in (0, 1, 3):
        background = torch.tensor([[True, False]])
        found = scores_of_pixels(maps, scores, (2, 2), background=background, background_index=index)
        assert found.shape == (1, 4, 2, 2) and found[0, index].tolist() == [[1, 0], [0, 0]]
        kept = [place for place in range(4) if place != index]
        assert torch.equal(found[:, kept], hard)


def test_only_the_classes_that_fit_the_image_get_scores():
    torch.manual_seed(0)
    groups, image, classes = torch.randn(3, 4, 8), torch.randn(3, 8), torch.randn(9, 8)
    kept = gated_classes(image, classes, 5)
    assert kept.sum(1).tolist() == [5, 5, 5]
    fit = torch.nn.functional.cosine_similarity(image[:, None], classes[None], dim=-1)
    assert all(fit[i][kept[i]].min() > fit[i][~kept[i]].max() for i in range(3))
    scores = group_class_scores(groups, classes, 4.0, kept)
    assert not scores[~kept[:, None].expand_as(scores)].any() and (scores <= 1).all()
    plain = group_class_scores(groups, classes, 4.0)
    torch.testing.assert_close(plain, group_class_scores(groups, classes, 4.0, gated_classes(image, classes, 99)))
    with pytest.raises(ValueError, match="num_gated_classes: 0, expected a number of classes >= 1"):
        gated_classes(image, classes, 0)


def test_synonyms_are_gated_as_one_class():
    image = torch.tensor([[1.0, 0.0, 0.0]])
    texts = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    assert gated_classes(image, texts, 2).tolist() == [[True, True, False, False]]
    assert gated_classes(image, texts, 2, counts=(2, 1, 1)).tolist() == [[True, True, True, False]]
    valid = torch.tensor([[True, False, True, True]])
    assert gated_classes(image, texts, 2, valid=valid).tolist() == [[True, False, True, False]]


def test_maps_that_do_not_fit_are_named():
    maps = [torch.rand(1, 6, 12), torch.rand(1, 4, 5)]
    for stage_maps, grid, said in (
        ([], (3, 4), "stage_maps: got none"),
        (maps, (3, 5), "grid: 3 x 5, but the first map has 12 patches"),
        (maps, (3, 4), "stage_maps: the map of stage 1 has 5 columns, the stage before has 6 groups"),
    ):
        with pytest.raises(ValueError, match=said):
            compose_group_maps(stage_maps, grid)


# ---- texts and labels


def test_stored_labels_give_what_texts_give_and_follow_their_order(model, processor):
    pixels = tiny_pixels(2)
    inputs = processor(text=LABELS, return_tensors="pt")
    stored = logits_of(model, pixels)
    torch.testing.assert_close(logits_of(model, pixels, **inputs), stored, rtol=1e-4, atol=1e-5)
    order = [3, 0, 6, 1, 2, 5, 4]
    model.set_labels([LABELS[i] for i in order], processor)
    torch.testing.assert_close(logits_of(model, pixels), stored[:, order], rtol=1e-4, atol=1e-5)
    assert model.config.id2label[0] == "taco" and model.config.label2id["cat"] == 1


def test_templates_are_averaged_before_normalisation(model, processor):
    ids = processor.tokenizer(["a cat", "red cat", "cat sky"], padding=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        features = model.get_text_features(ids).pooler_output
        found = model.get_class_embeddings(ids[None])
    torch.testing.assert_close(found, torch.nn.functional.normalize(features.mean(0, keepdim=True), dim=-1))
    other = torch.nn.functional.normalize(torch.nn.functional.normalize(features, dim=-1).mean(0), dim=-1)
    assert not torch.allclose(found[0], other, atol=1e-5), "CLIP's order gives another embedding"


def test_a_saved_folder_needs_no_text_encoder(model, processor, tmp_path):
    pixels = tiny_pixels(2)
    model.set_labels(["cat;kitten", "sky", "car"], processor, background=0.4)
    expected = logits_of(model, pixels)
    model.save_pretrained(tmp_path / "whole")
    model.drop_text_encoder()
    model.save_pretrained(tmp_path / "small")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "small")]
    assert sizes[1] < 0.5 * sizes[0]
    for name in ("whole", "small"):
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / name).eval()
        assert type(loaded) is GroupViTForSemanticSegmentation
        torch.testing.assert_close(logits_of(loaded, pixels), expected, rtol=1e-5, atol=1e-6)
        assert loaded.config.id2label == {0: "background", 1: "cat", 2: "sky", 3: "car"}
    with pytest.raises(ValueError, match="the text encoder was dropped"):
        loaded(pixels, input_ids=torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="text_encoder_dropped: .* load it as GroupViTForSemanticSegmentation"):
        GroupViTModel.from_pretrained(tmp_path / "small")


def test_either_class_loads_the_others_files(tmp_path, processor, model):
    groupvit_model().save_pretrained(tmp_path / "base")
    found = GroupViTForSemanticSegmentation.from_pretrained(tmp_path / "base").eval()
    with pytest.raises(ValueError, match="input_ids: missing, and the model has no labels"):
        found(tiny_pixels(1))
    model.save_pretrained(tmp_path / "labelled")
    base, info = GroupViTModel.from_pretrained(tmp_path / "labelled", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    found.set_labels(LABELS, processor)
    torch.testing.assert_close(logits_of(found, tiny_pixels(1)), logits_of(model, tiny_pixels(1)))


def test_labels_of_each_image(model, processor):
    """Each image with its own texts; a shorter list is padded, and padding never wins."""
    texts = [["cat", "sky", "taco"], ["whale", "car"]]
    inputs = processor(text=texts, return_tensors="pt")
    pixels = tiny_pixels(2)
    together = logits_of(model, pixels, **inputs)
    assert together.shape[1] == 3 and (together[1].argmax(0) < 2).all()
    for row, names in enumerate(texts):
        alone = logits_of(model, pixels[row : row + 1], **processor(text=names, return_tensors="pt"))
        torch.testing.assert_close(together[row, : len(names)], alone[0], rtol=1e-4, atol=1e-5)


# ---- backgrounds


def test_backgrounds_of_all_kinds(model, processor):
    pixels = tiny_pixels(4)
    model.set_labels(LABELS, processor, background=0.3)
    one = logits_of(model, pixels)
    assert one.shape[1] == len(LABELS) + 1 and set(one[:, 0].unique().tolist()) <= {0.0, 1.0}
    share = (one.argmax(1) == 0).float().mean()
    assert 0 < share < 1, "the test needs both"
    model.set_labels(LABELS, processor, background=dict.fromkeys(LABELS, 0.3))
    assert torch.equal(logits_of(model, pixels), one)
    model.set_labels(LABELS, processor, background={**dict.fromkeys(LABELS, 0.0), LABELS[0]: 0.99})
    assert not torch.equal(logits_of(model, pixels), one)
    model.set_labels(LABELS, processor, background=0.999999)
    assert ((logits_of(model, pixels).argmax(1) != 0).flatten(1).any(1)).sum() >= 1, "the best group stays"
    model.set_labels(LABELS, processor, background="other")
    text = logits_of(model, pixels)
    assert text.shape[1] == len(LABELS) + 1 and len(text[:, 0].unique()) > 2
    model.set_labels(LABELS, processor, background="learned")
    with pytest.raises(ValueError, match="background: 'learned', but nothing was learned"):
        logits_of(model, pixels)


# ---- sizes


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (24, 24), (33, 47), (100, 61)])
def test_any_size_gives_scores_of_each_pixel(model, size):
    with torch.no_grad():
        outputs = model(torch.randn(2, 3, *size))
    assert outputs.logits.shape == (2, len(LABELS), *size) and outputs.logits.isfinite().all()
    torch.testing.assert_close(outputs.group_maps.sum(1), torch.ones_like(outputs.group_maps[:, 0]))


def test_images_of_several_sizes_and_kinds_come_back_at_their_size(model, processor):
    images = [Image.new("L", (50, 20), 9), Image.new("RGBA", (31, 64), (1, 200, 3, 9)), Image.new("RGB", (1, 1))]
    inputs = processor(images=images, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[one.size[::-1] for one in images])
    assert [tuple(one.shape) for one in maps] == [(20, 50), (64, 31), (1, 1)]


def test_a_window_that_holds_the_image_changes_nothing(model):
    pixels = tiny_pixels(2)
    with torch.no_grad():
        assert torch.equal(model.sliding_window_logits(pixels, 64), logits_of(model, pixels))
        windows = model.sliding_window_logits(torch.randn(1, 3, 40, 60), 24, 12, scales=(0.75, 1.0, 1.25), flip=True)
    assert windows.shape == (1, len(LABELS), 40, 60)


def test_stock_pipeline_needs_no_text(model, processor, tmp_path):
    model.set_labels(LABELS, processor, background=0.3)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).templates == processor.templates
    segment = pipeline("image-segmentation", str(tmp_path))
    image = Image.effect_noise((70, 41), 80).convert("RGB")
    found = segment(image)
    assert found and all(one["mask"].size == (70, 41) for one in found)
    assert {one["label"] for one in found} <= {"background", *LABELS}


# ---- soft and hard


def test_soft_choices_at_inference_change_scores_only_where_they_should(model):
    pixels = tiny_pixels(2)
    hard = logits_of(model, pixels)
    model.config.pixel_assignment = "soft"
    soft = logits_of(model, pixels)
    assert soft.shape == hard.shape and not torch.allclose(soft, hard, atol=1e-4)
    assert len(soft[0, 0].unique()) > len(hard[0, 0].unique()), "hard scores are those of four groups"
    model.config.pixel_assignment, model.config.segmentation_maps = "hard", "hard"
    with torch.no_grad():
        outputs = model(pixels)
    assert set(outputs.group_maps.unique().tolist()) == {0.0, 1.0}
    model.config.segmentation_maps, model.config.vision_config.assignment = "soft", "soft"
    assert not torch.allclose(logits_of(model, pixels), hard, atol=1e-4)


# ---- training with label maps


def test_the_loss_is_the_mean_over_valid_pixels_of_the_mixture(model):
    pixels = tiny_pixels(2)
    labels = torch.randint(0, 7, (2, 24, 24), generator=torch.Generator().manual_seed(0))
    labels[:, :12] = 255
    model.eval()
    with torch.no_grad():
        outputs = model(pixels, labels=labels)
        maps = torch.nn.functional.interpolate(outputs.group_maps, (24, 24), mode="bilinear")
        shares = (model.scale() * outputs.group_embeds @ model.class_embeddings.T).softmax(-1)
    mixture = torch.einsum("bghw,bgn->bnhw", maps, shares)
    picked = mixture.gather(1, labels.clamp_max(6)[:, None])[:, 0][labels != 255]
    torch.testing.assert_close(outputs.loss, -picked.log().mean())


def test_the_background_of_a_threshold_does_not_count_in_the_loss(model, processor):
    pixels = tiny_pixels(2)
    labels = torch.randint(0, 7, (2, 24, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(pixels, labels=torch.where(labels == 3, 255, labels)).loss
        model.set_labels(LABELS, processor, background=0.3)
        shifted = torch.where(labels == 3, 0, labels + 1)  # the background is 0
        assert model(pixels, labels=shifted).loss.item() == pytest.approx(plain.item(), rel=1e-5)
        everything = model(pixels, labels=torch.zeros_like(labels)).loss
    assert everything == 0


def test_trainer_learns_from_label_maps_and_measures_mean_iou(model, tmp_path):
    labels = torch.randint(0, 3, (8, 1, 2), generator=torch.Generator().manual_seed(0))
    labels = labels.repeat_interleave(24, 1).repeat_interleave(12, 2)  # left and right half
    pixels = torch.stack([torch.full((24, 24), 2.0) * (labels[i] - 1) for i in range(8)])[:, None].repeat(1, 3, 1, 1)
    data = [{"pixel_values": pixels[i], "labels": labels[i]} for i in range(8)]
    frozen = ("text_model.", "text_projection.", "class_embeddings")
    before = {name: t.clone() for name, t in model.state_dict().items() if name.startswith(frozen)}
    arguments = {"max_steps": 30, "per_device_train_batch_size": 8, "learning_rate": 3e-3, "logging_steps": 1}
    arguments |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    model.vision_model.config.gumbel_noise = False
    trainer = Trainer(
        model,
        TrainingArguments(str(tmp_path), **arguments),
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=mean_iou_metrics(len(LABELS)),
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(1),
    )
    start = trainer.evaluate()
    trainer.train()
    end = trainer.evaluate()
    assert end["eval_loss"] < 0.8 * start["eval_loss"] and 0 <= end["eval_mean_iou"] <= 1
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
