"""The official vocabulary (equality with OpenAI's: tests/parity)."""

import pytest

from hf_clip_variants.modeling.clip import text_clip
from hf_clip_variants.modeling.clip.text_clip import official_tokenizer, tokenize_texts


def test_official_tokenizer_from_a_folder(tmp_path):
    from_file = official_tokenizer(text_clip._open_clip_bpe_file())
    assert (len(from_file), from_file.model_max_length, from_file.bos_token_id, from_file.eos_token_id) == (
        49408,
        77,
        49406,
        49407,
    )
    from_file.save_pretrained(tmp_path)
    loaded = official_tokenizer(tmp_path)
    assert tokenize_texts(loaded, ["a photo of a cat"]) == [[49406, 320, 1125, 539, 320, 2368, 49407]]


def test_official_tokenizer_not_found(monkeypatch, tmp_path):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(text_clip, "OFFICIAL_TOKENIZER", "no-such-owner/not-cached")
    monkeypatch.setattr(text_clip, "_open_clip_bpe_file", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(OSError, match=r"no CLIP tokenizer found.*no network.*pip install open_clip_torch"):
        official_tokenizer()


def test_damaged_vocabulary_file(tmp_path):
    import gzip

    file = tmp_path / "bpe.txt.gz"
    file.write_bytes(gzip.compress(b"#version\na b\n"))
    with pytest.raises(OSError, match=r"bpe\.txt\.gz: expected .* 48894 merges"):
        official_tokenizer(file)
