"""The task "news" of `hf-clip-variants predict`: posts of a text and an image, such as rumours, and what counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answer_lines import rows_of, write_rows
from .arguments import check_out
from .output import prepare_libraries, use_all_cores
from .segmentation import file_name, png_of


if TYPE_CHECKING:
    from ..evaluation.posts import ClassifiedPost

NEWS = "news"
OUT = "posts"  # the folder that is written
BATCH = 8  # posts in one pass
_HEADER = ("path", "label", "score", "similarity", "text", "image", "cross", "layer")


def has_post_model(model: str) -> bool:
    """Whether a folder holds a model that reads a text and an image in one."""
    from ..evaluation.posts import is_post_model

    return is_post_model(model)


def classify_post_files(
    inputs: list[str] | Iterator[str],
    model: str | None,
    *,
    top: int,
    out: str | None,
    batch_size: int | None,
    device: str | None,
    as_json: bool,
) -> tuple[int, int]:
    """Classifies posts, prints answers and reasons, writes pictures: (posts that are broken, posts)."""
    if model is None:
        raise ValueError("--model: missing; want a model that reads a text and an image in one: folder or Hub id")
    out = OUT if out is None else out
    check_out("--out", out)
    prepare_libraries(watched=not as_json)
    use_all_cores()
    from ..evaluation.posts import classify_posts, find_posts, load_post_classifier

    loaded = load_post_classifier(model, device)
    taken: set[str] = set()
    found = classify_posts(loaded, find_posts(inputs), batch_size=batch_size or BATCH)
    return write_rows(
        rows_of(found, lambda one: _row(one, top) | {"picture": _saved(one, Path(out), taken)}, "name"),
        list(_HEADER),
        _cells,
        inputs,
        as_json=as_json,
        wanted="posts (tables: .csv, .jsonl; or images with .txt files)",
        note=f"{out} holds a picture of each post",
    )


def _row(found: ClassifiedPost, top: int) -> dict[str, Any]:
    answer = found.answer
    similarity = answer["similarity"]
    row = {
        "path": found.name,
        "label": answer["label"],
        "score": round(answer["score"], 6),
        "similarity": None if similarity is None else round(similarity, 6),
        "weights": {name: round(value, 6) for name, value in answer["weights"].items()},
        "layers": [round(share, 6) for share in answer["layers"]],
    }
    best = sorted(answer["scores"].items(), key=lambda one: -one[1])[:top]
    return row | ({"top": [{"label": name, "score": round(s, 6)} for name, s in best]} if top > 1 else {})


def _saved(found: ClassifiedPost, out: Path, taken: set[str]) -> str:
    from PIL import Image, ImageOps

    from ..annotations.post_pictures import Bar, draw_post
    from ..files.atomic_writes import write_atomically

    answer, names = found.answer, {"text": "weight of the text", "image": "of the image", "cross": "of both"}
    bars = [Bar(names[name], f"{value:.2f}", value) for name, value in answer["weights"].items()]
    if answer["similarity"] is not None:
        bars.insert(0, Bar("similarity", f"{answer['similarity']:.2f}", (1 + answer["similarity"]) / 2))
    with Image.open(found.post.images[0]) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    title = f"{answer['label']}  {100 * answer['score']:.1f} %"
    picture = draw_post(image, found.post.text, title, bars, answer["layers"])
    table, _, post = found.name.rpartition("#")
    name = f"{Path(table).stem}-{post}.png" if table else found.name
    return str(write_atomically(out / file_name(name, taken), png_of(picture)))


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """`layer` is the one of BERT's states that counts most, 0 the embeddings."""
    return row | row["weights"] | {"layer": row["layers"].index(max(row["layers"]))}


__all__ = ["NEWS", "OUT", "classify_post_files", "has_post_model"]
