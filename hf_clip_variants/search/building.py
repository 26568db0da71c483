"""`build_index`: vectors of all files in a folder, or of what is new in it, written so that a kill loses little."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..evaluation.devices import choose_device
from ..files.atomic_writes import replacing, staged_folder
from ..files.index_folders import MANIFEST
from ..files.json_files import write_json
from ..optional_dependencies import require
from .encoder import Encoder, load_encoder
from .index import FORMAT_VERSION, Index, open_index, without_bars
from .manifest import content_of
from .reading import Read, Reader, VideoSettings
from .sources import Entry, Source, digest_of, open_source


logger = logging.getLogger(__name__)

WORK = ".building"  # below the index, while it is being built
_WORTH = {"image": 1, "audio": 8, "video": 32}  # how long a file takes, about; a kill loses one part
PART_SIZE = 256
_Rows = tuple[pa.Table, int, int]  # a table, the first row, how many
_NEEDS = {"video": ("av", "Reading videos"), "audio": ("soundfile", "Reading audio files")}


def build_index(
    source: str | os.PathLike | Sequence[str | os.PathLike] | Any,
    model: str | os.PathLike | Encoder,
    out: str | os.PathLike,
    *,
    videos: str | None = None,
    fps: float | None = None,
    clip_seconds: float | None = None,
    column: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    faiss: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Makes or updates an index of pictures, videos and sounds, to be searched by texts, pictures and sounds.

    The index is a folder that `datasets.load_from_disk` reads: a row for each picture, each frame or clip of a video
    and each window of a sound, with `path`, `kind`, `start` and `end` in seconds and `features`, float16, unit norm.

    Files that are new or have changed (size or time, then content) are encoded, others keep their vectors, and those
    of files that are gone leave. While it runs, finished parts are kept, so that an interrupted build goes on from
    there and ends with the same index, bit by bit. The index itself is replaced in one step at the end. Processes that
    torchrun started each do a share of the parts, and make the index that one process makes.

    Args:
        source: see `open_source`: a folder, Parquet files, a `datasets.Dataset`, or the id of a data set on the Hub.
        model: folder or Hub id of a dual encoder. Of an existing index, the one that it was made with.
        out: folder of the index.
        videos: "frames" or "clips". Default: that of the index; of a new one, clips if the model looks at clips as a
            whole, else frames.
        fps, clip_seconds: see `VideoSettings`.
        column, split, revision: of a table or data set, see `open_source`.
        batch_size: pictures or frames in one pass of the model.
        device: default: a GPU if there is one. dtype: of the model.
        faiss: make an approximate index beside it, too, by this recipe of FAISS's `index_factory`, such as
            "IVF1024,Flat" or "HNSW32"; needs the extra `search`.
        workers: threads that read files. Default: as many as processors, at most 8.
        progress: called with the numbers of files done and of all, of this process.

    Returns:
        [`Index`]. Its `unreadable` names what could not be read, and why.

    Raises:
        ValueError: no files, none that can be read, an index that another model or other settings made, features that
            are not finite. OSError: no such source or model; the disk is full; another process builds this index.
        ImportError: videos without PyAV, sounds without soundfile.

    Example:

    ```python
    >>> import tempfile
    >>> from hf_clip_variants import build_index, embedded_model, load_images
    >>> folder = tempfile.mkdtemp()
    >>> icons = load_images("emoji:fluentflat")
    >>> for name in ("cat", "pizza", "octopus"):
    ...     icons.image(icons.class_names.index(name)).save(f"{folder}/{name}.png")
    >>> index = build_index(folder, embedded_model(), f"{folder}/index")
    >>> [hit.path for hit in index.search("an emoji of a pizza", top=1)]
    ['pizza.png']
    ```
    """
    from accelerate import PartialState

    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size!r}; want a whole number, at least 1")
    if workers is not None and (type(workers) is not int or workers < 0):
        raise ValueError(f"workers: got {workers!r}; want a whole number, at least 0, or None")
    if not isinstance(model, str | os.PathLike | Encoder):
        raise ValueError(f"model: got {type(model).__name__}; want a folder, a Hub id or an Encoder")
    if not isinstance(out, str | os.PathLike) or not os.fspath(out):
        raise ValueError(f"out: got {out!r}; want the path of a folder")
    if faiss is not None and not isinstance(faiss, str):
        raise ValueError(f"faiss: got {faiss!r}; want a recipe of FAISS, such as IVF1024,Flat")
    if faiss is not None:
        require("faiss", "An approximate index")
    out = Path(os.path.abspath(os.path.expanduser(out)))
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"out: {out} is a file; want a folder")
    device = choose_device(model.device if isinstance(model, Encoder) else device)
    started = not torch.distributed.is_initialized()
    state = PartialState(cpu=device.type == "cpu")

    def prepared() -> tuple[Source, _Build]:
        place = device if state.num_processes == 1 else state.device
        encoder = model if isinstance(model, Encoder) else load_encoder(model, place, dtype)
        found = open_source(source, column, split, revision)
        settings = {"mode": videos, "fps": fps, "clip_seconds": clip_seconds}
        return found, _Build(found, encoder, out, settings, batch_size, workers)

    try:
        opened, build = _on_all_ranks(state, prepared)
        with contextlib.ExitStack() as stack:
            _on_all_ranks(state, lambda: stack.enter_context(build.lock()) if state.is_main_process else None)
            _run(build, state, progress, faiss)
    finally:
        if started and torch.distributed.is_initialized():
            state.destroy_process_group()
            PartialState._reset_state()
    made = open_index(out, build.encoder)
    made.source = opened
    return made


def _run(build: _Build, state: Any, progress: Callable[[int, int], None] | None, faiss: str | None) -> None:
    nothing, first = (lambda: None), state.is_main_process
    # One rank looks at the files, so that all have the same list.
    kept, to_do, refused = _shared(state, _on_all_ranks(state, build.listed if first else nothing))
    parts = build.parts(to_do)
    _on_all_ranks(state, lambda: build.encode(parts[state.process_index :: state.num_processes], progress))
    _on_all_ranks(state, (lambda: build.finish(kept, parts, refused, faiss)) if first else nothing)


# ---- ranks


def _on_all_ranks(state: Any, work: Callable[[], Any]) -> Any:
    """What `work` returns here; where it fails on one rank, an error on all of them: none waits for another."""
    if state.num_processes == 1:
        return work()
    from accelerate.utils import gather_object

    found, failure = None, None
    try:
        found = work()
    except Exception as error:
        failure = error
    said = gather_object([None if failure is None else f"{type(failure).__name__}: {failure}"])
    if failure is not None:
        raise failure
    for rank, message in enumerate(said):
        if message is not None:
            raise ValueError(f"process {rank} failed: {message}")
    return found


def _shared(state: Any, value: Any) -> Any:
    """That of the first rank, on all."""
    if state.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


# ---- one build


class _Build:
    def __init__(self, source: Source, encoder: Encoder, out: Path, settings: Mapping, batch_size: int, workers):
        self.source, self.encoder, self.out, self.work = source, encoder, out, out / WORK
        self.batch_size, self.workers = batch_size, workers
        _put_back(out)
        self.before = open_index(out, encoder) if (out / MANIFEST).is_file() else None
        if self.before is None and out.is_dir() and any(path.name != WORK for path in out.iterdir()):
            raise ValueError(f"out: {out} holds other files and is no index; want a new folder, or an index")
        given = {name: value for name, value in settings.items() if value is not None}
        default = {"mode": "clips" if encoder.has_clips else "frames"}
        self.settings = VideoSettings(**default | given)
        if self.before is not None:
            self._check_same(given)
        if self.settings.mode == "frames" and "video" in encoder.kinds and encoder.images is None:
            raise ValueError(f"videos: {encoder.name} encodes no single frames; want clips")
        self.made_by = digest_of([encoder.key, json.dumps(encoder.settings, sort_keys=True), str(self.settings)])

    def _check_same(self, given: Mapping[str, Any]) -> None:
        """ValueError unless the index that is there was made by this model, with these settings, of this source."""
        made = self.before.manifest
        self.before.check_model(self.encoder)
        self.settings = VideoSettings(**made["videos"])
        asked = VideoSettings(**made["videos"] | given)
        if asked != self.settings:
            raise ValueError(
                f"videos: {self.out} was made with {made['videos']}; got {given}; want the same, or another folder"
            )
        if (made["source"], made["column"]) != (self.source.name, self.source.column):
            raise ValueError(
                f"source: {self.out} is an index of {made['source']}; got {self.source.name}; want the same, or "
                "another folder"
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """OSError if another process is building this index."""
        from filelock import FileLock, Timeout

        self.work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.work / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise OSError(f"out: another process is building {self.out}; wait for it") from None
        try:
            yield
        finally:
            lock.release()
            with contextlib.suppress(OSError):
                if not any(path.name != ".lock" for path in self.work.iterdir()):  # nothing was begun
                    shutil.rmtree(self.work, ignore_errors=True)
                    self.out.rmdir()

    # ---- what is to be done

    def listed(self) -> tuple[list[Entry], list[Entry], list[list[str]]]:
        """Entries whose vectors are there, those to encode, and what cannot be in an index; sorted by path."""
        entries, refused = self.source.entries(self.encoder.kinds, self.out)
        if not entries and not refused:
            raise ValueError(f"source: no {', '.join(self.encoder.kinds)} files in {self.source.name}")
        for kind, (module, purpose) in _NEEDS.items():
            if any(entry.kind == kind for entry in entries):
                require(module, purpose)
        known = {} if self.before is None else self.before.stamps()
        kept, to_do = [], []
        for entry in entries:
            size, modified, content = known.get(entry.path, (None, None, None))
            same = (size, modified) == (entry.size, entry.modified)
            (kept if same and entry.content in ("", content) else to_do).append(entry)
        return kept, to_do, refused

    def parts(self, entries: Sequence[Entry]) -> list[tuple[Path, list[Entry]]]:
        """What is encoded and kept together: the file, and the entries; they depend on nothing but the entries."""
        groups: list[list[Entry]] = []
        worth = PART_SIZE
        for entry in entries:
            if worth >= PART_SIZE:
                groups.append([])
                worth = 0
            groups[-1].append(entry)
            worth += _WORTH[entry.kind]
        return [(self.work / f"part-{self._digest(group)}.arrow", group) for group in groups]

    def _digest(self, entries: Sequence[Entry]) -> str:
        return digest_of([self.made_by, *(json.dumps(asdict(entry), sort_keys=True) for entry in entries)])

    # ---- encoding

    def encode(self, parts: Sequence[tuple[Path, list[Entry]]], progress: Callable[[int, int], None] | None) -> None:
        """Writes the parts that are not there yet."""
        total, done = sum(len(entries) for _, entries in parts), 0
        missing = []
        for path, entries in parts:
            if path.is_file():
                done += len(entries)
            else:
                missing.append((path, entries))
        report = progress or (lambda done, total: None)
        report(done, total)
        if not missing:
            return
        known = self._known()
        reader = Reader(self.source, self.encoder, self.settings, known, self.batch_size, self.workers)
        writer = None
        with contextlib.closing(reader.read([entries for _, entries in missing])) as reads:
            for number, found in reads:
                if writer is None or number != writer.number:
                    if writer is not None:
                        writer.write(missing[writer.number][0])
                    writer = _PartWriter(number, self.encoder, self.batch_size, known, self.made_by)
                for read in found:
                    done += writer.add(read)
                report(min(done, total), total)
            if writer is not None:
                writer.write(missing[writer.number][0])

    def _known(self) -> dict[str, _Rows]:
        """Hash of content -> its rows: of the index that is there, and of parts of a build that was stopped before
        files were added or removed."""
        found: dict[str, _Rows] = {}
        tables = [] if self.before is None else [self.before.table]
        for path in sorted(self.work.glob("part-*.arrow")):
            with contextlib.suppress(pa.ArrowException, OSError):
                table = _read_part(path)
                if (table.schema.metadata or {}).get(b"made_by", b"").decode() == self.made_by:
                    tables.append(table)
        for table in tables:
            for content, first, count in _runs(table):
                found[content] = table, first, count
        return found

    # ---- the index

    def finish(self, kept: Sequence[Entry], parts: Sequence[tuple[Path, list[Entry]]], refused, faiss) -> None:
        """Puts rows that were there and those of the parts together, and in the place of the index."""
        new = [_read_part(path) for path, _ in parts]
        unreadable = [*refused]
        for table in new:
            unreadable += json.loads(table.schema.metadata[b"unreadable"])
        unreadable.sort()
        tables, places = [], {}
        for table in ([] if self.before is None else [self.before.table]) + new:
            offset = sum(len(one) for one in tables)
            places |= {path: (offset + first, count) for path, first, count in _runs(table, "path")}
            tables.append(table.replace_schema_metadata(None))
        failed = {path for path, _ in unreadable}
        wanted = [*kept, *(entry for _, entries in parts for entry in entries if entry.path not in failed)]
        if not wanted:
            shown = "; ".join(f"{path}: {why}" for path, why in unreadable[:5])
            raise ValueError(f"source: none of {len(unreadable)} files in {self.source.name} can be read: {shown}")
        rows = [np.arange(*_range(places[entry.path])) for entry in sorted(wanted, key=lambda entry: entry.path)]
        manifest = {
            "version": FORMAT_VERSION,
            "source": self.source.name,
            "column": self.source.column,
            "split": self.source.split,
            "model": self.encoder.about(),
            "width": self.encoder.width,
            "videos": asdict(self.settings),
            "unreadable": unreadable,
        }
        if self.before is not None and len(wanted) == len(kept) == len(self.before.stamps()):
            before = {name: value for name, value in self.before.manifest.items() if name != "content"}
            if manifest == before and (faiss is None or faiss == self.before.faiss):
                shutil.rmtree(self.work, ignore_errors=True)
                return
        table = pa.concat_tables(tables)
        with staged_folder(self.out, bytes_needed=table.nbytes, keep_others=False) as stage:
            save_rows(table, np.concatenate(rows), json.dumps(manifest), stage)
            write_json(stage / MANIFEST, manifest | {"content": content_of(stage)})
            if faiss is not None:
                open_index(stage, self.encoder).add_faiss(faiss)
        shutil.rmtree(self.work, ignore_errors=True)  # where the folder itself had to stay


def save_rows(table: pa.Table, rows: np.ndarray, about: str, folder: Path) -> None:
    """Rows of a table as a folder of `datasets`, some at a time; the same bytes for the same rows and `about`."""
    import datasets

    dataset = datasets.Dataset(table, datasets.DatasetInfo(features=features(_width(table)))).select(rows)
    contents = table.column("content").combine_chunks().take(pa.array(rows)).to_pylist()
    dataset._fingerprint = digest_of([about, *contents])  # it would be another one each time
    with without_bars():
        dataset.save_to_disk(str(folder))


def features(width: int):
    """The columns of an index, as `datasets` describes them."""
    from datasets import Features, List, Value

    columns = {"path": "string", "kind": "string", "start": "float32", "end": "float32"}
    stamps = {"size": "int64", "modified": "int64", "content": "string"}
    return Features(
        {name: Value(dtype) for name, dtype in columns.items()}
        | {"features": List(Value("float16"), length=width)}
        | {name: Value(dtype) for name, dtype in stamps.items()}
    )


def _width(table: pa.Table) -> int:
    return table.schema.field("features").type.list_size


def _runs(table: pa.Table, column: str = "content") -> Iterator[tuple[str, int, int]]:
    """(value, first row, count) of equal values in a row; of `content`, those of one entry."""
    values = table.column(column).to_pylist()
    if column == "content":
        values = list(zip(values, table.column("path").to_pylist(), strict=True))
    first = 0
    for row in range(1, len(values) + 1):
        if row == len(values) or values[row] != values[first]:
            yield values[first][0] if column == "content" else values[first], first, row - first
            first = row


def _range(place: tuple[int, int]) -> tuple[int, int]:
    return place[0], place[0] + place[1]


def _put_back(out: Path) -> None:
    """What a process that was killed while it replaced the index left: the old one, under another name."""
    previous = out.with_name(f".{out.name}.previous")
    if previous.is_dir() and not out.exists():
        with contextlib.suppress(FileNotFoundError):  # another rank was first
            os.rename(previous, out)


def _read_part(path: Path) -> pa.Table:
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    table.validate(full=True)  # else Arrow reads past the ends of damaged buffers
    return table


class _PartWriter:
    """Encodes the samples of some entries in batches, and writes their rows to a file."""

    def __init__(self, number: int, encoder: Encoder, batch_size: int, known: Mapping[str, _Rows], made_by: str):
        self.number, self.encoder, self.batch_size = number, encoder, batch_size
        self.known, self.made_by = known, made_by
        self._entries: dict[str, tuple[Entry, str, str]] = {}  # path -> entry, kind, hash of content
        self._failed: dict[str, str] = {}
        self._copied: dict[str, _Rows] = {}
        self._waiting: dict[Any, list[tuple[tuple, dict[str, torch.Tensor]]]] = {}
        self._vectors: dict[str, dict[tuple, list[torch.Tensor]]] = {}  # path -> (start, end) -> embeddings

    def add(self, read: Read) -> int:
        """Takes what was read of an entry, and returns how many entries it is the first part of."""
        path = read.entry.path
        is_new = path not in self._entries and path not in self._failed
        if read.error is not None:
            self._failed[path] = read.error
        elif is_new or read.content is not None:
            self._entries[path] = read.entry, read.kind or read.entry.kind, read.content
            if read.content in self.known:
                self._copied[path] = self.known[read.content]
        if path in self._failed or path in self._copied:
            return int(is_new)
        for sample in read.samples:
            shapes = tuple((name, tuple(value.shape)) for name, value in sorted(sample.inputs.items()))
            waiting = self._waiting.setdefault((sample.task, shapes), [])
            waiting.append(((path, sample.start, sample.end), sample.inputs))
            if len(waiting) >= self._size(sample.inputs):
                self._encode(sample.task, waiting)
        return int(is_new)

    def _size(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """Samples in one pass: a clip counts as its frames."""
        frames = max((value.shape[1] for value in inputs.values() if value.dim() == 5), default=1)
        return max(1, self.batch_size // frames)

    def _encode(self, task: str, waiting: list) -> None:
        batch = {name: torch.cat([inputs[name] for _, inputs in waiting]) for name in waiting[0][1]}
        function = {
            "pixels": self.encoder.encode_pixels,
            "clips": self.encoder.encode_clips,
            "audio": self.encoder.encode_audio,
        }[task]
        try:
            found = function(**batch)
        except ValueError as error:
            raise ValueError(f"{', '.join(sorted({place[0] for place, _ in waiting})[:3])}, …: {error}") from error
        for ((path, *times), _), vector in zip(waiting, found, strict=True):
            self._vectors.setdefault(path, {}).setdefault(tuple(times), []).append(vector)
        waiting.clear()

    def write(self, path: Path) -> None:
        for (task, _), waiting in self._waiting.items():
            if waiting:
                self._encode(task, waiting)
        width = self.encoder.width
        schema = features(width).arrow_schema.remove_metadata()
        tables = [schema.empty_table()]
        for name, (entry, kind, content) in self._entries.items():
            if name in self._failed:
                continue
            if name in self._copied:
                known, first, count = self._copied[name]
                tables.append(_renamed(known.slice(first, count), entry, schema))
            else:
                tables.append(_rows(entry, kind, content, self._vectors[name], schema))
        table = pa.concat_tables(tables).combine_chunks()
        about = {"unreadable": json.dumps(sorted(self._failed.items())), "made_by": self.made_by}
        table = table.replace_schema_metadata(about)
        with replacing(path, table.nbytes) as aside, pa.OSFile(str(aside), "wb") as file:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)


def _rows(entry: Entry, kind: str, content: str, vectors: Mapping[tuple, list[torch.Tensor]], schema) -> pa.Table:
    """The rows of one entry, in the order of their times."""
    from ..modeling.dual_encoders.backbones import unit_norm

    places = sorted(vectors, key=lambda place: (place[0] or 0.0, place[1] or 0.0))
    means = [torch.stack(vectors[place]).mean(0) if len(vectors[place]) > 1 else vectors[place][0] for place in places]
    values = unit_norm(torch.stack(means)).half().numpy()
    count = len(places)
    columns = {
        "path": [entry.path] * count,
        "kind": [kind] * count,
        "start": [start for start, _ in places],
        "end": [end for _, end in places],
        "features": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1]),
        "size": [entry.size] * count,
        "modified": [entry.modified] * count,
        "content": [content] * count,
    }
    arrays = [pa.array(v, schema.field(n).type) if isinstance(v, list) else v for n, v in columns.items()]
    return pa.table(dict(zip(columns, arrays, strict=True))).cast(schema)


def _renamed(rows: pa.Table, entry: Entry, schema: pa.Schema) -> pa.Table:
    """Rows of the same content, with another name or time."""
    for name in ("path", "size", "modified"):
        place, kind = schema.get_field_index(name), schema.field(name)
        rows = rows.set_column(place, kind, pa.array([getattr(entry, name)] * len(rows), kind.type))
    return rows.replace_schema_metadata(None).cast(schema)


__all__ = ["build_index", "save_rows"]
