"""The place of the class name in a template, and prompts of each class."""

import json

import pytest

from hf_clip_variants.modeling.dual_encoders.prompts import (
    format_prompts,
    prompt_counts,
    resolve_class_prompts,
    resolve_templates,
    with_slot,
)


CLASSES = ["red_apple", "cat"]
PROMPTS = {"cat": ["a furry cat", "whiskers, paws", "a {c} at home"], "red apple": ["a round fruit"]}


@pytest.mark.parametrize("written", ["a photo of a {}.", "a photo of a {c}.", "a photo of a {classname}."])
def test_the_place_of_the_class_name_is_written_in_three_ways(written):
    assert with_slot(written) == "a photo of a {}."
    assert resolve_templates([written, "{c}"]) == ["a photo of a {}.", "{}"]


@pytest.mark.parametrize(
    "template",
    ["{{}}", "a {{c}}", "{:3000000000}", "{0}", "{!r}", "{0.__class__}", "{} {x}", "a } {}", "{", "{{}", "{:{}}"],
)
def test_escaped_braces_and_format_strings_are_refused_by_name(template):
    """`{{}}` would make all classes equal, `{:3000000000}` fill the memory."""
    for given in (template, [template, "{}"]):
        with pytest.raises(ValueError) as caught:
            resolve_templates(given)
        assert str(caught.value).startswith(f"templates: template {template!r} has braces other than {{}} or {{c}}")
    with pytest.raises(ValueError, match=r"templates\['cat'\]: prompt .* has braces other than"):
        resolve_class_prompts({"cat": ["a cat", template]}, ["cat"])


def test_names_with_braces_are_filled_in_as_they_are():
    assert format_prompts(["a {} {c} b"], ["the {}."]) == ["the a {} {c} b."]


def test_prompts_of_each_class_are_matched_by_name_and_keep_their_number():
    found = resolve_templates(PROMPTS, CLASSES)
    assert found == {"red_apple": ["a round fruit"], "cat": ["a furry cat", "whiskers, paws", "a {} at home"]}
    assert list(found) == CLASSES and prompt_counts(CLASSES, found) == [1, 3]
    assert format_prompts(CLASSES, found) == ["a round fruit", "a furry cat", "whiskers, paws", "a cat at home"]
    assert resolve_templates({"cat": "one sentence"}, ["cat"]) == {"cat": ["one sentence"]}


def test_a_name_that_is_written_out_wins_over_one_that_is_alike():
    assert list(resolve_class_prompts({"missile_": ["x"], "missile": ["y"]}, ["missile", "missile_"]).values()) == [
        ["y"],
        ["x"],
    ]


def test_prompts_of_each_class_come_from_a_json_file(tmp_path):
    path = tmp_path / "cupl.json"
    path.write_text("\ufeff" + json.dumps(PROMPTS), encoding="utf-8")
    for source in (path, str(path)):
        assert resolve_templates(source, CLASSES) == resolve_templates(PROMPTS, CLASSES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"cat": ["x"], "cat": ["y"]}', "cupl.json: 'cat' is a key more than once"),
        ('{"cat": [', "cupl.json: Expecting value"),
        ('"a {}"', "holds a JSON str, expected a list of templates, or an object with the prompts of each class"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "cupl.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"templates: .*{message}"):
        resolve_templates(path, ["cat"])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"cat": ["x"]}, "need the 2 class names as keys; 1 classes have none: 'red_apple'"),
        (PROMPTS | {"dgo": ["x"]}, "1 keys are no class: 'dgo'"),
        ({"dgo": ["x"], "cat": ["x"]}, "1 classes have none: 'red_apple'; 1 keys are no class: 'dgo'"),
        (PROMPTS | {"Red_Apple": ["x"]}, "1 classes have none: 'red_apple'; 2 keys are no class: 'red apple', 'Red_"),
        (PROMPTS | {"cat": []}, r"templates\['cat'\] is empty"),
        (PROMPTS | {"cat": 3}, r"templates\['cat'\] is a int, expected a list of prompts"),
        (PROMPTS | {"cat": ["x", " "]}, r"templates\['cat'\]: prompt ' ' is blank"),
        (PROMPTS | {"cat": [None]}, r"templates\['cat'\]: prompt None is a NoneType"),
        (PROMPTS | {"cat": ["{} and {}"]}, "more than one {}; at most one marks the place"),
        ({}, "2 classes have none: 'red_apple', 'cat'"),
    ],
)
def test_prompts_that_do_not_fit_the_classes_are_named(prompts, message):
    with pytest.raises(ValueError, match=message):
        resolve_templates(prompts, CLASSES)


def test_prompts_of_each_class_are_refused_where_there_are_no_classes():
    with pytest.raises(ValueError, match="templates: got prompts of each class, expected templates for all classes"):
        resolve_templates(PROMPTS)
