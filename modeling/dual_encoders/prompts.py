"""What users write, checked: class names and prompt templates, and any text as token ids.

A template is a string with exactly one `{}`, the place of the class name. Ensembles (Radford et al. 2021, section
3.1.4) average the normalised text embeddings of several templates; which set helps depends on the images, hence the
sets below, in our own wording.
"""

import html
import json
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from transformers.utils import logging


logger = logging.get_logger(__name__)


TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a {}.",),
    "general": (
        "a photo of a {}.",
        "a close-up photo of a {}.",
        "a photo of the small {}.",
        "a photo of the large {}.",
        "a blurry photo of a {}.",
        "a bright photo of the {}.",
        "a dark photo of the {}.",
        "a drawing of a {}.",
        "an illustration of the {}.",
        "a picture of one {}.",
        "a picture of many {}.",
        "a {} on a plain background.",
    ),
    "pets": ("a photo of a {}, a type of pet.", "a close-up photo of a {}, a pet.", "a photo of my {}."),
    "flowers": ("a photo of a {}, a type of flower.", "a close-up photo of a {} in bloom.", "a {} in a garden."),
    "food": ("a photo of {}, a type of food.", "a plate of {}.", "a close-up photo of {} ready to eat."),
    "aircraft": ("a photo of a {}, a type of aircraft.", "a {} in flight.", "a {} parked at an airport."),
    "cars": (
        "a photo of a {}.",
        "a photo of a {}, a type of car.",
        "a {} parked on a street.",
        "a side view of a {}.",
    ),
    "textures": ("a photo of a {} texture.", "a {} surface.", "a close-up of a {} pattern."),
    "satellite": ("a satellite photo of {}.", "an aerial view of {}.", "{} seen from above."),
    "actions": ("a photo of a person doing {}.", "a frame of a video of someone doing {}.", "an example of {}."),
    "scenes": ("a photo of a {}.", "a photo taken in a {}.", "a wide view of a {}."),
    "digits": ("a photo of the number {}.", "the handwritten digit {}.", "a sign showing the number {}."),
    "chinese": ("一张{}的照片。", "{}的照片", "一张{}的图片", "一张{}的特写照片", "一张模糊的{}的照片", "一幅{}的画"),
    "icons": ("an emoji of {}", "{}", "a picture of {}", "an icon of {}"),
}


def _parse_template_file(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        templates = json.loads(text)
        if not isinstance(templates, list):
            raise ValueError(f"templates: {path} holds a JSON {type(templates).__name__}, expected a list of strings")
        return templates
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def resolve_templates(templates: str | Path | Sequence[str] | None) -> list[str]:
    """Templates from one string, a list, a named set of `TEMPLATE_SETS`, or a file (JSON list, or a line each, `#`
    comments).

    `None` gives `"a photo of a {}."`. Raises ValueError for an unknown name, an empty list, a template without exactly
    one `{}` or a repeated one.

    >>> resolve_templates("pets")[0]
    'a photo of a {}, a type of pet.'
    """
    if templates is None:
        templates = TEMPLATE_SETS["photo"]
    if isinstance(templates, Path):
        templates = _parse_template_file(templates)
    elif isinstance(templates, str):
        if "{}" in templates:
            templates = [templates]
        elif templates in TEMPLATE_SETS:
            templates = TEMPLATE_SETS[templates]
        elif Path(templates).suffix in (".txt", ".json") and Path(templates).is_file():
            templates = _parse_template_file(Path(templates))
        else:
            raise ValueError(
                f"templates: template {templates!r} has no {{}}, and it is neither a named set "
                f"({', '.join(TEMPLATE_SETS)}) nor a .txt or .json file"
            )
    templates = list(templates)
    if not templates:
        raise ValueError("templates is empty")
    for template in templates:
        if not isinstance(template, str):
            raise ValueError(f"templates: {template!r} is a {type(template).__name__}, expected a string")
        if template.count("{}") != 1:
            fault = "has no {}" if "{}" not in template else "has more than one {}"
            raise ValueError(
                f"templates: template {template!r} {fault}; exactly one marks the place of the class name"
            )
        try:
            template.format("x")
        except (IndexError, KeyError, ValueError) as error:
            raise ValueError(f"templates: template {template!r} is not a format string ({error})") from None
    duplicates = sorted({t for t in templates if templates.count(t) > 1})
    if duplicates:
        raise ValueError(f"templates: {duplicates[0]!r} is given more than once")
    return templates


def resolve_class_names(
    class_names: str | Sequence[str] | Mapping[int, str], argument: str = "class_names"
) -> list[str]:
    """Class names as a list, in label order; a comma-separated string is split, never read as characters.

    Underscores become spaces in the prompts only (`format_prompts`); the names themselves stay as given. Raises
    ValueError when the list is empty, a name is blank or not a string, or two names are equal.
    """
    if isinstance(class_names, str):
        class_names = [name.strip() for name in class_names.split(",") if name.strip()]
    elif isinstance(class_names, Mapping):
        if sorted(class_names) != list(range(len(class_names))):
            raise ValueError(f"{argument}: keys must be 0..{len(class_names) - 1}, got {sorted(class_names)[:5]}")
        class_names = [class_names[index] for index in range(len(class_names))]
    class_names = list(class_names)
    if not class_names:
        raise ValueError(f"{argument} is empty")
    seen: dict[str, int] = {}
    for index, name in enumerate(class_names):
        if not isinstance(name, str):
            raise ValueError(f"{argument}[{index}] is {name!r} ({type(name).__name__}), expected a string")
        if not name.strip():
            raise ValueError(f"{argument}[{index}] is blank")
        if name in seen:
            raise ValueError(f"{argument}: {name!r} is given twice, at {seen[name]} and {index}")
        seen[name] = index
    return class_names


def format_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """C x T prompts, class by class: `["a photo of a cat.", "art of the cat.", "a photo of a dog.", …]`."""
    return [template.format(name.replace("_", " ")) for name in class_names for template in templates]


# ---- text to token ids
#
# Official pipeline (openai/CLIP `simple_tokenizer.py`): `ftfy.fix_text`, HTML unescaping twice, white space, lower
# case, byte-level BPE. transformers' `CLIPTokenizer` lacks the first two steps: `clean_text` adds them.

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
    >>> from hf_clip_variants.modeling.dual_encoders.prompts import clean_text

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
        slip_truncation: cut long texts as SLIP's code does, end token and all. Models then pool at the start token,
            and all
            long texts have one embedding: for comparison with SLIP's numbers only.

    Raises:
        ValueError: a single string instead of a list, no text, a text that is no string, blank (also after cleaning)
            or holds a lone surrogate; the message names the index.

    Example:

    ```python
    >>> from hf_clip_variants.modeling.clip.text_clip import official_tokenizer
    >>> from hf_clip_variants.modeling.dual_encoders.prompts import tokenize_texts

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


__all__ = [
    "TEMPLATE_SETS",
    "check_texts",
    "clean_text",
    "encode_texts",
    "format_prompts",
    "resolve_class_names",
    "resolve_templates",
    "tokenize_texts",
]
