"""Checkpoint files written by hand, with content that Python's own pickler would not write."""

import os
import pickle
import struct
import zipfile
from pathlib import Path

import torch


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def storage(numel: int, key: str = "0") -> bytes:
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(numel) + b"tQ"


def numbers(values) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(size, stride, offset=0, numel=4) -> bytes:
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(numel) + number(offset) + numbers(size) + numbers(stride)
    return call + b"\x89}tR"


def state_dict(value: bytes, key: str = "w") -> bytes:
    return b"\x80\x02}" + text(key) + value + b"s."


def write_zip(path, pickled: bytes, storages=None, extra=None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {"0": bytes(16)}).items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
    return path


def write_legacy(path, pickled: bytes, keys=("0",), data: bytes = struct.pack("<q", 4) + bytes(16)) -> Path:
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    path.write_bytes(
        b"".join(pickle.dumps(item, protocol=2) for item in head) + pickled + pickle.dumps(list(keys), 2) + data
    )
    return path


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def hostile_files(weights, folder, canary):
    """Checkpoints in every layout with a `Payload` or false metadata, in a new folder."""
    payload = Payload(canary)
    folder.mkdir()
    torch.save(payload, folder / "alone.pt")
    torch.save({"state_dict": weights, "zz": payload}, folder / "behind.pth.tar")
    torch.save({**weights, "zz": payload}, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)
    (folder / "bare.bin").write_bytes(pickle.dumps(payload, protocol=2))
    evil, good = pickle.dumps(payload, protocol=2), state_dict(tensor([4], [1]))
    write_legacy(folder / "list.pt", good + evil)
    write_zip(folder / "after.pt", good + evil)
    write_zip(folder / "memory.pt", state_dict(tensor([2**40], [1], numel=2**40)))
    return sorted(folder.iterdir())
