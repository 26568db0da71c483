"""Cleaning, ids and decoding against OpenAI's tokenizer, with the vocabulary that open_clip ships."""

import hashlib
import json

import pytest
import torch
from parity_fixtures import load_fixture

from hf_clip_variants.modeling.clip import text_clip
from hf_clip_variants.modeling.clip.text_clip import clean_text, official_tokenizer, tokenize_texts


pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:.*was cut, keeping the end token:UserWarning")]

SPECIAL = ("<|startoftext|>", "<|endoftext|>")


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("clip_tokenizer")


@pytest.fixture(scope="module")
def cases(fixture):
    cases = json.loads((fixture.folder / "cases.json").read_text(encoding="utf-8"))
    assert len(cases) == len(fixture.outputs["ids77"])
    return cases


@pytest.fixture(scope="module")
def tokenizer(fixture):
    file = text_clip._open_clip_bpe_file()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == fixture.meta["bpe_sha256"]
    return official_tokenizer(file)


def is_plain(case):
    """`tokenize_texts` differs on purpose for blank texts and for special tokens in the text."""
    return case["cleaned"] and not any(token in case["cleaned"] for token in SPECIAL)


def test_cleaned_texts_equal_official(cases):
    assert {case["text"]: clean_text(case["text"]) for case in cases} == {
        case["text"]: case["cleaned"] for case in cases
    }


def test_token_ids_equal_official(cases, tokenizer):
    for case in cases:
        ids = tokenizer(clean_text(case["text"]), add_special_tokens=False, verbose=False)["input_ids"]
        assert ids == case["bpe_ids"], case["text"]
        assert len(tokenizer(clean_text(case["text"]), verbose=False)["input_ids"]) == case["n_tokens_with_specials"]


def test_decoded_texts_equal_official(cases, tokenizer):
    for case in cases:
        assert tokenizer.decode(case["bpe_ids"]) == case["decoded"].strip(), case["text"]


@pytest.mark.parametrize("name", ["ids77", "ctx16"])
def test_padded_ids_equal_official(fixture, cases, tokenizer, name):
    expected = fixture.outputs[name]
    plain = [index for index, case in enumerate(cases) if is_plain(case)]
    rows = tokenize_texts(tokenizer, [cases[i]["text"] for i in plain], max_length=expected.shape[1], clean=True)
    padded = torch.zeros(len(plain), expected.shape[1], dtype=torch.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    assert plain
    assert torch.equal(padded, expected[plain])


def test_padded_ids_equal_slip(fixture, cases, tokenizer):
    expected = fixture.outputs["slip_ids77"]
    plain = [index for index, case in enumerate(cases) if is_plain(case)]
    rows = tokenize_texts(
        tokenizer, [cases[i]["text"] for i in plain], max_length=expected.shape[1], clean=True, slip_truncation=True
    )
    padded = torch.zeros(len(plain), expected.shape[1], dtype=torch.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    assert torch.equal(padded, expected[plain])


def test_special_tokens_in_text_are_plain_text(cases, tokenizer):
    for text in [case["text"] for case in cases if any(token in case["cleaned"] for token in SPECIAL)]:
        (ids,) = tokenize_texts(tokenizer, [text], clean=True)
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert not set(ids[1:-1]) & {tokenizer.bos_token_id, tokenizer.eos_token_id}


def test_open_clip_vocabulary_is_used_offline(tokenizer, monkeypatch):
    monkeypatch.setattr(text_clip, "OFFICIAL_TOKENIZER", "no-such-owner/not-cached")
    assert official_tokenizer().get_vocab() == tokenizer.get_vocab()
