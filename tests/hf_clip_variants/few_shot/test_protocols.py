"""The published protocols: which images, classes and names; and numbers that are those of the adapted model."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from coop_folders import save_imagenet, save_zhou
from few_shot_runs import CONCEPTS, save_images, save_tiny_clip
from peft import PeftModel, get_peft_model
from tiny import EMOJI_CLIP

from hf_clip_variants import CLIPClassifier
from hf_clip_variants.adapters import VPTConfig
from hf_clip_variants.data import load_emoji, load_images, sample_few_shot
from hf_clip_variants.data.images.labelled_images import LiveImages
from hf_clip_variants.evaluation.image_prediction import predict
from hf_clip_variants.few_shot.method import FEW_SHOT_METHODS
from hf_clip_variants.few_shot.protocols import (
    PROTOCOLS,
    Plan,
    columns_among,
    divide,
    emoji_plans,
    harmonic_mean,
    load_task,
    templates_for,
)
from hf_clip_variants.few_shot.runner import FewShotRunner


NAMES5 = ["n0", "n1", "n2", "n3", "n4"]


def zhou_plan(tmp_path, protocol="few_shot", folder="dtd", classes=tuple(NAMES5), **plan):
    data = f"coop:{save_zhou(tmp_path, folder, classes, {'train': 4, 'val': 3, 'test': 2})}"
    return Plan(protocol, folder, data, **plan)


# ---- numbers


@pytest.mark.parametrize(
    "base, new, expected",
    [(82.28, 75.14, 78.55), (80.47, 71.69, 75.83), (94.07, 73.23, 82.35), (1, 1, 1), (50, 0, 0), (0, 0, 0)],
)
def test_harmonic_mean_gives_the_papers_numbers(base, new, expected):
    assert harmonic_mean(base, new) == pytest.approx(expected, abs=0.006)


def test_columns_are_found_by_name_and_unknown_names_are_listed():
    assert columns_among(["c", "a"], ["a", "b", "c"], "x") == (2, 0)
    with pytest.raises(
        ValueError, match=r"A: 1 of 2 classes are not among the 1 trained ones: 'z'; a domain holds trained classes"
    ):
        columns_among(["a", "z"], ["a"], "A")


# ---- tasks


def test_few_shot_tests_on_the_test_split_and_validates_on_its_own(tmp_path):
    task = load_task(zhou_plan(tmp_path), [1, 2], [1, 2])
    (evaluation,) = task.evaluations
    assert (evaluation.name, evaluation.part, evaluation.columns) == (
        "dtd",
        "test",
        (0, 1, 2, 3, 4),
    ) and evaluation.class_names == tuple(NAMES5)
    assert (
        evaluation.images.split == "test"
        and evaluation.rows.tolist() == list(range(10))
        and evaluation.templates == ("{} texture.",)
    )
    assert task.train.split == "train" and task.validation.split == "validation"
    assert len(task.training_rows(2, 1)) == 10 and len(task.validation_rows(2, 1)) == 10
    assert task.every_training_row == sorted({r for k in (1, 2) for s in (1, 2) for r in task.training_rows(k, s)})


def test_base_is_the_larger_half_of_the_labels_and_new_counts_from_zero(tmp_path):
    task = load_task(zhou_plan(tmp_path, "base_to_new"), [1], [1])
    base, new = task.evaluations
    assert task.class_names == base.class_names == ("n0", "n1", "n2") and new.class_names == ("n3", "n4")
    assert base.labels.tolist() == [2, 1, 0] * 2 and base.columns == (0, 1, 2)
    assert new.labels.tolist() == [1, 0] * 2 and new.columns is None
    for evaluation in (base, new):  # the images are those of the names
        told = [evaluation.images.ids[row].split("/")[0] for row in evaluation.rows]
        assert told == [evaluation.class_names[label] for label in evaluation.labels]
    assert (base.name, new.name) == ("base", "new")


def test_base_images_are_drawn_as_the_official_code_draws_them(tmp_path):
    """From all classes in order of appearance; new classes are left out afterwards."""
    task = load_task(zhou_plan(tmp_path, "base_to_new"), [2], [3])
    train = task.train
    everything = sample_few_shot(train.labels, 2, 3, validation_labels=task.validation.labels)
    assert task.training_rows(2, 3) == [row for row in everything.train if train.labels[row] < 3]
    assert task.validation_rows(2, 3) == [row for row in everything.validation if task.validation.labels[row] < 3]
    base_only = np.flatnonzero(train.labels < 3)
    alone = base_only[list(sample_few_shot(train.labels[base_only], 2, 3).train)].tolist()
    assert task.training_rows(2, 3) != alone, "the test must tell the two apart"


def test_transfer_has_the_source_first_and_targets_with_names_of_their_own(tmp_path):
    pets = save_zhou(tmp_path, "oxford_pets")
    task = load_task(zhou_plan(tmp_path, "cross_dataset", targets={"pets": f"coop:{pets}"}), [1], [1])
    source, target = task.evaluations
    assert (source.part, source.columns, source.of) == ("source", (0, 1, 2, 3, 4), "dtd")
    assert (target.part, target.columns, target.images.split) == ("target", None, "test")
    assert target.class_names == ("abyssinian", "american bulldog", "beagle")
    assert target.templates == ("a photo of a {}, a type of pet.",), "the target's own prompt"
    asked = load_task(task.plan, [1], [1], templates="a {}")
    assert {evaluation.templates for evaluation in asked.evaluations} == {("a {}",)}


def test_domains_are_classified_among_their_own_classes_only(tmp_path):
    save_imagenet(tmp_path)
    domains = {
        name: f"coop:{tmp_path}/{name}" for name in ("imagenetv2", "imagenet-adversarial", "imagenet-rendition")
    }
    task = load_task(Plan("domain_generalisation", "imagenet", f"coop:{tmp_path}/imagenet", targets=domains), [1], [1])
    assert task.validation is None, "ImageNet's validation images are its test"
    assert [evaluation.columns for evaluation in task.evaluations] == [(0, 1, 2, 3), (0, 1, 2, 3), (2, 3), (0, 1, 3)]
    pets = save_zhou(tmp_path, "oxford_pets")
    plan = replace(task.plan, targets={"pets": f"coop:{pets}"})
    with pytest.raises(ValueError, match="oxford_pets: 3 of 3 classes are not among the 4 trained ones: 'abyssinian'"):
        load_task(plan, [1], [1])


def test_test_images_are_never_validated_on(tmp_path):
    save_images(tmp_path / "two", {"train": ["fluentflat", "emojione"], "validation": ["notov1"]})
    task = load_task(Plan("few_shot", "two", str(tmp_path / "two")), [1], [1])
    assert task.evaluations[0].images.split == "validation" and task.validation is None, (
        "there is nothing else to test on"
    )
    save_images(tmp_path / "other", {"": ["fluent3d"]})
    task = load_task(Plan("few_shot", "two", str(tmp_path / "two"), {"3d": str(tmp_path / "other")}), [1], [1])
    assert task.validation.split == "validation" and [evaluation.name for evaluation in task.evaluations] == ["3d"]
    save_images(tmp_path / "one", {"train": ["fluentflat"]})
    with pytest.raises(ValueError, match="one has no images to test on; want NAME=SOURCE"):
        load_task(Plan("few_shot", "one", str(tmp_path / "one")), [1], [1])


def test_an_undivided_folder_is_divided_as_coop_divides(tmp_path):
    save_images(tmp_path / "data", {"": ["fluentflat", "emojione", "fluent3d", "notov1"]})
    images = load_images(tmp_path / "data")
    ten = images.select(np.repeat(np.arange(len(images)), 5)[: 2 * 20])  # two classes of 20
    ten = replace(ten.select_classes([0, 1]), ids=tuple(map(str, range(40))))
    train, validation, test = divide(ten)
    assert [np.bincount(part.labels).tolist() for part in (train, validation, test)] == [[10, 10], [4, 4], [6, 6]]
    assert sorted(train.ids + validation.ids + test.ids) == sorted(ten.ids), "every image once"
    assert divide(ten)[0].ids == train.ids
    small, none, rest = divide(images.select_classes([0, 1]).select([0, 1, 4, 5]))
    assert (len(small), none, len(rest)) == (2, None, 2)
    with pytest.raises(ValueError, match="class 'banana' has 1 images"):
        divide(images.select([row for row in range(24) if row not in (0, 1, 2)]))
    task = load_task(Plan("few_shot", "mine", str(tmp_path / "data")), [1], [1])
    drawn = {task.train.ids[row] for row in task.every_training_row}
    assert drawn.isdisjoint(task.evaluations[0].images.ids)


def test_emoji_plans_never_test_on_a_trained_style():
    assert [plan.protocol for plan in emoji_plans()] == [
        "few_shot",
        "base_to_new",
        "cross_dataset",
        "cross_dataset",
        "domain_generalisation",
    ]
    for plan in emoji_plans():
        task = load_task(plan, [1, 2], [1])
        assert len(task.training_rows(1, 1)) == len(task.class_names) and len(task.training_rows(2, 1)) == 2 * len(
            task.class_names
        )
        trained = {name.split("/")[0] for name in task.train.ids}
        tested = {
            evaluation.images.ids[row].split("/")[0] for evaluation in task.evaluations for row in evaluation.rows
        }
        assert trained == {"fluentflat", "emojione"} and tested == {"fluent3d", "notov1"} and "fluentflat" in plan.note
    animals, food = load_emoji("notov1", "animals-nature").class_names, load_emoji("notov1", "food-drink").class_names
    (plan,) = [plan for plan in emoji_plans() if plan.name == "food and drink"]
    task = load_task(plan, [1], [1])
    assert task.class_names == food and task.evaluations[1].class_names == animals


@pytest.mark.parametrize(
    "plan, match",
    [
        (("nothing", "x", "x"), "protocol: got 'nothing'; want one of few_shot, base_to_new"),
        (("cross_dataset", "x", "x"), "targets of cross_dataset: got {}; want at least one"),
        (("few_shot", "x", "x", {}, {"y": "z"}), "targets of few_shot: got {'y': 'z'}; want none"),
        (("cross_dataset", "x", "x", {"y": "a"}, {"y": "z"}), "'y' is also the name of a test set"),
    ],
)
def test_contradictory_plans_are_refused(plan, match):
    with pytest.raises(ValueError, match=match):
        Plan(*plan)


def test_templates_are_the_data_sets_own():
    assert templates_for("coop:DATA/fgvc_aircraft") == ["a photo of a {}, a type of aircraft."]
    assert templates_for("emoji:notov1@food-drink")[0] == "an emoji of {}"
    assert templates_for("pets/") is None, "the model family's"
    assert templates_for("coop:DATA/dtd", "a {}") == ["a {}"]


# ---- runs


@pytest.fixture(scope="module")
def emoji_folder(tmp_path_factory):
    return str(
        save_images(
            tmp_path_factory.mktemp("data"), {"train": ["fluentflat", "emojione"], "test": ["fluent3d", "notov1"]}
        )
    )


@pytest.fixture(scope="module")
def tiny_clip_folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def runner_of(model, folder, tasks, methods=("coop", "tip_adapter", "clip_adapter"), **options):
    return FewShotRunner(
        model,
        folder,
        tasks,
        methods,
        [1, 2],
        overrides={"coop.epochs": 15, "clip_adapter.epochs": 20},
        profile="tiny",
        **options,
    )


def accuracies(record):
    return {name: test["accuracy"] for name, test in record["tests"].items()}


def test_new_classes_get_the_adapter_that_base_classes_trained(emoji_folder, tmp_path):
    """The same as for a user who saves the adapter and loads it on a classifier with the new names."""
    task = load_task(Plan("base_to_new", "emoji", emoji_folder), [2], [1], templates="icons")
    runner = runner_of(EMOJI_CLIP, tmp_path / "work", [task])
    record = runner.run(task, "coop", 2, 1)
    assert accuracies(record)["new"] is not None and "why" not in record["tests"]["new"]

    saved = {}

    def save(record, model, predictions):
        model.save_pretrained(str(tmp_path / "adapter"))
        saved.update(predictions)

    again = runner.run(task, "coop", 2, 1, finish=save)
    assert accuracies(again) == accuracies(record), "a run does not depend on the ones before it"
    new = task.evaluations[1]
    fresh = CLIPClassifier.from_pretrained(
        EMOJI_CLIP, class_names=list(new.class_names), templates="icons", dtype=torch.float32
    )
    adapted = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    images = LiveImages(fresh, new.images.select(new.rows), runner.processor)
    predicted, _ = predict(adapted, images)
    assert (predicted.numpy() == new.labels).mean() == accuracies(record)["new"]


def test_adapters_for_fixed_classes_give_a_reason_for_other_classes(emoji_folder, tiny_clip_folder, tmp_path):
    task = load_task(Plan("base_to_new", "emoji", emoji_folder), [1], [1])
    runner = runner_of(tiny_clip_folder, tmp_path, [task])
    tip = runner.run(task, "tip_adapter", 1, 1)["tests"]
    assert tip["new"]["accuracy"] is None and tip["new"]["why"] == "the adapter caches images of its classes"
    assert tip["base"]["accuracy"] is not None
    specific = FewShotRunner(
        tiny_clip_folder,
        tmp_path,
        [task],
        ["coop"],
        [1],
        profile="tiny",
        overrides={"coop.class_specific": True, "coop.epochs": 1},
    )
    assert "one context per class" in specific.run(task, "coop", 1, 1)["tests"]["new"]["why"]
    json.dumps(tip)


def test_a_domain_with_fewer_classes_is_classified_among_those(emoji_folder, tmp_path):
    """Zero-shot CLIP must give the same accuracy with the few names alone."""
    few = ("owl", "pizza", "dog")
    save_images(tmp_path / "few", {"": ["notov1"]}, few)
    plan = Plan("domain_generalisation", "emoji", emoji_folder, targets={"few": str(tmp_path / "few")})
    task = load_task(plan, [1], [1], templates="icons")
    runner = runner_of(EMOJI_CLIP, tmp_path / "work", [task])
    evaluation = task.evaluations[1]
    assert [task.class_names[column] for column in evaluation.columns] == list(evaluation.class_names) == sorted(few)
    runner._name_classes(task.class_names, task.templates)
    images = LiveImages(runner.classifier, evaluation.images, runner.processor)
    among, _ = predict(runner.classifier, images, columns=evaluation.columns)
    alone = CLIPClassifier.from_pretrained(
        EMOJI_CLIP, class_names=list(evaluation.class_names), templates="icons", dtype=torch.float32
    )
    assert torch.equal(among, predict(alone, images)[0])
    assert accuracies(runner.zero_shot(task))["few"] == (among.numpy() == evaluation.labels).mean() > 0.5
    record = runner.run(task, "tip_adapter", 1, 1)
    assert record["tests"]["few"] == {
        "accuracy": pytest.approx(accuracies(record)["few"]),
        "part": "target",
        "of": "few",
        "images": 3,
        "classes": 3,
    }


class Counter:
    """Counts the images that go through a vision encoder."""

    def __init__(self, classifier):
        self.images = 0
        classifier.clip.vision_model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, arguments, keywords):
        self.images += len(keywords["pixel_values"] if "pixel_values" in keywords else arguments[0])


def test_no_feature_is_computed_twice(emoji_folder, tiny_clip_folder, tmp_path):
    read = {}
    plans = [Plan("few_shot", "emoji", emoji_folder), Plan("base_to_new", "emoji", emoji_folder)]
    tasks = [load_task(plan, [1, 2], [1, 2], read=read) for plan in plans]
    runner = runner_of(tiny_clip_folder, tmp_path, tasks)
    counter = Counter(runner.classifier)
    runs = [
        (task, method, shots, seed)
        for task in tasks
        for method in ("coop", "tip_adapter")
        for shots in (1, 2)
        for seed in (1, 2)
    ]
    records = [runner.run(*run) for run in runs] + [runner.zero_shot(task) for task in tasks]
    assert counter.images == 2 * len(CONCEPTS) + 2 * len(CONCEPTS), "each training and each test image once"
    again = runner_of(tiny_clip_folder, tmp_path, tasks)
    counter = Counter(again.classifier)
    repeated = [again.run(*run) for run in reversed(runs)][::-1] + [again.zero_shot(task) for task in tasks]
    assert counter.images == 0
    assert list(map(accuracies, repeated)) == list(map(accuracies, records)), "whatever the order"


def fit_random_visual_prompts(fit):
    """Untrained visual prompts with large values: they change every image feature."""
    model = fit.attach(VPTConfig(num_prompt_tokens=4, prompt_depth=1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "clipv_vpt" in name:
                parameter.normal_(std=3.0, generator=torch.Generator().manual_seed(fit.seed))
    return model, {}


def test_methods_that_train_the_image_encoder_are_tested_through_it(emoji_folder, tmp_path, monkeypatch):
    row = replace(
        FEW_SHOT_METHODS["clip_adapter"],
        config_class=VPTConfig,
        fit=fit_random_visual_prompts,
        trains_image_encoder=True,
    )
    monkeypatch.setattr("hf_clip_variants.adapters.clip_adapter.few_shot.CLIP_ADAPTER", row)
    task = load_task(Plan("base_to_new", "emoji", emoji_folder), [1], [1], templates="icons")
    runner = FewShotRunner(EMOJI_CLIP, tmp_path, [task], ["clip_adapter"], [1], profile="tiny")
    predictions = []

    def remember(record, model, found):
        predictions.append([found[evaluation.name][0] for evaluation in task.evaluations])

    before = runner.zero_shot(task, finish=remember)
    record = runner.run(task, "clip_adapter", 1, 1, finish=remember)
    zero_shot, adapted = predictions
    assert any(not torch.equal(a, b) for a, b in zip(adapted, zero_shot, strict=True)), "the adapted encoder answers"

    for evaluation, predicted in zip(
        task.evaluations, adapted, strict=True
    ):  # by hand: the same prompts on a fresh classifier, pixels in
        fresh = CLIPClassifier.from_pretrained(
            EMOJI_CLIP, class_names=list(evaluation.class_names), templates="icons", dtype=torch.float32
        )
        model, _ = fit_random_visual_prompts(SimpleNamespace(seed=1, attach=partial(get_peft_model, fresh)))
        pixels = runner.processor(
            images=[evaluation.images.image(row) for row in evaluation.rows.tolist()], return_tensors="pt"
        ).pixel_values
        with torch.no_grad():
            assert torch.equal(model.eval()(pixel_values=pixels).logits.argmax(1), predicted[:, 0])
        assert accuracies(record)[evaluation.name] == (predicted[:, 0].numpy() == evaluation.labels).mean()
    assert accuracies(runner.zero_shot(task)) == accuracies(before), "and CLIP is as it was"


def test_a_target_without_its_own_templates_does_not_get_the_sources(tmp_path, tiny_clip_folder):
    save_images(tmp_path / "target", {"": ["notov1"]}, ("owl", "dog"))
    plan = zhou_plan(tmp_path, "cross_dataset", targets={"target": str(tmp_path / "target")})
    task = load_task(plan, [1], [1])
    runner = FewShotRunner(tiny_clip_folder, tmp_path / "work", [task], ["tip_adapter"], [1])
    runner.zero_shot(task)
    assert runner.classifier.class_names == ["dog", "owl"] and runner.classifier.config.templates == [
        "a photo of a {}."
    ]


def test_recipes_are_those_of_the_protocol_and_the_data_set(tmp_path, tiny_clip_folder):
    plan = zhou_plan(tmp_path, "base_to_new", "eurosat")
    task = load_task(plan, [1], [1])
    runner = FewShotRunner(tiny_clip_folder, tmp_path, [task], ["coop", "tip_adapter_f"], [1, 16], profile="published")
    assert runner.recipe(task, "coop", 1).context_init == "a photo of a"
    few_shot = replace(task, plan=replace(plan, protocol="few_shot"))
    assert runner.recipe(few_shot, "coop", 1).num_context_tokens == 16
    assert runner.recipe(task, "tip_adapter_f", 1).epochs == 100, "EuroSAT's"
    assert FewShotRunner(tiny_clip_folder, tmp_path, [task], ["coop"], [1]).profile == "tiny"
    with pytest.raises(ValueError, match="coop has no 'epoch'"):
        FewShotRunner(tiny_clip_folder, tmp_path, [task], ["coop"], [1], overrides={"epoch": 1})
    assert set(PROTOCOLS) == {"few_shot", "base_to_new", "cross_dataset", "domain_generalisation"}
