"""The official vocabulary of OpenAI's CLIP, for converters. Text to ids: `modeling/dual_encoders/prompts.py`."""

import gzip
import importlib.util
from pathlib import Path

from transformers import CLIPTokenizer

from ..dual_encoders.prompts import check_texts, encode_texts, tokenize_texts
from ..dual_encoders.text_cleaning import clean_text


# every OpenAI CLIP and open_clip's CLIP models share this vocabulary
OFFICIAL_TOKENIZER = "openai/clip-vit-base-patch32"
CONTEXT_LENGTH = 77

_BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
_NUM_MERGES = 49152 - 256 - 2  # the file holds more; the official tokenizer reads lines 1..48894


def official_tokenizer(source: str | Path | None = None) -> CLIPTokenizer:
    """OpenAI's CLIP tokenizer as a transformers `CLIPTokenizer`, from whatever is at hand.

    Args:
        source: a Hub id, a folder, or a `bpe_simple_vocab_16e6.txt.gz`. `None` takes, in this order, the Hub cache's
            copy of `openai/clip-vit-base-patch32`, the vocabulary inside an installed open_clip (the same tokens, no
            network), the Hub.

    Raises:
        OSError: nothing could be read; the message says what was tried.

    Example:

    ```python
    >>> from hf_clip_variants.modeling.clip.text_clip import official_tokenizer

    >>> official_tokenizer().eos_token_id
    49407
    ```
    """
    if source is not None:
        if str(source).endswith(".txt.gz"):
            return _tokenizer_from_bpe_file(Path(source))
        return CLIPTokenizer.from_pretrained(source)
    try:
        # Without a tokenizer.json to go by, transformers would build an empty vocabulary.
        return _checked(CLIPTokenizer.from_pretrained(OFFICIAL_TOKENIZER, local_files_only=True))
    except (OSError, ValueError, TypeError):
        bpe_file = _open_clip_bpe_file()
    if bpe_file is not None:
        return _tokenizer_from_bpe_file(bpe_file)
    try:
        from huggingface_hub import hf_hub_download

        # one file: fails ten times sooner when there is no network
        hf_hub_download(OFFICIAL_TOKENIZER, "tokenizer.json")
        return _checked(CLIPTokenizer.from_pretrained(OFFICIAL_TOKENIZER))
    except Exception as error:
        raise OSError(
            f"source: no CLIP tokenizer found. {OFFICIAL_TOKENIZER} is neither cached nor reachable ({error}), and "
            f"open_clip, which ships {_BPE_FILE}, is not installed. Pass a folder, another Hub id or the path of that "
            "file, or pip install open_clip_torch"
        ) from error


def _checked(tokenizer: CLIPTokenizer) -> CLIPTokenizer:
    if len(tokenizer) != _NUM_MERGES + 512 + 2:
        raise ValueError(f"expected {_NUM_MERGES + 512 + 2} tokens, got {len(tokenizer)}")
    return tokenizer


def _open_clip_bpe_file() -> Path | None:
    spec = importlib.util.find_spec("open_clip")  # finds without importing: that takes five seconds
    files = [Path(folder) / _BPE_FILE for folder in (spec.submodule_search_locations or ())] if spec else []
    return next((file for file in files if file.is_file()), None)


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes in the official vocabulary's order: printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return [chr(byte) for byte in printable] + [chr(256 + rank) for rank in range(len(others))]


def _tokenizer_from_bpe_file(path: Path) -> CLIPTokenizer:
    """Vocabulary: 256 byte symbols, the same with `</w>`, the merged pairs, start and end of text."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 1 + _NUM_MERGES]
    merges = [tuple(line.split()) for line in lines]
    if len(merges) != _NUM_MERGES or any(len(pair) != 2 for pair in merges):
        raise OSError(f"{path}: expected a header line and at least {_NUM_MERGES} merges of two symbols")
    symbols = _byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT_LENGTH)


__all__ = ["check_texts", "clean_text", "encode_texts", "official_tokenizer", "tokenize_texts"]
