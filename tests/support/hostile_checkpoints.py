"""Checkpoint files made to attack: pickles that name forbidden functions in every way, bombs, false archives.

Each function makes one such file and gives a name, what to run, and what a refusal must name. Used by
`attack_checkpoints.py`.
"""

import pickle
import random
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from attack_cases import WRONG
from crafted_pickles import Payload, number, numbers, state_dict, storage, tensor, text, write_legacy, write_zip

from hf_clip_variants.conversion.checkpoint_reader import read_checkpoint, read_state_dict
from hf_clip_variants.conversion.convert import convert_checkpoint


Weights = dict[str, torch.Tensor]
Attack = tuple[str, Callable[[], object], tuple[str, ...]]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def small_weights(rng: random.Random) -> Weights:
    """Some tensors of random names, shapes and types."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    dtypes = rng.choices(["F32", "F32", "F16", "BF16", "I64", "U8"], k=rng.randint(1, 6))
    return {
        f"layer{i}.weight": torch.randint(0, 100, [rng.randint(1, 5) for _ in range(rng.randint(0, 3))]).to(DTYPES[d])
        if not d.startswith("F")
        else torch.randn([rng.randint(1, 5) for _ in range(rng.randint(0, 3))], generator=generator).to(DTYPES[d])
        for i, d in enumerate(dtypes)
    }


def same(actual: Weights, expected: Weights) -> bool:
    """Names, shapes, types and bits."""
    return actual.keys() == expected.keys() and all(
        actual[n].shape == t.shape and actual[n].dtype == t.dtype and bits(actual[n]) == bits(t)
        for n, t in expected.items()
    )


def bits(tensor: torch.Tensor) -> bytes:
    tensor = tensor.detach().contiguous()
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


# ---- hostile files

FORBIDDEN = """
    os.system posix.system nt.system os.popen os.execv builtins.eval builtins.exec builtins.compile builtins.open
    builtins.getattr builtins.setattr builtins.__import__ builtins.globals builtins.breakpoint builtins.input
    subprocess.Popen subprocess.call subprocess.check_output commands.getoutput shutil.rmtree shutil.copy
    runpy.run_path
    runpy._run_code importlib.import_module importlib.__import__ pickle.loads pickle.Unpickler _pickle.loads
    torch.load torch.serialization.load torch.jit.load torch.hub.load torch.utils.cpp_extension.load
    torch.package.PackageImporter torch._inductor.codecache.PyCodeCache.load torch.distributed.rpc.rpc_sync
    numpy.load numpy.testing._private.utils.runstring numpy.f2py.capi_maps.load_f2cmap_file joblib.load
    codecs.open webbrowser.open ctypes.CDLL pty.spawn pdb.run code.interact socket.create_connection
    multiprocessing.util.spawnv_passfds timeit.timeit cProfile.run types.FunctionType types.CodeType marshal.loads
    operator.attrgetter operator.methodcaller functools.partial functools.reduce bdb.Bdb.run doctest.debug_script
    logging.config.valid_ident asyncio.subprocess.create_subprocess_shell pip.main pydoc.pipepager site.addsitedir
    transformers.AutoModel.from_pretrained huggingface_hub.hf_hub_download yaml.unsafe_load linecache.getline
    torch.optim.Optimizer.__init__.__globals__ torch.ops.load_library torch.classes.load_library
    hf_clip_variants.conversion.convert.convert_checkpoint argparse.FileType collections.namedtuple
    torch._utils._rebuild_wrapper_subclass torch.utils.data.datapipes.utils.decoder.basichandlers
""".split()


def _call(rng: random.Random, name: str, argument: bytes) -> bytes:
    """A pickle fragment that names a global, and with most opcodes calls it with `argument`."""
    module, _, attribute = name.rpartition(".")
    plain_global = b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"
    stacked = text(module) + text(attribute) + b"\x93"
    named = rng.choice([plain_global, stacked])
    argument = text("true") if rng.random() < 0.3 else argument
    return rng.choice(
        [
            named + b"(" + argument + b"tR",
            named + argument + b"\x85R",
            named + b"(" + argument + b"t\x81",
            named + b"(" + argument + b"t}\x92",
            b"(" + argument + b"i" + module.encode() + b"\n" + attribute.encode() + b"\n",
            b"(" + named + argument + b"o",
            named + b")R(" + argument + b"tb",
            named + b")R}" + text("a") + argument + b"sb",
            b"ctorch._utils\n_rebuild_parameter_with_state\n(" + tensor([4], [1]) + b"\x89}" + named + b"tR",
            b"ctorch._tensor\n_rebuild_from_type_v2\n(" + named + b"N(" + argument + b"t}tR",
            b"ccollections\ndefaultdict\n(" + named + b"tR",
            b"c__builtin__\ngetattr\n(" + named + text("__globals__") + b"tR",
        ]
    )


def hostile_pickle(rng: random.Random, folder: Path) -> Attack:
    canary = folder / "canary"
    name = rng.choice(FORBIDDEN)
    if rng.random() < 0.2:  # any other name
        name = ".".join("".join(rng.choices("abcdefgh_", k=rng.randint(1, 9))) for _ in range(rng.randint(2, 4)))
    evil = _call(rng, name, text(f"touch {canary}"))
    good = tensor([4], [1])
    pickled = rng.choice(
        [
            state_dict(evil),
            b"\x80\x02}(" + text("w") + good + text("zz") + evil + b"u.",
            b"\x80\x02}(" + text("zz") + evil + text("w") + good + b"u.",
            b"\x80\x02" + evil + b"0" + state_dict(good)[2:],
            state_dict(good)[:-1] + b"q\x00" + evil + b"0h\x00.",
            state_dict(evil.replace(b"tR", b"t(" + evil + b"tRR")),
        ]
    )
    layout = rng.choice(["zip", "legacy", "bare", "tar", "script", "second"])
    path = folder / f"model{rng.choice(['.pt', '.pth', '.ckpt', '.bin', '.safetensors', ''])}"
    if layout == "zip":
        write_zip(path, pickled)
    elif layout == "legacy":
        write_legacy(path, pickled)
    elif layout == "bare":
        path.write_bytes(pickled)
    elif layout == "script":
        write_zip(path, pickled, extra={"archive/constants.pkl": pickled, "archive/code/__torch__.py": b"raise"})
    elif layout == "second":
        write_zip(path, state_dict(good) + pickled)
    else:
        inner = write_zip(folder / "inner.pt", pickled)
        with tarfile.open(path, "w") as archive:
            archive.add(inner, "inner.pt")
    read, convert = rng.choice([read_state_dict, read_checkpoint]), rng.random() < 0.3

    def run():
        try:
            if convert:
                convert_checkpoint(path, folder / "converted", tokenizer="none")
            else:
                read(path)
        finally:
            if canary.exists():
                raise AssertionError("executed")
        return f"{WRONG}accepted {name}"

    return f"hostile, {layout}, {name}", run, (str(path),)


def real_payload(rng: random.Random, folder: Path) -> Attack:
    """Written by Python's pickler, of every protocol, among weights."""
    canary = folder / "canary"
    payload, weights = Payload(canary), small_weights(rng)
    content = rng.choice(
        [payload, {"state_dict": weights, "args": payload}, {**weights, "x": [payload]}, [payload], (1, {2: payload})]
    )
    path, zipped = folder / "model.pth.tar", rng.random() < 0.5
    protocol = rng.randint(2, pickle.HIGHEST_PROTOCOL)
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)

    def run():
        try:
            read_checkpoint(path)
        finally:
            if canary.exists():
                raise AssertionError("executed")
        return f"{WRONG}accepted"

    return f"payload, protocol {protocol}, {'zip' if zipped else 'legacy'}", run, (str(path),)


def random_opcodes(rng: random.Random, folder: Path) -> Attack:
    """Any sequence of valid opcodes."""
    pieces = [
        b"(", b")", b"]", b"}", b"N", b"\x88", b"\x89", b"0", b"1", b"2", b"a", b"e", b"s", b"u", b"t",
        b"\x85", b"\x86", b"\x87", b"R", b"b", b"Q", b"\x81", b"\x92", b"\x93", b"\x94", b"\x8f",
        b"\x90", b"\x91", b"d", b"l", b"o", b"I5\n", b"L5L\n", b"F1.5\n", b"K\x05", b"G" + bytes(8),
        number(rng.getrandbits(60)), text("w"), text("storage"), storage(4), tensor([4], [1]),
        tensor([2, 2], [2, 1]), numbers([1, 2]), b"q\x00", b"h\x00", b"r\xff\xff\xff\xff",
        b"j\x01\x00\x00\x00", b"ccollections\nOrderedDict\n", b"ctorch\nSize\n",
        b"cargparse\nNamespace\n", b"ctorch._utils\n_rebuild_parameter\n", b"C\x02ab", b"\x8c\x01w",
        b"P0\n", b"\x82\x01", b"\x84\x01\x00\x00\x00", b"\x95" + bytes(8), b"\x97", b"\x98",
        b"\x96" + struct.pack("<Q", 3) + b"abc", b"S'w'\n", b"Vw\n", b"p0\n", b"g0\n",
    ]  # fmt: skip
    body = b"".join(rng.choices(pieces, k=rng.randint(1, 60)))
    path = folder / "model.pt"
    (write_zip if rng.random() < 0.5 else write_legacy)(path, b"\x80\x02" + body + b".")
    return "random opcodes", lambda: read_checkpoint(path), (str(path),)


def bomb(rng: random.Random, folder: Path) -> Attack:
    path = folder / "model.pt"
    big = 1 << rng.randint(31, 61)
    depth = rng.choice([100, 5_000, 200_000])
    # Each holds the one before twice.
    doubling = b"]q\x00" + b"".join(b"(h" + bytes([i]) + b"h" + bytes([i]) + b"lq" + bytes([i + 1]) for i in range(60))
    bombs = {
        "storage": lambda: state_dict(tensor([big], [1], numel=big)),
        "stride": lambda: state_dict(tensor([4, big], [1, 0])),
        "offset": lambda: state_dict(tensor([1], [1], offset=big)),
        "size": lambda: state_dict(tensor([big, big], [0, 0])),
        "zero size": lambda: state_dict(tensor([big, 0, big], [0, 0, 0])),
        "deep lists": lambda: state_dict(b"]" * depth + b"a" * (depth - 1)),
        "deep tuples": lambda: state_dict(b")" + b"\x85" * depth),
        "doubling": lambda: b"\x80\x02}" + text("w") + doubling + b"s.",
        "integer": lambda: state_dict(b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20)),
        "digits": lambda: state_dict(b"I" + b"9" * rng.choice([5_000, 60_000, 100_000]) + b"\n"),
        "many tensors": lambda: (
            b"\x80\x02}(" + b"".join(text(f"w{i}") + tensor([4], [1]) for i in range(9_000)) + b"u."
        ),
        "opcodes": lambda: b"\x80\x02" + b"N0" * rng.choice([400_000, 700_000]) + state_dict(tensor([4], [1]))[2:],
        "memo": lambda: state_dict(
            b"N" + b"".join(b"r" + struct.pack("<I", i * 99_991 % 2**32) for i in range(150_000))
        ),
        "text": lambda: state_dict(b"X" + struct.pack("<I", 2**32 - 1) + b"a"),
        "bytes": lambda: state_dict(b"\x8e" + struct.pack("<Q", 2**62) + b"a"),
        "cycle": lambda: b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s.",
        "long line": lambda: b"c" + b"a" * (1 << 20) + b"\nb\n.",
    }
    which = rng.choice(list(bombs))
    pickled = bombs[which]()
    (write_zip if rng.random() < 0.6 else write_legacy)(path, pickled)

    def run():
        found = read_checkpoint(path)
        small = which in ("zero size", "many tensors", "opcodes", "memo", "doubling", "deep lists", "deep tuples")
        return found if small else f"{WRONG}accepted"

    return f"bomb, {which}", run, (str(path),)


def zip_bomb(rng: random.Random, folder: Path) -> Attack:
    path = folder / "model.pt"
    which = rng.choice(["deflated", "entries", "twice", "names", "size", "overlap", "comment", "nested", "no pickle"])
    good = state_dict(tensor([4], [1]))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if which == "deflated" else 0) as archive:
        archive.writestr("archive/data.pkl", b"" if which == "no pickle" else good)
        data = bytes(200 << 20) if which == "deflated" else bytes(16)
        archive.writestr("archive/data/0", data)
        if which == "entries":
            for i in range(rng.choice([1_000, 30_000])):
                archive.writestr(f"archive/data/{i + 1}", b"")
        if which == "twice":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                archive.writestr(f"archive/data{rng.choice(['.pkl', '/0'])}", bytes(16))
        if which == "names":
            for name in ("../../evil", "/etc/evil", "archive/../../evil", "C:\\evil", "archive/data/\x00"):
                archive.writestr(name, b"x")
        if which in ("size", "overlap"):
            info = archive.filelist[1]
            info.file_size = info.compress_size = rng.choice([2**31, 2**40, 2**63]) if which == "size" else 400
        if which == "comment":
            archive.comment = b"PK\x05\x06" + rng.randbytes(rng.randint(1, 60_000))
        if which == "nested":
            archive.writestr("archive/data/archive/data.pkl", good)
            archive.writestr("other/data.pkl", good)

    def run():
        found = read_state_dict(path)
        sound = which in ("entries", "names", "comment") and same(found, {"w": torch.zeros(4)})
        return found if sound else f"{WRONG}accepted"

    return f"zip, {which}", run, (str(path),)
