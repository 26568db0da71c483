"""Posts of a text and images with a label, such as rumours: tables of them, splits that stay, batches."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .images.names import IMAGE_COLUMNS, LABEL_COLUMNS, usual_column
from .tables import open_table, read_json_lines


TEXT_COLUMNS = ("text", "content", "tweet", "post", "title", "caption", "sentence")
CLIP_TEXT_COLUMNS = ("clip_text", "translation", "translated", "english", "english_text", "summary")
IMAGES_COLUMNS = ("images", "image_paths", "imgs", "pics", *IMAGE_COLUMNS)
ID_COLUMNS = ("id", "post_id", "tweet_id", "mid", "index", "unnamed: 0")
GROUP_COLUMNS = ("group", "event", "event_id")
SEPARATOR = "|"  # between the images of a post
LABELS = {"0": 0, "1": 1, "rumor": 0, "rumour": 0, "fake": 0, "nonrumor": 1, "non-rumor": 1, "nonrumour": 1, "real": 1}
IMAGE_FOLDERS = ("", "rumor_images", "nonrumor_images", "images")  # below the table's folder
WithoutImage = Literal["error", "skip", "keep"]


@dataclass(frozen=True)
class Post:
    """
    Attributes:
        id: of the post, or the line of the table.
        text: what BERT reads.
        images: files that are there; may be none.
        label: a class, if the table has one.
        clip_text: what the dual encoder reads, such as a translation; None: `text`.
        group: what belongs together, such as an event, if the table says so.
    """

    id: str
    text: str
    images: tuple[str, ...] = ()
    label: int | None = None
    clip_text: str | None = None
    group: str | None = None

    def as_row(self, image: int = 0) -> dict[str, Any]:
        """As the pipeline and the collator take it, with one of its images."""
        chosen = self.images[image] if self.images else None
        return {"text": self.text, "image": chosen, "clip_text": self.clip_text, "label": self.label}


def read_posts(
    file: str | os.PathLike,
    *,
    without_image: WithoutImage = "error",
    image_folders: Sequence[str | os.PathLike] | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[str, int] | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> list[Post]:
    """Posts in a CSV, TSV or JSON lines file, as the Weibo set comes: a text, images with `|` between them (or a
    list), a label and maybe a translation.

    Args:
        file: with a line of column names.
        without_image: what becomes of a post none of whose images is there: `"error"`, `"skip"` (as in the paper,
            where each post has one) or `"keep"` (the model then answers by the text alone).
        image_folders: where images are looked for, by the path in the table and by its last part (paths may be
            addresses on the web). Default: the table's folder, and rumor_images, nonrumor_images, images in it.
        columns: names of the columns `text`, `image`, `label`, `clip_text`, `id`, `group`, where they are not the
            usual ones.
        labels: name -> class. Default: 0 and 1, or rumor, fake and nonrumor, real.
        report: is told how many posts were left out, and how many images are missing.

    Raises:
        ValueError: a row that is broken, a blank text, an unknown label, a post without an image (`"error"`), or no
            post at all; naming file and line.

    Example:

    ```python
    >>> import tempfile
    >>> from PIL import Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (8, 8)).save(folder / "a.png")
    >>> table = "text,image,label\\nA flood in town,a.png|b.png,rumor\\nAll is well,c.png,nonrumor\\n"
    >>> _ = (folder / "posts.csv").write_text(table)
    >>> posts = read_posts(folder / "posts.csv", without_image="skip", report=print)
    1 of 2 posts left out: none of their images is there
    2 of 3 images are not there
    >>> posts[0].label, Path(posts[0].images[0]).name
    (0, 'a.png')
    ```
    """
    file = Path(file)
    if without_image not in ("error", "skip", "keep"):
        raise ValueError(f"without_image: {without_image!r}; want 'error', 'skip' or 'keep'")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; want a table of posts")
    names, rows = _rows(file, dict(columns or {}))
    found_columns = _columns(file, names, dict(columns or {}))
    known = {str(name).strip().lower(): int(label) for name, label in (LABELS if labels is None else labels).items()}
    folders = [file.parent / name for name in IMAGE_FOLDERS] if image_folders is None else map(Path, image_folders)
    folders = [folder for folder in folders if folder.is_dir()]
    posts, left_out, missing, named = [], 0, 0, 0
    for line, row in rows:
        cell = {part: row[name] for part, name in found_columns.items()}
        where = f"{file}, line {line}"
        text = _text(cell.get("text"), f"{where}: {found_columns['text']}")
        paths = _image_names(cell.get("image"))
        images = [path for path in (_image_file(name, folders) for name in paths) if path is not None]
        named, missing = named + len(paths), missing + len(paths) - len(images)
        if not images and without_image != "keep":
            if without_image == "error":
                said = f"none of {paths[:3]} is a file" if paths else "no image"
                raise ValueError(f"{where}: {said}; want an image, or without_image='skip' or 'keep'")
            left_out += 1
            continue
        clip_text = cell.get("clip_text")
        posts.append(
            Post(
                id=str(cell.get("id") or line),
                text=text,
                images=tuple(images),
                label=_label(cell["label"], known, where) if "label" in cell else None,
                clip_text=clip_text if isinstance(clip_text, str) and clip_text.strip() else None,
                group=str(cell["group"]) if cell.get("group") else None,
            )
        )
    if left_out:
        report(f"{left_out} of {left_out + len(posts)} posts left out: none of their images is there")
    if missing:
        report(f"{missing} of {named} images are not there")
    if not posts:
        raise ValueError(f"{file}: no post is left of {left_out}; want posts with images, or without_image='keep'")
    return posts


def _rows(file: Path, columns: dict[str, str]) -> tuple[tuple[str, ...], Iterable[tuple[int, dict[str, Any]]]]:
    if file.suffix.lower() in (".jsonl", ".json"):
        rows = read_json_lines(file)
        return tuple(rows[0]), list(enumerate(rows, 1))
    table = open_table(file, columns.get("image"), ("text", "image", "label"))
    return table.columns, ((line, dict(zip(table.columns, values, strict=True))) for line, values in table.rows())


def _columns(file: Path, names: Sequence[str], wanted: dict[str, str]) -> dict[str, str]:
    usual = {"text": TEXT_COLUMNS, "image": IMAGES_COLUMNS, "clip_text": CLIP_TEXT_COLUMNS, "id": ID_COLUMNS}
    usual |= {"label": tuple(name for name in LABEL_COLUMNS if name != "name"), "group": GROUP_COLUMNS}
    if unknown := sorted(wanted.keys() - usual.keys()):
        raise ValueError(f"columns: {unknown[0]!r} is unknown; want some of {', '.join(usual)}")
    found = {}
    for part, spellings in usual.items():
        name = wanted.get(part) or usual_column([name for name in names if name not in found.values()], spellings)
        if name is not None and name not in names:
            raise ValueError(f"{file}: no column {name!r} for {part}, but {', '.join(map(repr, names))}")
        if name is not None:
            found[part] = name
    if "text" not in found:
        raise ValueError(
            f"{file}: no column of texts among {', '.join(map(repr, names))}; name it: columns={{'text': …}}"
        )
    return found


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: got {value!r}; want a text")
    return value


def _label(value: Any, known: Mapping[str, int], where: str) -> int:
    shown = str(value).strip().lower()
    shown = shown.removesuffix(".0")  # as spreadsheets write whole numbers
    if shown not in known:
        raise ValueError(f"{where}: label {value!r} is unknown; want one of {', '.join(known)}")
    return known[shown]


def _image_names(value: Any) -> list[str]:
    parts = value if isinstance(value, list | tuple) else str(value or "").split(SEPARATOR)
    names = [str(part).strip() for part in parts]
    return [name for name in names if name and name.lower() not in ("null", "none", "nan")]


def _image_file(name: str, folders: Sequence[Path]) -> str | None:
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    for folder in folders:
        for part in dict.fromkeys((name, last)):
            if part and "\0" not in part and len(part) < 1000 and (folder / part).is_file():
                return str(folder / part)
    return None


# ---- splits


def split_posts(posts: Sequence[Post], shares: Mapping[str, float], *, seed: int = 0) -> dict[str, list[Post]]:
    """Name -> posts. A post's place follows from a hash of its group, or of its text without marks and case, and the
    seed: it is the same on every machine and in every order, new posts move no old one, and posts of one event, or
    copies of one text, are never divided.

    Args:
        posts: of `read_posts`.
        shares: name -> share of the groups; they add up to 1.
        seed: another one gives another split.

    Raises:
        ValueError: shares that are not positive or do not add up to 1.

    Example:

    ```python
    >>> posts = [Post(str(number), f"text number {number}") for number in range(1000)]
    >>> split = split_posts(posts, {"train": 0.8, "test": 0.2})
    >>> len(split["train"]), fingerprint(split["test"])[:8]
    (797, '96a0ceb9')
    ```
    """
    is_number = [isinstance(share, int | float) and not isinstance(share, bool) for share in shares.values()]
    if not (is_number and all(is_number) and _are_shares(shares.values())):
        raise ValueError(f"shares: {dict(shares)}; want numbers > 0 that add up to 1")
    found: dict[str, list[Post]] = {name: [] for name in shares}
    for post in posts:
        key = hashlib.sha256(f"{seed}/{_key(post)}".encode("utf-8", "surrogatepass")).digest()
        place, ends = int.from_bytes(key[:8], "big") / 2**64, 0.0
        for name, share in shares.items():
            ends += share
            if place < ends or name == next(reversed(shares)):
                found[name].append(post)
                break
    return found


def _are_shares(numbers: Iterable[float]) -> bool:
    return all(0 < number <= 1 for number in numbers) and abs(sum(numbers) - 1) <= 1e-6


def _key(post: Post) -> str:
    if post.group is not None:
        return f"group {post.group}"
    words = unicodedata.normalize("NFKC", post.text).casefold()
    return "".join(letter for letter in words if letter.isalnum())


def fingerprint(posts: Iterable[Post]) -> str:
    """A SHA-256 of what is in a split, in any order: texts, names of images, labels. Two people with equal ones have
    the same split."""
    rows = []
    for post in posts:
        images = SEPARATOR.join(os.path.basename(image) for image in post.images)
        rows.append("\x1f".join((post.text, images, str(post.label))))
    return hashlib.sha256("\x1e".join(sorted(rows)).encode("utf-8", "surrogatepass")).hexdigest()


# ---- batches


class PostDataset(torch.utils.data.Dataset):
    """Posts as rows for a collator.

    Args:
        posts: of `read_posts`.
        any_image: of a post with several, a random one each time, as in the paper's training (PyTorch's generator);
            else the first.
    """

    def __init__(self, posts: Sequence[Post], any_image: bool = False):
        self.posts, self.any_image = list(posts), any_image

    def __len__(self) -> int:
        return len(self.posts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        post = self.posts[index]
        several = self.any_image and len(post.images) > 1
        return post.as_row(int(torch.randint(len(post.images), ())) if several else 0)


class PostCollator:
    """Rows with `text`, `image` and maybe `clip_text`, `label` -> a batch for FND-CLIP.

    Args:
        processor: a `FNDCLIPProcessor`. A batch in which no post has an image gets grey pixels and `image_mask` 0.

    For `Trainer`, with `remove_unused_columns=False`; and `dataloader_drop_last=True`, since a last batch of a single
    post cannot be normalised.
    """

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [row["text"] for row in rows]
        clip_texts = [row.get("clip_text") or row["text"] for row in rows]
        images = [row.get("image") for row in rows]
        batch = dict(self.processor(text=texts, clip_text=clip_texts, return_tensors="pt"))
        if any(image is not None for image in images):
            found = self.processor(images=images, return_tensors="pt")
            batch |= {name: found[name] for name in ("pixel_values", "image_mask")}
        else:
            size = self.processor.image_processor.crop_size
            batch["pixel_values"] = torch.zeros(len(rows), 3, size["height"], size["width"])
            batch["image_mask"] = torch.zeros(len(rows), dtype=torch.long)
        if rows[0].get("label") is not None:
            batch["labels"] = torch.tensor([int(row["label"]) for row in rows])
        return batch


@torch.no_grad()
def encode_posts(
    model: Any, processor: Any, rows: Sequence[Mapping[str, Any]], batch_size: int = 32
) -> dict[str, torch.Tensor]:
    """All that the encoders say of posts, with `labels` and `image_mask`: tensors with a row a post, on the CPU. What
    is behind frozen encoders trains on them in seconds: `model(**{name: one[rows] for name, one in found.items()})`.

    Args:
        model: an `FNDCLIPForSequenceClassification`; it is in eval mode meanwhile.
        processor: its processor.
        rows: of a `PostDataset`, or the like.
        batch_size: posts at once.

    Raises:
        ValueError: a batch size that is no positive whole number, no posts.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size: {batch_size!r}; want a whole number of at least 1")
    if not len(rows):
        raise ValueError("rows: no posts; want at least one")
    collate, found, training = PostCollator(processor), [], model.training
    features = ("text_states", "clip_text_features", "clip_image_features", "image_logits")
    model.eval()
    try:
        for start in range(0, len(rows), batch_size):
            batch = collate([rows[index] for index in range(start, min(start + batch_size, len(rows)))])
            kept = {name: batch.pop(name) for name in ("labels", "image_mask") if name in batch}
            given = {name: tensor.to(model.device) for name, tensor in batch.items()}
            encoded = model.get_features(**given)
            found.append(kept | {name: encoded[name].float().cpu() for name in features})
    finally:
        model.train(training)
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


__all__ = ["Post", "PostCollator", "PostDataset", "encode_posts", "fingerprint", "read_posts", "split_posts"]
