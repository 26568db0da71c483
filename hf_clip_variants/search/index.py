"""`Index`: vectors of pictures, videos and sounds on the disk, searched exactly in bounded memory, or by FAISS."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from ..data.audio.files import load_audio
from ..evaluation.saved_folders import read_json
from ..files.atomic_writes import replacing
from ..files.content_hashes import hash_of_files
from ..files.index_folders import MANIFEST
from ..files.json_files import write_json
from ..modeling.dual_encoders.backbones import unit_norm
from ..modeling.dual_encoders.prompts import listed
from ..optional_dependencies import require
from .encoder import Encoder, load_encoder
from .manifest import content_of, wrong_columns, wrong_field
from .sources import KINDS, Source, open_source


if TYPE_CHECKING:
    import datasets

FORMAT_VERSION = 1
FAISS, FAISS_ABOUT = "faiss.index", "faiss.json"
_ROWS = 2048  # compared at once: as float32, they stay in the processor's cache
_SCORES = 1 << 20  # kept at once for each query
_SPARE = 32  # more hits than are wanted, in case that some scores differ in their last bits only
_PROBED = 16  # lists of an inverted file that FAISS looks into, at least
_LARGEST_SIZE = 4096  # of a graph, a code or a projection in a recipe of FAISS
_TRAINED_ON = 40  # vectors for each list, as FAISS asks for


@dataclass(frozen=True)
class Hit:
    """
    What was found.

    Args:
        path: of the file, below the folder that was indexed, or the name of the row.
        kind: "image", "video" or "audio".
        score: cosine similarity, -1 to 1. It is no probability; scores of other models or kinds are on other scales.
        start, end: seconds; the same for a frame, None for a picture.
        row: in the index.
    """

    path: str
    kind: str
    score: float
    start: float | None
    end: float | None
    row: int


def open_index(
    folder: str | os.PathLike,
    model: str | os.PathLike | Encoder | None = None,
    device: torch.device | str | None = None,
    files: str | os.PathLike | None = None,
) -> Index:
    """An index that `build_index` made.

    Args:
        folder: of the index.
        model: where its model is now, if it has moved; default: the name that the index has of it. It is loaded, and
            compared with the one that made the index, with the first query.
        device: for the model; default: a GPU if there is one.
        files: where the folder or table that was indexed is now, if it has moved.

    Raises:
        OSError: no index there, one that is not finished, or one whose files are not as they were written (they are
            hashed here: 0.9 s for a GB).
    """
    folder = Path(os.path.abspath(os.path.expanduser(folder)))
    if not (folder / MANIFEST).is_file():
        unfinished = " that is finished; repeat the command that makes it" if (folder / ".building").is_dir() else ""
        raise FileNotFoundError(f"index: no index{unfinished} in {folder}")
    manifest = read_json(folder / MANIFEST)
    if manifest.get("version") != FORMAT_VERSION:
        raise OSError(f"{folder}: an index of version {manifest.get('version')!r}; want {FORMAT_VERSION}")
    if wrong := wrong_field(manifest):
        raise OSError(f"{folder / MANIFEST}: {wrong}: it is damaged; remove the folder and make it anew")
    if files is not None:
        manifest["source"] = os.path.abspath(os.path.expanduser(files))
    return Index(folder, manifest, model, device)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """`datasets` shows none of its own."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()


class Index:
    """
    Made by `open_index` and `build_index`.

    Attributes:
        dataset (`datasets.Dataset`): a row for each vector, see `build_index`.
        manifest (`dict`): what `index.json` says: source, model, settings of videos, files that were not readable.
        faiss (`str`, *optional*): how its approximate index was made; None if it has none.

    `build_index` has an example that runs. With an index on the disk:

    ```python
    index = open_index("pets-index")
    for hit in index.search("a sleeping cat", top=3):
        print(f"{hit.score:.3f} {hit.path} {hit.start}")  # 0.312 sofa.jpg None
    ```
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], model: Any = None, device: Any = None):
        import datasets

        self.folder, self.manifest = folder, manifest
        self._device = device
        self._model = model
        try:
            if manifest.get("content", written := content_of(folder)) != written:
                raise ValueError("its files are not as they were written")
            with without_bars():
                self.dataset: datasets.Dataset = datasets.load_from_disk(str(folder))
            self.table: pa.Table = self.dataset.data.table
            wrong = wrong_columns(self.table)
        except Exception as error:  # of damaged files, `datasets` raises anything
            raise OSError(
                f"{folder}: its vectors cannot be read ({error}); remove the folder and make it anew"
            ) from error
        if wrong:
            raise OSError(f"{folder}: {wrong}: it is damaged; remove the folder and make it anew")
        field = self.table.schema.field("features").type
        if getattr(field, "list_size", None) != manifest["width"] or field.value_type != pa.float16():
            raise OSError(f"{folder}: features of {field}; want {manifest['width']} of float16")

    def __len__(self) -> int:
        """The number of vectors."""
        return len(self.dataset)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts().items())
        return f"Index({counts}; {len(self)} vectors of {self.manifest['model']['name']})"

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """(path, reason) of each file that could not be read."""
        return [(path, why) for path, why in self.manifest["unreadable"]]

    # ---- files

    @cached_property
    def _files(self) -> tuple[np.ndarray, np.ndarray]:
        """First row of each file, and its kind as a number of `KINDS`. Rows of a file follow each other."""
        paths = self.table.column("path").combine_chunks()
        changed = np.ones(len(paths), bool)
        if len(paths) > 1:
            changed[1:] = pa.compute.not_equal(paths.slice(1), paths.slice(0, len(paths) - 1)).to_numpy(False)
        first = np.flatnonzero(changed)
        kinds = self.table.column("kind").take(pa.array(first))
        return first, pa.compute.index_in(kinds, pa.array(KINDS)).to_numpy()

    def counts(self) -> dict[str, int]:
        """Files of each kind."""
        numbers = np.bincount(self._files[1], minlength=len(KINDS)).tolist()
        return {kind: number for kind, number in zip(KINDS, numbers, strict=True) if number}

    def stamps(self) -> dict[str, tuple[int, int, str]]:
        """Path -> size, time and hash of each file, as they were."""
        rows = self.table.select(["path", "size", "modified", "content"]).take(pa.array(self._files[0]))
        path, *stamps = (column.to_pylist() for column in rows.columns)
        return dict(zip(path, zip(*stamps, strict=True), strict=True))

    @cached_property
    def source(self) -> Source:
        """Where the files are, to be shown. OSError if they have moved."""
        about = self.manifest
        return open_source(about["source"], about["column"], about["split"])

    def location(self, hit: Hit) -> str:
        """Where its file is; of a row of a table, its name."""
        return self.place_of(hit.path)

    def place_of(self, path: str) -> str:
        about = self.manifest
        return path if about["column"] else os.path.join(about["source"], *path.split("/"))

    # ---- the model

    @cached_property
    def encoder(self) -> Encoder:
        """The model that made the index. ValueError if another one was named."""
        if isinstance(self._model, Encoder):
            encoder = self._model
        else:
            named = self.manifest["model"]["name"]
            if self._model is None and os.path.isabs(named) and not os.path.isdir(named):
                raise FileNotFoundError(f"model: {named}, which made the index, is not there any more; name it anew")
            encoder = load_encoder(self._model or named, self._device)
        self.check_model(encoder)
        return encoder

    def check_model(self, encoder: Encoder) -> None:
        """ValueError, with both names, unless this model made the index."""
        made_with = self.manifest["model"]
        different = encoder.why_another(made_with)
        if different is not None:
            raise ValueError(
                f"model: {self.folder} was made with {made_with['name']} ({made_with['type']}); got {encoder.name} "
                f"({type(encoder.model).__name__}), another one by {different}; want the same model, or an index of "
                "its own"
            )

    # ---- search

    def search(
        self,
        text: str | None = None,
        *,
        image: Any = None,
        sound: Any = None,
        top: int = 20,
        kinds: Sequence[str] | None = None,
        every_moment: bool = False,
        templates: str | Sequence[str] | None = None,
        exact: bool | None = None,
    ) -> list[Hit]:
        """The nearest files, best first.

        Args:
            text: in a language of the model.
            image: a path, URL, bytes, PIL image or array. sound: a path, bytes, or a dictionary of `array` and
                `sampling_rate`. With several of the three, the mean of their embeddings is searched for.
            top: how many files.
            kinds: of "image", "video", "audio". Default: all.
            every_moment: all near frames, clips and windows of a file, instead of the nearest one.
            templates: such as "a photo of a {}."; default: the text alone.
            exact: False: ask FAISS, which may miss some. Default: exact unless there is a FAISS index.

        Raises:
            ValueError: nothing to search for, a blank text, an unreadable image or sound, another model.
        """
        return self.nearest(self.query(text, image, sound, templates), top, kinds, every_moment, exact)[0]

    def query(self, text=None, image=None, sound=None, templates=None) -> torch.Tensor:
        """(1, D) of unit norm: what `search` looks for."""
        found = []
        if text is None and image is None and sound is None:
            raise ValueError("query: got no text, image or sound; want at least one of them")
        if text is not None:
            found.append(self.encoder.encode_texts([text], templates))
        for name, value, kind in (("image", image, "image"), ("sound", sound, "audio")):
            if value is not None and kind not in self.encoder.kinds:
                raise ValueError(f"{name}: {self.encoder.name} encodes {' and '.join(self.encoder.kinds)} only")
        if image is not None:
            found.append(self.encoder.encode_pixels(_pixels(self.encoder, image)))
        if sound is not None:
            audio = sound if isinstance(sound, dict) and "array" in sound else load_audio(sound)
            extractor = self.encoder.feature_extractor
            inputs = extractor([audio], resample=True, return_tensors="pt")
            found.append(self.encoder.encode_audio(inputs["input_features"]))
        return unit_norm(torch.stack(found).mean(0))

    def nearest(
        self,
        queries: torch.Tensor,
        top: int = 20,
        kinds: Sequence[str] | None = None,
        every_moment: bool = False,
        exact: bool | None = None,
    ) -> list[list[Hit]]:
        """The nearest files of each of (Q, D) embeddings, best first; of equal scores the first row first. See
        `search`."""
        try:
            queries = torch.as_tensor(queries)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"queries: got {type(queries).__name__}; want (Q, {self.manifest['width']})") from error
        if queries.is_complex() or queries.dtype == torch.bool:
            raise ValueError(f"queries: got {queries.dtype}; want numbers")
        queries = queries.to("cpu", torch.float32)
        if queries.ndim != 2 or queries.shape[1] != self.manifest["width"]:
            raise ValueError(f"queries: got {tuple(queries.shape)}; want (Q, {self.manifest['width']})")
        if not bool(queries.isfinite().all()):
            raise ValueError("queries: NaN or infinity; want finite numbers")
        if type(top) is not int or top < 1:
            raise ValueError(f"top: got {top!r}; want a whole number, at least 1")
        for name, value in (("every_moment", every_moment), ("exact", exact)):
            if not (isinstance(value, bool) or (value is None and name == "exact")):
                raise ValueError(f"{name}: got {value!r}; want True or False")
        if not len(queries):
            return []
        wanted = np.isin(np.array(KINDS), _checked(kinds))[self._files[1]] if kinds is not None else None
        if exact is None:
            exact = self.faiss is None
        search = self._exact if exact else self._approximate
        return [self._hits(*found) for found in search(queries, top, wanted, every_moment)]

    def _hits(self, rows: np.ndarray, scores: np.ndarray) -> list[Hit]:
        columns = self.table.select(["path", "kind", "start", "end"]).take(pa.array(rows, pa.int64())).to_pylist()
        return [
            Hit(row["path"], row["kind"], score, row["start"], row["end"], number)
            for row, score, number in zip(columns, scores.tolist(), rows.tolist(), strict=True)
        ]

    def vectors(self, size: int = _ROWS) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, (N, D) float32) of rows in order, at most `size` at once. The tensor is used again."""
        room = torch.empty(size, self.manifest["width"])
        first = 0
        for chunk in self.table.column("features").chunks:
            for start in range(0, len(chunk), size):
                piece = chunk.slice(start, size)
                count = len(piece)
                # The mapped file itself, not a copy.
                room[:count] = torch.from_dlpack(piece.flatten()).view(count, -1)
                yield first, room[:count]
                first += count

    def _exact(self, queries, top, wanted, every_moment) -> list[tuple[np.ndarray, np.ndarray]]:
        best = self._by_matrix_products(queries, top + _SPARE, wanted, every_moment)
        # The last bits of a product depend on where a row stands. Once more, so that equal vectors have equal scores.
        return [
            self._best(rows, self._scores_of(query, rows), top, every_moment)
            for query, (rows, _) in zip(queries, best, strict=True)
        ]

    def _scores_of(self, query: torch.Tensor, rows: np.ndarray) -> np.ndarray:
        found = self.table.column("features").take(pa.array(rows, pa.int64())).combine_chunks().flatten()
        vectors = found.to_numpy(zero_copy_only=False).reshape(-1, self.manifest["width"])
        return np.array([np.dot(vector, query.numpy().astype(np.float64)) for vector in vectors.astype(np.float64)])

    def _by_matrix_products(self, queries, top, wanted, every_moment) -> list[tuple[np.ndarray, np.ndarray]]:
        best: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
        scores = torch.empty(len(queries), min(max(_SCORES // len(queries), _ROWS), len(self)))
        begin = filled = 0
        for first, vectors in self.vectors(min(_ROWS, scores.shape[1])):
            if filled + len(vectors) > scores.shape[1]:
                best = self._merged(best, scores[:, :filled], begin, top, wanted, every_moment)
                begin, filled = first, 0
            torch.mm(queries, vectors.T, out=(part := torch.empty(len(queries), len(vectors))))
            scores[:, filled : filled + len(vectors)] = part
            filled += len(vectors)
        return self._merged(best, scores[:, :filled], begin, top, wanted, every_moment)

    def _merged(self, best, scores: torch.Tensor, begin: int, top: int, wanted, every_moment: bool):
        """The best rows of those before and of `scores` (Q, N), which are of the rows from `begin` on."""
        first, _ = self._files
        end = begin + scores.shape[1]
        # Files with a row in this part; the first and the last may have others outside of it.
        low = int(np.searchsorted(first, begin, side="right")) - 1
        high = int(np.searchsorted(first, end, side="left"))
        bounds = np.clip(first[low:high], begin, None) - begin
        lengths = np.diff(np.append(bounds, scores.shape[1]))
        is_single = every_moment or len(bounds) == scores.shape[1]
        found = []
        for (rows, values), row in zip(best, scores.numpy(), strict=True):
            if wanted is not None:
                row = np.where(np.repeat(wanted[low:high], lengths), row, -np.inf)
            of_file = row if is_single else np.maximum.reduceat(row, bounds)
            places = _largest(of_file, top)
            if not is_single:
                places = np.array(
                    [bounds[p] + int(np.argmax(row[bounds[p] : bounds[p] + lengths[p]])) for p in places], np.int64
                )
            places = places[np.isfinite(row[places])]
            found.append(
                self._best(np.append(rows, begin + places), np.append(values, row[places]), top, every_moment)
            )
        return found

    def _best(self, rows: np.ndarray, scores: np.ndarray, top: int, every_moment: bool):
        """The first `top` by score, then by row; without `every_moment` one of each file."""
        order = np.lexsort((rows, -scores))
        rows, scores = rows[order], scores[order]
        if not every_moment:
            files = np.searchsorted(self._files[0], rows, side="right")
            _, kept = np.unique(files, return_index=True)
            kept.sort()
            rows, scores = rows[kept], scores[kept]
        return rows[:top], scores[:top]

    # ---- FAISS

    @property
    def faiss(self) -> str | None:
        about = self.folder / FAISS_ABOUT
        return read_json(about)["factory"] if about.is_file() and (self.folder / FAISS).is_file() else None

    def add_faiss(self, factory: str = "IVF1024,Flat", probed: int = _PROBED) -> None:
        """Make an approximate index beside the vectors, for millions of them; `datasets`' own, by inner product.

        Args:
            factory: recipe of FAISS's `index_factory`: "Flat", "HNSW32", "IVF1024,Flat", "IVF4096,PQ64", …
            probed: of an inverted file, the lists that a query looks into: more are slower and miss less.

        Raises:
            ImportError: FAISS is not installed. ValueError: no such recipe, or too few vectors for it.
        """
        faiss = require("faiss", "An approximate index")
        self._check_sizes(factory)
        try:
            made = faiss.index_factory(self.manifest["width"], factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise ValueError(
                f"faiss: {factory!r} is no recipe that FAISS knows; want IVF1024,Flat or HNSW32"
            ) from error
        inverted = faiss.try_extract_index_ivf(made)
        lists = inverted.nlist if inverted is not None else 1
        if not made.is_trained:
            if len(self) < lists:
                raise ValueError(f"faiss: {factory} wants at least {lists} vectors, there are {len(self)}")
            # Rows follow the order of paths: the first ones would be of a few folders.
            count = min(len(self), max(_TRAINED_ON * lists, 10_000))
            rows = np.sort(np.random.default_rng(0).choice(len(self), count, replace=False))
            try:
                made.train(self._vectors_of(rows))
            except RuntimeError as error:
                raise ValueError(f"faiss: {factory} cannot be trained on {count} vectors ({error})") from error
        if inverted is not None:
            inverted.nprobe = min(probed, lists)
        dataset = self.dataset.select_columns(["features"]).with_format("numpy")
        with without_bars():
            dataset.add_faiss_index("features", custom_index=made)
        (self.folder / FAISS_ABOUT).unlink(missing_ok=True)
        with replacing(self.folder / FAISS) as aside:
            dataset.save_faiss_index("features", str(aside))
        about = {"factory": factory, "probed": probed, "content": hash_of_files([self.folder / FAISS])}
        write_json(self.folder / FAISS_ABOUT, about)
        self.__dict__.pop("_with_faiss", None)

    def _check_sizes(self, factory: str) -> None:
        """ValueError for sizes in a recipe that FAISS would take memory for before it looks at a vector."""
        for kind, number in re.findall(r"(IVF|IMI2x|)(\d+)", factory):
            size = int(number) if len(number) < 10 else 10**9
            # An inverted multi-index has 2 ** (2 x bits) lists.
            lists = {"IVF": size, "IMI2x": 4 ** min(size, 15)}.get(kind, 0)
            if lists > len(self):
                raise ValueError(f"faiss: {factory} wants at least {lists} vectors, there are {len(self)}")
            if not kind and size > _LARGEST_SIZE:
                raise ValueError(f"faiss: {factory:.100}: got the size {number:.20}; want at most {_LARGEST_SIZE}")

    def _vectors_of(self, rows: np.ndarray) -> np.ndarray:
        """(N, D) float32."""
        found = np.empty((len(rows), self.manifest["width"]), np.float32)
        for first, vectors in self.vectors():
            low, high = np.searchsorted(rows, (first, first + len(vectors)))
            found[low:high] = vectors.numpy()[rows[low:high] - first]
        return found

    @cached_property
    def _with_faiss(self):
        require("faiss", "An approximate index")
        if self.faiss is None:
            raise ValueError(f"exact: False, but {self.folder} has no FAISS index; want build_index(..., faiss=...)")
        written = hash_of_files([self.folder / FAISS])
        if read_json(self.folder / FAISS_ABOUT).get("content", written) != written:  # FAISS would read anything
            raise OSError(f"{self.folder / FAISS}: it is not as it was written; remove it, or make it anew")
        dataset = self.dataset.select_columns(["features"])
        dataset.load_faiss_index("features", str(self.folder / FAISS))
        return dataset

    def _approximate(self, queries, top, wanted, every_moment) -> list[tuple[np.ndarray, np.ndarray]]:
        found = []
        for query in queries.numpy():
            count = top
            while True:  # of one file there may be many rows, and others may be of kinds that are not wanted
                scores, rows = self._with_faiss.search("features", query, k=min(count, len(self)))
                rows, scores = rows[rows >= 0], scores[rows >= 0]
                asked = len(rows)
                if wanted is not None:
                    right = wanted[np.searchsorted(self._files[0], rows, side="right") - 1]
                    rows, scores = rows[right], scores[right]
                best = self._best(rows, scores, top, every_moment)
                if len(best[0]) >= top or asked < count:
                    break
                count *= 4
            if len(best[0]) < top and asked < len(self):  # a graph does not reach all vectors
                best = self._exact(torch.from_numpy(query)[None], top, wanted, every_moment)[0]
            found.append(best)
        return found


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the largest values, in any order; of equal ones the first."""
    if len(values) <= count:
        return np.arange(len(values))
    least = np.partition(values, -count)[-count]
    above = np.flatnonzero(values > least)
    return np.append(above, np.flatnonzero(values == least)[: count - len(above)])


def _checked(kinds: Sequence[str] | str) -> list[str]:
    wanted = f"some of {', '.join(KINDS)}"
    kinds = [kinds] if isinstance(kinds, str) else listed(kinds, "kinds", wanted)
    if not all(isinstance(kind, str) and kind in KINDS for kind in kinds):
        raise ValueError(f"kinds: got {kinds}; want {wanted}")
    return kinds


def _pixels(encoder: Encoder, image: Any) -> torch.Tensor:
    if encoder.images is None:
        raise ValueError(f"image: {encoder.name} encodes no single images")
    try:
        return encoder.images([image], return_tensors="pt")["pixel_values"]
    except ValueError as error:
        raise ValueError(f"image: {str(error).removeprefix('images[0]: ')}") from error


__all__ = ["FORMAT_VERSION", "Hit", "Index", "open_index", "without_bars"]
