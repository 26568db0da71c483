"""What users write, checked: class names and prompt templates, and any text as token ids.

A template is a string with exactly one `{}`, the place of the class name. Ensembles (Radford et al. 2021, section
3.1.4) average the normalised text embeddings of several templates, or of a class's own prompts, any number of them, as
language models write them (Pratt et al. 2023, "What does a platypus look like?", CuPL).
"""

import csv
import io
import os
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from ..loading_and_saving.optional_modules import needed_module


def resolve_templates(
    templates: str | Path | Sequence[str] | Mapping[str, Sequence[str]] | None,
    class_names: Sequence[str] | None = None,
) -> list[str] | dict[str, list[str]]:
    """Templates from one string, a list, a named set (`template_sets.py`), or a file (JSON or lines, `#` comments).

    `None` gives `"a photo of a {}."`; `{c}` and `{classname}` become `{}`. With `class_names`, a mapping (or a JSON
    file of one) gives each class its own prompts, see `resolve_class_prompts`. Raises ValueError for an unknown name,
    an empty list, a template without exactly one `{}` or with other braces, and a repeated one.

    >>> resolve_templates("pets")[0]
    'a photo of a {}, a type of pet.'
    >>> resolve_templates({"dog": "a loyal pet", "cat": ["whiskers", "paws"]}, ["cat", "dog"])
    {'cat': ['whiskers', 'paws'], 'dog': ['a loyal pet']}
    """
    if templates is None:
        templates = "a photo of a {}."
    if isinstance(templates, str) and ("{" in templates or "}" in templates):
        templates = [templates]
    elif isinstance(templates, str | Path):
        wanted = f"templates: {str(templates)!r} has no {{}}"
        templates = needed_module(".template_sets", __package__, wanted).find_templates(templates)
    if isinstance(templates, Mapping):
        if class_names is None:
            raise ValueError("templates: got prompts of each class, expected templates for all classes")
        return resolve_class_prompts(templates, class_names)
    templates = [with_slot(template) for template in listed(templates, "templates", "a string or a list")]
    if duplicates := sorted({t for t in templates if templates.count(t) > 1}):
        raise ValueError(f"templates: {duplicates[0]!r} is given more than once")
    return templates


def listed(values: object, what: str, wanted: str) -> list:
    """ValueError for what is empty or cannot be a list: a number, bytes, a tensor without dimensions."""
    if isinstance(values, bytes) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise ValueError(f"{what}: got {type(values).__name__}, expected {wanted}")
    if not (found := list(values)):
        raise ValueError(f"{what} is empty")
    return found


SLOTS = ("{}", "{c}", "{classname}")  # CLIP_benchmark writes the second


def with_slot(template: str, what: str = "templates: template", needed: bool = True) -> str:
    """The template with `{}` at the place of the class name. Raises ValueError, beginning with `what`, unless there is
    exactly one place (`needed`) or at most one, for other braces, and for what is blank or no string.

    Only the place is filled: a template is not a format string (`{{}}` would drop the name, `{:999999999}` fill the
    memory).

    >>> with_slot("a photo of a {c}.")
    'a photo of a {}.'
    """
    if not isinstance(template, str):
        raise ValueError(f"{what} {template!r} is a {type(template).__name__}, expected a string")
    if not template.strip():
        raise ValueError(f"{what} {template!r} is blank")
    text = template
    for slot in SLOTS[1:]:
        text = text.replace(slot, SLOTS[0])
    count, rest = text.count(SLOTS[0]), text.replace(SLOTS[0], "")
    if "{" in rest or "}" in rest:
        fault = f"has braces other than {' or '.join(SLOTS)}"
    elif count > 1:
        fault = "has more than one {}"
    elif needed and not count:
        fault = "has no {}"
    else:
        return text
    wanted = "exactly" if needed else "at most"
    raise ValueError(f"{what} {template!r} {fault}; {wanted} one marks the place of the class name")


def resolve_class_prompts(
    prompts: Mapping[str, str | Sequence[str]], class_names: Sequence[str]
) -> dict[str, list[str]]:
    """The prompts of each class, in the order of `class_names`.

    A key is a class name, or differs from one in case, white space and underscores only. A prompt is a sentence; `{}`
    in it (or `{c}`) is the place of the class name, and may be missing. Raises ValueError that names classes without
    prompts and keys that are no class, blank prompts, and braces that are no place of the name.

    >>> resolve_class_prompts({"red apple": ["a round fruit", "a {c}"]}, ["red_apple"])
    {'red_apple': ['a round fruit', 'a {}']}
    """
    if not class_names or isinstance(class_names, str):
        raise ValueError(f"class_names: {class_names!r}, expected the classes that the prompts are of")
    given = dict(prompts)
    key_of = {name: name for name in class_names if name in given}
    other_keys: dict[str, list] = {}
    for key in given:
        if key not in key_of:
            other_keys.setdefault(_cleaned(key), []).append(key)
    for name in class_names:
        if name not in key_of and len(keys := other_keys.get(_cleaned(name), [])) == 1:
            key_of[name] = keys[0]
            del other_keys[_cleaned(name)]
    missing = [name for name in class_names if name not in key_of]
    extra = [key for keys in other_keys.values() for key in keys]
    if missing or extra:
        faults = [f"{len(missing)} classes have none: {_some(missing)}"] if missing else []
        faults += [f"{len(extra)} keys are no class: {_some(extra)}"] if extra else []
        raise ValueError(
            f"templates: prompts of each class need the {len(class_names)} class names as keys; " + "; ".join(faults)
        )
    return {name: _sentences(name, given[key_of[name]]) for name in class_names}


def _sentences(name: str, sentences: str | Sequence[str]) -> list[str]:
    if isinstance(sentences, str):
        sentences = [sentences]
    elif isinstance(sentences, Mapping) or not isinstance(sentences, Sequence):
        raise ValueError(f"templates[{name!r}] is a {type(sentences).__name__}, expected a list of prompts")
    if not sentences:
        raise ValueError(f"templates[{name!r}] is empty, expected at least one prompt")
    return [with_slot(text, f"templates[{name!r}]: prompt", needed=False) for text in sentences]


def _cleaned(key) -> str:
    return " ".join(str(key).replace("_", " ").split()).casefold()


def _some(names: Sequence) -> str:
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")


def read_class_names(source: str | Path, argument: str = "class_names") -> list[str] | dict[str, str]:
    """Class names as users give them: a file, or names with commas between them.

    A `.txt` file has a name in each line; in a file of one line, commas separate names. A `.json` file has a list, or
    a mapping from label to name (or from name to label, as `label2id`). Any other text is names; one that holds a
    comma stands in double quotes, as in CSV.

    Returns:
        A list, or for a mapping label -> name; its keys are text, as JSON's are.

    Raises:
        FileNotFoundError: no such file; text that ends in .txt or .json is always a file.
        ValueError: a file of another kind or with other contents. `argument` is the name in messages.

    >>> read_class_names('cat, "salt, pepper"')
    ['cat', 'salt, pepper']
    """
    path = Path(source)
    # A class may be called as a file without suffix is, here by chance.
    may_be_file = path.suffix.lower() in (".txt", ".json") or (
        (path.suffix or len(path.parts) > 1) and os.path.isfile(source)
    )
    if isinstance(source, Path) or may_be_file:
        files = needed_module(".class_name_files", __package__, f"{argument}: {source}")
        return files.read_class_name_file(path, argument)
    return names_in_text(source, argument)


def names_in_text(text: str, where: str) -> list[str]:
    """Names with commas or lines between them; `where` stands before the message of a ValueError."""
    try:
        rows = list(csv.reader(io.StringIO(text.strip()), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ValueError(f"{where}: {error}; want names with commas between them, quotes closed") from error
    return [name.strip() for row in rows for name in row if name.strip()]


def resolve_class_names(
    class_names: str | Path | Sequence[str] | Mapping[int | str, str], argument: str = "class_names"
) -> list[str]:
    """Class names as a list, in label order; text is read by `read_class_names`: a file, or names with commas.

    Underscores become spaces in the prompts only (`format_prompts`); the names themselves stay as given. Raises
    ValueError when the list is empty, a name is blank or not a string, two names are equal, or it is a set, which has
    no order.
    """
    if isinstance(class_names, str | Path):
        class_names = read_class_names(class_names, argument)
    if isinstance(class_names, Mapping):
        by_label = {str(label): name for label, name in class_names.items()}
        labels = [str(label) for label in range(len(by_label))]
        if set(by_label) != set(labels):
            raise ValueError(f"{argument}: keys must be 0..{len(labels) - 1}, got {list(class_names)[:5]}")
        class_names = [by_label[label] for label in labels]
    refuse_set(class_names, argument)
    class_names = listed(class_names, argument, "a list of names")
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


def refuse_set(class_names, argument: str = "class_names") -> None:
    """ValueError for a set: its order, and so the labels, would differ from process to process."""
    if isinstance(class_names, set | frozenset):
        raise ValueError(f"{argument}: got a {type(class_names).__name__}, which has no order; want a list")


def format_prompts(class_names: Sequence[str], templates: Sequence[str] | Mapping[str, Sequence[str]]) -> list[str]:
    """C x T prompts, class by class: `["a photo of a cat.", "art of the cat.", "a photo of a dog.", …]`.

    Of a mapping from `resolve_templates` each class's own, `prompt_counts` of them.
    """
    return [
        template.replace("{}", name.replace("_", " "))
        for name in class_names
        for template in (templates[name] if isinstance(templates, Mapping) else templates)
    ]


def prompt_counts(class_names: Sequence[str], templates: Sequence[str] | Mapping[str, Sequence[str]]) -> list[int]:
    """How many prompts each class has."""
    return [len(templates[name] if isinstance(templates, Mapping) else templates) for name in class_names]


def check_names_differ(class_names: Sequence[str], prompts: Sequence[Hashable], argument: str = "class_names") -> None:
    """ValueError that names two classes whose prompts are the same token ids: no model can tell them apart.

    Such names differ in what the tokenizer drops (case, white space, `_`), or behind the place where prompts are cut.
    Names that differ in underscores at their end are let through: that is how data sets with a name twice write it
    (CLIP's names of ImageNet: "missile", "missile_").

    Args:
        class_names: C names.
        prompts: C values, equal where all prompts of two classes are.
    """
    first: dict[Hashable, str] = {}
    for name, ids in zip(class_names, prompts, strict=True):
        other = first.setdefault(ids, name)
        if other.rstrip("_") != name.rstrip("_"):
            raise ValueError(
                f"{argument}: {_short(other)} and {_short(name)} are the same prompts for this model (it may not "
                "distinguish case or underscores, and cuts long prompts), so it cannot tell them apart; want names "
                "that differ"
            )


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else repr(text[:28] + "…" + text[-28:])


# ---- text to token ids


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
        max_length: longest row, SOS and EOS included; None is the tokenizer's `model_max_length`. Longer texts are
            cut, EOS is kept, and one warning names the first of them.
        clean: clean the texts first, as OpenAI does (`text_cleaning.py`).
        what: the argument's name for messages.
        slip_truncation: cut long texts as SLIP's code does, end token and all. Models then pool at the start token,
            and all long texts have one embedding: for comparison with SLIP's numbers only.

    Raises:
        ValueError: see `check_texts`; the message names the index.

    >>> from hf_clip_variants.modeling.clip.text_clip import official_tokenizer
    >>> tokenize_texts(official_tokenizer(), ["a photo of a cat"])
    [[49406, 320, 1125, 539, 320, 2368, 49407]]
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
        del kwargs["truncation"]  # without a length, transformers would only log that it ignores it
    encoded = tokenizer(texts, **kwargs)
    if kwargs.get("truncation"):
        _warn_of_truncation(encoded, texts, what, max_length)
    if kwargs.get("add_special_tokens", True) and tokenizer.eos_token_id is not None:
        _check_single_eos(encoded, texts, what, tokenizer)
    return encoded


def check_texts(texts: Sequence[str], what: str = "text", clean: bool = False) -> list[str]:
    """The texts as a list, cleaned if asked.

    ValueError, naming `what` and the index: a single string instead of a list, no text, a text that is no string, is
    blank (also after cleaning) or holds a lone surrogate.
    """
    if isinstance(texts, str | bytes):
        raise ValueError(f"{what}: got the single string {texts!r}, expected a list of strings")
    texts = listed(texts, what, "a list of strings")
    clean_text = needed_module(".text_cleaning", __package__, "clean").clean_text if clean else str
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{what}[{index}]: expected a string, got {type(text).__name__} ({text!r})")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{what}[{index}]: {text!r} has a lone surrogate at position {error.start}, which is not valid Unicode"
            ) from None
        cleaned = clean_text(text)
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
        plain = [i for i, special in zip(ids, encoding.special_tokens_mask, strict=True) if not special]
        if ids.count(eos) > 1 and set(plain) <= {eos} and tokenizer.eos_token not in texts[index]:
            known = f"tokenizer: {type(tokenizer).__name__} with {len(tokenizer)} tokens knows nothing of "
            raise ValueError(f"{known}{what}[{index}], {texts[index]!r}; is tokenizer.json missing?")
        if ids.count(eos) > 1 and eos in plain:
            raise ValueError(
                f"{what}[{index}]: {texts[index]!r} contains the end token {tokenizer.eos_token!r} (or characters "
                "that this tokenizer knows only as that token)"
            )


__all__ = ["check_names_differ", "check_texts", "encode_texts", "format_prompts", "listed", "names_in_text"]
__all__ += ["prompt_counts", "read_class_names", "refuse_set", "resolve_class_names", "resolve_class_prompts"]
__all__ += ["resolve_templates", "tokenize_texts", "with_slot"]
