"""WebDataset shards: tar files in which members that follow each other and share a key are one sample."""

from __future__ import annotations

import functools
import io
import json
import logging
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from ...modeling.decoding.opening import check_regular
from ..tables import decode_text


if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)

_LOOK_AT = 20  # samples of the first shard that tell the fields


def shard_fields(shards: Sequence[str]) -> list[str]:
    """The fields of the first samples: "jpg", "txt", "json", … ValueError if there are none."""
    fields = dict.fromkeys(field for sample in islice(_samples(shards[0]), _LOOK_AT) for field in sample)
    if not fields:
        raise ValueError(f"{shards[0]}: no samples; want members such as 0001.jpg and 0001.txt")
    return [field for field in fields if field != "__key__"]


def open_shards(
    shards: Sequence[str], images: Sequence[str], texts: Sequence[str], audio: str | None = None
) -> datasets.IterableDataset:
    """A stream of the samples that have one of the image fields, one of the text fields and the audio, where wanted.

    Samples without are left out; a warning at the end of each shard says how many. Rows have the image in `images[0]`,
    whichever field it was, the text fields, `__key__` and `__url__`, the shard.

    Raises (while it is read):
        ValueError: a damaged shard, or one without any complete sample; the message names it.
    """
    import datasets

    wanted = {"images": tuple(images), "texts": tuple(texts), "audio": audio}
    return datasets.IterableDataset.from_generator(_rows, gen_kwargs={"shards": list(shards), **wanted})


def _rows(
    shards: Sequence[str], images: Sequence[str], texts: Sequence[str], audio: str | None
) -> Iterator[dict[str, Any]]:
    parts = {"image": images, "text": texts, "audio": (audio,) if audio else ()}
    for shard in shards:
        total, without = 0, dict.fromkeys(parts, 0)
        for sample in _samples(shard):
            total += 1
            absent = next((what for what, fields in parts.items() if fields and not sample.keys() & set(fields)), None)
            if absent:
                without[absent] += 1
                continue
            row = {"__key__": sample["__key__"], "__url__": shard}
            row[images[0]] = _file(sample, images)
            row |= {field: _text(sample.get(field), field) for field in texts}
            if audio:
                row[audio] = _file(sample, (audio,))
            yield row
        left_out = sum(without.values())
        told = ", ".join(f"{n} without {what} ({' or '.join(parts[what])})" for what, n in without.items() if n)
        if left_out and left_out == total:
            raise ValueError(
                f"{shard}: none of its {total} samples is complete: {told}. The members of a sample follow each other"
            )
        if left_out:
            _warn_once(f"{shard}: {left_out} of {total} samples are left out: {told}")


@functools.cache  # not each time round
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def _file(sample: dict[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    field = next(field for field in fields if field in sample)
    return {"bytes": sample[field], "path": f"{sample['__key__']}.{field}"}


def _text(content: bytes | None, field: str) -> Any:
    """Text, or a parsed JSON file. What cannot be read stays bytes: an error when the row is used."""
    if content is None:
        return None
    try:
        text = decode_text(content)
        return json.loads(text) if field.rpartition(".")[2] == "json" else text
    except ValueError:
        return content


def _samples(shard: str) -> Iterator[dict[str, Any]]:
    """Key and fields of each sample, as bytes."""
    sample: dict[str, Any] = {}
    for name, content in _members(shard):
        folder, name = os.path.split(name)
        stem, dot, field = name.partition(".")
        if not stem or not dot:  # a hidden file, or one without a field
            continue
        key, field = f"{folder}/{stem}" if folder else stem, field.lower()
        if sample and sample["__key__"] != key:
            yield sample
            sample = {}
        if field in sample:
            raise ValueError(f"{shard}: two members {key}.{field}; want each once")
        sample |= {"__key__": key, field: content}
    if sample:
        yield sample


def _members(shard: str) -> Iterator[tuple[str, bytes]]:
    check_regular(shard)
    try:
        with tarfile.open(shard) as tar:
            while (member := tar.next()) is not None:
                if member.isreg():
                    yield member.name, tar.extractfile(member).read()
                tar.members = []  # they would all be kept
            # tarfile takes a damaged header for the end, which is a block of zeros or nothing. (Compressed files have
            # checksums.)
            if isinstance(tar.fileobj, io.BufferedReader):
                tar.fileobj.seek(tar.offset)
                if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise tarfile.ReadError(f"damaged at byte {tar.offset}")
    except FileNotFoundError:
        raise
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{shard}: not readable as a tar file: {error}") from error
