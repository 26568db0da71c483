"""ViLD's detector: what its losses depend on, labels that change, masks, bad inputs, files, pipelines."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pixels, tiny_tokenizer
from tiny_families import save_tiny_family, tiny_dual_encoder, tiny_family_tokenizer
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, pipeline
from vild_runs import BASE, NAMES, vild_boxes, vild_config, vild_inputs, vild_labels, vild_model, vild_processor

from hf_clip_variants import ViLDConfig, ViLDForZeroShotObjectDetection
from hf_clip_variants.modeling.vild.boxes_vild import select_by_objectness
from hf_clip_variants.modeling.vild.losses_vild import class_scores, ensemble_scores, mask_novel
from hf_clip_variants.modeling.vild.processing_vild import demo_prompts, embed_demo_labels


def run(model, **inputs):
    with torch.no_grad():
        return model.eval()(**inputs)


class TestLosses:
    def test_padding_of_distilled_regions_changes_nothing(self):
        model = vild_model().train()
        inputs = vild_inputs(2)
        once = model(**inputs).loss_dict["loss_distillation"]
        boxes, teacher = inputs["distill_boxes"], inputs["distill_embeddings"]
        inputs["distill_boxes"] = torch.cat([boxes, torch.full_like(boxes, -1)], dim=1)
        inputs["distill_embeddings"] = torch.cat([teacher, torch.full_like(teacher, torch.nan)], dim=1)
        model = vild_model().train()
        torch.testing.assert_close(model(**inputs).loss_dict["loss_distillation"], once, rtol=0, atol=0)

    @pytest.mark.parametrize("variant", ["text", "image", "vild", "ensemble"])
    def test_each_variant_trains_its_own_parts(self, variant):
        model = vild_model(variant=variant).train()
        output = model(**vild_inputs(2))
        output.loss.backward()
        head, losses = model.region_head, output.loss_dict
        assert ("loss_class" in losses) == (variant != "image")
        assert ("loss_distillation" in losses) == (variant != "text")
        assert (head.background is None) == (variant == "image")
        assert head.background is None or head.background.grad.abs().sum() > 0
        assert (head.image_projection is None) == (variant != "ensemble")
        assert not any(p.requires_grad for p in model.text_encoder.parameters())
        weights = {"loss_distillation": model.config.distill_weight}
        total = sum(weights.get(name, 1) * value for name, value in losses.items())
        torch.testing.assert_close(output.loss.detach(), total)

    def test_distillation_of_the_ensemble_leaves_the_text_head_alone(self):
        model = vild_model(variant="ensemble").eval()
        inputs = vild_inputs(2)
        output = model(**inputs)
        only = model._losses  # the loss dictionary is detached: take the gradient of the distillation alone
        features, _ = model.feature_maps(inputs["pixel_values"])
        from hf_clip_variants.modeling.detection.inputs_detection import read_labels

        targets = read_labels(inputs["labels"], [(64, 64)] * 2, 5, "cpu")
        boxes = model._given_proposals(inputs["proposals"], 2)
        texts = model.resolve_class_embeddings()
        losses = only(features, boxes, targets, texts, True, inputs["distill_boxes"], inputs["distill_embeddings"])
        losses["loss_distillation"].backward()
        assert output.loss is not None and model.region_head.projection.weight.grad is None
        assert model.region_head.image_projection.weight.grad.abs().sum() > 0

    def test_novel_labels_stay_in_the_softmax_with_logit_zero_or_leave_it(self):
        logits = torch.tensor([[1.0, 2.0, 3.0, -4.0]], requires_grad=True)
        novel = torch.tensor([False, True, True])
        assert mask_novel(logits, novel, "zero").tolist() == [[1, 2, 0, 0]]
        assert mask_novel(logits, novel, "exclude").softmax(-1)[0, 2:].tolist() == [0, 0]
        assert mask_novel(logits, novel, "keep") is logits
        assert vild_config().novel_mask == [False, False, False, True, True]

    def test_ensemble_of_two_equal_heads_is_one_head(self):
        logits = torch.randn(2, 7, 6)
        scores = class_scores(logits)
        novel = torch.tensor([True, False, True, False, False])
        torch.testing.assert_close(ensemble_scores(scores, scores, novel), scores)

    def test_images_without_objects_train_the_background(self):
        model = vild_model().train()
        empty = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
        empty["masks"] = torch.zeros(0, 64, 64)
        inputs = vild_inputs(2, distilled=False) | {"labels": [empty, empty]}
        output = model(**inputs)
        output.loss.backward()
        assert output.loss.isfinite() and output.loss_dict["loss_box"] == output.loss_dict["loss_mask"] == 0
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.mask_head.parameters())

    def test_the_text_encoder_is_frozen_also_after_loading(self, tmp_path):
        vild_model().save_pretrained(tmp_path)
        model = ViLDForZeroShotObjectDetection.from_pretrained(tmp_path).train()
        assert not any(p.requires_grad for p in model.text_encoder.parameters())
        assert not any(module.training for module in model.text_encoder.modules())


class TestLabels:
    def test_other_labels_change_no_weight(self):
        model = vild_model()
        before = {n: t.clone() for n, t in model.state_dict().items() if n != "class_embeddings"}
        model.set_labels(["boat", "tree", "cat"], tiny_tokenizer(), "a photo of a {}.")
        inputs = {"pixel_values": tiny_pixels(2, size=64), "proposals": vild_boxes(2, 4)}
        stored = run(model, **inputs)
        assert stored.logits.shape == (2, 4, 3) and model.config.id2label == {0: "boat", 1: "tree", 2: "cat"}
        after = model.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        texts = vild_processor()(text=["boat", "tree", "cat"], return_tensors="pt")
        given = run(model, **inputs, **texts)
        torch.testing.assert_close(given.class_logits, stored.class_logits, rtol=1e-4, atol=1e-4)

    def test_labels_fold_in_and_the_text_encoder_goes(self, tmp_path):
        model = vild_model()
        model.set_labels(["boat", "tree"], tiny_tokenizer())
        inputs = {"pixel_values": tiny_pixels(1, size=64), "proposals": vild_boxes(1, 4)}
        expected = run(model, **inputs).logits
        model.drop_text_encoder()
        model.save_pretrained(tmp_path)
        loaded = ViLDForZeroShotObjectDetection.from_pretrained(tmp_path)
        assert not any(name.startswith("text_encoder") for name in loaded.state_dict())
        torch.testing.assert_close(run(loaded, **inputs).logits, expected, rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="text encoder was dropped"):
            loaded.set_labels(["car"], tiny_tokenizer())
        for bad, message in (([], "labels is empty"), ("cat", "single string"), (["cat", "cat"], "given twice")):
            with pytest.raises(ValueError, match=message):
                vild_model().set_labels(bad, tiny_tokenizer())

    @pytest.mark.parametrize("family", ["chinese_clip", "siglip"])
    def test_any_dual_encoder_gives_the_texts(self, family, tmp_path):
        dual = tiny_dual_encoder(family)
        model = ViLDForZeroShotObjectDetection.from_dual_encoder(dual).eval()
        names = ["猫", "狗"] if family == "chinese_clip" else ["cat", "dog"]
        model.set_labels(names, tiny_family_tokenizer(family))
        assert model.class_embeddings.shape == (2, model.config.projection_dim)
        torch.testing.assert_close(model.class_embeddings.norm(dim=1), torch.ones(2))
        assert not any("vision" in name for name in model.state_dict())
        model.save_pretrained(tmp_path)
        loaded = ViLDForZeroShotObjectDetection.from_pretrained(tmp_path)
        loaded.set_labels(names, tiny_family_tokenizer(family))
        torch.testing.assert_close(loaded.class_embeddings, model.class_embeddings)


class TestDetections:
    def test_masks_of_weights_that_are_not_finite_are_no_answer(self):
        model = vild_model()
        name, weight = next(iter(model.mask_head.named_parameters()))
        weight.data.view(-1)[0] = float("nan")
        with pytest.raises(ValueError, match=f"masks: NaN or infinite .*mask_head.{name}"):
            run(model, pixel_values=tiny_pixels(2, size=64), output_masks=True)

    def test_masks_do_not_depend_on_the_class(self):
        model = vild_model()
        boxes = vild_boxes(1, 3)[:, :2]
        pixels = tiny_pixels(1, size=64)
        output = run(model, pixel_values=pixels, proposals=boxes, output_masks=True)
        found = output.detections
        assert found.masks.shape == (1, 10, 28, 28) and found.labels[0, 0] >= 0
        by_region = {}
        for label, region, mask in zip(found.labels[0], found.regions[0], found.masks[0], strict=True):
            if label >= 0:
                torch.testing.assert_close(mask, by_region.setdefault(int(region), mask))
        assert len(by_region) < (found.labels >= 0).sum(), "some region has several labels"

    def test_post_processing_of_outputs_and_of_detections_agree(self):
        model, processor = vild_model(variant="ensemble"), vild_processor()
        inputs = {"pixel_values": tiny_pixels(2, size=64), "proposals": vild_boxes(2, 6)}
        sizes = [(32, 128), (64, 64)]
        plain = run(model, **inputs)
        with_detections = run(model, **inputs, output_masks=True)
        options = {"target_sizes": sizes, "text_labels": NAMES}
        of_outputs = processor.post_process_grounded_object_detection(plain, max_detections=10, **options)
        of_detections = processor.post_process_grounded_object_detection(with_detections, **options)
        for one, other, size in zip(of_outputs, of_detections, sizes, strict=True):
            assert one["text_labels"] == other["text_labels"] and set(one["text_labels"]) <= set(NAMES)
            torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-3, atol=1e-4)
            assert one["boxes"].max() <= max(size) and len(other["masks"]) == len(other["scores"])
        with pytest.raises(ValueError, match="target_sizes: 1 for 2 images"):
            processor.post_process_grounded_object_detection(plain, target_sizes=sizes[:1])
        with pytest.raises(ValueError, match="text_labels\\[0\\]: 1 names"):
            processor.post_process_grounded_object_detection(plain, text_labels=["cat"])

    def test_padding_of_an_image_changes_no_box(self):
        model = vild_model()
        pixels = tiny_pixels(1, size=64)
        alone = run(model, pixel_values=pixels)
        mask = torch.zeros(1, 64, 128, dtype=torch.long)
        mask[..., :64] = 1
        padded = torch.nn.functional.pad(pixels, (0, 64))
        beside = run(model, pixel_values=padded, pixel_mask=mask)
        assert beside.pred_boxes.shape == alone.pred_boxes.shape
        assert (beside.proposals[..., 2] <= 63).all() and beside.proposals[beside.objectness > 0].min() >= 0

    def test_nothing_is_proposed_by_anchors_in_the_padding(self):
        """They are never trained, so that their scores may be anything; then they would come first."""
        model = vild_model()
        features, _ = model.feature_maps(torch.zeros(1, 3, 128, 128))
        anchors = model._anchors(features)
        centres = [(one[:, :2] + one[:, 2:]) / 2 for one in anchors]
        objectness = [torch.where((one >= 70).any(dim=1), 9.0, -2.0)[None] for one in centres]
        codes = [torch.zeros(1, len(one), 4) for one in anchors]
        (boxes,), (scores,) = model._propose(objectness, codes, anchors, [(70, 70)])
        assert len(boxes) and torch.allclose(scores, torch.tensor(-2.0).sigmoid())

    @pytest.mark.parametrize("size", [(1, 1), (3, 70), (64, 64)])
    def test_images_of_any_size_give_boxes_inside(self, size):
        model = vild_model()
        output = run(model, pixel_values=torch.randn(1, 3, *size), output_masks=True)
        assert output.logits.shape == (1, 12, 5) and output.pred_boxes.isfinite().all()
        assert output.detections.boxes[..., 2].max() <= size[1] and output.detections.masks.isfinite().all()

    def test_ten_thousand_pixels_wide_becomes_the_processors_size(self):
        from PIL import Image

        inputs = vild_processor()(Image.new("RGB", (10_000, 4)), return_tensors="pt")
        assert max(inputs["pixel_values"].shape[-2:]) <= 64
        assert run(vild_model(), **inputs).pred_boxes.isfinite().all()

    def test_stored_proposals_replace_the_networks(self):
        model = vild_model()
        boxes = vild_boxes(1, 4)
        output = run(model, pixel_values=tiny_pixels(1, size=64), proposals=boxes)
        assert torch.equal(output.proposals, boxes) and output.logits.shape == (1, 4, 5)
        assert output.logits[0, -1].sigmoid().max() < 1e-6, "padding has no score"
        found, scores = model.propose(tiny_pixels(1, size=64))
        assert 0 < len(found[0]) <= 12 and (scores[0][:-1] >= scores[0][1:]).all()


class TestDemo:
    """The official demo's rules: any vocabulary, boxes by their objectness, a text for the background."""

    def test_boxes_are_chosen_by_objectness_and_named_by_the_best_text(self):
        boxes = torch.tensor([[0.0, 0, 40, 40], [1, 1, 41, 41], [50, 50, 90, 90], [0, 60, 10, 70], [60, 0, 95, 30]])
        scores = torch.tensor([[0.1, 0.2, 0.9], [0.1, 0.99, 0.2], [0.9, 0.2, 0.3], [0.1, 0.9, 0.2], [0.1, 0.7, 0.2]])
        objectness = torch.tensor([0.99, 0.95, 0.97, 0.98, 0.92])
        values, labels, found, rows = select_by_objectness(scores, boxes, objectness)
        # 1 overlaps 0, which has more objectness; 2 is background; 3 is too small
        assert rows.tolist() == [0, 4] and labels.tolist() == [1, 0] and torch.equal(found, boxes[[0, 4]])
        assert values.tolist() == pytest.approx([0.9, 0.7])
        assert select_by_objectness(scores, boxes, objectness, min_objectness=0.98)[3].tolist() == [0]
        assert select_by_objectness(scores, boxes, objectness, min_area=50)[3].tolist() == [0, 3, 4]
        assert select_by_objectness(scores, boxes, objectness, min_objectness=1.0)[2].shape == (0, 4)

    def test_scores_are_cosines_that_do_not_depend_on_other_labels(self):
        model, processor = vild_model(), vild_processor()
        texts = embed_demo_labels(model, processor, ["background", "cat", "boat"])
        torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))
        output = run(model, pixel_values=tiny_pixels(1, size=64), class_embeddings=texts)
        options = {"target_sizes": [(64, 64)], "min_objectness": 0.0, "min_area": 1}
        names = ["background", "cat", "boat"]
        (found,) = processor.post_process_demo_detection(output, text_labels=names, **options)
        assert len(found["scores"]) and set(found["text_labels"]) <= {"cat", "boat"}
        cosines = output.region_embeddings[0, found["regions"]] @ texts.T
        torch.testing.assert_close(found["scores"], cosines.max(dim=1).values, rtol=0, atol=1e-5)
        assert (cosines.argmax(dim=1) == found["labels"] + 1).all()
        (soft,) = processor.post_process_demo_detection(output, softmax=True, **options)
        torch.testing.assert_close(soft["scores"], (cosines[:] / 0.01).softmax(-1).max(1).values.sort(0, True)[0])
        with pytest.raises(ValueError, match="1 texts, expected a background"):
            processor.post_process_demo_detection(
                run(model, pixel_values=tiny_pixels(1, size=64), class_embeddings=texts[:1]), [(64, 64)]
            )

    def test_prompts_are_the_63_of_the_demo(self):
        prompts = demo_prompts("Ice_cream/Cone.")
        assert len(set(prompts)) == 63 and all(one[0] in "Ti" for one in prompts)
        assert prompts[:2] == [
            "There is an ice cream or cone in the scene.",
            "There is the ice cream or cone in the scene.",
        ]
        assert "This is a low resolution photo of an ice cream or cone." in prompts
        assert "itap of my ice cream or cone." in prompts


def test_distillation_names_what_no_box_was_ever_named_in_training():
    """The paper's claim: with the teacher's embeddings of regions, novel classes are told; with base boxes alone not.

    Coloured squares on noise. Six colours have boxes, two are only among the proposals, whose embeddings are those of
    the colours' names.
    """
    hues = torch.tensor(
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 0]]
    ).float()
    draw = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(9, 24, generator=draw), dim=1)  # the last: no object
    names = [f"colour {i}" for i in range(8)]
    novel = (6, 7)

    def batch(count: int):
        pixels = 0.3 * torch.randn(count, 3, 64, 64, generator=draw) + 0.5
        corners = torch.tensor([[2.0, 2], [34, 2], [2, 34], [34, 34]]).expand(count, 4, 2)
        boxes = torch.cat([corners, corners + 26], dim=2)
        colours = torch.rand(count, 9, generator=draw).argsort(dim=1)[:, :4]
        for image, row in zip(pixels, colours.tolist(), strict=True):
            for (x, y), colour in zip(corners[0].int().tolist(), row, strict=True):
                if colour < 8:
                    image[:, y : y + 26, x : x + 26] = hues[colour][:, None, None]
        return 2 * pixels - 1, boxes, colours

    def accuracies(variant: str) -> tuple[float, float]:
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        labels |= {"label_texts": [[name] for name in names], "base_labels": names[:6]}
        model = vild_model(variant=variant, temperature=0.1, batch_norm_momentum=0.1, use_masks=False, **labels)
        with torch.no_grad():
            model.class_embeddings.copy_(texts[:8])
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
        model.train()
        for _ in range(60):
            pixels, boxes, colours = batch(4)
            marks = []
            for box, row in zip(boxes, colours, strict=True):
                kept = row < 6
                centres = torch.cat([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]], dim=1) / 64
                marks.append({"class_labels": row[kept], "boxes": centres[kept]})
            loss = model(
                pixels,
                labels=marks,
                proposals=boxes,
                distill_boxes=boxes if variant != "text" else None,
                distill_embeddings=texts[colours] if variant != "text" else None,
            ).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        pixels, boxes, colours = batch(24)
        best = run(model, pixel_values=pixels, proposals=boxes).logits.argmax(dim=-1)
        right, is_novel = best == colours, (colours == novel[0]) | (colours == novel[1])
        return right[colours < 6].float().mean().item(), right[is_novel].float().mean().item()

    base, unseen = accuracies("vild")
    base_of_text, unseen_of_text = accuracies("text")
    assert base > 0.8 and base_of_text > 0.8, (base, base_of_text)
    assert unseen > 0.7 > 0.4 > unseen_of_text, (unseen, unseen_of_text)


class TestBadInputs:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"proposals": torch.full((1, 2, 4), -1.0)}, "proposals: no box in any image"),
            ({"proposals": torch.tensor([[[5.0, 5, 2, 9]]])}, r"proposals\[0\]\[0\].*x1 <= x2"),
            ({"proposals": torch.tensor([[[0.0, 0, torch.nan, 9]]])}, r"proposals\[0\]\[0\]"),
            ({"proposals": torch.tensor([[[-1.0] * 4, [0, 0, 9, 9]]])}, r"padding \(-1\) behind"),
            ({"proposals": torch.zeros(2, 1, 4)}, r"proposals: got \[2, 1, 4\]"),
            ({"pixel_mask": torch.ones(1, 32, 32)}, "pixel_mask"),
            ({"class_embeddings": torch.zeros(3)}, "class_embeddings"),
            ({"distill_boxes": vild_boxes(1, 2)}, "distill_embeddings: missing"),
        ],
    )
    def test_bad_arguments_are_named(self, change, message):
        with pytest.raises(ValueError, match=message):
            run(vild_model(), **({"pixel_values": tiny_pixels(1, size=64)} | change))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"boxes": torch.tensor([[0.5, 0.5, 0.0, 0.1]])}, r"labels\[0\]\['boxes'\]\[0\].*above 0"),
            ({"boxes": torch.tensor([[0.5, 0.5, -0.1, 0.1]])}, "above 0"),
            ({"boxes": torch.tensor([[torch.nan, 0.5, 0.1, 0.1]])}, "finite"),
            ({"boxes": torch.rand(2, 4)}, "1 class_labels for 2 boxes"),
            ({"class_labels": torch.tensor([5])}, r"class_labels'\]: 5..5, expected 0..4"),
            ({"masks": torch.ones(3, 64, 64)}, "masks"),
        ],
    )
    def test_bad_labels_are_named(self, change, message):
        label = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])} | change
        with pytest.raises(ValueError, match=message):
            run(vild_model(), pixel_values=tiny_pixels(1, size=64), labels=[label])

    @pytest.mark.parametrize("box", [[1, 2, 0, 5], [1, 2, -3, 5], [1, float("nan"), 3, 5], [1, 2, 3]])
    def test_bad_boxes_of_annotations_are_named(self, box):
        from PIL import Image

        marks = {"image_id": 3, "annotations": [{"bbox": box, "category_id": 0, "area": 4, "iscrowd": 0}]}
        with pytest.raises(ValueError, match="annotations of image 3: bbox of object 0"):
            vild_processor()(Image.new("RGB", (9, 9)), annotations=marks, return_tensors="pt")

    def test_boxes_outside_are_clipped_thin_ones_and_crowds_left_out_with_their_masks(self):
        import numpy as np
        from PIL import Image

        whole = np.ones((20, 40), dtype=bool)
        rows = [([30, -5, 20, 15], 0), ([50, 0, 5, 5], 0), ([0, 0, 10, 10], 1), ([3, 4, 10, 1e-9], 0)]
        marks = [
            {"bbox": box, "category_id": 2, "area": 1, "iscrowd": crowd, "segmentation": whole} for box, crowd in rows
        ]
        inputs = vild_processor()(
            Image.new("RGB", (40, 20)),
            annotations={"image_id": 0, "annotations": marks},
            return_segmentation_masks=True,
            return_tensors="pt",
        )
        (label,) = inputs["labels"]
        torch.testing.assert_close(label["boxes"], torch.tensor([[0.875, 0.25, 0.25, 0.5]]))
        assert label["masks"].shape == (1, 32, 64) and label["masks"].all()


class TestFiles:
    def test_pipelines_and_auto_classes_run_from_a_saved_folder(self, tmp_path):
        from PIL import Image

        vild_model().save_pretrained(tmp_path)
        vild_processor().save_pretrained(tmp_path)
        model = AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path)
        processor = AutoProcessor.from_pretrained(tmp_path)
        assert type(model) is ViLDForZeroShotObjectDetection and processor.templates == ["a photo of a {}."]
        detect = pipeline("zero-shot-object-detection", str(tmp_path))
        found = detect(Image.new("RGB", (80, 60), "red"), candidate_labels=["cat", "boat"], threshold=0.01)
        assert found and {one["label"] for one in found} <= {"cat", "boat"}
        assert all(0 <= one["box"]["xmin"] <= one["box"]["xmax"] <= 80 for one in found)

    def test_released_sizes(self):
        assert ViLDConfig.of_variant("resnet50_vild_ensemble").variant == "ensemble"
        with pytest.raises(ValueError, match="expected one of resnet50_vild"):
            ViLDConfig.of_variant("resnet18")
        assert BASE == vild_config().base_labels and callable(save_tiny_family) and vild_labels(1)


# ---- what is read from outside


def test_images_are_read_as_everywhere_in_the_package(tmp_path):
    """transformers' own reader crashes the process on the damaged PNG, and fetches any address."""
    values = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(values).save(path)
    process = vild_processor()
    sound = process(str(path), return_tensors="pt")
    assert torch.equal(sound["pixel_values"], process(Image.open(path), return_tensors="pt")["pixel_values"])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"images\[1\]: truncated or corrupt image"):
        process([Image.new("RGB", (5, 5)), str(path)], return_tensors="pt")
    with pytest.raises(ValueError, match=r"images\[0\]: .*127.0.0.1"):
        process("http://127.0.0.1:9/a.png", return_tensors="pt")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bbox": None}, "bbox of object 0: None, expected x, y"),
        ({"bbox": [0, 0, float("nan"), 3]}, "bbox of object 0"),
        ({"category_id": 1.5}, "category_id of object 0: '1.5', expected a whole number"),
        ({"area": float("nan")}, "area of object 0: 'nan'"),
        ({"segmentation": [["a", 1, 2, 3, 4, 5]]}, "segmentation of object 0: expected polygons"),
    ],
)
def test_bad_annotations_are_named(change, message):
    one = {"bbox": [1, 2, 5, 4], "category_id": 0, "area": 20, "segmentation": [[1, 2, 6, 2, 6, 6]]}
    marks = {"image_id": 7, "annotations": [one | change]}
    with pytest.raises(ValueError, match=message):
        vild_processor()(Image.new("RGB", (20, 20)), annotations=marks, return_segmentation_masks=True)


def test_answers_that_are_not_finite_are_refused_with_their_cause():
    model = copy.deepcopy(vild_model())
    with torch.no_grad():
        model.pyramid.pyramid.inner_blocks[0][0].weight.view(-1)[5] = torch.nan
    with pytest.raises(ValueError, match="the weight pyramid.pyramid.inner_blocks.0.0.weight has some"):
        model(tiny_pixels(1, size=64))
