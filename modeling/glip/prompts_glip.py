"""Prompts: class names joined to texts of a limited length, phrases of sentences, and which tokens belong to what."""

import re
from collections.abc import Sequence
from typing import Any

import torch


SEPARATOR = ". "  # of class names, in training and at test time; nothing follows the last name
Span = tuple[int, int]  # of characters: the first one, and the one behind the last

# Words that no noun phrase contains: it ends before them.
_BETWEEN = frozenset(
    # prepositions and conjunctions
    "about above across after against along among and around as at atop before behind below beneath beside besides "
    "between beyond but by down during for from in inside into like near next of off on onto or out outside over past "
    "since so than that through throughout to toward towards under underneath until up upon versus via where which "
    "while who whose with within without "
    # verbs that sentences about images are made of
    "am are be been being can could did do does had has have is may might must shall should was were will would "
    "hold holds holding look looks looking ride rides riding run runs running sit sits sitting stand stands standing "
    "walk walks walking wear wears wearing play plays playing eat eats eating carry carries carrying show shows shown "
    "contain contains lie lies lying fly flies flying jump jumps jumping hang hangs hanging park parked take taken "
    "seen covered filled surrounded made left "
    # pronouns and adverbs that stand alone
    "he her him his i it its me my not our she their them there they this these those us we what when you your very "
    "also together away here just still then too".split()
)
_DETERMINERS = frozenset(
    "a an the some any each every another one two three four five six seven eight nine ten".split()
)
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*|[^\w\s]")


def clean_name(name: str) -> str:
    """As official prompts write a class name: without what stands in brackets, with spaces for underscores.

    >>> clean_name("traffic_light"), clean_name("hydrant (fire)")
    ('traffic light', 'hydrant ')
    """
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ")


def join_names(names: Sequence[str], separator: str = SEPARATOR) -> tuple[str, list[list[Span]]]:
    """Class names -> the prompt, and the span of each name.

    >>> join_names(["cat", "traffic light"])
    ('cat. traffic light', [[(0, 3)], [(5, 18)]])
    """
    spans, start = [], 0
    for name in names:
        spans.append([(start, start + len(name))])
        start += len(name) + len(separator)
    return separator.join(names), spans


def split_names(
    names: Sequence[str],
    tokenizer: Any,
    max_length: int,
    separator: str = SEPARATOR,
    names_per_prompt: int | None = None,
    what: str = "text",
) -> list[list[str]]:
    """Class names in parts, in their order, each of which fits into a prompt of `max_length` tokens.

    Raises:
        ValueError: a name that is alone too long.
    """
    between = len(tokenizer(separator.strip(), add_special_tokens=False).input_ids)
    special = tokenizer.num_special_tokens_to_add()
    counts = [
        len(ids) for ids in tokenizer(list(names), add_special_tokens=False, split_special_tokens=True).input_ids
    ]
    parts: list[list[str]] = []
    used = 0
    for i, (name, count) in enumerate(zip(names, counts, strict=True)):
        if count + special > max_length:
            raise ValueError(f"{what}[{i}]: {count} tokens, expected at most {max_length - special}: {name[:60]!r}…")
        full = parts and (
            used + between + count + special > max_length
            or (names_per_prompt is not None and len(parts[-1]) >= names_per_prompt)
        )
        if not parts or full:
            parts.append([name])
            used = count
        else:
            parts[-1].append(name)
            used += between + count
    return parts


def phrase_tokens(encoding: Any, row: int, phrases: Sequence[Sequence[Span]], length: int, what: str) -> torch.Tensor:
    """Which tokens each phrase has, (K, length) of 0 and 1.

    Args:
        encoding: of a fast tokenizer, whose text number `row` the spans belong to.
        phrases: the spans of each phrase. A span that begins or ends in a space is shortened, as officially, by at
            most two characters.
        what: begins an error's text.

    Raises:
        ValueError: a phrase without any token.
    """
    found = torch.zeros(len(phrases), length)
    for number, spans in enumerate(phrases):
        for start, end in spans:
            first = _token(encoding, row, [start, start + 1, start + 2])
            last = _token(encoding, row, [end - 1, end - 2, end - 3])
            if first is not None and last is not None:
                found[number, first : last + 1] = 1
        if not found[number].any():
            raise ValueError(f"{what}[{number}]: no token between characters {list(spans)}")
    return found


def _token(encoding, row: int, places: Sequence[int]) -> int | None:
    for place in places:
        if place >= 0 and (token := encoding.char_to_token(row, place)) is not None:
            return token
    return None


def noun_phrases(caption: str) -> list[Span]:
    """The spans of what may be noun phrases of an English sentence: words between prepositions, verbs and marks.

    It needs no trained tagger, and so takes verbs that it does not know for nouns. Give the spans where it matters.

    >>> caption = "a man riding the small red bicycle and a dog with two cats ."
    >>> [caption[start:end] for start, end in noun_phrases(caption)]
    ['a man', 'the small red bicycle', 'a dog', 'two cats']
    """
    words, found, open_words = list(_WORD.finditer(caption)), [], []

    def close():
        if any(word.group().lower() not in _DETERMINERS for word in open_words):
            found.append((open_words[0].start(), open_words[-1].end()))
        open_words.clear()

    for word in words:
        text = word.group().lower()
        if not text[0].isalnum() or text in _BETWEEN:
            close()
            continue
        if text in _DETERMINERS and open_words:
            close()
        open_words.append(word)
    close()
    return found


def read_phrases(caption: str, phrases: Sequence[Any] | None, what: str) -> list[list[Span]]:
    """The user's phrases of a caption -> spans of each.

    Args:
        phrases: each a text that stands in the caption (its first place counts, upper and lower case do not), a span,
            or several spans; None: `noun_phrases`.

    Raises:
        ValueError: names the phrase: not in the caption, a span outside of it or without characters, none at all.
    """
    if phrases is None:
        found = [[span] for span in noun_phrases(caption)]
        if not found:
            raise ValueError(f"{what}: no noun phrase in {caption!r}, expected some, or give them")
        return found
    if isinstance(phrases, str):
        raise ValueError(f"{what}: got the single string {phrases!r}, expected a list of phrases for each caption")
    found = []
    for i, phrase in enumerate(phrases):
        name = f"{what}[{i}]"
        if isinstance(phrase, str):
            start = caption.lower().find(phrase.lower()) if phrase.strip() else -1
            if start < 0:
                raise ValueError(f"{name}: {phrase!r} does not stand in {caption!r}")
            found.append([(start, start + len(phrase))])
            continue
        spans = [phrase] if len(phrase) == 2 and all(isinstance(one, int) for one in phrase) else list(phrase)
        for span in spans:
            is_span = isinstance(span, list | tuple) and len(span) == 2 and all(isinstance(one, int) for one in span)
            if not is_span or not 0 <= span[0] < span[1] <= len(caption):
                raise ValueError(
                    f"{name}: {span!r}, expected the first character and the one behind the last, in "
                    f"0..{len(caption)} of {caption!r}"
                )
            if not caption[span[0] : span[1]].strip():
                raise ValueError(f"{name}: {span!r} holds nothing but spaces")
        found.append([tuple(span) for span in spans])
        if not spans:
            raise ValueError(f"{name}: no span")
    if not found:
        raise ValueError(f"{what}: no phrase, expected at least one")
    return found


__all__ = ["SEPARATOR", "clean_name", "join_names", "noun_phrases", "phrase_tokens", "read_phrases", "split_names"]
