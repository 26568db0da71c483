"""Text of unknown origin for screens: names of files and classes may hold escape sequences that move the cursor."""

import unicodedata


def printable(text: str) -> str:
    """The text with control characters, direction marks and halves of surrogate pairs written as escapes.

    Lines and tabs stay, and so does what joins emoji and letters.

    >>> print(printable("a\\x1b[31mb \\u202egnp.exe \\udce9.png"))
    a\\x1b[31mb \\u202egnp.exe \\udce9.png
    """
    return text if text.isascii() and text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    category = unicodedata.category(character)
    if character in "\n\t" or category not in ("Cc", "Cs", "Cf", "Zl", "Zp", "Co", "Cn"):
        return character
    # Joiners make emoji and scripts; tags make flags.
    is_mark = category != "Cf" or unicodedata.bidirectional(character) in _DIRECTIONS or character in _HIDDEN
    return character.encode("unicode_escape").decode() if is_mark and category not in ("Co", "Cn") else character


_DIRECTIONS = frozenset("LRE RLE LRO RLO PDF LRI RLI FSI PDI L R AL".split())
_HIDDEN = "\ufeff\u2060"

__all__ = ["printable"]
