"""Class names, templates and user text: checked, cleaned, safely tokenised (equality with OpenAI's: tests/parity)."""

import time
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_clip_variants.modeling.clip.text_clip import official_tokenizer
from hf_clip_variants.modeling.dual_encoders import text_cleaning
from hf_clip_variants.modeling.dual_encoders.prompts import (
    check_texts,
    encode_texts,
    format_prompts,
    read_class_names,
    resolve_class_names,
    resolve_templates,
    tokenize_texts,
)
from hf_clip_variants.modeling.dual_encoders.template_sets import TEMPLATE_SETS
from hf_clip_variants.modeling.dual_encoders.text_cleaning import clean_text


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
        (3, "templates: got int, expected a string or a list"),
        (b"{}", "templates: got bytes, expected a string or a list"),
        (torch.tensor(3), "templates: got Tensor, expected a string or a list"),
        (["{} {x}"], "has braces other than {}"),
        ("fotos", "neither a named set"),
    ],
)
def test_bad_templates_are_named(templates, message):
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("}", r"\}")):
        resolve_templates(templates)


def test_a_comma_separated_string_is_split_and_never_read_as_characters():
    assert resolve_class_names("cat, dog") == ["cat", "dog"]
    assert resolve_class_names('"salt, pepper", cat,5" disk,') == ["salt, pepper", "cat", '5" disk']
    with pytest.raises(ValueError, match="labels: got int, expected a list of names"):
        resolve_class_names(3, "labels")
    assert resolve_class_names("cat\ndog\n") == ["cat", "dog"], "as $(cat classes.txt) gives them"


def test_names_are_read_from_text_files_a_line_each(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("\ufeffcat\r\nsalt, pepper \r\nhot\u2028dog\r\n\r\n", encoding="utf-8")
    names = ["cat", "salt, pepper", "hot\u2028dog"]
    assert resolve_class_names(str(file)) == resolve_class_names(file) == read_class_names(file) == names
    file.write_text("cat, dog\n")
    assert resolve_class_names(file) == ["cat", "dog"], "commas separate names in a file of one line"


def test_names_are_read_from_json_as_a_list_or_a_mapping(tmp_path):
    file = tmp_path / "classes.json"
    file.write_text('["cat", "salt, pepper"]')
    assert resolve_class_names(str(file)) == ["cat", "salt, pepper"]
    for text in ('{"1": "dog", "0": "cat"}', '{"dog": 1, "cat": 0}'):  # as id2label and as label2id
        file.write_text(text)
        assert read_class_names(file) == {"1": "dog", "0": "cat"} and resolve_class_names(file) == ["cat", "dog"]
    file.write_text('{"7": "dog", "n02": "cat"}')
    assert read_class_names(file) == {"7": "dog", "n02": "cat"}, "of a data set whose labels have gaps or are text"


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("gone.txt", None, FileNotFoundError, "--classes: no such file: .*gone.txt"),
        ("gone.json", None, FileNotFoundError, "--classes: no such file: .*gone.json"),
        ("names.csv", b"cat,dog", ValueError, "names.csv is a file of another kind than .txt and .json"),
        ("blank.txt", b"cat\n\ndog\n", ValueError, "blank.txt, line 2: blank; want a name in each line"),
        ("empty.txt", b" \n", ValueError, "--classes is empty"),
        ("old.txt", "caf\xe9\ncat".encode("latin-1"), ValueError, "old.txt is not UTF-8 text"),
        ("bad.json", b"[cat]", ValueError, "bad.json is not JSON"),
        ("number.json", b"3", ValueError, "number.json holds a JSON int; want a list of names, or a mapping"),
        ("pairs.json", b'{"0": ["n01", "cat"]}', ValueError, "pairs.json: the name of '0' is \\['n01', 'cat'\\]"),
        ("twice.json", b'{"cat": 0, "dog": 0}', ValueError, "twice.json: 'cat' and 'dog' have the same label 0"),
    ],
)
def test_bad_files_of_names_are_named(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        resolve_class_names(str(tmp_path / name), "--classes")


def test_a_class_may_have_the_name_of_a_folder_or_file_without_suffix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").write_text("x")
    assert resolve_class_names("cat") == ["cat"] and resolve_class_names("dog") == ["dog"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "class_names is empty"),
        ("", "class_names is empty"),
        (["cat", " "], r"class_names\[1\] is blank"),
        (["cat", None], r"class_names\[1\] is None"),
        (["cat", "dog", "cat"], "'cat' is given twice, at 0 and 2"),
        ({0: "cat", 2: "dog"}, r"keys must be 0\.\.1"),
        ({"0": "cat", "x": "dog"}, r"keys must be 0\.\.1"),
        ({"cat", "dog"}, "class_names: got a set, which has no order; want a list"),
        (frozenset(["cat"]), "class_names: got a frozenset, which has no order"),
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


# ---- text to token ids

LONG = "a very long label " * 40
BOS, EOS = 4036, 4037


def word_tokenizer(**special):
    """Whole words, and EOS for every unknown one: the way to get an EOS into a text that holds none."""
    backend = Tokenizer(models.WordLevel({"[B]": 0, "[E]": 1, "cat": 2, "dog": 3}, unk_token="[E]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[B] $A [E]", special_tokens=[("[B]", 0), ("[E]", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="[B]", eos_token="[E]", pad_token="[E]", **special
    )


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (" Tom &amp;amp;  Jerry\n", "tom & jerry"),
        ("&amp;amp;amp; x", "& x"),
        ("“curly” ‘quotes’", "\"curly\" 'quotes'"),
        ("ﬁne ｆｕｌｌ　ｗｉｄｔｈ", "fine full width"),
        ("Cafe\u0301", "café"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("x\0y\ufeff", "xy"),
        ("a <|ENDOFTEXT|>", "a <|endoftext|>"),
    ],
)
def test_cleaning_with_and_without_ftfy(raw, clean, monkeypatch):
    assert clean_text(raw) == clean
    monkeypatch.setattr(text_cleaning, "_ftfy", lambda: None)
    assert clean_text(raw) == clean


def test_only_ftfy_mends_wrongly_decoded_text(monkeypatch):
    assert clean_text("schÃ¶n") == "schön"
    text_cleaning._ftfy.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    try:
        assert clean_text("schÃ¶n") == "schã¶n"
    finally:
        text_cleaning._ftfy.cache_clear()


@pytest.mark.parametrize(
    "typed", ["<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "a<|endoftext|>b <|endoftext|>"]
)
@pytest.mark.parametrize("clean", [False, True])
def test_special_tokens_typed_by_users_are_text(typed, clean):
    ids = tokenize_texts(tiny_tokenizer(), [typed], clean=clean)[0]
    assert ids[0] == BOS and ids[-1] == EOS
    assert not {BOS, EOS} & set(ids[1:-1]) and len(ids) > 4
    assert tiny_tokenizer().decode(ids[1:-1]).replace(" ", "") == typed.lower().replace(" ", "")


def test_slip_truncation_cuts_the_end_token_off_long_texts_only():
    tokenizer = tiny_tokenizer()
    short, long = tokenize_texts(tokenizer, ["a cat", LONG], max_length=16, slip_truncation=True)
    whole = tokenize_texts(tokenizer, [LONG], max_length=10_000)[0]
    assert short[-1] == EOS and long == whole[:16] and EOS not in long


def test_the_tokenizer_is_left_as_it_was():
    tokenizer = tiny_tokenizer()
    tokenize_texts(tokenizer, ["cat"])
    assert tokenizer("<|endoftext|>")["input_ids"] == [BOS, EOS, EOS]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4))
def test_any_text_gives_one_eos_at_the_end(texts):
    if any(not text.strip() for text in texts):
        with pytest.raises(ValueError, match="is blank"):
            tokenize_texts(tiny_tokenizer(), texts)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = tokenize_texts(tiny_tokenizer(), texts)
        assert rows == [tokenize_texts(tiny_tokenizer(), [text])[0] for text in texts]
    for row in rows:
        assert row[0] == BOS and row.index(EOS) == len(row) - 1 and len(row) <= 32


@pytest.mark.parametrize("text", ["a\0b", "\x07", "שלום עולם", "🦄🏳️‍🌈", "\u200b", "<b>&amp;", "../../x", "CON"])
def test_odd_text_is_fine(text):
    assert len(tokenize_texts(tiny_tokenizer(), [text])[0]) > 2


def test_truncation_keeps_eos_and_warns_once():
    tokenizer = tiny_tokenizer()
    with pytest.warns(UserWarning) as caught:
        rows = tokenize_texts(tokenizer, ["cat", LONG, LONG.upper()])
    assert len(caught) == 1 and caught[0].filename == __file__
    message = str(caught[0].message)
    assert (
        message.startswith("candidate_labels[1]: 'a very long") and "32 tokens" in message and "and 1 more" in message
    )
    assert len(message) < 200
    assert [len(row) for row in rows] == [3, 32, 32] and all(row[-1] == EOS for row in rows)
    with pytest.warns(UserWarning, match=r"^class_names\[0\]: .* 6 tokens"):
        rows = tokenize_texts(tokenizer, [LONG], max_length=6, what="class_names")
    assert len(rows[0]) == 6 and rows[0][-1] == EOS


def test_no_warning_at_the_exact_length(recwarn):
    length = len(tokenize_texts(tiny_tokenizer(), ["red apple"])[0])
    tokenize_texts(tiny_tokenizer(), ["red apple"], max_length=length)
    assert not recwarn.list


def test_a_tokenizer_without_a_length_does_not_cut(recwarn):
    assert len(tokenize_texts(word_tokenizer(), ["cat dog " * 50])[0]) == 102
    assert not recwarn.list


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "candidate_labels is empty"),
        ("cat, dog", "candidate_labels: got the single string 'cat, dog', expected a list"),
        (["cat", ""], r"candidate_labels\[1\]: '' is blank"),
        (["cat", " \n\t\u3000"], r"candidate_labels\[1\]: .* is blank"),
        (["cat", "dog", "x\ud800y"], r"candidate_labels\[2\]: .*lone surrogate at position 1"),
        (["cat", 7], r"candidate_labels\[1\]: expected a string, got int"),
        ([None], r"candidate_labels\[0\]: expected a string, got NoneType"),
        ([["cat"]], r"candidate_labels\[0\]: expected a string, got list"),
    ],
)
def test_bad_texts(texts, message):
    for clean in (False, True):
        with pytest.raises(ValueError, match=message):
            tokenize_texts(tiny_tokenizer(), texts, clean=clean)


def test_blank_after_cleaning():
    assert check_texts(["\x07"]) == ["\x07"]
    with pytest.raises(ValueError, match=r"names\[0\]: '\\x07' is blank after cleaning"):
        check_texts(["\x07"], "names", clean=True)


def test_texts_given_are_not_changed():
    texts = ["A  Cat"]
    tokenize_texts(tiny_tokenizer(), texts, clean=True)
    assert texts == ["A  Cat"]


@pytest.mark.parametrize("padding", [False, True])
def test_eos_inside_a_text_is_an_error(padding):
    tokenizer = word_tokenizer(model_max_length=8)
    rows = encode_texts(tokenizer, ["cat", "cat dog"], padding=padding)["input_ids"]
    assert rows == ([[0, 2, 1, 1], [0, 2, 3, 1]] if padding else [[0, 2, 1], [0, 2, 3, 1]])
    with pytest.raises(ValueError, match=r"text\[1\]: 'cat bird' contains the end token '\[E\]'"):
        encode_texts(tokenizer, ["cat", "cat bird"], padding=padding)


def test_a_tokenizer_without_its_vocabulary_is_named(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer: CLIPTokenizer with 2 tokens .*text\[0\].*tokenizer.json"):
        encode_texts(tokenizer, ["a cat"])


def test_encode_texts_passes_everything_on():
    encoded = encode_texts(
        tiny_tokenizer(), ["cat", "red apple"], padding="max_length", max_length=7, return_tensors="pt"
    )
    assert encoded["input_ids"].shape == encoded["attention_mask"].shape == (2, 7)
    rows = tokenize_texts(tiny_tokenizer(), ["cat", "red apple"])
    assert encoded["attention_mask"].sum(1).tolist() == [len(row) for row in rows]
    assert [ids[mask.bool()].tolist() for ids, mask in zip(*encoded.values(), strict=True)] == rows
    assert (
        len(encode_texts(tiny_tokenizer(), [LONG], verbose=False)["input_ids"][0]) > 100
    )  # nobody asked for truncation


def test_many_prompts_take_little_longer_than_one_bare_call():
    prompts = [f"a photo of the number {index}." for index in range(5_000)]
    tokenizer = official_tokenizer()

    def seconds(function):
        start = time.process_time()
        function()
        return time.process_time() - start

    ratios = []
    for _ in range(2):
        bare = seconds(lambda: tokenizer(prompts, truncation=True, max_length=77, return_attention_mask=False))
        ratios.append(seconds(lambda: tokenize_texts(tokenizer, prompts)) / bare)
    assert min(ratios) < 1.5, ratios
