"""Attacks on models that draw, sketch and paint: their configurations, the arguments of `generate`, prompts, the
rasteriser, SVG files, files of drawings, and the states of runs.

What is right: drawings and pictures are finite, as many as asked for and within their canvas; a scene is as the plain
rasteriser draws it; an SVG file comes back as it was; a text of prompts has the weights that stand in it; or
ValueError or OSError names the argument, the field or the file.
"""

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from attack_cases import WRONG, Case, in_turn
from drawing_runs import draw_model, sketch_model
from painting_runs import paint_model
from PIL import Image
from tiny import tiny_clip, tiny_tokenizer

from hf_clip_variants.modeling.strokes.stroke_drawing import StrokeDrawing
from hf_clip_variants.modeling.strokes.stroke_rasterizer import render_strokes
from hf_clip_variants.modeling.strokes.stroke_rasterizer_reference import render_strokes_reference
from hf_clip_variants.modeling.synthesis.stories import parse_story
from hf_clip_variants.synthesis.runs import STATE, SynthesisRun


KIND = "drawings"
MODELS = {"draw": draw_model, "paint": paint_model, "sketch": sketch_model}
BAD = (math.nan, math.inf, -math.inf, 1e38, -1e38)
ODD = (3, -1, 2.5, True, b"x", {}, {"a": 1}, object(), [None], [[]], [3], "", " ", "\x00", "x" * 10_000)
_STEPS = 2

Attack = tuple[str, Callable[[], object], tuple[str, ...]]


@functools.cache
def _model(kind: str):
    return MODELS[kind]()


def _shown(value: object) -> str:
    if isinstance(value, torch.Tensor):
        value = f"{value.dtype} {list(value.shape)}"
    return f"{value!r}".replace("\n", " ")[:50]


def _photo(size=(40, 30)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert("RGB")


def _checked(results, count: int) -> object:
    """The results of `generate`, if they are what they should be."""
    if len(results) != count:
        return f"{WRONG}{len(results)} results, not {count}"
    for one in results:
        numbers = [one.loss, *one.losses, one.similarity]
        if not all(map(math.isfinite, numbers)):
            return f"{WRONG}numbers that are not finite: {numbers}"
        if not -1.001 <= one.similarity <= 1.001:
            return f"{WRONG}a cosine of {one.similarity}"
        pixels = one.drawing.render() if hasattr(one, "drawing") else one.pixels
        if not pixels.isfinite().all() or pixels.min() < -1e-5 or pixels.max() > 1 + 1e-5:
            return f"{WRONG}pixels outside of 0..1"
        if hasattr(one, "drawing") and StrokeDrawing.from_svg(one.drawing.to_svg()).to_svg() != one.drawing.to_svg():
            return f"{WRONG}the SVG comes back as another drawing"
    return results


def _generate(kind: str, **options):
    options = {"num_steps": _STEPS, "seeds": 0, **options}
    if kind == "sketch":
        return _model(kind).generate(options.pop("images", _photo()), **options)
    if "prompt_embeds" not in options:
        options.setdefault("prompts", "a cat")
        options.setdefault("tokenizer", tiny_tokenizer())
    return _model(kind).generate(**options)


# ---- configurations that are accepted draw; others are refused


_NUMBERS = (0, 1, -1, 2, 3, 7, 1e-6, 0.5, 1.0, 1.5, 1e3, 1e6, 1e30, 10**9, 10**15, *BAD, None, True, "1", [], [1], {})
_FIELDS = {
    "draw": (
        "num_strokes", "max_segments", "canvas_size", "num_steps", "num_augmentations", "points_lr", "radii_lr",
        "colors_lr", "min_radius", "max_radius", "negative_weight", "normalize", "image_mean", "image_std",
        "views_at_once", "more_guides", "guide_weights", "backbone_model_type", "projection_dim", "vision_config",
    ),
    "paint": (
        "canvas_size", "num_steps", "optimizer", "learning_rate", "num_cuts", "cut_power", "cut_method",
        "augmentations", "noise_factor", "init_weight", "init_target", "tv_weight", "image_mean", "image_std",
        "views_at_once", "more_guides", "guide_weights", "vqgan_config",
    ),
    "sketch": (
        "num_strokes", "num_segments", "stroke_radius", "canvas_size", "num_steps", "points_lr", "num_augmentations",
        "layer_weights", "loss_type", "feature_weight", "softmax_temperature", "use_edges", "evaluate_every",
        "min_delta", "optimize_opacity", "optimize_colors", "colors_lr", "image_mean", "image_std", "views_at_once",
    ),
}  # fmt: skip
_WORDS = ("Adam", "RMSprop", "latest", "updated", "original", "start", "zero", "L1", "Cos", "evil", "clip", "siglip")


def _value(rng: random.Random, field: str) -> object:
    if field in ("image_mean", "image_std"):
        return [rng.choice([0.5, 0.2, 1e-3, 1.0, *_NUMBERS[:9]]) for _ in range(rng.choice([3, 3, 3, 2, 0]))]
    if field in ("optimizer", "cut_method", "init_target", "loss_type", "backbone_model_type"):
        return rng.choice([*_WORDS, *_NUMBERS])
    if field == "augmentations":
        return rng.choices(
            ["flip", "jitter", "sharpness", "affine", "perspective", "erasing", "x", 3], k=rng.randint(0, 4)
        )
    if field == "layer_weights":
        return rng.choices([0.0, 1.0, -1.0, 0.5, math.nan], k=rng.choice([3, 3, 2]))
    if field == "more_guides":
        return [
            rng.choice([{}, {"model_type": "bert"}, {"vision_config": 5}, {"text_config": {"hidden_size": 7}}, 3, []])
        ]
    if field == "guide_weights":
        return rng.choice([[1.0], [0.0], [1.0, 1.0], [math.nan], ["a"], [], 3, [1e9], [-1.0]])
    if field in ("vqgan_config", "vision_config"):
        return rng.choice([{}, {"embed_dim": 0}, {"hidden_size": -1}, 5, "x", [], {"model_type": "bert"}])
    return rng.choice(_NUMBERS)


def configurations(rng: random.Random, folder: Path) -> Attack:
    kind = rng.choice(list(MODELS))
    fields = rng.sample(_FIELDS[kind], rng.choice([1, 1, 2]))
    values = {field: _value(rng, field) for field in fields}
    few = {"num_steps": _STEPS} if kind != "sketch" else {"num_steps": _STEPS, "evaluate_every": 1}

    def run():
        model = MODELS[kind](**values)
        # What is slow by its own numbers is not drawn.
        large = max(model.config.canvas, getattr(model.config, "num_cuts", 1) * 4)
        strokes = getattr(model.config, "num_strokes", 1) * getattr(model.config, "num_augmentations", 1)
        if large > 300 or strokes > 300:
            return model
        steps = min(_STEPS, model.config.num_steps if "num_steps" in values else few["num_steps"])
        if kind == "sketch":
            return _checked(model.generate(_photo(), seeds=0, num_steps=steps), 1)
        return _checked(model.generate("a cat | a dog:-0.5", tiny_tokenizer(), num_steps=steps), 1)

    fields += ["tokenizer"] if "more_guides" in fields else []  # of which there must be as many
    named = (*fields, *(name for name in ("min_radius", "max_radius", "loss:", "hidden_size", "embed_dim")))
    return f"{kind} configuration, {', '.join(f'{k} = {_shown(v)}' for k, v in values.items())}", run, named


# ---- arguments of generate


def _embeds(rng: random.Random) -> object:
    good = torch.randn(2, 24, generator=torch.Generator().manual_seed(1))
    spoiled = good.clone()
    spoiled[0, 3] = rng.choice(BAD)
    return rng.choice(
        [good, good * 1e30, good * 0, spoiled, good[:0], good[:, :5], good[0], good.long(), good.double(), good.half(),
         good.tolist(), [good], [good, good], [], "x", None, good.bfloat16(), good.bool(), good[None]]
    )  # fmt: skip


def _tensor_image(rng: random.Random) -> object:
    good = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(2))
    spoiled = good.clone()
    spoiled[0, 1, 2] = rng.choice([*BAD, -0.1, 1.1, 255.0])
    return rng.choice(
        [good, spoiled, good[:1], good[:2], good[:, :0], good[:, :1, :1], good[0], good[None], good.byte(),
        good.long(),
         good.double(), good.half(), good.numpy(), _photo((1, 1)), _photo((1, 900)), _photo((900, 2)),
         _photo().convert("L"), _photo().convert("RGBA"), _photo().convert("CMYK"), Image.new("RGB", (0, 5)),
         Image.new("RGBA", (9, 9)), Image.new("RGB", (24, 24)), None, "none.png", "/dev/zero", b"GIF89a", 5, {}, [],
         object(), "", "\x00", ".."]
    )  # fmt: skip


def _text(rng: random.Random) -> object:
    return rng.choice(
        ["a cat", "a cat:1e-30", "a cat:-1000", "a cat:1:5", "a cat:1:-inf | a dog", "a ^ b ^ c", "^", "|", ":", "a:0",
         "a:inf", "a:nan", "a:1:nan", "cat " * 500, "猫", "<|endoftext|>", "\ud800", "\x00", "a\u202eb", "👍" * 50,
         "|".join("ab" * 40), "^".join("ab" * 40), "", "  ", None, 5, b"x", [], ["a", ""], ["a", 5], [["a"]], {"a": 1},
         {"a cat"}, ("a cat", "a dog"), ["a cat"] * 3, iter(["a cat"])]
    )  # fmt: skip


def _drawing(rng: random.Random) -> object:
    count = rng.choice([1, 1, 3, 5])
    points = 24 * torch.rand(count, 7, 2, generator=torch.Generator().manual_seed(3))
    change = rng.choice(["good", "far", "huge", "filled", "thin canvas", "odd", "other dtype", "one point"])
    if change == "odd":
        return rng.choice(ODD)
    if change == "far":
        points = points + rng.choice([-1e3, 1e4, 1e6])
    if change == "huge":
        points = points * rng.choice([1e5, 1e9, 1e20])
    if change == "one point":
        points = points[:, :1].expand(-1, 7, -1).contiguous()
    drawing = StrokeDrawing(
        points.double() if change == "other dtype" else points, torch.ones(count), torch.rand(count, 4),
        torch.randint(1, 3, (count,)), 24, 1 if change == "thin canvas" else 24,
    )  # fmt: skip
    if change == "filled":
        drawing.filled = torch.ones(count, dtype=torch.bool)
    return drawing


_WHOLE = (0, 1, 2, -1, 10**9, 10**30, 2.0, 1.5, True, None, "2", [], [1], math.nan, math.inf)
_SEEDS = (0, 5, [1, 2], (3,), [], [1, 1], -1, 2**63 - 1, 2**63, 2**70, 1.0, True, None, "0", [None], range(2), {1, 2})
_SIZES = (
    None,
    24,
    17,
    9,
    1,
    0,
    -5,
    10**6,
    (11, 30),
    [16, 16],
    (8,),
    (8, True),
    8.0,
    "big",
    (math.nan, 8),
    {},
    (2, 4096),
)
_MASKS = (
    lambda: torch.zeros(30, 40), lambda: torch.ones(30, 40), lambda: torch.full((30, 40), math.nan),
    lambda: torch.ones(3, 30, 40), lambda: torch.ones(5, 5, dtype=torch.bool), lambda: torch.ones(0, 4),
    lambda: _photo().convert("L"), lambda: Image.new("L", (3, 3)), lambda: Image.new("1", (40, 30), 1), lambda: None,
    lambda: "x", lambda: 5, lambda: [], lambda: [[1]], lambda: torch.ones(30, 40).numpy(), lambda: torch.ones(30,
    40).long() * 255,
)  # fmt: skip
# Of each model's options -> a value.
_OPTIONS: dict[str, dict[str, Callable]] = {
    "draw": {
        "prompts": _text, "prompt_embeds": _embeds, "negative_prompts": _text,
        "tokenizer": lambda rng: rng.choice([None, *ODD, tiny_clip(), [tiny_tokenizer()], [tiny_tokenizer()] * 2]),
        "image_prompts": lambda rng: rng.choice([[_tensor_image(rng)], [_tensor_image(rng), _photo()],
        _tensor_image(rng)]),
        "seeds": lambda rng: rng.choice(_SEEDS), "num_strokes": lambda rng: rng.choice(_WHOLE),
        "num_steps": lambda rng: rng.choice([one for one in _WHOLE if one not in (10**9, None)]), "start": _drawing,
        "samples_at_once": lambda rng: rng.choice(_WHOLE), "evaluate_every": lambda rng: rng.choice(_WHOLE),
    },
    "paint": {
        "prompts": _text, "prompt_embeds": _embeds,
        "image_prompts": lambda rng: rng.choice([[_tensor_image(rng)], [_tensor_image(rng), _photo()],
        _tensor_image(rng)]),
        "noise_prompts": lambda rng: rng.choice(_SEEDS), "seeds": lambda rng: rng.choice(_SEEDS),
        "size": lambda rng: rng.choice(_SIZES),
        "num_steps": lambda rng: rng.choice([one for one in _WHOLE if one not in (10**9, None)]),
        "start": lambda rng: rng.choice(
            [_tensor_image(rng), "codes", "pixels", "gradient", "x", torch.randn(5, 3, 4), torch.full((5, 3, 4), 1e30),
             torch.full((5, 3, 4), math.nan), torch.randn(5, 0, 4), torch.randn(4, 3, 4), torch.randn(5, 3,
             4).double()]
        ),
        "mask": lambda rng: rng.choice(_MASKS)(),
        "samples_at_once": lambda rng: rng.choice(_WHOLE), "evaluate_every": lambda rng: rng.choice(_WHOLE),
    },
    "sketch": {
        "images": lambda rng: rng.choice([_tensor_image(rng), [_tensor_image(rng)], [_tensor_image(rng), _photo()],
        []]),
        "masks": lambda rng: rng.choice(_MASKS)(),
        "saliency": lambda rng: rng.choice(
            [torch.rand(9, 12), torch.zeros(9, 12), torch.full((9, 12), math.nan), torch.full((9, 12), 1e38),
            -torch.ones(9, 12),
             torch.rand(3, 9, 12), torch.ones(9, 12).long(), [torch.rand(5, 5)], [], "x", 5, torch.rand(0, 5),
             torch.rand(1, 1)]
        ),
        "pad": lambda rng: rng.choice([True, False]), "seeds": lambda rng: rng.choice(_SEEDS),
        "num_strokes": lambda rng: rng.choice(_WHOLE),
        "num_steps": lambda rng: rng.choice([one for one in _WHOLE if one not in (10**9, None)]),
        "samples_at_once": lambda rng: rng.choice(_WHOLE),
    },
}  # fmt: skip


def _count(kind: str, options: dict) -> int:
    """Results that accepted options ask for."""
    seeds = options.get("seeds", 0)
    seeds = 1 if isinstance(seeds, int) else len(list(seeds))
    given = options.get("images" if kind == "sketch" else "prompts")
    if "prompt_embeds" in options:
        given = options["prompt_embeds"]
        given = list(given) if isinstance(given, torch.Tensor) else list(given[0])
    return seeds * (len(given) if isinstance(given, list | tuple) else 1)


def arguments(rng: random.Random, folder: Path) -> Attack:
    """One option of `generate`, or two."""
    kind = rng.choice(list(MODELS))
    names = rng.sample(list(_OPTIONS[kind]), rng.choice([1, 1, 1, 2]))
    if "mask" in names and "start" not in names:
        names.append("start")
    if "prompt_embeds" in names:
        names = [name for name in names if name not in ("prompts", "tokenizer", "negative_prompts")]
    options = {name: _OPTIONS[kind][name](rng) for name in names}
    if names[-1] == "start" and "mask" in names:
        options["start"] = _photo((24, 16))

    def run():
        return _checked(_generate(kind, **options), _count(kind, options))

    named = (*names, *(name[:-1] for name in names if name.endswith("s")), "image", "height", "width", "points")
    return f"{kind}, {', '.join(f'{name} = {_shown(value)}' for name, value in options.items())}", run, named


# ---- prompts


_PIECES = (
    "|",
    "^",
    ":",
    "a",
    " cat",
    "12",
    "-0.5",
    "1",
    "0",
    "inf",
    "-inf",
    "nan",
    "1e9",
    " ",
    "\t",
    "\n",
    "猫",
    "é",
    "::",
    "1:2:3",
)


def grammar(rng: random.Random, folder: Path) -> Attack:
    text = "".join(rng.choices(_PIECES, k=rng.randint(1, 12)))

    def run():
        chapters = parse_story(text)
        for prompt in itertools.chain.from_iterable(chapters):
            if not prompt.text.strip() or not 0 < abs(prompt.weight) <= 1000 or math.isnan(prompt.stop):
                return f"{WRONG}{prompt}"
            if prompt.text not in text:
                return f"{WRONG}{prompt.text!r} is not in the text"
        if len(chapters) != text.count("^") + 1 or sum(map(len, chapters)) != text.count("|") + text.count("^") + 1:
            return f"{WRONG}{chapters}"
        return chapters

    return f"prompt {text!r}", run, ("prompt",)


# ---- the rasteriser


def scenes(rng: random.Random, folder: Path) -> Attack:
    """Sound ones, as the plain rasteriser draws them."""
    seed = rng.getrandbits(30)
    g = torch.Generator().manual_seed(seed)
    drawings, strokes, segments = rng.choice([1, 2]), rng.choice([0, 1, 4]), rng.choice([1, 2])
    height, width = rng.choice([1, 7, 20]), rng.choice([1, 9, 24])
    spread = rng.choice([1.0, 1.0, 3.0, 0.0])
    points = torch.rand(drawings, strokes, 3 * segments + 1, 2, generator=g) * spread * 20 - 5 * (spread > 1)
    if rng.random() < 0.3:  # straight, with points at thirds
        points = (
            points[:, :, :1] + (points[:, :, -1:] - points[:, :, :1]) * torch.linspace(0, 1, 3 * segments + 1)[:, None]
        )
    radii = torch.rand(drawings, strokes, generator=g) * rng.choice([0.0, 0.3, 2.0, 30.0])
    colors = torch.rand(drawings, strokes, 4, generator=g)
    far = rng.choice([0.0, 0.0, 1e3, 1e7, 1e20])
    sizes = {"height": height, "width": width}

    def run():
        moved = (points + far).requires_grad_()
        found = render_strokes(moved, radii, colors, **sizes)
        found.square().sum().backward()
        if not found.isfinite().all() or found.min() < -1e-5 or found.max() > 1 + 1e-5:
            return f"{WRONG}pixels outside of 0..1"
        if not moved.grad.isfinite().all():
            return f"{WRONG}gradients are not finite"
        if far:
            if far >= 1e3 and (found != 1).any():
                return f"{WRONG}strokes from far away are seen"
            return found
        # Near cusps, the search with few chords may find the second nearest part of a curve.
        found = render_strokes(points, radii, colors, **sizes, search_segments=64)
        for one, parts in zip(found, zip(points, radii, colors, strict=True), strict=True):
            if not len(parts[0]):
                if (one != 1).any():
                    return f"{WRONG}no strokes are seen"
                continue
            plain = render_strokes_reference(*parts, torch.full((strokes,), segments), **sizes)
            if (one - plain).abs().max() > 0.03:
                return f"{WRONG}off by {(one - plain).abs().max():.3f}"
        return found

    return (
        f"scene {seed}, {drawings} x {strokes} x {segments}, {height} x {width}, far {far}, {spread}",
        run,
        ("points",),
    )


def bad_scenes(rng: random.Random, folder: Path) -> Attack:
    parts = {
        "points": 20 * torch.rand(1, 3, 4, 2), "radii": torch.ones(1, 3), "colors": torch.rand(1, 3, 4),
        "num_segments": torch.ones(1, 3).long(), "height": 16, "width": 20, "filled": torch.zeros(1, 3).bool(),
        "background": (1.0, 1.0, 1.0), "softness": 0.65, "search_segments": 8, "newton_steps": 2,
        "fill_rule": "nonzero",
    }  # fmt: skip
    name = rng.choice(list(parts))
    good = parts[name]
    if isinstance(good, torch.Tensor):
        spoiled = good.clone().float()
        spoiled.view(-1)[0] = rng.choice([math.nan, math.inf, 1e38, -1.0, 7.0])
        value = rng.choice(
            [spoiled, good[:0], good[:, :1], good[0], good[None], good.long(), good.numpy(), good.tolist(), "x", 5,
             good.to(torch.complex64), good.double(), good[..., :1], good[..., :0], good.bool()]
        )  # fmt: skip
    else:
        value = rng.choice(
            [0, -1, 1, 2.5, 10**9, *BAD, True, None, "x", [], (1,), (1, 2, 3, 4), ("a",) * 3, (math.nan,) * 3]
        )

    def run():
        found = render_strokes(**parts | {name: value})
        return found if found.isfinite().all() else f"{WRONG}pixels that are not finite"

    named = ("points", "radii", "colors", "num_segments", "filled") if isinstance(good, torch.Tensor) else (name,)
    return f"render_strokes, {name} = {_shown(value)}", run, named


# ---- SVG and files


_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30" viewBox="0 0 40 30">'
    '<rect width="40" height="30" fill="white"/>'
    '<g transform="translate(2,1) scale(1.5)" opacity="0.5"><path d="M 1 2 C 3 4 5 6 7 8 S 9 1 2 3 Z" fill="#f00" '
    'stroke="blue" stroke-width="2"/><circle cx="9" cy="9" r="4" fill="none" stroke="black"/></g>'
    '<polyline points="1,1 5,5 9,1" style="stroke:green;fill:none;stroke-opacity:.5"/>'
    '<path d="M3 3 A 5 5 0 0 1 9 9 Q 1 1 2 2 H 30 V 20 L 5 5" stroke="rgb(10%,20%,30%)" fill-rule="evenodd"/></svg>'
)
_NUMBERS_IN_SVG = (
    "nan",
    "inf",
    "1e308",
    "-1e308",
    "1e30",
    "0",
    "-3",
    "",
    "1e-300",
    "0x10",
    "1" * 400,
    "50%",
    "2em",
    "--1",
    "é",
)
_PARTS_OF_SVG = (
    '<!DOCTYPE svg [<!ENTITY a "aaaa">]>', '<!DOCTYPE x SYSTEM "file:///etc/passwd">', "<g>" * 900, "</g>", "<path/>",
    '<path d="' + "L 1 1 " * 3000 + '"/>', '<use href="#a"/>', '<g id="a"><use href="#a"/></g>', "<text>x</text>",
    '<image href="file:///etc/passwd" width="5" height="5"/>', '<style>*{stroke:url(#x);fill:inherit}</style>',
    '<path d="M 0 0 A 0 0 0 0 0 0 0"/>', '<path d="M 0 0 C 1 1"/>', '<path d="hello"/>', '<path d="M"/>', "\x00",
    "]]>",
    '<path transform="matrix(0 0 0 0 0 0)" d="M 0 0 L 5 5" stroke="red"/>',
    '<path transform="rotate(nan)" d="M0 0L5 5"/>',
    '<path d="M 0 0 L 5 5" stroke="red" stroke-width="-4"/>', '<path d="M 0 0 L 5 5" stroke="rgb(1,2)"/>', "<!-- ",
    '<path d="M 0 0 L 5 5" stroke="rgba(300,-5,1e99,nan)" opacity="7"/>', '<svg width="1e9" height="1e9">', "&amp;",
    "&x;",
    '<rect width="1e9" height="1e9"/>', '<ellipse rx="-1" ry="2"/>', '<path d="M 0 0 L 5 5" stroke="currentColor"/>',
)  # fmt: skip


def _spoiled_svg(rng: random.Random) -> str:
    import re

    text = _SVG
    for _ in range(rng.choice([1, 1, 2])):
        kind = rng.choice(["number", "number", "part", "part", "cut", "repeat", "size", "letter"])
        if not re.search(r"\d[^>]*>", text):  # cut off before
            break
        if kind == "number":
            places = [found.span() for found in re.finditer(r"\d+(\.\d+)?", text)]
            start, end = rng.choice(places)
            text = text[:start] + rng.choice(_NUMBERS_IN_SVG) + text[end:]
        elif kind == "part":
            places = [found.end() for found in re.finditer(r">", text)]
            place = rng.choice(places)
            text = text[:place] + rng.choice(_PARTS_OF_SVG) + text[place:]
        elif kind == "cut":
            text = text[: rng.randrange(len(text))]
        elif kind == "repeat":
            start = rng.randrange(len(text))
            text += text[start : start + 200] * rng.choice([1, 50])
        elif kind == "size":
            text = text.replace('width="40"', f'width="{rng.choice(_NUMBERS_IN_SVG)}"', 1)
        elif text:
            place = rng.randrange(len(text))
            text = text[:place] + rng.choice("<>\"'&/=;#{}%\\ \x07é") + text[place + 1 :]
    return text


def svg_files(rng: random.Random, folder: Path) -> Attack:
    text = _spoiled_svg(rng)
    path = folder / "a.svg"
    content = text.encode("utf-8", "replace")
    if rng.random() < 0.1:
        content = rng.choice(
            [content[:50] + b"\xff\xfe" + content[50:], b"", b"\x89PNG\r\n", content.decode().encode("utf-16")]
        )
    path.write_bytes(content)

    def run():
        drawing = StrokeDrawing.load(path)
        pixels = drawing.render(min(1.0, 64 / max(drawing.height, drawing.width)))
        if not pixels.isfinite().all() or pixels.min() < -1e-5 or pixels.max() > 1 + 1e-5:
            return f"{WRONG}pixels outside of 0..1"
        again = StrokeDrawing.from_svg(drawing.to_svg())  # areas get a line back to their beginning
        if (again.render(min(1.0, 64 / max(again.height, again.width))) - pixels).abs().max() > 1e-3:
            return f"{WRONG}written and read, it is another drawing"
        if StrokeDrawing.from_svg(again.to_svg()).to_svg() != again.to_svg():
            return f"{WRONG}written and read twice, it is another drawing"
        return drawing

    return (
        f"SVG {text if len(text) < 60 else text[:20] + '…' + text[-30:]!r} {len(text)}",
        run,
        ("svg", "a.svg", "points"),
    )


_METADATA = ["", "x", "[1]", "[1e9, 5]", "[20, 30, 4]", "null", "[NaN, 1]", "[true, 5]", '["a", "b", "c"]', "[20, 30]"]
_METADATA += ["[1, 2, 3]", "[5]", "{}", "[1000000, 5]", "evenodd", "7"]


def drawing_files(rng: random.Random, folder: Path) -> Attack:
    """Safetensors files of drawings: other tensors and metadata, and damage."""
    from safetensors.torch import save

    drawing = StrokeDrawing(torch.rand(3, 4, 2), torch.ones(3), torch.rand(3, 4), torch.ones(3).long(), 20, 30)
    content, path, kind = drawing.to_bytes(), folder / "a.safetensors", rng.choice(["tensors", "metadata", "bytes"])
    tensors = {
        "points": drawing.points,
        "radii": drawing.radii,
        "colors": drawing.colors,
        "num_segments": drawing.num_segments,
    }
    about = {"format": "", "canvas": "[20, 30]", "background": "[1.0, 1.0, 1.0]", "fill_rule": "nonzero"}
    from hf_clip_variants.modeling.strokes.stroke_drawing import FORMAT

    about["format"] = FORMAT
    if kind == "bytes":
        place = rng.randrange(len(content))
        content = rng.choice(
            [content[:place], content[:place] + b"\xff" + content[place + 1 :], b"", content + b"x" * 9]
        )
    elif kind == "tensors":
        name = rng.choice([*tensors, "more"])
        good = tensors.get(name, torch.ones(3))
        changed = rng.choice(
            [
                good[:1],
                good.half(),
                good.float() * math.nan,
                good[None].clone(),
                -good,
                good * 1e30,
                None,
                good.double(),
            ]
        )
        tensors = {key: value for key, value in (tensors | {name: changed}).items() if value is not None}
        content = save({key: value.contiguous() for key, value in tensors.items()}, metadata=about)
    else:
        name = rng.choice(list(about))
        about[name] = rng.choice(_METADATA)
        if rng.random() < 0.2:
            del about[name]
        content = save(tensors, metadata=about)
    path.write_bytes(content)

    def run():
        found = StrokeDrawing.load(path)
        pixels = found.render(min(1.0, 64 / max(found.height, found.width)))
        if not pixels.isfinite().all() or pixels.min() < -1e-5 or pixels.max() > 1 + 1e-5:
            return f"{WRONG}pixels outside of 0..1"
        return found

    shown = (
        about
        if kind == "metadata"
        else {k: _shown(v) for k, v in tensors.items()}
        if kind == "tensors"
        else len(content)
    )
    return f"drawing file, {kind}, {shown}", run, ("a.safetensors", "points", "radii", "colors", "num_segments")


def states(rng: random.Random, folder: Path) -> Attack:
    """A run whose state was damaged goes on, or says so; it never ends with another drawing."""
    settings = {"steps": 3}

    def finished(into: Path) -> torch.Tensor:
        model = _model("draw")
        with model.frozen():
            loop = model.make_loop("a cat", tiny_tokenizer(), num_steps=3)
            SynthesisRun(into, loop, settings, seconds=0).run()
        return loop.samples[0].tensors["points"].detach().clone()

    def broken_off(into: Path) -> None:
        model = _model("draw")
        with model.frozen():
            loop = model.make_loop("a cat", tiny_tokenizer(), num_steps=3)
            SynthesisRun(into, loop, settings, seconds=0).run(lambda run: run.loop.step < 2)

    place, byte = rng.random(), rng.randrange(256)
    kind = rng.choice(["flip", "cut", "empty", "header", "none"])

    def run():
        expected = finished(folder / "whole")
        broken_off(folder / "part")
        state = folder / "part" / STATE
        content = bytearray(state.read_bytes())
        header = int.from_bytes(content[:8], "little") + 8
        if kind == "flip":
            content[int(place * len(content))] ^= byte or 1
        elif kind == "header":
            content[int(place * header)] ^= byte or 1
        elif kind != "none":
            content = content[: int(place * len(content)) if kind == "cut" else 0]
        state.write_bytes(content)
        found = finished(folder / "part")
        if not torch.equal(found, expected):
            return f"{WRONG}another drawing"
        return found

    return f"state, {kind} at {place:.4f}, {byte}", run, ("state", "--out", STATE)


ATTACKS = (
    configurations,
    arguments,
    arguments,
    grammar,
    scenes,
    bad_scenes,
    svg_files,
    svg_files,
    drawing_files,
    states,
)


def cases(seed: int, folder: Path) -> Iterator[Case]:
    return in_turn(KIND, ATTACKS, seed, folder)


__all__ = ["KIND", "cases"]
