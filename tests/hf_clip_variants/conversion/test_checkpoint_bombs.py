"""Files that claim more than they hold, or that would take for ever: refused within 5 s and 200 MB each."""

import json
import os
import random
import re
import struct
import time
import warnings
import zipfile
from pathlib import Path

import pytest
from crafted_pickles import number, numbers, state_dict, storage, tensor, text, write_legacy, write_zip

from hf_clip_variants.conversion.checkpoint_reader import UnsafeCheckpointError, read_checkpoint, read_state_dict


class TestRefusesLies:
    """Sizes that the file does not hold. The test of bombs below also measures that nothing of these sizes is
    allocated."""

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (tensor([4], [1], numel=1 << 40), "claims 1099511627776 elements of torch.float32, the file holds"),
            (tensor([4], [1], numel=-1), "claims -1 elements"),
            (tensor([5], [1]), "outside of its storage of 16 bytes: offset 0, size .5,., stride .1,."),
            (tensor([2], [1], offset=3), "outside of its storage"),
            (tensor([2], [1], offset=-1), r"offset \[-1\]"),
            (tensor([2], [-1], offset=3), r"stride \[-1\]"),
            (tensor([-2], [1]), r"size \[-2\]"),
            (tensor([2, 2], [2]), "2 sizes and 1 strides"),
            (tensor([1 << 40], [0]), "outside of its storage"),
            (tensor([1 << 20, 1 << 20], [0, 0]), "outside of its storage"),
            (tensor([2], [1 << 61]), "outside of its storage"),
            (tensor([1 << 70], [1]), "expected whole numbers"),
            (tensor([1] * 40, [1] * 40), "not a short tuple"),
        ],
    )
    @pytest.mark.parametrize("write", [write_zip, write_legacy])
    def test_tensors(self, tmp_path, value, message, write):
        with pytest.raises(UnsafeCheckpointError, match=message):
            read_state_dict(write(tmp_path / "x.pt", state_dict(value)))

    def test_a_file_with_true_sizes_is_read(self, tmp_path):
        for write in (write_zip, write_legacy):
            assert read_state_dict(write(tmp_path / "x.pt", state_dict(tensor([2, 2], [2, 1]))))["w"].shape == (2, 2)

    def test_overlapping_entries_are_refused(self, tmp_path):
        path = tmp_path / "x.pt"
        pairs = b"".join(text(f"w{i}") + tensor([4], [1]).replace(text("0"), text(str(i))) for i in range(9))
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02}(" + pairs + b"u.")
            for i in range(9):
                archive.writestr(f"archive/data/{i}", bytes(16))
            for info in archive.filelist[1:]:
                info.file_size = info.compress_size = 500
        with pytest.raises(UnsafeCheckpointError, match="refused storages of"):
            read_state_dict(path)

    def test_duplicate_and_compressed_entries_are_refused(self, tmp_path):
        path = tmp_path / "x.pt"
        with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(2):
                archive.writestr("archive/data.pkl", state_dict(b"N"))
        with pytest.raises(UnsafeCheckpointError, match="two entries archive/data.pkl"):
            read_state_dict(path)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", state_dict(b"N") + bytes(1000))
        with pytest.raises(UnsafeCheckpointError, match="compressed entry archive/data.pkl"):
            read_state_dict(path)


def _laughing_modules(levels: int) -> bytes:
    """Modules that each hold the next one twice: 2^levels names."""
    code = b"\x80\x02c__torch__\nM\n)\x81}" + text("w") + tensor([4], [1]) + b"sb"
    for _ in range(levels):
        code += b"q\x010c__torch__\nM\n)\x81}(" + text("a") + b"h\x01" + text("b") + b"h\x01ub"
    return code + b"."


def _laughing_key(levels: int) -> bytes:
    """A dictionary key that takes 2^levels steps to hash."""
    return b"\x80\x02}" + b")" + b"2\x86" * levels + b"Ns" + text("w") + tensor([4], [1]) + b"s."


def _directory_bomb(path):
    write_zip(path, state_dict(b"N"))
    data = path.read_bytes()
    end = data.rindex(b"PK\5\6")
    start = struct.unpack("<I", data[end + 16 : end + 20])[0]
    directory = data[start:end] * 60_000
    tail = bytearray(data[end:])
    tail[12:16] = struct.pack("<I", len(directory))
    path.write_bytes(data[:start] + directory + tail)


HARMLESS = ("read", "expected a dictionary", "no state dict", "truncated")


def _bombs(folder: Path) -> dict[str, str]:
    """Writes the files; returns {file name: part of the message}."""
    million = 1_000_000
    pairs = b"\x80\x02](" + b"NN\x86" * 1000 + b"eq\0"
    wide_text = b"\x80\x02X" + struct.pack("<I", 15 << 20) + "😀".encode() + b"a" * ((15 << 20) - 4) + b"."
    values = [tensor([4], [1]) + b"q\0", *[b"h\0"] * 8]
    one_tensor_nine_times = b"".join(text(str(i)) + value for i, value in enumerate(values))
    raw = {
        "lists": (b"\x80\x02" + b"]" * 400_000 + b"a" * 399_999 + b".", "nested more than"),
        "tuples": (b"\x80\x02)" + b"\x85" * 900_000 + b".", "nested more than"),
        # every rung is seen before the next
        "ladder": (b"\x80\x02(]Naq\0" + b"]h\0aq\0" * 5000 + b"l.", "nested more than"),
        "own_list": (state_dict(b"]q\0h\0a"), "contains itself"),
        "own_dict": (b"\x80\x02}q\0" + text("a") + b"h\0s.", "contains itself"),
        "own_module": (b"\x80\x02c__torch__\nM\n)\x81q\0}" + text("a") + b"h\0sb.", "contains itself"),
        "laughing_modules": (_laughing_modules(50), "refused modules with more than"),
        "laughing_depth": (_laughing_modules(90), "nested more than"),
        "marks": (b"\x80\x02" + b"(" * 5 * million, "steps"),
        "sets": (b"\x80\x02" + b"\x8f" * 5 * million, "steps"),
        "dictionaries": (b"\x80\x02" + b"}" * 5 * million, "steps"),
        "memo": (b"\x80\x02N" + b"\x94" * 5 * million, "steps"),
        "copies": (pairs + b"ccollections\nOrderedDict\nh\0\x85R" * 20_000 + b".", "steps"),
        "far_memo": (b"\x80\x02Nr\xff\xff\xff\x7f" + b".", "expected a dictionary"),
        "integer": (state_dict(b"\x8b" + struct.pack("<I", 1 << 23) + b"\x7f" * (1 << 23)), "integer of"),
        "integers": (state_dict(b"(" + (b"\x8a\x09" + bytes(8) + b"\x10") * 200_000 + b"t"), "no state dict"),
        "wide_text": (wide_text, "expected a dictionary"),
        "long_pickle": (b"\x80\x02" + b"N0" * (9 << 20), "more than 16777216"),
        "long_text": (b"\x80\x02X" + struct.pack("<I", 1 << 30), "truncated"),
        "tensors": (b"\x80\x02}(" + one_tensor_nine_times + b"u.", "read"),
    }
    bombs = {}
    for name, (code, message) in raw.items():
        write_zip(folder / f"{name}.pt", code)
        bombs[f"{name}.pt"] = message
    gigabyte = write_legacy(folder / "gigabyte.pt", b"(N1" * million)
    os.truncate(gigabyte, 1 << 30)
    bombs["gigabyte.pt"] = "steps"
    write_legacy(folder / "gigabyte_text.pt", b"\x80\x02X" + struct.pack("<I", (1 << 30) - 1000))
    os.truncate(folder / "gigabyte_text.pt", 1 << 30)
    bombs["gigabyte_text.pt"] = "more than 16777216 bytes"
    for write in (write_zip, write_legacy):
        name = f"storage_{write.__name__}.pt"
        write(folder / name, state_dict(tensor([1 << 40], [1], numel=1 << 40)))
        bombs[name] = "claims 1099511627776 elements"
    write_zip(folder / "key.pt", _laughing_key(60))
    bombs["key.pt"] = "read"
    _directory_bomb(folder / "directory.pt")
    bombs["directory.pt"] = "zip directory"
    with zipfile.ZipFile(folder / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(64 << 20))
    bombs["deflated.pt"] = "compressed entry"
    header = b"{" + b" " * (17 << 20)
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    bombs["header.safetensors"] = "refused a safetensors header"
    entries = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    header = json.dumps(entries).encode()
    (folder / "empty_tensors.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    bombs["empty_tensors.safetensors"] = "refused 100000 tensors, more than 50000"
    return bombs


def _peak_memory(reset: bool = False) -> float:
    """Largest resident size of this process in MB since the last reset; 0 where the kernel does not say."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    except OSError:
        return 0.0


def test_bombs_are_refused_or_read_in_5_seconds_and_200_mb(tmp_path):
    """Each within 5 s and 200 MB; most are refused, the few that turn out harmless are read."""
    for name, message in _bombs(tmp_path).items():
        before, start = _peak_memory(reset=True), time.process_time()
        try:
            read_state_dict(tmp_path / name)
            outcome = "read"
        except (OSError, ValueError) as error:
            outcome = str(error)
            assert isinstance(error, UnsafeCheckpointError) or message in HARMLESS, f"{name}: {error!r}"
        seconds, megabytes = time.process_time() - start, _peak_memory() - before
        assert message in outcome, f"{name}: {outcome}"
        assert seconds < 5, f"{name}: {seconds:.1f} s"
        assert megabytes < 200, f"{name}: {megabytes:.0f} MB"


def test_a_script_module_with_too_long_names_is_refused(tmp_path):
    deep = b"\x80\x02c__torch__\nM\n)\x81}" + text("n" * 600) + tensor([4], [1]) + b"sb."
    with pytest.raises(UnsafeCheckpointError, match="too long names"):
        read_state_dict(write_zip(tmp_path / "x.pt", deep))


def test_random_opcodes_raise_only_our_errors(tmp_path):
    """The interpreter alone, on valid opcodes in a random order, which reach most of its code."""
    generator = random.Random(1)
    pieces = [
        *(bytes([opcode]) for opcode in b"(012N\x88]})t\x85\x86\x87ldaesu\x94\x8f\x90\x91R\x81\x92boQ\x93."),
        *(b"q\0", b"h\0", b"g0\n", b"p0\n", b"gx\n"),  # memo
        *(
            b"K\1",
            b"J\xff\xff\xff\xff",
            b"I01\n",
            b"L5L\n",
            b"\x8a\0",
            b"G" + bytes(8),
            b"F1.5\n",
            b"F\xff\n",
        ),  # numbers
        *(text("storage"), text("a"), b"U\1\xff", b"\x8c\1a", b"C\1b"),
        *(storage(4), tensor([4], [1]), numbers([2]), number(-5)),
        b"ctorch\nFloatStorage\n",
        b"ctorch\nSize\n",
        b"ccollections\nOrderedDict\n",
        b"icollections\nOrderedDict\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._tensor\n_rebuild_from_type_v2\n",
        b"ctorch.jit._pickle\nrestore_type_tag\n",
        b"c__torch__\nM\n",
        b"cargparse\nNamespace\n",
    ]
    read = 0
    for _ in range(1500):
        code = b"".join(generator.choices(pieces, k=generator.randrange(1, 25)))
        try:
            read_checkpoint(write_zip(tmp_path / "x.pt", code + b"."))
            read += 1
        except (OSError, ValueError) as error:
            assert "x.pt" in str(error)
    assert read > 5
