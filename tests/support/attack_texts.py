"""Attacks on class names and templates: any Unicode, braces, markup, control characters, very long ones.

What is right: each class has the features that its prompts have alone, the place of a class does not matter, and names
come back as they were given; or ValueError names `class_names` or `templates`.
"""

import itertools
import json
import random
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from adapter_models import tiny_classifier
from attack_cases import WRONG, Case
from tiny import tiny_tokenizer

from hf_clip_variants import CLIPClassifier
from hf_clip_variants.modeling.dual_encoders.prompts import format_prompts, resolve_class_names, resolve_templates


KIND = "texts"
_PIECES = [
    "cat", "sports car", "a", "", " ", "_", "__class__", "{}", "{", "}", "{0}", "{.x}", "{!r}",
    "{:9999999999}", "{a[0]}", "{{}}", "%s", "%(x)s", "$x", "${x}", "\\", "\\n", "\n", "\t", "\r",
    "\0", "\x1b[31m", "\x7f", "\u200b", "\u200d", "\u202e", "\ufeff", "\ufffd", "\ud800", "\udfff",
    "é", "e\u0301", "ﬁ", "İ", "ß", "Σ", "猫", "قط", "🐈", "👨‍👩‍👧", "🏳️‍🌈", "<|endoftext|>",
    "<|startoftext|>", "<b>", "</script>", "&amp;", "&lt;", "&#0;", "[bold]", "[/]", "[link=x]", "`",
    "```", "$\\frac{1}{0}$", "|", '"', "'", ",", ";", "#", "=1+1", "@x", "../..", "/", "CON", "nan",
    "None", "true", "0", "-1", "x" * 500, "word " * 200, "cat</w>", "\u0300" * 100, "𝒞𝒶𝓉",
    "\U0010ffff", "\uffff",
]  # fmt: skip


def _text(rng: random.Random, most: int = 4) -> str:
    if rng.random() < 0.2:
        return "".join(
            chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x11000)])) for _ in range(rng.randint(1, 9))
        )
    return rng.choice(["", " "]).join(rng.choices(_PIECES, k=rng.randint(1, most)))


def _names(rng: random.Random) -> list[str]:
    return list(dict.fromkeys(_text(rng) for _ in range(rng.randint(1, 5))))


def _template(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(["a photo of a {}.", "{}", "the {}!", "{} {}", "{c}", "a {classname}"])
    return _text(rng, 2) + rng.choice(["{}", "{}", ""]) + _text(rng, 2)


def _features(names: list[str], templates: list[str]) -> torch.Tensor:
    model = tiny_classifier(class_names=None).set_classes(names, templates, tokenizer=tiny_tokenizer())
    return torch.nn.functional.normalize(model.get_class_features().detach(), dim=-1)


def _alone_and_together(rng: random.Random, folder: Path):
    names, templates = _names(rng), list(dict.fromkeys(_template(rng) for _ in range(rng.randint(1, 3))))

    def run():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            together = _features(names, templates)
            if not torch.isfinite(together).all():
                return f"{WRONG}features are not finite"
            for name, row in zip(names, together, strict=True):
                if not torch.allclose(_features([name], templates)[0], row, atol=2e-5):
                    return f"{WRONG}alone, {name!r} has other features"
            turned = _features(names[::-1], templates)
        return together if torch.allclose(turned.flip(0), together, atol=2e-5) else f"{WRONG}the order matters"

    return f"{names!a}, {templates!a}", run


def _prompts(rng: random.Random, folder: Path):
    """The name stands where the braces were, and nothing in it is interpreted."""
    names, template = _names(rng), _template(rng)

    def run():
        (resolved,) = resolve_templates([template])
        before, braces, after = resolved.partition("{}")
        if not braces or "{}" in after:
            return f"{WRONG}accepted a template with {resolved.count('{}')} places"
        for slot in ("{c}", "{classname}"):
            if slot in template and resolved == template:
                return f"{WRONG}{slot} is not the name's place"
        expected = [before + name.replace("_", " ") + after for name in names]
        return expected if format_prompts(names, [resolved]) == expected else f"{WRONG}other prompts"

    return f"prompts, {names!a}, {template!a}", run


def _saved(rng: random.Random, folder: Path):
    """Names survive a save, and so do the features."""
    names, templates = _names(rng), [_template(rng)]

    def run():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = tiny_classifier(class_names=None).set_classes(names, templates, tokenizer=tiny_tokenizer())
            model.save_pretrained(folder)
            loaded = CLIPClassifier.from_pretrained(folder)
        if list(loaded.class_names) != names or loaded.config.id2label != dict(enumerate(names)):
            return f"{WRONG}names were {loaded.class_names!r}"
        if loaded.config.templates != model.config.templates:
            return f"{WRONG}templates were {loaded.config.templates!r}"
        same = torch.allclose(loaded.get_class_features(), model.get_class_features(), atol=1e-5)
        return loaded if same else f"{WRONG}other features"

    return f"saved, {names!a}, {templates!a}", run


def _files(rng: random.Random, folder: Path):
    """A file of names gives the names in it."""
    names = [name for name in (" ".join(unicodedata.normalize("NFC", n).split()) for n in _names(rng)) if name]
    kind = rng.choice(["list.json", "mapping.json", "names.txt", "odd.json", "bytes.txt"])
    path = folder / kind
    odd = rng.choice(
        [None, 3, {}, [], [[1]], {"0": None}, [1, 2], {"a": "b"}, {"1": "x"}, "text", [None], True, ["", " "]]
    )
    content = {
        "list.json": lambda: json.dumps(names),
        "mapping.json": lambda: json.dumps({str(i): name for i, name in enumerate(names)}),
        # A byte order mark at the start is the file's, one after it the name's.
        "names.txt": lambda: "\ufeff" * (bool(names) and names[0][0] == "\ufeff") + "\n".join(names) + "\n",
        "odd.json": lambda: json.dumps(odd),
        "bytes.txt": lambda: "\ud800",
    }[kind]()
    path.write_bytes(rng.randbytes(50) if kind == "bytes.txt" else content.encode("utf-8", "surrogatepass"))

    def run():
        found = resolve_class_names(path)
        if kind in ("odd.json", "bytes.txt"):
            return found if found and all(isinstance(name, str) for name in found) else f"{WRONG}{found!r}"
        if kind == "names.txt" and any(set(name) & set(',"#\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029') for name in names):
            return found
        return found if found == names else f"{WRONG}{found!r}, not {names!r}"

    return f"{kind}, {names!a}", run


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """For ever."""
    rng = random.Random(f"{KIND} {seed}")
    attacks = (_alone_and_together, _prompts, _prompts, _saved, _files)
    for count in itertools.count():
        place = Path(folder) / f"{count}"
        place.mkdir(parents=True)
        name, run = attacks[count % len(attacks)](random.Random(rng.random()), place)
        # A prompt is shown as it would be read: template and name together.
        named = ("class_names", "template", "class prompts[", str(place))
        yield Case(KIND, f"{count} {name[:150]}", run, named)
