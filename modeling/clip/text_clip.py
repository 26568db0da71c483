"""Text for CLIP: the official cleaning, tokenisation that user text cannot break, and the official vocabulary.

Official pipeline (openai/CLIP `simple_tokenizer.py`): `ftfy.fix_text`, HTML unescaping twice, white space, lower case,
byte-level BPE. transformers' `CLIPTokenizer` lacks the first two steps: `clean_text` adds them.
"""

import gzip
import html
import importlib.util
import re
import unicodedata
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.utils import logging


logger = logging.get_logger(__name__)

OFFICIAL_TOKENIZER = (
    "openai/clip-vit-base-patch32"  # every OpenAI CLIP and open_clip's CLIP models share this vocabulary
)
CONTEXT_LENGTH = 77

_BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
_NUM_MERGES = 49152 - 256 - 2  # the file holds more; the official tokenizer reads lines 1..48894
_QUOTES = {"'": "\u02bc\u2018\u2019\u201a\u201b", '"': "\u201c\u201d\u201e\u201f"}
_STRAIGHT_QUOTES = str.maketrans({curly: straight for straight, every in _QUOTES.items() for curly in every})
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]|\x1b\\[((?:\\d|;)*)([a-zA-Z])")
_COMPATIBILITY = re.compile("[\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\u3000\ufb00-\ufb06\uff01-\uffef]")


@cache
def _ftfy():
    try:
        import ftfy
    except ImportError:
        logger.warning(
            "ftfy is not installed: clean_text repairs no wrongly decoded text (all else is as in the official one); "
            "pip install ftfy"
        )
        return None
    return ftfy


def clean_text(text: str) -> str:
    """The official cleaning before tokenisation: mend Unicode, unescape HTML twice, collapse white space, lower-case.

    Needs `ftfy` to equal the official code. Without it the result is **approximate**: quotes, ligatures, character
    width, control characters and NFC are done here, wrongly decoded text ("schÃ¶n") stays as it is, and a warning is
    logged once.

    Python's `lower()` knows the Greek final sigma, which the lower-casing inside `CLIPTokenizer` does not.

    Example:

    ```python
    >>> from hf_clip_variants.modeling.clip.text_clip import clean_text

    >>> clean_text(" Tom &amp;amp;  Jerry ")
    'tom & jerry'
    ```
    """
    ftfy = _ftfy()
    if ftfy is not None:
        text = ftfy.fix_text(text)
    else:
        text = _CONTROL.sub("", html.unescape(text).translate(_STRAIGHT_QUOTES))
        text = _COMPATIBILITY.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
        text = unicodedata.normalize("NFC", text)
    text = html.unescape(html.unescape(text))
    return re.sub(r"\s+", " ", text).strip().lower()


def tokenize_texts(
    tokenizer,
    texts: Sequence[str],
    max_length: int | None = None,
    clean: bool = False,
    what: str = "candidate_labels",
    slip_truncation: bool = False,
) -> list[list[int]]:
    """Token ids of user text, one list a text, with SOS and EOS and without padding.

    Whatever users type is text: special tokens written out (`<|endoftext|>`) become ordinary tokens, so the row's only
    EOS is its last id. (The official tokenizer and a bare `CLIPTokenizer` make them the real special ids, which moves
    the pooled position.)

    Args:
        tokenizer: any fast transformers tokenizer.
        texts: a list of strings.
        max_length: longest row, SOS and EOS included; `None` is the tokenizer's `model_max_length`. Longer texts are
            cut, EOS is kept, and one warning names the first of them.
        clean: apply `clean_text` first.
        what: the argument's name for messages.
        slip_truncation: cut long texts as SLIP's code does, end token and all. Models then pool at the start token, and all
            long texts have one embedding: for comparison with SLIP's numbers only.

    Raises:
        ValueError: a single string instead of a list, no text, a text that is no string, blank (also after cleaning)
            or holds a lone surrogate; the message names the index.

    Example:

    ```python
    >>> from hf_clip_variants.modeling.clip.text_clip import official_tokenizer, tokenize_texts

    >>> tokenize_texts(official_tokenizer(), ["a photo of a cat"])
    [[49406, 320, 1125, 539, 320, 2368, 49407]]
    ```
    """
    if slip_truncation:
        whole = encode_texts(tokenizer, texts, clean=clean, what=what, return_attention_mask=False, verbose=False)
        return [ids[: max_length or tokenizer.model_max_length] for ids in whole["input_ids"]]
    encoded = encode_texts(
        tokenizer, texts, max_length=max_length, clean=clean, what=what, truncation=True, return_attention_mask=False
    )
    return encoded["input_ids"]


def encode_texts(
    tokenizer,
    texts: Sequence[str],
    *,
    clean: bool = False,
    what: str = "text",
    max_length: int | None = None,
    **kwargs,
):
    """`tokenizer(texts, **kwargs)` with the checks and promises of `tokenize_texts`; returns its `BatchEncoding`.

    Use it where masks, padding or tensors are wanted (`padding=True, return_tensors="pt"`); nothing is cut unless
    `truncation` is passed.
    """
    texts = check_texts(texts, what, clean)
    if max_length is None and tokenizer.model_max_length < 1_000_000:  # transformers writes 1e30 where it is unknown
        max_length = tokenizer.model_max_length
    kwargs["split_special_tokens"] = True
    if max_length is not None and (kwargs.get("truncation") or kwargs.get("padding") == "max_length"):
        kwargs["max_length"] = max_length
    elif kwargs.get("truncation") is True:
        del kwargs["truncation"]  # nothing says how long: transformers would only log that it ignores it
    encoded = tokenizer(texts, **kwargs)
    if kwargs.get("truncation"):
        _warn_of_truncation(encoded, texts, what, max_length)
    if kwargs.get("add_special_tokens", True) and tokenizer.eos_token_id is not None:
        _check_single_eos(encoded, texts, what, tokenizer)
    return encoded


def check_texts(texts: Sequence[str], what: str = "text", clean: bool = False) -> list[str]:
    """The texts as a list, cleaned if asked; ValueError (see `tokenize_texts`) naming `what` and the index."""
    if isinstance(texts, str | bytes):
        raise ValueError(f"{what}: got the single string {texts!r}, expected a list of strings")
    texts = list(texts)
    if not texts:
        raise ValueError(f"{what} is empty")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{what}[{index}]: expected a string, got {type(text).__name__} ({text!r})")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{what}[{index}]: {text!r} has a lone surrogate at position {error.start}, which is not valid Unicode"
            ) from None
        cleaned = clean_text(text) if clean else text
        if not cleaned.strip():
            raise ValueError(f"{what}[{index}]: {text!r} is blank{' after cleaning' if text.strip() else ''}")
        texts[index] = cleaned
    return texts


def _warn_of_truncation(encoded, texts: list[str], what: str, max_length: int):
    cut = [index for index, encoding in enumerate(encoded.encodings or ()) if encoding.overflowing]
    if cut:
        others = f" (and {len(cut) - 1} more)" if len(cut) > 1 else ""
        name = f"{what}[{cut[0]}]"
        shown = texts[cut[0]] if len(texts[cut[0]]) <= 60 else texts[cut[0]][:57] + "..."
        warnings.warn(
            f"{name}: {shown!r} is longer than {max_length} tokens and was cut, keeping the end token{others}",
            stacklevel=4,
        )


def _check_single_eos(encoded, texts: list[str], what: str, tokenizer):
    """A tokenizer may still emit EOS inside a text: as its unknown token, or as an added token not called special."""
    eos = tokenizer.eos_token_id
    for index, encoding in enumerate(encoded.encodings or ()):
        ids = encoding.ids
        if ids.count(eos) > 1 and any(
            token == eos and not special for token, special in zip(ids, encoding.special_tokens_mask, strict=True)
        ):
            raise ValueError(
                f"{what}[{index}]: {texts[index]!r} contains the end token {tokenizer.eos_token!r} (or characters "
                "that this tokenizer knows only as that token)"
            )


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

        hf_hub_download(
            OFFICIAL_TOKENIZER, "tokenizer.json"
        )  # one file: fails ten times sooner when there is no network
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
