"""OpenAI's cleaning of text before tokenisation. Travels with processors that use it (`clean_text=True`).

Official pipeline (openai/CLIP `simple_tokenizer.py`): `ftfy.fix_text`, HTML unescaping twice, white space, lower case,
byte-level BPE. transformers' `CLIPTokenizer` lacks the first two steps.
"""

import html
import re
import unicodedata
from functools import cache

from transformers.utils import logging


logger = logging.get_logger(__name__)

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
    >>> from hf_clip_variants.modeling.dual_encoders.text_cleaning import clean_text

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


__all__ = ["clean_text"]
