import pytest

from hf_clip_variants.modeling.dual_encoders.prompts import (
    TEMPLATE_SETS,
    format_prompts,
    resolve_class_names,
    resolve_templates,
)


def test_templates_come_from_one_a_list_a_named_set_or_a_file(tmp_path):
    lines = tmp_path / "mine.txt"
    lines.write_text("# my own\na sketch of {}\n\na stamp showing {}\n", encoding="utf-8")
    listed = tmp_path / "mine.json"
    listed.write_text('["a {}"]', encoding="utf-8")

    assert resolve_templates(None) == ["a photo of a {}."]
    assert resolve_templates("my {}") == ["my {}"]
    assert resolve_templates(["a {}", "the {}"]) == ["a {}", "the {}"]
    assert resolve_templates("general") == list(TEMPLATE_SETS["general"])
    assert resolve_templates(str(lines)) == resolve_templates(lines) == ["a sketch of {}", "a stamp showing {}"]
    assert resolve_templates(listed) == ["a {}"]


@pytest.mark.parametrize("name", TEMPLATE_SETS)
def test_every_named_set_is_valid(name):
    assert resolve_templates(name) == list(TEMPLATE_SETS[name])


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ("a photo", "template 'a photo' has no {}"),
        (["a {}", "a photo"], "template 'a photo' has no {}"),
        (["{} and {}"], "more than one {}"),
        ([], "templates is empty"),
        (["a {}", "a {}"], "given more than once"),
        ([3], "is a int, expected a string"),
        (["{} {x}"], "not a format string"),
        ("fotos", "neither a named set"),
    ],
)
def test_bad_templates_are_named(templates, message):
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("}", r"\}")):
        resolve_templates(templates)


def test_a_comma_separated_string_is_split_and_never_read_as_characters():
    assert resolve_class_names("cat, dog") == ["cat", "dog"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "class_names is empty"),
        ("", "class_names is empty"),
        (["cat", " "], r"class_names\[1\] is blank"),
        (["cat", None], r"class_names\[1\] is None"),
        (["cat", "dog", "cat"], "'cat' is given twice, at 0 and 2"),
        ({0: "cat", 2: "dog"}, r"keys must be 0\.\.1"),
    ],
)
def test_bad_class_names_are_named(names, message):
    with pytest.raises(ValueError, match=message):
        resolve_class_names(names)


def test_prompts_are_class_by_class_and_read_underscores_as_spaces():
    assert format_prompts(["red_apple", "cat"], ["a {}", "the {}."]) == [
        "a red apple",
        "the red apple.",
        "a cat",
        "the cat.",
    ]
