"""Attacks on FND-CLIP: its forward, features that were computed before, the processor, the pipeline, tables of posts
and their splits.

What is right: logits of all posts, finite, and each post's are those that it has alone; a table's posts are those
that were written; each post is in one part of a split, wherever it stands; or ValueError names the argument, the
weight, the post, or the file and its line.
"""

import copy
import csv
import functools
import io
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from attack_cases import WRONG, Case
from attack_prompts import BAD, ODD, _ways, _weight
from fnd_clip_runs import fnd_clip_batch, fnd_clip_model, news_processor
from PIL import Image

from hf_clip_variants.data.posts import (
    Post,
    PostCollator,
    PostDataset,
    encode_posts,
    fingerprint,
    read_posts,
    split_posts,
)
from hf_clip_variants.modeling.fnd_clip.modeling_fnd_clip import FEATURES
from hf_clip_variants.modeling.posts.text_and_image_classification import TextAndImageClassificationPipeline


KIND = "posts"
NEEDED = {"input_ids": "text_states", "clip_input_ids": "clip_text_features", "pixel_values": "clip_image_features"}
TEXTS = (
    "a fire in town",
    "the old dog .",
    "flood",
    "日本の photo",
    "w1 " * 40,
    "a\n|cat|",
    '"quoted", news',
    "'",
    "7",
)
BLANK = ("", "  ", "\n", "\u200b \t", None, 3, b"a fire", ["a fire"], {"text": "a fire"}, math.nan)

Attack = tuple[str, Callable[[], object], tuple[str, ...]]


def _shown(value: object) -> str:
    shown = f"{type(value).__name__} {tuple(value.shape)} {value.dtype}" if hasattr(value, "dtype") else f"{value!r}"
    return " ".join(shown.split())[:70]


def _right(outputs, posts: int, is_cosine: bool = True) -> object:
    wanted = {
        "logits": [posts, 2],
        "similarity": [posts],
        "modality_weights": [posts, 3],
        "layer_attention": [posts, 4],
    }
    for name, shape in wanted.items():
        if list(outputs[name].shape) != shape:
            return f"{WRONG}{name} {list(outputs[name].shape)}"
        if not outputs[name].isfinite().all():
            return f"{WRONG}{name}: not finite"
    if outputs.loss is not None and not outputs.loss.isfinite():
        return f"{WRONG}the loss is not finite"
    if not (outputs.modality_weights.ge(0) & outputs.modality_weights.le(1)).all():
        return f"{WRONG}weights of modalities outside 0..1"
    if is_cosine and outputs.similarity.abs().max() > 1 + 1e-4:
        return f"{WRONG}a cosine of {outputs.similarity.abs().max()}"
    return True


# ---- forward


def forward(rng: random.Random, folder: Path) -> Attack:
    """One argument, or one weight."""
    model = fnd_clip_model(batch_layer_attention=rng.random() < 0.2)
    given = fnd_clip_batch(2, seed=rng.randrange(99))
    given["image_mask"], given["clip_attention_mask"] = torch.tensor([1, 0]), torch.ones_like(given["clip_input_ids"])
    named: tuple[str, ...]
    if rng.random() < 0.25:
        model, weight, name, value = _weight(model, rng)
        named = (weight, "overflow", "not finite", "numbers")
        given.pop("labels")
    else:
        name = rng.choice(sorted(given))
        ways = _ways(given[name], rng) if given[name].dim() > 1 else (*_ways(given[name][:, None], rng), -given[name])
        given[name] = value = rng.choice((*ODD, None, *ways))
        named = (name,)
        if name in ("pixel_values", "input_ids", "clip_input_ids"):  # another number of posts than the rest
            named = (name, *(one for one in given if one != name))

    def run():
        with torch.inference_mode():
            found = model(**given)
        return _right(found, len(given["input_ids"]))

    return f"forward, {name} = {_shown(value)}", run, named


def features(rng: random.Random, folder: Path) -> Attack:
    """Features instead of texts and images, and maybe similarities, of a model whose answer begins at them."""
    model, given = fnd_clip_model(), fnd_clip_batch(3, seed=rng.randrange(99))
    begins = rng.random() < 0.4
    if begins:
        model = copy.deepcopy(fnd_clip_model(adapt_features=True, similarity_residual=True))
        model.start_from_similarity(torch.rand(8), torch.arange(8) % 2)
    labels = given.pop("labels")
    with torch.no_grad():
        encoded = model.get_features(**given)
    given = {name: encoded[name].clone() for name in FEATURES} | {"labels": labels}
    given |= {"similarity": 2 * torch.rand(3) - 1} if begins else {}
    name = rng.choice((*FEATURES, "similarity") if begins else FEATURES)
    ways = _ways(given[name], rng) if given[name].dim() > 1 else _ways(given[name][:, None], rng)
    given[name] = value = rng.choice((*ODD, None, *ways, given[name] * 0, given[name] * 1e18))

    def run():
        with torch.inference_mode():
            found = model(**given)
        return _right(found, 3, name != "similarity")

    return f"features, {name} = {_shown(value)}", run, (name, *FEATURES, *NEEDED)


def alone(rng: random.Random, folder: Path) -> Attack:
    """A post beside others has the answer that it has alone; what stands in place of an image that is not there, and
    behind the end of a text, is nothing."""
    model, posts = fnd_clip_model(), rng.randint(2, 5)
    given = fnd_clip_batch(posts, seed=rng.randrange(99))
    del given["labels"]
    there = torch.tensor([rng.randint(0, 1) for _ in range(posts)])
    own = {name: one[:1].clone() for name, one in given.items()}
    own["image_mask"] = there[:1].clone()
    given["image_mask"] = rng.choice([there, there.bool(), there.float(), there.to(torch.uint8)])
    odd = rng.choice([0.0, 1.0, -3.0, 100.0])
    given["pixel_values"] = torch.where(there.bool()[:, None, None, None], given["pixel_values"], odd)
    given["input_ids"] = given["input_ids"].masked_fill(given["attention_mask"] == 0, rng.randrange(5, 48))

    def run():
        with torch.inference_mode():
            together, expected = model(**given).logits[:1], model(**own).logits
        difference = float((together - expected).abs().max())
        return True if difference < 1e-3 else f"{WRONG}another answer beside others, by {difference}"

    return f"alone, {there.tolist()}, {given['image_mask'].dtype}, {odd}", run, ("pixel_values", "image_mask")


def training(rng: random.Random, folder: Path) -> Attack:
    """Gradients are finite, and none reach what is frozen."""
    model, posts = copy.deepcopy(fnd_clip_model()).train(), rng.choice([1, 2, 2, 3, 8])
    given = fnd_clip_batch(posts, seed=rng.randrange(99))
    given["image_mask"] = torch.tensor([rng.randint(0, 1) for _ in range(posts)])
    same = rng.random() < 0.3  # no spread in the batch
    given = {name: one[:1].expand_as(one).clone() if same and name != "labels" else one for name, one in given.items()}

    def run():
        model(**given).loss.backward()
        wrong = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        frozen = [n for n, p in model.named_parameters() if p.grad is not None and n.startswith(("text_", "dual_"))]
        return f"{WRONG}gradients of {(wrong + frozen)[:3]}" if wrong or frozen else True

    return f"training, {posts} posts{' all the same' if same else ''}", run, ("input_ids",)


# ---- processor and pipeline


@functools.cache
def _pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    sizes = ((24, 24), (30, 50), (1, 1), (200, 3))
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def _odd_images(rng: random.Random, folder: Path) -> tuple:
    broken = folder / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + rng.randbytes(30))
    array = np.asarray(_pictures()[1])
    modes = [Image.new(mode, (9, 9)) for mode in ("L", "RGBA", "I;16", "1")]
    return (
        None, [], [None], 7, "", "no such.png", str(broken), broken, b"", rng.randbytes(20), object(), {}, *modes,
        array, array[0], array.astype(float) / 255, array * math.nan, [array, array], [[array]],
        torch.from_numpy(array.copy()), torch.zeros(3, 0, 0),
    )  # fmt: skip


def processing(rng: random.Random, folder: Path) -> Attack:
    processor, posts = news_processor(), rng.randint(1, 4)
    text = [rng.choice(TEXTS) for _ in range(posts)]
    given = {"text": text, "clip_text": [rng.choice(TEXTS) for _ in text]}
    given["images"] = [rng.choice(_pictures()) for _ in text]
    name, place = rng.choice(sorted(given)), rng.randrange(posts)
    value = rng.choice(_odd_images(rng, folder) if name == "images" else BLANK)
    whole = rng.random() < 0.4
    given[name] = value if whole else [value if number == place else one for number, one in enumerate(given[name])]
    if rng.random() < 0.2:
        given[name] = given[name][1:] if isinstance(given[name], list) else given[name]
    options = rng.choice([{}, {"padding": "max_length"}, {"max_length": rng.choice([3, 5, 400])}])

    def run():
        found = processor(**given, **options, return_tensors="pt")
        sizes = {len(one) for one in found.values()}
        texts = given["text"] if given["text"] is not None else given["clip_text"]
        wanted = 1 if isinstance(texts, str) else posts if texts is None else len(texts)
        if sizes != {wanted}:
            return f"{WRONG}{sizes} rows of {wanted} posts"
        if "pixel_values" in found and list(found["pixel_values"].shape[1:]) != [3, 24, 24]:
            return f"{WRONG}pixels {list(found['pixel_values'].shape)}"
        if not all(one.isfinite().all() for one in found.values()):
            return f"{WRONG}not finite"
        if "input_ids" in found and found["input_ids"].shape[1] > max(16, options.get("max_length", 0)):
            return f"{WRONG}{found['input_ids'].shape[1]} tokens"
        return True

    what = f"processor, {name}{'' if whole else f'[{place}]'} = {_shown(value)}, {options}"
    return what, run, (name, "images", "text", "max_length")


@functools.cache
def _pipeline() -> TextAndImageClassificationPipeline:
    return TextAndImageClassificationPipeline(model=fnd_clip_model(), processor=news_processor())


def answers(rng: random.Random, folder: Path) -> Attack:
    classify, posts = _pipeline(), rng.randint(1, 3)
    rows = [{"text": rng.choice(TEXTS), "image": rng.choice(_pictures())} for _ in range(posts)]
    place, name = rng.randrange(posts), rng.choice(["text", "image", "clip_text"])
    value = rng.choice(_odd_images(rng, folder) if name == "image" else BLANK)
    rows[place][name] = value
    if rng.random() < 0.2:
        rows[place] = value = rng.choice([None, 3, "a fire", [], {}, {"image": _pictures()[0]}])
    options = {"without_image": rng.choice(["error", "text"]), "several_images": rng.choice(["first", "mean"])}
    options |= {"batch_size": rng.choice([1, 2])}
    if rng.random() < 0.1:
        options[rng.choice(sorted(options))] = rng.choice([None, "x", -1, 0, 2.5])

    def run():
        found = classify(rows, **options)
        if len(found) != posts:
            return f"{WRONG}{len(found)} answers to {posts} posts"
        for row, one in zip(rows, found, strict=True):
            numbers = [one["score"], *one["scores"].values(), *one["weights"].values(), *one["layers"]]
            if not all(math.isfinite(number) and 0 <= number <= 1 for number in numbers):
                return f"{WRONG}{one}"
            if abs(sum(one["scores"].values()) - 1) > 1e-4 or one["label"] != max(
                one["scores"], key=one["scores"].get
            ):
                return f"{WRONG}{one['scores']}"
            image = row.get("image") if isinstance(row, dict) else None
            without = image is None or (isinstance(image, list) and not any(each is not None for each in image))
            if (one["similarity"] is None) != without:
                return f"{WRONG}similarity {one['similarity']} of {_shown(row.get('image'))}"
        return True

    return f"pipeline, {name} = {_shown(value)}, {options}", run, ("posts[", name, *options)


# ---- tables and splits


def _written(rng: random.Random, rows: list[dict], folder: Path) -> Path:
    kind = rng.choice(["csv", "tsv", "jsonl"])
    file = folder / f"posts.{kind}"
    columns = [*rows[0]]
    rng.shuffle(columns)
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows), "utf-8")
        return file
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="," if kind == "csv" else "\t", quoting=csv.QUOTE_ALL)
    writer.writerows([columns, *([row[name] for name in columns] for row in rows)])
    file.write_text(text.getvalue(), rng.choice(["utf-8", "utf-8-sig"]), newline="")
    return file


def table(rng: random.Random, folder: Path) -> Attack:
    """A table as it was written, or with one thing that is wrong."""
    pictures = [f"{number}.png" for number in range(4)]
    for number, name in enumerate(pictures):
        _pictures()[number].save(folder / name)
    rows = []
    for number in range(rng.randint(1, 5)):
        images = rng.sample([*pictures, "gone.png", "http://x.org/a/1.png"], rng.randint(1, 3))
        rows.append(
            {"id": f"n{number}", "text": rng.choice(TEXTS), "image": "|".join(images), "label": rng.choice("01")}
        )
    if rng.random() < 0.3:
        for row in rows:
            row["image"] = rng.choice(["", "null", "gone.png", row["image"]])
    without = rng.choice(["error", "skip", "keep"])
    change, place = rng.choice(["nothing", "nothing", "text", "label", "column", "bytes", "cut", "option"]), 0
    if change in ("text", "label"):
        place = rng.randrange(len(rows))
        rows[place][change] = (
            rng.choice(["", "   ", "\t"]) if change == "text" else rng.choice(["2", "", "nan", "true"])
        )
    if change == "column":
        name = rng.choice(["text", "label", "image"])
        rows = [{key: value for key, value in row.items() if key != name} for row in rows]
    file = _written(rng, rows, folder)
    content = file.read_bytes()
    if change == "bytes":
        spot = rng.randrange(len(content))
        file.write_bytes(content[:spot] + rng.choice([b"\0", b"\xff", b'"', b"\n", b"\x80"]) + content[spot:])
    if change == "cut":
        file.write_bytes(content[: rng.randrange(len(content))])
    options: dict = {}
    if change == "option":
        options = rng.choice([{"columns": {"text": "x"}}, {"columns": {"x": "text"}}, {"image_folders": ["gone"]}])

    def there(row) -> list[str]:
        return [
            one.rpartition("/")[2] for one in row.get("image", "").split("|") if one.rpartition("/")[2] in pictures
        ]

    def run():
        posts = read_posts(file, without_image=without, **options)
        if change in ("text", "label") and (without == "keep" or there(rows[place])):
            return f"{WRONG}accepted {change} {rows[place][change]!r}"
        if change in ("bytes", "cut"):
            return all(post.text.strip() and post.label in (0, 1, None) for post in posts) or f"{WRONG}{posts}"
        wanted = [row for row in rows if there(row) or without == "keep"]
        if change == "option":
            return True if all(post.text in TEXTS for post in posts) else f"{WRONG}texts"
        if [post.text for post in posts] != [row["text"] for row in wanted]:
            return f"{WRONG}texts {[post.text for post in posts]!r}"
        if [[Path(one).name for one in post.images] for post in posts] != [there(row) for row in wanted]:
            return f"{WRONG}images {[post.images for post in posts]}"
        if [post.label for post in posts] != [int(row["label"]) if "label" in row else None for row in wanted]:
            return f"{WRONG}labels {[post.label for post in posts]}"
        return True

    return f"table, {file.suffix}, {change}, {without}", run, (file.name, "columns", "image_folders")


def splits(rng: random.Random, folder: Path) -> Attack:
    words = [f"{rng.choice(TEXTS)} {rng.randrange(30)}" for _ in range(rng.randint(0, 60))]
    posts = [Post(str(n), text, group=rng.choice([None, "e1", "e2"])) for n, text in enumerate(words)]
    cuts = sorted(rng.random() for _ in range(rng.randint(0, 3)))
    shares = {str(n): high - low for n, (low, high) in enumerate(itertools.pairwise([0.0, *cuts, 1.0]))}
    if odd := rng.random() < 0.3:
        shares = shares | {rng.choice(["0", "x"]): rng.choice([0.0, -0.1, 1.0001, *BAD, "a", None, True, [1]])}
    seed = rng.randrange(10**9)

    def run():
        found = split_posts(posts, shares, seed=seed)
        if sum(map(len, found.values())) != len(posts) or [*found] != [*shares]:
            return f"{WRONG}{ {name: len(part) for name, part in found.items()} } of {len(posts)}"
        again = split_posts(random.Random(1).sample(posts, len(posts)), shares, seed=seed)
        if [fingerprint(one) for one in found.values()] != [fingerprint(one) for one in again.values()]:
            return f"{WRONG}another split in another order"
        place = {post.id: name for name, part in found.items() for post in part}
        keys: dict = {}
        for post in posts:
            keys.setdefault(post.group or "".join(filter(str.isalnum, post.text.casefold())), set()).add(
                place[post.id]
            )
        return True if all(len(one) == 1 for one in keys.values()) else f"{WRONG}copies or an event are divided"

    return f"splits, {len(posts)} posts, {shares if odd else len(shares)}"[:90], run, ("shares",)


def batches(rng: random.Random, folder: Path) -> Attack:
    """Posts with and without images through the collator: what the encoders say of each is what they say alone."""
    model, processor = fnd_clip_model(), news_processor()
    for number, image in enumerate(_pictures()):
        image.save(folder / f"{number}.png")
    files = [str(folder / f"{number}.png") for number in range(4)]
    posts = [
        Post(str(n), rng.choice(TEXTS), tuple(rng.sample(files, rng.randint(0, 3))), n % 2, rng.choice([None, *TEXTS]))
        for n in range(rng.randint(1, 4))
    ]
    size, rows = rng.randint(1, 5), PostDataset(posts, any_image=False)
    if rng.random() < 0.2:
        size = rng.choice([0, -1, 1.5, "x", None])

    def run():
        found = encode_posts(model, processor, rows, size)
        alone = encode_posts(model, processor, [rows[len(rows) - 1]], 1)
        if found["labels"].tolist() != [post.label for post in posts]:
            return f"{WRONG}labels {found['labels'].tolist()}"
        if found["image_mask"].tolist() != [int(bool(post.images)) for post in posts]:
            return f"{WRONG}image_mask {found['image_mask'].tolist()}"
        names = FEATURES if posts[-1].images else FEATURES[:2]
        wrong = [name for name in names if not torch.allclose(found[name][-1:], alone[name], atol=1e-4)]
        if wrong:
            return f"{WRONG}{wrong} of the last post are others than alone"
        PostCollator(processor)([rows[0]])
        return True

    return f"batches of {size!r}, {[len(post.images) for post in posts]}", run, ("batch_size",)


ATTACKS = (forward, table, processing, features, answers, alone, forward, table, splits, training, batches)


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """For ever, every attack in turn."""
    rng = random.Random(f"{KIND} {seed}")
    for count in itertools.count():
        place = folder / f"posts-{seed}-{count}"
        place.mkdir(parents=True, exist_ok=True)
        name, run, named = ATTACKS[count % len(ATTACKS)](random.Random(rng.random()), place)
        yield Case(KIND, f"{count} {name}", run, named)


__all__ = ["KIND", "cases"]
